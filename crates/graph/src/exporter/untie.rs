//! Parameters that an exporter made one of because their first numbers are the
//! same, such as the scales of two normalisations: each becomes its own again,
//! as they would part in training.
//!
//! PyTorch's exporter notes at a node which parameters its call took; its
//! older one leaves an Identity with the parameter's name behind.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::constant::tensor_from_proto;
use crate::error::LoadError;
use crate::model::Model;
use crate::onnx::{GraphProto, TensorProto};
use crate::tensor::Elements;
use crate::weights::is_float;

use super::names::{is_of_module, is_of_pytorch};
use super::notes::{Signature, call_of};

/// The model with its parameters apart.
///
/// # Errors
/// When the result isn't valid.
pub(crate) fn untied(model: Model) -> Result<Model, LoadError> {
    let graph = model.graph();
    let parted = Signature::of(graph).map_or_else(|| named(&model), |signature| called(graph, &signature));
    if parted.is_empty() {
        return Ok(model);
    }
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let tensors: HashMap<String, TensorProto> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.clone())).collect();
    let mut added: BTreeSet<String> = BTreeSet::new();
    let mut gone: BTreeSet<usize> = BTreeSet::new();
    for Part { node, input, of, own } in parted {
        let Some(tensor) = tensors.get(&of) else { continue };
        match input {
            Some(input) => graph.node[node].input[input].clone_from(&own),
            None => drop(gone.insert(node)),
        }
        if added.insert(own.clone()) {
            graph.initializer.push(TensorProto { name: Some(own), ..tensor.clone() });
        }
    }
    let mut position = 0;
    graph.node.retain(|_| {
        position += 1;
        !gone.contains(&(position - 1))
    });
    Model::from_proto(proto)
}

/// A place where a parameter is read under another's name.
struct Part {
    node: usize,
    /// The node's input; `None` for a node that only gives the name.
    input: Option<usize>,
    of: String,
    own: String,
}

/// By the notes of nodes: a parameter that a call took and that the file
/// hasn't stands for one that it has and that the call didn't take.
fn called(graph: &GraphProto, signature: &Signature<'_>) -> Vec<Part> {
    let here: HashMap<&str, &TensorProto> =
        graph.initializer.iter().filter(|t| is_float(t) && is_uniform(t)).map(|t| (t.name(), t)).collect();
    let all: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let mut parts = Vec::new();
    for (node, proto) in graph.node.iter().enumerate() {
        let Some(call) = call_of(proto) else { continue };
        let taken = signature.taken_by(call);
        let lacking: Vec<&str> = taken.iter().copied().filter(|name| !all.contains(name)).collect();
        let foreign: Vec<usize> = (0..proto.input.len())
            .filter(|&i| {
                let name = proto.input[i].as_str();
                here.contains_key(name) && signature.has(name) && !taken.contains(&name)
            })
            .collect();
        if lacking.is_empty() || foreign.is_empty() {
            continue;
        }
        for (i, &input) in foreign.iter().enumerate() {
            let of = proto.input[input].as_str();
            let alike: Vec<&str> = lacking.iter().copied().filter(|name| last(name) == last(of)).collect();
            let own = match (&lacking[..], &alike[..]) {
                ([own], _) | (_, [own]) => Some(*own),
                _ if lacking.len() == foreign.len() => Some(lacking[i]),
                _ => None,
            };
            let own = own.map(str::to_owned);
            parts.extend(own.map(|own| Part { node, input: Some(input), of: of.to_owned(), own }));
        }
    }
    parts
}

/// By the names of nodes that only give one.
fn named(model: &Model) -> Vec<Part> {
    if !is_of_pytorch(model) {
        return Vec::new();
    }
    let graph = model.graph();
    let interface: HashSet<&str> = graph.input.iter().chain(&graph.output).map(|v| v.name()).collect();
    let uniform: HashSet<&str> =
        graph.initializer.iter().filter(|t| is_float(t) && is_uniform(t)).map(|t| t.name()).collect();
    let nodes = graph.node.iter().enumerate().filter(|(_, n)| n.op_type() == "Identity" && n.domain().is_empty());
    let gives = nodes.filter_map(|(node, proto)| {
        let ([of], [own]) = (&proto.input[..], &proto.output[..]) else { return None };
        let parameter =
            is_of_module(own) && own.contains('.') && !own.starts_with('/') && !interface.contains(own.as_str());
        let shared = uniform.contains(of.as_str()) && parameter;
        shared.then(|| Part { node, input: None, of: of.clone(), own: own.clone() })
    });
    gives.collect()
}

/// Whether all numbers of a constant are the same: parameters that a module
/// shares start from numbers of chance.
fn is_uniform(tensor: &TensorProto) -> bool {
    match tensor_from_proto(tensor).map(|t| t.into_parts().1) {
        Ok(Elements::F32(v)) => v.iter().all(|x| *x == v[0]),
        Ok(Elements::F64(v)) => v.iter().all(|x| *x == v[0]),
        _ => false,
    }
}
