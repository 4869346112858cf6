//! A session of ours beside ONNX Runtime called directly: the same library,
//! process, bytes, options and inputs, in turns.
//!
//! Direct means the `ort` crate's own session, its outputs read where the
//! runtime left them; ours checks inputs by name, guards against panics and
//! copies outputs into the caller's tensors. A second direct session is the
//! control: its ratio to the first is what chance makes of no difference.
//! Start at [`run`].

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;
use serde::Serialize;
use tierline_engine::{Engine, LoadOptions};
use tierline_graph::{Dim, Elements, Model, Tensor};
use tierline_zoo::{Options, by_name};

/// Models of the zoo, at their published sizes.
const MODELS: [&str; 2] = ["mobilenet_v2", "resnet50"];

/// Threads; 0 is every core, through the pool that sessions share.
const THREADS: [usize; 2] = [1, 0];

/// Fresh sessions for each row: how one happens to lie in memory outweighs
/// what is measured here.
const SESSIONS: usize = 5;

/// Time for each row.
const ROW_TIME: Duration = Duration::from_secs(30);

/// Rounds before the first that counts, with each set of sessions.
const WARM_UP: usize = 3;

/// The goal: this much on top at most.
const GOAL: f64 = 1.02;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// One per model and number of threads.
    pub rows: Vec<Row>,
}

/// One model on so many threads. Times are medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The model's name in the zoo.
    pub model: String,
    /// Threads; 0 is every core.
    pub threads: usize,
    /// Rounds: each ran all sessions once.
    pub rounds: usize,
    /// Ours, milliseconds.
    pub ours_ms: f64,
    /// Direct, milliseconds.
    pub direct_ms: f64,
    /// Ours over direct.
    pub ratio: Ratio,
    /// One direct session over another.
    pub control: Ratio,
}

/// Ratios of times in the same round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// 95 % interval of the median.
    pub low: f64,
    /// Its other end.
    pub high: f64,
}

/// Measures every row; takes minutes.
///
/// # Errors
/// Without a usable ONNX Runtime, and when the two give different outputs.
pub fn run() -> anyhow::Result<Report> {
    let engine = tierline_engine::onnxruntime(None)?;
    let mut rows = Vec::new();
    for name in MODELS {
        let model = by_name(name, &Options::default()).with_context(|| format!("no architecture `{name}`"))?;
        for threads in THREADS {
            rows.push(row(engine.as_ref(), name, &model, threads, ROW_TIME)?);
        }
    }
    Ok(Report { onnxruntime: engine.version(), rows })
}

