//! A node changes itself over to another version of a model: performs what the
//! machine `tierline_update::rollout::Swap` asks, one for each model that was
//! ever rolled out here.
//!
//! What runs is what the machine's journal says. A model that is in no rollout
//! follows the catalogue, by the same way.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure};
use tierline_update::rollout::swap::Work;
use tierline_update::rollout::{
    Ask, Health, Kind, Limits, Report, Swap, SwapAction, SwapEvent, SwapRecord, Terms, Version, Want,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::relay::Told;
use super::{journal, now};
use crate::documents;
use crate::duties::artefacts::Artefacts;
use crate::duties::catalogue::{Catalogue, Change, Entry};
use crate::duties::inference::Inference;
use crate::duties::planning::Planning;
use crate::duties::profiling::Profiling;
use crate::models::Manifest;
use crate::runtime::duty::Assembly;
use crate::runtime::{Context, wait_until};

/// News for a machine that wait for it; others wait with theirs.
const NEWS_MAX: usize = 64;

/// Between two looks at how versions do, and at what the catalogue says.
const LOOK: Duration = Duration::from_secs(1);

/// A model that is in no rollout any more follows the catalogue after this: what
/// the rollout led to is on its way.
const FOLLOW_AFTER: Duration = Duration::from_secs(10);

/// A version that failed here, and that the catalogue still means, is tried
/// again after this: what was in its way may be gone.
const FOLLOW_AGAIN: Duration = Duration::from_secs(600);

/// A plan for a new version is waited for so long; without it the node runs the
/// whole of it.
const PLAN_TIME: Duration = Duration::from_secs(10);

/// Machines that are made anew because the disk refused wait so long.
const AGAIN: Duration = Duration::from_secs(5);

/// A model on this node.
struct Driven {
    door: mpsc::Sender<SwapEvent>,
    told: Told,
    /// What versions are, by the machine's names for them.
    entries: BTreeMap<Version, Entry>,
    /// Since when it is in no rollout; `None` while it is in one.
    unwatched: Option<Instant>,
}

/// The node's part.
pub struct Swapping {
    cx: Context,
    artefacts: Arc<Artefacts>,
    catalogue: Arc<Catalogue>,
    planning: Arc<Planning>,
    profiling: Arc<Profiling>,
    inference: Arc<Inference>,
    driven: Mutex<BTreeMap<String, Driven>>,
    /// Rings when there is something to tell.
    bell: tokio::sync::Notify,
    /// Changes by how they ended.
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

/// The machine's name of a version.
fn version(entry: &Entry) -> Result<Version, Failure> {
    Version::new(&entry.manifest.version.to_string()).map_err(|e| Failure::new(Code::Internal, e.to_string()))
}

impl Swapping {
    pub(super) fn new(assembly: &Assembly) -> Arc<Self> {
        Arc::new(Self {
            cx: assembly.cx.clone(),
            artefacts: assembly.get(),
            catalogue: assembly.get(),
            planning: assembly.get(),
            profiling: assembly.get(),
            inference: assembly.get(),
            driven: Mutex::default(),
            bell: tokio::sync::Notify::new(),
            counts: Mutex::default(),
        })
    }

    fn driven(&self) -> MutexGuard<'_, BTreeMap<String, Driven>> {
        self.driven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings when a model has something to tell.
    pub(super) async fn something_told(&self) {
        self.bell.notified().await;
    }

    /// Takes up what the journals say runs here, before anybody asks for it.
    pub(super) async fn open(&self) -> Result<(), Failure> {
        let kept = self.cx.state.with(|state| Ok((state.swap_records()?, state.swap_versions()?))).await?;
        let mut journals: BTreeMap<String, Vec<SwapRecord>> = BTreeMap::new();
        for (model, json) in kept.0 {
            match serde_json::from_str(&json) {
                Ok(record) => journals.entry(model).or_default().push(record),
                // Of a newer version of Tierline, or torn: what lies before it counts.
                Err(error) => tracing::warn!(%error, model, "a record of a change of versions can't be read"),
            }
        }
        for (model, version, manifest) in kept.1 {
            let read = async { documents::read::<Manifest>(&self.artefacts.get(manifest).await?) };
            let entry = match read.await.and_then(|read| Entry::new(read, manifest)) {
                Ok(entry) => entry,
                Err(failure) => {
                    tracing::warn!(%failure, model, version, "a version that was held here can't be read");
                    continue;
                }
            };
            if let Ok(version) = Version::new(&version) {
                self.catalogue.load_profile(&entry).await;
                self.driven().entry(model).or_insert_with(Driven::new).entries.insert(version, entry);
            }
        }
        for (model, records) in journals {
            let swap = Swap::recover(records, None);
            let mut driven = self.driven();
            let of = driven.entry(model.clone()).or_insert_with(Driven::new);
            let current = swap.current().and_then(|current| of.entries.get(current)).cloned();
            drop(driven);
            if let Some(entry) = current {
                self.catalogue.known.run(&model, Some(entry));
            }
        }
        Ok(())
    }

    pub(super) fn begin(self: &Arc<Self>) {
        let models: Vec<String> = self.driven().keys().cloned().collect();
        for model in models {
            self.drive(&model);
        }
    }

    /// Which models are in a rollout: of those it is told how they do.
    pub(super) fn watch(self: &Arc<Self>, watched: &BTreeSet<String>) {
        for model in watched {
            // What nobody here knows can't be told of.
            if self.catalogue.known.named(model).is_some() {
                self.drive(model);
            }
        }
        let mut driven = self.driven();
        for (model, of) in driven.iter_mut() {
            match watched.contains(model) {
                true => of.unwatched = None,
                false => drop(of.unwatched.get_or_insert_with(Instant::now)),
            }
        }
        drop(driven);
        self.watch_health();
    }

    /// Lets go of models that the catalogue has no more.
    pub(super) async fn forget_removed(&self) {
        let removed: Vec<String> = {
            let driven = self.driven();
            driven.keys().filter(|model| self.catalogue.known.named(model).is_none()).cloned().collect()
        };
        for model in removed {
            let Some(gone) = self.driven().remove(&model) else { continue };
            self.catalogue.known.run(&model, None);
            let of = model.clone();
            let forget = move |state: &tierline_store::State| {
                state.swap_records_replace(&of, &[])?;
                state.release_swap_versions(&of)
            };
            if let Err(failure) = self.cx.state.with(forget).await {
                tracing::warn!(%failure, model, "the journal of its versions stays");
            }
            for entry in gone.entries.values() {
                self.catalogue.let_go(entry).await;
            }
            self.watch_health();
        }
    }

    /// Something shall run here.
    pub(super) fn want(self: &Arc<Self>, model: &str, want: Want) {
        self.drive(model);
        self.tell(model, SwapEvent::Want(Box::new(want)));
    }

    fn tell(&self, model: &str, event: SwapEvent) {
        let door = self.driven().get(model).map(|of| of.door.clone());
        if let Some(door) = door
            && let Err(mpsc::error::TrySendError::Full(event)) = door.try_send(event)
        {
            self.cx.tasks.spawn("version news", async move {
                let _ = door.send(event).await;
            });
        }
    }

    /// Sets a machine to work, unless one is.
    fn drive(self: &Arc<Self>, model: &str) {
        let (door, inbox) = mpsc::channel(NEWS_MAX);
        {
            let mut driven = self.driven();
            let of = driven.entry(model.to_owned()).or_insert_with(Driven::new);
            if !of.door.is_closed() {
                return;
            }
            of.door = door;
        }
        let (swapping, model) = (Arc::clone(self), model.to_owned());
        self.cx.tasks.spawn("versions", async move {
            let mut inbox = inbox;
            while let Err(failure) = swapping.run(&model, &mut inbox).await {
                let text = format!("{model} stays as it is for now: {failure}");
                swapping.record(&model, text);
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    fn record(&self, model: &str, text: String) {
        self.cx.events.record("rollout", text, &serde_json::json!({ "model": model }));
    }

    /// What this node says of each model that is in a rollout.
    pub(super) fn told(&self) -> Vec<(String, Told)> {
        let driven = self.driven();
        let watched = driven.iter().filter(|(_, of)| of.unwatched.is_none() && of.told.report.session > 0);
        let told = watched.map(|(model, of)| {
            let health = of.entries.iter().filter_map(|(version, entry)| {
                let health = self.inference.health.of(entry.model)?;
                Some((version.clone(), health)).filter(|(_, health)| *health != Health::default())
            });
            let labels = self.cx.me.config().labels.clone();
            (model.clone(), Told { health: health.collect(), labels, ..of.told.clone() })
        });
        told.collect()
    }

    /// Counts requests for every version that a machine holds.
    fn watch_health(&self) {
        let driven = self.driven();
        let models: HashSet<Digest> = driven.values().flat_map(|of| of.entries.values()).map(|e| e.model).collect();
        drop(driven);
        self.inference.health.watch(models);
    }

    pub(super) fn needs(&self, needed: &mut HashSet<Digest>) {
        for of in self.driven().values() {
            for entry in of.entries.values() {
                needed.insert(entry.manifest_digest);
                needed.extend(entry.manifest.artefacts());
            }
        }
    }

    pub(super) fn numbers(&self, out: &mut String) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Changes of a model's version on this node, by how they ended.";
        let rows = counts.iter().map(|(outcome, count)| (*outcome, count));
        crate::runtime::numbers::labelled(out, ("tierline_version_changes_total", "counter", help), "outcome", rows);
    }

    fn count(&self, outcome: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// Runs a model's machine, until the node ends or the disk refuses.
    async fn run(self: &Arc<Self>, model: &str, inbox: &mut mpsc::Receiver<SwapEvent>) -> Result<(), Failure> {
        let of = model.to_owned();
        let journal = self.cx.state.with(|state| state.swap_records()).await?;
        let journal = journal.into_iter().filter(|(model, _)| *model == of);
        let records = journal.filter_map(|(_, json)| serde_json::from_str::<SwapRecord>(&json).ok());
        let mut machine = Machine {
            swapping: self,
            model,
            swap: Swap::recover(records.collect::<Vec<_>>(), Some(self.cx.me.config().memory_bytes())),
            works: HashMap::new(),
            done: mpsc::channel(NEWS_MAX),
            followed: Instant::now(),
        };
        let installed = self.catalogue.known.named(model);
        let installed = match &installed {
            Some(entry) => Some(machine.hold(entry).await?),
            None => None,
        };
        machine.step(SwapEvent::Started { installed }).await?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = machine.swap.next_deadline().map(|at| {
                let wait = at.saturating_sub(now(&self.cx).monotonic_ms);
                Instant::now() + Duration::from_millis(wait)
            });
            let event = tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => event,
                    None => return Ok(()),
                },
                Some(event) = machine.done.1.recv() => event,
                () = wait_until(deadline) => SwapEvent::Tick,
                _ = look.tick() => {
                    machine.look().await?;
                    continue;
                }
            };
            machine.step(event).await?;
        }
    }

    /// The entry of a version that the catalogue or a machine knows.
    fn entry(&self, model: &str, version: &Version) -> Option<Entry> {
        let held = self.driven().get(model).and_then(|of| of.entries.get(version).cloned());
        held.or_else(|| self.catalogue.known.version(model, version.as_str().parse().ok()?))
    }
}

impl Driven {
    fn new() -> Self {
        // Closed from the start: nobody drives it.
        let (door, _) = mpsc::channel(1);
        Self { door, told: Told::default(), entries: BTreeMap::new(), unwatched: Some(Instant::now()) }
    }
}

/// A machine at work.
struct Machine<'s> {
    swapping: &'s Arc<Swapping>,
    model: &'s str,
    swap: Swap,
    works: HashMap<u64, AbortHandle>,
    /// When it last went after what the catalogue means, or began.
    followed: Instant,
    done: (mpsc::Sender<SwapEvent>, mpsc::Receiver<SwapEvent>),
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.works.values().for_each(AbortHandle::abort);
    }
}

impl Machine<'_> {
    async fn step(&mut self, event: SwapEvent) -> Result<(), Failure> {
        let actions = self.swap.step(now(&self.swapping.cx), event);
        let mut rest = actions.into_iter().peekable();
        while let Some(action) = rest.next() {
            match action {
                SwapAction::Keep(record) => {
                    // Those that come together are on the disk together.
                    let mut records = vec![record];
                    while let Some(SwapAction::Keep(next)) = rest.next_if(|next| matches!(next, SwapAction::Keep(_))) {
                        records.push(next);
                    }
                    self.keep(records).await?;
                }
                SwapAction::Do { op, work } => self.begin(op, work),
                SwapAction::Stop { op } => {
                    if let Some(work) = self.works.remove(&op) {
                        work.abort();
                    }
                }
                SwapAction::Unload { version } => {
                    if let Some(entry) = self.swapping.entry(self.model, &version) {
                        self.swapping.cx.device.compute.forget(entry.model.to_string());
                    }
                }
                SwapAction::Release { version } => self.release(&version).await?,
                SwapAction::Report(report) => self.report(report),
                SwapAction::Notify { text } => {
                    self.swapping.record(self.model, format!("{}: version {text}", self.model))
                }
            }
        }
        Ok(())
    }

    /// Writes records through to the disk.
    async fn keep(&self, records: Vec<SwapRecord>) -> Result<(), Failure> {
        for record in &records {
            match record {
                SwapRecord::Committed { .. } => self.swapping.count("committed"),
                SwapRecord::Failed { .. } => self.swapping.count("failed"),
                SwapRecord::RolledBack { .. } | SwapRecord::FellBack => self.swapping.count("rolled_back"),
                _ => {}
            }
        }
        let (lines, whole) = journal(&records, SwapRecord::replaces_earlier)?;
        let model = self.model.to_owned();
        let write = move |state: &tierline_store::State| match whole {
            true => state.swap_records_replace(&model, &lines),
            false => state.swap_records_add(&model, &lines),
        };
        self.swapping.cx.state.with(write).await
    }

    fn report(&self, report: Report) {
        let mut driven = self.swapping.driven();
        if let Some(of) = driven.get_mut(self.model) {
            of.told.report = report;
        }
        drop(driven);
        self.swapping.bell.notify_one();
    }

    /// A version's bytes may be needed from now on, whatever the catalogue says.
    async fn hold(&self, entry: &Entry) -> Result<Version, Failure> {
        let version = version(entry)?;
        let known = {
            let mut driven = self.swapping.driven();
            let of = driven.entry(self.model.to_owned()).or_insert_with(Driven::new);
            of.entries
                .insert(version.clone(), entry.clone())
                .is_some_and(|k| k.manifest_digest == entry.manifest_digest)
        };
        if !known {
            let (model, name, manifest) = (self.model.to_owned(), version.as_str().to_owned(), entry.manifest_digest);
            self.swapping.cx.state.with(move |state| state.hold_swap_version(&model, &name, manifest)).await?;
            self.swapping.watch_health();
        }
        Ok(version)
    }

    async fn release(&self, version: &Version) -> Result<(), Failure> {
        let entry = {
            let mut driven = self.swapping.driven();
            let of = driven.get_mut(self.model);
            of.and_then(|of| {
                of.told.holds.retain(|held| held != version);
                of.entries.remove(version)
            })
        };
        let (model, name) = (self.model.to_owned(), version.as_str().to_owned());
        self.swapping.cx.state.with(move |state| state.release_swap_version(&model, &name)).await?;
        if let Some(entry) = entry {
            self.swapping.watch_health();
            self.swapping.catalogue.let_go(&entry).await;
        }
        Ok(())
    }

    /// How versions do, for the machine; and whether the catalogue means another
    /// one than runs here.
    async fn look(&mut self) -> Result<(), Failure> {
        let entries: Vec<(Version, Entry)> = {
            let driven = self.swapping.driven();
            driven.get(self.model).map(|of| of.entries.clone().into_iter().collect()).unwrap_or_default()
        };
        if self.swap.on_trial() {
            for (version, entry) in &entries {
                if let Some(health) = self.swapping.inference.health.of(entry.model) {
                    self.step(SwapEvent::Health { version: version.clone(), health }).await?;
                }
            }
        }
        self.note_holds(&entries).await?;
        let unwatched = self.swapping.driven().get(self.model).and_then(|of| of.unwatched);
        let free = unwatched.is_some_and(|since| since.elapsed() >= FOLLOW_AFTER) && self.swap.wanted().is_none();
        let Some(means) = self.swapping.catalogue.known.named(self.model).filter(|_| free) else { return Ok(()) };
        let means = version(&means)?;
        let report = self.swap.report();
        let failed = report.failed.as_ref().is_some_and(|failed| failed.version == means);
        if self.swap.current() == Some(&means) || (failed && self.followed.elapsed() < FOLLOW_AGAIN) {
            return Ok(());
        }
        self.followed = Instant::now();
        // A want of this node's own, behind all that it heard.
        let last = report.ask.unwrap_or(Ask { rollout: 0, number: 0 });
        let ask = Ask { rollout: last.rollout, number: last.number + 1 };
        let (limits, terms) = (Limits::default(), Terms::default());
        let want = Want { ask, version: means, kind: Kind::Update, limits, terms };
        self.step(SwapEvent::Want(Box::new(want))).await
    }

    /// Versions of the model whose bytes are here, for nodes below.
    async fn note_holds(&self, entries: &[(Version, Entry)]) -> Result<(), Failure> {
        let mut all: BTreeMap<Version, Entry> = entries.iter().cloned().collect();
        for entry in self.swapping.catalogue.known.all().into_iter().filter(|e| e.manifest.name == self.model) {
            all.insert(version(&entry)?, entry);
        }
        let mut holds = Vec::new();
        for (version, entry) in all {
            if self.swapping.artefacts.length(entry.model).await?.is_some() {
                holds.push(version);
            }
        }
        // The newest matter.
        holds.reverse();
        holds.truncate(super::relay::VERSIONS_TOLD_MAX);
        if let Some(of) = self.swapping.driven().get_mut(self.model) {
            of.told.holds = holds;
        }
        Ok(())
    }

    fn begin(&mut self, op: u64, work: Work) {
        let (swapping, model, done) = (Arc::clone(self.swapping), self.model.to_owned(), self.done.0.clone());
        let task = self.swapping.cx.tasks.spawn("version change", async move {
            let result = perform(&swapping, &model, work).await.map_err(|failure| failure.to_string());
            let _ = done.send(SwapEvent::Done { op, result }).await;
        });
        self.works.retain(|_, work| !work.is_finished());
        self.works.insert(op, task.abort_handle());
    }
}

