//! A model in training: its step and its evaluation, loaded in an engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_engine::{Engine, EngineError, LoadOptions, Session, StateSlot, Stateful, Stop};
use tierline_graph::infer::infer_types;
use tierline_graph::slice::slice;
use tierline_graph::step::{self, Evaluation, LEFT_OUT, Loss, Recipe, Role, Spec, Step};
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo};

use crate::data::{Batch, BatchOptions, Batches, Dataset, Position};
use crate::error::TrainError;

/// A model in training.
pub struct Trainer {
    engine: Arc<dyn Engine>,
    options: LoadOptions,
    model: Model,
    recipe: Recipe,
    spec: Spec,
    session: Box<dyn Stateful>,
    evaluation: Evaluation,
    evaluator: Box<dyn Session>,
    /// The model's input.
    input: ValueInfo,
    /// The step's input that takes targets.
    target: ValueInfo,
    /// What steers the step, as it is now, in the order of [`Spec::steering`].
    steering: Vec<(String, Tensor)>,
    outputs: Vec<Tensor>,
    /// Ends what runs.
    stop: Stop,
    /// Time for one run.
    run_max: Option<Duration>,
    /// A run broke off: sessions are loaded anew before the next.
    worn: bool,
}

/// Numbers shaped as weights are, flat, by the weights' names.
pub type Flat = BTreeMap<String, Vec<f32>>;

/// What one step gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Averaged over the batch.
    pub loss: f64,
    /// Examples whose likeliest class was the target, where targets are classes.
    pub correct: Option<u64>,
    /// What the averages are taken over: examples, or places of examples, whose
    /// target isn't left out.
    pub counted: u64,
    /// The rate that was taken.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
}

/// How a model does on a data set.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Scores {
    /// Averaged over the examples.
    pub loss: f64,
    /// Share of the examples that were right, where targets are classes.
    pub accuracy: Option<f64>,
}

