//! Plans on this node: one table per model and path upwards, the machine that
//! chooses among its placements (`tierline_node::adapt`), and what requests
//! and people ask of it.
//!
//! A path is a parent and the tiers that it tells of. Placements of all paths
//! are numbered in one row, so that going through another parent, or straight
//! to the cloud, is just another plan.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tierline_graph::profile::{ModelProfile, SegmentProfile};
use tierline_node::adapt::{Action, Adapt, Conditions, Event, Link, Plans, Session, SessionKey, Why};
use tierline_node::{Peer, Span};
use tierline_plan::{Evaluation, Explanation, Grid, LinkCondition, Measured, PlanRequest, PlanTable};
use tierline_proto::v1::{
    Boundary, Code, Failure, InferHeader, LinkEstimate, ModelOffer, Offers, Reply, Route, StageTiming, TensorCodec,
    UpstreamTier, WarmHint, WarmHints, child_message,
};
use tierline_proto::{Digest, Role};
use tokio::sync::Notify;

use super::Node;
use super::catalogue::Entry;
use super::compute::{Program, SliceKey};
use super::flow::{ns, segment_after};

/// Assumed of a link that nothing is known of yet: 10 Mbit/s. Probes replace
/// it within a round trip.
const UP_UNKNOWN: f64 = 1.25e6;

/// How often waiting times are looked at.
const LOOK: Duration = Duration::from_millis(1_000);

/// A session whose model isn't here by then gives its place to others.
const WARM_TIME_MAX: Duration = Duration::from_secs(30);

/// Hints that one message may bring.
const HINTS_MAX: usize = 16;

/// A profile that could not be fetched is asked for again after this.
const PROFILE_RETRY: Duration = Duration::from_secs(5);

/// Tiers above that a plan may use; more multiply the grid beyond use.
const TIERS_ABOVE_MAX: usize = 3;

/// A parent and the tiers from there up, as plans see them.
#[derive(Debug)]
struct Path {
    peer: Option<Peer>,
    /// Names and roles above this node, nearest first.
    above: Vec<(String, Role)>,
    table: PlanTable,
    /// Where its links begin in the conditions' row.
    first_link: usize,
    /// Where the waits of its tiers begin; this node's is at 0.
    first_wait: usize,
}

impl Path {
    fn links(&self, conditions: &Conditions) -> Vec<LinkCondition> {
        let own = conditions.links.iter().skip(self.first_link).take(self.above.len());
        own.take_while(|link| link.up > 0.0)
            .map(|link| LinkCondition { up_bytes_per_s: link.up, down_bytes_per_s: link.down, rtt_ns: ns(link.rtt) })
            .collect()
    }

    /// Expected wait of the stages that run something.
    fn waits(&self, evaluation: &Evaluation, conditions: &Conditions) -> Duration {
        let busy = evaluation.stages.iter().enumerate().filter(|(_, stage)| stage.last > stage.first);
        busy.filter_map(|(tier, _)| match tier {
            0 => conditions.waits.first(),
            above => conditions.waits.get(self.first_wait + above - 1),
        })
        .sum()
    }
}

/// Every plan of one model on this node.
#[derive(Debug)]
pub struct Planned {
    model: Digest,
    paths: Vec<Path>,
    /// Path and placement of each plan.
    plans: Vec<(usize, usize)>,
    /// Memory of each segment, bytes.
    memory: Vec<u64>,
}

