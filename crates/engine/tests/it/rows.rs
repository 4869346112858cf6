//! What `graph::rows` says of models, held against engines: a model whose rows
//! are said to stay apart gives for many rows at once what it gives for each.
//!
//! The models are the ONNX project's operator tests, with every choice of
//! inputs that may have rows (the others become constants), and the zoo.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protobuf::Message;
use tierline_engine::{Engine, LoadOptions};
use tierline_graph::constant::tensor_to_proto;
use tierline_graph::onnx::TensorProto;
use tierline_graph::onnx::tensor_shape_proto::dimension;
use tierline_graph::rows::{alike, count, freed, joined, parted, varied};
use tierline_graph::{Model, Tensor};

use crate::support::{asset, onnxruntime, tensor};

/// Inputs of a case that are tried with and without rows.
const INPUTS_MAX: usize = 5;

/// Operators that some case must show to be row by row: the rules are no use
/// if they never hold.
const SEEN: &[&str] = &[
    "Add",
    "ArgMax",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "Gemm",
    "GlobalAveragePool",
    "InstanceNormalization",
    "MatMul",
    "MaxPool",
    "Pad",
    "ReduceMean",
    "Relu",
    "Resize",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];

#[test]
fn rten_keeps_rows_apart_where_the_graph_says_so() {
    check(&*tierline_engine::rten());
}

#[test]
fn onnxruntime_keeps_rows_apart_where_the_graph_says_so() {
    if let Some(engine) = onnxruntime() {
        check(&*engine);
    }
}

/// Of the zoo, with the one row that exporters fix and with a free axis.
#[test]
fn the_zoo_is_row_by_row() {
    use tierline_zoo::{Batch, MODELS, Options};
    let rten = tierline_engine::rten();
    for (name, build) in MODELS {
        for batch in [Batch::Fixed(1), Batch::Free] {
            // Sequences run along axis 0.
            let mixes = *name == "lstm";
            let model = build(&Options { batch, image: Some(64), ..Options::default() });
            let freed = freed(&model);
            println!("{name} {batch}: {}", freed.as_ref().map_or_else(ToString::to_string, |_| "row by row".into()));
            assert_eq!(freed.is_err(), mixes, "{name} {batch}");
            let Some(freed) = freed.ok().filter(|_| !matches!(*name, "resnet50" | "minilm")) else { continue };
            let input = |value: &tierline_graph::ValueInfo| {
                let axes = value.shape.as_ref().unwrap().iter().skip(1).map(|d| d.known().unwrap_or(4) as usize);
                let shape: Vec<usize> = std::iter::once(1).chain(axes).collect();
                let count: usize = shape.iter().product();
                let values = (0..count).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
                let elements = match value.dtype {
                    Some(tierline_graph::DataType::I64) => tierline_graph::Elements::I64(vec![1; count]),
                    _ => tierline_graph::Elements::F32(values),
                };
                (value.name.clone(), Tensor::new(shape, elements).unwrap())
            };
            let inputs: Vec<(String, Tensor)> = freed.inputs().iter().map(input).collect();
            assert_eq!(compare(&*rten, &freed, &inputs), Some(Ok(())), "{name} {batch}");
        }
    }
}

/// What mixes rows in ways that are easy to overlook is not called row by row.
#[test]
fn what_mixes_rows_is_refused() {
    let Some(folder) = asset("onnx-node-tests") else { return };
    for (case, operator) in [
        ("test_batchnorm_example_training_mode", "BatchNormalization"),
        ("test_nonmaxsuppression_two_batches", "NonMaxSuppression"),
        ("test_reduce_mean_default_axes_keepdims_example", "ReduceMean"),
        ("test_cumsum_1d", "CumSum"),
        ("test_softmax_axis_0", "Softmax"),
        ("test_dynamicquantizelinear", "DynamicQuantizeLinear"),
        ("test_mvn", "MeanVarianceNormalization"),
        ("test_lstm_with_initial_bias", "LSTM"),
        ("test_maxpool_with_argmax_2d_precomputed_pads", "MaxPool"),
        ("test_reshape_one_dim", "Reshape"),
        ("test_transpose_default", "output"),
        ("test_nonzero_example", "NonZero"),
        ("test_top_k", ""),
    ] {
        let model = Model::load(&folder.join(case).join("model.onnx")).unwrap_or_else(|e| panic!("{case}: {e}"));
        let given = given(&folder.join(case), &model).unwrap();
        let with_rows: Vec<bool> = (0..given.len()).map(|i| i == 0).collect();
        let (model, _) = chosen(&model, &given, &with_rows).unwrap();
        match freed(&model) {
            Ok(_) => assert_eq!(operator, "", "{case} mixes its rows"),
            Err(mixed) => assert!(!operator.is_empty() && mixed.at.starts_with(operator), "{case}: {mixed}"),
        }
    }
}

