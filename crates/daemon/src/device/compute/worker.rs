//! The queue's jobs, and whoever works on them: the worker thread, or for brief
//! runs whoever asked.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tierline_engine::Stop;
use tierline_node::Time;
use tierline_node::admit::{self, Action, Caller, Event, JobId, Queue};
use tierline_node::batch::{Batch, Trial};

use super::sessions::Sessions;
use super::together::{Ended, Like, TRIAL_MAX, Took};
use super::{
    BRIEF, ComputeError, ComputeOptions, HOLD_MAX, Job, LAST_RUNS_MAX, STUCK, STUCK_MAX, Turn, Work, background,
};
use crate::device::memory::Kind;
use crate::device::program::{Named, SliceKey};

/// What the worker does next.
pub(super) struct Next {
    pub(super) id: JobId,
    /// The first is that whose turn it is; the others run with it, as one.
    pub(super) jobs: Vec<Job>,
    /// Rows to be tried together afterwards.
    pub(super) tries: Option<u32>,
}

pub(super) struct Inner {
    pub(super) queue: Queue,
    pub(super) jobs: HashMap<JobId, Job>,
    pub(super) started: Option<JobId>,
    /// Those that run with it.
    pub(super) joined: Vec<JobId>,
    /// Rows to be tried together afterwards.
    pub(super) tries: Option<u32>,
    pub(super) runs: Runs,
    pub(super) next: u64,
    /// What the worker does, and when that is to end.
    pub(super) running: Option<(JobId, SliceKey, Instant)>,
    /// Which worker is at work; others are left to themselves.
    pub(super) worker: u64,
    /// How many those are.
    pub(super) stuck: usize,
    /// What they do.
    pub(super) stuck_at: HashSet<SliceKey>,
    /// Since when other threads have the device for pieces of theirs.
    pub(super) holds: HashMap<JobId, Instant>,
}

/// Runs of the engine for requests, by rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs {
    /// Of one request each.
    pub single: u64,
    /// Of several as one.
    pub batches: u64,
    /// Requests in those.
    pub batched: u64,
    /// Sizes that were tried.
    pub trials: u64,
    /// Runs that whoever asked did himself, being brief.
    pub at_once: u64,
}

/// What the last run of each slice took, and the bytes that it ran on.
#[derive(Default)]
pub(super) struct LastRuns(Mutex<HashMap<SliceKey, (Duration, u64)>>);

impl LastRuns {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<SliceKey, (Duration, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn took(&self, key: &SliceKey, bytes: u64, took: Duration) {
        let mut runs = self.lock();
        if let Some(last) = runs.get_mut(key) {
            *last = (took, bytes);
            return;
        }
        if runs.len() >= LAST_RUNS_MAX {
            runs.clear();
        }
        runs.insert(key.clone(), (took, bytes));
    }

    pub(super) fn was_brief(&self, key: &SliceKey, bytes: u64) -> bool {
        self.lock().get(key).is_some_and(|(took, of)| *took < BRIEF && bytes <= *of)
    }

    pub(super) fn forget(&self, digest: &str) {
        self.lock().retain(|key, _| key.digest != digest);
    }
}

pub(super) fn bytes_of(tensors: &Named) -> u64 {
    tensors.iter().map(|(_, tensor)| tensor.byte_len()).sum()
}

pub(super) struct Shared {
    pub(super) inner: Mutex<Inner>,
    /// Rings when a job may have started.
    pub(super) bell: Condvar,
    pub(super) origin: Instant,
    /// Numbers callers and kinds.
    pub(super) keyed: RandomState,
    pub(super) options: ComputeOptions,
    /// Sessions loaded so far.
    pub(super) loaded: AtomicU64,
    pub(super) draining: AtomicBool,
    /// Whether memory was freed that the allocator may keep.
    pub(super) freed: AtomicBool,
    /// Models of which some session was loaded with free rows.
    pub(super) row_by_row: Mutex<HashSet<String>>,
    pub(super) last_runs: LastRuns,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn time(&self, at: Instant) -> Time {
        Time::ZERO + at.saturating_duration_since(self.origin)
    }

    /// Steps the queue, performs what it asks, and wakes the worker where it has
    /// something to do or to wait for.
    pub(super) fn step(&self, inner: &mut Inner, event: Event) {
        self.advance(inner, event);
        if inner.started.is_some() || inner.queue.wake().is_some() {
            self.bell.notify_one();
        }
    }

