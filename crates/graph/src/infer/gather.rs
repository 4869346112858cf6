//! Operators that pick or place elements by index.

use crate::tensor::DataType::I64;
use crate::types::Dim;

use super::dims::{self, Shape, known, product};
use super::elementwise::same;
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value, rearrange};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("Scatter", same),
    ("ScatterElements", same),
    ("ScatterND", scatter_nd),
    ("TensorScatter", same),
    ("OneHot", one_hot),
    ("NonZero", non_zero),
    ("Compress", compress),
    ("TopK", top_k),
    ("Unique", unique),
    ("ReverseSequence", same),
    ("Trilu", same),
    ("NonMaxSuppression", non_max_suppression),
];

fn gather(op: &Op) -> Outputs {
    let (Some(from), Some(indices)) = (op.shape(0), op.shape(1)) else { return one(Value::new(op.dtype(0), None)) };
    if from.is_empty() {
        return Err(Fault::Rank { input: 0, expected: "at least 1", actual: 0 });
    }
    let axis = op.axis(0, op.int_or("axis", 0), from.len())?;
    let shape = [&from[..axis], indices, &from[axis + 1..]].concat();
    let picked = op.ints_at(1);
    let size = from[axis].known();
    let wrap = |i: i64| if i < 0 { i.checked_add_unsigned(size?)?.try_into().ok() } else { u64::try_from(i).ok() };
    let elements = picked.and_then(|picked| {
        rearrange(op.input(0)?.elements.as_deref(), from, &shape, |position| {
            let (lead, rest) = position.split_at(axis);
            let (index, tail) = rest.split_at(indices.len());
            let at = index.iter().zip(dims::fixed(indices)?).fold(0, |n, (i, d)| n * d + i);
            Some([lead, &[wrap(*picked.get(at as usize)?)?], tail].concat())
        })
    });
    one(Value::new(op.dtype(0), Some(shape)).with(elements))
}

fn gather_elements(op: &Op) -> Outputs {
    if let (Some(from), Some(indices)) = (op.shape(0), op.shape(1))
        && from.len() != indices.len()
    {
        return Err(Fault::Rank { input: 1, expected: "as many as the data", actual: indices.len() });
    }
    one(Value::new(op.dtype(0), op.like(1).shape))
}

fn gather_nd(op: &Op) -> Outputs {
    let (Some(from), Some(indices)) = (op.shape(0), op.shape(1)) else { return one(Value::new(op.dtype(0), None)) };
    let batch = usize::try_from(op.int_or("batch_dims", 0)).unwrap_or(usize::MAX);
    let Some((last, outer)) = indices.split_last() else {
        return Err(Fault::Rank { input: 1, expected: "at least 1", actual: 0 });
    };
    let Some(depth) = last.known() else { return one(Value::new(op.dtype(0), None)) };
    let taken = usize::try_from(depth).ok().and_then(|d| d.checked_add(batch)).filter(|n| *n <= from.len());
    let Some(taken) = taken else {
        return Err(Fault::shapes(1, indices, from, "an index has more parts than the data has axes"));
    };
    one(Value::new(op.dtype(0), Some([outer, &from[taken..]].concat())))
}

fn scatter_nd(op: &Op) -> Outputs {
    let output = op.like(0);
    // Enough for what exporters build shapes with: a vector, written by position.
    let elements = (op.text("reduction").is_none_or(|r| r == "none") && output.rank() == Some(1))
        .then(|| {
            let mut elements = op.input(0)?.elements.clone()?;
            let (indices, updates) = (op.ints_at(1)?, op.input(2)?.elements.as_ref()?);
            if indices.len() != updates.len() {
                return None;
            }
            for (i, update) in indices.into_iter().zip(updates) {
                let at = dims::axis_index(i, elements.len())?;
                elements[at] = update.clone();
            }
            Some(elements)
        })
        .flatten();
    one(output.with(elements))
}

