//! The models this node knows by name, and the programs it has at hand.
//!
//! The catalogue flows down from the cloud: names point at manifests,
//! manifests at prepared models, all by digest. Bytes are fetched when they
//! are first needed, from the parent, once per site. The models themselves are
//! in memory only while there is room for them ([`super::memory`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use tierline_graph::profile::ModelProfile;
use tierline_plan::Service;
use tierline_proto::Digest;
use tierline_proto::name::split_version;
use tierline_proto::v1::{self, Catalogue, Code, Failure, ModelEntry};

use tierline_store::models::DeltaRow;

use crate::device::memory::{Key, Memory};
use crate::device::program::{Program, Source};
use crate::models::{Manifest, Prepared};

/// A name, what it points at, and what is known of it here.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The manifest.
    pub manifest: Manifest,
    /// Digest of the manifest's JSON.
    pub manifest_digest: Digest,
    /// Digest of the prepared model.
    pub model: Digest,
}

impl Entry {
    /// The entry of a manifest.
    ///
    /// # Errors
    /// When the manifest names no digest, or asks for more than any node has.
    pub fn new(manifest: Manifest, manifest_digest: Digest) -> Result<Self, Failure> {
        manifest.check().map_err(|text| Failure::new(Code::TooLarge, format!("model `{}`: {text}", manifest.name)))?;
        let model = manifest
            .digest
            .parse()
            .map_err(|e| Failure::new(Code::Corrupt, format!("manifest of `{}`: {e}", manifest.name)))?;
        Ok(Self { manifest, manifest_digest, model })
    }

    /// As it travels.
    #[must_use]
    pub fn message(&self) -> ModelEntry {
        ModelEntry {
            name: self.manifest.name.clone(),
            manifest: self.manifest_digest.to_bytes(),
            model: self.model.to_bytes(),
            bytes: self.manifest.bytes,
            version: self.manifest.version,
        }
    }

    /// Its name and version, as people write them.
    #[must_use]
    pub fn versioned(&self) -> String {
        format!("{}@{}", self.manifest.name, self.manifest.version)
    }
}

/// A name made of several models.
#[derive(Debug, Clone, PartialEq)]
pub struct Composed {
    /// The name it is asked for by.
    pub name: String,
    /// Digest of its document.
    pub document: Digest,
    /// What it is.
    pub service: Arc<Service>,
}

/// Names and programs. Reads are many and short, writes few.
pub struct Known {
    /// What plain names mean, as the catalogue says.
    entries: RwLock<BTreeMap<String, Entry>>,
    /// Versions that are in use beside those, by name and version.
    versions: RwLock<BTreeMap<(String, u64), Entry>>,
    /// Versions that run on this node in the place of what their names mean.
    running: RwLock<BTreeMap<String, Entry>>,
    /// Other names of versions.
    aliases: RwLock<BTreeMap<(String, String), u64>>,
    /// What makes one model of another.
    deltas: RwLock<Vec<DeltaRow>>,
    services: RwLock<BTreeMap<String, Composed>>,
    /// What requests need to know of models, as large as their manifests.
    programs: RwLock<HashMap<Digest, Arc<Program>>>,
    /// Where the models themselves are kept.
    memory: Memory,
    /// By model: the profile, and its artefact.
    profiles: RwLock<HashMap<Digest, (Arc<ModelProfile>, Digest)>>,
    /// Models that can't be run here, and why.
    unfit: RwLock<HashMap<Digest, String>>,
    sequence: std::sync::atomic::AtomicU64,
}

/// A delta as it travels.
fn delta(row: &DeltaRow) -> v1::ModelDelta {
    let DeltaRow { base, model, delta, bytes } = row;
    v1::ModelDelta { base: base.to_bytes(), model: model.to_bytes(), delta: delta.to_bytes(), bytes: *bytes }
}

