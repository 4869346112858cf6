//! Every plan of one model: a table per path upwards, and the links and waits
//! that choose among them.

use std::sync::Arc;
use std::time::Duration;

use tierline_graph::profile::{ModelProfile, SegmentProfile};
use tierline_node::adapt::{Conditions, Link, Plans, Session, SessionKey};
use tierline_node::calibrate::Ratios;
use tierline_node::{Peer, Span};
use tierline_plan::{Evaluation, Grid, LinkCondition, PlanRequest, PlanTable};
use tierline_proto::v1::{Code, Failure, LinkEstimate, UpstreamTier};
use tierline_proto::{Digest, Role};

use super::placement::{with_exits, words};
use crate::models::PlacedExits;
use crate::runtime::{Context, ns};

/// Assumed of a link that nothing is known of yet: 10 Mbit/s. Probes replace
/// it within a round trip.
const UP_UNKNOWN: f64 = 1.25e6;

/// Bytes of a request beside its tensors, and of an answer: headers, frames,
/// stages, TLS. Measured (290 and 235), less what a heartbeat's round trip has
/// of them already.
const FRAME_BYTES: f64 = 200.0;

/// Tiers above that a plan may use; more multiply the grid beyond use.
pub(super) const TIERS_ABOVE_MAX: usize = 3;

/// A parent and the tiers from there up, as plans see them.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) peer: Option<Peer>,
    /// Names and roles above this node, nearest first.
    pub(super) above: Vec<(String, Role)>,
    pub(super) table: PlanTable,
    /// Where its links begin in the conditions' row.
    pub(super) first_link: usize,
    /// Where the waits of its tiers begin; this node's is at 0.
    pub(super) first_wait: usize,
    /// What is sent at the model's only cut, in words, where that is a learned code.
    pub(super) through: Option<Arc<str>>,
}

impl Path {
    /// What is planned, as it is now: waits, and times as they turned out.
    pub(super) fn request_now(&self, model: Digest, conditions: &Conditions) -> PlanRequest {
        let mut request = self.table.request().clone();
        for (tier, at) in request.tiers.iter_mut().zip(std::iter::once(0).chain(self.first_wait..)) {
            tier.wait_ns = conditions.waits.get(at).map_or(0, |wait| ns(*wait));
            let ratio = conditions.ratios.of(model, &tier.name);
            for time in tier.segment_ns.iter_mut().flatten() {
                *time = (*time as f64 * ratio) as u64;
            }
        }
        request
    }
}

impl Path {
    /// A placement on it in words, exits among them.
    pub(super) fn words(&self, evaluation: &Evaluation) -> String {
        let placement = with_exits(words(evaluation), &exits_of(self.table.request()));
        match &self.through {
            Some(through) if is_split(evaluation) => format!("{placement}, {through}"),
            _ => placement,
        }
    }
}

/// Whether more tiers than one run something.
pub(super) fn is_split(evaluation: &Evaluation) -> bool {
    evaluation.stages.iter().filter(|stage| stage.last > stage.first).count() > 1
}

/// Exits of a table's plans, by their numbers.
pub(super) fn exits_of(request: &PlanRequest) -> Vec<usize> {
    request.exits.iter().map(|exit| exit.number).collect()
}

impl Path {
    /// The links as plans see them: what each crossing costs beside its tensors
    /// counts as part of the round trip.
    pub(super) fn links(&self, conditions: &Conditions) -> Vec<LinkCondition> {
        let own = conditions.links.iter().skip(self.first_link).take(self.above.len());
        own.take_while(|link| link.up > 0.0)
            .map(|link| {
                let frames = FRAME_BYTES / link.up + FRAME_BYTES / link.down;
                // A way that carries nothing is told from others by its rate.
                let rtt = link.rtt + Duration::try_from_secs_f64(frames).unwrap_or_default();
                LinkCondition { up_bytes_per_s: link.up, down_bytes_per_s: link.down, rtt_ns: ns(rtt) }
            })
            .collect()
    }

    /// What stages that run something take beyond `evaluation`, which comes of
    /// profiles alone: they wait, and compute for longer than was measured.
    /// Below zero where they are faster.
    pub(super) fn beyond_ns(&self, model: Digest, evaluation: &Evaluation, conditions: &Conditions) -> f64 {
        let busy = evaluation.stages.iter().enumerate().filter(|(_, stage)| stage.last > stage.first);
        busy.map(|(tier, stage)| {
            let wait = match tier {
                0 => conditions.waits.first(),
                above => conditions.waits.get(self.first_wait + above - 1),
            };
            let slower = conditions.ratios.of(model, &stage.tier) - 1.0;
            wait.map_or(0.0, |wait| ns(*wait) as f64) + stage.compute_ns * slower
        })
        .sum()
    }
}

