//! Benchmarks beside their peers in the same run: `cargo xtask bench [NAME..]`.
//!
//! Without names all of them run, and what they print becomes
//! `docs/reference/benchmarks.md`.

mod footprint;
mod overhead;
mod placement;
mod planner;
mod training;

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// A benchmark: name, heading, and what runs it, giving text and numbers.
type Benchmark = (&'static str, &'static str, fn() -> Result<(String, serde_json::Value)>);

const BENCHMARKS: [Benchmark; 7] = [
    ("overhead", "Engine overhead over ONNX Runtime called directly", || both(overhead::run()?)),
    ("planner", "Planner beside petgraph's maximum flow", || both(planner::run()?)),
    ("placement", "Plans beside every single cut", || both(placement::run()?)),
    ("footprint", "Footprint of a node", || both(footprint::run()?)),
    ("training", "Training steps beside PyTorch", || both(training::run()?)),
    ("exports", "Gradients of PyTorch's exports", || both(training::exports::run()?)),
    ("fashion", "Fashion-MNIST beside PyTorch", || both(training::fashion::run()?)),
];

fn both(report: impl serde::Serialize + std::fmt::Display) -> Result<(String, serde_json::Value)> {
    Ok((report.to_string(), serde_json::to_value(&report)?))
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // The benchmark of training runs itself as a process of its own.
    if let [verb, name, form, threads, batch] = &words[..]
        && verb == "training-steps"
    {
        return training::child(name, form, threads, batch);
    }
    let json = words.iter().any(|word| word == "--json");
    let names: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    if let Some(unknown) = names.iter().find(|name| BENCHMARKS.iter().all(|(n, ..)| n != *name)) {
        bail!("no benchmark `{unknown}`; there are {}", BENCHMARKS.map(|(n, ..)| n).join(", "));
    }
    let mut page = head();
    for (name, heading, run) in BENCHMARKS {
        if !names.is_empty() && !names.contains(&name) {
            continue;
        }
        eprintln!("{heading}");
        let (text, numbers) = run()?;
        if json {
            println!("{}", serde_json::json!({ "benchmark": name, "report": numbers }));
        } else {
            println!("## {heading}\n\n{}\n", text.trim_end());
        }
        let _ = write!(page, "\n## {heading}\n\n`cargo xtask bench {name}`\n\n{}\n", text.trim_end());
    }
    if names.is_empty() {
        let repository = std::env::var_os("TIERLINE_REPOSITORY").map(PathBuf::from);
        let repository = repository.context("TIERLINE_REPOSITORY is not set; run `cargo xtask bench`")?;
        let path = repository.join("docs/reference/benchmarks.md");
        std::fs::write(&path, page)?;
        eprintln!("written to {}", path.display());
    }
    Ok(())
}

/// The page's head: what machine, and when.
fn head() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown processor")
        .to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let date = std::process::Command::new("date").arg("+%F").output();
    let date = date.map_or_else(|_| String::new(), |d| String::from_utf8_lossy(&d.stdout).trim().to_owned());
    format!(
        "# Benchmarks\n\nWritten by `cargo xtask bench`, which runs each peer in the same run; compare ratios, not times of \
         different machines.\n\nMachine: {cpu}, {cores} cores, shared with others. Date: {date}.\n"
    )
}
