//! Who makes and who uses each value of the main graph: a view, computed
//! where it is needed.

use std::collections::{HashMap, HashSet};

use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto};

/// Operators whose result isn't determined by their inputs.
const RANDOM: [&str; 6] =
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];

/// Producers, consumers and order of the main graph's nodes.
#[derive(Debug)]
pub struct Index<'m> {
    /// The graph.
    pub graph: &'m GraphProto,
    /// Node that makes each value.
    pub producer: HashMap<&'m str, usize>,
    /// Values that need no input of the model: initialisers, and what nodes
    /// make of them alone.
    pub constant: HashSet<&'m str>,
    /// Names each node reads, those its subgraphs capture included.
    pub reads: Vec<Vec<&'m str>>,
    /// Nodes in topological order: that of the list.
    pub order: Vec<usize>,
}

impl<'m> Index<'m> {
    /// Indexes a checked model.
    #[must_use]
    pub fn new(model: &'m Model) -> Self {
        let graph = model.graph();
        let producer: HashMap<&str, usize> = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(i, n)| n.output.iter().filter(|o| !o.is_empty()).map(move |o| (o.as_str(), i)))
            .collect();
        let reads: Vec<Vec<&str>> = graph.node.iter().map(reads).collect();
        let order: Vec<usize> = (0..graph.node.len()).collect();
        let mut constant: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
        for &node in &order {
            if is_function_of_inputs(&graph.node[node]) && reads[node].iter().all(|name| constant.contains(name)) {
                constant.extend(graph.node[node].output.iter().filter(|o| !o.is_empty()).map(String::as_str));
            }
        }
        Self { graph, producer, constant, reads, order }
    }

    /// Whether a name depends on the model's inputs (or on chance). Other
    /// values are in every slice that needs them and never cross a cut.
    #[must_use]
    pub fn is_dynamic(&self, name: &str) -> bool {
        !self.constant.contains(name)
    }

    /// Inputs that a caller must give, in order: those that no initialiser fills.
    #[must_use]
    pub fn inputs(&self) -> Vec<&'m str> {
        self.graph.input.iter().map(|v| v.name()).filter(|n| self.is_dynamic(n)).collect()
    }

    /// Nodes that values depend on, walking back no further than `given`.
    pub(crate) fn needed_for(&self, wanted: &[&'m str], given: &HashSet<&str>) -> HashSet<usize> {
        let mut nodes = HashSet::new();
        self.add_needed(wanted, given, &mut nodes);
        nodes
    }

    /// Adds nodes that values depend on to those known already, with all that
    /// they depend on.
    pub(crate) fn add_needed(&self, wanted: &[&'m str], given: &HashSet<&str>, nodes: &mut HashSet<usize>) {
        let mut stack = wanted.to_vec();
        while let Some(name) = stack.pop() {
            if let Some(&node) = self.producer.get(name)
                && !given.contains(name)
                && nodes.insert(node)
            {
                stack.extend(&self.reads[node]);
            }
        }
    }
}

/// Whether a node's results are determined by its inputs, as far as its
/// operator is known: foreign domains may do anything, and bodies of
/// subgraphs aren't looked into.
pub(crate) fn is_function_of_inputs(node: &NodeProto) -> bool {
    let known = node.domain().is_empty() || matches!(node.op_type(), "QuantizeLinear" | "DequantizeLinear");
    let subgraph = bodies(node).next().is_some();
    known && !subgraph && !RANDOM.contains(&node.op_type())
}

/// Names a node reads: its inputs, and what its subgraphs take from outside.
#[must_use]
pub fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().filter(|i| !i.is_empty()).map(String::as_str).collect();
    let mut seen: HashSet<&str> = HashSet::new();
    for body in bodies(node) {
        names.extend(captured(body).into_iter().filter(|name| seen.insert(name)));
    }
    names
}

/// Bodies of a node: graphs that it runs, once or often.
pub(crate) fn bodies(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// Names defined in a node's bodies, at any depth.
pub(crate) fn names_within<'g>(node: &'g NodeProto, names: &mut Vec<&'g str>) {
    for body in bodies(node) {
        names.extend(defined(body));
        body.node.iter().for_each(|inner| names_within(inner, names));
    }
}

/// Names that a subgraph takes from the graphs around it, each once, in the
/// order of their first use.
pub(crate) fn captured(graph: &GraphProto) -> Vec<&str> {
    let own = defined(graph);
    let mut seen: HashSet<&str> = HashSet::new();
    let used = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|o| o.name()));
    used.filter(|name| !own.contains(name) && seen.insert(name)).collect()
}

/// Names that a graph defines itself.
pub(crate) fn defined(graph: &GraphProto) -> HashSet<&str> {
    let mut own: HashSet<&str> = graph.input.iter().map(|v| v.name()).collect();
    own.extend(graph.initializer.iter().map(|t| t.name()));
    own.extend(graph.sparse_initializer.iter().map(|s| s.values.name()));
    own.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    own
}
