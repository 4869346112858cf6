//! Finds the best placement of a chain of segments, exactly, and says how
//! good the next best is.
//!
//! Candidate cuts make a chain, and on a chain every placement is a choice of
//! `K - 1` boundaries: with two dozen cuts and three tiers 325 of them. All
//! are evaluated with every limit, objective and codec, so the answer is
//! exact even where the general problem is NP-hard; graphs that aren't chains
//! go to [`crate::problem`].

use serde::{Deserialize, Serialize};

use crate::evaluate::{Evaluation, Route, Violation};
use crate::request::{LinkCondition, Objective, PlanRequest};
use crate::search::{Findings, Found, Prepared, TENSORS_MAX, TIERS_MAX};

/// Placements tried at most; 64 segments on four tiers are 47,905.
pub const PLACEMENTS_MAX: usize = 2_000_000;

/// Nanoseconds of one step of a plan at most: eleven days. Sums of them are
/// finite, and exact enough.
const TIME_NS_MAX: u64 = 1_000_000_000_000_000;

/// Bytes of one tensor, segment or answer at most: sums of them fit a `u64`.
const BYTES_MAX: u64 = 1 << 50;

/// Largest price, power or weight: products of them are finite.
const PRICE_MAX: f64 = 1e12;

/// Segments of a request at most.
const SEGMENTS_MAX: usize = 4_096;

/// Differences below this share are rounding.
const ROUNDING: f64 = 1e-9;

/// A placement and what it is predicted to cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// First segment above each tier but the last: `bounds[k]` is where tier
    /// `k` hands on.
    pub bounds: Vec<usize>,
    /// Which way requests take.
    pub route: Route,
    /// Stages, links and costs.
    pub evaluation: Evaluation,
    /// What the objective compares: seconds, joules, money.
    pub objective_value: f64,
    /// No placement can be below this.
    pub bound: f64,
    /// `(objective_value - bound) / objective_value`: 0 is proved optimal.
    pub gap: f64,
    /// The best placement with other boundaries or another route.
    pub runner_up: Option<RunnerUp>,
    /// The limit that keeps a better placement away, when one does, in words.
    pub binding: Option<String>,
    /// That better placement.
    pub refused: Option<Refused>,
}

/// The second best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunnerUp {
    /// Its boundaries.
    pub bounds: Vec<usize>,
    /// Its route.
    pub route: Route,
    /// Its value.
    pub objective_value: f64,
}

/// The best placement if there were no limits, and the limit it violates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Its boundaries.
    pub bounds: Vec<usize>,
    /// Its route.
    pub route: Route,
    /// What it would cost.
    pub objective_value: f64,
    /// The limit.
    pub violation: Violation,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Nothing to place, or nowhere.
    #[error("a plan needs at least one tier and one segment, and a profile per tier")]
    Empty,
    /// More tiers than the search takes.
    #[error("a path has at most {TIERS_MAX} tiers, not {0}")]
    Tiers(usize),
    /// Profiles of different models.
    #[error(
        "tier `{tier}` has a profile of model {actual}; the lowest tier's is of {expected}; profile the same model"
    )]
    Model {
        /// The tier.
        tier: String,
        /// Its model's digest.
        actual: String,
        /// The lowest tier's.
        expected: String,
    },
    /// Numbers of segments differ.
    #[error("tier `{tier}` has values for {actual} segments; the model has {expected}; profile it again")]
    Mismatch {
        /// The tier.
        tier: String,
        /// Segments profiled.
        actual: usize,
        /// Segments there are.
        expected: usize,
    },
    /// A number that can't be.
    #[error("{what} is {value}; {needed}")]
    Value {
        /// Which number.
        what: String,
        /// The number.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// A private tensor that the planner can't guard.
    #[error("private tensor `{tensor}` is at no candidate cut; name one of {known}, or the number of private segments")]
    PrivateTensor {
        /// The tensor.
        tensor: String,
        /// The likeliest meant, and how many more there are.
        known: String,
    },
    /// Too many placements to try.
    #[error("{0} placements are too many to try; use fewer candidate cuts")]
    TooMany(usize),
    /// Every placement violates a limit.
    #[error("no placement satisfies the limits; the nearest fails because {0}")]
    Infeasible(Violation),
}

/// The best placement under `links`, lowest link first; fewer links than
/// boundaries: the tiers beyond can't be reached.
///
/// # Errors
/// When the request or a link is malformed, or no placement satisfies it.
pub fn plan(request: &PlanRequest, links: &[LinkCondition]) -> Result<Plan, PlanError> {
    plan_with_direct(request, links, None)
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
) -> Result<Plan, PlanError> {
    check(request)?;
    links.iter().chain(direct).try_for_each(LinkCondition::check)?;
    let prepared = Prepared::new(request);
    let findings = find(request, &prepared, links, direct);
    let mut plan = conclude(request, findings, links, direct)?;
    state_gap(request, &prepared, &mut plan, links, direct);
    Ok(plan)
}

