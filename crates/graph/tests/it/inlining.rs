//! Functions give way to their bodies: what is computed stays the same.

use tierline_graph::fold::{Evaluate, fold};
use tierline_graph::onnx::{FunctionProto, ModelProto, OperatorSetIdProto};
use tierline_graph::{Model, Tensor};

use crate::text::{graph, proto};

struct Nothing;

impl Evaluate for Nothing {
    fn evaluate(&mut self, _: &Model) -> Result<Vec<Tensor>, String> {
        Err("nothing is computed here".to_owned())
    }
}

fn import(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version), ..Default::default() }
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], body: &str) -> FunctionProto {
    FunctionProto {
        domain: Some("local".to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: outputs.iter().map(|&o| o.to_owned()).collect(),
        node: graph(body).node,
        ..Default::default()
    }
}

fn calling(text: &str, functions: Vec<FunctionProto>) -> ModelProto {
    let mut proto = proto(text);
    proto.opset_import.push(import("local", 1));
    proto.functions = functions;
    proto
}

/// Operators of the folded model, and its functions.
fn flat(proto: ModelProto) -> (Vec<String>, usize) {
    let mut model = Model::from_proto(proto).unwrap();
    fold(&mut model, &mut Nothing).unwrap();
    let nodes = model.graph().node.iter().map(|n| n.op_type().to_owned()).collect();
    (nodes, model.proto().functions.len())
}

#[test]
fn an_output_may_be_an_input() {
    let passing = function("Passing", &["i"], &["i", "o"], "o = Relu(i)");
    let mut proto = calling("x: f32[4]\na = Exp(x)\nb = local.Passing(a)\nd = Add(b, a)", vec![passing]);
    let node = proto.graph.mut_or_insert_default().node.iter_mut().find(|n| n.op_type() == "Passing").unwrap();
    node.output.push("c".to_owned());
    assert_eq!(flat(proto).0, ["Exp", "Add"]);
}

#[test]
fn functions_of_another_operator_set_stay() {
    let mut other = function("Other", &["i"], &["o"], "o = local.Inner(i)");
    other.opset_import = vec![import("", 9), import("local", 1)];
    let inner = function("Inner", &["i"], &["o"], "o = Relu(i)");
    let text = "x: f32[4]\na = local.Other(x)\nb = local.Inner(a)";
    let (nodes, functions) = flat(calling(text, vec![other, inner]));
    assert_eq!((nodes, functions), (vec!["Other".to_owned(), "Relu".to_owned()], 2));
}

/// Each calls the next twice: 2^40 nodes.
#[test]
fn calls_without_end_stay_calls() {
    let functions = (0..40).map(|i| {
        let next = if i == 39 { "Relu".to_owned() } else { format!("local.F{}", i + 1) };
        function(&format!("F{i}"), &["i"], &["o"], &format!("h = {next}(i)\no = {next}(h)"))
    });
    let mut proto = calling("x: f32[4]\na = local.F0(x)", functions.collect());
    proto.functions.truncate(40);
    let (nodes, functions) = flat(proto);
    assert_eq!((nodes, functions), (vec!["F0".to_owned()], 40));
}
