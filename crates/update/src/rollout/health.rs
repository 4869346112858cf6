//! How a version does on a device: counts that only grow while a process
//! lives, so that a message that is lost or comes twice changes nothing.

use serde::{Deserialize, Serialize};

use super::RolloutError;

/// Counts beyond this aren't whole numbers of an `f64` any more.
const COUNT_MAX: u64 = 1 << 53;

/// Buckets of one octave of latency: each is 1/16 of it wide, so a quantile is
/// known to 6% at worst.
const BUCKETS_OF_OCTAVE: u32 = 16;
const BUCKETS: u16 = 64 * BUCKETS_OF_OCTAVE as u16;

/// How a version did on a device since the process there began to run it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Requests that were run, those that failed included.
    pub runs: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How long requests took that didn't fail.
    pub latency: Latency,
    /// Answers whose right label is known.
    pub labelled: u64,
    /// Of those, right ones.
    pub correct: u64,
    /// Answers to samples that a teacher labelled.
    pub pseudo_labelled: u64,
    /// Of those, answers like the teacher's.
    pub pseudo_correct: u64,
    /// Samples that the drift score was made of.
    pub drift_samples: u64,
    /// The drift score, in the detector's own unit; 0 is none.
    pub drift: f64,
}

impl Health {
    /// Whether it can be true.
    ///
    /// # Errors
    /// [`RolloutError::Untrue`] with what can't be.
    pub fn check(&self) -> Result<(), RolloutError> {
        let untrue = |what: &str| Err(RolloutError::Untrue(what.to_owned()));
        let counts = [self.runs, self.labelled, self.pseudo_labelled, self.drift_samples];
        if counts.iter().any(|n| *n > COUNT_MAX) || self.latency.count() > COUNT_MAX {
            return untrue("a count of the health sample is above 2^53");
        }
        if self.errors > self.runs {
            return untrue("the health sample has more errors than runs");
        }
        if self.correct > self.labelled || self.pseudo_correct > self.pseudo_labelled {
            return untrue("the health sample has more right answers than answers");
        }
        if !self.drift.is_finite() || self.drift < 0.0 {
            return untrue("the health sample's drift score is no number from 0 on");
        }
        Ok(())
    }

    /// Adds another device's.
    pub fn add(&mut self, other: &Self) {
        // Scores of many devices: the mean, by samples.
        let samples = self.drift_samples.saturating_add(other.drift_samples);
        if samples > 0 {
            let weighed = self.drift * self.drift_samples as f64 + other.drift * other.drift_samples as f64;
            self.drift = weighed / samples as f64;
        }
        self.drift_samples = samples;
        for (into, from) in [
            (&mut self.runs, other.runs),
            (&mut self.errors, other.errors),
            (&mut self.labelled, other.labelled),
            (&mut self.correct, other.correct),
            (&mut self.pseudo_labelled, other.pseudo_labelled),
            (&mut self.pseudo_correct, other.pseudo_correct),
        ] {
            *into = into.saturating_add(from);
        }
        self.latency.add(&other.latency);
    }
}

/// Latencies, counted in buckets whose width is a sixteenth of an octave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub struct Latency {
    /// Buckets with their counts, in order.
    counts: Vec<(u16, u64)>,
}

impl Latency {
    /// Counts one, in nanoseconds.
    pub fn note_ns(&mut self, ns: u64) {
        let bucket = bucket(ns);
        match self.counts.binary_search_by_key(&bucket, |(at, _)| *at) {
            Ok(found) => self.counts[found].1 = self.counts[found].1.saturating_add(1),
            Err(place) => self.counts.insert(place, (bucket, 1)),
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        if self.counts.is_empty() {
            return self.counts.clone_from(&other.counts);
        }
        // Both are sorted: one pass, from where the last one was found.
        let mut from = 0;
        for (bucket, n) in &other.counts {
            from += self.counts[from..].partition_point(|(at, _)| at < bucket);
            match self.counts.get_mut(from).filter(|(at, _)| at == bucket) {
                Some((_, count)) => *count = count.saturating_add(*n),
                None => self.counts.insert(from, (*bucket, *n)),
            }
        }
    }

    /// The time that a share `q` of them took at most, nanoseconds; within a
    /// bucket they are taken to be spread evenly. None without any.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> Option<f64> {
        let wanted = q.clamp(0.0, 1.0) * self.count() as f64;
        let mut below = 0.0;
        let mut last = None;
        for (at, n) in self.counts.iter().filter(|(_, n)| *n > 0) {
            let (from, to) = edges(*at);
            let n = *n as f64;
            if below + n >= wanted {
                return Some(from + (to - from) * ((wanted - below) / n).clamp(0.0, 1.0));
            }
            below += n;
            last = Some(to);
        }
        last
    }
}

