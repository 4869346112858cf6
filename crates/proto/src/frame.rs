//! Tensors in chunks: a sender declares its tensors in a header, then sends
//! their encoded bytes in order; a receiver checks every step.
//!
//! Sending copies nothing: chunks are slices of the encoded tensor. Receiving
//! copies only tensors that came in several chunks. Memory follows what has
//! arrived, not what was declared, so a lying header costs its sender.
//! Start at [`chunks`] and [`Assembler`].

use bytes::{Bytes, BytesMut};

use crate::limits::{CHUNK_BYTES_MAX, CODEC_NAME_BYTES_MAX, NAME_BYTES_MAX, RUN_BYTES_MAX, TENSORS_MAX};
use crate::v1::{Code, Failure, TensorChunk, TensorInfo};

/// A tensor as it travels: what the codec made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Name in the prepared model.
    pub name: String,
    /// Name of the codec.
    pub codec: String,
    /// Its bytes, self-describing (see `tierline-codec`).
    pub data: Bytes,
}

/// How a frame breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// More tensors than [`TENSORS_MAX`].
    #[error("{count} tensors in one frame; the limit is {TENSORS_MAX}")]
    TooManyTensors {
        /// Declared.
        count: usize,
    },
    /// A name that is empty or longer than its limit.
    #[error("tensor {index}: a name or codec of {length} bytes; 1 to {max} are allowed")]
    Name {
        /// Position among the declared tensors.
        index: usize,
        /// Bytes of the name.
        length: usize,
        /// Limit for it.
        max: usize,
    },
    /// Two tensors of one name.
    #[error("tensor `{name}` is declared twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// More bytes declared than [`RUN_BYTES_MAX`] or the caller's limit.
    #[error("tensors of {bytes} bytes in one frame; the limit is {max}")]
    TooManyBytes {
        /// Declared; saturates.
        bytes: u64,
        /// Limit.
        max: u64,
    },
    /// A chunk longer than [`CHUNK_BYTES_MAX`].
    #[error("a chunk of {length} bytes; the limit is {CHUNK_BYTES_MAX}")]
    ChunkTooLong {
        /// Bytes.
        length: usize,
    },
    /// A chunk without bytes.
    #[error("an empty chunk for tensor {tensor}")]
    EmptyChunk {
        /// Index in the chunk.
        tensor: u32,
    },
    /// A chunk that is not the next one: a gap, a repeat, or another tensor.
    #[error("chunk of tensor {tensor} at {offset} where tensor {expected_tensor} at {expected_offset} comes next")]
    OutOfOrder {
        /// Index in the chunk.
        tensor: u32,
        /// Offset in the chunk.
        offset: u64,
        /// Index of the tensor being received.
        expected_tensor: u32,
        /// Bytes of it received so far.
        expected_offset: u64,
    },
    /// A chunk that goes past its tensor's declared length.
    #[error("tensor `{name}`: {excess} bytes more than the {declared} declared")]
    Overflow {
        /// The tensor.
        name: String,
        /// Declared length.
        declared: u64,
        /// Bytes too many.
        excess: u64,
    },
    /// A chunk after the last tensor was complete.
    #[error("a chunk after the last tensor was complete")]
    AfterEnd,
    /// The stream ended before the last tensor was complete.
    #[error("the stream ended after {received} of {declared} bytes")]
    Truncated {
        /// Bytes received.
        received: u64,
        /// Bytes declared.
        declared: u64,
    },
}

impl FrameError {
    /// The failure on the wire.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::TooManyTensors { .. } | Self::TooManyBytes { .. } | Self::ChunkTooLong { .. } => Code::TooLarge,
            Self::Truncated { .. } => Code::Cancelled,
            _ => Code::Protocol,
        };
        Failure::new(code, self.to_string())
    }
}

/// The declaration of `tensors`, for a header or a reply.
#[must_use]
pub fn declare(tensors: &[Encoded]) -> Vec<TensorInfo> {
    let info = |t: &Encoded| TensorInfo { name: t.name.clone(), codec: t.codec.clone(), length: t.data.len() as u64 };
    tensors.iter().map(info).collect()
}

/// The chunks of `tensors` in order, none longer than `size` bytes
/// (see [`crate::limits::CHUNK_BYTES`]). Slices, not copies.
pub fn chunks(tensors: Vec<Encoded>, size: usize) -> impl Iterator<Item = TensorChunk> + Send {
    let size = size.clamp(1, CHUNK_BYTES_MAX);
    tensors.into_iter().zip(0u32..).flat_map(move |(encoded, tensor)| {
        let mut rest = encoded.data;
        let mut offset = 0;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let data = rest.split_to(size.min(rest.len()));
            let chunk = TensorChunk { tensor, offset, data };
            offset += chunk.data.len() as u64;
            Some(chunk)
        })
    })
}

