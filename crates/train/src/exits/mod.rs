//! Fits the heads of early exits: in closed form, or with the training engine.
//!
//! Heads come from [`tierline_graph::exits::attach`]. [`closed`] solves for the
//! last layer of each and sets its temperature; [`train`] takes steps on the
//! sum of all exits' losses, with the trunk or without it; [`sureness`] fits
//! what a learned criterion reads. [`answers`] tells what all outputs say.

mod logistic;
mod ridge;
mod solve;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_graph::exits::{Exits, Head, giving, with_weights};
use tierline_graph::step::{Also, Decay, Loss, Optimizer, Recipe, Schedule, parameters};
use tierline_graph::{Elements, Model, Tensor, infer_types};

use self::logistic::Logistic;
use self::ridge::Ridge;
use crate::data::{BatchOptions, Batches, Dataset, Position};
use crate::error::TrainError;
use crate::run::{Event, RunOptions, run};
use crate::trainer::{Trainer, fit};

/// Places of an example that a closed form looks at, at most.
const PLACES_MAX: usize = 16;

/// One in so many batches is held out to choose the penalty and the temperature.
const HELD_OUT_EVERY: usize = 10;

/// Examples that a learned criterion is fitted on, at most.
const SURENESS_EXAMPLES_MAX: usize = 10_000;

/// What fits heads, and on what.
#[derive(Clone)]
pub struct Fitting<'d> {
    /// Runs the model.
    pub engine: Arc<dyn Engine>,
    /// How it is loaded.
    pub load: LoadOptions,
    /// Examples to learn from.
    pub data: &'d Dataset,
    /// How batches are made.
    pub batch: BatchOptions,
}

/// How heads are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// How often every example is seen.
    pub epochs: u64,
    /// Learning rate of Adam, which falls along half a cosine.
    pub rate: f64,
    /// Whether the model's own weights are trained as well.
    pub with_trunk: bool,
    /// Of the order of examples.
    pub seed: u64,
}

/// Told what a model gives for a batch, and its targets; whether to go on.
pub type Each<'e> = dyn FnMut(&[Tensor], &Tensor) -> Result<bool, TrainError> + 'e;

/// Calls `each` with what a model gives for every batch of the data, and the
/// batch's targets.
///
/// # Errors
/// When the model doesn't take the data, or the engine fails.
pub fn each_batch(with: &Fitting<'_>, model: &Model, tensors: &[&str], each: &mut Each<'_>) -> Result<(), TrainError> {
    let types = infer_types(model)?;
    let model = giving(model, &types, tensors).map_err(|e| TrainError::Fit(e.to_string()))?;
    let inputs = model.inputs();
    let [input] = &inputs[..] else {
        return Err(TrainError::Inputs { inputs: inputs.into_iter().map(|v| v.name).collect() });
    };
    let mut session = with.engine.load(&model, &with.load)?;
    let mut batches = Batches::start(with.data, &with.batch.for_evaluation(), Position::default(), 1)?;
    while let Some(batch) = batches.next() {
        let features = fit(input, &batch.features)?;
        let outputs = session.run(&[(input.name.as_str(), features.as_ref().unwrap_or(&batch.features))])?;
        let more = each(&outputs, &batch.targets)?;
        batches.recycle(batch);
        if !more {
            break;
        }
    }
    Ok(())
}

/// The tensors of a model for all examples, in the data set's order, and the
/// classes of the targets.
///
/// # Errors
/// As [`each_batch`].
pub fn answers(
    with: &Fitting<'_>,
    model: &Model,
    tensors: &[&str],
) -> Result<(Vec<Tensor>, Vec<Option<usize>>), TrainError> {
    let mut all: Vec<Vec<f32>> = vec![Vec::new(); tensors.len()];
    let mut shapes: Vec<Vec<usize>> = vec![Vec::new(); tensors.len()];
    let mut classes = Vec::new();
    each_batch(with, model, tensors, &mut |outputs, targets| {
        for ((all, shape), output) in all.iter_mut().zip(&mut shapes).zip(outputs) {
            let values = output.as_f32().ok_or_else(|| TrainError::Fit("an answer is no tensor of f32".to_owned()))?;
            if !shape.is_empty() && shape[1..] != output.shape()[1..] {
                return Err(TrainError::Fit("answers differ in shape from batch to batch".to_owned()));
            }
            let examples = shape.first().copied().unwrap_or(0) + output.shape().first().copied().unwrap_or(0);
            *shape = output.shape().to_vec();
            if let Some(first) = shape.first_mut() {
                *first = examples;
            }
            all.extend_from_slice(values);
        }
        classes.extend(classes_of(targets));
        Ok(true)
    })?;
    let tensors = all.into_iter().zip(shapes).map(|(values, shape)| Tensor::new(shape, Elements::F32(values)));
    Ok((tensors.collect::<Result<_, _>>()?, classes))
}

