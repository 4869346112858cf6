//! What a parent's link does: estimated from what passes it and from probes,
//! and watched for silence while a request waits (`tierline_node::estimate`,
//! `tierline_node::silence`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_node::Peer;
use tierline_node::estimate::{Action as LinkAction, Direction, Estimate, Estimator, Event as LinkEvent};
use tierline_node::lease::ChildEvent;
use tierline_proto::Sound;
use tierline_proto::limits::{CHUNK_BYTES, PROBE_BYTES_MAX};
use tierline_proto::v1::{Code, Failure, LinkEstimate, ProbeChunk, StageTiming};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Uplink;
use crate::runtime::ns;
use crate::runtime::tasks::sound;

/// Chunks ahead of the connection: back-pressure reaches the encoder after these.
const CHUNKS_AHEAD_MAX: usize = 8;

/// A probe's answer is not waited for any longer; long before, the estimator
/// has taken the link for slow.
const PROBE_TIME_MAX: Duration = Duration::from_secs(10);

/// How often a call that is late is held against the link.
const STILL_PENDING: Duration = Duration::from_millis(300);

/// A call is late after this many times its prediction.
const LATE_FACTOR: u32 = 2;

/// Between two questions whether the parent is there, while a request waits.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// How often it is looked whether it has answered.
const LOOK: Duration = Duration::from_millis(10);

/// Something large is under way to or from a parent, until this is dropped.
pub struct Occupied(pub(super) Arc<AtomicUsize>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The estimator; one that broke off measures from the beginning.
pub(super) fn lock(link: &Mutex<Estimator>) -> MutexGuard<'_, Estimator> {
    sound(link, |link| *link = Estimator::default())
}

impl Uplink {
    /// Somebody plans with the link, or sends requests over it: it is worth
    /// knowing.
    pub fn wanted(self: &Arc<Self>) {
        let second = self.net.clock.now().ns() / 1_000_000_000;
        // On every request's path.
        if self.wanted.swap(second, Ordering::Relaxed) != second {
            self.observe(LinkEvent::Wanted);
        }
    }

    /// Tells the estimator what the link did, and performs what it asks.
    pub fn observe(self: &Arc<Self>, event: LinkEvent) {
        tracing::debug!(?event, "link to {}", self.url);
        let mut actions = VecDeque::from(lock(&self.link).step(self.net.clock.now(), event));
        while let Some(action) = actions.pop_front() {
            match action {
                LinkAction::Probe { probe, .. } if self.transfers.load(Ordering::Relaxed) > 0 => {
                    let skipped = LinkEvent::ProbeSkipped { probe };
                    actions.extend(lock(&self.link).step(self.net.clock.now(), skipped));
                }
                LinkAction::Estimate(estimate) => self.link_moved(&estimate),
                LinkAction::Probe { probe, up_bytes, down_bytes } => {
                    let this = Arc::clone(self);
                    let probing = Arc::clone(self);
                    let work = async move {
                        let probe = probing.probe(up_bytes, down_bytes);
                        let late = |_| Failure::new(Code::DeadlineExceeded, "the probe was not answered in time");
                        tokio::time::timeout(PROBE_TIME_MAX, probe).await.map_err(late)?
                    };
                    self.net.tasks.spawn_then("probe", work, move |probed| async move {
                        let event = match probed.flatten() {
                            Ok((up, down)) => LinkEvent::Probed { probe, up, down },
                            Err(_) => LinkEvent::ProbeFailed { probe },
                        };
                        this.observe(event);
                    });
                }
            }
        }
        self.stir.notify_one();
    }

