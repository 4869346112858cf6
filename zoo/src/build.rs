//! Builds ONNX models node by node, weights included.
//!
//! Names are made here; layers that a network repeats (convolution with its
//! normalisation, linear, layer normalisation, GELU) are methods. Start at
//! [`Builder`].

use protobuf::MessageField;
use tierline_graph::constant::tensor_to_proto;
pub use tierline_graph::emit::Attribute;
use tierline_graph::emit::attribute;
use tierline_graph::onnx::{self, type_proto};
use tierline_graph::{DataType, Elements, Model, Tensor};

use crate::Bn;

/// Operator set of the models: the first with LayerNormalization.
pub const OPSET: i64 = 17;

/// A value in the graph under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Its name.
    pub name: String,
    /// Size of the axis that layers mix: channels in `[batch, channels,
    /// height, width]`, else the last axis.
    pub width: u64,
}

/// A two-dimensional convolution, square in every respect.
#[derive(Debug, Clone, Copy)]
pub struct Conv {
    /// Channels out.
    pub out: u64,
    /// Height and width of the kernel.
    pub kernel: u64,
    /// Step.
    pub stride: u64,
    /// Zeros around the picture.
    pub pad: u64,
    /// Groups that don't mix; as many as channels makes it depthwise.
    pub groups: u64,
    /// Factor on the weights; below 1 keeps the sum of many branches small.
    pub gain: f32,
}

impl Conv {
    /// A convolution that keeps the size of the picture (for odd kernels).
    #[must_use]
    pub fn same(out: u64, kernel: u64) -> Self {
        Self { out, kernel, stride: 1, pad: kernel / 2, groups: 1, gain: 1.0 }
    }

    /// With this step.
    #[must_use]
    pub fn stride(self, stride: u64) -> Self {
        Self { stride, ..self }
    }

    /// With these groups.
    #[must_use]
    pub fn groups(self, groups: u64) -> Self {
        Self { groups, ..self }
    }

    /// With this factor on the weights.
    #[must_use]
    pub fn gain(self, gain: f32) -> Self {
        Self { gain, ..self }
    }
}

/// A model under construction.
pub struct Builder {
    graph: onnx::GraphProto,
    rng: fastrand::Rng,
}

impl Builder {
    /// An empty model of this name; weights are drawn from the seed.
    #[must_use]
    pub fn new(name: &str, seed: u64) -> Self {
        let graph = onnx::GraphProto { name: Some(name.to_owned()), ..Default::default() };
        Self { graph, rng: fastrand::Rng::with_seed(seed) }
    }

    /// A graph input. The shape is written in words, such as
    /// `"batch 3 224 224"`: numbers are fixed axes, names free ones.
    pub fn input(&mut self, name: &str, dtype: DataType, shape: &str) -> Value {
        let axes: Vec<&str> = shape.split_whitespace().collect();
        let mixed = if axes.len() == 4 { axes.get(1) } else { axes.last() };
        let width = mixed.and_then(|a| a.parse().ok()).unwrap_or(0);
        self.graph.input.push(value_info(name, dtype, &axes));
        Value { name: name.to_owned(), width }
    }

    /// Declares a value to be a graph output, under a name of its own.
    pub fn output(&mut self, name: &str, value: &Value, dtype: DataType, shape: &str) {
        // The node that makes the value gives it the output's name.
        for node in &mut self.graph.node {
            for end in node.input.iter_mut().chain(&mut node.output).filter(|e| **e == value.name) {
                name.clone_into(end);
            }
        }
        self.graph.output.push(value_info(name, dtype, &shape.split_whitespace().collect::<Vec<_>>()));
    }

    /// The finished model.
    ///
    /// # Panics
    /// When the graph isn't valid, which is a fault of the network's code.
    #[must_use]
    pub fn build(self) -> Model {
        let operators = onnx::OperatorSetIdProto { version: Some(OPSET), ..Default::default() };
        let proto = onnx::ModelProto {
            ir_version: Some(8),
            producer_name: Some("tierline-zoo".to_owned()),
            opset_import: vec![operators],
            graph: MessageField::some(self.graph),
            ..Default::default()
        };
        Model::from_proto(proto).expect("the zoo builds valid models")
    }

