//! What a member says of the work behind its contribution, and what of that can
//! be believed: numbers that are bounded, so that means and sums of them are
//! too, and finite, so that a journal can hold them. Start at [`Report`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::aggregate::mean_of;
use crate::{Counted, FederateError, HeldOut};

/// Examples of one member, at most: as many as a sum takes of weights that
/// change by 8.
pub const EXAMPLES_MAX: u64 = 1 << 32;

/// Steps of one member, at most.
pub const STEPS_MAX: u64 = 1 << 40;

/// Bytes of one member's members, at most: those of a million add up.
pub const BYTES_MAX: u64 = 1 << 43;

/// Largest loss, and largest of other numbers, whose mean is finite whatever
/// they are weighted by.
pub const LOSS_MAX: f64 = 1e30;

/// What a member says of the work behind its contribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Examples that were learned from, each counted once.
    pub examples: u64,
    /// Steps taken.
    pub steps: u64,
    /// What the steps amount to where momentum carries on: the norm of the
    /// vector of step coefficients (Wang et al., "Tackling the objective
    /// inconsistency problem", 2020). Equal to `steps` without momentum.
    pub effective_steps: f64,
    /// Averaged over the examples, each before its step.
    pub loss: f64,
    /// Share of the examples that were right before their step, where targets
    /// are classes.
    pub accuracy: Option<f64>,
    /// Time it took, the way to here left out.
    pub seconds: f64,
    /// Of a member that coordinates others: bytes of their updates.
    #[serde(default)]
    pub bytes_up: u64,
    /// And of the models that they got.
    #[serde(default)]
    pub bytes_down: u64,
    /// Of the model that the work began with, on examples that ends hold out;
    /// `None` where they didn't evaluate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

impl Report {
    /// Refuses numbers that can't be true of work that was done.
    ///
    /// # Errors
    /// [`FederateError::Report`], naming the first of them.
    pub fn check(&self) -> Result<(), FederateError> {
        for (what, count) in [("examples", self.examples), ("steps", self.steps)] {
            said(what, count as f64, count > 0, "above 0")?;
        }
        let effective = self.effective_steps;
        let range = "above 0 and at most 2^50";
        said("effective steps", effective, effective > 0.0 && effective <= (1u64 << 50) as f64, range)?;
        self.check_evaluation()
    }

    /// Refuses numbers that can't be true, of work or of an evaluation.
    ///
    /// # Errors
    /// [`FederateError::Report`], [`FederateError::HeldOut`].
    pub fn check_evaluation(&self) -> Result<(), FederateError> {
        let counts = [
            ("examples", self.examples, EXAMPLES_MAX, "at most 2^32"),
            ("steps", self.steps, STEPS_MAX, "at most 2^40"),
            ("bytes up", self.bytes_up, BYTES_MAX, "at most 2^43"),
            ("bytes down", self.bytes_down, BYTES_MAX, "at most 2^43"),
        ];
        for (what, count, max, range) in counts {
            said(what, count as f64, count <= max, range)?;
        }
        let share = self.accuracy.unwrap_or(0.0);
        said("effective steps", self.effective_steps, self.effective_steps.abs() <= LOSS_MAX, "finite")?;
        said("loss", self.loss, self.loss.abs() <= LOSS_MAX, "finite, at most 1e30")?;
        said("accuracy", share, (0.0..=1.0).contains(&share), "from 0 to 1")?;
        said("seconds", self.seconds, (0.0..=LOSS_MAX).contains(&self.seconds), "finite, at least 0")?;
        self.held_out.map_or(Ok(()), |held_out| held_out.check())
    }

    /// What members' reports amount to for the hop above: each member's
    /// examples once, bytes together, means of the rest. What members may say
    /// bounds it: no one of them makes it unfit to pass on.
    #[must_use]
    pub fn together(counted: &[Counted]) -> Self {
        let mut examples: BTreeMap<&str, u64> = BTreeMap::new();
        for c in counted {
            let of = examples.entry(&c.member).or_default();
            *of = (*of).max(c.report.examples);
        }
        // Rounding may lead a mean beyond the largest of its numbers.
        let mean = |of: fn(&Self) -> f64| mean_of(counted, of).clamp(-LOSS_MAX, LOSS_MAX);
        let total = |of: fn(&Self) -> u64, max: u64| {
            counted.iter().fold(0u64, |sum, c| sum.saturating_add(of(&c.report))).min(max)
        };
        let accurate = counted.iter().all(|c| c.report.accuracy.is_some());
        Self {
            examples: examples.values().fold(0u64, |sum, n| sum.saturating_add(*n)).min(EXAMPLES_MAX),
            steps: mean(|r| r.steps as f64).round().max(1.0) as u64,
            effective_steps: mean(|r| r.effective_steps),
            loss: mean(|r| r.loss),
            accuracy: accurate.then(|| mean(|r| r.accuracy.unwrap_or(0.0))),
            seconds: mean(|r| r.seconds),
            bytes_up: total(|r| r.bytes_up, BYTES_MAX),
            bytes_down: total(|r| r.bytes_down, BYTES_MAX),
            held_out: HeldOut::together(counted),
        }
    }
}

fn said(what: &'static str, value: f64, fits: bool, range: &'static str) -> Result<(), FederateError> {
    if fits { Ok(()) } else { Err(FederateError::Report { what, value, range }) }
}
