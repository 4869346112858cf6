//! Plans on this node: one table per model and path upwards, the machine that
//! chooses among its placements (`tierline_node::adapt`), and what requests
//! and people ask of it.
//!
//! A path is a parent and the tiers that it tells of. Placements of all paths
//! are numbered in one row, so that going through another parent, or straight
//! to the cloud, is just another plan.
//!
//! `tables` holds every plan of a model, `placement` says where requests
//! go, `describe` tells people. Start at [`Planner`].

mod describe;
mod placement;
mod tables;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tierline_graph::profile::ModelProfile;
use tierline_node::adapt::{Action, Adapt, Event, SessionKey, Why};
use tierline_node::{Peer, Span};
use tierline_plan::Evaluation;
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure, ModelOffer, Offers, UpstreamTier, WarmHint, WarmHints, child_message};
use tokio::sync::{Notify, Semaphore};

use self::describe::Recent;
pub use self::describe::describe_plan;
use self::placement::place;
pub use self::placement::{Placed, words};
pub use self::tables::Planned;
use self::tables::{Above, TIERS_ABOVE_MAX, conditions, tables};
use super::Node;
use super::catalogue::Entry;
use super::compute::SliceKey;
use super::flow::segment_after;
use super::memory::{self, Kind, Memory};
use super::tasks::sound;

/// How often waiting times are looked at.
const LOOK: Duration = Duration::from_millis(1_000);

/// A profile that could not be fetched is asked for again after this.
const PROFILE_RETRY: Duration = Duration::from_secs(5);

/// Sessions that nodes below ask for, being loaded at once.
const HINTED_MAX: usize = 64;

/// Profiles of tiers above that are kept, and that are known to be of no use.
const PROFILES_ABOVE_MAX: usize = 4_096;

/// Profiles of tiers above that can't be used.
#[derive(Default)]
struct Refused(HashSet<Digest>);

impl Refused {
    /// Whether that is news.
    fn refuse(&mut self, profile: Digest) -> bool {
        if self.0.len() >= PROFILES_ABOVE_MAX {
            self.0.clear();
        }
        self.0.insert(profile)
    }
}

/// What a set of tables was made from; the same key needs no other tables.
type Key = (Digest, Vec<(Option<Peer>, Vec<(String, Option<Digest>)>)>);

struct Inner {
    adapt: Adapt<Planned>,
    keys: HashMap<Digest, Key>,
    /// Answers of the plan in force, by model.
    recent: HashMap<Digest, Recent>,
    /// Where requests went last, by model.
    last: HashMap<Digest, Placed>,
    /// Models whose plans went to make room, and whether they are wanted again.
    /// Until they are there, requests go where they went last.
    parted: HashMap<Digest, bool>,
}

impl Inner {
    fn new(memory_max: u64) -> Self {
        Self {
            adapt: Adapt::new(memory_max),
            keys: HashMap::new(),
            recent: HashMap::new(),
            last: HashMap::new(),
            parted: HashMap::new(),
        }
    }

    /// Something that went to make room.
    fn lost(&mut self, node: &Node, key: memory::Key) -> Vec<Action> {
        match key {
            memory::Key::Session(key) => match session_key(&key) {
                Some(key) => self.adapt.step(node.now(), Event::Evicted { key }),
                None => Vec::new(),
            },
            memory::Key::Plans(model) => {
                self.keys.remove(&model);
                self.parted.insert(model, false);
                self.adapt.step(node.now(), Event::Gone { model })
            }
            memory::Key::Model(_) => Vec::new(),
        }
    }

    /// Whether plans of a model may be made: unless they went to make room and
    /// nobody has asked for them since.
    fn may_plan(&self, model: Digest) -> bool {
        self.parted.get(&model).is_none_or(|wanted| *wanted)
    }
}

