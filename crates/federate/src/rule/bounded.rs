//! The mean of changes that are no longer than most.

use super::{Vote, average, median};
use crate::Vectors;

pub(super) fn bounded(mut votes: Vec<Vote>, times: f64) -> Vectors {
    let length = |vote: &Vote| vote.model().iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let lengths: Vec<f64> = votes.iter().map(length).collect();
    let mut sorted: Vec<f32> = lengths.iter().map(|l| *l as f32).collect();
    sorted.sort_by(f32::total_cmp);
    let bound = times * median::middle(&sorted);
    for (vote, length) in votes.iter_mut().zip(lengths) {
        if length <= bound {
            continue;
        }
        let scale = bound / length;
        // Whoever exaggerates in one isn't believed in the others.
        for vector in vote.0.values_mut() {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
        }
    }
    average(&votes)
}
