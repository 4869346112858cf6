//! Benchmarks beside their peers in the same run: `cargo xtask bench [NAME..]`.
//!
//! What they print is written into `docs/reference/benchmarks.md`: each to a
//! part of its own, and without names, all of it anew. Start at
//! [`BENCHMARKS`]; `page` keeps the parts.

mod beside;
mod build;
mod continual;
mod delta;
mod exits;
mod federation;
mod footprint;
mod idle;
mod overhead;
mod page;
mod placement;
mod planner;
mod process;
mod serving;
mod training;

use anyhow::{Result, bail};

/// A benchmark.
#[derive(Clone, Copy)]
struct Benchmark {
    /// Those of a group run together when the group is named alone.
    group: Option<&'static str>,
    name: &'static str,
    heading: &'static str,
    /// Gives text and numbers.
    run: fn() -> Result<(String, serde_json::Value)>,
}

const fn alone(
    name: &'static str,
    heading: &'static str,
    run: fn() -> Result<(String, serde_json::Value)>,
) -> Benchmark {
    Benchmark { group: None, name, heading, run }
}

const fn federated(
    name: &'static str,
    heading: &'static str,
    run: fn() -> Result<(String, serde_json::Value)>,
) -> Benchmark {
    Benchmark { group: Some("federation"), name, heading, run }
}

/// All of them, in the order of the page.
const BENCHMARKS: &[Benchmark] = &[
    alone("overhead", "Engine overhead over ONNX Runtime called directly", || both(overhead::run()?)),
    alone("planner", "Planner beside petgraph's maximum flow", || both(planner::run()?)),
    alone("placement", "Plans beside every single cut", || both(placement::run()?)),
    alone("serving", "Serving beside KServe and MLServer", || both(serving::run()?)),
    alone("failover", "From a cut cable to an answer", || both(serving::failover::run()?)),
    alone("idle", "Ten thousand idle ends", || both(idle::run()?)),
    alone("exits", "Early exits and a cascade", || both(exits::run()?)),
    alone("beside", "Requests beside training", || both(beside::run()?)),
    alone("footprint", "Footprint of a node", || both(footprint::run()?)),
    alone("build", "Building from nothing", || both(build::run()?)),
    alone("training", "Training steps beside PyTorch", || both(training::run()?)),
    alone("exports", "Gradients of PyTorch's exports", || both(training::exports::run()?)),
    alone("delta", "Deltas beside zstd and bsdiff", || both(delta::run()?)),
    alone("fashion", "Fashion-MNIST beside PyTorch", || both(training::fashion::run()?)),
    alone("continual", "Learning the new, keeping the old", || both(continual::run()?)),
    federated("flower", "Rounds of a federation beside Flower", || both(federation::flower::run()?)),
    federated("codecs", "Bytes of a federation to an accuracy", || both(federation::codecs::run()?)),
    federated("equality", "FedAvg beside PyTorch", || both(federation::equality::run()?)),
    federated("robust", "Rules against harm", || both(federation::robust::run()?)),
    federated("hierarchy", "Edges that average beside edges that pass on", || both(federation::hierarchy::run()?)),
    federated("throughput", "Sums beside a copy", || both(federation::throughput::run()?)),
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
    if let [verb, address, numbers] = &words[..]
        && verb == serving::bare::VERB
    {
        return serving::bare::serve(address, numbers);
    }
    if let [verb, way, old, new] = &words[..]
        && verb == delta::VERB
    {
        return delta::child(way, old, new);
    }
    // So are the ends of the benchmark of idle ones.
    if let [verb, url, authority] = &words[..]
        && verb == "idle-ends"
    {
        return idle::ends::run(url, std::path::Path::new(authority));
    }
    let json = words.iter().any(|word| word == "--json");
    let names: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let chosen = chosen(&names)?;
    if names.is_empty() {
        page::Page::anew()?.write()?;
    }
    for benchmark in chosen {
        eprintln!("{}", benchmark.heading);
        let (text, numbers) = (benchmark.run)()?;
        if json {
            println!("{}", serde_json::json!({ "benchmark": benchmark.name, "report": numbers }));
        } else {
            println!("## {}\n\n{}\n", benchmark.heading, text.trim_end());
        }
        // Behind each: what comes after may fail, and others may write beside.
        let mut page = page::Page::open()?;
        page.put(benchmark, text.trim_end());
        page.write()?;
    }
    Ok(())
}

/// Those named, in the order of the page.
fn chosen(names: &[&str]) -> Result<Vec<&'static Benchmark>> {
    let known = |name: &str| BENCHMARKS.iter().any(|b| b.name == name || b.group == Some(name));
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let mut all: Vec<&str> = BENCHMARKS.iter().flat_map(|b| [b.group, Some(b.name)]).flatten().collect();
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|name| seen.insert(*name));
        bail!("no benchmark `{unknown}`; there are {}", all.join(", "));
    }
    let named = |b: &Benchmark| names.contains(&b.name);
    let wanted = |b: &&Benchmark| {
        let grouped = b.group.is_some_and(|group| {
            names.contains(&group) && !BENCHMARKS.iter().any(|other| other.group == Some(group) && named(other))
        });
        names.is_empty() || named(b) || grouped
    };
    Ok(BENCHMARKS.iter().filter(wanted).collect())
}
