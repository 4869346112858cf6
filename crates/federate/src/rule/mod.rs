//! Rules that put contributions together although some are made to do harm.
//!
//! All but [`Rule::Mean`] count every member alike, since a number of examples
//! is only said, and keep the contributions of a round on a [`SpillStore`] until it
//! ends: their decisions need all of them. Of running statistics they take the
//! median: whoever sends an honest change of weights isn't believed in the rest.
//!
//! A share of a round's contributions that isn't a whole number of them is
//! rounded up. A round that ended with fewer than a rule needs for that is put
//! together by the median, which bears any minority.
//!
//! # Adding a rule
//!
//! Write `mine.rs` with a function from `Contributions` (and the settings) to the
//! vector that they amount to, like `median.rs`; add a variant to [`Rule`]
//! with its bounds in [`Rule::check`], what it needs in [`Rule::needs`], and a
//! line in `Rule::decide`; `combine.rs` says what it goes with. Say in
//! `tests/it/rules.rs` what it gives on small numbers; the laws there (order of
//! arrival, a minority far away changes little) hold for all.

mod bounded;
mod bulyan;
mod contributions;
mod krum;
mod median;
mod trimmed;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use self::contributions::{Chosen, Contributions};
pub use self::contributions::{InMemory, SpillStore};
use crate::aggregate::{Aggregate, Mean, Weight};
use crate::{Channel, Contribution, FederateError, Layout, Vectors};

/// How contributions are put together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Rule {
    /// The weighted mean.
    Mean {},
    /// The median of each number (Yin et al., "Byzantine-robust distributed
    /// learning", 2018).
    Median {},
    /// The mean of each number without the largest and the smallest (Yin et
    /// al., 2018).
    Trimmed {
        /// Share left out at either end, below a half.
        #[serde(default = "fifth")]
        share: f64,
    },
    /// The contribution nearest to its neighbours (Blanchard et al., "Machine
    /// learning with adversaries", 2017).
    Krum {
        /// Share of contributions that may do harm, below a half.
        #[serde(default = "fifth")]
        share: f64,
    },
    /// The mean of those nearest to their neighbours (Blanchard et al., 2017).
    MultiKrum {
        /// Share of contributions that may do harm, below a half.
        #[serde(default = "fifth")]
        share: f64,
    },
    /// Krum's choice of contributions, then of each number the mean of those
    /// around its median (El Mhamdi, Guerraoui and Rouault, "The hidden
    /// vulnerability of distributed learning", 2018).
    Bulyan {
        /// Share of contributions that may do harm, below a quarter.
        #[serde(default = "fifth")]
        share: f64,
    },
    /// The mean of changes that are no longer than most (Sun et al., "Can you
    /// really backdoor federated learning?", 2019, with the bound measured).
    Bounded {
        /// Longest change, in times the median length.
        #[serde(default = "one")]
        times: f64,
    },
}

impl Default for Rule {
    fn default() -> Self {
        Self::Mean {}
    }
}

fn fifth() -> f64 {
    0.2
}

fn one() -> f64 {
    1.0
}

impl Rule {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn check(&self) -> Result<(), FederateError> {
        let below = |value: f64, bound: f64, range| {
            let fits = (0.0..bound).contains(&value);
            if fits { Ok(()) } else { Err(FederateError::Range { what: "rule.share", value, range }) }
        };
        match *self {
            Self::Mean {} | Self::Median {} => Ok(()),
            Self::Trimmed { share } | Self::Krum { share } | Self::MultiKrum { share } => {
                below(share, 0.5, "at least 0 and below a half")
            }
            Self::Bulyan { share } => below(share, 0.25, "at least 0 and below a quarter"),
            Self::Bounded { times } if times > 0.0 && times.is_finite() => Ok(()),
            Self::Bounded { times: value } => {
                Err(FederateError::Range { what: "rule.times", value, range: "above 0 and finite" })
            }
        }
    }

    /// What puts contributions of these channels together; a rule that needs
    /// them all keeps them in the spill store.
    #[must_use]
    pub fn aggregate(&self, layout: &Layout, channels: &[Channel], spill: Box<dyn SpillStore>) -> Box<dyn Aggregate> {
        match self {
            Self::Mean {} => Box::new(Mean::new(layout, channels)),
            rule => Box::new(Collected::new(*rule, layout, channels, spill)),
        }
    }

