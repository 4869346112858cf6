//! The bare placement problem: nodes with a cost per tier, tensors with a
//! cost per boundary, tiers in a line, for anyone's numbers.
//!
//! Boundary `k` lies between tier `k` and tier `k + 1`. A tensor that goes
//! from tier `a` to tier `b` pays every boundary between, and pays each one
//! once per direction, however many consumers lie beyond. Without [`Limit`]s
//! one minimum cut solves it exactly; with them it is NP-hard, and the answer
//! says how far from the optimum it may be. Formulation and proof:
//! `docs/design/planning.md`. Start at [`solve`].

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::dense::Dense;
use crate::flow::{MinCut, NEVER, Network};

/// Tiers of a problem at most; no site has a longer line.
pub const TIERS_MAX: usize = 64;

/// A placement problem. Costs are whole nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// Number of tiers in the line; tier 0 is the lowest.
    pub tiers: usize,
    /// What is placed.
    pub nodes: Vec<Node>,
    /// What flows between nodes; must not run in circles.
    pub tensors: Vec<Tensor>,
    /// What placements may use at most, beyond their cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

/// A node to be placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawNode")]
pub struct Node {
    /// Its name, unlike any other's.
    pub name: String,
    /// Cost on each tier; `None` where it can't run.
    pub cost_ns: Vec<Option<u64>>,
}

/// A tensor from one node to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawTensor")]
pub struct Tensor {
    /// The node that makes it.
    pub producer: String,
    /// The nodes that use it.
    pub consumers: Vec<String>,
    /// Cost of crossing boundary `k` upwards.
    pub up_ns: Vec<u64>,
    /// Cost of crossing boundary `k` downwards; `None` where it never does.
    pub down_ns: Vec<Option<u64>>,
}

/// Something of which a placement may use only so much: the memory of one
/// tier, or time when the cost is energy. In any unit, but one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What is limited, for people.
    pub name: String,
    /// The most that may be used.
    pub max: u64,
    /// Per node in the problem's order and tier: what it uses there. Empty: nothing.
    #[serde(default)]
    pub node_use: Vec<Vec<u64>>,
    /// Per tensor and boundary: what crossing it upwards uses. Empty: nothing.
    #[serde(default)]
    pub up_use: Vec<Vec<u64>>,
    /// Per tensor and boundary: what crossing it downwards uses. Empty: nothing.
    #[serde(default)]
    pub down_use: Vec<Vec<u64>>,
}

impl Limit {
    /// The memory of one tier: nodes on it may need `max` bytes together.
    #[must_use]
    pub fn memory(tier: usize, tiers: usize, node_bytes: &[u64], max: u64) -> Self {
        let on = |bytes: &u64| (0..tiers).map(|t| if t == tier { *bytes } else { 0 }).collect();
        Self {
            name: format!("memory of tier {tier}"),
            max,
            node_use: node_bytes.iter().map(on).collect(),
            ..Self::default()
        }
    }
}

/// A placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Solution {
    /// Tier of every node. Without limits the one with the lowest tiers, of
    /// several cheapest placements.
    pub assignment: BTreeMap<String, usize>,
    /// What it costs, nanoseconds.
    pub objective_ns: u64,
    /// Whether no placement is cheaper.
    pub optimal: bool,
    /// How far above the optimum it may be, as a share of its cost.
    pub gap: f64,
}

/// Why a problem has no solution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// No tiers, or too many.
    #[error("`tiers` must be 1 to {TIERS_MAX}, not {0}")]
    Tiers(usize),
    /// Two nodes of one name.
    #[error("`nodes`: two are called `{0}`; names must differ")]
    Duplicate(String),
    /// A list of the wrong length.
    #[error("{owner} has {actual} values in `{field}`; {expected} are needed")]
    Length {
        /// Node, tensor or limit.
        owner: String,
        /// The list.
        field: &'static str,
        /// Values given.
        actual: usize,
        /// Values needed: one per tier, boundary, node or tensor.
        expected: usize,
    },
    /// A number that is no cost.
    #[error("{owner}: `{field}[{index}]` is {value}; it must be a whole number of nanoseconds, 0 or more{}", null_means(.field))]
    Cost {
        /// Node or tensor.
        owner: String,
        /// The list.
        field: &'static str,
        /// Position in it.
        index: usize,
        /// What stands there.
        value: String,
    },
    /// A tensor names a node that isn't there.
    #[error("tensor {tensor}: `{field}` names `{node}`, which is not among the nodes")]
    Unknown {
        /// Position of the tensor.
        tensor: usize,
        /// `producer` or `consumers`.
        field: &'static str,
        /// The name.
        node: String,
    },
    /// Nodes that wait for each other.
    #[error("`tensors` run in a circle: {}", circle(.0))]
    Cycle(Vec<String>),
    /// The sum of all costs is out of range.
    #[error("the costs add up to more than {max} ns; scale them down", max = NEVER)]
    Overflow,
    /// The problem is well formed, but no placement satisfies it.
    #[error("no placement is possible: {0}")]
    Infeasible(Infeasible),
    /// The search ended before it found a placement or proved that there is none.
    #[error("no placement that keeps to all limits was found in {tried} tries, nor proved impossible; raise a limit")]
    Undecided {
        /// Minimum cuts computed.
        tried: usize,
    },
}

