//! A member's work for a federation: from the model it gets to what it sends
//! back.
//!
//! Files, links and rounds are elsewhere; what is here depends on nothing but
//! the job, the data, and the names of member and round, so that a task that
//! is done again gives the same update. Start at [`Workplace`]; [`Blueprint`] is
//! for those who only put updates together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tierline_engine::{Engine, LoadOptions};
use tierline_federate::strategy::Drift;
use tierline_federate::{Channel, Contribution, Federation, Layout, Part, Report, Vectors};
use tierline_graph::step::{self, Optimizer, Recipe, Role, Schedule, Spec, Steering};
use tierline_graph::{Elements, Model, Tensor};

use crate::data::{BatchOptions, Batches, Dataset, Position, seed_of};
use crate::error::TrainError;
use crate::job::Job;
use crate::trainer::{Scores, Trainer};

pub use tierline_federate::sender::Kept;

/// Decides what the stages of an update draw.
#[must_use]
pub fn seed_of_update(seed: u64, member: &str, task: u64) -> u64 {
    let mut words = vec![seed, UPDATE, task];
    words.extend(member.bytes().map(u64::from));
    seed_of(&words)
}

/// Keeps the seeds of updates apart from those of batches.
const UPDATE: u64 = 0x7570_6461_7465;

/// Of SCAFFOLD: how this member's gradients differ.
const CONTROL: &str = "control";

/// A task, as the worker sees it.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Whose it is.
    pub member: &'a str,
    /// From 0, over the whole job.
    pub round: u64,
    /// The model to start from.
    pub start: &'a Vectors,
}

/// What a job shares of its model, without an engine: enough to put updates
/// together and to write the result.
pub struct Blueprint {
    model: Model,
    spec: Spec,
    /// The state of a model that has not been trained yet.
    blank: Vec<Tensor>,
    layout: Layout,
    drift: Drift,
}

/// A model's training step, ready for any member's tasks.
pub struct Workplace {
    blueprint: Blueprint,
    trainer: Trainer,
    job: Job,
    federation: Federation,
}

impl Blueprint {
    /// Looks at a model, its constants folded for training.
    ///
    /// # Errors
    /// When it can't be trained, or not by a federation.
    pub fn new(model: Model, job: &Job) -> Result<Self, TrainError> {
        let step = step::trainable(&model, &recipe(job)?)?;
        let (_, blank) = step.divided()?;
        Self::of(model, step.spec, blank, job)
    }

    fn of(model: Model, spec: Spec, blank: Vec<Tensor>, job: &Job) -> Result<Self, TrainError> {
        let parts = |role: Role| {
            let slots = spec.state.iter().zip(&blank).filter(move |(slot, _)| slot.role == role);
            slots
                .map(|(slot, tensor)| match tensor.as_f32() {
                    Some(_) => Ok(Part { name: slot.input.clone(), shape: tensor.shape().to_vec() }),
                    None => Err(TrainError::Precision { name: slot.input.clone(), dtype: tensor.dtype() }),
                })
                .collect::<Result<Vec<Part>, TrainError>>()
        };
        let layout = Layout { parameters: parts(Role::Parameter)?, statistics: parts(Role::Statistic)? };
        Ok(Self { model, spec, blank, layout, drift: drift(job) })
    }

    /// What is learned and shared.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The model as its file or its seed has it: version 0.
    #[must_use]
    pub fn initial(&self) -> Vectors {
        let mut vectors = self.vectors(&self.blank);
        if self.drift.control {
            vectors.insert(Channel::Control, vec![0.0; self.layout.len(Channel::Control)]);
        }
        vectors
    }

    /// A model for use.
    ///
    /// # Errors
    /// When the vectors are of another model.
    pub fn export(&self, model: &Vectors) -> Result<Model, TrainError> {
        Ok(self.spec.export(&self.model, &self.state(model)?)?)
    }

