//! HDDM_W: a weighted average of recent numbers against one of those before
//! them, by McDiarmid's inequality.
//!
//! Frías-Blanco and others, IEEE TKDE 27(3), 2015, as HDDM_A. An average
//! begins with its first number and is only moved by later ones; begun anew
//! whenever it happens to be 0, it would take the first error of a model that
//! made none for a drift.

use serde::{Deserialize, Serialize};

use super::{Detect, OptionsError, State, within};

/// Options of HDDM_W.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HddmW {
    /// Chance of a false drift that a comparison is held to; 0.001 unless said.
    pub drift_confidence: f64,
    /// The same of a warning; 0.005 unless said.
    pub warning_confidence: f64,
    /// Weight of the newest number; 0.05 unless said.
    pub lambda: f64,
    /// Whether a mean that falls counts as well; not unless said.
    pub two_sided_test: bool,
}

impl Default for HddmW {
    fn default() -> Self {
        Self { drift_confidence: 0.001, warning_confidence: 0.005, lambda: 0.05, two_sided_test: false }
    }
}

/// An exponentially weighted average; none before its first number.
#[derive(Debug, Clone, Copy)]
struct Average {
    value: Option<f64>,
    /// Sum of squared weights, which the bound grows with.
    weights: f64,
}

impl Average {
    const EMPTY: Self = Self { value: None, weights: 1.0 };

    fn update(&mut self, x: f64, lambda: f64) {
        self.value = Some(self.value.map_or(x, |value| lambda * x + (1.0 - lambda) * value));
        self.weights = lambda * lambda + (1.0 - lambda) * (1.0 - lambda) * self.weights;
    }
}

/// The numbers before a cut and those behind it.
#[derive(Debug, Clone, Copy)]
struct Parts {
    before: Average,
    behind: Average,
    /// The bound that was lowest at the cut: of the mean from above, or of its
    /// negative.
    cut: Option<f64>,
}

impl Parts {
    const EMPTY: Self = Self { before: Average::EMPTY, behind: Average::EMPTY, cut: None };
}

#[derive(Debug)]
pub(super) struct Averages {
    options: HddmW,
    all: Average,
    /// Cut where the upper bound of the mean was lowest.
    rise: Parts,
    /// Cut where the lower bound of the mean was highest.
    fall: Parts,
}

impl Averages {
    pub fn new(options: HddmW) -> Result<Self, OptionsError> {
        let HddmW { drift_confidence, warning_confidence, lambda, .. } = options;
        for (option, value) in
            [("drift_confidence", drift_confidence), ("warning_confidence", warning_confidence), ("lambda", lambda)]
        {
            within("hddm-w", option, value, "between 0 and 1", value > 0.0 && value < 1.0)?;
        }
        Ok(Self { options, all: Average::EMPTY, rise: Parts::EMPTY, fall: Parts::EMPTY })
    }
}

fn bound(weights: f64, confidence: f64) -> f64 {
    (weights * (1.0 / confidence).ln() / 2.0).sqrt()
}

/// Whether `behind` lies above `before` by more than chance.
fn above(before: &Average, behind: &Average, confidence: f64) -> bool {
    let (Some(low), Some(high)) = (before.value, behind.value) else { return false };
    high - low > bound(before.weights + behind.weights, confidence)
}

impl Detect for Averages {
    fn update(&mut self, x: f64) -> State {
        let HddmW { drift_confidence, warning_confidence, lambda, two_sided_test } = self.options;
        self.all.update(x, lambda);
        let mean = self.all.value.unwrap_or(x);
        let reach = bound(self.all.weights, drift_confidence);
        for (parts, at) in [(&mut self.rise, mean + reach), (&mut self.fall, reach - mean)] {
            if parts.cut.is_none_or(|cut| at < cut) {
                *parts = Parts { before: self.all, behind: Average::EMPTY, cut: Some(at) };
            } else {
                parts.behind.update(x, lambda);
            }
        }
        let changed = |confidence| {
            above(&self.rise.before, &self.rise.behind, confidence)
                || two_sided_test && above(&self.fall.behind, &self.fall.before, confidence)
        };
        if changed(drift_confidence) {
            State::Drift
        } else if changed(warning_confidence) {
            State::Warning
        } else {
            State::Stable
        }
    }

    fn reset(&mut self) {
        (self.all, self.rise, self.fall) = (Average::EMPTY, Parts::EMPTY, Parts::EMPTY);
    }
}
