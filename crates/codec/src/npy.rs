//! NumPy's file format: the tensors that users have.
//!
//! Versions 1 to 3, C and Fortran order, both byte orders, numbers, booleans
//! and fixed-width strings.

use tierline_graph::tensor::element_count;
use tierline_graph::{DataType, Elements, Tensor, TensorError};

use crate::frame::BYTES_MAX;

/// Axes of a NumPy array.
const RANK_MAX: usize = 64;

/// Why a file isn't a tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// Not the format.
    #[error("not a NumPy file: {0}; write it with numpy.save")]
    Format(&'static str),
    /// The file ends too early, or goes on behind the end.
    #[error("the file holds {actual} bytes of elements; {expected} were expected")]
    Length {
        /// Bytes expected.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// A type that tensors don't have.
    #[error("NumPy type `{0}` has no tensor type; convert it, for example with astype(numpy.float32)")]
    Type(String),
    /// The elements don't make a tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Reads a `.npy` file.
///
/// # Errors
/// [`NpyError`].
pub fn read(bytes: &[u8]) -> Result<Tensor, NpyError> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or(NpyError::Format("the magic bytes are missing"))?;
    let short = NpyError::Format("the header is cut short");
    let (length, at): (Option<usize>, usize) = match rest.first() {
        Some(1) => (rest.get(2..4).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))), 4),
        Some(2 | 3) => (rest.get(2..6).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize), 6),
        _ => return Err(NpyError::Format("unknown version")),
    };
    let length = length.ok_or_else(|| short.clone())?;
    let header = rest.get(at..at.saturating_add(length)).ok_or(short)?;
    let header = std::str::from_utf8(header).map_err(|_| NpyError::Format("the header is not text"))?;
    let body = &rest[at + length..];
    let descr = field(header, "descr").and_then(quoted).ok_or(NpyError::Format("the header names no type"))?;
    let fortran = field(header, "fortran_order").is_some_and(|f| f.trim_start().starts_with("True"));
    let shape = shape(header)?;
    if shape.len() > RANK_MAX {
        return Err(NpyError::Format("it has more axes than NumPy takes"));
    }
    let count = element_count(&shape)?;
    if count > BYTES_MAX {
        return Err(TensorError::TooLarge { shape }.into());
    }
    let elements = elements(descr, count, body)?;
    let tensor = Tensor::new(shape, elements)?;
    Ok(if fortran { from_fortran(tensor)? } else { tensor })
}

fn field<'h>(header: &'h str, name: &str) -> Option<&'h str> {
    let at = header.find(&format!("'{name}'"))? + name.len() + 2;
    header[at..].trim_start().strip_prefix(':').map(str::trim_start)
}

fn quoted(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| *c == '\'' || *c == '"')?;
    text[1..].split_once(quote).map(|(inside, _)| inside)
}

fn shape(header: &str) -> Result<Vec<usize>, NpyError> {
    let wrong = || NpyError::Format("the header has no shape");
    let text = field(header, "shape").ok_or_else(wrong)?;
    let inside = text.strip_prefix('(').and_then(|t| t.split_once(')')).ok_or_else(wrong)?.0;
    inside.split(',').map(str::trim).filter(|t| !t.is_empty()).map(|t| t.parse().map_err(|_| wrong())).collect()
}

fn elements(descr: &str, count: usize, body: &[u8]) -> Result<Elements, NpyError> {
    let unknown = || NpyError::Type(descr.to_owned());
    let (order, kind) = match descr.as_bytes().first() {
        Some(b'<' | b'|' | b'=') => (false, &descr[1..]),
        Some(b'>') => (true, &descr[1..]),
        _ => (false, descr),
    };
    if let Some(width) = kind.strip_prefix('U') {
        return strings(width.parse().map_err(|_| unknown())?, count, body, order);
    }
    let dtype = match kind {
        "f2" => DataType::F16,
        "f4" => DataType::F32,
        "f8" => DataType::F64,
        "i1" => DataType::I8,
        "i2" => DataType::I16,
        "i4" => DataType::I32,
        "i8" => DataType::I64,
        "u1" => DataType::U8,
        "u2" => DataType::U16,
        "u4" => DataType::U32,
        "u8" => DataType::U64,
        "b1" => DataType::Bool,
        _ => return Err(unknown()),
    };
    let size = dtype.size().unwrap_or(1);
    check_length(count.saturating_mul(size), body)?;
    if order && size > 1 {
        let mut swapped = body.to_vec();
        swapped.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        return Ok(Elements::from_bytes(dtype, &swapped)?);
    }
    Ok(Elements::from_bytes(dtype, body)?)
}

