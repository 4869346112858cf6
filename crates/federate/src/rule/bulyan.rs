//! Krum's choice, then of each number the mean of those around its median.

use super::{Vote, krum, median, per_number};
use crate::Vectors;

pub(super) fn bulyan(votes: &[Vote], harmful: usize) -> Vectors {
    let distances = krum::distances(votes);
    let mut left: Vec<usize> = (0..votes.len()).collect();
    let mut chosen = Vec::new();
    let count = votes.len().saturating_sub(2 * harmful).max(1);
    while chosen.len() < count {
        let best = krum::ranked(&distances, &left, harmful)[0];
        left.retain(|i| *i != best);
        chosen.push(votes[best].clone());
    }
    let kept = count.saturating_sub(2 * harmful).max(1);
    per_number(&chosen, |sorted| {
        let middle = median::middle(sorted);
        let mut near: Vec<f64> = sorted.iter().map(|x| f64::from(*x)).collect();
        near.sort_by(|a, b| (a - middle).abs().total_cmp(&(b - middle).abs()).then(a.total_cmp(b)));
        near[..kept].iter().sum::<f64>() / kept as f64
    })
}