/// Does what takes a while.
async fn perform(swapping: &Arc<Swapping>, model: &str, work: Work) -> Result<u64, Failure> {
    let entry_of = |version: &Version| {
        swapping
            .entry(model, version)
            .ok_or_else(|| Failure::new(Code::NotFound, format!("nobody here knows {model}@{version}")))
    };
    match work {
        Work::Fetch { version, limits } => {
            let entry = entry_of(&version)?;
            swapping.artefacts.ensure(entry.manifest_digest).await?;
            swapping.artefacts.set_pace(entry.model, limits.bytes_per_s);
            let fetched = swapping.catalogue.ensure_model(entry.model).await;
            swapping.artefacts.set_pace(entry.model, None);
            fetched?;
            for digest in entry.manifest.artefacts() {
                swapping.artefacts.ensure(digest).await?;
            }
            Ok(0)
        }
        Work::Verify { version } => {
            let entry = entry_of(&version)?;
            for digest in std::iter::once(entry.model).chain(entry.manifest.artefacts()) {
                swapping.artefacts.check(digest).await?;
            }
            Ok(0)
        }
        Work::Stage { version } => {
            // The store writes files through to the disk, folders included, before they have
            // their names; what is left is not to let go of them.
            let entry = entry_of(&version)?;
            let name = version.as_str().to_owned();
            let (of, manifest) = (model.to_owned(), entry.manifest_digest);
            swapping.cx.state.with(move |state| state.hold_swap_version(&of, &name, manifest)).await?;
            let bytes = entry.manifest.bytes;
            if let Some(of) = swapping.driven().get_mut(model) {
                of.entries.insert(version, entry);
            }
            swapping.watch_health();
            Ok(bytes)
        }
        Work::Load { version, unload_first } => {
            let entry = entry_of(&version)?;
            for other in unload_first {
                if let Ok(other) = entry_of(&other) {
                    swapping.cx.device.compute.forget(other.model.to_string());
                }
            }
            swapping.profiling.prepare(&entry).await?;
            Ok(entry.manifest.bytes)
        }
        Work::SelfTest { version, limit_ms } => {
            swapping.profiling.self_test(&entry_of(&version)?, Duration::from_millis(limit_ms)).await?;
            Ok(0)
        }
        Work::Switch { version } => {
            let entry = entry_of(&version)?;
            // Its plan first: else the first requests would find none.
            let _ = tokio::time::timeout(PLAN_TIME, swapping.planning.until_planned(entry.model)).await;
            // Also where the catalogue means the same: what runs here changes by this way alone.
            swapping.catalogue.known.run(model, Some(entry));
            swapping.catalogue.tell(&Change::Renamed);
            Ok(0)
        }
        Work::Probe { version, limit_ms } => {
            let entry = entry_of(&version)?;
            swapping.profiling.probe(&swapping.inference, &entry, Duration::from_millis(limit_ms)).await?;
            Ok(0)
        }
    }
}
