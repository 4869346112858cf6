//! Minimum cut by Dinic's algorithm (Dinic, 1970), iterative, on arrays.
//!
//! Arcs are grouped by tail once all are known, so that the inner loops walk
//! memory in order.

use std::collections::VecDeque;

/// More than any sum of finite capacities: an arc that is never cut.
pub const INFINITE: u64 = u64::MAX / 4;

/// A flow network under construction.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// Number of vertices.
    pub vertices: usize,
    /// Arcs: tail, head, capacity.
    pub arcs: Vec<(u32, u32, u64)>,
    /// Where flow enters.
    pub source: u32,
    /// Where it leaves.
    pub sink: u32,
}

impl Network {
    /// Adds a vertex.
    pub fn vertex(&mut self) -> u32 {
        self.vertices += 1;
        (self.vertices - 1) as u32
    }

    /// Adds an arc.
    pub fn arc(&mut self, tail: u32, head: u32, capacity: u64) {
        if capacity > 0 {
            self.arcs.push((tail, head, capacity));
        }
    }
}

/// Value of a minimum cut, and which vertices lie on the source's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Capacity of the cut; at least [`INFINITE`] when no finite cut exists.
    pub value: u64,
    /// Per vertex: on the source's side. The smallest such set.
    pub source_side: Vec<bool>,
}

struct Residual {
    /// First arc of each vertex in `head`, `left`, `twin`.
    first: Vec<u32>,
    head: Vec<u32>,
    left: Vec<u64>,
    twin: Vec<u32>,
}

impl Residual {
    fn new(network: &Network) -> Self {
        let mut first = vec![0u32; network.vertices + 1];
        for &(tail, head, _) in &network.arcs {
            first[tail as usize + 1] += 1;
            first[head as usize + 1] += 1;
        }
        for v in 0..network.vertices {
            first[v + 1] += first[v];
        }
        let mut next: Vec<u32> = first[..network.vertices].to_vec();
        let size = 2 * network.arcs.len();
        let (mut heads, mut left, mut twin) = (vec![0; size], vec![0; size], vec![0; size]);
        for &(tail, head, capacity) in &network.arcs {
            let (a, b) = (next[tail as usize], next[head as usize] + u32::from(tail == head));
            next[tail as usize] += 1;
            next[head as usize] += 1;
            (heads[a as usize], left[a as usize], twin[a as usize]) = (head, capacity, b);
            (heads[b as usize], left[b as usize], twin[b as usize]) = (tail, 0, a);
        }
        Self { first, head: heads, left, twin }
    }

    fn arcs(&self, v: usize) -> std::ops::Range<usize> {
        self.first[v] as usize..self.first[v + 1] as usize
    }
}

/// A minimum cut of `network`.
#[must_use]
pub fn minimum_cut(network: &Network) -> Cut {
    let n = network.vertices;
    let (source, sink) = (network.source as usize, network.sink as usize);
    let mut r = Residual::new(network);
    let mut value = 0u64;
    let mut level = vec![u32::MAX; n];
    let mut at = vec![0u32; n];
    let mut queue = VecDeque::with_capacity(n);
    let mut path: Vec<usize> = Vec::new();
    // Levels are distances to the sink, so that every vertex the search
    // enters can still reach it.
    loop {
        level.fill(u32::MAX);
        level[sink] = 0;
        queue.clear();
        queue.push_back(sink);
        while let Some(v) = queue.pop_front() {
            for a in r.arcs(v) {
                let u = r.head[a] as usize;
                if level[u] == u32::MAX && r.left[r.twin[a] as usize] > 0 {
                    level[u] = level[v] + 1;
                    queue.push_back(u);
                }
            }
        }
        if level[source] == u32::MAX || value >= INFINITE {
            break;
        }
        at.copy_from_slice(&r.first[..n]);
        path.clear();
        let mut v = source;
        loop {
            if v == sink {
                let flow = path.iter().map(|&a| r.left[a]).min().unwrap_or(0);
                value = value.saturating_add(flow);
                let mut back_to = 0;
                for (i, &a) in path.iter().enumerate().rev() {
                    r.left[a] -= flow;
                    r.left[r.twin[a] as usize] += flow;
                    if r.left[a] == 0 {
                        back_to = i;
                    }
                }
                // Go on from the first saturated arc's tail.
                v = r.head[r.twin[path[back_to]] as usize] as usize;
                path.truncate(back_to);
                continue;
            }
            let end = r.first[v + 1];
            while at[v] < end {
                let a = at[v] as usize;
                let u = r.head[a] as usize;
                if r.left[a] > 0 && level[u] != u32::MAX && level[u] + 1 == level[v] {
                    break;
                }
                at[v] += 1;
            }
            if at[v] < end {
                path.push(at[v] as usize);
                v = r.head[at[v] as usize] as usize;
            } else if let Some(a) = path.pop() {
                v = r.head[r.twin[a] as usize] as usize;
                at[v] += 1;
            } else {
                break;
            }
        }
    }
    let mut source_side = vec![false; n];
    source_side[source] = true;
    queue.clear();
    queue.push_back(source);
    while let Some(v) = queue.pop_front() {
        for a in r.arcs(v) {
            let u = r.head[a] as usize;
            if r.left[a] > 0 && !source_side[u] {
                source_side[u] = true;
                queue.push_back(u);
            }
        }
    }
    Cut { value, source_side }
}
