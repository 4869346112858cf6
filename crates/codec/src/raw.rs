//! Elements as they are, little-endian; strings with their lengths.

use tierline_graph::{DataType, Elements, Tensor};

use crate::frame::{Header, Reader};
use crate::{Codec, CodecError};

pub struct Raw;

impl Codec for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn lossless(&self) -> bool {
        true
    }

    fn accepts(&self, _dtype: DataType) -> bool {
        true
    }

    fn encode(&self, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.reserve(tensor.byte_len() as usize + 64);
        Header { dtype: tensor.dtype(), shape: tensor.shape().to_vec() }.write(out)?;
        match tensor.elements() {
            Elements::String(strings) => {
                for s in strings {
                    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
                    out.extend_from_slice(s.as_bytes());
                }
            }
            numeric => out.extend_from_slice(numeric.as_bytes().unwrap_or_default()),
        }
        Ok(())
    }

    fn decode_within(&self, bytes: &[u8], bytes_max: u64) -> Result<Tensor, CodecError> {
        let (header, body) = Header::read_within(bytes, bytes_max)?;
        if header.dtype != DataType::String {
            return Ok(Tensor::from_bytes(header.dtype, header.shape, body)?);
        }
        let mut reader = Reader(body);
        // A string takes at least its length's eight bytes.
        let mut strings = Vec::with_capacity(header.elements().min(body.len() / 8));
        for _ in 0..header.elements() {
            let length = usize::try_from(reader.u64()?).map_err(|_| CodecError::Corrupt("a string exceeds memory"))?;
            let text =
                std::str::from_utf8(reader.take(length)?).map_err(|_| CodecError::Corrupt("a string is not UTF-8"))?;
            strings.push(text.to_owned());
        }
        match reader.0.len() {
            0 => Ok(Tensor::new(header.shape, Elements::String(strings))?),
            n => Err(CodecError::Trailing(n)),
        }
    }
}
