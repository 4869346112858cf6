//! Learns task after task.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_graph::onnx::TensorProto;
use tierline_graph::step::{self, LEFT_OUT, Loss, NOT_SAID, Recipe, Role, Steering};
use tierline_graph::{Elements, Model, Tensor};

use super::fisher::{At, output};
use super::memory::Said;
use super::{Continual, Kept, Memory, Owners, Penalty, Pick, Teacher, fisher, importance};
use crate::data::{BatchOptions, Batches, Dataset, Last, Normalize, Position, Targets, seed_of};
use crate::error::TrainError;
use crate::init;
use crate::job::Job;
use crate::trainer::{Runner, Scores, Trainer};

/// Keeps the order of examples apart from other draws.
const ORDER: u64 = 0x6f72_6465;

/// A model that learns task after task.
pub struct Learner {
    engine: Arc<dyn Engine>,
    load: LoadOptions,
    job: Job,
    settings: Continual,
    batch: BatchOptions,
    /// As it is trained: with its dropout.
    model: Model,
    /// As it is deployed.
    ready: Model,
    teacher: Option<Model>,
    kept: Kept,
}

/// What a task gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// New examples.
    pub examples: usize,
    /// Steps taken.
    pub steps: u64,
    /// The mean of the last epoch's losses, each before its step.
    pub loss: f64,
    /// Examples that are kept now.
    pub remembered: usize,
    /// Bytes of what is kept now, the model left out.
    pub bytes: u64,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// From 0, over all epochs of the task.
    pub step: u64,
    /// Steps of the task.
    pub steps: u64,
    /// Of the batch.
    pub loss: f64,
}

/// How the model does on each of some tasks.
pub type Tested = Vec<Scores>;

/// New examples, then those kept of earlier tasks.
struct Lesson {
    all: Dataset,
    new: usize,
    old: usize,
}

impl Learner {
    /// Takes up a model, its constants folded for training, and what is kept of
    /// what it learned before.
    ///
    /// # Errors
    /// When the job's settings don't go together, or what is kept is of another
    /// model.
    pub fn new(
        engine: &Arc<dyn Engine>,
        model: Model,
        job: &Job,
        normalize: Option<Normalize>,
        kept: Kept,
        load: &LoadOptions,
    ) -> Result<Self, TrainError> {
        job.check()?;
        let settings = job.continual.clone().unwrap_or_default();
        kept.check(&model)?;
        let taught = settings.lwf.is_some()
            || settings.teacher.is_some()
            || settings.replay.as_ref().is_some_and(|replay| replay.logits);
        let plain = matches!(&job.loss, Loss::CrossEntropy { targets: step::Targets::Classes, smoothing, weights }
            if *smoothing == 0.0 && weights.is_empty());
        if taught && !(plain && job.also.is_empty()) {
            let text = "lwf, a teacher and replay.logits go with a plain cross-entropy on classes of one output";
            return Err(TrainError::Continual(text.into()));
        }
        if settings.replay.is_some() && job.batch.size < 2 {
            return Err(TrainError::Continual(
                "a batch of one example has no room for replay; take larger ones".into(),
            ));
        }
        let mut kept = kept;
        if let (Some(replay), Some(memory)) = (&settings.replay, kept.memory.take()) {
            kept.memory = Some(memory.with(replay, job.seed));
        }
        if settings.isolation.is_some() && kept.owners.is_none() {
            if kept.tasks > 0 {
                let text = "isolation begins with the first task, and earlier ones shared their weights";
                return Err(TrainError::Continual(text.into()));
            }
            kept.owners = Some(Owners::free(&model, &job.freeze)?);
        }
        if settings.isolation.is_none() && kept.owners.is_some() {
            let text = "weights of earlier tasks are set apart; go on with continual.isolation, or begin anew";
            return Err(TrainError::Continual(text.into()));
        }
        let batch = job.options(normalize)?.batch;
        let ready = step::deployed(&model)?;
        let (engine, load, job) = (Arc::clone(engine), load.clone(), job.clone());
        Ok(Self { engine, load, job, settings, batch, model, ready, teacher: None, kept })
    }

