//! What is known of a value: type, shape, and for small tensors the elements.
//!
//! Elements of shape arithmetic are followed one by one (a size may be a
//! number, a named axis, or unknown), so that the targets of `Reshape`,
//! `Resize` or `Slice` resolve.

use crate::constant::tensor_from_proto;
use crate::onnx::TensorProto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::Dim;

use super::dims::{Shape, fixed, known};

/// Tensors with more elements aren't followed: shape arithmetic is short.
pub(crate) const ELEMENTS_MAX: u64 = 1_024;

/// One element of a followed tensor. Booleans are integers 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Int(i64),
    Real(f64),
    /// The size of a named axis.
    Size(String),
    Unknown,
}

impl Scalar {
    pub(super) fn from_dim(dim: &Dim) -> Self {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or(Self::Unknown, Self::Int),
            Dim::Symbol(s) => Self::Size(s.clone()),
            Dim::Unknown => Self::Unknown,
        }
    }

    /// As the size of an axis; negative numbers are no sizes.
    pub(super) fn to_dim(&self) -> Option<Dim> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok().map(known),
            Self::Real(_) => None,
            Self::Size(s) => Some(Dim::Symbol(s.clone())),
            Self::Unknown => Some(Dim::Unknown),
        }
    }

    pub(super) fn int(&self) -> Option<i64> {
        if let Self::Int(n) = self { Some(*n) } else { None }
    }

    pub(super) fn real(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Real(x) => Some(*x),
            _ => None,
        }
    }
}

/// A value of a graph as far as it is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Value {
    pub(super) dtype: Option<DataType>,
    pub(super) shape: Option<Shape>,
    /// Row-major; only with a fixed shape of at most [`ELEMENTS_MAX`].
    pub(super) elements: Option<Vec<Scalar>>,
    /// For sequences and optionals: what every item is.
    pub(super) items: Option<Box<Value>>,
}

impl Value {
    pub(super) fn new(dtype: Option<DataType>, shape: Option<Shape>) -> Self {
        Self { dtype, shape, ..Self::default() }
    }

    pub(super) fn typed(dtype: DataType, shape: Option<Shape>) -> Self {
        Self::new(Some(dtype), shape)
    }

    pub(super) fn sequence(item: Value) -> Self {
        Self { items: Some(Box::new(item.forget())), ..Self::default() }
    }

    /// Adds elements if they are as many as the shape says and few enough.
    pub(super) fn with(mut self, elements: Option<Vec<Scalar>>) -> Self {
        self.elements = elements.filter(|e| self.count() == Some(e.len() as u64) && e.len() as u64 <= ELEMENTS_MAX);
        self
    }

    /// A vector of integers.
    pub(super) fn sizes(elements: Vec<Scalar>) -> Self {
        Self::typed(DataType::I64, Some(vec![known(elements.len() as u64)])).with(Some(elements))
    }

    /// The same without its elements.
    pub(super) fn forget(mut self) -> Self {
        self.elements = None;
        self
    }

    /// Leaves the element type only, of items as well.
    pub(super) fn forget_shape(&mut self) {
        (self.shape, self.elements) = (None, None);
        if let Some(items) = &mut self.items {
            items.forget_shape();
        }
    }

    pub(super) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Number of elements when the shape is fixed.
    pub(super) fn count(&self) -> Option<u64> {
        self.shape.as_ref()?.iter().try_fold(1u64, |n, d| n.checked_mul(d.known()?))
    }

    /// All elements, when all are known integers.
    pub(super) fn ints(&self) -> Option<Vec<i64>> {
        self.elements.as_ref()?.iter().map(Scalar::int).collect()
    }

    /// All elements, when all are known numbers.
    pub(super) fn reals(&self) -> Option<Vec<f64>> {
        self.elements.as_ref()?.iter().map(Scalar::real).collect()
    }

    /// The only element.
    pub(super) fn scalar(&self) -> Option<&Scalar> {
        self.elements.as_deref().filter(|e| e.len() == 1).map(|e| &e[0])
    }

