//! Numbers of requests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tierline_node::request::{Op, RequestOutcome};
use tierline_proto::v1::{Degraded, Reply};

use crate::runtime::numbers::{self, Histogram};

/// Upper bounds of the latency buckets, seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

struct Inner {
    requests: BTreeMap<&'static str, u64>,
    seconds: Histogram<12>,
    degraded: BTreeMap<&'static str, u64>,
    sent_bytes: u64,
    /// Answers by the exit that gave them; 0 is the model's end.
    exits: BTreeMap<u32, u64>,
    /// Requests that another parent than the planned one took.
    elsewhere: u64,
    /// Second copies, by what they came to.
    hedges: BTreeMap<&'static str, u64>,
}

/// Counted so far.
pub(super) struct Numbers(Mutex<Inner>);

impl Default for Numbers {
    fn default() -> Self {
        let (requests, degraded, exits, hedges) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self(Mutex::new(Inner {
            requests,
            seconds: Histogram::new(BUCKETS),
            degraded,
            sent_bytes: 0,
            exits,
            elsewhere: 0,
            hedges,
        }))
    }
}

impl Numbers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that entered here ended.
    pub(super) fn request(&self, total: Duration, reply: &Reply) {
        let outcome = match (&reply.failure, &reply.degraded) {
            (Some(_), _) => "failed",
            (None, Some(_)) => "degraded",
            (None, None) => "ok",
        };
        let sent: u64 = reply.stages.iter().map(|s| s.sent_bytes).sum();
        let mut inner = self.lock();
        *inner.requests.entry(outcome).or_default() += 1;
        inner.seconds.count(total.as_secs_f64());
        inner.sent_bytes += sent;
        if reply.failure.is_none() {
            *inner.exits.entry(reply.exit).or_default() += 1;
        }
    }

    /// Another parent than the planned one takes a request.
    pub(super) fn elsewhere(&self) {
        self.lock().elsewhere += 1;
    }

    /// A request ended that may have had a second copy.
    pub(super) fn hedged(&self, second: Option<Op>, outcome: &RequestOutcome) {
        let Some(second) = second else { return };
        let answered = match outcome {
            RequestOutcome::Answer { op, .. } if *op == second => "second",
            RequestOutcome::Answer { .. } => "first",
            RequestOutcome::Failed(_) => "none",
        };
        *self.lock().hedges.entry(answered).or_default() += 1;
    }

    /// An answer of this node, as entry or relay, was degraded.
    pub(super) fn degraded(&self, degraded: &Degraded) {
        *self.lock().degraded.entry(degraded.cause().as_str_name()).or_default() += 1;
    }

    /// All of it, as Prometheus reads it.
    pub(super) fn text(&self, out: &mut String) {
        let inner = self.lock();
        let help = "Requests that entered the site at this node, by outcome.";
        let counts = inner.requests.iter().map(|(outcome, count)| (*outcome, count));
        numbers::labelled(out, ("tierline_requests_total", "counter", help), "outcome", counts);
        let help = "Time from a request's first byte to its answer.";
        numbers::head(out, "tierline_request_seconds", "histogram", help);
        inner.seconds.text(out, "tierline_request_seconds", "");
        let help = "Answers that did not come the planned way, by cause.";
        let counts = inner.degraded.iter().map(|(cause, count)| (*cause, count));
        numbers::labelled(out, ("tierline_degraded_total", "counter", help), "cause", counts);
        let help = "Answers to requests that entered here, by the early exit that gave them; 0 is the model's end.";
        let counts: Vec<(String, u64)> = inner.exits.iter().map(|(exit, count)| (exit.to_string(), *count)).collect();
        let counts = counts.iter().map(|(exit, count)| (exit.as_str(), count));
        numbers::labelled(out, ("tierline_exits_total", "counter", help), "exit", counts);
        let help = "Requests that another parent than the planned one took, being less busy.";
        numbers::single(out, "tierline_elsewhere_total", "counter", help, inner.elsewhere);
        let help = "Second copies of requests whose first took long, by which of the two answered.";
        let counts = inner.hedges.iter().map(|(answered, count)| (*answered, count));
        numbers::labelled(out, ("tierline_hedges_total", "counter", help), "answered", counts);
        let help = "Encoded activations sent between tiers for requests of this node.";
        numbers::single(out, "tierline_sent_bytes_total", "counter", help, inner.sent_bytes);
    }
}
