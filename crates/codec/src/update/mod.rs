//! Model updates to bytes and back, as few bytes as the receiver can bear.
//!
//! An update is a flat f32 vector cut into parts with shapes. A [`Pipeline`]
//! says what of it survives (support), how precisely (precision) and whether
//! zstd goes over the result (lossless); the encoding says what it is, so
//! [`decode`] needs only the bytes and the shapes the receiver expects.
//!
//! Pure and without memory: error feedback and momentum are the caller's, who
//! learns from [`support_of`] what was sent. Start at [`Pipeline::parse`].
//!
//! # What is written
//!
//! `header::Header`, then what the support needs to place values (gaps
//! between indices, a seed, a rank), then the values in their precision:
//! either in exactly their bits, or as byte planes under zstd.
//!
//! # Adding a stage
//!
//! 1. A precision is a file in `precision/` that implements
//!    `precision::blocks::Quantiser` (`sign.rs` is the example): codes of one
//!    to eight bits and one scale per block. Framing, packing, planes and
//!    checks of sizes are there already. Then a variant of
//!    `precision::Precision` with a tag of its own; the compiler lists the
//!    places.
//! 2. A support is a file in `support/` (`random.rs` is the example) and a
//!    variant of `support::Support`: which values are sent, how a receiver
//!    places them, and how it refuses what doesn't fit before it allocates.
//! 3. One line in `pipeline.rs` to read its name, one in `pipeline::STAGES`.
//! 4. One entry in a list at the top of `tests/it/update.rs`: the laws there
//!    (roundtrips, equal bytes, truncations and damage refused) hold for all;
//!    say how far a decoded value may be from the given one.
//! 5. `cargo run --release -p tierline-codec --example updates` prints what it
//!    costs and loses beside the others.

mod bits;
mod header;
mod packing;
mod pipeline;
mod precision;
mod rng;
mod support;

pub use pipeline::{Pipeline, PipelineError};

use crate::CodecError;
use crate::frame::Reader;
use header::Header;
use packing::Packing;
use precision::blocks::largest;
use support::Placed;

/// Which elements an encoding brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SentElements {
    /// All of them, or an approximation of all.
    All,
    /// These, in ascending order; zeros elsewhere.
    Indices(Vec<u32>),
}

/// The vector that `bytes` encode, of parts of these `shapes`.
///
/// Its values are finite, whoever wrote the bytes, and what is allocated on
/// the way is a few times the receiver's vector at most, whatever they declare.
///
/// # Errors
/// When the bytes are broken or encode parts of other shapes.
pub fn decode(bytes: &[u8], shapes: &[Vec<usize>]) -> Result<Vec<f32>, CodecError> {
    let (header, body) = Header::read(bytes, shapes)?;
    let mut reader = Reader(body);
    let placed = header.support(&mut reader, shapes)?;
    header.check(&placed, reader.0)?;
    let mut out = vec![0.0; header.elements];
    values(&header, &placed, reader.0, &mut out)?;
    Ok(out)
}

/// As [`decode`], over all of `out`: zeros where nothing was sent.
///
/// # Errors
/// As [`decode`], or when `out` is of another length; then what `out` holds is
/// of no use.
pub fn decode_into(bytes: &[u8], shapes: &[Vec<usize>], out: &mut [f32]) -> Result<(), CodecError> {
    let (header, body) = Header::read(bytes, shapes)?;
    if out.len() != header.elements {
        return Err(CodecError::Elements { given: out.len() as u64, expected: header.elements as u64 });
    }
    let mut reader = Reader(body);
    let placed = header.support(&mut reader, shapes)?;
    header.check(&placed, reader.0)?;
    values(&header, &placed, reader.0, out)
}

/// Which elements `bytes` bring, the values unread.
///
/// # Errors
/// When the bytes up to the values are broken or encode parts of other shapes.
pub fn support_of(bytes: &[u8], shapes: &[Vec<usize>]) -> Result<SentElements, CodecError> {
    let (header, body) = Header::read(bytes, shapes)?;
    Ok(match header.support(&mut Reader(body), shapes)? {
        Placed::All | Placed::Factored(_) => SentElements::All,
        Placed::At(indices) => SentElements::Indices(indices),
    })
}

impl Pipeline {
    /// Whether decoding gives back every bit.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        self.sends_all() && self.precision.is_lossless()
    }

    /// Appends the encoding of `vector`.
    ///
    /// `shapes` are its parts' in order, whose sizes add up to its length.
    /// `seed` decides random masks, stochastic rounding and PowerSGD's start:
    /// equal calls give equal bytes, and rounds want seeds of their own.
    ///
    /// # Errors
    /// When the shapes don't add up, or a value is not finite; nothing is
    /// appended then.
    pub fn encode(
        &self,
        vector: &[f32],
        shapes: &[Vec<usize>],
        seed: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let elements = header::elements(shapes)?;
        if vector.len() != elements {
            return Err(CodecError::Elements { given: vector.len() as u64, expected: elements as u64 });
        }
        check_finite(vector)?;
        let (placing, placed, sent) = self.support.choose(vector, shapes, seed);
        let lens = placed.segments(elements);
        let start = out.len();
        let packing = Packing::Plain;
        Header { support: self.support.tag(), precision: self.precision, packing, elements }.write(shapes, out);
        out.extend_from_slice(&placing);
        let sent = sent.as_deref().unwrap_or(vector);
        match packing::write(self.precision, self.lossless, sent, &lens, seed, out) {
            Ok(packing) => Header::set_packing(&mut out[start..], packing),
            Err(e) => {
                out.truncate(start);
                return Err(e);
            }
        }
        Ok(())
    }
}

/// Reads the values into their places.
fn values(header: &Header, placed: &Placed, body: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    let lens = placed.segments(header.elements);
    if matches!(placed, Placed::All) {
        return packing::read(header.precision, header.packing, body, &lens, out);
    }
    let mut sent = vec![0.0; lens.iter().sum()];
    packing::read(header.precision, header.packing, body, &lens, &mut sent)?;
    placed.place(&sent, out);
    Ok(())
}

fn check_finite(vector: &[f32]) -> Result<(), CodecError> {
    // Without an early exit, so that it takes no longer than reading.
    if largest(vector).is_finite() {
        return Ok(());
    }
    let index = vector.iter().position(|v| !v.is_finite()).unwrap_or_default();
    Err(CodecError::NotFinite { index, value: vector[index] })
}
