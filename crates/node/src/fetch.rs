//! Artefacts by digest: found here, or fetched from above, resumed, verified.
//!
//! Whoever needs an artefact asks once; the machine fetches it once for all
//! who ask (single flight), in ranges that go on where a lost connection
//! stopped, from the parents in order of preference. Bytes are appended to a
//! partial file, and the whole is hashed before it is committed under its
//! digest. A wrong digest starts over once, from another source if there is
//! one; the second time it is an error. While a parent that may have it is
//! away, the artefact stays wanted: each waiter has its own deadline.
//!
//! Pure: the machine sees lengths, not bytes. Start at [`Fetcher`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tierline_proto::limits::ARTEFACT_BYTES_MAX;
use tierline_proto::{Code, Digest};

use crate::time::{Time, ns};
use crate::{Peer, Rng};

/// Transfers at once; more would share the same link.
pub const TRANSFERS_MAX: usize = 2;

/// Artefacts wanted at once.
pub const WANTED_MAX: usize = 1_024;

/// Waiters of one artefact.
pub const WAITERS_MAX: usize = 1_024;

/// A transfer without a byte for so long is broken.
pub const STALL: Duration = Duration::from_secs(15);

/// Attempts in a row without a single new byte.
pub const FRUITLESS_MAX: u32 = 8;

/// First pause after a fruitless attempt, at most; doubles.
pub const PAUSE_BASE: Duration = Duration::from_millis(200);

/// Longest pause between attempts.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Names somebody who waits for an artefact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter(pub u64);

/// Names one transfer; what belongs to an earlier one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transfer(pub u64);

/// What is on this node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Committed and whole.
    Whole,
    /// A partial file of that many bytes; 0 for none.
    Partial(u64),
}

/// Why an artefact is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Every source says so.
    #[error("artefact {0} is known to no node above")]
    NotFound(Digest),
    /// Too many attempts without a byte.
    #[error("artefact {digest} could not be fetched: {reason}")]
    Unreachable {
        /// Which.
        digest: Digest,
        /// The last failure.
        reason: String,
    },
    /// Bytes that hash to something else, twice.
    #[error("artefact {wanted} arrived as {got}, twice; a copy above is damaged")]
    Corrupt {
        /// Wanted.
        wanted: Digest,
        /// Digest of what came.
        got: Digest,
    },
    /// The source says it is longer than allowed, or changes its mind.
    #[error("artefact {digest}: a source declares {bytes} bytes where at most {max} can be")]
    Length {
        /// Which.
        digest: Digest,
        /// Declared.
        bytes: u64,
        /// Possible.
        max: u64,
    },
    /// No room.
    #[error("no room to store artefact {0}; remove models (`tierline model rm`) or give the store more room")]
    StorageFull(Digest),
    /// The disk failed in another way.
    #[error("artefact {digest} could not be stored: {reason}")]
    Storage {
        /// Which.
        digest: Digest,
        /// What the disk said.
        reason: String,
    },
    /// Too many wants.
    #[error("{0} artefacts are being fetched already, the limit here")]
    TooMany(usize),
}

