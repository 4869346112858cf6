//! What a node and its worker say to each other, on one stream: a length, a
//! header as JSON, then the bytes that it announces.

use std::io::{Error, ErrorKind, Read, Result, Write};

use serde::{Deserialize, Serialize};
use tierline_graph::{DataType, Elements, Tensor, ValueInfo};

use crate::options::Provider;
use crate::{EngineError, LoadOptions};

/// Longest header: names and shapes of a model's inputs and outputs.
const HEADER_BYTES_MAX: u32 = 64 << 20;

/// Bytes taken at a time, so that memory follows what has come.
const PIECE_BYTES: u64 = 64 << 20;

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Load a model; its bytes follow.
    Load { engine: String, library: Option<std::path::PathBuf>, options: Loading, bytes: u64 },
    /// Run it; the tensors' bytes follow.
    Run { tensors: Vec<Head> },
}

/// [`LoadOptions`] on their way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loading {
    threads: usize,
    providers: Vec<Provider>,
    optimize: bool,
    spin: bool,
}

impl From<&LoadOptions> for Loading {
    fn from(o: &LoadOptions) -> Self {
        Self { threads: o.threads, providers: o.providers.clone(), optimize: o.optimize, spin: o.spin }
    }
}

impl From<Loading> for LoadOptions {
    fn from(o: Loading) -> Self {
        Self { threads: o.threads, providers: o.providers, optimize: o.optimize, spin: o.spin }
    }
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Loaded {
        inputs: Vec<ValueInfo>,
        outputs: Vec<ValueInfo>,
        notes: Vec<String>,
    },
    /// The tensors' bytes follow.
    Ran {
        tensors: Vec<Head>,
    },
    Failed(Said),
}

/// What an engine said, as far as it matters on this side.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    Refused { node: Option<String>, reason: String },
    Value { name: String, index: usize, value: String },
    Panicked { message: String },
    Memory { reason: String },
    Other { reason: String },
}

impl From<EngineError> for Said {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Refused { node, reason, .. } => Self::Refused { node, reason },
            EngineError::InputValue { name, index, value, .. } => Self::Value { name, index, value },
            EngineError::Panicked { message, .. } => Self::Panicked { message },
            EngineError::Memory { reason, .. } => Self::Memory { reason },
            EngineError::Run { reason, .. } => Self::Other { reason },
            other => Self::Other { reason: other.to_string() },
        }
    }
}

impl Said {
    pub(super) fn into_error(self, engine: &'static str) -> EngineError {
        match self {
            Self::Refused { node, reason } => EngineError::Refused { engine, node, reason },
            Self::Value { name, index, value } => {
                let reason = "it is beyond what it computes with";
                EngineError::InputValue { name, index, value, engine, reason }
            }
            Self::Panicked { message } => EngineError::Panicked { engine, during: "running the model", message },
            Self::Memory { reason } => EngineError::Memory { engine, reason },
            Self::Other { reason } => EngineError::Run { engine, reason },
        }
    }
}

/// A tensor whose bytes follow.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    name: String,
    /// ONNX's number of the element type.
    dtype: i32,
    shape: Vec<usize>,
    bytes: u64,
}

fn broken(text: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, text.to_string())
}

pub(super) fn write_header<T: Serialize>(to: &mut impl Write, header: &T) -> Result<()> {
    let json = serde_json::to_vec(header).map_err(broken)?;
    let length = u32::try_from(json.len()).ok().filter(|l| *l <= HEADER_BYTES_MAX);
    to.write_all(&length.ok_or_else(|| broken("a header is too long"))?.to_le_bytes())?;
    to.write_all(&json)
}

pub(super) fn read_header<T: serde::de::DeserializeOwned>(from: &mut impl Read) -> Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(broken("a header is too long"));
    }
    let mut json = vec![0; length as usize];
    from.read_exact(&mut json)?;
    serde_json::from_slice(&json).map_err(broken)
}

/// `count` bytes; memory grows as they come.
pub(super) fn read_bytes(from: &mut impl Read, count: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < count {
        let piece = (count - bytes.len() as u64).min(PIECE_BYTES);
        let at = bytes.len();
        bytes.resize(at + piece as usize, 0);
        from.read_exact(&mut bytes[at..])?;
    }
    Ok(bytes)
}