/// An alias as it travels.
fn alias(((model, alias), version): (&(String, String), &u64)) -> v1::Alias {
    v1::Alias { model: model.clone(), alias: alias.clone(), version: *version }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Known {
    /// No names yet; models are kept in `memory`.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self {
            entries: RwLock::default(),
            versions: RwLock::default(),
            running: RwLock::default(),
            aliases: RwLock::default(),
            deltas: RwLock::default(),
            services: RwLock::default(),
            programs: RwLock::default(),
            memory,
            profiles: RwLock::default(),
            unfit: RwLock::default(),
            sequence: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Points a name at a manifest; says whether that changed anything.
    pub fn insert(&self, entry: Entry) -> bool {
        let mut entries = write(&self.entries);
        let changed = entries.get(&entry.manifest.name).is_none_or(|e| e.manifest_digest != entry.manifest_digest);
        if changed {
            entries.insert(entry.manifest.name.clone(), entry);
            self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        changed
    }

    /// Forgets a name; says whether it was known.
    pub fn remove(&self, name: &str) -> bool {
        let removed = write(&self.entries).remove(name);
        self.removed(removed.as_ref());
        removed.is_some()
    }

    fn removed(&self, removed: Option<&Entry>) {
        if let Some(entry) = removed {
            if self.by_model(entry.model).is_none() {
                self.forget_program(entry.model);
            }
            self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Puts a version into use beside what its name means; says whether that
    /// changed anything.
    pub fn insert_version(&self, entry: Entry) -> bool {
        let key = (entry.manifest.name.clone(), entry.manifest.version);
        let digest = entry.manifest_digest;
        let before = write(&self.versions).insert(key, entry);
        let changed = before.is_none_or(|before| before.manifest_digest != digest);
        if changed {
            self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        changed
    }

    /// Takes a version out of use; gives it, if it was.
    pub fn remove_version(&self, name: &str, version: u64) -> Option<Entry> {
        let removed = write(&self.versions).remove(&(name.to_owned(), version));
        self.removed(removed.as_ref());
        removed
    }

    /// Versions of a name that can be asked for here, the oldest first.
    #[must_use]
    pub fn versions_of(&self, name: &str) -> Vec<u64> {
        let mut versions: BTreeSet<u64> =
            read(&self.versions).keys().filter(|(of, _)| of == name).map(|(_, version)| *version).collect();
        versions.extend([self.named(name), self.running(name)].into_iter().flatten().map(|e| e.manifest.version));
        versions.into_iter().collect()
    }

    /// Versions in use beside what plain names mean.
    #[must_use]
    pub fn versions(&self) -> Vec<Entry> {
        read(&self.versions).values().cloned().collect()
    }

    /// Lets a version run here in the place of what its name means, or that
    /// again.
    pub fn run(&self, name: &str, entry: Option<Entry>) {
        match entry {
            Some(entry) => drop(write(&self.running).insert(name.to_owned(), entry)),
            None => drop(write(&self.running).remove(name)),
        }
    }

    /// The version that runs here in the place of what its name means.
    #[must_use]
    pub fn running(&self, name: &str) -> Option<Entry> {
        read(&self.running).get(name).cloned()
    }

    /// What versions of a name are also called; says whether that is news.
    pub fn set_aliases(&self, aliases: BTreeMap<(String, String), u64>) -> bool {
        let mut known = write(&self.aliases);
        if *known == aliases {
            return false;
        }
        *known = aliases;
        self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        true
    }

    /// What makes one model of another; says whether that is news.
    pub fn set_deltas(&self, deltas: Vec<DeltaRow>) -> bool {
        let mut known = write(&self.deltas);
        let news = *known != deltas;
        *known = deltas;
        news
    }

    /// Every delta.
    #[must_use]
    pub fn deltas(&self) -> Vec<DeltaRow> {
        read(&self.deltas).clone()
    }

    /// What a version is also called.
    #[must_use]
    pub fn aliases_of(&self, name: &str, version: u64) -> Vec<String> {
        let aliases = read(&self.aliases);
        aliases.iter().filter(|((of, _), to)| of == name && **to == version).map(|((_, a), _)| a.clone()).collect()
    }

    /// The version that an alias of a name means.
    #[must_use]
    pub fn aliased(&self, name: &str, alias: &str) -> Option<u64> {
        read(&self.aliases).get(&(name.to_owned(), alias.to_owned())).copied()
    }

    /// Drops the program and the profile of a model.
    pub fn forget(&self, model: Digest) {
        self.forget_program(model);
        write(&self.profiles).remove(&model);
        write(&self.unfit).remove(&model);
    }

    fn forget_program(&self, model: Digest) {
        write(&self.programs).remove(&model);
        self.memory.forget(&Key::Model(model));
    }

    /// A model can't be run here.
    pub fn set_unfit(&self, model: Digest, why: String) {
        write(&self.unfit).insert(model, why);
    }

    /// It can, after all; whether that is news.
    pub fn set_fit(&self, model: Digest) -> bool {
        write(&self.unfit).remove(&model).is_some()
    }

    /// Refuses a model that can't be run here.
    ///
    /// # Errors
    /// [`Code::Infeasible`] with what was found when it was measured.
    pub fn check_fit(&self, model: Digest) -> Result<(), Failure> {
        match read(&self.unfit).get(&model) {
            None => Ok(()),
            Some(why) => Err(Failure::new(Code::Infeasible, format!("the model can't be run here: {why}"))),
        }
    }

    /// The entry of a name, of a version (`NAME@3`, `NAME@ALIAS`), or of a
    /// model's digest: of a plain name what runs here.
    #[must_use]
    pub fn get(&self, asked: &str) -> Option<Entry> {
        if let Some(entry) = self.running(asked).or_else(|| self.named(asked)) {
            return Some(entry);
        }
        let (name, which) = split_version(asked);
        match which.map(|which| which.parse().ok().or_else(|| self.aliased(name, which))) {
            Some(version) => self.version(name, version?),
            None => self.find(|entry| entry.manifest.digest == asked),
        }
    }

    /// A version that is in use.
    #[must_use]
    pub fn version(&self, name: &str, version: u64) -> Option<Entry> {
        let is = |entry: &Entry| entry.manifest.name == name && entry.manifest.version == version;
        self.named(name)
            .filter(is)
            .or_else(|| self.running(name).filter(is))
            .or_else(|| read(&self.versions).get(&(name.to_owned(), version)).cloned())
    }

    /// What the catalogue says that a name means, and of nothing else.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Entry> {
        read(&self.entries).get(name).cloned()
    }

    /// The first entry of all that are in use.
    fn find(&self, is: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let of = |entries: &BTreeMap<String, Entry>| entries.values().find(|entry| is(entry)).cloned();
        let found = of(&read(&self.running)).or_else(|| of(&read(&self.entries)));
        found.or_else(|| read(&self.versions).values().find(|entry| is(entry)).cloned())
    }

    /// The service of a name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Composed> {
        read(&self.services).get(name).cloned()
    }

    /// Every service, by name.
    #[must_use]
    pub fn services(&self) -> Vec<Composed> {
        read(&self.services).values().cloned().collect()
    }

    /// Points a name at a service; gives the one it pointed at before.
    pub fn insert_service(&self, composed: Composed) -> Option<Composed> {
        self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        write(&self.services).insert(composed.name.clone(), composed)
    }

    /// Forgets a service.
    pub fn remove_service(&self, name: &str) {
        self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        write(&self.services).remove(name);
    }

    /// The entry of a prepared model.
    #[must_use]
    pub fn by_model(&self, model: Digest) -> Option<Entry> {
        self.find(|entry| entry.model == model)
    }

    /// Models that stand for an entry's, sent through a learned bottleneck, and
    /// that lose no more than so many points.
    #[must_use]
    pub fn variants(&self, entry: &Entry, loss_max: f64) -> Vec<Entry> {
        let source = &entry.manifest.source_digest;
        let stands = |other: &&Entry| {
            let bottleneck = other.manifest.bottleneck.as_ref().filter(|b| b.stands_for == *source);
            bottleneck.and_then(|b| b.measured.as_ref()).is_some_and(|measured| measured.keeps_to(loss_max))
        };
        read(&self.entries).values().filter(stands).cloned().collect()
    }

    /// What every name means here, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        let (entries, running) = (read(&self.entries), read(&self.running));
        let mut here: BTreeMap<&String, &Entry> = entries.iter().collect();
        here.extend(running.iter());
        here.into_values().cloned().collect()
    }

    /// Every entry that is in use, versions beside what names mean included.
    #[must_use]
    pub fn all(&self) -> Vec<Entry> {
        let mut all = self.list();
        let known: HashSet<Digest> = all.iter().map(|entry| entry.manifest_digest).collect();
        let others: Vec<Entry> = read(&self.entries).values().chain(read(&self.versions).values()).cloned().collect();
        all.extend(others.into_iter().filter(|entry| !known.contains(&entry.manifest_digest)));
        all
    }

    /// Names and what they point at, as one number that isn't 0.
    #[must_use]
    pub fn mark(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for entry in read(&self.entries).values() {
            hasher.update(entry.manifest.name.as_bytes()).update(&[0]).update(&entry.manifest_digest.0);
        }
        for entry in read(&self.versions).values() {
            hasher.update(entry.manifest.name.as_bytes()).update(&[2]).update(&entry.manifest_digest.0);
        }
        for ((name, alias), version) in read(&self.aliases).iter() {
            hasher.update(name.as_bytes()).update(&[3]).update(alias.as_bytes()).update(&version.to_le_bytes());
        }
        for composed in read(&self.services).values() {
            hasher.update(composed.name.as_bytes()).update(&[1]).update(&composed.document.0);
        }
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first).max(1)
    }

    /// The whole catalogue as it travels to children.
    #[must_use]
    pub fn message(&self) -> Catalogue {
        Catalogue {
            sequence: self.sequence.load(std::sync::atomic::Ordering::Relaxed),
            full: true,
            models: read(&self.entries).values().map(Entry::message).collect(),
            removed: Vec::new(),
            versions: read(&self.versions).values().map(Entry::message).collect(),
            aliases: read(&self.aliases).iter().map(alias).collect(),
            deltas: read(&self.deltas).iter().map(delta).collect(),
            services: self.services().iter().map(Composed::message).collect(),
        }
    }

    /// What requests need to know of a prepared model, once it was loaded here.
    #[must_use]
    pub fn program(&self, model: Digest) -> Option<Arc<Program>> {
        read(&self.programs).get(&model).cloned()
    }

    /// A prepared model, if it is in memory.
    #[must_use]
    pub fn source(&self, model: Digest) -> Option<Arc<Source>> {
        self.memory.get(&Key::Model(model))
    }

    /// Loads a prepared model, and keeps it while there is room.
    ///
    /// # Errors
    /// When the bytes are no valid model or don't fit the manifest.
    pub fn load(&self, entry: &Entry, bytes: Bytes) -> Result<(Arc<Program>, Arc<Source>), Failure> {
        let corrupt =
            |e: &dyn std::fmt::Display| Failure::new(Code::Corrupt, format!("model `{}`: {e}", entry.manifest.name));
        let length = bytes.len() as u64;
        let prepared = Prepared::from_store(bytes).map_err(|e| corrupt(&e))?;
        prepared.types(&entry.manifest.input_shapes).map_err(|e| corrupt(&e.error))?;
        let types = tierline_graph::infer_computed_types(&prepared.model).map_err(|e| corrupt(&e))?;
        let source = Arc::new(Source { model: prepared.model, types });
        self.memory.keep(Key::Model(entry.model), &source, length);
        let fresh = || Arc::new(Program::new(entry.manifest.clone(), &source));
        let program = Arc::clone(write(&self.programs).entry(entry.model).or_insert_with(fresh));
        Ok((program, source))
    }

    /// This device's profile of a prepared model.
    #[must_use]
    pub fn profile(&self, model: Digest) -> Option<Arc<ModelProfile>> {
        read(&self.profiles).get(&model).map(|(profile, _)| Arc::clone(profile))
    }

    /// The artefact of this device's profile of a prepared model.
    #[must_use]
    pub fn profile_artefact(&self, model: Digest) -> Option<Digest> {
        read(&self.profiles).get(&model).map(|(_, artefact)| *artefact)
    }

    /// Keeps this device's profile of a prepared model, and the artefact of it.
    pub fn set_profile(&self, model: Digest, profile: ModelProfile, artefact: Digest) {
        write(&self.profiles).insert(model, (Arc::new(profile), artefact));
        write(&self.unfit).remove(&model);
    }

    /// The state of an entry's model here.
    #[must_use]
    pub fn state(&self, entry: &Entry, stored: bool) -> v1::ModelState {
        if self.check_fit(entry.model).is_err() {
            return v1::ModelState::Refused;
        }
        if stored || self.program(entry.model).is_some() { v1::ModelState::Ready } else { v1::ModelState::Fetchable }
    }
}

/// A name nobody here knows.
#[must_use]
pub fn unknown_model(name: &str, known: &[Entry]) -> Failure {
    let names: Vec<&str> = known.iter().map(|e| e.manifest.name.as_str()).collect();
    let near = names.iter().find(|n| strsim::damerau_levenshtein(n, name) <= 2);
    let help = match (near, names.is_empty()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, true) => {
            "this node knows no model yet: `tierline model add FILE.onnx --name NAME` on the cloud".to_owned()
        }
        (None, false) => format!("known models: {}", names.join(", ")),
    };
    Failure::new(Code::UnknownModel, format!("no model `{name}` is known here")).with_help(help)
}
