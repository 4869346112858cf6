//! Models on this node: added, adopted from the catalogue above, fetched,
//! profiled, removed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_engine::EngineError;
use tierline_engine::profiler::Watch;
use tierline_graph::profile::ModelProfile;
use tierline_graph::{DataType, Tensor};
use tierline_proto::Digest;
use tierline_proto::limits::MODELS_MAX;
use tierline_proto::v1::{Catalogue as CatalogueMessage, Code, Failure, ModelAddHeader, ModelEntry};

use super::Node;
use super::catalogue::{Entry, unknown_model};
use super::compute::Program;
use super::tasks::in_place;
use crate::documents;
use crate::models::{Manifest, Prepared};
use crate::profiling;

/// A model that the disk has no room for is held in memory only if it takes no
/// more than this share of what sessions may take.
const UNKEPT_SHARE: u64 = 4;

/// A model that could not be had, to take over or to measure, is tried again after this.
pub const AGAIN: Duration = Duration::from_secs(15);

impl Node {
    /// Takes in a model: checks, folds, stores and names it.
    ///
    /// # Errors
    /// When the name is taken, the files are no valid model, or the disk is full.
    pub async fn add_model(self: &Arc<Self>, header: ModelAddHeader, bytes: Vec<u8>) -> Result<Entry, Failure> {
        if !self.uplinks.is_empty() {
            let text = format!("{} takes its models from {}", self.name(), self.uplinks[0].name());
            return Err(Failure::new(Code::Forbidden, text)
                .with_help("add the model on the cloud node; every node below gets it from there"));
        }
        tierline_proto::name::check_model(&header.name)
            .map_err(|e| Failure::new(Code::InvalidInput, e.to_string()).with_help("choose another --name"))?;
        let known = self.catalogue.list().len();
        if known >= MODELS_MAX && self.catalogue.get(&header.name).is_none() {
            let text = format!("the site has {known} models, the most that it can");
            return Err(Failure::new(Code::TooLarge, text).with_help("remove some: `tierline model rm NAME`"));
        }
        if let Some(existing) = self.catalogue.get(&header.name)
            && !header.replace
            && existing.manifest.source_digest != crate::models::digest(&bytes[..first_length(&header)])
        {
            let text = format!("`{}` already names another model", header.name);
            return Err(Failure::new(Code::AlreadyExists, text).with_help("add --replace, or choose another name"));
        }
        let mut files = split_files(&header, Bytes::from(bytes))?;
        let source = files
            .remove("model.onnx")
            .ok_or_else(|| Failure::new(Code::Protocol, "the first file must be model.onnx"))?;
        let engine = Arc::clone(&self.engine);
        let shapes: BTreeMap<String, Vec<u64>> =
            header.shapes.iter().map(|s| (s.name.clone(), s.shape.clone())).collect();
        let (name, cuts_max) = (header.name.clone(), header.cuts_max as usize);
        let samples: BTreeMap<String, Bytes> =
            files.into_iter().filter_map(|(n, b)| Some((n.strip_prefix("sample/")?.to_owned(), b))).collect();
        let sample_shapes = sample_shapes(&samples)?;
        let prepare = move || {
            let invalid = |e: &dyn std::fmt::Display| Failure::new(Code::InvalidInput, e.to_string());
            let source_digest = crate::models::digest(&source);
            let model = tierline_graph::Model::parse(source).map_err(|e| invalid(&e))?;
            let prepared = Prepared::fold(model, &engine).map_err(|e| invalid(&e.error))?;
            let given = sample_shapes.into_iter().chain(shapes).collect();
            let shapes = crate::cli::profile_shapes(&prepared, given)
                .map_err(|e| invalid(&e.error).with_help("fix the free axes with --shape, or give a --sample"))?;
            let manifest = prepared.manifest(&name, source_digest, shapes, cuts_max).map_err(|e| invalid(&e.error))?;
            let bytes = prepared.to_bytes().map_err(|e| invalid(&e))?;
            Ok::<_, Failure>((bytes, manifest))
        };
        let (prepared, mut manifest) = self.tasks.blocking("model preparation", prepare).await??;
        // What is stored and not named yet must not be taken for what a removal left.
        let turn = self.adopting.lock().await;
        self.artefacts.put(prepared.clone()).await?;
        for (input, npy) in samples {
            let digest = self.artefacts.put(npy).await?;
            manifest.sample.insert(input, digest.to_string());
        }
        manifest.check().map_err(|text| Failure::new(Code::InvalidInput, text))?;
        let entry = self.adopt_manifest(manifest).await?;
        drop(turn);
        in_place(|| self.catalogue.load(&entry, prepared))?;
        self.tell_children_catalogue();
        self.profile_later(entry.clone());
        Ok(entry)
    }

