//! Training steps beside PyTorch's: the same network, weights, batch, loss and
//! optimiser, in turns, on one and two threads.
//!
//! Each peer is a process of its own, so that its peak memory is its own, and
//! answers "take so many steps" with their times. Start at [`run`] and
//! [`child`].

pub mod exports;
pub mod fashion;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tierline_engine::{Engine, Evaluator, LoadOptions, StateSlot};
use tierline_graph::fold::{Purpose, fold_for};
use tierline_graph::kernels::DOMAIN;
use tierline_graph::step::{self, Optimizer, Recipe, Role, Schedule, Step};
use tierline_graph::{DataType, Elements, Model, Tensor};
use tierline_zoo::{Batch, Bn, Options, TRAINED};

/// The peer, as its project's package registry has it for this Python.
const PYTORCH: &[&str] = &[
    "torch==2.15.0",
    "torchvision==0.29.2",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxscript==0.7.2",
    "onnxruntime==1.32.0",
];

/// Threads within operators.
const THREADS: [usize; 2] = [1, 2];

/// Rounds in which both take steps, after a first that doesn't count.
const ROUNDS: usize = 5;

/// Steps of one round take about this long.
const ROUND_TIME: Duration = Duration::from_millis(1500);

/// Waits for idle threads of the other to stop spinning.
const PAUSE: Duration = Duration::from_millis(300);

const RATE: f64 = 0.01;
const MOMENTUM: f64 = 0.9;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// PyTorch's version.
    pub pytorch: String,
    /// One per network and number of threads.
    pub rows: Vec<Row>,
    /// One per network.
    pub gradients: Vec<Gradients>,
    /// One per network, on two threads.
    pub forms: Vec<Forms>,
}

/// What the parts of a step are worth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forms {
    /// The network.
    pub model: String,
    /// Examples of a batch, for recomputation.
    pub batch: u64,
    /// Peak memory with everything kept, bytes.
    pub peak: u64,
    /// Peak memory with recomputation, bytes.
    pub recompute_peak: u64,
    /// Time with recomputation over that without.
    pub recompute_ratio: f64,
    /// What each operator gains.
    pub kernels: Vec<Gain>,
}

/// What one operator of ours gains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gain {
    /// The operator.
    pub kernel: String,
    /// Nodes of it.
    pub nodes: usize,
    /// Time of a step with plain ONNX in its place over that with it.
    pub ratio: f64,
}

/// Median step times of one network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name in the zoo.
    pub model: String,
    /// Examples of a batch.
    pub batch: u64,
    /// Threads within operators.
    pub threads: usize,
    /// Ours, plain ONNX operators only, milliseconds.
    pub plain_ms: f64,
    /// Ours, with operators of our own, milliseconds.
    pub ours_ms: f64,
    /// PyTorch's, milliseconds.
    pub pytorch_ms: f64,
    /// Median over the rounds of ours over PyTorch's.
    pub ratio: f64,
    /// Peak memory of our process, bytes.
    pub ours_peak: u64,
    /// Peak memory of PyTorch's process, bytes.
    pub pytorch_peak: u64,
}

/// Worst relative error of a weight's gradient against PyTorch in f64.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gradients {
    /// The network.
    pub model: String,
    /// Ours, in f32.
    pub ours: f64,
    /// PyTorch's own, in f32.
    pub pytorch: f64,
    /// The weight that is worst in ours.
    pub weight: String,
}

/// Runs the benchmark.
///
/// # Errors
/// When PyTorch can't be installed, or a peer fails.
pub fn run() -> Result<Report> {
    let python = pytorch()?;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("peer.py");
    std::fs::write(&script, include_str!("peer.py"))?;
    let mut report = Report::default();
    for ((name, _), batch) in TRAINED {
        eprintln!("  {name}");
        let made = Made::new(name, &script, &python, folder.path(), *batch)?;
        report.gradients.push(made.gradients()?);
        for threads in THREADS {
            report.rows.push(made.row(threads, &mut report.pytorch)?);
        }
        report.forms.push(made.forms(THREADS[1])?);
    }
    Ok(report)
}

/// A Python with PyTorch, installed where it isn't.
///
/// # Errors
/// When it can't be.
pub fn pytorch() -> Result<PathBuf> {
    environment("pytorch", "PyTorch (several gigabytes)", PYTORCH)
}