    /// With the teacher that the job names.
    ///
    /// # Errors
    /// When it isn't one for the model's examples and classes.
    pub fn with_teacher(mut self, teacher: Model) -> Result<Self, TrainError> {
        let width = |model: &Model, name: &str| {
            let found = model.outputs().into_iter().find(|output| output.name == name);
            found.and_then(|output| output.shape?.get(1)?.known())
        };
        let first = teacher.outputs().into_iter().next().map(|output| output.name).unwrap_or_default();
        let own = output(&self.model, &self.job.recipe(1));
        let (said, wanted) = (width(&teacher, &first), width(&self.model, &own));
        if let (Some(said), Some(wanted), true) = (said, wanted, said != wanted) {
            let text =
                format!("the teacher tells {said} classes apart, and the model {wanted}; take one of the same classes");
            return Err(TrainError::Continual(text));
        }
        if teacher.inputs().len() != 1 {
            let inputs = teacher.inputs().into_iter().map(|input| input.name).collect();
            return Err(TrainError::Inputs { inputs });
        }
        self.teacher = Some(teacher);
        Ok(self)
    }

    /// The model as it is now, for use: with isolation, what the last task asks.
    #[must_use]
    #[allow(clippy::misnamed_getters)]
    pub fn model(&self) -> &Model {
        &self.ready
    }

    /// What is kept of the tasks so far.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The model that a task asks, from 0: the same for all, unless weights are
    /// set apart.
    ///
    /// # Errors
    /// When the result isn't valid.
    pub fn model_of(&self, task: usize) -> Result<Model, TrainError> {
        match &self.kept.owners {
            Some(owners) => owners.model(&self.ready, u8::try_from(task + 1).unwrap_or(u8::MAX)),
            None => Ok(self.ready.clone()),
        }
    }

