//! What differs bit by bit, the first bytes of all elements together, then the
//! second ones, and so on, then zstd: finds patterns in bits, and repetitions.

use super::super::element::Element;
use super::super::error::DeltaError;
use super::{pack, unpack};

/// Appends the planes; both are as long, a multiple of the width.
pub fn encode(old: &[u8], new: &[u8], element: Element, level: i32, out: &mut Vec<u8>) {
    let (width, count) = (element.width(), new.len() / element.width());
    let mut planes = vec![0; new.len()];
    for (plane, bytes) in planes.chunks_exact_mut(count.max(1)).enumerate() {
        let pairs = old[plane..].iter().step_by(width).zip(new[plane..].iter().step_by(width));
        bytes.iter_mut().zip(pairs).for_each(|(byte, (old, new))| *byte = old ^ new);
    }
    pack(&planes, level, out);
}

/// Puts the new elements behind `new`.
pub fn decode(old: &[u8], element: Element, bytes: &[u8], new: &mut Vec<u8>) -> Result<(), DeltaError> {
    let (width, count) = (element.width(), old.len() / element.width());
    let planes = unpack(bytes, old.len())?;
    let begin = new.len();
    new.extend_from_slice(old);
    for (plane, bytes) in planes.chunks_exact(count.max(1)).enumerate() {
        let places = new[begin + plane..].iter_mut().step_by(width);
        places.zip(bytes).for_each(|(byte, change)| *byte ^= change);
    }
    Ok(())
}
