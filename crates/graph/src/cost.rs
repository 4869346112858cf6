//! Static cost of nodes: multiply-adds, memory traffic, parameters.
//!
//! A property of the graph, not of a device: what a device makes of it is
//! measured by the engine's profiler. Start at [`cost`].

use std::collections::{HashMap, HashSet};

use crate::Model;
use crate::attributes::Attributes;
use crate::constant::tensor_from_proto;
use crate::infer::Types;
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::DataType;
use crate::types::ValueInfo;

/// Cost of one node's execution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct NodeCost {
    /// Multiply-adds of convolutions, matrix products, recurrences and
    /// attention; 0 for operators that move or map elements, as published
    /// tables count. `None` when a shape isn't known.
    pub macs: Option<u64>,
    /// Bytes of all inputs, weights included; `None` when one isn't known.
    pub bytes_read: Option<u64>,
    /// Bytes of all outputs; `None` when one isn't known.
    pub bytes_written: Option<u64>,
    /// Weights that this node is the first to read: see [`parameters`].
    pub parameters: u64,
}

/// Cost of every node of the main graph, in its order.
///
/// An If/Loop/Scan node has unknown multiply-adds: what its body costs
/// depends on values.
#[must_use]
pub fn cost(model: &Model, types: &Types) -> Vec<NodeCost> {
    let mut weights = weights(model);
    model.graph().node.iter().map(|node| node_cost(model, node, types, &mut weights)).collect()
}

/// Multiply-adds of the whole graph; `None` when a node's aren't known.
#[must_use]
pub fn total_macs(costs: &[NodeCost]) -> Option<u64> {
    costs.iter().try_fold(0u64, |sum, c| sum.checked_add(c.macs?))
}

/// Elements of the model's weights.
///
/// Weights are the constants (initialisers, and outputs of `Constant` and
/// `ConstantOfShape` nodes with constant sizes) that a node reads as numbers:
/// all floating-point ones, running statistics included, and 8-bit integer
/// ones of two axes or more (quantised matrices). Shapes, axes, indices and
/// zero points aren't, nor are constants that nothing reads.
#[must_use]
pub fn parameters(model: &Model) -> u64 {
    let mut weights = weights(model);
    model.graph().node.iter().fold(0, |sum, node| sum.saturating_add(take(node, &mut weights)))
}

/// Elements of each weight by name.
fn weights(model: &Model) -> HashMap<&str, u64> {
    let graph = model.graph();
    let mut weights: HashMap<&str, u64> = HashMap::new();
    let mut shapes: HashMap<&str, &TensorProto> = HashMap::new();
    for tensor in &graph.initializer {
        if let Some(n) = weight(tensor.data_type(), &tensor.dims) {
            weights.insert(tensor.name(), n);
        }
        shapes.insert(tensor.name(), tensor);
    }
    for node in graph.node.iter().filter(|n| matches!(n.domain(), "" | "ai.onnx")) {
        let Some(output) = node.output.first() else { continue };
        let value = Attributes::of(node).tensor("value");
        let found = match node.op_type() {
            "Constant" => value.and_then(|t| weight(t.data_type(), &t.dims)),
            "ConstantOfShape" => {
                let sizes = node.input.first().and_then(|name| shapes.get(name.as_str())).and_then(|t| sizes(t));
                sizes.and_then(|sizes| weight(value.map_or(DataType::F32.to_onnx(), |t| t.data_type()), &sizes))
            }
            _ => None,
        };
        if let Some(n) = found {
            weights.insert(output, n);
        }
        if let ("Constant", Some(tensor)) = (node.op_type(), value) {
            shapes.insert(output, tensor);
        }
    }
    weights
}

fn sizes(tensor: &TensorProto) -> Option<Vec<i64>> {
    tensor_from_proto(tensor).ok()?.as_i64().map(<[i64]>::to_vec)
}

fn weight(dtype: i32, dims: &[i64]) -> Option<u64> {
    let dtype = DataType::from_onnx(dtype)?;
    let counts = dtype.is_float() || (dims.len() >= 2 && matches!(dtype, DataType::I8 | DataType::U8));
    if !counts {
        return None;
    }
    dims.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?))
}