/// The Python of a virtual environment in the cache that holds these packages.
///
/// # Errors
/// When they can't be installed.
pub fn environment(name: &str, what: &str, packages: &[&str]) -> Result<PathBuf> {
    let cache = std::env::var_os("TIERLINE_ASSETS").context("TIERLINE_ASSETS is not set; run `cargo xtask bench`")?;
    let folder = Path::new(&cache).with_file_name(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("stamp");
    if std::fs::read_to_string(&stamp).ok().as_deref() == Some(&packages.join("\n")) {
        return Ok(python);
    }
    eprintln!("  installing {what} into {}", folder.display());
    let own = std::env::var_os("TIERLINE_PYTHON").context("TIERLINE_PYTHON is not set; run `cargo xtask bench`")?;
    let ran = |command: &mut Command| -> Result<()> {
        ensure!(command.status()?.success(), "{command:?} failed");
        Ok(())
    };
    ran(Command::new(own).args(["-m", "venv", "--clear"]).arg(&folder))?;
    ran(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:"]).args(packages))?;
    std::fs::write(stamp, packages.join("\n"))?;
    Ok(python)
}

fn recipe() -> Recipe {
    Recipe {
        optimizer: Optimizer::Sgd { momentum: MOMENTUM, nesterov: false, weight_decay: 0.0 },
        schedule: Schedule::constant(RATE),
        ..Recipe::default()
    }
}

/// How our side makes its step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Form {
    /// Plain ONNX.
    Plain,
    /// With operators of our own.
    Kernels,
    /// With all of them but one.
    Without(String),
    /// With them, activations computed again.
    Recompute,
}

/// A network, folded for training, and its step.
fn network(name: &str, form: &Form) -> Result<(Model, Step)> {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 1 };
    let mut model = tierline_zoo::by_name(name, &options).with_context(|| format!("no network `{name}`"))?;
    fold_for(&mut model, &mut Evaluator(tierline_engine::rten()), Purpose::Training)?;
    let recipe = Recipe { recompute: *form == Form::Recompute, ..recipe() };
    let there = tierline_engine::onnxruntime(None)?.kernels();
    let wanted = |kernel: &&str| match form {
        Form::Plain => false,
        Form::Without(one) => kernel != one,
        Form::Kernels | Form::Recompute => true,
    };
    let kernels = there.iter().copied().filter(|k| wanted(k)).collect();
    let step = step::trainable_with(&model, &recipe, &kernels)?;
    Ok((model, step))
}

/// Files of one network for the peers.
struct Made<'a> {
    name: &'a str,
    script: &'a Path,
    python: &'a Path,
    forward: PathBuf,
    gradients: PathBuf,
    trained: String,
    batch: u64,
    classes: u64,
}

impl<'a> Made<'a> {
    fn new(name: &'a str, script: &'a Path, python: &'a Path, folder: &Path, batch: u64) -> Result<Self> {
        let (model, step) = network(name, &Form::Plain)?;
        let forward = folder.join(format!("{name}.onnx"));
        model.save(&forward)?;
        let parameters: Vec<_> = step.spec.state.iter().filter(|s| s.role == Role::Parameter).collect();
        let gradients = folder.join(format!("{name}.gradients.onnx"));
        exports::step_gradients(&step)?.save(&gradients)?;
        let trained: Vec<&str> = parameters.iter().map(|s| s.input.as_str()).collect();
        let trained = serde_json::to_string(&trained)?;
        let classes = step.spec.classes.context("a classifier")?;
        Ok(Self { name, script, python, forward, gradients, trained, batch, classes })
    }

