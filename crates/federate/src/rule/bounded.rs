//! The mean of changes that are no longer than most.

use super::contributions::{Chosen, Contributions};
use super::median;
use crate::FederateError;

pub(super) fn bounded(contributions: &mut Contributions<'_>, times: f64) -> Result<Vec<f32>, FederateError> {
    let lengths = contributions.norms()?;
    let mut sorted: Vec<f32> = lengths.iter().map(|l| *l as f32).collect();
    sorted.sort_by(f32::total_cmp);
    let bound = times * median::middle(&sorted);
    // Whoever exaggerates in one channel isn't believed in the others.
    let scale = |length: f64| if length <= bound { 1.0 } else { bound / length };
    let chosen: Vec<Chosen> = lengths
        .iter()
        .enumerate()
        .map(|(contribution, length)| Chosen { contribution, scale: scale(*length) })
        .collect();
    contributions.mean(&chosen)
}