impl Planned {
    fn evaluate(&self, plan: usize, conditions: &Conditions) -> Option<(&Path, Evaluation)> {
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

    fn path_of(&self, peer: Peer) -> Option<&Path> {
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
        Some(
            Duration::try_from_secs_f64(value)
                .unwrap_or(Duration::MAX)
                .saturating_add(path.waits(&evaluation, conditions)),
        )
    }

    fn sessions(&self, plan: usize) -> Vec<Session> {
        let Some(&(path, placement)) = self.plans.get(plan) else { return Vec::new() };
        let table = &self.paths[path].table;
        let last = table.bounds(placement).first().copied().unwrap_or(self.memory.len());
        self.session(0, last).into_iter().collect()
    }

    fn whole(&self) -> Option<Session> {
        self.session(0, self.memory.len())
    }
}

/// What a set of tables was made from; the same key needs no other tables.
type Key = (Digest, Vec<(Option<Peer>, Vec<(String, Option<Digest>)>)>);

struct Inner {
    adapt: Adapt<Planned>,
    keys: HashMap<Digest, Key>,
    /// Answers of the plan in force, by model.
    recent: HashMap<Digest, Recent>,
}

/// Answers kept for `explain`.
const RECENT_MAX: usize = 64;

/// Recent answers that ran one placement.
#[derive(Debug, Default)]
struct Recent {
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

/// The plans of a node.
pub struct Planner {
    inner: Mutex<Inner>,
    /// This device's profiles, as artefacts, by model.
    own: RwLock<HashMap<Digest, Digest>>,
    /// Profiles of tiers above, by artefact.
    above: Mutex<HashMap<Digest, Arc<ModelProfile>>>,
    /// Rings when the machine's next wake may have moved.
    stir: Notify,
    /// Rings when tables may have to be made anew.
    changed: Notify,
}

/// Where a request goes.
#[derive(Debug, Clone, Default)]
pub struct Placed {
    /// Boundaries on the way, nearest first; none: all here.
    pub boundaries: Vec<Boundary>,
    /// The parent that gets what lies behind the first.
    pub peer: Option<Peer>,
    /// Expected time, nanoseconds; 0 when unknown.
    pub predicted_ns: u64,
    /// The placement in words.
    pub text: String,
}

impl Planner {
    /// No plans yet; sessions may take `memory_max` bytes.
    #[must_use]
    pub fn new(memory_max: u64) -> Self {
        Self {
            inner: Mutex::new(Inner { adapt: Adapt::new(memory_max), keys: HashMap::new(), recent: HashMap::new() }),
            own: RwLock::default(),
            above: Mutex::default(),
            stir: Notify::new(),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This device's profile of a model, as an artefact.
    #[must_use]
    pub fn profile_of(&self, model: Digest) -> Option<Digest> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).get(&model).copied()
    }

    /// This device measured a model.
    pub fn profiled(&self, model: Digest, profile: Digest) {
        self.own.write().unwrap_or_else(PoisonError::into_inner).insert(model, profile);
    }

    /// A model is gone.
    pub fn gone(&self, node: &Arc<Node>, model: Digest) {
        self.lock().keys.remove(&model);
        self.step(node, Event::Gone { model });
    }

    /// Tiers, profiles or models may have changed.
    pub fn replan(&self, node: &Arc<Node>) {
        self.conditions(node, true);
        self.changed.notify_one();
    }

    /// What this node offers to those below.
    #[must_use]
    pub fn offers(&self, node: &Node) -> Offers {
        let models = node
            .catalogue
            .list()
            .iter()
            .map(|entry| ModelOffer {
                model: entry.model.to_bytes(),
                profile: self.profile_of(entry.model).map(Digest::to_bytes).unwrap_or_default(),
                state: node.catalogue.state(entry, true).into(),
            })
            .collect();
        Offers { sequence: super::events::now_ms(), models }
    }

    /// Links or waits moved; `changed` when a change was detected.
    pub fn conditions(&self, node: &Arc<Node>, changed: bool) {
        let conditions = conditions(node);
        let same = !changed && *self.lock().adapt.conditions() == conditions;
        if !same {
            self.step(node, Event::Conditions { conditions, changed });
        }
    }

    fn step(&self, node: &Arc<Node>, event: Event<Planned>) {
        let actions = self.lock().adapt.step(node.now(), event);
        for action in actions {
            self.perform(node, action);
        }
        self.stir.notify_one();
    }

    fn perform(&self, node: &Arc<Node>, action: Action) {
        match action {
            Action::Use { model, why, .. } => self.switched(node, model, why),
            Action::Unusable { model } => {
                let name =
                    node.catalogue.by_model(model).map_or_else(|| model.short().to_string(), |e| e.manifest.name);
                let text = format!("no plan can run {name} now");
                node.events.record("plan", text, &serde_json::json!({ "model": name, "plan": null }));
            }
            Action::Warm(key) => {
                let node = Arc::clone(node);
                tokio::spawn(async move {
                    let result = warm(&node, key).await;
                    if let Err(reason) = &result {
                        tracing::debug!(?key, reason, "a session could not be loaded");
                    }
                    node.planner.step(&node, Event::Warmed { key, result });
                });
            }
            Action::Evict(key) => {
                let node = Arc::clone(node);
                tokio::spawn(async move {
                    node.compute.evict(slice_key(key)).await;
                    node.planner.step(&node, Event::Evicted { key });
                });
            }
        }
    }

