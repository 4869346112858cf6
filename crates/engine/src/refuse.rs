//! What an engine is known to get wrong, refused at load with the reason.

use tierline_graph::onnx::{GraphProto, TypeProto};
use tierline_graph::{DataType, Model};

use crate::error::EngineError;

/// Refuses a model that `engine` would get wrong.
pub(crate) fn check(engine: &'static str, model: &Model) -> Result<(), EngineError> {
    boundary(engine, model.graph())?;
    if engine == crate::rten::NAME {
        rten_types(engine, model)?;
    }
    Ok(())
}

/// rten computes f64 in f32 and doesn't know the narrow and unsigned integers.
fn rten_types(engine: &'static str, model: &Model) -> Result<(), EngineError> {
    for (what, values) in [("input", model.inputs()), ("output", model.outputs())] {
        for value in values {
            let reason = match value.dtype {
                Some(DataType::F64) => "it computes f64 in 32 bits",
                Some(DataType::U16 | DataType::I16 | DataType::U32 | DataType::U64) => "it has no such integers",
                Some(DataType::String) => "it has no strings",
                Some(DataType::BF16) => "it has no bf16",
                _ => continue,
            };
            let kind = value.dtype.map(|t| t.to_string()).unwrap_or_default();
            let reason = format!("{what} `{}` is {kind}: {reason}", value.name);
            return Err(EngineError::Refused { engine, node: None, reason });
        }
    }
    Ok(())
}

/// Inputs and outputs must be tensors of types that Tierline carries.
fn boundary(engine: &'static str, graph: &GraphProto) -> Result<(), EngineError> {
    for (what, values) in [("input", &graph.input), ("output", &graph.output)] {
        for value in values {
            let Some(kind) = value.type_.as_ref() else { continue };
            if let Some(reason) = uncarried(kind) {
                return Err(EngineError::Refused {
                    engine,
                    node: None,
                    reason: format!("{what} `{}` is {reason}; nodes exchange tensors only", value.name()),
                });
            }
        }
    }
    Ok(())
}

fn uncarried(kind: &TypeProto) -> Option<String> {
    if kind.has_sequence_type() {
        return Some("a sequence".to_owned());
    }
    if kind.has_map_type() {
        return Some("a map".to_owned());
    }
    if kind.has_optional_type() {
        return Some("optional".to_owned());
    }
    if kind.has_sparse_tensor_type() {
        return Some("a sparse tensor".to_owned());
    }
    let code = kind.has_tensor_type().then(|| kind.tensor_type().elem_type())?;
    (code != 0 && DataType::from_onnx(code).is_none())
        .then(|| format!("a tensor of ONNX element type {code}, which Tierline does not carry"))
}
