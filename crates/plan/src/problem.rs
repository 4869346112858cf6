//! The bare placement problem: nodes with a cost per tier, tensors with a
//! cost per boundary, tiers in a line. Solved exactly by one minimum cut.
//!
//! The formulation is in `docs/design/planning.md`: one vertex per node and
//! boundary, on the source's side iff the node runs above that boundary.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::flow::{INFINITE, Network, minimum_cut};

/// Tiers of a problem: a line of more is no site.
pub const TIERS_MAX: usize = 16;

/// A placement problem; costs are whole nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// Number of tiers in the line, 0 the lowest.
    pub tiers: usize,
    /// What is placed.
    pub nodes: Vec<Node>,
    /// What flows between nodes.
    pub tensors: Vec<Tensor>,
}

/// A node to be placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Cost per tier; `None` where it can't run.
    pub cost_ns: Vec<Option<u64>>,
}

/// A tensor, sent once over each boundary between its producer and its
/// farthest consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Node that makes it.
    pub producer: String,
    /// Nodes that use it.
    pub consumers: Vec<String>,
    /// Cost upwards over boundary `k` (between tier `k` and `k + 1`).
    pub up_ns: Vec<u64>,
    /// Cost downwards; `None` where it never goes back.
    pub down_ns: Vec<Option<u64>>,
}

/// A placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Solution {
    /// Tier of every node.
    pub assignment: BTreeMap<String, usize>,
    /// Its cost.
    pub objective_ns: u64,
    /// Whether no placement is cheaper.
    pub optimal: bool,
    /// How far from the optimum it may be, as a share.
    pub gap: f64,
    /// Time it took; filled by the caller, who has a clock.
    pub solve_us: u64,
}

/// Why a problem has no solution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// No tiers, or too many.
    #[error("a problem has 1 to {TIERS_MAX} tiers, not {0}")]
    Tiers(usize),
    /// Two nodes of one name.
    #[error("two nodes are called `{0}`")]
    Duplicate(String),
    /// A list of the wrong length.
    #[error("{owner}: {field} has {actual} values; {expected} are needed")]
    Length {
        /// Node or tensor.
        owner: String,
        /// Which list.
        field: &'static str,
        /// Values given.
        actual: usize,
        /// Values needed.
        expected: usize,
    },
    /// A tensor names a node that isn't there.
    #[error("tensor {tensor} names node `{node}`, which the problem does not have")]
    Unknown {
        /// Position of the tensor.
        tensor: usize,
        /// The name.
        node: String,
    },
    /// Costs whose sum exceeds 62 bits.
    #[error("the costs add up to more than {max} ns; give them in larger units", max = INFINITE)]
    Overflow,
    /// A node that no tier can run.
    #[error("node `{0}` can run on no tier: every cost is null")]
    Nowhere(String),
    /// Nodes whose tiers contradict each other.
    #[error("no placement satisfies the limits: {0}")]
    Infeasible(String),
}

impl SolveError {
    /// Whether the problem is well-formed but has no solution.
    #[must_use]
    pub fn is_infeasible(&self) -> bool {
        matches!(self, Self::Nowhere(_) | Self::Infeasible(_))
    }
}

/// Finds a cheapest placement.
///
/// # Errors
/// [`SolveError`].
pub fn solve(problem: &Problem) -> Result<Solution, SolveError> {
    let network = network(problem)?;
    let cut = minimum_cut(&network);
    if cut.value >= INFINITE {
        return Err(SolveError::Infeasible(contradiction(problem)));
    }
    let levels = problem.tiers - 1;
    let assignment = problem
        .nodes
        .iter()
        .enumerate()
        .map(|(v, node)| {
            let tier = (0..levels).filter(|k| cut.source_side[2 + v * levels + k]).count();
            (node.name.clone(), tier)
        })
        .collect();
    Ok(Solution { assignment, objective_ns: cut.value, optimal: true, gap: 0.0, solve_us: 0 })
}