    /// Another plan is in force: says so, and has its sessions loaded above.
    fn switched(&self, node: &Arc<Node>, model: Digest, why: Why) {
        let Some(entry) = node.catalogue.by_model(model) else { return };
        let placed = self.placed(model);
        let Some((placed, evaluation)) = placed else { return };
        if why != Why::First {
            node.metrics.plan_switched();
        }
        let reason = match why {
            Why::First => "first plan",
            Why::Faster => "faster now",
            Why::Lost => "the last one lost a tier",
            Why::Refused => "the last one could not be loaded",
        };
        let name = &entry.manifest.name;
        let predicted = placed.predicted_ns as f64 / 1e6;
        let json = serde_json::json!({ "model": name, "plan": placed.text, "predicted_ms": predicted, "why": reason });
        node.events.record(
            "plan",
            format!("{name} runs as {} ({reason}; {predicted:.1} ms predicted)", placed.text),
            &json,
        );
        let segments = entry.manifest.cuts.len() + 1;
        let hints: Vec<WarmHint> = evaluation
            .stages
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, stage)| stage.last > stage.first)
            .map(|(tier, stage)| WarmHint {
                model: model.to_bytes(),
                from_cut: stage.first.checked_sub(1).map(|c| c as u32),
                to_cut: (stage.last < segments).then(|| stage.last as u32 - 1),
                tiers_above: tier as u32,
            })
            .collect();
        if let Some(uplink) = placed.peer.and_then(|p| node.uplink(p).ok())
            && !hints.is_empty()
        {
            uplink.tell(child_message::Body::Hints(WarmHints { hints }));
        }
    }

    /// Loads what a node below is likely to need here, or passes the hint on.
    pub fn warm_hints(&self, node: &Arc<Node>, hints: &WarmHints) {
        let mut further = Vec::new();
        for hint in hints.hints.iter().take(HINTS_MAX) {
            if hint.tiers_above > 1 {
                further.push(WarmHint { tiers_above: hint.tiers_above - 1, ..hint.clone() });
                continue;
            }
            let Some(entry) = Digest::try_from(&hint.model).ok().and_then(|model| node.catalogue.by_model(model))
            else {
                continue;
            };
            let (node, hint) = (Arc::clone(node), hint.clone());
            tokio::spawn(async move {
                let Ok(program) = node.program(&entry).await else { return };
                let to = hint.to_cut.map_or(program.segments(), |c| c as usize + 1);
                let key = SliceKey { digest: entry.manifest.digest.clone(), from: segment_after(hint.from_cut), to };
                if let Err(error) = node.compute.warm(program, key).await {
                    tracing::debug!(%error, "a session asked for from below could not be loaded");
                }
            });
        }
        if let (false, Some(uplink)) = (further.is_empty(), node.first_parent().and_then(|p| node.uplink(p).ok())) {
            uplink.tell(child_message::Body::Hints(WarmHints { hints: further }));
        }
    }

    /// The plan in force under the conditions as they are.
    fn placed(&self, model: Digest) -> Option<(Placed, Evaluation)> {
        let inner = self.lock();
        let plan = inner.adapt.current(model)?;
        let (path, evaluation) = inner.adapt.plans(model)?.evaluate(plan, inner.adapt.conditions())?;
        let wait = path.waits(&evaluation, inner.adapt.conditions());
        Some((place(path.peer, &evaluation, wait), evaluation))
    }

