//! Random placement problems, the same for the same seed: for tests, examples
//! and benchmarks.

use crate::problem::{Node, Problem, Tensor};

/// What kind of problem.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Number of nodes.
    pub nodes: usize,
    /// Number of tiers.
    pub tiers: usize,
    /// Inputs of a node come from at most so many nodes back.
    pub reach: usize,
    /// Inputs of a node at most.
    pub inputs_max: usize,
    /// Share of costs that are null: a node that can't run on a tier.
    pub refused: f64,
    /// Share of boundaries that a tensor never goes back across.
    pub one_way: f64,
    /// Whether costs are like a model's on end, edge and cloud (each tier
    /// several times faster than the one below, transfers dear), or uniform
    /// small numbers, with many ties.
    pub lifelike: bool,
}

impl Shape {
    /// A model of `nodes` operators on three tiers.
    #[must_use]
    pub fn model(nodes: usize) -> Self {
        Self { nodes, tiers: 3, reach: 20, inputs_max: 3, refused: 0.0, one_way: 0.0, lifelike: true }
    }
}

/// A problem of the given shape. Node 0 is the input and stays on tier 0.
#[must_use]
pub fn problem(shape: &Shape, seed: u64) -> Problem {
    let mut random = SplitMix(seed);
    let Shape { nodes: n, tiers, .. } = *shape;
    let name = |v: usize| format!("n{v}");
    let mut nodes = Vec::with_capacity(n);
    let mut consumers: Vec<Vec<String>> = vec![Vec::new(); n];
    for v in 0..n {
        let work = 1_000 + random.below(1_000_000);
        let cost = |tier: usize, random: &mut SplitMix| {
            let full =
                if shape.lifelike { (work >> (2 * tier.min(30))) + random.below(1_000) } else { random.below(12) };
            (!random.chance(shape.refused)).then_some(full)
        };
        let mut cost_ns: Vec<Option<u64>> = (0..tiers).map(|tier| cost(tier, &mut random)).collect();
        if v == 0 && shape.refused == 0.0 {
            cost_ns[1..].fill(None);
        }
        nodes.push(Node { name: name(v), cost_ns });
        let back = shape.reach.min(v) as u64;
        if back > 0 {
            for _ in 0..1 + random.below(shape.inputs_max as u64) {
                consumers[v - 1 - random.below(back) as usize].push(name(v));
            }
        }
    }
    let mut tensors = Vec::new();
    for (v, consumers) in consumers.into_iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        let size = 1_000 + random.below(2_000_000);
        let cost = |k: usize, random: &mut SplitMix| {
            if shape.lifelike { (size >> k.min(30)) + random.below(1_000) } else { random.below(8) }
        };
        let up_ns = (0..tiers - 1).map(|k| cost(k, &mut random)).collect();
        let down = |k: usize, random: &mut SplitMix| (!random.chance(shape.one_way)).then(|| cost(k, random));
        let down_ns = (0..tiers - 1).map(|k| down(k, &mut random)).collect();
        tensors.push(Tensor { producer: name(v), consumers, up_ns, down_ns });
    }
    Problem { tiers, nodes, tensors, limits: Vec::new() }
}

/// A problem wired like a neural network: a chain of blocks, some of them
/// residual (a skip link past two or three operators), some fans (two to four
/// branches that are joined again). Tiers get about four times faster each;
/// `transfer` scales what crossing a boundary costs, and with it where the
/// best cut lies. `one_way` as in [`Shape`].
#[must_use]
pub fn net(nodes: usize, tiers: usize, transfer: f64, one_way: f64, seed: u64) -> Problem {
    let mut random = SplitMix(seed);
    let mut inputs: Vec<Vec<usize>> = vec![Vec::new()];
    while inputs.len() < nodes {
        let last = inputs.len() - 1;
        let left = nodes - inputs.len();
        let (branches, length) = match random.below(8) {
            0..=2 => (1, 1),
            3..=5 => (1, 2 + random.below(2) as usize),
            6 => (3, 1),
            _ => (2 + random.below(3) as usize, 1 + random.below(3) as usize),
        };
        if branches * length + 1 > left {
            inputs.push(vec![last]);
            continue;
        }
        let mut ends = Vec::new();
        for _ in 0..branches {
            let mut from = last;
            for _ in 0..length {
                inputs.push(vec![from]);
                from = inputs.len() - 1;
            }
            ends.push(from);
        }
        match (branches, length) {
            (1, 1) => {}
            // A residual block adds its input.
            (1, _) => {
                ends.push(last);
                inputs.push(ends);
            }
            _ => inputs.push(ends),
        }
    }
    let name = |v: usize| format!("n{v}");
    let mut consumers: Vec<Vec<String>> = vec![Vec::new(); nodes];
    for (v, from) in inputs.iter().enumerate() {
        from.iter().for_each(|&u| consumers[u].push(name(v)));
    }
    let mut nodes_out = Vec::with_capacity(nodes);
    let mut tensors = Vec::with_capacity(nodes);
    for (v, consumers) in consumers.into_iter().enumerate() {
        let work = 20_000 + random.below(2_000_000);
        let cost_ns = (0..tiers).map(|tier| Some((work >> (2 * tier.min(30))) + random.below(2_000))).collect();
        nodes_out.push(Node { name: name(v), cost_ns });
        // Tensors shrink towards the end, as a classifier's do.
        let depth = v as f64 / nodes as f64;
        let size = (1_000.0 + random.below(4_000_000) as f64 * (1.0 - 0.95 * depth)) * transfer;
        let up_ns: Vec<u64> = (0..tiers - 1).map(|k| size as u64 / (k as u64 + 1)).collect();
        let down_ns = up_ns.iter().map(|ns| (!random.chance(one_way)).then_some(*ns)).collect();
        if !consumers.is_empty() {
            tensors.push(Tensor { producer: name(v), consumers, up_ns, down_ns });
        }
    }
    // The input is where the sensor is.
    nodes_out[0].cost_ns[1..].fill(None);
    Problem { tiers, nodes: nodes_out, tensors, limits: Vec::new() }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): small, and the same everywhere.
#[derive(Debug, Clone)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// From 0 up to 1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `share`.
    pub fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}
