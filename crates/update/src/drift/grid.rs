//! One stream's distribution, kept as a grid of quantiles, and counts of a
//! window along it.
//!
//! Distances between the two are exact along the grid: Kolmogorov-Smirnov's at
//! every grid point and just below it, so that atoms (the zeros behind a ReLU)
//! count in full; Wasserstein's with straight lines between grid points and
//! exact tails.

use serde::{Deserialize, Serialize};

use super::ks;
use super::stream::MAGNITUDE_MAX;
use crate::special::gamma_above;

/// Grid points at most.
pub const POINTS_MAX: usize = 257;

/// A distribution as its sample's counts at some of its quantiles, the least and
/// the largest number among them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct Grid {
    /// Ascending.
    at: Vec<f64>,
    /// Numbers of the sample below each point.
    below: Vec<u64>,
    /// Numbers of the sample up to each point.
    upto: Vec<u64>,
    /// Mean and deviation of the sample.
    mean: f64,
    deviation: f64,
    /// What the Wasserstein distance times the root of the effective size has as
    /// mean and deviation where nothing changed.
    null: (f64, f64),
}

/// As it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    at: Vec<f64>,
    below: Vec<u64>,
    upto: Vec<u64>,
    mean: f64,
    deviation: f64,
}

/// Why numbers make no grid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// Nothing to make it of.
    #[error("a distribution needs at least one number")]
    Empty,
    /// NaN, infinite or of a magnitude beyond bounds.
    #[error("a distribution's numbers must be finite and of magnitude up to 1e100")]
    NotFinite,
    /// A document that no sample makes.
    #[error("a distribution's grid is unsound: {0}")]
    Unsound(&'static str),
}

impl Grid {
    /// The grid of a sample at `points` quantiles (2 to [`POINTS_MAX`]), evenly
    /// spaced in rank; fewer where numbers repeat. Sorts the sample.
    pub fn of(sample: &mut [f64], points: usize) -> Result<Self, GridError> {
        if sample.is_empty() {
            return Err(GridError::Empty);
        }
        if sample.iter().any(|x| x.is_nan() || x.abs() > MAGNITUDE_MAX) {
            return Err(GridError::NotFinite);
        }
        // 0.0 and -0.0 are one number.
        sample.iter_mut().for_each(|x| *x += 0.0);
        sample.sort_unstable_by(f64::total_cmp);
        let (n, points) = (sample.len(), points.clamp(2, POINTS_MAX));
        let mut at: Vec<f64> = (0..points).map(|i| sample[i * (n - 1) / (points - 1)]).collect();
        at.dedup();
        let count = |fits: &dyn Fn(f64) -> bool| sample.partition_point(|&x| fits(x)) as u64;
        let below = at.iter().map(|&q| count(&|x| x < q)).collect();
        let upto = at.iter().map(|&q| count(&|x| x <= q)).collect();
        let mean = sample.iter().sum::<f64>() / n as f64;
        let squares: f64 = sample.iter().map(|x| (x - mean) * (x - mean)).sum();
        let deviation = (squares / n as f64).sqrt();
        Self::try_from(Document { at, below, upto, mean, deviation })
    }

    /// Numbers of the sample.
    pub fn n(&self) -> u64 {
        self.upto.last().copied().unwrap_or(0)
    }

    /// Its mean.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Its standard deviation.
    pub fn deviation(&self) -> f64 {
        self.deviation
    }

    /// The grid's points, ascending.
    pub fn points(&self) -> &[f64] {
        &self.at
    }

    /// Counters of a window along this grid, at 0.
    pub fn counts(&self) -> Counts {
        Counts { bins: vec![0; 2 * self.at.len() + 1], n: 0, beyond: 0.0 }
    }

    /// Counts one finite number; others must not come here.
    pub fn count(&self, counts: &mut Counts, x: f64) {
        let i = self.at.partition_point(|&q| q < x);
        let equal = usize::from(self.at.get(i).is_some_and(|&q| q == x));
        counts.bins[2 * i + equal] += 1;
        counts.n += 1;
        let (least, largest) = (self.at[0], self.at[self.at.len() - 1]);
        counts.beyond += (least - x).max(x - largest).max(0.0);
    }

    /// Shares of the sample and of the window below each point and up to it:
    /// `(reference, window)`, two for each point.
    fn shares(&self, counts: &Counts) -> impl Iterator<Item = (f64, f64)> {
        let (n, m) = (self.n() as f64, counts.n as f64);
        let mut so_far = 0u64;
        self.below.iter().zip(&self.upto).zip(counts.bins.chunks_exact(2)).flat_map(move |((below, upto), bins)| {
            let first = so_far + bins[0];
            so_far = first + bins[1];
            [(*below as f64 / n, first as f64 / m), (*upto as f64 / n, so_far as f64 / m)]
        })
    }

    /// The Kolmogorov-Smirnov distance along the grid, from 0 to 1; 0 of an
    /// empty window. Never above the one of the whole samples, and at most one
    /// grid step of each below it.
    pub fn ks(&self, counts: &Counts) -> f64 {
        if counts.n == 0 {
            return 0.0;
        }
        self.shares(counts).map(|(reference, window)| (reference - window).abs()).fold(0.0, f64::max)
    }

    /// Chance of that distance, or a larger one, where nothing changed.
    pub fn ks_p(&self, counts: &Counts) -> f64 {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        ks::p_value(size(self.n()), size(counts.n), self.ks(counts))
    }