/// Every plan of one model on this node.
#[derive(Debug)]
pub struct Planned {
    pub(super) model: Digest,
    pub(super) paths: Vec<Path>,
    /// Path and placement of each plan.
    plans: Vec<(usize, usize)>,
    /// Memory of each segment, bytes.
    memory: Vec<u64>,
}

/// The early exits of a model, and the share of requests that goes on at each.
pub(super) type Exits = Option<(PlacedExits, Vec<f64>)>;

impl Planned {
    pub(super) fn evaluate(&self, plan: usize, conditions: &Conditions) -> Option<(&Path, Evaluation)> {
        let &(path, placement) = self.plans.get(plan)?;
        let path = &self.paths[path];
        let evaluation = path.table.evaluate(placement, &path.links(conditions)).ok()?;
        Some((path, evaluation))
    }

    fn session(&self, first: usize, last: usize) -> Option<Session> {
        let bytes = self.memory.get(first..last).filter(|part| !part.is_empty())?.iter().sum();
        let span = Span { first: first as u32, last: last as u32 };
        Some(Session { key: SessionKey { model: self.model, span }, bytes })
    }

    /// Bytes that the plans take in memory, about.
    pub(super) fn byte_len(&self) -> u64 {
        let tables: u64 = self.paths.iter().map(|path| path.table.byte_len()).sum();
        tables + (self.plans.len() * size_of::<(usize, usize)>() + self.memory.len() * size_of::<u64>()) as u64
    }

    /// Adds what is best now, where no table has it: what a grid can't foresee.
    /// Whether there is more than before.
    pub(super) fn extend(&mut self, conditions: &Conditions) -> bool {
        let (before, segments) = (self.plans.len(), self.memory.len());
        for (index, path) in self.paths.iter_mut().enumerate() {
            let (now, links) = (path.request_now(self.model, conditions), path.links(conditions));
            let Some(placement) = path.table.extend(&now, &links) else { continue };
            let here = path.table.bounds(placement).first().is_none_or(|bound| *bound == segments);
            // All here is the same plan on every path.
            if path.first_link == 0 || !here {
                self.plans.push((index, placement));
            }
        }
        self.plans.len() > before
    }

    pub(super) fn path_of(&self, peer: Peer) -> Option<&Path> {
        self.paths.iter().find(|path| path.peer == Some(peer))
    }
}

impl Plans for Planned {
    fn count(&self) -> usize {
        self.plans.len()
    }

    fn predicted(&self, plan: usize, conditions: &Conditions) -> Option<Duration> {
        let (path, evaluation) = self.evaluate(plan, conditions)?;
        // The machine compares numbers of one kind; other goals than time
        // are as good in its seconds.
        let value = evaluation.cost.objective(path.table.request().objective);
        let beyond = path.beyond_ns(self.model, &evaluation, conditions) / 1e9;
        Some(Duration::try_from_secs_f64((value + beyond).max(0.0)).unwrap_or(Duration::MAX))
    }

    fn sessions(&self, plan: usize) -> Vec<Session> {
        let Some(&(path, placement)) = self.plans.get(plan) else { return Vec::new() };
        let table = &self.paths[path].table;
        let last = table.bounds(placement).first().copied().unwrap_or(self.memory.len());
        // Sessions end where an exit is judged.
        let mut steps: Vec<usize> = table.request().exits.iter().map(|exit| exit.segment + 1).collect();
        steps.dedup();
        let ends = steps.iter().copied().filter(|at| *at < last);
        let starts = std::iter::once(0).chain(ends.clone());
        starts.zip(ends.chain([last])).filter_map(|(first, last)| self.session(first, last)).collect()
    }

    fn whole(&self) -> Option<Session> {
        self.session(0, self.memory.len())
    }
}

/// Links of all paths and waits of all tiers as they are now, beside `ratios`.
pub(super) fn conditions(cx: &Context, ratios: Ratios) -> Conditions {
    let mut conditions = Conditions { links: Vec::new(), waits: vec![cx.device.compute.congestion()], ratios };
    for uplink in cx.parents.iter() {
        let tiers = uplink.path().map(|path| path.tiers).unwrap_or_default();
        let mut reachable = uplink.is_up();
        let mut link = Some(uplink.estimate());
        let base = conditions.links.len();
        for tier in tiers.into_iter().take(TIERS_ABOVE_MAX) {
            conditions.links.push(if reachable { as_link(link.as_ref()) } else { DOWN });
            conditions.waits.push(Duration::from_nanos(tier.load.map_or(0, |load| load.wait_ns)));
            reachable &= tier.reachable;
            link = tier.link_above;
        }
        // Every parent has its places, however many tiers it tells of now.
        conditions.links.resize(base + TIERS_ABOVE_MAX, DOWN);
        conditions.waits.resize(1 + base + TIERS_ABOVE_MAX, Duration::ZERO);
    }
    conditions
}

