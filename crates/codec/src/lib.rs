//! Tensors to bytes and back, for activations on the wire; and model updates,
//! smaller and with loss, in [`update`].
//!
//! Every codec is one short file and one line in [`codecs`]; encodings say
//! what they are, so a decoder needs only the bytes. Start at [`Codec`].
//!
//! # Adding a codec
//!
//! 1. Write `src/mine.rs` with a unit struct that implements [`Codec`]:
//!    - `encode` writes [`frame::Header`] first (element type and shape of the
//!      tensor as it was given), then whatever you like. Refuse element types
//!      with [`CodecError::Type`] and values you can't hold with
//!      [`CodecError::Value`]; a planner then takes another codec.
//!    - `decode_within` gets bytes from a stranger: read the header, compute how many
//!      bytes must follow and compare *before* allocating, take them with
//!      [`frame::Reader`], and refuse bytes behind the end. `int8.rs` is the
//!      example to follow.
//! 2. Add it to [`codecs`]. Nothing else knows codecs by name: planner,
//!    profiler, nodes and command line ask this list.
//! 3. Say in `tests/it/laws.rs` how far a decoded value may be from the given
//!    one (nowhere, for a lossless codec); the laws there (roundtrip, every
//!    truncation refused, damaged bytes never a panic) hold for the whole list.
//! 4. `cargo run --release -p tierline-codec --example codecs` prints what it
//!    costs and loses beside the others.

#![forbid(unsafe_code)]

mod fp16;
pub mod frame;
mod int8;
pub mod measure;
pub mod npy;
mod planes;
mod raw;
pub mod update;

pub use measure::{Measurement, measure};
use tierline_graph::{DataType, Tensor, TensorError};

/// A way to write a tensor as bytes.
pub trait Codec: Send + Sync {
    /// Its name, in plans and on the wire.
    fn name(&self) -> &'static str;

    /// Whether decoding gives back exactly what was encoded.
    fn lossless(&self) -> bool;

    /// Whether it takes elements of this type.
    fn accepts(&self, dtype: DataType) -> bool;

    /// Appends the encoding of `tensor` to `out`.
    ///
    /// # Errors
    /// When the type or a value can't be encoded.
    fn encode(&self, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// The tensor that `bytes` encode, if it takes `bytes_max` bytes at most
    /// ([`frame::Header::bytes`]). What is allocated follows what came, and never
    /// exceeds that.
    ///
    /// # Errors
    /// When the bytes are broken or exceed a limit.
    fn decode_within(&self, bytes: &[u8], bytes_max: u64) -> Result<Tensor, CodecError>;

    /// The tensor that `bytes` encode, as large as any may be.
    ///
    /// # Errors
    /// When the bytes are broken or exceed a limit.
    fn decode(&self, bytes: &[u8]) -> Result<Tensor, CodecError> {
        self.decode_within(bytes, frame::BYTES_MAX as u64)
    }
}

/// Every codec, the plainest first.
#[must_use]
pub fn codecs() -> &'static [&'static dyn Codec] {
    &[&raw::Raw, &fp16::Fp16, &int8::Int8, &planes::Planes]
}

/// The codec of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static dyn Codec> {
    codecs().iter().copied().find(|c| c.name() == name)
}

/// Why a tensor can't be encoded or decoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The codec doesn't take this element type.
    #[error("codec `{codec}` takes no {dtype} tensors; use `raw` or `planes`")]
    Type {
        /// The codec.
        codec: &'static str,
        /// The element type.
        dtype: DataType,
    },
    /// A value that a lossy codec can't hold.
    #[error("codec `{codec}` cannot hold the value {value} at element {index}; use `raw` or `planes`")]
    Value {
        /// The codec.
        codec: &'static str,
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
    /// The bytes end too early.
    #[error("the encoding is cut short: {needed} bytes were expected, {left} are left")]
    Truncated {
        /// Bytes needed next.
        needed: u64,
        /// Bytes there are.
        left: u64,
    },
    /// Bytes behind the end.
    #[error("{0} bytes follow the end of the encoding")]
    Trailing(usize),
    /// The bytes make no sense.
    #[error("the encoding is corrupt: {0}")]
    Corrupt(&'static str),
    /// Written by another version.
    #[error("encoding version {0} is unknown here; update this node")]
    Version(u8),
    /// More than a limit allows.
    #[error("the encoding declares {declared} {what}; the limit is {max}")]
    TooLarge {
        /// What is too many.
        what: &'static str,
        /// Declared.
        declared: u64,
        /// Allowed.
        max: u64,
    },
    /// A value of an update that is no number.
    #[error("element {index} of the update is {value}; only finite values are sent")]
    NotFinite {
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
    /// Another length than the shapes of an update's parts say.
    #[error("{given} elements were given; the shapes of the parts hold {expected}")]
    Elements {
        /// Given, or declared by the encoding.
        given: u64,
        /// The sum of the parts' sizes.
        expected: u64,
    },
    /// As many elements, in other parts.
    #[error("the update was encoded for parts of other shapes; both sides need the same model")]
    Parts,
    /// The elements don't make a tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}
