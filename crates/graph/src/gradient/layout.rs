//! Operators that move elements without changing them.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::Attribute;
use crate::tensor::Elements;
use crate::types::Dim;

pub(super) const RULES: Family = &[
    ("Reshape", reshaped),
    ("Flatten", reshaped),
    ("Squeeze", reshaped),
    ("Unsqueeze", reshaped),
    ("Transpose", transpose),
    ("Expand", expand),
    ("Concat", concat),
    ("Split", split),
    ("Slice", slice),
    ("Pad", pad),
    ("Tile", tile),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", space_to_depth),
    ("Trilu", trilu),
    ("Resize", super::resample::resize),
];

fn reshaped(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let dx = s.reshape_like(&dy, s.x(0));
    s.only(dx)
}

fn transpose(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let rank = s.rank(s.x(0))?;
    let mut back = vec![0; rank];
    s.attributes().permutation(rank)?.into_iter().enumerate().for_each(|(to, from)| back[from] = to);
    let dx = s.transpose(&dy, &back);
    s.only(dx)
}

fn expand(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let dx = s.reduced(0, dy, s.y(0))?;
    s.only(dx)
}

/// Sizes of values along an axis, as a vector.
fn sizes(s: &mut RuleContext, names: &[&str], axis: usize) -> String {
    let fixed: Option<Vec<i64>> = names.iter().map(|name| s.dim(name, axis)).collect();
    if let Some(fixed) = fixed {
        return s.out.ints(&fixed);
    }
    let from = axis as i64;
    let each: Vec<String> = names
        .iter()
        .map(|name| s.op("Shape", &[name], &[("start", Attribute::Int(from)), ("end", Attribute::Int(from + 1))]))
        .collect();
    let each: Vec<&str> = each.iter().map(String::as_str).collect();
    s.op("Concat", &each, &[("axis", Attribute::Int(0))])
}

fn concat(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let axis = s.axis(s.int_or("axis", 0), s.rank(s.y(0))?)?;
    let inputs: Vec<&str> = s.node.input.iter().map(String::as_str).collect();
    if inputs.len() == 1 {
        return s.only(dy);
    }
    let sizes = sizes(s, &inputs, axis);
    let parts = s.out.ops("Split", &[&dy, &sizes], inputs.len(), &[("axis", Attribute::Int(axis as i64))]);
    Ok(parts.into_iter().map(Some).collect())
}

fn split(s: &mut RuleContext) -> Gradients {
    let axis = s.axis(s.int_or("axis", 0), s.rank(s.x(0))?)?;
    let mut parts = Vec::new();
    for i in 0..s.node.output.len() {
        parts.push(match s.dys(i) {
            Some(dy) => dy,
            None => s.zeros_like(s.y(i)),
        });
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let dx = s.op("Concat", &parts, &[("axis", Attribute::Int(axis as i64))]);
    s.only(dx)
}

/// Zeros come back where the slice left something out.
fn slice(s: &mut RuleContext) -> Gradients {
    let mut dx = s.dy()?;
    let x = s.x(0);
    let rank = s.rank(x)?;
    let Some((starts, axes, steps)) = constants(s) else {
        let dx = by_place(s, &dx);
        return s.only(dx);
    };
    if starts.len() != axes.len() || starts.len() != steps.len() {
        return Err(Fault::new("its starts, axes and steps have different lengths"));
    }
    let mut before = vec![0i64; rank];
    let mut from_end = vec![false; rank];
    let mut done = vec![false; rank];
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = s.axis(axis, rank)?;
        if step == 1 {
            before[axis] = start;
            from_end[axis] = start < 0;
            continue;
        }
        let (Some(size), Some(kept)) = (s.dim(x, axis), s.dim(s.y(0), axis)) else {
            let dx = s.dy()?;
            let dx = by_place(s, &dx);
            return s.only(dx);
        };
        if kept < 1 {
            let dx = s.zeros_like(x);
            return s.only(dx);
        }
        done[axis] = true;
        let last = if step < 0 { size - 1 } else { size };
        let start = if start < 0 { start + size } else { start }.clamp(0, last);
        // How far apart elements are is the same for a single one.
        let stride = if kept == 1 { 1 } else { step.checked_abs().unwrap_or(i64::MAX) };
        let mut first = start;
        if stride.checked_mul(kept - 1).is_none_or(|span| span >= size) {
            return Err(Fault::new(format!("steps of {step} don't fit an axis of {size}")));
        }
        if step < 0 {
            // Backwards: turn round, then it runs forwards from its other end.
            let (minus, lowest, which) = (s.out.ints(&[-1]), s.out.ints(&[i64::MIN]), s.out.ints(&[axis as i64]));
            dx = s.op("Slice", &[&dx, &minus, &lowest, &which, &minus], &[]);
            first = start - (kept - 1) * stride;
        }
        if stride > 1 {
            dx = spaced(s, &dx, axis, rank, kept, stride)?;
            // `spaced` ends with the zeros behind its last element.
            let behind = size - first - kept * stride;
            dx = pad_axis(s, &dx, axis, rank, first, behind);
        } else {
            dx = pad_axis(s, &dx, axis, rank, first, size - first - kept);
        }
    }
    if steps.contains(&1) {
        dx = pad_to(s, &dx, x, &before, &from_end, &done);
    }
    s.only(dx)
}

