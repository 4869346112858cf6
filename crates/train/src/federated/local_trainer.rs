//! Where a member's tasks are done.

use std::sync::Arc;
use std::time::Duration;

use tierline_engine::{Engine, EngineError, LoadOptions, Stop};
use tierline_federate::{Channel, Contribution, Federation, HeldOut, Personal, Report, Vectors};
use tierline_graph::step::{Optimizer, Recipe};
use tierline_graph::{Model, Tensor};

use super::knowledge::{Pupil, public};
use super::local::continual::Taught;
use super::parameter_layout::{NO_CLASSES, ParameterLayout, recipe, vector};
use super::transfer::{Divided, Small, part_recipe};
use super::{LocalTask, MemberState, Share, local};
use crate::data::{BatchOptions, Batches, Dataset, Position, seed_of};
use crate::error::TrainError;
use crate::job::Job;
use crate::trainer::{Flat, Scores, Trainer};

/// Keeps the order of examples for an end's own model apart from that for the
/// shared one.
const OWN: u64 = 0x6f77_6e00;

/// And those of what is learned from public examples.
pub(super) const DIGEST: u64 = 0x6469_6765;
const STUDENT: u64 = 0x7374_7564;

/// A model's training step, ready for any member's tasks.
pub struct LocalTrainer {
    pub(super) parameter_layout: ParameterLayout,
    pub(super) trainer: Trainer,
    /// Where models learn from each other's answers.
    pupil: Option<Pupil>,
    /// Where ends train a part of the model.
    pub(super) small: Option<Small>,
    /// Where members learn one task after the other by what they said before.
    pub(super) taught: Option<Taught>,
    pub(super) job: Job,
    pub(super) federation: Federation,
}

/// What some epochs gave.
pub(super) struct Learned {
    /// Averaged over the examples, each before its step.
    loss: f64,
    accuracy: Option<f64>,
    steps: u64,
}

impl Learned {
    /// Of no example.
    pub(super) fn nothing() -> Self {
        Self { loss: 0.0, accuracy: None, steps: 0 }
    }
}

impl LocalTrainer {
    /// Prepares a model, its constants folded for training, for members of
    /// the job.
    ///
    /// # Errors
    /// When the model can't be trained so.
    pub fn new(engine: &Arc<dyn Engine>, model: Model, job: &Job, options: &LoadOptions) -> Result<Self, TrainError> {
        let federation = job.federation.clone().unwrap_or_default();
        let continual = job.continual.as_ref();
        continual.map_or(Ok(()), |settings| local::continual::check(settings, &federation))?;
        let transfer = federation.transfer();
        let divided = transfer.map(|settings| Divided::new(&model, settings, job)).transpose()?;
        let (own, recipe) = match &divided {
            Some(divided) => (divided.small.clone(), part_recipe(job)?),
            None => (model.clone(), recipe(job)?),
        };
        let trainer = Trainer::new(engine, own.clone(), &recipe, options)?;
        let taught = match continual.and_then(|settings| settings.lwf.as_ref()) {
            Some(lwf) if trainer.spec().classes.is_some() => {
                let recipe = Recipe { loss: Taught::loss(lwf), ..recipe.clone() };
                Some(Taught::new(Trainer::new(engine, own.clone(), &recipe, options)?)?)
            }
            Some(_) => return Err(TrainError::Continual("lwf learns what a model says of classes".into())),
            None => None,
        };
        let small = match transfer {
            Some(settings) => Some(Small::new(engine, model, own.clone(), job, settings, options)?),
            None => None,
        };
        let parameter_layout =
            ParameterLayout::of(own, trainer.spec().clone(), trainer.state()?, job, small.is_some())?;
        Ok(Self { parameter_layout, trainer, pupil: None, small, taught, job: job.clone(), federation })
    }