    /// How the model does on examples of tasks, whose places, from 0, are given
    /// with them.
    ///
    /// # Errors
    /// When the data doesn't fit, or the engine fails.
    pub fn test<'d>(&self, sets: impl IntoIterator<Item = (usize, &'d Dataset)>) -> Result<Tested, TrainError> {
        let recipe = self.job.recipe(1);
        let mut shared = None;
        let mut scores = Vec::new();
        for (task, data) in sets {
            let mut own = match shared.take() {
                Some(trainer) if self.kept.owners.is_none() => trainer,
                _ => Trainer::new(&self.engine, self.model_of(task)?, &recipe, &self.load)?,
            };
            own.check(data)?;
            scores.push(own.evaluate(data, &self.batch)?);
            shared = Some(own);
        }
        Ok(scores)
    }

    /// Learns a task. `None` when `stop` was pulled before the end: the model
    /// and what is kept are then as they were.
    ///
    /// # Errors
    /// When the data doesn't fit, numbers stop being finite, or the engine fails.
    pub fn learn(
        &mut self,
        task: &Dataset,
        stop: &Stop,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Option<Report>, TrainError> {
        match self.learned(task, stop, tell) {
            Err(_) if stop.is_pulled() => Ok(None),
            done => done,
        }
    }

    fn learned(
        &mut self,
        task: &Dataset,
        stop: &Stop,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Option<Report>, TrainError> {
        let mut kept = self.kept.clone();
        let anew = self.settings.replay.as_ref().is_some_and(|replay| replay.pick == Pick::Gdumb);
        if anew {
            let model = self.model.clone();
            self.remember(&mut kept, &model, task)?;
        }
        let (lesson, loss) = self.lesson(&kept, task, anew)?;
        let share = if anew { 0.0 } else { self.share(&kept, lesson.old) };
        let plan = Plan::new(&self.batch, lesson.new, lesson.old, share);
        let epochs = match self.settings.replay.as_ref().filter(|_| anew).and_then(|replay| replay.epochs) {
            Some(epochs) => epochs,
            None => self.job.epochs,
        };
        let recipe = self.recipe(&kept, loss, plan.per_epoch, epochs)?;
        let begun = if anew { init::fresh(&self.model, self.job.seed)? } else { self.model.clone() };
        let mut trainer = Trainer::new(&self.engine, begun, &recipe, &self.load)?;
        trainer.check(&lesson.all)?;
        trainer.heed(stop.clone(), None);
        let steering = recipe.steering.unwrap_or_default();
        if steering.anchored {
            let held = self.held(&kept);
            trainer.set_anchors(&held.stiffness, &held.anchor)?;
        }
        if let Some(owners) = &kept.owners {
            trainer.set_masks(&owners.mask(0))?;
        }
        let (start, blank) = (trainer.flat(Role::Parameter)?, trainer.state()?);
        let again = self.settings.isolation.map_or(0, |isolation| isolation.epochs);
        let steps = (epochs + again) * plan.per_epoch as u64;
        let mut run = Run { lesson: &lesson, plan: &plan, batch: &self.batch, stop, tell, done: 0, steps };
        let task_number = self.kept.tasks;
        let seed = |part: u64| seed_of(&[self.job.seed, ORDER, task_number, part]);
        let Some(mut loss) = run.epochs(&mut trainer, epochs, seed(0))? else { return Ok(None) };
        if let (Some(isolation), Some(owners)) = (&self.settings.isolation, &mut kept.owners) {
            let owner = owners.take(&trainer.flat(Role::Parameter)?, isolation.prune)?;
            trainer.set_state(&pruned(&trainer, &blank, owners)?)?;
            trainer.set_masks(&owners.mask(owner))?;
            if isolation.epochs > 0 {
                let Some(last) = run.epochs(&mut trainer, isolation.epochs, seed(1))? else { return Ok(None) };
                loss = last;
            }
        }
        let steps = run.done;
        let model = trainer.export()?;
        let weights = trainer.flat(Role::Parameter)?;
        if let Some(si) = &self.settings.si {
            let path = trainer.flat(Role::Path)?;
            let before = kept.si.take().unwrap_or_default();
            let mut now = Penalty { stiffness: before.stiffness.clone(), anchor: before.anchor };
            for (name, path) in &path {
                let (Some(start), Some(end)) = (start.get(name), weights.get(name)) else { continue };
                let moves: Vec<f32> = end.iter().zip(start).map(|(end, start)| end - start).collect();
                let omega = before.stiffness.get(name).map_or(&[][..], Vec::as_slice);
                now.stiffness.insert(name.clone(), importance(omega, path, &moves, si.damping));
                now.anchor.insert(name.clone(), end.clone());
            }
            kept.si = Some(now);
        }
        drop(trainer);
        if let Some(ewc) = &self.settings.ewc {
            let recipe = self.job_recipe(&kept, 1)?;
            let at =
                At { engine: &self.engine, load: &self.load, model: &model, recipe: &recipe, batch: &self.batch, stop };
            let fisher = fisher(&at, task, ewc.examples, ewc.labels, seed(2))?;
            kept.ewc = Some(kept.ewc.take().unwrap_or_default().behind(ewc, fisher, &weights));
        }
        if !anew {
            self.remember(&mut kept, &model, task)?;
        }
        if stop.is_pulled() {
            return Ok(None);
        }
        kept.tasks += 1;
        let classes = task.classes().unwrap_or_default().into_iter().map(|class| class as u32);
        kept.classes = classes.chain(kept.classes).collect::<std::collections::BTreeSet<u32>>().into_iter().collect();
        (self.model, self.ready, self.kept) = (with_weights(&self.model, &model)?, model, kept);
        let remembered = self.kept.memory.as_ref().map_or(0, Memory::len);
        Ok(Some(Report { examples: task.len(), steps, loss, remembered, bytes: self.kept.bytes() }))
    }

    /// How the job trains, with what stays frozen here.
    fn job_recipe(&self, kept: &Kept, per_epoch: usize) -> Result<Recipe, TrainError> {
        let mut recipe = self.job.recipe(per_epoch);
        recipe.freeze.extend(self.settings.frozen(&self.model)?);
        if let (Some(owners), true) = (&kept.owners, kept.tasks > 0) {
            recipe.freeze.extend(owners.of_first(&self.model, &self.job.freeze)?);
        }
        recipe.freeze.sort_unstable();
        recipe.freeze.dedup();
        Ok(recipe)
    }

    fn recipe(&self, kept: &Kept, loss: Loss, per_epoch: usize, epochs: u64) -> Result<Recipe, TrainError> {
        let job = Job { epochs, ..self.job.clone() };
        let schedule = job.schedule(per_epoch);
        let steering = Steering {
            anchored: !self.held(kept).stiffness.is_empty(),
            masked: kept.owners.is_some(),
            traced: self.settings.si.is_some(),
            ..Steering::default()
        };
        Ok(Recipe { loss, schedule, steering: Some(steering), ..self.job_recipe(kept, per_epoch)? })
    }

    /// What is held, and how strongly.
    fn held(&self, kept: &Kept) -> Penalty {
        self.settings.held(kept.ewc.as_ref(), kept.si.as_ref())
    }

    /// Share of a batch that is of earlier tasks.
    fn share(&self, kept: &Kept, old: usize) -> f64 {
        let Some(replay) = self.settings.replay.as_ref().filter(|_| old > 0) else { return 0.0 };
        let tasks = kept.tasks.max(1) as f64;
        replay.share.unwrap_or(tasks / (tasks + 1.0))
    }

    /// What is learned, and by which loss.
    fn lesson(&self, kept: &Kept, task: &Dataset, anew: bool) -> Result<(Lesson, Loss), TrainError> {
        let old = match &kept.memory {
            Some(memory) if self.settings.replay.is_some() => {
                memory.check(task)?;
                memory.dataset()?
            }
            _ => None,
        };
        if let (true, Some(old)) = (anew, &old) {
            return Ok((Lesson { all: old.clone(), new: old.len(), old: 0 }, self.job.loss.clone()));
        }
        let said = match (&self.settings.teacher, &self.teacher) {
            (Some(settings), Some(teacher)) => Some(self.taught(settings, teacher, task, old.as_ref())?),
            (Some(settings), None) => {
                let text = format!("the teacher {} isn't at hand", settings.model.display());
                return Err(TrainError::Continual(text));
            }
            (None, _) => self.said(kept, task, old.as_ref())?,
        };
        let (new, held) = (task.len(), old.as_ref().map_or(0, Dataset::len));
        let all = joined(task, old.as_ref(), said.as_ref())?;
        let loss = match said {
            Some(said) => Loss::Distil { temperature: said.temperature, weight: said.weight },
            None => self.job.loss.clone(),
        };
        Ok((Lesson { all, new, old: held }, loss))
    }

    /// What teachers say of the new examples, and of those kept; none where there
    /// is no teacher.
    fn said(&self, kept: &Kept, task: &Dataset, old: Option<&Dataset>) -> Result<Option<Teaching>, TrainError> {
        let stored = kept.memory.as_ref().filter(|m| old.is_some() && m.form.logits > 0).map(Memory::logits);
        let lwf = self.settings.lwf.filter(|_| kept.tasks > 0);
        let replay = self.settings.replay.clone().unwrap_or_default();
        let (temperature, weight) = match lwf {
            Some(lwf) => (lwf.temperature, lwf.weight),
            None if stored.is_some() => (replay.temperature, replay.weight),
            None => return Ok(None),
        };
        let recipe = self.job.recipe(1);
        let teacher = |data: &Dataset| -> Result<Vec<f32>, TrainError> {
            let mut logits = self.answers(&self.model, &recipe, data)?;
            let width = logits.len() / data.len();
            for row in logits.chunks_mut(width.max(1)) {
                let unseen = |class: usize| kept.classes.binary_search(&(class as u32)).is_err();
                row.iter_mut().enumerate().filter(|(class, _)| unseen(*class)).for_each(|(_, x)| *x = NOT_SAID);
            }
            Ok(logits)
        };
        let mut logits = Vec::new();
        if lwf.is_some() {
            logits = teacher(task)?;
        }
        match (old, stored) {
            (Some(_), Some(stored)) => {
                let width = stored.len() / old.map_or(1, Dataset::len);
                logits.resize(task.len() * width, NOT_SAID);
                logits.extend(stored);
            }
            (Some(old), None) if lwf.is_some() => logits.extend(teacher(old)?),
            _ => {}
        }
        Ok(Some(Teaching { logits, temperature, weight, labels: true }))
    }

    /// What the teacher says of the new examples, and of those kept.
    fn taught(
        &self,
        settings: &Teacher,
        teacher: &Model,
        task: &Dataset,
        old: Option<&Dataset>,
    ) -> Result<Teaching, TrainError> {
        // Whichever output is its first.
        let recipe = Recipe { output: None, ..self.job.recipe(1) };
        let mut logits = self.answers(teacher, &recipe, task)?;
        if let Some(old) = old {
            logits.extend(self.answers(teacher, &recipe, old)?);
        }
        let Teacher { temperature, weight, labels, .. } = *settings;
        Ok(Teaching { logits, temperature, weight, labels })
    }

    fn answers(&self, model: &Model, recipe: &Recipe, data: &Dataset) -> Result<Vec<f32>, TrainError> {
        let runner = Runner { engine: &self.engine, options: &self.load };
        runner.answers(model, &recipe.loss, &output(model, recipe), data, &self.batch)
    }

    /// Offers a task's examples to the memory.
    fn remember(&self, kept: &mut Kept, model: &Model, task: &Dataset) -> Result<(), TrainError> {
        let Some(replay) = &self.settings.replay else { return Ok(()) };
        let recipe = self.job.recipe(1);
        let logits = if replay.logits { self.answers(model, &recipe, task)? } else { Vec::new() };
        let memory = match kept.memory.take() {
            Some(memory) => memory,
            None => Memory::new(replay, self.job.seed, task, logits.len() / task.len())?,
        };
        let mut features = Vec::new();
        if replay.pick == Pick::Herding {
            let runner = Runner { engine: &self.engine, options: &self.load };
            let layers = step::layers(model)?;
            let tensor = layers.last().map(|layer| layer.input.clone()).unwrap_or_default();
            let sets = memory.dataset()?;
            for data in sets.iter().chain([task]) {
                features.extend(runner.values_of(model, &tensor, data, &self.batch)?);
            }
        }
        let mut memory = memory;
        memory.add(task, Said { logits: &logits, features: &features })?;
        kept.memory = Some(memory);
        Ok(())
    }
}

/// A model with the constants that another one has under the same names.
fn with_weights(model: &Model, of: &Model) -> Result<Model, TrainError> {
    let weights: HashMap<&str, &TensorProto> = of.graph().initializer.iter().map(|t| (t.name(), t)).collect();
    let mut proto = model.proto().clone();
    if let Some(graph) = proto.graph.as_mut() {
        for tensor in &mut graph.initializer {
            if let Some(now) = weights.get(tensor.name()) {
                *tensor = (*now).clone();
            }
        }
    }
    Ok(Model::from_proto(proto)?)
}

/// What teachers say, row after row, and how it counts.
struct Teaching {
    logits: Vec<f32>,
    temperature: f64,
    weight: f64,
    /// Whether the new examples' classes count.
    labels: bool,
}

/// New examples, then old ones, with what is said of them.
fn joined(new: &Dataset, old: Option<&Dataset>, said: Option<&Teaching>) -> Result<Dataset, TrainError> {
    if old.is_none() && said.is_none() {
        return Ok(new.clone());
    }
    let rows = |data: &Dataset| (0..data.len()).collect::<Vec<usize>>();
    let sets: Vec<&Dataset> = [new].into_iter().chain(old).collect();
    let mut bytes = Vec::new();
    for set in &sets {
        bytes.extend_from_slice(&set.features(&rows(set))?.to_bytes().unwrap_or_default());
    }
    let total = sets.iter().map(|set| set.len()).sum::<usize>();
    let features = Tensor::from_bytes(new.dtype(), [&[total], new.example_shape()].concat(), &bytes)?;
    let classes: Option<Vec<usize>> =
        sets.iter().map(|set| set.classes()).collect::<Option<Vec<_>>>().map(|c| c.concat());
    let targets = match (classes, said) {
        (Some(classes), Some(said)) => {
            let width = said.logits.len() / total;
            let rows = classes.iter().zip(said.logits.chunks(width.max(1))).enumerate();
            let values = rows.flat_map(|(at, (class, logits))| {
                let class = if said.labels || at >= new.len() { *class as f32 } else { LEFT_OUT as f32 };
                std::iter::once(class).chain(logits.iter().copied())
            });
            Targets::Values(Tensor::new([total, 1 + width], Elements::F32(values.collect()))?)
        }
        (Some(classes), None) => {
            let count = new.class_count().unwrap_or_default();
            Targets::Classes { classes: classes.into_iter().map(|c| c as u32).collect(), count, names: Vec::new() }
        }
        (None, _) => {
            let mut values = Vec::new();
            let mut shape = Vec::new();
            for set in &sets {
                let targets = set.targets(&rows(set))?;
                shape = targets.shape()[1..].to_vec();
                values.extend_from_slice(targets.as_f32().unwrap_or_default());
            }
            Targets::Values(Tensor::new([&[total], &shape[..]].concat(), Elements::F32(values))?)
        }
    };
    Ok(Dataset::new(new.name(), features, targets)?)
}

/// A state that begins anew, with a trainer's weights; those that nobody has are
/// zero.
fn pruned(trainer: &Trainer, blank: &[Tensor], owners: &Owners) -> Result<Vec<Tensor>, TrainError> {
    let mut state = blank.to_vec();
    for ((slot, now), new) in trainer.spec().state.iter().zip(trainer.state()?).zip(&mut state) {
        if !matches!(slot.role, Role::Parameter | Role::Statistic) {
            continue;
        }
        *new = now;
        let Some(of) = owners.0.get(&slot.input) else { continue };
        match new.elements_mut() {
            Elements::F32(v) => v.iter_mut().zip(of).filter(|(_, of)| **of == 0).for_each(|(x, _)| *x = 0.0),
            Elements::F64(v) => v.iter_mut().zip(of).filter(|(_, of)| **of == 0).for_each(|(x, _)| *x = 0.0),
            _ => {}
        }
    }
    Ok(state)
}

/// How batches are put together of new and old examples.
struct Plan {
    new: usize,
    old: usize,
    size: usize,
    /// Of each batch.
    fresh: usize,
    shuffle: bool,
    per_epoch: usize,
}

impl Plan {
    fn new(batch: &BatchOptions, new: usize, old: usize, share: f64) -> Self {
        let size = batch.size;
        let most = if old > 0 { size.saturating_sub(1).max(1) } else { size };
        let fresh = ((size as f64 * (1.0 - share)).round() as usize).clamp(1, most);
        let whole = match batch.last {
            Last::Drop => (new / fresh).max(1),
            Last::Keep => new.div_ceil(fresh),
        };
        Self { new, old, size, fresh, shuffle: batch.shuffle, per_epoch: whole }
    }

    /// An epoch's examples, batch after batch: every new one once, the old ones in
    /// turns.
    fn order(&self, seed: u64) -> Vec<usize> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut new: Vec<usize> = (0..self.new).collect();
        if self.shuffle {
            rng.shuffle(&mut new);
        }
        let mut old: Vec<usize> = Vec::new();
        let mut order = Vec::with_capacity(self.per_epoch * self.size);
        for fresh in new.chunks(self.fresh).take(self.per_epoch) {
            order.extend_from_slice(fresh);
            if self.old > 0 {
                for _ in 0..self.size - self.fresh {
                    if old.is_empty() {
                        old.extend(self.new..self.new + self.old);
                        rng.shuffle(&mut old);
                    }
                    order.extend(old.pop());
                }
            }
        }
        order
    }
}

