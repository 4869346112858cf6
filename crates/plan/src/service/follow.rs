//! Thresholds of a cascade that follow what traffic shows.
//!
//! Where a request is asked further, it shows whether the smaller model's answer
//! would have been the larger one's. Of the answers that it was sure of, those
//! that are audited show it; of the others as large a share is looked at, so
//! that what is seen is a fair sample of all requests, whatever the threshold
//! was. From it, the threshold is the least with which so many answers agree as
//! are wanted.
//!
//! Pure: told what was seen. Start at [`Follower`].

use std::collections::VecDeque;

/// Requests that are remembered; older ones say little of the inputs of now.
const SEEN_MAX: usize = 1_024;

/// Requests from which on a threshold follows them.
const SEEN_MIN: usize = 128;

/// Requests between two looks.
const LOOK_EVERY: usize = 32;

/// Thresholds are told in such steps, rounded up: nobody should see them tremble.
const STEP: f64 = 1.0 / 128.0;

/// What was seen of one request that was asked further, drawn from all with the
/// share of audits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// How sure the smaller model was.
    pub sureness: f64,
    /// Whether the larger one said the same.
    pub agrees: bool,
}

/// The threshold of one member.
#[derive(Debug, Clone, PartialEq)]
pub struct Follower {
    /// Share of all answers that are to agree.
    agreement: f64,
    seen: VecDeque<Seen>,
    since_look: usize,
    threshold: f64,
}

impl Follower {
    /// Begins at what the service says.
    #[must_use]
    pub fn new(agreement: f64, threshold: f64) -> Self {
        Self { agreement, seen: VecDeque::new(), since_look: 0, threshold }
    }

    /// The threshold now.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// Counts a request; whether the threshold is another one now.
    pub fn observe(&mut self, seen: Seen) -> bool {
        if !seen.sureness.is_finite() {
            return false;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
        self.since_look += 1;
        if self.since_look < LOOK_EVERY || self.seen.len() < SEEN_MIN {
            return false;
        }
        self.since_look = 0;
        let before = self.threshold;
        self.threshold = self.least();
        self.threshold != before
    }

    /// The least threshold with which enough answers agree.
    fn least(&self) -> f64 {
        let most = (1.0 - self.agreement) * self.seen.len() as f64;
        let mut sorted: Vec<&Seen> = self.seen.iter().collect();
        sorted.sort_by(|a, b| b.sureness.total_cmp(&a.sureness));
        let (mut wrong, mut least, mut from) = (0, None, 0);
        while from < sorted.len() {
            let threshold = sorted[from].sureness;
            let same = sorted[from..].iter().take_while(|seen| seen.sureness >= threshold).count();
            wrong += sorted[from..from + same].iter().filter(|seen| !seen.agrees).count();
            if wrong as f64 > most {
                break;
            }
            least = Some(threshold);
            from += same;
        }
        // Where not even the surest agree, none of them answers.
        let above = sorted.first().map_or(1.0, |seen| seen.sureness + STEP);
        (least.unwrap_or(above) / STEP).ceil() * STEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sure ones agree, unsure ones half of the time, by seed; `bend` is where
    /// that changes.
    fn traffic(follower: &mut Follower, rng: &mut fastrand::Rng, requests: usize, bend: f64, audit: f64) {
        for _ in 0..requests {
            let sureness = rng.f64();
            let agrees = sureness >= bend || rng.bool();
            // Audited, or one of those that weren't sure and are looked at.
            if rng.f64() < audit {
                follower.observe(Seen { sureness, agrees });
            }
        }
    }

    /// Share of all answers that disagree with such a threshold.
    fn disagree(threshold: f64, bend: f64) -> f64 {
        (bend - threshold).max(0.0) / 2.0
    }

    #[test]
    fn a_threshold_finds_the_agreement_that_is_wanted_from_both_sides() {
        for seed in 0..6 {
            for begin in [0.2, 0.95] {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut follower = Follower::new(0.95, begin);
                // 5% may disagree: a tenth of all below the bend.
                traffic(&mut follower, &mut rng, 40_000, 0.7, 0.1);
                let found = follower.threshold();
                assert!((disagree(found, 0.7) - 0.05).abs() < 0.03, "seed {seed} from {begin}: {found}");
                // The inputs become harder: it follows.
                traffic(&mut follower, &mut rng, 80_000, 0.9, 0.1);
                let found = follower.threshold();
                assert!((disagree(found, 0.9) - 0.05).abs() < 0.03, "seed {seed} from {begin}: {found}");
            }
        }
    }

    #[test]
    fn nothing_moves_before_enough_is_seen() {
        let mut follower = Follower::new(0.9, 0.5);
        let unsure = |n: usize| Seen { sureness: 0.4, agrees: n.is_multiple_of(2) };
        assert!((0..SEEN_MIN - 1).all(|n| !follower.observe(unsure(n))));
        for wrong in [f64::NAN, f64::INFINITY] {
            assert!(!follower.observe(Seen { sureness: wrong, agrees: true }));
        }
        assert_eq!(follower.threshold(), 0.5);
        // As many are wrong as at half of them: none of those may answer.
        assert!(follower.observe(unsure(0)));
        assert!(follower.threshold() > 0.4 && follower.threshold() < 0.42);
    }

    #[test]
    fn one_that_never_agrees_answers_nothing_and_one_that_always_does_everything() {
        let run = |agrees| {
            let mut follower = Follower::new(0.99, 0.5);
            for n in 0..1_000 {
                follower.observe(Seen { sureness: f64::from(n % 100) / 100.0, agrees });
            }
            follower.threshold()
        };
        assert!(run(false) > 0.99);
        assert_eq!(run(true), 0.0);
        // From where nothing answers it comes back.
        let mut follower = Follower::new(0.99, 2.0);
        for n in 0..1_000 {
            follower.observe(Seen { sureness: f64::from(n % 100) / 100.0, agrees: true });
        }
        assert_eq!(follower.threshold(), 0.0);
    }
}