impl SolveError {
    /// Whether the problem is well formed but has no solution.
    #[must_use]
    pub fn is_infeasible(&self) -> bool {
        matches!(self, Self::Infeasible(_))
    }
}

/// Why no placement satisfies a problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Infeasible {
    /// A node that can run nowhere.
    #[error("node `{0}` can run on no tier, as every value in its `cost_ns` is null")]
    Nowhere(String),
    /// Nodes that can't be where the others force them.
    #[error("{}", reason(.0))]
    Contradiction(Vec<Forced>),
    /// No placement keeps to a limit.
    #[error("limit `{name}` allows {max}, but at least {needed} is used")]
    Limit {
        /// The limit.
        name: String,
        /// The least that any placement uses.
        needed: u64,
        /// What there is.
        max: u64,
    },
    /// Each limit can be kept to, but no placement keeps to all.
    #[error("these limits can't all be kept to at once: {}", .0.join(", "))]
    Limits(Vec<String>),
}

impl From<Infeasible> for SolveError {
    fn from(why: Infeasible) -> Self {
        Self::Infeasible(why)
    }
}

/// A link of a chain of compulsion: each follows from the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// The node.
    pub node: String,
    /// It must run on this tier or higher, ...
    pub lowest: usize,
    /// ... because what this node makes never goes back down to it; `None`:
    /// because it can't run lower.
    pub by: Option<String>,
}

fn null_means(field: &str) -> &'static str {
    match field {
        "cost_ns" => ", or null where the node cannot run",
        "down_ns" => ", or null where the tensor never goes back",
        _ => "",
    }
}

/// Names shown of a long list: as many at its start as at its end.
const SHOWN: usize = 4;

/// A list with its middle left out when it is long.
fn shortened(mut list: Vec<String>) -> Vec<String> {
    if list.len() > 2 * SHOWN + 1 {
        let left_out = list.len() - 2 * SHOWN;
        list.splice(SHOWN..SHOWN + left_out, [format!("({left_out} more)")]);
    }
    list
}

fn circle(nodes: &[String]) -> String {
    let mut names: Vec<String> = nodes.iter().map(|n| format!("`{n}`")).collect();
    names.extend(names.first().cloned());
    shortened(names).join(" -> ")
}

fn reason(chain: &[Forced]) -> String {
    let link = |f: &Forced| match &f.by {
        None => format!("`{}` can run on no tier below {}", f.node, f.lowest),
        Some(by) => format!("what `{by}` makes never goes back down from tier {} to `{}`", f.lowest, f.node),
    };
    let mut text: Vec<String> = chain.iter().map(link).collect();
    if let Some(last) = chain.last() {
        text.push(format!("`{}` can run on no tier from {} up", last.node, last.lowest));
    }
    shortened(text).join("; ")
}

/// Finds the cheapest placement; with [`Limit`]s, the cheapest within the
/// effort that [`bounded::CUTS_MAX`] allows.
///
/// # Errors
/// When the problem is malformed, or nothing satisfies it
/// ([`SolveError::is_infeasible`]).
pub fn solve(problem: &Problem) -> Result<Solution, SolveError> {
    let dense = Dense::new(problem)?;
    let (tiers, objective_ns, bound) = if problem.limits.is_empty() {
        dense.check_possible(problem)?;
        let impossible = || Infeasible::Contradiction(Vec::new());
        let (cost, tiers) = dense.place(&mut MinCut::new()).ok_or_else(impossible)?;
        (tiers, cost, cost)
    } else {
        bounded::solve(problem, &dense)?
    };
    let assignment = problem.nodes.iter().zip(tiers).map(|(node, tier)| (node.name.clone(), tier)).collect();
    let gap = if objective_ns > bound { (objective_ns - bound) as f64 / objective_ns as f64 } else { 0.0 };
    Ok(Solution { assignment, objective_ns, optimal: objective_ns == bound, gap })
}

