//! The models this node knows by name, and the programs it has at hand.
//!
//! The catalogue flows down from the cloud: names point at manifests,
//! manifests at prepared models, all by digest. Bytes are fetched when they
//! are first needed, from the parent, once per site.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use tierline_graph::profile::ModelProfile;
use tierline_proto::Digest;
use tierline_proto::v1::{self, Catalogue as CatalogueMessage, Code, Failure, ModelEntry};

use super::compute::Program;
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
    /// When the manifest names no digest.
    pub fn new(manifest: Manifest, manifest_digest: Digest) -> Result<Self, Failure> {
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

/// Names and programs. Reads are many and short, writes few.
#[derive(Default)]
pub struct Catalogue {
    entries: RwLock<BTreeMap<String, Entry>>,
    programs: RwLock<HashMap<Digest, Arc<Program>>>,
    profiles: RwLock<HashMap<Digest, Arc<ModelProfile>>>,
    sequence: std::sync::atomic::AtomicU64,
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Catalogue {
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
                write(&self.programs).remove(&entry.model);
            }
            self.sequence.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        removed.is_some()
    }

    /// Drops the program and the profile of a model.
    pub fn forget(&self, model: Digest) {
        write(&self.programs).remove(&model);
        write(&self.profiles).remove(&model);
    }

    /// The entry of a name or of a model's digest.
    #[must_use]
    pub fn get(&self, name_or_digest: &str) -> Option<Entry> {
        let entries = read(&self.entries);
        entries.get(name_or_digest).or_else(|| entries.values().find(|e| e.manifest.digest == name_or_digest)).cloned()
    }

    /// The entry of a prepared model.
    #[must_use]
    pub fn by_model(&self, model: Digest) -> Option<Entry> {
        read(&self.entries).values().find(|e| e.model == model).cloned()
    }

    /// Every entry, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        read(&self.entries).values().cloned().collect()
    }

    /// The whole catalogue as it travels to children.
    #[must_use]
    pub fn message(&self) -> CatalogueMessage {
        CatalogueMessage {
            sequence: self.sequence.load(std::sync::atomic::Ordering::Relaxed),
            full: true,
            models: self.list().iter().map(Entry::message).collect(),
            removed: Vec::new(),
        }
    }

    /// The program of a prepared model, if it is at hand.
    #[must_use]
    pub fn program(&self, model: Digest) -> Option<Arc<Program>> {
        read(&self.programs).get(&model).cloned()
    }

    /// Keeps a prepared model at hand.
    ///
    /// # Errors
    /// When the bytes are no valid model or don't fit the manifest.
    pub fn load(&self, entry: &Entry, bytes: Bytes) -> Result<Arc<Program>, Failure> {
        if let Some(program) = self.program(entry.model) {
            return Ok(program);
        }
        let corrupt =
            |e: &dyn std::fmt::Display| Failure::new(Code::Corrupt, format!("model `{}`: {e}", entry.manifest.name));
        let prepared = Prepared::from_store(bytes).map_err(|e| corrupt(&e))?;
        prepared.types(&entry.manifest.input_shapes).map_err(|e| corrupt(&e.error))?;
        let types = tierline_graph::infer_computed_types(&prepared.model).map_err(|e| corrupt(&e))?;
        let program = Arc::new(Program { model: prepared.model, manifest: entry.manifest.clone(), types });
        write(&self.programs).insert(entry.model, Arc::clone(&program));
        Ok(program)
    }

    /// This device's profile of a prepared model.
    #[must_use]
    pub fn profile(&self, model: Digest) -> Option<Arc<ModelProfile>> {
        read(&self.profiles).get(&model).cloned()
    }

    /// Keeps this device's profile of a prepared model.
    pub fn set_profile(&self, model: Digest, profile: ModelProfile) {
        write(&self.profiles).insert(model, Arc::new(profile));
    }

    /// The state of an entry's model here.
    #[must_use]
    pub fn state(&self, entry: &Entry, stored: bool) -> v1::ModelState {
        if self.program(entry.model).is_some() || stored { v1::ModelState::Ready } else { v1::ModelState::Fetchable }
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