/// The flow network whose minimum cuts are the cheapest placements. Vertices
/// 0 and 1 are source and sink, then `tiers - 1` per node.
///
/// # Errors
/// As [`solve`], for problems that aren't well-formed.
pub fn network(problem: &Problem) -> Result<Network, SolveError> {
    let index = check(problem)?;
    let levels = problem.tiers - 1;
    let mut net = Network { vertices: 2 + problem.nodes.len() * levels, arcs: Vec::new(), source: 0, sink: 1 };
    let vertex = |v: usize, k: usize| (2 + v * levels + k) as u32;
    for (v, node) in problem.nodes.iter().enumerate() {
        // s -> (v,1) -> ... -> (v,K-1) -> t; cutting the arc that leaves
        // level k puts v on tier k.
        for tier in 0..=levels {
            let tail = if tier == 0 { net.source } else { vertex(v, tier - 1) };
            let head = if tier == levels { net.sink } else { vertex(v, tier) };
            net.arc(tail, head, node.cost_ns[tier].unwrap_or(INFINITE));
            if tier > 0 && tier < levels {
                net.arc(head, tail, INFINITE);
            }
        }
    }
    for tensor in &problem.tensors {
        let u = index[tensor.producer.as_str()];
        let consumers: Vec<usize> = tensor.consumers.iter().map(|c| index[c.as_str()]).filter(|&w| w != u).collect();
        if consumers.is_empty() {
            continue;
        }
        for k in 0..levels {
            // Paid once if any consumer lies above while the producer is below.
            if tensor.up_ns[k] > 0 {
                let hub = if let [w] = consumers[..] { vertex(w, k) } else { net.vertex() };
                if consumers.len() > 1 {
                    consumers.iter().for_each(|&w| net.arc(vertex(w, k), hub, INFINITE));
                }
                net.arc(hub, vertex(u, k), tensor.up_ns[k]);
            }
            // And the other way round.
            match tensor.down_ns[k] {
                None => consumers.iter().for_each(|&w| net.arc(vertex(u, k), vertex(w, k), INFINITE)),
                Some(0) => {}
                Some(cost) => {
                    let hub = if let [w] = consumers[..] { vertex(w, k) } else { net.vertex() };
                    net.arc(vertex(u, k), hub, cost);
                    if consumers.len() > 1 {
                        consumers.iter().for_each(|&w| net.arc(hub, vertex(w, k), INFINITE));
                    }
                }
            }
        }
    }
    Ok(net)
}

fn check(problem: &Problem) -> Result<HashMap<&str, usize>, SolveError> {
    let tiers = problem.tiers;
    if !(1..=TIERS_MAX).contains(&tiers) {
        return Err(SolveError::Tiers(tiers));
    }
    let length = |owner: String, field: &'static str, actual: usize, expected: usize| {
        if actual == expected { Ok(()) } else { Err(SolveError::Length { owner, field, actual, expected }) }
    };
    let mut index = HashMap::new();
    let mut sum = 0u64;
    for (i, node) in problem.nodes.iter().enumerate() {
        length(format!("node `{}`", node.name), "cost_ns", node.cost_ns.len(), tiers)?;
        if index.insert(node.name.as_str(), i).is_some() {
            return Err(SolveError::Duplicate(node.name.clone()));
        }
        let dearest = node.cost_ns.iter().flatten().max().ok_or_else(|| SolveError::Nowhere(node.name.clone()))?;
        sum = sum.saturating_add(*dearest);
    }
    for (i, tensor) in problem.tensors.iter().enumerate() {
        length(format!("tensor {i}"), "up_ns", tensor.up_ns.len(), tiers - 1)?;
        length(format!("tensor {i}"), "down_ns", tensor.down_ns.len(), tiers - 1)?;
        if let Some(node) = std::iter::once(&tensor.producer).chain(&tensor.consumers).find(|n| !index.contains_key(n.as_str())) {
            return Err(SolveError::Unknown { tensor: i, node: node.clone() });
        }
        let costs = tensor.up_ns.iter().copied().chain(tensor.down_ns.iter().flatten().copied());
        sum = costs.fold(sum, u64::saturating_add);
    }
    if sum >= INFINITE { Err(SolveError::Overflow) } else { Ok(index) }
}

