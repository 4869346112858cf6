//! Plans in words: what decided them, and what was measured of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tierline_plan::{Explanation, LinkCondition, Measured, PlanRequest};
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure, InferHeader, Reply, StageTiming};

use super::stand_in::Through;
use super::tables::{Path, is_split};
use super::{Inner, Planning};
use crate::duties::catalogue::Entry;
use crate::net::Uplink;
use crate::runtime::ns;

/// Answers kept for `explain`.
const RECENT_MAX: usize = 64;

/// Answers by which it is known how long a placement usually takes.
const USUAL_MIN: usize = 16;

/// Recent answers that ran one placement.
#[derive(Debug, Default)]
pub(super) struct Recent {
    placement: String,
    answers: VecDeque<(Duration, Vec<StageTiming>)>,
}

impl Recent {
    /// Medians per stage and link.
    fn measured(&self) -> Measured {
        let mut stages: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut links: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (_, timings) in &self.answers {
            for (i, t) in timings.iter().enumerate() {
                let own = t.queue_ns + t.decode_ns + t.compute_ns + t.encode_ns;
                stages.entry(t.node.clone()).or_default().push(own as f64);
                if let Some(above) = timings.get(i + 1) {
                    let spent =
                        above.queue_ns + above.decode_ns + above.compute_ns + above.encode_ns + above.upstream_ns;
                    links.entry(t.node.clone()).or_default().push(t.upstream_ns.saturating_sub(spent) as f64);
                }
            }
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let medians =
            |all: BTreeMap<String, Vec<f64>>| all.into_iter().map(|(name, values)| (name, median(values))).collect();
        let totals: Vec<f64> = self.answers.iter().map(|(total, _)| ns(*total) as f64).collect();
        Measured {
            stage_ns: medians(stages),
            link_ns: medians(links),
            latency_ns: (!totals.is_empty()).then(|| median(totals)),
        }
    }
}

/// What profiles say of a stage's computing: those of this node for the whole
/// model, and the tables'. `None` where it ran nothing, or isn't known.
fn expected(inner: &Inner, model: Digest, whole_ns: u64, here: &str, stage: &StageTiming) -> Option<Duration> {
    let planned = inner.adapt.plans(model)?;
    let tiers = planned.paths.iter().flat_map(|path| &path.table.request().tiers);
    let tier = tiers.into_iter().find(|tier| tier.name == stage.node)?;
    let (first, last) = (stage.first_segment as usize, stage.last_segment as usize);
    let part = tier.segment_ns.get(first..last).filter(|part| !part.is_empty())?;
    if stage.node == here && part.len() == tier.segment_ns.len() {
        return Some(Duration::from_nanos(whole_ns));
    }
    part.iter().copied().sum::<Option<u64>>().map(Duration::from_nanos)
}

/// What is asked of plans for people.
#[derive(Debug, serde::Serialize)]
struct PlanDocument {
    model: String,
    /// The placement in words.
    placement: String,
    /// Names of the tiers on the path, lowest first.
    tiers: Vec<String>,
    /// Tiers that have not measured the model yet: they only pass on.
    unmeasured: Vec<String>,
    /// The links as they are, lowest first.
    links: Vec<LinkCondition>,
    #[serde(flatten)]
    plan: tierline_plan::Plan,
    /// The learned code that it sends, by a variant of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    bottleneck: Option<Through>,
    /// What decided it, and what was measured of it.
    explanation: Explanation,
    /// The plan that requests run now.
    in_force: String,
    /// Distinct optimal placements over all link conditions.
    alternatives: usize,
}

impl Planning {
    /// Remembers how an answer came about, for `explain`.
    ///
    /// The exits of the numbers `exits`, from 1, could have answered it;
    /// `model` is the digest of what ran.
    pub fn observe_answer(
        &self,
        header: &InferHeader,
        model: &[u8],
        placement: &str,
        exits: &[usize],
        total: Duration,
        reply: &Reply,
    ) {
        let Some(asked) = self.catalogue.known.get(&header.model) else { return };
        if reply.failure.is_some() {
            return;
        }
        let entry = self.answered_by(asked, model);
        let now = self.cx.clock.now();
        let whole_ns = self.catalogue.known.profile(entry.model).map_or(0, |profile| profile.whole_ns);
        let mut inner = self.lock();
        // What several took together says nothing of what one takes.
        for stage in reply.stages.iter().filter(|stage| stage.batch_requests < 2) {
            if let Some(predicted) = expected(&inner, entry.model, whole_ns, self.cx.me.name(), stage) {
                let measured = Duration::from_nanos(stage.compute_ns);
                inner.calibration.observe(now, entry.model, &stage.node, predicted, measured);
            }
        }
        if reply.degraded.is_some() {
            return;
        }
        if let Some(placed) = entry.manifest.exits.as_ref().filter(|_| header.exit.is_none()) {
            let odds = inner.odds.entry(entry.model).or_default();
            let before = odds.go_on(placed);
            odds.observe(placed, exits, reply);
            if odds.go_on(placed) != before {
                self.changed.notify_one();
            }
        }
        let recent = inner.recent.entry(entry.model).or_default();
        if recent.placement != placement {
            *recent = Recent { placement: placement.to_owned(), answers: VecDeque::new() };
        }
        if recent.answers.len() == RECENT_MAX {
            recent.answers.pop_front();
        }
        recent.answers.push_back((total, reply.stages.clone()));
    }

