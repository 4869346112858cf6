//! Minimum cuts: a flow network as plain lists, and a solver for it.
//!
//! The solver is Dinic's algorithm (Dinic, 1970) with two liberties that suit
//! placement networks, in which most vertices touch a terminal. Capacities
//! from the source and to the sink are numbers on the vertices, not arcs. And
//! a phase sends flow from *every* vertex with supply along its own shortest
//! path, not only from those nearest to the sink, which takes fewer phases.
//!
//! Integers only: ties are ties. Start at [`MinCut`].

/// Capacity of an arc that is never cut. Sums of all finite capacities stay
/// below it, so a cut of at least this value is no cut.
pub const NEVER: u64 = 1 << 61;

const UNSEEN: u32 = u32::MAX;

/// A flow network: what other solvers are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Number of vertices, numbered from 0.
    pub vertices: usize,
    /// Where flow enters.
    pub source: u32,
    /// Where flow leaves.
    pub sink: u32,
    /// Directed arcs.
    pub arcs: Vec<Arc>,
}

/// One directed arc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arc {
    /// Its tail.
    pub from: u32,
    /// Its head.
    pub to: u32,
    /// Capacity, nanoseconds; [`NEVER`] when it must not be cut.
    pub capacity: u64,
}

/// What a network is written into.
pub(crate) trait Build {
    /// One more vertex.
    fn vertex(&mut self) -> u32;
    /// Capacity from the source to `v`, and from `v` to the sink.
    fn terminal(&mut self, v: u32, source: u64, sink: u64);
    /// Capacity from `from` to `to`, and back.
    fn arc(&mut self, from: u32, to: u32, capacity: u64, back: u64);
}

impl Network {
    pub(crate) fn new() -> Self {
        Self { vertices: 2, source: 0, sink: 1, arcs: Vec::new() }
    }
}

impl Build for Network {
    fn vertex(&mut self) -> u32 {
        self.vertices += 1;
        (self.vertices - 1) as u32
    }

    fn terminal(&mut self, v: u32, source: u64, sink: u64) {
        let (s, t) = (self.source, self.sink);
        self.arc(s, v, source, 0);
        self.arc(v, t, sink, 0);
    }

    fn arc(&mut self, from: u32, to: u32, capacity: u64, back: u64) {
        let arcs = [Arc { from, to, capacity }, Arc { from: to, to: from, capacity: back }];
        self.arcs.extend(arcs.into_iter().filter(|arc| arc.capacity > 0));
    }
}

/// One direction of an arc, stored with its tail.
#[derive(Debug, Clone, Copy, Default)]
struct Half {
    /// Capacity left in this direction.
    left: u64,
    head: u32,
    /// The other direction.
    twin: u32,
}

#[derive(Debug, Clone, Copy)]
struct Pair {
    from: u32,
    to: u32,
    capacity: u64,
    back: u64,
}

/// A network under construction, and its minimum cut. Reusable: after
/// [`MinCut::clear`] nothing is allocated again for networks of the same size.
#[derive(Debug, Clone, Default)]
pub struct MinCut {
    pairs: Vec<Pair>,
    /// Supply left at each vertex.
    supply: Vec<u64>,
    /// Demand left at each vertex.
    demand: Vec<u64>,
    /// Flow that needs no path: where a vertex has supply and demand.
    value: u64,
    first: Vec<u32>,
    halves: Vec<Half>,
    /// Arcs to the sink on the shortest way; 1 for vertices with demand.
    level: Vec<u32>,
    /// The next half to try.
    at: Vec<u32>,
    queue: Vec<u32>,
    path: Vec<u32>,
    side: Vec<bool>,
}

impl Build for MinCut {
    fn vertex(&mut self) -> u32 {
        self.supply.push(0);
        self.demand.push(0);
        (self.supply.len() - 1) as u32
    }

    fn terminal(&mut self, v: u32, source: u64, sink: u64) {
        let v = v as usize;
        // What flows straight through the vertex is not worth a path.
        let (source, sink) = (self.supply[v] + source, self.demand[v] + sink);
        let through = source.min(sink);
        self.value += through;
        self.supply[v] = source - through;
        self.demand[v] = sink - through;
    }

    fn arc(&mut self, from: u32, to: u32, capacity: u64, back: u64) {
        if from != to && (capacity > 0 || back > 0) {
            self.pairs.push(Pair { from, to, capacity, back });
        }
    }
}

impl MinCut {
    /// An empty network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the network, keeps the memory.
    pub fn clear(&mut self) {
        self.pairs.clear();
        self.supply.clear();
        self.demand.clear();
        self.value = 0;
    }

    /// The value of a minimum cut of `network`; [`NEVER`] or more when every
    /// cut goes through an arc that must not be cut.
    pub fn of(&mut self, network: &Network) -> u64 {
        self.clear();
        for _ in 0..network.vertices {
            self.vertex();
        }
        for arc in &network.arcs {
            match (arc.from == network.source, arc.to == network.sink) {
                (true, true) => self.value += arc.capacity,
                (true, false) => self.terminal(arc.to, arc.capacity, 0),
                (false, true) => self.terminal(arc.from, 0, arc.capacity),
                (false, false) => self.arc(arc.from, arc.to, arc.capacity, 0),
            }
        }
        self.solve()
    }

    /// Whether vertex `v` lies on the source's side of the cut found: the
    /// smallest such side.
    #[must_use]
    pub fn on_source_side(&self, v: u32) -> bool {
        self.side[v as usize]
    }