    /// A node with one output, whose width is the first input's.
    pub fn op(&mut self, op: &str, inputs: &[&Value], attributes: &[(&str, Attribute)]) -> Value {
        let name = self.node(op, inputs, 1, attributes).remove(0);
        Value { name, width: inputs.first().map_or(0, |v| v.width) }
    }

    /// A node with `outputs` outputs; their names.
    pub fn node(
        &mut self,
        op: &str,
        inputs: &[&Value],
        outputs: usize,
        attributes: &[(&str, Attribute)],
    ) -> Vec<String> {
        let name = format!("{op}_{}", self.graph.node.len());
        let ends: Vec<String> = (0..outputs).map(|i| format!("{name}_out{i}")).collect();
        self.graph.node.push(onnx::NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(name),
            input: inputs.iter().map(|v| v.name.clone()).collect(),
            output: ends.clone(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..Default::default()
        });
        ends
    }

    /// Stands for an input that isn't given.
    #[must_use]
    pub fn absent() -> Value {
        Value { name: String::new(), width: 0 }
    }

    /// A constant.
    pub fn constant(&mut self, tensor: &Tensor) -> Value {
        let name = format!("w{}", self.graph.initializer.len());
        let width = tensor.shape().last().map_or(0, |&w| w as u64);
        self.graph.initializer.push(tensor_to_proto(&name, tensor));
        Value { name, width }
    }