    /// A state that begins with this model.
    fn state(&self, model: &Vectors) -> Result<Vec<Tensor>, TrainError> {
        let mut state = self.blank.clone();
        for (channel, role) in [(Channel::Model, Role::Parameter), (Channel::Statistics, Role::Statistic)] {
            let flat = vector(model, channel);
            let expected = self.layout.len(channel);
            if flat.len() != expected {
                return Err(TrainError::Vector { what: channel.name(), expected, given: flat.len() });
            }
            let mut rest = flat;
            let slots = self.spec.state.iter().zip(&mut state).filter(|(slot, _)| slot.role == role);
            for (_, tensor) in slots {
                let (own, behind) = rest.split_at(tensor.len());
                if let Elements::F32(values) = tensor.elements_mut() {
                    values.copy_from_slice(own);
                }
                rest = behind;
            }
        }
        Ok(state)
    }

    /// Flat vectors of a state.
    fn vectors(&self, state: &[Tensor]) -> Vectors {
        let flat = |role: Role| {
            let slots = self.spec.state.iter().zip(state).filter(|(slot, _)| slot.role == role);
            slots.flat_map(|(_, tensor)| tensor.as_f32().unwrap_or_default()).copied().collect()
        };
        Vectors::from([(Channel::Model, flat(Role::Parameter)), (Channel::Statistics, flat(Role::Statistic))])
    }
}

/// What ends do besides plain training.
fn drift(job: &Job) -> Drift {
    job.federation.as_ref().map_or_else(Drift::default, |f| f.of_ends().strategy.behaviour().drift())
}

/// What members' step graphs are made by.
fn recipe(job: &Job) -> Result<Recipe, TrainError> {
    job.federation.as_ref().map_or(Ok(()), Federation::check)?;
    let drift = drift(job);
    let steering = Steering { pull: drift.pull, corrected: drift.pull != 0.0 || drift.control };
    // The rate of a round comes from outside: each task begins at step 0.
    Ok(Recipe { schedule: Schedule::constant(1.0), steering: Some(steering), ..job.recipe(1) })
}

impl Workplace {
    /// Prepares a model, its constants folded for training, for members of
    /// the job.
    ///
    /// # Errors
    /// When the model can't be trained so.
    pub fn new(engine: &Arc<dyn Engine>, model: Model, job: &Job, options: &LoadOptions) -> Result<Self, TrainError> {
        let trainer = Trainer::new(engine, model.clone(), &recipe(job)?, options)?;
        let blueprint = Blueprint::of(model, trainer.spec().clone(), trainer.state()?, job)?;
        let federation = job.federation.clone().unwrap_or_default();
        Ok(Self { blueprint, trainer, job: job.clone(), federation })
    }

    /// What the job shares of the model.
    #[must_use]
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Refuses a data set that the model can't learn from.
    ///
    /// # Errors
    /// Naming what doesn't fit.
    pub fn check(&self, dataset: &Dataset) -> Result<(), TrainError> {
        self.trainer.check(dataset)
    }

