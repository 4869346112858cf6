//! Contributions put together as they arrive, in memory that doesn't grow
//! with their number.

use std::collections::BTreeMap;

use crate::sum::{ExactSum, TOGETHER_MAX};
use crate::{Channel, Contribution, Counted, FederateError, Layout, Report, Vectors};

/// How much a contribution counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weight {
    /// Its share in the mean, above 0; what it is relative to doesn't matter.
    pub share: f64,
    /// What its changes of weights are multiplied by besides; statistics
    /// aren't.
    pub factor: f64,
    /// How much of what it measured counts, above 0 and at most 1: less where
    /// that was long ago.
    pub fresh: f64,
}

/// Puts contributions together. What comes out doesn't depend on the order in
/// which they went in.
pub trait Aggregate: Send {
    /// Takes one contribution, whose numbers [`check`] and [`check_size`] have
    /// found fit.
    ///
    /// # Errors
    /// When it is of another length; nothing of it was taken then.
    fn add(&mut self, weight: Weight, contribution: Contribution) -> Result<(), FederateError>;

    /// What all of them amount to, and a fresh start.
    ///
    /// # Errors
    /// When there were none.
    fn finish(&mut self) -> Result<Vectors, FederateError>;

    /// Forgets what was taken.
    ///
    /// # Errors
    /// When what lies elsewhere can't be forgotten.
    fn clear(&mut self) -> Result<(), FederateError>;
}

/// Refuses a contribution that isn't of these channels, this layout, or of
/// finite numbers only, or that says of itself what can't be.
///
/// # Errors
/// What is wrong with it.
pub fn check(layout: &Layout, channels: &[Channel], contribution: &Contribution) -> Result<(), FederateError> {
    let given: Vec<Channel> = contribution.vectors.keys().copied().collect();
    if given != channels {
        let list = |of: &[Channel]| of.iter().map(|c| c.name()).collect::<Vec<_>>().join(", ");
        return Err(FederateError::Channels { expected: list(channels), given: list(&given) });
    }
    contribution.report.check()?;
    layout.check_all(&contribution.vectors)?;
    layout.check_variances(&contribution.vectors)
}

/// Refuses numbers so large that others' would not fit beside them.
///
/// # Errors
/// [`FederateError::Sum`].
pub fn check_size(weight: Weight, contribution: &Contribution) -> Result<(), FederateError> {
    ExactSum::admits_of_a_member(weight.share, &[1.0])
        .map_err(|source| FederateError::Sum { channel: "examples", source })?;
    for (&channel, vector) in &contribution.vectors {
        ExactSum::admits_of_a_member(scale(channel, weight), vector)
            .map_err(|source| FederateError::Sum { channel: channel.name(), source })?;
    }
    Ok(())
}

/// Refuses an answer that should say how a model does, and nothing else.
///
/// # Errors
/// What is wrong with it.
pub fn check_evaluation(contribution: &Contribution) -> Result<(), FederateError> {
    let given: Vec<&str> = contribution.vectors.keys().map(|c| c.name()).collect();
    if !given.is_empty() {
        let expected = "nothing, for an evaluation".to_owned();
        return Err(FederateError::Channels { expected, given: given.join(", ") });
    }
    contribution.report.check_evaluation()
}

/// Bytes of contributions that wait to be added in one pass, at most; but for
/// the first.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// The weighted mean.
#[derive(Debug)]
pub struct Mean {
    sums: BTreeMap<Channel, ExactSum>,
    /// Shares so far, and what they come to for statistics. Their own sums must
    /// not depend on the order either.
    shares: [ExactSum; 2],
    count: usize,
    /// Taken, and not in the sums yet.
    waiting: Vec<(Weight, Vectors)>,
}

impl Mean {
    /// Nothing yet, of these channels.
    #[must_use]
    pub fn new(layout: &Layout, channels: &[Channel]) -> Self {
        let sums = channels.iter().map(|&c| (c, ExactSum::new(layout.len(c)))).collect();
        Self { sums, shares: [ExactSum::new(1), ExactSum::new(1)], count: 0, waiting: Vec::new() }
    }

    /// Contributions that are worth waiting for before sums are gone through.
    fn together(&self) -> usize {
        let bytes: usize = self.sums.values().map(|sum| 4 * sum.len()).sum();
        (WAITING_BYTES_MAX / bytes.max(1)).clamp(1, TOGETHER_MAX)
    }

    /// Adds what waits.
    fn settle(&mut self) {
        for (channel, sum) in &mut self.sums {
            let terms = self.waiting.iter().map(|(weight, v)| (scale(*channel, *weight), v[channel].as_slice()));
            sum.put(&terms.collect::<Vec<_>>());
        }
        self.waiting.clear();
    }
}

impl Aggregate for Mean {
    fn add(&mut self, weight: Weight, contribution: Contribution) -> Result<(), FederateError> {
        debug_assert_eq!(check_size(weight, &contribution), Ok(()), "it was checked");
        for (channel, sum) in &self.sums {
            let given = contribution.vectors.get(channel).map_or(0, Vec::len);
            if given != sum.len() {
                return Err(FederateError::Length { channel: channel.name(), expected: sum.len(), given });
            }
        }
        let failed = |source| FederateError::Sum { channel: "examples", source };
        let [shares, of_statistics] = &mut self.shares;
        shares.add(weight.share, &[1.0]).map_err(failed)?;
        // No more than that one has taken.
        of_statistics.add(weight.share * weight.fresh, &[1.0]).map_err(failed)?;
        self.sums.values_mut().try_for_each(ExactSum::expect_one).map_err(failed)?;
        self.count += 1;
        self.waiting.push((weight, contribution.vectors));
        if self.waiting.len() >= self.together() {
            self.settle();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Vectors, FederateError> {
        if self.count == 0 {
            return Err(FederateError::Empty);
        }
        self.settle();
        let [total, of_statistics] = [0, 1].map(|which: usize| self.shares[which].exactly()[0]);
        let over = |channel: Channel| if channel == Channel::Statistics { of_statistics } else { total };
        // Of what is so old that it counts for nothing there is no mean.
        let counts = |channel: &&Channel| over(**channel) > 0.0;
        let channels = self.sums.keys().filter(counts);
        let means = channels.map(|&channel| (channel, self.sums[&channel].over(over(channel)))).collect();
        self.clear()?;
        Ok(means)
    }

    fn clear(&mut self) -> Result<(), FederateError> {
        self.sums.values_mut().for_each(ExactSum::clear);
        self.shares.iter_mut().for_each(ExactSum::clear);
        self.waiting.clear();
        self.count = 0;
        Ok(())
    }
}

fn scale(channel: Channel, weight: Weight) -> f64 {
    match channel {
        Channel::Statistics => weight.share * weight.fresh,
        Channel::Labels => weight.share,
        _ => weight.share * weight.factor,
    }
}

/// The mean of a number of the reports, weighted by examples; 0 for none.
#[must_use]
pub fn mean_of(counted: &[Counted], number: impl Fn(&Report) -> f64) -> f64 {
    // In the order of members, not of arrival.
    let mut sorted: Vec<&Counted> = counted.iter().collect();
    sorted.sort_by(|a, b| a.member.cmp(&b.member));
    let examples: f64 = sorted.iter().map(|c| c.report.examples as f64).sum();
    let total: f64 = sorted.iter().map(|c| number(&c.report) * c.report.examples as f64).sum();
    if examples > 0.0 { total / examples } else { 0.0 }
}