    /// Sends padding and gets some back: bytes and time each way, the first
    /// chunk not counted.
    async fn probe(&self, up_bytes: u64, down_bytes: u64) -> Result<((u64, Duration), (u64, Duration)), Failure> {
        // At least four chunks, so that the time between the first and the
        // last says something.
        let size = usize::try_from((up_bytes / 4).clamp(1, CHUNK_BYTES as u64)).unwrap_or(CHUNK_BYTES);
        let (send, receive) = mpsc::channel(CHUNKS_AHEAD_MAX);
        let feeder = self.net.tasks.spawn("probe feed", async move {
            let mut left = usize::try_from(up_bytes).unwrap_or(0);
            let mut want_bytes = down_bytes;
            while left > 0 {
                let padding = Bytes::from(vec![0u8; left.min(size)]);
                left -= padding.len();
                let chunk = ProbeChunk { want_bytes, padding, ..ProbeChunk::default() };
                want_bytes = 0;
                if send.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        let _feeder = feeder.owned();
        let mut client = self.pair()?.bulk_of(up_bytes.max(down_bytes));
        let stream = client.probe(ReceiverStream::new(receive)).await;
        let mut stream = stream.map_err(|s| self.failure(&s))?.into_inner();
        let missing = || Failure::new(Code::Protocol, "the probe was not answered");
        let head = stream.message().await.map_err(|s| self.failure(&s))?.ok_or_else(missing)?;
        let head = Sound::read(head)?;
        let (mut first, mut bytes) = (None, 0u64);
        while let Some(chunk) = stream.message().await.map_err(|s| self.failure(&s))? {
            if bytes > PROBE_BYTES_MAX {
                return Err(Failure::new(Code::Protocol, "the probe's answer has no end").at(&self.name()));
            }
            match first {
                None => first = Some(Instant::now()),
                Some(_) => bytes += chunk.padding.len() as u64,
            }
        }
        let down = first.map_or(Duration::ZERO, |f| f.elapsed());
        let up = head.received_bytes.saturating_sub(size as u64);
        Ok(((up, Duration::from_nanos(head.received_ns)), (bytes, down)))
    }

    /// Learns from a finished call what the link did: what the tiers above
    /// didn't spend, the link did.
    pub fn observe_transfer(self: &Arc<Self>, sent: u64, received: u64, waited: Duration, above: &[StageTiming]) {
        let Some(first) = above.first() else { return };
        let spent = first.queue_ns + first.decode_ns + first.compute_ns + first.encode_ns + first.upstream_ns;
        let on_link = waited.saturating_sub(Duration::from_nanos(spent));
        self.observe(LinkEvent::Exchange { up: sent, down: received, network: on_link });
    }

    /// Reports every `STILL_PENDING` that `bytes` are not through yet, once
    /// that took much longer than `predicted`; runs until it is dropped.
    pub async fn report_pending(self: &Arc<Self>, bytes: u64, predicted: Duration) -> std::convert::Infallible {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(STILL_PENDING).await;
            self.still_pending(bytes, predicted, begun.elapsed());
        }
    }

    /// `bytes` are not through yet.
    pub(super) fn still_pending(self: &Arc<Self>, bytes: u64, predicted: Duration, elapsed: Duration) {
        if elapsed >= predicted.saturating_mul(LATE_FACTOR) {
            // What the tiers above were expected to spend isn't the link's.
            let elapsed = elapsed.saturating_sub(predicted);
            self.observe(LinkEvent::Pending { direction: Direction::Up, bytes, elapsed });
        }
    }

    /// Asks again and again whether the parent is there, while a request needs
    /// it; ends when it has shown no sign of life for longer than it may take,
    /// `sending` bytes before the answer included.
    pub async fn silence(&self, sending: &AtomicU64) -> (Peer, String) {
        loop {
            let asked = Instant::now();
            let news = self.read().news.clone();
            if let Some(news) = news {
                let _ = news.send(ChildEvent::Urge).await;
            }
            loop {
                let estimate = lock(&self.link).estimate(self.net.clock.now());
                let ahead = estimate.up.filter(|up| *up > 0.0).map_or(Duration::ZERO, |up| {
                    Duration::try_from_secs_f64(sending.load(Ordering::Relaxed) as f64 / up).unwrap_or(PROBE_TIME_MAX)
                });
                let limit = ahead + self.read().silence.limit(estimate.rtt.unwrap_or_default());
                let (heard, waited) = (self.read().heard, asked.elapsed());
                if heard.is_some_and(|heard| heard >= asked) {
                    break;
                }
                if waited >= limit {
                    return (self.peer, format!("{} has shown no sign of life for {waited:.0?}", self.name()));
                }
                // Short, since what there is to send may have become known meanwhile.
                tokio::time::sleep((limit - waited).min(LOOK)).await;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The estimate of the link moved.
    pub(super) fn link_moved(self: &Arc<Self>, estimate: &Estimate) {
        if estimate.changed {
            let up = estimate.up.map_or("unknown".into(), |b| format!("{:.2} Mbit/s", b * 8.0 / 1e6));
            let (name, rtt) = (self.name(), estimate.rtt.map_or(0.0, |r| r.as_secs_f64() * 1e3));
            let json =
                serde_json::json!({ "parent": name, "up_bytes_per_s": estimate.up, "rtt_ns": estimate.rtt.map(ns) });
            self.net.events.record("link", format!("link to {name}: {up} up, round trip {rtt:.0} ms"), &json);
        }
        self.net.duties.each(|duty| duty.link_moved(self, estimate.changed));
    }

    /// What is known of the link to the parent.
    #[must_use]
    pub fn estimate(&self) -> LinkEstimate {
        let estimate = lock(&self.link).estimate(self.net.clock.now());
        LinkEstimate {
            up_bytes_per_s: estimate.up.unwrap_or(0.0),
            down_bytes_per_s: estimate.down.unwrap_or(0.0),
            rtt_ns: estimate.rtt.map_or(0, ns),
            confidence: estimate.confidence,
            age_ms: 0,
        }
    }

    /// A transfer begins: while it lasts, nothing is probed.
    #[must_use]
    pub fn occupied(&self) -> Occupied {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        Occupied(Arc::clone(&self.transfers))
    }
}
