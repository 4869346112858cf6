//! Who makes and who uses each value of the main graph: a view, computed
//! where it is needed.

use std::collections::HashMap;

use crate::model::Model;
use crate::onnx::{GraphProto, NodeProto};

/// Producers, consumers and order of the main graph's nodes.
#[derive(Debug)]
pub struct Index<'m> {
    /// The graph.
    pub graph: &'m GraphProto,
    /// Node that makes each value.
    pub producer: HashMap<&'m str, usize>,
    /// Position of each initialiser.
    pub initializer: HashMap<&'m str, usize>,
    /// Names each node reads, those its subgraphs capture included.
    pub reads: Vec<Vec<&'m str>>,
    /// Nodes in topological order; the file's own order where it is valid.
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
        let initializer = graph.initializer.iter().enumerate().map(|(i, t)| (t.name(), i)).collect();
        let reads: Vec<Vec<&str>> = graph.node.iter().map(reads).collect();
        let order = order(graph, &producer, &reads);
        Self { graph, producer, initializer, reads, order }
    }

    /// Whether a name is computed or given, not a constant.
    #[must_use]
    pub fn is_dynamic(&self, name: &str) -> bool {
        !self.initializer.contains_key(name)
    }
}

/// Names a node reads: its inputs, and what its subgraphs take from outside.
#[must_use]
pub fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().filter(|i| !i.is_empty()).map(String::as_str).collect();
    for attribute in &node.attribute {
        for graph in attribute.g.iter().chain(&attribute.graphs) {
            captured(graph, &mut names);
        }
    }
    names
}

/// Names that a subgraph takes from the graphs around it.
fn captured<'g>(graph: &'g GraphProto, names: &mut Vec<&'g str>) {
    let mut own: std::collections::HashSet<&str> = graph.input.iter().map(|v| v.name()).collect();
    own.extend(graph.initializer.iter().map(|t| t.name()));
    own.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let used = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|o| o.name()));
    for name in used {
        if !own.contains(name) && !names.contains(&name) {
            names.push(name);
        }
    }
}

/// Kahn's algorithm, smallest position first, so that a valid file keeps its order.
fn order(graph: &GraphProto, producer: &HashMap<&str, usize>, reads: &[Vec<&str>]) -> Vec<usize> {
    let mut missing = vec![0usize; graph.node.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (node, names) in reads.iter().enumerate() {
        for name in names {
            if let Some(&from) = producer.get(name) {
                users[from].push(node);
                missing[node] += 1;
            }
        }
    }
    let mut ready: std::collections::BTreeSet<usize> = (0..missing.len()).filter(|&n| missing[n] == 0).collect();
    let mut order = Vec::with_capacity(missing.len());
    while let Some(node) = ready.pop_first() {
        order.push(node);
        for &user in &users[node] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.insert(user);
            }
        }
    }
    order
}
