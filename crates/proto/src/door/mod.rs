//! What comes from another node, checked once, where it comes in.
//!
//! A message from the wire is a claim: lists may be of any length, names of
//! any kind, numbers may be no numbers. Here each becomes a [`Sound`] one,
//! which nothing else can make, and the code behind takes only those. What is
//! out of the question is a [`Breach`]; sizes that only would be absurd are
//! taken to the nearest end of their range, and texts for people are cut, so
//! that a newer node with more to say is still heard.
//!
//! Pure, and no I/O. [`session`] has what parents and children say, [`run`]
//! what stands before tensors, [`job`] federations, [`files`] artefacts and
//! enrolment, [`applications`] who asks. Start at [`Sound`].

pub mod applications;
pub mod files;
pub mod job;
pub mod run;
pub mod session;

use std::ops::Deref;

use bytes::Bytes;

use crate::digest::DigestError;
use crate::limits::{DEADLINE_MS_MAX, EXITS_MAX, HOPS_MAX, TEXT_BYTES_MAX, WORD_BYTES_MAX};
use crate::name::{self, NameError, NodeName};
use crate::v1::{Code, Failure, LinkEstimate, LoadReport};
use crate::{Digest, FrameError};

/// A message that has passed its door: its lists are bounded, its names are
/// names, its numbers are finite and within their ranges.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sound<M>(M);

impl<M: Door> Sound<M> {
    /// Checks a message as it came.
    ///
    /// # Errors
    /// The first thing that breaks the protocol.
    pub fn read(mut message: M) -> Result<Self, Breach> {
        message.check()?;
        Ok(Self(message))
    }

    /// Reads an envelope's payload.
    ///
    /// # Errors
    /// [`Breach::Unreadable`] for bytes that are no such message, and what
    /// breaks the protocol in it.
    pub fn decode(payload: Bytes) -> Result<Self, Breach>
    where
        M: prost::Message + Default,
    {
        Self::read(M::decode(payload).map_err(|error| Breach::Unreadable(error.to_string()))?)
    }
}

impl<M> Sound<M> {
    /// The message, to be taken apart or passed on.
    #[must_use]
    pub fn into_inner(self) -> M {
        self.0
    }
}

impl<M> Deref for Sound<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.0
    }
}

/// A message that can be checked.
pub trait Door {
    /// Refuses what is out of the question, and takes numbers into their ranges.
    ///
    /// # Errors
    /// The first thing that breaks the protocol.
    fn check(&mut self) -> Result<(), Breach>;
}

/// How a message breaks the protocol.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Breach {
    /// The request's name is not 16 bytes.
    #[error("a request is named by 16 bytes, not {0}")]
    Request(usize),
    /// The reply is to another request.
    #[error("the reply is to another request")]
    OtherRequest,
    /// Something that should be named by a digest.
    #[error("{what}: {error}")]
    Digest {
        /// Of what.
        what: &'static str,
        /// How it is none.
        error: DigestError,
    },
    /// A part that must be there.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// Bytes that are not the message that they should be.
    #[error("that is no message of this kind: {0}")]
    Unreadable(String),
    /// A list is longer than its limit.
    #[error("{count} {what}; the limit is {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Limit.
        max: usize,
    },
    /// Something is longer than its limit, or empty where it may not be.
    #[error("{what} of {length} bytes; the limit is {max}")]
    Long {
        /// Which.
        what: &'static str,
        /// Its length.
        length: u64,
        /// Limit.
        max: u64,
    },
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A word that no node says.
    #[error("{what} `{}` is no word of this protocol", .text.escape_debug())]
    Word {
        /// Which.
        what: &'static str,
        /// Its start.
        text: String,
    },
    /// A number that is none, or can't be.
    #[error("{what} is {value}; it must be {needed}")]
    Number {
        /// Which.
        what: &'static str,
        /// The number.
        value: String,
        /// What it must be.
        needed: &'static str,
    },
    /// Cuts that go back along the route.
    #[error("{} comes after {} in the route; a route never goes back", run::place(*.next), run::place(*.before))]
    Order {
        /// The one before; `None` is the inputs.
        before: Option<u32>,
        /// The one that does not follow.
        next: Option<u32>,
    },
    /// Passed on too often.
    #[error("the request was passed on {0} times, the limit is {HOPS_MAX}: there is a loop")]
    Hops(u32),
    /// A deadline further off than allowed.
    #[error("a deadline {0} us off; the limit is {DEADLINE_MS_MAX} ms")]
    Deadline(u64),
    /// An exit that no model has, or out of order.
    #[error("exit {0} is out of order or beyond the limit {EXITS_MAX}")]
    Exit(u32),
    /// A threshold that is no number.
    #[error("a threshold of {0}")]
    Threshold(f64),
    /// A choice that this version doesn't know.
    #[error("{what} {number} is not known here; update this node")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// The choice.
        number: i32,
    },
    /// The tensors declared.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Breach {
    /// The failure on the wire.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::TooMany { .. } | Self::Long { .. } => Code::TooLarge,
            Self::Frame(error) => return error.failure(),
            _ => Code::Protocol,
        };
        Failure::new(code, self.to_string())
    }
}

