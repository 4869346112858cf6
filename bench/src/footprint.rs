//! What a node costs a device: memory when idle and with a model, size of the
//! binary, time from start to ready.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tierline_codec::npy;
use tierline_demo::site::{Node, Tierline, wait};
use tierline_demo::{detector, picture};
use tierline_graph::Model;

/// Starts timed; the median counts.
const STARTS: usize = 9;

/// Time for an idle node to come to rest.
const REST: Duration = Duration::from_secs(5);

/// Side of the pictures that the detector is given.
const SIDE: u32 = 640;

/// Requests before memory is looked at; as many of the engine alone.
const REQUESTS: usize = 3;

/// The engine alone, from Python: how much its memory grows by a model and some
/// runs of it.
const ALONE: &str = "
import sys, numpy, onnxruntime
def rss():
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmRSS:')) * 1024
before = rss()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])
name, pixels = session.get_inputs()[0].name, numpy.load(sys.argv[2])
for _ in range(int(sys.argv[3])):
    session.run(None, {name: pixels})
print((rss() - before) / 1e6)
";

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Resident memory of an end that has joined and holds no model, MB.
    pub idle_rss_mb: f64,
    /// The same with the embedded engine only.
    pub idle_rss_rten_mb: f64,
    /// Resident memory of an end that has measured a text detector of 4.7 MB,
    /// MB.
    pub profiled_rss_mb: f64,
    /// The same after some requests, which ran there as a whole.
    pub running_rss_mb: f64,
    /// What ONNX Runtime alone needs for as many, MB.
    pub engine_rss_mb: f64,
    /// The binary as it was measured, MB.
    pub binary_mb: f64,
    /// From the start of the process to its answering, milliseconds.
    pub ready_ms: f64,
    /// The same with the embedded engine only.
    pub ready_rten_ms: f64,
}

/// Measures an end below a cloud.
///
/// # Errors
/// When the nodes can't be started.
pub fn run() -> Result<Report> {
    let binary = std::env::var_os("TIERLINE_BINARY").map(PathBuf::from);
    let binary = binary.context("TIERLINE_BINARY is not set; run `cargo xtask bench`")?;
    let folder = tempfile::tempdir()?;
    let tierline = Tierline::new(binary.clone(), folder.path());
    let cloud = tierline.node("cloud", &["--role", "cloud", "--listen", "127.0.0.1:0"])?;
    let mut measured = Vec::new();
    for engine in ["auto", "rten"] {
        let name = format!("end-{engine}");
        drop(tierline.join(&cloud, "end", &name, &cloud.url, &["--engine", engine])?);
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let begun = Instant::now();
            let node = tierline.node(&name, &["--engine", engine])?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            drop(node);
        }
        times.sort_by(f64::total_cmp);
        let node = tierline.node(&name, &["--engine", engine])?;
        std::thread::sleep(REST);
        measured.push((rss_mb(node.process_id())?, times[STARTS / 2]));
    }
    let end = tierline.node("end-auto", &["--engine", "auto"])?;
    let [profiled_rss_mb, running_rss_mb, engine_rss_mb] = with_detector(folder.path(), &cloud, &end)?;
    Ok(Report {
        profiled_rss_mb,
        running_rss_mb,
        engine_rss_mb,
        idle_rss_mb: measured[0].0,
        idle_rss_rten_mb: measured[1].0,
        binary_mb: std::fs::metadata(&binary)?.len() as f64 / 1e6,
        ready_ms: measured[0].1,
        ready_rten_ms: measured[1].1,
    })
}

/// Memory of an end, MB: once it has measured the detector, and after requests;
/// and the engine's alone.
fn with_detector(folder: &Path, cloud: &Node, end: &Node) -> Result<[f64; 3]> {
    let variable = |name: &str| std::env::var_os(name).with_context(|| format!("{name} is not set"));
    let assets = PathBuf::from(variable("TIERLINE_ASSETS")?);
    let (file, pixels) = (folder.join("detector.onnx"), folder.join("pixels.npy"));
    detector::with_pixels(&Model::load(&assets.join("models/ppocr-det.onnx"))?, [SIDE, SIDE])?.save(&file)?;
    let page = picture::fit(&picture::load(&assets.join("pictures/page.png"))?, [SIDE, SIDE])?;
    std::fs::write(&pixels, npy::write(&page.tensor)?)?;
    cloud.ask(&["model", "add", &file.to_string_lossy(), "--name", "detector"])?;
    let planned = || end.ask(&["plan", "detector"]).ok();
    wait(Duration::from_secs(600), planned).context("the detector was not planned")?;
    std::thread::sleep(REST);
    let profiled = rss_mb(end.process_id())?;
    let input = format!("{}=@{}", detector::INPUT, pixels.display());
    for _ in 0..REQUESTS {
        end.ask(&["infer", "--model", "detector", "--input", &input, "--placement", "here"])?;
    }
    std::thread::sleep(REST);
    let running = rss_mb(end.process_id())?;
    let mut alone = Command::new(variable("TIERLINE_PYTHON")?);
    let output = alone.args(["-c", ALONE]).args([&file, &pixels]).arg(REQUESTS.to_string()).output()?;
    ensure!(output.status.success(), "the engine alone: {}", String::from_utf8_lossy(&output.stderr));
    Ok([profiled, running, String::from_utf8(output.stdout)?.trim().parse()?])
}

fn rss_mb(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("the system tells no memory")?;
    let kb: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kb * 1_024.0 / 1e6)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ONNX Runtime is loaded with the first model, so an idle end doesn't hold it yet.\n")?;
        writeln!(f, "| | ONNX Runtime found | rten only | goal |")?;
        writeln!(f, "|---|---|---|---|")?;
        writeln!(f, "| idle end, resident | {:.1} MB | {:.1} MB | 30 MB |", self.idle_rss_mb, self.idle_rss_rten_mb)?;
        let goal = 2.0 * self.engine_rss_mb;
        writeln!(
            f,
            "| with a 4.7 MB detector ({SIDE}x{SIDE}), measured, resident | {:.0} MB | | |",
            self.profiled_rss_mb
        )?;
        writeln!(
            f,
            "| after {REQUESTS} requests, resident (ONNX Runtime alone: {:.0} MB) | {:.0} MB | | {goal:.0} MB |",
            self.engine_rss_mb, self.running_rss_mb
        )?;
        writeln!(f, "| start to ready | {:.0} ms | {:.0} ms | 200 ms |", self.ready_ms, self.ready_rten_ms)?;
        writeln!(f, "| binary | {:.1} MB | | 25 MB |", self.binary_mb)
    }
}
