//! Plans on this node: one table per model and path upwards, the machine that
//! chooses among its placements (`tierline_node::adapt`), and what requests
//! and people ask of it.
//!
//! A path is a parent and the tiers that it tells of. Placements of all paths
//! are numbered in one row, so that going through another parent, or straight
//! to the cloud, is just another plan.
//!
//! `tables` holds every plan of a model, `placement` says where requests
//! go, `describe` tells people. Start at [`Planning`].

mod describe;
mod odds;
mod placement;
mod stand_in;
mod tables;
mod what_if;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tierline_graph::profile::ModelProfile;
use tierline_identity::Peer as Certified;
use tierline_node::adapt::{Action, Adapt, Conditions, Event, Link, Plans as _, SessionKey, Why};
use tierline_node::calibrate::Calibration;
use tierline_node::policy::{Roles, Rule};
use tierline_node::{Peer, Span, Time};
use tierline_plan::Evaluation;
use tierline_proto::envelope::PLANNING;
use tierline_proto::limits::PATH_TIERS_MAX;
use tierline_proto::v1::{Code, Envelope, Failure, UpstreamPath, UpstreamTier, WarmHint, WarmHints};
use tierline_proto::{Breach, Digest, Sound};
use tokio::sync::{Notify, Semaphore};

use self::describe::Recent;
pub use self::describe::describe_plan;
use self::odds::Odds;
use self::placement::place;
pub use self::placement::{Placed, segment_after, words};
pub use self::tables::Planned;
use self::tables::{Above, TIERS_ABOVE_MAX, conditions, exits_of, tables};
use super::artefacts::Artefacts;
use super::catalogue::{Catalogue, Change, Entry};
use crate::device::memory::{self, Kind, Memory};
use crate::device::program::SliceKey;
use crate::net::Uplink;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::events::now_ms;
use crate::runtime::tasks::sound;
use crate::runtime::{Context, numbers, wait_until};

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: PLANNING,
    tables: &[],
    rules: &[
        Rule::new("/tierline.v1.Local/Plan", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/Explain", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let planning = Planning::new(assembly);
        Box::new(assembly.add(planning))
    },
};

/// How often waiting times are looked at.
const LOOK: Duration = Duration::from_millis(1_000);

/// A profile that could not be fetched is asked for again after this.
const PROFILE_RETRY: Duration = Duration::from_secs(5);

/// Between two looks at whether something has come about.
const SHORTLY: Duration = Duration::from_millis(50);

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

/// Tiers of a path, and their profiles.
type Tiers = Vec<(String, Option<Digest>)>;

/// What a set of tables was made from; the same key needs no other tables.
#[derive(PartialEq)]
struct Key {
    own: Digest,
    /// Per path, its tiers and their profiles.
    paths: Vec<(Option<Peer>, Tiers)>,
    /// Per exit, the share of requests that goes on.
    go_on: Vec<f64>,
}

struct Inner {
    adapt: Adapt<Planned>,
    keys: HashMap<Digest, Key>,
    /// What models take beside what was measured of them.
    calibration: Calibration,
    /// Answers of the plan in force, by model.
    recent: HashMap<Digest, Recent>,
    /// How many requests leave at each exit, by model.
    odds: HashMap<Digest, Odds>,
    /// Under which conditions each model's tables were last searched beyond.
    searched: HashMap<Digest, Conditions>,
    /// Where requests went last, by model.
    last: HashMap<Digest, Placed>,
    /// Models whose requests go through a bottleneck now: the variant.
    through: HashMap<Digest, Digest>,
    /// Models whose plans went to make room, and whether they are wanted again.
    /// Until they are there, requests go where they went last.
    parted: HashMap<Digest, bool>,
}

impl Inner {
    fn new(memory_max: u64) -> Self {
        Self {
            adapt: Adapt::new(memory_max),
            calibration: Calibration::default(),
            keys: HashMap::new(),
            recent: HashMap::new(),
            odds: HashMap::new(),
            searched: HashMap::new(),
            last: HashMap::new(),
            through: HashMap::new(),
            parted: HashMap::new(),
        }
    }

