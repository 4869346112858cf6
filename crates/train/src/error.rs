//! Why training can't start, stops, or can't be taken up again.

use std::io::ErrorKind;
use std::path::PathBuf;

use tierline_engine::EngineError;
use tierline_federate::FederateError;
use tierline_graph::exits::AttachError;
use tierline_graph::step::StepError;
use tierline_graph::{DataType, InferError, LoadError, TensorError};

use crate::data::DataError;

/// Why training failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The model can't be trained.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The engine can't run the step.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A step takes too long to be of use.
    #[error(
        "a step on {examples} examples took more than {seconds} s, the most that a member gives it; take smaller batches"
    )]
    Long {
        /// Examples of its batch.
        examples: usize,
        /// Time that it had.
        seconds: u64,
    },
    /// The data set can't be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The trained model isn't valid.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The model's shapes contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// Tensors that don't fit.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A model that can't have exits.
    #[error(transparent)]
    Exits(#[from] AttachError),
    /// A bottleneck that can't be fitted.
    #[error("the bottleneck can't be fitted: {0}")]
    Bottleneck(String),
    /// Heads that can't be fitted.
    #[error("exits can't be fitted: {0}")]
    Fit(String),
    /// Training feeds one input.
    #[error("the model takes {} inputs ({}); a data set feeds one: train a model with one input", .inputs.len(), .inputs.join(", "))]
    Inputs {
        /// Their names.
        inputs: Vec<String>,
    },
    /// Examples that don't fit the model's input.
    #[error("examples of the data set are {example:?}; input `{input}` takes {takes}: {hint}")]
    Example {
        /// Shape of one example.
        example: Vec<usize>,
        /// The model's input.
        input: String,
        /// Its shape.
        takes: String,
        /// What to do.
        hint: &'static str,
    },
    /// A federation that can't be run so.
    #[error(transparent)]
    Federation(#[from] FederateError),
    /// Weights that aren't f32.
    #[error("`{name}` is {dtype}; federations share f32: export the model in single precision")]
    Precision {
        /// The weight.
        name: String,
        /// Its type.
        dtype: DataType,
    },
    /// Models of ends' own that can't be had.
    #[error("federation.personal: {0}")]
    Personal(&'static str),
    /// A weight that would have to stay with the ends and be shared.
    #[error(
        "federation.personal: fedbn keeps `{weight}` with the ends as a part of a batch normalisation, and the layer \
         that gives `{layer}` reads it too, which is shared; name what stays with kind = 'fedper', or untie the two"
    )]
    Tied {
        /// The weight.
        weight: String,
        /// What the other layer gives.
        layer: String,
    },
    /// Training from which no control variates can be told.
    #[error("scaffold tells a member's mean gradient from how far its steps led, and {0}, or another strategy")]
    Control(&'static str),
    /// Learning one task after the other, as it can't be done.
    #[error("continual: {0}")]
    Continual(String),
    /// What a job kept of earlier tasks can't be read, written, or used.
    #[error("{path:?}, kept of earlier tasks: {reason}")]
    Kept {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Several models where weights travel.
    #[error("the job names several models, and weights of one don't fit another; name strategy fedmd, or one model")]
    Models,
    /// A model that ends and the cloud can't train in parts.
    #[error(
        "the model can't be divided at `{features}` ({reason}); `tierline model inspect` lists where it can be cut"
    )]
    Transfer {
        /// The tensor.
        features: String,
        /// Why not.
        reason: String,
    },
    /// Public examples that can't be learned from.
    #[error("public examples of {name}: {reason}")]
    Public {
        /// The data set.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Members that would each measure something else.
    #[error(
        "batch.normalize is `measured`, and every member would measure its own examples; state          `{{ mean = [..], std = [..] }}` (tierline train --local prints what it measured)"
    )]
    Measured,
    /// A vector of another model.
    #[error("{what}: {given} numbers were given where the model has {expected}")]
    Vector {
        /// Of what.
        what: &'static str,
        /// The model's.
        expected: usize,
        /// Those given.
        given: usize,
    },
    /// Targets of another kind than the loss takes.
    #[error("loss {loss} takes {takes}; the data set has {has}")]
    Targets {
        /// The loss.
        loss: &'static str,
        /// What it takes.
        takes: String,
        /// What the data set has.
        has: String,
    },
    /// Targets of another shape than the output.
    #[error(
        "each target of the data set is of shape {has:?}; output `{output}` gives [{gives}] for an example: axes of one \
         element may differ, others not"
    )]
    TargetShape {
        /// Shape of one target.
        has: Vec<usize>,
        /// The model's output.
        output: String,
        /// Its axes behind the batch's.
        gives: String,
    },
    /// More classes in the data than the model tells apart.
    #[error(
        "the data set has {classes} classes; output `{output}` tells {outputs} apart: train a model with {classes} outputs"
    )]
    Classes {
        /// Classes of the data set.
        classes: usize,
        /// The model's output.
        output: String,
        /// Classes it has.
        outputs: u64,
    },
    /// Numbers that overflowed or never were.
    #[error(
        "step {step}: {tensor} is not finite, the first that isn't; lower the learning rate, clip the gradients, or \
         look at the batch (epoch {epoch}, batch {batch}, both from 0)"
    )]
    NotFinite {
        /// Steps taken before.
        step: i64,
        /// What isn't finite.
        tensor: String,
        /// The epoch.
        epoch: u64,
        /// The batch within it.
        batch: usize,
    },
    /// A number outside of its range.
    #[error("{what} is {value}; it must be {range}")]
    Range {
        /// What.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// A checkpoint can't be written.
    #[error(
        "checkpoint {path:?} cannot be written: {source}; the one before it, if there was one, is as it was: {}, and go \
         on from it",
        room(source)
    )]
    CheckpointWrite {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint can't be read, or doesn't fit.
    #[error("checkpoint {path:?}: {reason}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A picture of the curves can't be written.
    #[error("cannot write {path:?}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What to do about a file that can't be written.
fn room(error: &std::io::Error) -> &'static str {
    match error.kind() {
        // Limits on files are set by those who share a disk out.
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "make room, or choose another folder"
        }
        _ => "see to its folder, or choose another one",
    }
}
