//! The models this node knows by name, and the programs it has at hand.
//!
//! The catalogue flows down from the cloud: names point at manifests,
//! manifests at prepared models, all by digest. Bytes are fetched when they
//! are first needed, from the parent, once per site. The models themselves are
//! in memory only while there is room for them ([`super::memory`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use tierline_graph::profile::ModelProfile;
use tierline_plan::Service;
use tierline_proto::Digest;
use tierline_proto::v1::{self, Catalogue, Code, Failure, ModelEntry};

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
        }
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
    entries: RwLock<BTreeMap<String, Entry>>,
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
        if let Some(entry) = &removed {
            let still_named = read(&self.entries).values().any(|e| e.model == entry.model);
            if !still_named {
                self.forget_program(entry.model);
            }
            self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        removed.is_some()
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

    /// The entry of a name or of a model's digest.
    #[must_use]
    pub fn get(&self, name_or_digest: &str) -> Option<Entry> {
        let entries = read(&self.entries);
        entries.get(name_or_digest).or_else(|| entries.values().find(|e| e.manifest.digest == name_or_digest)).cloned()
    }

    /// The entry of a name, and of nothing else.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Entry> {
        read(&self.entries).get(name).cloned()
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
        read(&self.entries).values().find(|e| e.model == model).cloned()
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

    /// Every entry, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        read(&self.entries).values().cloned().collect()
    }

    /// Names and what they point at, as one number that isn't 0.
    #[must_use]
    pub fn mark(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for entry in read(&self.entries).values() {
            hasher.update(entry.manifest.name.as_bytes()).update(&[0]).update(&entry.manifest_digest.0);
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
            models: self.list().iter().map(Entry::message).collect(),
            removed: Vec::new(),
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
