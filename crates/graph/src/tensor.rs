//! A tensor in host memory: shape and typed elements, row-major.
//!
//! The one value type of the system: engines take and return it, codecs turn
//! it into bytes. It never computes.

use bytes::Bytes;
use half::{bf16, f16};

/// Element type of a tensor, with the codes of the ONNX specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DataType {
    /// 32-bit IEEE float.
    F32 = 1,
    /// Unsigned 8-bit integer.
    U8 = 2,
    /// Signed 8-bit integer.
    I8 = 3,
    /// Unsigned 16-bit integer.
    U16 = 4,
    /// Signed 16-bit integer.
    I16 = 5,
    /// Signed 32-bit integer.
    I32 = 6,
    /// Signed 64-bit integer.
    I64 = 7,
    /// UTF-8 string.
    String = 8,
    /// Boolean, one byte each.
    Bool = 9,
    /// 16-bit IEEE float.
    F16 = 10,
    /// 64-bit IEEE float.
    F64 = 11,
    /// Unsigned 32-bit integer.
    U32 = 12,
    /// Unsigned 64-bit integer.
    U64 = 13,
    /// bfloat16.
    BF16 = 16,
}

impl DataType {
    /// The type with this ONNX code; `None` for types Tierline doesn't carry
    /// as tensors (complex, float8, 4-bit).
    #[must_use]
    pub fn from_onnx(code: i32) -> Option<Self> {
        use DataType::*;
        Some(match code {
            1 => F32,
            2 => U8,
            3 => I8,
            4 => U16,
            5 => I16,
            6 => I32,
            7 => I64,
            8 => String,
            9 => Bool,
            10 => F16,
            11 => F64,
            12 => U32,
            13 => U64,
            16 => BF16,
            _ => return None,
        })
    }

    /// The ONNX code of this type.
    #[must_use]
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Bytes per element; `None` for strings.
    #[must_use]
    pub fn size(self) -> Option<usize> {
        use DataType::*;
        Some(match self {
            U8 | I8 | Bool => 1,
            U16 | I16 | F16 | BF16 => 2,
            F32 | I32 | U32 => 4,
            F64 | I64 | U64 => 8,
            String => return None,
        })
    }

    /// Whether elements are floating-point numbers.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::F64 | Self::BF16)
    }
}

impl DataType {
    /// Its name in NumPy and PyTorch, as in `float32`.
    #[must_use]
    pub fn numpy(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::String => "string",
            Self::Bool => "bool",
            Self::F16 => "float16",
            Self::F64 => "float64",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::BF16 => "bfloat16",
        }
    }
}

impl std::fmt::Display for DataType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::String => "string",
            Self::Bool => "bool",
            Self::F16 => "f16",
            Self::F64 => "f64",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::BF16 => "bf16",
        })
    }
}

