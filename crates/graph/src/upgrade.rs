//! Raises a model to the operator set in which Tierline writes nodes.
//!
//! Between sets 7 and 18 many attributes became inputs and some defaults
//! changed; a node is rewritten to say the same in the newer form. What can't
//! be said is left alone and refused by the check of the result.

use crate::attributes::Attributes;
use crate::emit::{Attribute, Emitter, attribute, node};
use crate::error::LoadError;
use crate::index::names_within;
use crate::infer::{Types, infer_types};
use crate::model::Model;
use crate::onnx::{NodeProto, OperatorSetIdProto};
use crate::tensor::{Elements, Tensor};

/// The operator set in which nodes are written at least: the last that moved
/// attributes of reductions to inputs.
pub const OPSET_MIN: i64 = 18;

/// The model in operator set [`OPSET_MIN`] or its own, if that is newer.
///
/// # Errors
/// When the result isn't valid: an operator was removed or changed in a way
/// that has no newer form.
pub(crate) fn upgraded(model: &Model) -> Result<Model, LoadError> {
    let from = model.opset("").unwrap_or(OPSET_MIN);
    if from >= OPSET_MIN {
        return Ok(model.clone());
    }
    let types = infer_types(model).unwrap_or_default();
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let values = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    let inputs = graph.input.iter().map(|v| v.name());
    let mut within = Vec::new();
    graph.node.iter().for_each(|n| names_within(n, &mut within));
    let constants = graph.initializer.iter().map(|t| t.name());
    let mut out = Emitter::new(values.chain(constants).chain(inputs).chain(within.iter().copied()));
    for node in std::mem::take(&mut graph.node) {
        raise_all(node, from, &types, &mut out);
    }
    let (nodes, constants) = out.finish();
    graph.node = nodes;
    graph.initializer.extend(constants);
    proto.ir_version = Some(proto.ir_version().max(8));
    match proto.opset_import.iter_mut().find(|o| o.domain().is_empty() || o.domain() == "ai.onnx") {
        Some(import) => import.version = Some(OPSET_MIN),
        None => proto.opset_import.push(OperatorSetIdProto { version: Some(OPSET_MIN), ..Default::default() }),
    }
    Model::from_proto(proto)
}

fn take_ints(node: &mut NodeProto, name: &str) -> Option<Vec<i64>> {
    let at = node.attribute.iter().position(|a| a.name() == name)?;
    Some(node.attribute.remove(at).ints)
}

fn take_float(node: &mut NodeProto, name: &str) -> Option<f32> {
    let at = node.attribute.iter().position(|a| a.name() == name)?;
    Some(node.attribute.remove(at).f())
}

fn drop_attribute(node: &mut NodeProto, name: &str) {
    node.attribute.retain(|a| a.name() != name);
}

/// Makes a constant the node's next input, at `position`.
fn set_input(node: &mut NodeProto, position: usize, name: String) {
    if node.input.len() <= position {
        node.input.resize(position + 1, String::new());
    }
    node.input[position] = name;
}

/// Raises a node, its bodies first: they are of the same operator set.
fn raise_all(mut node: NodeProto, from: i64, types: &Types, out: &mut Emitter) {
    // Of values within a body, and of what they shadow nowhere, nothing is
    // known.
    for body in node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs)) {
        let outer = out.enter();
        for inner in std::mem::take(&mut body.node) {
            raise_all(inner, from, types, out);
        }
        let (nodes, constants) = out.leave(outer);
        body.node = nodes;
        body.initializer.extend(constants);
    }
    if matches!(node.domain(), "" | "ai.onnx") { raise(node, from, types, out) } else { out.push(node) }
}

