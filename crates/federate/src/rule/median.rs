//! The median of each number.

use super::contributions::Contributions;
use crate::FederateError;

pub(super) fn median(contributions: &mut Contributions<'_>) -> Result<Vec<f32>, FederateError> {
    contributions.per_number(&contributions.all(), true, middle)
}

/// Of sorted numbers; between the middle two where there is no middle one.
pub(super) fn middle(sorted: &[f32]) -> f64 {
    let half = sorted.len() / 2;
    let at = |i: usize| f64::from(sorted[i]);
    if sorted.len() % 2 == 1 { at(half) } else { 0.5 * (at(half - 1) + at(half)) }
}