/// The gap of a plan for which not all codecs were tried.
pub(crate) fn state_gap(
    request: &PlanRequest,
    prepared: &Prepared,
    plan: &mut Plan,
    links: &[LinkCondition],
    direct: Option<&LinkCondition>,
) {
    let Some(relaxed) = prepared.relaxed() else { return };
    if let Some(dream) = find(request, &relaxed, links, direct).best.filter(|d| d.value < plan.objective_value) {
        plan.bound = dream.value;
        plan.gap = (plan.objective_value - dream.value) / plan.objective_value;
    }
}

pub(crate) fn find(
    request: &PlanRequest,
    prepared: &Prepared,
    links: &[LinkCondition],
    direct: Option<&LinkCondition>,
) -> Findings {
    let line = prepared.search(request, Route::Line, links, None);
    if direct.is_none() || request.tiers.len() < 3 {
        return line;
    }
    let mut straight = prepared.search(request, Route::Direct, links, direct);
    // Running all below needs no link: it is the line's placement already.
    let n = request.segments();
    let local = |found: &Found| found.bounds[0] >= n;
    if straight.best.as_ref().is_some_and(local) {
        straight.best = straight.second.take();
    }
    straight.second = straight.second.filter(|found| !local(found));
    line.merge(straight)
}

pub(crate) fn conclude(
    request: &PlanRequest,
    findings: Findings,
    links: &[LinkCondition],
    direct: Option<&LinkCondition>,
) -> Result<Plan, PlanError> {
    let examine = |f: &Found| request.examine(&f.bounds, &f.codecs, &request.path(f.route, links, direct));
    let violation = |f: &Found| match examine(f) {
        Ok((_, violation)) => violation,
        Err(violation) => Some(violation),
    };
    let Some(best) = findings.best else {
        return Err(findings.refused.as_ref().and_then(violation).map_or(PlanError::Empty, PlanError::Infeasible));
    };
    let (evaluation, _) = examine(&best).map_err(PlanError::Infeasible)?;
    let value = evaluation.cost.objective(request.objective);
    let better = findings.refused.filter(|r| r.value < value - value.abs() * ROUNDING);
    let refused = better.and_then(|r| {
        let violation = violation(&r)?;
        Some(Refused { objective_value: r.value, bounds: r.bounds, route: r.route, violation })
    });
    let runner_up = findings.second.map(|s| RunnerUp { objective_value: s.value, bounds: s.bounds, route: s.route });
    Ok(Plan {
        bounds: best.bounds,
        route: best.route,
        evaluation,
        objective_value: value,
        bound: value,
        gap: 0.0,
        runner_up,
        binding: refused.as_ref().map(|r| r.violation.to_string()),
        refused,
    })
}

