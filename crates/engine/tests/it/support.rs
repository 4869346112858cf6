//! Engines, assets, small graphs: what every test here needs.

use std::path::PathBuf;
use std::sync::Arc;

use protobuf::{Message, MessageField};
use tierline_engine::{Engine, Search};
use tierline_graph::onnx::{self, type_proto};
use tierline_graph::{DataType, Elements, Model, Tensor};

/// Both engines, or only rten where ONNX Runtime isn't set up (said aloud).
pub fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines = vec![tierline_engine::rten()];
    engines.extend(onnxruntime());
    engines
}

/// ONNX Runtime as `cargo xtask test` sets it up.
pub fn onnxruntime() -> Option<Arc<dyn Engine>> {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        eprintln!("skipped: ORT_DYLIB_PATH is not set; run cargo xtask test");
        return None;
    }
    let search = Search { system: false, ..Search::default() };
    let found = tierline_engine::discover(&search);
    assert_eq!(found.engine.name(), "onnxruntime", "ORT_DYLIB_PATH names no usable library: {found:?}");
    Some(found.engine)
}

/// An asset of `cargo xtask test`; `None`, said aloud, where there are none.
pub fn asset(path: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("TIERLINE_ASSETS") else {
        eprintln!("skipped: TIERLINE_ASSETS is not set; run cargo xtask test");
        return None;
    };
    let file = PathBuf::from(folder).join(path);
    assert!(file.exists(), "{} is missing; run cargo xtask test", file.display());
    Some(file)
}

pub fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape, Elements::F32(values.to_vec())).unwrap()
}

/// A model in a few words: `model(17, &[("x", F32, &["2", "n"])], &[("y", ..)], weights, nodes)`.
pub fn model(
    opset: i64,
    inputs: &[(&str, DataType, &[&str])],
    outputs: &[(&str, DataType, &[&str])],
    weights: &[(&str, Tensor)],
    nodes: Vec<onnx::NodeProto>,
) -> Model {
    let values = |list: &[(&str, DataType, &[&str])]| list.iter().map(|(n, t, s)| value(n, *t, s)).collect();
    let graph = onnx::GraphProto {
        name: Some("test".into()),
        input: values(inputs),
        output: values(outputs),
        initializer: weights.iter().map(|(name, tensor)| weight(name, tensor)).collect(),
        node: nodes,
        ..Default::default()
    };
    let operators = onnx::OperatorSetIdProto { domain: Some("".into()), version: Some(opset), ..Default::default() };
    let microsoft =
        onnx::OperatorSetIdProto { domain: Some("com.microsoft".into()), version: Some(1), ..Default::default() };
    let proto = onnx::ModelProto {
        ir_version: Some(8),
        opset_import: vec![operators, microsoft],
        graph: MessageField::some(graph),
        ..Default::default()
    };
    Model::parse(proto.write_to_bytes().unwrap().into()).unwrap()
}

fn value(name: &str, dtype: DataType, shape: &[&str]) -> onnx::ValueInfoProto {
    let dims = shape.iter().map(|d| {
        let mut dim = onnx::tensor_shape_proto::Dimension::new();
        match d.parse() {
            Ok(n) => dim.set_dim_value(n),
            Err(_) => dim.set_dim_param((*d).into()),
        }
        dim
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype.to_onnx()),
        shape: MessageField::some(onnx::TensorShapeProto { dim: dims.collect(), ..Default::default() }),
        ..Default::default()
    };
    let mut kind = onnx::TypeProto::new();
    kind.set_tensor_type(tensor);
    onnx::ValueInfoProto { name: Some(name.into()), type_: MessageField::some(kind), ..Default::default() }
}

fn weight(name: &str, tensor: &Tensor) -> onnx::TensorProto {
    onnx::TensorProto {
        name: Some(name.into()),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().to_onnx()),
        raw_data: tensor.to_bytes(),
        ..Default::default()
    }
}

/// A node; attributes follow with `ints`, `int` and `text`.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> onnx::NodeProto {
    onnx::NodeProto {
        op_type: Some(op.into()),
        name: Some(format!("{op}_{}", outputs[0])),
        input: inputs.iter().map(|&i| i.into()).collect(),
        output: outputs.iter().map(|&o| o.into()).collect(),
        ..Default::default()
    }
}

pub trait Attributes: Sized {
    fn with(self, attribute: onnx::AttributeProto) -> Self;
    fn ints(self, name: &str, values: &[i64]) -> Self {
        let kind = onnx::attribute_proto::AttributeType::INTS as i32;
        self.with(onnx::AttributeProto {
            name: Some(name.into()),
            type_: Some(kind),
            ints: values.to_vec(),
            ..Default::default()
        })
    }
    fn int(self, name: &str, value: i64) -> Self {
        let kind = onnx::attribute_proto::AttributeType::INT as i32;
        self.with(onnx::AttributeProto {
            name: Some(name.into()),
            type_: Some(kind),
            i: Some(value),
            ..Default::default()
        })
    }
    fn text(self, name: &str, value: &str) -> Self {
        let kind = onnx::attribute_proto::AttributeType::STRING as i32;
        self.with(onnx::AttributeProto {
            name: Some(name.into()),
            type_: Some(kind),
            s: Some(value.to_owned().into_bytes().into()),
            ..Default::default()
        })
    }
}

impl Attributes for onnx::NodeProto {
    fn with(mut self, attribute: onnx::AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }
}

/// The tensor in a message; `None` for element types that nodes don't exchange.
pub fn tensor(proto: &onnx::TensorProto) -> Option<Tensor> {
    let dtype = DataType::from_onnx(proto.data_type())?;
    let shape: Vec<usize> = proto.dims.iter().map(|&d| d as usize).collect();
    if proto.has_raw_data() {
        return Some(Tensor::from_bytes(dtype, shape, proto.raw_data()).unwrap());
    }
    let ints = &proto.int32_data;
    let elements = match dtype {
        DataType::F32 => Elements::F32(proto.float_data.clone()),
        DataType::F64 => Elements::F64(proto.double_data.clone()),
        DataType::I64 => Elements::I64(proto.int64_data.clone()),
        DataType::U64 => Elements::U64(proto.uint64_data.clone()),
        DataType::U32 => Elements::U32(proto.uint64_data.iter().map(|&x| x as u32).collect()),
        DataType::I32 => Elements::I32(ints.clone()),
        DataType::I16 => Elements::I16(ints.iter().map(|&x| x as i16).collect()),
        DataType::U16 => Elements::U16(ints.iter().map(|&x| x as u16).collect()),
        DataType::I8 => Elements::I8(ints.iter().map(|&x| x as i8).collect()),
        DataType::U8 => Elements::U8(ints.iter().map(|&x| x as u8).collect()),
        DataType::Bool => Elements::Bool(ints.iter().map(|&x| u8::from(x != 0)).collect()),
        DataType::F16 => Elements::F16(ints.iter().map(|&x| half::f16::from_bits(x as u16)).collect()),
        DataType::BF16 => Elements::BF16(ints.iter().map(|&x| half::bf16::from_bits(x as u16)).collect()),
        DataType::String => Elements::String(
            proto.string_data.iter().map(|s| std::string::String::from_utf8(s.to_vec()).unwrap()).collect(),
        ),
        other => panic!("{other}"),
    };
    Some(Tensor::new(shape, elements).unwrap())
}
