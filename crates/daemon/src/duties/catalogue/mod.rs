//! Which models there are: added at the cloud (`adding`), in versions
//! (`versions`), taken over from the catalogue above, fetched, loaded, removed.

mod adding;
mod deltas;
mod known;
mod services;
pub mod versions;

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::envelope::CATALOGUE;
use tierline_proto::name::split_version;
use tierline_proto::v1::{
    Catalogue as CatalogueMessage, Code, Envelope, Failure, ModelEntry, ModelInfo, ModelOffer, Offers,
};
use tierline_proto::{Breach, Digest, Sound};
use tierline_store::{State, models};
use tokio::sync::watch;

use self::known::unknown_model;
pub use self::known::{Composed, Entry, Known};
use super::artefacts::Artefacts;
use crate::device::compute::{ComputeError, Computed, Turn};
use crate::device::program::{Named, Part, Program, SliceKey, Source};
use crate::documents;
use crate::models::Manifest;
use crate::net::Uplink;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::events::now_ms;

/// A model that the disk has no room for is held in memory only if it takes no
/// more than this share of what sessions may take.
pub const UNKEPT_SHARE: u64 = 4;

/// A session whose model isn't here by then gives its place to others.
const WARM_TIME_MAX: Duration = Duration::from_secs(30);

/// A model that could not be had, to take over or to measure, is tried again after this.
pub const AGAIN: Duration = Duration::from_secs(15);

/// The file that a service is added by.
pub const SERVICE_FILE: &str = "service.toml";

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: CATALOGUE,
    tables: models::TABLES,
    rules: &[
        Rule::new("/tierline.v1.Local/ModelList", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/ModelShow", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/ModelAdd", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/ModelRemove", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/ModelRename", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/VersionList", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/VersionTag", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/VersionFetch", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let catalogue = Catalogue::new(assembly);
        Box::new(assembly.add(catalogue))
    },
};

/// What happens to models, for duties that make something of them.
pub enum Change<'c> {
    /// A name points at a model that this device hasn't measured.
    Unprofiled(&'c Entry),
    /// This device has measured a model.
    Profiled,
    /// A model couldn't be measured here.
    Unmeasured,
    /// What was made of a model is void: no name points at it any more, or at
    /// other cuts of it.
    Gone(Digest),
    /// Names changed as the catalogue above says.
    Renamed,
}

type Listener = Box<dyn Fn(&Change<'_>) + Send + Sync>;

/// The duty.
pub struct Catalogue {
    cx: Context,
    artefacts: Arc<Artefacts>,
    /// Names, programs and profiles that are here.
    pub known: Arc<Known>,
    /// The newest catalogue of the preferred parent; older ones say nothing more.
    heard: watch::Sender<Option<CatalogueMessage>>,
    /// One model is loaded at a time.
    loading: tokio::sync::Mutex<()>,
    listeners: RwLock<Vec<Listener>>,
}

impl Manifest {
    /// The artefacts that it names.
    pub fn artefacts(&self) -> impl Iterator<Item = Digest> + '_ {
        let golden = self.golden.iter().flat_map(|golden| golden.digests());
        let all = std::iter::once(&self.digest).chain(self.sample.values()).chain(golden);
        all.filter_map(|digest| digest.parse().ok())
    }
}