impl Trainer {
    /// Prepares a model, its constants folded for training, with its weights
    /// as they are.
    ///
    /// # Errors
    /// When it can't be trained, or the engine can't run its step.
    pub fn new(
        engine: &Arc<dyn Engine>,
        model: Model,
        recipe: &Recipe,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let step = made(engine.as_ref(), &model, recipe)?;
        let evaluation = step::evaluation(&model, recipe, &step.spec)?;
        let (graph, state) = step.divided()?;
        let Step { spec, .. } = step;
        let session = engine.load_stateful(&graph, options, &slots(&spec), state)?;
        drop(graph);
        let evaluator = engine.load(&evaluation.model, options)?;
        let input = match &spec.inputs[..] {
            [input] => session.inputs().iter().find(|v| v.name == *input).cloned(),
            inputs => return Err(TrainError::Inputs { inputs: inputs.to_vec() }),
        };
        let input = input.ok_or_else(|| TrainError::Inputs { inputs: spec.inputs.clone() })?;
        let target = session.inputs().iter().find(|v| v.name == spec.target).cloned();
        let target = target.ok_or_else(|| TrainError::Inputs { inputs: vec![spec.target.clone()] })?;
        let mut steering = Vec::new();
        for name in spec.steering() {
            let declared = session.inputs().iter().find(|v| v.name == name);
            let shape = declared.and_then(|v| v.shape.as_ref()).into_iter().flatten().filter_map(Dim::known);
            let shape: Vec<usize> = shape.map(|n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
            let dtype = declared.and_then(|v| v.dtype).unwrap_or(DataType::F32);
            steering.push((name.to_owned(), Tensor::zeros(dtype, shape)?));
        }
        let mut it = Self {
            engine: Arc::clone(engine),
            options: options.clone(),
            model,
            recipe: recipe.clone(),
            spec,
            session,
            evaluation,
            evaluator,
            input,
            target,
            steering,
            outputs: Vec::new(),
            stop: Stop::never(),
            run_max: None,
            worn: false,
        };
        it.set_pace(1.0);
        it.set_masks(&Flat::new())?;
        Ok(it)
    }

    /// Which input and output of the step is what.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Refuses a data set that the model can't learn from.
    ///
    /// # Errors
    /// Naming what doesn't fit.
    pub fn check(&self, dataset: &Dataset) -> Result<(), TrainError> {
        fitted(&self.input, dataset.example_shape())?;
        let loss = self.recipe.loss.name();
        let has = |has: &str| TrainError::Targets { loss, takes: self.takes(), has: has.to_owned() };
        match (self.spec.classes, dataset.class_count()) {
            (Some(outputs), Some(classes)) if classes as u64 > outputs => {
                let output = self.spec.predicts.clone();
                return Err(TrainError::Classes { classes, output, outputs });
            }
            (Some(_), None) => return Err(has("numbers")),
            (None, Some(classes)) if classes > 2 || !matches!(self.recipe.loss, Loss::Bce) => {
                return Err(has(&format!("{classes} classes")));
            }
            _ => {}
        }
        self.fit_targets(&dataset.targets(&[0])?).map(drop)
    }

    /// What the loss takes, for people.
    fn takes(&self) -> String {
        match self.recipe.loss {
            _ if self.spec.classes.is_some() => "one class per example".to_owned(),
            Loss::Bce => "numbers from 0 to 1 shaped as the output, or two classes where it is one number".to_owned(),
            _ => "numbers shaped as the output".to_owned(),
        }
    }

    fn fit_targets(&self, targets: &Tensor) -> Result<Option<Tensor>, TrainError> {
        fit_targets(&self.target, &self.spec.predicts, targets)
    }

    /// What runs it, and how it was loaded.
    pub(crate) fn place(&self) -> (&Arc<dyn Engine>, &LoadOptions) {
        (&self.engine, &self.options)
    }

    /// From now on, steps and evaluations end when `stop` is pulled, or when a
    /// run of one batch takes longer than `run_max`.
    pub fn heed(&mut self, stop: Stop, run_max: Option<Duration>) {
        (self.stop, self.run_max) = (stop, run_max);
    }

    /// What ends a run that begins now.
    fn end_of_run(&self) -> Stop {
        match self.run_max.and_then(|max| Instant::now().checked_add(max)) {
            Some(deadline) => self.stop.no_later_than(deadline),
            None => self.stop.clone(),
        }
    }

    /// Loads the sessions anew where a run broke off, with the state as it is.
    fn renew(&mut self) -> Result<(), TrainError> {
        if self.worn {
            let (graph, _) = made(self.engine.as_ref(), &self.model, &self.recipe)?.divided()?;
            let state = self.session.state()?;
            self.session = self.engine.load_stateful(&graph, &self.options, &slots(&self.spec), state)?;
            self.evaluator = self.engine.load(&self.evaluation.model, &self.options)?;
            self.worn = false;
        }
        Ok(())
    }

    /// Takes one step.
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] when the loss or a gradient isn't; those of an
    /// engine that was stopped ([`Trainer::heed`]). The state is then what it
    /// was before the step.
    pub fn step(&mut self, batch: &Batch, at: Position) -> Result<StepReport, TrainError> {
        self.renew()?;
        let features = fit(&self.input, &batch.features)?;
        let features = features.as_ref().unwrap_or(&batch.features);
        let targets = self.fit_targets(&batch.targets)?;
        let targets = targets.as_ref().unwrap_or(&batch.targets);
        let own = [(self.input.name.as_str(), features), (self.spec.target.as_str(), targets)];
        let steering = self.steering.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let given: Vec<(&str, &Tensor)> = own.into_iter().chain(steering).collect();
        let stop = self.end_of_run();
        let ran = self.session.run_until(&given, &mut self.outputs, &stop);
        self.worn |= ran.as_ref().is_err_and(EngineError::is_last);
        ran?;
        let number = |name: &str| {
            let position = self.session.outputs().iter().position(|v| v.name == name)?;
            scalar(&self.outputs[position])
        };
        let report = StepReport {
            loss: number(&self.spec.loss).unwrap_or(f64::NAN),
            correct: number("correct").map(|n| n as u64),
            counted: self.spec.counted.as_deref().and_then(number).map_or(batch.examples as u64, |n| n as u64),
            learning_rate: number("learning_rate").unwrap_or(f64::NAN),
            gradient_norm: number("gradient_norm").unwrap_or(f64::NAN),
        };
        if !report.loss.is_finite() || !report.gradient_norm.is_finite() {
            let tensor = match report.counted {
                0 => format!("the loss of a batch whose targets are all left out ({LEFT_OUT})"),
                _ => self.offender(&given)?,
            };
            let step = self.steps()?;
            return Err(TrainError::NotFinite { step, tensor, epoch: at.epoch, batch: at.batch });
        }
        self.session.advance();
        Ok(report)
    }