    /// Stores a manifest and points its name at it.
    async fn adopt_manifest(self: &Arc<Self>, manifest: Manifest) -> Result<Entry, Failure> {
        let digest = self.artefacts.put(documents::write(&manifest)?.into()).await?;
        self.adopt_manifest_as(manifest, digest).await
    }

    /// Points a manifest's name at it; it is kept under this digest.
    async fn adopt_manifest_as(self: &Arc<Self>, manifest: Manifest, digest: Digest) -> Result<Entry, Failure> {
        let entry = Entry::new(manifest, digest)?;
        match self.artefacts.name(&entry.manifest.name, digest).await {
            // A node below another goes on without: it hears of the model again
            // at every start, and passes it on to those below.
            Err(failure) if failure.code() == Code::StorageFull && !self.uplinks.is_empty() => {
                let text = format!("model {} is known here but not kept: {failure}", entry.manifest.name);
                self.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
            }
            other => other?,
        }
        let before = self.catalogue.get(&entry.manifest.name);
        if let Some(old) =
            before.as_ref().filter(|old| old.manifest_digest != entry.manifest_digest && old.model == entry.model)
        {
            // The same model under other cuts: what was made for the old ones is void.
            self.forget_model(old.model);
        }
        if self.catalogue.insert(entry.clone()) {
            let text = format!("model {} is {}", entry.manifest.name, entry.model.short());
            self.events.record(
                "model",
                text,
                &serde_json::json!({ "name": entry.manifest.name, "digest": entry.manifest.digest }),
            );
        }
        if let Some(old) = before.filter(|old| old.manifest_digest != entry.manifest_digest) {
            if self.catalogue.by_model(old.model).is_none() {
                self.forget_model(old.model);
            }
            self.let_go(&old).await;
        }
        Ok(entry)
    }

    /// Forgets a name, here and below, and what nothing else needs.
    ///
    /// # Errors
    /// When it is unknown, the catalogue is kept above, or the disk refuses;
    /// then the name is still known.
    pub async fn remove_model(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        if !self.uplinks.is_empty() {
            return Err(
                Failure::new(Code::Forbidden, "the catalogue is kept on the cloud").with_help("remove the model there")
            );
        }
        let _turn = self.adopting.lock().await;
        let known = self.catalogue.list();
        let entry = self.catalogue.get(name).ok_or_else(|| unknown_model(name, &known))?;
        self.forget_name(&entry).await?;
        self.tell_children_catalogue();
        self.let_go(&entry).await;
        Ok(())
    }

    /// Forgets a name: on the disk first, so that it doesn't come back.
    async fn forget_name(self: &Arc<Self>, entry: &Entry) -> Result<bool, Failure> {
        self.artefacts.unname(&entry.manifest.name).await?;
        let removed = self.catalogue.remove(&entry.manifest.name);
        // Another name may point at the same model.
        if self.catalogue.by_model(entry.model).is_none() {
            self.forget_model(entry.model);
        }
        Ok(removed)
    }

    /// Drops what was made of a model: program, profile, plans, sessions.
    fn forget_model(self: &Arc<Self>, model: Digest) {
        self.catalogue.forget(model);
        self.planner.gone(self, model);
        self.compute.forget(model.to_string());
    }

    /// The program of an entry, fetched from above when it isn't here.
    ///
    /// # Errors
    /// When it can't be fetched or is damaged.
    pub async fn program(self: &Arc<Self>, entry: &Entry) -> Result<Arc<Program>, Failure> {
        if let Some(program) = self.catalogue.program(entry.model) {
            return Ok(program);
        }
        let bytes = self.artefact(entry.model, self.config.memory_bytes / UNKEPT_SHARE).await?;
        let (node, entry) = (Arc::clone(self), entry.clone());
        self.tasks.blocking("model loading", move || node.catalogue.load(&entry, bytes)).await?
    }

    /// As [`Node::program`], but no longer than until `deadline`.
    ///
    /// # Errors
    /// [`Code::DeadlineExceeded`] when it isn't here by then.
    pub async fn program_within(self: &Arc<Self>, entry: &Entry, deadline: Instant) -> Result<Arc<Program>, Failure> {
        match tokio::time::timeout_at(deadline.into(), self.program(entry)).await {
            Ok(program) => program,
            Err(_) => {
                let text = format!("{} is still on its way to {}", entry.manifest.name, self.name());
                Err(Failure::new(Code::DeadlineExceeded, text).with_help("`tierline model ls` says when it is ready"))
            }
        }
    }

