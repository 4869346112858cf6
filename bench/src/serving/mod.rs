//! A node that serves beside KServe's server and MLServer: the same model, the
//! same ONNX Runtime, the same client over gRPC, in turns; and beside ONNX
//! Runtime alone, called in a loop.
//!
//! Every answer is compared with the runtime's. What the same requests cost
//! without a model ([`bare`]) says how much of the engine's rate any server can
//! reach. Start at [`run`]; `load` asks,
//! [`failover`] cuts a device's cable under the same clients.

pub mod bare;
pub mod failover;
pub mod load;

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tierline_engine::{Engine, LoadOptions};
use tierline_graph::{Elements, Model, Tensor};
use tierline_zoo::{Options, by_name};

use self::load::{Asked, Load};
use crate::process::{Group, free};
use crate::training::environment;

/// The peers, as their package index has them.
const KSERVE: &[&str] = &["kserve==0.21.0", "onnxruntime==1.32.0", "numpy==2.4.6"];
const MLSERVER: &[&str] = &["mlserver==1.7.1", "onnxruntime==1.32.0", "numpy==2.4.6"];

const MODELS: [&str; 2] = ["mlp", "mobilenet_v2"];

/// Clients at once, each with a connection of its own and one request at a time.
const CLIENTS: [usize; 2] = [1, 32];

/// Turns of each server.
const TURNS: usize = 5;

/// Time of a turn; before the first, as much to warm up.
const TURN: Duration = Duration::from_secs(4);

/// The longest that a server may take to start.
const PATIENCE: Duration = Duration::from_secs(90);

/// The engine alone, and the transport alone.
const ENGINE: &str = "ONNX Runtime in a loop";
const BARE: &str = "no model";

/// Goals: times KServe's rate on the perceptron, and the share of the raw
/// engine's on MobileNetV2.
const GOAL_KSERVE: f64 = 3.0;
const GOAL_RAW: f64 = 0.95;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One per model, number of clients and server.
    pub rows: Vec<Row>,
}

/// One server under one load: medians of the turns.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The model.
    pub model: &'static str,
    /// Clients at once.
    pub clients: usize,
    /// Who answered.
    pub server: &'static str,
    /// Requests per second.
    pub rate: f64,
    /// Of all turns, milliseconds; none of the engine in a loop.
    pub p50_ms: Option<f64>,
    /// The same.
    pub p99_ms: Option<f64>,
    /// The rate over ours in the same turn, the median.
    pub beside: f64,
}

/// Runs the benchmark.
///
/// # Errors
/// When a server can't be started, or answers wrongly.
pub fn run() -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let kserve = environment("kserve", "KServe's server", KSERVE)?;
    let mlserver = environment("mlserver", "MLServer", MLSERVER)?;
    let engine = tierline_engine::onnxruntime(None)?;
    let mut rows = Vec::new();
    for name in MODELS {
        let model = by_name(name, &Options::default()).with_context(|| format!("no {name} in the zoo"))?;
        let file = folder.path().join(format!("{name}.onnx"));
        model.save(&file)?;
        let asked = asked(name, &model, engine.as_ref())?;
        let servers = [
            Server::ours(&file, name)?,
            Server::peer(&kserve, "kserve", "KServe", name, &file, folder.path())?,
            Server::peer(&mlserver, "mlserver", "MLServer", name, &file, folder.path())?,
            Server::bare(asked.expected.len(), &file)?,
        ];
        for clients in CLIENTS {
            eprintln!("  {name}, {clients} clients");
            rows.extend(measure(name, clients, &servers, &asked, engine.as_ref(), &model)?);
        }
    }
    Ok(Report { rows })
}

/// A request of the model and its answer by the engine alone.
pub fn asked(name: &str, model: &Model, engine: &dyn Engine) -> Result<Arc<Asked>> {
    let input = model.inputs().into_iter().next().context("the model takes nothing")?;
    let shape: Vec<usize> = input.shape.iter().flatten().map(|d| d.known().unwrap_or(1) as usize).collect();
    let mut rng = fastrand::Rng::with_seed(3);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let x = Tensor::new(shape.clone(), Elements::F32(values.clone()))?;
    let mut session = engine.load(model, &LoadOptions::with_threads(0))?;
    let outputs = session.run(&[(&input.name, &x)])?;
    let expected = outputs.first().and_then(|t| t.as_f32().map(<[f32]>::to_vec)).context("no output of floats")?;
    Ok(Arc::new(Asked { model: name.to_owned(), input: input.name, shape, x, values, expected }))
}

