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

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::{Time, ns};

/// Jobs waiting in one queue. More would only wait past their deadlines:
/// at 10 ms each this is over two seconds of work.
pub const QUEUE_MAX: usize = 256;

/// Names a job for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Order of service; recoveries first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The last way to answer a request in time.
    Recovery,
    /// Planned work.
    Planned,
    /// Work nobody waits for (profiling, warming a session).
    Background,
}

/// A piece of work for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Its class.
    pub class: Class,
    /// When its result must be there.
    pub deadline: Time,
    /// Expected time in the slot.
    pub service: Duration,
    /// Expected time after the slot until its request is answered.
    pub after: Duration,
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

/// Order of waiting jobs: class, deadline, arrival.
type Key = (Class, Time, u64);

/// The queue.
///
/// Invariants: every submitted job is started or refused exactly once, unless
/// cancelled before; at most `slots` are at work; nothing waits while a slot
/// is free.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    waiting: BTreeMap<Key, Job>,
    /// Started jobs and when each is expected to end.
    running: BTreeMap<JobId, Time>,
    arrivals: u64,
    draining: bool,
}

impl Queue {
    /// An empty queue; limits are brought into their ranges.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let limits = Limits { slots: limits.slots.max(1), waiting: limits.waiting.min(QUEUE_MAX) };
        Self { limits, waiting: BTreeMap::new(), running: BTreeMap::new(), arrivals: 0, draining: false }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Submit(job) => {
                if let Err(refusal) = self.admit(now, job) {
                    actions.push(Action::Refuse(job.id, refusal));
                }
            }
            Event::Done(id) => {
                self.running.remove(&id);
            }
            Event::Cancel(id) => self.waiting.retain(|_, job| job.id != id),
            Event::Drain => self.draining = true,
            Event::Wake => {}
        }
        self.expire(now, &mut actions);
        self.fill(now, &mut actions);
        actions
    }

    /// When the next waiting job becomes too late.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        self.waiting.values().map(|job| latest_start(job) + Duration::from_nanos(1)).min()
    }

    /// Jobs waiting and at work.
    #[must_use]
    pub fn depth(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Expected wait of a planned job with a far deadline, submitted now.
    #[must_use]
    pub fn expected_wait(&self, now: Time) -> Duration {
        self.wait_before(now, (Class::Planned, Time::from_ns(u64::MAX), u64::MAX))
    }

    fn admit(&mut self, now: Time, job: Job) -> Result<(), Refusal> {
        if self.draining && job.class != Class::Recovery {
            return Err(Refusal::Draining);
        }
        if self.running.contains_key(&job.id) || self.waiting.values().any(|other| other.id == job.id) {
            return Err(Refusal::Twice(job.id));
        }
        let free = self.running.len() < self.limits.slots && self.waiting.is_empty();
        // Work that nobody waits for leaves room for work that somebody does.
        let most = if job.class == Class::Background { self.limits.waiting.div_ceil(4) } else { self.limits.waiting };
        if !free && self.waiting.len() >= most {
            return Err(Refusal::Full { waiting: self.waiting.len() });
        }
        let key = (job.class, job.deadline, self.arrivals);
        let end = now + self.wait_before(now, key) + job.service + job.after;
        if end > job.deadline {
            return Err(Refusal::TooLate { late: end.since(job.deadline) });
        }
        self.arrivals += 1;
        self.waiting.insert(key, job);
        Ok(())
    }

    /// Work ahead of `key`, spread over the slots: what is left of running
    /// jobs, and waiting jobs that go first.
    fn wait_before(&self, now: Time, key: Key) -> Duration {
        if self.running.len() < self.limits.slots && self.waiting.is_empty() {
            return Duration::ZERO;
        }
        let running: u64 = self.running.values().map(|end| ns(now.until(*end))).sum();
        let ahead: u64 = self.waiting.range(..key).map(|(_, job)| ns(job.service)).sum();
        Duration::from_nanos((running + ahead) / self.limits.slots as u64)
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

    fn fill(&mut self, now: Time, actions: &mut Vec<Action>) {
        while self.running.len() < self.limits.slots
            && let Some((_, job)) = self.waiting.pop_first()
        {
            self.running.insert(job.id, now + job.service);
            actions.push(Action::Start(job.id));
        }
    }
}

/// The last moment at which starting `job` still makes sense.
fn latest_start(job: &Job) -> Time {
    job.deadline - job.service - job.after
}
