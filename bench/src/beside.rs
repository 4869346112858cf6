//! Requests on a node that trains at the same time, beside the same node idle:
//! what the executor of a device keeps of their times.
//!
//! An end serves one model and takes part in a job that trains another; the
//! job is paused and resumed in turns, so that both are measured on the same
//! machine in the same minutes. Start at [`run`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use tierline_codec::npy;
use tierline_demo::site::{Node, Tierline, wait};
use tierline_graph::{Elements, Tensor};
use tierline_train::data::Source;
use tierline_zoo::{Batch, Bn, Options, by_name};

use crate::training::fashion;

/// What is served.
const SERVED: &str = "mobilenet_v2";

/// What is trained.
const TRAINED: &str = "lenet";

/// Examples that the end learns from, and those of a step.
const EXAMPLES: usize = 6_000;
const STEP: usize = 32;

/// In which training and idleness take their turns.
const TURNS: usize = 5;

/// Requests of a turn, one behind the other.
const REQUESTS: &str = "300";

/// Between two turns: a step under way ends, another begins.
const SETTLE: Duration = Duration::from_secs(2);

/// Long enough for all turns.
const ROUNDS: usize = 100_000;

/// The job, by its file.
const JOB: &str = "beside";

/// What was measured, milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Of all turns without training.
    pub idle: Times,
    /// Of all turns beside training.
    pub training: Times,
    /// A step of the training, without requests beside it.
    pub step_ms: f64,
    /// Steps a second without requests, and beside them.
    pub steps_per_s: [f64; 2],
}

/// Times of answers, the median of the turns of each.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Times {
    /// Half of them are below.
    pub p50_ms: f64,
    /// 99 of 100 are below.
    pub p99_ms: f64,
}

/// Measures.
///
/// # Errors
/// When the site can't be started or the job doesn't train.
pub fn run() -> Result<Report> {
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set; run `cargo xtask bench`"))
    };
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(variable("TIERLINE_BINARY")?, folder.path());
    let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
    let end = tierline.join(&cloud, "end", "end-000", &cloud.url, &[])?;
    let input = serve(folder.path(), &cloud, &end)?;
    learn(folder.path(), &end)?;
    let job = job(folder.path())?;
    std::thread::scope(|scope| {
        // Follows the job until it is cancelled.
        let follows = scope.spawn(|| cloud.ask(&["train", &job]));
        let report = measured(&cloud, &end, &input);
        cloud.ask(&["job", "cancel", JOB])?;
        let _ = follows.join();
        report
    })
}

fn measured(cloud: &Node, end: &Node, input: &str) -> Result<Report> {
    let first = || (rounds(cloud).ok()? >= 1.0).then_some(());
    wait(Duration::from_secs(300), first).context("the job does not train")?;
    let free = steps(cloud, SETTLE * 5)?;
    let (mut idle, mut training, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        for trains in [turn % 2 == 0, turn % 2 != 0] {
            cloud.ask(&["job", if trains { "resume" } else { "pause" }, JOB])?;
            std::thread::sleep(SETTLE);
            let (before, clock) = (rounds(cloud)?, Instant::now());
            let requests =
                ["bench", "--model", SERVED, "--input", input, "--placement", "here", "--requests", REQUESTS];
            let report = end.ask(&requests)?;
            let done = (rounds(cloud)? - before) * (EXAMPLES / STEP) as f64;
            let times = |name: &str| report["latency_ms"][name].as_f64().context("times of answers");
            let times = Times { p50_ms: times("p50")?, p99_ms: times("p99")? };
            if trains {
                training.push(times);
                beside.push(done / clock.elapsed().as_secs_f64());
            } else {
                idle.push(times);
            }
        }
    }
    Ok(Report {
        idle: median(&idle),
        training: median(&training),
        step_ms: 1e3 / free,
        steps_per_s: [free, beside.iter().sum::<f64>() / beside.len() as f64],
    })
}

