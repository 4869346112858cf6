//! In which precision values travel.

pub mod blocks;
mod nearest;
mod qsgd;
mod sign;
mod wide;

use super::bits::Layout;
use crate::CodecError;
use blocks::Quantiser;

/// The precision of the values sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    F32,
    Fp16,
    Int8,
    Int4,
    /// Of so many bits, 2 to 8.
    Qsgd(u8),
    Sign,
}

impl Precision {
    /// As [`super::Pipeline::stages`] prints it.
    pub fn stage(self) -> Option<String> {
        Some(match self {
            Self::F32 => return None,
            Self::Fp16 => "fp16".to_owned(),
            Self::Int8 => "int8".to_owned(),
            Self::Int4 => "int4".to_owned(),
            Self::Qsgd(bits) => format!("qsgd:{bits}"),
            Self::Sign => "sign".to_owned(),
        })
    }

    pub fn is_lossless(self) -> bool {
        self == Self::F32
    }

    /// How it is written in the header.
    pub fn tag(self) -> (u8, u8) {
        match self {
            Self::F32 => (0, 0),
            Self::Fp16 => (1, 0),
            Self::Int8 => (2, 0),
            Self::Int4 => (3, 0),
            Self::Qsgd(bits) => (4, bits),
            Self::Sign => (5, 0),
        }
    }

    pub fn from_tag(kind: u8, width: u8) -> Option<Self> {
        let precision = match kind {
            0 => Self::F32,
            1 => Self::Fp16,
            2 => Self::Int8,
            3 => Self::Int4,
            4 if (2..=8).contains(&width) => Self::Qsgd(width),
            5 => Self::Sign,
            _ => return None,
        };
        (precision.tag() == (kind, width)).then_some(precision)
    }

    /// Bytes that segments of these lengths take.
    pub fn size(self, lens: &[usize], layout: Layout) -> usize {
        match self.quantiser(0) {
            Ok(quantiser) => blocks::size(quantiser.bits(), lens, layout),
            Err(wide) => lens.iter().sum::<usize>() * wide.size(),
        }
    }

    /// Appends `values`, cut into segments of these lengths. `seed` decides
    /// how qsgd rounds.
    pub fn write(self, values: &[f32], lens: &[usize], layout: Layout, seed: u64, out: &mut Vec<u8>) {
        match self.quantiser(seed) {
            Ok(mut quantiser) => blocks::write(&mut *quantiser, values, lens, layout, out),
            Err(wide) => wide.write(values, layout, out),
        }
    }

    /// Fills `values` from [`Precision::size`] bytes.
    pub fn read(self, bytes: &[u8], lens: &[usize], layout: Layout, values: &mut [f32]) -> Result<(), CodecError> {
        match self.quantiser(0) {
            Ok(quantiser) => blocks::read(&*quantiser, bytes, lens, layout, values),
            Err(wide) => wide.read(bytes, layout, values),
        }
    }

    /// What turns values into codes; or a precision that keeps them floats.
    fn quantiser(self, seed: u64) -> Result<Box<dyn Quantiser>, wide::Wide> {
        match self {
            Self::F32 => Err(wide::Wide::F32),
            Self::Fp16 => Err(wide::Wide::Fp16),
            Self::Int8 => Ok(Box::new(nearest::Nearest { bits: 8 })),
            Self::Int4 => Ok(Box::new(nearest::Nearest { bits: 4 })),
            Self::Qsgd(bits) => Ok(Box::new(qsgd::Qsgd::new(bits, seed))),
            Self::Sign => Ok(Box::new(sign::Sign)),
        }
    }
}