const DOWN: Link = Link { up: 0.0, down: 0.0, rtt: Duration::ZERO };

fn as_link(estimate: Option<&LinkEstimate>) -> Link {
    let known = |bytes_per_s: f64| Some(bytes_per_s).filter(|b| *b > 0.0);
    let (up, down) = estimate.map_or((None, None), |e| (known(e.up_bytes_per_s), known(e.down_bytes_per_s)));
    let either = up.or(down).unwrap_or(UP_UNKNOWN);
    Link {
        up: up.unwrap_or(either),
        down: down.unwrap_or(either),
        rtt: Duration::from_nanos(estimate.map_or(0, |e| e.rtt_ns)),
    }
}

/// A tier and its profile, if it is to be had.
pub(super) type Above = (UpstreamTier, Option<(Digest, Arc<ModelProfile>)>);

pub(super) type Source = (Option<Peer>, Vec<Above>);

/// Tables of all paths.
pub(super) fn tables(
    model: Digest,
    name: &str,
    own: &Arc<ModelProfile>,
    sources: Vec<Source>,
    (exits, through): (&Exits, Option<&Arc<str>>),
    config: &crate::config::NodeConfig,
) -> Result<Planned, Failure> {
    let infeasible = |text: String| {
        Failure::new(Code::Infeasible, text).with_help("`tierline explain` says which limit is in the way")
    };
    let mut planned = Planned {
        model,
        paths: Vec::new(),
        plans: Vec::new(),
        memory: own.segments.iter().map(|s| s.memory_bytes).collect(),
    };
    let (mut first_link, mut first_wait) = (0, 1);
    let mut last_error = None;
    for (peer, above) in sources {
        let names: Vec<String> =
            std::iter::once(name.to_owned()).chain(above.iter().map(|(t, _)| t.node_name.clone())).collect();
        let stand_ins: Vec<Arc<ModelProfile>> = std::iter::once(Arc::clone(own))
            .chain(above.iter().map(|(_, profile)| match profile {
                // A profile of other cuts is of no use here.
                Some((_, p)) if p.segments.len() == own.segments.len() => Arc::clone(p),
                _ => Arc::new(unknown(own)),
            }))
            .collect();
        let profiles: Vec<&ModelProfile> = stand_ins.iter().map(AsRef::as_ref).collect();
        let roles: Vec<(String, Role)> = above.iter().map(|(t, _)| (t.node_name.clone(), t.role())).collect();
        let mut request = PlanRequest::from_profiles(&names, &profiles)
            .ok_or_else(|| infeasible("profiles of different models".to_owned()))?;
        (request.objective, request.limits) = (config.objective, config.limits.clone());
        let exits = exits.iter().flat_map(|(exits, go_on)| exits.planned(go_on, &profiles)).collect();
        if let Some(tier) = request.tiers.first_mut() {
            (tier.memory_max, tier.watts, tier.price_per_hour) =
                (config.memory_bytes(), config.watts, config.price_per_hour);
        }
        for exits in PlacedExits::ways(exits) {
            let request = PlanRequest { exits, ..request.clone() };
            match PlanTable::precompute(request, &grid(above.len())) {
                Ok(table) => {
                    let path = planned.paths.len();
                    let here =
                        |placement: usize| table.bounds(placement).first().is_none_or(|&b| b == planned.memory.len());
                    // All here is the same plan on every path.
                    let new = (0..table.len()).filter(|&p| first_link == 0 || !here(p)).map(|p| (path, p));
                    planned.plans.extend(new);
                    let (above, through) = (roles.clone(), through.cloned());
                    planned.paths.push(Path { peer, above, table, first_link, first_wait, through });
                }
                Err(e) => last_error = Some(e),
            }
        }
        first_link += TIERS_ABOVE_MAX;
        first_wait += TIERS_ABOVE_MAX;
    }
    match last_error {
        Some(e) if planned.plans.is_empty() => Err(infeasible(e.to_string())),
        _ => Ok(planned),
    }
}

fn grid(links: usize) -> Grid {
    let bandwidth_points = match links {
        0 | 1 => 40,
        2 => 14,
        _ => 6,
    };
    Grid { bandwidth_points, ..Grid::default() }
}

/// Stands for a tier whose profile isn't there: it passes on, but runs nothing.
fn unknown(like: &ModelProfile) -> ModelProfile {
    let segment = |s: &SegmentProfile| SegmentProfile {
        time_ns: None,
        refused: Some("not profiled there yet".to_owned()),
        ..s.clone()
    };
    ModelProfile { segments: like.segments.iter().map(segment).collect(), ..like.clone() }
}
