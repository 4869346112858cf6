//! DDM: the error rate and its deviation against their lowest sum.
//!
//! Gama, Medas, Castillo, Rodrigues, "Learning with drift detection", SBIA
//! 2004. A model that made no error while it warmed up has a deviation of 0,
//! and its first error is a drift: for models that hardly err, HDDM is the
//! better choice.

use serde::{Deserialize, Serialize};

use super::mean::Mean;
use super::{Detect, OptionsError, State, within};

/// Options of DDM.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ddm {
    /// Answers before the first test; 30 unless said.
    pub warm_start: u32,
    /// Deviations above the lowest rate that are a warning; 2 unless said.
    pub warning_threshold: f64,
    /// Deviations above the lowest rate that are a drift; 3 unless said.
    pub drift_threshold: f64,
}

impl Default for Ddm {
    fn default() -> Self {
        Self { warm_start: 30, warning_threshold: 2.0, drift_threshold: 3.0 }
    }
}

#[derive(Debug)]
pub(super) struct Rate {
    options: Ddm,
    errors: Mean,
    /// Error rate and its deviation where their sum was lowest.
    lowest: Option<(f64, f64)>,
}

impl Rate {
    pub fn new(options: Ddm) -> Result<Self, OptionsError> {
        let Ddm { warning_threshold, drift_threshold, .. } = options;
        for (option, value) in [("warning_threshold", warning_threshold), ("drift_threshold", drift_threshold)] {
            within("ddm", option, value, "0 or more, and finite", (0.0..f64::INFINITY).contains(&value))?;
        }
        Ok(Self { options, errors: Mean::default(), lowest: None })
    }
}

impl Detect for Rate {
    fn update(&mut self, x: f64) -> State {
        let Ddm { warm_start, warning_threshold, drift_threshold } = self.options;
        self.errors.update(x);
        let Mean { n, mean: rate } = self.errors;
        if n <= f64::from(warm_start) {
            return State::Stable;
        }
        // Rounding may carry a rate of 1 past it.
        let deviation = (rate * (1.0 - rate) / n).max(0.0).sqrt();
        let now = rate + deviation;
        let (least, spread) = match self.lowest {
            Some((least, spread)) if now > least + spread => (least, spread),
            _ => (rate, deviation),
        };
        self.lowest = Some((least, spread));
        if now > least + drift_threshold * spread {
            State::Drift
        } else if now > least + warning_threshold * spread {
            State::Warning
        } else {
            State::Stable
        }
    }

    fn reset(&mut self) {
        (self.errors, self.lowest) = (Mean::default(), None);
    }
}
