//! Edges that help one another: a request that would wait here runs at a
//! sibling that is less busy.
//!
//! Siblings stand in `node.toml`; both show certificates of the site. Each is
//! asked for its load every second, and where requests wait here, one that
//! comes is given to whoever is likely to answer first
//! (`tierline_node::choose`). It goes on from there as it would from here, but
//! to no further sibling. When it fails, or takes its time, it runs here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tierline_node::Time;
use tierline_node::breaker::{Breaker, State};
use tierline_node::choose::{Candidate, Chooser};
use tierline_proto::v1::{Code, Empty, Failure, Reply, RunHeader};
use tierline_proto::{Encoded, Sound, frame};
use tokio::sync::Semaphore;

use super::flow::{Inputs, RoutedRequest};
use super::{Inference, calls};
use crate::net::transport::{self, Pair};
use crate::runtime::numbers;

/// How often siblings are asked for their load.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Siblings that a node knows; more would be asked without end.
pub const SIBLINGS_MAX: usize = 16;

/// Requests at siblings at once: beyond it they wait here.
const OUT_MAX: usize = 64;

/// What the way to a sibling and back takes, before anything was sent there.
const WAY_FIRST: Duration = Duration::from_millis(5);

/// How much the last way counts in what the next is expected to take.
const NEWEST: u32 = 4;

/// Time for running here after a sibling failed: this many times what it is
/// expected to take, and [`SLACK`].
const RESERVE_FACTOR: f64 = 1.5;

/// Noise that no expectation sees.
const SLACK: Duration = Duration::from_millis(5);

/// All of them.
pub(super) struct Siblings {
    all: Vec<Sibling>,
    chooser: Mutex<Chooser<usize>>,
    out: Semaphore,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    sent: u64,
    answered: u64,
    taken: u64,
}

struct Sibling {
    url: String,
    inner: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    pair: Option<Pair>,
    /// How long requests wait there, and when it said so.
    load: Option<(Duration, Time)>,
    way: Option<Duration>,
    breaker: Breaker,
}

