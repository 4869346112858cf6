//! Models on this node: added, adopted from the catalogue above, fetched,
//! profiled, removed.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_engine::EngineError;
use tierline_engine::profiler::Watch;
use tierline_graph::profile::ModelProfile;
use tierline_graph::{DataType, Tensor};
use tierline_proto::Digest;
use tierline_proto::limits::MODELS_MAX;
use tierline_proto::v1::{Catalogue as CatalogueMessage, Code, Failure, ModelAddHeader, ModelEntry};

use super::catalogue::{Entry, unknown_model};
use super::compute::{ComputeError, Computed, Named, Part, Program, SliceKey, Source, Turn};
use super::services::upload::{Uploaded, Uploads};
use super::{Node, wire};
use crate::documents;
use crate::models::{Manifest, Prepared};
use crate::profiling;

/// A model that the disk has no room for is held in memory only if it takes no
/// more than this share of what sessions may take.
const UNKEPT_SHARE: u64 = 4;

/// A session whose model isn't here by then gives its place to others.
const WARM_TIME_MAX: Duration = Duration::from_secs(30);

/// A model that could not be had, to take over or to measure, is tried again after this.
pub const AGAIN: Duration = Duration::from_secs(15);

impl Node {
    /// Refuses a model that can't be added here, whatever it is.
    ///
    /// # Errors
    /// When models come from above, the name is none, or there are too many.
    pub fn check_new_model(&self, header: &ModelAddHeader) -> Result<(), Failure> {
        if !self.uplinks.is_empty() {
            let text = format!("{} takes its models from {}", self.name(), self.uplinks[0].name());
            return Err(Failure::new(Code::Forbidden, text)
                .with_help("add the model on the cloud node; every node below gets it from there"));
        }
        tierline_proto::name::check_model(&header.name)
            .map_err(|e| Failure::new(Code::InvalidInput, e.to_string()).with_help("choose another --name"))?;
        if header.files.first().is_none_or(|file| file.name != "model.onnx") {
            return Err(Failure::new(Code::Protocol, "the first file must be model.onnx"));
        }
        let known = self.catalogue.list().len();
        if known >= MODELS_MAX && self.catalogue.get(&header.name).is_none() {
            let text = format!("the site has {known} models, the most that it can");
            return Err(Failure::new(Code::TooLarge, text).with_help("remove some: `tierline model rm NAME`"));
        }
        Ok(())
    }

    /// Takes in a model: checks, folds, stores and names it.
    ///
    /// # Errors
    /// When the name is taken, the files are no valid model, or the disk is full.
    pub async fn add_model(self: &Arc<Self>, header: ModelAddHeader, uploads: Uploads) -> Result<Entry, Failure> {
        self.check_new_model(&header)?;
        let turn = self.preparing.lock().await;
        let node = Arc::clone(self);
        let prepare = move || node.prepare(&header, uploads);
        let (uploads, prepared, mut manifest) = self.tasks.blocking("model preparation", prepare).await??;
        drop(turn);
        // What is stored and not named yet must not be taken for what a removal left.
        let turn = self.adopting.lock().await;
        self.artefacts.put_file(&prepared).await?;
        for (input, mut sample) in uploads {
            let digest = self.artefacts.put_file(sample.rewound()).await?;
            manifest.sample.insert(input, digest.to_string());
        }
        manifest.check().map_err(|text| Failure::new(Code::InvalidInput, text))?;
        let entry = self.adopt_manifest(manifest).await?;
        drop(turn);
        self.tell_children_catalogue();
        // The same model under another name is measured already.
        if self.catalogue.profile(entry.model).is_none() {
            self.profile_later(entry.clone());
        }
        Ok(entry)
    }

