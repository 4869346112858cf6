//! Bytes to an accuracy: every way for updates to travel beside dense FedAvg,
//! on a hundred clients. Start at [`run`].

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::{Lab, Round};

const CLIENTS: usize = 100;
const PER_ROUND: usize = 10;

/// Points of accuracy that may be lost against the end of the dense run.
const LOST_MAX: f64 = 0.5;

/// How many times fewer bytes we want of the best.
const GOAL: f64 = 600.0;

/// Rounds that accuracy is averaged over: few clients make it jump.
const SMOOTH: usize = 10;

const PARTITIONS: [(&str, &str); 2] =
    [("iid", "Examples shared out at random"), ("dirichlet:0.1", "Very uneven classes (Dirichlet 0.1)")];

/// A way for updates to travel.
struct Way {
    name: &'static str,
    /// Lines of `[federation.cloud]`.
    cloud: &'static str,
    rounds: usize,
    /// Of each client, in a round.
    epochs: usize,
    rate: f64,
}

const fn stages(name: &'static str, cloud: &'static str) -> Way {
    Way { name, cloud, rounds: ROUNDS, epochs: 1, rate: 0.2 }
}

/// More local work, and rounds as needed.
const fn composed(name: &'static str, rounds: usize, cloud: &'static str) -> Way {
    Way { name, cloud, rounds, epochs: 5, rate: 0.1 }
}

const ROUNDS: usize = 100;

/// The first is what all are compared with.
const WAYS: &[Way] = &[
    stages("dense", ""),
    stages("fp16, zstd", "up = [\"fp16\", \"zstd\"]"),
    stages("int8, zstd", "up = [\"int8\", \"zstd\"]"),
    stages("int4", "up = [\"int4\"]"),
    stages("QSGD, 2 bits", "up = [\"qsgd:2\", \"zstd\"]"),
    stages("sign", "up = [\"sign\"]"),
    stages("random mask 1%, int8", "up = [\"random:0.01\", \"int8\"]"),
    stages("top-k 1%, int8", "up = [\"topk:0.01\", \"int8\"]"),
    stages("top-k 1%, int4, EF21", "up = [\"topk:0.01\", \"int4\"]\nmemory = { kind = \"ef21\" }"),
    stages("top-k 1%, int4, DGC", "up = [\"topk:0.01\", \"int4\"]\nmemory = { kind = \"dgc\", momentum = 0.5 }"),
    stages("PowerSGD rank 1, int8", "up = [\"powersgd:1\", \"int8\"]"),
    composed("dense, 5 epochs", 40, ""),
    composed(
        "int8, 5 epochs, DiLoCo",
        40,
        "up = [\"int8\", \"zstd\"]\nstrategy = { kind = \"diloco\", rate = 0.7, momentum = 0.5 }",
    ),
    composed("top-k 0.2%, sign, 5 epochs", 150, "up = [\"topk:0.002\", \"sign\"]"),
    composed(
        "top-k 0.2%, sign, 5 epochs, DiLoCo",
        150,
        "up = [\"topk:0.002\", \"sign\"]\nstrategy = { kind = \"diloco\", rate = 0.7, momentum = 0.8 }",
    ),
    composed("top-k 0.1%, sign, 5 epochs", 200, "up = [\"topk:0.001\", \"sign\"]"),
];

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// One per way of sharing examples out.
    pub tables: Vec<Vec<Row>>,
}

/// One way for updates to travel.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// At the end.
    pub accuracy: f64,
    /// Of one client in one round, on average.
    pub update_bytes: f64,
    /// Rounds and bytes up until the target, if it was reached.
    pub reached: Option<(usize, u64)>,
}

