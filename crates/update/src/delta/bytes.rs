//! Bytes from a stranger, read from their beginning; and numbers of variable
//! length (LEB128).

use super::error::DeltaError;

/// What is left to read.
#[derive(Clone, Copy)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DeltaError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DeltaError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// As many bytes as the number before them says.
    pub fn counted(&mut self) -> Result<&'a [u8], DeltaError> {
        let count = self.varint()?;
        self.take(usize::try_from(count).map_err(|_| DeltaError::Truncated)?)
    }

    pub fn u8(&mut self) -> Result<u8, DeltaError> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> Result<u32, DeltaError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DeltaError::Truncated)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*taken))
    }

    pub fn varint(&mut self) -> Result<u64, DeltaError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DeltaError::Corrupt("a number in it is too long"))
    }

    /// Whether nothing is left.
    pub fn end(&self) -> Result<(), DeltaError> {
        if self.0.is_empty() { Ok(()) } else { Err(DeltaError::Corrupt("bytes follow where it should end")) }
    }
}

/// Appends a number, seven bits a byte, the lowest first.
pub fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Of either sign, the small ones short.
pub fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

/// What [`zigzag`] made.
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