/// One class per example, where targets are that.
fn classes_of(targets: &Tensor) -> Vec<Option<usize>> {
    let examples = targets.shape().first().copied().unwrap_or(0);
    let values = targets.as_i64().filter(|v| v.len() == examples);
    values.map_or(vec![None; examples], |v| v.iter().map(|&class| usize::try_from(class).ok()).collect())
}

/// Fits the last layer of each head by ridge regression onto the classes, and
/// multiplies it by what makes its probabilities fit best.
///
/// A classifier's heads learn the data's classes; others what the model's end
/// answers at each place.
///
/// # Errors
/// When the data has no classes, or the engine fails.
pub fn closed(with: &Fitting<'_>, model: &Model, exits: &Exits, heads: &[Head]) -> Result<Model, TrainError> {
    let judged = exits.judged(model).map_err(|e| TrainError::Fit(e.to_string()))?;
    let classes = classes(model, &judged, exits.axis)?;
    let mut tensors: Vec<&str> = heads.iter().map(|head| head.features.as_str()).collect();
    tensors.push(&judged);
    let mut fits: Vec<Ridge> = heads.iter().map(|head| Ridge::new(head.width as usize, classes)).collect();
    let mut number = 0;
    each_batch(with, model, &distinct(&tensors), &mut |outputs, targets| {
        let held_out = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1;
        number += 1;
        let given = given(&tensors, outputs);
        let end = given[heads.len()];
        for (ridge, features) in fits.iter_mut().zip(&given) {
            each_place(features, end, targets, &mut |row, class| {
                if held_out { ridge.hold_out(row, class) } else { ridge.learn(row, class) }
            })?;
        }
        Ok(true)
    })?;
    let mut weights = HashMap::new();
    for (head, ridge) in heads.iter().zip(fits) {
        let (weight, bias) = ridge.solve().ok_or_else(|| TrainError::Fit(NOTHING.to_owned()))?;
        let as_f32 = |values: Vec<f64>| Elements::F32(values.into_iter().map(|v| v as f32).collect());
        let (width, values) = (head.width as usize, as_f32(weight));
        // A convolution has its classes first.
        let tensor = if is_map(model, head)? {
            let Elements::F32(v) = &values else { unreachable!("just made") };
            let turned = (0..classes * width).map(|i| v[(i % width) * classes + i / width]).collect();
            Tensor::new([classes, width, 1, 1], Elements::F32(turned))?
        } else {
            Tensor::new([width, classes], values)?
        };
        weights.insert(head.weight.clone(), tensor);
        weights.insert(head.bias.clone(), Tensor::new([classes], as_f32(bias))?);
    }
    Ok(with_weights(model, &weights)?)
}

const NOTHING: &str = "the data set has no example with one class; heads of a classifier learn those";

/// Names, each once.
fn distinct<'n>(names: &[&'n str]) -> Vec<&'n str> {
    let mut seen = HashSet::new();
    names.iter().copied().filter(|name| seen.insert(*name)).collect()
}

/// The outputs of [`distinct`] names, one for each name.
fn given<'o>(names: &[&str], outputs: &'o [Tensor]) -> Vec<&'o Tensor> {
    let order = distinct(names);
    let at: BTreeMap<&str, usize> = order.into_iter().enumerate().map(|(i, name)| (name, i)).collect();
    names.iter().map(|name| &outputs[at[name]]).collect()
}

fn is_map(model: &Model, head: &Head) -> Result<bool, TrainError> {
    let types = infer_types(model)?;
    Ok(types.get(&head.weight).and_then(|t| t.shape.as_ref()).is_some_and(|shape| shape.len() == 4))
}