fn one_hot(op: &Op) -> Outputs {
    let dtype = op.dtype(2);
    let Some(indices) = op.shape(0) else { return one(Value::new(dtype, None)) };
    let axis = op.axis(0, op.int_or("axis", -1), indices.len() + 1)?;
    let depth = match op.input(1).and_then(Value::scalar) {
        Some(Scalar::Real(x)) if *x >= 0.0 => known(*x as u64),
        Some(size) => size.to_dim().ok_or_else(|| Fault::invalid(1, "the depth is negative"))?,
        None => Dim::Unknown,
    };
    let mut shape = indices.to_vec();
    shape.insert(axis, depth);
    one(Value::new(dtype, Some(shape)))
}

fn non_zero(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::typed(I64, Some(dims::unknown(2)))) };
    let fixed = dims::fixed(from);
    let found: Option<Vec<u64>> = op
        .input(0)
        .and_then(|v| v.reals())
        .map(|elements| elements.iter().enumerate().filter(|(_, x)| **x != 0.0).map(|(i, _)| i as u64).collect());
    // A scalar counts as a vector of one.
    let rank = from.len().max(usize::from(op.opset < 13 || !from.is_empty()));
    let count = found.as_ref().map_or(Dim::Unknown, |f| known(f.len() as u64));
    let elements = found.zip(fixed).filter(|_| rank == from.len()).map(|(found, sizes)| {
        let stride = |axis: usize| sizes[axis + 1..].iter().product::<u64>();
        let axes = (0..rank).flat_map(|axis| found.iter().map(move |flat| (axis, *flat)));
        axes.map(|(axis, flat)| Scalar::Int(((flat / stride(axis)) % sizes[axis]) as i64)).collect::<Vec<_>>()
    });
    one(Value::typed(I64, Some(vec![known(rank as u64), count])).with(elements))
}

fn compress(op: &Op) -> Outputs {
    let chosen = op.input(1).and_then(Value::ints).map(|c| c.iter().filter(|x| **x != 0).count() as u64);
    let count = chosen.map_or(Dim::Unknown, known);
    let shape = match (op.int("axis"), op.shape(0)) {
        (None, _) => Some(vec![count]),
        (Some(_), None) => None,
        (Some(axis), Some(from)) => {
            let at = op.axis(0, axis, from.len())?;
            let mut shape = from.to_vec();
            shape[at] = count;
            Some(shape)
        }
    };
    one(Value::new(op.dtype(0), shape))
}

fn top_k(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return Ok(vec![Value::new(op.dtype(0), None), Value::typed(I64, None)]) };
    let axis = op.axis(0, op.int_or("axis", -1), from.len())?;
    let k = match op.int("k").map(Scalar::Int).as_ref().or(op.input(1).and_then(Value::scalar)) {
        Some(k) => k.to_dim().ok_or_else(|| Fault::invalid(1, "k is negative"))?,
        None => Dim::Unknown,
    };
    if let (Some(k), Some(size)) = (k.known(), from[axis].known())
        && k > size
    {
        return Err(Fault::invalid(0, format!("the top {k} of an axis of {size}")));
    }
    let mut shape = from.to_vec();
    shape[axis] = k;
    Ok(vec![Value::new(op.dtype(0), Some(shape.clone())), Value::typed(I64, Some(shape))])
}

fn unique(op: &Op) -> Outputs {
    let indices = Value::typed(I64, Some(dims::unknown(1)));
    let (values, inverse) = match (op.int("axis"), op.shape(0)) {
        (None, from) => (Some(dims::unknown(1)), from.map_or(Dim::Unknown, product)),
        (Some(_), None) => (None, Dim::Unknown),
        (Some(axis), Some(from)) => {
            let at = op.axis(0, axis, from.len())?;
            let mut shape: Shape = from.to_vec();
            let size = std::mem::replace(&mut shape[at], Dim::Unknown);
            (Some(shape), size)
        }
    };
    let inverse = Value::typed(I64, Some(vec![inverse]));
    Ok(vec![Value::new(op.dtype(0), values), indices.clone(), inverse, indices])
}

fn non_max_suppression(op: &Op) -> Outputs {
    op.shape_of_rank(0, 3, "3: [batch, boxes, 4]")?;
    op.shape_of_rank(1, 3, "3: [batch, classes, boxes]")?;
    one(Value::typed(I64, Some(vec![Dim::Unknown, known(3)])))
}