/// Runs the benchmark.
///
/// # Errors
/// When the data can't be had, or a simulation fails.
pub fn run() -> Result<Report> {
    let lab = Lab::new("mlp", 1)?;
    let mut report = Report::default();
    for (partition, _) in PARTITIONS {
        let mut rows: Vec<Row> = Vec::new();
        for way in WAYS {
            eprintln!("  {partition}, {}", way.name);
            let job = format!(
                "weights = \"fresh\"\nepochs = {}\nseed = 1\n[data]\ntrain = \"fashion\"\ntest = \"fashion\"\n[batch]\n\
                 size = 32\n[optimizer]\nkind = \"sgd\"\n[schedule]\nrate = {}\n[federation.cloud]\nrounds = {}\n\
                 clients = {{ per_round = {PER_ROUND} }}\n{}\n",
                way.epochs, way.rate, way.rounds, way.cloud
            );
            let rounds = lab.simulate(&job, &["--ends", &CLIENTS.to_string(), "--partition", partition])?;
            let accuracy = smooth(&rounds);
            let end = accuracy.last().copied().unwrap_or_default();
            let target = target(rows.first().map_or(end, |dense| dense.accuracy));
            let at = accuracy.iter().position(|a| *a >= target);
            let bytes = |rounds: &[Round]| rounds.iter().map(|round| round.bytes_up).sum::<u64>();
            rows.push(Row {
                accuracy: end,
                update_bytes: bytes(&rounds) as f64 / (rounds.len() * PER_ROUND) as f64,
                reached: at.map(|at| (at + 1, bytes(&rounds[..=at]))),
            });
        }
        report.tables.push(rows);
    }
    Ok(report)
}

fn target(dense: f64) -> f64 {
    dense - LOST_MAX / 100.0
}

/// Accuracy behind each round, over the rounds before it.
fn smooth(rounds: &[Round]) -> Vec<f64> {
    let mean = |few: &[Round]| few.iter().map(|round| round.accuracy).sum::<f64>() / few.len() as f64;
    (1..=rounds.len()).map(|end| mean(&rounds[end.saturating_sub(SMOOTH)..end])).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Bytes that {CLIENTS} clients send until Fashion-MNIST is known as well as at the end of {ROUNDS} rounds of dense FedAvg,\n\
             less {LOST_MAX} points: a network of 784, 128 and 10 units (101,770 numbers), {PER_ROUND} clients a round, batches of 32,\n\
             one seed, in simulation. One epoch a round at rate 0.2, or five at 0.1; what doesn't travel is remembered and sent\n\
             later unless another memory is named. Accuracy is the mean of the last {SMOOTH} rounds. Updates travel up; models come down whole."
        )?;
        for (rows, (_, heading)) in self.tables.iter().zip(PARTITIONS) {
            let dense = rows.first().cloned().unwrap_or_default();
            writeln!(f, "\n{heading}; target {:.2}%:\n", 100.0 * target(dense.accuracy))?;
            writeln!(
                f,
                "| updates | bytes of one | rounds run | accuracy at the end | rounds to target | MB to target | dense / it |"
            )?;
            writeln!(f, "|---|---|---|---|---|---|---|")?;
            let fewer = |row: &Row| Some(dense.reached?.1 as f64 / row.reached?.1 as f64);
            for (way, row) in WAYS.iter().zip(rows) {
                let reached = match row.reached {
                    Some((rounds, bytes)) => {
                        format!("{rounds} | {:.2} | {:.0}", bytes as f64 / 1e6, fewer(row).unwrap_or(f64::NAN))
                    }
                    None => "not reached | – | –".to_owned(),
                };
                writeln!(
                    f,
                    "| {} | {:.0} | {} | {:.2}% | {reached} |",
                    way.name,
                    row.update_bytes,
                    way.rounds,
                    100.0 * row.accuracy
                )?;
            }
            let best = rows.iter().filter_map(fewer).fold(0.0, f64::max);
            let verdict = if best >= GOAL { "reached" } else { "missed" };
            writeln!(f, "\nThe goal of {GOAL} times fewer bytes is {verdict}: {best:.0} at best.")?;
        }
        Ok(())
    }
}
