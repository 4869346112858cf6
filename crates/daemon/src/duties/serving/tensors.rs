//! Between the protocol's tensors and this node's.

use bytes::Bytes;
use tierline_codec::frame::Header;
use tierline_graph::{DataType, Elements, Tensor};
use tierline_proto::Encoded;
use tierline_proto::oip;
use tierline_proto::oip::Datatype;
use tierline_proto::v1::{Code, Failure};

use crate::duties::inference::wire;

/// The element type of a datatype.
pub fn element_type(datatype: Datatype) -> DataType {
    match datatype {
        Datatype::Bool => DataType::Bool,
        Datatype::Uint8 => DataType::U8,
        Datatype::Uint16 => DataType::U16,
        Datatype::Uint32 => DataType::U32,
        Datatype::Uint64 => DataType::U64,
        Datatype::Int8 => DataType::I8,
        Datatype::Int16 => DataType::I16,
        Datatype::Int32 => DataType::I32,
        Datatype::Int64 => DataType::I64,
        Datatype::Fp16 => DataType::F16,
        Datatype::Fp32 => DataType::F32,
        Datatype::Fp64 => DataType::F64,
        Datatype::Bytes => DataType::String,
        Datatype::Bf16 => DataType::BF16,
    }
}

/// The datatype of an element type.
pub fn datatype(of: DataType) -> Option<Datatype> {
    Datatype::ALL.into_iter().find(|datatype| element_type(*datatype) == of)
}

/// An input, as requests carry it from here on.
pub fn encode(tensor: oip::Tensor) -> Result<Encoded, Failure> {
    let invalid = |e: &dyn std::fmt::Display| Failure::new(Code::InvalidInput, format!("`{}`: {e}", tensor.name));
    let mut data = Vec::with_capacity(tensor.data.len() + 64);
    let header = Header { dtype: element_type(tensor.datatype), shape: tensor.shape.clone() };
    header.write(&mut data).map_err(|e| invalid(&e))?;
    match tensor.datatype {
        Datatype::Bytes => {
            for text in tensor.texts() {
                // ONNX's strings are text.
                std::str::from_utf8(text).map_err(|_| invalid(&"BYTES that are no UTF-8, which models can't take"))?;
                data.extend_from_slice(&(text.len() as u64).to_le_bytes());
                data.extend_from_slice(text);
            }
        }
        _ => data.extend_from_slice(&tensor.data),
    }
    Ok(Encoded { name: tensor.name, codec: wire::raw().name().to_owned(), data: data.into() })
}

/// An output, as applications read it.
pub fn decode(name: String, tensor: Tensor) -> Result<oip::Tensor, Failure> {
    let datatype = datatype(tensor.dtype()).ok_or_else(|| {
        Failure::new(Code::Internal, format!("output `{name}` is {}, which has no datatype", tensor.dtype()))
    })?;
    let (shape, elements) = tensor.into_parts();
    let data: Bytes = match elements {
        Elements::String(texts) => {
            let mut data = Vec::new();
            for text in texts {
                let length = u32::try_from(text.len())
                    .map_err(|_| Failure::new(Code::TooLarge, format!("output `{name}`: a text of 4 GiB")))?;
                data.extend_from_slice(&length.to_le_bytes());
                data.extend_from_slice(text.as_bytes());
            }
            data.into()
        }
        elements => elements.as_bytes().unwrap_or_default().to_vec().into(),
    };
    Ok(oip::Tensor { name, datatype, shape, data })
}