/// Names a contradiction: a consumer that must lie below its producer over a
/// boundary that nothing crosses downwards.
fn contradiction(problem: &Problem) -> String {
    // The lowest tier each node can have, pushed up along one-way tensors.
    let mut low: HashMap<&str, (usize, String)> = HashMap::new();
    for node in &problem.nodes {
        let lowest = node.cost_ns.iter().position(Option::is_some).unwrap_or(0);
        low.insert(&node.name, (lowest, format!("`{}` runs on no tier below {lowest}", node.name)));
    }
    for _ in 0..problem.nodes.len().min(1_000) {
        let mut moved = false;
        for tensor in &problem.tensors {
            let (from, why) = low[tensor.producer.as_str()].clone();
            for consumer in &tensor.consumers {
                let Some((at, _)) = low.get(consumer.as_str()).cloned() else { continue };
                if at < from && (at..from).all(|k| tensor.down_ns[k].is_none()) {
                    low.insert(consumer, (from, format!("{why}, and its tensor never goes back down to `{consumer}`")));
                    moved = true;
                }
            }
        }
        if !moved {
            break;
        }
    }
    for node in &problem.nodes {
        let (at, why) = &low[node.name.as_str()];
        if !node.cost_ns[*at..].iter().any(Option::is_some) {
            return format!("{why}, which runs on no tier from {at} up");
        }
    }
    "the tiers that nodes can run on contradict the directions their tensors can take".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Cost of an assignment, straight from the definition.
    fn cost(problem: &Problem, tiers: &[usize]) -> Option<u64> {
        let index: HashMap<&str, usize> = problem.nodes.iter().enumerate().map(|(i, n)| (n.name.as_str(), i)).collect();
        let mut sum = 0;
        for (node, &tier) in problem.nodes.iter().zip(tiers) {
            sum += node.cost_ns[tier]?;
        }
        for tensor in &problem.tensors {
            let from = tiers[index[tensor.producer.as_str()]];
            let to: Vec<usize> = tensor.consumers.iter().map(|c| tiers[index[c.as_str()]]).collect();
            for k in 0..problem.tiers - 1 {
                if from <= k && to.iter().any(|&t| t > k) {
                    sum += tensor.up_ns[k];
                }
                if from > k && to.iter().any(|&t| t <= k) {
                    sum += tensor.down_ns[k]?;
                }
            }
        }
        Some(sum)
    }

    fn brute_force(problem: &Problem) -> Option<u64> {
        let n = problem.nodes.len();
        let all = problem.tiers.pow(n as u32);
        (0..all)
            .filter_map(|mut code| {
                let tiers: Vec<usize> = (0..n)
                    .map(|_| {
                        let tier = code % problem.tiers;
                        code /= problem.tiers;
                        tier
                    })
                    .collect();
                cost(problem, &tiers)
            })
            .min()
    }

    fn problems() -> impl Strategy<Value = Problem> {
        (1usize..=4, 1usize..=6).prop_flat_map(|(tiers, n)| {
            let cost = prop_oneof![4 => (0u64..50).prop_map(Some), 1 => Just(None)];
            let nodes = prop::collection::vec(prop::collection::vec(cost.clone(), tiers), n);
            let tensor = (0..n, prop::collection::vec(0..n, 1..4), prop::collection::vec(0u64..30, tiers - 1), prop::collection::vec(cost, tiers - 1));
            (Just(tiers), nodes, prop::collection::vec(tensor, 0..8)).prop_map(|(tiers, nodes, tensors)| Problem {
                tiers,
                nodes: nodes.into_iter().enumerate().map(|(i, cost_ns)| Node { name: format!("n{i}"), cost_ns }).collect(),
                tensors: tensors
                    .into_iter()
                    .map(|(p, c, up_ns, down_ns)| Tensor {
                        producer: format!("n{p}"),
                        consumers: c.into_iter().map(|c| format!("n{c}")).collect(),
                        up_ns,
                        down_ns,
                    })
                    .collect(),
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        #[test]
        fn the_cut_is_the_cheapest_placement(problem in problems()) {
            match (solve(&problem), brute_force(&problem)) {
                (Ok(solution), Some(best)) => {
                    prop_assert_eq!(solution.objective_ns, best);
                    let tiers: Vec<usize> = problem.nodes.iter().map(|n| solution.assignment[&n.name]).collect();
                    prop_assert_eq!(cost(&problem, &tiers), Some(best));
                }
                (Err(e), None) => prop_assert!(e.is_infeasible(), "{}", e),
                (solved, best) => prop_assert!(false, "{:?} against {:?}", solved, best),
            }
        }
    }
}