    /// What the learning rate is multiplied by from now on, of a step that is
    /// steered; nothing otherwise.
    pub fn set_pace(&mut self, pace: f64) {
        self.set_scalar(self.spec.pace.clone(), pace);
    }

    /// How strongly weights are pulled from now on, of a step that takes it;
    /// nothing otherwise. To where is up to the corrections.
    pub fn set_pull(&mut self, pull: f64) {
        self.set_scalar(self.spec.pull.clone(), pull);
    }

    fn set_scalar(&mut self, name: Option<String>, value: f64) {
        let found = self.steering.iter_mut().find(|(input, _)| Some(input) == name.as_ref());
        if let Some(Elements::F32(scalar)) = found.map(|(_, tensor)| tensor.elements_mut()) {
            scalar.fill(value as f32);
        }
    }

    /// What is added to gradients from now on: a flat vector of all
    /// parameters in the order of the state, f32.
    ///
    /// # Errors
    /// When the step takes no corrections, or not as many numbers.
    pub fn set_corrections(&mut self, corrections: &[f32]) -> Result<(), TrainError> {
        // They are the last of what steers.
        let first = self.steering.len() - self.spec.corrections.len();
        let taken: usize = self.steering[first..].iter().map(|(_, t)| t.len()).sum();
        if taken != corrections.len() {
            return Err(TrainError::Vector { what: "corrections", expected: taken, given: corrections.len() });
        }
        let mut rest = corrections;
        for (_, tensor) in &mut self.steering[first..] {
            let (own, behind) = rest.split_at(tensor.len());
            if let Elements::F32(values) = tensor.elements_mut() {
                values.copy_from_slice(own);
            }
            rest = behind;
        }
        Ok(())
    }

    /// How strongly weights are held from now on, and to where, of a step that
    /// takes it: flat, by name. Those that aren't named aren't held.
    ///
    /// # Errors
    /// When the step takes nothing of the kind, or not as many numbers.
    pub fn set_anchors(&mut self, stiffness: &Flat, anchors: &Flat) -> Result<(), TrainError> {
        let names = [self.spec.stiffness.clone(), self.spec.anchors.clone()];
        self.set_shaped("stiffness", &names[0], stiffness, 0.0)?;
        self.set_shaped("anchors", &names[1], anchors, 0.0)
    }

    /// What weights' changes are multiplied by from now on, of a step that takes
    /// it: flat, by name. Those that aren't named move freely.
    ///
    /// # Errors
    /// As [`Trainer::set_anchors`].
    pub fn set_masks(&mut self, masks: &Flat) -> Result<(), TrainError> {
        let names = self.spec.masks.clone();
        self.set_shaped("masks", &names, masks, 1.0)
    }

