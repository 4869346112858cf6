//! Rounds of a federation beside Flower's SuperLink and SuperNodes: processes
//! and sockets on this machine, a million numbers, next to nothing to learn.
//!
//! Either side runs twice: as it is, for times; and through a proxy that counts
//! bytes on the wire while its memory is watched. Start at [`run`].

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tierline_demo::site::{Node, Tierline};
use tierline_graph::DataType;
use tierline_zoo::build::Builder;

use super::memory::MemorySampler;
use super::{binary, median, proxy};
use crate::process::{Group, free};
use crate::training::environment;

/// The peer, as its package index has it.
const FLOWER: &[&str] = &["flwr==1.41.0", "numpy==2.4.6"];

const CLIENTS: usize = 4;

/// Of a network with two layers this wide, of ten features and ten classes.
const WIDTH: u64 = 989;
const NUMBERS: u64 = WIDTH * WIDTH + 22 * WIDTH + 10;

const ROUNDS: usize = 20;

/// Flower's rounds take long.
const FLOWER_ROUNDS: usize = 5;

/// Seconds of a round that we want.
const GOAL_S: f64 = 0.2;

/// The longest Flower may take to start, and for all of its rounds.
const PATIENCE: Duration = Duration::from_secs(60);
const ROUNDS_MAX: Duration = Duration::from_secs(400);

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Ours.
    pub ours: Side,
    /// Flower's.
    pub flower: Side,
}

/// One of the two.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Side {
    /// Of each round.
    pub round_s: Vec<f64>,
    /// Of all of them together, over their number.
    pub all_s: f64,
    /// Towards the server over all rounds, over their number.
    pub bytes_up: f64,
    /// From the server.
    pub bytes_down: f64,
    /// Most memory of the server and what it started.
    pub server_bytes: u64,
    /// The same of a client, the largest.
    pub client_bytes: u64,
}

impl Side {
    /// Times of one run, bytes and memory of another.
    fn of(direct: Self, counted: Self) -> Self {
        Self { round_s: direct.round_s, all_s: direct.all_s, ..counted }
    }
}

/// Runs the benchmark.
///
/// # Errors
/// When either side can't be started or doesn't get through.
pub fn run() -> Result<Report> {
    let python = environment("flower", "Flower", FLOWER)?;
    let folder = tempfile::tempdir()?;
    let [direct, counted] = ["direct", "counted"].map(|name| folder.path().join(name));
    eprintln!("  ours");
    let ours = Side::of(ours(&direct, false)?, ours(&counted, true)?);
    eprintln!("  Flower");
    let flower = Side::of(theirs(&direct, &python, false)?, theirs(&counted, &python, true)?);
    Ok(Report { ours, flower })
}