fn measure(
    model: &'static str,
    clients: usize,
    servers: &[Server],
    asked: &Arc<Asked>,
    engine: &dyn Engine,
    raw: &Model,
) -> Result<Vec<Row>> {
    let load = Load::new(clients)?;
    let unchecked = Arc::new(Asked { expected: Vec::new(), ..asked.as_ref().clone() });
    let asked_of = |server: &Server| if server.name == BARE { &unchecked } else { asked };
    for server in servers {
        load.run(server.grpc, asked_of(server), TURN).with_context(|| format!("{} did not answer", server.name))?;
    }
    let mut session = engine.load(raw, &LoadOptions::with_threads(0))?;
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); servers.len() + 1];
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    for turn in 0..TURNS {
        for i in 0..servers.len() {
            // Not always behind the same other one.
            let at = (i + turn) % servers.len();
            let taken = load.run(servers[at].grpc, asked_of(&servers[at]), TURN)?;
            rates[at].push(taken.len() as f64 / TURN.as_secs_f64());
            times[at].extend(taken);
        }
        let (began, mut count, mut outputs) = (Instant::now(), 0, Vec::new());
        while began.elapsed() < TURN {
            session.run_into(&[(&asked.input, &asked.x)], &mut outputs)?;
            count += 1;
        }
        rates[servers.len()].push(f64::from(count) / began.elapsed().as_secs_f64());
    }
    let names = servers.iter().map(|s| s.name).chain([ENGINE]);
    let row = |(at, server): (usize, &'static str)| {
        let beside: Vec<f64> = rates[at].iter().zip(&rates[0]).map(|(rate, ours)| rate / ours).collect();
        Row {
            model,
            clients,
            server,
            rate: quantile(&rates[at], 0.5),
            p50_ms: times.get(at).map(|times| quantile(times, 0.5)),
            p99_ms: times.get(at).map(|times| quantile(times, 0.99)),
            beside: quantile(&beside, 0.5),
        }
    };
    Ok(names.enumerate().map(row).collect())
}

/// By rank.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A server as a process, with whatever it starts; ends with the value.
struct Server {
    name: &'static str,
    grpc: SocketAddr,
    _process: Group,
}

impl Server {
    fn ours(model: &Path, name: &str) -> Result<Self> {
        let binary = std::env::var_os("TIERLINE_BINARY").map(PathBuf::from);
        let binary = binary.context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?;
        let (http, grpc) = (free()?, free()?);
        let mut command = Command::new(binary);
        let [http, address] = [http, grpc].map(|a| a.to_string());
        command.args(["serve", &model.to_string_lossy(), "--name", name, "--http", &http, "--grpc", &address]);
        Self::start(command, "Tierline", grpc, &model.with_extension("ours.log"))
    }

    fn peer(python: &Path, word: &str, name: &'static str, model: &str, file: &Path, folder: &Path) -> Result<Self> {
        let (http, grpc) = (free()?, free()?);
        let script = folder.join("peer.py");
        std::fs::write(&script, include_str!("peer.py"))?;
        let mut command = Command::new(python);
        let ports = [http.port().to_string(), grpc.port().to_string()];
        command.arg(&script).args([word, model]).arg(file).args(ports).arg(folder.join(format!("{word}-{model}")));
        Self::start(command, name, grpc, &folder.join(format!("{word}-{model}.log")))
    }

    fn bare(numbers: usize, model: &Path) -> Result<Self> {
        let grpc = free()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([bare::VERB, &grpc.to_string(), &numbers.to_string()]);
        Self::start(command, BARE, grpc, &model.with_extension("bare.log"))
    }

    fn start(mut command: Command, name: &'static str, grpc: SocketAddr, log: &Path) -> Result<Self> {
        let server = Self { name, grpc, _process: Group::start(&mut command, log)? };
        let began = Instant::now();
        while TcpStream::connect(grpc).is_err() {
            let text = || std::fs::read_to_string(log).unwrap_or_default();
            ensure!(began.elapsed() < PATIENCE, "{name} does not start: {}", text());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "`tierline serve` beside KServe's server (0.21) and MLServer (1.7.1, inference in the process that answers), all with\n\
             ONNX Runtime on every core, over gRPC with raw tensors, one request of one example at a time per client; every\n\
             answer is compared. {TURNS} turns of {} s each, in turns; client and servers share this machine. The last two of\n\
             each block are the transport alone (a server that reads the request and answers without a model) and the engine\n\
             alone in a loop, without a client.\n",
            TURN.as_secs()
        )?;
        writeln!(f, "| model | clients | | requests/s | p50 ms | p99 ms | rate / ours |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let ms = |t: Option<f64>| t.map_or_else(|| "–".to_owned(), |t| format!("{t:.2}"));
        for r in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {:.0} | {} | {} | {:.2} |",
                r.model,
                r.clients,
                r.server,
                r.rate,
                ms(r.p50_ms),
                ms(r.p99_ms),
                r.beside
            )?;
        }
        let beside = |model: &str, server: &str| {
            let rows = self.rows.iter().filter(move |r| r.model == model && r.server == server);
            rows.map(|r| (r.clients, r.beside)).collect::<Vec<_>>()
        };
        writeln!(f)?;
        for (clients, ratio) in beside("mlp", "KServe") {
            let times = 1.0 / ratio;
            let goal = if times >= GOAL_KSERVE { "reached" } else { "missed" };
            writeln!(f, "mlp, {clients} clients: {times:.1} times KServe's rate (goal {GOAL_KSERVE}: {goal}).")?;
        }
        let bare = beside("mobilenet_v2", BARE);
        for ((clients, ratio), (_, bare)) in beside("mobilenet_v2", ENGINE).into_iter().zip(bare) {
            let share = 1.0 / ratio;
            // One after the other on the same cores: their times add up.
            let reachable = 1.0 / (1.0 + ratio / bare);
            let goal = if share >= GOAL_RAW { "reached" } else { "missed" };
            writeln!(
                f,
                "mobilenet_v2, {clients} clients: {:.0}% of the engine's rate alone (goal {:.0}%: {goal}); the transport on the\n\
                 same cores leaves {:.0}%.",
                share * 100.0,
                GOAL_RAW * 100.0,
                reachable * 100.0
            )?;
        }
        Ok(())
    }
}
