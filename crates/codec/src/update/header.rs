//! The header in front of every encoded update: what it is and whom it fits.

use super::packing::Packing;
use super::precision::Precision;
use super::support::{Placed, Support};
use crate::CodecError;
use crate::frame::Reader;

/// First bytes of an encoded update.
const MAGIC: [u8; 2] = *b"TU";

/// Version of the encoding, all stages together.
const VERSION: u8 = 1;

/// Where the packing lies.
const PACKING_AT: usize = 6;

/// What a header says.
pub struct Header {
    /// [`Support::tag`]; its details follow the header.
    pub support: u8,
    pub precision: Precision,
    pub packing: Packing,
    /// Elements of the vector.
    pub elements: usize,
}

impl Header {
    pub fn write(&self, shapes: &[Vec<usize>], out: &mut Vec<u8>) {
        let (precision, width) = self.precision.tag();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.support, precision, width, self.packing as u8]);
        out.extend_from_slice(&(self.elements as u32).to_le_bytes());
        out.extend_from_slice(&fingerprint(shapes).to_le_bytes());
    }

    /// Changes the packing of a written header: known once the values, which
    /// lie behind it, are.
    pub fn set_packing(header: &mut [u8], packing: Packing) {
        header[PACKING_AT] = packing as u8;
    }

    /// The header of an update for parts of these shapes, and what follows it.
    pub fn read<'a>(bytes: &'a [u8], shapes: &[Vec<usize>]) -> Result<(Self, &'a [u8]), CodecError> {
        let expected = elements(shapes)?;
        let mut reader = Reader(bytes);
        let head = reader.take(7)?;
        if head[..2] != MAGIC {
            return Err(CodecError::Corrupt("the first bytes are not an encoded update's"));
        }
        if head[2] != VERSION {
            return Err(CodecError::Version(head[2]));
        }
        let precision =
            Precision::from_tag(head[4], head[5]).ok_or(CodecError::Corrupt("unknown precision of an update"))?;
        let packing = Packing::from_tag(head[PACKING_AT]).ok_or(CodecError::Corrupt("unknown packing of an update"))?;
        let elements = read_u32(&mut reader)? as usize;
        if elements != expected {
            return Err(CodecError::Elements { given: elements as u64, expected: expected as u64 });
        }
        if read_u32(&mut reader)? != fingerprint(shapes) {
            return Err(CodecError::Parts);
        }
        Ok((Self { support: head[3], precision, packing, elements }, reader.0))
    }

    /// Where the values go; the reader is left in front of them.
    pub fn support(&self, reader: &mut Reader<'_>, shapes: &[Vec<usize>]) -> Result<Placed, CodecError> {
        Support::read(self.support, reader, shapes, self.elements)
    }

    /// Refuses a body that can't hold the values, before they are allocated.
    pub fn check(&self, placed: &Placed, body: &[u8]) -> Result<(), CodecError> {
        self.packing.check(self.precision, &placed.segments(self.elements), body.len())
    }
}

/// Elements of a vector of parts of these shapes.
pub fn elements(shapes: &[Vec<usize>]) -> Result<usize, CodecError> {
    let size = |shape: &Vec<usize>| shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let sum = shapes.iter().try_fold(0usize, |sum, shape| sum.checked_add(size(shape)?));
    let sum = sum.ok_or(CodecError::Corrupt("the parts' shapes exceed memory"))?;
    // Indices travel in 32 bits.
    match u32::try_from(sum) {
        Ok(_) => Ok(sum),
        Err(_) => Err(CodecError::TooLarge { what: "elements", declared: sum as u64, max: u32::MAX.into() }),
    }
}

pub fn read_u32(reader: &mut Reader<'_>) -> Result<u32, CodecError> {
    let mut raw = [0; 4];
    raw.copy_from_slice(reader.take(4)?);
    Ok(u32::from_le_bytes(raw))
}

/// Tells lists of shapes apart; FNV-1a, folded to 32 bits. Against mistakes,
/// not against liars: those send other values just as well.
fn fingerprint(shapes: &[Vec<usize>]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |n: usize| {
        for byte in (n as u64).to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for shape in shapes {
        add(shape.len());
        shape.iter().for_each(|&dim| add(dim));
    }
    (hash ^ (hash >> 32)) as u32
}
