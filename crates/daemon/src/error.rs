//! Why a node doesn't start, or something beside it can't be read or made: of
//! which kind it is, what failed and why, what to try next.
//!
//! How a request fails is [`tierline_proto::Failure`]; with which exit code a
//! command ends is for the command line to say.

use std::fmt;

use tierline_proto::{Code, Failure};

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was given: a model's shapes, say.
    Input,
    /// A configuration file or value, or the place that it names.
    Configuration,
    /// A digest, signature or certificate doesn't verify.
    Verification,
    /// What a node would refuse a request with.
    Refused(Code),
    /// Something else.
    Other,
}

/// What failed and why, of which kind it is, and what to try next.
#[derive(Debug)]
pub struct NodeError {
    /// What is wrong.
    pub kind: ErrorKind,
    /// What failed and why.
    pub error: anyhow::Error,
    /// The next command to try.
    pub hint: Option<String>,
}

/// What a node's parts give, or why they don't.
pub type NodeResult<T = ()> = Result<T, NodeError>;

impl NodeError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, error: impl Into<anyhow::Error>) -> Self {
        Self { kind, error: error.into(), hint: None }
    }

    /// One that a sentence describes.
    pub fn message(kind: ErrorKind, text: impl fmt::Display) -> Self {
        Self::new(kind, anyhow::anyhow!("{text}"))
    }

    /// The same with what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for NodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<anyhow::Error> for NodeError {
    fn from(error: anyhow::Error) -> Self {
        Self::new(ErrorKind::Other, error)
    }
}

impl From<std::io::Error> for NodeError {
    fn from(error: std::io::Error) -> Self {
        Self::new(ErrorKind::Other, error)
    }
}

impl From<Failure> for NodeError {
    fn from(failure: Failure) -> Self {
        let node = if failure.node.is_empty() { String::new() } else { format!("{}: ", failure.node) };
        let error = Self::message(ErrorKind::Refused(failure.code()), format!("{node}{}", failure.message));
        if failure.help.is_empty() { error } else { error.hint(failure.help) }
    }
}

/// Says of which kind any error is.
pub(crate) trait OfKind<T> {
    /// The error as a [`NodeError`] of this kind.
    fn of_kind(self, kind: ErrorKind) -> NodeResult<T>;
}

impl<T, E: Into<anyhow::Error>> OfKind<T> for Result<T, E> {
    fn of_kind(self, kind: ErrorKind) -> NodeResult<T> {
        self.map_err(|error| NodeError::new(kind, error))
    }
}
