//! Why a plan is what it is: what each stage and link takes, predicted
//! against measured; what comes next; which limit stands in the way.
//!
//! Pure: request and plan in, [`Explanation`] out, readable by people
//! ([`std::fmt::Display`]) and programs (serde). Start at [`explain`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::evaluate::{Route, Violation};
use crate::plan::{Plan, plan_with_direct};
use crate::request::{LinkCondition, Objective, PlanRequest};

/// Times measured while the plan ran, nanoseconds, medians; what wasn't
/// measured is missing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Per tier's name: waiting, computing, coding.
    pub stage_ns: BTreeMap<String, f64>,
    /// Per name of the tier below the link: on the wire, up and back.
    pub link_ns: BTreeMap<String, f64>,
    /// From request to answer.
    pub latency_ns: Option<f64>,
}

/// Why a plan is what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was to be small.
    pub objective: Objective,
    /// What the plan makes of it: seconds, joules or money.
    pub objective_value: f64,
    /// No placement can be below this.
    pub bound: f64,
    /// How far above the bound the plan is, as a share; 0: proved optimal.
    pub gap: f64,
    /// What runs where, in words.
    pub placement: String,
    /// Stages and links on the way of a request, in order.
    pub steps: Vec<Step>,
    /// From request to answer, predicted, nanoseconds.
    pub predicted_ns: f64,
    /// From request to answer, measured, nanoseconds.
    pub measured_ns: Option<f64>,
    /// Name of the step that takes most of the time.
    pub slowest: String,
    /// Joules, money and relative error per request.
    pub joules: f64,
    /// Money per request.
    pub money: f64,
    /// Relative error of the outputs that codecs cause.
    pub loss: f64,
    /// The next best placement.
    pub runner_up: Option<Alternative>,
    /// What would be better but for a limit.
    pub binding: Option<BindingLimit>,
    /// The early exits, and what they are worth: filled in by [`Explanation::with_exits`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<ExitWorth>,
}

/// An early exit in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitWorth {
    /// Its number among the model's exits, from 1.
    pub number: usize,
    /// The segment behind which it is judged.
    pub segment: usize,
    /// The tier that judges it.
    pub tier: String,
    /// Share of the requests that get there.
    pub reach: f64,
    /// Share of the requests that leave there.
    pub leave: f64,
    /// Time of its head there, nanoseconds.
    pub head_ns: f64,
    /// What the objective makes of the best placement without it, if there is
    /// one; the other exits let as many of those that reach them go on as before.
    pub without: Option<f64>,
    /// How much more that is, as a share of the plan's; negative: less, and the
    /// exit isn't worth its head.
    pub worth: Option<f64>,
}

/// A stage or a link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The tier, or both ends of the link.
    pub name: String,
    /// What happens there.
    pub what: String,
    /// Whether it is a link.
    pub link: bool,
    /// Predicted, nanoseconds.
    pub predicted_ns: f64,
    /// Measured, nanoseconds.
    pub measured_ns: Option<f64>,
}

/// Another placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// What runs where, in words.
    pub placement: String,
    /// What the objective makes of it.
    pub objective_value: f64,
    /// How much more than the plan, as a share of the plan's; negative: less.
    pub more: f64,
}

/// The limit that keeps a better placement away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindingLimit {
    /// The limit.
    pub violation: Violation,
    /// The same in words.
    pub reason: String,
    /// The placement that it refuses.
    pub refused: Alternative,
}

