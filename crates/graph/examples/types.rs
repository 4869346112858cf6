//! Prints what is known of every tensor of a model: `name dtype axes`.
//!
//! `cargo run -p tierline-graph --example types -- M.onnx [input=1,3,224,224 ...]`

use std::collections::BTreeMap;
use std::path::Path;

use tierline_graph::{Model, infer_types_with};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: types M.onnx [input=1,3,224,224 ...]")?;
    let mut inputs = BTreeMap::new();
    for argument in arguments {
        let (name, shape) = argument.rsplit_once('=').ok_or("an input is given as name=1,3,224,224")?;
        inputs.insert(name.to_owned(), shape.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>()?);
    }
    let model = Model::load(Path::new(&path))?;
    let types = infer_types_with(&model, &inputs)?;
    for node in &model.graph().node {
        for tensor in node.output.iter().filter_map(|name| types.get(name)) {
            let dtype = tensor.dtype.map_or("?".to_owned(), |d| d.to_string());
            let axes =
                |shape: &Vec<tierline_graph::Dim>| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let shape = tensor.shape.as_ref().map_or("?".to_owned(), |s| format!("[{}]", axes(s)));
            println!("{} {dtype} {shape}", tensor.name);
        }
    }
    Ok(())
}
