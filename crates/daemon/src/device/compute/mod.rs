//! The executor of this device: whatever computes asks it for its turn, by the
//! queue before it (`tierline_node::admit`). Requests run on its one worker
//! thread, from sessions of recent slices that are kept warm within the node's
//! memory for such ([`super::memory`]); training, evaluation and profiling hold
//! the device a step at a time ([`Compute::hold`], `scheduled`).
//!
//! Requests for the same segments that wait at the same time run as one where
//! that is sound and spares time (`together`).
//!
//! One at a time, because a session already uses every thread it was given:
//! two at once would only make both late.
//!
//! A run that takes less time than waking a thread, whoever asks for it does
//! himself, where the device is free ([`BRIEF`]).
//!
//! Nothing that a model does ends the worker for good. A run is stopped at its
//! request's deadline, or when nobody waits for it any more; one that panics or
//! is stopped fails its request, and its session is dropped. What can't be
//! stopped (one operator that takes for ever) is left to itself: another worker
//! takes its place.

mod sessions;
mod together;
mod worker;

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tierline_engine::{Engine, EngineError, LoadOptions, PullOnDrop, Stop};
use tierline_graph::slice::SliceError;
use tierline_node::admit::{Class, Event, JobId, Limits, Priority, Queue, Refusal, Shares};
use tierline_node::batch::Bounds;
use tierline_proto::v1::{Code, Failure};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use self::together::{Like, like};
pub use self::worker::Runs;
use self::worker::{Inner, LastRuns, Shared, bytes_of, start};
use super::budget::Budget;
use super::memory::{Key, Memory};
use super::program::{Named, Part, SliceKey};
use crate::runtime::tasks::Tasks;

/// Jobs waiting for the worker; a request that would wait longer is better
/// refused at once than answered after its deadline.
pub const JOBS_WAITING_MAX: usize = 64;

/// A run is brief where the last one of the same segments took less, on no fewer
/// bytes: it isn't worth another thread, since to wake one and to be woken by it
/// takes about as long.
pub const BRIEF: Duration = Duration::from_micros(200);

/// Slices whose last run is remembered.
const LAST_RUNS_MAX: usize = 1_024;

/// A run that was to end and hasn't by then can't be stopped.
const STUCK: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A piece of background work that takes longer shares the device from then on:
/// nobody waits for its end.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// Workers left to themselves at once. With more, whatever keeps them would
/// have every core.
const STUCK_MAX: usize = 2;

/// Loading a session that nobody waits for may take so long.
const WARM_TIME_MAX: Duration = Duration::from_secs(120);

/// Why a slice didn't run here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cut doesn't fit the model.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The queue before the engine refused it.
    #[error("this node is busy: {0}; send fewer requests or allow more time")]
    Busy(Refusal),
    /// The session alone exceeds the memory limit, or what is left of it by
    /// what is in use.
    #[error(
        "segments {from}..{to} need about {needed} bytes; this node keeps {limit} bytes of models, sessions and plans"
    )]
    Memory {
        /// First segment.
        from: usize,
        /// One past the last segment.
        to: usize,
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The session isn't loaded, and no model came along to load it from.
    #[error("segments {from}..{to} are not loaded")]
    Cold {
        /// First segment.
        from: usize,
        /// One past the last segment.
        to: usize,
    },
    /// The segments don't exist.
    #[error("segments {from}..{to} of a model with {segments}; the models differ between nodes")]
    Range {
        /// First segment.
        from: usize,
        /// One past the last segment.
        to: usize,
        /// Segments there are.
        segments: usize,
    },
    /// Several requests didn't run as one; each runs by itself then.
    #[error("segments {from}..{to} of several requests: {why}")]
    Together {
        /// First segment.
        from: usize,
        /// One past the last segment.
        to: usize,
        /// Why.
        why: String,
        /// Whether that is so only now.
        now: bool,
    },
    /// The worker ended.
    #[error("this node is shutting down")]
    Closed,
    /// What ran panicked; the worker goes on.
    #[error("segments {from}..{to}: {message}")]
    Panicked {
        /// First segment.
        from: usize,
        /// One past the last segment.
        to: usize,
        /// What the panic said.
        message: String,
    },
    /// An earlier run of the same segments could not be stopped.
    #[error(
        "segments {from}..{to} of this model could not be stopped before; they run here no more until the node starts again"
    )]
    Stuck {
        /// First segment.
        from: usize,
        /// One past the last segment.
        to: usize,
    },
}

