//! The mean of changes that are no longer than most.

use super::median;
use super::votes::{Chosen, Votes};
use crate::FederateError;

pub(super) fn bounded(votes: &mut Votes<'_>, times: f64) -> Result<Vec<f32>, FederateError> {
    let lengths = votes.norms()?;
    let mut sorted: Vec<f32> = lengths.iter().map(|l| *l as f32).collect();
    sorted.sort_by(f32::total_cmp);
    let bound = times * median::middle(&sorted);
    // Whoever exaggerates in one channel isn't believed in the others.
    let scale = |length: f64| if length <= bound { 1.0 } else { bound / length };
    let chosen: Vec<Chosen> =
        lengths.iter().enumerate().map(|(vote, length)| Chosen { vote, scale: scale(*length) }).collect();
    votes.mean(&chosen)
}
