//! Values that stay floats: f32 as it is, or half of it.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::blocks::largest;
use crate::CodecError;
use crate::planes;
use crate::update::bits::Layout;

/// Values converted at once, on the stack.
const CHUNK: usize = 1_024;

#[derive(Clone, Copy)]
pub enum Wide {
    F32,
    /// Saturates at ±65504, like the codec of tensors.
    Fp16,
}

impl Wide {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Fp16 => 2,
        }
    }

    pub fn write(self, values: &[f32], layout: Layout, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + values.len() * self.size(), 0);
        let bytes = &mut out[start..];
        match self {
            Self::F32 => {
                for (slot, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                    *slot = value.to_le_bytes();
                }
            }
            Self::Fp16 => {
                let (mut near, mut halves) = ([0f32; CHUNK], [f16::ZERO; CHUNK]);
                for (slots, values) in bytes.chunks_mut(2 * CHUNK).zip(values.chunks(CHUNK)) {
                    let (near, halves) = (&mut near[..values.len()], &mut halves[..values.len()]);
                    for (slot, value) in near.iter_mut().zip(values) {
                        *slot = value.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const());
                    }
                    halves.convert_from_f32_slice(near);
                    for (slot, half) in slots.as_chunks_mut().0.iter_mut().zip(halves) {
                        *slot = half.to_le_bytes();
                    }
                }
            }
        }
        if layout == Layout::Aligned {
            let planes = planes::split(bytes, self.size());
            bytes.copy_from_slice(&planes);
        }
    }

    pub fn read(self, bytes: &[u8], layout: Layout, values: &mut [f32]) -> Result<(), CodecError> {
        let joined = match layout {
            Layout::Packed => None,
            Layout::Aligned => Some(planes::join(bytes, self.size())),
        };
        let bytes = joined.as_deref().unwrap_or(bytes);
        match self {
            Self::F32 => {
                for (slot, raw) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *slot = f32::from_le_bytes(*raw);
                }
            }
            Self::Fp16 => {
                let mut halves = [f16::ZERO; CHUNK];
                for (values, raws) in values.chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
                    let halves = &mut halves[..values.len()];
                    for (slot, raw) in halves.iter_mut().zip(raws.as_chunks().0) {
                        *slot = f16::from_le_bytes(*raw);
                    }
                    halves.convert_to_f32_slice(values);
                }
            }
        }
        match largest(values).is_finite() {
            true => Ok(()),
            false => Err(CodecError::Corrupt("a value is not a finite number")),
        }
    }
}
