//! The ONNX project's operator tests: what is inferred for a case must never
//! contradict the output that the case stores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use protobuf::Message;
use tierline_graph::onnx::{ModelProto, TensorProto, ValueInfoProto};
use tierline_graph::{DataType, InferError, Model, Types, infer_types, infer_types_with};

use crate::assets::asset;

struct Case {
    name: String,
    model: ModelProto,
    /// By position; `None` for sequences and optionals.
    inputs: Vec<Option<TensorProto>>,
    outputs: Vec<Option<TensorProto>>,
}

fn tensors(folder: &Path, prefix: &str, values: &[ValueInfoProto]) -> Vec<Option<TensorProto>> {
    let read = |(i, value): (usize, &ValueInfoProto)| {
        let bytes = std::fs::read(folder.join(format!("{prefix}_{i}.pb"))).ok()?;
        let tensor = value.type_.as_ref().is_some_and(|t| t.has_tensor_type());
        tensor.then(|| TensorProto::parse_from_tokio_bytes(&Bytes::from(bytes)).expect("a tensor"))
    };
    values.iter().enumerate().map(read).collect()
}

fn cases(root: &Path) -> Vec<Case> {
    let mut folders: Vec<_> = std::fs::read_dir(root).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    folders.sort();
    let case = |folder: &std::path::PathBuf| {
        let bytes = std::fs::read(folder.join("model.onnx")).expect("a model");
        let model = ModelProto::parse_from_tokio_bytes(&Bytes::from(bytes)).expect("a model");
        let data = folder.join("test_data_set_0");
        Case {
            name: folder.file_name().expect("a name").to_string_lossy().into_owned(),
            inputs: tensors(&data, "input", &model.graph.input),
            outputs: tensors(&data, "output", &model.graph.output),
            model,
        }
    };
    folders.iter().map(case).collect()
}

/// Forgets declared shapes of outputs, so that they have to be inferred.
fn undeclared(model: &ModelProto) -> ModelProto {
    let mut model = model.clone();
    let graph = model.graph.mut_or_insert_default();
    graph.value_info.clear();
    graph.output.iter_mut().for_each(|o| o.type_.clear());
    model
}

/// Only the shapes of inputs are given.
fn by_shapes(case: &Case) -> Result<Types, InferError> {
    let model = Model::from_proto(undeclared(&case.model)).expect("operator tests load");
    let shape = |t: &TensorProto| t.dims.iter().map(|d| *d as u64).collect();
    let names = case.model.graph.input.iter().map(|v| v.name().to_owned());
    let inputs: BTreeMap<String, Vec<u64>> =
        names.zip(&case.inputs).filter_map(|(name, t)| Some((name, shape(t.as_ref()?)))).collect();
    infer_types_with(&model, &inputs)
}

/// Inputs become constants, so that shape arithmetic on them is followed.
fn by_values(case: &Case) -> Result<Types, InferError> {
    let mut proto = undeclared(&case.model);
    let graph = proto.graph.mut_or_insert_default();
    for (value, tensor) in case.model.graph.input.iter().zip(&case.inputs) {
        if let Some(tensor) = tensor {
            let mut tensor = tensor.clone();
            tensor.set_name(value.name().to_owned());
            graph.initializer.push(tensor);
            graph.input.retain(|v| v.name() != value.name());
        }
    }
    infer_types(&Model::from_proto(proto).expect("operator tests load"))
}

/// Which outputs are wholly known, and what contradicts.
fn compare(case: &Case, types: &Types, wrong: &mut Vec<String>) -> bool {
    let mut known = true;
    for (value, tensor) in case.model.graph.output.iter().zip(&case.outputs) {
        let Some(tensor) = tensor else { continue };
        // Types that tensors here don't carry (float8, complex, 4-bit).
        let dtype = DataType::from_onnx(tensor.data_type());
        let inferred = types.get(value.name()).expect("every output is listed");
        known &= inferred.dtype.is_some() || dtype.is_none();
        if inferred.dtype.is_some() && inferred.dtype != dtype {
            wrong.push(format!("{}: `{}` is {dtype:?}, inferred {:?}", case.name, value.name(), inferred.dtype));
        }
        let Some(shape) = &inferred.shape else {
            known = false;
            continue;
        };
        let fits = shape.len() == tensor.dims.len()
            && shape.iter().zip(&tensor.dims).all(|(d, n)| d.known().is_none_or(|d| d == *n as u64));
        if !fits {
            wrong.push(format!("{}: `{}` is {:?}, inferred {shape:?}", case.name, value.name(), tensor.dims));
        }
        known &= shape.iter().all(|d| d.known().is_some());
    }
    known
}

/// Data-dependent sizes (NonZero, Unique, strings, sequences) stay unknown.
const KNOWN_MIN: f64 = 0.80;

#[test]
fn operator_tests_never_contradict() {
    let Some(root) = asset("onnx-node-tests") else { return };
    let cases = cases(&root);
    assert!(cases.len() > 1_000, "{} cases; run cargo xtask test", cases.len());
    let mut wrong = Vec::new();
    let infer: [(&str, fn(&Case) -> Result<Types, InferError>); 2] = [("shapes", by_shapes), ("values", by_values)];
    for (what, infer) in infer {
        let mut unknown = BTreeSet::new();
        for case in &cases {
            match infer(case) {
                Ok(types) if compare(case, &types, &mut wrong) => {}
                Ok(_) => drop(unknown.insert(case.name.as_str())),
                Err(e) => wrong.push(format!("{}: {e}", case.name)),
            }
        }
        let known = cases.len() - unknown.len();
        println!("by {what}: {known} of {} cases wholly known; not: {unknown:#?}", cases.len());
        if what == "values" {
            assert!(known as f64 >= KNOWN_MIN * cases.len() as f64, "only {known} of {}", cases.len());
        }
    }
    assert!(wrong.is_empty(), "{} contradictions:\n{}", wrong.len(), wrong.join("\n"));
}