    /// With the data set of which the job's public examples are drawn; nothing
    /// changes unless the job has any.
    ///
    /// # Errors
    /// When they are too few, or the model can't learn from them.
    pub fn with_public(
        mut self,
        engine: &Arc<dyn Engine>,
        whole: &Dataset,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        if let Some(distil) = self.federation.distillation() {
            let examples = public(whole, distil, &self.job)?;
            let model = self.parameter_layout.model().clone();
            let pupil = Pupil::new(engine, model, &self.job, distil, examples, options)?;
            let classes = self.classes()?;
            pupil.trainer.check(&pupil.lesson(&vec![0.0; pupil.examples.len() * classes])?)?;
            self.pupil = Some(pupil);
        }
        Ok(self)
    }

    /// What the job shares of the model.
    #[must_use]
    pub fn parameter_layout(&self) -> &ParameterLayout {
        self.small.as_ref().map_or(&self.parameter_layout, |small| &small.server)
    }

    /// What a member's first task begins with.
    #[must_use]
    pub fn initial(&self) -> Vectors {
        // Nobody has said anything of its examples yet.
        if self.small.is_some() { Vectors::new() } else { self.parameter_layout.initial() }
    }

    /// Numbers the classes of public examples as the job does.
    pub fn name_classes(&mut self, names: &[String]) {
        self.job.data.classes = names.to_vec();
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
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        self.trainer.heed(stop.clone(), Some(STEP_TIME_MAX));
        match self.worked(task, share, kept, stop) {
            // Whatever broke off did so because it was told to.
            Err(_) if stop.is_pulled() => Ok(None),
            done => done,
        }
    }

    fn worked(
        &mut self,
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        self.trainer.check(&share.seen)?;
        let mut held_out = None;
        if self.federation.evaluates_in(task.round) {
            let Some(()) = self.personalise(task, share, kept, stop)? else { return Ok(None) };
            held_out = self.evaluate_held_out(share)?;
        }
        let local = local::of(&self.federation, self.job.continual.as_ref());
        let Some(mut contribution) = local.work(self, task, share, kept, stop)? else { return Ok(None) };
        for modifier in &self.federation.modifiers {
            modifier.behaviour().modify(&mut contribution)?;
        }
        if let Some(Personal::Ditto { lambda }) = self.federation.personal {
            let Some(()) = self.follow(task, lambda, share, kept, stop)? else { return Ok(None) };
        }
        contribution.report.held_out = held_out;
        Ok(Some(contribution))
    }

    /// Does the last task: evaluates the model that the job led to, as the
    /// member would use it. Nothing is learned from it; where members have
    /// models of their own, this one's comes with it.
    ///
    /// `None` when `stop` was set before the end.
    ///
    /// # Errors
    /// As [`LocalTrainer::work`].
    pub fn conclude(
        &mut self,
        task: LocalTask<'_>,
        share: &Share,
        kept: &MemberState,
        stop: &Stop,
    ) -> Result<Option<(Report, Option<Model>)>, TrainError> {
        self.trainer.heed(stop.clone(), Some(STEP_TIME_MAX));
        match self.concluded(task, share, kept, stop) {
            _ if stop.is_pulled() => Ok(None),
            done => done,
        }
    }

    fn concluded(
        &mut self,
        task: LocalTask<'_>,
        share: &Share,
        kept: &MemberState,
        stop: &Stop,
    ) -> Result<Option<(Report, Option<Model>)>, TrainError> {
        if let Some(small) = &self.small {
            let state = self.parameter_layout.start(&Vectors::new(), kept)?;
            let mut whole = small.whole(self.parameter_layout.spec(), &state, task.start, &self.job)?;
            let held_out = match &share.held_out {
                Some(data) => held_out(whole.evaluate(data, &self.options()?)?, data),
                None => None,
            };
            let report = Report { examples: share.seen.len() as u64, held_out, ..Report::default() };
            return Ok(Some((report, Some(whole.export()?))));
        }
        let Some(()) = self.personalise(task, share, kept, stop)? else { return Ok(None) };
        let own = self.federation.own_models().then(|| self.trainer.export()).transpose()?;
        let report =
            Report { examples: share.seen.len() as u64, held_out: self.evaluate_held_out(share)?, ..Report::default() };
        Ok(Some((report, own)))
    }