/// Takes the weights a node reads out of the table, so that each counts once.
fn take(node: &NodeProto, weights: &mut HashMap<&str, u64>) -> u64 {
    // Saturating: a damaged model may declare more than there can be.
    let read = node.input.iter().filter_map(|name| weights.remove(name.as_str()));
    let mut sum = read.fold(0, u64::saturating_add);
    for inner in node.attribute.iter().filter_map(|a| a.g.as_ref()).flat_map(|g| &g.node) {
        sum = sum.saturating_add(take(inner, weights));
    }
    sum
}

fn node_cost(model: &Model, node: &NodeProto, types: &Types, weights: &mut HashMap<&str, u64>) -> NodeCost {
    let bytes = |names: &[String]| {
        // An input read twice is in memory once.
        let names: HashSet<&str> = names.iter().filter(|n| !n.is_empty()).map(String::as_str).collect();
        names.iter().try_fold(0u64, |sum, name| sum.checked_add(types.get(name)?.bytes()?))
    };
    NodeCost {
        macs: macs(model, node, types),
        bytes_read: bytes(&node.input),
        bytes_written: bytes(&node.output),
        parameters: take(node, weights),
    }
}

fn macs(model: &Model, node: &NodeProto, types: &Types) -> Option<u64> {
    let input = |i: usize| node.input.get(i).filter(|n| !n.is_empty()).and_then(|n| types.get(n));
    let output = |i: usize| node.output.get(i).filter(|n| !n.is_empty()).and_then(|n| types.get(n));
    let function = model.proto().functions.iter().any(|f| crate::inline::key(f) == crate::inline::called(node));
    if function || node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()) {
        return None;
    }
    let default = matches!(node.domain(), "" | "ai.onnx");
    match node.op_type() {
        "Conv" | "ConvInteger" | "FusedConv" | "NhwcFusedConv" | "DeformConv" | "CausalConvWithState" => {
            per_window(output(0)?, input(1)?)
        }
        "QLinearConv" => per_window(output(0)?, input(3)?),
        // Every input element meets every window position of its group's output channels.
        "ConvTranspose" => per_window(input(0)?, input(1)?),
        "MatMul"
        | "MatMulInteger"
        | "FusedMatMul"
        | "TransposeMatMul"
        | "DynamicQuantizeMatMul"
        | "MatMulIntegerToFloat"
        | "GemmFloat8" => per_inner(node, output(0)?, input(0)?),
        "QLinearMatMul" => per_inner(node, output(0)?, input(0)?),
        "Gemm" | "QGemm" | "FusedGemm" => {
            let axis = if Attributes::of(node).flag("transA") { 0 } else { 1 };
            output(0)?.elements()?.checked_mul(size(input(0)?, axis)?)
        }
        // The packed weight's shape doesn't tell, its attributes do.
        "MatMulNBits" => output(0)?.elements()?.checked_mul(u64::try_from(Attributes::of(node).int("K")?).ok()?),
        "Einsum" => einsum(node, types),
        // Input and recurrence, for every step of every sequence.
        "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM" => {
            let (x, w, r) = (input(0)?, input(1)?, input(2)?);
            let steps = size(x, 0)?.checked_mul(size(x, 1)?)?;
            steps.checked_mul(w.elements()?.checked_add(r.elements()?)?)
        }
        "FlexAttention" => attention(node, input(0)?, input(1)?, input(2)?, None),
        "Attention" if default => attention(node, input(0)?, input(1)?, input(2)?, input(4)),
        "Attention" | "QAttention"
            if node.input.get(4).is_none_or(String::is_empty) || node.op_type() == "QAttention" =>
        {
            projected_attention(input(0)?, input(1)?)
        }
        "MultiHeadAttention" if node.input.get(6).is_none_or(String::is_empty) => {
            let (q, k, v) = (input(0)?, input(1)?, input(2)?);
            let each = size(q, 2)?.checked_add(size(v, 2)?)?;
            size(q, 0)?.checked_mul(size(q, 1)?)?.checked_mul(size(k, 1)?)?.checked_mul(each)
        }
        "LinearAttention" => None,
        _ if default => Some(0),
        // Unknown operators may compute anything.
        _ if KNOWN_FREE.contains(&node.op_type()) => Some(0),
        _ => None,
    }
}