/// Starts, axes and steps, where all of them are constants.
fn constants(s: &RuleContext) -> Option<(Vec<i64>, Vec<i64>, Vec<i64>)> {
    let starts = s.const_ints(1)?;
    let axes = if s.given(3) { s.const_ints(3)? } else { (0..starts.len() as i64).collect() };
    let steps = if s.given(4) { s.const_ints(4)? } else { vec![1; starts.len()] };
    Some((starts, axes, steps))
}

/// Slices the numbers of all places the same way, and puts the gradient back
/// there: for slices that are known at run time only.
fn by_place(s: &mut RuleContext, dy: &str) -> String {
    let x = s.x(0);
    let shape = s.shape_of(x);
    let (size, zero, one) = (s.op("Size", &[x], &[]), s.out.int(0), s.out.int(1));
    let places = s.op("Range", &[&zero, &size, &one], &[]);
    let places = s.op("Reshape", &[&places, &shape], &[]);
    let inputs: Vec<&str> = [places.as_str()].into_iter().chain(s.node.input[1..].iter().map(String::as_str)).collect();
    let seen = s.op("Slice", &inputs, &[]);
    let zeros = s.zeros_like(x);
    let (zeros, seen, dy) = (s.reshape(&zeros, &[-1]), s.reshape(&seen, &[-1]), s.reshape(dy, &[-1]));
    let dx = s.op("ScatterElements", &[&zeros, &seen, &dy], &[]);
    s.op("Reshape", &[&dx, &shape], &[])
}

/// `stride - 1` zeros behind every element of an axis.
fn spaced(s: &mut RuleContext, dx: &str, axis: usize, rank: usize, kept: i64, stride: i64) -> Result<String, Fault> {
    let which = s.out.ints(&[axis as i64 + 1]);
    let wide = s.op("Unsqueeze", &[dx, &which], &[]);
    let wide = pad_axis(s, &wide, axis + 1, rank + 1, 0, stride - 1);
    let y = s.y(0);
    let mut shape: Vec<i64> = vec![0; rank];
    // Axes in front keep their place; those behind have moved by one.
    for (later, size) in shape.iter_mut().enumerate().skip(axis + 1) {
        *size = s.dim(y, later).ok_or_else(|| Fault::new("a step other than 1 needs axes of fixed sizes"))?;
    }
    shape[axis] = kept * stride;
    Ok(s.reshape(&wide, &shape))
}

fn pad_axis(s: &mut RuleContext, x: &str, axis: usize, rank: usize, before: i64, behind: i64) -> String {
    if before == 0 && behind == 0 {
        return x.to_owned();
    }
    let mut pads = vec![0; 2 * rank];
    pads[axis] = before;
    pads[rank + axis] = behind;
    let pads = s.out.ints(&pads);
    s.op("Pad", &[x, &pads], &[])
}

