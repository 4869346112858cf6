//! Checks of what stands before the tensors: a run's header and its reply.
//!
//! Every header from the wire passes here before anything is allocated for
//! it; [`crate::frame::Assembler`] checks the tensors it declares.

use crate::Digest;
use crate::digest::DigestError;
use crate::limits::{
    BOUNDARIES_MAX, CODEC_NAME_BYTES_MAX, DEADLINE_MS_MAX, HOPS_MAX, NAME_BYTES_MAX, STAGES_MAX, TENSORS_MAX,
    TEXT_BYTES_MAX,
};
use crate::v1::{Code, Failure, Reply, Route, RunHeader};

/// Names a request everywhere it runs.
pub type RequestId = [u8; 16];

/// What a header names, in types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// The request.
    pub request: RequestId,
    /// The prepared model.
    pub model: Digest,
}

/// How a header or reply breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The request's name is not 16 bytes.
    #[error("a request is named by 16 bytes, not {0}")]
    Request(usize),
    /// The reply is to another request.
    #[error("the reply is to another request")]
    OtherRequest,
    /// The model's digest is none.
    #[error("the model's digest: {0}")]
    Model(#[from] DigestError),
    /// No route.
    #[error("the header has no route")]
    NoRoute,
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
    /// A text is longer than its limit, or empty where it may not be.
    #[error("{what} of {length} bytes; the limit is {max}")]
    Text {
        /// Which.
        what: &'static str,
        /// Its length.
        length: usize,
        /// Limit.
        max: usize,
    },
    /// Cuts that go back along the route.
    #[error("{} comes after {} in the route; a route never goes back", place(*.next), place(*.before))]
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
}

impl HeaderError {
    /// The failure on the wire.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::TooMany { .. } | Self::Text { .. } => Code::TooLarge,
            _ => Code::Protocol,
        };
        Failure::new(code, self.to_string())
    }
}

/// Checks a request's header.
///
/// # Errors
/// Names the first field that is wrong.
pub fn check_run(header: &RunHeader) -> Result<Checked, HeaderError> {
    let request = request_id(&header.request)?;
    let model = Digest::try_from(&header.model)?;
    check_route(header.route.as_ref().ok_or(HeaderError::NoRoute)?)?;
    if header.hops > HOPS_MAX {
        return Err(HeaderError::Hops(header.hops));
    }
    if header.remaining_us > DEADLINE_MS_MAX * 1_000 {
        return Err(HeaderError::Deadline(header.remaining_us));
    }
    text("trace", &header.trace, NAME_BYTES_MAX)?;
    Ok(Checked { request, model })
}

/// Checks a route: cuts in order, bounded lists and names.
///
/// # Errors
/// Names the first field that is wrong.
pub fn check_route(route: &Route) -> Result<(), HeaderError> {
    count("boundaries", route.boundaries.len(), BOUNDARIES_MAX)?;
    text("the reply's codec", &route.reply_codec, CODEC_NAME_BYTES_MAX)?;
    let mut before = route.from;
    for boundary in &route.boundaries {
        // Equal where a tier runs nothing and passes on; the inputs (`None`)
        // come before every cut.
        if boundary.cut < before {
            return Err(HeaderError::Order { before, next: boundary.cut });
        }
        before = boundary.cut;
        count("tensors of a boundary", boundary.tensors.len(), TENSORS_MAX)?;
        for tensor in &boundary.tensors {
            text("a tensor's name", &tensor.name, NAME_BYTES_MAX)?;
            text("a codec's name", &tensor.codec, CODEC_NAME_BYTES_MAX)?;
        }
    }
    Ok(())
}

/// Checks the reply to `request`.
///
/// # Errors
/// Names the first field that is wrong.
pub fn check_reply(request: RequestId, reply: &Reply) -> Result<(), HeaderError> {
    if request_id(&reply.request)? != request {
        return Err(HeaderError::OtherRequest);
    }
    count("stages", reply.stages.len(), STAGES_MAX)?;
    for stage in &reply.stages {
        text("a node's name", &stage.node, NAME_BYTES_MAX)?;
    }
    if let Some(degraded) = &reply.degraded {
        text("a reason", &degraded.reason, 4 * TEXT_BYTES_MAX)?;
        text("a node's name", &degraded.node, NAME_BYTES_MAX)?;
    }
    if let Some(failure) = &reply.failure {
        text("a failure's message", &failure.message, TEXT_BYTES_MAX)?;
        text("a failure's help", &failure.help, TEXT_BYTES_MAX)?;
        text("a node's name", &failure.node, NAME_BYTES_MAX)?;
    }
    Ok(())
}

fn request_id(bytes: &[u8]) -> Result<RequestId, HeaderError> {
    bytes.try_into().map_err(|_| HeaderError::Request(bytes.len()))
}

fn count(what: &'static str, count: usize, max: usize) -> Result<(), HeaderError> {
    if count > max { Err(HeaderError::TooMany { what, count, max }) } else { Ok(()) }
}

fn text(what: &'static str, text: &str, max: usize) -> Result<(), HeaderError> {
    if text.len() > max { Err(HeaderError::Text { what, length: text.len(), max }) } else { Ok(()) }
}

fn place(cut: Option<u32>) -> String {
    cut.map_or_else(|| "the inputs".to_owned(), |cut| format!("cut {cut}"))
}