    fn set_shaped(&mut self, what: &'static str, inputs: &[String], given: &Flat, or: f32) -> Result<(), TrainError> {
        let weights = self.spec.state.iter().filter(|slot| slot.role == Role::Parameter);
        for (slot, input) in weights.zip(inputs) {
            let Some((_, tensor)) = self.steering.iter_mut().find(|(name, _)| name == input) else { continue };
            let values = given.get(&slot.input).map(Vec::as_slice);
            if let Some(wrong) = values.filter(|values| values.len() != tensor.len()) {
                return Err(TrainError::Vector { what, expected: tensor.len(), given: wrong.len() });
            }
            let value = |i: usize| values.map_or(or, |values| values[i]);
            match tensor.elements_mut() {
                Elements::F32(own) => own.iter_mut().enumerate().for_each(|(i, x)| *x = value(i)),
                Elements::F64(own) => own.iter_mut().enumerate().for_each(|(i, x)| *x = value(i).into()),
                _ => {}
            }
        }
        let missing = inputs.is_empty() && !given.is_empty();
        if missing { Err(TrainError::Vector { what, expected: 0, given: given.len() }) } else { Ok(()) }
    }

    /// The state's tensors of a role: flat, by weight. A path is its weight's.
    ///
    /// # Errors
    /// When the engine can't give its state.
    pub fn flat(&self, role: Role) -> Result<Flat, TrainError> {
        let state = self.session.state()?;
        let slots = self.spec.state.iter().zip(&state).filter(|(slot, _)| slot.role == role);
        let named = slots.map(|(slot, tensor)| (slot.input.clone(), numbers(tensor)));
        if role != Role::Path {
            return Ok(named.collect());
        }
        let weights = self.spec.state.iter().filter(|slot| slot.role == Role::Parameter);
        Ok(weights.map(|slot| slot.input.clone()).zip(named.map(|(_, values)| values)).collect())
    }

    /// Steps taken so far.
    ///
    /// # Errors
    /// When the engine can't give its state.
    pub fn steps(&self) -> Result<i64, TrainError> {
        let counter = self.spec.state.iter().position(|s| s.role == Role::Counter);
        let state = self.session.state()?;
        Ok(counter.and_then(|i| state[i].as_i64()).and_then(|v| v.first().copied()).unwrap_or(0))
    }

    /// The first tensor of a step, in the order of computation, that holds
    /// something that isn't finite.
    fn offender(&self, given: &[(&str, &Tensor)]) -> Result<String, TrainError> {
        let state = self.session.state()?;
        for (slot, tensor) in self.spec.state.iter().zip(&state) {
            if !is_finite(tensor) {
                return Ok(format!("`{}`", slot.input));
            }
        }
        for (name, tensor) in given {
            if !is_finite(tensor) {
                return Ok(format!("input `{name}`"));
            }
        }
        // Made anew, since keeping it would hold all weights once more.
        let (graph, _) = made(self.engine.as_ref(), &self.model, &self.recipe)?.divided()?;
        let (probe, seen) = step::probe(&graph, &self.model, &self.spec)?;
        let mut session = self.engine.load(&probe, &LoadOptions { optimize: false, ..self.options.clone() })?;
        let slots = self.spec.state.iter().map(|s| s.input.as_str()).zip(&state);
        let all: Vec<(&str, &Tensor)> = given
            .iter()
            .copied()
            .chain(slots)
            .filter(|(name, _)| session.inputs().iter().any(|v| v.name == *name))
            .collect();
        let values = session.run(&all)?;
        let first = values.iter().zip(&seen).find(|(tensor, _)| !is_finite(tensor));
        Ok(first.map_or_else(|| "the norm of the gradients".to_owned(), |(_, name)| name.clone()))
    }

