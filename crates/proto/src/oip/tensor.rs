//! A tensor as the protocol carries it: elements little-endian, texts each
//! behind its length.

use bytes::Bytes;

use super::invalid;
use crate::limits::RUN_BYTES_MAX;
use crate::v1::{Code, Failure};

/// Axes of a tensor.
pub(super) const RANK_MAX: usize = 16;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    /// Texts, or bytes of any kind.
    Bytes,
    Bf16,
}

impl Datatype {
    /// Every one of them.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
        Self::Bf16,
    ];

    /// Its name in the protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
            Self::Bf16 => "BF16",
        }
    }

    /// The type of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self, Failure> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|datatype| datatype.name()).collect();
            let name: String = name.chars().take(32).collect();
            invalid(format!("`{name}` is no datatype; there are {}", all.join(", ")))
        })
    }

    /// Its name in a model's configuration.
    #[must_use]
    pub const fn config_name(self) -> &'static str {
        match self {
            Self::Bool => "TYPE_BOOL",
            Self::Uint8 => "TYPE_UINT8",
            Self::Uint16 => "TYPE_UINT16",
            Self::Uint32 => "TYPE_UINT32",
            Self::Uint64 => "TYPE_UINT64",
            Self::Int8 => "TYPE_INT8",
            Self::Int16 => "TYPE_INT16",
            Self::Int32 => "TYPE_INT32",
            Self::Int64 => "TYPE_INT64",
            Self::Fp16 => "TYPE_FP16",
            Self::Fp32 => "TYPE_FP32",
            Self::Fp64 => "TYPE_FP64",
            Self::Bytes => "TYPE_STRING",
            Self::Bf16 => "TYPE_BF16",
        }
    }

    /// Bytes of an element; none for texts.
    #[must_use]
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl std::fmt::Display for Datatype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor whose bytes are as many as its shape says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub datatype: Datatype,
    /// Its axes, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major: little-endian, booleans 0 or 1, texts each behind
    /// its length in four bytes.
    pub data: Bytes,
}

impl Tensor {
    /// A tensor of these bytes.
    ///
    /// # Errors
    /// When there are more or fewer than its shape wants, or they are no such
    /// elements.
    pub fn new(name: String, datatype: Datatype, shape: Vec<usize>, data: Bytes) -> Result<Self, Failure> {
        let count = elements(&name, datatype, &shape)?;
        match datatype.size() {
            Some(size) if count * size != data.len() => {
                let text = format!(
                    "`{name}` of shape {shape:?} and datatype {datatype} takes {} bytes; {} were given",
                    count * size,
                    data.len()
                );
                Err(invalid(text))
            }
            Some(_) => {
                if datatype == Datatype::Bool && data.iter().any(|byte| *byte > 1) {
                    return Err(invalid(format!("`{name}`: a BOOL is a byte 0 or 1")));
                }
                Ok(Self { name, datatype, shape, data })
            }
            None => {
                let given = texts(&data).try_fold(0usize, |n, text| text.map(|_| n + 1));
                match given {
                    Some(given) if given == count => Ok(Self { name, datatype, shape, data }),
                    Some(given) => {
                        Err(invalid(format!("`{name}` of shape {shape:?} takes {count} BYTES; {given} were given")))
                    }
                    None => Err(invalid(format!("`{name}`: each of its BYTES stands behind its length in four bytes"))),
                }
            }
        }
    }

    /// Its texts, where its datatype is BYTES.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        texts(&self.data).flatten()
    }
}

/// Elements of a shape, within what a request may carry.
pub(super) fn elements(name: &str, datatype: Datatype, shape: &[usize]) -> Result<usize, Failure> {
    if shape.len() > RANK_MAX {
        return Err(invalid(format!("`{name}` has {} axes; at most {RANK_MAX} are taken", shape.len())));
    }
    // Each axis by itself: a 0 among them must not hide what the others make.
    let size = datatype.size().unwrap_or(4);
    let all = shape.iter().try_fold(size, |n, &axis| n.checked_mul(axis.max(1)));
    if all.is_none() {
        return Err(invalid(format!("`{name}`: the shape has more elements than can be counted")));
    }
    if all.is_none_or(|bytes| bytes as u64 > RUN_BYTES_MAX) {
        let text = format!("`{name}` takes more than {RUN_BYTES_MAX} bytes, the most that a request may carry");
        return Err(Failure::new(Code::TooLarge, text));
    }
    Ok(shape.iter().product())
}

/// Axes as the wire has them.
///
/// # Errors
/// When one is negative.
pub(super) fn axes(name: &str, shape: &[i64]) -> Result<Vec<usize>, Failure> {
    let axis = |&axis: &i64| {
        usize::try_from(axis)
            .map_err(|_| invalid(format!("`{name}`: {axis} is no size; a request's shape has none free")))
    };
    shape.iter().take(RANK_MAX + 1).map(axis).collect()
}

/// Texts of bytes, each behind its length; none for what isn't whole.
fn texts(mut data: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut broken = false;
    std::iter::from_fn(move || {
        if data.is_empty() || broken {
            return None;
        }
        let text = data
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?));
        match text {
            Some((text, rest)) => {
                data = rest;
                Some(Some(text))
            }
            None => {
                broken = true;
                Some(None)
            }
        }
    })
}
