//! Products of matrices and tensors.

use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{Shape, broadcast, broadcast_dim, meet};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("MatMul", matmul),
    ("MatMulInteger", matmul_integer),
    ("QLinearMatMul", qlinear_matmul),
    ("Gemm", gemm),
    ("Einsum", einsum),
    ("Det", det),
];

fn matmul(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    one(Value::new(dtype, multiplied(op, 0, 1)?))
}

fn matmul_integer(op: &Op) -> Outputs {
    one(Value::typed(DataType::I32, multiplied(op, 0, 1)?))
}

/// Inputs: a, its scale and zero point, b, its, then the output's.
fn qlinear_matmul(op: &Op) -> Outputs {
    one(Value::new(op.dtype(7).or(op.dtype(0)), multiplied(op, 0, 3)?))
}

pub(super) fn multiplied(op: &Op, a: usize, b: usize) -> Result<Option<Shape>, Fault> {
    let (Some(left), Some(right)) = (op.shape(a), op.shape(b)) else { return Ok(None) };
    product(a, left, b, right).map(Some)
}

/// NumPy's matrix product: leading axes broadcast, vectors lose their axis.
pub(super) fn product(a: usize, left: &[Dim], b: usize, right: &[Dim]) -> Result<Shape, Fault> {
    if let Some((input, _)) = [(a, left), (b, right)].iter().find(|(_, s)| s.is_empty()) {
        return Err(Fault::Rank { input: *input, expected: "at least 1", actual: 0 });
    }
    let inner_left = &left[left.len() - 1];
    let inner_right = &right[right.len().saturating_sub(2)];
    if meet(inner_left, inner_right).is_none() {
        return Err(Fault::shapes(b, right, left, "the inner sizes of the product differ"));
    }
    let lead = |s: &[Dim]| s[..s.len().saturating_sub(2)].to_vec();
    let mut shape = broadcast(&lead(left), &lead(right))
        .ok_or_else(|| Fault::shapes(b, right, left, "the leading axes do not broadcast"))?;
    if left.len() > 1 {
        shape.push(left[left.len() - 2].clone());
    }
    if right.len() > 1 {
        shape.push(right[right.len() - 1].clone());
    }
    Ok(shape)
}

pub(super) fn gemm(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    let a = op.shape_of_rank(0, 2, "2")?;
    let b = op.shape_of_rank(1, 2, "2")?;
    let side = |s: Option<&[Dim]>, flip: &str, i: usize| {
        s.map_or(Dim::Unknown, |s| s[if op.flag(flip) { 1 - i } else { i }].clone())
    };
    if meet(&side(a, "transA", 1), &side(b, "transB", 0)).is_none() {
        let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
        return Err(Fault::shapes(1, b, a, "the inner sizes of the product differ"));
    }
    let shape = vec![side(a, "transA", 0), side(b, "transB", 1)];
    if let Some(c) = op.shape(2)
        && broadcast(&shape, c).is_none_or(|s| s.len() != 2)
    {
        return Err(Fault::shapes(2, c, &shape, "the addend does not broadcast to the product"));
    }
    one(Value::new(dtype, Some(shape)))
}

fn det(op: &Op) -> Outputs {
    let from = op.shape_where(0, "at least 2", |n| n >= 2)?;
    one(Value::new(op.dtype(0), from.map(|s| s[..s.len() - 2].to_vec())))
}

fn einsum(op: &Op) -> Outputs {
    let equation: String = op.text("equation").unwrap_or_default().chars().filter(|c| !c.is_whitespace()).collect();
    let (terms, output) = match equation.split_once("->") {
        Some((terms, output)) => (terms, Some(output)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = terms.split(',').collect();
    let dtype = op.dtype(0);
    if terms.len() != op.inputs.len() {
        return Err(Fault::invalid(0, format!("the equation `{equation}` takes {} inputs", terms.len())));
    }
    let mut sizes: Vec<(char, Dim)> = Vec::new();
    let mut ellipsis: Shape = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let Some(shape) = op.shape(i) else { return one(Value::new(dtype, None)) };
        let wrong_rank =
            || Fault::Rank { input: i, expected: "as many as the equation's letters", actual: shape.len() };
        let (before, after) = term.split_once("...").unwrap_or((term, ""));
        let (head, tail) = (before.chars().count(), after.chars().count());
        let middle = shape.len().checked_sub(head + tail).ok_or_else(wrong_rank)?;
        if middle > 0 && !term.contains("...") {
            return Err(wrong_rank());
        }
        let contradiction = || Fault::invalid(i, format!("the sizes do not fit the equation `{equation}`"));
        ellipsis = broadcast(&ellipsis, &shape[head..head + middle]).ok_or_else(contradiction)?;
        let axes = shape[..head].iter().chain(&shape[head + middle..]);
        for (letter, dim) in before.chars().chain(after.chars()).zip(axes) {
            match sizes.iter_mut().find(|(l, _)| *l == letter) {
                // Engines let an axis of size 1 broadcast.
                Some((_, known)) => *known = broadcast_dim(known, dim).ok_or_else(contradiction)?,
                None => sizes.push((letter, dim.clone())),
            }
        }
    }
    let output = output.map_or_else(|| implicit_output(&terms), str::to_owned);
    let (before, after) = output.split_once("...").unwrap_or((&output, ""));
    let size = |letter: char| sizes.iter().find(|(l, _)| *l == letter).map_or(Dim::Unknown, |(_, d)| d.clone());
    let dots = if output.contains("...") { ellipsis } else { Vec::new() };
    one(Value::new(dtype, Some(before.chars().map(size).chain(dots).chain(after.chars().map(size)).collect())))
}

/// Without an arrow: the broadcast axes, then letters seen once, in order.
fn implicit_output(terms: &[&str]) -> String {
    let mut letters: Vec<char> = terms.iter().flat_map(|t| t.chars()).filter(|c| c.is_alphabetic()).collect();
    letters.sort_unstable();
    let once: String = letters.iter().filter(|c| letters.iter().filter(|d| d == c).count() == 1).collect();
    if terms.iter().any(|t| t.contains("...")) { format!("...{once}") } else { once }
}