impl Catalogue {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let cx = assembly.cx.clone();
        let known = Arc::new(Known::new(cx.device.memory.clone()));
        Arc::new(Self {
            cx,
            artefacts: assembly.get(),
            known,
            heard: watch::Sender::new(None),
            loading: tokio::sync::Mutex::default(),
            listeners: RwLock::default(),
        })
    }

    /// Whoever makes something of models hears of their changes, from where
    /// they happen.
    pub fn on_change(&self, listener: impl Fn(&Change<'_>) + Send + Sync + 'static) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(listener));
    }

    /// Tells of a change.
    pub fn tell(&self, change: &Change<'_>) {
        self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(|listener| listener(change));
    }

    /// The entry of a name or of a model's digest.
    ///
    /// # Errors
    /// [`Code::UnknownModel`].
    pub fn entry(&self, name: &str) -> Result<Entry, Failure> {
        self.known.get(name).ok_or_else(|| {
            if let Some(composed) = self.known.service(name) {
                let members = composed.service.models().join(", ");
                let text = format!("`{name}` is a {} of {members}, and no model", composed.service.kind.word());
                return Failure::new(Code::UnknownModel, text).with_help("ask for one of them");
            }
            if self.is_announced(name) {
                let text = format!("model `{name}` is on its way to {}", self.cx.me.name());
                return Failure::new(Code::ModelNotReady, text).with_help("send the request again in a moment");
            }
            let failure = unknown_model(name, &self.known.list());
            let parents = &self.cx.parents;
            match parents.iter().next().filter(|_| parents.are_cut_off()) {
                // It may well be known above.
                Some(uplink) => failure.with_help(format!("models come from above, and {}", uplink.reason())),
                None => failure,
            }
        })
    }

    /// Whether a parent has told of a model of this name.
    fn is_announced(&self, name: &str) -> bool {
        let announces = |heard: &CatalogueMessage| {
            let services = heard.services.iter().map(|service| &service.name);
            heard.models.iter().map(|model| &model.name).chain(services).any(|known| known == name)
        };
        self.heard.borrow().as_ref().is_some_and(announces)
    }

    /// What is known of an entry here.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn info(&self, entry: &Entry) -> Result<ModelInfo, Failure> {
        let stored = self.artefacts.length(entry.model).await?.is_some();
        Ok(ModelInfo {
            entry: Some(entry.message()),
            state: self.known.state(entry, stored).into(),
            profiled: self.known.profile(entry.model).is_some(),
        })
    }

    /// What this node offers to those below.
    #[must_use]
    pub fn offers(&self) -> Offers {
        // What can't be run here is passed on, not offered.
        let fit = self.known.all().into_iter().filter(|entry| self.known.check_fit(entry.model).is_ok());
        let offer = |entry: Entry| ModelOffer {
            model: entry.model.to_bytes(),
            profile: self.known.profile_artefact(entry.model).map(Digest::to_bytes).unwrap_or_default(),
            state: self.known.state(&entry, true).into(),
        };
        Offers { sequence: now_ms(), models: fit.map(offer).collect(), catalogue: self.known.mark() }
    }

    /// Sends every child the catalogue.
    fn tell_children(&self) {
        self.cx.children.tell_all(CATALOGUE, &self.known.message());
    }

    /// Takes over what the catalogue above says, until the node ends.
    async fn keep(self: Arc<Self>) {
        let mut heard = self.heard.subscribe();
        loop {
            let message = heard.borrow_and_update().clone();
            let late = match message {
                Some(message) => {
                    let _turn = self.artefacts.naming.lock().await;
                    // Catalogues are whole: a newer one says all that this one does.
                    self.adopt(&message, || !heard.has_changed().unwrap_or(true)).await
                }
                None => false,
            };
            tokio::select! {
                changed = heard.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(AGAIN), if late => {}
            }
        }
    }

    /// Takes up what this device has measured of a model.
    pub async fn load_profile(&self, entry: &Entry) {
        let model = entry.model;
        let Ok(Some(digest)) = self.cx.state.with(move |state| state.profile(model)).await else { return };
        let Ok(json) = self.artefacts.get(digest).await else { return };
        // A profile of another version is measured again.
        let Ok(profile) = documents::read(&json) else { return };
        self.known.set_profile(model, profile, digest);
    }

    /// Points a manifest's name at it; it is kept under this digest.
    async fn adopt_manifest_as(&self, manifest: Manifest, digest: Digest) -> Result<Entry, Failure> {
        let entry = Entry::new(manifest, digest)?;
        match self.artefacts.name(&entry.manifest.name, digest).await {
            // A node below another goes on without: it hears of the model again
            // at every start, and passes it on to those below.
            Err(failure) if failure.code() == Code::StorageFull && !self.cx.parents.is_empty() => {
                let text = format!("model {} is known here but not kept: {failure}", entry.manifest.name);
                self.cx.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
            }
            other => other?,
        }
        let before = self.known.named(&entry.manifest.name);
        if let Some(old) =
            before.as_ref().filter(|old| old.manifest_digest != entry.manifest_digest && old.model == entry.model)
        {
            // The same model under other cuts: what was made for the old ones is void.
            self.forget_model(old.model);
        }
        if self.known.insert(entry.clone()) {
            let text = format!("model {} is {}", entry.manifest.name, entry.model.short());
            self.cx.events.record(
                "model",
                text,
                &serde_json::json!({ "name": entry.manifest.name, "digest": entry.manifest.digest }),
            );
        }
        if let Some(old) = before.filter(|old| old.manifest_digest != entry.manifest_digest) {
            // Until versions are told of anew, it is in use as one.
            if old.manifest.version == entry.manifest.version {
                if self.known.by_model(old.model).is_none() {
                    self.forget_model(old.model);
                }
                self.let_go(&old).await;
            } else {
                self.known.insert_version(old);
            }
        }
        Ok(entry)
    }

    /// Gives a model another name, here and below; nothing is measured again.
    ///
    /// # Errors
    /// When it is unknown, the new name is taken or none, the catalogue is kept
    /// above, or the disk refuses.
    pub async fn rename_model(&self, name: &str, new: &str) -> Result<Entry, Failure> {
        if !self.cx.parents.is_empty() {
            return Err(
                Failure::new(Code::Forbidden, "the catalogue is kept on the cloud").with_help("rename the model there")
            );
        }
        tierline_proto::name::check_model(new).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))?;
        let turn = self.artefacts.naming.lock().await;
        let entry = self.in_production(name)?;
        if entry.manifest.name == new {
            return Ok(entry);
        }
        self.check_free(new)?;
        self.check_unneeded(&entry.manifest.name)?;
        // First the new name: at no moment is the model without one.
        let (rows, before) = self.rename_versions(&entry.manifest.name, new).await?;
        let row = rows.iter().find(|row| row.version == entry.manifest.version);
        let row = row.ok_or_else(|| Failure::new(Code::Internal, "the version in production is not registered"))?;
        let renamed = self.adopt_manifest_as(self.version_entry(row).await?.manifest, row.manifest).await?;
        self.forget_name(&entry).await?;
        self.take_up_versions().await?;
        drop(turn);
        self.tell_children();
        self.let_go(&entry).await;
        self.artefacts.remove_unneeded(before).await?;
        Ok(renamed)
    }

    /// Forgets a name, here and below, and what nothing else needs.
    ///
    /// # Errors
    /// When it is unknown, the catalogue is kept above, or the disk refuses;
    /// then the name is still known.
    pub async fn remove_model(&self, name: &str) -> Result<(), Failure> {
        if !self.cx.parents.is_empty() {
            return Err(
                Failure::new(Code::Forbidden, "the catalogue is kept on the cloud").with_help("remove the model there")
            );
        }
        let _turn = self.artefacts.naming.lock().await;
        if self.known.named(name).is_none() && split_version(name).1.is_some() {
            return self.remove_version(&self.registered(name).await?).await;
        }
        let entry = self.in_production(name)?;
        self.check_unneeded(&entry.manifest.name)?;
        self.forget_name(&entry).await?;
        self.forget_versions(&entry).await?;
        self.tell_children();
        self.let_go(&entry).await;
        Ok(())
    }

    /// What a name means on the site, or a model's digest.
    fn in_production(&self, name: &str) -> Result<Entry, Failure> {
        let known = self.known.list();
        let digest = || known.iter().find(|entry| entry.manifest.digest == name).map(|e| e.manifest.name.clone());
        let named = || self.known.named(&digest()?);
        self.known.named(name).or_else(named).ok_or_else(|| unknown_model(name, &known))
    }

    /// Forgets a name: on the disk first, so that it doesn't come back.
    async fn forget_name(&self, entry: &Entry) -> Result<bool, Failure> {
        self.artefacts.unname(&entry.manifest.name).await?;
        let removed = self.known.remove(&entry.manifest.name);
        // Another name may point at the same model.
        if self.known.by_model(entry.model).is_none() {
            self.forget_model(entry.model);
        }
        Ok(removed)
    }

    /// Drops what was made of a model: program, profile, plans, sessions.
    fn forget_model(&self, model: Digest) {
        self.known.forget(model);
        self.tell(&Change::Gone(model));
        self.cx.device.compute.forget(model.to_string());
    }

    /// What requests need to know of an entry's model, which is fetched from
    /// above when it isn't here.
    ///
    /// # Errors
    /// When it can't be fetched or is damaged.
    pub async fn program(&self, entry: &Entry) -> Result<Arc<Program>, Failure> {
        match self.known.program(entry.model) {
            Some(program) => Ok(program),
            None => {
                let _turn = self.turn_to_load(entry).await?;
                Ok(self.loaded(entry).await?.0)
            }
        }
    }

    /// Waits until a model is here and its turn to be loaded comes: one at a
    /// time, so that those which wait take no memory.
    pub async fn turn_to_load(&self, entry: &Entry) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        // Others have their turn while it is on its way.
        match self.ensure_model(entry.model).await {
            // Without room on the disk it comes in its turn, into memory.
            Err(failure) if failure.code() != Code::StorageFull => Err(failure),
            _ => Ok(self.loading.lock().await),
        }
    }

    /// A model whose turn it is, and its program.
    pub async fn loaded(&self, entry: &Entry) -> Result<(Arc<Program>, Arc<Source>), Failure> {
        let known = self.known.program(entry.model).zip(self.known.source(entry.model));
        if let Some(known) = known {
            return Ok(known);
        }
        let bytes = self.artefacts.whole(entry.model, self.cx.me.config().memory_bytes() / UNKEPT_SHARE).await?;
        let (known, entry) = (Arc::clone(&self.known), entry.clone());
        self.cx.tasks.blocking("model loading", move || known.load(&entry, bytes)).await?
    }

    /// Runs segments here; what isn't loaded is loaded first, as its turn comes.
    ///
    /// # Errors
    /// What the device refuses or fails at, and that of a model that can't be had.
    pub async fn run_here(
        &self,
        program: &Arc<Program>,
        key: SliceKey,
        inputs: Arc<Named>,
        turn: Turn,
    ) -> Result<Computed, Failure> {
        let run = |source| {
            let part = Part { program: Arc::clone(program), source };
            self.cx.device.compute.run(part, key.clone(), Arc::clone(&inputs), turn.clone())
        };
        if self.cx.device.compute.is_warm(&key) {
            match run(None).await {
                // It went while this waited.
                Err(ComputeError::Cold { .. }) => {}
                other => return other.map_err(Failure::from),
            }
        }
        let load = async {
            let entry = self.entry_of(&key)?;
            let loading = self.turn_to_load(&entry).await?;
            // Somebody else may have had it loaded meanwhile.
            let source = if self.cx.device.compute.is_warm(&key) { None } else { Some(self.loaded(&entry).await?.1) };
            Ok::<_, Failure>((loading, source))
        };
        let (_loading, source) = tokio::time::timeout_at(turn.deadline.into(), load).await.map_err(|_| {
            let text = format!("{} is still being loaded on {}", program.manifest.name, self.cx.me.name());
            Failure::new(Code::DeadlineExceeded, text).with_help("allow more time, or send it again")
        })??;
        let computed = match run(source).await {
            // It went in that very moment; it comes back with its model.
            Err(ComputeError::Cold { .. }) => run(Some(self.loaded(&self.entry_of(&key)?).await?.1)).await,
            other => other,
        };
        computed.map_err(Failure::from)
    }

    /// Loads the session of `key`, as its turn comes; gives the bytes it takes.
    ///
    /// # Errors
    /// As [`Catalogue::run_here`].
    pub async fn warm(&self, key: SliceKey) -> Result<u64, Failure> {
        let entry = self.entry_of(&key)?;
        let here = tokio::time::timeout(WARM_TIME_MAX, self.ensure_model(entry.model)).await;
        let late = || Failure::new(Code::ModelNotReady, format!("{} is still on its way", entry.manifest.name));
        match here.map_err(|_| late())? {
            Err(failure) if failure.code() != Code::StorageFull => return Err(failure),
            _ => {}
        }
        let _turn = self.turn_to_load(&entry).await?;
        let (program, source) = self.loaded(&entry).await?;
        let part = Part { program, source: Some(source) };
        let bounds = self.cx.me.config().batching.bounds(&entry.manifest.name);
        self.cx.device.compute.warm(part, key, bounds).await.map_err(Failure::from)
    }

    fn entry_of(&self, key: &SliceKey) -> Result<Entry, Failure> {
        let model = key.digest.parse::<Digest>().ok();
        model.and_then(|model| self.known.by_model(model)).ok_or_else(|| {
            Failure::new(Code::UnknownModel, format!("the model was removed from {}", self.cx.me.name()))
        })
    }

    /// As [`Catalogue::program`], but no longer than until `deadline`.
    ///
    /// # Errors
    /// [`Code::DeadlineExceeded`] when it isn't here by then.
    pub async fn program_within(&self, entry: &Entry, deadline: Instant) -> Result<Arc<Program>, Failure> {
        match tokio::time::timeout_at(deadline.into(), self.program(entry)).await {
            Ok(program) => program,
            Err(_) => {
                let text = format!("{} is still on its way to {}", entry.manifest.name, self.cx.me.name());
                Err(Failure::new(Code::DeadlineExceeded, text).with_help("`tierline model ls` says when it is ready"))
            }
        }
    }

    /// Takes over what the parent's catalogue says; whether a model could not be
    /// had yet, so that it should be tried again.
    ///
    /// Stops where a newer catalogue has come meanwhile, which says all of it anew.
    async fn adopt(self: &Arc<Self>, message: &CatalogueMessage, newest: impl Fn() -> bool) -> bool {
        let (mut changed, mut late, mut gone) = (false, false, Vec::new());
        if message.full {
            let named: Vec<&str> = message.models.iter().map(|m| m.name.as_str()).collect();
            for entry in self.known.list() {
                if !named.contains(&entry.manifest.name.as_str()) {
                    gone.push(entry);
                }
            }
        }
        gone.extend(message.removed.iter().filter_map(|name| self.known.get(name)));
        // A model that only changes its name keeps what was measured of it.
        let named: Vec<Digest> = message.models.iter().filter_map(|m| Digest::try_from(&m.model).ok()).collect();
        let (renamed, others): (Vec<_>, Vec<_>) = gone.iter().partition(|entry| named.contains(&entry.model));
        for entry in others {
            self.forget_adopted(entry, &mut changed, &mut late).await;
        }
        for model in message.models.iter().take_while(|_| newest()) {
            match self.adopt_one(model).await {
                Ok(Some(entry)) => {
                    changed = true;
                    if self.known.profile(entry.model).is_none() || entry.manifest.golden.is_some() {
                        self.tell(&Change::Unprofiled(&entry));
                    }
                }
                Ok(None) => {}
                Err(failure) => {
                    late |= is_late(&failure) || failure.code() == Code::StorageFull;
                    let text = format!("model {} could not be taken over: {failure}", model.name);
                    self.cx.events.record("model", text, &serde_json::json!({ "name": model.name }));
                }
            }
        }
        for entry in renamed {
            self.forget_adopted(entry, &mut changed, &mut late).await;
        }
        if message.full && newest() {
            let (news, again) = self.adopt_versions(message).await;
            (changed, late) = (changed | news, late | again);
            let (news, again) = self.adopt_services(message).await;
            (changed, late) = (changed | news, late | again);
        }
        if changed {
            self.tell_children();
            self.tell(&Change::Renamed);
        }
        for entry in gone {
            // Unless it is still named: then it is tried again.
            if self.known.named(&entry.manifest.name).is_none_or(|now| now.manifest_digest != entry.manifest_digest) {
                self.let_go(&entry).await;
            }
        }
        late
    }

    async fn forget_adopted(&self, entry: &Entry, changed: &mut bool, late: &mut bool) {
        match self.forget_name(entry).await {
            Ok(removed) => *changed |= removed,
            Err(failure) => {
                *late = true;
                let text = format!("model {} can't be forgotten yet: {failure}", entry.manifest.name);
                self.cx.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
            }
        }
    }

    async fn adopt_one(&self, model: &ModelEntry) -> Result<Option<Entry>, Failure> {
        let digest = Digest::try_from(&model.manifest).map_err(|e| Failure::new(Code::Protocol, e.to_string()))?;
        if self.known.named(&model.name).is_some_and(|e| e.manifest_digest == digest) {
            return Ok(None);
        }
        let manifest: Manifest = self.artefacts.document(digest).await?;
        let named = Digest::try_from(&model.model).is_ok_and(|digest| digest.to_string() == manifest.digest);
        if manifest.name != model.name || !named {
            let text = format!("the catalogue's `{}` points at the manifest of `{}`", model.name, manifest.name);
            return Err(Failure::new(Code::Corrupt, text));
        }
        // As it came: a newer version may say more in it than this one knows.
        self.adopt_manifest_as(manifest, digest).await.map(Some)
    }

    /// Removes what an entry that lost its name leaves behind, but for what
    /// another name or a job needs. Trouble is told of and tried again later.
    pub async fn let_go(&self, entry: &Entry) {
        let gone = async {
            let mut candidates = vec![entry.manifest_digest, entry.model];
            candidates.extend(entry.manifest.artefacts());
            if self.known.by_model(entry.model).is_none() {
                let model = entry.model;
                let forget = move |state: &State| {
                    let profile = state.profile(model)?;
                    state.remove_profile(model)?;
                    Ok(profile)
                };
                candidates.extend(self.cx.state.with(forget).await?);
            }
            self.artefacts.remove_unneeded(candidates).await
        };
        if let Err(failure) = gone.await {
            let text = format!("what {} left behind can't be removed yet: {failure}", entry.manifest.name);
            self.cx.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
        }
    }
}

