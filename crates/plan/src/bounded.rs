//! Placement under limits: memory of a tier, a deadline while energy is
//! minimised. NP-hard already for two tiers (it contains the knapsack), so
//! bound and search, and say how far from the optimum the answer may be.
//!
//! Bound: each limit gets a price per unit; what a placement uses is added to
//! its cost at that price, and what the limit allows is taken off again. Any
//! prices give a lower bound (Lagrange), one more minimum cut computes it
//! exactly, and subgradient steps (Held and Karp, 1971) raise it. Search:
//! where the bound stays below the best placement seen, one node's tiers are
//! split and each part is bounded again, lowest bound first. Start at `solve`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::dense::{Dense, length};
use crate::flow::{MinCut, NEVER};
use crate::local::{Local, Touching};
use crate::problem::{Infeasible, Limit, Problem, SolveError};

/// Minimum cuts computed at most, for the smallest problems.
pub const CUTS_MAX: usize = 60_000;

/// Minimum cuts computed at least, however large the problem.
pub const CUTS_MIN: usize = 24;

/// Vertices that all cuts together may have: half a second to, on hard
/// networks, a few.
const VERTICES_MAX: usize = 1_000_000;

/// Steps that raise the bound of the whole problem.
const STEPS_ROOT: usize = 40;

/// Steps that raise the bound of a part; its parent's prices are a good start.
const STEPS_PART: usize = 4;

/// Penalised costs add up to less than this.
const SUM_MAX: f64 = (1u64 << 59) as f64;

/// Prices may make what is used so many times dearer than all costs together.
const PRICE_MAX: f64 = 1024.0;

/// Sweeps of the local search over all nodes.
const SWEEPS_MAX: usize = 8;

/// What limits count, flat like [`Dense`].
pub(crate) struct Use {
    pub node: Vec<u64>,
    pub up: Vec<u64>,
    pub down: Vec<u64>,
    pub max: u64,
    /// Sum of everything.
    all: u64,
}

impl Use {
    fn new(limit: &Limit, dense: &Dense) -> Result<Self, SolveError> {
        let flat =
            |field: &'static str, table: &[Vec<u64>], rows: usize, columns: usize| -> Result<Vec<u64>, SolveError> {
                let owner = || format!("limit `{}`", limit.name);
                if table.is_empty() {
                    return Ok(vec![0; rows * columns]);
                }
                length(owner, field, table.len(), rows)?;
                for row in table {
                    length(owner, field, row.len(), columns)?;
                }
                Ok(table.concat())
            };
        let tensors = dense.producers.len();
        let (node, up, down) = (
            flat("node_use", &limit.node_use, dense.len, dense.tiers)?,
            flat("up_use", &limit.up_use, tensors, dense.levels)?,
            flat("down_use", &limit.down_use, tensors, dense.levels)?,
        );
        let all = node.iter().chain(&up).chain(&down).fold(0u64, |sum, amount| sum.saturating_add(*amount));
        if all >= NEVER { Err(SolveError::Overflow) } else { Ok(Self { node, up, down, max: limit.max, all }) }
    }
}

/// A part of the placements: the tiers that each node may have.
#[derive(Clone)]
struct Part {
    bound: u64,
    /// Lowest and highest tier per node.
    range: Vec<(u8, u8)>,
    /// Price per unit of each limit.
    prices: Vec<f64>,
    /// The node whose tiers are split next, and the tier to split at.
    split: Option<(usize, usize)>,
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.bound == other.bound
    }
}
impl Eq for Part {}
impl PartialOrd for Part {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Part {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bound.cmp(&other.bound)
    }
}

struct Search<'a> {
    dense: &'a Dense,
    uses: Vec<Use>,
    touching: Touching,
    penalised: Dense,
    scratch: MinCut,
    cuts: usize,
    /// More than any placement costs.
    worst: u64,
    best: Option<(u64, Vec<usize>)>,
}