    /// Reads what came of a model, and folds it: its samples, a file with the
    /// prepared model, and its manifest. Blocks.
    fn prepare(&self, header: &ModelAddHeader, uploads: Uploads) -> Result<(Samples, File, Manifest), Failure> {
        let invalid = |e: &dyn std::fmt::Display| Failure::new(Code::InvalidInput, e.to_string());
        let mut files = header.files.iter().map(|file| file.name.as_str()).zip(uploads.files);
        let (_, mut source) = files.next().ok_or_else(|| Failure::new(Code::Protocol, "no file came"))?;
        let samples = files.filter_map(|(name, file)| Some((name.strip_prefix("sample/")?.to_owned(), file)));
        let mut samples: Samples = samples.collect();
        let bytes = source.read()?;
        let source_digest = crate::models::digest(&bytes);
        if let Some(existing) = self.catalogue.get(&header.name)
            && !header.replace
            && existing.manifest.source_digest != source_digest
        {
            let text = format!("`{}` already names another model", header.name);
            return Err(Failure::new(Code::AlreadyExists, text).with_help("add --replace, or choose another name"));
        }
        let model = tierline_graph::Model::parse(bytes).map_err(|e| invalid(&e))?;
        let prepared = Prepared::fold(model, &self.engine).map_err(|e| invalid(&e.error))?;
        // Engines take them in one piece.
        prepared.model.check_one_file().map_err(|e| invalid(&e))?;
        let mut shapes = sample_shapes(&mut samples)?;
        shapes.extend(header.shapes.iter().map(|s| (s.name.clone(), s.shape.clone())));
        let shapes = crate::models::profile_shapes(&prepared, shapes)
            .map_err(|e| invalid(&e.error).with_help("fix the free axes with --shape, or give a --sample"))?;
        let mut manifest = prepared
            .manifest(&header.name, source_digest, shapes, header.cuts_max as usize)
            .map_err(|e| invalid(&e.error))?;
        for (input, sample) in &mut samples {
            manifest.sample.insert(input.clone(), crate::models::digest(&sample.read()?));
        }
        if let Some(existing) = self.catalogue.get(&header.name)
            && !header.replace
            && existing.manifest != manifest
        {
            return Err(measured_otherwise(&existing.manifest, &manifest));
        }
        let file = self.store().unnamed()?;
        let mut writer = std::io::BufWriter::new(&file);
        prepared.model.write(&mut writer).map_err(|e| self.store().refused(e))?;
        std::io::Write::flush(&mut writer).map_err(|e| self.store().refused(e))?;
        drop(writer);
        Ok((samples, file, manifest))
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

    /// Gives a model another name, here and below; nothing is measured again.
    ///
    /// # Errors
    /// When it is unknown, the new name is taken or none, the catalogue is kept
    /// above, or the disk refuses.
    pub async fn rename_model(self: &Arc<Self>, name: &str, new: &str) -> Result<Entry, Failure> {
        if !self.uplinks.is_empty() {
            return Err(
                Failure::new(Code::Forbidden, "the catalogue is kept on the cloud").with_help("rename the model there")
            );
        }
        tierline_proto::name::check_model(new).map_err(|e| Failure::new(Code::InvalidInput, e.to_string()))?;
        let turn = self.adopting.lock().await;
        let known = self.catalogue.list();
        let entry = self.catalogue.get(name).ok_or_else(|| unknown_model(name, &known))?;
        if entry.manifest.name == new {
            return Ok(entry);
        }
        if known.iter().any(|other| other.manifest.name == new) {
            let text = format!("`{new}` names a model already");
            return Err(Failure::new(Code::AlreadyExists, text)
                .with_help(format!("choose another name, or remove it: `tierline model rm {new}`")));
        }
        // First the new name: at no moment is the model without one.
        let renamed = self.adopt_manifest(Manifest { name: new.to_owned(), ..entry.manifest.clone() }).await?;
        self.forget_name(&entry).await?;
        drop(turn);
        self.tell_children_catalogue();
        self.let_go(&entry).await;
        Ok(renamed)
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

    /// What requests need to know of an entry's model, which is fetched from
    /// above when it isn't here.
    ///
    /// # Errors
    /// When it can't be fetched or is damaged.
    pub async fn program(self: &Arc<Self>, entry: &Entry) -> Result<Arc<Program>, Failure> {
        match self.catalogue.program(entry.model) {
            Some(program) => Ok(program),
            None => {
                let _turn = self.turn_to_load(entry).await?;
                Ok(self.loaded(entry).await?.0)
            }
        }
    }

    /// Waits until a model is here and its turn to be loaded comes: one at a
    /// time, so that those which wait take no memory.
    async fn turn_to_load(self: &Arc<Self>, entry: &Entry) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        // Others have their turn while it is on its way.
        match self.ensure_artefact(entry.model).await {
            // Without room on the disk it comes in its turn, into memory.
            Err(failure) if failure.code() != Code::StorageFull => Err(failure),
            _ => Ok(self.loading.lock().await),
        }
    }

    /// A model whose turn it is, and its program.
    async fn loaded(self: &Arc<Self>, entry: &Entry) -> Result<(Arc<Program>, Arc<Source>), Failure> {
        let known = self.catalogue.program(entry.model).zip(self.catalogue.source(entry.model));
        if let Some(known) = known {
            return Ok(known);
        }
        let bytes = self.artefact(entry.model, self.config.memory_bytes / UNKEPT_SHARE).await?;
        let (node, entry) = (Arc::clone(self), entry.clone());
        self.tasks.blocking("model loading", move || node.catalogue.load(&entry, bytes)).await?
    }

    /// Runs segments here; what isn't loaded is loaded first, as its turn comes.
    ///
    /// # Errors
    /// Those of [`wire::compute_failure`], and of a model that can't be had.
    pub async fn run_here(
        self: &Arc<Self>,
        program: &Arc<Program>,
        key: SliceKey,
        inputs: Arc<Named>,
        turn: Turn,
    ) -> Result<Computed, Failure> {
        let run = |source| {
            let part = Part { program: Arc::clone(program), source };
            self.compute.run(part, key.clone(), Arc::clone(&inputs), turn.clone())
        };
        if self.compute.is_warm(&key) {
            match run(None).await {
                // It went while this waited.
                Err(ComputeError::Cold { .. }) => {}
                other => return other.map_err(|e| wire::compute_failure(&e)),
            }
        }
        let load = async {
            let entry = self.entry_of(&key)?;
            let loading = self.turn_to_load(&entry).await?;
            // Somebody else may have had it loaded meanwhile.
            let source = if self.compute.is_warm(&key) { None } else { Some(self.loaded(&entry).await?.1) };
            Ok::<_, Failure>((loading, source))
        };
        let (_loading, source) = tokio::time::timeout_at(turn.deadline.into(), load).await.map_err(|_| {
            let text = format!("{} is still being loaded on {}", program.manifest.name, self.name());
            Failure::new(Code::DeadlineExceeded, text).with_help("allow more time, or send it again")
        })??;
        let computed = match run(source).await {
            // It went in that very moment; it comes back with its model.
            Err(ComputeError::Cold { .. }) => run(Some(self.loaded(&self.entry_of(&key)?).await?.1)).await,
            other => other,
        };
        computed.map_err(|e| wire::compute_failure(&e))
    }

    /// Loads the session of `key`, as its turn comes; gives the bytes it takes.
    ///
    /// # Errors
    /// As [`Node::run_here`].
    pub async fn warm(self: &Arc<Self>, key: SliceKey) -> Result<u64, Failure> {
        let entry = self.entry_of(&key)?;
        let here = tokio::time::timeout(WARM_TIME_MAX, self.ensure_artefact(entry.model)).await;
        let late = || Failure::new(Code::ModelNotReady, format!("{} is still on its way", entry.manifest.name));
        match here.map_err(|_| late())? {
            Err(failure) if failure.code() != Code::StorageFull => return Err(failure),
            _ => {}
        }
        let _turn = self.turn_to_load(&entry).await?;
        let (program, source) = self.loaded(&entry).await?;
        let part = Part { program, source: Some(source) };
        self.compute.warm(part, key).await.map_err(|e| wire::compute_failure(&e))
    }

    fn entry_of(&self, key: &SliceKey) -> Result<Entry, Failure> {
        let model = key.digest.parse::<Digest>().ok();
        model
            .and_then(|model| self.catalogue.by_model(model))
            .ok_or_else(|| Failure::new(Code::UnknownModel, format!("the model was removed from {}", self.name())))
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
            Some(factor) => self.scaled_profile(entry, factor.get()).await?,
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
        // One at a time: those that wait take no memory, and blur no measurement.
        self.program(entry).await?;
        let _turn = self.measuring.lock().await;
        let (program, source) = {
            let _turn = self.turn_to_load(entry).await?;
            self.loaded(entry).await?
        };
        let inputs = self.sample_inputs(&entry.manifest).await?;
        let (engine, config) = (Arc::clone(&self.engine), &self.config);
        let time_max = Some(Duration::from_secs(config.profile_seconds));
        let how = profiling::Measuring {
            load: config.load_options(),
            slowdown: config.slowdown.get(),
            watch: progress,
            time_max,
        };
        let measure = move || {
            let work = profiling::Work { engine, model: &source.model, manifest: &program.manifest, inputs: &inputs };
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
    // A model that only changes its name keeps what was measured of it.
    let named: Vec<Digest> = message.models.iter().filter_map(|m| Digest::try_from(&m.model).ok()).collect();
    let (renamed, others): (Vec<_>, Vec<_>) = gone.iter().partition(|entry| named.contains(&entry.model));
    for entry in others {
        forget(node, entry, &mut changed, &mut late).await;
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
    for entry in renamed {
        forget(node, entry, &mut changed, &mut late).await;
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

async fn forget(node: &Arc<Node>, entry: &Entry, changed: &mut bool, late: &mut bool) {
    match node.forget_name(entry).await {
        Ok(removed) => *changed |= removed,
        Err(failure) => {
            *late = true;
            let text = format!("model {} can't be forgotten yet: {failure}", entry.manifest.name);
            node.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
        }
    }
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

/// The same file under the same name, to be measured at other sizes: every
/// node would do it again.
fn measured_otherwise(existing: &Manifest, given: &Manifest) -> Failure {
    let shapes = |manifest: &Manifest| {
        let all = manifest.input_shapes.iter().map(|(name, shape)| {
            format!("{name}={}", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        });
        all.collect::<Vec<_>>().join(" ")
    };
    let text = if existing.input_shapes == given.input_shapes {
        format!("`{}` is that model already, with other cuts or samples", given.name)
    } else {
        format!("`{}` is that model already, measured at {}", given.name, shapes(existing))
    };
    Failure::new(Code::AlreadyExists, text)
        .with_help("with --replace every node drops its measurements and measures it again")
}

/// Inputs' samples, as they came.
type Samples = BTreeMap<String, Uploaded>;

fn sample_shapes(samples: &mut Samples) -> Result<BTreeMap<String, Vec<u64>>, Failure> {
    samples
        .iter_mut()
        .map(|(name, npy)| {
            let tensor = tierline_codec::npy::read(&npy.read()?)
                .map_err(|e| Failure::new(Code::InvalidInput, format!("sample `{name}`: {e}")))?;
            Ok((name.clone(), tensor.shape().iter().map(|&d| d as u64).collect()))
        })
        .collect()
}
