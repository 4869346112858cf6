//! What runs as one: how long so many rows take together, found out by runs,
//! and whether that is worth it.
//!
//! Requests of one *kind* (the same segments, inputs of the same types and of
//! the same shapes but for axis 0) may run as one. Whether their rows stay
//! apart, a model's graph says; that the engine keeps them apart, and what it
//! saves, a *trial* shows: the same rows together and each by itself. Sizes
//! are tried one after the other, each twice the last, as long as that saves
//! something; nothing runs together in a size that wasn't tried.
//!
//! Pure; the queue ([`crate::admit`]) asks it what may join what. Start at
//! [`Kinds`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::{Time, ns};

/// Kinds that are known at once; the one that was wanted longest ago is
/// forgotten for another.
pub const KINDS_MAX: usize = 256;

/// Part of a run's own time that running it with others must spare.
pub const GAIN_MIN: f64 = 0.1;

/// Sizes up to this one are tried whatever the smaller ones save: overheads
/// hide what larger ones do.
const TRIED_ANYWAY: u32 = 8;

/// What a size must save beside half of it, for twice as many to be tried.
const GAIN_TO_GO_ON: f64 = 0.02;

/// How much the last run counts in what the next is expected to take.
const NEWEST: f64 = 0.2;

/// After so long, what was found out is found out again: devices get hot, and
/// others come and go beside.
const FRESH: Duration = Duration::from_secs(600);

/// A trial that nothing was heard of for so long won't be heard of.
const TRIAL_MAX: Duration = Duration::from_secs(60);

/// Names a kind, for the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u64);

/// What may run as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows at most.
    pub rows_max: u32,
    /// Bytes of inputs at most.
    pub bytes_max: u64,
    /// How much longer it may take than its first request alone.
    pub extra_max: Duration,
    /// How long a request may wait for others while the device is free.
    pub delay: Duration,
}

/// Two rows take at least so much more than one, as a part of it.
const GROWTH_MIN: f64 = 0.2;

impl Bounds {
    /// Whether two rows may be worth it, where one takes so long.
    #[must_use]
    pub fn may_gain(&self, alone: Duration) -> bool {
        self.rows_max >= 2 && alone.as_secs_f64() * GROWTH_MIN <= self.extra_max.as_secs_f64()
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rows_max: 32, bytes_max: 64 << 20, extra_max: Duration::from_millis(20), delay: Duration::ZERO }
    }
}

/// A job that may run with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// With which others.
    pub kind: Kind,
    /// Rows that it has.
    pub rows: u32,
    /// Bytes of its inputs.
    pub bytes: u64,
    /// How many others.
    pub bounds: Bounds,
    /// When it came.
    pub arrived: Time,
}

/// What a trial came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// Rows stay apart; so long they take together, and one of them alone.
    Held {
        /// All of them.
        together: Duration,
        /// One.
        alone: Duration,
    },
    /// They don't, or the engine failed: never again.
    Broken,
    /// Nothing was tried: the session went, or there was no memory for it.
    NotDone,
}

#[derive(Debug, Default)]
struct Known {
    /// When it was last asked for.
    used: u64,
    /// Nanoseconds by rows.
    times: BTreeMap<u32, f64>,
    /// Rows that were tried together, and kept apart.
    tried: u32,
    /// Since when a size is on trial.
    on_trial: Option<Time>,
    /// When the first trial of these was.
    since: Time,
    /// Nothing more is to be tried.
    settled: bool,
    broken: bool,
}

impl Known {
    /// Expected time of so many rows; `None` beyond what was tried.
    fn time(&self, rows: u32) -> Option<f64> {
        if rows > self.tried.max(1) {
            return None;
        }
        let below = self.times.range(..=rows).next_back();
        let above = self.times.range(rows..).next();
        match (below, above) {
            (Some((a, x)), Some((b, y))) if a != b => Some(x + (y - x) * f64::from(rows - a) / f64::from(b - a)),
            (Some((_, x)), Some(_)) => Some(*x),
            _ => None,
        }
    }

    fn learn(&mut self, rows: u32, took: f64) {
        let time = self.times.entry(rows).or_insert(took);
        *time += NEWEST * (took - *time);
    }
}

/// All that is known of kinds.
#[derive(Debug, Default)]
pub struct Kinds {
    known: BTreeMap<Kind, Known>,
    asked: u64,
}

