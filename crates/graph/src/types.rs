//! What is known of a value before it is computed: element type and shape.

use serde::{Deserialize, Serialize};

use crate::tensor::{DataType, element_count};

/// One axis of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A fixed size.
    Known(u64),
    /// A named size, fixed by the inputs (`batch`, `sequence`).
    Symbol(String),
    /// Unknown until the graph runs.
    Unknown,
}

impl Dim {
    /// The fixed size, if there is one.
    #[must_use]
    pub fn known(&self) -> Option<u64> {
        if let Self::Known(n) = self { Some(*n) } else { None }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Symbol(s) => f.write_str(s),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// Element type and shape of a named value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueInfo {
    /// The value's name in the graph.
    pub name: String,
    /// Element type; `None` for sequences, maps and types Tierline doesn't carry.
    pub dtype: Option<DataType>,
    /// Axes, outermost first; `None` when not even the rank is known.
    pub shape: Option<Vec<Dim>>,
}

impl ValueInfo {
    /// Whether an input that is declared so takes a tensor of this shape.
    ///
    /// No axes at all may stand for a scalar, or for a rank that the exporter
    /// didn't know: ONNX Runtime takes any shape there, and so do we.
    #[must_use]
    pub fn takes(&self, shape: impl ExactSizeIterator<Item = u64>) -> bool {
        let Some(axes) = self.shape.as_ref().filter(|axes| !axes.is_empty()) else { return true };
        axes.len() == shape.len() && axes.iter().zip(shape).all(|(axis, n)| axis.known().is_none_or(|known| known == n))
    }

    /// Number of elements when every axis is fixed.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.shape.as_ref()?.iter().try_fold(1u64, |n, d| n.checked_mul(d.known()?))
    }

    /// Whether memory could hold it: the fixed axes alone may be too much.
    #[must_use]
    pub fn is_addressable(&self) -> bool {
        let axes = self.shape.iter().flatten().filter_map(Dim::known).map(|n| usize::try_from(n).ok());
        axes.collect::<Option<Vec<usize>>>().is_some_and(|shape| element_count(&shape).is_ok())
    }

    /// Bytes when every axis is fixed and elements have a fixed size.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.elements()?.checked_mul(self.dtype?.size()? as u64)
    }
}