/// Checks a declaration, and gives the bytes of all its tensors; `bytes_max` is
/// the receiver's own limit, at most [`RUN_BYTES_MAX`].
///
/// # Errors
/// When the declaration breaks a limit or repeats a name.
pub fn check(declared: &[TensorInfo], bytes_max: u64) -> Result<u64, FrameError> {
    if declared.len() > TENSORS_MAX {
        return Err(FrameError::TooManyTensors { count: declared.len() });
    }
    let mut names = std::collections::HashSet::with_capacity(declared.len());
    let mut total = 0u64;
    for (index, info) in declared.iter().enumerate() {
        for (text, max) in [(&info.name, NAME_BYTES_MAX), (&info.codec, CODEC_NAME_BYTES_MAX)] {
            if text.is_empty() || text.len() > max {
                return Err(FrameError::Name { index, length: text.len(), max });
            }
        }
        if !names.insert(info.name.as_str()) {
            return Err(FrameError::Duplicate { name: info.name.clone() });
        }
        total = total.saturating_add(info.length);
    }
    let max = bytes_max.min(RUN_BYTES_MAX);
    if total > max { Err(FrameError::TooManyBytes { bytes: total, max }) } else { Ok(total) }
}

/// Puts chunks together into the declared tensors.
///
/// Invariant: tensors before `done.len()` are complete, `partial` belongs to
/// the next one, later ones have no bytes.
#[derive(Debug)]
pub struct Assembler {
    declared: Vec<TensorInfo>,
    done: Vec<Encoded>,
    partial: Partial,
    received: u64,
    total: u64,
}

/// Bytes of the tensor being received: one chunk is kept as it came.
#[derive(Debug, Default)]
enum Partial {
    #[default]
    Nothing,
    One(Bytes),
    Several(BytesMut),
}

impl Partial {
    fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len() as u64,
            Self::Several(bytes) => bytes.len() as u64,
        }
    }

    fn push(&mut self, data: Bytes) {
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(data),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(2 * (first.len() + data.len()));
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                Self::Several(all)
            }
            Self::Several(mut all) => {
                all.extend_from_slice(&data);
                Self::Several(all)
            }
        };
    }

    fn take(&mut self) -> Bytes {
        match std::mem::take(self) {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Several(bytes) => bytes.freeze(),
        }
    }
}

impl Assembler {
    /// Checks a declaration; `bytes_max` is the receiver's own limit, at most
    /// [`RUN_BYTES_MAX`]. Allocates nothing for tensors.
    ///
    /// # Errors
    /// When the declaration breaks a limit or repeats a name.
    pub fn new(declared: Vec<TensorInfo>, bytes_max: u64) -> Result<Self, FrameError> {
        let total = check(&declared, bytes_max)?;
        let done = Vec::with_capacity(declared.len());
        let mut assembler = Self { declared, done, partial: Partial::default(), received: 0, total };
        assembler.complete();
        Ok(assembler)
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// When it is not the next chunk; the frame is then lost.
    pub fn push(&mut self, chunk: TensorChunk) -> Result<(), FrameError> {
        let Some(info) = self.declared.get(self.done.len()) else { return Err(FrameError::AfterEnd) };
        let length = chunk.data.len();
        if length > CHUNK_BYTES_MAX {
            return Err(FrameError::ChunkTooLong { length });
        }
        if length == 0 {
            return Err(FrameError::EmptyChunk { tensor: chunk.tensor });
        }
        let expected_tensor = self.done.len() as u32;
        let expected_offset = self.partial.len();
        if chunk.tensor != expected_tensor || chunk.offset != expected_offset {
            let TensorChunk { tensor, offset, .. } = chunk;
            return Err(FrameError::OutOfOrder { tensor, offset, expected_tensor, expected_offset });
        }
        let end = expected_offset + length as u64;
        if end > info.length {
            let name = info.name.clone();
            return Err(FrameError::Overflow { name, declared: info.length, excess: end - info.length });
        }
        self.received += length as u64;
        self.partial.push(chunk.data);
        self.complete();
        Ok(())
    }

    /// Whether every declared tensor is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.done.len() == self.declared.len()
    }

    /// Bytes received and declared.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.received, self.total)
    }

    /// The tensors, in the declared order.
    ///
    /// # Errors
    /// When the stream ended too early.
    pub fn finish(self) -> Result<Vec<Encoded>, FrameError> {
        if self.is_complete() {
            Ok(self.done)
        } else {
            Err(FrameError::Truncated { received: self.received, declared: self.total })
        }
    }

    /// Moves tensors that have all their bytes (those of length 0 have them
    /// from the start) to `done`.
    fn complete(&mut self) {
        while let Some(info) = self.declared.get(self.done.len())
            && self.partial.len() == info.length
        {
            let data = self.partial.take();
            self.done.push(Encoded { name: info.name.clone(), codec: info.codec.clone(), data });
        }
    }
}
