//! How long models take on this device: measured here, or scaled from a tier
//! above.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tierline_engine::profiler::{Progress, ProgressListener};
use tierline_engine::{EngineError, PullOnDrop, Stop};
use tierline_graph::profile::ModelProfile;
use tierline_graph::{DataType, Tensor};
use tierline_node::admit::Class;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::Digest;
use tierline_proto::v1::{Code, Failure, InferHeader, ProfileProgress};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::artefacts::Artefacts;
use super::catalogue::{AGAIN, Catalogue, Change, Entry, UNKEPT_SHARE, is_late};
use super::inference::{self, Inference, wire};
use super::planning::Planning;
use crate::device::compute::{Compute, Hold};
use crate::device::program::Source;
use crate::golden::{differs, wrong};
use crate::models::Manifest;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::{documents, profiling};

/// Steps of a measurement ahead of whoever reads them.
const AHEAD_MAX: usize = 8;

/// A measurement waits so long, in all, for those who compute beside it; better
/// one that they blurred than none.
const WAITS_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether a measurement takes too long.
const LOOK: Duration = Duration::from_millis(200);

/// How far an answer may be off that came by a plan, as a part of the largest
/// value: codecs on links may cost as much.
const PROBE_TOLERANCE: f64 = 0.02;

/// Tensors by name.
type Tensors = Vec<(String, Tensor)>;

/// Who hears of a measurement's steps.
type Callback = Box<dyn Fn(Progress) + Send + Sync>;

/// A measurement's turns on the device: it holds it from one step to the next.
struct Turns {
    compute: Compute,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// When the first began.
    began: Option<Instant>,
    held: Option<(Hold, Instant)>,
    /// Since when it waits for the next.
    asked: Option<Instant>,
    /// What a step takes.
    took: Duration,
    /// Waited so far.
    waited: Duration,
}

impl Turns {
    fn new(compute: Compute) -> Self {
        Self { compute, now: Mutex::default() }
    }

    /// Lets others have their turn, and takes the next.
    fn next(&self) {
        let asked = Instant::now();
        let (patience, took) = {
            let mut now = self.lock();
            now.began.get_or_insert(asked);
            now.asked = Some(asked);
            if let Some((held, since)) = now.held.take() {
                now.took = since.elapsed();
                drop(held);
            }
            (asked + WAITS_MAX.saturating_sub(now.waited), now.took)
        };
        let held = self.compute.hold(Class::Profiling, took, &Stop::at(patience));
        let mut now = self.lock();
        now.asked = None;
        now.waited += asked.elapsed();
        now.held = held.map(|held| (held, Instant::now()));
    }

    /// Time that the measurement itself has taken.
    fn used(&self) -> Duration {
        let now = self.lock();
        let waited = now.waited + now.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        now.began.map_or(Duration::ZERO, |began| began.elapsed().saturating_sub(waited))
    }

    fn end(&self) {
        self.lock().held = None;
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: "profiling",
    tables: &[],
    rules: &[Rule::new("/tierline.v1.Local/Profile", Roles::OPERATOR, Roles::NODES)],
    make: |assembly| {
        let profiling = Profiling::new(assembly);
        Box::new(assembly.add(profiling))
    },
};

/// The duty.
pub struct Profiling {
    cx: Context,
    artefacts: Arc<Artefacts>,
    catalogue: Arc<Catalogue>,
    planning: Arc<Planning>,
    /// One model is measured at a time.
    measuring: tokio::sync::Mutex<()>,
}

impl Profiling {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let profiling = Arc::new(Self {
            cx: assembly.cx.clone(),
            artefacts: assembly.get(),
            catalogue: assembly.get(),
            planning: assembly.get(),
            measuring: tokio::sync::Mutex::default(),
        });
        let this = Arc::clone(&profiling);
        profiling.catalogue.on_change(move |change| {
            if let Change::Unprofiled(entry) = change {
                this.later((*entry).clone());
            }
        });
        profiling
    }