/// The plans of a node.
pub struct Planner {
    inner: Mutex<Inner>,
    /// What sessions and plans share.
    memory: Memory,
    /// This device's profiles, as artefacts, by model.
    own: RwLock<HashMap<Digest, Digest>>,
    /// Profiles of tiers above, by artefact.
    above: Mutex<HashMap<Digest, Arc<ModelProfile>>>,
    /// Those that can't be used.
    refused: Mutex<Refused>,
    /// Sessions that nodes below have asked for and that are being loaded.
    hinted: Arc<Semaphore>,
    /// Rings when the machine's next wake may have moved.
    stir: Notify,
    /// Rings when tables may have to be made anew.
    changed: Notify,
}

impl Planner {
    /// No plans yet; they and sessions are kept in `memory`.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self {
            inner: Mutex::new(Inner::new(memory.max())),
            memory,
            own: RwLock::default(),
            above: Mutex::default(),
            refused: Mutex::default(),
            hinted: Arc::new(Semaphore::new(HINTED_MAX)),
            stir: Notify::new(),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        sound(&self.inner, |inner| {
            *inner = Inner::new(self.memory.max());
            self.memory.forget_all(|key| key.kind() == Kind::Plans);
            // Tables are made again, and plans chosen of them.
            self.changed.notify_one();
        })
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
        {
            let mut inner = self.lock();
            inner.keys.remove(&model);
            inner.recent.remove(&model);
            inner.last.remove(&model);
            inner.parted.remove(&model);
        }
        self.memory.forget(&memory::Key::Plans(model));
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
            // What can't be run here is passed on, not offered.
            .filter(|entry| node.catalogue.check_fit(entry.model).is_ok())
            .map(|entry| ModelOffer {
                model: entry.model.to_bytes(),
                profile: self.profile_of(entry.model).map(Digest::to_bytes).unwrap_or_default(),
                state: node.catalogue.state(entry, true).into(),
            })
            .collect();
        Offers { sequence: super::events::now_ms(), models, catalogue: node.catalogue.mark() }
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
        let gone = self.memory.gone();
        let plans = self.memory.kept().into_iter().filter(|kept| kept.kind == Kind::Plans);
        let room = self.memory.max().saturating_sub(plans.map(|kept| kept.bytes).sum());
        let mut actions = Vec::new();
        {
            let mut inner = self.lock();
            inner.adapt.set_room(room);
            for key in gone {
                actions.extend(inner.lost(node, key));
            }
            actions.extend(inner.adapt.step(node.now(), event));
        }
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
                let warming = Arc::clone(&node);
                let work = async move { warming.warm(slice_key(key)).await.map_err(|failure| failure.to_string()) };
                node.tasks.clone().spawn_then("warming", work, move |warmed| async move {
                    let result = warmed.unwrap_or_else(|failure| Err(failure.to_string()));
                    if let Err(reason) = &result {
                        tracing::debug!(?key, reason, "a session could not be loaded");
                    }
                    node.planner.step(&node, Event::Warmed { key, result });
                });
            }
            Action::Evict(key) => {
                let node = Arc::clone(node);
                node.tasks.clone().spawn("eviction", async move {
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
        let before = self.lock().last.insert(model, placed.clone());
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
        // Plans that went to make room and came again are no news.
        if why != Why::First || before.is_none_or(|before| before.text != placed.text) {
            let json =
                serde_json::json!({ "model": name, "plan": placed.text, "predicted_ms": predicted, "why": reason });
            let text = format!("{name} runs as {} ({reason}; {predicted:.1} ms predicted)", placed.text);
            node.events.record("plan", text, &json);
        }
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
        for hint in &hints.hints {
            if hint.tiers_above > 1 {
                further.push(WarmHint { tiers_above: hint.tiers_above - 1, ..hint.clone() });
                continue;
            }
            let Some(entry) = Digest::try_from(&hint.model).ok().and_then(|model| node.catalogue.by_model(model))
            else {
                continue;
            };
            let (node, hint) = (Arc::clone(node), hint.clone());
            // A hint is no more than that: with many under way, it is let go.
            let Ok(turn) = Arc::clone(&self.hinted).try_acquire_owned() else { return };
            node.tasks.clone().spawn("hint", async move {
                let _turn = turn;
                let to = hint.to_cut.map_or(entry.manifest.cuts.len() + 1, |c| c as usize + 1);
                let key = SliceKey { digest: entry.manifest.digest.clone(), from: segment_after(hint.from_cut), to };
                if let Err(failure) = node.warm(key).await {
                    tracing::debug!(%failure, "a session asked for from below could not be loaded");
                }
            });
        }
        if let (false, Some(uplink)) = (further.is_empty(), node.first_parent().and_then(|p| node.uplink(p).ok())) {
            uplink.tell(child_message::Body::Hints(WarmHints { hints: further }));
        }
    }

    /// Where requests went before the plans of their model went to make room;
    /// they are made again.
    fn placed_last(&self, model: Digest) -> Option<Placed> {
        let mut inner = self.lock();
        *inner.parted.get_mut(&model)? = true;
        self.changed.notify_one();
        inner.last.get(&model).cloned()
    }

    /// The plan in force under the conditions as they are.
    fn placed(&self, model: Digest) -> Option<(Placed, Evaluation)> {
        let _ = self.memory.get::<()>(&memory::Key::Plans(model));
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
                () = self.memory.until_gone() => self.step(node, Event::Wake),
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

    /// Makes the plans of a model again, if they went to make room.
    ///
    /// # Errors
    /// [`Code::Infeasible`] when there are none.
    pub async fn have(&self, node: &Arc<Node>, entry: &Entry) -> Result<(), Failure> {
        let parted = self.lock().parted.get_mut(&entry.model).map(|wanted| *wanted = true).is_some();
        if parted { self.remake(node, entry).await } else { Ok(()) }
    }

    async fn remake(&self, node: &Arc<Node>, entry: &Entry) -> Result<(), Failure> {
        if !self.lock().may_plan(entry.model) {
            return Ok(());
        }
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
        let made = Arc::new(());
        let (config, model, name) = (node.config().clone(), entry.model, node.name().to_owned());
        let planned = node.tasks.blocking("planning", move || tables(model, &name, &own, sources, &config)).await??;
        {
            let mut inner = self.lock();
            inner.keys.insert(entry.model, key);
            inner.parted.remove(&entry.model);
        }
        self.memory.keep(memory::Key::Plans(entry.model), &made, planned.byte_len());
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
        if self.refused.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&digest) {
            return None;
        }
        let fetched = tokio::time::timeout(PROFILE_RETRY, node.document::<ModelProfile>(digest)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(Failure::new(Code::DeadlineExceeded, "it did not come in time")));
        match fetched {
            Ok(profile) => {
                let profile = Arc::new(profile);
                let mut above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
                // A parent may tell of ever new ones; those of now are asked for again.
                if above.len() >= PROFILES_ABOVE_MAX {
                    above.clear();
                }
                above.insert(digest, Arc::clone(&profile));
                Some((digest, profile))
            }
            // Asked for again, it would be the same.
            Err(failure) if matches!(failure.code(), Code::Corrupt | Code::TooLarge | Code::VersionMismatch) => {
                let name = tier.node_name.as_str();
                let text = format!("the profile of {name} can't be used, plans pass it by: {failure}");
                if self.refused.lock().unwrap_or_else(PoisonError::into_inner).refuse(digest) {
                    node.events.record("plan", text, &serde_json::json!({ "node": name }));
                }
                None
            }
            Err(failure) => {
                tracing::info!(%failure, tier = tier.node_name, "its profile can't be had yet; plans pass it by");
                let node = Arc::clone(node);
                node.tasks.clone().spawn("profile retry", async move {
                    tokio::time::sleep(PROFILE_RETRY).await;
                    node.planner.changed.notify_one();
                });
                None
            }
        }
    }
}

fn session_key(key: &SliceKey) -> Option<SessionKey> {
    let span = Span { first: u32::try_from(key.from).ok()?, last: u32::try_from(key.to).ok()? };
    Some(SessionKey { model: key.digest.parse().ok()?, span })
}

fn slice_key(key: SessionKey) -> SliceKey {
    SliceKey { digest: key.model.to_string(), from: key.span.first as usize, to: key.span.last as usize }
}
