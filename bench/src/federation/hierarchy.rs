//! Edges that average their ends beside edges that pass everything on, over a
//! thin link to the cloud: time to an accuracy, first simulated, then measured
//! ([`wan`]). Start at [`run`].

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{Lab, Round, wan};

const ENDS: usize = 20;
const EDGES: usize = 4;
const PARTITION: &str = "dirichlet:0.5";

/// Mbit/s up, Mbit/s down, round trip in milliseconds.
const END_LINK: &str = "100,100,5";
const EDGE_LINKS: [(&str, &str); 2] = [("2,2,80", "2 Mbit/s, 80 ms"), ("20,20,40", "20 Mbit/s, 40 ms")];

/// Examples that an end learns from in a second.
const SPEED: &str = "3000";

/// The accuracy to reach.
const GOAL: f64 = 0.8;

/// Ways to run the job: name, the cloud's rounds at most, what an edge does.
const WAYS: [(&str, usize, &str); 5] = [
    ("flat", 30, ""),
    ("hierarchical, 1 round of edges", 30, "[federation.edge]\nrounds = 1\n"),
    ("hierarchical, 2 rounds of edges", 20, "[federation.edge]\nrounds = 2\n"),
    ("hierarchical, 4 rounds of edges", 12, "[federation.edge]\nrounds = 4\n"),
    (
        "the same, edges gossip in int8",
        12,
        "[federation.edge]\nrounds = 4\ngossip = { stages = [\"int8\", \"zstd\"] }\n",
    ),
];

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// By link, then by way: rounds and seconds to the goal, if it was reached.
    pub reached: Vec<Vec<Option<(usize, f64)>>>,
    /// Of a site of processes.
    pub measured: wan::Report,
}

/// Runs the benchmark.
///
/// # Errors
/// When the data can't be had, a simulation fails, or a site doesn't run.
pub fn run() -> Result<Report> {
    let lab = Lab::new("mlp", 1)?;
    let mut report = Report::default();
    let (ends, edges) = (ENDS.to_string(), EDGES.to_string());
    for (link, _) in EDGE_LINKS {
        eprintln!("  {link}");
        let mut of_link = Vec::new();
        for (_, rounds, edge) in WAYS {
            let job = format!(
                "weights = \"fresh\"\nepochs = 1\nseed = 1\n[data]\ntrain = \"fashion\"\ntest = \"fashion\"\n[batch]\n\
                 size = 32\n[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n[schedule]\nrate = 0.02\n[federation.stop]\naccuracy = {GOAL}\n\
                 [federation.cloud]\nrounds = {rounds}\n{edge}"
            );
            let site = ["--ends", &ends, "--edges", &edges, "--partition", PARTITION, "--speed", SPEED];
            let links = ["--end-link", END_LINK, "--edge-link", link];
            of_link.push(reached(&lab.simulate(&job, &[&site[..], &links[..]].concat())?));
        }
        report.reached.push(of_link);
    }
    report.measured = wan::run(&lab)?;
    Ok(report)
}

fn reached(rounds: &[Round]) -> Option<(usize, f64)> {
    let at = rounds.iter().position(|round| round.accuracy >= GOAL)?;
    Some((at + 1, rounds[..=at].iter().map(|round| round.seconds).sum()))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Simulated: seconds of virtual time until Fashion-MNIST is known to {:.0}% (784, 128 and 10 units, 407 kB), with the rounds of\n\
             the cloud in brackets: {ENDS} ends with uneven classes (`{PARTITION}`), {SPEED} examples a second and links of\n\
             100 Mbit/s, below {EDGES} edges with a thinner link to the cloud. Training is real, time is simulated. Flat: edges\n\
             pass every update on, and fetch each model once. Ratios are flat over hierarchical.\n",
            100.0 * GOAL
        )?;
        writeln!(f, "| link of an edge | {} |", WAYS.map(|(name, ..)| name).join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(WAYS.len()))?;
        for ((_, link), row) in EDGE_LINKS.iter().zip(&self.reached) {
            let flat = row[0].map(|(_, seconds)| seconds);
            let cell = |(way, found): (usize, &Option<(usize, f64)>)| match (found, flat) {
                (None, _) => "not reached".to_owned(),
                (Some((rounds, s)), Some(flat)) if way > 0 => format!("{s:.1} ({rounds}), {:.1}x", flat / s),
                (Some((rounds, s)), _) => format!("{s:.1} ({rounds})"),
            };
            writeln!(f, "| {link} | {} |", row.iter().enumerate().map(cell).collect::<Vec<_>>().join(" | "))?;
        }
        write!(f, "\n{}", self.measured)
    }
}