    /// How a model does on a data set.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn evaluate(&mut self, model: &Vectors, data: &Dataset) -> Result<Scores, TrainError> {
        let state = self.parameter_layout.state(model)?;
        self.trainer.heed(Stop::never(), None);
        self.trainer.set_state(&state)?;
        self.scores(data)
    }

    /// The learning rate of a round.
    #[must_use]
    pub fn rate(&self, round: u64) -> f64 {
        rate(&self.job, round)
    }

    /// A state that has learned what is said of the public examples.
    pub(super) fn digest(
        &mut self,
        state: Vec<Tensor>,
        said: &[f32],
        round: u64,
        epochs: u64,
        seed: u64,
        stop: &Stop,
    ) -> Result<Option<Vec<Tensor>>, TrainError> {
        let (rate, options) = (self.rate(round), BatchOptions { seed, ..self.options()? });
        let spec = self.trainer.spec();
        let pupil = self.pupil.as_mut().ok_or_else(no_public)?;
        pupil.take(spec, &state)?;
        pupil.trainer.set_pace(rate);
        let lesson = pupil.lesson(said)?;
        let Some(_) = epochs_of(&mut pupil.trainer, &lesson, &options, epochs, stop)? else { return Ok(None) };
        pupil.give(spec, state).map(Some)
    }

    /// What a shared model says of the public examples.
    pub(super) fn answers(&mut self, model: &Vectors) -> Result<Vec<f32>, TrainError> {
        let state = self.parameter_layout.state(model)?;
        self.trainer.set_state(&state)?;
        self.trainer.answers(&self.pupil()?.examples, &self.options()?)
    }

    /// A shared model that has learned what is said of them.
    pub(super) fn taught(&mut self, model: &Vectors, said: &[f32], round: u64) -> Result<Vectors, TrainError> {
        let epochs = self.federation.distillation().map_or(1, |distil| distil.epochs);
        let seed = seed_of(&[self.job.seed, round, DIGEST]);
        let state = self.parameter_layout.state(model)?;
        let never = Stop::never();
        let Some(state) = self.digest(state, said, round, epochs, seed, &never)? else { return Ok(model.clone()) };
        let mut taught = model.clone();
        taught.extend(self.parameter_layout.vectors(&state));
        Ok(taught)
    }

    /// The job's own model, once it has learned what members say at the end:
    /// as often as they have.
    pub(super) fn student(&mut self, said: &Vectors) -> Result<Model, TrainError> {
        let distil = self.federation.distillation().ok_or_else(no_public)?;
        let epochs = distil.epochs.saturating_mul(self.federation.rounds_of_ends());
        let state = self.parameter_layout.state(&Vectors::new())?;
        let said = vector(said, Channel::Logits);
        let seed = seed_of(&[self.job.seed, STUDENT]);
        let never = Stop::never();
        if let Some(state) = self.digest(state, said, 0, epochs, seed, &never)? {
            self.trainer.set_state(&state)?;
        }
        self.trainer.export()
    }

    pub(super) fn pupil(&self) -> Result<&Pupil, TrainError> {
        self.pupil.as_ref().ok_or_else(no_public)
    }

    /// How many numbers say what a model makes of the public examples.
    pub(super) fn lesson_length(&self) -> Result<usize, TrainError> {
        Ok(self.pupil()?.examples.len() * self.classes()?)
    }

    fn classes(&self) -> Result<usize, TrainError> {
        let classes = self.trainer.spec().classes.and_then(|n| usize::try_from(n).ok());
        classes.ok_or_else(|| TrainError::Public { name: self.job.data.train.clone(), reason: NO_CLASSES.to_owned() })
    }

    pub(super) fn report(&self, share: &Share, learned: &Learned) -> Report {
        Report {
            examples: share.seen.len() as u64,
            steps: learned.steps,
            effective_steps: effective(learned.steps, &self.job.optimizer),
            loss: learned.loss,
            accuracy: learned.accuracy,
            ..Report::default()
        }
    }

    /// Trains the second model, held near the shared one that the task began
    /// with (Ditto).
    fn follow(
        &mut self,
        task: LocalTask<'_>,
        lambda: f64,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<()>, TrainError> {
        let shared = self.parameter_layout.weights(&self.parameter_layout.state(task.start)?);
        let state = self.parameter_layout.personal(task.start, kept)?;
        self.begin(&state, task.round, lambda, &pull_to(&shared, lambda))?;
        let seed = seed_of(&[self.seed(task), OWN]);
        let Some(_) = self.epochs(&share.seen, self.job.epochs, seed, stop)? else { return Ok(None) };
        self.parameter_layout.keep_own(&self.trainer.state()?, kept);
        Ok(Some(()))
    }

    /// Puts the model into the trainer that the member would use of the one
    /// that it got.
    fn personalise(
        &mut self,
        task: LocalTask<'_>,
        share: &Share,
        kept: &MemberState,
        stop: &Stop,
    ) -> Result<Option<()>, TrainError> {
        let state = self.parameter_layout.personal(task.start, kept)?;
        let Some(Personal::FineTune { epochs }) = self.federation.personal else {
            self.trainer.set_state(&state)?;
            return Ok(Some(()));
        };
        // On the way it is like any other round; behind the last one the rate
        // may be nothing any more.
        let round = task.round.min(self.federation.rounds_of_ends().saturating_sub(1));
        self.begin(&state, round, 0.0, &pull_to(&self.parameter_layout.weights(&state), 0.0))?;
        let seed = seed_of(&[self.seed(task), OWN]);
        Ok(self.epochs(&share.seen, epochs, seed, stop)?.map(drop))
    }

    pub(super) fn has_second(&self) -> bool {
        matches!(self.federation.personal, Some(Personal::Ditto { .. }))
    }

    /// How the model in the trainer does on what the member holds out; `None`
    /// if that is nothing, or the loss isn't finite.
    fn evaluate_held_out(&mut self, share: &Share) -> Result<Option<HeldOut>, TrainError> {
        let Some(data) = &share.held_out else { return Ok(None) };
        Ok(held_out(self.scores(data)?, data))
    }

    fn scores(&mut self, data: &Dataset) -> Result<Scores, TrainError> {
        let options = self.options()?;
        self.trainer.evaluate(data, &options)
    }

    /// Puts a state into the trainer, and what steers a round.
    pub(super) fn begin(
        &mut self,
        state: &[Tensor],
        round: u64,
        pull: f64,
        corrections: &[f32],
    ) -> Result<(), TrainError> {
        self.trainer.set_state(state)?;
        self.trainer.set_pace(self.rate(round));
        self.trainer.set_pull(pull);
        if !self.trainer.spec().stiffness.is_empty() {
            self.trainer.set_anchors(&Flat::new(), &Flat::new())?;
        }
        if self.trainer.spec().corrections.is_empty() { Ok(()) } else { self.trainer.set_corrections(corrections) }
    }

    /// Trains for some epochs; `None` when `stop` was set before the end.
    pub(super) fn epochs(
        &mut self,
        data: &Dataset,
        epochs: u64,
        seed: u64,
        stop: &Stop,
    ) -> Result<Option<Learned>, TrainError> {
        let options = BatchOptions { seed, ..self.options()? };
        epochs_of(&mut self.trainer, data, &options, epochs, stop)
    }

    pub(super) fn options(&self) -> Result<BatchOptions, TrainError> {
        let normalize = self.job.stated_normalization()?;
        Ok(self.job.options(normalize)?.batch)
    }

    pub(super) fn seed(&self, task: LocalTask<'_>) -> u64 {
        let mut words = vec![self.job.seed, task.round];
        words.extend(task.member.bytes().map(u64::from));
        seed_of(&words)
    }
}

