//! `tierline bench`: how fast a node answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::infer::{PlacementArg, Wanted, ask, parse_time};
use super::{Global, args, block_on, client, usage};
use crate::output::{self, CommandResult};

#[derive(Debug, clap::Args)]
pub struct Bench {
    /// The model's name or digest
    #[arg(long)]
    model: String,
    /// An input: NAME=@FILE.npy (repeat for further inputs)
    #[arg(long = "input", value_name = "NAME=@FILE", required = true)]
    inputs: Vec<String>,
    /// Requests that count
    #[arg(long, default_value = "50")]
    requests: u32,
    /// Requests before, which don't count
    #[arg(long, default_value = "5")]
    warm_up: u32,
    /// Requests under way at once
    #[arg(long, default_value = "1")]
    concurrency: u32,
    /// Time to answer in, as in `500 ms`
    #[arg(long, value_name = "TIME", default_value = "30 s", value_parser = parse_time)]
    deadline: Duration,
    /// Run the plan in force, or everything on one tier
    #[arg(long, value_enum, default_value = "plan")]
    placement: PlacementArg,
    /// Hand on at these segments instead
    #[arg(long, value_name = "S1[,S2...]", value_delimiter = ',', conflicts_with = "placement")]
    split: Vec<u32>,
    /// The node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    requests: usize,
    concurrency: u32,
    /// Requests that were refused or failed, with the first reason.
    failed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure: Option<String>,
    degraded: usize,
    requests_per_s: f64,
    latency_ms: Latency,
    predicted_ms: Option<f64>,
    plan: String,
}

#[derive(Debug, Default, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    min: f64,
    max: f64,
}

struct Sample {
    latency: Duration,
    degraded: bool,
    predicted_ns: u64,
    plan: String,
}

pub fn bench(global: &Global, args: &Bench) -> CommandResult {
    if args.requests == 0 || args.concurrency == 0 {
        return Err(usage("--requests and --concurrency are 1 or more"));
    }
    let inputs = Arc::new(args::tensors(&args.inputs)?);
    let wanted = if args.split.is_empty() { Wanted::at(args.placement.into()) } else { Wanted::split(&args.split) };
    block_on(async {
        let mut node = client::connect(global, args.endpoint.as_deref()).await?;
        for _ in 0..args.warm_up {
            // A wrong request fails here, once, instead of so many times.
            ask(&mut node, &args.model, &inputs, args.deadline, &wanted).await?;
        }
        let bar = global.output().progress(args.requests.into(), "requests");
        let left = Arc::new(AtomicU32::new(args.requests));
        let begun = Instant::now();
        let callers: Vec<_> = (0..args.concurrency)
            .map(|_| {
                let (mut node, inputs, left, bar) = (node.clone(), Arc::clone(&inputs), Arc::clone(&left), bar.clone());
                let (model, deadline, wanted) = (args.model.clone(), args.deadline, wanted.clone());
                tokio::spawn(async move {
                    let mut samples = Vec::new();
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                        let answer = ask(&mut node, &model, &inputs, deadline, &wanted).await;
                        samples.push(answer.map(|a| Sample {
                            latency: a.latency,
                            degraded: a.reply.reply.is_some_and(|r| r.degraded.is_some()),
                            predicted_ns: a.reply.predicted_ns,
                            plan: a.reply.plan,
                        }));
                        bar.inc(1);
                    }
                    samples
                })
            })
            .collect();
        let mut samples = Vec::new();
        for caller in callers {
            samples.extend(caller.await?);
        }
        let took = begun.elapsed();
        bar.finish_and_clear();
        global.output().data(&report(args, samples, took), text)
    })
}

fn report(args: &Bench, samples: Vec<CommandResult<Sample>>, took: Duration) -> Report {
    let requests = samples.len();
    let (mut good, mut failures) = (Vec::new(), Vec::new());
    for sample in samples {
        match sample {
            Ok(sample) => good.push(sample),
            Err(failure) => failures.push(failure.error.to_string()),
        }
    }
    let mut latencies: Vec<f64> = good.iter().map(|s| s.latency.as_secs_f64() * 1e3).collect();
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| {
        latencies
            .get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    };
    let last = good.last();
    Report {
        model: args.model.clone(),
        requests,
        concurrency: args.concurrency,
        failed: failures.len(),
        first_failure: failures.into_iter().next(),
        degraded: good.iter().filter(|s| s.degraded).count(),
        requests_per_s: good.len() as f64 / took.as_secs_f64(),
        latency_ms: Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), min: at(0.0), max: at(1.0) },
        predicted_ms: last.filter(|s| s.predicted_ns > 0).map(|s| s.predicted_ns as f64 / 1e6),
        plan: last.map(|s| s.plan.clone()).unwrap_or_default(),
    }
}

fn text(r: &Report) -> String {
    let l = &r.latency_ms;
    let number = |x: f64| format!("{x:.1}");
    let rows = [vec![number(l.p50), number(l.p90), number(l.p99), number(l.min), number(l.max)]];
    let mut text = output::table(&["p50 ms", "p90 ms", "p99 ms", "min ms", "max ms"], &rows);
    text.push_str(&format!("\n{:.1} requests/s, {} at once", r.requests_per_s, r.concurrency));
    if let Some(predicted) = r.predicted_ms {
        text.push_str(&format!("; {predicted:.1} ms predicted"));
    }
    text.push_str(&format!("\n{}\n", r.plan));
    if r.degraded > 0 {
        text.push_str(&format!("{} of {} answers were degraded\n", r.degraded, r.requests));
    }
    if let Some(first) = &r.first_failure {
        text.push_str(&format!("{} of {} requests failed; the first: {first}\n", r.failed, r.requests));
    }
    text
}
