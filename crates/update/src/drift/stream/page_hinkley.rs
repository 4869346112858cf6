//! The Page-Hinkley test: the sum of deviations from the mean, against its
//! lowest and its highest.
//!
//! Page, "Continuous inspection schemes", Biometrika 41, 1954; with a factor
//! that lets old deviations fade.

use serde::{Deserialize, Serialize};

use super::mean::Mean;
use super::{Detect, OptionsError, State, within};

/// Which way a mean must move to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It grows.
    Up,
    /// It falls.
    Down,
    /// It moves.
    #[default]
    Both,
}

/// Options of the Page-Hinkley test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PageHinkley {
    /// Numbers before the first test; 30 unless said.
    pub min_instances: u32,
    /// Deviation that is taken for nothing; 0.005 unless said.
    pub delta: f64,
    /// Sum of deviations that is a drift, in the stream's unit; 50 unless said.
    pub threshold: f64,
    /// Factor by which older deviations fade; 0.9999 unless said.
    pub alpha: f64,
    /// Which way counts; both unless said.
    pub mode: Direction,
}

impl Default for PageHinkley {
    fn default() -> Self {
        Self { min_instances: 30, delta: 0.005, threshold: 50.0, alpha: 1.0 - 0.0001, mode: Direction::Both }
    }
}

/// Where the highest sum for falls begins; the reference implementation's.
const HIGHEST_AT_START: f64 = -1.0;

#[derive(Debug)]
pub(super) struct Sums {
    options: PageHinkley,
    mean: Mean,
    rise: f64,
    lowest_rise: f64,
    fall: f64,
    highest_fall: f64,
}

impl Sums {
    pub fn new(options: PageHinkley) -> Result<Self, OptionsError> {
        let PageHinkley { delta, threshold, alpha, .. } = options;
        within("page-hinkley", "delta", delta, "0 or more, and finite", (0.0..f64::INFINITY).contains(&delta))?;
        within(
            "page-hinkley",
            "threshold",
            threshold,
            "0 or more, and finite",
            (0.0..f64::INFINITY).contains(&threshold),
        )?;
        within("page-hinkley", "alpha", alpha, "above 0 and at most 1", alpha > 0.0 && alpha <= 1.0)?;
        Ok(Self {
            options,
            mean: Mean::default(),
            rise: 0.0,
            lowest_rise: f64::INFINITY,
            fall: 0.0,
            highest_fall: HIGHEST_AT_START,
        })
    }
}

impl Detect for Sums {
    fn update(&mut self, x: f64) -> State {
        let PageHinkley { min_instances, delta, threshold, alpha, mode } = self.options;
        self.mean.update(x);
        let deviation = x - self.mean.mean;
        self.rise = alpha * self.rise + deviation - delta;
        self.fall = alpha * self.fall + deviation + delta;
        self.lowest_rise = self.lowest_rise.min(self.rise);
        self.highest_fall = self.highest_fall.max(self.fall);
        if self.mean.n < f64::from(min_instances) {
            return State::Stable;
        }
        let rose = mode != Direction::Down && self.rise - self.lowest_rise > threshold;
        let fell = mode != Direction::Up && self.highest_fall - self.fall > threshold;
        if rose || fell { State::Drift } else { State::Stable }
    }

    fn reset(&mut self) {
        (self.mean, self.rise, self.lowest_rise) = (Mean::default(), 0.0, f64::INFINITY);
        (self.fall, self.highest_fall) = (0.0, HIGHEST_AT_START);
    }
}
