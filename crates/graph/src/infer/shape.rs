//! Operators that read or change shapes but no element.

use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{self, Shape, broadcast, known, product, quotient};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value, rearrange};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Shape", shape),
    ("Size", size),
    ("Reshape", reshape),
    ("Flatten", flatten),
    ("Squeeze", squeeze),
    ("Unsqueeze", unsqueeze),
    ("Transpose", transpose),
    ("Expand", expand),
    ("Tile", tile),
];

fn shape(op: &Op) -> Outputs {
    let Some(input) = op.shape(0) else { return one(Value::typed(DataType::I64, Some(dims::unknown(1)))) };
    let rank = input.len() as i64;
    let clamp = |axis: i64| (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank) as usize;
    let (start, end) = (clamp(op.int_or("start", 0)), clamp(op.int_or("end", rank)));
    let axes = input.get(start..end).unwrap_or_default();
    one(Value::sizes(axes.iter().map(Scalar::from_dim).collect()))
}

fn size(op: &Op) -> Outputs {
    let elements = op.shape(0).map(|s| vec![Scalar::from_dim(&product(s))]);
    one(Value::typed(DataType::I64, Some(Vec::new())).with(elements))
}

fn reshape(op: &Op) -> Outputs {
    let dtype = op.dtype(0);
    let from = op.shape(0);
    op.shape_of_rank(1, 1, "1: the shape is a list")?;
    let target = match op.ints("shape").filter(|_| op.opset < 5) {
        Some(sizes) => Some(sizes.iter().map(|n| Scalar::Int(*n)).collect()),
        None => op.input(1).and_then(Value::vector),
    };
    let Some(target) = target else { return one(Value::new(dtype, None)) };
    let shape = reshaped(op, from, &target)?;
    let elements = op.input(0).and_then(|v| v.elements.clone());
    one(Value::new(dtype, Some(shape)).with(elements))
}

fn reshaped(op: &Op, from: Option<&[Dim]>, target: &[Scalar]) -> Result<Shape, Fault> {
    let allow_zero = op.flag("allowzero");
    let mut shape = Vec::with_capacity(target.len());
    // Axes that the rest decides: -1, and values the graph computes out of sight.
    let mut holes = Vec::new();
    let mut inferred = false;
    for (i, size) in target.iter().enumerate() {
        shape.push(match size {
            Scalar::Int(0) if !allow_zero => match from {
                None => Dim::Unknown,
                Some(from) => from.get(i).cloned().ok_or(Fault::Axis { input: 0, axis: i as i64, rank: from.len() })?,
            },
            Scalar::Int(-1) => {
                if inferred {
                    return Err(Fault::invalid(1, "a shape may have one -1 only"));
                }
                inferred = true;
                holes.push(i);
                Dim::Unknown
            }
            Scalar::Unknown => {
                holes.push(i);
                Dim::Unknown
            }
            other => other.to_dim().ok_or_else(|| Fault::invalid(1, format!("{other:?} is no size of an axis")))?,
        });
    }
    let Some(from) = from else { return Ok(shape) };
    let contradiction = |shape: &[Dim]| Fault::shapes(0, from, shape, "the number of elements differs");
    match holes[..] {
        [hole] => {
            // An axis copied by 0 cancels against itself, even when unknown.
            let copied = |i: usize| target.get(i) == Some(&Scalar::Int(0)) && !allow_zero;
            let left: Shape = from.iter().enumerate().filter(|(i, _)| !copied(*i)).map(|(_, d)| d.clone()).collect();
            let rest: Shape =
                shape.iter().enumerate().filter(|(i, _)| *i != hole && !copied(*i)).map(|(_, d)| d.clone()).collect();
            shape[hole] = quotient(&left, &rest).ok_or_else(|| contradiction(&shape))?;
        }
        [] => {
            if let (Dim::Known(a), Dim::Known(b)) = (product(from), product(&shape))
                && a != b
            {
                return Err(contradiction(&shape));
            }
        }
        _ => {}
    }
    Ok(shape)
}

fn flatten(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), Some(dims::unknown(2)))) };
    let axis = op.int_or("axis", 1);
    let rank = from.len();
    let at = if axis == rank as i64 { rank } else { op.axis(0, axis, rank)? };
    let shape = vec![product(&from[..at]), product(&from[at..])];
    one(Value::new(op.dtype(0), Some(shape)).with(op.input(0).and_then(|v| v.elements.clone())))
}

