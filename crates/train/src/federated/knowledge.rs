//! Knowledge that travels as answers: what models say of public examples, and
//! how others learn it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions};
use tierline_federate::strategy::Distillation;
use tierline_federate::{Channel, Contribution, ExactSum, Vectors};
use tierline_graph::step::{Loss, Recipe, Role, Spec};
use tierline_graph::{Elements, Model, Tensor};

use super::LocalTrainer;
use super::parameter_layout::{ParameterLayout, recipe};
use super::transfer::Server;
use crate::data::{Dataset, Targets, seed_of};
use crate::error::TrainError;
use crate::job::Job;
use crate::trainer::Trainer;

/// Keeps the draw of public examples apart from others.
const PUBLIC: u64 = 0x7075_626c_6963;

/// The public examples that a job uses: the same on every node that has the
/// data set.
///
/// # Errors
/// When there are too few.
pub fn public(whole: &Dataset, distil: &Distillation, job: &Job) -> Result<Dataset, TrainError> {
    if whole.len() < distil.examples {
        let reason = format!("there are {}, and the job uses {}; lower distil.examples", whole.len(), distil.examples);
        return Err(TrainError::Public { name: whole.name().to_owned(), reason });
    }
    let mut order: Vec<usize> = (0..whole.len()).collect();
    fastrand::Rng::with_seed(seed_of(&[job.seed, PUBLIC])).shuffle(&mut order);
    // The class of a public example is nobody's business: its place is kept.
    Ok(whole.subset(&order[..distil.examples])?)
}

/// Teaches a model what others say of public examples.
pub(super) struct Pupil {
    pub(super) trainer: Trainer,
    /// Public examples, with whatever labels they came with.
    pub(super) examples: Dataset,
    features: Tensor,
    /// Of a step that remembers nothing yet.
    blank: Vec<Tensor>,
}

impl Pupil {
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        model: Model,
        job: &Job,
        distil: &Distillation,
        examples: Dataset,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let recipe = Recipe { loss: Loss::Kl { temperature: distil.temperature }, ..recipe(job)? };
        let trainer = Trainer::new(engine, model, &recipe, options)?;
        let rows: Vec<usize> = (0..examples.len()).collect();
        let features = examples.features(&rows)?;
        let blank = trainer.state()?;
        Ok(Self { trainer, examples, features, blank })
    }

    /// The public examples, and what is said of them as their targets.
    pub(super) fn lesson(&self, answers: &[f32]) -> Result<Dataset, TrainError> {
        let classes = answers.len() / self.examples.len().max(1);
        let values = Tensor::new([self.examples.len(), classes], Elements::F32(answers.to_vec()))?;
        Ok(Dataset::new(self.examples.name(), self.features.clone(), Targets::Values(values))?)
    }

    /// Begins with the weights and statistics of a state of another step, and
    /// an optimiser that remembers nothing: what is learned depends on nothing
    /// else.
    pub(super) fn take(&mut self, spec: &Spec, state: &[Tensor]) -> Result<(), TrainError> {
        let moved = moved(spec, state, self.trainer.spec(), self.blank.clone());
        self.trainer.set_state(&moved)
    }

    /// Gives what it learned to a state of another step.
    pub(super) fn give(&self, spec: &Spec, state: Vec<Tensor>) -> Result<Vec<Tensor>, TrainError> {
        Ok(moved(self.trainer.spec(), &self.trainer.state()?, spec, state))
    }
}

/// A state with the weights and statistics of another one in the place of its
/// own.
pub(super) fn moved(from: &Spec, state: &[Tensor], to: &Spec, mut into: Vec<Tensor>) -> Vec<Tensor> {
    let known: HashMap<&str, &Tensor> = from.state.iter().map(|slot| slot.input.as_str()).zip(state).collect();
    for (slot, tensor) in to.state.iter().zip(&mut into) {
        if let (Role::Parameter | Role::Statistic, Some(found)) = (slot.role, known.get(slot.input.as_str())) {
            tensor.clone_from(found);
        }
    }
    into
}

/// The cloud's side of models that teach each other: with FedDF the mean of
/// members' models learns what those say of public examples, with FedMD the
/// job's own model learns at the end what all say, and with FedGKT the cloud's
/// part of the model learns of features.
pub struct Tutor(By);

enum By {
    Public(Box<Public>),
    Features(Box<Server>),
}

/// What is learned of public examples.
struct Public {
    place: LocalTrainer,
    /// Whether members' models are asked, rather than the members themselves.
    asks: bool,
    /// What was said since the last model; doesn't depend on who came first.
    said: ExactSum,
    teachers: u32,
}