/// The best placement found, its cost, and what none can be below.
///
/// # Errors
/// When a limit is malformed, nothing satisfies the limits, or the search
/// ended without knowing.
pub(crate) fn solve(problem: &Problem, dense: &Dense) -> Result<(Vec<usize>, u64, u64), SolveError> {
    let uses = problem.limits.iter().map(|limit| Use::new(limit, dense)).collect::<Result<Vec<_>, _>>()?;
    let finite = dense.cost.iter().chain(&dense.up).chain(&dense.down).filter(|c| **c != NEVER);
    let worst = finite.sum::<u64>() + 1;
    let mut search = Search {
        dense,
        uses,
        touching: Touching::new(dense),
        penalised: dense.clone(),
        scratch: MinCut::new(),
        cuts: 0,
        worst,
        best: None,
    };
    let everything = vec![(0u8, dense.levels as u8); dense.len];
    dense.check_possible(problem)?;
    search.check_each(problem, &everything)?;
    search.check_together(problem, &everything)?;
    let budget = (VERTICES_MAX / (dense.len * dense.levels).max(1)).clamp(CUTS_MIN, CUTS_MAX);
    let prices = vec![0.0; search.uses.len()];
    let root = Part { bound: 0, range: everything, prices, split: None };
    let mut open = BinaryHeap::new();
    open.extend(search.bound(root, STEPS_ROOT.min(budget)).map(Reverse));
    let mut lowest = search.worst;
    while let Some(Reverse(part)) = open.pop() {
        let ceiling = search.best.as_ref().map_or(search.worst, |b| b.0);
        if part.bound >= ceiling {
            break;
        }
        let Some((node, tier)) = part.split.filter(|_| search.cuts < budget) else {
            lowest = part.bound;
            break;
        };
        let (low, high) = part.range[node];
        let tier = tier as u8;
        let parts = [(low, tier.wrapping_sub(1)), (tier, tier), (tier + 1, high)];
        for (i, range) in parts.into_iter().enumerate() {
            let there = match i {
                0 => low < tier,
                1 => true,
                _ => tier < high,
            };
            if there {
                let mut child = part.clone();
                child.range[node] = range;
                open.extend(search.bound(child, STEPS_PART).map(Reverse));
            }
        }
    }
    let names = || problem.limits.iter().map(|l| l.name.clone()).collect();
    match search.best {
        Some((cost, tiers)) => Ok((tiers, cost, lowest.min(cost))),
        None if lowest == search.worst => Err(Infeasible::Limits(names()).into()),
        None => Err(SolveError::Undecided { tried: search.cuts }),
    }
}

