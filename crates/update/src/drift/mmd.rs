//! Maximum mean discrepancy with the kernel exp(-|x - y|² / (2 s²)): how far
//! apart two samples of vectors are, in everything that they have.
//!
//! Gretton, Borgwardt, Rasch, Schölkopf, Smola, "A kernel two-sample test",
//! JMLR 13, 2012. [`Frequencies`] replaces the kernel by random cosines and
//! sines (Rahimi, Recht, 2007), so that a window is a sum of constant size.

use super::random::Random;
use crate::special::{chi_squared_above, gamma_above};

/// Squared distance of mean images, and spread, up to which both are taken for 0.
const ROUNDING: f64 = 1e-12;

/// Vectors that the median heuristic compares at most, in pairs.
const MEDIAN_OF_MAX: usize = 400;

/// The unbiased estimate of the squared discrepancy; 0 where a side has fewer
/// than 2 vectors. `width` is the kernel's s. Takes (n + m)² steps.
pub fn squared(a: &[Vec<f64>], b: &[Vec<f64>], width: f64) -> f64 {
    if a.len() < 2 || b.len() < 2 {
        return 0.0;
    }
    let kernel = |x: &[f64], y: &[f64]| (-distance_squared(x, y) / (2.0 * width * width)).exp();
    let within = |side: &[Vec<f64>]| {
        let pairs: f64 = (0..side.len()).map(|i| (0..i).map(|j| kernel(&side[i], &side[j])).sum::<f64>()).sum();
        2.0 * pairs / (side.len() * (side.len() - 1)) as f64
    };
    let between: f64 = a.iter().map(|x| b.iter().map(|y| kernel(x, y)).sum::<f64>()).sum();
    within(a) + within(b) - 2.0 * between / (a.len() * b.len()) as f64
}

/// The median heuristic: the median distance between vectors, of the first 400;
/// 1 where they don't differ.
pub fn median_width(vectors: &[Vec<f64>]) -> f64 {
    let some = &vectors[..vectors.len().min(MEDIAN_OF_MAX)];
    let mut distances: Vec<f64> = (0..some.len())
        .flat_map(|i| (0..i).map(move |j| distance_squared(&some[i], &some[j])))
        .filter(|d| d.is_finite())
        .collect();
    distances.sort_unstable_by(f64::total_cmp);
    match distances.get(distances.len() / 2) {
        Some(&d) if d > 0.0 => d.sqrt(),
        _ => 1.0,
    }
}

fn distance_squared(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// Random frequencies, drawn from a seed: vectors of `dimensions` numbers
/// become `2 count` cosines and sines, whose products average to the kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    dimensions: usize,
    count: usize,
    /// [count, dimensions].
    rows: Vec<f32>,
}

impl Frequencies {
    /// Draws `count` frequencies for a kernel of this width.
    pub fn draw(seed: u64, dimensions: usize, count: usize, width: f64) -> Self {
        let mut random = Random::new(seed);
        let rows = (0..dimensions * count).map(|_| (random.normal() / width) as f32).collect();
        Self { dimensions, count, rows }
    }

    /// Numbers that a vector becomes.
    pub fn len(&self) -> usize {
        2 * self.count
    }

    /// Whether nothing was drawn.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Calls `each` with every number of `x`'s image, in order; `x` has
    /// `dimensions` numbers.
    pub fn image(&self, x: &[f32], mut each: impl FnMut(usize, f64)) {
        debug_assert_eq!(x.len(), self.dimensions);
        let scale = 1.0 / (self.count as f64).sqrt();
        let mut turns = [0.0f32; BLOCK];
        let mut first = 0;
        for block in self.rows.chunks(BLOCK * self.dimensions.max(1)) {
            let rows = block.chunks_exact(self.dimensions.max(1));
            let n = rows.len();
            for (turn, row) in turns.iter_mut().zip(rows) {
                *turn = dot(row, x) * (1.0 / std::f32::consts::TAU);
            }
            let (cosines, sines) = waves(&turns);
            for i in 0..n {
                each(2 * (first + i), f64::from(cosines[i]) * scale);
                each(2 * (first + i) + 1, f64::from(sines[i]) * scale);
            }
            first += n;
        }
    }
}

/// Frequencies that are taken at once.
const BLOCK: usize = 16;

