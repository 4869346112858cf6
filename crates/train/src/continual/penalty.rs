//! Weights that are held: half the sum over weights of stiffness times squared
//! distance from an anchor, and how stiffness is found.

use serde::{Deserialize, Serialize};

use super::Labels;
use super::settings::within;
use crate::error::TrainError;
use crate::trainer::Flat;

/// Elastic weight consolidation (Kirkpatrick et al., 2017): stiffness is the
/// diagonal of the Fisher information behind each task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ewc {
    /// What the penalty weighs beside the loss.
    pub lambda: f64,
    /// What becomes of the penalties of several tasks.
    pub variant: Variant,
    /// Of the information of earlier tasks, the share that is kept behind each
    /// later one, where it is one penalty.
    pub decay: f64,
    /// Examples whose gradients are squared, at most.
    pub examples: usize,
    /// Whose classes the gradients are of.
    pub labels: Labels,
}

/// What becomes of the penalties of several tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Each task pulls to where it ended. Their sum is one quadratic, and that
    /// is what is kept.
    #[default]
    Separate,
    /// One penalty that pulls to where the last task ended, of all tasks'
    /// information (Schwarz et al., 2018).
    Online,
}

impl Default for Ewc {
    fn default() -> Self {
        Self { lambda: 100.0, variant: Variant::Separate, decay: 1.0, examples: 1_000, labels: Labels::Sampled }
    }
}

/// Synaptic intelligence (Zenke et al., 2017): stiffness is how much of the
/// loss's fall a weight brought, over the square of how far it went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Si {
    /// What the penalty weighs beside the loss.
    pub strength: f64,
    /// Added to squared distances, which keeps quotients finite.
    pub damping: f64,
}

impl Default for Si {
    fn default() -> Self {
        Self { strength: 0.1, damping: 1e-3 }
    }
}

impl Ewc {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        within(
            "continual.ewc.lambda",
            self.lambda,
            (0.0..=1e15).contains(&self.lambda),
            "at least 0 and at most 1e15",
        )?;
        within("continual.ewc.decay", self.decay, (0.0..=1.0).contains(&self.decay), "at least 0 and at most 1")?;
        let examples = self.examples;
        within("continual.ewc.examples", examples as f64, (1..=1 << 24).contains(&examples), "1 to 2^24")
    }
}

impl Si {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let strength = self.strength;
        within("continual.si.strength", strength, (0.0..=1e15).contains(&strength), "at least 0 and at most 1e15")?;
        within("continual.si.damping", self.damping, self.damping > 0.0, "above 0 and finite")
    }
}

/// How strongly weights are held, and to where.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Penalty {
    /// At least 0.
    pub stiffness: Flat,
    /// Of the same weights.
    pub anchor: Flat,
}

impl Penalty {
    /// The sum of both, which is again of this form but for a constant. Where
    /// nothing is held, the anchor is the other's.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (name, stiffness) in &other.stiffness {
            let anchor = other.anchor.get(name).map_or(&[][..], Vec::as_slice);
            match (sum.stiffness.get_mut(name), sum.anchor.get_mut(name)) {
                (Some(own), Some(to)) if own.len() == stiffness.len() && anchor.len() == own.len() => {
                    for (((own, to), add), other) in own.iter_mut().zip(to).zip(stiffness).zip(anchor) {
                        let (a, b) = (f64::from(*own), f64::from(*add));
                        let whole = a + b;
                        // Both ends of the way are finite, and so is what is between.
                        let share = if whole > 0.0 { (b / whole).clamp(0.0, 1.0) } else { 1.0 };
                        *to = (f64::from(*to) + share * (f64::from(*other) - f64::from(*to))) as f32;
                        *own = bounded(whole);
                    }
                }
                _ => {
                    sum.stiffness.insert(name.clone(), stiffness.clone());
                    sum.anchor.insert(name.clone(), anchor.to_vec());
                }
            }
        }
        sum
    }

    /// The same, so many times as stiff.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        let scale = |values: &Vec<f32>| values.iter().map(|&x| bounded(factor * f64::from(x))).collect();
        let stiffness = self.stiffness.iter().map(|(name, values)| (name.clone(), scale(values))).collect();
        Self { stiffness, anchor: self.anchor.clone() }
    }

    /// Behind a task that ended at `weights`: what is held from now on.
    #[must_use]
    pub(crate) fn behind(self, settings: &Ewc, fisher: Flat, weights: &Flat) -> Self {
        let anchor: Flat = fisher.keys().filter_map(|name| Some((name.clone(), weights.get(name)?.clone()))).collect();
        let new = Self { stiffness: fisher, anchor };
        match settings.variant {
            Variant::Separate => self.plus(&new),
            Variant::Online => {
                let mut sum = self.times(settings.decay).plus(&new);
                for (name, anchor) in &mut sum.anchor {
                    if let Some(now) = weights.get(name).filter(|now| now.len() == anchor.len()) {
                        anchor.clone_from(now);
                    }
                }
                sum
            }
        }
    }

    /// What it adds to a loss at `weights`.
    #[must_use]
    pub fn value(&self, weights: &Flat) -> f64 {
        let each = |(name, stiffness): (&String, &Vec<f32>)| {
            let (Some(anchor), Some(now)) = (self.anchor.get(name), weights.get(name)) else { return 0.0 };
            let rows = stiffness.iter().zip(anchor).zip(now);
            rows.map(|((&s, &a), &w)| f64::from(s) * (f64::from(w) - f64::from(a)).powi(2)).sum::<f64>()
        };
        0.5 * self.stiffness.iter().map(each).sum::<f64>()
    }

    /// Bytes of what is kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let numbers = |flat: &Flat| flat.values().map(|v| 4 * v.len() as u64).sum::<u64>();
        numbers(&self.stiffness) + numbers(&self.anchor)
    }
}

