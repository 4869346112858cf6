//! Finds the best placement of a chain of segments, exactly, and says how
//! good the next best is.
//!
//! Candidate cuts make a chain, and on a chain every placement is a choice of
//! `K - 1` boundaries: with two dozen cuts and three tiers 325 of them. All
//! are evaluated with every limit and objective, so the answer is exact even
//! where the general problem is NP-hard; graphs that aren't chains go to
//! [`crate::problem`].

use serde::{Deserialize, Serialize};

use crate::request::{Evaluation, LinkCondition, Objective, PlanRequest, Violation};

/// Placements tried at most; 64 segments on four tiers are 47,905.
pub const PLACEMENTS_MAX: usize = 2_000_000;

/// A placement and what it is predicted to cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// First segment above each tier but the last: `bounds[k]` is where tier
    /// `k` hands on.
    pub bounds: Vec<usize>,
    /// Stages, links and costs.
    pub evaluation: Evaluation,
    /// What the objective compares: seconds, joules, money.
    pub objective_value: f64,
    /// No placement can be below this.
    pub bound: f64,
    /// `(objective_value - bound) / objective_value`: 0 is proved optimal.
    pub gap: f64,
    /// The next best placement that differs, and its value.
    pub runner_up: Option<RunnerUp>,
    /// The limit that keeps a better placement away, when one does.
    pub binding: Option<String>,
}

/// The second best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunnerUp {
    /// Its boundaries.
    pub bounds: Vec<usize>,
    /// Its value.
    pub objective_value: f64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Nothing to place, or nowhere.
    #[error("a plan needs at least one tier and one segment")]
    Empty,
    /// Numbers of segments differ.
    #[error("tier `{tier}` has times for {actual} segments; the model has {expected}; profile it again")]
    Mismatch {
        /// The tier.
        tier: String,
        /// Segments profiled.
        actual: usize,
        /// Segments there are.
        expected: usize,
    },
    /// Too many placements to try.
    #[error("{0} placements are too many to try; use fewer candidate cuts")]
    TooMany(usize),
    /// Every placement violates a limit.
    #[error("no placement satisfies the limits; the nearest fails because {0}")]
    Infeasible(Violation),
}

/// The best placement under `links`, lowest link first.
///
/// # Errors
/// [`PlanError`].
pub fn plan(request: &PlanRequest, links: &[LinkCondition]) -> Result<Plan, PlanError> {
    check(request)?;
    let (mut best, mut second): (Option<(f64, Vec<usize>, Evaluation)>, Option<(f64, Vec<usize>)>) = (None, None);
    let mut refused: Option<(f64, Violation)> = None;
    let free = PlanRequest { limits: unlimited(request), tiers: roomy(request), ..request.clone() };
    for_each_placement(request.tiers.len(), request.segments(), |bounds| match request.evaluate(bounds, links) {
        Ok(evaluation) => {
            let value = evaluation.cost.objective(request.objective);
            if best.as_ref().is_none_or(|(b, ..)| value < *b) {
                second = best.take().map(|(v, b, _)| (v, b));
                best = Some((value, bounds.to_vec(), evaluation));
            } else if second.as_ref().is_none_or(|(s, _)| value < *s) {
                second = Some((value, bounds.to_vec()));
            }
        }
        Err(violation) => {
            // What would it have been worth without the limits?
            let worth = free.evaluate(bounds, links).map_or(f64::INFINITY, |e| e.cost.objective(request.objective));
            if refused.as_ref().is_none_or(|(w, _)| worth < *w) {
                refused = Some((worth, violation));
            }
        }
    });
    let Some((value, bounds, evaluation)) = best else {
        return Err(refused.map_or(PlanError::Empty, |(_, v)| PlanError::Infeasible(v)));
    };
    let binding = refused.filter(|(worth, _)| *worth < value).map(|(_, v)| v.to_string());
    Ok(Plan {
        bounds,
        evaluation,
        objective_value: value,
        bound: value,
        gap: 0.0,
        runner_up: second.map(|(objective_value, bounds)| RunnerUp { bounds, objective_value }),
        binding,
    })
}

pub(crate) fn check(request: &PlanRequest) -> Result<(), PlanError> {
    let (tiers, segments) = (request.tiers.len(), request.segments());
    if tiers == 0 || segments == 0 {
        return Err(PlanError::Empty);
    }
    let lengths = request
        .tiers
        .iter()
        .map(|t| (t.name.clone(), t.segment_ns.len()))
        .chain([("memory".to_owned(), request.segment_memory.len())]);
    for (tier, actual) in lengths {
        if actual != segments {
            return Err(PlanError::Mismatch { tier, actual, expected: segments });
        }
    }
    // C(n + K - 1, K - 1) placements.
    let count = (1..tiers).fold(1usize, |c, i| c.saturating_mul(segments + i) / i);
    if count > PLACEMENTS_MAX { Err(PlanError::TooMany(count)) } else { Ok(()) }
}

fn unlimited(request: &PlanRequest) -> crate::request::Limits {
    crate::request::Limits {
        private_segments: 0,
        private_tensors: Vec::new(),
        deadline_ns: None,
        max_loss: request.limits.max_loss,
    }
}

fn roomy(request: &PlanRequest) -> Vec<crate::request::Tier> {
    request.tiers.iter().map(|t| crate::request::Tier { memory_max: 0, ..t.clone() }).collect()
}

/// Calls `f` with every non-decreasing choice of boundaries.
pub(crate) fn for_each_placement(tiers: usize, segments: usize, mut f: impl FnMut(&[usize])) {
    let mut bounds = vec![0; tiers - 1];
    loop {
        f(&bounds);
        let Some(last) = bounds.iter().rposition(|&b| b < segments) else { return };
        let next = bounds[last] + 1;
        bounds[last..].fill(next);
    }
}

/// The better of the line of tiers and the direct link from the lowest to the
/// highest, which a line can't express.
///
/// # Errors
/// When neither has a plan.
pub fn plan_with_direct(
    request: &PlanRequest,
    links: &[LinkCondition],
    direct: Option<&LinkCondition>,
) -> Result<(Plan, bool), PlanError> {
    let line = plan(request, links);
    let (Some(direct), true) = (direct, request.tiers.len() > 2) else { return Ok((line?, false)) };
    let last = request.tiers.len() - 1;
    let short = PlanRequest { tiers: vec![request.tiers[0].clone(), request.tiers[last].clone()], ..request.clone() };
    match (line, plan(&short, std::slice::from_ref(direct))) {
        (Ok(line), Ok(short)) if short.objective_value < line.objective_value => Ok((short, true)),
        (Err(_), Ok(short)) => Ok((short, true)),
        (line, _) => Ok((line?, false)),
    }
}

/// Whether smaller values of the objective mean less latency too, so that
/// links decide.
#[must_use]
pub fn depends_on_links(objective: Objective) -> bool {
    !matches!(objective, Objective::Energy | Objective::Money)
}
