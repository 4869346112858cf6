//! Runs slices on this device: one worker thread, the queue before it
//! (`tierline_node::admit`), and the sessions of recent slices kept warm within
//! a memory limit.
//!
//! One worker, because a session already uses every thread it was given: two
//! at once would only take turns and make both late.
//!
//! Nothing that a model does ends the worker for good. A run is stopped at its
//! request's deadline, or when nobody waits for it any more; one that panics or
//! is stopped fails its request, and its session is dropped. What can't be
//! stopped (one operator that takes for ever) is left to itself: another worker
//! takes its place.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tierline_engine::{Engine, EngineError, LoadOptions, Session, Stop};
use tierline_graph::slice::SliceError;
use tierline_graph::{Model, Tensor, ValueInfo};
use tierline_node::Time;
use tierline_node::admit::{self, Action, Class, Event, JobId, Limits, Queue, Refusal};
use tokio::sync::oneshot;

use super::tasks::Tasks;
use crate::models::Manifest;

/// Jobs waiting for the worker; a request that would wait longer is better
/// refused at once than answered after its deadline.
pub const JOBS_WAITING_MAX: usize = 64;

/// A run that was to end and hasn't by then can't be stopped.
const STUCK: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Workers left to themselves at once. With more, whatever keeps them would
/// have every core.
const STUCK_MAX: usize = 2;

/// Loading a session that nobody waits for may take so long.
const WARM_TIME_MAX: Duration = Duration::from_secs(120);

/// A run of consecutive segments of a model: `from..to` counted in segments
/// between the manifest's candidate cuts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SliceKey {
    /// Digest of the prepared model.
    pub digest: String,
    /// First segment.
    pub from: usize,
    /// One past the last segment.
    pub to: usize,
}

/// A model as the worker needs it.
#[derive(Debug)]
pub struct Program {
    /// The prepared model.
    pub model: Model,
    /// Its manifest.
    pub manifest: Manifest,
    /// Types for what slices declare: the model's free axes are theirs, so
    /// that they take every size that the whole takes.
    pub types: tierline_graph::infer::Types,
}

impl Program {
    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.manifest.cuts.len() + 1
    }

    /// Names of the tensors that enter segment `index`: the model's inputs
    /// for the first, else the frontier before it.
    #[must_use]
    pub fn entering(&self, index: usize) -> Vec<String> {
        match index {
            0 => self.manifest.inputs.iter().map(|i| i.name.clone()).collect(),
            i => self.manifest.cuts[i - 1].clone(),
        }
    }

    /// What the tensors that enter segment `index` must be like.
    #[must_use]
    pub fn taken(&self, index: usize) -> Vec<ValueInfo> {
        let known = |name: String| match self.types.get(&name) {
            Some(value) => value.clone(),
            None => ValueInfo { name, dtype: None, shape: None },
        };
        match index {
            0 => self.manifest.inputs.clone(),
            i => self.entering(i).into_iter().map(known).collect(),
        }
    }

    /// The model of segments `from..to`.
    ///
    /// # Errors
    /// When the cuts don't fit the model.
    pub fn slice(&self, from: usize, to: usize) -> Result<Model, SliceError> {
        let mut at = Vec::new();
        if from > 0 {
            at.push(self.manifest.cuts[from - 1].clone());
        }
        if to < self.segments() {
            at.push(self.manifest.cuts[to - 1].clone());
        }
        if at.is_empty() {
            return Ok(self.model.clone());
        }
        let mut parts = tierline_graph::slice::slice(&self.model, &self.types, &at)?;
        Ok(parts.swap_remove(usize::from(from > 0)))
    }
}

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
    /// The session alone exceeds the memory limit.
    #[error("segments {from}..{to} need about {needed} bytes; this node's limit for sessions is {limit}")]
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

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// What running a slice gave.
#[derive(Debug)]
pub struct Computed {
    /// Outputs by name, in the slice's order.
    pub outputs: Named,
    /// Time waited for the worker.
    pub queued: Duration,
    /// Time computed, the slowdown factor included.
    pub compute: Duration,
}

/// When a job must be done, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Recoveries go first, warming last.
    pub class: Class,
    /// When its result must be there.
    pub deadline: Instant,
    /// Expected time in the engine.
    pub service: Duration,
    /// Expected time from there to the request's answer.
    pub after: Duration,
}