/// How many classes an output tells apart.
fn classes(model: &Model, output: &str, axis: i64) -> Result<usize, TrainError> {
    let types = infer_types(model)?;
    let shape = types.get(output).and_then(|t| t.shape.clone()).unwrap_or_default();
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let classes = usize::try_from(axis).ok().and_then(|axis| shape.get(axis)?.known());
    classes.map(|n| n as usize).ok_or_else(|| TrainError::Fit(format!("`{output}` has no fixed number of classes")))
}

/// Calls `each` with the features of places and their class.
fn each_place(
    features: &Tensor,
    end: &Tensor,
    targets: &Tensor,
    each: &mut dyn FnMut(&[f32], usize),
) -> Result<(), TrainError> {
    let floats =
        |t: &Tensor| Ok::<_, TrainError>(t.as_f32().ok_or_else(|| TrainError::Fit(NOT_F32.to_owned()))?.to_vec());
    let (values, said) = (floats(features)?, floats(end)?);
    match (features.shape(), end.shape()) {
        (&[_, width], _) => {
            let classes = end.shape().last().copied().unwrap_or(0);
            for (row, class) in values.chunks_exact(width).zip(classes_of(targets)) {
                if let Some(class) = class.filter(|class| *class < classes) {
                    each(row, class);
                }
            }
        }
        (&[batch, places, width], &[_, _, classes]) => {
            let every = places.div_ceil(PLACES_MAX).max(1);
            for place in (0..batch * places).filter(|place| place % places % every == 0) {
                let scores = &said[place * classes..(place + 1) * classes];
                each(&values[place * width..(place + 1) * width], largest(scores.iter().copied()));
            }
        }
        (&[batch, width, down, across], &[_, classes, height, broad]) => {
            let every = (down * across).div_ceil(PLACES_MAX).max(1);
            for example in 0..batch {
                for place in (0..down * across).step_by(every) {
                    let at = |channel: usize| values[(example * width + channel) * down * across + place];
                    let row: Vec<f32> = (0..width).map(at).collect();
                    // The middle of what the place stands for.
                    let y = (place / across) * (height / down) + height / down / 2;
                    let x = (place % across) * (broad / across) + broad / across / 2;
                    let score = |class: usize| said[((example * classes + class) * height + y) * broad + x];
                    each(&row, largest((0..classes).map(score)));
                }
            }
        }
        _ => return Err(TrainError::Fit("a head's features don't fit the model's answer".to_owned())),
    }
    Ok(())
}

const NOT_F32: &str = "features and answers must be f32";

/// The first of the largest.
fn largest(values: impl Iterator<Item = f32>) -> usize {
    let best = |best: (usize, f32), (i, v): (usize, f32)| if v > best.1 { (i, v) } else { best };
    values.enumerate().fold((0, f32::NEG_INFINITY), best).0
}

/// Trains heads on the sum of all exits' losses (BranchyNet: Teerapittayanon
/// 2016), the model's own end among them where the trunk is trained as well.
///
/// # Errors
/// As [`run`](fn@run).
pub fn train(
    with: &Fitting<'_>,
    model: &Model,
    exits: &Exits,
    heads: &[Head],
    training: &Training,
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<Model, TrainError> {
    let judged = exits.judged(model).map_err(|e| TrainError::Fit(e.to_string()))?;
    let own: HashSet<&String> = heads.iter().flat_map(|head| &head.parameters).collect();
    let trunk = parameters(model, &[])?.into_iter().filter(|name| !own.contains(name));
    let also = exits.exits.iter().filter_map(|exit| exit.outputs.get(&judged).cloned());
    let also = also.map(|output| Also { output, weight: 1.0 }).collect();
    let targets = tierline_graph::step::Targets::Classes;
    let loss = Loss::CrossEntropy { targets, smoothing: 0.0, weights: Vec::new() };
    let freeze = if training.with_trunk { Vec::new() } else { trunk.collect() };
    let steps = Steps { epochs: training.epochs, rate: training.rate, seed: training.seed };
    stepped(with, model, loss, (judged, also), freeze, steps, tell)
}

/// Steps of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// How often every example is seen.
    pub epochs: u64,
    /// Learning rate, which falls along half a cosine.
    pub rate: f64,
    /// Of the order of examples.
    pub seed: u64,
}