impl FetchError {
    /// The code on the wire.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Unreachable { .. } => Code::Unreachable,
            Self::Corrupt { .. } | Self::Length { .. } => Code::Corrupt,
            Self::StorageFull(_) => Code::StorageFull,
            Self::Storage { .. } => Code::Internal,
            Self::TooMany(_) => Code::Overloaded,
        }
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody needs an artefact.
    Want {
        /// Which.
        digest: Digest,
        /// Who.
        waiter: Waiter,
        /// Bytes that it may have at most.
        most: u64,
    },
    /// A waiter gave up. Without waiters a transfer stops; its bytes stay.
    Forget {
        /// Which artefact.
        digest: Digest,
        /// Who.
        waiter: Waiter,
    },
    /// Answer to `Look`.
    Looked {
        /// Which.
        digest: Digest,
        /// What is here.
        found: Found,
    },
    /// A parent can be asked.
    SourceUp(Peer),
    /// A parent cannot be asked any more; its transfers broke.
    SourceDown(Peer),
    /// A parent is no longer configured.
    SourceGone(Peer),
    /// Bytes arrived.
    Chunk {
        /// Of which transfer.
        transfer: Transfer,
        /// Length of the whole artefact as the source says.
        total: u64,
        /// Where they belong.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The transfer's stream ended, well or not.
    Ended {
        /// Which.
        transfer: Transfer,
        /// `None`: the source sent all it wanted to.
        failure: Option<(Code, String)>,
    },
    /// An append or a commit failed.
    WriteFailed {
        /// Which artefact.
        digest: Digest,
        /// Whether the disk is full.
        full: bool,
        /// What the disk said.
        reason: String,
    },
    /// Answer to `Verify`: the digest of the partial file.
    Hashed {
        /// Wanted.
        digest: Digest,
        /// Found.
        got: Digest,
    },
    /// Answer to `Commit`.
    Committed {
        /// Which.
        digest: Digest,
    },
    /// The time [`Fetcher::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// See what is on disk; report `Looked`.
    Look(Digest),
    /// Ask a parent for the rest; report `Chunk`s and `Ended`.
    Fetch {
        /// Name of the transfer.
        transfer: Transfer,
        /// Whom.
        source: Peer,
        /// Which artefact.
        digest: Digest,
        /// From where to the end.
        offset: u64,
    },
    /// Append the chunk just reported to the partial file.
    Append(Digest),
    /// Stop a transfer.
    Stop(Transfer),
    /// Empty the partial file.
    Discard(Digest),
    /// Hash the partial file; report `Hashed`.
    Verify(Digest),
    /// Move the verified partial file into the store, durably; report
    /// `Committed`.
    Commit(Digest),
    /// Tell these waiters.
    Done {
        /// Which artefact.
        digest: Digest,
        /// Who waited.
        waiters: Vec<Waiter>,
        /// Whether it is there now.
        result: Result<(), FetchError>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// `Look` is out.
    Looking,
    /// Waiting for a slot, a source or the end of a pause.
    Ready { not_before: Time },
    /// A transfer is out.
    Moving { transfer: Transfer, source: Peer, stalls_at: Time },
    /// `Verify` is out.
    Hashing,
    /// `Commit` is out.
    Committing,
}

#[derive(Debug)]
struct Job {
    waiters: BTreeSet<Waiter>,
    phase: Phase,
    /// Bytes in the partial file.
    have: u64,
    /// What those who wait for it allow it to have.
    most: u64,
    /// Length of the whole, once a source said it.
    total: Option<u64>,
    /// Sources that do not have it.
    excluded: BTreeSet<Peer>,
    /// Where the bytes in the partial file came from, as far as known.
    from: BTreeSet<Peer>,
    /// Sources of wrong bytes; asked only when no other is there.
    distrusted: BTreeSet<Peer>,
    fruitless: u32,
    /// Whether wrong bytes have come once already.
    corrupt_once: bool,
    reason: String,
}

/// All wanted artefacts of a node.
///
/// Invariants: one transfer per artefact, at most [`TRANSFERS_MAX`] in all;
/// every waiter gets exactly one `Done` unless it gave up; `Commit` only after
/// a matching `Hashed` with no byte appended in between.
#[derive(Debug, Default)]
pub struct Fetcher {
    jobs: BTreeMap<Digest, Job>,
    /// In order of arrival, for fairness.
    order: VecDeque<Digest>,
    up: BTreeSet<Peer>,
    /// Configured parents.
    known: BTreeSet<Peer>,
    transfers: u64,
}

impl Fetcher {
    /// A node with these parents, none of which can be asked yet.
    #[must_use]
    pub fn new(parents: impl IntoIterator<Item = Peer>) -> Self {
        Self { known: parents.into_iter().collect(), ..Self::default() }
    }

    /// One step.
    pub fn step(&mut self, now: Time, rng: &mut Rng, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            Event::Want { digest, waiter, most } => self.want(digest, waiter, most, out),
            Event::Forget { digest, waiter } => self.forget(digest, waiter, out),
            Event::Looked { digest, found } => self.looked(now, digest, found, out),
            Event::SourceUp(source) => self.source_up(source),
            Event::SourceDown(source) => self.source_down(now, rng, source, out),
            Event::SourceGone(source) => {
                self.source_down(now, rng, source, out);
                self.known.remove(&source);
                let all: Vec<Digest> = self.jobs.keys().copied().collect();
                all.into_iter().for_each(|digest| self.check_found(digest, out));
            }
            Event::Chunk { transfer, total, offset, length } => {
                self.chunk(now, rng, transfer, total, offset, length, out)
            }
            Event::Ended { transfer, failure } => self.ended(now, rng, transfer, failure, out),
            Event::WriteFailed { digest, full, reason } => self.write_failed(digest, full, reason, out),
            Event::Hashed { digest, got } => self.hashed(now, digest, got, out),
            Event::Committed { digest } => {
                if self.jobs.get(&digest).is_some_and(|job| job.phase == Phase::Committing) {
                    self.finish(digest, Ok(()), out);
                }
            }
            Event::Wake => self.stalled(now, rng, out),
        }
        self.fill(now, out);
        actions
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let slot = self.moving() < TRANSFERS_MAX;
        let at = |job: &Job| match job.phase {
            Phase::Moving { stalls_at, .. } => Some(stalls_at),
            Phase::Ready { not_before } if slot && self.source_for(job).is_some() => Some(not_before),
            _ => None,
        };
        self.jobs.values().filter_map(at).min()
    }

    /// Bytes here and in all, of an artefact being fetched.
    #[must_use]
    pub fn progress(&self, digest: Digest) -> Option<(u64, Option<u64>)> {
        self.jobs.get(&digest).map(|job| (job.have, job.total))
    }

    fn want(&mut self, digest: Digest, waiter: Waiter, most: u64, out: &mut Vec<Action>) {
        let full = self.jobs.len() >= WANTED_MAX && !self.jobs.contains_key(&digest);
        let crowded = self.jobs.get(&digest).is_some_and(|job| job.waiters.len() >= WAITERS_MAX);
        if full || crowded {
            let result = Err(FetchError::TooMany(if full { self.jobs.len() } else { WAITERS_MAX }));
            out.push(Action::Done { digest, waiters: vec![waiter], result });
            return;
        }
        let job = self.jobs.entry(digest).or_insert_with(|| {
            self.order.push_back(digest);
            out.push(Action::Look(digest));
            Job {
                waiters: BTreeSet::new(),
                phase: Phase::Looking,
                have: 0,
                most: 0,
                total: None,
                excluded: BTreeSet::new(),
                from: BTreeSet::new(),
                distrusted: BTreeSet::new(),
                fruitless: 0,
                corrupt_once: false,
                reason: "no node above can be reached".to_owned(),
            }
        });
        job.waiters.insert(waiter);
        job.most = job.most.max(most.min(ARTEFACT_BYTES_MAX));
    }

    fn forget(&mut self, digest: Digest, waiter: Waiter, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&digest) else { return };
        job.waiters.remove(&waiter);
        // Hashing and committing end soon, and their answers must find the job.
        let idle = matches!(job.phase, Phase::Ready { .. } | Phase::Moving { .. });
        if job.waiters.is_empty() && idle {
            if let Phase::Moving { transfer, .. } = job.phase {
                out.push(Action::Stop(transfer));
            }
            self.remove(digest);
        }
    }

    fn looked(&mut self, now: Time, digest: Digest, found: Found, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&digest).filter(|job| job.phase == Phase::Looking) else { return };
        match found {
            Found::Whole => self.finish(digest, Ok(()), out),
            Found::Partial(length) => {
                job.have = length;
                job.phase = Phase::Ready { not_before: now };
                if job.waiters.is_empty() {
                    self.remove(digest);
                } else if self.known.is_empty() {
                    // Nobody above could ever have it.
                    self.finish(digest, Err(FetchError::NotFound(digest)), out);
                }
            }
        }
    }

    fn source_up(&mut self, source: Peer) {
        self.up.insert(source);
        self.known.insert(source);
        for job in self.jobs.values_mut() {
            // It may have learnt of it meanwhile.
            job.excluded.remove(&source);
            if let Phase::Ready { not_before } = &mut job.phase {
                *not_before = Time::ZERO;
            }
        }
    }

    fn source_down(&mut self, now: Time, rng: &mut Rng, source: Peer, out: &mut Vec<Action>) {
        self.up.remove(&source);
        let broken = |job: &Job| matches!(job.phase, Phase::Moving { source: from, .. } if from == source);
        let digests: Vec<Digest> = self.jobs.iter().filter(|(_, job)| broken(job)).map(|(digest, _)| *digest).collect();
        for digest in digests {
            if let Some(Job { phase: Phase::Moving { transfer, .. }, .. }) = self.jobs.get(&digest) {
                out.push(Action::Stop(*transfer));
            }
            // Not the source's fault as far as attempts go: it is known to be
            // away, and nothing is tried until it is back.
            self.pause(now, rng, digest, "the connection was lost".to_owned(), false, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the event's fields, once")]
    fn chunk(
        &mut self,
        now: Time,
        rng: &mut Rng,
        transfer: Transfer,
        total: u64,
        offset: u64,
        length: u64,
        out: &mut Vec<Action>,
    ) {
        let Some(digest) = self.moved_by(transfer) else { return };
        let Some(job) = self.jobs.get_mut(&digest) else { return };
        let max = job.total.unwrap_or(job.most);
        if total > max || total < job.have || job.total.is_some_and(|known| known != total) {
            out.push(Action::Stop(transfer));
            if total < job.have && !job.corrupt_once {
                // What is on disk is longer than the artefact: it is not it.
                return self.start_over(now, digest, out);
            }
            return self.finish(digest, Err(FetchError::Length { digest, bytes: total, max }), out);
        }
        if offset != job.have || length > total - offset {
            out.push(Action::Stop(transfer));
            let reason = format!(
                "bytes {offset}..{} came where {}..{total} were asked for",
                offset.saturating_add(length),
                job.have
            );
            return self.pause(now, rng, digest, reason, true, out);
        }
        job.total = Some(total);
        job.have += length;
        if let Phase::Moving { stalls_at, source, .. } = &mut job.phase {
            *stalls_at = now + STALL;
            job.from.insert(*source);
        }
        if length > 0 {
            job.fruitless = 0;
            out.push(Action::Append(digest));
        }
        if job.have == total {
            job.phase = Phase::Hashing;
            out.push(Action::Stop(transfer));
            out.push(Action::Verify(digest));
        }
    }

    fn ended(
        &mut self,
        now: Time,
        rng: &mut Rng,
        transfer: Transfer,
        failure: Option<(Code, String)>,
        out: &mut Vec<Action>,
    ) {
        let Some(digest) = self.moved_by(transfer) else { return };
        let Some(job) = self.jobs.get_mut(&digest) else { return };
        let Phase::Moving { source, .. } = job.phase else { return };
        match failure {
            Some((Code::NotFound | Code::UnknownModel, _)) => {
                job.excluded.insert(source);
                job.phase = Phase::Ready { not_before: now };
                self.check_found(digest, out);
            }
            // The source is fetching it itself: not a fruitless attempt.
            Some((Code::ModelNotReady, reason)) => self.pause(now, rng, digest, reason, false, out),
            Some((_, reason)) => self.pause(now, rng, digest, reason, true, out),
            None => self.pause(now, rng, digest, "the source stopped early".to_owned(), true, out),
        }
    }

    /// Gives up on what every parent says it does not have. One that is away
    /// may have it: the waiters decide how long that is worth.
    fn check_found(&mut self, digest: Digest, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&digest) else { return };
        let asked = !job.excluded.is_empty() && matches!(job.phase, Phase::Ready { .. });
        if asked && self.known.is_subset(&job.excluded) {
            self.finish(digest, Err(FetchError::NotFound(digest)), out);
        }
    }

    fn write_failed(&mut self, digest: Digest, full: bool, reason: String, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(&digest) else { return };
        if let Phase::Moving { transfer, .. } = job.phase {
            out.push(Action::Stop(transfer));
        }
        // How much of the last append is on disk is unknown; and when the disk
        // is full the room is needed.
        out.push(Action::Discard(digest));
        let error = if full { FetchError::StorageFull(digest) } else { FetchError::Storage { digest, reason } };
        self.finish(digest, Err(error), out);
    }

    fn hashed(&mut self, now: Time, digest: Digest, got: Digest, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&digest).filter(|job| job.phase == Phase::Hashing) else { return };
        if got == digest {
            job.phase = Phase::Committing;
            out.push(Action::Commit(digest));
        } else if job.corrupt_once {
            out.push(Action::Discard(digest));
            self.finish(digest, Err(FetchError::Corrupt { wanted: digest, got }), out);
        } else {
            self.start_over(now, digest, out);
        }
    }

    fn start_over(&mut self, now: Time, digest: Digest, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&digest) else { return };
        out.push(Action::Discard(digest));
        job.corrupt_once = true;
        job.have = 0;
        job.total = None;
        job.phase = Phase::Ready { not_before: now };
        job.distrusted.append(&mut job.from);
        if job.waiters.is_empty() {
            self.remove(digest);
        }
    }

    /// Ends an attempt; the next follows after a pause with full jitter.
    fn pause(
        &mut self,
        now: Time,
        rng: &mut Rng,
        digest: Digest,
        reason: String,
        fruitless: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(&digest) else { return };
        job.fruitless += u32::from(fruitless);
        job.reason.clone_from(&reason);
        if job.fruitless >= FRUITLESS_MAX {
            return self.finish(digest, Err(FetchError::Unreachable { digest, reason }), out);
        }
        let bound = ns(PAUSE_MAX).min(ns(PAUSE_BASE) << job.fruitless.min(16));
        let not_before = now + Duration::from_nanos(rng.u64(0..=bound));
        job.phase = Phase::Ready { not_before };
    }

    fn stalled(&mut self, now: Time, rng: &mut Rng, out: &mut Vec<Action>) {
        let late = |job: &Job| match job.phase {
            Phase::Moving { transfer, stalls_at, .. } if now >= stalls_at => Some(transfer),
            _ => None,
        };
        let late: Vec<(Digest, Transfer)> = self.jobs.iter().filter_map(|(d, job)| Some((*d, late(job)?))).collect();
        for (digest, transfer) in late {
            out.push(Action::Stop(transfer));
            self.pause(now, rng, digest, format!("no byte came for {STALL:?}"), true, out);
        }
    }

    /// Starts transfers while there are slots, in order of arrival.
    fn fill(&mut self, now: Time, out: &mut Vec<Action>) {
        let mut free = TRANSFERS_MAX.saturating_sub(self.moving());
        for digest in &self.order {
            if free == 0 {
                return;
            }
            let Some(job) = self.jobs.get(digest) else { continue };
            if !matches!(job.phase, Phase::Ready { not_before } if now >= not_before) {
                continue;
            }
            let Some(source) = self.source_for(job) else { continue };
            free -= 1;
            self.transfers += 1;
            let transfer = Transfer(self.transfers);
            let Some(job) = self.jobs.get_mut(digest) else { continue };
            job.phase = Phase::Moving { transfer, source, stalls_at: now + STALL };
            out.push(Action::Fetch { transfer, source, digest: *digest, offset: job.have });
        }
    }

    fn finish(&mut self, digest: Digest, result: Result<(), FetchError>, out: &mut Vec<Action>) {
        if let Some(job) = self.remove(digest) {
            let waiters: Vec<Waiter> = job.waiters.into_iter().collect();
            out.push(Action::Done { digest, waiters, result });
        }
    }

    fn remove(&mut self, digest: Digest) -> Option<Job> {
        self.order.retain(|other| *other != digest);
        self.jobs.remove(&digest)
    }

    fn moving(&self) -> usize {
        self.jobs.values().filter(|job| matches!(job.phase, Phase::Moving { .. })).count()
    }

    fn moved_by(&self, transfer: Transfer) -> Option<Digest> {
        let of = |job: &Job| matches!(job.phase, Phase::Moving { transfer: of, .. } if of == transfer);
        self.jobs.iter().find(|(_, job)| of(job)).map(|(digest, _)| *digest)
    }

    /// The first parent in order of preference that is up and may have it.
    fn source_for(&self, job: &Job) -> Option<Peer> {
        let may_have = || self.up.difference(&job.excluded);
        may_have().find(|source| !job.distrusted.contains(source)).or_else(|| may_have().next()).copied()
    }
}