    /// Something that went to make room.
    fn lost(&mut self, now: Time, key: memory::Key) -> Vec<Action> {
        match key {
            memory::Key::Session(key) => match session_key(&key) {
                Some(key) => self.adapt.step(now, Event::Evicted { key }),
                None => Vec::new(),
            },
            memory::Key::Plans(model) => {
                self.keys.remove(&model);
                self.parted.insert(model, false);
                self.adapt.step(now, Event::Gone { model })
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
pub struct Planning {
    cx: Context,
    artefacts: Arc<Artefacts>,
    catalogue: Arc<Catalogue>,
    /// The path as children know it.
    announced: Mutex<UpstreamPath>,
    /// Changes of the plan in force.
    switches: AtomicU64,
    inner: Mutex<Inner>,
    /// What sessions and plans share.
    memory: Memory,
    /// Profiles of tiers above, by artefact.
    above: Mutex<HashMap<Digest, Arc<ModelProfile>>>,
    /// Those that can't be used.
    refused: Mutex<Refused>,
    /// Sessions that nodes below have asked for and that are being loaded.
    hinted: Arc<Semaphore>,
    /// Rings when the machine's next wake may have moved.
    stir: Notify,
    /// Rings when tables may have to be made anew.
    changed: Arc<Notify>,
}

impl Planning {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (cx, catalogue) = (assembly.cx.clone(), assembly.get::<Catalogue>());
        let memory = cx.device.memory.clone();
        let planning = Arc::new(Self {
            cx,
            artefacts: assembly.get(),
            catalogue,
            announced: Mutex::default(),
            switches: AtomicU64::new(0),
            inner: Mutex::new(Inner::new(memory.max())),
            memory,
            above: Mutex::default(),
            refused: Mutex::default(),
            hinted: Arc::new(Semaphore::new(HINTED_MAX)),
            stir: Notify::new(),
            changed: Arc::new(Notify::new()),
        });
        let this = Arc::clone(&planning);
        planning.catalogue.on_change(move |change| match change {
            Change::Gone(model) => this.gone(*model),
            Change::Profiled => {
                this.tell_children_path();
                this.replan();
            }
            Change::Unprofiled(_) | Change::Unmeasured | Change::Renamed => {}
        });
        planning
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        sound(&self.inner, |inner| {
            *inner = Inner::new(self.memory.max());
            self.memory.forget_all(|key| key.kind() == Kind::Plans);
            // Tables are made again, and plans chosen of them.
            self.changed.notify_one();
        })
    }

    /// A model is gone.
    fn gone(self: &Arc<Self>, model: Digest) {
        {
            let mut inner = self.lock();
            inner.keys.remove(&model);
            inner.recent.remove(&model);
            inner.odds.remove(&model);
            inner.searched.remove(&model);
            inner.last.remove(&model);
            inner.through.retain(|own, variant| *own != model && *variant != model);
            inner.parted.remove(&model);
            inner.calibration.forget(model);
        }
        self.memory.forget(&memory::Key::Plans(model));
        self.step(Event::Gone { model });
    }

    /// Tiers, profiles or models may have changed.
    fn replan(self: &Arc<Self>) {
        self.conditions(true);
        self.changed.notify_one();
    }

    /// Links or waits moved; `changed` when a change was detected.
    fn conditions(self: &Arc<Self>, changed: bool) {
        let ratios = self.lock().calibration.ratios(self.cx.clock.now());
        let conditions = conditions(&self.cx, ratios);
        let same = !changed && *self.lock().adapt.conditions() == conditions;
        if !same {
            self.step(Event::Conditions { conditions, changed });
        }
    }

    fn step(self: &Arc<Self>, event: Event<Planned>) {
        let (now, gone) = (self.cx.clock.now(), self.memory.gone());
        let plans = self.memory.kept().into_iter().filter(|kept| kept.kind == Kind::Plans);
        let room = self.memory.max().saturating_sub(plans.map(|kept| kept.bytes).sum());
        let mut actions = Vec::new();
        {
            let mut inner = self.lock();
            inner.adapt.set_room(room);
            for key in gone {
                actions.extend(inner.lost(now, key));
            }
            actions.extend(inner.adapt.step(now, event));
        }
        for action in actions {
            self.perform(action);
        }
        self.stir.notify_one();
    }

    fn perform(self: &Arc<Self>, action: Action) {
        match action {
            Action::Use { model, why, .. } => self.switched(model, why),
            Action::Unusable { model } => {
                let name =
                    self.catalogue.known.by_model(model).map_or_else(|| model.short().to_string(), |e| e.manifest.name);
                let text = format!("no plan can run {name} now");
                self.cx.events.record("plan", text, &serde_json::json!({ "model": name, "plan": null }));
            }
            Action::Warm(key) => {
                let (planning, catalogue) = (Arc::clone(self), Arc::clone(&self.catalogue));
                let work = async move { catalogue.warm(slice_key(key)).await.map_err(|failure| failure.to_string()) };
                self.cx.tasks.spawn_then("warming", work, move |warmed| async move {
                    let result = warmed.unwrap_or_else(|failure| Err(failure.to_string()));
                    if let Err(reason) = &result {
                        tracing::debug!(?key, reason, "a session could not be loaded");
                    }
                    planning.step(Event::Warmed { key, result });
                });
            }
            Action::Evict(key) => {
                let planning = Arc::clone(self);
                self.cx.tasks.spawn("eviction", async move {
                    planning.cx.device.compute.evict(slice_key(key)).await;
                    planning.step(Event::Evicted { key });
                });
            }
        }
    }

    /// Another plan is in force: says so, and has its sessions loaded above.
    fn switched(&self, model: Digest, why: Why) {
        let Some(entry) = self.catalogue.known.by_model(model) else { return };
        let placed = self.placed(model);
        let Some((placed, evaluation)) = placed else { return };
        let before = self.lock().last.insert(model, placed.clone());
        if why != Why::First {
            self.switches.fetch_add(1, Ordering::Relaxed);
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
            self.cx.events.record("plan", text, &json);
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
        if let Some(uplink) = placed.peer.and_then(|p| self.cx.parents.get(p).ok())
            && !hints.is_empty()
        {
            uplink.tell(PLANNING, &WarmHints { hints });
        }
    }

    /// Loads what a node below is likely to need here, or passes the hint on.
    fn warm_hints(&self, hints: &WarmHints) {
        let mut further = Vec::new();
        for hint in &hints.hints {
            if hint.tiers_above > 1 {
                further.push(WarmHint { tiers_above: hint.tiers_above - 1, ..hint.clone() });
                continue;
            }
            let Some(entry) = Digest::try_from(&hint.model).ok().and_then(|model| self.catalogue.known.by_model(model))
            else {
                continue;
            };
            let (catalogue, hint) = (Arc::clone(&self.catalogue), hint.clone());
            // A hint is no more than that: with many under way, it is let go.
            let Ok(turn) = Arc::clone(&self.hinted).try_acquire_owned() else { return };
            self.cx.tasks.spawn("hint", async move {
                let _turn = turn;
                let to = hint.to_cut.map_or(entry.manifest.cuts.len() + 1, |c| c as usize + 1);
                let key = SliceKey { digest: entry.manifest.digest.clone(), from: segment_after(hint.from_cut), to };
                if let Err(failure) = catalogue.warm(key).await {
                    tracing::debug!(%failure, "a session asked for from below could not be loaded");
                }
            });
        }
        if let (false, Some(uplink)) = (further.is_empty(), self.cx.parents.first()) {
            uplink.tell(PLANNING, &WarmHints { hints: further });
        }
    }

    /// The tiers from here up, as children plan with them.
    fn path_for_children(&self) -> UpstreamPath {
        let above = self.cx.parents.first();
        // Told of also while it is away: what is planned for it is answered nearer.
        let above_path = above.as_ref().and_then(|u| u.path());
        let own = UpstreamTier {
            node_id: self.cx.me.id().to_owned(),
            node_name: self.cx.me.name().to_owned(),
            role: self.cx.me.role().into(),
            models: self.catalogue.offers().models,
            link_above: above.as_ref().map(|u| u.estimate()),
            load: Some(self.cx.device.load()),
            reachable: above.as_ref().is_none_or(|u| u.is_up()),
        };
        let tiers = std::iter::once(own).chain(above_path.into_iter().flat_map(|p| p.tiers));
        let tiers = tiers.take(PATH_TIERS_MAX).collect();
        UpstreamPath { sequence: now_ms(), tiers }
    }

    /// Sends every child the path.
    fn tell_children_path(&self) {
        let path = self.path_for_children();
        self.announced.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&path);
        self.cx.children.tell_all(PLANNING, &path);
    }

    /// Sends every child the path if it differs by more than noise from what
    /// they were told last.
    fn refresh_children_path(&self) {
        let path = self.path_for_children();
        let moved = differs(&self.announced.lock().unwrap_or_else(PoisonError::into_inner), &path);
        if moved {
            self.tell_children_path();
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

    /// Whether what a model's plan in force runs here is loaded and has run
    /// once; so where it runs nothing here, or there is none.
    pub fn is_warm(&self, model: Digest) -> bool {
        let inner = self.lock();
        let Some(plan) = inner.adapt.current(model) else { return true };
        let Some(plans) = inner.adapt.plans(model) else { return true };
        plans.sessions(plan).iter().all(|session| inner.adapt.is_warm(session.key))
    }

    /// The plan in force under the conditions as they are.
    fn placed(&self, model: Digest) -> Option<(Placed, Evaluation)> {
        let _ = self.memory.get::<()>(&memory::Key::Plans(model));
        self.peek(model)
    }

    /// The same for whoever only looks: plans are kept no longer for it.
    fn peek(&self, model: Digest) -> Option<(Placed, Evaluation)> {
        let inner = self.lock();
        let plan = inner.adapt.current(model)?;
        let (path, evaluation) = inner.adapt.plans(model)?.evaluate(plan, inner.adapt.conditions())?;
        let beyond_ns = path.beyond_ns(model, &evaluation, inner.adapt.conditions());
        let exits = exits_of(path.table.request());
        let placed = Placed { text: path.words(&evaluation), ..place(path.peer, &evaluation, exits, beyond_ns) };
        Some((placed, evaluation))
    }

    /// Makes tables and wakes the machine, until the node ends.
    async fn run(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.lock().adapt.wake().map(|t| self.cx.clock.instant_of(t));
            tokio::select! {
                () = self.stir.notified() => {}
                () = self.memory.until_gone() => self.step(Event::Wake),
                () = wait_until(wake) => self.step(Event::Wake),
                _ = look.tick() => {
                    self.conditions(false);
                    let asked_for: Vec<Digest> = self.lock().recent.keys().copied().collect();
                    asked_for.into_iter().for_each(|model| self.search_beyond(model));
                    self.refresh_children_path();
                }
            }
        }
    }

    /// Makes tables anew when they may have changed, until the node ends.
    async fn work(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            let known = &self.catalogue.known;
            let running: HashSet<Digest> = known.list().iter().map(|entry| entry.model).collect();
            // Versions in use elsewhere are planned for once they are measured here.
            let planned = |entry: &Entry| running.contains(&entry.model) || known.profile(entry.model).is_some();
            for entry in known.all().into_iter().filter(planned) {
                // What is scaled from above comes once there is something to scale.
                if self.cx.me.config().scale_of_parent.is_some() && self.catalogue.known.profile(entry.model).is_none()
                {
                    self.catalogue.tell(&Change::Unprofiled(&entry));
                }
                if let Err(failure) = self.remake(&entry).await {
                    let text = format!("{} could not be planned: {failure}", entry.manifest.name);
                    self.cx.events.record(
                        "plan",
                        text,
                        &serde_json::json!({ "model": entry.manifest.name, "plan": null }),
                    );
                }
            }
        }
    }

    /// The profile of the nearest tier above that has one.
    pub async fn nearest_above(&self, model: Digest) -> Option<Arc<ModelProfile>> {
        for tier in self.cx.parents.iter().filter_map(|u| u.path()).flat_map(|path| path.tiers) {
            if let Some((_, profile)) = self.profile_above(model, &tier).await {
                return Some(profile);
            }
        }
        None
    }

    /// Waits until a model has a plan in force here.
    pub async fn until_planned(&self, model: Digest) {
        while self.lock().adapt.current(model).is_none() {
            tokio::time::sleep(SHORTLY).await;
        }
    }

    /// Makes the plans of a model again, if they went to make room.
    ///
    /// # Errors
    /// [`Code::Infeasible`] when there are none.
    pub async fn have(self: &Arc<Self>, entry: &Entry) -> Result<(), Failure> {
        let parted = self.lock().parted.get_mut(&entry.model).map(|wanted| *wanted = true).is_some();
        if parted { self.remake(entry).await } else { Ok(()) }
    }

    async fn remake(self: &Arc<Self>, entry: &Entry) -> Result<(), Failure> {
        if !self.lock().may_plan(entry.model) {
            return Ok(());
        }
        let (Some(own), Some(own_digest)) =
            (self.catalogue.known.profile(entry.model), self.catalogue.known.profile_artefact(entry.model))
        else {
            return Ok(());
        };
        let mut sources = Vec::new();
        for uplink in self.cx.parents.iter() {
            let tiers = uplink.path().map(|path| path.tiers).unwrap_or_default();
            let mut above = Vec::new();
            for tier in tiers.into_iter().take(TIERS_ABOVE_MAX) {
                let profile = self.profile_above(entry.model, &tier).await;
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
        let exits = entry.manifest.exits.as_ref().map(|exits| {
            let go_on = self.lock().odds.get(&entry.model).cloned().unwrap_or_default().go_on(exits);
            (exits.clone(), go_on)
        });
        let key = Key {
            own: own_digest,
            paths: sources.iter().map(|(peer, above)| (*peer, tiers(above))).collect(),
            go_on: exits.iter().flat_map(|(_, go_on)| go_on).copied().collect(),
        };
        if self.lock().keys.get(&entry.model) == Some(&key) {
            return Ok(());
        }
        let through = entry.manifest.bottleneck.as_ref().map(|b| Arc::from(stand_in::in_words(b)));
        let made = Arc::new(());
        let (config, model, name) = (self.cx.me.config().clone(), entry.model, self.cx.me.name().to_owned());
        let planned = self
            .cx
            .tasks
            .blocking("planning", move || tables(model, &name, &own, sources, (&exits, through.as_ref()), &config))
            .await??;
        {
            let mut inner = self.lock();
            // Ratios to another profile say nothing of this one.
            if inner.keys.get(&entry.model).is_some_and(|key| key.own != own_digest) {
                inner.calibration.forget(entry.model);
            }
            inner.keys.insert(entry.model, key);
            inner.parted.remove(&entry.model);
            inner.searched.remove(&entry.model);
        }
        self.memory.keep(memory::Key::Plans(entry.model), &made, planned.byte_len());
        self.step(Event::Model { model: entry.model, plans: planned });
        Ok(())
    }

    /// Looks for plans that no table of a model has, where conditions are others
    /// than when it was last looked.
    fn search_beyond(self: &Arc<Self>, model: Digest) {
        let mut inner = self.lock();
        let conditions = inner.adapt.conditions().clone();
        if inner.searched.get(&model).is_some_and(|before| !beyond(model, before, &conditions)) {
            return;
        }
        inner.searched.insert(model, conditions.clone());
        let found = inner.adapt.plans_mut(model).is_some_and(|planned| planned.extend(&conditions));
        drop(inner);
        if found {
            self.step(Event::Conditions { conditions, changed: false });
        }
    }

    async fn profile_above(&self, model: Digest, tier: &UpstreamTier) -> Option<(Digest, Arc<ModelProfile>)> {
        let offer = tier.models.iter().find(|offer| offer.model == model.to_bytes())?;
        let digest = Digest::try_from(&offer.profile).ok()?;
        let known = self.above.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(profile) = known {
            return Some((digest, profile));
        }
        if self.refused.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&digest) {
            return None;
        }
        let fetched = tokio::time::timeout(PROFILE_RETRY, self.artefacts.document::<ModelProfile>(digest)).await;
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
                    self.cx.events.record("plan", text, &serde_json::json!({ "node": name }));
                }
                None
            }
            Err(failure) => {
                tracing::info!(%failure, tier = tier.node_name, "its profile can't be had yet; plans pass it by");
                let changed = Arc::clone(&self.changed);
                self.cx.tasks.spawn("profile retry", async move {
                    tokio::time::sleep(PROFILE_RETRY).await;
                    changed.notify_one();
                });
                None
            }
        }
    }
}

#[tonic::async_trait]
impl Duty for Arc<Planning> {
    async fn begin(&self) -> Result<(), Failure> {
        self.cx.keep("plans", self, Planning::run);
        self.cx.keep("tables", self, Planning::work);
        self.replan();
        Ok(())
    }