pub(crate) fn check(request: &PlanRequest) -> Result<(), PlanError> {
    let (tiers, segments) = (request.tiers.len(), request.segments());
    if tiers == 0 || segments == 0 {
        return Err(PlanError::Empty);
    }
    if tiers > TIERS_MAX {
        return Err(PlanError::Tiers(tiers));
    }
    let lengths = request.tiers.iter().map(|t| (t.name.as_str(), t.segment_ns.len()));
    for (tier, actual) in lengths.chain([("memory", request.segment_memory.len())]) {
        if actual != segments {
            return Err(PlanError::Mismatch { tier: tier.to_owned(), actual, expected: segments });
        }
    }
    if segments > SEGMENTS_MAX {
        return Err(PlanError::TooMany(segments));
    }
    let value = |what: String, value: String, needed| Err(PlanError::Value { what, value, needed });
    let not_negative = "it must be 0 to 1e12";
    let is_price = |number: f64| (0.0..=PRICE_MAX).contains(&number);
    let (long_at_most, large_at_most) = ("it must be at most 1e15", "it must be at most 2^50");
    for tier in &request.tiers {
        if let Some(long) = tier.segment_ns.iter().flatten().chain([&tier.wait_ns]).find(|ns| **ns > TIME_NS_MAX) {
            return value(format!("a time of tier `{}` in nanoseconds", tier.name), long.to_string(), long_at_most);
        }
    }
    if let Some(large) = request.segment_memory.iter().chain([&request.output_bytes]).find(|n| **n > BYTES_MAX) {
        return value("a segment's memory or the answer's size in bytes".into(), large.to_string(), large_at_most);
    }
    for tier in &request.tiers {
        for (what, number) in [("watts", tier.watts), ("price_per_hour", tier.price_per_hour)] {
            if !is_price(number) {
                return value(format!("`{what}` of tier `{}`", tier.name), number.to_string(), not_negative);
            }
        }
    }
    for price in request.link_prices.iter().chain([&request.direct_price]) {
        for (what, number) in [("joules_per_byte", price.joules_per_byte), ("price_per_gb", price.price_per_gb)] {
            if !is_price(number) {
                return value(format!("`{what}` of a link"), number.to_string(), not_negative);
            }
        }
    }
    if request.limits.max_loss.is_nan() || request.limits.max_loss < 0.0 {
        return value("`max_loss`".into(), request.limits.max_loss.to_string(), "it must be 0 or more");
    }
    if let Objective::Weighted { latency, energy, money } = request.objective {
        for weight in [latency, energy, money] {
            if !is_price(weight) {
                return value("a weight of the objective".into(), weight.to_string(), not_negative);
            }
        }
    }
    for exit in &request.exits {
        let what = || format!("exit behind segment {}", exit.segment);
        if exit.segment >= segments {
            return value(what(), exit.segment.to_string(), "it must be a segment of the model");
        }
        if !(0.0..=1.0).contains(&exit.go_on) {
            return value(format!("`go_on` of the {}", what()), exit.go_on.to_string(), "it must be 0 to 1");
        }
        if exit.head_ns.len() != tiers {
            let needed = "it must have one per tier";
            return value(format!("number of `head_ns` of the {}", what()), exit.head_ns.len().to_string(), needed);
        }
        if let Some(long) = exit.head_ns.iter().find(|ns| **ns > TIME_NS_MAX) {
            return value(format!("`head_ns` of the {}", what()), long.to_string(), long_at_most);
        }
    }
    for (place, crossing) in request.crossings.iter().enumerate().flat_map(|(p, c)| c.iter().map(move |c| (p, c))) {
        let what = || format!("tensor `{}` at place {place}", crossing.tensor);
        if crossing.options.is_empty() {
            return value(format!("number of codecs of {}", what()), "0".into(), "it must have one at least");
        }
        for option in &crossing.options {
            let times = [&option.encode_ns, &option.decode_ns].map(Vec::len);
            if times.iter().any(|len| *len != tiers) {
                let needed = "they must be one per tier";
                return value(
                    format!("number of times of codec `{}` of {}", option.codec, what()),
                    format!("{times:?}"),
                    needed,
                );
            }
            if let Some(long) = option.encode_ns.iter().chain(&option.decode_ns).find(|ns| **ns > TIME_NS_MAX) {
                return value(
                    format!("a time of codec `{}` of {}", option.codec, what()),
                    long.to_string(),
                    long_at_most,
                );
            }
            if option.bytes > BYTES_MAX {
                return value(
                    format!("bytes of codec `{}` of {}", option.codec, what()),
                    option.bytes.to_string(),
                    large_at_most,
                );
            }
            if option.loss.is_nan() || option.loss < 0.0 {
                return value(
                    format!("`loss` of codec `{}` of {}", option.codec, what()),
                    option.loss.to_string(),
                    "it must be 0 or more",
                );
            }
        }
    }
    if let Some(crowd) = request.crossings.iter().map(Vec::len).find(|len| *len > TENSORS_MAX) {
        return value("number of tensors of a cut".into(), crowd.to_string(), "at most 64 are planned for");
    }
    private_tensors_exist(request)?;
    // C(n + K - 1, K - 1) placements.
    let count = (1..tiers).fold(1usize, |c, i| c.saturating_mul(segments + i) / i);
    if count > PLACEMENTS_MAX { Err(PlanError::TooMany(count)) } else { Ok(()) }
}

/// A private tensor that isn't at a cut can't be guarded, and must not seem so.
fn private_tensors_exist(request: &PlanRequest) -> Result<(), PlanError> {
    let mut names: Vec<&str> = request.crossings.iter().flatten().map(|c| c.tensor.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let Some(tensor) = request.limits.private_tensors.iter().find(|t| names.binary_search(&t.as_str()).is_err()) else {
        return Ok(());
    };
    names.sort_by_key(|name| strsim::damerau_levenshtein(name, tensor));
    let shown: Vec<String> = names.iter().take(3).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(3);
    let known = if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") };
    Err(PlanError::PrivateTensor { tensor: tensor.clone(), known })
}

/// Whether links decide what the objective is worth.
#[must_use]
pub fn depends_on_links(objective: Objective) -> bool {
    !matches!(objective, Objective::Energy | Objective::Money)
}
