//! PP-OCR's text detector, taking pixels.
//!
//! The published model takes normalised floats, four times the bytes of the
//! picture. What a camera gives are bytes, so the normalisation goes into the
//! graph: three nodes in front, and the first tier may send the picture as it
//! is.

use anyhow::{Context, Result};
use tierline_graph::onnx::attribute_proto::AttributeType;
use tierline_graph::onnx::{AttributeProto, NodeProto, TensorProto};
use tierline_graph::{DataType as Dtype, Dim, Model, ValueInfo};

/// The input's name.
pub const INPUT: &str = "picture";

/// Mean and deviation of the pictures it was trained on (ImageNet's), in the
/// order blue, green, red, as PaddleOCR feeds them.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// The detector with an input u8 `[1, height, width, 3]`.
pub fn with_pixels(model: &Model, [height, width]: [u32; 2]) -> Result<Model> {
    let mut proto = model.proto().clone();
    let graph = proto.graph.as_mut().context("the detector has no graph")?;
    let float = graph.input.first().and_then(|i| i.name.clone()).context("the detector has no input")?;
    let node = |op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>| NodeProto {
        name: Some(format!("pixels/{op}")),
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: attributes,
        ..NodeProto::default()
    };
    // (x / 255 - mean) / deviation as one product and one difference.
    let scale = DEVIATION.map(|d| 1.0 / (255.0 * d));
    let offset = [0, 1, 2].map(|c| MEAN[c] / DEVIATION[c]);
    let constant = |name: &str, values: [f32; 3]| TensorProto {
        name: Some(name.to_owned()),
        dims: vec![1, 3, 1, 1],
        data_type: Some(Dtype::F32.to_onnx()),
        float_data: values.to_vec(),
        ..TensorProto::default()
    };
    let order = AttributeProto {
        name: Some("perm".into()),
        ints: vec![0, 3, 1, 2],
        type_: Some(AttributeType::INTS as i32),
        ..AttributeProto::default()
    };
    let to_float = AttributeProto {
        name: Some("to".into()),
        i: Some(Dtype::F32.to_onnx().into()),
        type_: Some(AttributeType::INT as i32),
        ..AttributeProto::default()
    };
    let before = [
        node("Transpose", &[INPUT], "pixels/planes", vec![order]),
        node("Cast", &["pixels/planes"], "pixels/float", vec![to_float]),
        node("Mul", &["pixels/float", "pixels/scale"], "pixels/scaled", vec![]),
        node("Sub", &["pixels/scaled", "pixels/offset"], &float, vec![]),
    ];
    graph.node.splice(0..0, before);
    graph.initializer.extend([constant("pixels/scale", scale), constant("pixels/offset", offset)]);
    let shape = [1, height, width, 3].map(|d| Dim::Known(d.into())).to_vec();
    let input = ValueInfo { name: INPUT.into(), dtype: Some(Dtype::U8), shape: Some(shape) };
    graph.input = vec![tierline_graph::slice::value_info_proto(&input)];
    Ok(Model::from_proto(proto)?)
}