/// What is said of an evaluation; nothing where the loss isn't finite.
fn held_out(scores: Scores, data: &Dataset) -> Option<HeldOut> {
    let Scores { loss, accuracy } = scores;
    loss.is_finite().then_some(HeldOut { examples: data.len() as u64, loss, accuracy })
}

/// The learning rate of a round.
pub(super) fn rate(job: &Job, round: u64) -> f64 {
    // In thousandths of an epoch: schedules count whole steps.
    const PER_EPOCH: usize = 1_000;
    let rounds = job.federation.as_ref().map_or(1, Federation::rounds_of_ends);
    let whole = Job { epochs: job.epochs.saturating_mul(rounds), ..job.clone() };
    let at = round.saturating_mul(job.epochs).saturating_mul(PER_EPOCH as u64);
    whole.schedule(PER_EPOCH).at(at)
}

/// What is added to gradients so that weights are pulled to a point.
pub(super) fn pull_to(point: &[f32], pull: f64) -> Vec<f32> {
    point.iter().map(|x| -(pull as f32) * x).collect()
}

/// What steps amount to where momentum carries each on into those behind it:
/// the sum of how often each gradient counts (Wang et al., 2020, for momentum
/// `m` that starts at zero). The last of `n` counts once, the one before it
/// `1 + m`, the first `(1 - m^n) / (1 - m)`; Nesterov's look ahead counts each
/// as if there were one step more.
fn effective(steps: u64, optimizer: &Optimizer) -> f64 {
    let steps = steps as f64;
    match *optimizer {
        Optimizer::Sgd { momentum, nesterov, .. } if momentum > 0.0 => {
            let ahead = if nesterov { momentum } else { 1.0 };
            (steps - momentum * ahead * (1.0 - momentum.powf(steps)) / (1.0 - momentum)) / (1.0 - momentum)
        }
        _ => steps,
    }
}

