//! Checks that a model hangs together before anything works on it.
//!
//! What passes here can be indexed, cut and sliced without further doubt:
//! every name has one maker, every reader finds it, nothing waits for itself,
//! every constant's bytes fit its shape.

use std::collections::{HashMap, HashSet};

use crate::constant::{shape, typed_len};
use crate::error::LoadError;
use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto, TensorProto};
use crate::tensor::{DataType, element_count};

/// Levels of subgraphs; exporters nest two or three.
pub const DEPTH_MAX: usize = 32;

/// Axes of a constant.
const RANK_MAX: usize = 64;

pub(crate) fn check(model: &Model) -> Result<(), LoadError> {
    let proto = model.proto();
    let Some(graph) = proto.graph.as_ref() else {
        return Err(LoadError::NotOnnx { reason: "it holds no graph".into() });
    };
    // IR 3 differs only in that initialisers are inputs too, which is read.
    if !(3..=64).contains(&proto.ir_version()) {
        return Err(LoadError::Version { what: "IR", version: proto.ir_version(), supported: "4 and newer" });
    }
    let mut domains: HashSet<&str> = HashSet::new();
    for import in &proto.opset_import {
        let domain = canonical(import.domain());
        if domain.is_empty() && import.version() < 7 {
            return Err(LoadError::Version { what: "operator set", version: import.version(), supported: "7 and newer" });
        }
        domains.insert(domain);
    }
    domains.extend(proto.functions.iter().map(|f| canonical(f.domain())));
    check_graph(graph, &domains, &Scope { names: HashSet::new(), outer: None }, 0)
}

fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Names visible in a graph: its own, and those of the graphs around it.
struct Scope<'s> {
    names: HashSet<&'s str>,
    outer: Option<&'s Scope<'s>>,
}

impl Scope<'_> {
    fn has(&self, name: &str) -> bool {
        self.names.contains(name) || self.outer.is_some_and(|o| o.has(name))
    }
}

fn check_graph(graph: &GraphProto, domains: &HashSet<&str>, outer: &Scope<'_>, depth: usize) -> Result<(), LoadError> {
    for constant in &graph.initializer {
        check_constant(constant)?;
    }
    let mut makers: HashMap<&str, Option<usize>> = HashMap::new();
    let twice = |tensor: &str, maker: String| Err(LoadError::Duplicate { tensor: tensor.to_owned(), maker });
    for input in &graph.input {
        if makers.insert(input.name(), None).is_some() {
            return twice(input.name(), "a second input of that name".into());
        }
    }
    let mut constants = HashSet::new();
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()).map(|v| v.name());
    for name in graph.initializer.iter().map(|t| t.name()).chain(sparse) {
        // An initialiser may give an input its default.
        if !constants.insert(name) {
            return twice(name, "a second initialiser of that name".into());
        }
        makers.insert(name, None);
    }
    for (i, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if makers.insert(output, Some(i)).is_some() {
                return twice(output, format!("node `{}` ({})", label(node), node.op_type()));
            }
        }
    }
    let scope = Scope { names: makers.keys().copied().collect(), outer: Some(outer) };
    for node in &graph.node {
        if !domains.contains(canonical(node.domain())) {
            return Err(LoadError::NoImport { node: label(node), operator: node.op_type().to_owned(), domain: node.domain().to_owned() });
        }
        for tensor in node.input.iter().filter(|i| !i.is_empty()) {
            if !scope.has(tensor) {
                return Err(LoadError::MissingTensor { node: label(node), operator: node.op_type().to_owned(), tensor: tensor.clone() });
            }
        }
        for attribute in &node.attribute {
            for constant in attribute.t.iter().chain(&attribute.tensors) {
                check_constant(constant)?;
            }
            for subgraph in attribute.g.iter().chain(&attribute.graphs) {
                if depth + 1 > DEPTH_MAX {
                    return Err(LoadError::TooDeep { node: label(node), max: DEPTH_MAX });
                }
                check_graph(subgraph, domains, &scope, depth + 1)?;
            }
        }
    }
    for output in &graph.output {
        if !scope.has(output.name()) {
            return Err(LoadError::DanglingOutput { tensor: output.name().to_owned() });
        }
    }
    check_cycles(graph, &makers)
}

/// A node without a name is known by what it makes.
fn label(node: &NodeProto) -> String {
    let named = Some(node.name()).filter(|n| !n.is_empty());
    named.or_else(|| node.output.first().map(String::as_str)).unwrap_or("?").to_owned()
}

fn check_cycles(graph: &GraphProto, makers: &HashMap<&str, Option<usize>>) -> Result<(), LoadError> {
    let mut missing = vec![0usize; graph.node.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (i, node) in graph.node.iter().enumerate() {
        for name in crate::index::reads(node) {
            if let Some(Some(maker)) = makers.get(name) {
                users[*maker].push(i);
                missing[i] += 1;
            }
        }
    }
    let mut ready: Vec<usize> = (0..missing.len()).filter(|&n| missing[n] == 0).collect();
    let mut done = 0;
    while let Some(node) = ready.pop() {
        done += 1;
        for &user in &users[node] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(user);
            }
        }
    }
    if done == graph.node.len() {
        return Ok(());
    }
    let stuck = missing.iter().position(|&m| m > 0).unwrap_or(0);
    let node = &graph.node[stuck];
    Err(LoadError::Cycle {
        node: label(node),
        operator: node.op_type().to_owned(),
        tensor: node.output.first().cloned().unwrap_or_default(),
    })
}

fn check_constant(constant: &TensorProto) -> Result<(), LoadError> {
    let invalid = |reason: String| Err(LoadError::Tensor { tensor: constant.name().to_owned(), reason });
    if constant.dims.len() > RANK_MAX {
        return invalid(format!("{} axes; at most {RANK_MAX} are taken", constant.dims.len()));
    }
    let shape = match shape(constant) {
        Ok(shape) => shape,
        Err(reason) => return invalid(reason),
    };
    let Ok(count) = element_count(&shape) else {
        return invalid(format!("shape {shape:?} has more elements than memory can hold"));
    };
    // Types that Tierline only passes on (float8, 4-bit) keep their bytes.
    let Some(dtype) = DataType::from_onnx(constant.data_type()) else {
        return if constant.data_type() > 0 { Ok(()) } else { invalid("it has no element type".into()) };
    };
    match (&constant.raw_data, dtype.size()) {
        (Some(raw), Some(size)) if (raw.len() as u64) != count as u64 * size as u64 => {
            invalid(format!("shape {shape:?} of {dtype} takes {} bytes; the file has {}", count as u64 * size as u64, raw.len()))
        }
        (Some(_), None) => invalid("strings cannot be raw bytes".into()),
        (Some(_), Some(_)) => Ok(()),
        (None, _) if typed_len(constant, dtype) != count => {
            invalid(format!("shape {shape:?} holds {count} elements; the file has {}", typed_len(constant, dtype)))
        }
        (None, _) => Ok(()),
    }
}
