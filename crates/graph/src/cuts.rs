//! Where a graph may be divided: every frontier in topological order.
//!
//! After each node of the order, the frontier is the set of values made (or
//! given) before and used after. One sweep finds them all, in time that grows
//! with the edges of the graph; `docs/design/cuts.md` has the rules and numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::index::Index;
use crate::infer::Types;
use crate::model::Model;
use crate::tensor::DataType;

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
///
/// A node with subgraphs (If, Loop, Scan) is one node: nothing is cut inside,
/// and what its bodies capture counts as used by it. Values that depend on
/// constants alone don't cross: every slice computes its own. What no output
/// needs is as if it weren't there.
#[must_use]
pub fn cuts(model: &Model, types: &Types) -> Vec<Cut> {
    let index = Index::new(model);
    let graph = index.graph;
    let outputs: Vec<&str> = graph.output.iter().map(|output| output.name()).collect();
    let needed = index.needed_for(&outputs, &HashSet::new());
    let end = index.order.iter().rposition(|node| needed.contains(node)).map_or(0, |last| last + 1);
    // Last position at which each value is read; outputs at the end.
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (position, &node) in index.order.iter().enumerate().filter(|(_, node)| needed.contains(node)) {
        last.extend(index.reads[node].iter().map(|name| (*name, position)));
    }
    last.extend(outputs.into_iter().map(|output| (output, end)));
    let barred = barred(&index, types);

    // Values alive, by the order in which they are made.
    let mut live: BTreeMap<usize, &str> = BTreeMap::new();
    // Of those, how many may not cross, and how many are the model's inputs.
    let (mut blocking, mut given) = (0usize, 0usize);
    let mut dying: Vec<Vec<usize>> = vec![Vec::new(); end + 1];
    let inputs = index.inputs();
    let is_input: HashSet<&str> = inputs.iter().copied().collect();
    let mut clock = 0;
    let mut found: Vec<Cut> = Vec::new();
    // Position 0 brings the inputs to life, position `p` what node `p - 1` makes.
    for position in 0..end {
        let born: Vec<&str> = match position.checked_sub(1) {
            None => inputs.clone(),
            Some(before) => graph.node[index.order[before]].output.iter().map(String::as_str).collect(),
        };
        for name in born.into_iter().filter(|n| index.is_dynamic(n)) {
            if let Some(&until) = last.get(name) {
                live.insert(clock, name);
                dying[until].push(clock);
                clock += 1;
                blocking += usize::from(barred.contains(name));
                given += usize::from(is_input.contains(name));
            }
        }
        // The values that only the node before read.
        for made in position.checked_sub(1).map(|before| std::mem::take(&mut dying[before])).unwrap_or_default() {
            if let Some(name) = live.remove(&made) {
                blocking -= usize::from(barred.contains(name));
                given -= usize::from(is_input.contains(name));
            }
        }
        // Where only inputs are alive, nothing has been computed that is of use.
        if blocking > 0 || given == live.len() || live.len() > FRONTIER_TENSORS_MAX {
            continue;
        }
        if found.last().is_some_and(|cut| cut.tensors.iter().map(String::as_str).eq(live.values().copied())) {
            continue;
        }
        let tensors: Vec<String> = live.values().map(|name| (*name).to_owned()).collect();
        let bytes = tensors.iter().try_fold(0u64, |sum, t| sum.checked_add(types.get(t)?.bytes()?));
        found.push(Cut { tensors, bytes, position });
    }
    found
}

/// Values that may not be sent: those that are no tensors, and those inside
/// what an engine runs as one quantised operation. Quantised graphs are cut at
/// the float tensor before a Quantize/Dequantize pair, so that fusion survives.
fn barred<'m>(index: &Index<'m>, types: &Types) -> HashSet<&'m str> {
    let mut barred: HashSet<&str> = HashSet::new();
    // An element type that tensors don't have counts as none, as does a
    // tensor that no memory holds.
    let typed = |name: &str| types.get(name).map(|t| t.dtype.filter(|_| t.is_addressable()));
    barred.extend(index.inputs().into_iter().filter(|name| typed(name) == Some(None)));
    for &position in &index.order {
        let node = &index.graph.node[position];
        let op = node.op_type();
        let quantises = matches!(op, "QuantizeLinear" | "DynamicQuantizeLinear" | "DequantizeLinear");
        let accumulates = matches!(op, "ConvInteger" | "MatMulInteger");
        let follows = node.input.iter().any(|name| barred.contains(name.as_str()));
        for name in node.output.iter().filter(|o| !o.is_empty()) {
            let dtype = typed(name);
            // Moves numbers whose scale an operator before has set
            // (Reshape, MaxPool), or scales an integer product.
            let small = matches!(dtype, Some(Some(DataType::I8 | DataType::U8 | DataType::I16 | DataType::U16)));
            let passes = follows && !op.starts_with("QLinear") && (small || op == "Cast");
            if quantises || accumulates || passes || dtype == Some(None) {
                barred.insert(name);
            }
        }
    }
    barred
}

/// The cuts worth profiling, at most `max`: those that send fewer bytes than
/// every cut before them (a later cut with more bytes costs more on the slow
/// tier and on the link), then others spread evenly over the work, for
/// tiers that differ in memory, operators or throughput.
#[must_use]
pub fn candidates(model: &Model, types: &Types, cuts: &[Cut], max: usize) -> Vec<Cut> {
    candidates_with(model, types, cuts, max, &BTreeSet::new())
}

/// [`candidates`], the cuts at these positions of the list among them.
pub(crate) fn candidates_with(
    model: &Model,
    types: &Types,
    cuts: &[Cut],
    max: usize,
    keep: &BTreeSet<usize>,
) -> Vec<Cut> {
    if cuts.len() <= max {
        return cuts.to_vec();
    }
    let size = |c: &Cut| c.bytes.unwrap_or(u64::MAX);
    let mut chosen: BTreeSet<usize> = keep.clone();
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
        let pairs = list.windows(2).filter(|w| !keep.contains(&w[0]));
        let drop = pairs.min_by_key(|w| size(&cuts[w[0]]).abs_diff(size(&cuts[w[1]]))).map(|w| w[0]);
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
            chosen
                .iter()
                .map(|&c| (at(c) - at(i)).abs())
                .fold(f64::INFINITY, f64::min)
                .min(at(i))
                .min(work[order.len()] - at(i))
        };
        let Some(next) = (0..cuts.len()).filter(|i| !chosen.contains(i)).max_by(|&a, &b| gap(a).total_cmp(&gap(b)))
        else {
            break;
        };
        chosen.insert(next);
    }
    chosen.into_iter().map(|i| cuts[i].clone()).collect()
}