/// Time for a step of a federation, or for one batch of an evaluation: what
/// takes longer is of no use to a round, and keeps a member's work for ever.
const STEP_TIME_MAX: Duration = Duration::from_secs(600);

/// Trains for some epochs; `None` when `stop` was set before the end.
pub(super) fn epochs_of(
    trainer: &mut Trainer,
    data: &Dataset,
    options: &BatchOptions,
    epochs: u64,
    stop: &Stop,
) -> Result<Option<Learned>, TrainError> {
    let mut batches = Batches::start(data, options, Position::default(), epochs)?;
    let (mut loss, mut correct, mut counted, mut steps) = (0f64, None, 0u64, 0u64);
    trainer.heed(stop.clone(), Some(STEP_TIME_MAX));
    while let Some(batch) = batches.next() {
        if stop.is_pulled() {
            return Ok(None);
        }
        let step = match trainer.step(&batch, batch.position) {
            Err(TrainError::Engine(EngineError::Stopped { .. })) if !stop.is_pulled() => {
                return Err(TrainError::Long { examples: batch.examples, seconds: STEP_TIME_MAX.as_secs() });
            }
            Err(_) if stop.is_pulled() => return Ok(None),
            step => step?,
        };
        loss += step.loss * step.counted as f64;
        correct = step.correct.map(|n| n + correct.unwrap_or(0));
        counted += step.counted;
        steps += 1;
        batches.recycle(batch);
    }
    let seen = counted.max(1) as f64;
    Ok(Some(Learned { loss: loss / seen, accuracy: correct.map(|n| n as f64 / seen), steps }))
}

fn no_public() -> TrainError {
    let reason = "the job learns from them, and they aren't there".to_owned();
    TrainError::Public { name: "the job".to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_as_far_as_momentum_carries_them() {
        let of = |momentum, nesterov| effective(2, &Optimizer::Sgd { momentum, nesterov, weight_decay: 0.0 });
        assert_eq!(of(0.0, false), 2.0);
        // Directions g1 and g1 / 2 + g2: the first counts 1.5 times.
        assert_eq!(of(0.5, false), 1.5 + 1.0);
        // Steps g1 + g1 / 2, then g2 + (g1 / 2 + g2) / 2: 1.75 and 1.5 times.
        assert_eq!(of(0.5, true), 1.75 + 1.5);
    }
}
