//! What data sets do with typed elements: join, take, look at.

use std::path::Path;

use tierline_graph::{Elements, Tensor, with_elements};

use super::error::DataError;

/// Element `index` as a number; 0 for strings, which checked data has not.
pub(super) fn number(elements: &Elements, index: usize) -> f64 {
    match elements {
        Elements::F32(v) => f64::from(v[index]),
        Elements::F64(v) => v[index],
        Elements::F16(v) => f64::from(v[index]),
        Elements::BF16(v) => f64::from(v[index]),
        Elements::U8(v) | Elements::Bool(v) => f64::from(v[index]),
        Elements::I8(v) => f64::from(v[index]),
        Elements::U16(v) => f64::from(v[index]),
        Elements::I16(v) => f64::from(v[index]),
        Elements::U32(v) => f64::from(v[index]),
        Elements::I32(v) => f64::from(v[index]),
        Elements::U64(v) => v[index] as f64,
        Elements::I64(v) => v[index] as f64,
        _ => 0.0,
    }
}

/// Rows of `per` elements each, in the order of `rows`.
pub(super) fn take(elements: &Elements, per: usize, rows: &[usize]) -> Result<Elements, DataError> {
    let bytes = elements.as_bytes().unwrap_or_default();
    let size = per * elements.dtype().size().unwrap_or(1);
    let mut taken = Vec::with_capacity(rows.len() * size);
    rows.iter().for_each(|row| taken.extend_from_slice(&bytes[row * size..(row + 1) * size]));
    Ok(Elements::from_bytes(elements.dtype(), &taken)?)
}

/// Puts `more` behind `elements`; whether their types agree.
pub(super) fn append(elements: &mut Elements, more: Elements) -> bool {
    macro_rules! same {
        ($($variant:ident)*) => {
            match (elements, more) {
                $((Elements::$variant(into), Elements::$variant(more)) => { into.extend(more); true })*
                _ => false,
            }
        };
    }
    same!(F32 U8 I8 U16 I16 I32 I64 String Bool F16 F64 U32 U64 BF16)
}

/// Refuses what is no finite f32 in `[n, ...]`, saying where.
pub(super) fn check_finite(path: &Path, tensor: &Tensor, columns: &[String]) -> Result<(), DataError> {
    let elements = tensor.elements();
    let found = match elements {
        Elements::F32(v) => v.iter().position(|x| !x.is_finite()),
        // Finite, and beyond what training computes with.
        Elements::F64(v) => v.iter().position(|x| !(*x as f32).is_finite()),
        Elements::F16(v) => v.iter().position(|x| !x.is_finite()),
        Elements::BF16(v) => v.iter().position(|x| !x.is_finite()),
        _ => None,
    };
    let Some(at) = found else { return Ok(()) };
    let example = tensor.shape().get(1..).unwrap_or_default();
    let per = example.iter().product::<usize>().max(1);
    let column = match columns.get(at % per) {
        Some(name) => format!("column `{name}`"),
        None => format!("element {:?}", place(at % per, example)),
    };
    Err(DataError::NotFinite { path: path.into(), example: at / per, column, value: number(elements, at) })
}

/// The index along each axis of element `at` of a row-major `shape`.
fn place(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (index, &size) in place.iter_mut().zip(shape).rev() {
        *index = at % size;
        at /= size;
    }
    place
}

/// Numbers of any type as f32.
pub(super) fn to_f32(elements: Elements) -> Vec<f32> {
    match elements {
        Elements::F32(v) => v,
        other => (0..with_elements!(&other, v => v.len(), _s => 0)).map(|i| number(&other, i) as f32).collect(),
    }
}
