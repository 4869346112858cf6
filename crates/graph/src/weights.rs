//! Which constants of a graph its layers learn.
//!
//! A file doesn't say. Here is what operators learn ([`learned`]), what only
//! moves elements of such ([`moves`]), and which constants an exporter wrote
//! for layers that learn nothing ([`stated`], [`neutral`]).

use std::collections::HashSet;

use crate::constant::tensor_from_proto;
use crate::index::{Index, bodies, is_function_of_inputs};
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::{DataType, Elements};

/// Operators that move elements without changing them.
const LAYOUT: [&str; 7] = ["Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice"];

/// Whether a node moves elements of input `position` without changing them, or
/// rounds them as in training for integers.
pub(crate) fn moves(node: &NodeProto, position: usize) -> bool {
    let rounds = matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear");
    if rounds && matches!(node.domain(), "" | "com.microsoft") {
        return position == 0;
    }
    node.domain().is_empty() && (node.op_type() == "Concat" || position == 0 && LAYOUT.contains(&node.op_type()))
}

pub(crate) fn is_float(tensor: &TensorProto) -> bool {
    DataType::from_onnx(tensor.data_type()).is_some_and(DataType::is_float)
}

/// Floating-point constants of more than one element, and what nodes make of
/// such by moving elements only.
pub(crate) fn moved_weights<'m>(index: &Index<'m>) -> HashSet<&'m str> {
    let several = |t: &&TensorProto| is_float(t) && t.dims.iter().product::<i64>() > 1;
    let mut found: HashSet<&str> = index.graph.initializer.iter().filter(several).map(|t| t.name()).collect();
    for &position in &index.order {
        let node = &index.graph.node[position];
        let mut moved = node.input.iter().enumerate().filter(|(i, _)| moves(node, *i)).peekable();
        if moved.peek().is_some() && moved.all(|(_, name)| found.contains(name.as_str())) {
            found.extend(node.output.first().map(String::as_str));
        }
    }
    found
}

/// Names that stand where layers learn, if they are constants: those in front
/// of a change of layout as well.
pub(crate) fn learned<'m>(index: &Index<'m>) -> HashSet<&'m str> {
    let several = moved_weights(index);
    let mut learned: HashSet<&str> = HashSet::new();
    for &position in index.order.iter().rev() {
        look(&index.graph.node[position], &several, &mut learned);
    }
    learned
}

/// Adds what a node learns, and what its bodies learn of the graph around.
fn look<'m>(node: &'m NodeProto, several: &HashSet<&str>, learned: &mut HashSet<&'m str>) {
    for inner in bodies(node).flat_map(|body| body.node.iter().rev()) {
        look(inner, several, learned);
    }
    // What is learned behind a change of layout is learned before it.
    let behind = node.output.iter().any(|o| learned.contains(o.as_str()));
    for (i, name) in node.input.iter().enumerate() {
        if learns(node, i, several) || behind && moves(node, i) {
            learned.insert(name);
        }
    }
}

/// Whether input `position` of a node is something a layer learns, if it is a
/// constant.
fn learns(node: &NodeProto, position: usize, several: &HashSet<&str>) -> bool {
    if !node.domain().is_empty() && node.domain() != "ai.onnx" {
        return false;
    }
    match node.op_type() {
        "Conv" | "ConvTranspose" | "Gemm" => position > 0,
        "MatMul" | "Einsum" => true,
        "PRelu" => position == 1,
        "Gather" | "GatherND" | "GatherElements" => position == 0,
        "LSTM" | "GRU" | "RNN" => (1..=3).contains(&position),
        "Add" | "Mul" | "Sum" | "Concat" => several.contains(node.input[position].as_str()),
        "Expand" | "Tile" => position == 0 && several.contains(node.input[0].as_str()),
        _ => normalises(node) && (position == 1 || position == 2),
    }
}

/// Whether a node is a normalisation that takes a scale and a bias.
fn normalises(node: &NodeProto) -> bool {
    matches!(
        node.op_type(),
        "BatchNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "LayerNormalization"
            | "RMSNormalization"
    )
}