    /// Elements along the only axis, for a vector whose length is known;
    /// unknown ones where the tensor isn't followed.
    pub(super) fn vector(&self) -> Option<Vec<Scalar>> {
        match self.shape.as_deref()? {
            [] => self.elements.clone(),
            [Dim::Known(n)] if *n <= ELEMENTS_MAX => {
                Some(self.elements.clone().unwrap_or_else(|| vec![Scalar::Unknown; *n as usize]))
            }
            _ => None,
        }
    }

    /// What holds of both of two possible values.
    pub(super) fn join(&self, other: &Self) -> Self {
        Self {
            dtype: self.dtype.filter(|d| other.dtype == Some(*d)),
            shape: match (&self.shape, &other.shape) {
                (Some(a), Some(b)) => super::dims::join_shapes(a, b),
                _ => None,
            },
            elements: None,
            items: match (&self.items, &other.items) {
                (Some(a), Some(b)) => Some(Box::new(a.join(b))),
                _ => None,
            },
        }
    }

    /// An initialiser or a constant attribute.
    pub(super) fn constant(tensor: &TensorProto) -> Self {
        let shape: Option<Shape> = tensor.dims.iter().map(|d| u64::try_from(*d).ok().map(known)).collect();
        let value = Self::new(DataType::from_onnx(tensor.data_type()), shape);
        if value.count().is_none_or(|n| n > ELEMENTS_MAX) {
            return value;
        }
        let elements = tensor_from_proto(tensor).ok();
        value.with(elements.map(|t| all(t.elements())))
    }

    /// A tensor that is there.
    pub(super) fn of(tensor: &Tensor) -> Self {
        let shape = tensor.shape().iter().map(|&d| known(d as u64)).collect();
        let value = Self::typed(tensor.dtype(), Some(shape));
        let followed = tensor.len() as u64 <= ELEMENTS_MAX;
        value.with(followed.then(|| all(tensor.elements())))
    }

    /// How error messages show a value.
    pub(super) fn describe(&self) -> String {
        let dtype = self.dtype.map_or("?".to_owned(), |d| d.to_string());
        let shape = self.shape.as_ref().map_or("?".to_owned(), |s| super::error::shape(s));
        format!("{dtype} {shape}")
    }
}

fn all(elements: &Elements) -> Vec<Scalar> {
    fn int<T: Copy + TryInto<i64>>(v: &[T]) -> Vec<Scalar> {
        v.iter().map(|n| (*n).try_into().map_or(Scalar::Unknown, Scalar::Int)).collect()
    }
    match elements {
        Elements::F32(v) => v.iter().map(|x| Scalar::Real(f64::from(*x))).collect(),
        Elements::F64(v) => v.iter().map(|x| Scalar::Real(*x)).collect(),
        Elements::F16(v) => v.iter().map(|x| Scalar::Real(x.to_f64())).collect(),
        Elements::BF16(v) => v.iter().map(|x| Scalar::Real(x.to_f64())).collect(),
        Elements::U8(v) | Elements::Bool(v) => int(v),
        Elements::I8(v) => int(v),
        Elements::U16(v) => int(v),
        Elements::I16(v) => int(v),
        Elements::I32(v) => int(v),
        Elements::I64(v) => int(v),
        Elements::U32(v) => int(v),
        Elements::U64(v) => int(v),
        Elements::String(v) => vec![Scalar::Unknown; v.len()],
    }
}

/// Rearranges elements: `from(output position)` is the input's position.
/// Nothing when either isn't followed.
pub(super) fn rearrange(
    elements: Option<&[Scalar]>,
    source: &[Dim],
    target: &[Dim],
    from: impl Fn(&[u64]) -> Option<Vec<u64>>,
) -> Option<Vec<Scalar>> {
    let (elements, source, target) = (elements?, fixed(source)?, fixed(target)?);
    let count = target.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n <= ELEMENTS_MAX)?;
    let mut position = vec![0u64; target.len()];
    let mut out = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let flat = from(&position)?.iter().zip(&source).try_fold(0u64, |n, (i, d)| (i < d).then(|| n * d + i))?;
        out.push(elements.get(flat as usize)?.clone());
        for axis in (0..target.len()).rev() {
            position[axis] += 1;
            if position[axis] < target[axis] {
                break;
            }
            position[axis] = 0;
        }
    }
    Some(out)
}