    /// The time within which this share of the recent answers of a placement
    /// came; `None` where too few did, and for a share of 0.
    pub fn usual(&self, model: Digest, placement: &str, share: f64) -> Option<Duration> {
        if share <= 0.0 {
            return None;
        }
        let inner = self.lock();
        let recent = inner.recent.get(&model).filter(|recent| recent.placement == placement)?;
        let totals = recent.answers.iter().map(|(total, _)| *total).collect();
        drop(inner);
        within(totals, share)
    }

    /// Plans a model for a person: under the links as they are, with another
    /// goal or other limits if asked.
    ///
    /// # Errors
    /// [`Code::ModelNotReady`] before it is profiled, [`Code::Infeasible`]
    /// when no placement keeps the limits.
    pub fn plan_now(
        &self,
        asked: &Entry,
        request: &tierline_proto::v1::PlanRequest,
        explain: bool,
    ) -> Result<tierline_proto::v1::PlanReply, Failure> {
        self.cx.parents.iter().for_each(Uplink::wanted);
        let inner = self.lock();
        let mut entry = asked;
        let mut best = self.best_of(&inner, entry, request)?;
        let variants = self.variants(entry);
        for variant in &variants {
            let Ok(other) = self.best_of(&inner, variant, request) else { continue };
            if is_split(&other.plan.evaluation) && other.plan.objective_value < best.plan.objective_value {
                (entry, best) = (variant, other);
            }
        }
        let Best { path, wanted, plan, links } = best;
        let running = self.through(&inner, asked);
        let running = running.as_ref().map_or(asked.model, |variant| variant.model);
        let in_force = inner.adapt.current(running).and_then(|plan| {
            let (path, evaluation) = inner.adapt.plans(running)?.evaluate(plan, inner.adapt.conditions())?;
            Some(path.words(&evaluation))
        });
        let in_force = in_force.unwrap_or_else(|| "none".to_owned());
        let placement = path.words(&plan.evaluation);
        let measured = inner.recent.get(&entry.model).filter(|r| r.placement == placement).map(Recent::measured);
        let document = PlanDocument {
            model: asked.manifest.name.clone(),
            bottleneck: Through::of(entry).filter(|_| is_split(&plan.evaluation)),
            explanation: tierline_plan::explain(&wanted, &plan, measured.as_ref())
                .with_exits(&wanted, &plan, &links, None),
            placement,
            tiers: wanted.tiers.iter().map(|t| t.name.clone()).collect(),
            unmeasured: wanted
                .tiers
                .iter()
                .filter(|t| t.segment_ns.iter().all(Option::is_none))
                .map(|t| t.name.clone())
                .collect(),
            links,
            plan,
            in_force,
            alternatives: path.table.len(),
        };
        let text = describe(&document, explain);
        let plan_json = serde_json::to_string(&document).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        Ok(tierline_proto::v1::PlanReply { plan_json, text })
    }

