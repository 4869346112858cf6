//! Ridge regression of one-hot classes on features, then a temperature.

use super::solve::Symmetric;

/// Penalties tried, as shares of a feature's variance.
const PENALTIES: [f64; 5] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1];

/// Rows held out to choose by, at most.
const HELD_OUT_MAX: usize = 5_000;

/// Sums over the rows seen so far.
pub(super) struct Ridge {
    width: usize,
    classes: usize,
    /// Of features and a one behind them.
    gram: Symmetric,
    /// Of features and a one, with each class: `[width + 1, classes]`.
    cross: Vec<f64>,
    rows: usize,
    held_out: Vec<(Vec<f32>, usize)>,
    /// The last rows learned from, where none are held out.
    last: Vec<(Vec<f32>, usize)>,
    row: Vec<f64>,
}

impl Ridge {
    pub(super) fn new(width: usize, classes: usize) -> Self {
        Self {
            width,
            classes,
            gram: Symmetric::new(width + 1),
            cross: vec![0.0; (width + 1) * classes],
            rows: 0,
            held_out: Vec::new(),
            last: Vec::new(),
            row: vec![1.0; width + 1],
        }
    }

    pub(super) fn learn(&mut self, features: &[f32], class: usize) {
        self.row.iter_mut().zip(features).for_each(|(x, f)| *x = f64::from(*f));
        self.gram.add(&self.row, 1.0);
        for (i, x) in self.row.iter().enumerate() {
            self.cross[i * self.classes + class] += x;
        }
        self.rows += 1;
        if self.last.len() < HELD_OUT_MAX {
            self.last.push((features.to_vec(), class));
        }
    }

    pub(super) fn hold_out(&mut self, features: &[f32], class: usize) {
        if self.held_out.len() < HELD_OUT_MAX {
            self.held_out.push((features.to_vec(), class));
        }
    }

    /// Weights `[width, classes]` and biases of logits; `None` where nothing
    /// was learned from.
    pub(super) fn solve(self) -> Option<(Vec<f64>, Vec<f64>)> {
        if self.rows == 0 {
            return None;
        }
        let judges = if self.held_out.is_empty() { &self.last } else { &self.held_out };
        let mut best: Option<(f64, f64, Vec<f64>)> = None;
        for penalty in PENALTIES {
            let Some(weights) = self.weights(penalty) else { continue };
            let scores: Vec<(Vec<f64>, usize)> =
                judges.iter().map(|(row, class)| (self.scores(&weights, row), *class)).collect();
            let (scale, loss) = scale(&scores);
            if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
                best = Some((loss, scale, weights));
            }
        }
        let (_, scale, mut weights) = best?;
        weights.iter_mut().for_each(|w| *w *= scale);
        let bias = weights.split_off(self.width * self.classes);
        Some((weights, bias))
    }

    fn weights(&self, penalty: f64) -> Option<Vec<f64>> {
        let (width, rows) = (self.width, self.rows as f64);
        let variance = |i: usize| {
            let mean = self.gram.at(i, width) / rows;
            (self.gram.at(i, i) / rows - mean * mean).max(0.0)
        };
        let most = (0..width).map(variance).fold(0.0, f64::max);
        let mut gram = self.gram.clone();
        for i in 0..width {
            // A feature that never changes gets no weight.
            let own = variance(i);
            let floor = if most > 0.0 { most * 1e-6 } else { 1.0 };
            gram.add_to_diagonal(i, rows * (penalty * own + floor));
        }
        gram.add_to_diagonal(width, rows * 1e-9);
        let factor = gram.factored()?;
        let mut weights = vec![0.0; (width + 1) * self.classes];
        for class in 0..self.classes {
            let right: Vec<f64> = (0..=width).map(|i| self.cross[i * self.classes + class]).collect();
            for (i, value) in factor.solved(&right).into_iter().enumerate() {
                weights[i * self.classes + class] = value;
            }
        }
        Some(weights)
    }

    fn scores(&self, weights: &[f64], row: &[f32]) -> Vec<f64> {
        let mut scores = weights[self.width * self.classes..].to_vec();
        for (x, line) in row.iter().zip(weights.chunks_exact(self.classes)) {
            scores.iter_mut().zip(line).for_each(|(sum, w)| *sum += f64::from(*x) * w);
        }
        scores
    }
}

/// What scores are multiplied by so that their softmax fits the classes best
/// (an inverse temperature: Guo 2017), and the loss then.
fn scale(scores: &[(Vec<f64>, usize)]) -> (f64, f64) {
    let loss = |scale: f64| {
        let of = |(scores, class): &(Vec<f64>, usize)| {
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| ((s - most) * scale).exp()).sum();
            sum.ln() - (scores[*class] - most) * scale
        };
        scores.iter().map(of).sum::<f64>() / scores.len().max(1) as f64
    };
    // The loss is convex in the scale: thirds of the range close in on it.
    let (mut low, mut high) = (0.1f64.ln(), 1_000f64.ln());
    for _ in 0..60 {
        let third = (high - low) / 3.0;
        if loss((low + third).exp()) <= loss((high - third).exp()) {
            high -= third;
        } else {
            low += third;
        }
    }
    let scale = f64::midpoint(low, high).exp();
    (scale, loss(scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plane_tells_apart_is_told_apart_and_probabilities_are_honest() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut ridge = Ridge::new(3, 2);
        let draw = |rng: &mut fastrand::Rng| {
            let x: Vec<f32> = (0..2).map(|_| rng.f32() * 2.0 - 1.0).chain([7.0]).collect();
            let true_p = 1.0 / (1.0 + f64::from(-4.0 * (x[0] + 0.5 * x[1])).exp());
            let class = usize::from(rng.f64() < true_p);
            (x, class, true_p.max(1.0 - true_p))
        };
        for i in 0..4_000 {
            let (x, class, _) = draw(&mut rng);
            if i % 10 == 0 { ridge.hold_out(&x, class) } else { ridge.learn(&x, class) }
        }
        let (weights, bias) = ridge.solve().unwrap();
        let (mut groups, mut best) = ([(0.0, 0.0, 0.0); 4], 0.0);
        for _ in 0..20_000 {
            let (x, class, most) = draw(&mut rng);
            best += most / 20_000.0;
            let score = |c: usize| bias[c] + (0..3).map(|i| f64::from(x[i]) * weights[i * 2 + c]).sum::<f64>();
            let p = 1.0 / (1.0 + (score(0) - score(1)).exp());
            let (sure, right) = if p >= 0.5 { (p, class == 1) } else { (1.0 - p, class == 0) };
            let group = &mut groups[(((sure - 0.5) * 8.0) as usize).min(3)];
            *group = (group.0 + 1.0, group.1 + sure, group.2 + f64::from(u8::from(right)));
        }
        let all: f64 = groups.iter().map(|g| g.2).sum::<f64>() / 20_000.0;
        // Nobody can know more than the probabilities that were drawn by.
        assert!((all - best).abs() < 0.015, "{all} {best}");
        let error: f64 = groups.iter().map(|g| (g.1 - g.2).abs()).sum::<f64>() / 20_000.0;
        assert!(error < 0.05, "{error} {groups:?}");
        assert!(Ridge::new(2, 2).solve().is_none());
    }
}
