//! The registry: versions of models, and what they are also called.
//!
//! It is kept on the cloud. A version never changes and keeps its number. Its
//! aliases say what it is there for: [`PRODUCTION`] is what a plain name means.
//! Versions that have an alias are in use, and every node hears of them; those
//! that have none lie here until somebody removes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tierline_proto::Digest;
use tierline_proto::limits::{ALIASES_MAX, CARD_BYTES_MAX, CHUNK_BYTES, VERSIONS_IN_USE_MAX, VERSIONS_MAX};
use tierline_proto::name::{check_alias, split_version};
use tierline_proto::v1::{Catalogue as CatalogueMessage, Code, Failure, FetchChunk, VersionInfo, VersionListReply};
use tierline_store::State;
use tierline_store::models::{AliasRow, DeltaRow, VersionRow};
use tierline_update::card::Card;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::known::unknown_model;
use super::{Catalogue, Change, Entry, is_late};
use crate::documents;
use crate::models::Manifest;

/// Chunks ahead of the connection.
const AHEAD_MAX: usize = 8;

/// A version's file, on its way.
pub type Sent = ReceiverStream<Result<FetchChunk, Status>>;

/// The version that a plain name means.
pub const PRODUCTION: &str = "production";

/// The version that was in production before.
pub const PREVIOUS: &str = "previous";

/// The version that is being rolled out.
pub const CANDIDATE: &str = "candidate";

/// Reads what is said of a version.
///
/// # Errors
/// [`Code::InvalidInput`].
pub fn read_card(json: &str) -> Result<Card, Failure> {
    let invalid = |text: String| Failure::new(Code::InvalidInput, text);
    if json.is_empty() {
        return Ok(Card::default());
    }
    if json.len() > CARD_BYTES_MAX {
        return Err(invalid(format!("a card of {} bytes; at most {CARD_BYTES_MAX} are kept", json.len())));
    }
    let card: Card = serde_json::from_str(json).map_err(|e| invalid(format!("the card: {e}")))?;
    card.check().map_err(|e| invalid(e.to_string()))?;
    Ok(card)
}

/// The rows of a registry.
pub struct Registry {
    pub(super) rows: Vec<VersionRow>,
    aliases: Vec<AliasRow>,
}

impl Registry {
    /// Versions of a name, the oldest first.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &VersionRow> {
        self.rows.iter().filter(move |row| row.name == name)
    }

    /// What a version is also called.
    fn aliases(&self, name: &str, version: u64) -> impl Iterator<Item = &str> {
        let of = self.aliases.iter().filter(move |row| row.name == name && row.version == version);
        of.map(|row| row.alias.as_str())
    }

    /// The version of `NAME@3`, `NAME@ALIAS`, or of a plain name the one in
    /// production.
    fn find(&self, asked: &str) -> Option<&VersionRow> {
        let whole = |name: &str| self.rows.iter().any(|row| row.name == name);
        let (name, which) = if whole(asked) { (asked, None) } else { split_version(asked) };
        let aliased =
            |alias: &str| self.aliases.iter().find(|row| row.name == name && row.alias == alias).map(|row| row.version);
        let which = which.unwrap_or(PRODUCTION);
        let version = which.parse().ok().or_else(|| aliased(which))?;
        self.of(name).find(|row| row.version == version)
    }
}

