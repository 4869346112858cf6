//! Every plan that is best somewhere: computed once over a grid of link
//! conditions, compared in microseconds afterwards.
//!
//! Over four decades of bandwidth a model has a handful of distinct optimal
//! placements (14 in our widest measurement); between grid points the best of
//! them is chosen by evaluating each at the exact conditions. What the grid
//! can't foresee (a device that turns out slower than it was measured, a round
//! trip shorter than any of the grid) is searched for when it happens, and the
//! placement found stays ([`PlanTable::extend`]). A direct link is a path of
//! its own, with two tiers and its own table. Changing plans only
//! when it pays and lasts is the node's business.

use crate::evaluate::{Evaluation, Route, Violation};
use crate::plan::{Plan, PlanError, check, conclude, state_gap};
use crate::request::{LinkCondition, PlanRequest};
use crate::search::Prepared;

/// Link conditions searched at most; with many tiers the grid is coarser.
const CONDITIONS_MAX: usize = 2_000;

/// Placements of a table at most; searches find no more beyond it.
const PLACEMENTS_MAX: usize = 128;

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
    prepared: Prepared,
    placements: Vec<Vec<usize>>,
}

impl PlanTable {
    /// Plans for every point of the grid and for lost links: all links down,
    /// the upper ones down.
    ///
    /// # Errors
    /// When the request itself is malformed, or nothing is feasible anywhere.
    pub fn precompute(request: PlanRequest, grid: &Grid) -> Result<Self, PlanError> {
        check(&request)?;
        let prepared = Prepared::new(&request);
        let boundaries = request.tiers.len() - 1;
        let mut placements: Vec<Vec<usize>> = Vec::new();
        let mut first_error = None;
        let mut points_count = grid.bandwidth_points.max(2);
        while points_count > 2 && points_count.saturating_pow(boundaries as u32) * grid.rtts_ns.len() > CONDITIONS_MAX {
            points_count -= 1;
        }
        let points = points(grid, points_count);
        for reachable in 0..=boundaries {
            let mut at = vec![0usize; reachable];
            loop {
                for &rtt in &grid.rtts_ns {
                    let links: Vec<LinkCondition> =
                        at.iter().map(|&i| LinkCondition::symmetric(points[i], rtt)).collect();
                    let findings = prepared.search(&request, Route::Line, &links, None);
                    match conclude(&request, findings, &links, None) {
                        Ok(plan) if !placements.contains(&plan.bounds) => placements.push(plan.bounds),
                        Ok(_) => {}
                        Err(e) => first_error = first_error.or(Some(e)),
                    }
                }
                // An odometer over the grid of all links.
                let Some(wheel) = at.iter().rposition(|&i| i + 1 < points.len()) else { break };
                at[wheel] += 1;
                at[wheel + 1..].fill(0);
            }
        }
        match (placements.is_empty(), first_error) {
            (true, Some(e)) => Err(e),
            (true, None) => Err(PlanError::Empty),
            _ => Ok(Self { request, prepared, placements }),
        }
    }

    /// Searches for the best placement of `now`, which is the table's request
    /// with times as they turned out, and keeps it. Its index, where it is new.
    pub fn extend(&mut self, now: &PlanRequest, links: &[LinkCondition]) -> Option<usize> {
        if self.placements.len() >= PLACEMENTS_MAX {
            return None;
        }
        let findings = Prepared::new(now).search(now, Route::Line, links, None);
        // What can't be placed now gives no placement.
        let bounds = conclude(now, findings, links, None).ok()?.bounds;
        if self.placements.contains(&bounds) {
            return None;
        }
        self.placements.push(bounds);
        Some(self.placements.len() - 1)
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

    /// Bytes that it takes in memory, about.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        let placements = self.placements.iter().map(|bounds| size_of::<Vec<usize>>() + size_of_val(bounds.as_slice()));
        (self.request.byte_len() + self.prepared.byte_len() + placements.sum::<usize>()) as u64
    }

    /// Boundaries of placement `index`.
    #[must_use]
    pub fn bounds(&self, index: usize) -> &[usize] {
        &self.placements[index]
    }

    /// Placement `index` with its best codecs under exact conditions.
    ///
    /// # Errors
    /// When it violates a limit or needs a link that is down.
    pub fn evaluate(&self, index: usize, links: &[LinkCondition]) -> Result<Evaluation, Violation> {
        self.request.evaluate_prepared(&self.prepared, &self.placements[index], Route::Line, links, None)
    }

    /// The best of the placements under exact conditions, and its value.
    #[must_use]
    pub fn choose(&self, links: &[LinkCondition]) -> Option<(usize, f64)> {
        self.prepared.choose(&self.request, &self.placements, links)
    }

    /// The best plan under exact conditions, whether in the table or not: for
    /// explaining, with runner-up and binding limit.
    ///
    /// # Errors
    /// When nothing is feasible.
    pub fn plan(&self, links: &[LinkCondition]) -> Result<Plan, PlanError> {
        let findings = self.prepared.search(&self.request, Route::Line, links, None);
        let mut plan = conclude(&self.request, findings, links, None)?;
        state_gap(&self.request, &self.prepared, &mut plan, links, None);
        Ok(plan)
    }
}

fn points(grid: &Grid, count: usize) -> Vec<f64> {
    let (low, high) = grid.bandwidth;
    (0..count).map(|i| low * (high / low).powf(i as f64 / (count - 1) as f64)).collect()
}
