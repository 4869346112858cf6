//! Contributions by how near they are to their neighbours.

use super::Vote;

/// Places of votes, the one nearest to its `n - harmful - 2` neighbours first.
pub(super) fn nearest(votes: &[Vote], harmful: usize) -> Vec<usize> {
    let places: Vec<usize> = (0..votes.len()).collect();
    ranked(&distances(votes), &places, harmful)
}

/// Squared distances of all pairs, of changes of weights.
pub(super) fn distances(votes: &[Vote]) -> Vec<Vec<f64>> {
    let mut all = vec![vec![0f64; votes.len()]; votes.len()];
    for i in 0..votes.len() {
        for j in 0..i {
            let pairs = votes[i].model().iter().zip(votes[j].model());
            let distance: f64 = pairs.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            (all[i][j], all[j][i]) = (distance, distance);
        }
    }
    all
}

/// Some of the votes, the one nearest to its neighbours among them first.
pub(super) fn ranked(distances: &[Vec<f64>], among: &[usize], harmful: usize) -> Vec<usize> {
    let neighbours = among.len().saturating_sub(harmful + 2).max(1);
    let score = |&i: &usize| -> f64 {
        let mut to: Vec<f64> = among.iter().filter(|j| **j != i).map(|&j| distances[i][j]).collect();
        to.sort_by(f64::total_cmp);
        to.iter().take(neighbours).sum()
    };
    let mut scored: Vec<(f64, usize)> = among.iter().map(|i| (score(i), *i)).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, i)| i).collect()
}
