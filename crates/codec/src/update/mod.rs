//! Updates of models as few bytes: flat f32 vectors, cut into parts with
//! shapes, of which something is left out, rounded, and packed.
//!
//! A [`Pipeline`] is a list of stages: what of the vector travels
//! ([`Support`]), how its numbers are rounded ([`Precision`]), and whether the
//! bytes are packed in the end. An encoding says what it is, so a decoder
//! needs only the bytes and the shapes it expects. What is lost is the
//! sender's to remember (error feedback); nothing here has a memory.
//!
//! # Adding a stage
//!
//! A new rounding is a variant of [`Precision`], its two functions in
//! `precision.rs`, and its line in [`Pipeline::parse`]. A new support is a file
//! of its own like `topk.rs` that gives the numbers that travel and what the
//! receiver needs to put them back. The laws in `tests/it/update.rs` hold for
//! every combination in its list: add yours there.

mod bits;
mod powersgd;
mod precision;
mod support;

pub use precision::Precision;
pub use support::{Kept, Support};

use crate::CodecError;
use crate::frame::Reader;

/// The format's version, in the first byte.
const VERSION: u8 = 1;

/// zstd's third level: on top-k updates the first saves as much at nearly the
/// same speed, on dense ones of 8 bits the third saves 2% more; beyond the
/// sixth nothing is gained but time.
const LEVEL: i32 = 3;

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pipeline {
    /// What of it travels.
    pub support: Support,
    /// How numbers are rounded.
    pub precision: Precision,
    /// Whether bytes are packed in the end.
    pub packed: bool,
}

/// A list of stages that makes no pipeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// No such stage.
    #[error("`{stage}` is no stage of a pipeline; there are {STAGES}")]
    Unknown {
        /// What was written.
        stage: String,
    },
    /// A number that the stage can't have.
    #[error("`{stage}`: {reason}")]
    Option {
        /// What was written.
        stage: String,
        /// What it may be.
        reason: &'static str,
    },
    /// Twice the same kind, or in another order than data takes them.
    #[error("`{stage}` comes too late: first what travels, then how it is rounded, then zstd, each at most once")]
    Order {
        /// What was written.
        stage: String,
    },
}

const STAGES: &str = "topk:SHARE, random:SHARE, powersgd:RANK; fp16, int8, int4, qsgd:BITS, sign; zstd";

impl Pipeline {
    /// Reads stages, such as `topk:0.01`, `int8`, `zstd`. None at all is plain
    /// f32.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn parse<S: AsRef<str>>(stages: &[S]) -> Result<Self, PipelineError> {
        let mut pipeline = Self::default();
        let mut reached = 0;
        for stage in stages {
            let stage = stage.as_ref();
            let (name, option) = stage.split_once(':').unwrap_or((stage, ""));
            let place = match name {
                "topk" | "random" | "powersgd" => {
                    pipeline.support = Support::parse(stage, name, option)?;
                    1
                }
                "zstd" => {
                    pipeline.packed = true;
                    3
                }
                _ => {
                    pipeline.precision = Precision::parse(stage, name, option)?;
                    2
                }
            };
            if place <= reached {
                return Err(PipelineError::Order { stage: stage.to_owned() });
            }
            reached = place;
        }
        Ok(pipeline)
    }

    /// The stages, as [`Pipeline::parse`] reads them.
    #[must_use]
    pub fn stages(&self) -> Vec<String> {
        let stages = [self.support.stage(), self.precision.stage(), self.packed.then(|| "zstd".to_owned())];
        stages.into_iter().flatten().collect()
    }

    /// Whether decoding gives back exactly what was encoded.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        self.support == Support::All && self.precision == Precision::Full
    }

    /// Appends the encoding of `vector`, which consists of parts of these
    /// shapes. `seed` decides random masks, random rounding and where PowerSGD
    /// starts: equal calls give equal bytes.
    ///
    /// # Errors
    /// When a number isn't finite.
    pub fn encode(
        &self,
        vector: &[f32],
        shapes: &[Vec<usize>],
        seed: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        assert_eq!(vector.len(), elements(shapes), "a vector consists of its parts");
        if let Some(index) = vector.iter().position(|x| !x.is_finite()) {
            return Err(CodecError::Value { codec: "update", index, value: vector[index] });
        }
        let mut body = Vec::new();
        let values = self.support.take(vector, shapes, seed, &mut body);
        self.precision.write(&values, seed, &mut body);
        let (kind, precision) = (self.support.code(), self.precision.code());
        let mut packed = None;
        if self.packed {
            let split = split(&body, self.precision.planes(), body.len() - self.precision.bytes(values.len()));
            let smaller = zstd::bulk::compress(&split, LEVEL).map_err(|_| CodecError::Corrupt("zstd failed"))?;
            packed = (smaller.len() < body.len()).then_some(smaller);
        }
        out.extend_from_slice(&[VERSION, kind, precision[0], precision[1], u8::from(packed.is_some())]);
        out.extend_from_slice(&(vector.len() as u64).to_le_bytes());
        out.extend_from_slice(&(body.len() as u64).to_le_bytes());
        out.extend_from_slice(packed.as_deref().unwrap_or(&body));
        Ok(())
    }
}

