//! Sizes told by the model's inputs where they tell them.
//!
//! A gradient that asks an activation for its sizes keeps it in memory until
//! then. Most sizes are fixed, or are those of an input's axis.

use std::collections::HashMap;

use crate::emit::{Attribute, Emitter};
use crate::gradient::Forward;
use crate::model::Model;
use crate::onnx::NodeProto;
use crate::types::Dim;

/// Makes `Shape` and `Size` of the forward pass's tensors, as far as they were
/// written, ask inputs instead.
pub(super) fn from_inputs(model: &Model, forward: &Forward<'_>, out: &mut Emitter) {
    let mut axes: HashMap<String, (String, i64)> = HashMap::new();
    for input in model.inputs() {
        for (axis, dim) in input.shape.iter().flatten().enumerate() {
            if let Dim::Symbol(name) = dim {
                axes.entry(name.clone()).or_insert_with(|| (input.name.clone(), axis as i64));
            }
        }
    }
    let mut known: HashMap<Vec<Dim>, String> = HashMap::new();
    for node in out.take() {
        let plain = node.domain().is_empty() && matches!(node.op_type(), "Shape" | "Size");
        let dims = Some(&node).filter(|_| plain).and_then(|n| asked(n, forward));
        let stated = |d: &Dim| match d {
            Dim::Known(_) => true,
            Dim::Symbol(name) => axes.contains_key(name),
            Dim::Unknown => false,
        };
        let Some(dims) = dims.filter(|dims| dims.iter().all(stated)) else {
            out.push(node);
            continue;
        };
        let sizes = known.entry(dims).or_insert_with_key(|dims| write(dims, &axes, out)).clone();
        let result = [node.output[0].as_str()];
        if node.op_type() == "Size" {
            out.named("ReduceProd", &[&sizes], &result, &[("keepdims", Attribute::Int(0))]);
        } else {
            out.named("Identity", &[&sizes], &result, &[]);
        }
    }
}

/// The sizes a node asks for, if the tensor is of the forward pass.
fn asked(node: &NodeProto, forward: &Forward<'_>) -> Option<Vec<Dim>> {
    let x = node.input.first()?.as_str();
    // Inputs are in memory anyway.
    forward.index.producer.get(x)?;
    let shape = forward.types.get(x)?.shape.as_deref()?;
    let rank = shape.len() as i64;
    let at = |name: &str, default: i64| {
        let value = node.attribute.iter().find(|a| a.name() == name).map_or(default, |a| a.i());
        (if value < 0 { value + rank } else { value }).clamp(0, rank) as usize
    };
    let range = if node.op_type() == "Size" { 0..shape.len() } else { at("start", 0)..at("end", rank) };
    shape.get(range).map(<[Dim]>::to_vec)
}

/// A vector of sizes.
fn write(dims: &[Dim], axes: &HashMap<String, (String, i64)>, out: &mut Emitter) -> String {
    let mut parts = Vec::new();
    let mut fixed = Vec::new();
    for dim in dims {
        match dim {
            Dim::Symbol(name) => {
                if !fixed.is_empty() {
                    parts.push(out.ints(&std::mem::take(&mut fixed)));
                }
                let (input, axis) = &axes[name];
                let range = [("start", Attribute::Int(*axis)), ("end", Attribute::Int(axis + 1))];
                parts.push(out.op("Shape", &[input], &range));
            }
            size => fixed.push(size.known().and_then(|n| i64::try_from(n).ok()).unwrap_or(i64::MAX)),
        }
    }
    if !fixed.is_empty() || parts.is_empty() {
        parts.push(out.ints(&fixed));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if let [one] = parts[..] { one.to_owned() } else { out.op("Concat", &parts, &[("axis", Attribute::Int(0))]) }
}
