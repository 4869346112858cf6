//! How much longer do models take than was measured of them? From the stages
//! of requests that were answered.
//!
//! A profile is measured while a device does nothing else; requests come when
//! others compute there as well, or the device is hot. Per model and tier, the
//! ratio of a stage's time to its prediction is followed: the median of the
//! last [`SAMPLES`], on logarithms, so that one slow answer changes nothing.
//! It is believed from [`SAMPLES_MIN`] answers on, and only within
//! [`RATIO_MAX`].
//!
//! **Forgetting.** A tier that was slow gets no requests, so nobody would see
//! that it is fast again: what is known of it is worth half as much after each
//! [`HALF_LIFE`] without an answer.
//!
//! **Steps.** Ratios are told in steps of [`STEP`]: whoever plans with them has
//! nothing to do while they only tremble.
//!
//! Pure: told the time. Start at [`Calibration`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tierline_proto::Digest;

use crate::time::Time;

/// Answers that count, the last ones.
pub const SAMPLES: usize = 5;

/// Answers from which on a ratio is believed.
pub const SAMPLES_MIN: usize = 3;

/// Largest ratio, and the inverse of the smallest: beyond it something else is
/// wrong than a profile.
pub const RATIO_MAX: f64 = 8.0;

/// Age of the last answer at which a ratio is worth half as much.
pub const HALF_LIFE: Duration = Duration::from_secs(60);

/// Worth less than this, older answers don't count beside a new one.
const FORGOTTEN: f64 = 0.1;

/// Of a ratio's logarithm: 5 %.
pub const STEP: f64 = 0.05;

/// Models and tiers that are followed; beyond it the one not heard of for the
/// longest is forgotten.
pub const FOLLOWED_MAX: usize = 1_024;

/// A model on a tier, by the tier's name.
type Key = (Digest, String);

/// Ratios of measured to predicted times, by model and tier; a missing one
/// is 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ratios(BTreeMap<Key, f64>);

impl Ratios {
    /// So many times longer does the model take there.
    #[must_use]
    pub fn of(&self, model: Digest, tier: &str) -> f64 {
        if self.0.is_empty() { 1.0 } else { self.0.get(&(model, tier.to_owned())).copied().unwrap_or(1.0) }
    }

    /// Whether those of a model differ from others by more than a tremble.
    #[must_use]
    pub fn differ(&self, others: &Self, model: Digest) -> bool {
        /// Two steps.
        const TREMBLE: f64 = 2.5 * STEP;
        let tiers = self.0.keys().chain(others.0.keys()).filter(|(of, _)| *of == model).map(|(_, tier)| tier);
        let mut apart = tiers.map(|tier| (self.of(model, tier) / others.of(model, tier)).ln().abs());
        apart.any(|apart| apart > TREMBLE)
    }
}

#[derive(Debug)]
struct Followed {
    /// Logarithms of ratios, the oldest first.
    samples: VecDeque<f64>,
    last: Time,
}

/// What is known of models and tiers.
#[derive(Debug, Default)]
pub struct Calibration {
    followed: BTreeMap<Key, Followed>,
}

impl Calibration {
    /// A stage that was predicted to compute for `predicted` took `measured`.
    pub fn observe(&mut self, now: Time, model: Digest, tier: &str, predicted: Duration, measured: Duration) {
        if predicted.is_zero() || measured.is_zero() {
            return;
        }
        let key = (model, tier.to_owned());
        if self.followed.len() >= FOLLOWED_MAX && !self.followed.contains_key(&key) {
            let oldest = self.followed.iter().min_by_key(|(_, followed)| followed.last).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.followed.remove(&oldest);
            }
        }
        let followed = self.followed.entry(key).or_insert_with(|| Followed { samples: VecDeque::new(), last: now });
        if faded(now, followed.last) < FORGOTTEN {
            followed.samples.clear();
        }
        if followed.samples.len() == SAMPLES {
            followed.samples.pop_front();
        }
        let ratio = measured.as_secs_f64() / predicted.as_secs_f64();
        followed.samples.push_back(ratio.ln().clamp(-RATIO_MAX.ln(), RATIO_MAX.ln()));
        followed.last = now;
    }

    /// Forgets a model: it is gone, or was measured anew.
    pub fn forget(&mut self, model: Digest) {
        self.followed.retain(|(of, _), _| *of != model);
    }

    /// What the ratios are now.
    #[must_use]
    pub fn ratios(&self, now: Time) -> Ratios {
        let ratio = |followed: &Followed| {
            let log = median(&followed.samples)? * faded(now, followed.last);
            let steps = (log / STEP).round();
            (steps != 0.0).then(|| (steps * STEP).exp())
        };
        Ratios(self.followed.iter().filter_map(|(key, followed)| Some((key.clone(), ratio(followed)?))).collect())
    }
}