fn row(engine: &dyn Engine, name: &str, model: &Model, threads: usize, time: Duration) -> anyhow::Result<Row> {
    let bytes = model.to_bytes()?;
    let input = model.inputs().into_iter().next().context("the model takes nothing")?;
    let sizes = input.shape.iter().flatten().map(|d: &Dim| d.known().map(|n| n as usize)).collect::<Option<Vec<_>>>();
    let sizes = sizes.with_context(|| format!("{name} leaves its shape open"))?;
    let mut rng = fastrand::Rng::with_seed(7);
    let noise = (0..sizes.iter().product()).map(|_| rng.f32() * 2. - 1.).collect();
    let x = Tensor::new(sizes, Elements::F32(noise))?;

    let mut times: BTreeMap<Who, Vec<f64>> = BTreeMap::new();
    for _ in 0..SESSIONS {
        let mut ours = engine.load(model, &LoadOptions::with_threads(threads))?;
        let mut direct = Direct::new(&bytes, threads)?;
        let mut control = Direct::new(&bytes, threads)?;
        let mut outputs = Vec::new();
        ours.run_into(&[(&input.name, &x)], &mut outputs)?;
        ensure!(outputs[0].as_f32() == Some(&direct.outputs(&x)?[..]), "{name}: the two give different outputs");

        let started = Instant::now();
        for round in 0.. {
            if round > WARM_UP && started.elapsed() >= time / SESSIONS as u32 {
                break;
            }
            for who in ORDERS[round % ORDERS.len()] {
                let start = Instant::now();
                match who {
                    Who::Ours => ours.run_into(&[(&input.name, &x)], &mut outputs)?,
                    Who::Direct => direct.run(&x)?,
                    Who::Control => control.run(&x)?,
                }
                let took = start.elapsed();
                if round >= WARM_UP {
                    times.entry(who).or_default().push(took.as_secs_f64() * 1e3);
                }
            }
        }
    }
    let [ours, direct, control] = [&times[&Who::Ours], &times[&Who::Direct], &times[&Who::Control]];
    Ok(Row {
        model: name.to_owned(),
        threads,
        rounds: ours.len(),
        ours_ms: median(ours),
        direct_ms: median(direct),
        ratio: Ratio::new(ours, direct),
        control: Ratio::new(control, direct),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Ours,
    Direct,
    Control,
}

/// Every session comes before and behind every other equally often: who runs
/// second finds other caches.
const ORDERS: [[Who; 3]; 6] = {
    use Who::{Control, Direct, Ours};
    [
        [Ours, Direct, Control],
        [Direct, Control, Ours],
        [Control, Ours, Direct],
        [Control, Direct, Ours],
        [Ours, Control, Direct],
        [Direct, Ours, Control],
    ]
};

/// ONNX Runtime as a program of its own would call it.
struct Direct(ort::session::Session);

impl Direct {
    fn new(bytes: &[u8], threads: usize) -> anyhow::Result<Self> {
        let environment = tierline_engine::onnxruntime_environment().context("ONNX Runtime is not loaded")?;
        // An error of a builder holds the builder, which can't be sent on.
        let text = |e: ort::Error<_>| anyhow::anyhow!("{}", e.message());
        let mut builder = ort::session::Session::builder(&environment)
            .map_err(|e| anyhow::anyhow!("{e}"))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(text)?;
        if threads != 0 {
            builder =
                builder.with_independent_thread_pool().and_then(|b| b.with_intra_threads(threads)).map_err(text)?;
        }
        Ok(Self(builder.commit_from_memory(bytes)?))
    }

    fn run(&mut self, x: &Tensor) -> anyhow::Result<()> {
        let elements = x.as_f32().context("f32")?;
        let made = self.0.run(ort::inputs![TensorRef::from_array_view((x.shape(), elements))?])?;
        black_box(made[0].try_extract_tensor::<f32>()?);
        Ok(())
    }

    fn outputs(&mut self, x: &Tensor) -> anyhow::Result<Vec<f32>> {
        let elements = x.as_f32().context("f32")?;
        let made = self.0.run(ort::inputs![TensorRef::from_array_view((x.shape(), elements))?])?;
        Ok(made[0].try_extract_tensor::<f32>()?.1.to_vec())
    }
}

impl Ratio {
    fn new(these: &[f64], those: &[f64]) -> Self {
        let mut ratios: Vec<f64> = these.iter().zip(those).map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        // By ranks, so that nothing is assumed of the noise: half the values
        // lie below the median, give or take two binomial deviations.
        let (count, last) = (ratios.len() as f64, ratios.len() - 1);
        let rank = |deviations: f64| ((count / 2. + deviations * count.sqrt() / 2.) as usize).min(last);
        Self { median: median(&ratios), low: ratios[rank(-1.96)], high: ratios[rank(1.96)] }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4} ({:.4} to {:.4})", self.median, self.low, self.high)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Medians of runs in turns; ratios of times in the same round, with 95 % interval; ONNX Runtime")?;
        writeln!(f, "{}. The control is one direct session over another.\n", self.onnxruntime)?;
        writeln!(f, "| model | threads | rounds | ours ms | direct ms | ours / direct | control | at most {GOAL} |")?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
        for row in &self.rows {
            let threads = if row.threads == 0 { "all".to_owned() } else { row.threads.to_string() };
            let met = if row.ratio.median <= GOAL { "yes" } else { "no" };
            let Row { model, rounds, ours_ms, direct_ms, ratio, control, .. } = row;
            writeln!(
                f,
                "| {model} | {threads} | {rounds} | {ours_ms:.3} | {direct_ms:.3} | {ratio} | {control} | {met} |"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_model_gives_a_row() {
        if std::env::var_os("ORT_DYLIB_PATH").is_none() {
            eprintln!("skipped: ORT_DYLIB_PATH is not set; run cargo xtask test");
            return;
        }
        let engine = tierline_engine::onnxruntime(None).unwrap();
        let model = by_name("lenet", &Options::default()).unwrap();
        let row = row(engine.as_ref(), "lenet", &model, 1, Duration::from_millis(20)).unwrap();
        assert!(row.rounds >= SESSIONS && row.ours_ms > 0., "{row:?}");
        assert!(row.ratio.low <= row.ratio.median && row.ratio.median <= row.ratio.high, "{row:?}");
    }

    #[test]
    fn a_constant_slowdown_is_the_ratio() {
        let direct: Vec<f64> = (0..100).map(|i| 1. + f64::from(i % 7)).collect();
        let ours: Vec<f64> = direct.iter().map(|t| t * 1.5).collect();
        assert_eq!(Ratio::new(&ours, &direct), Ratio { median: 1.5, low: 1.5, high: 1.5 });
    }

    #[test]
    fn every_order_appears_once() {
        for position in 0..3 {
            for who in [Who::Ours, Who::Direct, Who::Control] {
                assert_eq!(ORDERS.iter().filter(|order| order[position] == who).count(), 2);
            }
        }
    }
}
