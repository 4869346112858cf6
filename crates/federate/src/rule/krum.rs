//! Contributions by how near they are to their neighbours.

use super::contributions::Contributions;
use crate::FederateError;

/// Contributions, the one nearest to its `n - harmful - 2` neighbours first.
pub(super) fn nearest(contributions: &mut Contributions<'_>, harmful: usize) -> Result<Vec<usize>, FederateError> {
    let all: Vec<usize> = (0..contributions.len()).collect();
    Ok(ranked(&contributions.distances()?, &all, harmful))
}

/// Some of the contributions, the one nearest to its neighbours among them first.
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
