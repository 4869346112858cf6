//! Ten thousand idle ends on one edge: what each costs it in memory, what
//! their heartbeats cost it in time and bytes, and how it answers meanwhile.
//!
//! Cloud and edge are processes as a user starts them; the ends are one more
//! process ([`ends`]), with a lease each by the code that real ends keep theirs
//! with. Start at [`run`].

pub mod ends;

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tierline_demo::site::{Tierline, wait};
use tierline_zoo::{Options, by_name};

use self::ends::{COUNTED, Said};
use crate::serving::load::{Asked, Load};
use crate::serving::{asked, quantile};

/// Ends, step by step: `TIERLINE_IDLE_ENDS` names other steps.
const STEPS: [usize; 5] = [1_000, 2_500, 5_000, 7_500, 10_000];

/// Open files that the edge and the ends may have each.
const FILES: u64 = 65_536;

/// From the last that joins until memory is looked at: connections that ends
/// made for their first probes are let go of after a minute.
const REST: Duration = Duration::from_secs(75);

/// Heartbeats are watched for so long.
const WATCHED: Duration = Duration::from_secs(60);

/// Requests are asked for so long, one behind the other.
const ASKED: Duration = Duration::from_secs(10);

/// What the edge is asked.
const MODEL: &str = "mlp";

/// Clock ticks of a second, as `/proc` counts time.
const TICKS_PER_S: f64 = 100.0;

/// The goal: bytes of memory per end.
const GOAL_BYTES: f64 = 100e3;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The edge without ends, and at each step.
    pub steps: Vec<Step>,
    /// Processor time of the edge in a minute with all of them, seconds; of the
    /// process of the ends.
    pub cpu_s: [f64; 2],
    /// The same of the edge without ends.
    pub cpu_alone_s: f64,
    /// Bytes of TLS in a minute and end: up and down.
    pub bytes: [f64; 2],
    /// Milliseconds of an answer of the edge without ends and with all of them:
    /// median and 99th percentile.
    pub answers_ms: [[f64; 2]; 2],
    /// Leases lost in all.
    pub lost: u64,
}

/// The edge with so many ends.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Step {
    /// Ends connected.
    pub ends: usize,
    /// Since the step before, until the last of them held its lease, seconds.
    pub joining_s: f64,
    /// Resident bytes of the edge.
    pub rss: f64,
    /// The same, pages that others have as well counted in part.
    pub pss: f64,
}

impl Report {
    /// Resident bytes per end, over all.
    #[must_use]
    pub fn bytes_per_end(&self) -> f64 {
        let (Some(first), Some(last)) = (self.steps.first(), self.steps.last()) else { return f64::NAN };
        (last.rss - first.rss) / (last.ends - first.ends) as f64
    }
}

/// Measures.
///
/// # Errors
/// When the site can't be started, or the system has too few open files for the
/// ends.
pub fn run() -> Result<Report> {
    let binary = std::env::var_os("TIERLINE_BINARY").map(PathBuf::from);
    let binary = binary.context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?;
    let steps = steps()?;
    more_files(*steps.last().context("no steps")? as u64)?;
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(binary, folder.path());
    let cloud =
        tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0", "--http", "off", "--grpc", "off"])?;
    let serve = ["--listen", "127.0.0.1:0", "--http", "off", "--grpc", "127.0.0.1:0"];
    let edge = tierline.join(&cloud, "edge", "edge", &cloud.url, &serve)?;
    let model = by_name(MODEL, &Options::default()).with_context(|| format!("no {MODEL} in the zoo"))?;
    let file = folder.path().join("model.onnx");
    model.save(&file)?;
    cloud.ask(&["model", "add", &file.to_string_lossy(), "--name", MODEL])?;
    let planned = || edge.ask(&["explain", MODEL]).ok()?["in_force"].as_str().map(str::to_owned);
    wait(Duration::from_secs(120), planned).context("the edge has no plan")?;
    let asked = asked(MODEL, &model, tierline_engine::onnxruntime(None)?.as_ref())?;
    let address: SocketAddr = edge.grpc.trim_start_matches("http://").parse()?;
    let load = Load::new(1)?;
    load.run(address, &asked, ASKED / 4)?;

    let id = edge.process_id();
    let alone = answers(&load, address, &asked)?;
    std::thread::sleep(REST / 5);
    let cpu_alone_s = spent(id, WATCHED / 3)? * 3.0;
    let mut taken = vec![Step { ends: 0, joining_s: 0.0, ..memory(id)? }];
    let mut ends = Ends::start(&edge.url, &folder.path().join("cloud/ca"))?;
    for wanted in steps {
        let begun = Instant::now();
        ends.grow(wanted)?;
        let joining_s = begun.elapsed().as_secs_f64();
        eprintln!("  {wanted} ends after {joining_s:.1} s more");
        std::thread::sleep(REST);
        taken.push(Step { ends: wanted, joining_s, ..memory(id)? });
    }
    let count = taken.last().map_or(0, |step| step.ends);
    let before = ends.grow(count)?;
    let (begun, times) = (Instant::now(), [processor_s(id)?, processor_s(ends.process.id())?]);
    std::thread::sleep(WATCHED);
    let (after, minutes) = (ends.grow(count)?, begun.elapsed().as_secs_f64() / 60.0);
    let cpu_s = [(processor_s(id)? - times[0]) / minutes, (processor_s(ends.process.id())? - times[1]) / minutes];
    let counted = count.div_ceil(COUNTED) as f64;
    let bytes = [0, 1].map(|way| (after.bytes[way] - before.bytes[way]) as f64 / counted / minutes);
    let answers_ms = [alone, answers(&load, address, &asked)?];
    let lost = ends.grow(count)?.lost;
    Ok(Report { steps: taken, cpu_s, cpu_alone_s, bytes, answers_ms, lost })
}

