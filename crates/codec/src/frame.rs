//! The header in front of every encoded tensor: magic, version, element type
//! and shape, so that bytes say what they are.

use tierline_graph::DataType;
use tierline_graph::tensor::element_count;

use crate::CodecError;

/// First bytes of an encoded tensor.
const MAGIC: [u8; 2] = *b"TL";

/// Version of the header's layout.
const VERSION: u8 = 1;

/// Axes of a tensor; ONNX models in the field have at most six.
pub const RANK_MAX: usize = 16;

/// Bytes of one decoded tensor, strings aside: what a request may carry.
/// Checked before anything is allocated.
pub const BYTES_MAX: usize = 512 << 20;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Element type of the tensor as it was given.
    pub dtype: DataType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Header {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the tensor in memory: its elements, and for strings what each
    /// takes beside its text.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let size = self.dtype.size().unwrap_or(size_of::<String>()) as u64;
        self.shape.iter().fold(size, |n, &d| n.saturating_mul(d as u64))
    }

    /// Appends the header.
    ///
    /// # Errors
    /// When the tensor exceeds what a reader takes.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.check(BYTES_MAX as u64)?;
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.push(self.dtype.to_onnx() as u8);
        out.push(self.shape.len() as u8);
        for &dim in &self.shape {
            out.extend_from_slice(&(dim as u64).to_le_bytes());
        }
        Ok(())
    }

    /// Limits, the same for writers and readers.
    fn check(&self, bytes_max: u64) -> Result<(), CodecError> {
        let limit = |what, declared: u64, max: u64| match declared > max {
            true => Err(CodecError::TooLarge { what, declared, max }),
            false => Ok(()),
        };
        limit("axes", self.shape.len() as u64, RANK_MAX as u64)?;
        element_count(&self.shape).map_err(|_| CodecError::Corrupt("the shape exceeds memory"))?;
        limit("bytes", self.bytes(), bytes_max)
    }

    /// Reads a header, and gives what follows it.
    ///
    /// # Errors
    /// When the bytes are no header, or declare more than the limits allow.
    pub fn read(bytes: &[u8]) -> Result<(Self, &[u8]), CodecError> {
        Self::read_within(bytes, BYTES_MAX as u64)
    }

    /// Reads a header of a tensor of at most `bytes_max` bytes, and gives what
    /// follows it.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn read_within(bytes: &[u8], bytes_max: u64) -> Result<(Self, &[u8]), CodecError> {
        let mut reader = Reader(bytes);
        let head = reader.take(5)?;
        if head[..2] != MAGIC {
            return Err(CodecError::Corrupt("the first bytes are not an encoded tensor's"));
        }
        if head[2] != VERSION {
            return Err(CodecError::Version(head[2]));
        }
        let dtype = DataType::from_onnx(i32::from(head[3])).ok_or(CodecError::Corrupt("unknown element type"))?;
        let rank = usize::from(head[4]);
        if rank > RANK_MAX {
            return Err(CodecError::TooLarge { what: "axes", declared: rank as u64, max: RANK_MAX as u64 });
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            let dim = reader.u64()?;
            shape.push(usize::try_from(dim).map_err(|_| CodecError::Corrupt("an axis exceeds memory"))?);
        }
        let header = Self { dtype, shape };
        header.check(bytes_max.min(BYTES_MAX as u64))?;
        Ok((header, reader.0))
    }
}

/// Takes bytes off the front, never past the end.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or(CodecError::Truncated { needed: n as u64, left: self.0.len() as u64 })?;
        self.0 = tail;
        Ok(head)
    }

    /// The next eight bytes as a number.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        let mut raw = [0; 8];
        raw.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(raw))
    }

    /// The next four bytes as a number.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn f32(&mut self) -> Result<f32, CodecError> {
        let mut raw = [0; 4];
        raw.copy_from_slice(self.take(4)?);
        Ok(f32::from_le_bytes(raw))
    }
}
