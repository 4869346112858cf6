//! What Tierline nodes say to each other: messages, framing, versions,
//! limits and error codes. No I/O; the daemon carries it over gRPC.
//!
//! Start at `proto/tierline.proto` for the messages ([`v1`]), then [`door`] for
//! how a message is checked where it comes in, and [`frame`] for how tensors
//! travel; [`oip`] has what applications speak. `docs/reference/protocol.md` has the tour.

#![forbid(unsafe_code)]

pub mod digest;
pub mod door;
pub mod envelope;
pub mod failure;
pub mod frame;
pub mod limits;
pub mod name;
pub mod oip;
pub mod otlp;
mod role;
pub mod versions;

/// Messages and services, generated from `proto/tierline.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
#[rustfmt::skip]
pub mod v1;

pub use digest::Digest;
pub use door::{Breach, Sound};
pub use frame::{Assembler, Encoded, FrameError};
pub use name::NodeName;
pub use v1::{Code, Failure, Role};
pub use versions::Versions;