fn squeeze(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let given = op.ints("axes").is_some() || op.input(1).is_some();
    let shape = match op.ints_or_input("axes", 1) {
        Some(axes) => {
            let mut gone = vec![false; from.len()];
            for axis in axes {
                let at = op.axis(0, axis, from.len())?;
                if from[at].known().is_some_and(|n| n != 1) {
                    return Err(Fault::shapes(0, from, &[dims::ONE], "only axes of size 1 can be squeezed"));
                }
                gone[at] = true;
            }
            Some(from.iter().zip(gone).filter(|(_, gone)| !gone).map(|(d, _)| d.clone()).collect())
        }
        // All axes of size 1, if every size is known.
        None if !given => dims::fixed(from).map(|s| s.into_iter().filter(|n| *n != 1).map(known).collect()),
        None => op.shape(1).and_then(|s| Some(dims::unknown(from.len().checked_sub(s.first()?.known()? as usize)?))),
    };
    one(Value::new(op.dtype(0), shape).with(op.input(0).and_then(|v| v.elements.clone())))
}

fn unsqueeze(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let shape = match op.ints_or_input("axes", 1) {
        Some(axes) => {
            let rank = from.len() + axes.len();
            let mut new = vec![false; rank];
            for axis in axes {
                let at = op.axis(0, axis, rank)?;
                if new[at] {
                    return Err(Fault::invalid(0, format!("axis {axis} is given twice")));
                }
                new[at] = true;
            }
            let mut old = from.iter().cloned();
            Some(new.iter().map(|new| if *new { dims::ONE } else { old.next().unwrap_or(Dim::Unknown) }).collect())
        }
        None => op
            .shape(1)
            .and_then(|s| match s {
                [] => Some(from.len() + 1),
                [n] => Some(from.len() + usize::try_from(n.known()?).ok().filter(|n| *n <= RANK_MAX)?),
                _ => None,
            })
            .map(dims::unknown),
    };
    one(Value::new(op.dtype(0), shape).with(op.input(0).and_then(|v| v.elements.clone())))
}

/// More axes than any operator takes: an absurd count isn't allocated.
pub(super) const RANK_MAX: usize = 64;

fn transpose(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else {
        return one(Value::new(op.dtype(0), op.ints("perm").map(|p| dims::unknown(p.len()))));
    };
    let order = op.attributes().permutation(from.len())?;
    let shape: Shape = order.iter().map(|p| from[*p].clone()).collect();
    let elements = rearrange(op.input(0).and_then(|v| v.elements.as_deref()), from, &shape, |position| {
        let mut source = vec![0; position.len()];
        order.iter().zip(position).for_each(|(from, p)| source[*from] = *p);
        Some(source)
    });
    one(Value::new(op.dtype(0), Some(shape)).with(elements))
}

fn expand(op: &Op) -> Outputs {
    let from = op.shape(0);
    op.shape_of_rank(1, 1, "1: the shape is a list")?;
    let (Some(from), Some(target)) = (from, op.input(1).and_then(Value::vector)) else {
        return one(Value::new(op.dtype(0), None));
    };
    let target: Option<Shape> = target.iter().map(Scalar::to_dim).collect();
    let target = target.ok_or_else(|| Fault::invalid(1, "a shape has no negative sizes"))?;
    let shape = broadcast(from, &target).ok_or_else(|| Fault::shapes(0, from, &target, "the axes do not broadcast"))?;
    let lead = shape.len() - from.len();
    let elements = rearrange(op.input(0).and_then(|v| v.elements.as_deref()), from, &shape, |position| {
        Some(position[lead..].iter().zip(from).map(|(p, d)| if *d == dims::ONE { 0 } else { *p }).collect())
    });
    one(Value::new(op.dtype(0), Some(shape)).with(elements))
}

fn tile(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let Some(repeats) = op.input(1).and_then(Value::vector) else {
        return one(Value::new(op.dtype(0), Some(dims::unknown(from.len()))));
    };
    if repeats.len() != from.len() {
        return Err(Fault::Rank { input: 0, expected: "as many as there are repeats", actual: from.len() });
    }
    let repeats: Option<Shape> = repeats.iter().map(Scalar::to_dim).collect();
    let repeats = repeats.ok_or_else(|| Fault::invalid(1, "repeats are not negative"))?;
    let shape: Shape = from.iter().zip(&repeats).map(|(d, r)| dims::mul(d, r)).collect();
    let elements = rearrange(op.input(0).and_then(|v| v.elements.as_deref()), from, &shape, |position| {
        position.iter().zip(from).map(|(p, d)| p.checked_rem(d.known()?)).collect()
    });
    one(Value::new(op.dtype(0), Some(shape)).with(elements))
}