/// What is only late comes later; what can't be is not tried again.
pub fn is_late(failure: &Failure) -> bool {
    matches!(failure.code(), Code::Unreachable | Code::ModelNotReady | Code::NotFound)
}

#[tonic::async_trait]
impl Duty for Arc<Catalogue> {
    async fn open(&self) -> Result<(), Failure> {
        for (name, digest) in self.cx.state.with(State::names).await? {
            let manifest = async { documents::read::<Manifest>(&self.artefacts.get(digest).await?) };
            match manifest.await.and_then(|manifest| Entry::new(manifest, digest)) {
                Ok(entry) => {
                    self.load_profile(&entry).await;
                    self.known.insert(entry);
                }
                // One damaged manifest must not keep the others from answering.
                Err(failure) => {
                    let text = format!("model {name} can't be used here: {failure}");
                    self.cx.events.record("model", text, &serde_json::json!({ "name": name }));
                }
            }
        }
        self.open_versions().await?;
        self.open_services().await
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.cx.keep("catalogue", self, Catalogue::keep);
        Ok(())
    }

    fn greetings(&self) -> Vec<Envelope> {
        vec![Envelope::new(CATALOGUE, &self.known.message())]
    }

    async fn hear_parent(&self, parent: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        let message = Sound::<CatalogueMessage>::decode(payload)?;
        // Parents of one site tell the same; the preferred one that is up counts.
        if self.cx.parents.first().is_some_and(|first| first.peer == parent.peer) {
            self.heard.send_replace(Some(message.into_inner()));
        }
        Ok(())
    }

