//! Bits in a row, and increasing indices as Golomb-Rice codes of their gaps
//! (Rice and Plaunt, 1971): near the entropy of a random mask.

use crate::CodecError;

/// Writes bits, the lowest first.
pub(super) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    held: u64,
    count: u32,
}

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, held: 0, count: 0 }
    }

    /// Appends the lowest `count` bits of `bits`, at most 32.
    pub(super) fn put(&mut self, bits: u32, count: u32) {
        self.held |= u64::from(bits) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// Appends what is left, filled up with zeros.
    pub(super) fn finish(self) {
        if self.count > 0 {
            self.out.push(self.held as u8);
        }
    }
}

/// Reads bits, the lowest first.
pub(super) struct Bits<'b> {
    bytes: &'b [u8],
    held: u64,
    count: u32,
}

impl<'b> Bits<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    /// The next `count` bits, at most 32; zeros behind the end.
    pub(super) fn take(&mut self, count: u32) -> u32 {
        while self.count < count {
            let (next, rest) = self.bytes.split_first().map_or((0, &[][..]), |(&byte, rest)| (byte, rest));
            self.bytes = rest;
            self.held |= u64::from(next) << self.count;
            self.count += 8;
        }
        let bits = (self.held & ((1u64 << count) - 1)) as u32;
        self.held >>= count;
        self.count -= count;
        bits
    }

    fn is_over(&self) -> bool {
        self.bytes.is_empty() && self.held == 0
    }
}

/// Bits of a gap that are written as they are, where one element of
/// `length / count` is named: the mean gap's logarithm, times ln 2.
fn parameter(length: usize, count: usize) -> u32 {
    let mean = length as f64 / count.max(1) as f64;
    (mean * std::f64::consts::LN_2).log2().floor().clamp(0.0, 31.0) as u32
}

/// Appends increasing indices below `length`.
pub(super) fn write_indices(indices: &[u32], length: usize, out: &mut Vec<u8>) {
    let low = parameter(length, indices.len());
    let mut writer = Writer::new(out);
    let mut next = 0;
    for &index in indices {
        let gap = index - next;
        for _ in 0..gap >> low {
            writer.put(1, 1);
        }
        writer.put(0, 1);
        writer.put(gap & ((1u64 << low) - 1) as u32, low);
        next = index + 1;
    }
    writer.finish();
}

/// The indices that [`write_indices`] wrote.
pub(super) fn read_indices(bytes: &[u8], length: usize, count: usize) -> Result<Vec<u32>, CodecError> {
    let low = parameter(length, count);
    let mut bits = Bits::new(bytes);
    let mut indices = Vec::with_capacity(count);
    let mut next = 0u64;
    for _ in 0..count {
        let mut high = 0u64;
        while bits.take(1) == 1 {
            high += 1;
            if high << low > length as u64 {
                return Err(CodecError::Corrupt("an index lies behind the vector's end"));
            }
        }
        let index = next + (high << low | u64::from(bits.take(low)));
        if index >= length as u64 {
            return Err(CodecError::Corrupt("an index lies behind the vector's end"));
        }
        indices.push(index as u32);
        next = index + 1;
    }
    if bits.is_over() { Ok(indices) } else { Err(CodecError::Corrupt("bits follow the last index")) }
}