    /// How the model does on a data set, with the weights it has now.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn evaluate(&mut self, dataset: &Dataset, options: &BatchOptions) -> Result<Scores, TrainError> {
        self.renew()?;
        let state = self.session.state()?;
        let plain = options.for_evaluation();
        let mut batches = Batches::start(dataset, &plain, Position::default(), 1)?;
        let (mut loss, mut correct, mut counted) = (0f64, None, 0u64);
        while let Some(batch) = batches.next() {
            let features = fit(&self.input, &batch.features)?;
            let features = features.as_ref().unwrap_or(&batch.features);
            let targets = self.fit_targets(&batch.targets)?;
            let targets = targets.as_ref().unwrap_or(&batch.targets);
            let weights = self.evaluation.weights.iter().map(|&i| (self.spec.state[i].input.as_str(), &state[i]));
            let own = [(self.input.name.as_str(), features), (self.spec.target.as_str(), targets)];
            let all: Vec<(&str, &Tensor)> = own.into_iter().chain(weights).collect();
            let stop = self.end_of_run();
            let ran = self.evaluator.run_until(&all, &mut self.outputs, &stop);
            self.worn |= ran.as_ref().is_err_and(EngineError::is_last);
            ran?;
            let number = |at: usize| self.outputs.get(at).and_then(scalar);
            let here = number(2).map_or(batch.examples as u64, |n| n as u64);
            // The mean over nothing is not a number, and weighs nothing.
            if here > 0 {
                loss += number(0).unwrap_or(f64::NAN) * here as f64;
            }
            if let Some(right) = number(1) {
                *correct.get_or_insert(0) += right as u64;
            }
            counted += here;
            batches.recycle(batch);
        }
        let counted = counted.max(1) as f64;
        Ok(Scores { loss: loss / counted, accuracy: correct.map(|right: u64| right as f64 / counted) })
    }

    /// What the model says of each example of a data set, with the weights it
    /// has now: logits, row after row, in the data set's order.
    ///
    /// Of a model that ends in Softmax, what goes into it.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn answers(&self, dataset: &Dataset, options: &BatchOptions) -> Result<Vec<f32>, TrainError> {
        let runner = Runner { engine: &self.engine, options: &self.options };
        runner.answers(&self.export()?, &self.recipe.loss, &self.spec.predicts, dataset, options)
    }

    /// What a tensor within the model is for each example of a data set, with
    /// the weights it has now: row after row, in the data set's order.
    ///
    /// # Errors
    /// When there is no such tensor, or the engine fails.
    pub fn values_of(&self, tensor: &str, dataset: &Dataset, options: &BatchOptions) -> Result<Vec<f32>, TrainError> {
        let runner = Runner { engine: &self.engine, options: &self.options };
        runner.values_of(&self.export()?, tensor, dataset, options)
    }

    /// The state, in the order of [`Spec::state`].
    ///
    /// # Errors
    /// When the engine can't give it.
    pub fn state(&self) -> Result<Vec<Tensor>, TrainError> {
        Ok(self.session.state()?)
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// When it isn't of the same types and shapes.
    pub fn set_state(&mut self, state: &[Tensor]) -> Result<(), TrainError> {
        Ok(self.session.set_state(state)?)
    }

    /// The model with the weights it has now, for use.
    ///
    /// # Errors
    /// When it isn't valid.
    pub fn export(&self) -> Result<Model, TrainError> {
        Ok(self.spec.export(&self.model, &self.session.state()?)?)
    }
}

/// Runs models for use over whole data sets.
#[derive(Clone, Copy)]
pub(crate) struct Runner<'a> {
    pub(crate) engine: &'a Arc<dyn Engine>,
    pub(crate) options: &'a LoadOptions,
}