    fn parent_up(&self, _: &Arc<Uplink>) {
        self.replan();
        self.tell_children_path();
    }

    fn parent_down(&self, _: &Arc<Uplink>) {
        self.replan();
        self.tell_children_path();
    }

    fn link_moved(&self, _: &Arc<Uplink>, changed: bool) {
        self.conditions(changed);
        if changed {
            self.tell_children_path();
        }
    }

    async fn hear_parent(&self, parent: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        parent.set_path(Sound::decode(payload)?);
        self.replan();
        self.refresh_children_path();
        Ok(())
    }

    fn greetings(&self) -> Vec<Envelope> {
        vec![Envelope::new(PLANNING, &self.path_for_children())]
    }

    /// A child says which sessions its likely plans need above.
    fn hear_child(&self, _: &Certified, payload: Bytes) -> Result<(), Breach> {
        let hints = Sound::<WarmHints>::decode(payload)?;
        self.warm_hints(&hints);
        Ok(())
    }

    fn numbers(&self, out: &mut String) {
        let switches = self.switches.load(Ordering::Relaxed);
        let help = "Changes of the plan in force.";
        numbers::single(out, "tierline_plan_switches_total", "counter", help, switches);
    }
}

/// Whether conditions moved so far that a plan may be best that wasn't before:
/// a model's ratios by more than a step, a link by more than it trembles.
fn beyond(model: Digest, before: &Conditions, now: &Conditions) -> bool {
    let apart = |a: f64, b: f64, floor: f64| (a - b).abs() > floor.max(0.25 * a.max(b));
    let link = |(a, b): (&Link, &Link)| {
        apart(a.up, b.up, 0.0) || apart(a.down, b.down, 0.0) || apart(a.rtt.as_secs_f64(), b.rtt.as_secs_f64(), 1e-4)
    };
    before.links.len() != now.links.len()
        || before.links.iter().zip(&now.links).any(link)
        || before.ratios.differ(&now.ratios, model)
}

/// Whether links, waits or profiles on a path differ enough to matter to plans.
fn differs(old: &UpstreamPath, new: &UpstreamPath) -> bool {
    /// Waits below this change no plan.
    const WAIT_NS: f64 = 5e6;
    let apart = |a: f64, b: f64, floor: f64| (a - b).abs() > floor.max(0.15 * a.max(b));
    let link = |tier: &UpstreamTier| tier.link_above.unwrap_or_default();
    let wait = |tier: &UpstreamTier| tier.load.map_or(0.0, |l| l.wait_ns as f64);
    let tier = |(a, b): (&UpstreamTier, &UpstreamTier)| {
        let (x, y) = (link(a), link(b));
        a.node_id != b.node_id
            || a.reachable != b.reachable
            || a.models != b.models
            || apart(x.up_bytes_per_s, y.up_bytes_per_s, 0.0)
            || apart(x.down_bytes_per_s, y.down_bytes_per_s, 0.0)
            || apart(x.rtt_ns as f64, y.rtt_ns as f64, WAIT_NS)
            || apart(wait(a), wait(b), WAIT_NS)
    };
    old.tiers.len() != new.tiers.len() || old.tiers.iter().zip(&new.tiers).any(tier)
}

fn session_key(key: &SliceKey) -> Option<SessionKey> {
    let span = Span { first: u32::try_from(key.from).ok()?, last: u32::try_from(key.to).ok()? };
    Some(SessionKey { model: key.digest.parse().ok()?, span })
}

fn slice_key(key: SessionKey) -> SliceKey {
    SliceKey { digest: key.model.to_string(), from: key.span.first as usize, to: key.span.last as usize }
}
