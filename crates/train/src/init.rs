//! Fresh weights.

use std::collections::HashMap;

use fastrand::Rng;
use tierline_graph::constant::{tensor_from_proto, tensor_to_proto};
use tierline_graph::index::Index;
use tierline_graph::onnx::{NodeProto, TensorProto};
use tierline_graph::step;
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo, infer_types};

use crate::error::TrainError;

/// What a weight is to its layer.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Mixes so many inputs.
    Weight {
        fan_in: usize,
    },
    Table,
    One,
    Zero,
    /// Its start is a choice of the model's author: a single number that scales
    /// or bends, the length of a normalised kernel.
    Kept,
}

/// The model with every weight drawn anew, the same for the same seed: kernels
/// and matrices as PyTorch's layers draw them (uniform within
/// `1 / sqrt(fan in)`), embeddings and whatever is added from a normal
/// distribution of deviation 0.02, scales 1, shifts 0, running statistics as
/// before the first batch. Single numbers that scale or bend stay as they are.
///
/// # Errors
/// When the model has no weights to train.
pub fn fresh(model: &Model, seed: u64) -> Result<Model, TrainError> {
    let weights = step::parameters(model, &[])?;
    let kinds = kinds(model)?;
    let mut proto = model.proto().clone();
    let mut rng = Rng::with_seed(seed);
    let Some(graph) = proto.graph.as_mut() else { return Ok(model.clone()) };
    for tensor in &mut graph.initializer {
        let statistic = kinds.statistics.get(tensor.name()).copied();
        if statistic.is_none() && !weights.iter().any(|w| w == tensor.name()) {
            continue;
        }
        let old = tensor_from_proto(tensor)?;
        let kind = statistic.or_else(|| kinds.weights.get(tensor.name()).copied()).unwrap_or(Kind::Table);
        if kind == Kind::Kept {
            continue;
        }
        let values = (0..old.len()).map(|_| match kind {
            Kind::Weight { fan_in } => (2.0 * rng.f64() - 1.0) / (fan_in.max(1) as f64).sqrt(),
            Kind::Table => 0.02 * normal(&mut rng),
            Kind::One => 1.0,
            Kind::Zero | Kind::Kept => 0.0,
        });
        let elements = match old.dtype() {
            DataType::F64 => Elements::F64(values.collect()),
            _ => Elements::F32(values.map(|x| x as f32).collect()),
        };
        let name = tensor.name().to_owned();
        *tensor = tensor_to_proto(&name, &Tensor::new(old.shape(), elements)?);
    }
    Ok(Model::from_proto(proto)?)
}

#[derive(Default)]
struct Kinds {
    weights: HashMap<String, Kind>,
    statistics: HashMap<String, Kind>,
}

fn kinds(model: &Model) -> Result<Kinds, TrainError> {
    let index = Index::new(model);
    let types = infer_types(model)?;
    let size = |d: &Dim| usize::try_from(d.known()?).ok();
    let known = |t: &ValueInfo| t.shape.as_ref()?.iter().map(size).collect::<Option<Vec<_>>>();
    let made = types.iter().filter(|t| !index.is_dynamic(&t.name));
    let mut shapes: HashMap<&str, Vec<usize>> = made.filter_map(|t| Some((t.name.as_str(), known(t)?))).collect();
    let dims = |t: &TensorProto| t.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
    shapes.extend(index.graph.initializer.iter().map(|t| (t.name(), dims(t))));
    let product = |dims: &[usize]| dims.iter().product::<usize>();
    let computes = |node: &&NodeProto| node.output.first().is_some_and(|o| !index.is_dynamic(o));
    let mut kinds = Kinds::default();
    for node in index.graph.node.iter().filter(|n| !computes(n)) {
        let flag = |name: &str| node.attribute.iter().any(|a| a.name() == name && a.i() != 0);
        for (position, name) in node.input.iter().enumerate() {
            let Some(shape) = shapes.get(name.as_str()) else { continue };
            // A bias is drawn as its weight is.
            let beside = node.input.get(1).and_then(|w| shapes.get(w.as_str()));
            let kernel = |w: &[usize]| Kind::Weight { fan_in: product(w.get(1..).unwrap_or_default()) };
            let kind = match (node.op_type(), position) {
                ("Conv", 1) => kernel(shape),
                ("Conv", 2) => beside.map_or(Kind::Zero, |w| kernel(w)),
                ("ConvTranspose", 1 | 2) => {
                    beside.map_or(Kind::Zero, |w| Kind::Weight { fan_in: product(w.get(1..).unwrap_or_default()) })
                }
                ("Gemm", 1 | 2) => beside.map_or(Kind::Zero, |w| Kind::Weight {
                    fan_in: w.get(usize::from(flag("transB"))).copied().unwrap_or(1),
                }),
                ("MatMul", 0) => Kind::Weight { fan_in: shape.last().copied().unwrap_or(1) },
                ("MatMul", 1) => Kind::Weight { fan_in: shape.len().checked_sub(2).map_or(1, |axis| shape[axis]) },
                ("LSTM" | "GRU" | "RNN", 1..=3) => {
                    let hidden = node.attribute.iter().find(|a| a.name() == "hidden_size").map_or(1, |a| a.i());
                    Kind::Weight { fan_in: usize::try_from(hidden).unwrap_or(1) }
                }
                ("BatchNormalization", 3) => {
                    kinds.statistics.insert(name.clone(), Kind::Zero);
                    continue;
                }
                ("BatchNormalization", 4) => {
                    kinds.statistics.insert(name.clone(), Kind::One);
                    continue;
                }
                (
                    "BatchNormalization"
                    | "InstanceNormalization"
                    | "GroupNormalization"
                    | "LayerNormalization"
                    | "RMSNormalization",
                    1,
                )
                | ("Mul", _)
                    if product(shape) > 1 || node.op_type() != "Mul" =>
                {
                    Kind::One
                }
                ("Mul" | "Add" | "Sub" | "Div" | "Pow" | "Sum" | "Max" | "Min", _) if product(shape) == 1 => Kind::Kept,
                (_, 2) if node.op_type().ends_with("Normalization") => Kind::Zero,
                // A vector that is added is a bias; more axes are positions.
                ("Add", _) if shape.len() == 1 => Kind::Zero,
                ("PRelu", 1) => Kind::Weight { fan_in: 16 },
                _ => Kind::Table,
            };
            kinds.weights.entry(name.clone()).or_insert(kind);
        }
    }
    // Parts of a computed weight: one of its size is what it is, factors of a
    // product are matrices.
    for node in index.graph.node.iter().rev().filter(computes) {
        let whole = node.output.first().and_then(|o| Some((*kinds.weights.get(o)?, product(shapes.get(o.as_str())?))));
        let Some((kind, elements)) = whole else { continue };
        for (position, name) in node.input.iter().enumerate() {
            let Some(shape) = shapes.get(name.as_str()) else { continue };
            let kind = match (node.op_type(), shape.as_slice()) {
                ("MatMul", [.., _, columns]) if position == 0 => Kind::Weight { fan_in: *columns },
                ("MatMul", [.., rows, _]) => Kind::Weight { fan_in: *rows },
                _ if product(shape) == elements && elements > 1 => kind,
                _ => Kind::Kept,
            };
            kinds
                .weights
                .entry(name.clone())
                .and_modify(|k| *k = if *k == Kind::Kept { kind } else { *k })
                .or_insert(kind);
        }
    }
    Ok(kinds)
}

/// A normally distributed number (Box and Muller, 1958).
fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}
