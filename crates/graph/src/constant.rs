//! Constants of a model as tensors, and back.

use half::{bf16, f16};

use crate::error::LoadError;
use crate::onnx::TensorProto;
use crate::tensor::{DataType, Elements, Tensor, element_count};

/// The tensor of an initialiser or attribute; external data must have been
/// resolved.
///
/// # Errors
/// When dimensions, type and data disagree.
pub fn tensor_from_proto(proto: &TensorProto) -> Result<Tensor, LoadError> {
    let invalid = |reason: String| LoadError::Tensor { tensor: proto.name().to_owned(), reason };
    let dtype = DataType::from_onnx(proto.data_type())
        .ok_or_else(|| invalid(format!("element type {} is not supported", proto.data_type())))?;
    let shape = shape(proto).map_err(&invalid)?;
    let count = element_count(&shape).map_err(|e| invalid(e.to_string()))?;
    if let Some(raw) = &proto.raw_data {
        return Tensor::from_bytes(dtype, shape, raw).map_err(|e| invalid(e.to_string()));
    }
    let have = typed_len(proto, dtype);
    if have != count {
        return Err(invalid(format!("shape {shape:?} holds {count} elements; the file has {have}")));
    }
    let ints = &proto.int32_data;
    let elements = match dtype {
        DataType::F32 => Elements::F32(proto.float_data.clone()),
        DataType::F64 => Elements::F64(proto.double_data.clone()),
        DataType::I64 => Elements::I64(proto.int64_data.clone()),
        DataType::U64 => Elements::U64(proto.uint64_data.clone()),
        DataType::U32 => Elements::U32(proto.uint64_data.iter().map(|&v| v as u32).collect()),
        DataType::I32 => Elements::I32(ints.clone()),
        DataType::I16 => Elements::I16(ints.iter().map(|&v| v as i16).collect()),
        DataType::U16 => Elements::U16(ints.iter().map(|&v| v as u16).collect()),
        DataType::I8 => Elements::I8(ints.iter().map(|&v| v as i8).collect()),
        DataType::U8 => Elements::U8(ints.iter().map(|&v| v as u8).collect()),
        DataType::Bool => Elements::Bool(ints.iter().map(|&v| u8::from(v != 0)).collect()),
        DataType::F16 => Elements::F16(ints.iter().map(|&v| f16::from_bits(v as u16)).collect()),
        DataType::BF16 => Elements::BF16(ints.iter().map(|&v| bf16::from_bits(v as u16)).collect()),
        DataType::String => Elements::String(
            proto
                .string_data
                .iter()
                .map(|b| String::from_utf8(b.to_vec()).map_err(|_| invalid("a string is not UTF-8".into())))
                .collect::<Result<_, _>>()?,
        ),
    };
    Tensor::new(shape, elements).map_err(|e| invalid(e.to_string()))
}

/// The axes of a constant.
pub(crate) fn shape(proto: &TensorProto) -> Result<Vec<usize>, String> {
    proto.dims.iter().map(|&d| usize::try_from(d).map_err(|_| format!("a dimension of {d}"))).collect()
}

/// Elements in the typed field that `dtype` uses.
pub(crate) fn typed_len(proto: &TensorProto, dtype: DataType) -> usize {
    match dtype {
        DataType::F32 => proto.float_data.len(),
        DataType::F64 => proto.double_data.len(),
        DataType::I64 => proto.int64_data.len(),
        DataType::U64 | DataType::U32 => proto.uint64_data.len(),
        DataType::String => proto.string_data.len(),
        _ => proto.int32_data.len(),
    }
}

/// A tensor as an initialiser of this name.
#[must_use]
pub fn tensor_to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        name: Some(name.to_owned()),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().to_onnx()),
        ..TensorProto::default()
    };
    match tensor.elements() {
        Elements::String(strings) => {
            proto.string_data = strings.iter().map(|s| s.clone().into_bytes().into()).collect()
        }
        _ => proto.raw_data = tensor.to_bytes(),
    }
    proto
}