impl From<Breach> for Failure {
    fn from(breach: Breach) -> Self {
        breach.failure()
    }
}

impl From<Breach> for tonic::Status {
    fn from(breach: Breach) -> Self {
        breach.failure().into_status()
    }
}

/// Bytes per second that a link may have: from less than a telegraph's to more
/// than any bus's.
pub const BANDWIDTH_RANGE: [f64; 2] = [1.0, 1e12];

/// Longest time that anything is said to take; what is longer is taken for it.
pub const TIME_NS_MAX: u64 = 24 * 3_600 * 1_000_000_000;

/// Most bytes that anything is said to have.
pub const BYTES_MAX: u64 = 1 << 50;

impl Door for LinkEstimate {
    fn check(&mut self) -> Result<(), Breach> {
        for (what, rate) in [
            ("the bandwidth upwards", &mut self.up_bytes_per_s),
            ("the bandwidth downwards", &mut self.down_bytes_per_s),
        ] {
            *rate = finite(what, *rate)?;
            // 0 is unknown.
            if *rate != 0.0 {
                *rate = rate.clamp(BANDWIDTH_RANGE[0], BANDWIDTH_RANGE[1]);
            }
        }
        self.rtt_ns = self.rtt_ns.min(TIME_NS_MAX);
        self.confidence = finite("the confidence in a link", self.confidence)?.min(1.0);
        Ok(())
    }
}

impl Door for LoadReport {
    fn check(&mut self) -> Result<(), Breach> {
        self.utilisation = finite("the utilisation", self.utilisation)?.min(1.0);
        self.wait_ns = self.wait_ns.min(TIME_NS_MAX);
        self.memory_free_bytes = self.memory_free_bytes.min(BYTES_MAX);
        self.memory_max_bytes = self.memory_max_bytes.min(BYTES_MAX);
        Ok(())
    }
}

impl Door for Failure {
    fn check(&mut self) -> Result<(), Breach> {
        if Code::try_from(self.code).is_err() {
            // A newer node's code must not be read as "no failure".
            self.message = format!("{} (its code {} is not known here)", self.message, self.code);
            self.code = Code::Internal.into();
        }
        cut(&mut self.message, TEXT_BYTES_MAX);
        cut(&mut self.help, TEXT_BYTES_MAX);
        cut(&mut self.node, crate::limits::URL_BYTES_MAX);
        Ok(())
    }
}

/// Cuts a text for people so that it fits.
pub(crate) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
}

fn failure(failure: &mut Option<Failure>) -> Result<(), Breach> {
    failure.as_mut().map_or(Ok(()), Door::check)
}

fn count(what: &'static str, count: usize, max: usize) -> Result<(), Breach> {
    if count > max { Err(Breach::TooMany { what, count, max }) } else { Ok(()) }
}

fn long(what: &'static str, length: u64, max: u64) -> Result<(), Breach> {
    if length > max { Err(Breach::Long { what, length, max }) } else { Ok(()) }
}

fn bytes(what: &'static str, bytes: &[u8], max: usize) -> Result<(), Breach> {
    long(what, bytes.len() as u64, max as u64)
}

/// A digest that must be there.
fn digest(what: &'static str, field: &mut Bytes) -> Result<Digest, Breach> {
    let digest = Digest::try_from(&*field).map_err(|error| Breach::Digest { what, error })?;
    // Else it would keep the whole message alive that it came in.
    *field = digest.to_bytes();
    Ok(digest)
}

/// A digest, or nothing.
fn digest_or_none(what: &'static str, field: &mut Bytes) -> Result<(), Breach> {
    if field.is_empty() { Ok(()) } else { digest(what, field).map(drop) }
}

/// A node's name, or nothing.
fn node_or_none(name: &str) -> Result<(), Breach> {
    if name.is_empty() { Ok(()) } else { Ok(NodeName::new(name).map(drop)?) }
}

/// The identity of a node: 32 hexadecimal digits.
fn id(text: &str) -> Result<(), Breach> {
    let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits {
        Ok(())
    } else {
        Err(Breach::Word { what: "the node's identity", text: text.chars().take(40).collect() })
    }
}

fn id_or_none(text: &str) -> Result<(), Breach> {
    if text.is_empty() { Ok(()) } else { id(text) }
}

/// A short word that can be printed; empty where there is none.
fn word(what: &'static str, text: &str, max: usize) -> Result<(), Breach> {
    bytes(what, text.as_bytes(), max)?;
    let printable = text.chars().all(name::is_printable);
    if printable { Ok(()) } else { Err(Breach::Word { what, text: text.chars().take(WORD_BYTES_MAX).collect() }) }
}

/// A number of 0 or more.
fn finite(what: &'static str, value: f64) -> Result<f64, Breach> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(Breach::Number { what, value: value.to_string(), needed: "a number of 0 or more" })
}
