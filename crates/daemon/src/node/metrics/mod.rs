//! Counters of a node, in the Prometheus text format;
//! docs/reference/metrics.md lists them.

mod jobs;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierline_federate::RoundScores;
use tierline_node::federation::{Progress, Verdict};
use tierline_proto::v1::{Degraded, Reply};

pub use self::jobs::JobKey;
use self::jobs::Jobs;

/// Upper bounds of the latency buckets, seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

#[derive(Default)]
struct Numbers {
    requests: BTreeMap<&'static str, u64>,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
    degraded: BTreeMap<&'static str, u64>,
    plans: u64,
    sessions: u64,
    sent_bytes: u64,
    panics: BTreeMap<&'static str, u64>,
    restarts: BTreeMap<&'static str, u64>,
    jobs: Jobs,
}

/// The counters; clones share them.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<Numbers>>);

impl Metrics {
    fn with<T>(&self, f: impl FnOnce(&mut Numbers) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request that entered here ended.
    pub fn request(&self, total: Duration, reply: &Reply) {
        let outcome = match (&reply.failure, &reply.degraded) {
            (Some(_), _) => "failed",
            (None, Some(_)) => "degraded",
            (None, None) => "ok",
        };
        let seconds = total.as_secs_f64();
        let sent: u64 = reply.stages.iter().map(|s| s.sent_bytes).sum();
        self.with(|n| {
            *n.requests.entry(outcome).or_default() += 1;
            n.seconds += seconds;
            n.sent_bytes += sent;
            for (count, bound) in n.buckets.iter_mut().zip(BUCKETS) {
                *count += u64::from(seconds <= bound);
            }
        });
    }

    /// An answer of this node, as entry or relay, was degraded.
    pub fn degraded(&self, degraded: &Degraded) {
        self.with(|n| *n.degraded.entry(degraded.cause().as_str_name()).or_default() += 1);
    }

    /// The plan in force changed.
    pub fn plan_switched(&self) {
        self.with(|n| n.plans += 1);
    }

    /// A session was loaded.
    pub fn session_loaded(&self) {
        self.with(|n| n.sessions += 1);
    }

    /// A task broke off.
    pub fn task_panicked(&self, task: &'static str) {
        self.with(|n| *n.panics.entry(task).or_default() += 1);
    }

    /// A duty that broke off or ended is begun again.
    pub fn duty_restarted(&self, duty: &'static str) {
        self.with(|n| *n.restarts.entry(duty).or_default() += 1);
    }

    /// A job is coordinated here, with these rounds behind it.
    pub fn job(&self, job: JobKey, name: &str, past: &[RoundScores]) {
        self.with(|n| {
            n.jobs.begin(job, name);
            past.iter().for_each(|scores| n.jobs.round(job, scores));
        });
    }

    /// A round of a job ended.
    pub fn round(&self, job: JobKey, scores: &RoundScores) {
        self.with(|n| n.jobs.round(job, scores));
    }

    /// An update was answered.
    pub fn update(&self, job: JobKey, verdict: &Verdict) {
        self.with(|n| n.jobs.answered(job, verdict));
    }

    /// How far a job is.
    pub fn progress(&self, job: JobKey, progress: &Progress) {
        self.with(|n| n.jobs.progress(job, progress));
    }

    /// Everything, as Prometheus reads it.
    #[must_use]
    pub fn text(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut out = String::new();
        self.with(|n| {
            head(
                &mut out,
                "tierline_requests_total",
                "counter",
                "Requests that entered the site at this node, by outcome.",
            );
            for (outcome, count) in &n.requests {
                let _ = writeln!(out, "tierline_requests_total{{outcome=\"{outcome}\"}} {count}");
            }
            head(&mut out, "tierline_request_seconds", "histogram", "Time from a request's first byte to its answer.");
            for (bound, count) in BUCKETS.iter().zip(n.buckets) {
                let _ = writeln!(out, "tierline_request_seconds_bucket{{le=\"{bound}\"}} {count}");
            }
            let all: u64 = n.requests.values().sum();
            let _ = writeln!(out, "tierline_request_seconds_bucket{{le=\"+Inf\"}} {all}");
            let _ = writeln!(out, "tierline_request_seconds_sum {}\ntierline_request_seconds_count {all}", n.seconds);
            head(
                &mut out,
                "tierline_degraded_total",
                "counter",
                "Answers that did not come the planned way, by cause.",
            );
            for (cause, count) in &n.degraded {
                let _ = writeln!(out, "tierline_degraded_total{{cause=\"{cause}\"}} {count}");
            }
            head(&mut out, "tierline_plan_switches_total", "counter", "Changes of the plan in force.");
            let _ = writeln!(out, "tierline_plan_switches_total {}", n.plans);
            head(&mut out, "tierline_sessions_loaded_total", "counter", "Sessions loaded, again ones included.");
            let _ = writeln!(out, "tierline_sessions_loaded_total {}", n.sessions);
            head(
                &mut out,
                "tierline_sent_bytes_total",
                "counter",
                "Encoded activations sent between tiers for requests of this node.",
            );
            let _ = writeln!(out, "tierline_sent_bytes_total {}", n.sent_bytes);
            let counts = [
                ("tierline_task_panics_total", "task", "Tasks that broke off by a fault of Tierline.", &n.panics),
                ("tierline_duty_restarts_total", "duty", "Duties that were begun again.", &n.restarts),
            ];
            for (name, label, help, counts) in counts {
                head(&mut out, name, "counter", help);
                for (value, count) in counts {
                    let _ = writeln!(out, "{name}{{{label}=\"{value}\"}} {count}");
                }
            }
            n.jobs.text(&mut out);
        });
        for (name, help, value) in gauges {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

impl super::Node {
    /// A request that entered here ended.
    pub fn count_request(&self, total: Duration, reply: &Reply) {
        self.metrics.request(total, reply);
        if let Some(degraded) = &reply.degraded {
            let json = serde_json::json!({ "cause": degraded.cause().as_str_name(), "node": degraded.node });
            self.events.record("degraded", format!("degraded answer: {}", degraded.reason), &json);
        }
    }

    /// An answer of this node was degraded.
    pub fn count_degraded(&self, degraded: &Degraded) {
        self.metrics.degraded(degraded);
    }

    /// The counters as Prometheus reads them.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        let up = self.uplinks.iter().filter(|u| u.is_up()).count();
        let (requests, requests_max) = self.budget.state();
        let mut gauges = vec![
            ("tierline_jobs_waiting", "Slices waiting for the engine.", self.compute.waiting() as f64),
            ("tierline_parents_up", "Parents whose lease is held.", up as f64),
            (
                "tierline_memory_max_bytes",
                "Bytes that models, sessions and plans may take together.",
                self.memory.max() as f64,
            ),
            ("tierline_request_memory_bytes", "Bytes that requests under way hold.", requests as f64),
            ("tierline_request_memory_max_bytes", "Bytes that they may hold.", requests_max as f64),
        ];
        if let Some(uplink) = self.uplinks.first() {
            let estimate = uplink.estimate(self.now());
            gauges.push((
                "tierline_link_up_bytes_per_second",
                "Estimated bandwidth towards the first parent.",
                estimate.up_bytes_per_s,
            ));
            gauges.push((
                "tierline_link_rtt_seconds",
                "Estimated round trip to the first parent.",
                estimate.rtt_ns as f64 / 1e9,
            ));
        }
        let mut text = String::new();
        let help = "Bytes of what is kept because it may be wanted again, by kind.";
        head(&mut text, "tierline_memory_bytes", "gauge", help);
        for kept in self.memory.kept() {
            let _ = writeln!(text, "tierline_memory_bytes{{kind=\"{}\"}} {}", kept.kind.name(), kept.bytes);
        }
        self.metrics.text(&gauges) + &text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Metrics::default();
        metrics.request(Duration::from_millis(3), &Reply::default());
        let text = metrics.text(&[]);
        assert!(text.contains("tierline_requests_total{outcome=\"ok\"} 1"), "{text}");
        assert!(
            text.contains("le=\"0.0025\"} 0") && text.contains("le=\"0.005\"} 1") && text.contains("le=\"+Inf\"} 1"),
            "{text}"
        );
    }
}
