//! What a model says of its values before it runs: types, shapes, constants.

use std::collections::HashMap;

use tierline_graph::onnx::{GraphProto, TensorProto};
use tierline_graph::{DataType, Elements, Model, Types, ValueInfo};

/// Types, shapes and constants by value name.
#[derive(Clone, Default)]
pub(crate) struct Known<'m> {
    values: HashMap<&'m str, ValueInfo>,
    weights: HashMap<&'m str, &'m TensorProto>,
}

impl<'m> Known<'m> {
    /// What the model declares, and what follows from it: nothing for a model
    /// that contradicts itself, which is the engine's to refuse.
    pub(crate) fn new(model: &'m Model, types: &Types) -> Self {
        let mut known = Self::default().inside(model.graph());
        for output in model.graph().node.iter().flat_map(|n| &n.output) {
            if let Some(value) = types.get(output) {
                known.values.insert(output, value.clone());
            }
        }
        known
    }

    /// The same, and what `graph` declares.
    pub(crate) fn inside<'b>(&self, graph: &'b GraphProto) -> Known<'b>
    where
        'm: 'b,
    {
        let mut known: Known<'b> = self.clone();
        for value in graph.input.iter().chain(&graph.value_info).chain(&graph.output) {
            known.values.insert(value.name(), tierline_graph::model::value_info(value));
        }
        for weight in &graph.initializer {
            known.weights.insert(weight.name(), weight);
        }
        for node in graph.node.iter().filter(|n| n.op_type() == "Constant") {
            let tensor = node.attribute.iter().find_map(|a| a.t.as_ref());
            if let (Some(name), Some(tensor)) = (node.output.first(), tensor) {
                known.weights.insert(name, tensor);
            }
        }
        known
    }

    pub(crate) fn dtype(&self, name: &str) -> Option<DataType> {
        match self.weights.get(name) {
            Some(weight) => DataType::from_onnx(weight.data_type()),
            None => self.values.get(name)?.dtype,
        }
    }

    /// Axes; `None` where one isn't fixed.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<Option<u64>>> {
        match self.weights.get(name) {
            Some(weight) => Some(weight.dims.iter().map(|&d| u64::try_from(d).ok()).collect()),
            None => Some(self.values.get(name)?.shape.as_ref()?.iter().map(|d| d.known()).collect()),
        }
    }

    /// Type, axes and elements of a constant of bytes.
    pub(crate) fn bytes(&self, name: &str) -> Option<(DataType, Vec<usize>, Vec<i16>)> {
        let tensor = tierline_graph::constant::tensor_from_proto(self.weights.get(name)?).ok()?;
        let elements = match tensor.elements() {
            Elements::U8(values) => values.iter().map(|&v| v.into()).collect(),
            Elements::I8(values) => values.iter().map(|&v| v.into()).collect(),
            _ => return None,
        };
        Some((tensor.dtype(), tensor.shape().to_vec(), elements))
    }

    /// The elements of an f32 constant.
    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let weight = self.weights.get(name).filter(|w| w.data_type() == DataType::F32 as i32)?;
        if weight.has_raw_data() {
            let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap_or_default());
            return Some(weight.raw_data().chunks_exact(4).map(number).collect());
        }
        Some(weight.float_data.clone())
    }
}