impl Sibling {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Siblings {
    pub(super) fn new(urls: &[String]) -> Self {
        let one = |url: &String| Sibling { url: url.clone(), inner: Mutex::default() };
        Self {
            all: urls.iter().take(SIBLINGS_MAX).map(one).collect(),
            chooser: Mutex::default(),
            out: Semaphore::new(OUT_MAX),
            counts: Mutex::default(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sibling sent a request here.
    pub(super) fn taken(&self) {
        self.counts().taken += 1;
    }

    pub(super) fn text(&self, now: Time, out: &mut String) {
        let Counts { sent, answered, taken } = *self.counts();
        for (name, help, value) in [
            ("tierline_sibling_sent_total", "Requests that were given to siblings.", sent),
            ("tierline_sibling_answered_total", "Those that they answered; the others ran here.", answered),
            ("tierline_sibling_taken_total", "Requests that siblings gave to this node.", taken),
        ] {
            numbers::single(out, name, "counter", help, value);
        }
        let open = |sibling: &Sibling| u64::from(sibling.lock().breaker.state(now) != State::Closed);
        let help = "Whether a sibling's circuit breaker keeps requests from it: 1, or 0.";
        let head = ("tierline_sibling_breaker_open", "gauge", help);
        numbers::labelled(out, head, "sibling", self.all.iter().map(|sibling| (sibling.url.as_str(), open(sibling))));
    }
}

impl Inference {
    /// Asks siblings for their load, until the node ends.
    pub(super) fn keep_siblings(self: &Arc<Self>) {
        for index in 0..self.siblings.all.len() {
            let duty = Arc::clone(self);
            self.cx.tasks.keep("sibling", move || Arc::clone(&duty).keep_sibling(index));
        }
    }

    async fn keep_sibling(self: Arc<Self>, index: usize) {
        let sibling = &self.siblings.all[index];
        loop {
            let asked = tokio::time::timeout(transport::CONNECT_TIME_MAX, self.ask_sibling(sibling)).await;
            let late = |_| Failure::new(Code::DeadlineExceeded, "it said nothing in time");
            match asked.map_err(late).and_then(|asked| asked) {
                Ok(wait) => sibling.lock().load = Some((wait, self.cx.clock.now())),
                Err(failure) => {
                    tracing::debug!(url = sibling.url, %failure, "a sibling doesn't answer");
                    let mut known = sibling.lock();
                    (known.pair, known.load) = (None, None);
                }
            }
            tokio::time::sleep(ASKED_EVERY).await;
        }
    }

    async fn ask_sibling(&self, sibling: &Sibling) -> Result<Duration, Failure> {
        let pair = sibling.lock().pair.clone();
        let pair = match pair {
            Some(pair) => pair,
            None => {
                let cannot = |e: &dyn std::error::Error| Failure::new(Code::Unreachable, crate::words::chain(e));
                let endpoint = transport::endpoint(&sibling.url, transport::client_tls(&self.cx.me.identity()));
                let pair = Pair::connect(&endpoint.map_err(|e| cannot(&e))?).await.map_err(|e| cannot(&e))?;
                let mut known = sibling.lock();
                known.breaker.reset();
                known.pair = Some(pair.clone());
                pair
            }
        };
        let load = pair.infer().load(Empty {}).await.map_err(|status| Failure::from_status(&status))?.into_inner();
        Ok(Duration::from_nanos(Sound::read(load)?.into_inner().wait_ns))
    }

    /// What a sibling answers to a request that would wait here; `None` where it
    /// is to run here.
    pub(super) async fn at_sibling(
        self: &Arc<Self>,
        header: &RunHeader,
        routed: &RoutedRequest,
        inputs: &Inputs,
    ) -> Option<(Reply, Vec<Encoded>)> {
        let wait = self.cx.device.compute.congestion();
        if self.siblings.all.is_empty() || header.forwarded || wait.is_zero() {
            return None;
        }
        let _out = self.siblings.out.try_acquire().ok()?;
        let service = self.planning.service(&routed.program, inputs.segment, routed.first_end());
        let now = self.cx.clock.now();
        let reserve = (service + wait).mul_f64(RESERVE_FACTOR) + SLACK;
        let time = routed.deadline.checked_duration_since(Instant::now())?.checked_sub(reserve)?;
        let mut candidates = vec![Candidate { neighbour: 0, predicted: service, wait, heard: now, service }];
        for (sibling, neighbour) in self.siblings.all.iter().zip(1..) {
            let known = sibling.lock();
            if let (Some((wait, heard)), State::Closed) = (known.load, known.breaker.state(now)) {
                let predicted = service + known.way.unwrap_or(WAY_FIRST);
                candidates.push(Candidate { neighbour, predicted, wait, heard, service });
            }
        }
        let chooser = || self.siblings.chooser.lock().unwrap_or_else(PoisonError::into_inner);
        let choice = chooser().choose(now, &mut fastrand::Rng::new(), &candidates)?;
        let answer = match choice.neighbour.checked_sub(1).and_then(|index| self.siblings.all.get(index)) {
            Some(sibling) => self.forward(sibling, header, inputs, (time, service)).await,
            None => None,
        };
        chooser().ended(choice);
        answer
    }

    async fn forward(
        &self,
        sibling: &Sibling,
        header: &RunHeader,
        inputs: &Inputs,
        (time, service): (Duration, Duration),
    ) -> Option<(Reply, Vec<Encoded>)> {
        let pair = sibling.lock().pair.clone()?;
        self.siblings.counts().sent += 1;
        let header = RunHeader {
            remaining_us: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
            hops: header.hops + 1,
            tensors: frame::declare(inputs.encoded()),
            // Running it here is the better way then.
            no_fallback: true,
            forwarded: true,
            ..header.clone()
        };
        let begun = Instant::now();
        let predicted = service + sibling.lock().way.unwrap_or(WAY_FIRST);
        let call =
            calls::run_at(&self.cx, pair.infer(), &sibling.url, header, inputs.encoded().to_vec(), inputs.held());
        let answered = tokio::time::timeout(time, call).await;
        let mut known = sibling.lock();
        let now = self.cx.clock.now();
        match &answered {
            Ok(answered) => known.breaker.ended(now, Some(answered.as_ref().map(|_| ()).map_err(Failure::code))),
            Err(_) => known.breaker.lapsed(now, time, predicted),
        }
        let (reply, tensors) = answered.ok()?.ok()?;
        if reply.failure.as_ref().is_some_and(|failure| failure.code() != Code::Ok) {
            return None;
        }
        if let Some(first) = reply.stages.first() {
            let there = first.queue_ns + first.decode_ns + first.compute_ns + first.encode_ns + first.upstream_ns;
            let way = begun.elapsed().saturating_sub(Duration::from_nanos(there));
            known.way = Some(known.way.map_or(way, |before| (before * (NEWEST - 1) + way) / NEWEST));
        }
        drop(known);
        self.siblings.counts().answered += 1;
        Some((reply, tensors))
    }
}
