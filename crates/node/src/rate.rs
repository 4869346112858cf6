//! How often somebody may do a thing: a bucket for each, and one for all.
//!
//! Pure: told the time and who it is. Start at [`RateLimiter`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::{Time, ns};

/// Those that are told apart; when there are more, newcomers share one bucket.
pub const TOLD_APART_MAX: usize = 4_096;

/// How much at once, and how fast it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// At once, after a quiet time.
    pub burst: u32,
    /// Until one more is allowed.
    pub every: Duration,
}

/// The time at which a bucket is full again: all that has to be kept of it
/// (GCRA, as of ITU-T I.371).
type FullAt = Time;

/// One bucket, of somebody with an allowance of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket(FullAt);

impl Bucket {
    /// Takes one, or says how long to wait for it.
    ///
    /// # Errors
    /// The wait.
    pub fn take(&mut self, now: Time, allowance: Allowance) -> Result<(), Duration> {
        let wait = wait(self.0, now, allowance);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.0 = more(self.0, now, allowance);
        Ok(())
    }
}

fn wait(full_at: FullAt, now: Time, allowance: Allowance) -> Duration {
    let depth = allowance.every.saturating_mul(allowance.burst.saturating_sub(1));
    full_at.since(now).saturating_sub(depth)
}

/// Bounded, so that a burst is made good within a known time.
fn more(full_at: FullAt, now: Time, allowance: Allowance) -> FullAt {
    let depth = allowance.every.saturating_mul(allowance.burst);
    (full_at.max(now) + allowance.every).min(now + depth)
}

/// Who did how much lately.
#[derive(Debug)]
pub struct RateLimiter<H> {
    allowance: Allowance,
    buckets: BTreeMap<H, FullAt>,
    /// Of those who aren't told apart.
    rest: FullAt,
}

impl<H: Ord> RateLimiter<H> {
    /// Nobody did anything yet.
    #[must_use]
    pub fn new(allowance: Allowance) -> Self {
        Self { allowance, buckets: BTreeMap::new(), rest: Time::ZERO }
    }

    /// How long `who` has to wait; zero when it may go on.
    #[must_use]
    pub fn wait(&self, now: Time, who: &H) -> Duration {
        let full_at = self.buckets.get(who).copied().unwrap_or_else(|| self.shared());
        wait(full_at, now, self.allowance)
    }

    /// `who` did it once.
    pub fn count(&mut self, now: Time, who: H) {
        if !self.buckets.contains_key(&who) && self.buckets.len() >= TOLD_APART_MAX {
            self.buckets.retain(|_, full_at| *full_at > now);
        }
        let more = |full_at: Time| more(full_at, now, self.allowance);
        if self.buckets.contains_key(&who) || self.buckets.len() < TOLD_APART_MAX {
            let full_at = self.buckets.entry(who).or_insert(Time::ZERO);
            *full_at = more(*full_at);
        } else {
            self.rest = more(self.rest);
        }
    }

    fn shared(&self) -> FullAt {
        if self.buckets.len() >= TOLD_APART_MAX { self.rest } else { Time::ZERO }
    }
}

/// A wait in whole seconds, as people are told.
#[must_use]
pub fn seconds(wait: Duration) -> u64 {
    ns(wait).div_ceil(1_000_000_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance { burst: 3, every: Duration::from_secs(10) };

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_burst_then_one_by_one() {
        let mut limiter = RateLimiter::new(ALLOWANCE);
        for _ in 0..3 {
            assert_eq!(limiter.wait(at(100), &"a"), Duration::ZERO);
            limiter.count(at(100), "a");
        }
        assert_eq!(limiter.wait(at(100), &"a"), Duration::from_secs(10));
        assert_eq!(limiter.wait(at(100), &"b"), Duration::ZERO, "each has its own");
        assert_eq!(limiter.wait(at(110), &"a"), Duration::ZERO);
        limiter.count(at(110), "a");
        assert_eq!(seconds(limiter.wait(at(111), &"a")), 9);
        assert_eq!(limiter.wait(at(200), &"a"), Duration::ZERO);
    }

    #[test]
    fn what_was_counted_beyond_the_limit_does_not_add_up_for_ever() {
        let mut limiter = RateLimiter::new(ALLOWANCE);
        (0..10_000).for_each(|_| limiter.count(at(5), "a"));
        assert!(limiter.wait(at(5), &"a") <= Duration::from_secs(10));
    }

    #[test]
    fn more_than_can_be_told_apart_share_one() {
        let mut limiter = RateLimiter::new(ALLOWANCE);
        (0..TOLD_APART_MAX as u64).for_each(|who| limiter.count(at(1), who));
        for who in 10_000..10_003 {
            assert_eq!(limiter.wait(at(1), &who), Duration::ZERO);
            limiter.count(at(1), who);
        }
        assert!(limiter.wait(at(1), &20_000) > Duration::ZERO);
        // Those that were quiet since are forgotten.
        limiter.count(at(100), 20_000);
        assert_eq!(limiter.buckets.len(), 1);
    }
}