impl Runner<'_> {
    /// What a model says of each example: [`Trainer::answers`].
    pub(crate) fn answers(
        &self,
        model: &Model,
        loss: &Loss,
        output: &str,
        dataset: &Dataset,
        options: &BatchOptions,
    ) -> Result<Vec<f32>, TrainError> {
        let model = step::answering(model, loss, output)?;
        let logits = model.outputs().first().map(|o| o.name.clone()).unwrap_or_default();
        self.over(&model, &logits, dataset, options)
    }

    /// What a tensor within a model is for each example: [`Trainer::values_of`].
    pub(crate) fn values_of(
        &self,
        model: &Model,
        tensor: &str,
        dataset: &Dataset,
        options: &BatchOptions,
    ) -> Result<Vec<f32>, TrainError> {
        let types = infer_types(model)?;
        let mut parts = slice(model, &types, &[vec![tensor.to_owned()]])
            .map_err(|e| TrainError::Transfer { features: tensor.to_owned(), reason: e.to_string() })?;
        self.over(&parts.swap_remove(0), tensor, dataset, options)
    }

    /// One output of a model for each example.
    fn over(
        &self,
        model: &Model,
        output: &str,
        dataset: &Dataset,
        options: &BatchOptions,
    ) -> Result<Vec<f32>, TrainError> {
        let mut session = self.engine.load(model, self.options)?;
        let at = session.outputs().iter().position(|v| v.name == output).unwrap_or(0);
        let input = match session.inputs() {
            [input] => input.clone(),
            inputs => return Err(TrainError::Inputs { inputs: inputs.iter().map(|i| i.name.clone()).collect() }),
        };
        let mut options = options.for_evaluation();
        let mut rows: Vec<usize> = (0..dataset.len()).collect();
        if let Some(size) = fixed_batch(&input) {
            // The last batch is filled up, and what is said of that let go of.
            options.size = size;
            rows.resize(dataset.len().next_multiple_of(size), dataset.len() - 1);
        }
        let mut values = Vec::new();
        let mut batches = Batches::start(&dataset.subset(&rows)?, &options, Position::default(), 1)?;
        while let Some(batch) = batches.next() {
            let features = fit(&input, &batch.features)?;
            let features = features.as_ref().unwrap_or(&batch.features);
            let outputs = session.run(&[(input.name.as_str(), features)])?;
            values.extend_from_slice(outputs[at].as_f32().unwrap_or_default());
            batches.recycle(batch);
        }
        values.truncate(values.len() / rows.len() * dataset.len());
        Ok(values)
    }
}

/// Examples of a batch, of an input that takes no other number.
pub(crate) fn fixed_batch(input: &ValueInfo) -> Option<usize> {
    let first = input.shape.as_ref()?.first()?.known()?;
    usize::try_from(first).ok().filter(|n| *n > 0)
}

/// A tensor's numbers in single precision.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    match tensor.elements() {
        Elements::F32(v) => v.clone(),
        Elements::F64(v) => v.iter().map(|&x| x as f32).collect(),
        _ => Vec::new(),
    }
}

fn scalar(tensor: &Tensor) -> Option<f64> {
    match tensor.elements() {
        Elements::F32(v) => v.first().map(|&x| f64::from(x)),
        Elements::F64(v) => v.first().copied(),
        Elements::I64(v) => v.first().map(|&x| x as f64),
        _ => None,
    }
}

fn is_finite(tensor: &Tensor) -> bool {
    match tensor.elements() {
        Elements::F32(v) => v.iter().all(|x| x.is_finite()),
        Elements::F64(v) => v.iter().all(|x| x.is_finite()),
        _ => true,
    }
}

/// The batch as the model takes it, where that differs: its axes joined or
/// split, its numbers as integers.
pub(crate) fn fit(input: &ValueInfo, features: &Tensor) -> Result<Option<Tensor>, TrainError> {
    let shape = fitted(input, &features.shape()[1..])?;
    let same = shape.as_ref().is_none_or(|s| s[..] == features.shape()[1..]);
    if same && input.dtype.is_none_or(|d| d == features.dtype()) {
        return Ok(None);
    }
    let full = match shape {
        Some(shape) => [&features.shape()[..1], &shape].concat(),
        None => features.shape().to_vec(),
    };
    Ok(Some(Tensor::new(full, converted(features.elements(), input.dtype))?))
}