/// Pads `dx` to the shape of `x` on the axes that aren't done; `before` counts
/// from the end where stated.
fn pad_to(s: &mut RuleContext, dx: &str, x: &str, before: &[i64], from_end: &[bool], done: &[bool]) -> String {
    let rank = before.len();
    let y = s.y(0);
    let shapes: Option<Vec<(i64, i64)>> = (0..rank)
        .map(|axis| match (s.shape(x)?.get(axis)?, s.shape(y)?.get(axis)?) {
            _ if done[axis] => Some((0, 0)),
            (Dim::Known(a), Dim::Known(b)) => Some((*a as i64, *b as i64)),
            (a, b) if a == b && *a != Dim::Unknown && before[axis] == 0 => Some((0, 0)),
            _ => None,
        })
        .collect();
    if let Some(shapes) = shapes {
        let mut pads = vec![0; 2 * rank];
        for (axis, (size, kept)) in shapes.into_iter().enumerate() {
            let start = if from_end[axis] { (before[axis] + size).max(0) } else { before[axis].min(size) };
            pads[axis] = start;
            pads[rank + axis] = (size - start - kept).max(0);
        }
        if pads.iter().all(|&p| p == 0) {
            return dx.to_owned();
        }
        let pads = s.out.ints(&pads);
        return s.op("Pad", &[dx, &pads], &[]);
    }
    let (size, kept) = (s.shape_of(x), s.shape_of(dx));
    let missing = s.sub(&size, &kept);
    let start = s.out.ints(before);
    let ends: Vec<i64> = from_end.iter().map(|&e| i64::from(e)).collect();
    let ends = s.out.ints(&ends);
    let from_end = s.mul(&ends, &size);
    let start = s.add(&start, &from_end);
    // Where the axis is shorter than what is counted back.
    let zero = s.out.ints(&[0]);
    let start = s.op("Max", &[&start, &zero], &[]);
    let behind = s.sub(&missing, &start);
    let pads = s.op("Concat", &[&start, &behind], &[("axis", Attribute::Int(0))]);
    s.op("Pad", &[dx, &pads], &[])
}

fn pad(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let mode = s.choice("mode", &["constant", "edge", "reflect", "wrap"])?;
    if mode == "constant" {
        let dx = match s.const_ints(1).filter(|pads| pads.iter().all(|&p| p >= 0)) {
            Some(pads) => {
                let (before, behind) = pads.split_at(pads.len() / 2);
                let ends: Vec<i64> = behind.iter().map(|&p| if p == 0 { i64::MAX } else { -p }).collect();
                let axes = if s.given(3) {
                    s.x(3).to_owned()
                } else {
                    s.out.ints(&(0..before.len() as i64).collect::<Vec<_>>())
                };
                let (starts, ends) = (s.out.ints(before), s.out.ints(&ends));
                s.op("Slice", &[&dy, &starts, &ends, &axes], &[])
            }
            None => {
                let pads = s.neg(s.x(1));
                let inputs = if s.given(3) { vec![dy.as_str(), &pads, "", s.x(3)] } else { vec![dy.as_str(), &pads] };
                s.op("Pad", &inputs, &[])
            }
        };
        // All that came from around the picture is the value's.
        let value = s.wants(2).then(|| {
            let [all, inner] = [&dy, &dx].map(|x| s.op("ReduceSum", &[x], &[("keepdims", Attribute::Int(0))]));
            let around = s.sub(&all, &inner);
            s.reshape_like(&around, s.x(2))
        });
        return Ok(vec![Some(dx), None, value]);
    }
    let constant = || Fault::new(format!("mode {mode} needs constant pads and axes; fold the model's constants first"));
    let rank = s.rank(s.x(0))?;
    let pads = s.const_ints(1).ok_or_else(constant)?;
    let axes = if s.given(3) { s.const_ints(3).ok_or_else(constant)? } else { (0..rank as i64).collect() };
    if pads.len() != 2 * axes.len() {
        return Err(Fault::new(format!("{} pads for {} axes; there are two for each", pads.len(), axes.len())));
    }
    let mut dx = dy;
    for (i, &axis) in axes.iter().enumerate() {
        let (before, behind) = (pads[i], pads[axes.len() + i]);
        if before == 0 && behind == 0 {
            continue;
        }
        let axis = s.axis(axis, rank)?;
        let size = s.dim(s.x(0), axis).ok_or_else(|| Fault::new(format!("mode {mode} needs axes of fixed sizes")))?;
        let to = size.checked_add(before).and_then(|n| n.checked_add(behind));
        let to = to.ok_or_else(|| Fault::new(format!("pads of {before} and {behind} are out of range")))?;
        let from = |place: i64| match mode {
            "edge" => place.clamp(0, size - 1),
            "wrap" => place.rem_euclid(size),
            // There and back, however often.
            _ => {
                let turn = 2 * (size - 1);
                let at = if turn == 0 { 0 } else { place.rem_euclid(turn) };
                at.min(turn - at)
            }
        };
        let along = super::resample::Along { axis, rank, from: size, to };
        dx = along.back(s, &dx, |place| vec![(from(place - before), 1.0)])?;
    }
    s.only(dx)
}