fn median(turns: &[Times]) -> Times {
    let of = |number: fn(&Times) -> f64| {
        let mut all: Vec<f64> = turns.iter().map(number).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Times { p50_ms: of(|t| t.p50_ms), p99_ms: of(|t| t.p99_ms) }
}

/// Adds the model that is served; the input of its requests.
fn serve(folder: &Path, cloud: &Node, end: &Node) -> Result<String> {
    let model = by_name(SERVED, &Options::default()).context("no such model")?;
    let (file, input) = (folder.join("served.onnx"), folder.join("input.npy"));
    model.save(&file)?;
    let pixels = (0..3 * 224 * 224).map(|i| ((i * 7_919) % 255) as f32 / 255.0).collect();
    std::fs::write(&input, npy::write(&Tensor::new([1, 3, 224, 224], Elements::F32(pixels))?)?)?;
    cloud.ask(&["model", "add", &file.to_string_lossy(), "--name", SERVED])?;
    let planned = || end.ask(&["plan", SERVED]).ok();
    wait(Duration::from_secs(300), planned).context("the model was not planned")?;
    let name = model.inputs().first().map(|input| input.name.clone()).context("an input")?;
    Ok(format!("{name}=@{}", input.display()))
}

/// Gives the end what it learns from.
fn learn(folder: &Path, end: &Node) -> Result<()> {
    let whole = Source::detect(&fashion::data()?)?.load()?.named_split("train")?;
    let rows: Vec<usize> = (0..EXAMPLES).collect();
    let [features, labels] = ["features", "labels"].map(|what| folder.join(format!("{what}.npy")));
    std::fs::write(&features, npy::write(&whole.features(&rows)?)?)?;
    std::fs::write(&labels, npy::write(&whole.targets(&rows)?)?)?;
    let (features, labels) = (features.to_string_lossy(), labels.to_string_lossy());
    end.ask(&["data", "add", "pictures", &features, "--labels", &labels, "--classes", "10"]).map(drop)
}

/// The file of a job without end.
fn job(folder: &Path) -> Result<String> {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, ..Options::default() };
    by_name(TRAINED, &options).context("no such model")?.save(&folder.join("trained.onnx"))?;
    let job = format!(
        "model = \"trained.onnx\"\nweights = \"fresh\"\nepochs = 1\n[data]\ntrain = \"pictures\"\n[batch]\nsize = {STEP}\n\
         [optimizer]\nkind = \"sgd\"\n[schedule]\nrate = 0.01\n[federation.cloud]\nrounds = {ROUNDS}\n"
    );
    let file = folder.join(format!("{JOB}.toml"));
    std::fs::write(&file, job)?;
    Ok(file.to_string_lossy().into_owned())
}

/// Rounds that the job has behind it.
fn rounds(cloud: &Node) -> Result<f64> {
    let shown: Value = cloud.ask(&["job", "show", JOB])?;
    shown["round"].as_f64().context("the job's rounds")
}

/// Steps a second over some time.
fn steps(cloud: &Node, time: Duration) -> Result<f64> {
    let (before, clock) = (rounds(cloud)?, Instant::now());
    std::thread::sleep(time);
    let done = rounds(cloud)? - before;
    Ok(done * (EXAMPLES / STEP) as f64 / clock.elapsed().as_secs_f64())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { idle, training, step_ms, steps_per_s: [free, beside] } = self;
        writeln!(
            f,
            "{SERVED} answered by an end, {REQUESTS} requests a turn, {TURNS} turns of each in turns; {TRAINED} trained"
        )?;
        writeln!(f, "by the same end in steps of {STEP} examples of Fashion-MNIST. Medians of the turns.\n")?;
        writeln!(f, "| the end | p50 ms | p99 ms | p99 beside idle | goal: 1.05 times idle and a step |")?;
        writeln!(f, "| --- | --- | --- | --- | --- |")?;
        writeln!(f, "| idle | {:.2} | {:.2} | | |", idle.p50_ms, idle.p99_ms)?;
        let goal = 1.05 * idle.p99_ms + step_ms;
        let kept = if training.p99_ms <= goal { "kept" } else { "missed" };
        writeln!(
            f,
            "| trains | {:.2} | {:.2} | {:.2} | {goal:.2}: {kept} |",
            training.p50_ms,
            training.p99_ms,
            training.p99_ms / idle.p99_ms
        )?;
        writeln!(
            f,
            "\nA step takes {step_ms:.2} ms alone; {free:.1} steps a second alone, {beside:.1} beside requests."
        )
    }
}
