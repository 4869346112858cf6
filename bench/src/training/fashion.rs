//! A whole training beside PyTorch's: LeNet on Fashion-MNIST to 90% of the test
//! set, from the same weights with the same settings, over several seeds.
//!
//! Ours is `tierline train`; PyTorch has the whole set in memory as tensors and
//! takes batches by index, its fastest way. Start at [`run`].

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tierline_zoo::{Batch, Bn, Options};

const SEEDS: [u64; 3] = [1, 2, 3];
const EPOCHS: usize = 8;
const BATCH: usize = 64;
const RATE: f64 = 0.02;
const THREADS: usize = 2;

/// The accuracy to reach.
const GOAL: f64 = 0.9;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// PyTorch's version.
    pub pytorch: String,
    /// One per seed.
    pub rows: Vec<Row>,
}

/// One seed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Of the weights and of the order of examples.
    pub seed: u64,
    /// Ours.
    pub ours: Run,
    /// PyTorch's.
    pub pytorch: Run,
}

/// One training.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Run {
    /// Accuracy on the test set behind each epoch.
    pub accuracy: Vec<f64>,
    /// Seconds from the first step to the end of each epoch's evaluation.
    pub seconds: Vec<f64>,
}

impl Run {
    /// Epochs and seconds to the goal.
    fn reached(&self) -> Option<(usize, f64)> {
        let at = self.accuracy.iter().position(|a| *a >= GOAL)?;
        Some((at + 1, self.seconds[at]))
    }
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or(f64::NAN)
}

/// Runs the benchmark.
///
/// # Errors
/// When the data or PyTorch can't be had, or a training fails.
pub fn run() -> Result<Report> {
    let python = super::pytorch()?;
    let data = data()?;
    let folder = tempfile::tempdir()?;
    let mut report = Report::default();
    for seed in SEEDS {
        eprintln!("  seed {seed}");
        let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed };
        let model = tierline_zoo::by_name("lenet", &options).context("LeNet")?;
        model.save(&folder.path().join("lenet.onnx"))?;
        let ours = ours(folder.path(), &data, seed)?;
        let pytorch = theirs(folder.path(), &python, &data, seed, &mut report.pytorch)?;
        report.rows.push(Row { seed, ours, pytorch });
    }
    Ok(report)
}

/// The folder of the four files, from the Debian package where it isn't there.
///
/// # Errors
/// When the package can't be had.
pub fn data() -> Result<PathBuf> {
    let assets = std::env::var_os("TIERLINE_ASSETS").context("TIERLINE_ASSETS is not set; run `cargo xtask bench`")?;
    tierline_demo::classes::fashion_files(Path::new(&assets))
}

fn ours(folder: &Path, data: &Path, seed: u64) -> Result<Run> {
    let binary = std::env::var_os("TIERLINE_BINARY").context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?;
    let node = folder.join(format!("node-{seed}"));
    let tierline = || {
        let mut command = Command::new(&binary);
        command.arg("--data").arg(&node).arg("--quiet");
        command
    };
    let added = tierline().args(["data", "add", "fashion"]).arg(data).stdout(Stdio::null()).status()?;
    ensure!(added.success(), "`tierline data add` failed");
    let job = folder.join("job.toml");
    std::fs::write(
        &job,
        format!(
            "model = \"lenet.onnx\"\nepochs = {EPOCHS}\nseed = {seed}\n[data]\ntrain = \"fashion\"\n[batch]\nsize = {BATCH}\n\
             normalize = \"measured\"\n[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\n[schedule]\nrate = {RATE}\n\
             decay = {{ kind = \"cosine\" }}\n"
        ),
    )?;
    let out = folder.join(format!("run-{seed}"));
    let threads = THREADS.to_string();
    let mut command = tierline();
    command.arg("train").arg(&job).args(["--local", "--json", "--threads", &threads, "--replace", "--out"]).arg(&out);
    watched(&mut command, |line| line["event"] == "start", |line| line["test"]["accuracy"].as_f64())
}

fn theirs(folder: &Path, python: &Path, data: &Path, seed: u64, version: &mut String) -> Result<Run> {
    let script = folder.join("peer.py");
    std::fs::write(&script, include_str!("peer.py"))?;
    let mut command = Command::new(python);
    command.arg(script).arg("learn").arg(folder.join("lenet.onnx")).arg(data);
    command.args([seed.to_string(), EPOCHS.to_string(), BATCH.to_string(), RATE.to_string(), THREADS.to_string()]);
    let begins = |line: &Value| {
        let found = line["version"].as_str();
        found.inspect(|found| (*found).clone_into(version)).is_some()
    };
    watched(&mut command, begins, |line| line["accuracy"].as_f64())
}

/// Runs a training that prints a line when it begins and one behind each epoch,
/// and takes the times of both peers alike: when lines arrive.
fn watched(
    command: &mut Command,
    mut begins: impl FnMut(&Value) -> bool,
    accuracy: impl Fn(&Value) -> Option<f64>,
) -> Result<Run> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut run = Run::default();
    let mut begun = None;
    for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        match (begun, accuracy(&line)) {
            (None, _) if begins(&line) => begun = Some(Instant::now()),
            (Some(begun), Some(accuracy)) if run.accuracy.len() < EPOCHS => {
                run.accuracy.push(accuracy);
                run.seconds.push(begun.elapsed().as_secs_f64());
            }
            _ => {}
        }
    }
    ensure!(child.wait()?.success(), "{command:?} failed");
    ensure!(run.accuracy.len() == EPOCHS, "{} epochs of {EPOCHS}", run.accuracy.len());
    Ok(run)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "LeNet on Fashion-MNIST beside PyTorch {}: the same first weights, SGD with momentum 0.9, batches of {BATCH}, a rate\n\
             of {RATE} that falls along a cosine over {EPOCHS} epochs, {THREADS} threads, no augmentation; evaluated behind every\n\
             epoch. Ours is `tierline train` with its data on disk; PyTorch has it in memory as tensors.\n",
            self.pytorch
        )?;
        writeln!(
            f,
            "| seed | ours: epochs, seconds to {:.0}% | PyTorch | ours: accuracy, seconds in all | PyTorch | time ours / PyTorch |",
            100.0 * GOAL
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let reached = |run: &Run| {
                run.reached().map_or_else(|| "not reached".to_owned(), |(epochs, s)| format!("{epochs}, {s:.1}"))
            };
            let all = |run: &Run| format!("{:.2}%, {:.1}", 100.0 * last(&run.accuracy), last(&run.seconds));
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {:.2} |",
                row.seed,
                reached(&row.ours),
                reached(&row.pytorch),
                all(&row.ours),
                all(&row.pytorch),
                last(&row.ours.seconds) / last(&row.pytorch.seconds)
            )?;
        }
        Ok(())
    }
}
