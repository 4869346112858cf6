//! Solves symmetric positive definite systems in f64.

/// A symmetric matrix, row after row.
#[derive(Debug, Clone)]
pub(super) struct Symmetric {
    pub(super) size: usize,
    pub(super) values: Vec<f64>,
}

impl Symmetric {
    pub(super) fn new(size: usize) -> Self {
        Self { size, values: vec![0.0; size * size] }
    }

    /// Adds `weight * row * row'`, the lower half.
    pub(super) fn add(&mut self, row: &[f64], weight: f64) {
        for (i, &x) in row.iter().enumerate() {
            let x = x * weight;
            if x != 0.0 {
                let line = &mut self.values[i * self.size..i * self.size + i + 1];
                line.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
            }
        }
    }

    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i.max(j) * self.size + i.min(j)]
    }

    pub(super) fn add_to_diagonal(&mut self, i: usize, value: f64) {
        self.values[i * self.size + i] += value;
    }

    /// The lower factor of Cholesky's decomposition, in place; `None` where
    /// the matrix isn't positive definite.
    pub(super) fn factored(mut self) -> Option<Self> {
        let n = self.size;
        for i in 0..n {
            for j in 0..=i {
                let (upper, lower) = self.values.split_at(i * n);
                let row_j = if j == i { &lower[..j] } else { &upper[j * n..j * n + j] };
                let dot: f64 = lower[..j].iter().zip(row_j).map(|(a, b)| a * b).sum();
                let rest = lower[j] - dot;
                let value = if i == j {
                    if rest.is_nan() || rest <= 0.0 {
                        return None;
                    }
                    rest.sqrt()
                } else {
                    rest / upper[j * n + j]
                };
                self.values[i * n + j] = value;
            }
        }
        Some(self)
    }

    /// Solves for one right side, of a factor.
    pub(super) fn solved(&self, right: &[f64]) -> Vec<f64> {
        let n = self.size;
        let mut x = right.to_vec();
        for i in 0..n {
            let dot: f64 = self.values[i * n..i * n + i].iter().zip(&x).map(|(a, b)| a * b).sum();
            x[i] = (x[i] - dot) / self.values[i * n + i];
        }
        for i in (0..n).rev() {
            x[i] /= self.values[i * n + i];
            let own = x[i];
            for (j, value) in x[..i].iter_mut().enumerate() {
                *value -= self.values[i * n + j] * own;
            }
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solution_gives_the_right_side() {
        let mut rng = fastrand::Rng::with_seed(1);
        for n in [1, 2, 7, 30] {
            let mut matrix = Symmetric::new(n);
            for _ in 0..n + 3 {
                let row: Vec<f64> = (0..n).map(|_| rng.f64() - 0.5).collect();
                matrix.add(&row, 1.0 + rng.f64());
            }
            let right: Vec<f64> = (0..n).map(|_| rng.f64()).collect();
            let x = matrix.clone().factored().unwrap().solved(&right);
            for (i, wanted) in right.iter().enumerate() {
                let found: f64 = (0..n).map(|j| matrix.at(i, j) * x[j]).sum();
                assert!((found - wanted).abs() < 1e-8, "{n}: {found} {wanted}");
            }
        }
        assert!(Symmetric::new(2).factored().is_none());
    }
}
