//! Krum's choice, then of each number the mean of those around its median.

use super::contributions::{Chosen, Contributions};
use super::{krum, median};
use crate::FederateError;

pub(super) fn bulyan(contributions: &mut Contributions<'_>, harmful: usize) -> Result<Vec<f32>, FederateError> {
    let distances = contributions.distances()?;
    let mut left: Vec<usize> = (0..contributions.len()).collect();
    let mut chosen = Vec::new();
    let count = contributions.len() - 2 * harmful;
    while chosen.len() < count {
        let best = krum::ranked(&distances, &left, harmful)[0];
        left.retain(|i| *i != best);
        chosen.push(Chosen::whole(best));
    }
    let kept = count - 2 * harmful;
    contributions.per_number(&chosen, true, |sorted| {
        let middle = median::middle(sorted);
        let mut near: Vec<f64> = sorted.iter().map(|x| f64::from(*x)).collect();
        near.sort_by(|a, b| (a - middle).abs().total_cmp(&(b - middle).abs()).then(a.total_cmp(b)));
        near[..kept].iter().sum::<f64>() / kept as f64
    })
}
