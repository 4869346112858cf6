//! Ascending indices as the gaps between them, Golomb-Rice coded (Golomb 1966,
//! Rice 1979): about log2(1/F) + 1.5 bits each where a fraction F is kept.
//!
//! The parameter follows the density of each block of gaps: what is kept of
//! a real update is dense in some layers and sparse in others.

use crate::CodecError;
use crate::frame::Reader;
use crate::update::bits::{BitReader, BitWriter};
use crate::update::header::read_u32;

/// Gaps that share a parameter; its five bits are a 50th of a bit each.
const BLOCK: usize = 256;
const PARAMETER_BITS: u32 = 5;

/// Appends ascending indices.
pub fn write(indices: &[u32], out: &mut Vec<u8>) {
    out.extend_from_slice(&(indices.len() as u32).to_le_bytes());
    let mut bits = BitWriter::new(out);
    // The first index that may come next.
    let mut next = 0u64;
    for block in indices.chunks(BLOCK) {
        let span = block.last().map_or(0, |&last| u64::from(last) + 1 - next) - block.len() as u64;
        let parameter = parameter(span, block.len() as u64);
        bits.put(parameter.into(), PARAMETER_BITS);
        for &index in block {
            let gap = u64::from(index) - next;
            bits.put_unary(gap >> parameter);
            bits.put(gap & ((1 << parameter) - 1), parameter);
            next = u64::from(index) + 1;
        }
    }
    bits.finish();
}

/// Indices into `elements` elements, ascending.
pub fn read(reader: &mut Reader<'_>, elements: usize) -> Result<Vec<u32>, CodecError> {
    let count = read_u32(reader)? as usize;
    if count > elements {
        return Err(CodecError::Corrupt("more elements are kept than there are"));
    }
    // A gap takes a bit at least: what is allocated follows what came.
    if count > reader.0.len().saturating_mul(8) {
        return Err(CodecError::Truncated { needed: count.div_ceil(8) as u64, left: reader.0.len() as u64 });
    }
    let mut bits = BitReader::new(reader.0);
    let mut indices = Vec::with_capacity(count);
    let mut next = 0u64;
    while indices.len() < count {
        let parameter = bits.take(PARAMETER_BITS)? as u32;
        for _ in 0..BLOCK.min(count - indices.len()) {
            let steps = bits.take_unary()?;
            let behind = CodecError::Corrupt("an index lies behind the vector's end");
            // Before the shift, which else could lose bits.
            if steps > elements as u64 >> parameter {
                return Err(behind);
            }
            let index = next + (steps << parameter) + bits.take(parameter)?;
            if index >= elements as u64 {
                return Err(behind);
            }
            indices.push(index as u32);
            next = index + 1;
        }
    }
    reader.0 = bits.rest();
    Ok(indices)
}

/// The parameter for `count` gaps that add up to `sum`, the best for geometric
/// ones: the next is better from a mean distance between indices of 2^(k+1) /
/// 0.962 on (Kiely 2004; twice the logarithm of the golden ratio).
fn parameter(sum: u64, count: u64) -> u32 {
    (0..31).find(|&k| (count << (k + 1)) * 1_000 >= 962 * (sum + count)).unwrap_or(31)
}