/// Explains `plan`, which was made for `request`.
#[must_use]
pub fn explain(request: &PlanRequest, plan: &Plan, measured: Option<&Measured>) -> Explanation {
    let nothing = Measured::default();
    let measured = measured.unwrap_or(&nothing);
    let mut steps = Vec::new();
    for (i, stage) in plan.evaluation.stages.iter().enumerate() {
        let coding = stage.decode_ns + stage.encode_ns;
        let mut what = match stage.last - stage.first {
            0 => "passes on".to_owned(),
            1 => format!("segment {}", stage.first),
            _ => format!("segments {}..{}", stage.first, stage.last),
        };
        if coding > 0.0 {
            what += &format!(", coding {}", Time(coding));
        }
        if stage.wait_ns > 0.0 {
            what += &format!(", waiting {}", Time(stage.wait_ns));
        }
        steps.push(Step {
            name: stage.tier.clone(),
            what,
            link: false,
            predicted_ns: stage.wait_ns + stage.busy_ns(),
            measured_ns: measured.stage_ns.get(&stage.tier).copied(),
        });
        let Some(link) = plan.evaluation.links.get(i) else { continue };
        let tensors: Vec<String> = link.tensors.iter().map(|(tensor, codec)| format!("{tensor} as {codec}")).collect();
        let share = if link.share < 1.0 { format!(", {:.0} % of requests", link.share * 100.0) } else { String::new() };
        steps.push(Step {
            name: format!("{} -> {}", link.from, link.to),
            what: format!("{}, {}{share}", tensors.join(", "), Bytes(link.bytes)),
            link: true,
            predicted_ns: link.link_ns,
            measured_ns: measured.link_ns.get(&link.from).copied(),
        });
    }
    let slowest = steps.iter().max_by(|a, b| a.predicted_ns.total_cmp(&b.predicted_ns));
    let alternative = |bounds: &[usize], route: Route, value: f64| Alternative {
        placement: describe(request, bounds, route),
        objective_value: value,
        more: if plan.objective_value == 0.0 { 0.0 } else { value / plan.objective_value - 1.0 },
    };
    let cost = plan.evaluation.cost;
    Explanation {
        objective: request.objective,
        objective_value: plan.objective_value,
        bound: plan.bound,
        gap: plan.gap,
        placement: describe(request, &plan.bounds, plan.route),
        predicted_ns: cost.latency_ns,
        measured_ns: measured.latency_ns,
        slowest: slowest.map(|s| s.name.clone()).unwrap_or_default(),
        steps,
        joules: cost.joules,
        money: cost.money,
        loss: cost.loss,
        runner_up: plan.runner_up.as_ref().map(|r| alternative(&r.bounds, r.route, r.objective_value)),
        binding: plan.refused.as_ref().map(|b| BindingLimit {
            violation: b.violation.clone(),
            reason: b.violation.to_string(),
            refused: alternative(&b.bounds, b.route, b.objective_value),
        }),
        exits: Vec::new(),
    }
}

impl Explanation {
    /// Adds what each early exit is worth under `links`, and the direct link if
    /// there is one: the best placement without it is looked for.
    #[must_use]
    pub fn with_exits(
        mut self,
        request: &PlanRequest,
        plan: &Plan,
        links: &[LinkCondition],
        direct: Option<&LinkCondition>,
    ) -> Self {
        let n = request.segments();
        let tier_of = |segment: usize| {
            let above = |k: usize| plan.bounds.get(k).is_none_or(|bound| segment < (*bound).min(n));
            (0..request.tiers.len()).find(|k| above(*k)).unwrap_or(0)
        };
        let worth = |(at, exit): (usize, &crate::request::Exit)| {
            let mut others = request.clone();
            others.exits.remove(at);
            let without = plan_with_direct(&others, links, direct).ok().map(|plan| plan.objective_value);
            let reach: f64 = request.exits[..at].iter().map(|earlier| earlier.go_on).product();
            let tier = tier_of(exit.segment);
            ExitWorth {
                number: exit.number,
                segment: exit.segment,
                tier: request.tiers[tier].name.clone(),
                reach,
                leave: reach * (1.0 - exit.go_on),
                head_ns: exit.head_ns.get(tier).map_or(0.0, |ns| *ns as f64),
                without,
                worth: without.filter(|_| plan.objective_value > 0.0).map(|w| w / plan.objective_value - 1.0),
            }
        };
        self.exits = request.exits.iter().enumerate().map(worth).collect();
        self
    }
}

