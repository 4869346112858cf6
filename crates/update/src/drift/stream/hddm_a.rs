//! HDDM_A: the mean of all numbers against its lowest so far, by Hoeffding's
//! inequality.
//!
//! Frías-Blanco, del Campo-Ávila, Ramos-Jiménez, Morales-Bueno, Ortiz-Díaz,
//! Caballero-Mota, "Online and non-parametric drift detection methods based on
//! Hoeffding's bounds", IEEE TKDE 27(3), 2015.

use serde::{Deserialize, Serialize};

use super::mean::Mean;
use super::{Detect, OptionsError, State, within};

/// Options of HDDM_A.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HddmA {
    /// Chance of a false drift that a comparison is held to; 0.001 unless said.
    pub drift_confidence: f64,
    /// The same of a warning; 0.005 unless said.
    pub warning_confidence: f64,
    /// Whether a mean that falls counts as well; not unless said.
    pub two_sided_test: bool,
}

impl Default for HddmA {
    fn default() -> Self {
        Self { drift_confidence: 0.001, warning_confidence: 0.005, two_sided_test: false }
    }
}

#[derive(Debug)]
pub(super) struct Averages {
    options: HddmA,
    all: Mean,
    lowest: Mean,
    highest: Mean,
}

impl Averages {
    pub fn new(options: HddmA) -> Result<Self, OptionsError> {
        let HddmA { drift_confidence, warning_confidence, .. } = options;
        for (option, value) in [("drift_confidence", drift_confidence), ("warning_confidence", warning_confidence)] {
            within("hddm-a", option, value, "between 0 and 1", value > 0.0 && value < 1.0)?;
        }
        Ok(Self { options, all: Mean::default(), lowest: Mean::default(), highest: Mean::default() })
    }

    /// How far the mean of `n` numbers may lie from its expectation.
    fn bound(&self, n: f64) -> f64 {
        (1.0 / (2.0 * n) * (1.0 / self.options.drift_confidence).ln()).sqrt()
    }

    /// How far the mean of all may lie from that of its beginning `part`;
    /// none where that is all.
    fn bound_apart(&self, part: &Mean, confidence: f64) -> Option<f64> {
        let (n, all) = (part.n, self.all.n);
        (n < all).then(|| ((all - n) / n * (1.0 / all) / 2.0 * (2.0 / confidence).ln()).sqrt())
    }

    fn grew(&self, confidence: f64) -> bool {
        self.bound_apart(&self.lowest, confidence).is_some_and(|bound| self.all.mean - self.lowest.mean >= bound)
    }

    fn fell(&self, confidence: f64) -> bool {
        self.bound_apart(&self.highest, confidence).is_some_and(|bound| self.highest.mean - self.all.mean >= bound)
    }
}

impl Detect for Averages {
    fn update(&mut self, x: f64) -> State {
        self.all.update(x);
        let bound = self.bound(self.all.n);
        if self.lowest.n == 0.0 || self.lowest.mean + self.bound(self.lowest.n) >= self.all.mean + bound {
            self.lowest = self.all;
        }
        if self.highest.n == 0.0 || self.highest.mean - self.bound(self.highest.n) <= self.all.mean - bound {
            self.highest = self.all;
        }
        let HddmA { drift_confidence, warning_confidence, two_sided_test } = self.options;
        if self.grew(drift_confidence) || two_sided_test && self.fell(drift_confidence) {
            State::Drift
        } else if self.grew(warning_confidence) || two_sided_test && self.fell(warning_confidence) {
            State::Warning
        } else {
            State::Stable
        }
    }

    fn reset(&mut self) {
        (self.all, self.lowest, self.highest) = (Mean::default(), Mean::default(), Mean::default());
    }
}
