//! Placements near a given one: node by node to another tier. Finds the
//! placements within the limits that bounds alone don't meet; proves nothing.

use crate::bounded::{Use, share};
use crate::dense::Dense;
use crate::flow::NEVER;

/// Tensors that each node makes or uses.
pub(crate) struct Touching {
    first: Vec<u32>,
    tensors: Vec<u32>,
}

impl Touching {
    pub(crate) fn new(dense: &Dense) -> Self {
        let nodes = |i: usize| std::iter::once(dense.producers[i]).chain(dense.consumers_of(i).iter().copied());
        let mut first = vec![0u32; dense.len + 1];
        for v in (0..dense.producers.len()).flat_map(nodes) {
            first[v as usize + 1] += 1;
        }
        (0..dense.len).for_each(|v| first[v + 1] += first[v]);
        let mut next = first.clone();
        let mut tensors = vec![0u32; first[dense.len] as usize];
        for i in 0..dense.producers.len() {
            for v in nodes(i) {
                tensors[next[v as usize] as usize] = i as u32;
                next[v as usize] += 1;
            }
        }
        Self { first, tensors }
    }

    fn of(&self, v: usize) -> &[u32] {
        &self.tensors[self.first[v] as usize..self.first[v + 1] as usize]
    }
}

/// A placement, what it costs, and what it uses of each limit.
pub(crate) struct Local<'a> {
    dense: &'a Dense,
    uses: &'a [Use],
    touching: &'a Touching,
    pub tiers: Vec<usize>,
    pub cost: u64,
    pub used: Vec<u64>,
}

/// What changes when one node moves.
struct Change {
    cost: i128,
    used: Vec<i128>,
}

impl<'a> Local<'a> {
    /// `tiers` must be allowed but for the limits.
    pub(crate) fn new(dense: &'a Dense, uses: &'a [Use], touching: &'a Touching, tiers: &[usize]) -> Self {
        let mut sum = Change { cost: 0, used: vec![0; uses.len()] };
        for (v, tier) in tiers.iter().enumerate() {
            add_node(dense, uses, v, *tier, 1, &mut sum);
        }
        for i in 0..dense.producers.len() {
            add_tensor(dense, uses, i, |v| tiers[v], 1, &mut sum);
        }
        let used = sum.used.iter().map(|u| *u as u64).collect();
        Self { dense, uses, touching, tiers: tiers.to_vec(), cost: sum.cost as u64, used }
    }

    pub(crate) fn fits(&self) -> bool {
        self.used.iter().zip(self.uses).all(|(used, limit)| *used <= limit.max)
    }

    /// Moves nodes until the limits are kept to, those first that relieve
    /// most for their price. May fail.
    pub(crate) fn repair(&mut self) {
        for _ in 0..4 {
            if self.fits() {
                return;
            }
            let mut moves: Vec<(f64, usize, usize)> = Vec::new();
            for v in 0..self.dense.len {
                for tier in (0..self.dense.tiers).filter(|t| *t != self.tiers[v]) {
                    let Some(change) = self.change(v, tier) else { continue };
                    let relief = self.relief(&change);
                    if relief > 0.0 {
                        moves.push((change.cost as f64 / relief, v, tier));
                    }
                }
            }
            moves.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (_, v, tier) in moves {
                if self.fits() {
                    return;
                }
                // Other moves may have changed what this one does.
                if let Some(change) = self.change(v, tier)
                    && self.relief(&change) > 0.0
                {
                    self.apply(v, tier, &change);
                }
            }
        }
    }

    /// Moves every node that makes the placement cheaper within the limits;
    /// whether any did.
    pub(crate) fn sweep(&mut self) -> bool {
        let before = self.cost;
        for v in 0..self.dense.len {
            for tier in 0..self.dense.tiers {
                if tier == self.tiers[v] {
                    continue;
                }
                if let Some(change) = self.change(v, tier)
                    && change.cost < 0
                    && (self.used.iter().zip(&change.used).zip(self.uses))
                        .all(|((used, more), limit)| i128::from(*used) + more <= i128::from(limit.max))
                {
                    self.apply(v, tier, &change);
                }
            }
        }
        self.cost < before
    }

    /// How much less the limits are exceeded, in shares of each.
    fn relief(&self, change: &Change) -> f64 {
        let over = |used: i128, limit: &Use| (used - i128::from(limit.max)).max(0) as f64 / share(limit);
        let relief = |((used, more), limit): ((&u64, &i128), &Use)| {
            over(i128::from(*used), limit) - over(i128::from(*used) + more, limit)
        };
        self.used.iter().zip(&change.used).zip(self.uses).map(relief).sum()
    }

    /// What moving `v` to `tier` changes; `None` where it can't go.
    fn change(&self, v: usize, tier: usize) -> Option<Change> {
        let dense = self.dense;
        if dense.cost[v * dense.tiers + tier] == NEVER {
            return None;
        }
        let mut change = Change { cost: 0, used: vec![0; self.uses.len()] };
        add_node(dense, self.uses, v, self.tiers[v], -1, &mut change);
        add_node(dense, self.uses, v, tier, 1, &mut change);
        for &i in self.touching.of(v) {
            add_tensor(dense, self.uses, i as usize, |w| self.tiers[w], -1, &mut change);
            let moved = |w: usize| if w == v { tier } else { self.tiers[w] };
            if !add_tensor(dense, self.uses, i as usize, moved, 1, &mut change) {
                return None;
            }
        }
        Some(change)
    }

    fn apply(&mut self, v: usize, tier: usize, change: &Change) {
        self.tiers[v] = tier;
        self.cost = (i128::from(self.cost) + change.cost) as u64;
        for (used, more) in self.used.iter_mut().zip(&change.used) {
            *used = (i128::from(*used) + more) as u64;
        }
    }
}

fn add_node(dense: &Dense, uses: &[Use], v: usize, tier: usize, sign: i128, sum: &mut Change) {
    let at = v * dense.tiers + tier;
    sum.cost += sign * i128::from(dense.cost[at]);
    for (used, limit) in sum.used.iter_mut().zip(uses) {
        *used += sign * i128::from(limit.node[at]);
    }
}

/// Whether the tensor may go the way that `tier` sends it.
fn add_tensor(
    dense: &Dense,
    uses: &[Use],
    i: usize,
    tier: impl Fn(usize) -> usize,
    sign: i128,
    sum: &mut Change,
) -> bool {
    let from = tier(dense.producers[i] as usize);
    let (mut lowest, mut highest) = (from, from);
    for w in dense.consumers_of(i) {
        let to = tier(*w as usize);
        (lowest, highest) = (lowest.min(to), highest.max(to));
    }
    for at in (from..highest).map(|k| i * dense.levels + k) {
        sum.cost += sign * i128::from(dense.up[at]);
        sum.used.iter_mut().zip(uses).for_each(|(used, limit)| *used += sign * i128::from(limit.up[at]));
    }
    for at in (lowest..from).map(|k| i * dense.levels + k) {
        if dense.down[at] == NEVER {
            return false;
        }
        sum.cost += sign * i128::from(dense.down[at]);
        sum.used.iter_mut().zip(uses).for_each(|(used, limit)| *used += sign * i128::from(limit.down[at]));
    }
    true
}
