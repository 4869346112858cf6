//! Checks what a caller gives a session against what its model declares.

use tierline_graph::{Dim, Tensor, ValueInfo};

use crate::error::EngineError;

/// The given tensors in the order of `declared`.
pub(crate) fn in_order<'t>(
    declared: &[ValueInfo],
    given: &[(&str, &'t Tensor)],
) -> Result<Vec<&'t Tensor>, EngineError> {
    let all = || declared.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
    for (i, (name, _)) in given.iter().enumerate() {
        if !declared.iter().any(|v| v.name == *name) {
            return Err(EngineError::ExtraInput { name: (*name).to_owned(), inputs: all() });
        }
        if given[..i].iter().any(|(other, _)| other == name) {
            return Err(EngineError::DuplicateInput { name: (*name).to_owned() });
        }
    }
    declared
        .iter()
        .map(|value| {
            let (_, tensor) = given
                .iter()
                .find(|(name, _)| *name == value.name)
                .ok_or_else(|| EngineError::MissingInput { name: value.name.clone(), inputs: all() })?;
            fits(value, tensor)?;
            Ok(*tensor)
        })
        .collect()
}

fn fits(value: &ValueInfo, tensor: &Tensor) -> Result<(), EngineError> {
    if let Some(expected) = value.dtype
        && expected != tensor.dtype()
    {
        return Err(EngineError::InputType { name: value.name.clone(), expected, given: tensor.dtype() });
    }
    if value.takes(tensor.shape().iter().map(|&n| n as u64)) {
        return Ok(());
    }
    Err(EngineError::InputShape {
        name: value.name.clone(),
        expected: describe(value.shape.as_deref().unwrap_or_default()),
        given: tensor.shape().to_vec(),
    })
}

fn describe(shape: &[Dim]) -> String {
    format!("[{}]", shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
