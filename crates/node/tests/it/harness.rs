//! Virtual time: a seeded queue of events, links with delay, loss and
//! partitions, and the loop over seeds.

use std::collections::BTreeMap;
use std::time::Duration;

use tierline_node::{Rng, Time};

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Events in order of time, then of posting.
pub struct Schedule<E> {
    now: Time,
    posted: u64,
    events: BTreeMap<(Time, u64), E>,
}

impl<E> Schedule<E> {
    pub fn new() -> Self {
        Self { now: Time::ZERO, posted: 0, events: BTreeMap::new() }
    }

    pub fn now(&self) -> Time {
        self.now
    }

    pub fn at(&mut self, time: Time, event: E) {
        self.posted += 1;
        self.events.insert((time.max(self.now), self.posted), event);
    }

    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// The next event up to `end`; the clock moves to it.
    pub fn next(&mut self, end: Time) -> Option<E> {
        let entry = self.events.first_entry().filter(|entry| entry.key().0 <= end)?;
        self.now = entry.key().0;
        Some(entry.remove())
    }
}

/// What a link does to messages.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub delay: [Duration; 2],
    pub loss: f64,
    pub partitioned: bool,
}

impl Link {
    pub const GOOD: Self = Self { delay: [ms(1), ms(20)], loss: 0.0, partitioned: false };

    /// How long a message takes; `None` when it is lost.
    pub fn carry(&self, rng: &mut Rng) -> Option<Duration> {
        let lost = self.partitioned || rng.f64() < self.loss;
        (!lost).then(|| between(rng, self.delay))
    }
}

pub fn between(rng: &mut Rng, [from, to]: [Duration; 2]) -> Duration {
    Duration::from_nanos(rng.u64(from.as_nanos() as u64..=to.as_nanos() as u64))
}

/// Runs `test` for each of `count` seeds; a panic names its seed.
/// `TIERLINE_SEED` runs that one alone, `TIERLINE_SEEDS` so many.
pub fn seeds(count: u64, test: impl Fn(&mut Rng)) {
    let given = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    if let Some(seed) = given("TIERLINE_SEED") {
        return test(&mut Rng::with_seed(seed));
    }
    for seed in 0..given("TIERLINE_SEEDS").unwrap_or(count) {
        let run = std::panic::AssertUnwindSafe(|| test(&mut Rng::with_seed(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed} failed; TIERLINE_SEED={seed} runs it alone");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Remembers the wake that was posted, so that it is posted once.
#[derive(Debug, Default, Clone, Copy)]
pub struct Alarm(Option<Time>);

impl Alarm {
    /// The time to post, if `wake` is new.
    pub fn set(&mut self, wake: Option<Time>) -> Option<Time> {
        if wake == self.0 {
            return None;
        }
        self.0 = wake;
        wake
    }

    /// The posted wake has come; the next one is new whatever it is.
    pub fn ring(&mut self) {
        self.0 = None;
    }
}
