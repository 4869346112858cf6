//! Principal components by orthogonal iteration, in f64.

use tierline_graph::Tensor;
use tierline_graph::bottleneck::{Coder, Form};

/// Rounds of the iteration; directions that are still mixed then vary alike.
const ROUNDS: usize = 48;

/// A direction along which nothing varies is taken to vary by this.
const DEVIATION_MIN: f64 = 1e-6;

/// Patches of a tensor, row after row.
#[derive(Debug)]
pub(super) struct Patches {
    width: usize,
    rows: Vec<f32>,
}

/// What patches have in common.
#[derive(Debug)]
pub(super) struct Principal {
    /// Orthonormal directions, `width` numbers each, the widest first.
    pub(super) components: Vec<f64>,
    /// How much patches vary along them.
    pub(super) deviations: Vec<f64>,
    pub(super) mean: Vec<f64>,
}

impl Patches {
    pub(super) fn new(width: usize) -> Self {
        Self { width, rows: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    /// Takes up to `most` patches of each example, evenly spread.
    pub(super) fn take(&mut self, coder: &Coder, tensor: &Tensor, most: usize) -> Option<()> {
        let (values, shape) = (tensor.as_f32()?, tensor.shape());
        let examples = *shape.first()?;
        let per = values.len().checked_div(examples)?;
        let count = per / self.width;
        let chosen = most.min(count);
        for example in values.chunks_exact(per.max(1)) {
            for patch in (0..chosen).map(|i| i * count / chosen) {
                match (coder.form, shape) {
                    (Form::Places { side }, &[_, channels, height, across]) => {
                        let side = side as usize;
                        let (down, right) = (patch / (across / side) * side, patch % (across / side) * side);
                        for channel in 0..channels {
                            for row in down..down + side {
                                let from = (channel * height + row) * across + right;
                                self.rows.extend_from_slice(&example[from..from + side]);
                            }
                        }
                    }
                    _ => self.rows.extend_from_slice(&example[patch * self.width..(patch + 1) * self.width]),
                }
            }
        }
        Some(())
    }

    /// The first `count` principal components.
    pub(super) fn principal(&self, count: usize, seed: u64) -> Principal {
        let (width, rows) = (self.width, self.len().max(1) as f64);
        let mut mean = vec![0f64; width];
        for row in self.rows.chunks_exact(width) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / rows);
        }
        let mut covariance = vec![0f64; width * width];
        let mut centred = vec![0f64; width];
        for row in self.rows.chunks_exact(width) {
            centred.iter_mut().zip(row).zip(&mean).for_each(|((c, x), m)| *c = f64::from(*x) - m);
            for (i, line) in covariance.chunks_exact_mut(width).enumerate() {
                let x = centred[i] / rows;
                if x != 0.0 {
                    line[..=i].iter_mut().zip(&centred).for_each(|(sum, y)| *sum += x * y);
                }
            }
        }
        for i in 0..width {
            for j in 0..i {
                covariance[j * width + i] = covariance[i * width + j];
            }
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut components: Vec<f64> = (0..count * width).map(|_| rng.f64() - 0.5).collect();
        orthonormal(&mut components, width);
        for _ in 0..ROUNDS {
            components = components.chunks_exact(width).flat_map(|v| product(&covariance, v)).collect();
            orthonormal(&mut components, width);
        }
        let along = |v: &[f64]| dot(&product(&covariance, v), v).max(0.0).sqrt().max(DEVIATION_MIN);
        let deviations = components.chunks_exact(width).map(along).collect();
        Principal { components, deviations, mean }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn product(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(vector.len()).map(|line| dot(line, vector)).collect()
}

/// Makes rows orthonormal, the first one first; a row that is nothing beside
/// those before it becomes zeros.
fn orthonormal(rows: &mut [f64], width: usize) {
    for at in 0..rows.len() / width {
        let (before, rest) = rows.split_at_mut(at * width);
        let row = &mut rest[..width];
        let length = dot(row, row).sqrt();
        // Twice is enough: what the first pass leaves is rounding.
        for _ in 0..2 {
            for other in before.chunks_exact(width) {
                let along = dot(row, other);
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let left = dot(row, row).sqrt();
        let scale = if left > 1e-10 * length.max(f64::MIN_POSITIVE) { 1.0 / left } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_of_a_known_covariance_are_found() {
        // Independent axes, turned by a known rotation: deviations 5, 2, 0.1.
        let (a, b) = (0.6f64, 0.8f64);
        let axes = [[a, b, 0.0], [-b, a, 0.0], [0.0, 0.0, 1.0]];
        let mut rng = fastrand::Rng::with_seed(4);
        let mut normal = || (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
        let mut patches = Patches::new(3);
        for _ in 0..20_000 {
            let z = [5.0 * normal(), 2.0 * normal(), 0.1 * normal()];
            let x = (0..3).map(|i| (7.0 + (0..3).map(|k| z[k] * axes[k][i]).sum::<f64>()) as f32);
            patches.rows.extend(x);
        }
        let found = patches.principal(2, 1);
        for (k, deviation) in [5.0, 2.0].into_iter().enumerate() {
            let along = dot(&found.components[k * 3..(k + 1) * 3], &axes[k]).abs();
            assert!(along > 0.999, "{k}: {found:?}");
            assert!((found.deviations[k] / deviation - 1.0).abs() < 0.03, "{found:?}");
        }
        assert!(found.mean.iter().all(|m| (m - 7.0).abs() < 0.2), "{found:?}");
    }

    #[test]
    fn more_directions_than_vary_stay_finite() {
        let patches = Patches { width: 3, rows: vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0] };
        let found = patches.principal(3, 1);
        assert!(found.components.iter().chain(&found.deviations).all(|v| v.is_finite()), "{found:?}");
        assert_eq!(found.mean, [1.0, 2.0, 3.0]);
    }
}