fn check(engine: &dyn Engine) {
    let Some(folder) = asset("onnx-node-tests") else { return };
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    let mut held: BTreeMap<String, usize> = BTreeMap::new();
    let (mut tried, mut wrong) = (0, Vec::new());
    for case in cases.iter().filter(|case| !case.to_string_lossy().contains("training_dropout")) {
        let Ok(model) = Model::load(&case.join("model.onnx")) else { continue };
        let Some(given) = given(case, &model) else { continue };
        for choice in 1..1u32 << given.len().min(INPUTS_MAX) {
            let with_rows: Vec<bool> = (0..given.len()).map(|i| i < INPUTS_MAX && choice >> i & 1 == 1).collect();
            let Some((model, inputs)) = chosen(&model, &given, &with_rows) else { continue };
            let Ok(freed) = freed(&model) else { continue };
            match compare(engine, &freed, &inputs) {
                None => {}
                Some(Ok(())) => {
                    tried += 1;
                    for node in &freed.graph().node {
                        *held.entry(node.op_type().to_owned()).or_default() += 1;
                    }
                }
                Some(Err(why)) => wrong.push(format!("{} {with_rows:?}: {why}", case.display())),
            }
        }
    }
    println!("{}: {tried} models row by row, {} operators", engine.name(), held.len());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let unseen: Vec<&&str> = SEEN.iter().filter(|kind| !held.contains_key(**kind)).collect();
    assert!(unseen.is_empty() && tried > 300, "{tried} tried; no case of {unseen:?}");
}

/// A case's inputs; `None` where some aren't tensors that are carried.
fn given(case: &std::path::Path, model: &Model) -> Option<Vec<(String, Tensor)>> {
    let mut given = Vec::new();
    for (i, input) in model.graph().input.iter().enumerate() {
        let bytes = std::fs::read(case.join(format!("test_data_set_0/input_{i}.pb"))).ok()?;
        if !input.type_.has_tensor_type() {
            return None;
        }
        given.push((input.name().to_owned(), tensor(&TensorProto::parse_from_bytes(&bytes).ok()?)?));
    }
    Some(given)
}

/// The model with only some inputs left, their first axis free; the others are
/// constants.
fn chosen(model: &Model, given: &[(String, Tensor)], with_rows: &[bool]) -> Option<(Model, Vec<(String, Tensor)>)> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let (mut kept, mut inputs) = (Vec::new(), Vec::new());
    for ((input, (name, tensor)), rows) in graph.input.drain(..).zip(given).zip(with_rows) {
        if !rows {
            graph.initializer.push(tensor_to_proto(name, tensor));
            continue;
        }
        let mut input = input;
        let first = input.type_.as_mut()?.mut_tensor_type().shape.as_mut()?.dim.first_mut()?;
        first.value = Some(dimension::Value::DimParam("n".to_owned()));
        kept.push(input);
        inputs.push((name.clone(), tensor.clone()));
    }
    graph.input = kept;
    for output in &mut graph.output {
        // What the case's own sizes make says nothing of others.
        if output.type_.as_ref().is_some_and(|t| t.has_tensor_type()) {
            output.type_.mut_or_insert_default().mut_tensor_type().shape = protobuf::MessageField::none();
        }
    }
    Some((Model::from_proto(proto).ok()?, inputs))
}

/// Whether many rows at once give what each gives; `None` where the engine
/// doesn't run them at all.
fn compare(engine: &dyn Engine, freed: &Model, inputs: &[(String, Tensor)]) -> Option<Result<(), String>> {
    let rows = count(&inputs.first()?.1).filter(|rows| (1..=16).contains(rows))?;
    if inputs.iter().any(|(_, tensor)| count(tensor) != Some(rows)) {
        return None;
    }
    let mut single = engine.load(freed, &LoadOptions::with_threads(1)).ok()?;
    let mut members: Vec<Vec<(String, Tensor)>> = vec![Vec::new(); 2 * rows];
    for (name, tensor) in inputs {
        let all = parted(tensor, &vec![1; rows])?.into_iter();
        let others = parted(&varied(tensor, 1)?, &vec![1; rows])?;
        members.iter_mut().zip(all.chain(others)).for_each(|(member, row)| member.push((name.clone(), row)));
    }
    let mut run = |inputs: &[(String, Tensor)]| {
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        single.run(&given)
    };
    let apart: Vec<Vec<Tensor>> = members.iter().map(|member| run(member).ok()).collect::<Option<_>>()?;
    let together: Vec<(String, Tensor)> = (inputs.iter().enumerate())
        .map(|(i, (name, _))| Some((name.clone(), joined(&members.iter().map(|m| &m[i].1).collect::<Vec<_>>())?)))
        .collect::<Option<_>>()?;
    let made = match run(&together) {
        Ok(made) => made,
        Err(error) => return Some(Err(format!("alone they run, together not: {error}"))),
    };
    for (output, made) in made.iter().enumerate() {
        let Some(parts) = parted(made, &vec![1; 2 * rows]) else {
            return Some(Err(format!("output {output} has shape {:?} for {} rows", made.shape(), 2 * rows)));
        };
        for (row, part) in parts.iter().enumerate() {
            if !alike(part, &apart[row][output]) {
                return Some(Err(format!(
                    "row {row} of output {output}: {part:?} instead of {:?}",
                    apart[row][output]
                )));
            }
        }
    }
    Some(Ok(()))
}
