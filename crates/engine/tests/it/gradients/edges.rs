//! Every gradient rule where functions have kinks, ties, poles and flat ends,
//! against PyTorch: `edges.py` wrote what it says, `edges.jsonl` keeps it.
//!
//! Where PyTorch's gradient is a finite number, so is ours, and the same one,
//! on every engine, with plain operators and the engine's own, in both
//! precisions.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use tierline_engine::{Engine, EngineError, LoadOptions};
use tierline_graph::constant::tensor_to_proto;
use tierline_graph::emit::{Attribute, node};
use tierline_graph::gradient::{backward_with, operators};
use tierline_graph::onnx::GraphProto;
use tierline_graph::{DataType, Elements, Kernels, Model, Tensor};

use super::cases::{value, whole};
use crate::support::engines;

/// Operator, inputs, outputs, attributes.
type Node = (String, Vec<String>, Vec<String>, serde_json::Map<String, Value>);

#[derive(Deserialize)]
struct Edge {
    name: String,
    opset: i64,
    nodes: Vec<Node>,
    inputs: Vec<Input>,
    upstream: Numbers,
    f32: Vec<Option<Vec<Value>>>,
    f64: Vec<Option<Vec<Value>>>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    shape: Vec<usize>,
    fixed: bool,
    #[serde(rename = "type")]
    kind: String,
    values: Vec<Value>,
}

#[derive(Deserialize)]
struct Numbers {
    shape: Vec<usize>,
    values: Vec<Value>,
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().and_then(|text| text.parse().ok()).expect("a number"))
}

fn floats(shape: &[usize], values: &[Value], dtype: DataType) -> Tensor {
    let values = values.iter().map(number);
    let elements = match dtype {
        DataType::F64 => Elements::F64(values.collect()),
        _ => Elements::F32(values.map(|v| v as f32).collect()),
    };
    Tensor::new(shape.to_vec(), elements).unwrap()
}

impl Input {
    fn tensor(&self, dtype: DataType) -> Tensor {
        let ints = || self.values.iter().map(|v| v.as_i64().expect("a whole number"));
        let elements = match self.kind.as_str() {
            "i64" => Elements::I64(ints().collect()),
            "u8" => Elements::U8(ints().map(|v| v as u8).collect()),
            "i8" => Elements::I8(ints().map(|v| v as i8).collect()),
            "bool" => Elements::Bool(ints().map(|v| v as u8).collect()),
            _ => return floats(&self.shape, &self.values, dtype),
        };
        Tensor::new(self.shape.clone(), elements).unwrap()
    }
}

impl Edge {
    fn model(&self, dtype: DataType) -> Model {
        let attribute = |name: &str, value: &Value| match value {
            Value::String(_) if name == "to" => Attribute::Int(dtype.to_onnx().into()),
            Value::String(text) => Attribute::Text(text.clone()),
            Value::Array(values) => Attribute::Ints(values.iter().filter_map(Value::as_i64).collect()),
            Value::Object(float) => Attribute::Float(number(&float["float"]) as f32),
            other => Attribute::Int(other.as_i64().expect("a whole number")),
        };
        let nodes = self.nodes.iter().map(|(kind, inputs, outputs, attributes)| {
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
            let attributes: Vec<_> = attributes.iter().map(|(name, v)| (name.as_str(), attribute(name, v))).collect();
            node(kind, &inputs, &outputs, &attributes)
        });
        let words = |shape: &[usize]| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let (fixed, free): (Vec<&Input>, Vec<&Input>) = self.inputs.iter().partition(|i| i.fixed);
        let graph = GraphProto {
            name: Some("edge".into()),
            node: nodes.collect(),
            input: free.into_iter().map(|i| value(&i.name, dtype, Some(&words(&i.shape)))).collect(),
            output: vec![value("y", dtype, None)],
            initializer: fixed.into_iter().map(|i| tensor_to_proto(&i.name, &i.tensor(dtype))).collect(),
            ..GraphProto::default()
        };
        whole(self.opset, graph)
    }

    fn given(&self, dtype: DataType) -> Vec<(String, Tensor)> {
        self.inputs.iter().filter(|i| !i.fixed).map(|i| (i.name.clone(), i.tensor(dtype))).collect()
    }
}

fn run(engine: &dyn Engine, model: &Model, given: &[(String, Tensor)]) -> Result<Vec<Tensor>, EngineError> {
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (n.as_str(), t)).collect();
    engine.load(model, &LoadOptions::with_threads(1))?.run(&given)
}

fn far(ours: &Tensor, expected: &[Value], dtype: DataType) -> Option<String> {
    let ours: Vec<f64> = match ours.elements() {
        Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        Elements::F64(v) => v.clone(),
        other => return Some(format!("{other:?}")),
    };
    let expected: Vec<f64> = expected.iter().map(number).collect();
    let tolerance = if dtype == DataType::F64 { 1e-6 } else { 1e-4 };
    let close = |a: f64, b: f64| !b.is_finite() || (a - b).abs() <= tolerance * b.abs().max(1.0);
    let same = ours.len() == expected.len() && ours.iter().zip(&expected).all(|(&a, &b)| close(a, b));
    (!same).then(|| format!("{ours:?}, not {expected:?}"))
}

#[test]
fn gradients_at_edges_are_pytorch_s() {
    let edges: Vec<Edge> = include_str!("edges.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("edges.py wrote it"))
        .collect();
    let tested: BTreeSet<&str> = edges.iter().flat_map(|e| e.nodes.iter().map(|n| n.0.as_str())).collect();
    let without: Vec<&str> = operators().into_iter().filter(|rule| !tested.contains(rule)).collect();
    assert!(without.is_empty(), "rules without a line in edges.jsonl: {without:?}");
    let mut wrong = Vec::new();
    for engine in engines() {
        let mut compared = 0;
        for (edge, dtype) in edges.iter().flat_map(|e| [(e, DataType::F32), (e, DataType::F64)]) {
            let label = format!("{} {} {dtype}", engine.name(), edge.name);
            let model = edge.model(dtype);
            let given = edge.given(dtype);
            if run(&*engine, &model, &given).is_err() {
                // Not an operator of this engine's, or not in this precision.
                continue;
            }
            let wanted: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
            let own: Kernels = engine.kernels().iter().copied().collect();
            for kernels in [Kernels::none(), own] {
                let made = backward_with(&model, &["y"], &wanted, &kernels).unwrap_or_else(|e| panic!("{label}: {e}"));
                let mut given = given.clone();
                given.push((made.upstream[0].1.clone(), floats(&edge.upstream.shape, &edge.upstream.values, dtype)));
                let found = match run(&*engine, &made.model, &given) {
                    Ok(all) => all[model.outputs().len()..].to_vec(),
                    // What an engine lacks it says; that is no wrong value.
                    Err(_) if engine.name() == "rten" => continue,
                    Err(error) => {
                        wrong.push(format!("{label}: {error}"));
                        continue;
                    }
                };
                let expected = if dtype == DataType::F64 { &edge.f64 } else { &edge.f32 };
                for ((name, expected), found) in wanted.iter().zip(expected).zip(&found) {
                    let Some(expected) = expected else { continue };
                    wrong.extend(far(found, expected, dtype).map(|how| format!("{label} of {name}: {how}")));
                }
                compared += 1;
            }
        }
        eprintln!("{}: {compared} of {} compared", engine.name(), 2 * edges.len());
        assert!(compared > edges.len() / 2, "{} compared only {compared}", engine.name());
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}
