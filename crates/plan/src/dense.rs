//! A checked problem with numbers for names, in flat arrays; and the flow
//! network it becomes.
//!
//! Everything [`crate::problem::solve`] needs but the search for limits, which
//! is in [`crate::bounded`]. Start at [`Dense::place`].

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::flow::{Build, MinCut, NEVER};
use crate::problem::{Forced, Infeasible, Problem, SolveError, TIERS_MAX};

/// A checked problem.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// Tiers, and one less: the boundaries between them.
    pub tiers: usize,
    pub levels: usize,
    /// Nodes.
    pub len: usize,
    /// Cost per node and tier; [`NEVER`] where it can't run.
    pub cost: Vec<u64>,
    /// Producer of each tensor.
    pub producers: Vec<u32>,
    /// Consumers of all tensors, without the producer and repetitions.
    pub consumers: Vec<u32>,
    /// Where each tensor's consumers begin; one more than the tensors.
    pub first: Vec<u32>,
    /// Cost per tensor and boundary; downwards [`NEVER`] where it doesn't go.
    pub up: Vec<u64>,
    pub down: Vec<u64>,
}

/// A multiplicative hash, eight bytes at a time, in the manner of FNV (Fowler,
/// Noll, Vo, 1991). With the standard hasher, checking a thousand nodes took
/// 0.18 ms rather than 0.12; whoever floods this one with colliding names
/// slows down nobody but himself.
struct NameHasher(u64);

impl Default for NameHasher {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        // The map takes its bits from the top and the bottom.
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        }
    }
}