    /// Makes tables and wakes the machine, until the node ends.
    pub async fn watch(&self, node: &Arc<Node>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.lock().adapt.wake().map(|t| node.instant_of(t));
            tokio::select! {
                () = self.stir.notified() => {}
                () = super::wait_until(wake) => self.step(node, Event::Wake),
                _ = look.tick() => {
                    self.conditions(node, false);
                    node.refresh_children_path();
                }
            }
        }
    }

    /// Makes tables anew when they may have changed, until the node ends.
    pub async fn work(&self, node: &Arc<Node>) {
        loop {
            self.changed.notified().await;
            for entry in node.catalogue.list() {
                // What is scaled from above comes once there is something to scale.
                if node.config().scale_of_parent.is_some() && node.catalogue.profile(entry.model).is_none() {
                    node.profile_later(entry.clone());
                }
                if let Err(failure) = self.remake(node, &entry).await {
                    let text = format!("{} could not be planned: {failure}", entry.manifest.name);
                    node.events.record(
                        "plan",
                        text,
                        &serde_json::json!({ "model": entry.manifest.name, "plan": null }),
                    );
                }
            }
        }
    }

    /// The profile of the nearest tier above that has one.
    pub async fn nearest_above(&self, node: &Arc<Node>, model: Digest) -> Option<Arc<ModelProfile>> {
        for tier in node.uplinks().iter().filter_map(|u| u.path()).flat_map(|path| path.tiers) {
            if let Some((_, profile)) = self.profile_above(node, model, &tier).await {
                return Some(profile);
            }
        }
        None
    }

    async fn remake(&self, node: &Arc<Node>, entry: &Entry) -> Result<(), Failure> {
        let (Some(own), Some(own_digest)) = (node.catalogue.profile(entry.model), self.profile_of(entry.model)) else {
            return Ok(());
        };
        let mut sources = Vec::new();
        for uplink in node.uplinks() {
            let tiers = uplink.path().map(|path| path.tiers).unwrap_or_default();
            let mut above = Vec::new();
            for tier in tiers.into_iter().take(TIERS_ABOVE_MAX) {
                let profile = self.profile_above(node, entry.model, &tier).await;
                above.push((tier, profile));
            }
            sources.push((Some(uplink.peer), above));
        }
        if sources.is_empty() {
            sources.push((None, Vec::new()));
        }
        let tiers = |above: &[Above]| {
            above.iter().map(|(tier, profile)| (tier.node_id.clone(), profile.as_ref().map(|p| p.0))).collect()
        };
        let key: Key = (own_digest, sources.iter().map(|(peer, above)| (*peer, tiers(above))).collect());
        if self.lock().keys.get(&entry.model) == Some(&key) {
            return Ok(());
        }
        let (config, model, name) = (node.config().clone(), entry.model, node.name().to_owned());
        let planned = tokio::task::spawn_blocking(move || tables(model, &name, &own, sources, &config))
            .await
            .map_err(|e| Failure::new(Code::Internal, format!("planning failed: {e}")))??;
        self.lock().keys.insert(entry.model, key);
        self.step(node, Event::Model { model: entry.model, plans: planned });
        Ok(())
    }

    async fn profile_above(
        &self,
        node: &Arc<Node>,
        model: Digest,
        tier: &UpstreamTier,
    ) -> Option<(Digest, Arc<ModelProfile>)> {
        let offer = tier.models.iter().find(|offer| offer.model == model.to_bytes())?;
        let digest = Digest::try_from(&offer.profile).ok()?;
        let known = self.above.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(profile) = known {
            return Some((digest, profile));
        }
        let fetched = async {
            node.ensure_artefact(digest).await?;
            let json = node.artefacts.get(digest).await?;
            serde_json::from_slice::<ModelProfile>(&json).map_err(|e| Failure::new(Code::Corrupt, e.to_string()))
        };
        let fetched = tokio::time::timeout(PROFILE_RETRY, fetched).await;
        let fetched = fetched.unwrap_or_else(|_| Err(Failure::new(Code::DeadlineExceeded, "it did not come in time")));
        match fetched {
            Ok(profile) => {
                let profile = Arc::new(profile);
                self.above.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, Arc::clone(&profile));
                Some((digest, profile))
            }
            Err(failure) => {
                tracing::info!(%failure, tier = tier.node_name, "its profile can't be had yet; plans pass it by");
                let node = Arc::clone(node);
                tokio::spawn(async move {
                    tokio::time::sleep(PROFILE_RETRY).await;
                    node.planner.changed.notify_one();
                });
                None
            }
        }
    }
}

fn slice_key(key: SessionKey) -> SliceKey {
    SliceKey { digest: key.model.to_string(), from: key.span.first as usize, to: key.span.last as usize }
}

async fn warm(node: &Arc<Node>, key: SessionKey) -> Result<u64, String> {
    let entry = node.catalogue.by_model(key.model).ok_or("the model is gone")?;
    let program = node.program_within(&entry, Instant::now() + WARM_TIME_MAX).await.map_err(|f| f.to_string())?;
    node.compute.warm(program, slice_key(key)).await.map_err(|e| e.to_string())
}

