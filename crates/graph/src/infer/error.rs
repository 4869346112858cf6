//! Why types can't be inferred: the model contradicts itself.

use crate::attributes::Unfit;
use crate::onnx::NodeProto;
use crate::types::Dim;

/// A contradiction between operators, shapes and declarations.
///
/// `node` is the node's name, or `op type -> first output` where it has none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// A tensor has another number of axes than the operator takes.
    #[error("node `{node}`: tensor `{tensor}` has {actual} axes; the operator takes {expected}")]
    Rank {
        /// The node.
        node: String,
        /// The tensor it reads.
        tensor: String,
        /// What the operator takes, in words.
        expected: String,
        /// Axes the tensor has.
        actual: usize,
    },
    /// Two tensors that an operator combines don't fit together.
    #[error("node `{node}`: tensor `{tensor}` of shape {} does not fit {}: {reason}", shape(.actual), shape(.other))]
    Shapes {
        /// The node.
        node: String,
        /// The tensor it reads.
        tensor: String,
        /// That tensor's shape.
        actual: Vec<Dim>,
        /// The shape it must fit.
        other: Vec<Dim>,
        /// In which way it doesn't.
        reason: &'static str,
    },
    /// An axis lies outside a tensor.
    #[error("node `{node}`: tensor `{tensor}` has {rank} axes; axis {axis} is outside")]
    Axis {
        /// The node.
        node: String,
        /// The tensor.
        tensor: String,
        /// The axis asked for.
        axis: i64,
        /// Axes there are.
        rank: usize,
    },
    /// A tensor has an element type that the operator doesn't take.
    #[error("node `{node}`: tensor `{tensor}` holds {actual}; the operator needs {expected}")]
    ElementType {
        /// The node.
        node: String,
        /// The tensor.
        tensor: String,
        /// Type it holds.
        actual: String,
        /// Type needed.
        expected: String,
    },
    /// An attribute or a constant input makes no sense here.
    #[error("node `{node}`, tensor `{tensor}`: {reason}")]
    Invalid {
        /// The node.
        node: String,
        /// The tensor concerned.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The model declares another element type than its operators compute.
    #[error(
        "tensor `{tensor}` is declared as {declared} but node `{node}` computes {inferred}; export the model again"
    )]
    Declared {
        /// The producing node.
        node: String,
        /// The tensor.
        tensor: String,
        /// Type in the model's declarations.
        declared: String,
        /// Type its node computes.
        inferred: String,
    },
    /// A shape was given for something that isn't an input.
    #[error("the model has no input `{name}`; its inputs are {available}")]
    UnknownInput {
        /// Name given.
        name: String,
        /// Names there are.
        available: String,
    },
    /// The shape given for an input isn't one that the model takes.
    #[error("input `{name}` takes shape {}; {given:?} was given", shape(.declared))]
    InputShape {
        /// The input.
        name: String,
        /// Shape in the model.
        declared: Vec<Dim>,
        /// Shape given.
        given: Vec<u64>,
    },
    /// Loops and functions repeat more nodes than [`super::NODES_MAX`].
    #[error("node `{node}`: with functions and loops taken apart the model has more than {max} nodes")]
    TooLarge {
        /// The node at the limit.
        node: String,
        /// The limit.
        max: u64,
    },
    /// Subgraphs or functions nest deeper than [`super::DEPTH_MAX`].
    #[error("node `{node}`: graphs and functions nest deeper than {max}")]
    TooDeep {
        /// The node at the limit.
        node: String,
        /// The limit.
        max: usize,
    },
}

/// A shape that the model declares and its operators contradict. It isn't an
/// error: what is computed counts, as in other engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// The producing node.
    pub node: String,
    /// The tensor.
    pub tensor: String,
    /// Type in the model's declarations.
    pub declared: String,
    /// Type its node computes.
    pub inferred: String,
}

impl std::fmt::Display for Contradiction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, tensor, declared, inferred } = self;
        write!(f, "tensor `{tensor}` is declared as {declared} but node `{node}` computes {inferred}, which counts")
    }
}

/// What a rule found wrong, before node and tensor names are added.
/// `input` counts the node's inputs.
#[derive(Debug)]
pub(super) enum Fault {
    Rank { input: usize, expected: &'static str, actual: usize },
    Shapes { input: usize, actual: Vec<Dim>, other: Vec<Dim>, reason: &'static str },
    Axis { input: usize, axis: i64, rank: usize },
    ElementType { input: usize, actual: String, expected: String },
    Invalid { input: usize, reason: String },
    Inner(Box<InferError>),
}

impl Fault {
    pub(super) fn invalid(input: usize, reason: impl Into<String>) -> Self {
        Self::Invalid { input, reason: reason.into() }
    }

    pub(super) fn shapes(input: usize, actual: &[Dim], other: &[Dim], reason: &'static str) -> Self {
        Self::Shapes { input, actual: actual.to_vec(), other: other.to_vec(), reason }
    }

    pub(super) fn at(self, node: &NodeProto) -> InferError {
        let name = node_name(node);
        let tensor = |i: usize| node.input.get(i).or(node.output.first()).cloned().unwrap_or_default();
        match self {
            Self::Rank { input, expected, actual } => {
                InferError::Rank { node: name, tensor: tensor(input), expected: expected.to_owned(), actual }
            }
            Self::Shapes { input, actual, other, reason } => {
                InferError::Shapes { node: name, tensor: tensor(input), actual, other, reason }
            }
            Self::Axis { input, axis, rank } => InferError::Axis { node: name, tensor: tensor(input), axis, rank },
            Self::ElementType { input, actual, expected } => {
                InferError::ElementType { node: name, tensor: tensor(input), actual, expected }
            }
            Self::Invalid { input, reason } => InferError::Invalid { node: name, tensor: tensor(input), reason },
            Self::Inner(error) => *error,
        }
    }
}

impl From<Unfit> for Fault {
    fn from(unfit: Unfit) -> Self {
        Self::invalid(0, unfit.0)
    }
}

impl From<InferError> for Fault {
    fn from(error: InferError) -> Self {
        Self::Inner(Box::new(error))
    }
}

pub(super) fn node_name(node: &NodeProto) -> String {
    if node.name().is_empty() {
        format!("{} -> {}", node.op_type(), node.output.first().map_or("", |o| o.as_str()))
    } else {
        node.name().to_owned()
    }
}

pub(super) fn shape(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}
