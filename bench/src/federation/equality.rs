//! Accuracy against rounds beside a plain FedAvg in PyTorch: the same first
//! weights, the same examples on the same clients. Start at [`run`].

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tierline_train::data::{Source, partition};

use super::Lab;
use crate::training::{fashion, pytorch};

const CLIENTS: usize = 10;
const PARTITION: &str = "dirichlet:0.5";
const ROUNDS: usize = 20;
const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];
const BATCH: usize = 32;
const RATE: f64 = 0.05;
const THREADS: usize = 2;

/// Rounds that the table shows.
const SHOWN: [usize; 5] = [1, 5, 10, 15, 20];

/// Of Student's distribution with four degrees of freedom: 95% lie within.
const STUDENT: f64 = 2.776;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// PyTorch's version.
    pub pytorch: String,
    /// By seed, then by round: accuracy of ours.
    pub ours: Vec<Vec<f64>>,
    /// PyTorch's.
    pub theirs: Vec<Vec<f64>>,
}

/// Runs the benchmark.
///
/// # Errors
/// When the data or PyTorch can't be had, or a training fails.
pub fn run() -> Result<Report> {
    let python = pytorch()?;
    let data = fashion::data()?;
    let lab = Lab::new("mlp", 1)?;
    let train = Source::detect(&data)?.load()?.named_split("train")?;
    let mut report = Report::default();
    for seed in SEEDS {
        eprintln!("  seed {seed}");
        let network = lab.network("mlp", seed)?;
        let job = format!(
            "epochs = 1\nseed = {seed}\n[data]\ntrain = \"fashion\"\ntest = \"fashion\"\n[batch]\nsize = {BATCH}\n\
             [optimizer]\nkind = \"sgd\"\n[schedule]\nrate = {RATE}\n[federation.cloud]\nrounds = {ROUNDS}\n"
        );
        let rounds = lab.simulate(&job, &["--ends", &CLIENTS.to_string(), "--partition", PARTITION])?;
        report.ours.push(rounds.iter().map(|round| round.accuracy).collect());
        let shares = lab.folder.path().join("shares.json");
        std::fs::write(&shares, serde_json::to_vec(&partition(&train, &PARTITION.parse()?, CLIENTS, seed)?)?)?;
        let files = [network.as_path(), &data, &shares];
        report.theirs.push(theirs(lab.folder.path(), &python, files, seed, &mut report.pytorch)?);
    }
    Ok(report)
}

fn theirs(folder: &Path, python: &Path, files: [&Path; 3], seed: u64, version: &mut String) -> Result<Vec<f64>> {
    let script = folder.join("equality.py");
    std::fs::write(folder.join("peer.py"), include_str!("../training/peer.py"))?;
    std::fs::write(&script, include_str!("equality.py"))?;
    let settings = [seed.to_string(), ROUNDS.to_string(), BATCH.to_string(), RATE.to_string(), THREADS.to_string()];
    let output = Command::new(python).arg(script).args(files).args(settings).output()?;
    ensure!(output.status.success(), "PyTorch failed: {}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(serde_json::from_slice::<Value>).collect::<Result<Vec<_>, _>>()?;
    let found = lines.first().and_then(|line| line["version"].as_str());
    found.context("PyTorch says no version")?.clone_into(version);
    let accuracy: Vec<f64> = lines.iter().filter_map(|line| line["accuracy"].as_f64()).collect();
    ensure!(accuracy.len() == ROUNDS, "{} rounds of {ROUNDS}", accuracy.len());
    Ok(accuracy)
}

/// Mean and standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0)).sqrt())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "FedAvg on Fashion-MNIST beside the same in PyTorch {}: {CLIENTS} clients, uneven classes (`{PARTITION}`), exactly the\n\
             same examples on each, the same first weights (784, 128 and 10 units), one epoch a round, batches of {BATCH}, SGD\n\
             at {RATE}; {} seeds, each with weights, partition and order of examples of its own. The order differs between the two.\n\
             Points of accuracy on the test set, mean and standard deviation over the seeds; the difference of pairs with\n\
             its 95% interval.\n",
            self.pytorch,
            SEEDS.len()
        )?;
        writeln!(f, "| round | ours | PyTorch | ours - PyTorch |")?;
        writeln!(f, "|---|---|---|---|")?;
        let at = |runs: &[Vec<f64>], round: usize| runs.iter().map(|r| 100.0 * r[round - 1]).collect::<Vec<_>>();
        let pairs = |round: usize| -> Vec<f64> {
            at(&self.ours, round).iter().zip(at(&self.theirs, round)).map(|(a, b)| a - b).collect()
        };
        let interval = |round: usize| {
            let (mean, deviation) = spread(&pairs(round));
            (mean, STUDENT * deviation / (SEEDS.len() as f64).sqrt())
        };
        for round in SHOWN {
            let (ours, theirs) = (spread(&at(&self.ours, round)), spread(&at(&self.theirs, round)));
            let (mean, half) = interval(round);
            writeln!(
                f,
                "| {round} | {:.2} ± {:.2} | {:.2} ± {:.2} | {mean:+.2} ({:+.2} to {:+.2}) |",
                ours.0,
                ours.1,
                theirs.0,
                theirs.1,
                mean - half,
                mean + half
            )?;
        }
        let within = (1..=ROUNDS).filter(|round| {
            let (mean, half) = interval(*round);
            mean.abs() <= half
        });
        let within = within.count();
        let largest = (1..=ROUNDS).map(|round| interval(round).0.abs()).fold(0.0, f64::max);
        writeln!(
            f,
            "\nWithin seed noise (the interval holds zero) in {within} of {ROUNDS} rounds; the largest mean difference of any round\n\
             is {largest:.2} points."
        )
    }
}