    /// Steps the queue and performs what it asks.
    pub(super) fn advance(&self, inner: &mut Inner, event: Event) {
        let mut actions = VecDeque::from(inner.queue.step(self.time(Instant::now()), event));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Start(id) => match inner.jobs.get(&id).map(|job| &job.work) {
                    // Another thread waits for it; the worker has nothing to do.
                    Some(Work::Hold { granted }) => {
                        let heard = granted.try_send(()).is_ok();
                        inner.jobs.remove(&id);
                        if heard {
                            inner.holds.insert(id, Instant::now());
                        } else {
                            // That thread is gone.
                            actions.extend(inner.queue.step(self.time(Instant::now()), Event::Done(id)));
                        }
                    }
                    _ => {
                        inner.started = Some(id);
                        inner.joined.clear();
                        inner.tries = None;
                    }
                },
                Action::Join(id) => inner.joined.push(id),
                Action::Try(_, rows) => inner.tries = Some(rows),
                Action::Refuse(id, refusal) => {
                    if let Some(job) = inner.jobs.remove(&id) {
                        if let (Work::Trial { rows, .. }, Some(of)) = (&job.work, job.like) {
                            let undone = tried(of, *rows, Trial::NotDone);
                            actions.extend(inner.queue.step(self.time(Instant::now()), undone));
                        }
                        job.refuse(ComputeError::Busy(refusal));
                    }
                }
            }
        }
    }

    /// The job whose turn it is, with those that run as one with it.
    pub(super) fn take(inner: &mut Inner) -> Option<Next> {
        let id = inner.started.take()?;
        let job = inner.jobs.remove(&id)?;
        let joined = std::mem::take(&mut inner.joined);
        let others = joined.iter().filter_map(|id| inner.jobs.remove(id)).collect::<Vec<_>>();
        let deadline = others.iter().map(|other| other.deadline).fold(job.deadline, Instant::max);
        inner.running = Some((id, job.key.clone(), deadline));
        let jobs = std::iter::once(job).chain(others).collect();
        Some(Next { id, jobs, tries: inner.tries.take() })
    }

    /// The next job to run; blocks until there is one. None for a worker in
    /// whose place another one is.
    pub(super) fn next(&self, worker: u64) -> Option<Next> {
        let mut inner = self.lock();
        loop {
            if inner.worker != worker {
                return None;
            }
            if let Some(next) = Self::take(&mut inner) {
                return Some(next);
            }
            let now = self.time(Instant::now());
            let wake = inner.queue.wake().map(|at| now.until(at));
            inner = match wake {
                Some(wait) => self.bell.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.bell.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
            // A wake that comes too early does nothing.
            if inner.started.is_none() {
                self.step(&mut inner, Event::Wake);
            }
        }
    }

    /// Takes jobs one after the other, until another worker takes over.
    pub(super) fn work(&self, worker: u64) {
        while let Some(next) = self.next(worker) {
            if !self.work_on(worker, next) {
                return;
            }
        }
    }

    /// Does what was taken, as this worker or in its place; false where another
    /// one has taken over meanwhile.
    pub(super) fn work_on(&self, worker: u64, next: Next) -> bool {
        let Next { id, jobs, tries } = next;
        let sessions = Sessions {
            options: &self.options,
            loaded: &self.loaded,
            freed: &self.freed,
            row_by_row: &self.row_by_row,
            keyed: &self.keyed,
            last_runs: &self.last_runs,
        };
        let tasks = &self.options.tasks;
        let trial = tries.and_then(|rows| trial_of(&jobs[0], rows));
        let shown = tasks.guarded("worker", || self.perform(&sessions, jobs)).unwrap_or_else(|_| {
            // Whatever panicked there may have left them half made.
            self.options.memory.forget_all(|key| key.kind() == Kind::Sessions);
            Vec::new()
        });
        let mut inner = self.lock();
        if inner.worker != worker {
            inner.stuck -= 1;
            return false;
        }
        inner.running = None;
        shown.into_iter().for_each(|event| self.advance(&mut inner, event));
        if let Some((job, turn)) = trial {
            self.submit(&mut inner, job, turn);
        }
        self.step(&mut inner, Event::Done(id));
        true
    }

    /// Takes a job in that is expected to be brief; does it at once, on this
    /// thread, where it is its turn.
    pub(super) fn do_at_once(&self, job: Job, turn: Turn) {
        let taken = {
            let mut inner = self.lock();
            let id = self.submit(&mut inner, job, turn);
            if id.is_some() && inner.started == id && inner.joined.is_empty() {
                let worker = inner.worker;
                Self::take(&mut inner).map(|next| (worker, next))
            } else {
                self.bell.notify_one();
                None
            }
        };
        if let Some((worker, next)) = taken {
            self.work_on(worker, next);
            self.lock().runs.at_once += 1;
        }
    }

    /// Does jobs, several as one; what that shows, the queue hears.
    pub(super) fn perform(&self, sessions: &Sessions, mut jobs: Vec<Job>) -> Vec<Event> {
        // Nobody waits for those any more; they spoil nothing.
        if jobs.len() > 1 {
            jobs.retain(|job| !job.is_left());
        }
        let shown = |took: Option<Took>| took.map(|Took { kind, rows, took }| Event::Took { kind, rows, took });
        if jobs.len() > 1 {
            let (kind, count) = (jobs[0].like.map(|of| of.kind), jobs.len() as u64);
            return match sessions.perform_together(jobs) {
                Ended::Together(took) => {
                    let mut inner = self.lock();
                    inner.runs.batches += 1;
                    inner.runs.batched += count;
                    shown(took).into_iter().collect()
                }
                Ended::Apart { ever } => {
                    self.lock().runs.single += count;
                    kind.filter(|_| ever).map(Event::Broke).into_iter().collect()
                }
            };
        }
        let Some(job) = jobs.pop() else { return Vec::new() };
        if let (Work::Warm { bounds, .. }, Some(part)) = (&job.work, job.part.clone()) {
            let (key, bounds, stop) = (job.key.clone(), *bounds, job.stop.clone());
            // Before whoever waits hears of it.
            let shown = sessions.warm_up(&part, &key, bounds, &stop);
            sessions.perform(job);
            return shown.into_iter().collect();
        }
        if let (Work::Trial { inputs, rows }, Some(of)) = (&job.work, job.like) {
            let trial = sessions.try_together(&job.key, inputs, *rows as usize, &job.stop);
            self.lock().runs.trials += 1;
            return vec![tried(of, *rows, trial)];
        }
        let counts = u64::from(matches!(job.work, Work::Run { .. }) && !job.is_left());
        let took = sessions.perform(job);
        self.lock().runs.single += counts;
        shown(took).into_iter().collect()
    }

    /// Takes a job in; whoever calls wakes the worker.
    pub(super) fn submit(&self, inner: &mut Inner, job: Job, turn: Turn) -> Option<JobId> {
        if inner.stuck_at.contains(&job.key) {
            let (from, to) = (job.key.from, job.key.to);
            job.refuse(ComputeError::Stuck { from, to });
            return None;
        }
        let id = JobId(inner.next);
        inner.next += 1;
        let Turn { caller, class, priority, deadline, service, after, .. } = turn;
        let arrived = self.time(job.queued);
        let batch = job.like.filter(|_| matches!(job.work, Work::Run { .. }));
        let batch = batch.map(|Like { kind, rows, bytes, bounds }| Batch { kind, rows, bytes, bounds, arrived });
        inner.jobs.insert(id, job);
        // Keyed anew at each start: nobody can choose a name that is taken for another.
        let caller = Caller(self.keyed.hash_one(caller.as_ref()));
        let deadline = self.time(deadline);
        self.advance(inner, Event::Submit(admit::Job { id, caller, class, priority, deadline, service, after, batch }));
        Some(id)
    }

    /// Somebody else's piece of work has ended, or lasted too long for others
    /// to wait for it.
    pub(super) fn release(&self, inner: &mut Inner, id: JobId) {
        if inner.holds.remove(&id).is_some() {
            self.step(inner, Event::Done(id));
        }
    }

    /// Takes the device from pieces that last too long, and puts another worker
    /// in the place of one whose run can't be stopped.
    pub(super) fn look(self: &Arc<Self>) {
        let mut inner = self.lock();
        let long = inner.holds.iter().filter(|(_, since)| since.elapsed() > HOLD_MAX);
        let long: Vec<JobId> = long.map(|(id, _)| *id).collect();
        long.into_iter().for_each(|id| self.release(&mut inner, id));
        let late = |(_, _, deadline): &(JobId, SliceKey, Instant)| Instant::now() > *deadline + STUCK;
        if inner.stuck >= STUCK_MAX || !inner.running.as_ref().is_some_and(late) {
            return;
        }
        let Some((id, key, _)) = inner.running.take() else { return };
        tracing::error!(model = key.digest, key.from, key.to, "a run can't be stopped; it is left to itself");
        inner.worker += 1;
        inner.stuck += 1;
        inner.stuck_at.insert(key);
        let next = inner.worker;
        self.step(&mut inner, Event::Done(id));
        // One that waits for work goes, too.
        self.bell.notify_all();
        drop(inner);
        if let Err(error) = start(self, next) {
            tracing::error!(%error, "no thread to compute on");
        }
    }
}

/// What came of a trial, for the queue.
pub(super) fn tried(of: Like, rows: u32, trial: Trial) -> Event {
    Event::Tried { kind: of.kind, rows, bounds: of.bounds, trial }
}

/// The trial of so many rows like a job's own.
pub(super) fn trial_of(job: &Job, rows: u32) -> Option<(Job, Turn)> {
    let inputs = match &job.work {
        Work::Run { inputs, .. } => Arc::clone(inputs),
        _ => return None,
    };
    let turn = Turn { service: TRIAL_EXPECTED, ..background() };
    let (queued, deadline) = (Instant::now(), Instant::now() + TRIAL_MAX);
    let (part, key, like) = (job.part.clone(), job.key.clone(), job.like);
    let work = Work::Trial { inputs, rows };
    Some((Job { part, key, queued, stop: Stop::at(deadline), deadline, like, work }, turn))
}

/// What a trial may make others wait, about; longer ones are few.
pub(super) const TRIAL_EXPECTED: Duration = Duration::from_millis(50);

/// Starts a worker.
pub(super) fn start(shared: &Arc<Shared>, worker: u64) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name("compute".into()).spawn(move || shared.work(worker)).map(drop)
}
