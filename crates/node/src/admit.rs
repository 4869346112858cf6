//! Whose turn is it? A bounded queue in front of a few slots.
//!
//! A node has one queue per stage: one before the engine, one before each
//! upstream link. A request holds a slot of one stage at a time, so while one
//! request is on the wire the next computes: consecutive requests are
//! pipelined without any further rule.
//!
//! A job is refused when the queue is full, and when the work ahead of it
//! leaves too little time for its deadline: refusing early leaves the caller
//! time for another way. Recoveries (see [`crate::request`]) go first: their
//! deadlines are nearest and they have nowhere else to go. Within a class the
//! order is by deadline (Liu and Layland, 1973: earliest deadline first),
//! then by arrival.
//!
//! Background work (loading, training, profiling) gets what requests leave, in
//! proportion to its classes' weights, and of a busy device a floor: when a
//! class had less than that lately, its next piece goes before requests that
//! can wait for it.
//!
//! All of that holds among the jobs of one caller. Callers take turns, a job
//! each, in rounds (Demers et al., 1989: fair queueing), and where the queue is
//! full, whoever has most in it gives way: one that sends without end delays
//! others by one job, whatever deadlines it names.
//!
//! Requests of one kind that wait at the same time may run as one
//! ([`crate::batch`]), where that spares time: the job whose turn it is takes
//! along those behind it, in their order. By that a wait grows by no more than
//! a kind's bound, and nobody who would be in time without it is late with it:
//! neither who goes along nor who stays behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::batch::{Batch, Bounds, GAIN_MIN, Kind, Kinds, Trial};
use crate::time::{Time, ns};

/// Jobs waiting in one queue. More would only wait past their deadlines:
/// at 10 ms each this is over two seconds of work.
pub const QUEUE_MAX: usize = 256;

/// Names a job for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Names who wants a job done, for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// How urgent a caller finds a job beside its others; nobody else's wait longer
/// for it. From 1, which goes first; what isn't said comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u32);

impl Priority {
    /// That of a request which says none.
    pub const NONE: Self = Self(u32::MAX);

    /// As requests say it: 0 is none.
    #[must_use]
    pub fn of(said: u32) -> Self {
        if said == 0 { Self::NONE } else { Self(said) }
    }
}

/// Order of service; recoveries first. What comes behind interactive work is
/// background work: it runs in pieces, between which others have their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The last way to answer a request in time.
    Recovery,
    /// Requests that somebody waits for.
    Interactive,
    /// What is wanted soon (loading a session), or by whoever can wait.
    Batch,
    /// Training and evaluation, a step at a time.
    Training,
    /// Measuring models, a run at a time.
    Profiling,
}

impl Class {
    /// Every class, in the order of service.
    pub const ALL: [Self; 5] = [Self::Recovery, Self::Interactive, Self::Batch, Self::Training, Self::Profiling];

    /// Whether nobody waits for it.
    #[must_use]
    pub const fn is_background(self) -> bool {
        matches!(self, Self::Batch | Self::Training | Self::Profiling)
    }
}

/// What a class of background work gets of the slots.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// Beside other background work: in proportion to these.
    pub weight: f64,
    /// Part of the time that it gets also while requests wait, 0 to 1, where no
    /// request is late for it.
    pub floor: f64,
}

/// The shares of background work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// Of [`Class::Batch`].
    pub batch: Share,
    /// Of [`Class::Training`].
    pub training: Share,
    /// Of [`Class::Profiling`].
    pub profiling: Share,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            batch: Share { weight: 4.0, floor: 0.05 },
            training: Share { weight: 2.0, floor: 0.05 },
            profiling: Share { weight: 1.0, floor: 0.02 },
        }
    }
}

impl Shares {
    /// That of a class; none of those that go first anyway.
    fn of(&self, class: Class) -> Option<Share> {
        match class {
            Class::Recovery | Class::Interactive => None,
            Class::Batch => Some(self.batch),
            Class::Training => Some(self.training),
            Class::Profiling => Some(self.profiling),
        }
    }
}