enum Work {
    Run {
        inputs: Arc<Named>,
        reply: oneshot::Sender<Result<Computed, ComputeError>>,
    },
    Warm {
        reply: oneshot::Sender<Result<u64, ComputeError>>,
    },
    Evict {
        done: oneshot::Sender<()>,
    },
    /// Drops every session of the key's model.
    Forget,
}

struct Job {
    /// None for evictions.
    program: Option<Arc<Program>>,
    key: SliceKey,
    queued: Instant,
    /// Ends it.
    stop: Stop,
    /// When it is to end by itself.
    deadline: Instant,
    work: Work,
}

impl Job {
    fn refuse(self, error: ComputeError) {
        // A caller that went away doesn't want to know.
        match self.work {
            Work::Run { reply, .. } => drop(reply.send(Err(error))),
            Work::Warm { reply } => drop(reply.send(Err(error))),
            Work::Evict { done } => drop(done.send(())),
            Work::Forget => {}
        }
    }
}

struct Inner {
    queue: Queue,
    jobs: HashMap<JobId, Job>,
    started: Option<JobId>,
    next: u64,
    /// What the worker does, and when that is to end.
    running: Option<(JobId, SliceKey, Instant)>,
    /// Which worker is at work; others are left to themselves.
    worker: u64,
    /// How many those are.
    stuck: usize,
    /// What they do.
    stuck_at: HashSet<SliceKey>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Rings when a job may have started.
    bell: Condvar,
    origin: Instant,
    options: ComputeOptions,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self, at: Instant) -> Time {
        Time::ZERO + at.saturating_duration_since(self.origin)
    }

    /// Steps the queue and performs what it asks.
    fn step(&self, inner: &mut Inner, event: Event) {
        for action in inner.queue.step(self.time(Instant::now()), event) {
            match action {
                Action::Start(id) => inner.started = Some(id),
                Action::Refuse(id, refusal) => {
                    if let Some(job) = inner.jobs.remove(&id) {
                        job.refuse(ComputeError::Busy(refusal));
                    }
                }
            }
        }
        self.bell.notify_one();
    }

    /// The next job to run; blocks until there is one. None for a worker in
    /// whose place another one is.
    fn next(&self, worker: u64) -> Option<(JobId, Job)> {
        let mut inner = self.lock();
        loop {
            if inner.worker != worker {
                return None;
            }
            if let Some(id) = inner.started.take()
                && let Some(job) = inner.jobs.remove(&id)
            {
                inner.running = Some((id, job.key.clone(), job.deadline));
                return Some((id, job));
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
    fn work(&self, worker: u64) {
        let mut sessions = Sessions { options: &self.options, warm: HashMap::new(), clock: 0 };
        while let Some((id, job)) = self.next(worker) {
            let tasks = &self.options.tasks;
            if tasks.guarded("worker", || sessions.perform(job)).is_err() {
                // Whatever panicked there may have left them half made.
                sessions.warm.clear();
            }
            let mut inner = self.lock();
            if inner.worker != worker {
                inner.stuck -= 1;
                return;
            }
            inner.running = None;
            self.step(&mut inner, Event::Done(id));
        }
    }

    /// Puts another worker in the place of one whose run can't be stopped.
    fn look(self: &Arc<Self>) {
        let mut inner = self.lock();
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
        drop(inner);
        if let Err(error) = start(self, next) {
            tracing::error!(%error, "no thread to compute on");
        }
    }
}

/// Starts a worker.
fn start(shared: &Arc<Shared>, worker: u64) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name("compute".into()).spawn(move || shared.work(worker)).map(drop)
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
    /// Bytes that warm sessions may hold together.
    pub memory_max: u64,
}

impl Compute {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(options: ComputeOptions) -> std::io::Result<Self> {
        let queue = Queue::new(Limits { slots: 1, waiting: JOBS_WAITING_MAX });
        let inner = Inner {
            queue,
            jobs: HashMap::new(),
            started: None,
            next: 0,
            running: None,
            worker: 0,
            stuck: 0,
            stuck_at: HashSet::new(),
        };
        let (bell, origin) = (Condvar::new(), Instant::now());
        let shared = Arc::new(Shared { inner: Mutex::new(inner), bell, origin, options });
        start(&shared, 0)?;
        let watched = Arc::downgrade(&shared);
        std::thread::Builder::new().name("compute-watch".into()).spawn(move || {
            while let Some(shared) = watched.upgrade() {
                shared.look();
                drop(shared);
                std::thread::sleep(LOOK);
            }
        })?;
        Ok(Self(shared))
    }

    /// Jobs waiting for the worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().queue.depth().0
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
        self.0.step(&mut self.0.lock(), Event::Drain);
    }

    /// Runs segments `key.from..key.to` on `inputs`.
    ///
    /// # Errors
    /// [`ComputeError`].
    pub async fn run(
        &self,
        program: Arc<Program>,
        key: SliceKey,
        inputs: Arc<Named>,
        turn: Turn,
    ) -> Result<Computed, ComputeError> {
        let (reply, mut answer) = oneshot::channel();
        let latest = turn.deadline.checked_sub(turn.service + turn.after).unwrap_or(turn.deadline);
        let stop = Stop::at(turn.deadline);
        // A caller that goes away wants nothing more done.
        let _pulled = PullOnDrop(stop.clone());
        self.submit(Some(program), key, Work::Run { inputs, reply }, turn, stop);
        tokio::select! {
            answered = &mut answer => return answered.map_err(|_| ComputeError::Closed)?,
            () = tokio::time::sleep_until(latest.into()) => {}
        }
        // The worker may be busy: refused now, it leaves time for another way.
        self.0.step(&mut self.0.lock(), Event::Wake);
        answer.await.map_err(|_| ComputeError::Closed)?
    }

    /// Loads the session of `key`; gives the bytes it takes.
    ///
    /// # Errors
    /// [`ComputeError`].
    pub async fn warm(&self, program: Arc<Program>, key: SliceKey) -> Result<u64, ComputeError> {
        let (reply, answer) = oneshot::channel();
        let stop = Stop::at(Instant::now() + WARM_TIME_MAX);
        self.submit(Some(program), key, Work::Warm { reply }, background(), stop);
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

    fn submit(&self, program: Option<Arc<Program>>, key: SliceKey, work: Work, turn: Turn, stop: Stop) {
        let mut inner = self.0.lock();
        let (queued, deadline) = (Instant::now(), turn.deadline.min(Instant::now() + UNSTOPPED_MAX));
        let job = Job { program, key, queued, stop, deadline, work };
        if inner.stuck_at.contains(&job.key) {
            let (from, to) = (job.key.from, job.key.to);
            return job.refuse(ComputeError::Stuck { from, to });
        }
        let id = JobId(inner.next);
        inner.next += 1;
        inner.jobs.insert(id, job);
        let Turn { class, deadline, service, after } = turn;
        let job = admit::Job { id, class, deadline: self.0.time(deadline), service, after };
        self.0.step(&mut inner, Event::Submit(job));
    }
}

/// No job takes longer: a request's longest deadline.
const UNSTOPPED_MAX: Duration = Duration::from_millis(tierline_proto::limits::DEADLINE_MS_MAX);

/// Pulls a stop when it goes.
struct PullOnDrop(Stop);

impl Drop for PullOnDrop {
    fn drop(&mut self) {
        self.0.pull();
    }
}

/// Nobody waits for it.
fn background() -> Turn {
    let deadline = Instant::now() + Duration::from_secs(86_400);
    Turn { class: Class::Background, deadline, service: Duration::ZERO, after: Duration::ZERO }
}

/// When a run is to end.
struct Due<'j> {
    stop: &'j Stop,
    deadline: Instant,
}

