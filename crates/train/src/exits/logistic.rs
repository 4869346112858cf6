//! A logistic layer, fitted by Newton's method on standardised features.

use super::solve::Symmetric;

/// Steps; it settles in fewer.
const STEPS_MAX: usize = 25;

/// Pull of every weight towards zero, for each row.
const PENALTY: f64 = 1e-3;

/// Rows to learn from.
pub(super) struct Logistic {
    width: usize,
    rows: Vec<f32>,
    yes: Vec<bool>,
}

impl Logistic {
    pub(super) fn new(width: usize) -> Self {
        Self { width, rows: Vec::new(), yes: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.yes.len()
    }

    pub(super) fn learn(&mut self, row: Vec<f32>, yes: bool) {
        // A row with what is no number teaches nothing.
        if row.len() == self.width && row.iter().all(|x| x.is_finite()) {
            self.rows.extend(row);
            self.yes.push(yes);
        }
    }

    /// Weights and bias of the score whose logistic is the probability of yes.
    pub(super) fn solve(&self) -> (Vec<f64>, f64) {
        let (width, count) = (self.width, self.yes.len() as f64);
        if self.yes.is_empty() {
            return (vec![0.0; width], 0.0);
        }
        let rows = || self.rows.chunks_exact(width);
        let (mut mean, mut spread) = (vec![0.0; width], vec![0.0; width]);
        rows().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / count));
        for row in rows() {
            spread.iter_mut().zip(row).zip(&mean).for_each(|((s, x), m)| *s += (f64::from(*x) - m).powi(2) / count);
        }
        let scale: Vec<f64> = spread.iter().map(|s| if *s > 1e-12 { 1.0 / s.sqrt() } else { 0.0 }).collect();
        // Standardised weights, the bias last. All yes or all no has no finite
        // fit but for the penalty, which the bias has as well.
        let mut weights = vec![0.0; width + 1];
        let mut x = vec![1.0; width + 1];
        for _ in 0..STEPS_MAX {
            let mut hessian = Symmetric::new(width + 1);
            let mut gradient: Vec<f64> = weights.iter().map(|w| -PENALTY * count * w).collect();
            for (row, yes) in rows().zip(&self.yes) {
                for (i, value) in row.iter().enumerate() {
                    x[i] = (f64::from(*value) - mean[i]) * scale[i];
                }
                let score: f64 = x.iter().zip(&weights).map(|(x, w)| x * w).sum();
                let p = 1.0 / (1.0 + (-score).exp());
                hessian.add(&x, (p * (1.0 - p)).max(1e-9));
                let error = f64::from(u8::from(*yes)) - p;
                gradient.iter_mut().zip(&x).for_each(|(g, x)| *g += error * x);
            }
            (0..=width).for_each(|i| hessian.add_to_diagonal(i, PENALTY * count));
            let Some(factor) = hessian.factored() else { break };
            let step = factor.solved(&gradient);
            let most = step.iter().fold(0.0f64, |most, s| most.max(s.abs()));
            // A long step may overshoot where nearly all agree.
            let damp = if most > 4.0 { 4.0 / most } else { 1.0 };
            weights.iter_mut().zip(&step).for_each(|(w, s)| *w += damp * s);
            if most < 1e-6 {
                break;
            }
        }
        let mut bias = weights[width];
        let weights = (0..width).map(|i| weights[i] * scale[i]).collect::<Vec<_>>();
        bias -= weights.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>();
        (weights, bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odds_are_found_again() {
        let mut rng = fastrand::Rng::with_seed(9);
        let mut fit = Logistic::new(3);
        for _ in 0..20_000 {
            let (a, b) = (rng.f32() * 4.0 - 2.0, rng.f32() * 100.0);
            let p = 1.0 / (1.0 + (-(1.5 * f64::from(a) - 0.03 * f64::from(b) + 1.0)).exp());
            fit.learn(vec![a, b, 5.0], rng.f64() < p);
        }
        let (w, bias) = fit.solve();
        assert!((w[0] - 1.5).abs() < 0.1 && (w[1] + 0.03).abs() < 0.003 && w[2] == 0.0, "{w:?}");
        assert!((bias - 1.0).abs() < 0.15, "{bias}");
    }

    #[test]
    fn one_answer_only_stays_finite() {
        let mut fit = Logistic::new(1);
        (0..50).for_each(|i| fit.learn(vec![i as f32], true));
        fit.learn(vec![f32::NAN], false);
        let (w, bias) = fit.solve();
        assert!(w[0].is_finite() && bias.is_finite() && w[0] * 25.0 + bias > 1.0, "{w:?} {bias}");
        assert_eq!(Logistic::new(2).solve(), (vec![0.0, 0.0], 0.0));
    }
}
