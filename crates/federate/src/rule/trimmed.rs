//! The mean of each number without its extremes.

use super::contributions::{self, Contributions};
use crate::FederateError;

pub(super) fn trimmed(contributions: &mut Contributions<'_>, out: usize) -> Result<Vec<f32>, FederateError> {
    contributions.per_number(&contributions.all(), true, |sorted| contributions::mean(&sorted[out..sorted.len() - out]))
}