impl Tutor {
    /// For a job in which somebody learns of public examples; `whole` is the
    /// data set of which they are drawn.
    ///
    /// # Errors
    /// When the job has none or they are too few, or the model doesn't say
    /// anything of classes.
    pub fn new(
        engine: &Arc<dyn Engine>,
        model: &Model,
        job: &Job,
        whole: &Dataset,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let cloud = job.federation.as_ref().map(|federation| federation.cloud.strategy.behaviour());
        let asks = cloud.is_some_and(|behaviour| behaviour.server_distils().is_some());
        let place = LocalTrainer::new(engine, model.clone(), job, options)?.with_public(engine, whole, options)?;
        let length = place.lesson_length()?;
        Ok(Self(By::Public(Box::new(Public { place, asks, said: ExactSum::new(length), teachers: 0 }))))
    }

    /// For a job in which ends and the cloud each train a part of the model;
    /// none for others. `cloud` is of the cloud's part.
    ///
    /// # Errors
    /// When it can't be trained.
    pub fn transfer(
        engine: &Arc<dyn Engine>,
        cloud: &ParameterLayout,
        job: &Job,
        options: &LoadOptions,
    ) -> Result<Option<Self>, TrainError> {
        let Some(settings) = job.federation.as_ref().and_then(|f| f.transfer()) else { return Ok(None) };
        let server = Server::new(engine, cloud, job, settings, options)?;
        Ok(Some(Self(By::Features(Box::new(server)))))
    }

    /// Hears a member: asks its model (the one that it started from, and its
    /// change), or keeps what it sent of its examples.
    ///
    /// # Errors
    /// When the change is of another model, or the engine fails.
    pub fn hear(&mut self, member: &str, start: &Vectors, contribution: &Contribution) -> Result<(), TrainError> {
        match &mut self.0 {
            By::Public(public) => public.hear(start, contribution),
            By::Features(server) => {
                server.hear(member, contribution);
                Ok(())
            }
        }
    }

    /// The model, once it has learned what was heard since the last time.
    ///
    /// # Errors
    /// When numbers stop being finite, or the engine fails.
    pub fn teach(&mut self, model: &Vectors, round: u64) -> Result<Vectors, TrainError> {
        match &mut self.0 {
            By::Public(public) => public.teach(model, round),
            By::Features(server) => server.teach(model, round),
        }
    }

    /// What it says to each of those that it has just heard, where that differs
    /// from member to member.
    #[must_use]
    pub fn said(&self) -> Option<&BTreeMap<String, Vectors>> {
        match &self.0 {
            By::Public(_) => None,
            By::Features(server) => Some(&server.said),
        }
    }

    /// The model that the job leads to.
    ///
    /// # Errors
    /// As [`Tutor::teach`].
    pub fn conclude(&mut self, last: &Vectors) -> Result<Model, TrainError> {
        match &mut self.0 {
            By::Public(public) => public.conclude(last),
            By::Features(server) => server.conclude(last),
        }
    }
}

impl Public {
    /// A model that says something that isn't finite is no teacher.
    fn hear(&mut self, start: &Vectors, contribution: &Contribution) -> Result<(), TrainError> {
        if !self.asks {
            return Ok(());
        }
        let mut model = start.clone();
        if let (Some(own), Some(change)) = (model.get_mut(&Channel::Model), contribution.vectors.get(&Channel::Model)) {
            own.iter_mut().zip(change).for_each(|(x, d)| *x += d);
        }
        if let Some(measured) = contribution.vectors.get(&Channel::Statistics) {
            model.insert(Channel::Statistics, measured.clone());
        }
        let answers = self.place.answers(&model)?;
        if self.said.add(1.0, &answers).is_ok() {
            self.teachers += 1;
        }
        Ok(())
    }

    fn teach(&mut self, model: &Vectors, round: u64) -> Result<Vectors, TrainError> {
        let teachers = std::mem::take(&mut self.teachers);
        let answers = (teachers > 0).then(|| self.said.over(f64::from(teachers)));
        self.said.clear();
        let Some(answers) = answers else { return Ok(model.clone()) };
        match self.place.taught(model, &answers, round) {
            // One member's large numbers fail nobody's job: the mean goes on as
            // it is.
            Err(TrainError::NotFinite { .. }) => Ok(model.clone()),
            taught => taught,
        }
    }

    fn conclude(&mut self, last: &Vectors) -> Result<Model, TrainError> {
        if self.asks { self.place.parameter_layout().export(last) } else { self.place.student(last) }
    }
}