/// What a slice that didn't run means to the caller.
impl From<ComputeError> for Failure {
    fn from(error: ComputeError) -> Self {
        let code = match &error {
            ComputeError::Busy(Refusal::Draining) => Code::Draining,
            ComputeError::Busy(_) => Code::Overloaded,
            ComputeError::Memory { .. } => Code::Infeasible,
            ComputeError::Range { .. } => Code::Protocol,
            ComputeError::Closed => Code::Draining,
            ComputeError::Cold { .. } => Code::ModelNotReady,
            ComputeError::Engine(e) if is_input_error(e) => Code::InvalidInput,
            ComputeError::Engine(
                EngineError::Refused { .. } | EngineError::Memory { .. } | EngineError::Ended { .. },
            ) => Code::Infeasible,
            ComputeError::Engine(EngineError::Stopped { .. }) => Code::DeadlineExceeded,
            ComputeError::Stuck { .. } => Code::Infeasible,
            _ => Code::Engine,
        };
        Failure::new(code, error.to_string())
    }
}

/// Whether the caller's tensors, not the engine, are at fault.
fn is_input_error(error: &EngineError) -> bool {
    use EngineError as E;
    matches!(
        error,
        E::MissingInput { .. }
            | E::ExtraInput { .. }
            | E::DuplicateInput { .. }
            | E::InputType { .. }
            | E::InputShape { .. }
    )
}

/// What running a slice gave.
#[derive(Debug)]
pub struct Computed {
    /// Outputs by name, in the slice's order.
    pub outputs: Named,
    /// Time waited for the worker.
    pub queued: Duration,
    /// Time computed, the slowdown factor included; of all that ran as one.
    pub compute: Duration,
    /// Requests that ran as one with it, itself included, and their rows.
    pub batch: Option<(u32, u32)>,
}

/// When a job must be done, and what is known of it.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who wants it: callers take turns.
    pub caller: Arc<str>,
    /// Recoveries go first, warming last.
    pub class: Class,
    /// Among the caller's own.
    pub priority: Priority,
    /// When its result must be there.
    pub deadline: Instant,
    /// Expected time in the engine.
    pub service: Duration,
    /// Expected time from there to the request's answer.
    pub after: Duration,
    /// What may run as one with it.
    pub bounds: Option<Bounds>,
}

enum Work {
    Run {
        inputs: Arc<Named>,
        reply: oneshot::Sender<Result<Computed, ComputeError>>,
    },
    Warm {
        reply: oneshot::Sender<Result<u64, ComputeError>>,
        bounds: Bounds,
    },
    Evict {
        done: oneshot::Sender<()>,
    },
    /// So many rows like these together, against each by itself.
    Trial {
        inputs: Arc<Named>,
        rows: u32,
    },
    /// Drops every session of the key's model.
    Forget,
    /// The device itself, for a piece of work that another thread does.
    Hold {
        granted: mpsc::SyncSender<()>,
    },
}

struct Job {
    /// None for evictions.
    part: Option<Part>,
    key: SliceKey,
    queued: Instant,
    /// Ends it.
    stop: Stop,
    /// When it is to end by itself.
    deadline: Instant,
    /// What its inputs are like, where it may run with others.
    like: Option<Like>,
    work: Work,
}

impl Job {
    /// What it runs on.
    fn inputs(&self) -> Option<&Named> {
        match &self.work {
            Work::Run { inputs, .. } => Some(inputs),
            _ => None,
        }
    }

    /// Whether nobody waits for it any more.
    fn is_left(&self) -> bool {
        matches!(&self.work, Work::Run { reply, .. } if reply.is_closed())
    }

    fn refuse(self, error: ComputeError) {
        // A caller that went away doesn't want to know.
        match self.work {
            Work::Run { reply, .. } => drop(reply.send(Err(error))),
            Work::Warm { reply, .. } => drop(reply.send(Err(error))),
            Work::Evict { done } => drop(done.send(())),
            // Whoever waits hears that nothing comes.
            Work::Forget | Work::Hold { .. } | Work::Trial { .. } => {}
        }
    }
}

/// Handle of the worker; clones share it.
#[derive(Clone)]
pub struct Compute(Arc<Shared>);

