//! ADWIN: a window that grows while its mean stays and drops its older part
//! when the two parts' means differ.
//!
//! Bifet and Gavaldà, "Learning from time-changing data with adaptive
//! windowing", SDM 2007; the second form, whose window is kept as exponential
//! buckets of sums and variances (Babcock, Datar, Motwani, O'Callaghan, 2003).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Detect, OptionsError, State, within};

/// Buckets of 2^i numbers for i below this: 2^39 numbers and more, after which
/// the oldest are dropped.
const ROWS_MAX: usize = 40;

/// Options of ADWIN.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adwin {
    /// Chance of a false alarm that a cut is held to; 0.002 unless said.
    pub delta: f64,
    /// Numbers between two looks for a change; 32 unless said.
    pub clock: u32,
    /// Buckets of one size before two are merged; 5 unless said.
    pub max_buckets: u32,
    /// Numbers that both parts must have; 5 unless said.
    pub min_window_length: u32,
    /// Numbers before the first look; 10 unless said.
    pub grace_period: u32,
}

impl Default for Adwin {
    fn default() -> Self {
        Self { delta: 0.002, clock: 32, max_buckets: 5, min_window_length: 5, grace_period: 10 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    total: f64,
    /// Sum of squared deviations from the bucket's mean.
    variance: f64,
}

/// The window, as rows of buckets; row i has buckets of 2^i numbers, oldest
/// first.
#[derive(Debug)]
pub(super) struct Windows {
    options: Adwin,
    rows: Vec<VecDeque<Bucket>>,
    width: f64,
    total: f64,
    variance: f64,
    ticks: u32,
}

impl Windows {
    pub fn new(options: Adwin) -> Result<Self, OptionsError> {
        let Adwin { delta, clock, max_buckets, min_window_length, .. } = options;
        within("adwin", "delta", delta, "between 0 and 1", delta > 0.0 && delta < 1.0)?;
        within("adwin", "clock", clock.into(), "at least 1", clock >= 1)?;
        within("adwin", "max_buckets", max_buckets.into(), "from 1 to 64", (1..=64).contains(&max_buckets))?;
        within("adwin", "min_window_length", min_window_length.into(), "at least 1", min_window_length >= 1)?;
        let rows = vec![VecDeque::new()];
        Ok(Self { options, rows, width: 0.0, total: 0.0, variance: 0.0, ticks: 0 })
    }

    fn insert(&mut self, x: f64) {
        self.rows[0].push_back(Bucket { total: x, variance: 0.0 });
        self.width += 1.0;
        if self.width > 1.0 {
            let deviation = x - self.total / (self.width - 1.0);
            self.variance += (self.width - 1.0) * deviation * deviation / self.width;
        }
        self.total += x;
        self.merge();
    }

    /// Merges the two oldest buckets of every row that has one too many.
    fn merge(&mut self) {
        let mut row = 0;
        while self.rows[row].len() > self.options.max_buckets as usize {
            if row + 1 == ROWS_MAX {
                self.drop_oldest();
                return;
            }
            if row + 1 == self.rows.len() {
                self.rows.push(VecDeque::new());
            }
            let size = size_of_row(row);
            let (Some(first), Some(second)) = (self.rows[row].pop_front(), self.rows[row].pop_front()) else { return };
            let apart = first.total / size - second.total / size;
            self.rows[row + 1].push_back(Bucket {
                total: first.total + second.total,
                variance: first.variance + second.variance + size * size * apart * apart / (size + size),
            });
            row += 1;
        }
    }

    /// Drops the oldest bucket.
    fn drop_oldest(&mut self) {
        let row = self.rows.len() - 1;
        let Some(bucket) = self.rows[row].pop_front() else { return };
        let size = size_of_row(row);
        self.width -= size;
        self.total -= bucket.total;
        let apart = bucket.total / size - self.total / self.width;
        self.variance -= bucket.variance + size * self.width * apart * apart / (size + self.width);
        // With one bucket to a size, a merge leaves the row below empty.
        while self.rows.len() > 1 && self.rows.last().is_some_and(VecDeque::is_empty) {
            self.rows.pop();
        }
    }

    /// Whether some cut of the window has means apart by more than chance.
    fn cut_found(&self) -> bool {
        let shortest = f64::from(self.options.min_window_length);
        let (mut n0, mut n1) = (0.0, self.width);
        let (mut sum0, mut sum1) = (0.0, self.total);
        for (row, buckets) in self.rows.iter().enumerate().rev() {
            let size = size_of_row(row);
            for bucket in buckets {
                n0 += size;
                n1 -= size;
                sum0 += bucket.total;
                sum1 -= bucket.total;
                if n0 >= shortest && n1 >= shortest && (sum0 / n0 - sum1 / n1).abs() > self.bound(n0, n1) {
                    return true;
                }
            }
        }
        false
    }

    /// How far the means of parts of `n0` and `n1` numbers may be apart.
    fn bound(&self, n0: f64, n1: f64) -> f64 {
        let shortest = f64::from(self.options.min_window_length);
        let log = (2.0 * self.width.ln() / self.options.delta).ln();
        let inverse = 1.0 / (n0 - shortest + 1.0) + 1.0 / (n1 - shortest + 1.0);
        // Rounding may leave a constant stream a little below 0.
        let variance = (self.variance / self.width).max(0.0);
        (2.0 * inverse * variance * log).sqrt() + 2.0 / 3.0 * log * inverse
    }
}

fn size_of_row(row: usize) -> f64 {
    (1u64 << row) as f64
}

impl Detect for Windows {
    fn update(&mut self, x: f64) -> State {
        self.insert(x);
        self.ticks = (self.ticks + 1) % self.options.clock;
        if self.ticks != 0 || self.width <= f64::from(self.options.grace_period) {
            return State::Stable;
        }
        let mut state = State::Stable;
        while self.cut_found() {
            state = State::Drift;
            self.drop_oldest();
        }
        state
    }

    fn reset(&mut self) {
        self.rows.truncate(1);
        self.rows[0].clear();
        (self.width, self.total, self.variance, self.ticks) = (0.0, 0.0, 0.0, 0);
    }
}