fn raise(mut old: NodeProto, from: i64, types: &Types, out: &mut Emitter) {
    let kind = old.op_type().to_owned();
    let dtype = old.input.first().and_then(|x| types.get(x)).and_then(|t| t.dtype);
    let float = |out: &mut Emitter, value: f32| out.scalar(dtype.unwrap_or(crate::DataType::F32), f64::from(value));
    match kind.as_str() {
        "Squeeze" | "Unsqueeze" | "ReduceSum" if from < 13 => ints_to_input(&mut old, "axes", 1, out),
        "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2" | "ReduceLogSum"
        | "ReduceLogSumExp" | "ReduceSumSquare"
            if from < 18 =>
        {
            ints_to_input(&mut old, "axes", 1, out);
        }
        "Split" => {
            if from < 13 {
                ints_to_input(&mut old, "split", 1, out);
            }
            if from < 18 && old.input.len() < 2 {
                old.attribute.push(attribute("num_outputs", &Attribute::Int(old.output.len() as i64)));
            }
        }
        "Slice" if from < 10 => {
            let [starts, ends, axes] = ["starts", "ends", "axes"].map(|name| take_ints(&mut old, name));
            let starts = starts.unwrap_or_default();
            let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
            for (position, values) in [(1, starts), (2, ends.unwrap_or_default()), (3, axes)] {
                let name = out.ints(&values);
                set_input(&mut old, position, name);
            }
        }
        "Pad" if from < 11 => {
            ints_to_input(&mut old, "pads", 1, out);
            let value = take_float(&mut old, "value").unwrap_or(0.0);
            let value = float(out, value);
            set_input(&mut old, 2, value);
        }
        "Clip" if from < 11 => {
            for (position, name) in [(1, "min"), (2, "max")] {
                if let Some(bound) = take_float(&mut old, name) {
                    let bound = float(out, bound);
                    set_input(&mut old, position, bound);
                }
            }
        }
        "Dropout" if from < 12 => {
            let ratio = take_float(&mut old, "ratio").unwrap_or(0.5);
            drop_attribute(&mut old, "is_test");
            let ratio = float(out, ratio);
            set_input(&mut old, 1, ratio);
        }
        "BatchNormalization" if from < 14 => {
            drop_attribute(&mut old, "spatial");
            // More outputs than one said that it trains.
            if old.output.len() > 1 {
                old.output.truncate(3);
                old.attribute.push(attribute("training_mode", &Attribute::Int(1)));
            }
        }
        "TopK" if from < 10 => {
            let k = Attributes::of(&old).int_or("k", 1);
            drop_attribute(&mut old, "k");
            let k = out.ints(&[k]);
            set_input(&mut old, 1, k);
        }
        "Scatter" => old.op_type = Some("ScatterElements".to_owned()),
        "Upsample" => {
            let scales = if from < 9 {
                let at = old.attribute.iter().position(|a| a.name() == "scales");
                let scales = at.map(|at| old.attribute.remove(at).floats).unwrap_or_default();
                out.constant(&Tensor::new([scales.len()], Elements::F32(scales)).expect("a vector has its length"))
            } else {
                old.input.get(1).cloned().unwrap_or_default()
            };
            old.input.truncate(1);
            set_input(&mut old, 2, scales);
            as_resize(&mut old);
        }
        "Resize" if from < 11 => {
            let scales = old.input.get(1).cloned().unwrap_or_default();
            old.input.truncate(1);
            set_input(&mut old, 2, scales);
            as_resize(&mut old);
        }
        "Softmax" | "LogSoftmax" if from < 13 => return flat_softmax(old, types, out),
        _ => {}
    }
    out.push(old);
}

fn ints_to_input(old: &mut NodeProto, name: &str, position: usize, out: &mut Emitter) {
    if let Some(values) = take_ints(old, name) {
        let values = out.ints(&values);
        set_input(old, position, values);
    }
}

/// What Upsample and the first Resize did.
fn as_resize(old: &mut NodeProto) {
    old.op_type = Some("Resize".to_owned());
    old.attribute.push(attribute("coordinate_transformation_mode", &Attribute::Text("asymmetric".into())));
    old.attribute.push(attribute("nearest_mode", &Attribute::Text("floor".into())));
}

/// Before set 13 the axes from `axis` on were one.
fn flat_softmax(mut old: NodeProto, types: &Types, out: &mut Emitter) {
    let rank = old.input.first().and_then(|x| types.get(x)).and_then(|t| t.shape.as_ref()).map(Vec::len);
    let axis = Attributes::of(&old).int_or("axis", 1);
    drop_attribute(&mut old, "axis");
    let last = axis == -1 || rank.is_some_and(|r| axis == r as i64 - 1);
    if last {
        old.attribute.push(attribute("axis", &Attribute::Int(-1)));
        return out.push(old);
    }
    let ([x, ..], [y, ..]) = (&old.input[..], &old.output[..]) else { return out.push(old) };
    let flat = out.op("Flatten", &[x], &[("axis", Attribute::Int(axis))]);
    let soft = out.op(old.op_type(), &[&flat], &[("axis", Attribute::Int(-1))]);
    let shape = out.op("Shape", &[x], &[]);
    out.push(node("Reshape", &[&soft, &shape], &[y], &[]));
}