/// What is left of what was known at `last`, 1 to 0.
fn faded(now: Time, last: Time) -> f64 {
    0.5f64.powf(now.since(last).as_secs_f64() / HALF_LIFE.as_secs_f64())
}

fn median(samples: &VecDeque<f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    (sorted.len() >= SAMPLES_MIN).then(|| sorted[sorted.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(s: u64) -> Time {
        Time::ZERO + Duration::from_secs(s)
    }

    fn model(byte: u8) -> Digest {
        Digest([byte; 32])
    }

    /// Answers, one a second, of a stage predicted to take 100 ms.
    fn seen(measured_ms: &[u64]) -> (Calibration, Time) {
        let mut calibration = Calibration::default();
        let mut now = at(100);
        for (i, ms) in measured_ms.iter().enumerate() {
            now = at(100 + i as u64);
            calibration.observe(now, model(1), "end", 100 * MS, MS * *ms as u32);
        }
        (calibration, now)
    }

    fn ratio(measured_ms: &[u64]) -> f64 {
        let (calibration, now) = seen(measured_ms);
        calibration.ratios(now).of(model(1), "end")
    }

    #[test]
    fn a_device_that_is_slower_than_when_it_was_measured_is_found_out() {
        let slow = ratio(&[180, 190, 175, 185]);
        assert!((1.75..1.95).contains(&slow), "{slow}");
        let fast = ratio(&[60, 61, 59]);
        assert!((0.57..0.64).contains(&fast), "{fast}");
    }

    #[test]
    fn few_answers_small_differences_and_single_slow_answers_change_nothing() {
        assert_eq!(ratio(&[400, 400]), 1.0);
        assert_eq!(ratio(&[102, 99, 101, 100]), 1.0);
        assert_eq!(ratio(&[100, 100, 9_000, 100, 100]), 1.0);
        assert_eq!(ratio(&[0, 0, 0, 0]), 1.0, "nothing was measured");
    }

    #[test]
    fn no_ratio_leaves_its_bounds() {
        let steps = |x: f64| ((x.ln() / STEP).round() * STEP).exp();
        assert_eq!(ratio(&[60_000; 5]), steps(RATIO_MAX));
        assert_eq!(ratio(&[1; 5]), steps(1.0 / RATIO_MAX));
    }

    #[test]
    fn a_change_is_followed_within_as_many_answers_as_are_kept() {
        let mut ms = vec![100; SAMPLES];
        ms.extend([200; SAMPLES / 2 + 1]);
        assert!(ratio(&ms) > 1.9, "{}", ratio(&ms));
    }

    #[test]
    fn what_nobody_sees_is_forgotten_by_and_by() {
        let (calibration, now) = seen(&[400; 5]);
        let after = |s: u64| calibration.ratios(now + Duration::from_secs(s)).of(model(1), "end");
        assert!((3.8..4.2).contains(&after(0)), "{}", after(0));
        assert!((1.9..2.1).contains(&after(60)), "{}", after(60));
        assert_eq!(after(600), 1.0);
        let (mut calibration, _) = seen(&[400; SAMPLES]);
        for i in 0..SAMPLES_MIN as u64 {
            calibration.observe(at(1_000 + i), model(1), "end", 100 * MS, 100 * MS);
        }
        assert_eq!(calibration.ratios(at(1_003)).of(model(1), "end"), 1.0, "it begins anew");
    }

    #[test]
    fn models_and_tiers_are_told_apart_and_forgotten_with_their_profiles() {
        let (mut calibration, now) = seen(&[300; 3]);
        let ratios = calibration.ratios(now);
        assert_eq!((ratios.of(model(2), "end"), ratios.of(model(1), "edge")), (1.0, 1.0));
        calibration.forget(model(2));
        assert_eq!(calibration.ratios(now), ratios);
        calibration.forget(model(1));
        assert_eq!(calibration.ratios(now), Ratios::default());
    }

    #[test]
    fn however_many_tiers_are_named_memory_is_bounded() {
        let mut calibration = Calibration::default();
        for i in 0..3 * FOLLOWED_MAX as u64 {
            calibration.observe(at(i), model(1), &format!("node-{i}"), MS, 3 * MS);
        }
        assert_eq!(calibration.followed.len(), FOLLOWED_MAX);
    }
}
