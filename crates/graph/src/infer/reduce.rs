//! Reductions over axes.

use crate::tensor::DataType;
use crate::types::Dim;

use super::arithmetic;
use super::dims::{self, Shape};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("ReduceL1", reduce),
    ("ReduceL2", reduce),
    ("ReduceLogSum", reduce),
    ("ReduceLogSumExp", reduce),
    ("ReduceMax", reduce),
    ("ReduceMean", reduce),
    ("ReduceMin", reduce),
    ("ReduceProd", reduce),
    ("ReduceSum", reduce),
    ("ReduceSumSquare", reduce),
    ("ArgMax", arg),
    ("ArgMin", arg),
];

fn reduce(op: &Op) -> Outputs {
    let keep = op.int_or("keepdims", 1) != 0;
    let given = op.ints("axes").is_some() || op.input(1).is_some();
    let axes = op.ints_or_input("axes", 1);
    // An empty list of axes means all of them, unless told otherwise.
    let none = if given { axes.as_ref().is_some_and(Vec::is_empty) } else { true };
    if none && op.flag("noop_with_empty_axes") {
        return one(op.input(0).cloned().unwrap_or_default());
    }
    let Some(from) = op.shape(0) else {
        let scalar = none && !keep;
        return one(Value::new(op.dtype(0), scalar.then(Vec::new)));
    };
    let shape = match axes {
        Some(axes) if !none => Some(reduced(op, from, &axes, keep)?),
        _ if none => Some(if keep { vec![dims::ONE; from.len()] } else { Vec::new() }),
        _ if keep => Some(dims::unknown(from.len())),
        _ => op.shape(1).and_then(|s| match s {
            [Dim::Known(n)] => Some(dims::unknown(from.len().checked_sub(usize::try_from(*n).ok()?)?)),
            _ => None,
        }),
    };
    let value = Value::new(op.dtype(0), shape);
    let whole = value.count() == Some(1) && from.len() <= 1;
    let elements = if whole { fold(op) } else { None };
    one(value.with(elements))
}

/// A vector reduced to its one result.
fn fold(op: &Op) -> Option<Vec<Scalar>> {
    let with = match op.kind() {
        "ReduceSum" => "Add",
        "ReduceProd" => "Mul",
        "ReduceMax" => "Max",
        "ReduceMin" => "Min",
        _ => return None,
    };
    let mut elements = op.input(0)?.elements.clone()?.into_iter();
    let first = elements.next()?;
    Some(vec![elements.fold(first, |a, b| arithmetic::binary(with, &a, &b, op.dtype(0), false))])
}

fn reduced(op: &Op, from: &[Dim], axes: &[i64], keep: bool) -> Result<Shape, Fault> {
    let mut gone = vec![false; from.len()];
    for axis in axes {
        gone[op.axis(0, *axis, from.len())?] = true;
    }
    let axes = from.iter().zip(gone);
    Ok(if keep {
        axes.map(|(d, gone)| if gone { dims::ONE } else { d.clone() }).collect()
    } else {
        axes.filter(|(_, gone)| !gone).map(|(d, _)| d.clone()).collect()
    })
}

fn arg(op: &Op) -> Outputs {
    let keep = op.int_or("keepdims", 1) != 0;
    let shape = match op.shape(0) {
        Some(from) => Some(reduced(op, from, &[op.int_or("axis", 0)], keep)?),
        None => None,
    };
    one(Value::typed(DataType::I64, shape))
}