fn tile(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let repeats = s.const_ints(1).ok_or_else(|| Fault::new("its repeats must be constant; fold the model first"))?;
    if repeats.len() != s.rank(x)? || repeats.iter().any(|r| *r < 1) {
        return Err(Fault::new(format!("repeats {repeats:?} don't fit its input")));
    }
    let mut apart = Vec::new();
    let mut free = 0;
    for (axis, &repeat) in repeats.iter().enumerate() {
        let size = s.dim(x, axis).unwrap_or_else(|| {
            free += 1;
            -1
        });
        apart.extend([repeat, size]);
    }
    if free > 1 {
        return Err(Fault::new("more than one of its sizes is unknown; export the model with shapes"));
    }
    let apart = s.reshape(&dy, &apart);
    let axes: Vec<i64> = (0..repeats.len() as i64).map(|axis| 2 * axis).collect();
    let dx = s.sum(&apart, &axes, false);
    s.only(dx)
}

fn depth_to_space(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let block = s.positive_or("blocksize", 1)?;
    if s.choice("mode", &["DCR", "CRD"])? == "DCR" {
        let dx = s.op("SpaceToDepth", &[&dy], &[("blocksize", Attribute::Int(block))]);
        return s.only(dx);
    }
    let x = s.x(0);
    let (Some(channels), Some(height), Some(width)) = (s.dim(x, 1), s.dim(x, 2), s.dim(x, 3)) else {
        return Err(Fault::new("mode CRD needs fixed channels, height and width"));
    };
    let each = block.checked_mul(block).map_or(0, |square| channels / square);
    if each == 0 {
        return Err(Fault::new(format!("{channels} channels are no blocks of {block} by {block}")));
    }
    let apart = s.reshape(&dy, &[0, each, height, block, width, block]);
    let turned = s.transpose(&apart, &[0, 1, 3, 5, 2, 4]);
    let dx = s.reshape(&turned, &[0, channels, height, width]);
    s.only(dx)
}

fn space_to_depth(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let block = s.positive_or("blocksize", 1)?;
    let mode = s.choice("mode", &["DCR", "CRD"])?;
    let attributes = [("blocksize", Attribute::Int(block)), ("mode", Attribute::Text(mode.into()))];
    let dx = s.op("DepthToSpace", &[&dy], &attributes);
    s.only(dx)
}

fn trilu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let upper = [("upper", Attribute::Int(s.int_or("upper", 1)))];
    let dx = if s.given(1) { s.op("Trilu", &[&dy, s.x(1)], &upper) } else { s.op("Trilu", &[&dy], &upper) };
    s.only(dx)
}

/// The one number an integer constant holds.
pub(super) fn index(s: &RuleContext, i: usize) -> Option<i64> {
    match s.constant(i)?.elements() {
        Elements::I64(v) if v.len() == 1 => Some(v[0]),
        Elements::I32(v) if v.len() == 1 => Some(v[0].into()),
        _ => None,
    }
}
