//! Whom a round asks.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::FederateError;
use crate::strategy::in_range;

/// How members are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Select {
    /// All with the same odds.
    Random {},
    /// Those that were there most of the time, more often.
    Availability {},
    /// Those that taught most lately, unless they are slow; some that were
    /// never asked besides (after Oort: Lai et al., "Efficient federated
    /// learning via guided participant selection", 2021).
    Utility {
        /// Share of the places that go to members never asked before, while
        /// there are any.
        #[serde(default = "exploration")]
        exploration: f64,
        /// A member that takes `t` times the preferred time counts `t` to the
        /// power of minus this.
        #[serde(default = "slowness")]
        slowness: f64,
    },
}

impl Default for Select {
    fn default() -> Self {
        Self::Random {}
    }
}

fn exploration() -> f64 {
    0.2
}

fn slowness() -> f64 {
    2.0
}

/// Somebody who may be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<'a> {
    /// Names it; decides nothing but ties.
    pub member: &'a str,
    /// Examples it has.
    pub examples: u64,
    /// Share of the job's time that it was there, 0 to 1.
    pub available: f64,
    /// What it said last, and in which round; `None` if it was never counted.
    pub last: Option<Last>,
}

/// What a member gave last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Last {
    /// Its loss.
    pub loss: f64,
    /// Seconds between asking and answer.
    pub seconds: f64,
    /// The round.
    pub round: u64,
}

impl Select {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    pub(crate) fn check(&self) -> Result<(), FederateError> {
        let Self::Utility { exploration, slowness } = *self else { return Ok(()) };
        let share = (0.0..=1.0).contains(&exploration);
        in_range("clients.select.exploration", exploration, share, "at least 0 and at most 1")?;
        in_range("clients.select.slowness", slowness, slowness >= 0.0, "at least 0")
    }

    /// Chooses `count` of the candidates, or all if there are no more; their
    /// places, in order. `round` is the one that they are chosen for.
    #[must_use]
    pub fn choose(&self, candidates: &[Candidate<'_>], count: usize, round: u64, rng: &mut Rng) -> Vec<usize> {
        let count = count.min(candidates.len());
        let mut chosen = match self {
            Self::Random {} => weighted(&vec![1.0; candidates.len()], count, rng),
            // Nobody is left out for good: who was never there has a chance.
            Self::Availability {} => {
                weighted(&candidates.iter().map(|c| c.available.max(0.01)).collect::<Vec<_>>(), count, rng)
            }
            Self::Utility { exploration, slowness } => {
                by_utility(candidates, count, round, (*exploration, *slowness), rng)
            }
        };
        chosen.sort_unstable();
        chosen
    }
}

fn by_utility(
    candidates: &[Candidate<'_>],
    count: usize,
    round: u64,
    (exploration, slowness): (f64, f64),
    rng: &mut Rng,
) -> Vec<usize> {
    let (known, fresh): (Vec<usize>, Vec<usize>) = (0..candidates.len()).partition(|&i| candidates[i].last.is_some());
    // The time that most keep.
    let mut times: Vec<f64> = candidates.iter().filter_map(|c| c.last.map(|l| l.seconds)).collect();
    times.sort_by(f64::total_cmp);
    let preferred = times.get(times.len() / 2).copied().unwrap_or(0.0);
    let utility = |candidate: &Candidate<'_>| {
        let Some(last) = candidate.last else { return 0.0 };
        let statistical = candidate.examples as f64 * last.loss.max(0.0);
        // What was learned long ago is worth asking for again.
        let age = round.saturating_sub(last.round).max(1) as f64;
        let stale = (0.1 * (round.max(2) as f64).ln() * age / round.max(1) as f64).sqrt();
        let late = if last.seconds > preferred && preferred > 0.0 { last.seconds / preferred } else { 1.0 };
        statistical * (1.0 + stale) * late.powf(-slowness)
    };
    let places =
        ((count as f64 * exploration).ceil() as usize).clamp(count - known.len().min(count), fresh.len().min(count));
    let mut chosen: Vec<usize> = weighted(&vec![1.0; fresh.len()], places, rng).into_iter().map(|i| fresh[i]).collect();
    let weights: Vec<f64> = known.iter().map(|&i| utility(&candidates[i])).collect();
    // Among the best only, with odds: the same few would not do.
    let mut best = weights.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    let rest = count - chosen.len();
    let cut = rest.checked_sub(1).and_then(|last| best.get(last)).copied().unwrap_or(0.0) * 0.95;
    let kept: Vec<usize> = (0..known.len()).filter(|&i| weights[i] >= cut).collect();
    let odds: Vec<f64> = kept.iter().map(|&i| weights[i].max(f64::MIN_POSITIVE)).collect();
    chosen.extend(weighted(&odds, rest, rng).into_iter().map(|i| known[kept[i]]));
    chosen
}

/// `count` places without repetition, with the odds of their weights
/// (Efraimidis and Spirakis, 2006).
fn weighted(weights: &[f64], count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut keys: Vec<(f64, usize)> =
        weights.iter().enumerate().map(|(i, &w)| ((1.0 - rng.f64()).ln() / w, i)).collect();
    keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keys.into_iter().take(count).map(|(_, i)| i).collect()
}