/// Time in slots that each class had lately: what is long ago counts less and
/// less.
#[derive(Debug, Default)]
struct Used {
    seconds: [f64; Class::ALL.len()],
    at: Time,
}

/// Time after which what was used counts for a third (1/e).
const REMEMBERED: Duration = Duration::from_secs(10);

impl Used {
    fn count(&mut self, now: Time, class: Class, took: Duration) {
        let faded = (-now.since(self.at).as_secs_f64() / REMEMBERED.as_secs_f64()).exp();
        self.seconds.iter_mut().for_each(|seconds| *seconds *= faded);
        self.at = now;
        self.seconds[class as usize] += took.as_secs_f64();
    }

    fn of(&self, class: Class) -> f64 {
        self.seconds[class as usize]
    }

    /// Part of all of it, 0 to 1; of nothing it is all.
    fn part(&self, class: Class) -> f64 {
        let all: f64 = self.seconds.iter().sum();
        if all > 0.0 { self.of(class) / all } else { 1.0 }
    }
}

/// A piece of work for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Who wants it done.
    pub caller: Caller,
    /// Its class.
    pub class: Class,
    /// Among its caller's jobs of this class, the least goes first.
    pub priority: Priority,
    /// When its result must be there.
    pub deadline: Time,
    /// Expected time in the slot.
    pub service: Duration,
    /// Expected time after the slot until its request is answered.
    pub after: Duration,
    /// Where it may run with others.
    pub batch: Option<Batch>,
}

/// Sizes of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs at work at once; at least 1.
    pub slots: usize,
    /// Jobs waiting, at most [`QUEUE_MAX`].
    pub waiting: usize,
}

/// What happens to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A job arrives.
    Submit(Job),
    /// A started job ended, however it ended.
    Done(JobId),
    /// A job is no longer wanted. Started: it keeps its slot until `Done`.
    Cancel(JobId),
    /// A run of a kind took so long, once it had begun.
    Took {
        /// The kind.
        kind: Kind,
        /// Rows, of one request or of several.
        rows: u32,
        /// How long.
        took: Duration,
    },
    /// What came of a trial.
    Tried {
        /// The kind.
        kind: Kind,
        /// Rows that were tried together.
        rows: u32,
        /// What may run together.
        bounds: Bounds,
        /// What came of it.
        trial: Trial,
    },
    /// Jobs that were to run as one couldn't.
    Broke(Kind),
    /// No new jobs from now on.
    Drain,
    /// The time [`Queue::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run it now.
    Start(JobId),
    /// Run it with the one that has just been started, as one; that one's end
    /// is its end.
    Join(JobId),
    /// Once the job that has just been started has run: try so many rows like
    /// its own together, and report [`Event::Tried`].
    Try(JobId, u32),
    /// It will not run.
    Refuse(JobId, Refusal),
}

/// Why a job does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue is full.
    #[error("{waiting} requests are waiting already, the limit here")]
    Full {
        /// Jobs waiting.
        waiting: usize,
    },
    /// It could not end in time.
    #[error("it would be answered {late:?} after its deadline")]
    TooLate {
        /// Expected lateness.
        late: Duration,
    },
    /// The node is shutting down.
    #[error("the node is draining")]
    Draining,
    /// A job of that name is here already.
    #[error("job {0:?} was submitted twice")]
    Twice(JobId),
}

/// Order of waiting jobs: what nobody waits for comes last; then the round of
/// its caller, and within it class, deadline, arrival.
type Key = (bool, u64, Rank);

/// Order among the jobs of one caller.
type Rank = (Class, Priority, Time, u64);

/// A job at work.
#[derive(Debug, Clone, Copy)]
struct Running {
    class: Class,
    began: Time,
    /// When it is expected to end.
    end: Time,
}