    /// The best plan of one model under the links as they are.
    fn best_of<'i>(
        &self,
        inner: &'i Inner,
        entry: &Entry,
        request: &tierline_proto::v1::PlanRequest,
    ) -> Result<Best<'i>, Failure> {
        let invalid = |text: String| Failure::new(Code::InvalidInput, text);
        let planned = inner.adapt.plans(entry.model).ok_or_else(|| {
            Failure::new(
                Code::ModelNotReady,
                format!("{} is not planned on {} yet", entry.manifest.name, self.cx.me.name()),
            )
            .with_help(format!("`tierline profile {}` measures it now", entry.manifest.name))
        })?;
        let mut best: Option<Best<'_>> = None;
        let mut failed = None;
        for path in &planned.paths {
            let mut wanted = path.request_now(entry.model, inner.adapt.conditions());
            if !request.objective.is_empty() {
                wanted.objective = request.objective.parse().map_err(invalid)?;
            }
            if !request.limits_json.is_empty() {
                wanted.limits =
                    serde_json::from_str(&request.limits_json).map_err(|e| invalid(format!("limits: {e}")))?;
            }
            let links = path.links(inner.adapt.conditions());
            match tierline_plan::plan(&wanted, &links) {
                Ok(plan) if best.as_ref().is_none_or(|b| plan.objective_value < b.plan.objective_value) => {
                    best = Some(Best { path, wanted, plan, links });
                }
                Ok(_) => {}
                Err(e) => failed = Some(e),
            }
        }
        best.ok_or_else(|| {
            let text = failed.map_or_else(|| "there is no path".to_owned(), |e| e.to_string());
            Failure::new(Code::Infeasible, text).with_help("relax the limits, or check the links with `tierline nodes`")
        })
    }
}

/// A plan, and what it was made of.
struct Best<'p> {
    path: &'p Path,
    wanted: PlanRequest,
    plan: tierline_plan::Plan,
    links: Vec<LinkCondition>,
}

/// The time within which a share of the answers came (nearest rank).
fn within(mut totals: Vec<Duration>, share: f64) -> Option<Duration> {
    if totals.len() < USUAL_MIN {
        return None;
    }
    totals.sort();
    let rank = (share * totals.len() as f64).ceil() as usize;
    totals.get(rank.clamp(1, totals.len()) - 1).copied()
}

fn describe(document: &PlanDocument, explain: bool) -> String {
    let mut text = describe_plan(&document.placement, &document.plan);
    if let Some(through) = &document.bottleneck {
        text.push_str(&format!("{}\n", through.in_words()));
    }
    if !document.unmeasured.is_empty() {
        text.push_str(&format!("not measured yet: {}\n", document.unmeasured.join(", ")));
    }
    if explain {
        text = format!("{}\n", document.explanation);
        if let Some(through) = &document.bottleneck {
            text.push_str(&format!("{}\n", through.in_words()));
        }
        text.push_str(&format!(
            "in force   {}\ntable      {} placements are best under some link\n",
            document.in_force, document.alternatives
        ));
    }
    text
}

/// A plan in a few lines: stages, links, prediction.
#[must_use]
pub fn describe_plan(placement: &str, plan: &tierline_plan::Plan) -> String {
    use crate::words::{bytes, duration, table};
    let mut text = format!("{placement}\n\n");
    let mut rows = Vec::new();
    for (k, stage) in plan.evaluation.stages.iter().enumerate() {
        let span =
            if stage.last > stage.first { format!("{}..{}", stage.first, stage.last) } else { "passes on".to_owned() };
        rows.push(vec![stage.tier.clone(), span, duration(stage.compute_ns as u64), String::new()]);
        if let Some(link) = plan.evaluation.links.get(k) {
            let codecs: Vec<&str> = link.tensors.iter().map(|(_, codec)| codec.as_str()).collect();
            rows.push(vec![
                "  link".to_owned(),
                codecs.join(","),
                duration((link.link_ns + link.codec_ns) as u64),
                bytes(link.bytes),
            ]);
        }
    }
    text.push_str(&table(&["tier", "segments", "time", "sent"], &rows));
    text.push_str(&format!("\npredicted  {}", duration(plan.evaluation.cost.latency_ns as u64)));
    let proof = if plan.gap > 0.0 {
        format!("at most {:.1}% from the best", plan.gap * 100.0)
    } else {
        "proved the best".to_owned()
    };
    text.push_str(&format!(", {proof}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_usually_suffices_is_a_quantile_of_enough_answers() {
        let ms = |n| Duration::from_millis(n);
        let totals: Vec<Duration> = (1..=20).rev().map(ms).collect();
        for (share, time) in [(0.95, ms(19)), (0.9, ms(18)), (0.5, ms(10)), (0.99, ms(20)), (0.001, ms(1))] {
            assert_eq!(within(totals.clone(), share), Some(time), "{share}");
        }
        assert_eq!(within(totals[..15].to_vec(), 0.95), None);
    }
}
