//! Checks that a model hangs together before anything works on it.
//!
//! What passes here can be indexed, cut and sliced without further doubt:
//! every name has one maker, every reader finds it, nothing waits for itself,
//! every constant's bytes are here and fit its shape.

use std::collections::{HashMap, HashSet};

use crate::constant::{shape, typed_len};
use crate::error::LoadError;
use crate::inline;
use crate::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto};
use crate::tensor::{DataType, element_count};

/// Levels of subgraphs; exporters nest two or three.
pub const DEPTH_MAX: usize = 32;

/// Axes of a constant.
const RANK_MAX: usize = 64;

pub(crate) fn check(proto: &ModelProto) -> Result<(), LoadError> {
    let Some(graph) = proto.graph.as_ref() else {
        return Err(LoadError::NotOnnx { reason: "it holds no graph".into() });
    };
    // IR 3 differs only in that weights are inputs too, which is undone.
    if !(3..=64).contains(&proto.ir_version()) {
        return Err(LoadError::Version { what: "IR", version: proto.ir_version(), supported: "4 and newer" });
    }
    let mut domains: HashSet<&str> = HashSet::new();
    for import in &proto.opset_import {
        let domain = canonical(import.domain());
        if domain.is_empty() && import.version() < 7 {
            return Err(LoadError::Version {
                what: "operator set",
                version: import.version(),
                supported: "7 and newer",
            });
        }
        domains.insert(domain);
    }
    domains.extend(proto.functions.iter().map(|f| canonical(f.domain())));
    domains.extend(crate::normal::UNIMPORTED.map(|(domain, _)| domain));
    check_functions(proto, &domains)?;
    check_graph(graph, &domains, None, 0)
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

/// Who makes each name of a graph: a node, or (`None`) an input or initialiser.
type Makers<'g> = HashMap<&'g str, Option<usize>>;

fn check_graph(
    graph: &GraphProto,
    domains: &HashSet<&str>,
    outer: Option<&Scope<'_>>,
    depth: usize,
) -> Result<(), LoadError> {
    for constant in &graph.initializer {
        check_constant(constant, constant.name())?;
    }
    for sparse in &graph.sparse_initializer {
        check_sparse(sparse, sparse.values.name())?;
    }
    let mut makers = Makers::new();
    for input in &graph.input {
        check_declared(input)?;
        if makers.insert(input.name(), None).is_some() {
            return Err(twice(input.name(), "a second input of that name"));
        }
    }
    let mut constants = HashSet::new();
    let sparse = graph.sparse_initializer.iter().map(|s| s.values.name());
    for name in graph.initializer.iter().map(|t| t.name()).chain(sparse) {
        // An initialiser may give an input its default.
        if !constants.insert(name) {
            return Err(twice(name, "a second initialiser of that name"));
        }
        makers.insert(name, None);
    }
    check_nodes(&graph.node, makers, domains, outer, depth, &|scope| {
        let dangling = graph.output.iter().map(|o| o.name()).find(|o| !scope.has(o));
        dangling.map_or(Ok(()), |tensor| Err(LoadError::DanglingOutput { tensor: tensor.to_owned() }))
    })
}

/// Checks nodes whose other names are in `makers`; `finish` sees the names in
/// scope once every node has been found sound.
fn check_nodes<'g>(
    nodes: &'g [NodeProto],
    mut makers: Makers<'g>,
    domains: &HashSet<&str>,
    outer: Option<&Scope<'_>>,
    depth: usize,
    finish: &dyn Fn(&Scope<'_>) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    for (i, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if makers.insert(output, Some(i)).is_some() {
                return Err(twice(output, &format!("node `{}` ({})", label(node), node.op_type())));
            }
        }
    }
    let scope = Scope { names: makers.keys().copied().collect(), outer };
    for node in nodes {
        let operator = || node.op_type().to_owned();
        if !domains.contains(canonical(node.domain())) {
            let domain = node.domain().to_owned();
            return Err(LoadError::NoImport { node: label(node), operator: operator(), domain });
        }
        if let Some(tensor) = node.input.iter().find(|i| !i.is_empty() && !scope.has(i)) {
            return Err(LoadError::MissingTensor { node: label(node), operator: operator(), tensor: tensor.clone() });
        }
        for attribute in &node.attribute {
            check_attribute(attribute, node)?;
            for subgraph in attribute.g.iter().chain(&attribute.graphs) {
                if depth + 1 > DEPTH_MAX {
                    return Err(LoadError::TooDeep { node: label(node), max: DEPTH_MAX });
                }
                check_graph(subgraph, domains, Some(&scope), depth + 1)?;
            }
        }
    }
    finish(&scope)?;
    check_cycles(nodes, &makers)
}