impl Kinds {
    fn at(&mut self, kind: Kind) -> &mut Known {
        self.asked += 1;
        if !self.known.contains_key(&kind) && self.known.len() >= KINDS_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.used).map(|(kind, _)| *kind);
            oldest.map(|kind| self.known.remove(&kind));
        }
        let known = self.known.entry(kind).or_default();
        known.used = self.asked;
        known
    }

    /// A run of so many rows, of one request or of several, took so long.
    pub fn took(&mut self, kind: Kind, rows: u32, took: Duration) {
        let known = self.at(kind);
        // Sizes that nothing runs in aren't kept: they come from requests alone.
        if rows <= known.tried.max(1) {
            known.learn(rows, ns(took) as f64);
        }
    }

    /// What came of a trial.
    pub fn tried(&mut self, now: Time, kind: Kind, rows: u32, bounds: Bounds, trial: Trial) {
        let known = self.at(kind);
        known.on_trial = None;
        match trial {
            Trial::NotDone => {}
            Trial::Broken => known.broken = true,
            Trial::Held { together, alone } => {
                let (together, alone) = (ns(together) as f64, ns(alone) as f64);
                if known.tried == 0 {
                    known.since = now;
                }
                known.tried = known.tried.max(rows);
                known.times.entry(1).or_insert(alone);
                let half = known.time(rows / 2).unwrap_or(alone);
                // What was measured anew counts as it is.
                known.times.insert(rows, together);
                let gains = together < 2.0 * half * (1.0 - GAIN_TO_GO_ON);
                let longer = 2.0 * together - alone;
                let fits = rows.saturating_mul(2) <= bounds.rows_max && longer <= ns(bounds.extra_max) as f64;
                known.settled = !fits || !(gains || rows < TRIED_ANYWAY);
            }
        }
    }

    /// How many rows of a kind are to be tried next, somebody waiting who would
    /// have run with it; it is on trial then.
    pub fn to_try(&mut self, now: Time, kind: Kind, bounds: Bounds) -> Option<u32> {
        if bounds.rows_max < 2 {
            return None;
        }
        let known = self.at(kind);
        if known.settled && now.since(known.since) > FRESH {
            *known = Known { used: known.used, broken: known.broken, ..Known::default() };
        }
        let waits = known.on_trial.is_some_and(|since| now.since(since) < TRIAL_MAX);
        let too_long = known.time(1).is_some_and(|alone| !bounds.may_gain(Duration::from_nanos(alone as u64)));
        if known.broken || known.settled || waits || too_long {
            return None;
        }
        known.on_trial = Some(now);
        Some(known.tried.max(1) * 2)
    }

    /// A batch that was to run didn't: its kind runs together no more.
    pub fn broke(&mut self, kind: Kind) {
        self.at(kind).broken = true;
    }

    /// Expected time of so many rows as one, where they may run so.
    #[must_use]
    pub fn together(&self, kind: Kind, rows: u32) -> Option<Duration> {
        let known = self.known.get(&kind).filter(|known| !known.broken && known.tried >= 2)?;
        known.time(rows).map(|time| Duration::from_nanos(time as u64))
    }

    /// Expected time of a request that runs alone, where runs have shown it.
    #[must_use]
    pub fn alone(&self, kind: Kind, rows: u32) -> Option<Duration> {
        self.known.get(&kind)?.time(rows).map(|time| Duration::from_nanos(time as u64))
    }

    /// The most rows of a kind that run as one: as long as each that comes to
    /// them spares [`GAIN_MIN`] of its time.
    #[must_use]
    pub fn rows_worth(&self, kind: Kind, bounds: Bounds) -> u32 {
        let Some(known) = self.known.get(&kind).filter(|known| !known.broken && known.tried >= 2) else { return 1 };
        let most = known.tried.min(bounds.rows_max);
        let Some(alone) = known.time(1) else { return 1 };
        let longest = alone + ns(bounds.extra_max) as f64;
        let worth = |rows: &u32| {
            let Some(time) = known.time(*rows) else { return false };
            time <= longest && time <= f64::from(*rows) * alone * (1.0 - GAIN_MIN)
        };
        (2..=most).rev().find(worth).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind(7);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Tries sizes as they are asked for, on a device where `rows` take `time`.
    fn try_all(kinds: &mut Kinds, bounds: Bounds, time: impl Fn(u32) -> u64) -> Vec<u32> {
        let mut sizes = Vec::new();
        while let Some(rows) = kinds.to_try(Time::ZERO, KIND, bounds) {
            assert_eq!(kinds.to_try(Time::ZERO, KIND, bounds), None, "it is on trial");
            let trial = Trial::Held { together: us(time(rows)), alone: us(time(1)) };
            kinds.tried(Time::ZERO, KIND, rows, bounds, trial);
            sizes.push(rows);
        }
        sizes
    }

    #[test]
    fn sizes_are_tried_as_long_as_they_save() {
        let bounds = Bounds::default();
        let mut kinds = Kinds::default();
        assert_eq!(kinds.rows_worth(KIND, bounds), 1);
        assert_eq!(try_all(&mut kinds, bounds, |rows| 100 + 10 * u64::from(rows)), [2, 4, 8, 16, 32]);
        assert_eq!(kinds.rows_worth(KIND, bounds), 32);
        assert_eq!(kinds.together(KIND, 12), Some(us(220)), "between 8 and 16");
        assert_eq!(kinds.together(KIND, 33), None, "it wasn't tried");
        // Nothing is saved: some sizes are tried, none is used.
        let mut kinds = Kinds::default();
        assert_eq!(try_all(&mut kinds, bounds, |rows| 100 * u64::from(rows)), [2, 4, 8]);
        assert_eq!(kinds.rows_worth(KIND, bounds), 1);
        // Long ones end where they would make others wait too long.
        let mut kinds = Kinds::default();
        assert_eq!(try_all(&mut kinds, bounds, |rows| 8_000 + 2_000 * u64::from(rows)), [2, 4]);
        assert_eq!(kinds.rows_worth(KIND, bounds), 4);
    }

    #[test]
    fn what_breaks_is_not_tried_again_and_what_is_old_is() {
        let bounds = Bounds::default();
        let late = Time::ZERO + FRESH + us(1);
        let mut kinds = Kinds::default();
        try_all(&mut kinds, bounds, |rows| 100 * u64::from(rows));
        assert_eq!(kinds.to_try(Time::ZERO + FRESH, KIND, bounds), None);
        assert_eq!(kinds.to_try(late, KIND, bounds), Some(2));
        kinds.tried(late, KIND, 2, bounds, Trial::NotDone);
        assert_eq!(kinds.to_try(late, KIND, bounds), Some(2), "it was left undone");
        kinds.tried(late, KIND, 2, bounds, Trial::Broken);
        assert_eq!(kinds.to_try(late + FRESH + us(1), KIND, bounds), None);
        assert_eq!((kinds.together(KIND, 2), kinds.rows_worth(KIND, bounds)), (None, 1));
        let none = Bounds { rows_max: 1, ..bounds };
        assert_eq!(Kinds::default().to_try(Time::ZERO, KIND, none), None);
        let mut long = Kinds::default();
        long.took(KIND, 1, us(110_000));
        assert_eq!(long.to_try(late, KIND, bounds), None, "two would take too long for others, whatever they spare");
    }

    #[test]
    fn runs_correct_what_trials_said() {
        let bounds = Bounds::default();
        let mut kinds = Kinds::default();
        try_all(&mut kinds, bounds, |rows| 100 + 10 * u64::from(rows));
        for _ in 0..60 {
            kinds.took(KIND, 32, us(3_600));
            kinds.took(KIND, 64, us(1));
        }
        assert!(kinds.together(KIND, 32).unwrap() > us(3_500));
        assert_eq!(kinds.together(KIND, 64), None);
        assert!(kinds.rows_worth(KIND, bounds) < 32, "so many take as long as each alone");
    }

    #[test]
    fn kinds_are_forgotten_for_others() {
        let mut kinds = Kinds::default();
        for kind in 0..2 * KINDS_MAX as u64 {
            kinds.took(Kind(kind), 1, us(10));
            kinds.took(Kind(0), 1, us(10));
        }
        assert_eq!(kinds.known.len(), KINDS_MAX);
        assert!(kinds.alone(Kind(0), 1).is_some() && kinds.alone(Kind(1), 1).is_none());
    }
}