/// How the worker runs.
pub struct ComputeOptions {
    /// Where panics are counted and told.
    pub tasks: Tasks,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// How sessions are loaded.
    pub load: LoadOptions,
    /// Every run takes this many times as long: 1 runs at full speed, 8
    /// stands for a device eight times slower.
    pub slowdown: f64,
    /// Where warm sessions are kept.
    pub memory: Memory,
    /// What background work gets of the device.
    pub shares: Shares,
    /// Memory for requests, of which those that run as one take their part.
    pub budget: Budget,
    /// Whether any model's requests may run as one.
    pub batches: bool,
}

impl Compute {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(options: ComputeOptions) -> std::io::Result<Self> {
        let queue = Queue::sharing(Limits { slots: 1, waiting: JOBS_WAITING_MAX }, options.shares);
        let inner = Inner {
            queue,
            jobs: HashMap::new(),
            started: None,
            joined: Vec::new(),
            tries: None,
            runs: Runs::default(),
            next: 0,
            running: None,
            worker: 0,
            stuck: 0,
            stuck_at: HashSet::new(),
            holds: HashMap::new(),
        };
        let (bell, origin) = (Condvar::new(), Instant::now());
        let keyed = RandomState::new();
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            bell,
            origin,
            keyed,
            options,
            loaded: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            freed: AtomicBool::new(false),
            row_by_row: Mutex::default(),
            last_runs: LastRuns::default(),
        });
        start(&shared, 0)?;
        let watched = Arc::downgrade(&shared);
        std::thread::Builder::new().name("compute-watch".into()).spawn(move || {
            while let Some(shared) = watched.upgrade() {
                shared.look();
                if shared.freed.swap(false, Ordering::Relaxed) {
                    tierline_engine::give_back_memory();
                }
                drop(shared);
                std::thread::sleep(LOOK);
            }
        })?;
        Ok(Self(shared))
    }

    /// Jobs waiting for the worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().queue.requests()
    }

    /// How long a job that comes now is likely to wait.
    #[must_use]
    pub fn expected_wait(&self) -> Duration {
        self.0.lock().queue.expected_wait(self.0.time(Instant::now()))
    }

    /// The wait that requests have from now on, as plans count it: a job that
    /// runs while nobody waits is no queue.
    #[must_use]
    pub fn congestion(&self) -> Duration {
        if self.waiting() == 0 { Duration::ZERO } else { self.expected_wait() }
    }

    /// No new jobs from now on, but recoveries.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.step(&mut self.0.lock(), Event::Drain);
    }

    /// Sessions loaded so far, those loaded again included.
    #[must_use]
    pub fn loaded(&self) -> u64 {
        self.0.loaded.load(Ordering::Relaxed)
    }

    /// The device itself, for a piece of work of a background class that the
    /// caller does: a step of training, a run of a measurement. It is expected
    /// to take `service`, and others have their turn between two pieces; after
    /// two seconds beside it. Blocks;
    /// `None` when `stop` is pulled first.
    #[must_use]
    pub fn hold(&self, class: Class, service: Duration, stop: &Stop) -> Option<Hold> {
        /// How often it is looked whether it is still wanted.
        const LOOK: Duration = Duration::from_millis(20);
        loop {
            if stop.is_pulled() {
                return None;
            }
            // Nobody has turns any more; what is under way must not fail for it.
            if self.0.draining.load(Ordering::Relaxed) {
                return Some(Hold { shared: Arc::clone(&self.0), id: None });
            }
            let (granted, waiting) = mpsc::sync_channel(1);
            let key = SliceKey { digest: String::new(), from: 0, to: 0 };
            let turn = Turn { class, service: service.min(HOLD_MAX), ..background() };
            let id = self.submit(None, key, Work::Hold { granted }, turn, Stop::never())?;
            loop {
                match waiting.recv_timeout(LOOK) {
                    Ok(()) => return Some(Hold { shared: Arc::clone(&self.0), id: Some(id) }),
                    Err(RecvTimeoutError::Timeout) if !stop.is_pulled() => {}
                    Err(RecvTimeoutError::Timeout) => {
                        let mut inner = self.0.lock();
                        // Granted in that moment, it is given back.
                        if inner.jobs.remove(&id).is_some() {
                            self.0.step(&mut inner, Event::Cancel(id));
                        } else {
                            self.0.release(&mut inner, id);
                        }
                        return None;
                    }
                    // Too many wait; it is asked again.
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Much may have been freed: soon, what the allocator keeps of it is given
    /// back to the system.
    pub fn give_back(&self) {
        self.0.freed.store(true, Ordering::Relaxed);
    }

    /// Whether the session of `key` is loaded.
    #[must_use]
    pub fn is_warm(&self, key: &SliceKey) -> bool {
        self.0.options.memory.has(&Key::Session(key.clone()))
    }

    /// Runs segments `key.from..key.to` on `inputs`.
    ///
    /// # Errors
    /// [`ComputeError`].
    pub async fn run(
        &self,
        part: Part,
        key: SliceKey,
        inputs: Arc<Named>,
        turn: Turn,
    ) -> Result<Computed, ComputeError> {
        let (reply, mut answer) = oneshot::channel();
        let latest = turn.deadline.checked_sub(turn.service + turn.after).unwrap_or(turn.deadline);
        let stop = Stop::at(turn.deadline);
        // A caller that goes away wants nothing more done.
        let _pulled = PullOnDrop(stop.clone());
        let is_brief = self.is_brief(&key, &inputs);
        let (job, turn) = self.job(Some(part), key, Work::Run { inputs, reply }, turn, stop);
        if is_brief {
            self.0.do_at_once(job, turn);
        } else {
            self.enqueue(job, turn);
        }
        tokio::select! {
            biased;
            answered = &mut answer => return answered.map_err(|_| ComputeError::Closed)?,
            () = tokio::time::sleep_until(latest.into()) => {}
        }
        // The worker may be busy: refused now, it leaves time for another way.
        self.0.step(&mut self.0.lock(), Event::Wake);
        answer.await.map_err(|_| ComputeError::Closed)?
    }

    /// Loads the session of `key` and runs it once, so that the first request
    /// waits for nothing; gives the bytes it takes.
    ///
    /// # Errors
    /// [`ComputeError`].
    pub async fn warm(&self, part: Part, key: SliceKey, bounds: Bounds) -> Result<u64, ComputeError> {
        let (reply, answer) = oneshot::channel();
        let stop = Stop::at(Instant::now() + WARM_TIME_MAX);
        self.submit(Some(part), key, Work::Warm { reply, bounds }, background(), stop);
        answer.await.map_err(|_| ComputeError::Closed)?
    }

    /// Drops the session of `key`, if it is loaded.
    pub async fn evict(&self, key: SliceKey) {
        let (done, gone) = oneshot::channel();
        // At once and never refused: whoever asks counts on the room.
        let turn = Turn { class: Class::Recovery, ..background() };
        self.submit(None, key, Work::Evict { done }, turn, Stop::never());
        let _ = gone.await;
    }

    /// Drops every session of a model.
    pub fn forget(&self, digest: String) {
        let turn = Turn { class: Class::Recovery, ..background() };
        self.submit(None, SliceKey { digest, from: 0, to: 0 }, Work::Forget, turn, Stop::never());
    }

    /// Whether a run takes about as long as waking a thread ([`BRIEF`]). One that
    /// has to be loaded first doesn't.
    fn is_brief(&self, key: &SliceKey, inputs: &Named) -> bool {
        let has_threads =
            || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
        self.0.last_runs.was_brief(key, bytes_of(inputs)) && self.is_warm(key) && has_threads()
    }

    fn submit(&self, part: Option<Part>, key: SliceKey, work: Work, turn: Turn, stop: Stop) -> Option<JobId> {
        let (job, turn) = self.job(part, key, work, turn, stop);
        self.enqueue(job, turn)
    }

    fn enqueue(&self, job: Job, turn: Turn) -> Option<JobId> {
        let id = self.0.submit(&mut self.0.lock(), job, turn);
        self.0.bell.notify_one();
        id
    }

    fn job(&self, part: Option<Part>, key: SliceKey, work: Work, turn: Turn, stop: Stop) -> (Job, Turn) {
        let (queued, deadline) = (Instant::now(), turn.deadline.min(Instant::now() + UNSTOPPED_MAX));
        if matches!(work, Work::Forget) {
            self.0.row_by_row.lock().unwrap_or_else(PoisonError::into_inner).remove(&key.digest);
            self.0.last_runs.forget(&key.digest);
        }
        let like = match (&work, turn.bounds) {
            (Work::Run { inputs, .. }, Some(bounds)) => like(&self.0.keyed, &key, inputs, bounds),
            _ => None,
        };
        (Job { part, key, queued, stop, deadline, like, work }, turn)
    }

    /// Whether requests for a model may run as one here, as far as its graph
    /// says of what was loaded of it.
    #[must_use]
    pub fn runs_together(&self, digest: &str) -> bool {
        self.0.row_by_row.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    /// Runs so far.
    #[must_use]
    pub fn runs(&self) -> Runs {
        self.0.lock().runs.clone()
    }
}

/// The device, for one piece of work; given back when it goes.
pub struct Hold {
    shared: Arc<Shared>,
    /// None on a node that is ending.
    id: Option<JobId>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.release(&mut self.shared.lock(), id);
        }
    }
}

/// No job takes longer: a request's longest deadline.
const UNSTOPPED_MAX: Duration = Duration::from_millis(tierline_proto::limits::DEADLINE_MS_MAX);

/// Nobody waits for it.
fn background() -> Turn {
    let deadline = Instant::now() + Duration::from_secs(86_400);
    let (class, priority) = (Class::Batch, Priority::NONE);
    let (service, after) = (Duration::ZERO, Duration::ZERO);
    Turn { caller: "".into(), class, priority, deadline, service, after, bounds: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::events::Events;

    /// One of this engine and so many bytes for requests.
    pub(super) fn started(engine: Arc<dyn Engine>, budget: u64, batches: bool) -> Compute {
        Compute::start(ComputeOptions {
            tasks: Tasks::new(Events::default()),
            engine,
            load: LoadOptions::with_threads(1),
            slowdown: 1.0,
            memory: Memory::new(1 << 20),
            shares: Shares::default(),
            budget: Budget::new(budget),
            batches,
        })
        .unwrap()
    }

    fn compute() -> Compute {
        started(tierline_engine::rten(), 1 << 20, true)
    }

    #[test]
    fn the_device_is_held_by_one_at_a_time() {
        let (compute, held) = (compute(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for class in [Class::Training, Class::Profiling, Class::Training] {
                let (compute, held) = (&compute, &held);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let hold = compute.hold(class, Duration::from_micros(100), &Stop::never()).unwrap();
                        assert!(!held.swap(true, Ordering::SeqCst), "held twice");
                        std::thread::sleep(Duration::from_micros(100));
                        held.store(false, Ordering::SeqCst);
                        drop(hold);
                    }
                });
            }
        });
        assert_eq!(compute.waiting(), 0);
    }

    #[test]
    fn who_stops_waiting_for_the_device_keeps_nobody_from_it() {
        let (compute, stop) = (compute(), Stop::asked());
        let held = compute.hold(Class::Training, Duration::ZERO, &Stop::never()).unwrap();
        let waits = std::thread::scope(|scope| {
            let waits = scope.spawn(|| compute.hold(Class::Training, Duration::ZERO, &stop).is_none());
            std::thread::sleep(Duration::from_millis(30));
            stop.pull();
            waits.join().unwrap()
        });
        assert!(waits);
        assert_eq!(compute.waiting(), 0, "background work is no request that waits");
        drop(held);
        assert!(compute.hold(Class::Profiling, Duration::ZERO, &Stop::never()).is_some());
    }

    #[test]
    fn a_piece_that_never_ends_keeps_nobody_from_the_device() {
        let (compute, begun) = (compute(), Instant::now());
        let held = compute.hold(Class::Profiling, Duration::ZERO, &Stop::never()).unwrap();
        let patience = Stop::at(begun + 5 * HOLD_MAX);
        let next = compute.hold(Class::Training, Duration::ZERO, &patience);
        assert!(next.is_some() && begun.elapsed() >= HOLD_MAX, "{:?}", begun.elapsed());
        // Its end, when it comes, gives nobody else's turn away.
        drop(held);
        assert!(compute.hold(Class::Training, Duration::ZERO, &Stop::at(Instant::now() + HOLD_MAX / 4)).is_none());
        drop(next);
        assert!(compute.hold(Class::Training, Duration::ZERO, &patience).is_some());
    }

    #[test]
    fn work_under_way_goes_on_where_a_node_ends() {
        let compute = compute();
        let _held = compute.hold(Class::Training, Duration::ZERO, &Stop::never()).unwrap();
        compute.drain();
        assert!(compute.hold(Class::Training, Duration::ZERO, &Stop::never()).is_some());
    }
}