fn check_length(expected: usize, body: &[u8]) -> Result<(), NpyError> {
    if expected == body.len() {
        Ok(())
    } else {
        Err(NpyError::Length { expected: expected as u64, actual: body.len() as u64 })
    }
}

fn strings(width: usize, count: usize, body: &[u8], big: bool) -> Result<Elements, NpyError> {
    // Strings of no width take no bytes, whatever their number.
    if width == 0 && count > 0 {
        return Err(NpyError::Format("its strings have no width"));
    }
    check_length(count.saturating_mul(width).saturating_mul(4), body)?;
    if count == 0 {
        return Ok(Elements::String(Vec::new()));
    }
    body.chunks_exact(width * 4)
        .map(|cell| {
            cell.chunks_exact(4)
                .map(|c| {
                    let raw = [c[0], c[1], c[2], c[3]];
                    if big { u32::from_be_bytes(raw) } else { u32::from_le_bytes(raw) }
                })
                .take_while(|&c| c != 0)
                .map(|c| char::from_u32(c).ok_or(NpyError::Format("a string holds no valid text")))
                .collect::<Result<String, _>>()
        })
        .collect::<Result<Vec<_>, _>>()
        .map(Elements::String)
}

/// Column-major elements in row-major order.
fn from_fortran(tensor: Tensor) -> Result<Tensor, NpyError> {
    let (shape, elements) = tensor.into_parts();
    let mut strides = vec![1usize; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    let mut index = vec![0usize; shape.len()];
    // Where the elements lie, in row-major order.
    let places = (0..elements.len()).map(|_| {
        let place: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
        place
    });
    let sorted = match elements {
        Elements::String(s) => Elements::String(places.map(|i| s[i].clone()).collect()),
        numeric => {
            let size = numeric.dtype().size().unwrap_or(1);
            let source = numeric.as_bytes().unwrap_or_default();
            let mut bytes = Vec::with_capacity(source.len());
            places.for_each(|i| bytes.extend_from_slice(&source[i * size..(i + 1) * size]));
            Elements::from_bytes(numeric.dtype(), &bytes)?
        }
    };
    Ok(Tensor::new(shape, sorted)?)
}

/// Writes a `.npy` file, version 1.0, C order.
///
/// # Errors
/// For types that NumPy lacks (bfloat16).
pub fn write(tensor: &Tensor) -> Result<Vec<u8>, NpyError> {
    let width = match tensor.elements() {
        Elements::String(s) => s.iter().map(|s| s.chars().count()).max().unwrap_or(0).max(1),
        _ => 0,
    };
    let descr = match tensor.dtype() {
        DataType::F16 => "<f2".to_owned(),
        DataType::F32 => "<f4".to_owned(),
        DataType::F64 => "<f8".to_owned(),
        DataType::I8 => "|i1".to_owned(),
        DataType::I16 => "<i2".to_owned(),
        DataType::I32 => "<i4".to_owned(),
        DataType::I64 => "<i8".to_owned(),
        DataType::U8 => "|u1".to_owned(),
        DataType::U16 => "<u2".to_owned(),
        DataType::U32 => "<u4".to_owned(),
        DataType::U64 => "<u8".to_owned(),
        DataType::Bool => "|b1".to_owned(),
        DataType::String => format!("<U{width}"),
        other => return Err(NpyError::Type(other.to_string())),
    };
    let mut dims: String = tensor.shape().iter().map(|d| format!("{d}, ")).collect();
    if tensor.shape().len() > 1 {
        dims.truncate(dims.len() - 2);
    }
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", dims.trim_end());
    // Elements start at a multiple of 64 bytes, as NumPy does it.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(|_| NpyError::Format("the shape has too many axes"))?;
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    match tensor.elements() {
        Elements::String(strings) => {
            for s in strings {
                let mut cell: Vec<u32> = s.chars().map(u32::from).collect();
                cell.resize(width, 0);
                out.extend(cell.iter().flat_map(|c| c.to_le_bytes()));
            }
        }
        numeric => out.extend_from_slice(numeric.as_bytes().unwrap_or_default()),
    }
    Ok(out)
}
