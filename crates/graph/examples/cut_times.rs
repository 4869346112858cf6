//! Times the stages on a synthetic graph of many nodes: residual blocks with
//! a weight in each, so that frontiers have one or two tensors.
//!
//! `cargo run --release -p tierline-graph --example cut_times -- [nodes]`

use std::time::Instant;

use tierline_graph::cuts::{candidates, cuts};
use tierline_graph::index::Index;
use tierline_graph::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use tierline_graph::slice::{slice, value_info_proto};
use tierline_graph::{DataType, Dim, Model, ValueInfo, infer_types};

/// Widest axis: 64 floats a tensor.
const WIDTH: usize = 64;

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

fn residual(nodes: usize) -> ModelProto {
    let value = |name: &str| {
        let shape = Some(vec![Dim::Known(1), Dim::Known(WIDTH as u64)]);
        value_info_proto(&ValueInfo { name: name.to_owned(), dtype: Some(DataType::F32), shape })
    };
    let mut graph = GraphProto { name: Some("residual".to_owned()), ..GraphProto::default() };
    graph.input.push(value("x"));
    let mut last = "x".to_owned();
    for block in 0..nodes.div_ceil(4) {
        let name = |part: &str| format!("{part}{block}");
        graph.initializer.push(TensorProto {
            name: Some(name("w")),
            dims: vec![WIDTH as i64; 2],
            data_type: Some(DataType::F32.to_onnx()),
            raw_data: Some(vec![0; 4 * WIDTH * WIDTH].into()),
            ..TensorProto::default()
        });
        graph.node.push(node("MatMul", &[&last, &name("w")], &name("m")));
        graph.node.push(node("Relu", &[&name("m")], &name("r")));
        graph.node.push(node("Exp", &[&name("r")], &name("e")));
        graph.node.push(node("Add", &[&last, &name("e")], &name("a")));
        last = name("a");
    }
    graph.output.push(value(&last));
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    ModelProto { ir_version: Some(8), graph: Some(graph).into(), opset_import: vec![opset], ..ModelProto::default() }
}

/// Median of five runs, in milliseconds, and the last result.
fn timed<T>(mut f: impl FnMut() -> T) -> (f64, T) {
    let mut once = || {
        let start = Instant::now();
        let result = f();
        (start.elapsed().as_secs_f64() * 1e3, result)
    };
    let mut runs: Vec<(f64, T)> = (0..5).map(|_| once()).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs.swap_remove(2)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let proto = residual(nodes);
    let (check, model) = timed(|| Model::from_proto(proto.clone()));
    let model = model?;
    let (index, _) = timed(|| Index::new(&model));
    let (infer, types) = timed(|| infer_types(&model));
    let types = types?;
    let (cut, all) = timed(|| cuts(&model, &types));
    let (choose, chosen) = timed(|| candidates(&model, &types, &all, 32));
    let middle = [all[all.len() / 2].tensors.clone()];
    let (two, _) = timed(|| slice(&model, &types, &middle).map(|s| s.len()));
    let at: Vec<Vec<String>> = chosen.iter().map(|c| c.tensors.clone()).collect();
    let (many, parts) = timed(|| slice(&model, &types, &at).map(|s| s.len()));

    println!("{} nodes, {} cuts; medians of five, milliseconds", model.graph().node.len(), all.len());
    println!("check {check:.1}, index {index:.1}, types {infer:.1}");
    println!("cuts {cut:.1}, {} candidates {choose:.1}", chosen.len());
    println!("slice in two {two:.1}, in {} {many:.1}", parts?);
    Ok(())
}
