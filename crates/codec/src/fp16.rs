//! Half precision: half the bytes of f32, about three decimal digits.
//!
//! Values beyond ±65504 saturate to it rather than become infinite, since an
//! infinity would spoil everything downstream; infinities and NaN stay.

use half::f16;
use half::slice::HalfFloatSliceExt;
use tierline_graph::{DataType, Elements, Tensor};

use crate::frame::Header;
use crate::{Codec, CodecError};

pub struct Fp16;

impl Codec for Fp16 {
    fn name(&self) -> &'static str {
        "fp16"
    }

    fn lossless(&self) -> bool {
        false
    }

    fn accepts(&self, dtype: DataType) -> bool {
        dtype == DataType::F32
    }

    fn encode(&self, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let values = tensor.as_f32().ok_or(CodecError::Type { codec: "fp16", dtype: tensor.dtype() })?;
        Header { dtype: DataType::F32, shape: tensor.shape().to_vec() }.write(out)?;
        let mut halves = vec![f16::ZERO; values.len()];
        halves.convert_from_f32_slice(values);
        for (half, &value) in halves.iter_mut().zip(values) {
            if half.is_infinite() && value.is_finite() {
                *half = if value > 0.0 { f16::MAX } else { f16::MIN };
            }
        }
        out.extend_from_slice(bytemuck::cast_slice(&halves));
        Ok(())
    }

    fn decode_within(&self, bytes: &[u8], bytes_max: u64) -> Result<Tensor, CodecError> {
        let (header, body) = Header::read_within(bytes, bytes_max)?;
        if header.dtype != DataType::F32 {
            return Err(CodecError::Type { codec: "fp16", dtype: header.dtype });
        }
        let Elements::F16(halves) = Tensor::from_bytes(DataType::F16, [header.elements()], body)?.into_parts().1 else {
            return Err(CodecError::Corrupt("half floats were expected"));
        };
        let mut values = vec![0f32; halves.len()];
        halves.convert_to_f32_slice(&mut values);
        Ok(Tensor::new(header.shape, Elements::F32(values))?)
    }
}
