//! What is wrong with a federation or a contribution.

use tierline_codec::CodecError;

use crate::sum::SumError;

/// Why a federation can't be run, or a contribution can't be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FederateError {
    /// A number outside of its range.
    #[error("{what} is {value}; it must be {range}")]
    Range {
        /// What.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// Settings that exclude each other.
    #[error("{what}: {reason}")]
    Setting {
        /// Where.
        what: &'static str,
        /// Why not, and what to do.
        reason: String,
    },
    /// A vector of another model.
    #[error("the update's `{channel}` has {given} numbers where the model has {expected}; it belongs to another model")]
    Length {
        /// Of what.
        channel: &'static str,
        /// The model's.
        expected: usize,
        /// The vector's.
        given: usize,
    },
    /// A vector is missing or too many.
    #[error("the update has the vectors {given}; the strategy takes {expected}")]
    Channels {
        /// What the strategy takes.
        expected: String,
        /// What came.
        given: String,
    },
    /// A report that can't be true.
    #[error("the update says {what}: {value}; that must be {range}")]
    Report {
        /// What it says.
        what: &'static str,
        /// Of it.
        value: f64,
        /// What that may be.
        range: &'static str,
    },
    /// Examples that can't travel.
    #[error(
        "an update of {examples} examples with {each} numbers each; at least one example and at most {max} numbers travel: divide the model where its features are smaller"
    )]
    Examples {
        /// Their number.
        examples: u64,
        /// Numbers of each.
        each: u64,
        /// Numbers that may travel.
        max: u64,
    },
    /// A label that is no class.
    #[error("the update says that an example is of class {label}; the model has the classes 0 to {}", .classes.saturating_sub(1))]
    Label {
        /// What it says.
        label: f32,
        /// Classes there are.
        classes: usize,
    },
    /// An evaluation that can't be true.
    #[error("what the update says of a model can't be: 1 to 2^32 examples, a finite loss, an accuracy from 0 to 1")]
    HeldOut,
    /// Something said of an example that would drown all others.
    #[error(
        "the update's `{channel}` hold {value:e} for an example; at most {max:e} travels: normalise the model's inputs"
    )]
    Value {
        /// Of what.
        channel: &'static str,
        /// What it is.
        value: f32,
        /// What may travel.
        max: f32,
    },
    /// A rule that a round's answers are too few for.
    #[error(
        "{what}: rule {rule} needs {needs} answers, and a round has {has}: ask more members (clients.per_round, or the \
         buffer's size), lower rule.share, or take the median"
    )]
    TooFew {
        /// Where.
        what: &'static str,
        /// Which.
        rule: &'static str,
        /// Answers that it needs.
        needs: usize,
        /// Answers of a round.
        has: usize,
    },
    /// A running variance below zero.
    #[error("the update says that the running variance `{part}` is {value}; nobody measures less than 0")]
    Variance {
        /// Tensor of the model.
        part: String,
        /// What it is.
        value: f32,
    },
    /// A number that isn't finite.
    #[error("the update holds {value} for `{part}`")]
    NotFinite {
        /// Tensor of the model.
        part: String,
        /// What it is.
        value: f32,
    },
    /// A vector that can't be added.
    #[error("the update's `{channel}`: {source}")]
    Sum {
        /// Of what.
        channel: &'static str,
        /// Why.
        source: SumError,
    },
    /// Bytes that are no update.
    #[error("the update can't be read: {0}")]
    Codec(#[from] CodecError),
    /// Bytes that make no sense.
    #[error("the update can't be read: {0}")]
    Broken(&'static str),
    /// Updates that wait for a rule can't be kept.
    #[error("updates of this round can't be kept until it ends: {reason}")]
    SpillStore {
        /// What kind of error of input or output.
        kind: std::io::ErrorKind,
        /// What it says.
        reason: String,
    },
    /// Nothing to put together.
    #[error("a round needs at least one update")]
    Empty,
}

impl FederateError {
    pub(crate) fn of_spill_store(error: &std::io::Error) -> Self {
        Self::SpillStore { kind: error.kind(), reason: error.to_string() }
    }
}
