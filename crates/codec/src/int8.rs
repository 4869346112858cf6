//! Eight bits per value, scaled per channel (axis 1 of `[batch, channels, ...]`).
//!
//! Affine: each channel of each batch item maps its own range onto 0..=255,
//! so a channel that is all positive (after a ReLU) loses no bit to the sign.

use tierline_graph::{DataType, Elements, Tensor};

use crate::frame::{Header, Reader};
use crate::{Codec, CodecError};

pub struct Int8;

/// Values that share a scale: what lies behind the channel axis.
fn group(shape: &[usize]) -> usize {
    match shape.len() {
        0..=2 => shape.last().copied().unwrap_or(1),
        _ => shape[2..].iter().product(),
    }
    .max(1)
}

impl Codec for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn lossless(&self) -> bool {
        false
    }

    fn accepts(&self, dtype: DataType) -> bool {
        dtype == DataType::F32
    }

    fn encode(&self, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let values = tensor.as_f32().ok_or(CodecError::Type { codec: "int8", dtype: tensor.dtype() })?;
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(CodecError::Value { codec: "int8", index, value: values[index] });
        }
        Header { dtype: DataType::F32, shape: tensor.shape().to_vec() }.write(out);
        for channel in values.chunks(group(tensor.shape())) {
            let (low, high) = channel.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
            let step = ((f64::from(high) - f64::from(low)) / 255.0) as f32;
            out.extend_from_slice(&low.to_le_bytes());
            out.extend_from_slice(&step.to_le_bytes());
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            out.extend(channel.iter().map(|v| ((v - low) * inverse + 0.5) as u8));
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Tensor, CodecError> {
        let (header, body) = Header::read(bytes)?;
        if header.dtype != DataType::F32 {
            return Err(CodecError::Type { codec: "int8", dtype: header.dtype });
        }
        let (elements, group) = (header.elements(), group(&header.shape));
        let needed = elements as u64 + 8 * elements.div_ceil(group) as u64;
        if needed > body.len() as u64 {
            return Err(CodecError::Truncated { needed, left: body.len() as u64 });
        }
        let mut reader = Reader(body);
        let mut values = Vec::with_capacity(elements);
        while values.len() < elements {
            let (low, step) = (reader.f32()?, reader.f32()?);
            let codes = reader.take(group.min(elements - values.len()))?;
            values.extend(codes.iter().map(|&c| low + f32::from(c) * step));
        }
        match reader.0.len() {
            0 => Ok(Tensor::new(header.shape, Elements::F32(values))?),
            n => Err(CodecError::Trailing(n)),
        }
    }
}
