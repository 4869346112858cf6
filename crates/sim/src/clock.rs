//! Virtual time: what happens next, in order.

use std::collections::BTreeMap;
use std::time::Duration;

use tierline_node::Time;

/// So many seconds; the longest time there is for more than that holds, none
/// for less than nothing and for what is no number.
pub(crate) fn seconds(seconds: f64) -> Duration {
    if seconds > 0.0 { Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX) } else { Duration::ZERO }
}

/// Events in order of time, then of posting.
pub(crate) struct Clock<E> {
    now: Time,
    posted: u64,
    events: BTreeMap<(Time, u64), E>,
}

impl<E> Clock<E> {
    pub(crate) fn new() -> Self {
        Self { now: Time::ZERO, posted: 0, events: BTreeMap::new() }
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// Posts an event; one in the past happens now.
    pub(crate) fn at(&mut self, time: Time, event: E) {
        self.posted += 1;
        self.events.insert((time.max(self.now), self.posted), event);
    }

    /// The next event; the clock moves to it.
    pub(crate) fn next(&mut self) -> Option<E> {
        let ((time, _), event) = self.events.pop_first()?;
        self.now = time;
        Some(event)
    }
}