/// The model, trained on the loss of an output and of others beside it; what
/// is frozen stays as it is.
pub(crate) fn stepped(
    with: &Fitting<'_>,
    model: &Model,
    loss: Loss,
    (output, also): (String, Vec<Also>),
    freeze: Vec<String>,
    Steps { epochs, rate, seed }: Steps,
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<Model, TrainError> {
    let batch = BatchOptions { seed, ..with.batch.clone() };
    let per_epoch = Batches::start(with.data, &batch, Position::default(), 1)?.per_epoch() as u64;
    let moments = tierline_graph::step::Moments { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let steps = (epochs * per_epoch).max(1);
    let recipe = Recipe {
        loss,
        output: Some(output),
        also,
        optimizer: Optimizer::Adam(moments),
        schedule: Schedule { rate, warmup: 0, decay: Decay::Cosine { steps, last: 0.0 } },
        freeze,
        seed,
        ..Recipe::default()
    };
    let mut trainer = Trainer::new(&with.engine, model.clone(), &recipe, &with.load)?;
    let options = RunOptions { epochs, batch, evaluate_every: epochs, checkpoint_every: 0 };
    run(&mut trainer, with.data, None, &options, None, &Stop::never(), tell)?;
    trainer.export()
}

/// Fits what a learned criterion reads: whether the model's end answers the
/// same class, from what the head sees and its largest probabilities.
///
/// # Errors
/// When the heads have none, or the engine fails.
pub fn sureness(with: &Fitting<'_>, model: &Model, exits: &Exits, heads: &[Head]) -> Result<Model, TrainError> {
    let judged = exits.judged(model).map_err(|e| TrainError::Fit(e.to_string()))?;
    let mut tensors: Vec<&str> = Vec::new();
    for head in heads {
        tensors.extend([head.features.as_str(), head.logits.as_str()]);
    }
    tensors.push(&judged);
    let mut fits: Vec<Logistic> = Vec::new();
    each_batch(with, model, &distinct(&tensors), &mut |outputs, _| {
        let given = given(&tensors, outputs);
        let end = given[tensors.len() - 1];
        for (i, pair) in given[..tensors.len() - 1].chunks_exact(2).enumerate() {
            let (features, logits) = (pair[0], pair[1]);
            let [Some(x), Some(scores), Some(said)] = [features, logits, end].map(Tensor::as_f32) else {
                return Err(TrainError::Fit(NOT_F32.to_owned()));
            };
            let (&[batch, width], &[_, classes]) = (features.shape(), logits.shape()) else {
                return Err(TrainError::Fit("a learned criterion takes one class per example".to_owned()));
            };
            let top = classes.min(3);
            if fits.len() == i {
                fits.push(Logistic::new(width + top));
            }
            for example in 0..batch {
                let own = &scores[example * classes..(example + 1) * classes];
                let end = &said[example * classes..(example + 1) * classes];
                let mut row = x[example * width..(example + 1) * width].to_vec();
                row.extend(best(own, top));
                fits[i].learn(row, largest(own.iter().copied()) == largest(end.iter().copied()));
            }
        }
        Ok(fits.first().is_some_and(|fit| fit.len() < SURENESS_EXAMPLES_MAX))
    })?;
    let mut weights = HashMap::new();
    for (head, fit) in heads.iter().zip(fits) {
        let [weight, bias] = head.sureness.clone().ok_or_else(|| TrainError::Fit("no sureness to fit".to_owned()))?;
        let (w, b) = fit.solve();
        let values = w.iter().map(|v| *v as f32).collect();
        weights.insert(weight, Tensor::new([w.len(), 1], Elements::F32(values))?);
        weights.insert(bias, Tensor::new([1], Elements::F32(vec![b as f32]))?);
    }
    Ok(with_weights(model, &weights)?)
}

/// The largest probabilities of logits, from large to small.
fn best(logits: &[f32], count: usize) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut shares: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
    let sum: f32 = shares.iter().sum();
    shares.iter_mut().for_each(|p| *p /= sum);
    shares.sort_by(|a, b| b.total_cmp(a));
    shares.truncate(count);
    shares
}
