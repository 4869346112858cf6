//! Seconds as a job's file says them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::FederateError;

/// A time to wait: above 0, and at most [`Seconds::MAX`]. So whatever is
/// computed of it is a time.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Seconds(f64);

impl Seconds {
    /// Thirty years: longer than any job, and short enough to be added to any
    /// time there is.
    pub const MAX: f64 = 1e9;

    /// So many seconds.
    ///
    /// # Errors
    /// [`FederateError::Range`] for those that nobody can wait.
    pub fn new(seconds: f64) -> Result<Self, FederateError> {
        let fits = seconds > 0.0 && seconds <= Self::MAX;
        let range = "seconds, above 0 and at most 1e9";
        if fits { Ok(Self(seconds)) } else { Err(FederateError::Range { what: "a time", value: seconds, range }) }
    }

    /// A minute.
    pub(crate) const MINUTE: Self = Self(60.0);

    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0)
    }
}

impl TryFrom<f64> for Seconds {
    type Error = FederateError;

    fn try_from(seconds: f64) -> Result<Self, FederateError> {
        Self::new(seconds)
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_nobody_can_wait_are_refused() {
        for wrong in [0.0, -1.0, 1e20, f64::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            assert!(Seconds::new(wrong).is_err(), "{wrong}");
            // A number of JSON can't be all of them.
            let text = format!("{{\"s\": {}}}", if wrong.is_finite() { format!("{wrong:e}") } else { "1e400".into() });
            assert!(serde_json::from_str::<std::collections::BTreeMap<String, Seconds>>(&text).is_err(), "{text}");
        }
        for right in [1e-9, 0.5, 60.0, Seconds::MAX] {
            let seconds = Seconds::new(right).unwrap();
            let text = serde_json::to_string(&seconds).unwrap();
            assert_eq!(serde_json::from_str::<Seconds>(&text).unwrap(), seconds);
            assert!(seconds.duration() <= Duration::from_secs(1_000_000_000));
        }
    }
}
