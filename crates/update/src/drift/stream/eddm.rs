//! EDDM: the distance between errors against its largest.
//!
//! Baena-García, del Campo-Ávila, Fidalgo, Bifet, Gavaldà, Morales-Bueno,
//! "Early drift detection method", 2006. At its defaults it alarms often on
//! streams that never change; see docs/design/drift.md.

use serde::{Deserialize, Serialize};

use super::mean::Mean;
use super::{Detect, OptionsError, State, within};

/// Options of EDDM.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eddm {
    /// Errors before the first test; 30 unless said.
    pub warm_start: u32,
    /// Share of the largest distance below which is a warning; 0.95 unless said.
    pub alpha: f64,
    /// Share of the largest distance below which is a drift; 0.9 unless said.
    pub beta: f64,
}

impl Default for Eddm {
    fn default() -> Self {
        Self { warm_start: 30, alpha: 0.95, beta: 0.9 }
    }
}

#[derive(Debug)]
pub(super) struct Distances {
    options: Eddm,
    answers: u64,
    last_error: u64,
    distance: Mean,
    /// Sum of squared deviations of distances.
    squares: f64,
    /// Largest mean distance plus two deviations.
    largest: Option<f64>,
    /// What the last error left the stream at.
    state: State,
}

impl Distances {
    pub fn new(options: Eddm) -> Result<Self, OptionsError> {
        let Eddm { alpha, beta, .. } = options;
        within("eddm", "alpha", alpha, "from 0 to 1", (0.0..=1.0).contains(&alpha))?;
        within("eddm", "beta", beta, "from 0 to `alpha`", (0.0..=alpha).contains(&beta))?;
        Ok(Self::empty(options))
    }

    fn empty(options: Eddm) -> Self {
        Self {
            options,
            answers: 0,
            last_error: 0,
            distance: Mean::default(),
            squares: 0.0,
            largest: None,
            state: State::Stable,
        }
    }

    /// Mean distance between errors plus two sample deviations.
    fn reach(&self) -> f64 {
        let variance = if self.distance.n > 1.0 { self.squares / (self.distance.n - 1.0) } else { 0.0 };
        self.distance.mean + 2.0 * variance.sqrt()
    }
}

impl Detect for Distances {
    fn update(&mut self, x: f64) -> State {
        let Eddm { warm_start, alpha, beta } = self.options;
        self.answers += 1;
        if x != 1.0 {
            return self.state;
        }
        let distance = (self.answers - self.last_error) as f64;
        self.last_error = self.answers;
        let before = self.distance.mean;
        self.distance.update(distance);
        self.squares += (distance - before) * (distance - self.distance.mean);
        if self.answers <= u64::from(warm_start) {
            return self.state;
        }
        let reach = self.reach();
        match self.largest {
            Some(largest) if reach <= largest => {
                if self.distance.n > f64::from(warm_start) {
                    let level = reach / largest;
                    self.state = if level < beta {
                        State::Drift
                    } else if level < alpha {
                        State::Warning
                    } else {
                        State::Stable
                    };
                }
            }
            _ => self.largest = Some(reach),
        }
        self.state
    }

    fn reset(&mut self) {
        *self = Self::empty(self.options);
    }
}