/// Cosines and sines of whole turns, within 2e-6: the same on every machine,
/// which the system's are not, and sixteen side by side.
fn waves(turns: &[f32; BLOCK]) -> ([f32; BLOCK], [f32; BLOCK]) {
    // Adding and taking this rounds to whole numbers; where numbers are too large
    // for that they have no fraction, and the bounds keep what is left harmless.
    const WHOLE: f32 = 12_582_912.0;
    let (mut cosines, mut sines) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    for i in 0..BLOCK {
        let x = (turns[i] - ((turns[i] + WHOLE) - WHOLE)).clamp(-0.5, 0.5) * std::f32::consts::TAU;
        // Of half the angle, whose series end early; then doubled.
        let h = 0.5 * x;
        let q = h * h;
        let sin = h
            * (1.0
                + q * (-1.0 / 6.0
                    + q * (1.0 / 120.0 + q * (-1.0 / 5_040.0 + q * (1.0 / 362_880.0 - q / 39_916_800.0)))));
        let cos = 1.0
            + q * (-0.5
                + q * (1.0 / 24.0
                    + q * (-1.0 / 720.0 + q * (1.0 / 40_320.0 - q * (1.0 / 3_628_800.0 - q / 479_001_600.0)))));
        cosines[i] = 1.0 - 2.0 * sin * sin;
        sines[i] = 2.0 * sin * cos;
    }
    (cosines, sines)
}

/// Eight sums side by side, which compilers make vector instructions of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_blocks.zip(b_blocks) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Sums of the eigenvalues of the images' covariance, of their squares and of
/// their cubes: what the discrepancy's distribution without change depends on.
pub type Traces = [f64; 3];

/// [`Traces`] of the covariance of `images`, each of `width` numbers.
pub fn traces(images: &[Vec<f64>], width: usize) -> Traces {
    let n = images.len().max(1) as f64;
    let mut mean = vec![0.0; width];
    for image in images {
        mean.iter_mut().zip(image).for_each(|(mean, x)| *mean += x / n);
    }
    let mut covariance = vec![0.0f64; width * width];
    let mut centred = vec![0.0; width];
    for image in images {
        centred.iter_mut().zip(image.iter().zip(&mean)).for_each(|(c, (x, mean))| *c = x - mean);
        for (row, a) in covariance.chunks_exact_mut(width).zip(&centred) {
            row.iter_mut().zip(&centred).for_each(|(cell, b)| *cell += a * b / n);
        }
    }
    let first = (0..width).map(|i| covariance[i * width + i]).sum();
    let second = covariance.iter().map(|x| x * x).sum();
    // trace(C³) is the sum of C² times C, cell by cell; C is symmetric.
    let third = (0..width)
        .map(|i| {
            let row = &covariance[i * width..][..width];
            (0..width)
                .map(|j| {
                    let other = &covariance[j * width..][..width];
                    row[j] * row.iter().zip(other).map(|(a, b)| a * b).sum::<f64>()
                })
                .sum::<f64>()
        })
        .sum();
    [first, second, third]
}

/// Chance that the squared distance between the mean images of `n` and `m`
/// vectors is at least `squared` where nothing changed: a weighted sum of
/// chi-squared variables with these traces, by its first three moments (Hall,
/// 1983; Buckley, Eagleson, 1988).
pub fn p_value(squared: f64, n: f64, m: f64, traces: Traces) -> f64 {
    let [first, second, third] = traces;
    if n < 1.0 || m < 1.0 {
        return 1.0;
    }
    let scaled = squared / (1.0 / n + 1.0 / m);
    if first <= ROUNDING || second <= 0.0 {
        // All images are one: what is left of a difference is rounding, or not.
        return if squared > ROUNDING { 0.0 } else { 1.0 };
    }
    if third <= 0.0 {
        return gamma_above(first * first / (2.0 * second), scaled * first / (2.0 * second));
    }
    let freedom = second.powi(3) / (third * third);
    let standard = (scaled - first) / (2.0 * second).sqrt();
    chi_squared_above(freedom, freedom + standard * (2.0 * freedom).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_cosines_and_sines() {
        let mut random = Random::new(2);
        for round in 0..2_000 {
            let reach = [1.0, 3.0, 100.0, 1e4][round % 4];
            let turns: [f32; BLOCK] = std::array::from_fn(|_| ((random.uniform() - 0.5) * reach) as f32);
            let (cosines, sines) = waves(&turns);
            for ((turn, cos), sin) in turns.iter().zip(cosines).zip(sines) {
                let angle = f64::from(*turn) * std::f64::consts::TAU;
                assert!((f64::from(cos) - angle.cos()).abs() < 2e-6, "cos of {turn} turns is {cos}");
                assert!((f64::from(sin) - angle.sin()).abs() < 2e-6, "sin of {turn} turns is {sin}");
            }
        }
        for hostile in [1e7, -1e9, 1e20, f32::MAX, f32::MIN, f32::INFINITY, f32::NAN] {
            let (cosines, sines) = waves(&[hostile; BLOCK]);
            assert!(cosines[0].is_nan() || cosines[0].abs() <= 1.0 + 1e-6, "{hostile}");
            assert!(sines[0].is_nan() || sines[0].abs() <= 1.0 + 1e-6, "{hostile}");
        }
    }
}