struct Warm {
    session: Box<dyn Session>,
    bytes: u64,
    used: u64,
}

struct Sessions<'o> {
    options: &'o ComputeOptions,
    warm: HashMap<SliceKey, Warm>,
    /// Counts uses, to evict the session that was used longest ago.
    clock: u64,
}

impl Sessions<'_> {
    fn perform(&mut self, job: Job) {
        let queued = job.queued.elapsed();
        // Whoever asked may be gone.
        match (job.work, job.program) {
            (Work::Evict { done }, _) => {
                self.warm.remove(&job.key);
                let _ = done.send(());
            }
            (Work::Forget, _) => self.warm.retain(|key, _| key.digest != job.key.digest),
            (Work::Warm { reply }, Some(program)) => {
                let result = self.guarded("session", &job.key, |s| s.session(&program, &job.key, &job.stop).map(drop));
                let _ = reply.send(result.map(|()| self.warm.get(&job.key).map_or(0, |w| w.bytes)));
            }
            (Work::Run { reply, .. }, _) if reply.is_closed() => {}
            (Work::Run { inputs, reply }, Some(program)) => {
                let due = Due { stop: &job.stop, deadline: job.deadline };
                let result = self.guarded("compute", &job.key, |s| s.run(&program, &job.key, &inputs, &due));
                let _ = reply.send(result.map(|computed| Computed { queued, ..computed }));
            }
            // Only evictions come without a program.
            (_, None) => {}
        }
    }

    /// Does what `f` does; a session that panicked or is of no use any more is
    /// dropped.
    fn guarded<T>(
        &mut self,
        name: &'static str,
        key: &SliceKey,
        f: impl FnOnce(&mut Self) -> Result<T, ComputeError>,
    ) -> Result<T, ComputeError> {
        let tasks = self.options.tasks.clone();
        let result = tasks.guarded(name, || f(self)).unwrap_or_else(|failure| {
            Err(ComputeError::Panicked { from: key.from, to: key.to, message: failure.message })
        });
        let last = match &result {
            Err(ComputeError::Engine(e)) => e.is_last(),
            Err(ComputeError::Panicked { .. }) => true,
            _ => false,
        };
        if last {
            self.warm.remove(key);
        }
        result
    }

    fn run(&mut self, program: &Program, key: &SliceKey, inputs: &Named, due: &Due) -> Result<Computed, ComputeError> {
        let slowdown = self.options.slowdown;
        let session = self.session(program, key, due.stop)?;
        let started = Instant::now();
        let given: Vec<(&str, &Tensor)> = session
            .inputs()
            .iter()
            .filter_map(|want| inputs.iter().find(|(n, _)| *n == want.name).map(|(n, t)| (n.as_str(), t)))
            .collect();
        // Names the slice doesn't know are passed on, so that the engine
        // names them in its error.
        let extra = inputs.iter().filter(|(n, _)| key.from == 0 && !given.iter().any(|(g, _)| g == n));
        let given: Vec<(&str, &Tensor)> = given.iter().copied().chain(extra.map(|(n, t)| (n.as_str(), t))).collect();
        let mut tensors = Vec::with_capacity(session.outputs().len());
        session.run_until(&given, &mut tensors, due.stop)?;
        let outputs = session.outputs().iter().map(|v| v.name.clone()).zip(tensors).collect();
        if slowdown > 1.0 {
            // Who waits for it gives up at the deadline all the same.
            let left = due.deadline.saturating_duration_since(Instant::now());
            std::thread::sleep(started.elapsed().mul_f64(slowdown - 1.0).min(left));
        }
        Ok(Computed { outputs, queued: Duration::ZERO, compute: started.elapsed() })
    }

    fn session(
        &mut self,
        program: &Program,
        key: &SliceKey,
        stop: &Stop,
    ) -> Result<&mut Box<dyn Session>, ComputeError> {
        let segments = program.segments();
        if key.from >= key.to || key.to > segments {
            return Err(ComputeError::Range { from: key.from, to: key.to, segments });
        }
        self.clock += 1;
        let now = self.clock;
        if !self.warm.contains_key(key) {
            let slice = program.slice(key.from, key.to)?;
            let bytes = slice.to_bytes().map_or(0, |b| b.len() as u64);
            let limit = self.options.memory_max;
            if bytes > limit {
                return Err(ComputeError::Memory { from: key.from, to: key.to, needed: bytes, limit });
            }
            self.make_room(limit - bytes);
            let session = self.options.engine.load_until(&slice, &self.options.load, stop)?;
            self.warm.insert(key.clone(), Warm { session, bytes, used: now });
        }
        let Some(warm) = self.warm.get_mut(key) else { return Err(ComputeError::Closed) };
        warm.used = now;
        Ok(&mut warm.session)
    }

    /// Drops the sessions used longest ago until the rest fits in `limit`.
    fn make_room(&mut self, limit: u64) {
        while self.warm.values().map(|w| w.bytes).sum::<u64>() > limit {
            let Some(oldest) = self.warm.iter().min_by_key(|(_, w)| w.used).map(|(k, _)| k.clone()) else { return };
            self.warm.remove(&oldest);
        }
    }
}
