//! Exact placement beside petgraph's maximum flow, on the same networks in
//! the same run.
//!
//! A minimum cut and a maximum flow have the same value, so the two must
//! agree before their times are compared; ours also names the side of every
//! vertex, which a placement needs. Start at [`run`].

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use petgraph::algo::{dinics, ford_fulkerson};
use petgraph::graph::{DiGraph, NodeIndex};
use serde::Serialize;
use tierline_plan::flow::{MinCut, Network};
use tierline_plan::{problem, random};

/// Nodes of the problems, and how many are solved of each size.
const SIZES: [(usize, usize); 3] = [(100, 60), (1_000, 36), (10_000, 12)];

/// A peer that took longer than this on one problem solves no more of its size.
const PATIENCE: Duration = Duration::from_secs(20);

/// A peer predicted to take longer than this on the next size isn't started.
const PREDICTED_MAX: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What the problems are like.
    pub problems: &'static str,
    /// One per size.
    pub rows: Vec<Row>,
}

/// Problems of one size. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Nodes of each problem.
    pub nodes: usize,
    /// Vertices of the flow network, median.
    pub vertices: usize,
    /// Arcs of the flow network, median.
    pub arcs: usize,
    /// Problems solved.
    pub problems: usize,
    /// From problem to placement: checked, cut, named.
    pub solve_ms: Spread,
    /// The cut alone, from the network that the peers are given.
    pub cut_ms: Spread,
    /// petgraph's `dinics`, when it was started.
    pub dinics: Option<Peer>,
    /// petgraph's `ford_fulkerson`, when it was started.
    pub ford_fulkerson: Option<Peer>,
}

/// A peer on the same networks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peer {
    /// Problems that it solved.
    pub problems: usize,
    /// Its times.
    pub ms: Spread,
    /// Its time over ours, per problem, median.
    pub times_ours: f64,
}

/// Median, ninth decile, largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// The largest.
    pub worst: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at =
            |share: f64| values.get((values.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or(0.0);
        Self { p50: at(0.5), p90: at(0.9), worst: at(1.0) }
    }
}

/// Measures all sizes; takes a few minutes, nearly all of them the peers'.
///
/// # Errors
/// When two solvers disagree.
pub fn run() -> anyhow::Result<Report> {
    measure(&SIZES)
}

/// Measures the sizes given as nodes and problems, smallest first.
///
/// # Errors
/// When two solvers disagree.
pub fn measure(sizes: &[(usize, usize)]) -> anyhow::Result<Report> {
    let mut rows: Vec<Row> = Vec::new();
    for &(nodes, problems) in sizes {
        let mut trial = Trial::default();
        let before = rows.last();
        let growth = before.map_or(1.0, |row| nodes as f64 / row.nodes as f64);
        // Both take about quadratic time on these networks.
        let starts = |peer: Option<&Peer>| match (before, peer) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(peer)) => peer.ms.p50 * growth * growth < PREDICTED_MAX.as_secs_f64() * 1e3,
        };
        let with_dinics = starts(before.and_then(|row| row.dinics.as_ref()));
        let with_ford_fulkerson = starts(before.and_then(|row| row.ford_fulkerson.as_ref()));
        let mut cut = MinCut::new();
        for seed in 0..problems as u64 {
            // Every fourth net sends tensors one way only; transfers from
            // cheap to dear move the cut from one end to the other.
            let one_way = if seed % 4 == 3 { 1.0 } else { 0.0 };
            let problem = random::net(nodes, 3, 0.002 * 2f64.powi((seed % 12) as i32), one_way, seed);
            let start = Instant::now();
            let solution = problem::solve(&problem)?;
            trial.solve.push(milliseconds(start.elapsed()));
            let network = problem::network(&problem)?;
            trial.vertices.push(network.vertices as f64);
            trial.arcs.push(network.arcs.len() as f64);
            let start = Instant::now();
            let value = cut.of(&network);
            let ours = milliseconds(start.elapsed());
            trial.cut.push(ours);
            ensure!(value == solution.objective_ns, "the network's cut is {value}, not {}", solution.objective_ns);
            let (graph, source, sink) = graph(&network);
            if with_dinics {
                trial.dinics.time(value, ours, || dinics(&graph, source, sink).0)?;
            }
            if with_ford_fulkerson {
                trial.ford_fulkerson.time(value, ours, || ford_fulkerson(&graph, source, sink).0)?;
            }
        }
        rows.push(Row {
            nodes,
            vertices: Spread::of(trial.vertices).p50 as usize,
            arcs: Spread::of(trial.arcs).p50 as usize,
            problems,
            solve_ms: Spread::of(trial.solve),
            cut_ms: Spread::of(trial.cut),
            dinics: trial.dinics.finish(),
            ford_fulkerson: trial.ford_fulkerson.finish(),
        });
    }
    Ok(Report { problems: "nets of residual blocks and fans on three tiers", rows })
}

