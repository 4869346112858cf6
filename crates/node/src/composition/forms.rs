//! Cascade, ensemble and chain: three shapes of one graph of steps.

use super::{Answers, Gate, Step};

/// Of the time left, what all but the last of a cascade may take before the
/// next is asked beside it.
pub const SHARE_DEFAULT: f64 = 0.5;

/// Steps, and which answers make the service's.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// One for each member, in its order.
    pub steps: Vec<Step>,
    /// Which answers count.
    pub answers: Answers,
}

impl Form {
    /// One after the other, until one is sure. `shares`: what each may take of
    /// the time left before the next is asked beside it.
    #[must_use]
    pub fn cascade(shares: &[Option<f64>]) -> Self {
        let step = |(place, share): (usize, &Option<f64>)| Step {
            after: place.checked_sub(1).into_iter().collect(),
            gate: if place == 0 { Gate::Answered } else { Gate::Unsure },
            share: share.unwrap_or(SHARE_DEFAULT),
            pieces: false,
        };
        Self { steps: shares.iter().enumerate().map(step).collect(), answers: Answers::Latest }
    }

    /// All at once; `least` answers are enough once no more come.
    #[must_use]
    pub fn ensemble(members: usize, least: usize) -> Self {
        let step = Step { after: Vec::new(), gate: Gate::Answered, share: 1.0, pieces: false };
        Self { steps: vec![step; members], answers: Answers::Least(least) }
    }

    /// Each as soon as those that it takes something of have answered:
    /// `before` says whom, and whether it is asked in pieces.
    #[must_use]
    pub fn chain(before: &[(Vec<usize>, bool)]) -> Self {
        let step = |(after, pieces): &(Vec<usize>, bool)| Step {
            after: after.clone(),
            gate: Gate::Answered,
            share: 1.0,
            pieces: *pieces,
        };
        Self { steps: before.iter().map(step).collect(), answers: Answers::All }
    }
}