/// A site of a cloud and its ends, and a job on it.
fn ours(folder: &Path, counted: bool) -> Result<Side> {
    std::fs::create_dir_all(folder)?;
    let mut b = Builder::new("wide", 1);
    let mut x = b.input("input", DataType::F32, "batch 10");
    for _ in 0..2 {
        x = b.gemm(&x, WIDTH);
        x = b.op("Relu", &[&x], &[]);
    }
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, "batch 10");
    b.build().save(&folder.join("wide.onnx"))?;
    let mut rng = fastrand::Rng::with_seed(1);
    let mut table = "a,b,c,d,e,f,g,h,i,j,label\n".to_owned();
    for class in 0..8 {
        (0..10).for_each(|_| table.push_str(&format!("{:.3},", rng.f32())));
        table.push_str(&format!("{class}\n"));
    }
    let data = folder.join("table.csv");
    std::fs::write(&data, table)?;
    let job = folder.join("wide.toml");
    std::fs::write(
        &job,
        format!(
            "model = \"wide.onnx\"\nepochs = 1\nseed = 1\n[data]\ntrain = \"table\"\n[batch]\nsize = 8\n\
             [optimizer]\nkind = \"sgd\"\n[schedule]\nrate = 0.01\n[federation.cloud]\nrounds = {ROUNDS}\n\
             clients = {{ min = {CLIENTS} }}\n"
        ),
    )?;

    let tierline = Tierline::new(binary()?, folder);
    let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
    let server: SocketAddr = cloud.url.trim_start_matches("https://").parse()?;
    let (through, counts) = proxy::start(server)?;
    let url = if counted { format!("https://{through}") } else { cloud.url.clone() };
    let (data, job) = (data.to_string_lossy(), job.to_string_lossy());
    let end = |number: usize| -> Result<Node> {
        let end = tierline.join(&cloud, "end", &format!("end-{number}"), &url, &[])?;
        end.ask(&["data", "add", "table", &data, "--label-column", "label", "--classes", "10"])?;
        Ok(end)
    };
    let ends: Vec<Node> = (0..CLIENTS).map(end).collect::<Result<_>>()?;
    let sampler =
        counted.then(|| MemorySampler::start(std::iter::once(&cloud).chain(&ends).map(Node::process_id).collect()));
    let before = counts.now();
    let lines = cloud.ask(&["train", &job, "--replace"])?;
    let after = counts.now();
    let (server_bytes, client_bytes) = peaks(sampler)?;
    let lines = lines.as_array().context("a line for each round")?;
    let rounds: Vec<&Value> = lines.iter().filter(|line| line["event"] == "round").collect();
    let all = rounds.iter().all(|round| round["clients"] == CLIENTS);
    ensure!(rounds.len() == ROUNDS && all, "not every client answered in every round");
    let round_s: Vec<f64> = rounds.iter().filter_map(|round| round["seconds"].as_f64()).collect();
    Ok(Side {
        all_s: round_s.iter().sum::<f64>() / ROUNDS as f64,
        round_s,
        bytes_up: (after[0] - before[0]) as f64 / ROUNDS as f64,
        bytes_down: (after[1] - before[1]) as f64 / ROUNDS as f64,
        server_bytes,
        client_bytes,
    })
}

/// Of the server, which comes first, and of the largest client.
fn peaks(sampler: Option<MemorySampler>) -> Result<(u64, u64)> {
    let Some(sampler) = sampler else { return Ok((0, 0)) };
    let peaks = sampler.peaks()?;
    let (server, clients) = peaks.split_first().context("nothing was watched")?;
    Ok((*server, clients.iter().copied().max().unwrap_or_default()))
}

