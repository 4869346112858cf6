//! How long may a parent that a request waits for be silent before it counts
//! as gone? From how long it took to answer before.
//!
//! A parent that always answered at once is missed soon; one that is busy, or
//! behind a link that trembles, is given [`BUSY`]. Until enough answers were
//! seen it is taken for busy. To be wrong costs one answer from nearer, flagged
//! as such, that would have come from above.
//!
//! Pure. Start at [`Silence::limit`].

use std::collections::VecDeque;
use std::time::Duration;

/// Answers that count, the last ones.
const SEEN: usize = 64;

/// Answers from which on they are believed.
const SEEN_MIN: usize = 16;

/// No answer is expected sooner: schedulers and timers have their steps.
pub const CALM: Duration = Duration::from_millis(25);

/// What a busy parent may take.
pub const BUSY: Duration = Duration::from_millis(200);

/// Round trips that a calm parent is given, and a busy one.
const ROUND_TRIPS: [u32; 2] = [2, 4];

/// How much longer than ever seen an answer may take, in halves.
const HALVES: u32 = 3;

/// How long a parent took to answer.
#[derive(Debug, Default)]
pub struct Silence {
    seen: VecDeque<Duration>,
}

impl Silence {
    /// It was asked, and has answered after this time.
    pub fn answered(&mut self, after: Duration) {
        if self.seen.len() == SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(after);
    }

    /// Another parent may answer from now on.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// Time from a question to the answer, beyond which the parent may be gone;
    /// `rtt` is the link's round trip.
    #[must_use]
    pub fn limit(&self, rtt: Duration) -> Duration {
        let longest = self.seen.iter().max().filter(|_| self.seen.len() >= SEEN_MIN);
        let longest = longest.map_or(BUSY, |longest| (*longest * HALVES / 2).clamp(CALM, BUSY));
        let trips = ROUND_TRIPS[usize::from(longest == BUSY)];
        longest.max(rtt.saturating_mul(trips))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn seen(answers: impl IntoIterator<Item = u32>) -> Silence {
        let mut silence = Silence::default();
        answers.into_iter().for_each(|ms| silence.answered(MS * ms));
        silence
    }

    #[test]
    fn a_parent_that_answers_at_once_is_missed_within_two_round_trips() {
        let calm = seen([22; SEEN]);
        assert_eq!(calm.limit(22 * MS), 44 * MS);
        assert_eq!(calm.limit(2 * MS), 33 * MS);
        assert_eq!(seen([5; SEEN]).limit(2 * MS), CALM);
        assert_eq!(seen([5; SEEN]).limit(100 * MS), 200 * MS);
    }

    #[test]
    fn one_that_was_late_once_or_is_not_known_yet_is_given_time() {
        assert_eq!(Silence::default().limit(22 * MS), BUSY);
        assert_eq!(seen([22; SEEN_MIN - 1]).limit(22 * MS), BUSY);
        assert_eq!(seen([22; SEEN_MIN]).limit(22 * MS), 44 * MS);
        assert_eq!(seen([22, 22, 90].into_iter().chain([22; 20])).limit(22 * MS), 135 * MS);
        assert_eq!(seen([1_000].into_iter().chain([22; 20])).limit(22 * MS), BUSY);
        assert_eq!(seen([1_000].into_iter().chain([22; 20])).limit(80 * MS), 320 * MS);
        // Long ago.
        assert_eq!(seen([1_000].into_iter().chain([22; SEEN])).limit(22 * MS), 44 * MS);
    }

    #[test]
    fn another_parent_starts_from_nothing() {
        let mut silence = seen([22; SEEN]);
        silence.forget();
        assert_eq!(silence.limit(22 * MS), BUSY);
    }
}
