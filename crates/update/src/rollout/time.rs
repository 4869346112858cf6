//! Time as the machines see it: handed in, never read from a clock.

use serde::{Deserialize, Serialize};

use super::RolloutError;

/// What the time is.
///
/// Whatever waits, waits by `monotonic_ms`, which nobody can set; the calendar
/// only says whether a maintenance window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since an origin that the shell chose; never goes back while
    /// a process lives.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970 in UTC, where the device knows them.
    pub unix_ms: Option<u64>,
}

/// A time to wait, in a file or a message: above 0, at most [`Seconds::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Seconds(f64);

impl Seconds {
    /// Thirty years: longer than any rollout, and short enough to be added to
    /// any time there is.
    pub const MAX: f64 = 1e9;

    /// So many seconds, of those that there are.
    pub(crate) const fn of(seconds: f64) -> Self {
        Self(seconds)
    }

    /// So many seconds.
    ///
    /// # Errors
    /// [`RolloutError::Setting`] for those that nobody can wait.
    pub fn new(seconds: f64) -> Result<Self, RolloutError> {
        if seconds > 0.0 && seconds <= Self::MAX {
            return Ok(Self(seconds));
        }
        let reason = format!("{seconds} is no time to wait; seconds are above 0 and at most 1e9");
        Err(RolloutError::Setting { place: "a time".into(), reason })
    }

    /// In whole milliseconds, one at least.
    #[must_use]
    pub fn ms(self) -> u64 {
        ((self.0 * 1e3).round() as u64).max(1)
    }
}

impl TryFrom<f64> for Seconds {
    type Error = RolloutError;

    fn try_from(seconds: f64) -> Result<Self, RolloutError> {
        Self::new(seconds)
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}

/// Milliseconds that passed while the machine lived. They go on where a journal
/// left them: what passed while nobody ran is not counted, so that no clock
/// that was set, and no night without an orchestrator, lets a deadline pass.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    elapsed_ms: u64,
    last_ms: Option<u64>,
}

impl Clock {
    /// One that goes on from there.
    pub(super) fn from(elapsed_ms: u64) -> Self {
        Self { elapsed_ms, last_ms: None }
    }

    /// Goes on to `now`; how many milliseconds that was.
    pub(super) fn advance(&mut self, now: Now) -> u64 {
        let passed = self.last_ms.map_or(0, |last| now.monotonic_ms.saturating_sub(last));
        self.last_ms = Some(self.last_ms.unwrap_or(0).max(now.monotonic_ms));
        self.elapsed_ms += passed;
        passed
    }

    /// So far.
    pub(super) fn elapsed_ms(&self) -> u64 {
        self.elapsed_ms
    }

    /// The shell's monotonic time at which so many have passed.
    pub(super) fn monotonic_ms(&self, elapsed_ms: u64) -> u64 {
        self.last_ms.unwrap_or(0).saturating_add(elapsed_ms.saturating_sub(self.elapsed_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(monotonic_ms: u64) -> Now {
        Now { monotonic_ms, unix_ms: None }
    }

    #[test]
    fn seconds_are_those_that_can_be_waited() {
        for wrong in [0.0, -1.0, 1e20, f64::INFINITY, f64::NAN] {
            assert!(Seconds::new(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Seconds::new(1e-9).unwrap().ms(), 1);
        assert_eq!(Seconds::new(1.5).unwrap().ms(), 1_500);
    }

    #[test]
    fn a_clock_goes_on_where_it_was_left_and_never_back() {
        let mut clock = Clock::from(500);
        assert_eq!(clock.advance(at(1_000_000)), 0, "what passed while nobody ran isn't counted");
        assert_eq!(clock.advance(at(1_000_200)), 200);
        assert_eq!(clock.advance(at(7)), 0);
        assert_eq!(clock.advance(at(1_000_300)), 100);
        assert_eq!(clock.elapsed_ms(), 800);
        assert_eq!(clock.monotonic_ms(1_000), 1_000_500);
    }
}
