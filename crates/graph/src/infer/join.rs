//! Operators that cut tensors up or put them together along axes.

use crate::types::Dim;

use super::dims::{self, Shape, known, meet};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{ELEMENTS_MAX, Scalar, Value, rearrange};

pub(super) const RULES: &[(&str, Rule)] =
    &[("Concat", concat), ("Split", split), ("Slice", slice), ("Pad", pad), ("CenterCropPad", center_crop_pad)];

fn concat(op: &Op) -> Outputs {
    let mut dtype = op.dtype(0);
    for i in 1..op.inputs.len() {
        dtype = op.same_dtype(0, i)?.or(dtype);
    }
    let Some(rank) = op.inputs.iter().find_map(|v| v.and_then(Value::rank)) else {
        return one(Value::new(dtype, None));
    };
    // Before version 4 the axis had a default.
    let axis = op.axis(0, op.int_or("axis", 1), rank)?;
    let mut shape: Option<Shape> = None;
    let mut length = known(0);
    for i in 0..op.inputs.len() {
        let Some(next) = op.shape(i) else {
            length = Dim::Unknown;
            continue;
        };
        if next.len() != rank {
            return Err(Fault::Rank { input: i, expected: "as many as the other inputs", actual: next.len() });
        }
        length = dims::add(&length, &next[axis]);
        shape = Some(match shape {
            None => next.to_vec(),
            Some(so_far) => {
                let join =
                    |(at, (a, b)): (usize, (&Dim, &Dim))| if at == axis { Some(Dim::Unknown) } else { meet(a, b) };
                let joined: Option<Shape> = so_far.iter().zip(next).enumerate().map(join).collect();
                joined.ok_or_else(|| Fault::shapes(i, next, &so_far, "only the axis joined may differ"))?
            }
        });
    }
    if let Some(shape) = &mut shape {
        shape[axis] = length;
    }
    let elements = (rank == 1)
        .then(|| op.inputs.iter().map(|v| v.and_then(|v| v.vector())).collect::<Option<Vec<_>>>())
        .flatten()
        .map(|parts| parts.concat());
    one(Value::new(dtype, shape).with(elements))
}

fn split(op: &Op) -> Outputs {
    let count = op.node.output.len();
    let Some(from) = op.shape(0) else { return Ok(vec![op.like(0); count]) };
    let axis = op.axis(0, op.int_or("axis", 0), from.len())?;
    let given = op.ints("split").is_some() || op.input(1).is_some();
    let sizes: Vec<Dim> = match op.ints_or_input("split", 1) {
        Some(sizes) => {
            let sizes: Option<Vec<u64>> = sizes.iter().map(|n| u64::try_from(*n).ok()).collect();
            let sizes = sizes.ok_or_else(|| Fault::invalid(0, "a part cannot have a negative size"))?;
            let total = sizes.iter().try_fold(0u64, |n, s| n.checked_add(*s));
            if from[axis].known().is_some_and(|n| Some(n) != total) {
                let sizes: Shape = sizes.into_iter().map(known).collect();
                return Err(Fault::shapes(0, from, &sizes, "the parts do not add up to the axis"));
            }
            sizes.into_iter().map(known).collect()
        }
        None if given => dims::unknown(count),
        None => equal_parts(op, &from[axis], count)?,
    };
    let mut start = Some(0u64);
    let mut outputs = Vec::with_capacity(count);
    for i in 0..count {
        let size = sizes.get(i).cloned().unwrap_or(Dim::Unknown);
        let mut shape = from.to_vec();
        shape[axis] = size.clone();
        let elements = start.and_then(|start| {
            rearrange(op.input(0)?.elements.as_deref(), from, &shape, |position| {
                let mut source = position.to_vec();
                source[axis] = source[axis].checked_add(start)?;
                Some(source)
            })
        });
        start = start.zip(size.known()).and_then(|(a, b)| a.checked_add(b));
        outputs.push(Value::new(op.dtype(0), Some(shape)).with(elements));
    }
    Ok(outputs)
}

fn equal_parts(op: &Op, axis: &Dim, count: usize) -> Result<Vec<Dim>, Fault> {
    let Some(size) = axis.known() else { return Ok(vec![if count == 1 { axis.clone() } else { Dim::Unknown }; count]) };
    let parts = op.int("num_outputs").and_then(|n| u64::try_from(n).ok()).unwrap_or(count as u64).max(1);
    if op.opset < 18 && !size.is_multiple_of(parts) {
        return Err(Fault::invalid(0, format!("an axis of {size} does not split into {parts} equal parts")));
    }
    // From version 18 on, the last part may be smaller.
    let chunk = size.div_ceil(parts);
    Ok((0..count as u64).map(|i| known(size.saturating_sub(chunk.saturating_mul(i)).min(chunk))).collect())
}

