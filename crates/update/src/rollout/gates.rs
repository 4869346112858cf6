//! Gates: whether devices that run the new version do as well as they should.
//!
//! Each measure passes, holds or is breached. Without the data that it asks
//! for a measure holds; it never passes.

use serde::{Deserialize, Serialize};

use super::spec::{setting, share};
use super::{Health, RolloutError, Seconds};

/// What a wave must show before the next one begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Seconds that a wave is watched, once its devices have settled.
    pub window_s: Seconds,
    /// Seconds after which a gate that still holds is taken for an error; it
    /// holds for ever when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_max_s: Option<Seconds>,
    /// Devices that must have run the new version.
    pub devices_min: u64,
    /// Requests that the new version must have run, over all devices.
    pub runs_min: u64,
    /// Requests that may fail, as a share.
    pub errors_max: f64,
    /// The 95th percentile of latency over that of the old version on the same
    /// devices, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p95_ratio_max: Option<f64>,
    /// The same of the 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p99_ratio_max: Option<f64>,
    /// The 95th percentile of latency, milliseconds, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p95_max_ms: Option<f64>,
    /// Accuracy, as a share, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_min: Option<f64>,
    /// How much of the old version's accuracy on the same devices may be lost,
    /// as a share of all samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_drop_max: Option<f64>,
    /// Labelled samples that a measure of accuracy asks for, of each version.
    pub accuracy_samples_min: u64,
    /// Whether samples that a teacher labelled count as labelled.
    pub pseudo_labels: bool,
    /// The drift score, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift_max: Option<f64>,
    /// Samples that the drift score must be made of.
    pub drift_samples_min: u64,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            window_s: Seconds::of(60.0),
            hold_max_s: None,
            devices_min: 1,
            runs_min: 100,
            errors_max: 0.01,
            latency_p95_ratio_max: None,
            latency_p99_ratio_max: None,
            latency_p95_max_ms: None,
            accuracy_min: None,
            accuracy_drop_max: None,
            accuracy_samples_min: 100,
            pseudo_labels: false,
            drift_max: None,
            drift_samples_min: 100,
        }
    }
}

/// What a gate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All measures are within their bounds.
    Pass,
    /// There isn't enough to tell; what is missing.
    Hold(String),
    /// A measure is out of bounds; which.
    Breach(String),
}

/// What a gate looks at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Devices that ran the new version.
    pub devices: u64,
    /// How the new version did on all of them.
    pub new: Health,
    /// The same on those whose old version was measured too.
    pub paired_new: Health,
    /// How the old version did on those.
    pub paired_old: Health,
    /// How the old version did on all devices of the group, those that haven't
    /// got the new one included.
    pub old: Health,
}

/// Which health is compared with which.
struct Pair<'a> {
    new: &'a Health,
    old: &'a Health,
    /// Where both were measured, in words.
    place: &'static str,
}

impl Measured {
    /// The two versions on the same devices where that is enough to tell, else
    /// over all of the group.
    fn pair(&self, enough: impl Fn(&Health) -> bool) -> Pair<'_> {
        if enough(&self.paired_new) && enough(&self.paired_old) {
            return Pair { new: &self.paired_new, old: &self.paired_old, place: "on the same devices" };
        }
        Pair { new: &self.new, old: &self.old, place: "in the group" }
    }
}

impl Gate {
    /// Whether the numbers can be meant.
    ///
    /// # Errors
    /// [`RolloutError::Setting`].
    pub(super) fn check(&self, place: &str) -> Result<(), RolloutError> {
        for (key, least) in [
            ("devices_min", self.devices_min),
            ("runs_min", self.runs_min),
            ("accuracy_samples_min", self.accuracy_samples_min),
            ("drift_samples_min", self.drift_samples_min),
        ] {
            if !(1..=1 << 53).contains(&least) {
                return Err(setting(place, key, "a gate without data would pass; it is at least 1 and at most 2^53"));
            }
        }
        share(place, "errors_max", Some(self.errors_max))?;
        share(place, "accuracy_min", self.accuracy_min)?;
        share(place, "accuracy_drop_max", self.accuracy_drop_max)?;
        for (key, value) in [
            ("latency_p95_ratio_max", self.latency_p95_ratio_max),
            ("latency_p99_ratio_max", self.latency_p99_ratio_max),
            ("latency_p95_max_ms", self.latency_p95_max_ms),
        ] {
            if value.is_some_and(|v| !(v > 0.0 && v.is_finite())) {
                return Err(setting(place, key, "it is a number above 0"));
            }
        }
        if self.drift_max.is_some_and(|v| !(v >= 0.0 && v.is_finite())) {
            return Err(setting(place, "drift_max", "it is a number from 0 on"));
        }
        Ok(())
    }

    /// What the measures say now. A breach counts before the window is over, a
    /// pass only behind it, which is for the caller to wait for.
    #[must_use]
    pub fn judge(&self, measured: &Measured) -> Verdict {
        let mut hold = None;
        for verdict in self.verdicts(measured) {
            match verdict {
                Verdict::Pass => {}
                Verdict::Hold(_) => hold = hold.or(Some(verdict)),
                Verdict::Breach(_) => return verdict,
            }
        }
        hold.unwrap_or(Verdict::Pass)
    }

