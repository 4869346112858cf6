//! Poolings over `[batch, channels, spatial...]`.

use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{self, Shape, known};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value};
use super::window::Window;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("MaxPool", pool),
    ("AveragePool", pool),
    ("LpPool", pool),
    ("GlobalMaxPool", global),
    ("GlobalAveragePool", global),
    ("GlobalLpPool", global),
    ("MaxUnpool", unpool),
    ("MaxRoiPool", max_roi_pool),
    ("RoiAlign", roi_align),
];

fn spatial<'a>(op: &Op<'a>) -> Result<Option<&'a [Dim]>, Fault> {
    op.shape_where(0, "3 or more: [batch, channels, spatial...]", |n| n >= 3)
}

fn sizes(op: &Op, name: &'static str) -> Result<Shape, Fault> {
    let sizes = op.ints(name).ok_or_else(|| Fault::invalid(0, format!("attribute `{name}` is missing")))?;
    let sizes: Option<Shape> = sizes.iter().map(|n| u64::try_from(*n).ok().map(known)).collect();
    sizes.ok_or_else(|| Fault::invalid(0, format!("`{name}` has a negative size")))
}

fn pooled(op: &Op) -> Result<Option<Shape>, Fault> {
    let Some(data) = spatial(op)? else { return Ok(None) };
    let kernel = sizes(op, "kernel_shape")?;
    if kernel.len() + 2 != data.len() {
        return Err(Fault::Rank { input: 0, expected: "two more than the window", actual: data.len() });
    }
    let window = Window::of(op, kernel)?;
    let mut shape = data[..2].to_vec();
    for (axis, size) in data[2..].iter().enumerate() {
        shape.push(window.output(axis, size, op.flag("ceil_mode"))?);
    }
    Ok(Some(shape))
}

pub(super) fn pool(op: &Op) -> Outputs {
    let shape = pooled(op)?;
    Ok(vec![Value::new(op.dtype(0), shape.clone()), Value::typed(DataType::I64, shape)])
}

pub(super) fn global(op: &Op) -> Outputs {
    let shape = spatial(op)?.map(|s| s.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { dims::ONE }));
    one(Value::new(op.dtype(0), shape.map(Iterator::collect)))
}

fn unpool(op: &Op) -> Outputs {
    if op.input(2).is_some() {
        let shape = op.input(2).and_then(Value::vector).and_then(|s| s.iter().map(Scalar::to_dim).collect());
        return one(Value::new(op.dtype(0), shape));
    }
    let Some(data) = spatial(op)? else { return one(Value::new(op.dtype(0), None)) };
    let window = Window::of(op, sizes(op, "kernel_shape")?)?;
    if window.kernel.len() + 2 != data.len() {
        return Err(Fault::Rank { input: 0, expected: "two more than the window", actual: data.len() });
    }
    let grown = |axis: usize, size: &Dim| {
        let spread = size.known()?.checked_sub(1)?.checked_mul(window.sliding.strides[axis])?;
        dims::offset(&known(spread.checked_add(window.kernel[axis].known()?)?), -window.pad(axis))
    };
    let spatial = data[2..].iter().enumerate().map(|(axis, size)| grown(axis, size).unwrap_or(Dim::Unknown));
    one(Value::new(op.dtype(0), Some(data[..2].iter().cloned().chain(spatial).collect())))
}

fn regions(op: &Op, height: Dim, width: Dim) -> Result<Option<Shape>, Fault> {
    let data = op.shape_of_rank(0, 4, "4: [batch, channels, height, width]")?;
    let rois = op.shape_of_rank(1, 2, "2: [regions, corners]")?;
    let first = |s: Option<&[Dim]>, i: usize| s.map_or(Dim::Unknown, |s| s[i].clone());
    Ok(Some(vec![first(rois, 0), first(data, 1), height, width]))
}

fn max_roi_pool(op: &Op) -> Outputs {
    let pooled = sizes(op, "pooled_shape")?;
    let [height, width] = &pooled[..] else { return Err(Fault::invalid(0, "pooled_shape has two sizes")) };
    one(Value::new(op.dtype(0), regions(op, height.clone(), width.clone())?))
}

fn roi_align(op: &Op) -> Outputs {
    let size = |name: &str| u64::try_from(op.int_or(name, 1)).map_or(Dim::Unknown, known);
    one(Value::new(op.dtype(0), regions(op, size("output_height"), size("output_width"))?))
}