    /// Profiles a model in the background, then plans with it.
    pub fn profile_later(self: &Arc<Self>, entry: Entry) {
        let node = Arc::clone(self);
        self.tasks.spawn("profiling", async move {
            while let Err(failure) = node.profile_model(&entry, Watch::default()).await {
                if node.catalogue.by_model(entry.model).is_none() {
                    return;
                }
                let text = format!("{} could not be profiled: {failure}", entry.manifest.name);
                node.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
                node.report_up();
                if !is_late(&failure) || node.config.scale_of_parent.is_some() {
                    return;
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// Measures a model on this device, keeps and reports the profile.
    ///
    /// # Errors
    /// When the model can't be had or run here, or was removed meanwhile.
    pub async fn profile_model(
        self: &Arc<Self>,
        entry: &Entry,
        progress: Watch,
    ) -> Result<(Digest, Arc<ModelProfile>), Failure> {
        let profile = match self.config.scale_of_parent {
            Some(factor) => self.scaled_profile(entry, factor).await?,
            None => self.measured_profile(entry, progress).await?,
        };
        let turn = self.adopting.lock().await;
        if self.catalogue.by_model(entry.model).is_none() {
            // Kept now, it would outlive what a removal takes along.
            let text = format!("{} was removed while it was measured", entry.manifest.name);
            return Err(Failure::new(Code::UnknownModel, text));
        }
        let digest = self.artefacts.put(documents::write(&profile)?.into()).await?;
        self.artefacts.keep_profile(entry.model, digest).await?;
        self.catalogue.set_profile(entry.model, profile);
        self.planner.profiled(entry.model, digest);
        drop(turn);
        let profile =
            self.catalogue.profile(entry.model).ok_or_else(|| Failure::new(Code::Internal, "the profile was lost"))?;
        let text = format!("profiled {}: {:.1} ms whole", entry.manifest.name, profile.whole_ns as f64 / 1e6);
        self.events.record(
            "model",
            text,
            &serde_json::json!({ "name": entry.manifest.name, "whole_ns": profile.whole_ns }),
        );
        self.report_up();
        self.tell_children_path();
        self.replan();
        Ok((digest, profile))
    }

    async fn measured_profile(self: &Arc<Self>, entry: &Entry, progress: Watch) -> Result<ModelProfile, Failure> {
        let program = self.program(entry).await?;
        let inputs = self.sample_inputs(&entry.manifest).await?;
        let (engine, config) = (Arc::clone(&self.engine), &self.config);
        let time_max = Some(Duration::from_secs(config.profile_seconds));
        let how =
            profiling::Measuring { load: config.load_options(), slowdown: config.slowdown, watch: progress, time_max };
        let measure = move || {
            let work = profiling::Work { engine, model: &program.model, manifest: &program.manifest, inputs: &inputs };
            profiling::measure(&work, how)
        };
        self.tasks.blocking("measurement", measure).await?.map_err(|e| {
            let failure = Failure::new(Code::Engine, e.to_string());
            if !matches!(e, EngineError::Stopped { .. } | EngineError::Memory { .. } | EngineError::Ended { .. }) {
                return failure;
            }
            self.catalogue.set_unfit(entry.model, e.to_string());
            failure.with_help("it is not offered here")
        })
    }

    /// The nearest measured profile above, for a device `factor` times slower.
    async fn scaled_profile(self: &Arc<Self>, entry: &Entry, factor: f64) -> Result<ModelProfile, Failure> {
        let above = self.planner.nearest_above(self, entry.model).await;
        let measured = above.ok_or_else(|| {
            Failure::new(Code::ModelNotReady, format!("no tier above {} has measured the model yet", self.name()))
                .with_help("it is scaled as soon as one has; `tierline nodes` shows who is there")
        })?;
        Ok(profiling::slowed(measured.as_ref().clone(), factor))
    }

    /// The manifest's sample inputs, or noise of the profiled shapes.
    async fn sample_inputs(self: &Arc<Self>, manifest: &Manifest) -> Result<Vec<(String, Tensor)>, Failure> {
        let mut inputs = Vec::new();
        for input in &manifest.inputs {
            let tensor = match manifest.sample.get(&input.name) {
                Some(digest) => {
                    let digest = digest.parse().map_err(|e| Failure::new(Code::Corrupt, format!("{e}")))?;
                    let npy = self.artefact(digest, self.config.memory_bytes / UNKEPT_SHARE).await?;
                    tierline_codec::npy::read(&npy).map_err(|e| Failure::new(Code::Corrupt, e.to_string()))?
                }
                None => {
                    let shape = manifest.input_shapes.get(&input.name).cloned().unwrap_or_default();
                    profiling::synthetic(input.dtype.unwrap_or(DataType::F32), &shape)
                        .map_err(|text| Failure::new(Code::InvalidInput, text))?
                }
            };
            inputs.push((input.name.clone(), tensor));
        }
        Ok(inputs)
    }
}

/// What is only late comes later; what can't be is not tried again.
fn is_late(failure: &Failure) -> bool {
    matches!(failure.code(), Code::Unreachable | Code::ModelNotReady | Code::NotFound)
}

/// Takes over what the parent's catalogue says; whether a model could not be
/// had yet, so that it should be tried again.
///
/// Stops where a newer catalogue has come meanwhile, which says all of it anew.
pub async fn adopt(node: &Arc<Node>, message: &CatalogueMessage, newest: impl Fn() -> bool) -> bool {
    let (mut changed, mut late, mut gone) = (false, false, Vec::new());
    if message.full {
        let named: Vec<&str> = message.models.iter().map(|m| m.name.as_str()).collect();
        for entry in node.catalogue.list() {
            if !named.contains(&entry.manifest.name.as_str()) {
                gone.push(entry);
            }
        }
    }
    gone.extend(message.removed.iter().filter_map(|name| node.catalogue.get(name)));
    for entry in &gone {
        match node.forget_name(entry).await {
            Ok(removed) => changed |= removed,
            Err(failure) => {
                late = true;
                let text = format!("model {} can't be forgotten yet: {failure}", entry.manifest.name);
                node.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
            }
        }
    }
    for model in message.models.iter().take_while(|_| newest()) {
        match adopt_one(node, model).await {
            Ok(Some(entry)) => {
                changed = true;
                if node.catalogue.profile(entry.model).is_none() {
                    node.profile_later(entry);
                }
            }
            Ok(None) => {}
            Err(failure) => {
                late |= is_late(&failure) || failure.code() == Code::StorageFull;
                let text = format!("model {} could not be taken over: {failure}", model.name);
                node.events.record("model", text, &serde_json::json!({ "name": model.name }));
            }
        }
    }
    if changed {
        node.tell_children_catalogue();
        node.report_up();
    }
    for entry in gone {
        // Unless it is still named: then it is tried again.
        if node.catalogue.get(&entry.manifest.name).is_none_or(|now| now.manifest_digest != entry.manifest_digest) {
            node.let_go(&entry).await;
        }
    }
    late
}

async fn adopt_one(node: &Arc<Node>, model: &ModelEntry) -> Result<Option<Entry>, Failure> {
    let digest = Digest::try_from(&model.manifest).map_err(|e| Failure::new(Code::Protocol, e.to_string()))?;
    if node.catalogue.get(&model.name).is_some_and(|e| e.manifest_digest == digest) {
        return Ok(None);
    }
    let manifest: Manifest = node.document(digest).await?;
    let named = Digest::try_from(&model.model).is_ok_and(|digest| digest.to_string() == manifest.digest);
    if manifest.name != model.name || !named {
        let text = format!("the catalogue's `{}` points at the manifest of `{}`", model.name, manifest.name);
        return Err(Failure::new(Code::Corrupt, text));
    }
    // As it came: a newer version may say more in it than this one knows.
    node.adopt_manifest_as(manifest, digest).await.map(Some)
}

fn first_length(header: &ModelAddHeader) -> usize {
    header.files.first().map_or(0, |f| f.length as usize)
}

fn split_files(header: &ModelAddHeader, bytes: Bytes) -> Result<BTreeMap<String, Bytes>, Failure> {
    let mut at = 0usize;
    let mut files = BTreeMap::new();
    for file in &header.files {
        let end = at.checked_add(file.length as usize).filter(|e| *e <= bytes.len());
        let end = end.ok_or_else(|| Failure::new(Code::Protocol, format!("file `{}` is cut short", file.name)))?;
        files.insert(file.name.clone(), bytes.slice(at..end));
        at = end;
    }
    Ok(files)
}

fn sample_shapes(samples: &BTreeMap<String, Bytes>) -> Result<BTreeMap<String, Vec<u64>>, Failure> {
    samples
        .iter()
        .map(|(name, npy)| {
            let tensor = tierline_codec::npy::read(npy)
                .map_err(|e| Failure::new(Code::InvalidInput, format!("sample `{name}`: {e}")))?;
            Ok((name.clone(), tensor.shape().iter().map(|&d| d as u64).collect()))
        })
        .collect()
}
