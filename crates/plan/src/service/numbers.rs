//! Elements of any number type as f64, and back.

use tierline_graph::{DataType, Elements, Tensor};

/// Why tensors don't make an answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorsError {
    /// A tensor that isn't there.
    #[error("there is no `{name}`; there are {}", known.join(", "))]
    Missing {
        /// Its name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Not numbers.
    #[error("`{name}` is {dtype}; it must be numbers")]
    Type {
        /// Its name.
        name: String,
        /// Its type.
        dtype: DataType,
    },
    /// A shape that can't be.
    #[error("`{name}` has shape {shape:?}; it must be {needed}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What it must be.
        needed: String,
    },
    /// An answer that can't be read.
    #[error(transparent)]
    Judge(#[from] crate::exits::JudgeError),
    /// More than memory holds.
    #[error("{0}")]
    TooLarge(String),
}

/// Elements as f64, if they are numbers.
#[must_use]
pub fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    Some(match tensor.elements() {
        Elements::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::F64(v) => v.clone(),
        Elements::F16(v) => v.iter().map(|x| f64::from(x.to_f32())).collect(),
        Elements::BF16(v) => v.iter().map(|x| f64::from(x.to_f32())).collect(),
        Elements::U8(v) | Elements::Bool(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::I8(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::U16(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::I16(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::U32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::I32(v) => v.iter().map(|x| f64::from(*x)).collect(),
        Elements::U64(v) => v.iter().map(|x| *x as f64).collect(),
        Elements::I64(v) => v.iter().map(|x| *x as f64).collect(),
        _ => return None,
    })
}

/// As [`numbers`], of a tensor that must have them.
///
/// # Errors
/// [`TensorsError::Type`].
pub fn numbers_of(name: &str, tensor: &Tensor) -> Result<Vec<f64>, TensorsError> {
    numbers(tensor).ok_or_else(|| TensorsError::Type { name: name.to_owned(), dtype: tensor.dtype() })
}

/// A tensor of f32.
pub(super) fn f32s(shape: Vec<usize>, values: &[f64]) -> Result<Tensor, TensorsError> {
    let elements = Elements::F32(values.iter().map(|v| *v as f32).collect());
    Tensor::new(shape, elements).map_err(|e| TensorsError::TooLarge(e.to_string()))
}

/// The tensor of a name.
///
/// # Errors
/// [`TensorsError::Missing`].
pub fn named<'t>(tensors: &'t [(String, Tensor)], name: &str) -> Result<&'t Tensor, TensorsError> {
    tensors.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor).ok_or_else(|| TensorsError::Missing {
        name: name.to_owned(),
        known: tensors.iter().map(|(known, _)| format!("`{known}`")).collect(),
    })
}
