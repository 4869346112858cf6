//! The mean of each number without its extremes.

use super::votes::{self, Votes};
use crate::FederateError;

pub(super) fn trimmed(votes: &mut Votes<'_>, out: usize) -> Result<Vec<f32>, FederateError> {
    votes.per_number(&votes.all(), true, |sorted| votes::mean(&sorted[out..sorted.len() - out]))
}
