//! Eight bits per value, scaled per channel (axis 1 of `[batch, channels, ...]`).
//!
//! Affine: each channel of each batch item maps its own range onto 0..=255,
//! so a channel that is all positive (after a ReLU) loses no bit to the sign.
//! The error of a value is at most half a step, a 510th of its channel's range.

use tierline_graph::{DataType, Elements, Tensor};

use crate::frame::{Header, Reader};
use crate::{Codec, CodecError};

pub struct Int8;

/// Values that share a scale at least, where there are as many: a scale takes
/// eight bytes, so smaller groups would outweigh what they save.
const GROUP_MIN: usize = 16;

/// Below this magnitude neither a range nor a decoded value overflows f32.
const NARROW: f32 = 1e38;

/// Values that share a scale: what lies behind the channel axis; where that
/// is too little (a vector per channel), all of a batch item; else all.
fn group(shape: &[usize]) -> usize {
    // Of an empty tensor other axes may be of any size.
    if shape.contains(&0) {
        return 1;
    }
    let behind = |axis: usize| shape.get(axis..).unwrap_or_default().iter().product::<usize>();
    let channel = if shape.len() > 2 { behind(2) } else { behind(shape.len().saturating_sub(1)) };
    [channel, behind(1), behind(0)].into_iter().find(|&n| n >= GROUP_MIN).unwrap_or(behind(0)).max(1)
}

/// Whether f32 is wide and fine enough to compute with this scale.
fn is_plain(low: f32, step: f32) -> bool {
    low.abs() < NARROW && (f32::MIN_POSITIVE..NARROW / 256.0).contains(&step)
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
        Header { dtype: DataType::F32, shape: tensor.shape().to_vec() }.write(out)?;
        for channel in values.chunks(group(tensor.shape())) {
            let (low, high) = channel.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
            let step = ((f64::from(high) - f64::from(low)) / 255.0) as f32;
            out.extend_from_slice(&low.to_le_bytes());
            out.extend_from_slice(&step.to_le_bytes());
            if is_plain(low, step) {
                let inverse = 1.0 / step;
                out.extend(channel.iter().map(|v| ((v - low) * inverse + 0.5) as u8));
            } else if step > 0.0 {
                let code = |v: &f32| ((f64::from(*v) - f64::from(low)) / f64::from(step) + 0.5) as u8;
                out.extend(channel.iter().map(code));
            } else {
                out.resize(out.len() + channel.len(), 0);
            }
        }
        Ok(())
    }

    fn decode_within(&self, bytes: &[u8], bytes_max: u64) -> Result<Tensor, CodecError> {
        let (header, body) = Header::read_within(bytes, bytes_max)?;
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
            if !low.is_finite() || !step.is_finite() || step < 0.0 {
                return Err(CodecError::Corrupt("a channel's scale is not a finite number"));
            }
            let codes = reader.take(group.min(elements - values.len()))?;
            if is_plain(low, step) {
                values.extend(codes.iter().map(|&c| low + f32::from(c) * step));
            } else {
                let (low, step, max) = (f64::from(low), f64::from(step), f64::from(f32::MAX));
                values.extend(codes.iter().map(|&c| (low + f64::from(c) * step).clamp(-max, max) as f32));
            }
        }
        match reader.0.len() {
            0 => Ok(Tensor::new(header.shape, Elements::F32(values))?),
            n => Err(CodecError::Trailing(n)),
        }
    }
}