/// Numbers of ends.
fn steps() -> Result<Vec<usize>> {
    let Ok(words) = std::env::var("TIERLINE_IDLE_ENDS") else { return Ok(STEPS.to_vec()) };
    Ok(words.split(',').map(|word| word.trim().parse()).collect::<Result<_, _>>()?)
}

/// Raises the limit of open files, for this process and those that it starts:
/// an edge has room for a child for every two.
fn more_files(ends: u64) -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(FILES).max(FILES);
    let raised = [hard, now.maximum.unwrap_or(hard)].into_iter().find(|hard| {
        setrlimit(Resource::Nofile, Rlimit { current: Some(*hard.min(&FILES)), maximum: Some(*hard) }).is_ok()
    });
    let files = raised.unwrap_or(0).min(FILES);
    ensure!(files / 2 >= ends, "{files} open files are too few for {ends} ends: raise `ulimit -Hn`");
    Ok(())
}

/// Median and 99th percentile of an answer, milliseconds.
fn answers(load: &Load, address: SocketAddr, asked: &Arc<Asked>) -> Result<[f64; 2]> {
    let taken = load.run(address, asked, ASKED)?;
    Ok([0.5, 0.99].map(|q| quantile(&taken, q)))
}

/// Processor time of a process so far, seconds.
fn processor_s(id: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Behind the name, which may hold anything: user and system time are the 14th and 15th of all.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("no times of a process");
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}

/// Processor time within so long, seconds.
fn spent(id: u32, time: Duration) -> Result<f64> {
    let before = processor_s(id)?;
    std::thread::sleep(time);
    Ok(processor_s(id)? - before)
}

/// Memory of a process.
fn memory(id: u32) -> Result<Step> {
    let said = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
    let bytes = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).context("no memory of a process")?;
        Ok::<_, anyhow::Error>(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? * 1024.0)
    };
    Ok(Step { ends: 0, joining_s: 0.0, rss: bytes("Rss:")?, pss: bytes("Pss:")? })
}

/// The process of the ends; it ends with the value.
struct Ends {
    process: Child,
    tell: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Ends {
    fn start(url: &str, authority: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["idle-ends", url]).arg(authority).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let (tell, said) = (process.stdin.take().context("no pipe")?, process.stdout.take().context("no pipe")?);
        Ok(Self { process, tell, said: BufReader::new(said) })
    }

    /// Waits until so many ends hold their leases.
    fn grow(&mut self, ends: usize) -> Result<Said> {
        writeln!(self.tell, "{ends}")?;
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        serde_json::from_str(&line).context("the ends gave up")
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.steps.last().map_or(0, |step| step.ends);
        writeln!(
            f,
            "One edge (a process) below a cloud; {count} ends in another process, each with a certificate of its own, a session\n\
             over mutual TLS and the lease of a real end. Nobody asks for anything. Memory {} s behind the last that joined.\n",
            REST.as_secs()
        )?;
        writeln!(f, "| ends | joined in, s | resident, MB | proportional, MB | kB per end |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        let mut before: Option<&Step> = None;
        for step in &self.steps {
            let more = before.map(|before| (step.rss - before.rss) / (step.ends - before.ends) as f64 / 1e3);
            writeln!(
                f,
                "| {} | {} | {:.1} | {:.1} | {} |",
                step.ends,
                before.map_or_else(|| "-".to_owned(), |_| format!("{:.1}", step.joining_s)),
                step.rss / 1e6,
                step.pss / 1e6,
                more.map_or_else(|| "-".to_owned(), |more| format!("{more:.1}")),
            )?;
            before = Some(step);
        }
        let [edge, ends] = self.cpu_s;
        let [up, down] = self.bytes;
        let [alone, beside] = self.answers_ms;
        writeln!(
            f,
            "\n{:.1} kB of memory per end (goal: below {:.0}). In a minute, heartbeats of all cost the edge {edge:.1} s of one core\n\
             ({:.1} s without ends), the process of the ends {ends:.1} s; {:.1} kB up and {:.1} kB down per end (TLS, probes\n\
             included). Leases lost: {}.",
            self.bytes_per_end() / 1e3,
            GOAL_BYTES / 1e3,
            self.cpu_alone_s,
            up / 1e3,
            down / 1e3,
            self.lost
        )?;
        writeln!(
            f,
            "\nThe edge answers a request for a perceptron in {:.2} ms (99th percentile {:.2}) with all of them, {:.2} ms ({:.2}) without.",
            beside[0], beside[1], alone[0], alone[1]
        )
    }
}
