//! The ONNX project's operator tests: what is inferred for a case must never
//! contradict the output that the case stores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use protobuf::Message;
use tierline_graph::cost::cost;
use tierline_graph::onnx::{ModelProto, TensorProto, ValueInfoProto, tensor_shape_proto};
use tierline_graph::{DataType, Dim, InferError, Model, Types, infer_types, infer_types_with};

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
    // A few cases keep operator sets older than those that models are taken with.
    let taken = |case: &Case| case.model.opset_import.iter().all(|o| !o.domain().is_empty() || o.version() >= 7);
    folders.iter().map(case).filter(taken).collect()
}

/// Forgets declared shapes of outputs, so that they have to be inferred.
fn undeclared(model: &ModelProto) -> ModelProto {
    let mut model = model.clone();
    let graph = model.graph.mut_or_insert_default();
    graph.value_info.clear();
    graph.output.iter_mut().for_each(|o| o.type_.clear());
    model
}

type Infer = fn(&Case) -> Result<Types, InferError>;

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
const KNOWN_MIN: f64 = 0.97;

#[test]
fn operator_tests_never_contradict() {
    let Some(root) = asset("onnx-node-tests") else { return };
    let cases = cases(&root);
    assert!(cases.len() > 1_000, "{} cases; run cargo xtask test", cases.len());
    let mut wrong = Vec::new();
    let infer: [(&str, Infer); 2] = [("shapes", by_shapes), ("values", by_values)];
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

/// Every axis of a case's inputs gets a name; small integers become constants.
fn by_symbols(case: &Case, name: impl Fn(usize, usize, i64) -> String) -> (Result<Types, InferError>, Sizes) {
    let mut proto = undeclared(&case.model);
    let graph = proto.graph.mut_or_insert_default();
    let mut sizes = Sizes::new();
    for (i, (value, tensor)) in case.model.graph.input.iter().zip(&case.inputs).enumerate() {
        let Some(tensor) = tensor else { continue };
        if tensor.data_type() == DataType::I64.to_onnx() && tensor.dims.iter().product::<i64>() < 16 {
            let mut tensor = tensor.clone();
            tensor.set_name(value.name().to_owned());
            graph.initializer.push(tensor);
            continue;
        }
        let declared = graph.input[i].type_.mut_or_insert_default().mut_tensor_type();
        let shape = declared.shape.mut_or_insert_default();
        shape.dim.clear();
        for (axis, size) in tensor.dims.iter().enumerate() {
            let symbol = name(i, axis, *size);
            sizes.insert(symbol.clone(), *size as u64);
            let mut dim = tensor_shape_proto::Dimension::new();
            dim.set_dim_param(symbol);
            shape.dim.push(dim);
        }
    }
    (infer_types(&Model::from_proto(proto).expect("operator tests load")), sizes)
}

type Sizes = BTreeMap<String, u64>;

/// A name that comes out stands for the size that went in under it.
#[test]
fn symbols_stand_for_the_sizes_that_run() {
    let Some(root) = asset("onnx-node-tests") else { return };
    let (mut wrong, mut axes, mut known) = (Vec::new(), 0, 0);
    for case in cases(&root) {
        let each = by_symbols(&case, |input, axis, _| format!("i{input}a{axis}"));
        let equal = by_symbols(&case, |_, _, size| format!("s{size}"));
        for (types, sizes) in [each, equal] {
            let types = match types {
                Ok(types) => types,
                Err(e) => {
                    wrong.push(format!("{}: {e}", case.name));
                    continue;
                }
            };
            for (value, tensor) in case.model.graph.output.iter().zip(&case.outputs) {
                let shape = types.get(value.name()).and_then(|v| v.shape.as_ref());
                let (Some(tensor), Some(shape)) = (tensor, shape) else { continue };
                let size = |d: &Dim| if let Dim::Symbol(s) = d { sizes.get(s).copied() } else { d.known() };
                let fits = shape.iter().zip(&tensor.dims).all(|(d, n)| size(d).is_none_or(|d| d == *n as u64));
                if shape.len() != tensor.dims.len() || !fits {
                    wrong.push(format!("{}: `{}` is {:?}, inferred {shape:?}", case.name, value.name(), tensor.dims));
                }
                axes += shape.len();
                known += shape.iter().filter(|d| size(d).is_some()).count();
            }
        }
    }
    println!("with named axes, {known} of {axes} output axes are known or named");
    assert!(wrong.is_empty(), "{} contradictions:\n{}", wrong.len(), wrong.join("\n"));
}

/// Numbers that arithmetic on sizes gets wrong first.
const EXTREMES: [i64; 10] = [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, i32::MAX as i64, 1 << 40, i64::MAX - 1, i64::MAX];

/// A reproducible stream of numbers (Knuth's constants).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn extreme(&mut self) -> i64 {
        EXTREMES[self.below(EXTREMES.len())]
    }
}

