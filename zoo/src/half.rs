//! fp16 copies of networks: weights, inputs and outputs in half precision.

use half::f16;
use tierline_graph::onnx::{TypeProto, ValueInfoProto};
use tierline_graph::{DataType, Model};

/// The model with every f32 weight, input and output made f16; integer
/// inputs stay, casts to f32 become casts to f16.
///
/// Values beyond fp16's range (an attention mask's -3.4e38) are clamped to it.
///
/// # Panics
/// When the model's weights aren't initialisers with raw data, as the zoo's
/// are.
#[must_use]
pub fn fp16(model: &Model) -> Model {
    let (wide, narrow) = (DataType::F32.to_onnx(), DataType::F16.to_onnx());
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    for weight in graph.initializer.iter_mut().filter(|t| t.data_type() == wide) {
        let bytes: Vec<u8> = weight
            .raw_data()
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b).clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect();
        weight.raw_data = Some(bytes.into());
        weight.data_type = Some(narrow);
    }
    for cast in graph.node.iter_mut().filter(|n| n.op_type() == "Cast") {
        for to in cast.attribute.iter_mut().filter(|a| a.name() == "to" && a.i() == i64::from(wide)) {
            to.i = Some(i64::from(narrow));
        }
    }
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        narrow_type(value, wide, narrow);
    }
    graph.value_info.clear();
    Model::from_proto(proto).expect("fewer bits keep models valid")
}

fn narrow_type(value: &mut ValueInfoProto, wide: i32, narrow: i32) {
    let kind: Option<&mut TypeProto> = value.type_.as_mut();
    if let Some(kind) = kind
        && kind.has_tensor_type()
        && kind.tensor_type().elem_type() == wide
    {
        kind.mut_tensor_type().elem_type = Some(narrow);
    }
}