#[derive(Default)]
struct Trial {
    solve: Vec<f64>,
    cut: Vec<f64>,
    vertices: Vec<f64>,
    arcs: Vec<f64>,
    dinics: Runs,
    ford_fulkerson: Runs,
}

#[derive(Default)]
struct Runs {
    ms: Vec<f64>,
    times_ours: Vec<f64>,
}

impl Runs {
    /// Times the peer, unless it has been too slow before.
    fn time(&mut self, value: u64, ours: f64, solve: impl FnOnce() -> u64) -> anyhow::Result<()> {
        if self.ms.iter().any(|ms| *ms > milliseconds(PATIENCE)) {
            return Ok(());
        }
        let start = Instant::now();
        let flow = solve();
        let ms = milliseconds(start.elapsed());
        ensure!(flow == value, "petgraph's flow is {flow}, the cut {value}");
        self.ms.push(ms);
        self.times_ours.push(ms / ours.max(1e-6));
        Ok(())
    }

    fn finish(self) -> Option<Peer> {
        let problems = self.ms.len();
        let times_ours = Spread::of(self.times_ours).p50;
        (problems > 0).then(|| Peer { problems, ms: Spread::of(self.ms), times_ours })
    }
}

fn graph(network: &Network) -> (DiGraph<(), u64>, NodeIndex, NodeIndex) {
    let mut graph = DiGraph::with_capacity(network.vertices, network.arcs.len());
    let vertices: Vec<NodeIndex> = (0..network.vertices).map(|_| graph.add_node(())).collect();
    for arc in &network.arcs {
        graph.add_edge(vertices[arc.from as usize], vertices[arc.to as usize], arc.capacity);
    }
    (graph, vertices[network.source as usize], vertices[network.sink as usize])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "Exact placement, {}; milliseconds.\n", self.problems)?;
        writeln!(
            f,
            "| nodes | vertices | arcs | solve p50 / p90 / worst | cut p50 | petgraph dinics p50 | ford_fulkerson p50 |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let peer = |peer: &Option<Peer>| match peer {
                Some(p) => format!("{:.2} ({:.0}x ours, {} runs)", p.ms.p50, p.times_ours, p.problems),
                None => "not started: minutes".to_owned(),
            };
            writeln!(
                f,
                "| {} | {} | {} | {:.3} / {:.3} / {:.3} | {:.3} | {} | {} |",
                row.nodes,
                row.vertices,
                row.arcs,
                row.solve_ms.p50,
                row.solve_ms.p90,
                row.solve_ms.worst,
                row.cut_ms.p50,
                peer(&row.dinics),
                peer(&row.ford_fulkerson)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn solvers_agree_on_small_nets() {
        let report = super::measure(&[(10, 12), (60, 12)]).unwrap();
        assert_eq!(report.rows.len(), 2);
        for row in &report.rows {
            assert_eq!(row.dinics.as_ref().map(|p| p.problems), Some(12));
            assert_eq!(row.ford_fulkerson.as_ref().map(|p| p.problems), Some(12));
        }
        assert!(report.to_string().contains("| 60 |"));
    }
}