/// Steps of a task.
struct Run<'a> {
    lesson: &'a Lesson,
    plan: &'a Plan,
    batch: &'a BatchOptions,
    stop: &'a Stop,
    tell: &'a mut dyn FnMut(Progress),
    done: u64,
    steps: u64,
}

impl Run<'_> {
    /// The mean loss of the last epoch; `None` when it was stopped.
    fn epochs(&mut self, trainer: &mut Trainer, epochs: u64, seed: u64) -> Result<Option<f64>, TrainError> {
        let mut mean = 0.0;
        for epoch in 0..epochs {
            let order = self.plan.order(seed_of(&[seed, epoch]));
            let options = BatchOptions { shuffle: false, seed: seed_of(&[seed, epoch, 1]), ..self.batch.clone() };
            let mut batches = Batches::start(&self.lesson.all.subset(&order)?, &options, Position::default(), 1)?;
            let (mut loss, mut counted) = (0.0, 0u64);
            while let Some(batch) = batches.next() {
                if self.stop.is_pulled() {
                    return Ok(None);
                }
                let step = trainer.step(&batch, Position { epoch, batch: batch.position.batch })?;
                loss += step.loss * step.counted as f64;
                counted += step.counted;
                (self.tell)(Progress { step: self.done, steps: self.steps, loss: step.loss });
                self.done += 1;
                batches.recycle(batch);
            }
            mean = loss / counted.max(1) as f64;
        }
        Ok(Some(mean))
    }
}