    pub(crate) fn solve(&mut self) -> u64 {
        self.arrange();
        while self.value < NEVER && self.find_levels() {
            self.at.clear();
            self.at.extend_from_slice(&self.first[..self.supply.len()]);
            for v in 0..self.supply.len() as u32 {
                if self.supply[v as usize] > 0 && self.level[v as usize] != UNSEEN {
                    self.send(v);
                }
            }
        }
        self.find_side();
        self.value
    }

    /// Groups the halves of all arcs by tail, so that loops walk memory in order.
    fn arrange(&mut self) {
        let n = self.supply.len();
        self.first.clear();
        self.first.resize(n + 1, 0);
        for pair in &self.pairs {
            self.first[pair.from as usize + 1] += 1;
            self.first[pair.to as usize + 1] += 1;
        }
        for v in 0..n {
            self.first[v + 1] += self.first[v];
        }
        self.at.clear();
        self.at.extend_from_slice(&self.first[..n]);
        self.halves.clear();
        self.halves.resize(2 * self.pairs.len(), Half::default());
        for pair in &self.pairs {
            let a = self.at[pair.from as usize];
            self.at[pair.from as usize] += 1;
            let b = self.at[pair.to as usize];
            self.at[pair.to as usize] += 1;
            self.halves[a as usize] = Half { left: pair.capacity, head: pair.to, twin: b };
            self.halves[b as usize] = Half { left: pair.back, head: pair.from, twin: a };
        }
    }

    fn halves_of(&self, v: u32) -> std::ops::Range<usize> {
        self.first[v as usize] as usize..self.first[v as usize + 1] as usize
    }

    /// Distances to the sink. Whether any supply can still get there.
    fn find_levels(&mut self) -> bool {
        self.level.clear();
        self.level.resize(self.supply.len(), UNSEEN);
        self.queue.clear();
        for (v, _) in self.demand.iter().enumerate().filter(|(_, demand)| **demand > 0) {
            self.level[v] = 1;
            self.queue.push(v as u32);
        }
        let mut supplied = false;
        let mut next = 0;
        while let Some(&v) = self.queue.get(next) {
            next += 1;
            supplied |= self.supply[v as usize] > 0;
            let level = self.level[v as usize] + 1;
            for a in self.halves_of(v) {
                let Half { head, twin, .. } = self.halves[a];
                if self.level[head as usize] == UNSEEN && self.halves[twin as usize].left > 0 {
                    self.level[head as usize] = level;
                    self.queue.push(head);
                }
            }
        }
        supplied
    }

    /// Sends the supply of `start` down the levels as far as it goes.
    fn send(&mut self, start: u32) {
        self.path.clear();
        let mut v = start;
        loop {
            let level = self.level[v as usize];
            if level == 1 && self.demand[v as usize] > 0 {
                let back_to = self.augment(start, v);
                if self.supply[start as usize] == 0 {
                    return;
                }
                if let Some(keep) = back_to {
                    v = self.halves[self.halves[self.path[keep] as usize].twin as usize].head;
                    self.path.truncate(keep);
                }
                continue;
            }
            let end = self.first[v as usize + 1];
            let mut at = self.at[v as usize];
            if level > 1 {
                while at < end {
                    let half = &self.halves[at as usize];
                    // UNSEEN + 1 wraps to 0, which no level equals.
                    if half.left > 0 && self.level[half.head as usize].wrapping_add(1) == level {
                        break;
                    }
                    at += 1;
                }
            } else {
                at = end;
            }
            self.at[v as usize] = at;
            if at < end {
                self.path.push(at);
                v = self.halves[at as usize].head;
            } else if let Some(a) = self.path.pop() {
                // A dead end until the next phase.
                self.level[v as usize] = UNSEEN;
                v = self.halves[self.halves[a as usize].twin as usize].head;
                self.at[v as usize] += 1;
            } else {
                self.level[v as usize] = UNSEEN;
                return;
            }
        }
    }

    /// Pushes what the path allows from `start` to the demand at `end`;
    /// returns the first arc of the path that it filled.
    fn augment(&mut self, start: u32, end: u32) -> Option<usize> {
        let mut flow = self.supply[start as usize].min(self.demand[end as usize]);
        for &a in &self.path {
            flow = flow.min(self.halves[a as usize].left);
        }
        self.supply[start as usize] -= flow;
        self.demand[end as usize] -= flow;
        self.value += flow;
        let mut filled = None;
        for (i, &a) in self.path.iter().enumerate() {
            let half = &mut self.halves[a as usize];
            half.left -= flow;
            if half.left == 0 && filled.is_none() {
                filled = Some(i);
            }
            let twin = half.twin;
            self.halves[twin as usize].left += flow;
        }
        filled
    }

    fn find_side(&mut self) {
        self.side.clear();
        self.side.resize(self.supply.len(), false);
        self.queue.clear();
        for (v, _) in self.supply.iter().enumerate().filter(|(_, supply)| **supply > 0) {
            self.side[v] = true;
            self.queue.push(v as u32);
        }
        let mut next = 0;
        while let Some(&v) = self.queue.get(next) {
            next += 1;
            for a in self.halves_of(v) {
                let Half { head, left, .. } = self.halves[a];
                if left > 0 && !self.side[head as usize] {
                    self.side[head as usize] = true;
                    self.queue.push(head);
                }
            }
        }
    }
}
