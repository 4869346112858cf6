//! The diagonal of a model's Fisher information: the mean, over examples, of the
//! squared gradient of its log-likelihood.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tierline_engine::{Engine, LoadOptions, StateSlot, Stop};
use tierline_graph::step::{self, Loss, Recipe};
use tierline_graph::{Model, Tensor};

use crate::data::{BatchOptions, Batches, Dataset, Last, Position, Targets, seed_of};
use crate::error::TrainError;
use crate::trainer::{Flat, Runner, fit, fit_targets, fixed_batch, numbers};

/// Keeps these draws apart from others.
const EXAMPLES: u64 = 0x6669_7368;
const CLASSES: u64 = 0x6472_6177;

/// Whose classes gradients are of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// Drawn from what the model says: the Fisher information itself.
    #[default]
    Sampled,
    /// The data set's: what is called the empirical Fisher information.
    Given,
}

/// The diagonal of the Fisher information of a model's weights, over at most
/// `examples` of a data set, drawn by `seed`; flat, by name.
///
/// Gradients are of single examples, and the model is as it is deployed. Where
/// targets are no classes, they are the data set's, whoever was to say them.
///
/// # Errors
/// When the data doesn't fit, or the engine fails or is stopped.
pub fn fisher(at: &At<'_>, dataset: &Dataset, examples: usize, labels: Labels, seed: u64) -> Result<Flat, TrainError> {
    let mut order: Vec<usize> = (0..dataset.len()).collect();
    fastrand::Rng::with_seed(seed_of(&[seed, EXAMPLES])).shuffle(&mut order);
    order.truncate(examples.max(1));
    let drawn = dataset.subset(&order)?;
    let classes = matches!(at.recipe.loss, Loss::CrossEntropy { targets: step::Targets::Classes, .. });
    let drawn = match labels {
        Labels::Sampled if classes && drawn.class_count().is_some() => said(at, &drawn, seed)?,
        _ => drawn,
    };
    squares(at, &drawn)
}

/// Where gradients are computed.
#[derive(Clone)]
pub struct At<'a> {
    /// What runs the graph.
    pub engine: &'a Arc<dyn Engine>,
    /// How it is loaded.
    pub load: &'a LoadOptions,
    /// The model, its weights as they are.
    pub model: &'a Model,
    /// Of its training: the loss, the output, and what is frozen.
    pub recipe: &'a Recipe,
    /// How examples become batches.
    pub batch: &'a BatchOptions,
    /// Ends what runs.
    pub stop: &'a Stop,
}

/// The output that a recipe's loss is about.
pub(super) fn output(model: &Model, recipe: &Recipe) -> String {
    let first = || model.outputs().into_iter().next().map(|o| o.name);
    recipe.output.clone().or_else(first).unwrap_or_default()
}

/// The mean of squared gradients of single examples.
fn squares(at: &At<'_>, dataset: &Dataset) -> Result<Flat, TrainError> {
    let kernels = at.engine.kernels().iter().copied().collect();
    let made = step::squares(at.model, at.recipe, &kernels)?;
    let slots: Vec<StateSlot> =
        made.sums.iter().map(|s| StateSlot { input: s.input.clone(), output: s.output.clone() }).collect();
    let zeros = made.sums.iter().map(|s| s.zero.clone()).collect();
    let mut session = at.engine.load_stateful(&made.model, at.load, &slots, zeros)?;
    let found = |name: &str| session.inputs().iter().find(|v| v.name == name).cloned();
    let wrong = || TrainError::Inputs { inputs: made.inputs.clone() };
    let [name] = &made.inputs[..] else { return Err(wrong()) };
    let (input, target) = (found(name).ok_or_else(wrong)?, found(&made.target).ok_or_else(wrong)?);
    // Of a model whose batch is fixed, each example fills one: the mean over
    // copies is the example's own.
    let copies = fixed_batch(&input).unwrap_or(1);
    let rows: Vec<usize> = (0..dataset.len()).flat_map(|row| std::iter::repeat_n(row, copies)).collect();
    let options = BatchOptions { size: copies, last: Last::Drop, ..at.batch.for_evaluation() };
    let batches = Batches::start(&dataset.subset(&rows)?, &options, Position::default(), 1)?;
    let mut outputs = Vec::new();
    for batch in batches {
        let features = fit(&input, &batch.features)?.unwrap_or(batch.features);
        let targets = fit_targets(&target, &output(at.model, at.recipe), &batch.targets)?.unwrap_or(batch.targets);
        session.run_until(&[(&input.name, &features), (&target.name, &targets)], &mut outputs, at.stop)?;
        session.advance();
    }
    let count = dataset.len().max(1) as f32;
    let mean = |tensor: &Tensor| -> Vec<f32> {
        // What overflowed counts as the most that a weight can matter.
        let whole = |x: f32| if x.is_nan() { 0.0 } else { (x / count).min(super::penalty::STIFFNESS_MAX as f32) };
        numbers(tensor).into_iter().map(whole).collect()
    };
    Ok(made.sums.iter().zip(session.state()?).map(|(sum, tensor)| (sum.weight.clone(), mean(&tensor))).collect())
}

/// The same examples, with classes drawn from what the model says of them.
fn said(at: &At<'_>, dataset: &Dataset, seed: u64) -> Result<Dataset, TrainError> {
    let count = dataset.class_count().unwrap_or_default();
    let runner = Runner { engine: at.engine, options: at.load };
    let logits = runner.answers(at.model, &at.recipe.loss, &output(at.model, at.recipe), dataset, at.batch)?;
    let width = logits.len() / dataset.len();
    let mut rng = fastrand::Rng::with_seed(seed_of(&[seed, CLASSES]));
    let classes = logits.chunks(width.max(1)).map(|row| draw(row, rng.f64()) as u32).collect();
    let rows: Vec<usize> = (0..dataset.len()).collect();
    let targets = Targets::Classes { classes, count: count.max(width), names: Vec::new() };
    Ok(Dataset::new(dataset.name(), dataset.features(&rows)?, targets)?)
}

/// The class at a share of the whole, where each has its probability.
fn draw(logits: &[f32], share: f64) -> usize {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let parts: Vec<f64> = logits.iter().map(|&x| f64::from(x - most).exp()).collect();
    let mut left = share * parts.iter().sum::<f64>();
    for (class, part) in parts.iter().enumerate() {
        left -= part;
        if left < 0.0 {
            return class;
        }
    }
    parts.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_drawn_by_their_probabilities() {
        let logits = [0.0, 3f32.ln()];
        assert_eq!(draw(&logits, 0.0), 0);
        assert_eq!(draw(&logits, 0.249), 0);
        assert_eq!(draw(&logits, 0.251), 1);
        assert_eq!(draw(&logits, 1.0 - f64::EPSILON), 1);
        assert_eq!(draw(&[f32::NAN, f32::NAN], 0.5), 1);
    }
}