/// Links of all paths and waits of all tiers as they are now.
fn conditions(node: &Node) -> Conditions {
    let mut conditions = Conditions { links: Vec::new(), waits: vec![node.compute.congestion()] };
    for uplink in node.uplinks() {
        let tiers = uplink.path().map(|path| path.tiers).unwrap_or_default();
        let mut reachable = uplink.is_up();
        let mut link = Some(uplink.estimate(node.now()));
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
type Above = (UpstreamTier, Option<(Digest, Arc<ModelProfile>)>);

type Source = (Option<Peer>, Vec<Above>);

/// Tables of all paths.
fn tables(
    model: Digest,
    name: &str,
    own: &Arc<ModelProfile>,
    sources: Vec<Source>,
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
        if let Some(tier) = request.tiers.first_mut() {
            (tier.memory_max, tier.watts, tier.price_per_hour) =
                (config.memory_bytes, config.watts, config.price_per_hour);
        }
        match PlanTable::precompute(request, &grid(above.len())) {
            Ok(table) => {
                let path = planned.paths.len();
                let here =
                    |placement: usize| table.bounds(placement).first().is_none_or(|&b| b == planned.memory.len());
                // All here is the same plan on every path.
                let new = (0..table.len()).filter(|&p| path == 0 || !here(p)).map(|p| (path, p));
                planned.plans.extend(new);
                planned.paths.push(Path { peer, above: roles, table, first_link, first_wait });
            }
            Err(e) => last_error = Some(e),
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

fn place(peer: Option<Peer>, evaluation: &Evaluation, wait: Duration) -> Placed {
    let boundaries: Vec<Boundary> = evaluation
        .links
        .iter()
        .map(|link| Boundary {
            cut: link.place.checked_sub(1).map(|c| c as u32),
            tensors: link
                .tensors
                .iter()
                .map(|(name, codec)| TensorCodec { name: name.clone(), codec: codec.clone() })
                .collect(),
        })
        .collect();
    Placed {
        peer: peer.filter(|_| !boundaries.is_empty()),
        boundaries,
        predicted_ns: evaluation.cost.latency_ns as u64 + ns(wait),
        text: words(evaluation),
    }
}

/// `end 0..12 > cloud 12..25`.
#[must_use]
pub fn words(evaluation: &Evaluation) -> String {
    let busy = evaluation.stages.iter().filter(|stage| stage.last > stage.first);
    busy.map(|stage| format!("{} {}..{}", stage.tier, stage.first, stage.last)).collect::<Vec<_>>().join(" > ")
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
    /// What decided it, and what was measured of it.
    explanation: Explanation,
    /// The plan that requests run now.
    in_force: String,
    /// Distinct optimal placements over all link conditions.
    alternatives: usize,
}

impl Node {
    /// How the outputs of a model travel back down.
    #[must_use]
    pub fn reply_codec(&self, model: Digest) -> String {
        let profile = self.catalogue.profile(model);
        profile.and_then(|p| p.reply_codec().map(|(codec, _)| codec.to_owned())).unwrap_or_default()
    }

    /// Expected time of segments `from..to` here, waiting included; zero when
    /// not profiled.
    #[must_use]
    pub fn predicted(&self, program: &Program, from: usize, to: usize) -> Duration {
        self.service(program, from, to) + self.compute.expected_wait()
    }

    /// Expected time of segments `from..to` in the engine; zero when not
    /// profiled.
    #[must_use]
    pub fn service(&self, program: &Program, from: usize, to: usize) -> Duration {
        let model = program.manifest.digest.parse().ok();
        let Some(profile) = model.and_then(|model| self.catalogue.profile(model)) else { return Duration::ZERO };
        let time = match (from, to) {
            (0, to) if to == profile.segments.len() => profile.whole_ns,
            _ => profile.segments.get(from..to).map_or(0, |part| part.iter().filter_map(|s| s.time_ns).sum()),
        };
        Duration::from_nanos(time)
    }

    /// Expected time until the answer of a parent is here, for what lies
    /// behind the first of `boundaries`; without boundaries the parent runs
    /// the whole model. Zero when unknown.
    #[must_use]
    pub fn predicted_upstream(&self, peer: Peer, program: &Program, boundaries: &[Boundary]) -> Duration {
        let Ok(model) = program.manifest.digest.parse::<Digest>() else { return Duration::ZERO };
        let inner = self.planner.lock();
        let Some(path) = inner.adapt.plans(model).and_then(|planned| planned.path_of(peer)) else {
            return Duration::ZERO;
        };
        let request = path.table.request();
        let mut bounds: Vec<usize> = boundaries.iter().map(|b| segment_after(b.cut)).collect();
        if bounds.is_empty() {
            bounds.push(0);
        }
        bounds.resize(request.tiers.len().saturating_sub(1), request.segments());
        match request.evaluate(&bounds, &path.links(inner.adapt.conditions())) {
            Ok(evaluation) => {
                let own = evaluation.stages.first().map_or(0.0, |stage| stage.compute_ns);
                Duration::from_nanos((evaluation.cost.latency_ns - own).max(0.0) as u64)
            }
            Err(_) => Duration::ZERO,
        }
    }

    /// The plan that requests for a model run now; all here while there is none.
    pub fn current_plan(self: &Arc<Self>, entry: &Entry, program: &Program) -> Placed {
        let _ = self.planner.lock().adapt.step(self.now(), Event::Requested { model: entry.model });
        match self.planner.placed(entry.model) {
            Some((placed, _)) => placed,
            None => self.all_here(program),
        }
    }

    /// Everything on this node.
    #[must_use]
    pub fn all_here(&self, program: &Program) -> Placed {
        let segments = program.segments();
        let predicted_ns = ns(self.predicted(program, 0, segments));
        Placed { predicted_ns, text: format!("{} 0..{segments}", self.name()), ..Placed::default() }
    }

    /// Everything on the nearest tier of a role.
    ///
    /// # Errors
    /// [`Code::Unreachable`] when there is none on any path.
    pub fn all_at_role(&self, program: &Program, role: Role) -> Result<Placed, Failure> {
        if self.role() == role {
            return Ok(self.all_here(program));
        }
        // In the order of preference, those that are up before the others.
        let mut uplinks: Vec<_> = self.uplinks().iter().collect();
        uplinks.sort_by_key(|uplink| !uplink.is_up());
        let found = uplinks.into_iter().find_map(|uplink| {
            let tier = uplink.path()?.tiers.iter().position(|tier| tier.role() == role)?;
            Some((uplink.peer, tier + 1))
        });
        let Some((peer, links)) = found else {
            let text = format!("no {} is above {}", crate::identity::role_name(role), self.name());
            return Err(Failure::new(Code::Unreachable, text).with_help("`tierline nodes` shows the site"));
        };
        Ok(self.along(program, peer, &vec![0; links]))
    }

    /// A route that the caller chose: where each tier hands on.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] for cuts that don't exist or run backwards,
    /// [`Code::Unreachable`] without a parent.
    pub fn fixed(&self, program: &Program, route: &Route) -> Result<Placed, Failure> {
        let segments = program.segments();
        let places: Vec<usize> = route.boundaries.iter().map(|b| segment_after(b.cut)).collect();
        if places.iter().any(|&p| p > segments) || places.windows(2).any(|w| w[0] > w[1]) {
            let text = format!("places {places:?} don't lie in order within 0..{segments}");
            return Err(Failure::new(Code::InvalidInput, text)
                .with_help("`tierline model show` tells how many candidate cuts there are"));
        }
        if places.is_empty() {
            return Ok(self.all_here(program));
        }
        let peer = self.first_parent().ok_or_else(|| Failure::new(Code::Unreachable, "this node has no parent"))?;
        Ok(self.along(program, peer, &places))
    }

    /// Hands on at `places` along the path of `peer`, with the best codecs.
    fn along(&self, program: &Program, peer: Peer, places: &[usize]) -> Placed {
        let model = program.manifest.digest.parse::<Digest>().ok();
        let inner = self.planner.lock();
        let known = model
            .and_then(|model| inner.adapt.plans(model))
            .and_then(|planned| planned.path_of(peer))
            .and_then(|path| {
                let request = path.table.request();
                let mut bounds = places.to_vec();
                bounds.resize(request.tiers.len().checked_sub(1)?, request.segments());
                let evaluation = request.evaluate(&bounds, &path.links(inner.adapt.conditions())).ok()?;
                let wait = path.waits(&evaluation, inner.adapt.conditions());
                Some(place(Some(peer), &evaluation, wait))
            });
        known.unwrap_or_else(|| Placed {
            boundaries: places
                .iter()
                .map(|place| Boundary { cut: place.checked_sub(1).map(|c| c as u32), tensors: Vec::new() })
                .collect(),
            peer: Some(peer),
            predicted_ns: 0,
            text: format!("handed on at {places:?}"),
        })
    }

    /// Remembers how an answer came about, for `explain`.
    pub fn observe_answer(&self, header: &InferHeader, placement: &str, total: Duration, reply: &Reply) {
        let Some(entry) = self.catalogue.get(&header.model) else { return };
        if reply.failure.is_some() || reply.degraded.is_some() {
            return;
        }
        let mut inner = self.planner.lock();
        let recent = inner.recent.entry(entry.model).or_default();
        if recent.placement != placement {
            *recent = Recent { placement: placement.to_owned(), answers: VecDeque::new() };
        }
        if recent.answers.len() == RECENT_MAX {
            recent.answers.pop_front();
        }
        recent.answers.push_back((total, reply.stages.clone()));
    }

    /// Plans a model for a person: under the links as they are, with another
    /// goal or other limits if asked.
    ///
    /// # Errors
    /// [`Code::ModelNotReady`] before it is profiled, [`Code::Infeasible`]
    /// when no placement keeps the limits.
    pub fn plan_now(
        &self,
        entry: &Entry,
        request: &tierline_proto::v1::PlanRequest,
        explain: bool,
    ) -> Result<tierline_proto::v1::PlanReply, Failure> {
        let invalid = |text: String| Failure::new(Code::InvalidInput, text);
        let inner = self.planner.lock();
        let planned = inner.adapt.plans(entry.model).ok_or_else(|| {
            Failure::new(Code::ModelNotReady, format!("{} is not planned on {} yet", entry.manifest.name, self.name()))
                .with_help(format!("`tierline profile {}` measures it now", entry.manifest.name))
        })?;
        let mut best: Option<(&Path, PlanRequest, tierline_plan::Plan, Vec<LinkCondition>)> = None;
        let mut failed = None;
        for path in &planned.paths {
            let mut wanted = path.table.request().clone();
            if !request.objective.is_empty() {
                wanted.objective = request.objective.parse().map_err(invalid)?;
            }
            if !request.limits_json.is_empty() {
                wanted.limits =
                    serde_json::from_str(&request.limits_json).map_err(|e| invalid(format!("limits: {e}")))?;
            }
            for (tier, at) in wanted.tiers.iter_mut().zip(std::iter::once(0).chain(path.first_wait..)) {
                tier.wait_ns = inner.adapt.conditions().waits.get(at).map_or(0, |w| ns(*w));
            }
            let links = path.links(inner.adapt.conditions());
            match tierline_plan::plan(&wanted, &links) {
                Ok(plan) if best.as_ref().is_none_or(|(_, _, b, _)| plan.objective_value < b.objective_value) => {
                    best = Some((path, wanted, plan, links));
                }
                Ok(_) => {}
                Err(e) => failed = Some(e),
            }
        }
        let Some((path, wanted, plan, links)) = best else {
            let text = failed.map_or_else(|| "there is no path".to_owned(), |e| e.to_string());
            return Err(Failure::new(Code::Infeasible, text)
                .with_help("relax the limits, or check the links with `tierline nodes`"));
        };
        let in_force = inner
            .adapt
            .current(entry.model)
            .and_then(|p| planned.evaluate(p, inner.adapt.conditions()))
            .map_or_else(|| "none".to_owned(), |(_, evaluation)| words(&evaluation));
        let placement = words(&plan.evaluation);
        let measured = inner.recent.get(&entry.model).filter(|r| r.placement == placement).map(Recent::measured);
        let document = PlanDocument {
            model: entry.manifest.name.clone(),
            explanation: tierline_plan::explain(&wanted, &plan, measured.as_ref()),
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
}

fn describe(document: &PlanDocument, explain: bool) -> String {
    let mut text = describe_plan(&document.placement, &document.plan);
    if !document.unmeasured.is_empty() {
        text.push_str(&format!("not measured yet: {}\n", document.unmeasured.join(", ")));
    }
    if explain {
        text = format!("{}\n", document.explanation);
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
    use crate::output::{bytes, duration, table};
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