impl Catalogue {
    /// What is registered.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn registry(&self) -> Result<Registry, Failure> {
        self.cx.state.with(|state| Ok(Registry { rows: state.model_versions()?, aliases: state.aliases()? })).await
    }

    /// The version that `NAME@3` or `NAME@ALIAS` means, or a plain name.
    ///
    /// # Errors
    /// [`Code::UnknownModel`].
    pub async fn registered(&self, asked: &str) -> Result<VersionRow, Failure> {
        let registry = self.registry().await?;
        registry.find(asked).cloned().ok_or_else(|| {
            let (name, which) = split_version(asked);
            let versions: Vec<String> = registry.of(name).map(|row| row.version.to_string()).collect();
            if versions.is_empty() || which.is_none() {
                return unknown_model(asked, &self.known.list());
            }
            let text = format!("model `{name}` has no version `{}`", which.unwrap_or_default());
            Failure::new(Code::UnknownModel, text).with_help(format!("it has {}", versions.join(", ")))
        })
    }

    /// The manifest of a version that is registered here.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn version_entry(&self, row: &VersionRow) -> Result<Entry, Failure> {
        let manifest: Manifest = documents::read(&self.artefacts.get(row.manifest).await?)?;
        Entry::new(manifest, row.manifest)
    }

    /// Every version of a model, the oldest first.
    ///
    /// # Errors
    /// When it is unknown, or the catalogue is kept above.
    pub async fn versions(&self, asked: &str) -> Result<VersionListReply, Failure> {
        self.check_kept_here()?;
        let registry = self.registry().await?;
        let name = registry.find(asked).map_or(asked, |row| row.name.as_str()).to_owned();
        let mut versions = Vec::new();
        for row in registry.of(&name) {
            versions.push(VersionInfo {
                entry: Some(self.version_entry(row).await?.message()),
                aliases: registry.aliases(&row.name, row.version).map(str::to_owned).collect(),
                added_ms: row.added_ms,
                card: row.card.clone(),
                source: row.source.map(Digest::to_bytes).unwrap_or_default(),
            });
        }
        if versions.is_empty() {
            return Err(unknown_model(asked, &self.known.list()));
        }
        Ok(VersionListReply { model: name, versions })
    }

    /// The file that a version was made of, or, where that isn't kept, the
    /// prepared model.
    ///
    /// # Errors
    /// When there is no such version, or the catalogue is kept above.
    pub async fn fetch_version(self: &Arc<Self>, asked: &str) -> Result<Sent, Failure> {
        self.check_kept_here()?;
        let row = self.registered(asked).await?;
        let digest = match row.source {
            Some(source) => source,
            None => self.version_entry(&row).await?.model,
        };
        let missing = || Failure::new(Code::NotFound, format!("the file of {}@{} is not here", row.name, row.version));
        let total = self.artefacts.length(digest).await?.ok_or_else(missing)?;
        let catalogue = Arc::clone(self);
        Ok(self.cx.tasks.stream("version sending", AHEAD_MAX, |send| async move {
            let mut offset = 0;
            while offset < total {
                let data = catalogue.artefacts.store().range(digest, offset..offset + CHUNK_BYTES as u64).await;
                let length = data.as_ref().map_or(0, |data| data.len() as u64);
                let chunk = data.map(|data| FetchChunk { total, offset, data });
                let sent = send.send(chunk.map_err(|e| Failure::from(e).into_status())).await;
                if length == 0 || sent.is_err() {
                    return;
                }
                offset += length;
            }
        }))
    }

    /// Refuses where the catalogue is kept above.
    ///
    /// # Errors
    /// [`Code::Forbidden`].
    pub fn check_kept_here(&self) -> Result<(), Failure> {
        if self.cx.parents.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Code::Forbidden, "the catalogue is kept on the cloud").with_help("ask there"))
    }

    /// Gives a version of a name an alias, or takes the alias away (0).
    ///
    /// # Errors
    /// When there is no such version, the alias is none, the catalogue is kept
    /// above, or the disk refuses.
    pub async fn tag(&self, name: &str, version: u64, alias: &str) -> Result<(), Failure> {
        self.check_kept_here()?;
        check_alias(alias).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))?;
        let _turn = self.artefacts.naming.lock().await;
        if version == 0 {
            if alias == PRODUCTION {
                let text = format!("a plain `{name}` means its version in production");
                return Err(Failure::new(Code::InvalidInput, text)
                    .with_help(format!("tag another version, or remove the model: `tierline model rm {name}`")));
            }
            return self.set_aliases(name, vec![(alias.to_owned(), None)]).await;
        }
        if alias == PRODUCTION {
            return self.promote(name, version).await;
        }
        self.registered(&format!("{name}@{version}")).await?;
        self.set_aliases(name, vec![(alias.to_owned(), Some(version))]).await
    }

    /// Lets a plain name mean a version. Whoever calls it holds `naming`.
    async fn promote(&self, name: &str, version: u64) -> Result<(), Failure> {
        let row = self.registered(&format!("{name}@{version}")).await?;
        let before = self.known.named(name).map(|entry| entry.manifest.version);
        if before == Some(version) {
            return Ok(());
        }
        // First what it was is in use as a version: nothing of it may go.
        let mut aliases = vec![(PRODUCTION.to_owned(), Some(version))];
        aliases.extend(before.map(|before| (PREVIOUS.to_owned(), Some(before))));
        let manifest = self.version_entry(&row).await?.manifest;
        self.keep_aliases(name, aliases).await?;
        self.adopt_manifest_as(manifest, row.manifest).await?;
        self.take_up_versions().await?;
        self.tell_children();
        self.tell(&Change::Renamed);
        Ok(())
    }

    /// A version that was rolled out is in production from now on; the one
    /// before is the way back.
    ///
    /// # Errors
    /// As [`Self::tag`].
    pub async fn rolled_out(&self, name: &str, version: u64) -> Result<(), Failure> {
        let _turn = self.artefacts.naming.lock().await;
        self.promote(name, version).await?;
        self.set_aliases(name, vec![(CANDIDATE.to_owned(), None)]).await
    }

    async fn keep_aliases(&self, name: &str, aliases: Vec<(String, Option<u64>)>) -> Result<(), Failure> {
        let name = name.to_owned();
        self.cx.state.with(move |state| state.set_aliases(&name, &aliases)).await
    }

    async fn set_aliases(&self, name: &str, aliases: Vec<(String, Option<u64>)>) -> Result<(), Failure> {
        self.keep_aliases(name, aliases).await?;
        self.take_up_versions().await?;
        self.tell_children();
        Ok(())
    }

    /// Registers a manifest as another version of its name; gives it with its
    /// number. Whoever calls it holds `naming`.
    pub(super) async fn register(
        &self,
        mut manifest: Manifest,
        source: Option<Digest>,
        card: &Card,
    ) -> Result<(Manifest, VersionRow), Failure> {
        let name = manifest.name.clone();
        let registry = self.registry().await?;
        // The same again is the version that it is already.
        for row in registry.of(&name) {
            let Ok(known) = self.version_entry(row).await else { continue };
            manifest.version = row.version;
            if known.manifest == manifest {
                return Ok((manifest, row.clone()));
            }
        }
        if registry.of(&name).count() >= VERSIONS_MAX {
            let text = format!("`{name}` has {VERSIONS_MAX} versions, the most that are kept");
            return Err(Failure::new(Code::TooLarge, text).with_help("remove some: `tierline model rm NAME@VERSION`"));
        }
        let asked = name.clone();
        manifest.version = self.cx.state.with(move |state| state.newest_version(&asked)).await? + 1;
        let digest = self.artefacts.put(documents::write(&manifest)?.into()).await?;
        let card = if *card == Card::default() { String::new() } else { super::super::json(card)? };
        let added_ms = crate::runtime::events::now_ms();
        let row = VersionRow { name, version: manifest.version, manifest: digest, source, added_ms, card };
        let kept = row.clone();
        self.cx.state.with(move |state| state.keep_version(&kept)).await?;
        Ok((manifest, row))
    }

    /// A version is what its name means from now on, and what that was before
    /// is replaced: it goes, unless it has other aliases. Whoever calls it holds
    /// `naming`.
    pub(super) async fn put_into_production(&self, row: &VersionRow, before: Option<&Entry>) -> Result<(), Failure> {
        self.keep_aliases(&row.name, vec![(PRODUCTION.to_owned(), Some(row.version))]).await?;
        let registry = self.registry().await?;
        if let Some(old) = before.filter(|old| old.manifest.version != row.version)
            && registry.aliases(&row.name, old.manifest.version).next().is_none()
        {
            let source = registry.of(&row.name).find(|row| row.version == old.manifest.version);
            self.forget_version(old, source.and_then(|row| row.source)).await?;
        }
        self.take_up_versions().await
    }

    /// Registers all versions of a name under another one; gives them, and the
    /// manifests that they had. Whoever calls it holds `naming`.
    pub(super) async fn rename_versions(
        &self,
        old: &str,
        new: &str,
    ) -> Result<(Vec<VersionRow>, Vec<Digest>), Failure> {
        let registry = self.registry().await?;
        let (mut rows, mut before) = (Vec::new(), Vec::new());
        for row in registry.of(old) {
            before.push(row.manifest);
            let manifest = Manifest { name: new.to_owned(), ..self.version_entry(row).await?.manifest };
            let digest = self.artefacts.put(documents::write(&manifest)?.into()).await?;
            rows.push(VersionRow { name: new.to_owned(), manifest: digest, ..row.clone() });
        }
        let aliases = registry.aliases.iter().filter(|row| row.name == old);
        let aliases: Vec<AliasRow> = aliases.map(|row| AliasRow { name: new.to_owned(), ..row.clone() }).collect();
        let (old, kept) = (old.to_owned(), rows.clone());
        self.cx.state.with(move |state| state.move_versions(&old, &kept, &aliases)).await?;
        Ok((rows, before))
    }

    /// Forgets every version of a name that nothing means any more.
    pub(super) async fn forget_versions(&self, entry: &Entry) -> Result<(), Failure> {
        let registry = self.registry().await?;
        let name = entry.manifest.name.clone();
        let rows: Vec<VersionRow> = registry.of(&name).cloned().collect();
        let mut entries = Vec::new();
        for row in &rows {
            entries.extend(self.version_entry(row).await);
        }
        self.cx.state.with(move |state| state.remove_versions(&name)).await?;
        self.take_up_versions().await?;
        for entry in &entries {
            if self.known.by_model(entry.model).is_none() {
                self.forget_model(entry.model);
            }
            self.let_go(entry).await;
        }
        self.artefacts.remove_unneeded(rows.iter().filter_map(|row| row.source).collect()).await
    }

    /// Removes a version that nobody uses.
    ///
    /// # Errors
    /// [`Code::Infeasible`] while it has an alias; when it is unknown, or the
    /// disk refuses.
    pub(super) async fn remove_version(&self, row: &VersionRow) -> Result<(), Failure> {
        let registry = self.registry().await?;
        let aliases: Vec<&str> = registry.aliases(&row.name, row.version).collect();
        if !aliases.is_empty() {
            let text = format!("{}@{} is in use: it is {}", row.name, row.version, aliases.join(", "));
            return Err(Failure::new(Code::Infeasible, text)
                .with_help("roll out another version, or take its aliases away: `tierline model tag`"));
        }
        let entry = self.version_entry(row).await?;
        self.forget_version(&entry, row.source).await
    }

    /// Forgets a version, and lets go of what it leaves.
    pub(super) async fn forget_version(&self, entry: &Entry, source: Option<Digest>) -> Result<(), Failure> {
        let (name, version) = (entry.manifest.name.clone(), entry.manifest.version);
        self.cx.state.with(move |state| state.remove_version(&name, version)).await?;
        self.known.remove_version(&entry.manifest.name, version);
        if self.known.by_model(entry.model).is_none() {
            self.forget_model(entry.model);
        }
        self.let_go(entry).await;
        if let Some(source) = source {
            self.artefacts.remove_unneeded(vec![source]).await?;
        }
        Ok(())
    }

    /// Takes versions with an alias into use, and others out of it.
    pub(super) async fn take_up_versions(&self) -> Result<(), Failure> {
        let registry = self.registry().await?;
        if registry.aliases.len() > ALIASES_MAX {
            let text = format!("{} aliases; at most {ALIASES_MAX} can be", registry.aliases.len());
            return Err(Failure::new(Code::TooLarge, text).with_help("take some away that nobody needs"));
        }
        let means = |row: &VersionRow| self.known.named(&row.name).is_some_and(|e| e.manifest.version == row.version);
        let used = |row: &&VersionRow| registry.aliases(&row.name, row.version).next().is_some() && !means(row);
        let in_use: BTreeMap<(String, u64), &VersionRow> =
            registry.rows.iter().filter(used).map(|row| ((row.name.clone(), row.version), row)).collect();
        if in_use.len() > VERSIONS_IN_USE_MAX {
            let text = format!("{} versions in use; at most {VERSIONS_IN_USE_MAX} can be", in_use.len());
            return Err(Failure::new(Code::TooLarge, text).with_help("take aliases away that nobody needs"));
        }
        let aliases = registry.aliases.iter();
        self.known.set_aliases(aliases.map(|row| ((row.name.clone(), row.alias.clone()), row.version)).collect());
        self.take_up_deltas().await?;
        for gone in self.known.versions() {
            let key = (gone.manifest.name.clone(), gone.manifest.version);
            if !in_use.contains_key(&key) {
                self.known.remove_version(&key.0, key.1);
            }
        }
        for row in in_use.into_values() {
            match self.version_entry(row).await {
                Ok(entry) => self.use_version(entry),
                // One that is damaged must not keep the others from their use.
                Err(failure) => {
                    let text = format!("{}@{} can't be used here: {failure}", row.name, row.version);
                    self.cx.events.record("model", text, &serde_json::json!({ "name": row.name }));
                }
            }
        }
        Ok(())
    }

    /// A version is in use on the site: who may have to run it for others
    /// measures it; ends wait until they are told to run it.
    fn use_version(&self, entry: Entry) {
        if self.known.insert_version(entry.clone())
            && self.cx.me.role() != tierline_proto::Role::End
            && (self.known.profile(entry.model).is_none() || entry.manifest.golden.is_some())
        {
            self.tell(&Change::Unprofiled(&entry));
        }
    }

    /// Takes over the versions of the catalogue above; whether that changed
    /// something, and whether one could not be had yet.
    pub(super) async fn adopt_versions(&self, message: &CatalogueMessage) -> (bool, bool) {
        let aliases = message.aliases.iter().map(|a| ((a.model.clone(), a.alias.clone()), a.version));
        let mut changed = self.known.set_aliases(aliases.collect());
        let delta = |m: &tierline_proto::v1::ModelDelta| {
            let of = |bytes| Digest::try_from(bytes).ok();
            Some(DeltaRow { base: of(&m.base)?, model: of(&m.model)?, delta: of(&m.delta)?, bytes: m.bytes })
        };
        changed |= self.known.set_deltas(message.deltas.iter().filter_map(delta).collect());
        let mut late = false;
        let told = |entry: &Entry| {
            let same = |m: &&tierline_proto::v1::ModelEntry| {
                m.name == entry.manifest.name && m.version == entry.manifest.version
            };
            message.versions.iter().any(|m| same(&m))
        };
        for gone in self.known.versions().into_iter().filter(|entry| !told(entry)) {
            match self.forget_version(&gone, None).await {
                Ok(()) => changed = true,
                Err(_) => late = true,
            }
        }
        for model in &message.versions {
            match self.adopt_version(model).await {
                Ok(news) => changed |= news,
                Err(failure) => {
                    late |= is_late(&failure) || failure.code() == Code::StorageFull;
                    let text = format!("{}@{} could not be taken over: {failure}", model.name, model.version);
                    self.cx.events.record("model", text, &serde_json::json!({ "name": model.name }));
                }
            }
        }
        (changed, late)
    }

    async fn adopt_version(&self, model: &tierline_proto::v1::ModelEntry) -> Result<bool, Failure> {
        let digest = Digest::try_from(&model.manifest).map_err(|e| Failure::new(Code::Protocol, e.to_string()))?;
        let known = self.known.versions().into_iter().any(|entry| entry.manifest_digest == digest);
        if known {
            return Ok(false);
        }
        let manifest: Manifest = self.artefacts.document(digest).await?;
        let named = Digest::try_from(&model.model).is_ok_and(|digest| digest.to_string() == manifest.digest);
        if manifest.name != model.name || manifest.version != model.version || !named {
            let text = format!("the catalogue's {}@{} points at another manifest", model.name, model.version);
            return Err(Failure::new(Code::Corrupt, text));
        }
        let row = VersionRow {
            name: manifest.name.clone(),
            version: manifest.version,
            manifest: digest,
            source: None,
            added_ms: crate::runtime::events::now_ms(),
            card: String::new(),
        };
        match self.cx.state.with(move |state| state.keep_version(&row)).await {
            // It hears of the version again at every start.
            Err(failure) if failure.code() == Code::StorageFull => {}
            other => other?,
        }
        self.use_version(Entry::new(manifest, digest)?);
        Ok(true)
    }

    /// Reads what was registered, before anybody is heard. What names mean comes
    /// before it.
    pub(super) async fn open_versions(&self) -> Result<(), Failure> {
        if !self.cx.parents.is_empty() {
            for row in self.cx.state.with(State::model_versions).await? {
                match self.version_entry(&row).await {
                    Ok(entry) => {
                        self.load_profile(&entry).await;
                        self.known.insert_version(entry);
                    }
                    // It is told of again from above.
                    Err(failure) => tracing::warn!(%failure, name = row.name, version = row.version, "not read"),
                }
            }
            return Ok(());
        }
        // What was named before there were versions, or before a crash came, is in production.
        let registry = self.registry().await?;
        for entry in self.known.list() {
            let (name, version) = (entry.manifest.name.clone(), entry.manifest.version);
            let registered = registry.of(&name).any(|row| row.version == version);
            if registered && registry.aliases(&name, version).any(|alias| alias == PRODUCTION) {
                continue;
            }
            let row = VersionRow {
                name: name.clone(),
                version,
                manifest: entry.manifest_digest,
                source: None,
                added_ms: crate::runtime::events::now_ms(),
                card: String::new(),
            };
            let aliases = vec![(PRODUCTION.to_owned(), Some(version))];
            let keep = move |state: &State| {
                if !registered {
                    state.keep_version(&row)?;
                }
                state.set_aliases(&name, &aliases)
            };
            self.cx.state.with(keep).await?;
        }
        self.take_up_versions().await?;
        for entry in self.known.versions() {
            self.load_profile(&entry).await;
        }
        Ok(())
    }
}
