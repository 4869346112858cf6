//! What a segment holds in memory, and values for one whose own are unknown.

use std::collections::{HashMap, HashSet};

use tierline_graph::{DataType, Dim, Elements, Model, Tensor, Types};

use crate::EngineError;

/// Weights plus the peak of live activations, bytes; tensors of unknown size
/// count nothing. Engines share buffers in place, so this errs upwards.
pub(crate) fn bytes(segment: &Model, types: &Types) -> u64 {
    let graph = segment.graph();
    let weights = graph.initializer.iter().map(weight_bytes).fold(0, u64::saturating_add);
    let size = |name: &str| types.get(name).and_then(|v| v.bytes()).unwrap_or(0);
    let outputs: Vec<&str> = graph.output.iter().map(|v| v.name()).collect();
    let constant: HashSet<&str> = graph.initializer.iter().map(|w| w.name()).collect();
    let mut last_use: HashMap<&str, usize> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        last_use.extend(node.input.iter().map(|name| (name.as_str(), i)));
    }
    let mut live = segment.inputs().iter().map(|v| size(&v.name)).fold(0, u64::saturating_add);
    let mut peak = live;
    for (i, node) in graph.node.iter().enumerate() {
        live = node.output.iter().map(|name| size(name)).fold(live, u64::saturating_add);
        peak = peak.max(live);
        let mut dead: Vec<&str> = node.input.iter().map(String::as_str).collect();
        dead.sort_unstable();
        dead.dedup();
        let freed =
            dead.iter().filter(|n| last_use.get(*n) == Some(&i) && !outputs.contains(n) && !constant.contains(*n));
        live = freed.map(|name| size(name)).fold(live, u64::saturating_sub);
    }
    weights.saturating_add(peak)
}

fn weight_bytes(weight: &tierline_graph::onnx::TensorProto) -> u64 {
    let elements = weight.dims.iter().map(|&d| d.max(0) as u64).fold(1, u64::saturating_mul);
    let size = DataType::from_onnx(weight.data_type()).and_then(DataType::size).unwrap_or(1);
    elements.saturating_mul(size as u64)
}

/// A tensor as `types` describes it, for timing only: floats between -1 and 1,
/// zeros elsewhere, which are valid indices anywhere.
pub(super) fn made_up(name: &str, types: &Types) -> Result<Tensor, EngineError> {
    let unknown = || EngineError::Prepare {
        reason: format!(
            "an earlier segment is refused and the shape of `{name}` is unknown; give input shapes, or profile on an \
             engine that runs the whole model"
        ),
    };
    let value = types.get(name).ok_or_else(unknown)?;
    let sizes = |shape: &Vec<Dim>| shape.iter().map(|d| Some(d.known()? as usize)).collect::<Option<Vec<usize>>>();
    let shape = value.shape.as_ref().and_then(sizes);
    let (shape, dtype) = shape.zip(value.dtype).ok_or_else(unknown)?;
    let count = tierline_graph::tensor::element_count(&shape).map_err(|_| unknown())?;
    if dtype == DataType::F32 {
        let wave = (0..count).map(|i| (i as f32 * 0.618).sin()).collect();
        return Tensor::new(shape, Elements::F32(wave)).map_err(|_| unknown());
    }
    let size = dtype.size().ok_or_else(unknown)?;
    Tensor::from_bytes(dtype, shape, &vec![0; count * size]).map_err(|_| unknown())
}
