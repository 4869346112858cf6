//! Federations: rounds beside Flower, accuracy beside PyTorch, bytes, rules
//! against harm, hierarchies, sums.
//!
//! Each file is a benchmark. Here is what they share.

pub mod codecs;
pub mod equality;
pub mod flower;
pub mod hierarchy;
mod memory;
mod proxy;
pub mod robust;
pub mod throughput;
mod wan;
mod ways;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tierline_zoo::{Batch, Bn, Options};

use crate::training::fashion;

/// The users' binary.
fn binary() -> Result<PathBuf> {
    let binary = std::env::var_os("TIERLINE_BINARY").map(PathBuf::from);
    binary.context("TIERLINE_BINARY is not set; run `cargo xtask bench`")
}

/// The one in the middle; the mean of two where there are two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => 0.5 * (sorted[half - 1] + sorted[half]),
    }
}

/// Fashion-MNIST, a network, and `tierline sim` on both.
struct Lab {
    folder: tempfile::TempDir,
    binary: PathBuf,
}

/// A round, as `tierline sim --json` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Round {
    /// On the test set.
    accuracy: f64,
    bytes_up: u64,
    bytes_down: u64,
    /// Of virtual time.
    seconds: f64,
}

/// Accuracy over the last rounds: one round more or less should not decide.
fn last(rounds: &[Round]) -> f64 {
    let few = &rounds[rounds.len().saturating_sub(5)..];
    few.iter().map(|round| round.accuracy).sum::<f64>() / few.len() as f64
}

impl Lab {
    /// With a network of the zoo.
    fn new(network: &str, seed: u64) -> Result<Self> {
        let lab = Self { folder: tempfile::tempdir()?, binary: binary()? };
        lab.network(network, seed)?;
        let status =
            lab.tierline().args(["data", "add", "fashion"]).arg(fashion::data()?).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "`tierline data add` failed");
        Ok(lab)
    }

    /// Writes another network, or the same from another seed.
    fn network(&self, name: &str, seed: u64) -> Result<PathBuf> {
        let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed };
        let file = self.folder.path().join("network.onnx");
        tierline_zoo::by_name(name, &options).with_context(|| format!("no network `{name}`"))?.save(&file)?;
        Ok(file)
    }

    fn tierline(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--data").arg(self.folder.path().join("node")).arg("--quiet");
        command
    }

    /// Rounds of a simulation; `job` is what follows a job's model and data.
    fn simulate(&self, job: &str, args: &[&str]) -> Result<Vec<Round>> {
        let file = self.folder.path().join("job.toml");
        let out = self.folder.path().join("run");
        std::fs::write(&file, format!("model = \"network.onnx\"\n{job}"))?;
        let output = self
            .tierline()
            .arg("sim")
            .arg(&file)
            .args(args)
            .args(["--json", "--replace", "--out"])
            .arg(&out)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`tierline sim {}` failed on\n{job}\n{said}", args.join(" "));
        let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(serde_json::from_slice::<Value>).collect::<Result<Vec<_>, _>>()?;
        let rounds = lines.into_iter().filter(|line| line["event"] == "round");
        Ok(rounds.map(serde_json::from_value).collect::<Result<_, _>>()?)
    }
}