impl Search<'_> {
    /// The least that each limit can be used to, and first placements.
    fn check_each(&mut self, problem: &Problem, range: &[(u8, u8)]) -> Result<(), SolveError> {
        for r in 0..self.uses.len() {
            let mut prices = vec![0; self.uses.len()];
            prices[r] = 1;
            self.penalise(0, &prices, range);
            let Some((needed, tiers)) = self.cut() else { continue };
            let max = self.uses[r].max;
            if needed > max {
                return Err(Infeasible::Limit { name: problem.limits[r].name.clone(), needed, max }.into());
            }
            self.look_at(&tiers);
        }
        Ok(())
    }

    /// Whether prices exist at which every placement uses more than all limits
    /// allow together: then none keeps to all. Ends when one does.
    fn check_together(&mut self, problem: &Problem, range: &[(u8, u8)]) -> Result<(), SolveError> {
        let largest = self.uses.iter().map(|u| u.all).max().unwrap_or(0).max(1) as f64;
        // Equal prices first: memory moved from one tier to another is no gain.
        let mut prices = vec![1.0; self.uses.len()];
        for step in 1..=STEPS_ROOT {
            if self.best.is_some() {
                return Ok(());
            }
            let top = prices.iter().copied().fold(1e-9, f64::max);
            let unit = SUM_MAX / self.uses.len() as f64 / largest / top;
            let whole: Vec<u64> = prices.iter().map(|p| (p * unit.min(1e9)) as u64).collect();
            self.penalise(0, &whole, range);
            let Some((needed, tiers)) = self.cut() else { return Ok(()) };
            let allowed: i128 = whole.iter().zip(&self.uses).map(|(p, u)| i128::from(*p) * i128::from(u.max)).sum();
            if i128::from(needed) > allowed {
                return Err(Infeasible::Limits(problem.limits.iter().map(|l| l.name.clone()).collect()).into());
            }
            let used = self.look_at(&tiers);
            self.look_around(&tiers);
            for ((price, used), limit) in prices.iter_mut().zip(&used).zip(&self.uses) {
                let excess = (*used as f64 - limit.max as f64) / share(limit);
                *price = (*price * (1.0 + excess.clamp(-0.9, 3.0) / (step as f64).sqrt())).max(1e-6);
            }
        }
        Ok(())
    }

    /// Raises the bound of `part`, looking at the placements it meets; `None`
    /// when nothing in it can be better than what is known.
    fn bound(&mut self, mut part: Part, steps: usize) -> Option<Part> {
        let mut prices = part.prices.clone();
        let (mut agility, mut idle) = (1.5, 0);
        let mut kept: Option<Vec<usize>> = None;
        let mut broken: Option<Vec<usize>> = None;
        let mut best_bound = -1i128;
        for step in 0..steps {
            let (scale, whole) = self.whole_prices(&prices);
            self.penalise(scale, &whole, &part.range);
            let (value, tiers) = self.cut()?;
            let refund: i128 = whole.iter().zip(&self.uses).map(|(p, u)| i128::from(*p) * i128::from(u.max)).sum();
            // Costs are whole numbers, so the bound may be rounded up.
            let bound = (i128::from(value) - refund).div_euclid(i128::from(scale))
                + i128::from((i128::from(value) - refund).rem_euclid(i128::from(scale)) != 0);
            if bound > best_bound {
                best_bound = bound;
                part.prices.clone_from(&prices);
                idle = 0;
            } else {
                idle += 1;
            }
            let used = self.look_at(&tiers);
            let excess: Vec<f64> = used.iter().zip(&self.uses).map(|(u, limit)| *u as f64 - limit.max as f64).collect();
            let fits = excess.iter().all(|e| *e <= 0.0);
            if steps > STEPS_PART || step == 0 {
                self.look_around(&tiers);
            }
            *(if fits { &mut kept } else { &mut broken }) = Some(tiers);
            let ceiling = self.best.as_ref().map_or(self.worst, |b| b.0);
            if best_bound >= i128::from(ceiling) {
                return None;
            }
            if idle >= 4 {
                (agility, idle) = (agility * 0.5, 0);
                prices.clone_from(&part.prices);
            }
            // In shares of each limit, so that bytes and nanoseconds compare.
            let norm: f64 = excess.iter().zip(&self.uses).map(|(e, u)| (e / share(u)).powi(2)).sum();
            if norm == 0.0 || step + 1 == steps {
                break;
            }
            let length = agility * (ceiling as f64 - bound as f64).max(1.0) / norm;
            for ((price, e), u) in prices.iter_mut().zip(&excess).zip(&self.uses) {
                *price = (*price + length * e / share(u) / share(u)).max(0.0);
            }
        }
        part.bound = part.bound.max(u64::try_from(best_bound).unwrap_or(0));
        part.split = self.choose(&part.range, kept.as_deref(), broken.as_deref());
        // Without a split it is one placement, and that has been looked at.
        part.split.is_some().then_some(part)
    }

    /// The node to split: of those that the last placement within the limits
    /// and the last one beyond them put on different tiers, the one with most
    /// at stake; of all when they agree.
    fn choose(&self, range: &[(u8, u8)], kept: Option<&[usize]>, broken: Option<&[usize]>) -> Option<(usize, usize)> {
        let tiers = self.dense.tiers;
        let stake = |v: usize| -> f64 {
            let columns = range[v].0 as usize..range[v].1 as usize + 1;
            let spread = |row: &[u64]| {
                let finite = || row[columns.clone()].iter().filter(|c| **c != NEVER);
                finite().max().copied().unwrap_or(0) as f64 - finite().min().copied().unwrap_or(0) as f64
            };
            let row = v * tiers..(v + 1) * tiers;
            let used: f64 = self.uses.iter().map(|u| spread(&u.node[row.clone()]) / share(u)).sum();
            used + 1e-3 * spread(&self.dense.cost[row]) / self.worst as f64
        };
        let open = |v: &usize| range[*v].0 < range[*v].1;
        let differ = |v: &usize| kept.zip(broken).is_some_and(|(a, b)| a[*v] != b[*v]);
        let most = |nodes: &mut dyn Iterator<Item = usize>| nodes.max_by(|a, b| stake(*a).total_cmp(&stake(*b)));
        let node = most(&mut (0..self.dense.len).filter(open).filter(differ))
            .or_else(|| most(&mut (0..self.dense.len).filter(open)))?;
        let tier = broken.or(kept).map_or(range[node].0 as usize, |tiers| tiers[node]);
        Some((node, tier))
    }

    /// A common scale of the costs, and whole prices at that scale.
    fn whole_prices(&self, prices: &[f64]) -> (u64, Vec<u64>) {
        let parts = (prices.len() + 1) as f64;
        let scale = (SUM_MAX / parts / self.worst as f64 / PRICE_MAX).min((1u64 << 20) as f64).max(1.0);
        let whole = |(price, limit): (&f64, &Use)| {
            (price * scale).min(SUM_MAX / parts / (limit.all.max(1)) as f64).floor() as u64
        };
        (scale as u64, prices.iter().zip(&self.uses).map(whole).collect())
    }

    fn penalise(&mut self, scale: u64, prices: &[u64], range: &[(u8, u8)]) {
        let tiers = self.dense.tiers;
        mix(&mut self.penalised.cost, &self.dense.cost, scale, prices, self.uses.iter().map(|u| &u.node));
        mix(&mut self.penalised.up, &self.dense.up, scale, prices, self.uses.iter().map(|u| &u.up));
        mix(&mut self.penalised.down, &self.dense.down, scale, prices, self.uses.iter().map(|u| &u.down));
        for (v, (low, high)) in range.iter().enumerate() {
            for tier in (0..tiers).filter(|t| *t < *low as usize || *t > *high as usize) {
                self.penalised.cost[v * tiers + tier] = NEVER;
            }
        }
    }

    fn cut(&mut self) -> Option<(u64, Vec<usize>)> {
        self.cuts += 1;
        // A node whose range holds only tiers it can't run on has no place.
        let tiers = self.penalised.tiers;
        if self.penalised.cost.chunks(tiers).any(|costs| costs.iter().all(|c| *c == NEVER)) {
            return None;
        }
        self.penalised.place(&mut self.scratch)
    }

    /// What a placement uses of each limit; kept when it is the best so far.
    fn look_at(&mut self, tiers: &[usize]) -> Vec<u64> {
        let local = Local::new(self.dense, &self.uses, &self.touching, tiers);
        keep(&mut self.best, &local);
        local.used
    }

    /// Looks around a placement for a cheaper one within the limits.
    fn look_around(&mut self, tiers: &[usize]) {
        let mut local = Local::new(self.dense, &self.uses, &self.touching, tiers);
        local.repair();
        for _ in 0..SWEEPS_MAX {
            if !local.fits() || !local.sweep() {
                break;
            }
        }
        keep(&mut self.best, &local);
    }
}

fn keep(best: &mut Option<(u64, Vec<usize>)>, local: &Local) {
    if local.fits() && best.as_ref().is_none_or(|(cost, _)| local.cost < *cost) {
        *best = Some((local.cost, local.tiers.clone()));
    }
}

/// What a limit is measured in when limits are compared.
pub(crate) fn share(limit: &Use) -> f64 {
    (limit.max as f64).max(limit.all as f64 * 1e-3).max(1.0)
}

/// `scale` times the costs plus what is used, at its price; never stays never.
fn mix<'a>(out: &mut [u64], costs: &[u64], scale: u64, prices: &[u64], uses: impl Iterator<Item = &'a Vec<u64>>) {
    for (out, cost) in out.iter_mut().zip(costs) {
        *out = if *cost == NEVER { NEVER } else { cost * scale };
    }
    for (price, amounts) in prices.iter().zip(uses).filter(|(p, _)| **p > 0) {
        for (out, amount) in out.iter_mut().zip(amounts).filter(|(out, _)| **out != NEVER) {
            *out += price * amount;
        }
    }
}