    /// What names point at, with its samples, and this device's profiles of it.
    async fn needs(&self, needed: &mut HashSet<Digest>) -> Result<(), Failure> {
        let named = self.cx.state.with(State::named).await?;
        needed.extend(&named.manifests);
        needed.extend(&named.sources);
        // An edge has them ready for all who are below it.
        if self.cx.me.role() != tierline_proto::Role::End {
            needed.extend(self.known.deltas().iter().map(|row| row.delta));
        }
        needed.extend(self.cx.state.with(State::services).await?.into_iter().map(|(_, document)| document));
        let (mut models, mut known) = (HashSet::new(), HashSet::new());
        for entry in self.known.all() {
            known.insert(entry.manifest_digest);
            needed.insert(entry.manifest_digest);
            needed.extend(entry.manifest.artefacts());
            models.insert(entry.model);
        }
        for digest in named.manifests {
            if !known.insert(digest) {
                continue;
            }
            // One that isn't in the catalogue is damaged or not here; its digest is all there is to go by.
            let Ok(json) = self.artefacts.get(digest).await else { continue };
            match documents::read::<Manifest>(&json) {
                Ok(manifest) => {
                    needed.extend(manifest.artefacts());
                    models.extend(manifest.digest.parse::<Digest>().ok());
                }
                Err(failure) if failure.code() == Code::Corrupt => {}
                Err(failure) => return Err(failure),
            }
        }
        needed.extend(named.profiles.iter().filter(|(model, _)| models.contains(model)).map(|(_, profile)| *profile));
        Ok(())
    }
}
