//! Rules that put contributions together although some are made to do harm.
//!
//! All but [`Rule::Mean`] count every member alike, since a number of examples
//! is only said, and hold the contributions of a round in memory until it
//! ends: their decisions need all of them.
//!
//! # Adding a rule
//!
//! Write `mine.rs` with a function from `Vote`s (and the settings) to the
//! vectors that they amount to, like `median.rs`; add a variant to [`Rule`]
//! with its bounds in [`Rule::check`], and a line in `Collected::finish`. Say
//! in `tests/it/rules.rs` what it gives on small numbers; the laws there (order
//! of arrival, a minority far away changes little) hold for all.

mod bounded;
mod bulyan;
mod krum;
mod median;
mod trimmed;

use serde::{Deserialize, Serialize};

use crate::aggregate::{Aggregate, Mean, Weight};
use crate::{Channel, Contribution, FederateError, Layout, Vectors};

/// How contributions are put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Rule {
    /// The weighted mean.
    #[default]
    Mean,
    /// The median of each number (Yin et al., "Byzantine-robust distributed
    /// learning", 2018).
    Median,
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

fn fifth() -> f64 {
    0.2
}

fn one() -> f64 {
    1.0
}

/// A contribution's vectors, changes of weights multiplied by its factor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vote(pub(crate) Vectors);

impl Vote {
    /// What votes are compared by: weights, or what a model says.
    fn model(&self) -> &[f32] {
        let compared = self.0.get(&Channel::Model).or_else(|| self.0.get(&Channel::Logits));
        compared.map_or(&[], Vec::as_slice)
    }
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
            Self::Mean | Self::Median => Ok(()),
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

    /// What puts contributions of these channels together.
    #[must_use]
    pub fn aggregate(&self, layout: &Layout, channels: &[Channel]) -> Box<dyn Aggregate> {
        match self {
            Self::Mean => Box::new(Mean::new(layout, channels)),
            rule => Box::new(Collected { rule: *rule, votes: Vec::new() }),
        }
    }
}

/// Contributions of a round, for a rule that needs them all.
struct Collected {
    rule: Rule,
    votes: Vec<Vote>,
}

impl Aggregate for Collected {
    fn add(&mut self, weight: Weight, contribution: &Contribution) -> Result<(), FederateError> {
        let mut vectors = contribution.vectors.clone();
        for (channel, vector) in &mut vectors {
            if *channel != Channel::Statistics && weight.factor != 1.0 {
                vector.iter_mut().for_each(|x| *x = (f64::from(*x) * weight.factor) as f32);
            }
        }
        self.votes.push(Vote(vectors));
        Ok(())
    }

    fn finish(&mut self) -> Result<Vectors, FederateError> {
        let mut votes = std::mem::take(&mut self.votes);
        if votes.is_empty() {
            return Err(FederateError::Empty);
        }
        // By content, so that the order of arrival decides nothing, not even ties.
        votes.sort_by(|a, b| {
            let bits = |vote: &Vote| vote.model().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let first = a.model().iter().zip(b.model()).find(|(x, y)| x != y);
            first.map_or_else(|| bits(a).cmp(&bits(b)), |(x, y)| x.total_cmp(y))
        });
        let harmful = |share: f64| (share * votes.len() as f64).floor() as usize;
        Ok(match self.rule {
            Rule::Mean => average(&votes),
            Rule::Median => median::median(&votes),
            Rule::Trimmed { share } => trimmed::trimmed(&votes, harmful(share)),
            Rule::Krum { share } => average(&[votes[krum::nearest(&votes, harmful(share))[0]].clone()]),
            Rule::MultiKrum { share } => {
                let mut chosen = krum::nearest(&votes, harmful(share));
                chosen.truncate(votes.len() - harmful(share));
                let chosen: Vec<Vote> = chosen.into_iter().map(|i| votes[i].clone()).collect();
                average(&chosen)
            }
            Rule::Bulyan { share } => bulyan::bulyan(&votes, harmful(share)),
            Rule::Bounded { times } => bounded::bounded(votes, times),
        })
    }
}

/// The plain mean.
fn average(votes: &[Vote]) -> Vectors {
    per_number(votes, |column| column.iter().map(|x| f64::from(*x)).sum::<f64>() / column.len() as f64)
}

/// Makes one number of those that all votes have in a place, sorted.
fn per_number(votes: &[Vote], of: impl Fn(&[f32]) -> f64) -> Vectors {
    let mut column = vec![0f32; votes.len()];
    let channels = votes.first().map(|vote| &vote.0).into_iter().flatten();
    channels
        .map(|(&channel, first)| {
            let number = |i: usize| {
                column.iter_mut().zip(votes).for_each(|(x, vote)| *x = vote.0[&channel][i]);
                column.sort_by(f32::total_cmp);
                of(&column) as f32
            };
            (channel, (0..first.len()).map(number).collect())
        })
        .collect()
}