/// The flow network whose minimum cuts are the cheapest placements, for
/// other solvers. Its minimum cut costs what [`solve`] finds without limits.
///
/// # Errors
/// When the problem is malformed.
pub fn network(problem: &Problem) -> Result<Network, SolveError> {
    let mut network = Network::new();
    Dense::new(problem)?.write(&mut network, false);
    Ok(network)
}

/// What a placement costs, tier per node in the problem's order; `None` when
/// it is not allowed. The definition that [`solve`] minimises.
#[must_use]
pub fn cost_of(problem: &Problem, tiers: &[usize]) -> Option<u64> {
    let mut total = 0u64;
    for (node, &tier) in problem.nodes.iter().zip(tiers) {
        total = total.checked_add((*node.cost_ns.get(tier)?)?)?;
    }
    let mut used = vec![0u64; problem.limits.len()];
    let using = |table: &[Vec<u64>], row: usize, column: usize| table.get(row).map_or(0, |r| r[column]);
    for (v, &tier) in tiers.iter().enumerate() {
        for (used, limit) in used.iter_mut().zip(&problem.limits) {
            *used = used.checked_add(using(&limit.node_use, v, tier))?;
        }
    }
    let place: HashMap<&str, usize> =
        problem.nodes.iter().map(|n| n.name.as_str()).zip(tiers.iter().copied()).collect();
    for (i, tensor) in problem.tensors.iter().enumerate() {
        let from = *place.get(tensor.producer.as_str())?;
        let to = tensor.consumers.iter().map(|c| place.get(c.as_str()).copied()).collect::<Option<Vec<usize>>>()?;
        for k in 0..problem.tiers - 1 {
            let up = from <= k && to.iter().any(|&t| t > k);
            let down = from > k && to.iter().any(|&t| t <= k);
            if up {
                total = total.checked_add(tensor.up_ns[k])?;
            }
            if down {
                total = total.checked_add(tensor.down_ns[k]?)?;
            }
            for (used, limit) in used.iter_mut().zip(&problem.limits) {
                let more = if up { using(&limit.up_use, i, k) } else { 0 };
                let less = if down { using(&limit.down_use, i, k) } else { 0 };
                *used = used.checked_add(more)?.checked_add(less)?;
            }
        }
    }
    used.iter().zip(&problem.limits).all(|(used, limit)| *used <= limit.max).then_some(total)
}

/// What stands where a cost should.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Whole(u64),
    Signed(i64),
    Real(f64),
    Flag(bool),
    Text(String),
    Null(()),
}

impl Value {
    /// `3` and `3.0`, and `None` for null; else how it was written.
    fn cost(self) -> Result<Option<u64>, String> {
        match self {
            Self::Whole(ns) => Ok(Some(ns)),
            Self::Null(()) => Ok(None),
            // Up to 2^53 every whole number has its own f64.
            Self::Real(ns) if ns.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&ns) => Ok(Some(ns as u64)),
            Self::Real(ns) => Err(ns.to_string()),
            Self::Signed(ns) => Err(ns.to_string()),
            Self::Flag(flag) => Err(flag.to_string()),
            Self::Text(text) => Err(format!("\"{text}\"")),
        }
    }
}

fn costs(owner: &str, field: &'static str, values: Vec<Value>) -> Result<Vec<Option<u64>>, SolveError> {
    let cost = |(index, value): (usize, Value)| {
        value.cost().map_err(|value| SolveError::Cost { owner: owner.to_owned(), field, index, value })
    };
    values.into_iter().enumerate().map(cost).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    name: String,
    cost_ns: Vec<Value>,
}

impl TryFrom<RawNode> for Node {
    type Error = SolveError;
    fn try_from(raw: RawNode) -> Result<Self, SolveError> {
        let cost_ns = costs(&format!("node `{}`", raw.name), "cost_ns", raw.cost_ns)?;
        Ok(Self { name: raw.name, cost_ns })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    producer: String,
    consumers: Vec<String>,
    up_ns: Vec<Value>,
    down_ns: Vec<Value>,
}

impl TryFrom<RawTensor> for Tensor {
    type Error = SolveError;
    fn try_from(raw: RawTensor) -> Result<Self, SolveError> {
        let owner = format!("tensor of `{}`", raw.producer);
        let up = |(index, ns): (usize, Option<u64>)| {
            let value = "null".to_owned();
            ns.ok_or_else(|| SolveError::Cost { owner: owner.clone(), field: "up_ns", index, value })
        };
        let up_ns = costs(&owner, "up_ns", raw.up_ns)?.into_iter().enumerate().map(up).collect::<Result<_, _>>()?;
        let down_ns = costs(&owner, "down_ns", raw.down_ns)?;
        Ok(Self { producer: raw.producer, consumers: raw.consumers, up_ns, down_ns })
    }
}
