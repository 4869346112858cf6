//! Typed errors on the wire: [`Failure`] in replies, and the same failure
//! inside a gRPC status for calls that end without a reply.
//!
//! The status carries the whole [`Failure`] in its details, so that a code
//! survives the journey; the gRPC code is for tools that know only gRPC.

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use crate::door::{Sound, cut};
use crate::limits::{TEXT_BYTES_MAX, URL_BYTES_MAX};
use crate::v1::{Code, Failure};

impl Failure {
    /// A failure with its message; add [`Failure::help`] and [`Failure::at`].
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message = bounded(message.into(), TEXT_BYTES_MAX);
        Self { code: code.into(), message, help: String::new(), node: String::new() }
    }

    /// Says what to do next.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = bounded(help.into(), TEXT_BYTES_MAX);
        self
    }

    /// Names the node that failed, unless one is named already.
    #[must_use]
    pub fn at(mut self, node: &str) -> Self {
        if self.node.is_empty() {
            self.node = bounded(node.to_owned(), URL_BYTES_MAX);
        }
        self
    }

    /// The failure as a gRPC status, itself in the details.
    #[must_use]
    pub fn into_status(self) -> Status {
        let code = grpc_code(self.code());
        Status::with_details(code, self.to_string(), Bytes::from(self.encode_to_vec()))
    }

    /// The failure a status carries, or the nearest one for a status made
    /// elsewhere (the transport, a proxy).
    #[must_use]
    pub fn from_status(status: &Status) -> Self {
        if let Ok(failure) = Self::decode(status.details())
            && let Ok(failure) = Sound::read(failure)
            && failure.code() != Code::Ok
        {
            return failure.into_inner();
        }
        Self::new(code_of(status.code()), status.message())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.node.is_empty() {
            write!(f, "{}: ", self.node)?;
        }
        if self.message.is_empty() {
            f.write_str(self.code().as_str_name())?;
        } else {
            f.write_str(&self.message)?;
        }
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.into_status()
    }
}

impl Code {
    /// Whether the same call may succeed when repeated, here or elsewhere.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::ModelNotReady | Self::DeadlineExceeded | Self::Overloaded | Self::Unreachable | Self::Draining
        )
    }
}

/// Cuts `text` at a character boundary so that it fits `max` bytes.
fn bounded(mut text: String, max: usize) -> String {
    cut(&mut text, max);
    text
}

impl Code {
    /// The HTTP status for applications, beside [`Failure::into_status`] for gRPC.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidInput | Self::Protocol | Self::VersionMismatch => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::UnknownModel | Self::NotFound => 404,
            Self::AlreadyExists => 409,
            Self::TooLarge => 413,
            Self::Infeasible => 422,
            // As proxies say that a caller is gone.
            Self::Cancelled => 499,
            Self::Ok | Self::Engine | Self::Corrupt | Self::Internal => 500,
            Self::ModelNotReady | Self::Unreachable | Self::Draining | Self::Overloaded | Self::StorageFull => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

/// The gRPC code of a failure.
#[must_use]
pub fn grpc_code(code: Code) -> tonic::Code {
    use tonic::Code as Grpc;
    match code {
        Code::Ok => Grpc::Unknown,
        Code::InvalidInput | Code::Protocol => Grpc::InvalidArgument,
        Code::UnknownModel | Code::NotFound => Grpc::NotFound,
        Code::ModelNotReady | Code::Unreachable | Code::Draining => Grpc::Unavailable,
        Code::Infeasible | Code::VersionMismatch => Grpc::FailedPrecondition,
        Code::DeadlineExceeded => Grpc::DeadlineExceeded,
        Code::Overloaded | Code::StorageFull | Code::TooLarge => Grpc::ResourceExhausted,
        Code::Unauthenticated => Grpc::Unauthenticated,
        Code::Forbidden => Grpc::PermissionDenied,
        Code::Corrupt => Grpc::DataLoss,
        Code::Cancelled => Grpc::Cancelled,
        Code::AlreadyExists => Grpc::AlreadyExists,
        Code::Engine | Code::Internal => Grpc::Internal,
    }
}

fn code_of(code: tonic::Code) -> Code {
    use tonic::Code as Grpc;
    match code {
        Grpc::Cancelled => Code::Cancelled,
        Grpc::InvalidArgument | Grpc::OutOfRange => Code::InvalidInput,
        Grpc::DeadlineExceeded => Code::DeadlineExceeded,
        Grpc::NotFound => Code::NotFound,
        Grpc::AlreadyExists => Code::AlreadyExists,
        Grpc::PermissionDenied => Code::Forbidden,
        Grpc::ResourceExhausted => Code::TooLarge,
        Grpc::FailedPrecondition => Code::Infeasible,
        Grpc::Unimplemented => Code::VersionMismatch,
        Grpc::Unavailable | Grpc::Aborted | Grpc::Unknown => Code::Unreachable,
        Grpc::Unauthenticated => Code::Unauthenticated,
        Grpc::DataLoss => Code::Corrupt,
        Grpc::Internal | Grpc::Ok => Code::Internal,
    }
}
