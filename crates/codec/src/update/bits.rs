//! Numbers of fewer bits than a byte, packed; the lowest bits come first.

use crate::CodecError;

/// How codes lie in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Bit behind bit, in exactly their bits; wider values as they are.
    Packed,
    /// As many whole codes as a byte holds, wider values in byte planes: zstd
    /// sees bytes, and a code across two of them looks like noise to it.
    Aligned,
}

impl Layout {
    /// Codes of `bits` bits that fill whole bytes, and how many bytes.
    fn group(self, bits: usize) -> (usize, usize) {
        match self {
            Self::Packed => (8, bits),
            Self::Aligned => (8 / bits, 1),
        }
    }

    /// Bytes that `len` codes of `bits` bits take.
    pub fn bytes(self, len: usize, bits: usize) -> usize {
        let (codes, bytes) = self.group(bits);
        len / codes * bytes + (len % codes * bits).div_ceil(8)
    }

    /// Appends codes of `bits` bits, filled up to a byte.
    pub fn pack(self, codes: &[u8], bits: usize, out: &mut Vec<u8>) {
        let (group, bytes) = self.group(bits);
        if bits == 8 || group == 1 {
            return out.extend_from_slice(codes);
        }
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0u64, |word, &code| (word << bits) | u64::from(code));
        let chunks = codes.chunks_exact(group);
        let rest = chunks.remainder();
        for chunk in chunks {
            out.extend_from_slice(&word(chunk).to_le_bytes()[..bytes]);
        }
        out.extend_from_slice(&word(rest).to_le_bytes()[..(rest.len() * bits).div_ceil(8)]);
    }

    /// Fills `codes` from as many bytes as [`Layout::bytes`] says.
    pub fn unpack(self, bytes: &[u8], bits: usize, codes: &mut [u8]) {
        let (group, size) = self.group(bits);
        if bits == 8 || group == 1 {
            return codes.copy_from_slice(bytes);
        }
        for (chunk, part) in codes.chunks_mut(group).zip(bytes.chunks(size)) {
            let mut word = part.iter().rev().fold(0u64, |word, &byte| (word << 8) | u64::from(byte));
            for code in chunk {
                *code = word as u8 & ((1 << bits) - 1);
                word >>= bits;
            }
        }
    }
}

/// Appends numbers of any width to bytes.
pub struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Bits not yet written, below 32 of them between calls.
    pending: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, pending: 0, count: 0 }
    }

    /// The lowest `bits` (up to 32) of `value`, which has no others.
    pub fn put(&mut self, value: u64, bits: u32) {
        self.pending |= value << self.count;
        self.count += bits;
        if self.count >= 32 {
            self.out.extend_from_slice(&(self.pending as u32).to_le_bytes());
            self.pending >>= 32;
            self.count -= 32;
        }
    }

    /// So many zeros, then a one.
    pub fn put_unary(&mut self, mut zeros: u64) {
        while zeros >= 31 {
            self.put(0, 31);
            zeros -= 31;
        }
        self.put(1 << zeros, zeros as u32 + 1);
    }

    /// Fills the last byte with zeros.
    pub fn finish(self) {
        self.out.extend_from_slice(&self.pending.to_le_bytes()[..self.count.div_ceil(8) as usize]);
    }
}

/// Takes numbers of any width off bytes, never past the end.
pub struct BitReader<'a> {
    bytes: &'a [u8],
    /// Bits taken.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next bits, and how many of them count: 57 or more, or all there are.
    fn peek(&self) -> (u64, usize) {
        let rest = self.bytes.get(self.at / 8..).unwrap_or_default();
        let skip = self.at % 8;
        let mut raw = [0; 8];
        let taken = rest.len().min(8);
        raw[..taken].copy_from_slice(&rest[..taken]);
        (u64::from_le_bytes(raw) >> skip, (taken * 8).saturating_sub(skip))
    }

    fn truncated(&self) -> CodecError {
        CodecError::Truncated { needed: self.bytes.len() as u64 + 1, left: self.bytes.len() as u64 }
    }

    /// A number of `bits` (up to 32) bits.
    pub fn take(&mut self, bits: u32) -> Result<u64, CodecError> {
        let (word, count) = self.peek();
        if count < bits as usize {
            return Err(self.truncated());
        }
        self.at += bits as usize;
        Ok(word & ((1 << bits) - 1))
    }

    /// The zeros before the next one.
    pub fn take_unary(&mut self) -> Result<u64, CodecError> {
        let mut zeros = 0;
        loop {
            let (word, count) = self.peek();
            let here = word.trailing_zeros() as usize;
            if here < count {
                self.at += here + 1;
                return Ok(zeros + here as u64);
            }
            if count == 0 {
                return Err(self.truncated());
            }
            self.at += count;
            zeros += count as u64;
        }
    }

    /// The bytes behind the last one touched.
    pub fn rest(self) -> &'a [u8] {
        self.bytes.get(self.at.div_ceil(8)..).unwrap_or_default()
    }
}
