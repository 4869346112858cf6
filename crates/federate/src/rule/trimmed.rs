//! The mean of each number without its extremes.

use super::{Vote, per_number};
use crate::Vectors;

pub(super) fn trimmed(votes: &[Vote], out: usize) -> Vectors {
    // Something stays, however few there are.
    let out = out.min((votes.len() - 1) / 2);
    per_number(votes, |sorted| {
        let kept = &sorted[out..sorted.len() - out];
        kept.iter().map(|x| f64::from(*x)).sum::<f64>() / kept.len() as f64
    })
}