/// The mean accuracy over tasks; none where targets are numbers.
#[must_use]
pub fn mean_accuracy(scores: &[Scores]) -> Option<f64> {
    let all: Option<Vec<f64>> = scores.iter().map(|scores| scores.accuracy).collect();
    all.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<f64>() / all.len() as f64)
}

/// How much was forgotten: the mean, over all tasks but the last, of the best
/// accuracy on a task behind it or a later one, less the last (Chaudhry et al.,
/// 2018). `tests` are the scores behind each task, on all so far.
#[must_use]
pub fn forgetting(tests: &[Tested]) -> Option<f64> {
    let last = tests.last()?;
    let earlier = last.len().checked_sub(1).filter(|n| *n > 0)?;
    let mut sum = 0.0;
    for (task, now) in last.iter().enumerate().take(earlier) {
        let of = tests.iter().filter_map(|scores| scores.get(task)).map(|scores| scores.accuracy);
        let all: Vec<f64> = of.collect::<Option<_>>()?;
        let best = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        sum += best - now.accuracy?;
    }
    Some(sum / earlier as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(new: usize, old: usize, share: f64, last: Last) -> Plan {
        Plan::new(&BatchOptions { size: 4, last, ..BatchOptions::default() }, new, old, share)
    }

    #[test]
    fn every_new_example_comes_once_and_old_ones_in_turns() {
        let plan = plan(7, 3, 0.5, Last::Keep);
        assert_eq!((plan.per_epoch, plan.fresh), (4, 2));
        let order = plan.order(1);
        let count = |at: usize| order.iter().filter(|&&x| x == at).count();
        assert!((0..7).all(|at| count(at) == 1), "{order:?}");
        assert_eq!(order.len(), 7 + 4 * 2);
        assert!((7..10).all(|at| (2..=3).contains(&count(at))), "{order:?}");
        // Each batch has both.
        for batch in order.chunks(4) {
            assert!(batch.iter().any(|&at| at < 7) && batch.iter().any(|&at| at >= 7), "{order:?}");
        }
    }

    #[test]
    fn whole_batches_where_others_cannot_be_taken() {
        assert_eq!(plan(7, 3, 0.5, Last::Drop).order(1).len(), 3 * 4);
        assert_eq!(plan(7, 0, 0.0, Last::Keep).order(1).len(), 7);
        // There is always room for both.
        assert_eq!(plan(2, 3, 0.99, Last::Keep).order(1).len(), 8);
        assert_eq!(plan(3, 3, 0.01, Last::Keep).order(1).len(), 4);
    }

    #[test]
    fn forgetting_is_the_best_less_the_last() {
        let scores = |all: &[f64]| -> Tested {
            all.iter().map(|&accuracy| Scores { loss: 0.0, accuracy: Some(accuracy) }).collect()
        };
        let tests = [scores(&[0.9]), scores(&[0.5, 0.8]), scores(&[0.6, 0.2, 0.7])];
        assert!((forgetting(&tests).unwrap() - (0.3 + 0.6) / 2.0).abs() < 1e-12);
        assert_eq!(forgetting(&tests[..1]), None);
        assert_eq!(forgetting(&[]), None);
        assert!((mean_accuracy(&tests[2]).unwrap() - 0.5).abs() < 1e-12);
    }
}
