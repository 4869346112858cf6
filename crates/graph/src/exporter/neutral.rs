//! Scales and biases that layers without weights of their own are given.

use std::collections::HashSet;

use crate::index::Index;
use crate::onnx::{NodeProto, TensorProto};
use crate::weights::{all, is_float, moved_weights, normalises};

use super::names::is_named_constant;

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
    all(tensor, |mut numbers| numbers.all(|x| x == value)).unwrap_or(false)
}