/// Operators outside the default domain that map or move elements.
const KNOWN_FREE: [&str; 20] = [
    "BiasGelu",
    "BiasSoftmax",
    "BiasAdd",
    "BiasSplitGelu",
    "DequantizeLinear",
    "EmbedLayerNormalization",
    "FastGelu",
    "Gelu",
    "LayerNormalization",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConcat",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMul",
    "QLinearSigmoid",
    "QuantizeLinear",
    "QuickGelu",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

fn size(value: &ValueInfo, axis: usize) -> Option<u64> {
    value.shape.as_ref()?.get(axis)?.known()
}

/// Elements of `at` times weights per element: the weight without its first axis.
fn per_window(at: &ValueInfo, weight: &ValueInfo) -> Option<u64> {
    let taps = weight.shape.as_ref()?.get(1..)?.iter().try_fold(1u64, |n, d| n.checked_mul(d.known()?))?;
    at.elements()?.checked_mul(taps)
}

/// Output elements times the inner size of the product.
fn per_inner(node: &NodeProto, output: &ValueInfo, left: &ValueInfo) -> Option<u64> {
    let shape = left.shape.as_ref()?;
    let flipped = Attributes::of(node).flag("transA") && shape.len() >= 2;
    let inner = shape[shape.len().checked_sub(if flipped { 2 } else { 1 })?].known()?;
    output.elements()?.checked_mul(inner)
}

/// One multiply-add per combination of all letters, for the usual two inputs.
fn einsum(node: &NodeProto, types: &Types) -> Option<u64> {
    let equation = Attributes::of(node).text("equation")?.replace(' ', "");
    let terms = equation.split("->").next()?;
    if equation.contains("...") {
        return None;
    }
    let mut sizes: HashMap<char, u64> = HashMap::new();
    for (name, term) in node.input.iter().zip(terms.split(',')) {
        for (letter, dim) in term.chars().zip(types.get(name)?.shape.as_ref()?) {
            let size = sizes.entry(letter).or_insert(1);
            *size = dim.known()?.max(*size);
        }
    }
    if node.input.len() < 2 {
        return Some(0);
    }
    sizes.values().try_fold(1u64, |n, d| n.checked_mul(*d))
}

/// The projection of `[batch, sequence, hidden]` by one weight, then every
/// position against every other.
fn projected_attention(x: &ValueInfo, weight: &ValueInfo) -> Option<u64> {
    let positions = size(x, 0)?.checked_mul(size(x, 1)?)?;
    let projection = positions.checked_mul(weight.elements()?)?;
    let hidden = size(weight, 1)? / 3;
    projection.checked_add(positions.checked_mul(size(x, 1)?)?.checked_mul(hidden.checked_mul(2)?)?)
}

/// Scores and weighted values: `batch * heads * queries * keys * (head + value head)`.
fn attention(node: &NodeProto, q: &ValueInfo, k: &ValueInfo, v: &ValueInfo, past: Option<&ValueInfo>) -> Option<u64> {
    let heads = |name: &str| Attributes::of(node).int(name).and_then(|n| u64::try_from(n).ok());
    let packed = q.shape.as_ref()?.len() == 3;
    let sequence = if packed { 1 } else { 2 };
    let heads_q = if packed { heads("q_num_heads")? } else { size(q, 1)? };
    let keys = size(k, sequence)?.checked_add(past.map_or(Some(0), |p| size(p, 2))?)?;
    let (head, value) = if packed {
        (size(q, 2)?.checked_div(heads_q)?, size(v, 2)?.checked_div(heads("kv_num_heads")?)?)
    } else {
        (size(q, 3)?, size(v, 3)?)
    };
    let factors = [size(q, 0)?, heads_q, size(q, sequence)?, keys, head.checked_add(value)?];
    factors.into_iter().try_fold(1u64, u64::checked_mul)
}
