//! Where a graph may be divided: every frontier in topological order.
//!
//! After each node of the order, the frontier is the set of values made (or
//! given) before and used after. One sweep finds them all.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::index::Index;
use crate::infer::Types;
use crate::model::Model;

/// Tensors of a frontier at most: more is no place to cut, since each is sent
/// with its own header and codec.
pub const FRONTIER_TENSORS_MAX: usize = 8;

/// A frontier: computing everything before it, sending these tensors, and
/// computing everything after gives the model's outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The tensors, in the order in which they are made.
    pub tensors: Vec<String>,
    /// Their bytes, where shapes are known.
    pub bytes: Option<u64>,
    /// Nodes before the frontier in topological order.
    pub position: usize,
}

/// Every usable frontier, in topological order.
#[must_use]
pub fn cuts(model: &Model, types: &Types) -> Vec<Cut> {
    let index = Index::new(model);
    let graph = index.graph;
    // Last position at which each dynamic value is read; outputs to the end.
    let end = index.order.len();
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (position, &node) in index.order.iter().enumerate() {
        for name in &index.reads[node] {
            last.insert(name, position);
        }
    }
    for output in &graph.output {
        last.insert(output.name(), end);
    }
    let mut made: HashMap<&str, usize> = HashMap::new();
    // (order of making, name) of live values.
    let mut live: BTreeSet<(usize, &str)> = BTreeSet::new();
    let mut expire: Vec<Vec<&str>> = vec![Vec::new(); end + 1];
    let mut clock = 0;
    let mut enter = |name: &'_ str| {
        clock += 1;
        let _ = name;
        clock
    };
    let inputs: Vec<&str> =
        graph.input.iter().map(|v| v.name()).filter(|n| index.is_dynamic(n)).collect();
    for &name in &inputs {
        if let Some(&until) = last.get(name) {
            let at = enter(name);
            made.insert(name, at);
            live.insert((at, name));
            expire[until].push(name);
        }
    }
    let mut found: Vec<Cut> = Vec::new();
    for (position, &node) in index.order.iter().enumerate() {
        for output in graph.node[node].output.iter().filter(|o| !o.is_empty()) {
            if let Some(&until) = last.get(output.as_str()) {
                let at = enter(output);
                made.insert(output, at);
                live.insert((at, output));
                expire[until].push(output);
            }
        }
        for name in std::mem::take(&mut expire[position]) {
            if let Some(at) = made.get(name) {
                live.remove(&(*at, name));
            }
        }
        if position + 1 == end || live.is_empty() || live.len() > FRONTIER_TENSORS_MAX {
            continue;
        }
        if !live.iter().all(|(_, name)| index.is_dynamic(name) && may_cross(&index, types, name)) {
            continue;
        }
        // Only inputs alive: nothing has been computed that is of use.
        if live.iter().all(|(_, name)| inputs.contains(name)) {
            continue;
        }
        let tensors: Vec<String> = live.iter().map(|(_, n)| (*n).to_owned()).collect();
        if found.last().is_some_and(|c| c.tensors == tensors) {
            continue;
        }
        let bytes = tensors.iter().try_fold(0u64, |sum, t| Some(sum + types.get(t)?.bytes()?));
        found.push(Cut { tensors, bytes, position: position + 1 });
    }
    found
}

/// Whether a tensor may be sent: quantised graphs are cut at the float
/// tensor, never between Quantize and Dequantize, so that fusion survives.
fn may_cross(index: &Index<'_>, types: &Types, name: &str) -> bool {
    let quantising = ["QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"];
    match index.producer.get(name) {
        None => true,
        Some(&node) => {
            let op = index.graph.node[node].op_type();
            let integer_product = matches!(op, "ConvInteger" | "MatMulInteger");
            !quantising.contains(&op) && !integer_product && types.get(name).is_none_or(|t| t.dtype.is_some())
        }
    }
}

/// The cuts worth profiling, at most `max`: those that send fewer bytes than
/// every cut before them (a later cut with more bytes costs more on the slow
/// tier and on the link), then others spread evenly over the work, for
/// tiers that differ in memory, operators or throughput.
#[must_use]
pub fn candidates(model: &Model, types: &Types, cuts: &[Cut], max: usize) -> Vec<Cut> {
    if cuts.len() <= max {
        return cuts.to_vec();
    }
    let size = |c: &Cut| c.bytes.unwrap_or(u64::MAX);
    let mut chosen: BTreeSet<usize> = BTreeSet::new();
    let mut best = u64::MAX;
    for (i, cut) in cuts.iter().enumerate() {
        if size(cut) < best {
            best = size(cut);
            chosen.insert(i);
        }
    }
    while chosen.len() > max {
        // Thin out where the sizes differ least.
        let list: Vec<usize> = chosen.iter().copied().collect();
        let drop = list.windows(2).min_by_key(|w| size(&cuts[w[0]]) - size(&cuts[w[1]])).map(|w| w[0]);
        match drop {
            Some(i) => chosen.remove(&i),
            None => break,
        };
    }
    let costs = crate::cost::cost(model, types);
    let order = Index::new(model).order;
    let mut work = vec![0f64; order.len() + 1];
    for (position, &node) in order.iter().enumerate() {
        work[position + 1] = work[position] + costs.get(node).and_then(|c| c.macs).unwrap_or(0) as f64 + 1.0;
    }
    let at = |i: usize| work[cuts[i].position.min(order.len())];
    while chosen.len() < max {
        // The cut farthest in work from those chosen.
        let gap = |i: usize| {
            chosen.iter().map(|&c| (at(c) - at(i)).abs()).fold(f64::INFINITY, f64::min).min(at(i)).min(work[order.len()] - at(i))
        };
        let Some(next) = (0..cuts.len()).filter(|i| !chosen.contains(i)).max_by(|&a, &b| gap(a).total_cmp(&gap(b))) else { break };
        chosen.insert(next);
    }
    chosen.into_iter().map(|i| cuts[i].clone()).collect()
}