/// Typed elements of a [`Tensor`], row-major. Booleans are bytes 0 and 1.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Elements {
    F32(Vec<f32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    String(Vec<String>),
    Bool(Vec<u8>),
    F16(Vec<f16>),
    F64(Vec<f64>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    BF16(Vec<bf16>),
}

/// Runs an expression with `$v` bound to the numeric vector inside; strings
/// take the second arm.
#[macro_export]
macro_rules! with_elements {
    ($elements:expr, $v:ident => $numeric:expr, $s:ident => $string:expr) => {
        match $elements {
            $crate::Elements::F32($v) => $numeric,
            $crate::Elements::U8($v) => $numeric,
            $crate::Elements::I8($v) => $numeric,
            $crate::Elements::U16($v) => $numeric,
            $crate::Elements::I16($v) => $numeric,
            $crate::Elements::I32($v) => $numeric,
            $crate::Elements::I64($v) => $numeric,
            $crate::Elements::Bool($v) => $numeric,
            $crate::Elements::F16($v) => $numeric,
            $crate::Elements::F64($v) => $numeric,
            $crate::Elements::U32($v) => $numeric,
            $crate::Elements::U64($v) => $numeric,
            $crate::Elements::BF16($v) => $numeric,
            $crate::Elements::String($s) => $string,
            #[allow(unreachable_patterns)]
            _ => unreachable!("every element type is listed"),
        }
    };
}

impl Elements {
    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DataType {
        match self {
            Self::F32(_) => DataType::F32,
            Self::U8(_) => DataType::U8,
            Self::I8(_) => DataType::I8,
            Self::U16(_) => DataType::U16,
            Self::I16(_) => DataType::I16,
            Self::I32(_) => DataType::I32,
            Self::I64(_) => DataType::I64,
            Self::String(_) => DataType::String,
            Self::Bool(_) => DataType::Bool,
            Self::F16(_) => DataType::F16,
            Self::F64(_) => DataType::F64,
            Self::U32(_) => DataType::U32,
            Self::U64(_) => DataType::U64,
            Self::BF16(_) => DataType::BF16,
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        with_elements!(self, v => v.len(), s => s.len())
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Little-endian bytes of numeric elements; `None` for strings.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        with_elements!(self, v => Some(bytemuck::cast_slice(v)), _s => None)
    }

    /// Elements of `dtype` from little-endian bytes.
    ///
    /// # Errors
    /// When the length is no multiple of the element size, a boolean byte is
    /// neither 0 nor 1, or the type is string.
    pub fn from_bytes(dtype: DataType, bytes: &[u8]) -> Result<Self, TensorError> {
        let size = dtype.size().ok_or(TensorError::NoBytes { dtype })?;
        if !bytes.len().is_multiple_of(size) {
            return Err(TensorError::ByteLength {
                dtype,
                bytes: bytes.len() as u64,
                expected: (bytes.len() / size * size) as u64,
            });
        }
        fn read<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
            // A copy through a typed buffer: the source need not be aligned.
            let mut out = vec![T::zeroed(); bytes.len() / size_of::<T>()];
            bytemuck::cast_slice_mut::<T, u8>(&mut out).copy_from_slice(bytes);
            out
        }
        Ok(match dtype {
            DataType::F32 => Self::F32(read(bytes)),
            DataType::U8 => Self::U8(bytes.to_vec()),
            DataType::I8 => Self::I8(read(bytes)),
            DataType::U16 => Self::U16(read(bytes)),
            DataType::I16 => Self::I16(read(bytes)),
            DataType::I32 => Self::I32(read(bytes)),
            DataType::I64 => Self::I64(read(bytes)),
            DataType::Bool => {
                if let Some(&byte) = bytes.iter().find(|&&b| b > 1) {
                    return Err(TensorError::Bool { byte });
                }
                Self::Bool(bytes.to_vec())
            }
            DataType::F16 => Self::F16(read(bytes)),
            DataType::F64 => Self::F64(read(bytes)),
            DataType::U32 => Self::U32(read(bytes)),
            DataType::U64 => Self::U64(read(bytes)),
            DataType::BF16 => Self::BF16(read(bytes)),
            DataType::String => return Err(TensorError::NoBytes { dtype }),
        })
    }
}

/// A dense tensor in host memory, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    elements: Elements,
}

/// Why bytes or elements don't make a tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Shape and number of elements disagree.
    #[error("shape {shape:?} holds {expected} elements; {actual} were given")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// Elements the shape holds.
        expected: u64,
        /// Elements given.
        actual: u64,
    },
    /// The byte count doesn't fit the element type.
    #[error("{bytes} bytes do not hold {dtype} elements ({expected} bytes would)")]
    ByteLength {
        /// Element type.
        dtype: DataType,
        /// Bytes given.
        bytes: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// More elements than this machine can address.
    #[error("shape {shape:?} has more elements than memory can hold")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
    },
    /// Strings have no fixed-size bytes.
    #[error("{dtype} elements have no fixed-size bytes")]
    NoBytes {
        /// Element type.
        dtype: DataType,
    },
    /// A boolean is a byte of 0 or 1.
    #[error("byte {byte} is no boolean; booleans are 0 or 1")]
    Bool {
        /// The offending byte.
        byte: u8,
    },
}

