//! Weights that a step doesn't train though nobody froze them, and why: what
//! isn't said of them is taken for trained.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{StepError, matches};
use crate::exporter::{is_noted, lost};
use crate::gradient::{Forward, GradientError};
use crate::index::bodies;
use crate::model::Model;
use crate::onnx::{NodeProto, TensorProto};
use crate::tensor::DataType;

/// Weights whose reason is looked for.
const EXPLAINED_MAX: usize = 64;

/// A weight that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untrained {
    /// Its name.
    pub weight: String,
    /// Why, in words.
    pub reason: String,
}

/// Weights of the forward pass that aren't trained, in the file's order; those
/// of `learned` were to be, and those that match a pattern needn't be told of.
pub(super) fn untrained(
    forward: &Forward<'_>,
    learned: &[&str],
    trained: &[&str],
    freeze: &[String],
) -> Vec<Untrained> {
    let trained: HashSet<&str> = trained.iter().copied().collect();
    let learned: HashSet<&str> = learned.iter().copied().collect();
    let mut readers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    for node in &forward.index.graph.node {
        node.input.iter().for_each(|name| readers.entry(name).or_default().push(node));
    }
    let mut found = Vec::new();
    for tensor in &forward.index.graph.initializer {
        let name = tensor.name();
        if trained.contains(name) || freeze.iter().any(|pattern| matches(pattern, name)) {
            continue;
        }
        let reason = if learned.contains(name) {
            // Each is looked for through the whole graph.
            let nearer = found.len() < EXPLAINED_MAX;
            Some(if nearer { cut_off(forward, name) } else { "no gradient reaches it".to_owned() })
        } else {
            let readers = readers.get(name).map_or(&[][..], Vec::as_slice);
            unknown(tensor, readers).or_else(|| misplaced(tensor, readers))
        };
        found.extend(reason.map(|reason| Untrained { weight: name.to_owned(), reason }));
    }
    for node in &forward.index.graph.node {
        within(node, node, freeze, &mut found);
    }
    let lost = lost(forward.index.graph, &trained).into_iter();
    let lost = lost.filter(|l| !freeze.iter().any(|pattern| l.names().any(|name| matches(pattern, name))));
    found.extend(lost.map(|l| Untrained { weight: l.parameter, reason: l.reason }));
    found
}

/// Refuses batch normalisations within bodies whose weights are trained: in
/// training they take the batch's statistics and keep running ones, which a
/// body can't hand out.
pub(super) fn refuse_inner_statistics(model: &Model, parameters: &[String]) -> Result<(), StepError> {
    let mut open: Vec<&NodeProto> = model.graph().node.iter().flat_map(bodies).flat_map(|b| &b.node).collect();
    while let Some(node) = open.pop() {
        let trained = node.input.iter().skip(1).take(2).find(|name| parameters.contains(name));
        if let (Some(weight), "BatchNormalization") = (trained, node.op_type()) {
            let reason = format!("it is within a branch, where it can't keep running statistics; freeze `{weight}`");
            let (node, operator) = (said(node), node.op_type().to_owned());
            return Err(GradientError::Form { node, operator, reason }.into());
        }
        open.extend(bodies(node).flat_map(|b| &b.node));
    }
    Ok(())
}

/// Why no gradient reaches a weight.
fn cut_off(forward: &Forward<'_>, name: &str) -> String {
    match forward.ends_of(name).first() {
        Some(node) => format!("nothing flows back through {}", said(node)),
        None => "the loss doesn't depend on it".to_owned(),
    }
}

/// Why a constant that looks like a weight isn't known to be one.
fn unknown(tensor: &TensorProto, readers: &[&NodeProto]) -> Option<String> {
    let several = tensor.dims.iter().fold(1i64, |n, d| n.saturating_mul(*d)) > 1;
    let dtype = DataType::from_onnx(tensor.data_type());
    if !several {
        return None;
    }
    match dtype {
        Some(DataType::F32 | DataType::F64) => {
            let quantiser = |n: &NodeProto| matches!(n.op_type(), "QuantizeLinear" | "DequantizeLinear");
            let foreign = |n: &&&NodeProto| !matches!(n.domain(), "" | "ai.onnx") && !quantiser(n);
            let node = readers.iter().find(foreign)?;
            Some(format!("what {} of domain `{}` learns isn't known", said(node), node.domain()))
        }
        Some(dtype @ (DataType::F16 | DataType::BF16)) => Some(format!("its elements are {dtype}; export it in f32")),
        _ => {
            let integer = |n: &NodeProto| {
                let operator = n.op_type();
                let first = n.input.first().is_some_and(|i| i == tensor.name());
                let product = operator.starts_with("QLinear") || operator.ends_with("Integer");
                operator == "DequantizeLinear" && first || product && tensor.dims.len() > 1
            };
            let node = readers.iter().find(|n| integer(n))?;
            Some(format!("{} reads it as integers, which have no gradients", said(node)))
        }
    }
}

/// Why a constant that the file notes as learned isn't trained.
fn misplaced(tensor: &TensorProto, readers: &[&NodeProto]) -> Option<String> {
    let node = readers.iter().find(|_| is_noted(tensor))?;
    Some(format!("the file notes that it is learned, but {} reads it where no layer learns", said(node)))
}

/// Weights that only a body has.
fn within(node: &NodeProto, outer: &NodeProto, freeze: &[String], found: &mut Vec<Untrained>) {
    for body in bodies(node) {
        for tensor in &body.initializer {
            let name = tensor.name();
            let float = DataType::from_onnx(tensor.data_type()).is_some_and(DataType::is_float);
            let several = tensor.dims.iter().fold(1i64, |n, d| n.saturating_mul(*d)) > 1;
            if float && several && !freeze.iter().any(|pattern| matches(pattern, name)) {
                let reason =
                    format!("it is within a body of {}; fold the model's constants for training first", said(outer));
                found.push(Untrained { weight: name.to_owned(), reason });
            }
        }
        body.node.iter().for_each(|inner| within(inner, outer, freeze, found));
    }
}

fn said(node: &NodeProto) -> String {
    let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
    format!("{} `{name}`", node.op_type())
}