/// A placement in words: which tier runs which segments.
#[must_use]
pub fn describe(request: &PlanRequest, bounds: &[usize], route: Route) -> String {
    let n = request.segments();
    let mut first = 0;
    let mut parts = Vec::new();
    for (k, tier) in request.tiers.iter().enumerate() {
        let last = bounds.get(k).map_or(n, |b| (*b).clamp(first, n));
        if last > first {
            parts.push(match last - first {
                _ if last - first == n => format!("everything on {}", tier.name),
                1 => format!("segment {first} on {}", tier.name),
                _ => format!("segments {first}..{last} on {}", tier.name),
            });
        }
        first = last;
    }
    let route = if route == Route::Direct { ", over the direct link" } else { "" };
    format!("{}{route}", parts.join(", "))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let value = Value(self.objective, self.objective_value);
        let proof = if self.gap == 0.0 {
            "proved optimal, gap 0".to_owned()
        } else {
            format!("at most {:.2} % above the best, bound {}", self.gap * 100.0, Value(self.objective, self.bound))
        };
        writeln!(f, "{}: {value} ({proof})", goal(self.objective))?;
        writeln!(f, "plan: {}", self.placement)?;
        let width = self.steps.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).max("in all".len());
        let times = |predicted: f64, measured: Option<f64>| match measured {
            None => Time(predicted).to_string(),
            Some(m) if predicted > 0.0 => {
                format!("{}, measured {} ({:+.0} %)", Time(predicted), Time(m), (m / predicted - 1.0) * 100.0)
            }
            Some(m) => format!("{}, measured {}", Time(predicted), Time(m)),
        };
        for step in &self.steps {
            let mark = if step.name == self.slowest { " <- takes most" } else { "" };
            writeln!(
                f,
                "  {:width$}  {}  [{}]{mark}",
                step.name,
                times(step.predicted_ns, step.measured_ns),
                step.what
            )?;
        }
        writeln!(f, "  {:width$}  {}", "in all", times(self.predicted_ns, self.measured_ns))?;
        match &self.binding {
            None => writeln!(f, "limits: none keeps a better placement away")?,
            Some(b) => writeln!(
                f,
                "limits: {} would take {} ({:+.1} %), but {}",
                b.refused.placement,
                Value(self.objective, b.refused.objective_value),
                b.refused.more * 100.0,
                b.reason
            )?,
        }
        match &self.runner_up {
            None => write!(f, "runner-up: no other placement is possible")?,
            Some(r) => write!(
                f,
                "runner-up: {}, {} ({:+.1} %)",
                r.placement,
                Value(self.objective, r.objective_value),
                r.more * 100.0
            )?,
        }
        for exit in &self.exits {
            write!(
                f,
                "\nexit {}: behind segment {} on {}, {:.0} % of requests get there, {:.0} % leave; head {}",
                exit.number,
                exit.segment,
                exit.tier,
                exit.reach * 100.0,
                exit.leave * 100.0,
                Time(exit.head_ns)
            )?;
            if let (Some(without), Some(worth)) = (exit.without, exit.worth) {
                write!(f, "; without it {} ({:+.1} %)", Value(self.objective, without), worth * 100.0)?;
            }
        }
        if self.loss > 0.0 {
            write!(f, "\nloss: codecs change the outputs by {:.1e}", self.loss)?;
        }
        Ok(())
    }
}

fn goal(objective: Objective) -> &'static str {
    match objective {
        Objective::Latency => "latency",
        Objective::Energy => "energy",
        Objective::Money => "money",
        Objective::Throughput => "time per request when pipelined",
        Objective::Weighted { .. } => "weighted cost",
    }
}

/// An objective's value with its unit.
struct Value(Objective, f64);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            Objective::Latency | Objective::Throughput => Time(self.1 * 1e9).fmt(f),
            Objective::Energy => write!(f, "{:.3} J", self.1),
            Objective::Money => write!(f, "{:.3e}", self.1),
            Objective::Weighted { .. } => write!(f, "{:.4}", self.1),
        }
    }
}

/// Nanoseconds, readable.
struct Time(f64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            ns if ns < 1e6 => write!(f, "{:.0} us", ns / 1e3),
            ns if ns < 1e9 => write!(f, "{:.1} ms", ns / 1e6),
            ns => write!(f, "{:.2} s", ns / 1e9),
        }
    }
}

/// Bytes, readable.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            b if b < 10_000 => write!(f, "{b} B"),
            b if b < 10_000_000 => write!(f, "{:.0} KB", b as f64 / 1e3),
            b => write!(f, "{:.1} MB", b as f64 / 1e6),
        }
    }
}