fn bucket(ns: u64) -> u16 {
    let ns = ns.max(1);
    let octave = ns.ilog2();
    // The bits behind the first one say where in the octave.
    let behind = ns - (1 << octave);
    let within = (u128::from(behind) * u128::from(BUCKETS_OF_OCTAVE)) >> octave;
    (octave * BUCKETS_OF_OCTAVE) as u16 + within as u16
}

fn edges(bucket: u16) -> (f64, f64) {
    let (octave, within) = (u32::from(bucket) / BUCKETS_OF_OCTAVE, u32::from(bucket) % BUCKETS_OF_OCTAVE);
    let from = f64::from(octave).exp2();
    let width = from / f64::from(BUCKETS_OF_OCTAVE);
    (from + width * f64::from(within), from + width * f64::from(within + 1))
}

impl TryFrom<Vec<(u16, u64)>> for Latency {
    type Error = RolloutError;

    fn try_from(pairs: Vec<(u16, u64)>) -> Result<Self, RolloutError> {
        if pairs.len() > usize::from(BUCKETS) {
            return Err(RolloutError::Untrue(format!("latencies have {} buckets; there are {BUCKETS}", pairs.len())));
        }
        let mut before = None;
        for (at, n) in &pairs {
            if *at >= BUCKETS || *n > COUNT_MAX || before >= Some(*at) {
                return Err(RolloutError::Untrue(format!(
                    "latencies have a bucket {at} that can't be, or out of order"
                )));
            }
            before = Some(*at);
        }
        Ok(Self { counts: pairs })
    }
}

impl From<Latency> for Vec<(u16, u64)> {
    fn from(latency: Latency) -> Self {
        latency.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_the_sorted_ones() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20 {
            let spread = rng.f64() * 6.0;
            let mut latency = Latency::default();
            let mut sorted: Vec<u64> = (0..2_000).map(|_| (1e5 * (spread * rng.f64()).exp()) as u64).collect();
            sorted.iter().for_each(|ns| latency.note_ns(*ns));
            sorted.sort_unstable();
            for q in [0.01, 0.5, 0.95, 0.99, 1.0] {
                let exact = sorted[((q * 2_000.0) as usize).clamp(1, 2_000) - 1] as f64;
                let found = latency.quantile_ns(q).unwrap();
                assert!((found / exact - 1.0).abs() < 0.07, "q {q}: {found} for {exact}");
            }
        }
        assert_eq!(Latency::default().quantile_ns(0.5), None);
        for ns in [0, 1, 2, 3, 15, 16, 17, u64::MAX] {
            let (from, to) = edges(bucket(ns));
            assert!(from <= ns.max(1) as f64 && ns as f64 <= to, "{ns} {from} {to}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            r#"{"latency":[[1024,1]]}"#,
            r#"{"latency":[[3,1],[3,1]]}"#,
            r#"{"latency":[[3,9007199254740993]]}"#,
            r#"{"runs":-1}"#,
            r#"{"drift":"x"}"#,
        ] {
            assert!(serde_json::from_str::<Health>(text).is_err(), "{text}");
        }
        for text in [
            r#"{"runs":1,"errors":2}"#,
            r#"{"labelled":1,"correct":2}"#,
            r#"{"pseudo_correct":1}"#,
            r#"{"drift":-1.0}"#,
            r#"{"runs":18446744073709551615}"#,
        ] {
            assert!(serde_json::from_str::<Health>(text).unwrap().check().is_err(), "{text}");
        }
        let nan = Health { drift: f64::NAN, ..Health::default() };
        assert!(nan.check().is_err());
        assert!(Health::default().check().is_ok());
    }

    #[test]
    fn scores_are_averaged_by_samples() {
        let mut sum = Health { drift: 1.0, drift_samples: 1, ..Health::default() };
        sum.add(&Health { drift: 4.0, drift_samples: 2, ..Health::default() });
        sum.add(&Health::default());
        assert_eq!((sum.drift, sum.drift_samples), (3.0, 3));
    }
}
