//! The layers of a model, in the order in which they are computed: which
//! weights belong together, and where the last of them begins.

use std::collections::HashSet;

use super::{StepError, parameters};
use crate::index::Index;
use crate::model::Model;

/// A layer: an operator that mixes its input by weights, and what only shifts or
/// scales its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What its first operator reads of what is computed before it.
    pub input: String,
    /// Its weights, in the order in which they are read; a weight that several
    /// layers read belongs to the first of them.
    pub weights: Vec<String>,
}

/// The layers of a model. One begins at each operator that reads a weight of
/// two axes or more; weights of one axis, such as biases and the scales of
/// normalisations, belong to the layer before.
///
/// # Errors
/// When the model has no weights.
pub fn layers(model: &Model) -> Result<Vec<Layer>, StepError> {
    let model = &crate::gradient::prepare(model)?;
    let all: HashSet<String> = parameters::find(model, &[])?.all.into_iter().collect();
    let index = Index::new(model);
    let axes = |name: &str| {
        let found = index.graph.initializer.iter().find(|t| t.name() == name);
        found.map_or(0, |t| t.dims.iter().filter(|&&d| d > 1).count())
    };
    let mut seen: HashSet<&str> = HashSet::new();
    let mut layers: Vec<Layer> = Vec::new();
    for &node in &index.order {
        let Some(input) = index.reads[node].iter().find(|name| index.is_dynamic(name)) else { continue };
        let mut open: Vec<&str> = index.reads[node].iter().copied().filter(|name| !index.is_dynamic(name)).collect();
        open.reverse();
        let mut weights = Vec::new();
        while let Some(name) = open.pop() {
            if all.contains(name) {
                if seen.insert(name) {
                    weights.push(name.to_owned());
                }
            } else if let Some(&maker) = index.producer.get(name) {
                open.extend(index.reads[maker].iter().rev());
            }
        }
        if weights.is_empty() {
            continue;
        }
        match layers.last_mut() {
            Some(last) if weights.iter().all(|w| axes(w) < 2) => last.weights.extend(weights),
            _ => layers.push(Layer { input: (*input).to_owned(), weights }),
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Dim, ValueInfo};
    use crate::{DataType, Elements, Tensor};

    /// Two products, each with a bias apart from it.
    fn model() -> Model {
        let mut out = crate::emit::Emitter::new(["x", "w1", "b1", "w2", "b2"]);
        let h = out.op("MatMul", &["x", "w1"], &[]);
        let h = out.op("Add", &[&h, "b1"], &[]);
        let h = out.op("Relu", &[&h], &[]);
        out.named("MatMul", &[&h, "w2"], &["product"], &[]);
        out.named("Add", &["product", "b2"], &["y"], &[]);
        let constant = |name: &str, shape: &[usize]| {
            let len = shape.iter().product();
            let tensor = Tensor::new(shape.to_vec(), Elements::F32(vec![0.5; len])).unwrap();
            crate::constant::tensor_to_proto(name, &tensor)
        };
        let info = |name: &str, n: u64| {
            let shape = Some(vec![Dim::Symbol("batch".into()), Dim::Known(n)]);
            crate::slice::value_info_proto(&ValueInfo { name: name.into(), dtype: Some(DataType::F32), shape })
        };
        let graph = crate::onnx::GraphProto {
            name: Some("two".into()),
            node: out.finish().0,
            initializer: vec![
                constant("w1", &[3, 4]),
                constant("b1", &[4]),
                constant("w2", &[4, 2]),
                constant("b2", &[2]),
            ],
            input: vec![info("x", 3)],
            output: vec![info("y", 2)],
            ..Default::default()
        };
        let opset = crate::onnx::OperatorSetIdProto { version: Some(18), ..Default::default() };
        let proto = crate::onnx::ModelProto {
            ir_version: Some(9),
            opset_import: vec![opset],
            graph: protobuf::MessageField::some(graph),
            ..Default::default()
        };
        Model::from_proto(proto).unwrap()
    }

    #[test]
    fn biases_belong_to_their_products() {
        let layers = layers(&model()).unwrap();
        let weights: Vec<Vec<&str>> = layers.iter().map(|l| l.weights.iter().map(String::as_str).collect()).collect();
        assert_eq!(weights, [["w1", "b1"], ["w2", "b2"]]);
        assert_eq!(layers[0].input, "x");
        assert_eq!(layers[1].input, "t/Relu");
    }
}
