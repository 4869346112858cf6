//! What a node costs a device: memory when idle, size of the binary, time
//! from start to ready.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tierline_demo::site::Tierline;

/// Starts timed; the median counts.
const STARTS: usize = 9;

/// Time for an idle node to come to rest.
const REST: Duration = Duration::from_secs(5);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Resident memory of an end that has joined and holds no model, MB.
    pub idle_rss_mb: f64,
    /// The same with the embedded engine only.
    pub idle_rss_rten_mb: f64,
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
    Ok(Report {
        idle_rss_mb: measured[0].0,
        idle_rss_rten_mb: measured[1].0,
        binary_mb: std::fs::metadata(&binary)?.len() as f64 / 1e6,
        ready_ms: measured[0].1,
        ready_rten_ms: measured[1].1,
    })
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
        writeln!(f, "| start to ready | {:.0} ms | {:.0} ms | 200 ms |", self.ready_ms, self.ready_rten_ms)?;
        writeln!(f, "| binary | {:.1} MB | | 25 MB |", self.binary_mb)
    }
}