    /// Does a task: some epochs over the member's examples, from the model it
    /// got. What the member keeps is changed as if the update were counted.
    ///
    /// `None` when `stop` was set before the end.
    ///
    /// # Errors
    /// When the data doesn't fit, numbers stop being finite, or the engine
    /// fails.
    pub fn work(
        &mut self,
        task: Task<'_>,
        data: &Dataset,
        kept: &mut Kept,
        stop: &AtomicBool,
    ) -> Result<Option<Contribution>, TrainError> {
        self.trainer.check(data)?;
        self.load(task.start)?;
        let rate = self.rate(task.round);
        self.trainer.set_pace(rate);
        let start = vector(task.start, Channel::Model);
        self.correct(task.start, kept)?;

        let options = BatchOptions { seed: self.seed(task), ..self.options()? };
        let mut batches = Batches::start(data, &options, Position::default(), self.job.epochs)?;
        let (mut loss, mut correct, mut examples, mut steps) = (0f64, None, 0u64, 0u64);
        while let Some(batch) = batches.next() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let step = self.trainer.step(&batch, batch.position)?;
            loss += step.loss * batch.examples as f64;
            correct = step.correct.map(|n| n + correct.unwrap_or(0));
            examples += batch.examples as u64;
            steps += 1;
            batches.recycle(batch);
        }
        let mut vectors = self.blueprint.vectors(&self.trainer.state()?);
        let effective_steps = effective(steps, &self.job.optimizer);
        subtract(vectors.entry(Channel::Statistics).or_default(), vector(task.start, Channel::Statistics));
        let change = vectors.entry(Channel::Model).or_default();
        subtract(change, start);
        if self.blueprint.drift.control {
            let control = controlled(change, vector(task.start, Channel::Control), rate * effective_steps, kept);
            vectors.insert(Channel::Control, control);
        }
        let seen = examples.max(1) as f64;
        let report = Report {
            examples: data.len() as u64,
            steps,
            effective_steps,
            loss: loss / seen,
            accuracy: correct.map(|n| n as f64 / seen),
            ..Report::default()
        };
        Ok(Some(Contribution { vectors, report }))
    }

    /// How a model does on a data set.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn evaluate(&mut self, model: &Vectors, data: &Dataset) -> Result<Scores, TrainError> {
        self.load(model)?;
        let options = self.options()?;
        self.trainer.evaluate(data, &options)
    }

    /// The learning rate of a round.
    #[must_use]
    pub fn rate(&self, round: u64) -> f64 {
        // In thousandths of an epoch: schedules count whole steps.
        const PER_EPOCH: usize = 1_000;
        let rounds = self.federation.rounds_of_ends();
        let whole = Job { epochs: self.job.epochs.saturating_mul(rounds), ..self.job.clone() };
        let at = round.saturating_mul(self.job.epochs).saturating_mul(PER_EPOCH as u64);
        whole.schedule(PER_EPOCH).at(at)
    }

    fn options(&self) -> Result<BatchOptions, TrainError> {
        let normalize = self.job.stated_normalization()?;
        Ok(self.job.options(normalize)?.batch)
    }

    fn seed(&self, task: Task<'_>) -> u64 {
        let mut words = vec![self.job.seed, task.round];
        words.extend(task.member.bytes().map(u64::from));
        seed_of(&words)
    }

    /// Puts a model into the trainer, and everything else at its start.
    fn load(&mut self, model: &Vectors) -> Result<(), TrainError> {
        let state = self.blueprint.state(model)?;
        self.trainer.set_state(&state)
    }

    /// Says what is added to gradients during a task.
    fn correct(&mut self, start: &Vectors, kept: &Kept) -> Result<(), TrainError> {
        let Drift { pull, control } = self.blueprint.drift;
        if pull == 0.0 && !control {
            return Ok(());
        }
        let mut corrections: Vec<f32> = vector(start, Channel::Model).iter().map(|x| -(pull as f32) * x).collect();
        if control {
            corrections.iter_mut().zip(vector(start, Channel::Control)).for_each(|(b, c)| *b += c);
            corrections.iter_mut().zip(kept.get(CONTROL).into_iter().flatten()).for_each(|(b, own)| *b -= own);
        }
        self.trainer.set_corrections(&corrections)
    }
}

/// SCAFFOLD's second option: a member's control variate becomes its mean
/// gradient over the task, `c_i - c + (x - y) / (K eta)`; gives the change.
fn controlled(change: &[f32], control: &[f32], path: f64, kept: &mut Kept) -> Vec<f32> {
    let moved = |(d, c): (&f32, &f32)| (-f64::from(*d) / path - f64::from(*c)) as f32;
    let change: Vec<f32> = change.iter().zip(control).map(moved).collect();
    let own = kept.entry(CONTROL.to_owned()).or_default();
    own.resize(change.len(), 0.0);
    own.iter_mut().zip(&change).for_each(|(own, d)| *own += d);
    change
}

fn vector(vectors: &Vectors, channel: Channel) -> &[f32] {
    vectors.get(&channel).map_or(&[], Vec::as_slice)
}

fn subtract(from: &mut [f32], what: &[f32]) {
    from.iter_mut().zip(what).for_each(|(x, y)| *x -= y);
}

/// What steps amount to where momentum carries each on into those behind it
/// (Wang et al., 2020, for momentum that starts at zero).
fn effective(steps: u64, optimizer: &Optimizer) -> f64 {
    let steps = steps as f64;
    match optimizer {
        Optimizer::Sgd { momentum, .. } if *momentum > 0.0 => {
            (steps - momentum * (1.0 - momentum.powf(steps)) / (1.0 - momentum)) / (1.0 - momentum)
        }
        _ => steps,
    }
}