    /// Its name in a job's file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mean {} => "mean",
            Self::Median {} => "median",
            Self::Trimmed { .. } => "trimmed",
            Self::Krum { .. } => "krum",
            Self::MultiKrum { .. } => "multikrum",
            Self::Bulyan { .. } => "bulyan",
            Self::Bounded { .. } => "bounded",
        }
    }

    /// How many contributions it takes to bear its share of harm among so many:
    /// `2 f + 1` to trim, `2 f + 3` for Krum's choice, `4 f + 3` for Bulyan's.
    #[must_use]
    pub fn needs(&self, count: usize) -> usize {
        match *self {
            Self::Mean {} => 1,
            // Of two, nobody can tell which one does harm.
            Self::Median {} | Self::Bounded { .. } => 3,
            Self::Trimmed { share } => (2 * harmful(share, count) + 1).max(3),
            Self::Krum { share } | Self::MultiKrum { share } => 2 * harmful(share, count) + 3,
            Self::Bulyan { share } => 4 * harmful(share, count) + 3,
        }
    }

    /// What contributions amount to.
    fn decide(&self, contributions: &mut Contributions<'_>) -> Result<Vec<f32>, FederateError> {
        let count = contributions.len();
        let harmful = |share| harmful(share, count);
        match *self {
            Self::Mean {} => contributions.mean(&contributions.all()),
            Self::Bounded { times } => bounded::bounded(contributions, times),
            rule if count < rule.needs(count) => median::median(contributions),
            Self::Median {} => median::median(contributions),
            Self::Trimmed { share } => trimmed::trimmed(contributions, harmful(share)),
            Self::Krum { share } => {
                let best = krum::nearest(contributions, harmful(share))?[0];
                contributions.mean(&[Chosen::whole(best)])
            }
            Self::MultiKrum { share } => {
                let mut chosen = krum::nearest(contributions, harmful(share))?;
                chosen.truncate(count - harmful(share));
                let chosen: Vec<Chosen> = chosen.into_iter().map(Chosen::whole).collect();
                contributions.mean(&chosen)
            }
            Self::Bulyan { share } => bulyan::bulyan(contributions, harmful(share)),
        }
    }
}

/// How many of so many a share is: rounded up, since half a contribution does
/// harm as a whole one; 0.07 of 100 are 7, whatever floats make of it.
fn harmful(share: f64, count: usize) -> usize {
    (share * count as f64 - 1e-9).ceil().max(0.0) as usize
}

/// Contributions of a round, for a rule that needs them all.
struct Collected {
    rule: Rule,
    /// Where channels are in a contribution.
    channels: Vec<(Channel, Range<usize>)>,
    spill: Box<dyn SpillStore>,
    /// Of each contribution in the spill store.
    digests: Vec<[u8; 32]>,
}

impl Collected {
    fn new(rule: Rule, layout: &Layout, channels: &[Channel], spill: Box<dyn SpillStore>) -> Self {
        let mut sorted = channels.to_vec();
        sorted.sort_unstable();
        let mut end = 0;
        let place = |channel| {
            let start = end;
            end += layout.len(channel);
            (channel, start..end)
        };
        Self { rule, channels: sorted.into_iter().map(place).collect(), spill, digests: Vec::new() }
    }

    fn length(&self) -> usize {
        self.channels.last().map_or(0, |(_, place)| place.end)
    }

    /// What contributions are compared by: weights, or what a model says.
    fn compared(&self) -> Range<usize> {
        self.place(Channel::Model).or_else(|| self.place(Channel::Logits)).unwrap_or(0..0)
    }

    /// Where a channel is in a contribution.
    fn place(&self, wanted: Channel) -> Option<Range<usize>> {
        self.channels.iter().find(|(channel, _)| *channel == wanted).map(|(_, place)| place.clone())
    }
}

impl Aggregate for Collected {
    fn add(&mut self, weight: Weight, contribution: Contribution) -> Result<(), FederateError> {
        let mut flat = Vec::with_capacity(self.length());
        for (channel, place) in &self.channels {
            let vector = contribution.vectors.get(channel).map_or(&[][..], Vec::as_slice);
            if vector.len() != place.len() {
                let (expected, given) = (place.len(), vector.len());
                return Err(FederateError::Length { channel: channel.name(), expected, given });
            }
            let factor = if channel.is_exact() { 1.0 } else { weight.factor };
            flat.extend(vector.iter().map(|x| (f64::from(*x) * factor) as f32));
        }
        let mut hasher = blake3::Hasher::new();
        for chunk in flat.chunks(1 << 14) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
        self.spill.put(&flat).map_err(|e| FederateError::of_spill_store(&e))?;
        self.digests.push(*hasher.finalize().as_bytes());
        Ok(())
    }

    fn finish(&mut self) -> Result<Vectors, FederateError> {
        let digests = std::mem::take(&mut self.digests);
        if digests.is_empty() {
            return Err(FederateError::Empty);
        }
        let mut places: Vec<usize> = (0..digests.len()).collect();
        places.sort_by_key(|place| digests[*place]);
        let (within, compared) = (0..self.length(), self.compared());
        let statistics = self.place(Channel::Statistics);
        let mut contributions = Contributions { spill: &mut *self.spill, places, within, compared };
        let mut decided = self.rule.decide(&mut contributions)?;
        if let Some(place) = statistics {
            contributions.within = place.clone();
            decided[place].copy_from_slice(&median::median(&mut contributions)?);
        }
        self.clear()?;
        Ok(self.channels.iter().map(|(channel, place)| (*channel, decided[place.clone()].to_vec())).collect())
    }

    fn clear(&mut self) -> Result<(), FederateError> {
        self.digests.clear();
        self.spill.clear().map_err(|e| FederateError::of_spill_store(&e))
    }
}