/// The vector that `bytes` encode, of parts of these shapes.
///
/// # Errors
/// When the bytes are broken or of another vector.
pub fn decode(bytes: &[u8], shapes: &[Vec<usize>]) -> Result<Vec<f32>, CodecError> {
    let (support, precision, body) = open(bytes, shapes)?;
    let mut out = vec![0f32; elements(shapes)];
    let mut reader = Reader(&body);
    let places = support::read(support, shapes, &mut reader)?;
    let values = precision.read(places.count(), &mut reader)?;
    if !reader.0.is_empty() {
        return Err(CodecError::Trailing(reader.0.len()));
    }
    places.put(&values, shapes, &mut out)?;
    Ok(out)
}

/// Which elements travelled.
///
/// # Errors
/// As [`decode`].
pub fn support_of(bytes: &[u8], shapes: &[Vec<usize>]) -> Result<Kept, CodecError> {
    let (support, _, body) = open(bytes, shapes)?;
    Ok(support::read(support, shapes, &mut Reader(&body))?.kept())
}

/// Number of elements of parts of these shapes.
fn elements(shapes: &[Vec<usize>]) -> usize {
    shapes.iter().map(|shape| shape.iter().product::<usize>()).sum()
}

/// The kind of support, the precision and the unpacked body.
fn open<'b>(bytes: &'b [u8], shapes: &[Vec<usize>]) -> Result<(u8, Precision, std::borrow::Cow<'b, [u8]>), CodecError> {
    let mut reader = Reader(bytes);
    let &[version, support, kind, option, packed] = reader.take(5)? else {
        return Err(CodecError::Corrupt("its head is cut short"));
    };
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let precision = Precision::from_code([kind, option])?;
    let expected = elements(shapes) as u64;
    let length = reader.u64()?;
    if length != expected {
        return Err(CodecError::TooLarge { what: "elements", declared: length, max: expected });
    }
    // Indices, scales and numbers of all elements and then some: what is
    // allocated follows from what is expected.
    let max = 16 * expected + 1_024;
    let declared = reader.u64()?;
    if declared > max {
        return Err(CodecError::TooLarge { what: "bytes", declared, max });
    }
    let rest = reader.0;
    if packed == 0 {
        return match rest.len() as u64 {
            left if left < declared => Err(CodecError::Truncated { needed: declared, left }),
            left if left > declared => Err(CodecError::Trailing((left - declared) as usize)),
            _ => Ok((support, precision, rest.into())),
        };
    }
    let split = zstd::bulk::decompress(rest, declared as usize).map_err(|_| CodecError::Corrupt("zstd refuses it"))?;
    if split.len() as u64 != declared {
        return Err(CodecError::Truncated { needed: declared, left: split.len() as u64 });
    }
    let planes = precision.planes();
    let head = if planes > 1 { support::head(support, &split)? } else { split.len() };
    Ok((support, precision, join(&split, planes, head).into()))
}

/// The first bytes of all numbers behind `head` together, then the second
/// ones: exponents resemble each other, mantissas don't.
fn split(body: &[u8], planes: usize, head: usize) -> Vec<u8> {
    if planes < 2 {
        return body.to_vec();
    }
    let (head, numbers) = body.split_at(head);
    let mut out = head.to_vec();
    for plane in 0..planes {
        out.extend(numbers.iter().skip(plane).step_by(planes));
    }
    out
}

fn join(split: &[u8], planes: usize, head: usize) -> Vec<u8> {
    if planes < 2 {
        return split.to_vec();
    }
    let (head, numbers) = split.split_at(head);
    let mut out = head.to_vec();
    let per = numbers.len() / planes;
    for number in 0..per {
        out.extend((0..planes).map(|plane| numbers[plane * per + number]));
    }
    // A remainder is no number; the reader refuses it.
    out.extend_from_slice(&numbers[per * planes..]);
    out
}
