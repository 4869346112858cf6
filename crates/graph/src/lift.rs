//! Weights that a body has for itself become the graph's own: a body computes
//! with the same ones at every run, and only the graph's are trained, cut and
//! exchanged.

use std::collections::{HashMap, HashSet};

use crate::error::LoadError;
use crate::index::{bodies, defined, names_within};
use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto, TensorProto};
use crate::tensor::DataType;

/// The model with the weights of its bodies as initialisers of the graph:
/// floating-point ones of more than one element.
///
/// # Errors
/// When the result isn't valid.
pub(crate) fn lifted(model: &Model) -> Result<Model, LoadError> {
    let graph = model.graph();
    if !graph.node.iter().flat_map(bodies).any(has_weights) {
        return Ok(model.clone());
    }
    let mut names = Vec::new();
    graph.node.iter().for_each(|node| names_within(node, &mut names));
    names.extend(defined(graph));
    let mut times: HashMap<String, usize> = HashMap::new();
    names.into_iter().for_each(|name| *times.entry(name.to_owned()).or_default() += 1);
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let mut weights = Vec::new();
    for body in graph.node.iter_mut().flat_map(bodies_mut) {
        lift(body, &mut times, &mut weights);
    }
    graph.initializer.extend(weights);
    Model::from_proto(proto)
}

fn bodies_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs))
}

fn is_weight(tensor: &TensorProto) -> bool {
    let several = tensor.dims.iter().fold(1i64, |n, d| n.saturating_mul(*d)) > 1;
    several && DataType::from_onnx(tensor.data_type()).is_some_and(DataType::is_float)
}

fn has_weights(body: &GraphProto) -> bool {
    body.initializer.iter().any(is_weight) || body.node.iter().flat_map(bodies).any(has_weights)
}

fn lift(body: &mut GraphProto, times: &mut HashMap<String, usize>, weights: &mut Vec<TensorProto>) {
    for inner in body.node.iter_mut().flat_map(bodies_mut) {
        lift(inner, times, weights);
    }
    // What a body gives or may be given is its interface.
    let kept: HashSet<String> = body.output.iter().chain(&body.input).map(|v| v.name().to_owned()).collect();
    let mut renamed = HashMap::new();
    let all = std::mem::take(&mut body.initializer);
    for mut tensor in all {
        if !is_weight(&tensor) || kept.contains(tensor.name()) {
            body.initializer.push(tensor);
            continue;
        }
        let name = tensor.name().to_owned();
        // Branches have names in common, which the graph can have once.
        if times.get(&name).is_some_and(|n| *n > 1) {
            let mut number = 1;
            while times.contains_key(&format!("{name}.{number}")) {
                number += 1;
            }
            let own = format!("{name}.{number}");
            times.insert(own.clone(), 1);
            tensor.name = Some(own.clone());
            renamed.insert(name, own);
        }
        weights.push(tensor);
    }
    if !renamed.is_empty() {
        body.node.iter_mut().for_each(|node| rename(node, &renamed));
    }
}

/// Makes a node, and its bodies, read other names.
fn rename(node: &mut NodeProto, names: &HashMap<String, String>) {
    for input in &mut node.input {
        if let Some(name) = names.get(input.as_str()) {
            input.clone_from(name);
        }
    }
    for body in bodies_mut(node) {
        // A name of the body's own is another's, though the format forbids it.
        let own: HashSet<String> = defined(body).into_iter().map(str::to_owned).collect();
        let rest: HashMap<String, String> =
            names.iter().filter(|(name, _)| !own.contains(*name)).map(|(a, b)| (a.clone(), b.clone())).collect();
        body.node.iter_mut().for_each(|inner| rename(inner, &rest));
        for output in &mut body.output {
            if let Some(name) = rest.get(output.name()) {
                output.name = Some(name.clone());
            }
        }
    }
}
