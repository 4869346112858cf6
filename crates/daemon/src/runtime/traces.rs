//! Traces: what requests spend their time on, on every tier that they pass, as
//! spans for a collector that speaks OpenTelemetry's protocol over gRPC.
//!
//! Off unless a collector is configured. A request is never held up for them:
//! spans wait in a queue of a limited length, and those that find it full are
//! dropped and counted. Start at [`Traces::enter`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tierline_node::trace::{Place, Sampling};
use tierline_proto::otlp::{
    self, Export, KeyValue, Kind, Resource, ResourceSpans, Scope, ScopeSpans, SpanStatus, known,
};
use tierline_proto::v1::{Code, Failure};
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::{Channel, Endpoint};

use super::tasks::Tasks;
use super::{Me, ns, numbers};
use crate::config::TracesConfig;

/// Spans that wait for the collector.
const WAITING_MAX: usize = 4_096;

/// Spans in one message.
const BATCH_MAX: usize = 512;

/// Spans that come within this go together.
const PAUSE: Duration = Duration::from_millis(500);

/// A collector that doesn't answer within this is away.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How often spans are sent again to one that is.
const ATTEMPTS: u32 = 3;

/// What a node records; clones share it. Nothing, where it is off.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Recorder>>);

struct Recorder {
    sampling: Sampling,
    collector: Channel,
    resource: Vec<KeyValue>,
    queue: mpsc::Sender<otlp::Span>,
    waiting: tokio::sync::Mutex<mpsc::Receiver<otlp::Span>>,
    /// Spans that were taken and aren't sent, nor given up.
    left: watch::Sender<usize>,
    hurry: Notify,
    exported: AtomicU64,
    dropped: AtomicU64,
    /// The same moment in two ways.
    anchor: (Instant, SystemTime),
    /// Whether the last try failed, so that the log says so once.
    is_away: Mutex<bool>,
}

impl Traces {
    /// Records for the collector of a configuration, if it names one.
    #[must_use]
    pub fn new(config: &TracesConfig, me: &Me) -> Self {
        let endpoint = config.endpoint.clone().and_then(|url| Endpoint::from_shared(url).ok());
        let Some(endpoint) = endpoint else { return Self::default() };
        let endpoint = endpoint.connect_timeout(ANSWER_TIME_MAX).timeout(ANSWER_TIME_MAX);
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        Self(Some(Arc::new(Recorder {
            sampling: Sampling::share(config.share),
            collector: endpoint.connect_lazy(),
            resource: vec![
                known("service.name", "tierline"),
                known("service.version", env!("CARGO_PKG_VERSION")),
                known("service.instance.id", me.id()),
                known("tierline.node", me.name()),
                known("tierline.role", me.role().word()),
            ],
            queue,
            waiting: tokio::sync::Mutex::new(waiting),
            left: watch::Sender::default(),
            hurry: Notify::new(),
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            anchor: (Instant::now(), SystemTime::now()),
            is_away: Mutex::new(false),
        })))
    }

    /// Sends what is recorded, for as long as the node lives.
    pub fn keep(&self, tasks: &Tasks) {
        if let Some(recorder) = self.0.clone() {
            tasks.keep("traces", move || {
                let recorder = Arc::clone(&recorder);
                async move { recorder.send_all().await }
            });
        }
    }

    /// Waits until everything is sent, for so long at most.
    pub async fn flush(&self, limit: Duration) {
        let Some(recorder) = &self.0 else { return };
        recorder.hurry.notify_one();
        let mut left = recorder.left.subscribe();
        let _ = tokio::time::timeout(limit, left.wait_for(|left| *left == 0)).await;
    }

    /// A request that enters the site here, with the trace context that it came
    /// with; what goes with it from here on, and its span where it is traced.
    #[must_use]
    pub fn enter(&self, came: &str, from: Instant) -> (String, Option<Open>) {
        self.begin(came, from, true)
    }

    /// As [`Traces::enter`], for one that another node handed on: whether it is
    /// traced was decided where it entered.
    #[must_use]
    pub fn relay(&self, came: &str, from: Instant) -> (String, Option<Open>) {
        self.begin(came, from, false)
    }

    fn begin(&self, came: &str, from: Instant, is_first: bool) -> (String, Option<Open>) {
        let Some(recorder) = &self.0 else { return (came.to_owned(), None) };
        let (place, parent) = match Place::read(came) {
            Some(above) if !above.sampled => return (came.to_owned(), None),
            Some(above) => (above.below(fastrand::u64(..)), above.span),
            None if !is_first => return (came.to_owned(), None),
            None => (recorder.sampling.begin(fastrand::u128(..), fastrand::u64(..)), 0),
        };
        let within = Within { recorder: Arc::clone(recorder), place };
        let name = if is_first { "request" } else { "relay" };
        let open = place.sampled.then(|| within.open(parent, name, Kind::Server, from));
        (place.written(), open)
    }

    /// Where spans belong that are part of what a context names; none where it
    /// isn't traced.
    #[must_use]
    pub fn within(&self, context: &str) -> Option<Within> {
        let recorder = self.0.as_ref()?;
        let place = Place::read(context).filter(|place| place.sampled)?;
        Some(Within { recorder: Arc::clone(recorder), place })
    }

    /// What became of spans, as Prometheus reads it.
    pub fn numbers(&self, out: &mut String) {
        let Some(recorder) = &self.0 else { return };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let help = "Spans that the collector took.";
        numbers::single(out, "tierline_spans_exported_total", "counter", help, count(&recorder.exported));
        let help = "Spans that were dropped: too many at once, or the collector is away.";
        numbers::single(out, "tierline_spans_dropped_total", "counter", help, count(&recorder.dropped));
    }
}