    /// Measures a model for somebody who reads how far it is.
    #[must_use]
    pub fn measure_aloud(self: &Arc<Self>, entry: Entry) -> ReceiverStream<Result<ProfileProgress, Status>> {
        let profiling = Arc::clone(self);
        self.cx.tasks.stream("profile command", AHEAD_MAX, |send| async move {
            let steps = send.clone();
            let report: Callback = Box::new(move |p: Progress| {
                let step = ProfileProgress {
                    done: (p.done * 100.0) as u32,
                    total: 100,
                    step: p.phase.to_string(),
                    ..ProfileProgress::default()
                };
                // A reader that is slow to read misses steps.
                let _ = steps.try_send(Ok(step));
            });
            let last = match profiling.measure(&entry, Some(report)).await {
                Ok((digest, profile)) => super::json(profile.as_ref()).map(|profile_json| ProfileProgress {
                    done: 100,
                    total: 100,
                    step: "done".into(),
                    profile: digest.to_bytes(),
                    profile_json,
                }),
                Err(failure) => Err(failure),
            };
            let _ = send.send(last.map_err(Failure::into_status)).await;
        })
    }

    /// Profiles a model in the background, then plans with it.
    fn later(self: &Arc<Self>, entry: Entry) {
        let profiling = Arc::clone(self);
        self.cx.tasks.spawn("profiling", async move {
            while let Err(failure) = profiling.measure_first(&entry).await {
                if profiling.catalogue.known.by_model(entry.model).is_none() {
                    return;
                }
                let text = format!("{} could not be profiled: {failure}", entry.manifest.name);
                profiling.cx.events.record("model", text, &serde_json::json!({ "name": entry.manifest.name }));
                profiling.catalogue.tell(&Change::Unmeasured);
                if !is_late(&failure) || profiling.cx.me.config().scale_of_parent.is_some() {
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
    pub async fn measure(
        &self,
        entry: &Entry,
        progress: Option<Callback>,
    ) -> Result<(Digest, Arc<ModelProfile>), Failure> {
        let _turn = self.turn(entry).await?;
        self.measure_now(entry, progress).await
    }

    /// As [`Self::measure`], of what nobody has measured here: the same model
    /// may have come by another name.
    async fn measure_first(&self, entry: &Entry) -> Result<(), Failure> {
        let _turn = self.turn(entry).await?;
        if self.catalogue.known.profile(entry.model).is_some() {
            return self.checked(entry).await;
        }
        self.measure_now(entry, None).await.map(drop)
    }

    /// One is measured at a time: those that wait take no memory, and blur no
    /// measurement.
    async fn turn(&self, entry: &Entry) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        if self.cx.me.config().scale_of_parent.is_none() {
            self.catalogue.program(entry).await?;
        }
        Ok(self.measuring.lock().await)
    }

    async fn measure_now(
        &self,
        entry: &Entry,
        progress: Option<Callback>,
    ) -> Result<(Digest, Arc<ModelProfile>), Failure> {
        let profile = match self.cx.me.config().scale_of_parent {
            Some(factor) => self.scaled(entry, factor.get()).await?,
            None => self.measured(entry, progress).await?,
        };
        let turn = self.artefacts.naming.lock().await;
        if self.catalogue.known.by_model(entry.model).is_none() {
            // Kept now, it would outlive what a removal takes along.
            let text = format!("{} was removed while it was measured", entry.manifest.name);
            return Err(Failure::new(Code::UnknownModel, text));
        }
        let digest = self.artefacts.put(documents::write(&profile)?.into()).await?;
        self.artefacts.keep_profile(entry.model, digest).await?;
        self.catalogue.known.set_profile(entry.model, profile, digest);
        drop(turn);
        let profile = self
            .catalogue
            .known
            .profile(entry.model)
            .ok_or_else(|| Failure::new(Code::Internal, "the profile was lost"))?;
        let text = format!("profiled {}: {:.1} ms whole", entry.manifest.name, profile.whole_ns as f64 / 1e6);
        self.cx.events.record(
            "model",
            text,
            &serde_json::json!({ "name": entry.manifest.name, "whole_ns": profile.whole_ns }),
        );
        self.catalogue.tell(&Change::Profiled);
        Ok((digest, profile))
    }

    async fn measured(&self, entry: &Entry, progress: Option<Callback>) -> Result<ModelProfile, Failure> {
        let (program, source) = {
            let _turn = self.catalogue.turn_to_load(entry).await?;
            self.catalogue.loaded(entry).await?
        };
        self.check_golden(entry, &source).await?;
        let inputs = self.sample_inputs(&entry.manifest).await?;
        let (engine, config) = (Arc::clone(&self.cx.device.engine), self.cx.me.config());
        let time_max = Duration::from_secs(config.profile_seconds);
        // Also when nobody waits for it any more: the node ends.
        let stop = PullOnDrop(Stop::asked());
        let (load, slowdown) = (config.load_options(), config.slowdown.get());
        let turns = Arc::new(Turns::new(self.cx.device.compute.clone()));
        let taken = Arc::clone(&turns);
        let progress = ProgressListener::new(move |step| {
            progress.iter().for_each(|report| report(step));
            taken.next();
        });
        let how = profiling::Measuring { load, slowdown, progress, stop: stop.0.clone() };
        let measure = move || {
            let work = profiling::Work { engine, model: &source.model, manifest: &program.manifest, inputs: &inputs };
            profiling::measure(&work, how)
        };
        let mut measurement = self.cx.tasks.blocking("measurement", measure);
        let measured = loop {
            tokio::select! {
                measured = &mut measurement => break measured,
                // What it waits for others, it may take longer.
                () = tokio::time::sleep(LOOK) => if turns.used() > time_max { stop.0.pull() },
            }
        };
        turns.end();
        self.cx.device.compute.give_back();
        measured?.map_err(|e| {
            let failure = Failure::new(Code::Engine, e.to_string());
            if !matches!(e, EngineError::Stopped { .. } | EngineError::Memory { .. } | EngineError::Ended { .. }) {
                return failure;
            }
            self.catalogue.known.set_unfit(entry.model, e.to_string());
            failure.with_help("it is not offered here")
        })
    }

    /// Runs a model on its golden inputs, where it has some: one that makes
    /// something else of them isn't offered here.
    async fn check_golden(&self, entry: &Entry, source: &Arc<Source>) -> Result<(), Failure> {
        let Some(golden) = &entry.manifest.golden else { return Ok(()) };
        let (inputs, expected) = (self.tensors(&golden.inputs).await?, self.tensors(&golden.outputs).await?);
        let (engine, load) = (Arc::clone(&self.cx.device.engine), self.cx.me.config().load_options());
        let (tolerance, source) = (golden.tolerance, Arc::clone(source));
        let run =
            move || differs(engine.as_ref(), &load, &source.model, (&inputs, &expected), tolerance, &Stop::never());
        match self.cx.tasks.blocking("golden inputs", run).await? {
            Ok(None) => Ok(()),
            Ok(Some(text)) => {
                self.catalogue.known.set_unfit(entry.model, text.clone());
                Err(Failure::new(Code::Engine, text).with_help("it is not offered here; another engine may do better"))
            }
            // What runs nowhere in one piece is checked by nobody.
            Err(EngineError::Memory { .. }) => Ok(()),
            Err(other) => Err(Failure::new(Code::Engine, format!("golden inputs: {other}"))),
        }
    }

    /// Has a model ready to run here: in memory, measured, planned with.
    ///
    /// # Errors
    /// When it can't be had or run here.
    pub async fn prepare(&self, entry: &Entry) -> Result<(), Failure> {
        self.catalogue.program(entry).await?;
        let _turn = self.measuring.lock().await;
        if self.catalogue.known.profile(entry.model).is_none() {
            let profile = match self.cx.me.config().scale_of_parent {
                Some(factor) => self.scaled(entry, factor.get()).await?,
                None => self.measured(entry, None).await?,
            };
            let digest = self.artefacts.put(documents::write(&profile)?.into()).await?;
            self.artefacts.keep_profile(entry.model, digest).await?;
            self.catalogue.known.set_profile(entry.model, profile, digest);
        }
        self.catalogue.tell(&Change::Profiled);
        Ok(())
    }

    /// Runs a model apart from requests, on its golden inputs where it has some,
    /// else on what it is measured with: whether it gives what is expected, or
    /// numbers at least.
    ///
    /// # Errors
    /// How it fails; [`Code::DeadlineExceeded`] when it takes longer.
    pub async fn self_test(&self, entry: &Entry, limit: Duration) -> Result<(), Failure> {
        let (_, source) = {
            let _turn = self.catalogue.turn_to_load(entry).await?;
            self.catalogue.loaded(entry).await?
        };
        let (inputs, expected, tolerance) = self.test_values(&entry.manifest).await?;
        let (engine, load) = (Arc::clone(&self.cx.device.engine), self.cx.me.config().load_options());
        // Also when nobody waits for it any more.
        let stop = PullOnDrop(Stop::at(Instant::now() + limit));
        let until = stop.0.clone();
        let run = move || differs(engine.as_ref(), &load, &source.model, (&inputs, &expected), tolerance, &until);
        match self.cx.tasks.blocking("self-test", run).await? {
            Ok(None) => Ok(()),
            Ok(Some(text)) => Err(Failure::new(Code::Engine, text)),
            Err(EngineError::Stopped { .. }) => {
                let text = format!("it ran for longer than {:.1} s on its test", limit.as_secs_f64());
                Err(Failure::new(Code::DeadlineExceeded, text))
            }
            Err(error) => Err(Failure::new(Code::Engine, error.to_string())),
        }
    }

    /// Runs a model as requests do that enter here, on the same inputs.
    ///
    /// # Errors
    /// How it fails.
    pub async fn probe(&self, inference: &Arc<Inference>, entry: &Entry, limit: Duration) -> Result<(), Failure> {
        let (inputs, expected, tolerance) = self.test_values(&entry.manifest).await?;
        let packed = wire::pack(&inputs, |_| wire::raw().name())?;
        let held = Arc::new(self.cx.device.budget.request(""));
        let header = InferHeader {
            model: entry.versioned(),
            deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            ..InferHeader::default()
        };
        let entered = inference::ask(inference, &header, packed.tensors, Instant::now(), held).await;
        if let Some(failure) = entered.answer.reply.failure.filter(|failure| failure.code() != Code::Ok) {
            return Err(failure);
        }
        let outputs: Vec<(&str, &Tensor)> = entered.answer.outputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        // What plans may lose on the way is no fault of the model's.
        match wrong(&outputs, &expected, tolerance.max(PROBE_TOLERANCE)) {
            None => Ok(()),
            Some(text) => Err(Failure::new(Code::Engine, text)),
        }
    }

    /// Inputs to test a model with, what is expected of them, and how far it may
    /// be off.
    async fn test_values(&self, manifest: &Manifest) -> Result<(Tensors, Tensors, f64), Failure> {
        match &manifest.golden {
            Some(golden) => {
                let (inputs, outputs) = (self.tensors(&golden.inputs).await?, self.tensors(&golden.outputs).await?);
                Ok((inputs, outputs, golden.tolerance))
            }
            None => Ok((self.sample_inputs(manifest).await?, Vec::new(), 1.0)),
        }
    }

    /// Checks a model that was measured before: golden values may be new, or the
    /// engine another one.
    async fn checked(&self, entry: &Entry) -> Result<(), Failure> {
        if entry.manifest.golden.is_none() {
            return Ok(());
        }
        let (_, source) = {
            let _turn = self.catalogue.turn_to_load(entry).await?;
            self.catalogue.loaded(entry).await?
        };
        self.check_golden(entry, &source).await?;
        if self.catalogue.known.set_fit(entry.model) {
            self.catalogue.tell(&Change::Profiled);
        }
        Ok(())
    }

    /// NumPy files by name.
    async fn tensors(&self, digests: &BTreeMap<String, String>) -> Result<Vec<(String, Tensor)>, Failure> {
        let mut tensors = Vec::with_capacity(digests.len());
        for (name, digest) in digests {
            tensors.push((name.clone(), self.tensor(digest).await?));
        }
        Ok(tensors)
    }

    async fn tensor(&self, digest: &str) -> Result<Tensor, Failure> {
        let digest = digest.parse().map_err(|e| Failure::new(Code::Corrupt, format!("{e}")))?;
        let npy = self.artefacts.whole(digest, self.cx.me.config().memory_bytes() / UNKEPT_SHARE).await?;
        tierline_codec::npy::read(&npy).map_err(|e| Failure::new(Code::Corrupt, e.to_string()))
    }

    /// The nearest measured profile above, for a device `factor` times slower.
    async fn scaled(&self, entry: &Entry, factor: f64) -> Result<ModelProfile, Failure> {
        let above = self.planning.nearest_above(entry.model).await;
        let measured = above.ok_or_else(|| {
            Failure::new(Code::ModelNotReady, format!("no tier above {} has measured the model yet", self.cx.me.name()))
                .with_help("it is scaled as soon as one has; `tierline nodes` shows who is there")
        })?;
        Ok(profiling::slowed(measured.as_ref().clone(), factor))
    }

    /// The manifest's sample inputs, or noise of the profiled shapes.
    async fn sample_inputs(&self, manifest: &Manifest) -> Result<Vec<(String, Tensor)>, Failure> {
        let mut inputs = Vec::new();
        for input in &manifest.inputs {
            let tensor = match manifest.sample.get(&input.name) {
                Some(digest) => self.tensor(digest).await?,
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

#[tonic::async_trait]
impl Duty for Arc<Profiling> {
    async fn begin(&self) -> Result<(), Failure> {
        for entry in self.catalogue.known.list() {
            if self.catalogue.known.profile(entry.model).is_none() || entry.manifest.golden.is_some() {
                self.later(entry);
            }
        }
        Ok(())
    }
}