/// The queue.
///
/// Invariants: every submitted job is started, joined to another or refused
/// exactly once, unless cancelled before; at most `slots` are at work; nothing
/// waits while a slot is free, but for others of its kind where it may; a
/// caller has one job at most in each round.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    waiting: BTreeMap<Key, Job>,
    /// The round under way, and who has had its turn in it.
    round: u64,
    served: BTreeSet<Caller>,
    /// Started jobs.
    running: BTreeMap<JobId, Running>,
    shares: Shares,
    used: Used,
    kinds: Kinds,
    arrivals: u64,
    draining: bool,
}

impl Queue {
    /// An empty queue; limits are brought into their ranges.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::sharing(limits, Shares::default())
    }

    /// As [`Queue::new`], with these shares for background work.
    #[must_use]
    pub fn sharing(limits: Limits, shares: Shares) -> Self {
        let limits = Limits { slots: limits.slots.max(1), waiting: limits.waiting.min(QUEUE_MAX) };
        Self {
            limits,
            waiting: BTreeMap::new(),
            round: 0,
            served: BTreeSet::new(),
            running: BTreeMap::new(),
            shares,
            used: Used::default(),
            kinds: Kinds::default(),
            arrivals: 0,
            draining: false,
        }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Submit(job) => {
                if let Err(refusal) = self.admit(now, job, &mut actions) {
                    actions.push(Action::Refuse(job.id, refusal));
                }
            }
            Event::Done(id) => {
                if let Some(Running { class, began, .. }) = self.running.remove(&id) {
                    self.used.count(now, class, now.since(began));
                }
            }
            Event::Cancel(id) => self.waiting.retain(|_, job| job.id != id),
            Event::Took { kind, rows, took } => self.kinds.took(kind, rows, took),
            Event::Tried { kind, rows, bounds, trial } => self.kinds.tried(now, kind, rows, bounds, trial),
            Event::Broke(kind) => self.kinds.broke(kind),
            Event::Drain => self.draining = true,
            Event::Wake => {}
        }
        self.expire(now, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    /// When the next waiting job becomes too late, or has waited long enough
    /// for others.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let late = self.waiting.values().map(|job| latest_start(job) + Duration::from_nanos(1)).min();
        let is_free = self.running.len() < self.limits.slots;
        let held = self.waiting.values().filter(|_| is_free).filter_map(|job| Some(waits_until(&job.batch?))).min();
        late.into_iter().chain(held).min()
    }

    /// What is known of kinds.
    #[must_use]
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Jobs waiting and at work.
    #[must_use]
    pub fn depth(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Requests waiting: jobs that aren't background work.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.waiting.keys().take_while(|(background, ..)| !background).count()
    }

    /// Expected wait of a request with a far deadline, submitted now.
    #[must_use]
    pub fn expected_wait(&self, now: Time) -> Duration {
        self.wait_before(
            now,
            (false, u64::MAX, (Class::Interactive, Priority::NONE, Time::from_ns(u64::MAX), u64::MAX)),
        )
    }

    fn admit(&mut self, now: Time, job: Job, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        if self.draining && job.class != Class::Recovery {
            return Err(Refusal::Draining);
        }
        if self.running.contains_key(&job.id) || self.waiting.values().any(|other| other.id == job.id) {
            return Err(Refusal::Twice(job.id));
        }
        let free = self.running.len() < self.limits.slots && self.waiting.is_empty();
        // Work that nobody waits for leaves room for work that somebody does.
        let most = if job.class.is_background() { self.limits.waiting.div_ceil(4) } else { self.limits.waiting };
        let is_full = !free && self.waiting.len() >= most;
        let gives_way = if is_full { self.gives_way_to(job) } else { None };
        if is_full && gives_way.is_none() {
            return Err(Refusal::Full { waiting: self.waiting.len() });
        }
        let (key, placed) = self.placed_with(job);
        let end = now + self.wait_before(now, key) + job.service + job.after;
        if end > job.deadline {
            return Err(Refusal::TooLate { late: end.since(job.deadline) });
        }
        if let Some(other) = gives_way.and_then(|key| self.waiting.remove(&key)) {
            actions.push(Action::Refuse(other.id, Refusal::Full { waiting: most }));
        }
        self.arrivals += 1;
        if !job.class.is_background() {
            self.waiting.retain(|key, other| key.0 || other.caller != job.caller);
        }
        self.waiting.extend(placed);
        Ok(())
    }

    /// The waiting jobs of a caller that aren't background work.
    fn waiting_of(&self, caller: Caller) -> impl DoubleEndedIterator<Item = (&Key, &Job)> {
        self.waiting.iter().filter(move |((background, ..), job)| !background && job.caller == caller)
    }

    /// The last job of whoever has most of them waiting, where that is more
    /// than `job`'s caller has with it.
    fn gives_way_to(&self, job: Job) -> Option<Key> {
        if job.class.is_background() {
            return None;
        }
        let callers: BTreeSet<Caller> = self.waiting.values().map(|other| other.caller).collect();
        let most = callers.into_iter().max_by_key(|caller| self.waiting_of(*caller).count())?;
        let fair = self.waiting_of(most).count() > self.waiting_of(job.caller).count() + 1;
        self.waiting_of(most).next_back().filter(|_| fair).map(|(key, _)| *key)
    }

    /// The waiting jobs of `job`'s caller and `job` itself, in the caller's
    /// rounds by their ranks; and where `job` is among them.
    fn placed_with(&self, job: Job) -> (Key, Vec<(Key, Job)>) {
        let rank = (job.class, job.priority, job.deadline, self.arrivals);
        if job.class.is_background() {
            let key = (true, 0, rank);
            return (key, vec![(key, job)]);
        }
        let (mut rounds, mut jobs): (Vec<u64>, Vec<(Rank, Job)>) =
            self.waiting_of(job.caller).map(|((_, round, rank), job)| (*round, (*rank, *job))).unzip();
        let next = rounds.last().map_or_else(|| self.round + u64::from(self.served.contains(&job.caller)), |r| r + 1);
        rounds.push(next);
        jobs.push((rank, job));
        jobs.sort_by_key(|(rank, _)| *rank);
        let placed: Vec<(Key, Job)> =
            rounds.into_iter().zip(jobs).map(|(round, (rank, job))| ((false, round, rank), job)).collect();
        let key = placed.iter().find(|((.., of), _)| *of == rank).map_or((false, next, rank), |(key, _)| *key);
        (key, placed)
    }

    /// Work ahead of `key`, spread over the slots: what is left of running
    /// jobs, and waiting jobs that go first.
    fn wait_before(&self, now: Time, key: Key) -> Duration {
        if self.running.len() < self.limits.slots && self.waiting.is_empty() {
            return Duration::ZERO;
        }
        let running: u64 = self.running.values().map(|running| ns(now.until(running.end))).sum();
        let ahead = self.work_of(self.waiting.range(..key).map(|(_, job)| job));
        Duration::from_nanos(running.saturating_add(ahead) / self.limits.slots as u64)
    }

    /// Time for jobs, those of one kind together as far as that is worth it.
    fn work_of<'j>(&self, jobs: impl Iterator<Item = &'j Job>) -> u64 {
        let mut alone = 0u64;
        let mut kinds: BTreeMap<Kind, (Bounds, u64, u64)> = BTreeMap::new();
        for job in jobs {
            match job.batch {
                Some(batch) => {
                    let (_, rows, time) = kinds.entry(batch.kind).or_insert((batch.bounds, 0, 0));
                    (*rows, *time) = (*rows + u64::from(batch.rows), time.saturating_add(ns(self.own(job))));
                }
                None => alone = alone.saturating_add(ns(job.service)),
            }
        }
        let shared = |(kind, (bounds, rows, time)): (Kind, (Bounds, u64, u64))| {
            let most = u64::from(self.kinds.rows_worth(kind, bounds)).min(rows);
            let together = u32::try_from(most).ok().and_then(|most| self.kinds.together(kind, most));
            together.filter(|_| most > 1).map_or(time, |t| ns(t).saturating_mul(rows.div_ceil(most)).min(time))
        };
        kinds.into_iter().map(shared).fold(alone, u64::saturating_add)
    }

    /// Expected time of a job that runs alone.
    fn own(&self, job: &Job) -> Duration {
        let measured = job.batch.and_then(|batch| self.kinds.alone(batch.kind, batch.rows));
        measured.unwrap_or(job.service)
    }

    /// Refuses waiting jobs that can no longer make it.
    fn expire(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.waiting.retain(|_, job| {
            let late = now.since(latest_start(job));
            if late > Duration::ZERO {
                actions.push(Action::Refuse(job.id, Refusal::TooLate { late }));
            }
            late == Duration::ZERO
        });
    }

    /// Which waiting job is next.
    fn next(&self, now: Time) -> Option<Key> {
        let (first @ (background, ..), _) = self.waiting.first_key_value()?;
        let candidates =
            Class::ALL.into_iter().filter_map(|class| Some((class, self.shares.of(class)?, self.first_of(class)?)));
        if *background {
            let used = |class: Class, share: Share| self.used.of(class) / share.weight.max(f64::MIN_POSITIVE);
            let least = candidates.min_by(|(a, of_a, _), (b, of_b, _)| used(*a, *of_a).total_cmp(&used(*b, *of_b)));
            return least.map(|(.., key)| key);
        }
        let mut short = candidates.filter(|(class, share, _)| self.used.part(*class) < share.floor);
        let starved = short
            .find_map(|(.., key)| self.waiting.get(&key).filter(|job| self.can_wait(now, job.service)).map(|_| key));
        Some(starved.unwrap_or(*first))
    }

    /// The next job of a background class.
    fn first_of(&self, class: Class) -> Option<Key> {
        let from = (true, 0, (class, Priority(0), Time::ZERO, 0));
        self.waiting.range(from..).next().filter(|(_, job)| job.class == class).map(|(key, _)| *key)
    }

    /// Whether every waiting request can start so much later.
    fn can_wait(&self, now: Time, service: Duration) -> bool {
        let requests = self.waiting.iter().take_while(|((background, ..), _)| !background);
        requests.map(|(_, job)| job).all(|job| job.class != Class::Recovery && latest_start(job) > now + service)
    }

    fn fill(&mut self, now: Time, actions: &mut Vec<Action>) {
        while self.running.len() < self.limits.slots
            && let Some(key @ (background, round, _)) = self.next(now)
            && !self.waits_for_others(now, key)
            && let Some(job) = self.waiting.remove(&key)
        {
            if !background {
                if round > self.round {
                    self.round = round;
                    self.served.clear();
                }
                self.served.insert(job.caller);
            }
            actions.push(Action::Start(job.id));
            let company = self.company(now, &job);
            let took = self.time_with(&job, &company);
            for (_, round, rank) in company {
                let Some(other) = self.waiting.remove(&(false, round, rank)) else { continue };
                if round == self.round {
                    self.served.insert(other.caller);
                }
                actions.push(Action::Join(other.id));
            }
            self.running.insert(job.id, Running { class: job.class, began: now, end: now + took });
            let alike = |batch: &Batch| self.waiting.values().any(|o| o.batch.is_some_and(|o| o.kind == batch.kind));
            // Somebody is left who could have come along, were more known.
            if let Some(batch) = job.batch.filter(alike)
                && let Some(rows) = self.kinds.to_try(now, batch.kind, batch.bounds)
            {
                actions.push(Action::Try(job.id, rows));
            }
        }
    }

    /// Whether the job whose turn it is may still wait for others of its kind:
    /// nothing else is there to do, and nobody is late for it.
    fn waits_for_others(&self, now: Time, key: Key) -> bool {
        let Some((job, batch)) = self.waiting.get(&key).and_then(|job| Some((job, job.batch?))) else { return false };
        if self.draining || job.class != Class::Interactive {
            return false;
        }
        // The first who came says how long, whoever's turn it is.
        let until = self.waiting.values().filter_map(|job| job.batch).map(|of| waits_until(&of)).min();
        let until = until.unwrap_or(now);
        if now >= until {
            return false;
        }
        let most = self.kinds.rows_worth(batch.kind, batch.bounds);
        let mut rows = 0u32;
        for other in self.waiting.values() {
            match other.batch {
                Some(of) if of.kind == batch.kind => rows = rows.saturating_add(of.rows),
                _ => return false,
            }
        }
        let longest = self.kinds.together(batch.kind, most).unwrap_or(job.service);
        let in_time = |other: &Job| until + longest + other.after <= other.deadline;
        most > 1 && rows < most && self.running.is_empty() && self.waiting.values().all(in_time)
    }

    /// Waiting jobs that run with `job`, in their order: as many as is worth
    /// it, within the bounds, and without making anybody late.
    fn company(&self, now: Time, job: &Job) -> Vec<Key> {
        let Some(batch) = job.batch.filter(|_| !job.class.is_background()) else { return Vec::new() };
        let most = self.kinds.rows_worth(batch.kind, batch.bounds);
        let (mut rows, mut bytes) = (batch.rows, batch.bytes);
        let mut company: Vec<Key> = Vec::new();
        for (key, other) in self.waiting.iter().take_while(|((background, ..), _)| !background) {
            let Some(of) = other.batch.filter(|of| of.kind == batch.kind) else { continue };
            let (with_rows, with_bytes) = (rows.saturating_add(of.rows), bytes.saturating_add(of.bytes));
            if with_rows <= most && with_bytes <= batch.bounds.bytes_max {
                company.push(*key);
                (rows, bytes) = (with_rows, with_bytes);
            }
        }
        // The last who came leaves first.
        let fits = |company: &[Key]| self.is_worth(job, company) && self.makes_nobody_late(now, job, company);
        while !(company.is_empty() || fits(&company)) {
            company.pop();
        }
        company
    }

    /// Expected time of `job` with company.
    fn time_with(&self, job: &Job, company: &[Key]) -> Duration {
        let Some(batch) = job.batch.filter(|_| !company.is_empty()) else { return job.service };
        let rows = company.iter().filter_map(|key| self.waiting.get(key)?.batch).map(|of| of.rows).sum::<u32>();
        let together = self.kinds.together(batch.kind, batch.rows.saturating_add(rows));
        together.unwrap_or_else(|| self.own(job))
    }

    /// Whether company spares time, and doesn't take too much of the job's.
    fn is_worth(&self, job: &Job, company: &[Key]) -> bool {
        let Some(batch) = job.batch else { return false };
        let (together, own) = (self.time_with(job, company), self.own(job));
        let apart = company.iter().filter_map(|key| self.waiting.get(key)).map(|o| self.own(o)).sum::<Duration>() + own;
        together.saturating_sub(own) <= batch.bounds.extra_max
            && together.as_secs_f64() <= apart.as_secs_f64() * (1.0 - GAIN_MIN)
    }

    /// Whether all who would be in time, each by itself in this order, are so
    /// with `company` beside `job`; and whether those of it are in time.
    fn makes_nobody_late(&self, now: Time, job: &Job, company: &[Key]) -> bool {
        let together = now + self.time_with(job, company);
        let (mut apart, mut behind) = (now + self.own(job), together);
        let in_time = |end: Time, job: &Job| end + job.after <= job.deadline;
        if in_time(apart, job) && !in_time(together, job) {
            return false;
        }
        for (key, other) in self.waiting.iter().take_while(|((background, ..), _)| !background) {
            // Who can't make it is refused when that is seen, and keeps nobody.
            let own = self.own(other);
            let makes_it = in_time(apart + own, other);
            if makes_it {
                apart = apart + own;
            }
            if company.contains(key) {
                if !in_time(together, other) {
                    return false;
                }
                continue;
            }
            match in_time(behind + own, other) {
                true => behind = behind + own,
                false if makes_it => return false,
                false => {}
            }
        }
        true
    }
}

/// How long a job waits for others, where nothing else is there to do.
fn waits_until(batch: &Batch) -> Time {
    batch.arrived + batch.bounds.delay
}

/// The last moment at which starting `job` still makes sense.
fn latest_start(job: &Job) -> Time {
    job.deadline - job.service - job.after
}