/// A header with the heads of `tensors`, and their bytes behind it.
pub(super) fn write_tensors<'t, T: Serialize>(
    to: &mut impl Write,
    header: impl FnOnce(Vec<Head>) -> T,
    tensors: impl Iterator<Item = (&'t str, &'t Tensor)> + Clone,
) -> Result<()> {
    let head = |(name, tensor): (&str, &Tensor)| Head {
        name: name.to_owned(),
        dtype: tensor.dtype().to_onnx(),
        shape: tensor.shape().to_vec(),
        bytes: match tensor.elements() {
            Elements::String(strings) => strings.iter().map(|s| 8 + s.len() as u64).sum(),
            _ => tensor.byte_len(),
        },
    };
    write_header(to, &header(tensors.clone().map(head).collect()))?;
    for (_, tensor) in tensors {
        match tensor.elements() {
            Elements::String(strings) => {
                for s in strings {
                    to.write_all(&(s.len() as u64).to_le_bytes())?;
                    to.write_all(s.as_bytes())?;
                }
            }
            numeric => to.write_all(numeric.as_bytes().unwrap_or_default())?,
        }
    }
    to.flush()
}

/// The tensors that `heads` announce, at most `bytes_max` bytes of them.
pub(super) fn read_tensors(from: &mut impl Read, heads: Vec<Head>, bytes_max: u64) -> Result<Vec<(String, Tensor)>> {
    let total = heads.iter().fold(0u64, |sum, head| sum.saturating_add(head.bytes));
    if total > bytes_max {
        return Err(broken(format!("{total} bytes of tensors; the limit is {bytes_max}")));
    }
    heads.into_iter().map(|head| read_tensor(from, head)).collect()
}

fn read_tensor(from: &mut impl Read, head: Head) -> Result<(String, Tensor)> {
    let Head { name, dtype, shape, bytes } = head;
    let dtype = DataType::from_onnx(dtype).ok_or_else(|| broken("an unknown element type"))?;
    let body = read_bytes(from, bytes)?;
    if dtype != DataType::String {
        return Ok((name, Tensor::from_bytes(dtype, shape, &body).map_err(broken)?));
    }
    let (mut strings, mut rest) = (Vec::new(), body.as_slice());
    while let Some((length, tail)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(broken)?;
        let (text, tail) = tail.split_at_checked(length).ok_or_else(|| broken("a string is cut short"))?;
        strings.push(String::from_utf8(text.to_vec()).map_err(broken)?);
        rest = tail;
    }
    Ok((name, Tensor::new(shape, Elements::String(strings)).map_err(broken)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_as_they_went() {
        let strings = Tensor::new([2], Elements::String(vec!["a".into(), "\u{e4} b".into()])).unwrap();
        let floats = Tensor::new([2, 1], Elements::F32(vec![1.5, f32::NAN])).unwrap();
        let tensors = [("s", &strings), ("f", &floats)];
        let mut bytes = Vec::new();
        write_tensors(&mut bytes, |tensors| Ask::Run { tensors }, tensors.into_iter()).unwrap();
        let mut from = bytes.as_slice();
        let Ask::Run { tensors } = read_header(&mut from).unwrap() else { panic!("another header") };
        let back = read_tensors(&mut from, tensors, 1_000).unwrap();
        assert_eq!(back[0], ("s".to_owned(), strings));
        assert_eq!(back[1].1.elements().as_bytes(), floats.elements().as_bytes());
        assert!(from.is_empty());
    }

    #[test]
    fn what_announces_too_much_is_refused_before_it_is_read() {
        let head = |bytes| Head { name: "x".into(), dtype: 1, shape: vec![1], bytes };
        assert!(read_tensors(&mut [0u8; 8].as_slice(), vec![head(u64::MAX), head(8)], 1 << 20).is_err());
        assert!(read_tensors(&mut [0u8; 8].as_slice(), vec![head(1 << 20)], 1 << 20).is_err());
    }
}
