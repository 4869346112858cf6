//! Tensors laid behind each other along axis 0, taken apart again, and
//! compared.

use half::{bf16, f16};

use crate::tensor::{DataType, Elements, Tensor};

/// How far apart a value may be from another that is the same sum in another
/// order, as a part of itself: sums of a thousand 32-bit products, through some
/// dozen layers, stay well below it.
const RELATIVE: f64 = 1e-4;

/// The same as a part of the largest value beside it: where sums cancel, what
/// is left has the error of what was summed.
const OF_LARGEST: f64 = 1e-5;

/// Rows of a tensor: the length of its first axis; `None` for a scalar.
#[must_use]
pub fn count(tensor: &Tensor) -> Option<usize> {
    tensor.shape().first().copied()
}

/// `parts` behind each other along axis 0; `None` where their types or other
/// axes differ, or there are none.
#[must_use]
pub fn joined(parts: &[&Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let rest = first.shape().get(1..)?;
    let fits = |t: &&Tensor| t.dtype() == first.dtype() && t.shape().get(1..) == Some(rest);
    if !parts.iter().all(fits) {
        return None;
    }
    let rows = parts.iter().try_fold(0usize, |sum, t| sum.checked_add(count(t)?))?;
    macro_rules! join {
        ($($variant:ident),*) => {
            match first.elements() {
                $(Elements::$variant(_) => {
                    let mut all = Vec::with_capacity(parts.iter().map(|t| t.len()).sum());
                    for part in parts {
                        if let Elements::$variant(own) = part.elements() {
                            all.extend_from_slice(own);
                        }
                    }
                    Elements::$variant(all)
                })*
            }
        };
    }
    let elements = join!(F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16);
    let shape: Vec<usize> = std::iter::once(rows).chain(rest.iter().copied()).collect();
    Tensor::new(shape, elements).ok()
}

/// The first rows of a tensor, the next ones, and so on, as many as `rows` say
/// of each part; `None` where they aren't all of its rows.
#[must_use]
pub fn parted(tensor: &Tensor, rows: &[usize]) -> Option<Vec<Tensor>> {
    let all = count(tensor)?;
    if rows.iter().try_fold(0usize, |sum, n| sum.checked_add(*n))? != all {
        return None;
    }
    let rest = &tensor.shape()[1..];
    let wide: usize = rest.iter().product();
    let mut from = 0;
    let part = |n: &usize| {
        let range = from * wide..(from + n) * wide;
        from += n;
        macro_rules! part {
            ($($variant:ident),*) => {
                match tensor.elements() {
                    $(Elements::$variant(all) => Elements::$variant(all.get(range)?.to_vec()),)*
                }
            };
        }
        let elements = part!(F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16);
        let shape: Vec<usize> = std::iter::once(*n).chain(rest.iter().copied()).collect();
        Tensor::new(shape, elements).ok()
    };
    rows.iter().map(part).collect()
}

/// The same rows with the elements of each in another order, for each `n` in
/// another one: other rows, of the same kind. 0 leaves them as they are.
#[must_use]
pub fn varied(tensor: &Tensor, n: usize) -> Option<Tensor> {
    let wide = tensor.shape().get(1..)?.iter().product::<usize>().max(1);
    let rows = tensor.len() / wide;
    let order: Vec<usize> = (0..rows * wide)
        .map(|at| {
            let place = (at % wide + n / 2) % wide;
            at - at % wide + if n.is_multiple_of(2) { place } else { wide - 1 - place }
        })
        .collect();
    macro_rules! vary {
        ($($variant:ident),*) => {
            match tensor.elements() {
                $(Elements::$variant(all) => {
                    Elements::$variant(order.iter().map(|from| all[*from].clone()).collect())
                })*
            }
        };
    }
    let elements = vary!(F32, U8, I8, U16, I16, I32, I64, String, Bool, F16, F64, U32, U64, BF16);
    Tensor::new(tensor.shape(), elements).ok()
}

/// Whether two tensors are the same value: bit by bit, but that floating-point
/// sums may have been made in another order. An engine multiplies one row by
/// other code than many, so that even a model that treats every row by itself
/// seldom gives the same bits.
#[must_use]
pub fn alike(a: &Tensor, b: &Tensor) -> bool {
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return false;
    }
    let Some((x, y)) = numbers(a).zip(numbers(b)) else { return a.elements() == b.elements() };
    // What the type itself resolves.
    let (relative, of_largest) = match a.dtype() {
        DataType::F16 => (4. / 1024., 4. / 1024.),
        DataType::BF16 => (4. / 128., 4. / 128.),
        _ => (RELATIVE, OF_LARGEST),
    };
    let largest = y.iter().filter(|v| v.is_finite()).fold(0f64, |most, v| most.max(v.abs()));
    let near =
        |x: f64, y: f64| x.is_finite() && y.is_finite() && (x - y).abs() <= relative * y.abs() + of_largest * largest;
    x.iter().zip(&y).all(|(&x, &y)| x == y || (x.is_nan() && y.is_nan()) || near(x, y))
}

fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    match tensor.elements() {
        Elements::F32(v) => Some(v.iter().map(|&x| f64::from(x)).collect()),
        Elements::F64(v) => Some(v.clone()),
        Elements::F16(v) => Some(v.iter().map(|&x: &f16| x.to_f64()).collect()),
        Elements::BF16(v) => Some(v.iter().map(|&x: &bf16| x.to_f64()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::new(shape, Elements::F32(values.to_vec())).unwrap()
    }

    #[test]
    fn what_is_joined_comes_apart_again() {
        let (a, b) = (tensor(&[1, 2], &[1., 2.]), tensor(&[2, 2], &[3., 4., 5., 6.]));
        let all = joined(&[&a, &b]).unwrap();
        assert_eq!(all, tensor(&[3, 2], &[1., 2., 3., 4., 5., 6.]));
        assert_eq!(parted(&all, &[1, 2]), Some(vec![a.clone(), b.clone()]));
        assert_eq!(parted(&all, &[1, 1]), None, "a row would be lost");
        assert_eq!(parted(&all, &[2, 2]), None, "a row would be made");
        assert_eq!(joined(&[&a, &tensor(&[1, 3], &[0.; 3])]), None);
        let ints = Tensor::new([1, 2], Elements::I64(vec![1, 2])).unwrap();
        assert_eq!((joined(&[&a, &ints]), joined(&[])), (None, None));
        let words = |w: &[&str]| Tensor::new([w.len()], Elements::String(w.iter().map(|w| (*w).into()).collect()));
        let (x, y) = (words(&["a"]).unwrap(), words(&["b", "c"]).unwrap());
        let all = joined(&[&x, &y]).unwrap();
        assert_eq!(parted(&all, &[1, 2]), Some(vec![x, y]));
        assert_eq!(varied(&b, 0), Some(b.clone()));
        assert_eq!(varied(&b, 1), Some(tensor(&[2, 2], &[4., 3., 6., 5.])));
        assert_eq!(varied(&tensor(&[1, 3], &[1., 2., 3.]), 2), Some(tensor(&[1, 3], &[2., 3., 1.])));
    }

    #[test]
    fn sums_in_another_order_are_alike_and_other_values_are_not() {
        let a = tensor(&[3], &[1.0, 1e-7, f32::NAN]);
        assert!(alike(&a, &tensor(&[3], &[1.000_01, 9e-8, f32::NAN])));
        assert!(!alike(&a, &tensor(&[3], &[1.001, 1e-7, f32::NAN])));
        assert!(!alike(&a, &tensor(&[3], &[1.0, 1e-7, 0.0])));
        assert!(!alike(&a, &tensor(&[3], &[1.0, f32::INFINITY, f32::NAN])));
        let ints = |n: i64| Tensor::new([1], Elements::I64(vec![n])).unwrap();
        assert!(alike(&ints(7), &ints(7)) && !alike(&ints(7), &ints(8)));
    }
}
