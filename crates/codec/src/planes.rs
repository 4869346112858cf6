//! Lossless: the first bytes of all elements together, then the second bytes,
//! and so on, then zstd. Exponents of neighbouring activations resemble each
//! other; mantissas don't, and alone they don't spoil the rest.

use tierline_graph::{DataType, Tensor};

use crate::frame::Header;
use crate::{Codec, CodecError};

pub struct Planes;

/// zstd's fastest level with its full format: activations gain under 2% from
/// level 3 at a third of the speed.
const LEVEL: i32 = 1;

/// What zstd makes of its smallest block (a header of three bytes and one
/// byte to repeat): no stream of it decodes to more.
pub const BLOCK_BYTES_MAX: u64 = 128 << 10;

impl Codec for Planes {
    fn name(&self) -> &'static str {
        "planes"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn accepts(&self, dtype: DataType) -> bool {
        dtype.size().is_some()
    }

    fn encode(&self, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let type_error = || CodecError::Type { codec: "planes", dtype: tensor.dtype() };
        let size = tensor.dtype().size().ok_or_else(type_error)?;
        let bytes = tensor.elements().as_bytes().ok_or_else(type_error)?;
        Header { dtype: tensor.dtype(), shape: tensor.shape().to_vec() }.write(out)?;
        // A stream of nothing would still take bytes and a rule of its own.
        if bytes.is_empty() {
            return Ok(());
        }
        let packed = zstd::bulk::compress(&split(bytes, size), LEVEL)
            .map_err(|_| CodecError::Corrupt("zstd failed to compress"))?;
        out.extend_from_slice(&packed);
        Ok(())
    }

    fn decode_within(&self, bytes: &[u8], bytes_max: u64) -> Result<Tensor, CodecError> {
        let (header, body) = Header::read_within(bytes, bytes_max)?;
        let size = header.dtype.size().ok_or(CodecError::Type { codec: "planes", dtype: header.dtype })?;
        let declared = (header.elements() * size) as u64;
        if declared == 0 {
            return match body.len() {
                0 => Ok(Tensor::from_bytes(header.dtype, header.shape, &[])?),
                n => Err(CodecError::Trailing(n)),
            };
        }
        // What is allocated follows what came, whatever the header says.
        let possible = (body.len() as u64 / 4).saturating_mul(BLOCK_BYTES_MAX);
        if declared > possible {
            return Err(CodecError::Truncated {
                needed: declared.div_ceil(BLOCK_BYTES_MAX) * 4,
                left: body.len() as u64,
            });
        }
        let planes = zstd::bulk::decompress(body, declared as usize)
            .map_err(|_| CodecError::Corrupt("zstd failed to decompress"))?;
        if planes.len() as u64 != declared {
            return Err(CodecError::Truncated { needed: declared, left: planes.len() as u64 });
        }
        let bytes = join(&planes, size);
        drop(planes);
        Ok(Tensor::from_bytes(header.dtype, header.shape, &bytes)?)
    }
}

/// Elements of `size` bytes as planes: all first bytes, all second ones, ...
pub fn split(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut planes = Vec::with_capacity(bytes.len());
    for plane in 0..size {
        planes.extend(bytes.iter().skip(plane).step_by(size));
    }
    planes
}

/// What [`split`] took apart.
pub fn join(planes: &[u8], size: usize) -> Vec<u8> {
    let count = planes.len() / size.max(1);
    let mut bytes = vec![0; planes.len()];
    for (plane, source) in planes.chunks_exact(count.max(1)).enumerate() {
        for (element, &byte) in source.iter().enumerate() {
            bytes[element * size + plane] = byte;
        }
    }
    bytes
}
