//! The Open Inference Protocol, version 2, with what Triton adds to it: what
//! applications ask of a node, over HTTP ([`rest`]) and gRPC ([`messages`]).
//!
//! Pure: bytes and messages in, a checked [`Request`] out; answers the other
//! way. Nothing here knows models, nodes or sockets. Start at [`Request`].

mod data;
pub mod grpc;
/// Messages and the service, generated from `proto/open_inference.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
#[rustfmt::skip]
pub mod messages;
pub mod rest;
mod tensor;
pub mod weigh;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use self::tensor::{Datatype, Tensor};
use crate::limits::{NAME_BYTES_MAX, TENSORS_MAX};
use crate::v1::{Code, Failure};

/// The version of what never had another.
pub const VERSION: &str = "1";

/// Parameters of one request or tensor.
const PARAMETERS_MAX: usize = 64;

/// Length of a request's own name, and of a parameter's text, bytes.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number beyond those.
    Uint(u64),
    /// Any number.
    Float(f64),
    /// Text.
    Text(String),
}

/// Parameters by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// An output that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whether its elements come as bytes behind the answer's JSON; none leaves
    /// it to the request.
    pub binary: Option<bool>,
}

/// What an application asks: tensors that are what they say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// Its own name for it, said back in the answer.
    pub id: String,
    /// What else it says.
    pub parameters: Parameters,
    /// Inputs, each name once.
    pub inputs: Vec<Tensor>,
    /// In place of inputs: the bytes of the model's only one.
    pub raw: Option<Bytes>,
    /// Outputs that it wants, each name once; none: all.
    pub outputs: Vec<Wanted>,
    /// Whether outputs come as bytes unless they are asked for otherwise.
    pub binary: bool,
}

/// What an application is answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Response {
    /// The model's name.
    pub model: String,
    /// The version that answered.
    pub version: String,
    /// As in the request.
    pub id: String,
    /// How it came about.
    pub parameters: Parameters,
    /// Outputs in order.
    pub outputs: Vec<Tensor>,
}

/// Something that isn't as the protocol has it.
fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidInput, text)
}

impl Request {
    /// Checks what concerns all of it.
    fn checked(self) -> Result<Self, Failure> {
        if self.inputs.len() > TENSORS_MAX || self.outputs.len() > TENSORS_MAX {
            let text = format!("a request has at most {TENSORS_MAX} inputs and outputs");
            return Err(Failure::new(Code::TooLarge, text));
        }
        if self.id.len() > TEXT_BYTES_MAX {
            return Err(Failure::new(Code::TooLarge, format!("an id has at most {TEXT_BYTES_MAX} bytes")));
        }
        check_parameters(&self.parameters)?;
        check_names("input", self.inputs.iter().map(|input| input.name.as_str()))?;
        check_names("output", self.outputs.iter().map(|output| output.name.as_str()))?;
        Ok(self)
    }

    /// Whether an output is to come as bytes.
    #[must_use]
    pub fn is_binary(&self, output: &str) -> bool {
        let wanted = self.outputs.iter().find(|wanted| wanted.name == output);
        wanted.and_then(|wanted| wanted.binary).unwrap_or(self.binary)
    }
}

fn check_names<'n>(what: &str, names: impl Iterator<Item = &'n str>) -> Result<(), Failure> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(invalid(format!("the name of an {what} has 1 to {NAME_BYTES_MAX} bytes")));
        }
        if !seen.insert(name) {
            return Err(invalid(format!("{what} `{name}` is there twice")));
        }
    }
    Ok(())
}

fn check_parameters(parameters: &Parameters) -> Result<(), Failure> {
    if parameters.len() > PARAMETERS_MAX {
        return Err(Failure::new(Code::TooLarge, format!("there are at most {PARAMETERS_MAX} parameters")));
    }
    for (name, value) in parameters {
        let length = name.len() + if let Parameter::Text(text) = value { text.len() } else { 0 };
        if length > TEXT_BYTES_MAX {
            return Err(Failure::new(Code::TooLarge, format!("a parameter has at most {TEXT_BYTES_MAX} bytes")));
        }
    }
    Ok(())
}

/// Refuses what other servers do with tensors and this one doesn't, rather
/// than answer something else.
fn refuse_unknown(of: &str, parameters: &Parameters) -> Result<(), Failure> {
    for name in ["shared_memory_region", "classification"] {
        if parameters.contains_key(name) {
            return Err(invalid(format!("`{of}`: parameter `{name}` isn't supported here")));
        }
    }
    Ok(())
}
