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

/// A node; attributes follow with `ints` and `text`.
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