/// A function's body is a graph without constants of its own; calls among
/// functions must end.
fn check_functions(proto: &ModelProto, domains: &HashSet<&str>) -> Result<(), LoadError> {
    for function in &proto.functions {
        for attribute in &function.attribute_proto {
            for constant in attribute.t.iter().chain(&attribute.tensors) {
                check_constant(constant, &format!("{} of function {}", attribute.name(), function.name()))?;
            }
        }
        let mut makers = Makers::new();
        for input in &function.input {
            if makers.insert(input, None).is_some() {
                return Err(twice(input, &format!("a second input of function `{}`", function.name())));
            }
        }
        let mut imported = domains.clone();
        imported.extend(function.opset_import.iter().map(|o| canonical(o.domain())));
        check_nodes(&function.node, makers, &imported, None, 0, &|scope| {
            let dangling = function.output.iter().find(|o| !scope.has(o));
            dangling.map_or(Ok(()), |tensor| Err(LoadError::DanglingOutput { tensor: tensor.clone() }))
        })?;
    }
    check_calls(proto)
}

/// Functions that call each other in a circle would be taken apart for ever.
fn check_calls(proto: &ModelProto) -> Result<(), LoadError> {
    let at: HashMap<_, usize> = proto.functions.iter().enumerate().map(|(i, f)| (inline::key(f), i)).collect();
    let mut calls: Vec<Vec<(usize, &NodeProto)>> = Vec::with_capacity(proto.functions.len());
    for function in &proto.functions {
        let mut nodes: Vec<&NodeProto> = Vec::new();
        each_node(&function.node, &mut |n| nodes.push(n));
        let called = |n: &NodeProto| at.get(&inline::called(n)).copied();
        calls.push(nodes.into_iter().filter_map(|n| Some((called(n)?, n))).collect());
    }
    // Functions that call none but ended ones have ended.
    let mut ended = vec![false; calls.len()];
    while let Some(next) = (0..calls.len()).find(|&f| !ended[f] && calls[f].iter().all(|(c, _)| ended[*c])) {
        ended[next] = true;
    }
    let open = calls.iter().zip(&ended).filter(|(_, e)| !**e).flat_map(|(c, _)| c);
    match open.into_iter().find(|(called, _)| !ended[*called]) {
        None => Ok(()),
        Some((_, node)) => Err(cycle(node)),
    }
}

/// Visits nodes and those of their subgraphs.
fn each_node<'g>(nodes: &'g [NodeProto], f: &mut impl FnMut(&'g NodeProto)) {
    // A list instead of recursion: depth has not been checked yet.
    let mut open: Vec<&'g [NodeProto]> = vec![nodes];
    while let Some(nodes) = open.pop() {
        for node in nodes {
            f(node);
            let graphs = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
            open.extend(graphs.map(|g| g.node.as_slice()));
        }
    }
}

fn twice(tensor: &str, maker: &str) -> LoadError {
    LoadError::Duplicate { tensor: tensor.to_owned(), maker: maker.to_owned() }
}

fn cycle(node: &NodeProto) -> LoadError {
    let tensor = node.output.first().cloned().unwrap_or_default();
    LoadError::Cycle { node: label(node), operator: node.op_type().to_owned(), tensor }
}

/// A node without a name is known by what it makes.
fn label(node: &NodeProto) -> String {
    let named = Some(node.name()).filter(|n| !n.is_empty());
    named.or_else(|| node.output.first().map(String::as_str)).unwrap_or("?").to_owned()
}

