//! Operators that resample or rearrange the spatial axes.

use crate::types::Dim;

use super::dims::{self, Shape, known};
use super::elementwise::same;
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Resize", resize),
    ("Upsample", upsample),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", space_to_depth),
    ("GridSample", grid_sample),
    ("AffineGrid", affine_grid),
];

/// As engines do it: in single precision, rounded down.
fn scaled(size: &Dim, scale: &Scalar) -> Dim {
    match (size, scale.real()) {
        (other, Some(1.0)) => other.clone(),
        (Dim::Known(n), Some(scale)) if scale >= 0.0 => known((*n as f32 * scale as f32).floor() as u64),
        _ => Dim::Unknown,
    }
}

fn upsample(op: &Op) -> Outputs {
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let scales: Option<Vec<Scalar>> = match op.attribute("scales") {
        Some(a) => Some(a.floats.iter().map(|x| Scalar::Real(f64::from(*x))).collect()),
        None => op.input(1).and_then(Value::vector),
    };
    let scales = scales.unwrap_or_else(|| vec![Scalar::Unknown; from.len()]);
    resampled(op, from, &scales)
}

fn resampled(op: &Op, from: &[Dim], scales: &[Scalar]) -> Outputs {
    if scales.len() != from.len() {
        return Err(Fault::Rank { input: 0, expected: "as many as there are scales", actual: from.len() });
    }
    one(Value::new(op.dtype(0), Some(from.iter().zip(scales).map(|(d, s)| scaled(d, s)).collect())))
}

fn resize(op: &Op) -> Outputs {
    if op.opset < 11 {
        return upsample(op);
    }
    let Some(from) = op.shape(0) else { return one(Value::new(op.dtype(0), None)) };
    let axes: Vec<usize> = match op.ints("axes") {
        Some(axes) => axes.iter().map(|a| op.axis(0, *a, from.len())).collect::<Result<_, _>>()?,
        None => (0..from.len()).collect(),
    };
    // An empty tensor stands for an input left out.
    let list = |i: usize| op.input(i).and_then(Value::vector).filter(|v| !v.is_empty());
    let cropping = op.text("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    let mut shape = from.to_vec();
    if let Some(sizes) = list(3) {
        if sizes.len() != axes.len() {
            return Err(Fault::Rank { input: 0, expected: "as many as there are sizes", actual: from.len() });
        }
        let policy = op.text("keep_aspect_ratio_policy").unwrap_or("stretch");
        let scale = common_scale(from, &axes, &sizes, policy);
        for (at, size) in axes.iter().zip(&sizes) {
            shape[*at] = match (policy, scale, &from[*at]) {
                ("stretch", ..) => size.to_dim().ok_or_else(|| Fault::invalid(3, "a size is not negative"))?,
                // Half rounds up.
                (_, Some(scale), Dim::Known(n)) => known((scale * *n as f64 + 0.5).floor() as u64),
                _ => Dim::Unknown,
            };
        }
    } else if let Some(scales) = list(2) {
        if scales.len() != axes.len() {
            return Err(Fault::Rank { input: 0, expected: "as many as there are scales", actual: from.len() });
        }
        let region = if cropping { op.input(1).and_then(Value::reals) } else { None };
        for (i, at) in axes.iter().enumerate() {
            shape[*at] = match (cropping, &region, &from[*at], scales[i].real()) {
                (false, ..) => scaled(&from[*at], &scales[i]),
                (true, Some(region), Dim::Known(n), Some(scale)) if region.len() == 2 * axes.len() => {
                    known(((region[i + axes.len()] - region[i]) * *n as f64 * scale).floor().max(0.0) as u64)
                }
                _ => Dim::Unknown,
            };
        }
    } else {
        axes.iter().for_each(|at| shape[*at] = Dim::Unknown);
    }
    one(Value::new(op.dtype(0), Some(shape)))
}

/// The one scale that keeps the aspect ratio.
fn common_scale(from: &[Dim], axes: &[usize], sizes: &[Scalar], policy: &str) -> Option<f64> {
    let scales: Option<Vec<f64>> =
        axes.iter().zip(sizes).map(|(at, size)| Some(size.real()? / from[*at].known()? as f64)).collect();
    let scales = scales?.into_iter();
    match policy {
        "not_larger" => scales.reduce(f64::min),
        "not_smaller" => scales.reduce(f64::max),
        _ => None,
    }
}

fn block(op: &Op) -> Result<u64, Fault> {
    op.int("blocksize").ok_or_else(|| Fault::invalid(0, "attribute `blocksize` is missing"))?;
    Ok(op.attributes().positive_or("blocksize", 1)?)
}

const IMAGE: &str = "4: [batch, channels, height, width]";

fn depth_to_space(op: &Op) -> Outputs {
    let block = block(op)?;
    let Some(from) = op.shape_of_rank(0, 4, IMAGE)? else { return same(op) };
    let channels = block.checked_mul(block).and_then(|b| dims::div_exact(&from[1], b));
    let channels = channels.ok_or_else(|| Fault::invalid(0, "the channels are no multiple of the block's square"))?;
    let size = |d: &Dim| dims::mul(d, &known(block));
    one(Value::new(op.dtype(0), Some(vec![from[0].clone(), channels, size(&from[2]), size(&from[3])])))
}

fn space_to_depth(op: &Op) -> Outputs {
    let block = block(op)?;
    let Some(from) = op.shape_of_rank(0, 4, IMAGE)? else { return same(op) };
    let size = |d: &Dim| {
        dims::div_exact(d, block).ok_or_else(|| Fault::invalid(0, "height and width are no multiples of the block"))
    };
    let channels = dims::mul(&from[1], &known(block.saturating_mul(block)));
    one(Value::new(op.dtype(0), Some(vec![from[0].clone(), channels, size(&from[2])?, size(&from[3])?])))
}

pub(super) fn grid_sample(op: &Op) -> Outputs {
    let (Some(from), Some(grid)) = (op.shape(0), op.shape(1)) else { return one(Value::new(op.dtype(0), None)) };
    if from.len() < 3 || grid.len() != from.len() {
        return Err(Fault::Rank { input: 1, expected: "as many as the data, 3 or more", actual: grid.len() });
    }
    one(Value::new(op.dtype(0), Some([&from[..2], &grid[1..grid.len() - 1]].concat())))
}

fn affine_grid(op: &Op) -> Outputs {
    let Some(size) = op.input(1).and_then(Value::vector) else { return one(Value::new(op.dtype(0), None)) };
    let size: Option<Shape> = size.iter().map(Scalar::to_dim).collect();
    let size =
        size.filter(|s| s.len() >= 3).ok_or_else(|| Fault::invalid(1, "a size is [batch, channels, spatial...]"))?;
    let coordinates = known(size.len() as u64 - 2);
    one(Value::new(op.dtype(0), Some([&size[..1], &size[2..], &[coordinates]].concat())))
}