/// Changes one thing in a model: an attribute, an input, a constant, a shape.
fn mutate(model: &mut ModelProto, numbers: &mut Numbers) {
    let graph = model.graph.mut_or_insert_default();
    let choice = numbers.below(5);
    if choice < 2 && !graph.node.is_empty() {
        let at = numbers.below(graph.node.len());
        let node = &mut graph.node[at];
        if choice == 0 && !node.attribute.is_empty() {
            let at = numbers.below(node.attribute.len());
            let attribute = &mut node.attribute[at];
            if attribute.ints.is_empty() {
                attribute.set_i(numbers.extreme());
            } else {
                let at = numbers.below(attribute.ints.len());
                attribute.ints[at] = numbers.extreme();
            }
        } else if !node.input.is_empty() {
            let (a, b) = (numbers.below(node.input.len()), numbers.below(node.input.len()));
            match numbers.below(3) {
                0 => node.input.swap(a, b),
                1 => node.input[a] = String::new(),
                _ => drop(node.input.remove(a)),
            }
        }
    } else if choice == 2 && !graph.initializer.is_empty() {
        let at = numbers.below(graph.initializer.len());
        let tensor = &mut graph.initializer[at];
        if tensor.data_type() == 7 && tensor.raw_data().len() >= 8 {
            let mut raw = tensor.raw_data().to_vec();
            let at = numbers.below(raw.len() / 8) * 8;
            raw[at..at + 8].copy_from_slice(&numbers.extreme().to_le_bytes());
            tensor.set_raw_data(raw.into());
        } else {
            let code = [1, 6, 7, 9, 10][numbers.below(5)];
            tensor.set_data_type(code);
        }
    } else if choice == 3 && !graph.initializer.is_empty() {
        let at = numbers.below(graph.initializer.len());
        let tensor = &mut graph.initializer[at];
        match numbers.below(3) {
            0 => tensor.dims.push(numbers.extreme()),
            1 => drop(tensor.dims.pop()),
            _ => tensor.dims.iter_mut().for_each(|d| *d = numbers.extreme()),
        }
    } else if let Some(operator_set) = model.opset_import.first_mut() {
        operator_set.set_version(1 + numbers.below(28) as i64);
    }
}

/// Whatever is wrong in a model is an error or unknown, never a panic.
#[test]
fn damaged_operator_tests_never_panic() {
    let Some(root) = asset("onnx-node-tests") else { return };
    let mut numbers = Numbers(2);
    let (mut accepted, mut refused) = (0, 0);
    for case in cases(&root) {
        let mut whole = undeclared(&case.model);
        let graph = whole.graph.mut_or_insert_default();
        for (value, tensor) in case.model.graph.input.iter().zip(&case.inputs) {
            if let Some(tensor) = tensor.as_ref().filter(|t| t.dims.iter().product::<i64>() < 64) {
                let mut tensor = tensor.clone();
                tensor.set_name(value.name().to_owned());
                graph.initializer.push(tensor);
                graph.input.retain(|v| v.name() != value.name());
            }
        }
        for _ in 0..DAMAGES {
            let mut model = whole.clone();
            (0..=numbers.below(2)).for_each(|_| mutate(&mut model, &mut numbers));
            let Ok(model) = Model::from_proto(model) else { continue };
            match infer_types(&model) {
                Ok(types) => {
                    accepted += 1;
                    assert_eq!(cost(&model, &types).len(), model.graph().node.len());
                }
                Err(e) => {
                    refused += 1;
                    assert!(!e.to_string().is_empty());
                }
            }
        }
    }
    println!("{accepted} damaged models inferred, {refused} refused");
}

/// Damaged copies of every case.
const DAMAGES: usize = 6;
