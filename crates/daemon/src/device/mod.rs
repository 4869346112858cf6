//! What a node computes with: its engine, the one executor before it, the
//! memory for what is kept and for requests under way.

pub mod budget;
pub mod compute;
pub mod memory;
pub mod program;
mod scheduled;

use std::sync::Arc;
use std::time::Duration;

use tierline_engine::Engine;
use tierline_node::admit::Class;
use tierline_proto::v1::LoadReport;

use self::budget::Budget;
use self::compute::Compute;
use self::memory::Memory;
use self::scheduled::{Scheduled, Turns};
use crate::runtime::numbers;

/// A node's device; clones share it.
#[derive(Clone)]
pub struct Device {
    /// What runs models.
    pub engine: Arc<dyn Engine>,
    /// Slices run here.
    pub compute: Compute,
    /// Memory for what may be wanted again.
    pub memory: Memory,
    /// Memory for requests under way.
    pub budget: Budget,
}

impl Device {
    /// The engine for work of a background class: each run waits for its turn.
    #[must_use]
    pub fn engine_for(&self, class: Class) -> Arc<dyn Engine> {
        let (compute, engine) = (self.compute.clone(), Arc::clone(&self.engine));
        let turns = Turns { compute, class, engine: engine.name(), expected: Duration::ZERO };
        Arc::new(Scheduled { engine, turns })
    }

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> LoadReport {
        let memory_max_bytes = self.memory.max();
        LoadReport {
            memory_free_bytes: memory_max_bytes.saturating_sub(self.memory.used()),
            memory_max_bytes,
            queued: u32::try_from(self.compute.waiting()).unwrap_or(u32::MAX),
            wait_ns: u64::try_from(self.compute.congestion().as_nanos()).unwrap_or(u64::MAX),
            ..LoadReport::default()
        }
    }

    /// Its numbers, in Prometheus' text format.
    pub fn numbers(&self, out: &mut String) {
        let (requests, requests_max) = self.budget.state();
        let loaded = self.compute.loaded();
        let help = "Sessions loaded, again ones included.";
        numbers::single(out, "tierline_sessions_loaded_total", "counter", help, loaded);
        let runs = self.compute.runs();
        for (name, help, value) in [
            ("tierline_runs_total", "Runs of the engine for one request.", runs.single),
            ("tierline_batches_total", "Runs of the engine for several requests as one.", runs.batches),
            ("tierline_batched_requests_total", "Requests in those.", runs.batched),
            (
                "tierline_batch_trials_total",
                "Sizes that were tried, to see whether they are sound and spare time.",
                runs.trials,
            ),
            ("tierline_runs_at_once_total", "Runs that took no other thread, being brief.", runs.at_once),
        ] {
            numbers::single(out, name, "counter", help, value);
        }
        for (name, help, value) in [
            ("tierline_jobs_waiting", "Slices waiting for the engine.", self.compute.waiting() as u64),
            (
                "tierline_memory_max_bytes",
                "Bytes that models, sessions and plans may take together.",
                self.memory.max(),
            ),
            ("tierline_request_memory_bytes", "Bytes that requests under way hold.", requests),
            ("tierline_request_memory_max_bytes", "Bytes that they may hold.", requests_max),
        ] {
            numbers::single(out, name, "gauge", help, value);
        }
        let help = "Bytes of what is kept because it may be wanted again, by kind.";
        let kept = self.memory.kept();
        let kept = kept.iter().map(|kept| (kept.kind.name(), kept.bytes));
        numbers::labelled(out, ("tierline_memory_bytes", "gauge", help), "kind", kept);
    }
}
