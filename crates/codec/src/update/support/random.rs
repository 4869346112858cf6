//! A mask that both sides draw (Konečný et al. 2016): the seed travels, the
//! indices don't. Values are sent as they are, not scaled up to their mean;
//! a caller who feeds errors back wants them so.

use crate::CodecError;
use crate::frame::Reader;
use crate::update::header::read_u32;
use crate::update::rng::{Purpose, Rng};

/// Indices of `count` of `elements` elements, each choice as likely, ascending.
///
/// Knuth's algorithm S: integers only, so both sides agree to the bit.
pub fn indices(elements: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Purpose::Mask);
    let mut indices = Vec::with_capacity(count);
    for index in 0..elements as u32 {
        let (left, wanted) = (elements as u32 - index, (count - indices.len()) as u32);
        if rng.below(left) < wanted {
            indices.push(index);
        }
    }
    indices
}

pub fn write(count: usize, seed: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
    out.extend_from_slice(&seed.to_le_bytes());
}

/// The mask; refused when larger than the vector.
pub fn read(reader: &mut Reader<'_>, elements: usize) -> Result<Vec<u32>, CodecError> {
    let count = read_u32(reader)? as usize;
    let seed = reader.u64()?;
    if count > elements {
        return Err(CodecError::Corrupt("more elements are kept than there are"));
    }
    Ok(indices(elements, count, seed))
}