    /// What is missing of the old version to compare with: without it, no device
    /// is asked.
    #[must_use]
    pub fn lacks(&self, old: &Health) -> Option<String> {
        let held = |verdict| if let Verdict::Hold(reason) = verdict { Some(reason) } else { None };
        let ratios = self.latency_p95_ratio_max.or(self.latency_p99_ratio_max);
        let latency = ratios.and_then(|_| self.enough_latency("of the old version", old)).and_then(held);
        let accuracy =
            || self.accuracy_drop_max.and_then(|_| self.accuracy("of the old version", old).err()).and_then(held);
        latency.or_else(accuracy)
    }

    fn verdicts(&self, m: &Measured) -> Vec<Verdict> {
        let mut verdicts = vec![
            at_least("devices that ran the new version", m.devices, self.devices_min).unwrap_or(Verdict::Pass),
            at_least("requests that the new version ran", m.new.runs, self.runs_min).unwrap_or_else(|| {
                at_most("the share of requests that fail", m.new.errors as f64 / m.new.runs as f64, self.errors_max)
            }),
        ];
        let new_ms = |q| m.new.latency.quantile_ns(q).map(|ns| ns / 1e6);
        if let Some(max) = self.latency_p95_max_ms {
            verdicts.push(self.enough_latency("of the new version", &m.new).unwrap_or_else(|| {
                measured(new_ms(0.95), |ms| at_most("the 95th percentile of latency, in milliseconds,", ms, max))
            }));
        }
        for (q, name, max) in [
            (0.95, "the 95th percentile of latency over the old version's", self.latency_p95_ratio_max),
            (0.99, "the 99th percentile of latency over the old version's", self.latency_p99_ratio_max),
        ] {
            let Some(max) = max else { continue };
            let pair = m.pair(|health| health.latency.count() >= self.runs_min);
            let ratio = || Some(pair.new.latency.quantile_ns(q)? / pair.old.latency.quantile_ns(q)?);
            verdicts.push(
                self.enough_latency("of the new version", pair.new)
                    .or_else(|| self.enough_latency("of the old version", pair.old))
                    .unwrap_or_else(|| {
                        measured(ratio(), |ratio| at_most(&format!("{name} {}", pair.place), ratio, max))
                    }),
            );
        }
        if let Some(min) = self.accuracy_min {
            verdicts.push(match self.accuracy("of the new version", &m.new) {
                Ok(accuracy) if accuracy < min => {
                    Verdict::Breach(format!("the accuracy is {accuracy:.4}; at least {min} is asked for"))
                }
                Ok(_) => Verdict::Pass,
                Err(hold) => hold,
            });
        }
        if let Some(max) = self.accuracy_drop_max {
            let pair = m.pair(|health| self.accuracy("", health).is_ok());
            let new = self.accuracy("of the new version", pair.new);
            let old = self.accuracy("of the old version", pair.old);
            let name = format!("the loss of accuracy against the old version {}", pair.place);
            verdicts.push(match (new, old) {
                (Ok(new), Ok(old)) => at_most(&name, old - new, max),
                (Err(hold), _) | (_, Err(hold)) => hold,
            });
        }
        if let Some(max) = self.drift_max {
            verdicts.push(
                at_least("samples of the drift score", m.new.drift_samples, self.drift_samples_min)
                    .unwrap_or_else(|| at_most("the drift score", m.new.drift, max)),
            );
        }
        verdicts
    }

    fn enough_latency(&self, of: &str, health: &Health) -> Option<Verdict> {
        at_least(&format!("latencies {of}"), health.latency.count(), self.runs_min)
    }

    fn accuracy(&self, of: &str, health: &Health) -> Result<f64, Verdict> {
        let pseudo = if self.pseudo_labels { (health.pseudo_labelled, health.pseudo_correct) } else { (0, 0) };
        let samples = health.labelled.saturating_add(pseudo.0);
        let right = health.correct.saturating_add(pseudo.1);
        match at_least(&format!("labelled samples {of}"), samples, self.accuracy_samples_min) {
            Some(hold) => Err(hold),
            None => Ok(right as f64 / samples as f64),
        }
    }
}

/// Holds while there is less than asked for.
fn at_least(what: &str, there: u64, asked: u64) -> Option<Verdict> {
    (there < asked).then(|| Verdict::Hold(format!("{there} {what}; {asked} are asked for")))
}

fn at_most(what: &str, there: f64, max: f64) -> Verdict {
    // Written so that what is no number is no pass.
    if there <= max {
        Verdict::Pass
    } else {
        Verdict::Breach(format!("{what} is {there:.4}; at most {max} is allowed"))
    }
}