/// A span that others are part of.
#[derive(Clone)]
pub struct Within {
    recorder: Arc<Recorder>,
    place: Place,
}

impl Within {
    /// A span that begins now, or began then, and ends with its value.
    #[must_use]
    pub fn child(&self, name: &'static str, kind: Kind, from: Instant) -> Open {
        let place = self.place.below(fastrand::u64(..));
        Self { recorder: Arc::clone(&self.recorder), place }.open(self.place.span, name, kind, from)
    }

    /// A span that is over, and that nothing is part of.
    pub fn leaf(&self, name: &'static str, (from, to): (Instant, Instant), attributes: Vec<KeyValue>) {
        let mut open = self.child(name, Kind::Internal, from);
        open.attributes = attributes;
        open.end_at(to, None);
    }

    fn open(&self, parent: u64, name: &'static str, kind: Kind, from: Instant) -> Open {
        Open { within: self.clone(), parent, name, kind, from, attributes: Vec::new(), ended: false }
    }
}

/// A span under way; without an end it was cancelled.
pub struct Open {
    within: Within,
    parent: u64,
    name: &'static str,
    kind: Kind,
    from: Instant,
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    ended: bool,
}

impl Open {
    /// Its context, for whatever is part of it.
    #[must_use]
    pub fn context(&self) -> String {
        self.within.place.written()
    }

    /// It ends now, well or not.
    pub fn end(self, failure: Option<&Failure>) {
        self.end_at(Instant::now(), failure);
    }

    fn end_at(mut self, to: Instant, failure: Option<&Failure>) {
        self.ended = true;
        let code = |failure: &Failure| failure.code().as_str_name().trim_start_matches("CODE_").to_lowercase();
        self.record(to, failure.filter(|failure| failure.code() != Code::Ok).map(code));
    }

    fn record(&mut self, to: Instant, failure: Option<String>) {
        let Within { recorder, place } = &self.within;
        let parent = if self.parent == 0 { Vec::new() } else { self.parent.to_be_bytes().to_vec() };
        recorder.take(otlp::Span {
            trace_id: place.trace.to_be_bytes().to_vec().into(),
            span_id: place.span.to_be_bytes().to_vec().into(),
            parent_span_id: parent.into(),
            name: self.name.to_owned(),
            kind: self.kind.into(),
            start_ns: recorder.unix_ns(self.from),
            end_ns: recorder.unix_ns(to.max(self.from)),
            attributes: std::mem::take(&mut self.attributes),
            status: failure.map(|message| SpanStatus { message, code: 2 }),
            flags: u32::from(place.sampled),
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            self.record(Instant::now(), Some("cancelled".to_owned()));
        }
    }
}

impl Recorder {
    fn take(&self, span: otlp::Span) {
        self.left.send_modify(|left| *left += 1);
        if self.queue.try_send(span).is_err() {
            self.give_up(1);
        }
    }

    fn give_up(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
        self.left.send_modify(|left| *left = left.saturating_sub(spans));
    }

    fn unix_ns(&self, at: Instant) -> u64 {
        let (instant, time) = self.anchor;
        let time = match at.checked_duration_since(instant) {
            Some(since) => time + since,
            None => time - instant.duration_since(at),
        };
        ns(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    async fn send_all(&self) {
        let mut waiting = self.waiting.lock().await;
        loop {
            let mut batch = Vec::new();
            if waiting.recv_many(&mut batch, BATCH_MAX).await == 0 {
                return;
            }
            if batch.len() < BATCH_MAX {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = self.hurry.notified() => {}
                }
                while batch.len() < BATCH_MAX {
                    let Ok(span) = waiting.try_recv() else { break };
                    batch.push(span);
                }
            }
            self.send(batch).await;
        }
    }

    async fn send(&self, spans: Vec<otlp::Span>) {
        let count = spans.len();
        let scope = Scope { name: "tierline".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let resource = Resource { attributes: self.resource.clone() };
        let scopes = vec![ScopeSpans { scope: Some(scope), spans }];
        let export = Export { resources: vec![ResourceSpans { resource: Some(resource), scopes }] };
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            let answered = tokio::time::timeout(ANSWER_TIME_MAX, otlp::export(&self.collector, export.clone())).await;
            let late = |_| tonic::Status::deadline_exceeded("it doesn't answer");
            match answered.map_err(late).and_then(|answered| answered) {
                Ok(rejected) => {
                    let rejected = usize::try_from(rejected).unwrap_or(count).min(count);
                    self.exported.fetch_add((count - rejected) as u64, Ordering::Relaxed);
                    self.left.send_modify(|left| *left = left.saturating_sub(count - rejected));
                    self.give_up(rejected);
                    self.is_away(false, "");
                    return;
                }
                Err(status) => {
                    self.is_away(true, status.message());
                    if attempt < ATTEMPTS {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                }
            }
        }
        self.give_up(count);
    }

    fn is_away(&self, now: bool, why: &str) {
        let before = std::mem::replace(&mut *self.is_away.lock().unwrap_or_else(PoisonError::into_inner), now);
        match (before, now) {
            (false, true) => tracing::warn!("spans can't be given to the collector, and are dropped: {why}"),
            (true, false) => tracing::info!("the collector takes spans again"),
            _ => {}
        }
    }
}