/// The stiffness of weights that moved by `moves` while what they brought added
/// up to `path` (Zenke et al., 2017), more than they had before: `omega + path /
/// (moves^2 + damping)`, at least 0.
#[must_use]
pub fn importance(omega: &[f32], path: &[f32], moves: &[f32], damping: f64) -> Vec<f32> {
    let rows = path.iter().zip(moves).enumerate();
    let each = rows.map(|(at, (&path, &moved))| {
        let before = omega.get(at).copied().map_or(0.0, f64::from);
        bounded(before + f64::from(path) / (f64::from(moved).powi(2) + damping))
    });
    each.collect()
}

/// A stiffness in single precision: finite, and never one that pushes away.
fn bounded(stiffness: f64) -> f32 {
    if stiffness.is_nan() { 0.0 } else { stiffness.clamp(0.0, STIFFNESS_MAX) as f32 }
}

/// Weights held so don't move in single precision, and products stay finite.
pub(super) const STIFFNESS_MAX: f64 = 1e18;

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(values: &[f32]) -> Flat {
        [("w".to_owned(), values.to_vec())].into()
    }

    fn penalty(stiffness: &[f32], anchor: &[f32]) -> Penalty {
        Penalty { stiffness: flat(stiffness), anchor: flat(anchor) }
    }

    #[test]
    fn a_sum_of_penalties_is_one_but_for_a_constant() {
        let (a, b) = (penalty(&[1.0, 0.0, 2.0], &[1.0, 5.0, -1.0]), penalty(&[3.0, 0.0, 0.0], &[-1.0, 7.0, 4.0]));
        let sum = a.plus(&b);
        assert_eq!(sum, penalty(&[4.0, 0.0, 2.0], &[-0.5, 7.0, -1.0]));
        let apart = |at: &Flat| a.value(at) + b.value(at) - sum.value(at);
        let (here, there) = (flat(&[0.3, 2.0, 8.0]), flat(&[-4.0, 0.0, 1.0]));
        assert!((apart(&here) - apart(&there)).abs() < 1e-9);
    }

    #[test]
    fn nothing_is_held_by_what_knows_nothing() {
        let none = Penalty::default();
        let some = penalty(&[1.0], &[2.0]);
        assert_eq!(none.plus(&some), some);
        assert_eq!(some.plus(&none), some);
        assert_eq!(none.value(&flat(&[3.0])), 0.0);
        assert_eq!(penalty(&[0.0], &[2.0]).value(&flat(&[9.0])), 0.0);
    }

    #[test]
    fn importance_is_never_negative_nor_infinite() {
        let of = |path: f32, moved: f32| importance(&[0.5], &[path], &[moved], 0.25)[0];
        assert_eq!(of(1.0, 0.5), 2.5);
        assert_eq!(of(0.0, 0.0), 0.5);
        assert_eq!(of(-1.0, 0.0), 0.0);
        assert_eq!(of(f32::NAN, 0.0), 0.0);
        assert_eq!(of(f32::INFINITY, 0.0), STIFFNESS_MAX as f32);
    }

    #[test]
    fn one_penalty_of_all_tasks_pulls_to_the_last() {
        let settings = Ewc { variant: Variant::Online, decay: 0.5, ..Ewc::default() };
        let kept = Penalty::default().behind(&settings, flat(&[4.0, 0.0]), &flat(&[1.0, 1.0]));
        let kept = kept.behind(&settings, flat(&[1.0, 1.0]), &flat(&[3.0, -2.0]));
        assert_eq!(kept, penalty(&[3.0, 1.0], &[3.0, -2.0]));
    }
}
