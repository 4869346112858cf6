//! Prints a model's nodes with their cost, and where it can be cut.
//!
//! `cargo run -p tierline-graph --example cuts_and_costs -- M.onnx [input=1,3,224,224 ...]`

use std::collections::BTreeMap;
use std::path::Path;

use tierline_graph::cost::{cost, parameters, total_macs};
use tierline_graph::cuts::{candidates, cuts};
use tierline_graph::{Model, infer_types_with};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: cuts_and_costs M.onnx [input=1,3,224,224 ...]")?;
    let mut inputs = BTreeMap::new();
    for argument in arguments {
        let (name, shape) = argument.rsplit_once('=').ok_or("an input is given as name=1,3,224,224")?;
        inputs.insert(name.to_owned(), shape.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>()?);
    }
    let model = Model::load(Path::new(&path))?;
    let types = infer_types_with(&model, &inputs)?;
    let costs = cost(&model, &types);

    let or_unknown = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
    println!("{:<20} {:>14} {:>12} {:>12} {:>10}  first output", "operator", "macs", "read", "written", "weights");
    for (node, cost) in model.graph().node.iter().zip(&costs) {
        let output = node.output.first().and_then(|name| types.get(name));
        let axes = output.and_then(|v| v.shape.as_ref()).map(|s| s.iter().map(ToString::to_string).collect::<Vec<_>>());
        println!(
            "{:<20} {:>14} {:>12} {:>12} {:>10}  {} [{}]",
            node.op_type(),
            or_unknown(cost.macs),
            or_unknown(cost.bytes_read),
            or_unknown(cost.bytes_written),
            cost.parameters,
            node.output.first().map_or("", String::as_str),
            axes.map_or("?".to_owned(), |axes| axes.join(", ")),
        );
    }

    let all = cuts(&model, &types);
    let chosen = candidates(&model, &types, &all, 32);
    println!("\n{} cuts; `*` marks those worth measuring", all.len());
    for cut in &all {
        let mark = if chosen.contains(cut) { '*' } else { ' ' };
        println!(
            "{mark} after {:>5} nodes, {:>10} bytes: {}",
            cut.position,
            or_unknown(cut.bytes),
            cut.tensors.join(", ")
        );
    }
    println!("\n{} multiply-adds, {} parameters", or_unknown(total_macs(&costs)), parameters(&model));
    Ok(())
}