    /// The Wasserstein-1 distance, in the stream's unit; 0 of an empty window.
    pub fn wasserstein(&self, counts: &Counts) -> f64 {
        if counts.n == 0 {
            return 0.0;
        }
        let apart: Vec<f64> = self.shares(counts).map(|(reference, window)| reference - window).collect();
        // apart[2i] below point i, apart[2i + 1] up to it.
        let within: f64 = self
            .at
            .windows(2)
            .enumerate()
            .map(|(i, ends)| (ends[1] - ends[0]) * mean_magnitude(apart[2 * i + 1], apart[2 * i + 2]))
            .sum();
        within + counts.beyond / counts.n as f64
    }

    /// Chance of that distance, or a larger one, where nothing changed: a gamma
    /// distribution with the mean and the deviation that the integral of a
    /// Brownian bridge's magnitude has along this distribution.
    pub fn wasserstein_p(&self, counts: &Counts) -> f64 {
        let (n, m) = (self.n() as f64, counts.n as f64);
        if counts.n == 0 {
            return 1.0;
        }
        let scaled = self.wasserstein(counts) * (n / (n + m) * m).sqrt();
        let (mean, deviation) = self.null;
        if mean <= 0.0 || deviation <= 0.0 {
            // A constant stream: whatever differs is a change.
            return if scaled > 0.0 { 0.0 } else { 1.0 };
        }
        let spread = deviation * deviation;
        gamma_above(mean * mean / spread, scaled * mean / spread)
    }
}

/// Mean of |x| along the straight line from `a` to `b`.
fn mean_magnitude(a: f64, b: f64) -> f64 {
    if a * b >= 0.0 {
        return (a + b).abs() / 2.0;
    }
    (a * a + b * b) / (2.0 * (a - b).abs())
}

/// Mean and deviation of the integral of |B(F(x))| over x, B a Brownian bridge:
/// of two normal variables with correlation r the covariance of magnitudes is
/// 2/pi (r asin r + sqrt(1 - r²) - 1) times their deviations.
fn null(at: &[f64], below: &[u64], upto: &[u64], n: f64) -> (f64, f64) {
    let cells: Vec<(f64, f64)> = at
        .windows(2)
        .zip(upto.iter().zip(&below[1..]))
        .map(|(ends, (left, right))| (ends[1] - ends[0], (*left as f64 + *right as f64) / (2.0 * n)))
        .filter(|(_, share)| *share > 0.0 && *share < 1.0)
        .collect();
    let two_over_pi = std::f64::consts::FRAC_2_PI;
    let spread = |share: f64| (share * (1.0 - share)).sqrt();
    let mean = two_over_pi.sqrt() * cells.iter().map(|(width, share)| width * spread(*share)).sum::<f64>();
    let mut variance = 0.0;
    for (i, (width, share)) in cells.iter().enumerate() {
        for (j, (other_width, other)) in cells[i..].iter().enumerate() {
            let product = spread(*share) * spread(*other);
            let r = ((share - share * other) / product).min(1.0);
            let covariance = two_over_pi * (r * r.asin() + (1.0 - r * r).sqrt() - 1.0) * product;
            variance += if j == 0 { 1.0 } else { 2.0 } * width * other_width * covariance;
        }
    }
    (mean, variance.max(0.0).sqrt())
}

impl TryFrom<Document> for Grid {
    type Error = GridError;

    fn try_from(document: Document) -> Result<Self, GridError> {
        let Document { at, below, upto, mean, deviation } = document;
        let unsound = |fault| Err(GridError::Unsound(fault));
        if at.is_empty() || at.len() > POINTS_MAX {
            return unsound("it has no points, or more than 257");
        }
        if below.len() != at.len() || upto.len() != at.len() {
            return unsound("its lists differ in length");
        }
        if at.iter().chain([&mean, &deviation]).any(|x| x.is_nan() || x.abs() > MAGNITUDE_MAX) || deviation < 0.0 {
            return Err(GridError::NotFinite);
        }
        if at.windows(2).any(|pair| pair[0] >= pair[1]) {
            return unsound("its points don't ascend");
        }
        let counts_ascend = below.iter().zip(&upto).all(|(below, upto)| below < upto)
            && upto.iter().zip(below.iter().skip(1)).all(|(upto, below)| upto <= below);
        if below[0] != 0 || !counts_ascend || upto[upto.len() - 1] > COUNT_MAX {
            return unsound("its counts don't ascend from 0");
        }
        let null = null(&at, &below, &upto, upto[upto.len() - 1] as f64);
        Ok(Self { at, below, upto, mean, deviation, null })
    }
}

/// Numbers that a sample may have had: counts stay exact as f64.
const COUNT_MAX: u64 = 1 << 50;

impl From<Grid> for Document {
    fn from(grid: Grid) -> Self {
        let Grid { at, below, upto, mean, deviation, .. } = grid;
        Self { at, below, upto, mean, deviation }
    }
}

/// A window's counts along a [`Grid`].
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// Between points, and at points, by turns.
    bins: Vec<u64>,
    n: u64,
    /// Sum of distances beyond the grid's ends.
    beyond: f64,
}

impl Counts {
    /// Numbers counted.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Back to 0.
    pub fn clear(&mut self) {
        self.bins.fill(0);
        (self.n, self.beyond) = (0, 0.0);
    }
}
