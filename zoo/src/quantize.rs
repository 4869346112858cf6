//! Int8 copies of convolutional networks in the quantise-dequantise form that
//! ONNX Runtime's static quantiser writes: u8 activations, one scale per
//! tensor; s8 weights, one scale per output channel; s32 biases.
//!
//! Ranges are fixed, not calibrated: 0..6 after a ReLU, -8..8 elsewhere. The
//! zoo's networks live there; trained ones need calibration.

use std::collections::{HashMap, HashSet};

use tierline_graph::onnx::{GraphProto, NodeProto, TensorProto};
use tierline_graph::{Elements, Model, Tensor};

use tierline_graph::constant::tensor_to_proto;
use tierline_graph::emit::attribute;

use crate::build::{Attribute, tensor};

/// Operators that take quantised inputs.
const QUANTISED: &[&str] = &["Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool"];

/// Operators with a constant weight (output channels first) and maybe a bias.
const WEIGHTED: &[&str] = &["Conv", "Gemm"];

/// Largest value of an activation after a ReLU.
const POSITIVE_MAX: f32 = 6.0;

/// Largest magnitude of other activations.
const MAGNITUDE_MAX: f32 = 8.0;

/// The model with its convolutions, products and sums quantised.
///
/// Inputs and outputs stay f32.
///
/// # Panics
/// When the model's weights aren't f32 initialisers with raw data, as the
/// zoo's are.
#[must_use]
pub fn qdq(model: &Model) -> Model {
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let source = std::mem::take(&mut graph.node);
    let weights: HashMap<String, TensorProto> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.clone())).collect();
    let positive: HashSet<String> = source
        .iter()
        .filter(|n| matches!(n.op_type(), "Relu" | "Clip" | "Sigmoid"))
        .flat_map(|n| n.output.clone())
        .collect();
    let mut writer = Writer { graph, pairs: HashMap::new() };
    for mut node in source {
        if QUANTISED.contains(&node.op_type()) {
            let weighted = WEIGHTED.contains(&node.op_type());
            let mut scale = 0.0;
            let weight = weighted.then(|| weights.get(&node.input[1])).flatten();
            let scales = weight.map(|w| scales(&floats(w), w.dims[0] as usize)).unwrap_or_default();
            for (i, input) in node.input.iter_mut().enumerate() {
                match weights.get(input) {
                    None => {
                        scale = range(positive.contains(input)).0;
                        *input = writer.activation(input, positive.contains(input));
                    }
                    Some(weight) if weighted && i == 1 => *input = writer.weight(weight, &scales),
                    // A product's sum has the scale of both factors.
                    Some(bias) if weighted => {
                        *input = writer.bias(bias, &scales.iter().map(|s| s * scale).collect::<Vec<_>>());
                    }
                    Some(_) => {}
                }
            }
        }
        writer.graph.node.push(node);
    }
    let used: HashSet<&str> = graph.node.iter().flat_map(|n| &n.input).map(String::as_str).collect();
    graph.initializer.retain(|t| used.contains(t.name()));
    graph.value_info.clear();
    Model::from_proto(proto).expect("quantising keeps models valid")
}

struct Writer<'a> {
    graph: &'a mut GraphProto,
    /// Activations that already have their pair, and its output.
    pairs: HashMap<String, String>,
}

impl Writer<'_> {
    /// Quantise and dequantise an activation, once however often it is read.
    fn activation(&mut self, name: &str, positive: bool) -> String {
        if let Some(pair) = self.pairs.get(name) {
            return pair.clone();
        }
        let (scale, zero) = range(positive);
        let scale = self.constant(format!("{name}_scale"), &tensor(&[], Elements::F32(vec![scale])));
        let zero = self.constant(format!("{name}_zero"), &tensor(&[], Elements::U8(vec![zero])));
        let narrow = self.node("QuantizeLinear", [name.to_owned(), scale.clone(), zero.clone()], "quantized", None);
        let wide = self.node("DequantizeLinear", [narrow, scale, zero], "dequantized", None);
        self.pairs.insert(name.to_owned(), wide.clone());
        wide
    }

    fn weight(&mut self, weight: &TensorProto, scales: &[f32]) -> String {
        let name = weight.name();
        let values = floats(weight);
        let per_channel = values.len() / scales.len();
        let rounded = values.iter().enumerate().map(|(i, v)| (v / scales[i / per_channel]).round() as i8).collect();
        let shape: Vec<u64> = weight.dims.iter().map(|&d| d as u64).collect();
        let channels = [scales.len() as u64];
        let zeros = tensor(&channels, Elements::I8(vec![0; scales.len()]));
        self.dequantized(name, [&tensor(&shape, Elements::I8(rounded)), &vector(scales), &zeros])
    }

    fn bias(&mut self, bias: &TensorProto, scales: &[f32]) -> String {
        let rounded = floats(bias).iter().zip(scales).map(|(v, s)| (v / s).round() as i32).collect();
        let channels = [scales.len() as u64];
        let zeros = tensor(&channels, Elements::I32(vec![0; scales.len()]));
        self.dequantized(bias.name(), [&tensor(&channels, Elements::I32(rounded)), &vector(scales), &zeros])
    }

    /// A constant stored narrow and read wide, one scale per output channel.
    fn dequantized(&mut self, name: &str, [narrow, scales, zeros]: [&Tensor; 3]) -> String {
        let inputs = [("quantized", narrow), ("scale", scales), ("zero", zeros)];
        let inputs = inputs.map(|(suffix, tensor)| self.constant(format!("{name}_{suffix}"), tensor));
        self.node("DequantizeLinear", inputs, "dequantized", Some(0))
    }

    fn constant(&mut self, name: String, tensor: &Tensor) -> String {
        self.graph.initializer.push(tensor_to_proto(&name, tensor));
        name
    }

    fn node(&mut self, op: &str, inputs: [String; 3], suffix: &str, axis: Option<i64>) -> String {
        let base = inputs[0].trim_end_matches("_quantized");
        let output = format!("{base}_{suffix}");
        self.graph.node.push(NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(format!("{base}_{op}")),
            output: vec![output.clone()],
            attribute: axis.map(|a| attribute("axis", &Attribute::Int(a))).into_iter().collect(),
            input: inputs.to_vec(),
            ..Default::default()
        });
        output
    }
}

/// Scale and zero point of an activation.
fn range(positive: bool) -> (f32, u8) {
    if positive { (POSITIVE_MAX / 255.0, 0) } else { (2.0 * MAGNITUDE_MAX / 255.0, 128) }
}

/// One symmetric scale per output channel.
fn scales(values: &[f32], channels: usize) -> Vec<f32> {
    let peak = |channel: &[f32]| channel.iter().fold(0f32, |m, v| m.max(v.abs()));
    values.chunks(values.len() / channels).map(|c| peak(c).max(f32::MIN_POSITIVE) / 127.0).collect()
}

fn vector(values: &[f32]) -> Tensor {
    tensor(&[values.len() as u64], Elements::F32(values.to_vec()))
}

fn floats(proto: &TensorProto) -> Vec<f32> {
    proto.raw_data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