    fn gradients(&self) -> Result<Gradients> {
        #[derive(Deserialize)]
        struct Said {
            pytorch: f64,
            ours: f64,
            weight: String,
        }
        let output = Command::new(self.python)
            .arg(self.script)
            .arg("gradients")
            .args([&self.forward, &self.gradients])
            .args([&self.trained, &self.batch.to_string(), &self.classes.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "PyTorch failed on {}", self.name);
        let Said { pytorch, ours, weight } = serde_json::from_slice(&output.stdout)?;
        Ok(Gradients { model: self.name.to_owned(), ours, pytorch, weight })
    }

    /// A process of ours.
    fn ours(&self, form: &Form, threads: usize, batch: u64) -> Result<Peer> {
        let own = std::env::current_exe()?;
        let (form, threads, batch) = (serde_json::to_string(form)?, threads.to_string(), batch.to_string());
        Ok(Peer::start(Command::new(own).args(["training-steps", self.name, &form, &threads, &batch]))?.0)
    }

    fn row(&self, threads: usize, version: &mut String) -> Result<Row> {
        let (pytorch, said) = Peer::start(
            Command::new(self.python)
                .arg(self.script)
                .arg("steps")
                .arg(&self.forward)
                .arg(&self.trained)
                .args([threads.to_string(), RATE.to_string(), MOMENTUM.to_string()])
                .args([self.batch.to_string(), self.classes.to_string()]),
        )?;
        *version = said;
        let ours = |form| self.ours(&form, threads, self.batch);
        let peers = vec![ours(Form::Plain)?, ours(Form::Kernels)?, pytorch];
        let [plain, ours, pytorch] = &race(peers)?[..] else { bail!("a time for each peer") };
        Ok(Row {
            model: self.name.to_owned(),
            batch: self.batch,
            threads,
            plain_ms: plain.ms(),
            ours_ms: ours.ms(),
            pytorch_ms: pytorch.ms(),
            ratio: ours.over(pytorch),
            ours_peak: ours.peak,
            pytorch_peak: pytorch.peak,
        })
    }

    /// What each operator of our own gains, and what recomputation costs.
    fn forms(&self, threads: usize) -> Result<Forms> {
        let (_, step) = network(self.name, &Form::Kernels)?;
        let nodes = &step.model.graph().node;
        let used: BTreeMap<&str, usize> =
            nodes.iter().filter(|n| n.domain() == DOMAIN).fold(BTreeMap::new(), |mut counts, node| {
                *counts.entry(node.op_type()).or_default() += 1;
                counts
            });
        let started = |forms: &[Form], batch: u64| -> Result<Vec<Peer>> {
            forms.iter().map(|form| self.ours(form, threads, batch)).collect()
        };
        let mut forms = vec![Form::Kernels];
        forms.extend(used.keys().map(|kernel| Form::Without((*kernel).to_owned())));
        let times = race(started(&forms, self.batch)?)?;
        let kernels = used.iter().zip(&times[1..]).map(|((kernel, &nodes), without)| Gain {
            kernel: (*kernel).to_owned(),
            nodes,
            ratio: without.over(&times[0]),
        });
        let kernels = kernels.collect();
        // Activations count where batches are large.
        let batch = 4 * self.batch;
        let [kept, again] = &race(started(&[Form::Kernels, Form::Recompute], batch)?)?[..] else {
            bail!("a time for each peer")
        };
        Ok(Forms {
            model: self.name.to_owned(),
            kernels,
            batch,
            peak: kept.peak,
            recompute_peak: again.peak,
            recompute_ratio: again.over(kept),
        })
    }
}

/// Step times of one peer.
struct Times {
    /// Medians of the rounds, milliseconds.
    rounds: Vec<f64>,
    /// Peak memory, bytes.
    peak: u64,
}

impl Times {
    fn ms(&self) -> f64 {
        median(&self.rounds)
    }