fn check_cycles(nodes: &[NodeProto], makers: &Makers<'_>) -> Result<(), LoadError> {
    let makers_of = |node: &NodeProto| -> Vec<usize> {
        crate::index::reads(node).into_iter().filter_map(|name| makers.get(name).copied().flatten()).collect()
    };
    let from: Vec<Vec<usize>> = nodes.iter().map(makers_of).collect();
    let mut missing: Vec<usize> = from.iter().map(Vec::len).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, makers) in from.iter().enumerate() {
        for &maker in makers {
            users[maker].push(i);
        }
    }
    let mut ready: Vec<usize> = (0..missing.len()).filter(|&n| missing[n] == 0).collect();
    while let Some(node) = ready.pop() {
        for &user in &users[node] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(user);
            }
        }
    }
    let Some(mut stuck) = missing.iter().position(|&m| m > 0) else { return Ok(()) };
    // Some stuck nodes only wait for the cycle: going back leads into it.
    for _ in 0..nodes.len() {
        stuck = from[stuck].iter().copied().find(|&maker| missing[maker] > 0).unwrap_or(stuck);
    }
    Err(cycle(&nodes[stuck]))
}

/// An input larger than any memory can never be given.
fn check_declared(input: &ValueInfoProto) -> Result<(), LoadError> {
    let info = crate::model::value_info(input);
    if info.is_addressable() {
        return Ok(());
    }
    let list: Vec<String> = info.shape.iter().flatten().map(ToString::to_string).collect();
    let reason = format!("its shape [{}] has more elements than memory can hold", list.join(","));
    Err(LoadError::Input { tensor: input.name().to_owned(), reason })
}

fn check_attribute(attribute: &AttributeProto, node: &NodeProto) -> Result<(), LoadError> {
    let name = |constant: &TensorProto| match constant.name() {
        "" => format!("{} of node {}", attribute.name(), label(node)),
        name => name.to_owned(),
    };
    for constant in attribute.t.iter().chain(&attribute.tensors) {
        check_constant(constant, &name(constant))?;
    }
    for sparse in attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors) {
        check_sparse(sparse, &name(&sparse.values))?;
    }
    Ok(())
}

fn check_sparse(sparse: &SparseTensorProto, name: &str) -> Result<(), LoadError> {
    check_constant(&sparse.values, name)?;
    check_constant(&sparse.indices, name)?;
    let dims = TensorProto { dims: sparse.dims.clone(), ..TensorProto::default() };
    check_shape(&dims, name).map(drop)
}

/// Elements that a constant's axes hold.
fn check_shape(constant: &TensorProto, name: &str) -> Result<usize, LoadError> {
    let invalid = |reason: String| LoadError::Tensor { tensor: name.to_owned(), reason };
    if constant.dims.len() > RANK_MAX {
        return Err(invalid(format!("{} axes; at most {RANK_MAX} are taken", constant.dims.len())));
    }
    let shape = shape(constant).map_err(invalid)?;
    element_count(&shape).map_err(|e| invalid(e.to_string()))
}

fn check_constant(constant: &TensorProto, name: &str) -> Result<(), LoadError> {
    if constant.data_location() == crate::external::EXTERNAL {
        return Err(crate::external::unresolved(constant, name));
    }
    let count = check_shape(constant, name)?;
    let invalid = |reason: String| Err(LoadError::Tensor { tensor: name.to_owned(), reason });
    // Types that Tierline only passes on (float8, 4-bit) keep their bytes.
    let Some(dtype) = DataType::from_onnx(constant.data_type()) else {
        return if constant.data_type() > 0 { Ok(()) } else { invalid("it has no element type".into()) };
    };
    let dims = &constant.dims;
    let bytes = |size: usize| count as u64 * size as u64;
    match (&constant.raw_data, dtype.size()) {
        (Some(raw), Some(size)) if raw.len() as u64 != bytes(size) => {
            invalid(format!("shape {dims:?} of {dtype} takes {} bytes; the file has {}", bytes(size), raw.len()))
        }
        (Some(_), None) => invalid("strings cannot be raw bytes".into()),
        (Some(_), Some(_)) => Ok(()),
        (None, _) if typed_len(constant, dtype) != count => {
            invalid(format!("shape {dims:?} holds {count} elements; the file has {}", typed_len(constant, dtype)))
        }
        (None, _) => Ok(()),
    }
}