fn slice(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let unknown = || one(Value::new(op.dtype(0), Some(dims::unknown(from.len()))));
    let list = |name: &str, i: usize| match op.ints(name) {
        Some(v) => Some(v.iter().map(|n| Scalar::Int(*n)).collect()),
        None => op.input(i).and_then(Value::vector),
    };
    let (Some(starts), Some(ends)) = (list("starts", 1), list("ends", 2)) else { return unknown() };
    let axes: Vec<i64> = if op.ints("axes").is_some() || op.input(3).is_some() {
        match op.ints_or_input("axes", 3) {
            Some(axes) => axes,
            None => return unknown(),
        }
    } else {
        (0..starts.len() as i64).collect()
    };
    let steps = match op.input(4) {
        Some(steps) => match steps.vector() {
            Some(steps) => steps,
            None => return unknown(),
        },
        None => vec![Scalar::Int(1); starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()].iter().any(|n| *n != starts.len()) {
        return Err(Fault::invalid(1, "starts, ends, axes and steps have different lengths"));
    }
    let mut shape = from.to_vec();
    let mut windows: Vec<Option<(i64, i64)>> = vec![Some((0, 1)); from.len()];
    for i in 0..starts.len() {
        let at = op.axis(0, axes[i], from.len())?;
        if steps[i] == Scalar::Int(0) {
            return Err(Fault::invalid(4, "a step of 0 never ends"));
        }
        (shape[at], windows[at]) = window(&from[at], &starts[i], &ends[i], &steps[i]);
    }
    let elements = rearrange(op.input(0).and_then(|v| v.elements.as_deref()), from, &shape, |position| {
        let source = |(p, w): (&u64, &Option<(i64, i64)>)| {
            let (start, step) = (*w)?;
            u64::try_from(i64::try_from(*p).ok()?.checked_mul(step)?.checked_add(start)?).ok()
        };
        position.iter().zip(&windows).map(source).collect()
    });
    one(Value::new(op.dtype(0), Some(shape)).with(elements))
}

/// Length of a sliced axis, with start and step where they are fixed.
fn window(axis: &Dim, start: &Scalar, end: &Scalar, step: &Scalar) -> (Dim, Option<(i64, i64)>) {
    let to_the_end = end.int().is_some_and(|e| e >= i64::from(i32::MAX)) || end.to_dim().as_ref() == Some(axis);
    let (Some(size), Some(step)) = (axis.known().and_then(|n| i64::try_from(n).ok()), step.int()) else {
        let whole = *step == Scalar::Int(1) && *start == Scalar::Int(0) && to_the_end && *axis != Dim::Unknown;
        return (if whole { axis.clone() } else { Dim::Unknown }, None);
    };
    let (Some(start), Some(end)) = (start.int(), end.int()) else { return (Dim::Unknown, None) };
    let wrap = |n: i64| if n < 0 { n.saturating_add(size) } else { n };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    // The start of a backward slice can't lie before the first element.
    let start = wrap(start).clamp(0, high.max(0));
    let end = wrap(end).clamp(low, high.max(low));
    let distance = if step > 0 { end - start } else { start - end };
    let length = if distance <= 0 || size == 0 { 0 } else { (distance as u64).div_ceil(step.unsigned_abs()) };
    (known(length), Some((start, step)))
}

pub(super) fn pad(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let unknown = || one(Value::new(op.dtype(0), Some(dims::unknown(from.len()))));
    let pads: Option<Vec<Scalar>> = match op.ints("pads").or(op.ints("paddings")) {
        Some(pads) => Some(pads.iter().map(|n| Scalar::Int(*n)).collect()),
        None => op.input(1).and_then(Value::vector),
    };
    let Some(pads) = pads else { return unknown() };
    let axes: Vec<usize> = match op.input(3) {
        None => (0..from.len()).collect(),
        Some(axes) => match axes.ints() {
            Some(axes) => axes.iter().map(|a| op.axis(0, *a, from.len())).collect::<Result<_, _>>()?,
            None => return unknown(),
        },
    };
    if pads.len() != 2 * axes.len() {
        return Err(Fault::invalid(
            0,
            format!("{} paddings for {} axes; there are two per axis", pads.len(), axes.len()),
        ));
    }
    let mut shape = from.to_vec();
    for (i, at) in axes.iter().enumerate() {
        shape[*at] = match (pads[i].int(), pads[i + axes.len()].int()) {
            (Some(before), Some(after)) => dims::offset(&from[*at], before.saturating_add(after))
                .ok_or_else(|| Fault::invalid(0, "the padding removes more than there is"))?,
            _ => Dim::Unknown,
        };
    }
    let whole = axes.len() == from.len();
    let elements =
        if whole && op.text("mode").is_none_or(|m| m == "constant") { padded(op, from, &shape, &pads) } else { None };
    one(Value::new(op.dtype(0), Some(shape)).with(elements))
}

/// Elements of a vector with a constant put before and after.
fn padded(op: &Op, from: &[Dim], shape: &[Dim], pads: &[Scalar]) -> Option<Vec<Scalar>> {
    let ([Dim::Known(size)], [Dim::Known(length)]) = (from, shape) else { return None };
    let (elements, before) = (op.input(0)?.elements.as_ref()?, pads.first()?.int()?);
    let fill = match op.input(2) {
        Some(value) => value.scalar()?.clone(),
        None if op.attribute("value").is_some() => return None,
        None if op.dtype(0)?.is_float() => Scalar::Real(0.0),
        None => Scalar::Int(0),
    };
    if *length > ELEMENTS_MAX {
        return None;
    }
    let at = |i: i64| {
        let i = i.checked_sub(before).filter(|i| *i >= 0 && (*i as u64) < *size);
        i.map_or_else(|| fill.clone(), |i| elements[i as usize].clone())
    };
    Some((0..*length as i64).map(at).collect())
}

fn center_crop_pad(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let axes: Vec<usize> = match op.ints("axes") {
        Some(axes) => axes.iter().map(|a| op.axis(0, *a, from.len())).collect::<Result<_, _>>()?,
        None => (0..from.len()).collect(),
    };
    let sizes = op.input(1).and_then(Value::vector).unwrap_or_else(|| vec![Scalar::Unknown; axes.len()]);
    if sizes.len() != axes.len() {
        return Err(Fault::invalid(1, "there is one size per axis"));
    }
    let mut shape = from.to_vec();
    for (at, size) in axes.into_iter().zip(sizes) {
        shape[at] = size.to_dim().ok_or_else(|| Fault::invalid(1, "a size is not negative"))?;
    }
    one(Value::new(op.dtype(0), Some(shape)))
}