    /// Median over the rounds of this peer's time over another's.
    fn over(&self, other: &Self) -> f64 {
        median(&self.rounds.iter().zip(&other.rounds).map(|(a, b)| a / b).collect::<Vec<_>>())
    }
}

/// Has peers take steps in turns.
fn race(mut peers: Vec<Peer>) -> Result<Vec<Times>> {
    let mut counts = vec![3; peers.len()];
    let mut times: Vec<Times> = peers.iter().map(|_| Times { rounds: Vec::new(), peak: 0 }).collect();
    for round in 0..=ROUNDS {
        for ((peer, count), times) in peers.iter_mut().zip(&mut counts).zip(&mut times) {
            let (ms, peak) = peer.steps(*count)?;
            let median = median(&ms);
            if round == 0 {
                *count = (ROUND_TIME.as_secs_f64() * 1e3 / median).clamp(3.0, 400.0) as usize;
            } else {
                times.rounds.push(median);
            }
            times.peak = peak;
            std::thread::sleep(PAUSE);
        }
    }
    Ok(times)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A process that takes steps.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Answer {
    ms: Vec<f64>,
    peak: u64,
}

impl Peer {
    fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (to, from) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Starts it; what it says first is its version.
    fn start(command: &mut Command) -> Result<(Self, String)> {
        #[derive(Deserialize)]
        struct Hello {
            version: String,
        }
        let mut peer = Self::spawn(command)?;
        let hello: Hello = peer.line()?;
        Ok((peer, hello.version))
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, request: &impl fmt::Display) -> Result<T> {
        writeln!(self.to, "{request}")?;
        self.line()
    }

    fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            bail!("a peer ended: {}", self.child.wait()?);
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn steps(&mut self, count: usize) -> Result<(Vec<f64>, u64)> {
        let Answer { ms, peak } = self.ask(&count)?;
        Ok((ms, peak))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our side, as a process: takes steps as stdin says.
///
/// # Errors
/// When the network can't be trained.
pub fn child(name: &str, form: &str, threads: &str, batch: &str) -> Result<()> {
    let batch: u64 = batch.parse()?;
    let (model, step) = network(name, &serde_json::from_str(form)?)?;
    drop(model);
    let engine: std::sync::Arc<dyn Engine> = tierline_engine::onnxruntime(None)?;
    let (graph, state) = step.divided()?;
    let Step { spec, .. } = step;
    let slots: Vec<StateSlot> =
        spec.state.iter().map(|s| StateSlot { input: s.input.clone(), output: s.output.clone() }).collect();
    let mut session = engine.load_stateful(&graph, &LoadOptions::with_threads(threads.parse()?), &slots, state)?;
    drop(graph);
    let input = session.inputs().iter().find(|v| v.name != spec.target).cloned().context("an input")?;
    let mut rng = fastrand::Rng::with_seed(0);
    let shape: Vec<usize> =
        input.shape.iter().flatten().map(|d| usize::try_from(d.known().unwrap_or(batch))).collect::<Result<_, _>>()?;
    let count = shape.iter().product::<usize>();
    let elements = match input.dtype {
        Some(DataType::I64) => Elements::I64((0..count).map(|_| rng.i64(0..1000)).collect()),
        _ => Elements::F32((0..count).map(|_| rng.f32()).collect()),
    };
    let x = Tensor::new(shape, elements)?;
    let classes = i64::try_from(spec.classes.unwrap_or(1))?;
    let y = Tensor::new([usize::try_from(batch)?], Elements::I64((0..batch).map(|_| rng.i64(0..classes)).collect()))?;
    println!("{}", serde_json::json!({ "version": engine.version() }));
    let mut outputs = Vec::new();
    for line in std::io::stdin().lines() {
        let mut times = Vec::new();
        for _ in 0..line?.trim().parse::<usize>()? {
            let start = Instant::now();
            session.run_into(&[(&input.name, &x), (&spec.target, &y)], &mut outputs)?;
            session.advance();
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        println!("{}", serde_json::json!({ "ms": times, "peak": peak()? }));
    }
    Ok(())
}

/// Peak resident memory of this process, bytes.
///
/// # Errors
/// When the system doesn't tell.
pub fn peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("VmHWM in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes << 10)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "One step of SGD with momentum (forward, backward, update), in turns with PyTorch {} in eager mode; medians,\n\
             milliseconds; peak resident memory of each process. Goal: at or below PyTorch; at most 1.3 accepted.\n",
            self.pytorch
        )?;
        writeln!(
            f,
            "| network | batch | threads | PyTorch ms | plain ONNX ms | ours ms | ours / PyTorch | peak ours | peak PyTorch |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for r in &self.rows {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            writeln!(
                f,
                "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} MB | {:.0} MB |",
                r.model,
                r.batch,
                r.threads,
                r.pytorch_ms,
                r.plain_ms,
                r.ours_ms,
                r.ratio,
                mb(r.ours_peak),
                mb(r.pytorch_peak)
            )?;
        }
        writeln!(
            f,
            "\nGradients of one batch: the worst relative error of any weight against PyTorch in double precision (weights\n\
             without a gradient, such as biases in front of a normalisation, left out). The goal is twice PyTorch's own\n\
             error in single precision.\n"
        )?;
        writeln!(f, "| network | ours | PyTorch f32 | ours / PyTorch | worst weight |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for g in &self.gradients {
            writeln!(
                f,
                "| {} | {:.1e} | {:.1e} | {:.2} | {} |",
                g.model,
                g.ours,
                g.pytorch,
                g.ours / g.pytorch,
                g.weight
            )?;
        }
        writeln!(
            f,
            "\nWhat each operator of our own gains, on two threads: the time of a step with plain ONNX in its place over that\n\
             with it (nodes in brackets); and what recomputation saves and costs beside keeping every activation,\n\
             with batches four times as large.\n"
        )?;
        writeln!(f, "| network | operators | batch | peak kept | peak recomputed | time recomputed / kept |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for forms in &self.forms {
            let gain = |g: &Gain| format!("{} ({}) {:.2}", g.kernel, g.nodes, g.ratio);
            writeln!(
                f,
                "| {} | {} | {} | {:.0} MB | {:.0} MB | {:.2} |",
                forms.model,
                forms.kernels.iter().map(gain).collect::<Vec<_>>().join(", "),
                forms.batch,
                forms.peak as f64 / 1e6,
                forms.recompute_peak as f64 / 1e6,
                forms.recompute_ratio
            )?;
        }
        let over: Vec<String> = self
            .rows
            .iter()
            .filter(|r| r.ratio > 1.0)
            .map(|r| format!("{} on {} threads {:.2}", r.model, r.threads, r.ratio))
            .collect();
        if !over.is_empty() {
            writeln!(f, "\nSlower than PyTorch: {}.", over.join("; "))?;
        }
        Ok(())
    }
}
