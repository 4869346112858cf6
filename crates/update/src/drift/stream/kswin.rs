//! KSWIN: the newest numbers of a sliding window against a random draw of the
//! older ones, by the Kolmogorov-Smirnov test.
//!
//! Raab, Heusinger, Schleif, "Reactive soft prototype computing for concept
//! drift streams", Neurocomputing 416, 2020. Every number is a test of its
//! own, so false alarms are many: `alpha` is the chance of one each time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Detect, OptionsError, State, within};
use crate::drift::ks;
use crate::drift::random::Random;

/// Numbers of a window at most; each update sorts a part of it.
const WINDOW_MAX: usize = 10_000;

/// Distance of the distributions up to which nothing is a drift.
const DISTANCE_MIN: f64 = 0.1;

/// Options of KSWIN.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kswin {
    /// p-value up to which a test is a drift; 0.005 unless said.
    pub alpha: f64,
    /// Numbers of the window; 100 unless said.
    pub window_size: usize,
    /// Newest numbers that are compared with as many older ones; 30 unless said.
    pub stat_size: usize,
}

impl Default for Kswin {
    fn default() -> Self {
        Self { alpha: 0.005, window_size: 100, stat_size: 30 }
    }
}

#[derive(Debug)]
pub(super) struct Window {
    options: Kswin,
    seed: u64,
    random: Random,
    numbers: VecDeque<f64>,
    /// Kept between updates so that none allocates.
    older: Vec<f64>,
    newest: Vec<f64>,
    /// Least steps of 1 / `stat_size` that are a drift; none where no distance is.
    critical: Option<usize>,
}

impl Window {
    pub fn new(options: Kswin, seed: u64) -> Result<Self, OptionsError> {
        let Kswin { alpha, window_size, stat_size } = options;
        within("kswin", "alpha", alpha, "between 0 and 1", alpha > 0.0 && alpha < 1.0)?;
        let size = window_size as f64;
        within("kswin", "window_size", size, "from 2 to 10,000", (2..=WINDOW_MAX).contains(&window_size))?;
        let fits = stat_size >= 1 && stat_size * 2 <= window_size;
        within("kswin", "stat_size", stat_size as f64, "from 1 to half of `window_size`", fits)?;
        let critical = (1..=stat_size)
            .find(|&steps| steps as f64 / stat_size as f64 > DISTANCE_MIN && ks::p_equal(stat_size, steps) <= alpha);
        Ok(Self {
            options,
            seed,
            random: Random::new(seed),
            numbers: VecDeque::with_capacity(window_size),
            older: Vec::with_capacity(window_size),
            newest: Vec::with_capacity(stat_size),
            critical,
        })
    }
}

impl Detect for Window {
    fn update(&mut self, x: f64) -> State {
        let Kswin { window_size, stat_size, .. } = self.options;
        if self.numbers.len() == window_size {
            self.numbers.pop_front();
        }
        self.numbers.push_back(x);
        if self.numbers.len() < window_size {
            return State::Stable;
        }
        let cut = window_size - stat_size;
        self.older.clear();
        self.older.extend(self.numbers.range(..cut));
        self.random.draw(&mut self.older, stat_size);
        self.older.truncate(stat_size);
        self.newest.clear();
        self.newest.extend(self.numbers.range(cut..));
        self.older.sort_unstable_by(f64::total_cmp);
        self.newest.sort_unstable_by(f64::total_cmp);
        let distance = ks::distance(&self.older, &self.newest);
        let steps = (distance * stat_size as f64).round() as usize;
        if self.critical.is_some_and(|critical| steps >= critical) { State::Drift } else { State::Stable }
    }

    /// Begins anew with an empty window and the seed's first draw.
    fn reset(&mut self) {
        self.numbers.clear();
        self.random = Random::new(self.seed);
    }
}