fn measured(value: Option<f64>, judge: impl FnOnce(f64) -> Verdict) -> Verdict {
    value.map_or_else(|| Verdict::Hold("no latency was measured".into()), judge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Latency;

    fn health(runs: u64, errors: u64, ms: u64) -> Health {
        let mut latency = Latency::default();
        (errors..runs).for_each(|_| latency.note_ns(ms * 1_000_000));
        Health { runs, errors, latency, labelled: runs, correct: runs - errors, ..Health::default() }
    }

    fn measured_of(new: &Health, old: &Health) -> Measured {
        let (paired_new, paired_old) = (new.clone(), old.clone());
        Measured { devices: 3, new: new.clone(), paired_new, paired_old, old: old.clone() }
    }

    #[test]
    fn no_data_holds_whatever_is_asked() {
        let all = Gate {
            latency_p95_ratio_max: Some(1e9),
            latency_p99_ratio_max: Some(1e9),
            latency_p95_max_ms: Some(1e9),
            accuracy_min: Some(0.0),
            accuracy_drop_max: Some(1.0),
            drift_max: Some(1e9),
            errors_max: 1.0,
            ..Gate::default()
        };
        assert!(matches!(all.judge(&Measured::default()), Verdict::Hold(_)));
        // Each piece of data that is missing holds by itself.
        let whole = Health { drift_samples: 100, drift: 0.0, ..health(200, 0, 5) };
        let full = Measured { devices: 1, ..measured_of(&whole, &whole) };
        assert_eq!(all.judge(&full), Verdict::Pass);
        type Cut = fn(&mut Measured);
        let without =
            |m: &mut Measured, cut: fn(&mut Health)| [&mut m.paired_old, &mut m.old].into_iter().for_each(cut);
        let cuts: [Cut; 6] = [
            |m| m.devices = 0,
            |m| m.new.runs = 99,
            |m| m.new.latency = Latency::default(),
            |m| m.new.labelled = 99,
            |m| m.new.drift_samples = 99,
            |m| (m.paired_old, m.old) = (Health::default(), Health::default()),
        ];
        for cut in [|h: &mut Health| h.latency = Latency::default(), |h: &mut Health| h.labelled = 99] {
            let mut less = full.clone();
            without(&mut less, cut);
            assert!(matches!(all.judge(&less), Verdict::Hold(_)), "{:?}", all.judge(&less));
            assert!(all.lacks(&less.old).is_some() && all.lacks(&full.old).is_none());
            // Where the same devices don't tell enough, the group does.
            let mut unpaired = full.clone();
            cut(&mut unpaired.paired_old);
            assert_eq!(all.judge(&unpaired), Verdict::Pass);
        }
        for (i, cut) in cuts.iter().enumerate() {
            let mut less = full.clone();
            cut(&mut less);
            assert!(matches!(all.judge(&less), Verdict::Hold(_)), "cut {i}: {:?}", all.judge(&less));
        }
    }

    #[test]
    fn each_measure_is_breached_by_itself() {
        let (good, bad, slow) = (health(1_000, 0, 5), health(1_000, 100, 5), health(1_000, 0, 9));
        let gate = Gate::default();
        assert_eq!(gate.judge(&measured_of(&good, &good)), Verdict::Pass);
        assert!(matches!(gate.judge(&measured_of(&bad, &good)), Verdict::Breach(_)));
        for gate in [
            Gate { latency_p95_ratio_max: Some(1.2), ..Gate::default() },
            Gate { latency_p99_ratio_max: Some(1.2), ..Gate::default() },
            Gate { latency_p95_max_ms: Some(8.0), ..Gate::default() },
        ] {
            assert_eq!(gate.judge(&measured_of(&good, &good)), Verdict::Pass);
            assert!(matches!(gate.judge(&measured_of(&slow, &good)), Verdict::Breach(_)), "{gate:?}");
        }
        for gate in [
            Gate { errors_max: 1.0, accuracy_min: Some(0.95), ..Gate::default() },
            Gate { errors_max: 1.0, accuracy_drop_max: Some(0.05), ..Gate::default() },
        ] {
            assert_eq!(gate.judge(&measured_of(&good, &good)), Verdict::Pass);
            assert!(matches!(gate.judge(&measured_of(&bad, &good)), Verdict::Breach(_)), "{gate:?}");
        }
        let drifts = Health { drift: 0.5, drift_samples: 100, ..good.clone() };
        let gate = Gate { drift_max: Some(0.4), ..Gate::default() };
        assert!(matches!(gate.judge(&measured_of(&drifts, &good)), Verdict::Breach(_)));
        // Teachers' labels count only where it is said that they do.
        let taught = Health { labelled: 0, correct: 0, pseudo_labelled: 500, pseudo_correct: 100, ..good };
        let gate = Gate { accuracy_min: Some(0.5), ..Gate::default() };
        assert!(matches!(gate.judge(&measured_of(&taught, &taught)), Verdict::Hold(_)));
        let gate = Gate { pseudo_labels: true, ..gate };
        assert!(matches!(gate.judge(&measured_of(&taught, &taught)), Verdict::Breach(_)));
    }
}
