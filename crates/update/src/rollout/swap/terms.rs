//! What a new version must show on a device before it stays there.

use serde::{Deserialize, Serialize};

use crate::rollout::spec::{setting, share};
use crate::rollout::{Health, RolloutError, Seconds};

/// Requests after which errors count before the window is over.
const EARLY_RUNS: u64 = 20;

/// What a new version must show on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    /// Seconds that it may take to load.
    pub load_s: Seconds,
    /// Seconds that its golden inputs may take.
    pub self_test_s: Seconds,
    /// Seconds on trial.
    pub window_s: Seconds,
    /// Requests that it must have run well; with fewer the golden inputs are
    /// run as requests.
    pub runs_min: u64,
    /// Requests that may fail, as a share.
    pub errors_max: f64,
    /// The 95th percentile of latency over that of the version before, at
    /// most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p95_ratio_max: Option<f64>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            load_s: Seconds::of(60.0),
            self_test_s: Seconds::of(30.0),
            window_s: Seconds::of(10.0),
            runs_min: 1,
            errors_max: 0.1,
            latency_p95_ratio_max: None,
        }
    }
}

impl Terms {
    pub(in crate::rollout) fn check(&self) -> Result<(), RolloutError> {
        share("trial", "errors_max", Some(self.errors_max))?;
        if self.latency_p95_ratio_max.is_some_and(|ratio| !(ratio > 0.0 && ratio.is_finite())) {
            return Err(setting("trial", "latency_p95_ratio_max", "it is a number above 0"));
        }
        if self.runs_min == 0 {
            return Err(setting("trial", "runs_min", "a version that never ran would be confirmed; it is at least 1"));
        }
        Ok(())
    }

    pub(super) fn has_run(&self, new: &Health) -> bool {
        new.runs - new.errors >= self.runs_min
    }

    /// What is wrong with how it does; `ended` when the window is over.
    pub(super) fn breach(&self, new: &Health, old: &Health, ended: bool) -> Option<String> {
        let least = if ended { 1 } else { EARLY_RUNS };
        if new.runs < least.max(1) {
            return None;
        }
        let errors = new.errors as f64 / new.runs as f64;
        if errors > self.errors_max {
            return Some(format!("{} of {} requests failed on trial", new.errors, new.runs));
        }
        let max = self.latency_p95_ratio_max?;
        if new.latency.count().min(old.latency.count()) < EARLY_RUNS {
            return None;
        }
        let ratio = new.latency.quantile_ns(0.95)? / old.latency.quantile_ns(0.95)?;
        (ratio > max).then(|| format!("it is slower on trial: the 95th percentile is {ratio:.2} times that before"))
    }
}