    /// A constant vector of 64-bit integers, such as a shape.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.constant(&tensor(&[values.len() as u64], Elements::I64(values.to_vec())))
    }

    /// A constant scalar.
    pub fn scalar(&mut self, value: f32) -> Value {
        self.constant(&tensor(&[], Elements::F32(vec![value])))
    }

    /// Random weights of zero mean and this standard deviation (uniform: its
    /// tails stay inside int8).
    pub fn weights(&mut self, shape: &[u64], deviation: f32) -> Value {
        self.around(shape, 0.0, deviation)
    }

    /// Random weights around a mean.
    pub fn around(&mut self, shape: &[u64], mean: f32, deviation: f32) -> Value {
        let reach = deviation * 3f32.sqrt();
        let n = shape.iter().product::<u64>();
        let values = (0..n).map(|_| mean + reach * (2.0 * self.rng.f32() - 1.0)).collect();
        self.constant(&tensor(shape, Elements::F32(values)))
    }

    /// Convolution and batch normalisation, folded or kept.
    pub fn conv(&mut self, x: &Value, conv: Conv, bn: Bn) -> Value {
        let Conv { out, kernel, stride, pad, groups, gain } = conv;
        let shape = [out, x.width / groups, kernel, kernel];
        // He et al., 2015: keeps the variance through ReLUs.
        let fan_in = shape[1..].iter().product::<u64>() as f32;
        let weight = self.weights(&shape, gain * (2.0 / fan_in).sqrt());
        let square = |n: u64| Attribute::Ints(vec![n as i64; 2]);
        let attributes = [
            ("dilations", square(1)),
            ("group", Attribute::Int(groups as i64)),
            ("kernel_shape", square(kernel)),
            ("pads", Attribute::Ints(vec![pad as i64; 4])),
            ("strides", square(stride)),
        ];
        if bn == Bn::Folded {
            let bias = self.weights(&[out], 0.02);
            return Value { width: out, ..self.op("Conv", &[x, &weight, &bias], &attributes) };
        }
        let y = Value { width: out, ..self.op("Conv", &[x, &weight], &attributes) };
        let scale = self.around(&[out], 1.0, 0.05);
        let [bias, mean] = [0.02, 0.02].map(|deviation| self.weights(&[out], deviation));
        let variance = self.around(&[out], 1.0, 0.05);
        self.op("BatchNormalization", &[&y, &scale, &bias, &mean, &variance], &[("epsilon", Attribute::Float(1e-5))])
    }

    /// The last layer of classifiers: `Gemm` with the weight transposed.
    pub fn gemm(&mut self, x: &Value, out: u64) -> Value {
        let weight = self.weights(&[out, x.width], (1.0 / x.width as f32).sqrt());
        let bias = self.weights(&[out], 0.02);
        Value { width: out, ..self.op("Gemm", &[x, &weight, &bias], &[("transB", Attribute::Int(1))]) }
    }

    /// A linear layer on the last axis, as exported for more than two axes:
    /// MatMul, then Add.
    pub fn linear(&mut self, x: &Value, out: u64) -> Value {
        let weight = self.weights(&[x.width, out], (1.0 / x.width as f32).sqrt());
        let bias = self.weights(&[out], 0.02);
        let y = Value { width: out, ..self.op("MatMul", &[x, &weight], &[]) };
        Value { width: out, ..self.op("Add", &[&bias, &y], &[]) }
    }

    /// Normalises the last axis.
    pub fn layer_norm(&mut self, x: &Value, epsilon: f32) -> Value {
        let scale = self.around(&[x.width], 1.0, 0.05);
        let bias = self.weights(&[x.width], 0.02);
        let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(epsilon))];
        self.op("LayerNormalization", &[x, &scale, &bias], &attributes)
    }

    /// `x / 2 * (1 + erf(x / sqrt 2))` in single nodes, as exporters write it.
    pub fn gelu(&mut self, x: &Value) -> Value {
        let [root, one, half] = [std::f32::consts::SQRT_2, 1.0, 0.5].map(|c| self.scalar(c));
        let y = self.op("Div", &[x, &root], &[]);
        let y = self.op("Erf", &[&y], &[]);
        let y = self.op("Add", &[&y, &one], &[]);
        let y = self.op("Mul", &[x, &y], &[]);
        self.op("Mul", &[&y, &half], &[])
    }

    /// Reshape to a constant shape (0 keeps an axis, -1 takes the rest).
    pub fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let to = self.ints(shape);
        let width = shape.last().map_or(0, |&w| u64::try_from(w).unwrap_or(0));
        Value { width, ..self.op("Reshape", &[x, &to], &[]) }
    }

    /// Reorders axes.
    pub fn transpose(&mut self, x: &Value, axes: &[i64]) -> Value {
        self.op("Transpose", &[x], &[("perm", Attribute::Ints(axes.to_vec()))])
    }

    /// Global average, flattened to `[batch, channels]`.
    pub fn pool_to_vector(&mut self, x: &Value) -> Value {
        let y = self.op("GlobalAveragePool", &[x], &[]);
        self.op("Flatten", &[&y], &[("axis", Attribute::Int(1))])
    }
}

/// A tensor whose shape is right by construction.
pub(crate) fn tensor(shape: &[u64], elements: Elements) -> Tensor {
    let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
    Tensor::new(shape, elements).expect("the zoo's weights have their shapes")
}

fn value_info(name: &str, dtype: DataType, axes: &[&str]) -> onnx::ValueInfoProto {
    let dim = axes.iter().map(|axis| {
        let mut dim = onnx::tensor_shape_proto::Dimension::new();
        match axis.parse() {
            Ok(n) => dim.set_dim_value(n),
            Err(_) => dim.set_dim_param((*axis).to_owned()),
        }
        dim
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype.to_onnx()),
        shape: MessageField::some(onnx::TensorShapeProto { dim: dim.collect(), ..Default::default() }),
        ..Default::default()
    };
    let mut kind = onnx::TypeProto::new();
    kind.set_tensor_type(tensor);
    onnx::ValueInfoProto { name: Some(name.to_owned()), type_: MessageField::some(kind), ..Default::default() }
}
