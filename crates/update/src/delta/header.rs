//! What a delta begins with: which file it is made from, and what comes of it.

use std::fmt;
use std::io::Read;

use super::bytes::Bytes;
use super::error::DeltaError;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What deltas begin with.
const MAGIC: [u8; 8] = *b"TLdelta\n";

/// The version written and understood.
pub const VERSION: u16 = 1;

/// Bytes of a header.
pub const HEADER_BYTES: u64 = 108;

/// Which file a delta is made from, and what comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// BLAKE3 of the base.
    pub base: Digest,
    /// Length of the base.
    pub base_bytes: u64,
    /// BLAKE3 of the result.
    pub result: Digest,
    /// Length of the result: the room that it takes.
    pub result_bytes: u64,
    /// Whether the result is only close to the file that it was made for.
    pub lossy: bool,
    pub(super) table_start: u64,
    pub(super) table_packed_bytes: u32,
    pub(super) table_bytes: u32,
}

impl Header {
    /// Reads the first [`HEADER_BYTES`] of a delta.
    ///
    /// # Errors
    /// When they are no delta's, or of a version that isn't known.
    pub fn read(delta: &mut impl Read) -> Result<Self, DeltaError> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        let read = delta.take(HEADER_BYTES).read_to_end(&mut bytes);
        read.map_err(|source| DeltaError::Read { what: "the delta", source })?;
        let mut bytes = Bytes::new(&bytes);
        let magic = bytes.take(bytes.len().min(MAGIC.len()))?;
        if magic != &MAGIC[..magic.len()] || magic.is_empty() {
            return Err(DeltaError::NotADelta);
        }
        let (version, flags) = (u16_of(&mut bytes)?, u16_of(&mut bytes)?);
        if version != VERSION {
            return Err(DeltaError::Version(version));
        }
        if flags > 1 {
            return Err(DeltaError::Corrupt("it has flags that aren't known"));
        }
        Ok(Self {
            lossy: flags == 1,
            base_bytes: u64_of(&mut bytes)?,
            result_bytes: u64_of(&mut bytes)?,
            base: digest_of(&mut bytes)?,
            result: digest_of(&mut bytes)?,
            table_start: u64_of(&mut bytes)?,
            table_packed_bytes: bytes.u32()?,
            table_bytes: bytes.u32()?,
        })
    }

    /// Bytes of the whole delta.
    #[must_use]
    pub fn delta_bytes(&self) -> u64 {
        self.table_start.saturating_add(self.table_packed_bytes.into())
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u16::from(self.lossy).to_le_bytes());
        out.extend_from_slice(&self.base_bytes.to_le_bytes());
        out.extend_from_slice(&self.result_bytes.to_le_bytes());
        out.extend_from_slice(&self.base.0);
        out.extend_from_slice(&self.result.0);
        out.extend_from_slice(&self.table_start.to_le_bytes());
        out.extend_from_slice(&self.table_packed_bytes.to_le_bytes());
        out.extend_from_slice(&self.table_bytes.to_le_bytes());
        out
    }
}

fn u16_of(bytes: &mut Bytes<'_>) -> Result<u16, DeltaError> {
    let two = bytes.take(2)?;
    Ok(u16::from_le_bytes([two[0], two[1]]))
}

fn u64_of(bytes: &mut Bytes<'_>) -> Result<u64, DeltaError> {
    let (low, high) = (bytes.u32()?, bytes.u32()?);
    Ok(u64::from(high) << 32 | u64::from(low))
}

fn digest_of(bytes: &mut Bytes<'_>) -> Result<Digest, DeltaError> {
    let mut digest = [0; 32];
    digest.copy_from_slice(bytes.take(32)?);
    Ok(Digest(digest))
}
