//! Every plan that is best somewhere: computed once over a grid of link
//! conditions, compared in microseconds afterwards.
//!
//! Over four decades of bandwidth a model has a handful of distinct optimal
//! placements (14 in our widest measurement); between grid points the best of
//! them is chosen by evaluating each at the exact conditions.

use crate::plan::{Plan, PlanError, plan};
use crate::request::{Evaluation, LinkCondition, PlanRequest, Violation};

/// Link conditions to plan for.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Slowest and fastest link, bytes per second.
    pub bandwidth: (f64, f64),
    /// Points between them, spaced evenly in the logarithm.
    pub bandwidth_points: usize,
    /// Round trips, nanoseconds.
    pub rtts_ns: Vec<u64>,
}

impl Default for Grid {
    /// 0.08 Mbit/s to 1.2 Gbit/s, 14 points; round trips from LAN to mobile.
    fn default() -> Self {
        Self { bandwidth: (1e4, 1.5e8), bandwidth_points: 14, rtts_ns: vec![1_000_000, 40_000_000] }
    }
}

/// Distinct optimal placements of one request.
#[derive(Debug, Clone)]
pub struct PlanTable {
    request: PlanRequest,
    placements: Vec<Vec<usize>>,
}

impl PlanTable {
    /// Plans for every point of the grid, and for lost links: all links down,
    /// the upper ones down.
    ///
    /// # Errors
    /// When the request itself is malformed, or nothing is feasible anywhere.
    pub fn precompute(request: PlanRequest, grid: &Grid) -> Result<Self, PlanError> {
        let boundaries = request.tiers.len().saturating_sub(1);
        let mut placements: Vec<Vec<usize>> = Vec::new();
        let mut last_error = None;
        let mut visit = |links: &[LinkCondition]| match plan(&request, links) {
            Ok(p) if !placements.contains(&p.bounds) => placements.push(p.bounds),
            Ok(_) => {}
            Err(e) => last_error = Some(e),
        };
        let points = points(grid);
        for reachable in 0..=boundaries {
            let mut at = vec![0usize; reachable];
            loop {
                for &rtt in &grid.rtts_ns {
                    let links: Vec<LinkCondition> =
                        at.iter().map(|&i| LinkCondition::symmetric(points[i], rtt)).collect();
                    visit(&links);
                }
                // An odometer over the grid of all links.
                let Some(wheel) = at.iter().rposition(|&i| i + 1 < points.len()) else { break };
                at[wheel] += 1;
                at[wheel + 1..].fill(0);
            }
        }
        match (placements.is_empty(), last_error) {
            (true, Some(e)) => Err(e),
            (true, None) => Err(PlanError::Empty),
            _ => Ok(Self { request, placements }),
        }
    }

    /// The request it was made for.
    #[must_use]
    pub fn request(&self) -> &PlanRequest {
        &self.request
    }

    /// Number of distinct placements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.placements.len()
    }

    /// Whether it holds none; never, once precomputed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.placements.is_empty()
    }

    /// Boundaries of placement `index`.
    #[must_use]
    pub fn bounds(&self, index: usize) -> &[usize] {
        &self.placements[index]
    }

    /// Placement `index` under exact conditions.
    ///
    /// # Errors
    /// When it violates a limit or needs a link that is down.
    pub fn evaluate(&self, index: usize, links: &[LinkCondition]) -> Result<Evaluation, Violation> {
        self.request.evaluate(&self.placements[index], links)
    }

    /// The best of the placements under exact conditions, and its value.
    #[must_use]
    pub fn choose(&self, links: &[LinkCondition]) -> Option<(usize, f64)> {
        (0..self.placements.len())
            .filter_map(|i| Some((i, self.evaluate(i, links).ok()?.cost.objective(self.request.objective))))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The full plan of the placement that [`Self::choose`] gives.
    #[must_use]
    pub fn plan(&self, links: &[LinkCondition]) -> Option<Plan> {
        plan(&self.request, links).ok()
    }
}

fn points(grid: &Grid) -> Vec<f64> {
    let (low, high) = grid.bandwidth;
    let steps = grid.bandwidth_points.max(2) - 1;
    (0..=steps).map(|i| low * (high / low).powf(i as f64 / steps as f64)).collect()
}