impl Tensor {
    /// A tensor of this shape.
    ///
    /// # Errors
    /// When the number of elements isn't what the shape holds.
    pub fn new(shape: impl Into<Vec<usize>>, elements: Elements) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = element_count(&shape)?;
        if expected != elements.len() {
            return Err(TensorError::Length { shape, expected: expected as u64, actual: elements.len() as u64 });
        }
        Ok(Self { shape, elements })
    }

    /// A tensor from little-endian bytes.
    ///
    /// # Errors
    /// As [`Elements::from_bytes`] and [`Tensor::new`].
    pub fn from_bytes(dtype: DataType, shape: impl Into<Vec<usize>>, bytes: &[u8]) -> Result<Self, TensorError> {
        let shape = shape.into();
        let expected = element_count(&shape)?;
        if let Some(size) = dtype.size() {
            let expected = (expected as u64).saturating_mul(size as u64);
            if expected != bytes.len() as u64 {
                return Err(TensorError::ByteLength { dtype, bytes: bytes.len() as u64, expected });
            }
        }
        Self::new(shape, Elements::from_bytes(dtype, bytes)?)
    }

    /// Zeros of a floating-point type.
    ///
    /// # Errors
    /// When memory can't hold so many, or [`TensorError::NoBytes`] for another
    /// type.
    pub fn zeros(dtype: DataType, shape: impl Into<Vec<usize>>) -> Result<Self, TensorError> {
        let shape = shape.into();
        let count = element_count(&shape)?;
        let elements = match dtype {
            DataType::F32 => Elements::F32(vec![0.0; count]),
            DataType::F64 => Elements::F64(vec![0.0; count]),
            dtype => return Err(TensorError::NoBytes { dtype }),
        };
        Self::new(shape, elements)
    }

    /// Sizes of the axes, outermost first; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DataType {
        self.elements.dtype()
    }

    /// The elements.
    #[must_use]
    pub fn elements(&self) -> &Elements {
        &self.elements
    }

    /// The elements, to be overwritten in place; their number stays.
    pub fn elements_mut(&mut self) -> &mut Elements {
        &mut self.elements
    }

    /// The shape and the elements, without a copy.
    #[must_use]
    pub fn into_parts(self) -> (Vec<usize>, Elements) {
        (self.shape, self.elements)
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Bytes of the elements in memory (strings: their UTF-8 bytes).
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        match &self.elements {
            Elements::String(s) => s.iter().map(|s| s.len() as u64).sum(),
            e => e.len() as u64 * e.dtype().size().unwrap_or(0) as u64,
        }
    }

    /// Elements as `f32` when that is their type.
    #[must_use]
    pub fn as_f32(&self) -> Option<&[f32]> {
        if let Elements::F32(v) = &self.elements { Some(v) } else { None }
    }

    /// Elements as `i64` when that is their type.
    #[must_use]
    pub fn as_i64(&self) -> Option<&[i64]> {
        if let Elements::I64(v) = &self.elements { Some(v) } else { None }
    }

    /// Numeric elements as little-endian shared bytes; `None` for strings.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Bytes> {
        self.elements.as_bytes().map(Bytes::copy_from_slice)
    }
}

/// Number of elements of `shape`, refusing what memory can't hold.
///
/// # Errors
/// [`TensorError::TooLarge`].
pub fn element_count(shape: &[usize]) -> Result<usize, TensorError> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 8)
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })
}

#[cfg(not(target_endian = "little"))]
compile_error!("Tensor bytes are little-endian; big-endian hosts need a swap in `Elements`");