/// Targets as the step takes them, where that differs: with axes of one
/// element more or fewer, in the output's own type.
pub(crate) fn fit_targets(target: &ValueInfo, predicts: &str, targets: &Tensor) -> Result<Option<Tensor>, TrainError> {
    let example = &targets.shape()[1..];
    let Some(shape) = &target.shape else { return Ok(None) };
    let axes = shape.get(1..).unwrap_or_default();
    let fits = |dim: &Dim, n: usize| dim.known().is_none_or(|d| d == n as u64);
    let whole = axes.len() == example.len() && axes.iter().zip(example).all(|(d, &n)| fits(d, n));
    // The same numbers in the same order, whatever stands between them.
    let wide: Vec<&Dim> = axes.iter().filter(|d| d.known() != Some(1)).collect();
    let long: Vec<usize> = example.iter().copied().filter(|&n| n != 1).collect();
    if !whole && (wide.len() != long.len() || !wide.iter().zip(&long).all(|(d, &n)| fits(d, n))) {
        return Err(TrainError::TargetShape {
            has: example.to_vec(),
            output: predicts.to_owned(),
            gives: axes.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "),
        });
    }
    let same = target.dtype.is_none_or(|d| d == targets.dtype());
    if whole && same {
        return Ok(None);
    }
    let mut long = long.into_iter();
    let fitted = axes.iter().map(|d| if d.known() == Some(1) { 1 } else { long.next().unwrap_or(1) });
    let fitted = if whole { example.to_vec() } else { fitted.collect() };
    let elements = converted(targets.elements(), target.dtype);
    Ok(Some(Tensor::new([&targets.shape()[..1], &fitted].concat(), elements)?))
}

/// Numbers of a batch in the type that they are taken in.
fn converted(elements: &Elements, dtype: Option<DataType>) -> Elements {
    match (elements, dtype) {
        (Elements::F32(v), Some(DataType::I64)) => Elements::I64(v.iter().map(|&x| x as i64).collect()),
        (Elements::F32(v), Some(DataType::I32)) => Elements::I32(v.iter().map(|&x| x as i32).collect()),
        (Elements::F32(v), Some(DataType::F64)) => Elements::F64(v.iter().map(|&x| f64::from(x)).collect()),
        (Elements::I64(v), Some(DataType::F32)) => Elements::F32(v.iter().map(|&x| x as f32).collect()),
        (Elements::I64(v), Some(DataType::F64)) => Elements::F64(v.iter().map(|&x| x as f64).collect()),
        (other, _) => other.clone(),
    }
}

/// The shape of one example as the model's input has it; `None` when that
/// takes any.
fn fitted(input: &ValueInfo, example: &[usize]) -> Result<Option<Vec<usize>>, TrainError> {
    let Some(shape) = &input.shape else { return Ok(None) };
    let takes = || format!("[{}]", shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "));
    let refuse =
        |hint| Err(TrainError::Example { example: example.to_vec(), input: input.name.clone(), takes: takes(), hint });
    let Some((batch, axes)) = shape.split_first() else {
        return refuse("the model takes a single number; it needs an axis for the batch");
    };
    if batch.known().is_some_and(|n| n == 1) {
        return refuse("its batch is fixed at 1; export the model with a free batch axis");
    }
    let agrees =
        axes.len() == example.len() && axes.iter().zip(example).all(|(d, &n)| d.known().is_none_or(|d| d == n as u64));
    if agrees {
        return Ok(Some(example.to_vec()));
    }
    // Pixels in a row for a perceptron, or the other way round.
    let fixed: Option<Vec<usize>> = axes.iter().map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect();
    match fixed {
        Some(axes) if axes.iter().product::<usize>() == example.iter().product::<usize>() => Ok(Some(axes)),
        _ => refuse("resize the data set's pictures, or export the model for this shape"),
    }
}

/// The step's state, as engines take it.
fn slots(spec: &Spec) -> Vec<StateSlot> {
    spec.state.iter().map(|s| StateSlot { input: s.input.clone(), output: s.output.clone() }).collect()
}

/// The step, with what operators the engine has of its own.
fn made(engine: &dyn Engine, model: &Model, recipe: &Recipe) -> Result<Step, TrainError> {
    let kernels = engine.kernels().iter().copied().collect();
    Ok(step::trainable_with(model, recipe, &kernels)?)
}