impl Dense {
    pub(crate) fn new(problem: &Problem) -> Result<Self, SolveError> {
        let tiers = problem.tiers;
        if !(1..=TIERS_MAX).contains(&tiers) {
            return Err(SolveError::Tiers(tiers));
        }
        let (levels, n, tensors) = (tiers - 1, problem.nodes.len(), problem.tensors.len());
        let mut index: HashMap<&str, u32, BuildHasherDefault<NameHasher>> =
            HashMap::with_capacity_and_hasher(n, BuildHasherDefault::default());
        let uses: usize = problem.tensors.iter().map(|t| t.consumers.len()).sum();
        let mut dense = Self {
            tiers,
            levels,
            len: n,
            cost: Vec::with_capacity(n * tiers),
            producers: Vec::with_capacity(tensors),
            consumers: Vec::with_capacity(uses),
            first: Vec::with_capacity(tensors + 1),
            up: Vec::with_capacity(tensors * levels),
            down: Vec::with_capacity(tensors * levels),
        };
        for (i, node) in problem.nodes.iter().enumerate() {
            length(|| format!("node `{}`", node.name), "cost_ns", node.cost_ns.len(), tiers)?;
            if index.insert(node.name.as_str(), i as u32).is_some() {
                return Err(SolveError::Duplicate(node.name.clone()));
            }
            dense.cost.extend(node.cost_ns.iter().map(|cost| cost.unwrap_or(NEVER)));
        }
        dense.first.push(0);
        for (i, tensor) in problem.tensors.iter().enumerate() {
            length(|| format!("tensor {i}"), "up_ns", tensor.up_ns.len(), levels)?;
            length(|| format!("tensor {i}"), "down_ns", tensor.down_ns.len(), levels)?;
            let node = |field: &'static str, name: &String| {
                let unknown = || SolveError::Unknown { tensor: i, field, node: name.clone() };
                index.get(name.as_str()).copied().ok_or_else(unknown)
            };
            let producer = node("producer", &tensor.producer)?;
            let start = dense.consumers.len();
            for name in &tensor.consumers {
                let consumer = node("consumers", name)?;
                if consumer == producer {
                    return Err(SolveError::Cycle(vec![name.clone()]));
                }
                dense.consumers.push(consumer);
            }
            if dense.consumers.len() - start > 1 {
                sort_and_deduplicate(&mut dense.consumers, start);
            }
            dense.producers.push(producer);
            dense.first.push(dense.consumers.len() as u32);
            dense.up.extend_from_slice(&tensor.up_ns);
            dense.down.extend(tensor.down_ns.iter().map(|cost| cost.unwrap_or(NEVER)));
        }
        let finite = dense.cost.iter().chain(&dense.down).filter(|c| **c != NEVER).chain(&dense.up);
        if finite.fold(0u64, |sum, cost| sum.saturating_add(*cost)) >= NEVER {
            return Err(SolveError::Overflow);
        }
        // An explicit cost of NEVER looks like null only when the sum is out of range.
        if problem.nodes.iter().flat_map(|n| n.cost_ns.iter().flatten()).any(|c| *c >= NEVER)
            || problem.tensors.iter().flat_map(|t| t.down_ns.iter().flatten()).any(|c| *c >= NEVER)
        {
            return Err(SolveError::Overflow);
        }
        dense.check_circles(problem)?;
        if let Some(v) = dense.cost.chunks(tiers).position(|costs| costs.iter().all(|c| *c == NEVER)) {
            return Err(Infeasible::Nowhere(problem.nodes[v].name.clone()).into());
        }
        Ok(dense)
    }

    pub(crate) fn consumers_of(&self, tensor: usize) -> &[u32] {
        &self.consumers[self.first[tensor] as usize..self.first[tensor + 1] as usize]
    }

    /// The cost and the tiers of the cheapest placement; `None` when there is none.
    pub(crate) fn place(&self, scratch: &mut MinCut) -> Option<(u64, Vec<usize>)> {
        scratch.clear();
        let base = self.write(scratch, true);
        let value = scratch.solve();
        let tier = |v: usize| (0..self.levels).filter(|k| scratch.on_source_side(self.vertex(v, *k) - 2)).count();
        (value < NEVER).then(|| (base + value, (0..self.len).map(tier).collect()))
    }

    /// Vertex of "node `v` runs above boundary `k`".
    fn vertex(&self, v: usize, k: usize) -> u32 {
        (2 + v * self.levels + k) as u32
    }

    /// Writes the network. `reduced`: vertices 0 and 1, the terminals, are
    /// left out, and each node's least cost is returned instead of written.
    pub(crate) fn write(&self, out: &mut impl Build, reduced: bool) -> u64 {
        let levels = self.levels;
        let offset = if reduced { 2 } else { 0 };
        let vertex = |v: u32, k: usize| self.vertex(v as usize, k) - offset;
        for _ in 0..self.len * levels {
            out.vertex();
        }
        let mut base = 0;
        for (v, costs) in self.cost.chunks(self.tiers).enumerate() {
            // Exactly one of a node's costs is paid, so what they share may be
            // paid beforehand.
            let least = if reduced || levels == 0 { costs.iter().min().copied().unwrap_or(0) } else { 0 };
            base += least;
            let cost = |tier: usize| if costs[tier] == NEVER { NEVER } else { costs[tier] - least };
            let v = v as u32;
            for tier in 0..=levels {
                match tier {
                    _ if levels == 0 => {}
                    0 => out.terminal(vertex(v, 0), cost(0), 0),
                    _ if tier == levels => out.terminal(vertex(v, tier - 1), 0, cost(tier)),
                    _ => out.arc(vertex(v, tier - 1), vertex(v, tier), cost(tier), NEVER),
                }
            }
        }
        for (i, &producer) in self.producers.iter().enumerate() {
            let (up, down) = (&self.up[i * levels..(i + 1) * levels], &self.down[i * levels..(i + 1) * levels]);
            match self.consumers_of(i) {
                [] => {}
                [w] => (0..levels).for_each(|k| out.arc(vertex(*w, k), vertex(producer, k), up[k], down[k])),
                many => {
                    for k in 0..levels {
                        let u = vertex(producer, k);
                        // Above if any consumer is: paid once while the producer is below.
                        if up[k] > 0 {
                            let hub = out.vertex();
                            many.iter().for_each(|w| out.arc(vertex(*w, k), hub, NEVER, 0));
                            out.arc(hub, u, up[k], 0);
                        }
                        // Below if any consumer is: paid once while the producer is above.
                        match down[k] {
                            0 => {}
                            NEVER => many.iter().for_each(|w| out.arc(u, vertex(*w, k), NEVER, 0)),
                            cost => {
                                let hub = out.vertex();
                                out.arc(u, hub, cost, 0);
                                many.iter().for_each(|w| out.arc(hub, vertex(*w, k), NEVER, 0));
                            }
                        }
                    }
                }
            }
        }
        base
    }

    /// Tensors by producer: where each node's begin, and which they are.
    fn tensors_by_producer(&self) -> (Vec<u32>, Vec<u32>) {
        let mut first = vec![0u32; self.len + 1];
        self.producers.iter().for_each(|p| first[*p as usize + 1] += 1);
        (0..self.len).for_each(|v| first[v + 1] += first[v]);
        let mut next = first.clone();
        let mut tensors = vec![0u32; self.producers.len()];
        for (i, p) in self.producers.iter().enumerate() {
            tensors[next[*p as usize] as usize] = i as u32;
            next[*p as usize] += 1;
        }
        (first, tensors)
    }

    /// Takes away nodes without inputs until none is left, or a circle.
    fn check_circles(&self, problem: &Problem) -> Result<(), SolveError> {
        // Most problems list nodes in an order in which they can run.
        let sorted = (0..self.producers.len()).all(|i| self.consumers_of(i).iter().all(|w| *w > self.producers[i]));
        if sorted {
            return Ok(());
        }
        let mut inputs = vec![0u32; self.len];
        self.consumers.iter().for_each(|w| inputs[*w as usize] += 1);
        let (first, tensors) = self.tensors_by_producer();
        let made_by = |v: usize| tensors[first[v] as usize..first[v + 1] as usize].iter().map(|i| *i as usize);
        let mut ready: Vec<usize> = (0..self.len).filter(|v| inputs[*v] == 0).collect();
        let mut left = self.len;
        while let Some(v) = ready.pop() {
            left -= 1;
            for w in made_by(v).flat_map(|i| self.consumers_of(i)) {
                inputs[*w as usize] -= 1;
                if inputs[*w as usize] == 0 {
                    ready.push(*w as usize);
                }
            }
        }
        if left == 0 {
            return Ok(());
        }
        // Every node left has an input from one left: walk up until one repeats.
        let mut by = vec![usize::MAX; self.len];
        for (i, p) in self.producers.iter().enumerate().filter(|(_, p)| inputs[**p as usize] > 0) {
            self.consumers_of(i).iter().for_each(|w| by[*w as usize] = *p as usize);
        }
        let mut at = (0..self.len).find(|v| inputs[*v] > 0).unwrap_or(0);
        let (mut walk, mut seen) = (Vec::new(), vec![false; self.len]);
        while !seen[at] {
            seen[at] = true;
            walk.push(at);
            at = by[at];
        }
        let start = walk.iter().position(|v| *v == at).unwrap_or(0);
        let circle = walk[start..].iter().rev().map(|v| problem.nodes[*v].name.clone());
        Err(SolveError::Cycle(circle.collect()))
    }

    /// Whether there is a placement; if not, the shortest chain of compulsion
    /// from a node that can't run low to one that can't run high.
    ///
    /// Linear, and complete: when nothing is forced too high, every node on the
    /// lowest tier that it is forced to is a placement. A cut would find out
    /// too, but may take long over a network that has none.
    pub(crate) fn check_possible(&self, problem: &Problem) -> Result<(), SolveError> {
        let levels = self.levels;
        let can = |v: usize, tier: usize| self.cost[v * self.tiers + tier] != NEVER;
        if (0..self.len).all(|v| can(v, 0)) || (0..self.len).all(|v| can(v, levels)) {
            return Ok(());
        }
        // State (v, k): v must lie above boundary k. Where it came from.
        let mut from: Vec<Option<(u32, u32)>> = vec![None; self.len * levels];
        let mut seen = vec![false; self.len * levels];
        let (first, tensors) = self.tensors_by_producer();
        let mut queue: Vec<(u32, u32)> = Vec::new();
        for v in (0..self.len).filter(|v| !can(*v, 0)) {
            let lowest = (0..self.tiers).find(|t| can(v, *t)).unwrap_or(levels);
            seen[v * levels..v * levels + lowest].fill(true);
            queue.push((v as u32, lowest as u32 - 1));
        }
        let mut next = 0;
        while let Some(&(v, k)) = queue.get(next) {
            next += 1;
            // Of the tiers above boundary k the first it can run on.
            let Some(lowest) = (k as usize + 1..=levels).find(|t| can(v as usize, *t)) else {
                return Err(Infeasible::Contradiction(self.chain(problem, &from, (v, k))).into());
            };
            for &i in &tensors[first[v as usize] as usize..first[v as usize + 1] as usize] {
                let i = i as usize;
                // The highest boundary below v that the tensor can't go down.
                let Some(wall) = (0..lowest).rev().find(|k| self.down[i * levels + k] == NEVER) else { continue };
                for &w in self.consumers_of(i) {
                    let state = w as usize * levels + wall;
                    if !seen[state] {
                        seen[state] = true;
                        from[state] = Some((v, k));
                        queue.push((w, wall as u32));
                    }
                }
            }
        }
        Ok(())
    }

    fn chain(&self, problem: &Problem, from: &[Option<(u32, u32)>], end: (u32, u32)) -> Vec<Forced> {
        let name = |v: u32| problem.nodes[v as usize].name.clone();
        let mut chain = Vec::new();
        let mut at = Some(end);
        while let Some((v, k)) = at {
            at = from[v as usize * self.levels + k as usize];
            chain.push(Forced { node: name(v), lowest: k as usize + 1, by: at.map(|(by, _)| name(by)) });
        }
        chain.reverse();
        chain
    }
}

pub(crate) fn length(
    owner: impl FnOnce() -> String,
    field: &'static str,
    actual: usize,
    expected: usize,
) -> Result<(), SolveError> {
    if actual == expected { Ok(()) } else { Err(SolveError::Length { owner: owner(), field, actual, expected }) }
}

fn sort_and_deduplicate(list: &mut Vec<u32>, start: usize) {
    list[start..].sort_unstable();
    let mut kept = start + 1;
    for j in start + 1..list.len() {
        if list[j] != list[kept - 1] {
            list[kept] = list[j];
            kept += 1;
        }
    }
    list.truncate(kept);
}
