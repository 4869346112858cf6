//! Statistics of models, as Triton's extension has them: every request counts
//! once, whichever way it came.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tierline_proto::oip::messages::{InferBatchStatistics, InferStatistics, ModelStatistics, StatisticDuration};

use crate::runtime::events::now_ms;
use crate::runtime::{ns, numbers};

/// Sizes of runs, in rows, that are told apart; others count in all only.
const BATCHES_MAX: usize = 64;

/// How long the parts of an answer took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Size of the first axis of the first input.
    pub rows: u64,
    /// Waiting for a device.
    pub queue_ns: u64,
    /// Reading and decoding.
    pub input_ns: u64,
    /// Computing, on every node.
    pub infer_ns: u64,
    /// Encoding.
    pub output_ns: u64,
    /// Requests and rows of the longest run that it was part of; none where it
    /// ran alone.
    pub batch: Option<(u32, u32)>,
}

/// Runs of one size. Of a run that several requests shared, each counts its
/// part: together they are one.
#[derive(Debug, Default)]
struct Runs {
    count: f64,
    input_ns: f64,
    infer_ns: f64,
    output_ns: f64,
}

impl Runs {
    fn add(&mut self, part: f64, spent: Spent) {
        self.count += part;
        self.input_ns += part * spent.input_ns as f64;
        self.infer_ns += part * spent.infer_ns as f64;
        self.output_ns += part * spent.output_ns as f64;
    }

    fn message(&self, ns: f64) -> Option<StatisticDuration> {
        Some(StatisticDuration { count: self.count.round() as u64, ns: ns as u64 })
    }
}

/// How often, and how long in all.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    ns: u64,
}

impl Sum {
    fn add(&mut self, ns: u64) {
        self.count += 1;
        self.ns = self.ns.saturating_add(ns);
    }

    fn message(self) -> Option<StatisticDuration> {
        Some(StatisticDuration { count: self.count, ns: self.ns })
    }
}

#[derive(Debug, Default)]
struct Parts {
    input: Sum,
    infer: Sum,
    output: Sum,
}

impl Parts {
    fn add(&mut self, spent: Spent) {
        self.input.add(spent.input_ns);
        self.infer.add(spent.infer_ns);
        self.output.add(spent.output_ns);
    }
}

#[derive(Debug, Default)]
struct Model {
    last_ms: u64,
    rows: u64,
    success: Sum,
    fail: Sum,
    cancelled: u64,
    queue: Sum,
    parts: Parts,
    runs: f64,
    batches: BTreeMap<u64, Runs>,
}

/// Counted so far, by model.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<String, Model>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Model>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered.
    pub fn success(&self, model: &str, total: Duration, spent: Spent) {
        let mut models = self.lock();
        let model = at(&mut models, model);
        model.last_ms = now_ms();
        model.rows += spent.rows;
        model.success.add(ns(total));
        model.queue.add(spent.queue_ns);
        model.parts.add(spent);
        let (requests, rows) = spent.batch.unwrap_or((1, 0));
        let (part, rows) = (1.0 / f64::from(requests.max(1)), u64::from(rows).max(spent.rows));
        model.runs += part;
        if model.batches.len() < BATCHES_MAX || model.batches.contains_key(&rows) {
            model.batches.entry(rows).or_default().add(part, spent);
        }
    }

    /// A request failed, or was refused.
    pub fn failure(&self, model: &str, total: Duration) {
        at(&mut self.lock(), model).fail.add(ns(total));
    }

    /// A request's caller went away before it was answered.
    pub fn cancelled(&self, model: &str, total: Duration) {
        let mut models = self.lock();
        let model = at(&mut models, model);
        model.fail.add(ns(total));
        model.cancelled += 1;
    }

    /// As the extension has it; a model that nobody asked has zeros.
    pub fn message(&self, of: &super::Model) -> ModelStatistics {
        let models = self.lock();
        let none = Model::default();
        let model = models.get(&of.name).unwrap_or(&none);
        let batch = |(rows, runs): (&u64, &Runs)| InferBatchStatistics {
            batch_size: *rows,
            compute_input: runs.message(runs.input_ns),
            compute_infer: runs.message(runs.infer_ns),
            compute_output: runs.message(runs.output_ns),
        };
        ModelStatistics {
            name: of.name.clone(),
            version: of.version.clone(),
            last_inference: model.last_ms,
            inference_count: model.rows,
            execution_count: model.runs.round() as u64,
            inference_stats: Some(InferStatistics {
                success: model.success.message(),
                fail: model.fail.message(),
                queue: model.queue.message(),
                compute_input: model.parts.input.message(),
                compute_infer: model.parts.infer.message(),
                compute_output: model.parts.output.message(),
                cache_hit: Sum::default().message(),
                cache_miss: Sum::default().message(),
            }),
            batch_stats: model.batches.iter().map(batch).collect(),
        }
    }

    /// Forgets models that are none any more.
    pub fn keep(&self, is_known: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| is_known(name));
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, out: &mut String) {
        let models = self.lock();
        let of = |count: fn(&Model) -> u64| models.iter().map(move |(name, model)| (name.as_str(), count(model)));
        let help = "Requests of applications that were answered, by model.";
        let head = ("tierline_served_requests_total", "counter", help);
        numbers::labelled(out, head, "model", of(|model| model.success.count));
        let help = "Requests of applications that failed or were refused, by model.";
        let head = ("tierline_served_failures_total", "counter", help);
        numbers::labelled(out, head, "model", of(|model| model.fail.count));
        let help = "Requests of applications that went away before they were answered, by model; failures as well.";
        let head = ("tierline_served_cancelled_total", "counter", help);
        numbers::labelled(out, head, "model", of(|model| model.cancelled));
    }
}

fn at<'m>(models: &'m mut BTreeMap<String, Model>, name: &str) -> &'m mut Model {
    models.entry(name.to_owned()).or_default()
}