/// Names of constants that come of Constant nodes and sizes alone: exporters
/// keep weights as initialisers, and write constants of the architecture so.
pub(crate) fn stated(model: &Model) -> HashSet<String> {
    let index = Index::new(model);
    let mut weights: HashSet<&str> = index.graph.initializer.iter().filter(|t| is_float(t)).map(|t| t.name()).collect();
    let mut stated = HashSet::new();
    for &position in &index.order {
        let node = &index.graph.node[position];
        let outputs = node.output.iter().filter(|o| !o.is_empty());
        if !is_function_of_inputs(node) || index.reads[position].iter().any(|name| weights.contains(name)) {
            weights.extend(outputs.map(String::as_str));
        } else {
            stated.extend(outputs.filter(|o| !index.is_dynamic(o)).cloned());
        }
    }
    stated
}

/// Scales of ones and biases of zeros that exporters give a normalisation
/// without weights of its own, where they stand as initialisers: named as
/// PyTorch's exporters name constants, or of a group normalisation written as
/// an instance normalisation, which multiplies and adds its weights behind it.
pub(crate) fn neutral<'m>(index: &Index<'m>, all: bool) -> HashSet<&'m str> {
    let initialisers = || index.graph.initializer.iter();
    let ones: HashSet<&str> = initialisers().filter(|t| is_all(t, 1.0)).map(|t| t.name()).collect();
    let zeros: HashSet<&str> = initialisers().filter(|t| is_all(t, 0.0)).map(|t| t.name()).collect();
    let several = moved_weights(index);
    let mut found = HashSet::new();
    for node in index.graph.node.iter().filter(|n| normalises(n)) {
        let grouped = node.op_type() == "InstanceNormalization" && is_grouped(index, node, &several);
        for (name, neutral) in node.input.iter().skip(1).zip([&ones, &zeros]) {
            if neutral.contains(name.as_str()) && (all || grouped || is_named_constant(name)) {
                found.insert(name.as_str());
            }
        }
    }
    found
}

/// Whether an initialiser's name is one that PyTorch's exporters give to
/// constants, and to what they compute of such.
fn is_named_constant(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let counted = |text: &str| text.is_empty() || text.strip_prefix('_').is_some_and(number);
    let of_trace = |name: &str| {
        let (_, last) = name.rsplit_once('/').unwrap_or(("", name));
        last.strip_suffix("_output_0").and_then(|n| n.strip_prefix("Constant")).is_some_and(counted)
    };
    name.strip_prefix("val_").is_some_and(number) || of_trace(name)
}

/// Whether an instance normalisation is of channels that were joined for it,
/// and are scaled by a constant vector behind it.
fn is_grouped(index: &Index<'_>, node: &NodeProto, several: &HashSet<&str>) -> bool {
    let is_reshape = |name: &str| {
        let from = index.producer.get(name);
        from.is_some_and(|&from| index.graph.node[from].op_type() == "Reshape")
    };
    let reader = |name: &str| {
        let mut readers = index.graph.node.iter().filter(|n| n.input.iter().any(|i| i == name));
        readers.next().filter(|_| readers.next().is_none())
    };
    let apart = reader(&node.output[0]).filter(|n| n.op_type() == "Reshape");
    let scaled = apart.and_then(|apart| reader(&apart.output[0])).filter(|n| n.op_type() == "Mul");
    is_reshape(&node.input[0]) && scaled.is_some_and(|mul| mul.input.iter().any(|i| several.contains(i.as_str())))
}

fn is_all(tensor: &TensorProto, value: f64) -> bool {
    // A scale or bias is a vector.
    if tensor.dims.len() > 1 || !is_float(tensor) {
        return false;
    }
    match tensor_from_proto(tensor).map(|t| t.into_parts().1) {
        Ok(Elements::F32(v)) => v.iter().all(|&x| f64::from(x) == value),
        Ok(Elements::F64(v)) => v.iter().all(|&x| x == value),
        _ => false,
    }
}