fn theirs(folder: &Path, python: &Path, counted: bool) -> Result<Side> {
    #[derive(Deserialize)]
    struct Said {
        rounds: Vec<f64>,
        seconds: f64,
        mean: f64,
    }
    let (home, project, out) = (folder.join("flower"), folder.join("project"), folder.join("flower.json"));
    std::fs::create_dir_all(project.join("peer"))?;
    std::fs::create_dir_all(&home)?;
    std::fs::write(project.join("peer/__init__.py"), "")?;
    std::fs::write(project.join("peer/app.py"), include_str!("flower.py"))?;
    std::fs::write(
        project.join("pyproject.toml"),
        format!(
            "[build-system]\nrequires = [\"hatchling\"]\nbuild-backend = \"hatchling.build\"\n[project]\nname = \"peer\"\n\
             version = \"1.0.0\"\ndescription = \"a vector\"\nlicense = \"Apache-2.0\"\n\
             dependencies = [\"flwr>=1.41.0\", \"numpy>=1.26\"]\n\
             [tool.hatch.build.targets.wheel]\npackages = [\".\"]\n[tool.flwr.app]\npublisher = \"bench\"\n\
             [tool.flwr.app.components]\nserverapp = \"peer.app:server\"\nclientapp = \"peer.app:client\"\n\
             [tool.flwr.app.config]\nrounds = {FLOWER_ROUNDS}\nnumbers = {NUMBERS}\nclients = {CLIENTS}\nout = \"{}\"\n",
            out.display()
        ),
    )?;
    let server_port = free()?.port();
    std::fs::write(
        home.join("config.toml"),
        format!(
            "[superlink]\ndefault = \"site\"\n[superlink.site]\naddress = \"127.0.0.1:{server_port}\"\ninsecure = true\n"
        ),
    )?;
    let program = |name: &str| -> Result<Command> {
        let bin = python.parent().context("a folder")?;
        let mut command = Command::new(bin.join(name));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin.display())).env("FLWR_HOME", &home);
        command.env("FLWR_TELEMETRY_ENABLED", "0");
        Ok(command)
    };
    let log = |name: &str| folder.join(format!("{name}.log"));
    let server = Group::start(
        program("flower-superlink")?.args([
            "--insecure",
            "--disable-runtime-dependency-installation",
            "--port",
            &server_port.to_string(),
        ]),
        &log("superlink"),
    )?;
    listening(server_port).with_context(|| tail(&log("superlink")))?;
    let (through, counts) = proxy::start(SocketAddr::from(([127, 0, 0, 1], server_port)))?;
    let client = |number: usize| -> Result<Group> {
        let port = free()?.port().to_string();
        let through = if counted { through.to_string() } else { format!("127.0.0.1:{server_port}") };
        let mut command = program("flower-supernode")?;
        command.args(["--insecure", "--superlink", &through, "--port", &port]);
        Group::start(&mut command, &log(&format!("supernode-{number}")))
    };
    let clients = (0..CLIENTS).map(client).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(5));
    let sampler =
        counted.then(|| MemorySampler::start(std::iter::once(&server).chain(&clients).map(Group::id).collect()));
    let before = counts.now();
    let ran = program("flwr")?.args(["run", "."]).current_dir(&project).stdin(Stdio::null()).output()?;
    ensure!(ran.status.success(), "`flwr run` failed: {}", String::from_utf8_lossy(&ran.stdout));
    let begun = Instant::now();
    while !out.exists() {
        if begun.elapsed() > ROUNDS_MAX {
            bail!("Flower doesn't get through: {}", tail(&log("superlink")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_millis(200));
    let after = counts.now();
    let (server_bytes, client_bytes) = peaks(sampler)?;
    let said: Said = serde_json::from_slice(&std::fs::read(&out)?)?;
    let (got, expected) = (said.mean, FLOWER_ROUNDS as f64);
    ensure!((got - expected).abs() < 0.1, "Flower's model is {got} on average rather than {expected}");
    Ok(Side {
        round_s: said.rounds,
        all_s: said.seconds / FLOWER_ROUNDS as f64,
        bytes_up: (after[0] - before[0]) as f64 / FLOWER_ROUNDS as f64,
        bytes_down: (after[1] - before[1]) as f64 / FLOWER_ROUNDS as f64,
        server_bytes,
        client_bytes,
    })
}

fn listening(port: u16) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(begun.elapsed() < PATIENCE, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ours, flower } = self;
        writeln!(
            f,
            "FedAvg on {CLIENTS} clients, a model of {NUMBERS} numbers (f32), next to nothing to learn, all processes on this\n\
             machine: a Tierline site (mutual TLS, every update on the disk before it is sent and again before it counts,\n\
             ends that train one step), {ROUNDS} rounds; Flower 1.41's SuperLink and SuperNodes (no TLS, state in memory,\n\
             clients that add noise), {FLOWER_ROUNDS} rounds. Either side runs twice: as it is, for times; and through a proxy that counts\n\
             bytes on the wire, over the rounds, while memory is watched: proportional set sizes, the peak of each process\n\
             and what it started.\n"
        )?;
        writeln!(f, "| | ours | Flower | Flower / ours |")?;
        writeln!(f, "|---|---|---|---|")?;
        let mut row = |what: &str, unit: &str, digits: usize, pick: &dyn Fn(&Side) -> f64| {
            let (a, b) = (pick(ours), pick(flower));
            writeln!(f, "| {what} | {a:.digits$} {unit} | {b:.digits$} {unit} | {:.1} |", b / a)
        };
        row("round, median", "s", 3, &|s| median(&s.round_s))?;
        row("rounds, mean", "s", 3, &|s| s.all_s)?;
        row("bytes up, a round", "MB", 2, &|s| s.bytes_up / 1e6)?;
        row("bytes down, a round", "MB", 2, &|s| s.bytes_down / 1e6)?;
        row("memory of the server", "MB", 0, &|s| s.server_bytes as f64 / 1e6)?;
        row("memory of a client", "MB", 0, &|s| s.client_bytes as f64 / 1e6)?;
        let reached = |seconds: f64| if seconds <= GOAL_S { "reached" } else { "missed" };
        let (median, mean) = (reached(median(&ours.round_s)), reached(ours.all_s));
        writeln!(
            f,
            "\nThe goal of {GOAL_S} s for a round is {median} by the median and {mean} by the mean, which counts the first round in."
        )
    }
}
