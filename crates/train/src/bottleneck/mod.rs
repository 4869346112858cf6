//! Fits a bottleneck's encoder and decoder: first to the principal components
//! of what is sent, then step by step to what the model answers without it.
//!
//! Bottlenecks come from [`tierline_graph::bottleneck::attach`]. [`principal`]
//! finds the best linear code in closed form; [`train`] takes steps through
//! the quantiser, whose gradient is that of the numbers before it, towards the
//! answers of the model itself (BottleNet++: Shao 2020; distillation: Hinton
//! 2015). The model's own weights stay as they are, or those before the tensor.

mod principal;

use std::collections::HashSet;

use tierline_graph::bottleneck::Coder;
use tierline_graph::exits::{Answer, Scores, answer, with_weights};
use tierline_graph::step::{Loss, parameters};
use tierline_graph::{Elements, Model, Tensor};

use self::principal::Patches;
use crate::data::{Dataset, Targets};
use crate::error::TrainError;
use crate::exits::{Fitting, Steps, answers, each_batch, stepped};
use crate::run::Event;

/// Multiply-adds that the covariance of patches may take.
const COVARIANCE_MACS: usize = 6_000_000_000;

/// Patches of an example, at most: neighbours tell much the same.
const PATCHES_PER_EXAMPLE_MAX: usize = 64;

/// Divides the logits of both where one model learns of the other.
const TEMPERATURE: f64 = 2.0;

/// Probabilities below this have the logarithm of it.
const PROBABILITY_MIN: f32 = 1e-12;

/// Gives an encoder and its decoder the best linear code of what they take:
/// the principal components of its patches.
///
/// # Errors
/// When the model doesn't take the data, or the engine fails.
pub fn principal(with: &Fitting<'_>, model: &Model, coder: &Coder, seed: u64) -> Result<Model, TrainError> {
    let (width, codes) = (coder.width as usize, coder.codes as usize);
    let rows_max = (COVARIANCE_MACS / (width * width / 2).max(1)).clamp(4 * width, 40_000);
    // Data sets may be sorted by class: every so many examples, rather than the first.
    let every = with.data.len().div_ceil(rows_max).max(1);
    let some: Vec<usize> = (0..with.data.len()).step_by(every).collect();
    let data = with.data.subset(&some)?;
    let per_example = rows_max.div_ceil(some.len().max(1)).min(PATCHES_PER_EXAMPLE_MAX);
    let mut patches = Patches::new(width);
    each_batch(&Fitting { data: &data, ..with.clone() }, model, &[&coder.tensor], &mut |outputs, _| {
        let taken = outputs.first().and_then(|tensor| patches.take(coder, tensor, per_example));
        taken.ok_or_else(|| TrainError::Bottleneck(format!("`{}` is no tensor of f32", coder.tensor)))?;
        Ok(patches.len() < rows_max)
    })?;
    let found = patches.principal(codes, seed);
    let weights = coder.weights(&found.components, &found.deviations, &found.mean);
    Ok(with_weights(model, &weights)?)
}

/// Trains an encoder and its decoder towards what `before`, the model without
/// them, answers; with them what lies behind, where `behind` says so.
///
/// # Errors
/// As [`run`](fn@crate::run).
pub fn train(
    with: &Fitting<'_>,
    before: &Model,
    model: &Model,
    coder: &Coder,
    (steps, behind): (Steps, bool),
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<Model, TrainError> {
    let (output, form, _, scores) = answer(before)?;
    let (mut said, _) = answers(with, before, &[&output.name])?;
    let said = said.pop().ok_or_else(|| TrainError::Bottleneck("the model answers nothing".to_owned()))?;
    let loss = match form {
        Answer::Class | Answer::Map => Loss::Kl { temperature: TEMPERATURE },
        // Classes are along another axis than the divergence takes them.
        Answer::Positions => Loss::Mse,
    };
    let said =
        if matches!(loss, Loss::Kl { .. }) && scores == Scores::Probabilities { logarithm(&said)? } else { said };
    let rows: Vec<usize> = (0..with.data.len()).collect();
    let taught = Dataset::new(with.data.name(), with.data.features(&rows)?, Targets::Values(said))?;
    let own: HashSet<&String> = coder.parameters().collect();
    let ahead = coder.before(model);
    let stays = |name: &String| !own.contains(name) && (!behind || ahead.contains(name));
    let freeze = parameters(model, &[])?.into_iter().filter(stays).collect();
    let with = Fitting { data: &taught, ..with.clone() };
    stepped(&with, model, loss, (output.name, Vec::new()), freeze, steps, tell)
}

/// Probabilities as logits.
fn logarithm(probabilities: &Tensor) -> Result<Tensor, TrainError> {
    let values = probabilities.as_f32().unwrap_or_default();
    let logits = values.iter().map(|p| p.max(PROBABILITY_MIN).ln()).collect();
    Ok(Tensor::new(probabilities.shape().to_vec(), Elements::F32(logits))?)
}
