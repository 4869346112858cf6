//! Convolutions: `[batch, channels, spatial...]` with weights
//! `[out channels, channels / group, window...]`.

use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{self, Shape, known, meet};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value};
use super::window::Window;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Conv", conv),
    ("ConvTranspose", conv_transpose),
    ("ConvInteger", conv_integer),
    ("QLinearConv", qlinear_conv),
    ("DeformConv", conv),
    ("Col2Im", col2im),
    ("CausalConvWithState", causal_conv),
];

pub(super) fn conv(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    one(Value::new(dtype, convolved(op, 0, 1)?))
}

fn conv_integer(op: &Op) -> Outputs {
    one(Value::typed(DataType::I32, convolved(op, 0, 1)?))
}

/// Inputs: x, its scale and zero point, w, its, then the output's.
pub(super) fn qlinear_conv(op: &Op) -> Outputs {
    one(Value::new(op.dtype(7).or(op.dtype(0)), convolved(op, 0, 3)?))
}

/// The window's size: the weight's, which the attribute may repeat.
fn kernel(op: &Op, w: usize, axes: usize) -> Result<Vec<Dim>, Fault> {
    let weight: Shape = op.shape(w).map_or_else(|| dims::unknown(axes), |s| s[2..].to_vec());
    let Some(given) = op.ints("kernel_shape") else { return Ok(weight) };
    let given: Option<Shape> = given.iter().map(|n| u64::try_from(*n).ok().map(known)).collect();
    let given = given.ok_or_else(|| Fault::invalid(w, "kernel_shape has a negative size"))?;
    dims::meet_shapes(&weight, &given).ok_or_else(|| Fault::shapes(w, &weight, &given, "kernel_shape says otherwise"))
}

type DataAndWeight<'a> = (&'a [Dim], Option<&'a [Dim]>);

/// Shapes of data and weight, when their numbers of axes agree.
fn data_and_weight<'a>(op: &Op<'a>, x: usize, w: usize) -> Result<Option<DataAndWeight<'a>>, Fault> {
    let said = "3 or more: [batch, channels, spatial...]";
    let data = op.shape_where(x, said, |n| n >= 3)?;
    let weight = op.shape_where(w, "3 or more: [out channels, channels / group, window...]", |n| n >= 3)?;
    let Some(data) = data else { return Ok(None) };
    if weight.is_some_and(|w| w.len() != data.len()) {
        return Err(Fault::Rank { input: w, expected: "as many as the data", actual: weight.map_or(0, <[Dim]>::len) });
    }
    Ok(Some((data, weight)))
}

fn convolved(op: &Op, x: usize, w: usize) -> Result<Option<Shape>, Fault> {
    let Some((data, weight)) = data_and_weight(op, x, w)? else { return Ok(None) };
    let group = op.attributes().positive_or("group", 1)?;
    let mut channels = Dim::Unknown;
    if let Some(weight) = weight {
        channels = weight[0].clone();
        let taken = dims::mul(&weight[1], &known(group));
        if meet(&data[1], &taken).is_none() {
            return Err(Fault::shapes(x, data, weight, "the channels are not the weight's times the group"));
        }
        if channels.known().is_some_and(|m| !m.is_multiple_of(group)) {
            return Err(Fault::invalid(w, format!("{channels} output channels do not divide into {group} groups")));
        }
    }
    let window = Window::of(op, kernel(op, w, data.len() - 2)?)?;
    let mut shape = vec![data[0].clone(), channels];
    for (axis, size) in data[2..].iter().enumerate() {
        shape.push(window.output(axis, size, false)?);
    }
    Ok(Some(shape))
}

fn conv_transpose(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    let Some((data, weight)) = data_and_weight(op, 0, 1)? else { return one(Value::new(dtype, None)) };
    let group = op.attributes().positive_or("group", 1)?;
    let mut channels = Dim::Unknown;
    if let Some(weight) = weight {
        if meet(&data[1], &weight[0]).is_none() {
            return Err(Fault::shapes(0, data, weight, "the channels are not the weight's"));
        }
        channels = dims::mul(&weight[1], &known(group));
    }
    let axes = data.len() - 2;
    let window = Window::of(op, kernel(op, 1, axes)?)?;
    let extra = op.attributes().output_padding(axes)?;
    let output = op.attributes().output_shape(axes);
    let mut shape = vec![data[0].clone(), channels];
    for axis in 0..axes {
        shape.push(match output {
            Some(sizes) => u64::try_from(sizes[axis]).map_or(Dim::Unknown, known),
            None if window.sliding.auto.is_same() => dims::mul(&data[axis + 2], &known(window.sliding.strides[axis])),
            None => {
                let span = window.span(axis).and_then(|s| i64::try_from(s).ok());
                let more = extra[axis].saturating_sub(window.pad(axis));
                grown(&data[axis + 2], window.sliding.strides[axis], span, more)
                    .ok_or_else(|| Fault::invalid(0, "the padding removes the whole output"))?
            }
        });
    }
    one(Value::new(dtype, Some(shape)))
}

/// `stride * (size - 1) + span + more`.
fn grown(size: &Dim, stride: u64, span: Option<i64>, more: i64) -> Option<Dim> {
    let Some(span) = span else { return Some(Dim::Unknown) };
    let more = span.saturating_add(more);
    match size {
        Dim::Known(n) => {
            let spread = i64::try_from(n.checked_sub(1)?.checked_mul(stride)?).ok()?;
            u64::try_from(spread.checked_add(more)?).ok().map(known)
        }
        other if stride == 1 && more == 1 => Some(other.clone()),
        _ => Some(Dim::Unknown),
    }
}

fn col2im(op: &Op) -> Outputs {
    let (Some(data), Some(image)) = (op.shape_of_rank(0, 3, "3: [batch, columns, blocks]")?, op.input(1)) else {
        return one(Value::new(op.dtype(0), None));
    };
    let Some(image) = image.vector() else { return one(Value::new(op.dtype(0), None)) };
    let block = op.ints_at(2).and_then(|b| b.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?)));
    let channels = block.map_or(Some(Dim::Unknown), |b| dims::div_exact(&data[1], b));
    let channels = channels.ok_or_else(|| Fault::invalid(0, "the columns are no multiple of the block"))?;
    let spatial: Option<Shape> = image.iter().map(Scalar::to_dim).collect();
    let spatial = spatial.ok_or_else(|| Fault::invalid(1, "an image has no negative sizes"))?;
    one(Value::new(op.dtype(0), Some([vec![data[0].clone(), channels], spatial].concat())))
}

fn causal_conv(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    let data = op.shape_of_rank(0, 3, "3: [batch, channels, length]")?;
    let weight = op.shape_of_rank(1, 3, "3: [channels, 1, window]")?;
    let carried = weight.and_then(|w| dims::offset(&w[2], -1)).unwrap_or(Dim::Unknown);
    let state = data.map(|d| vec![d[0].clone(), d[1].clone(), carried]);
    Ok(vec![Value::new(dtype, data.map(<[Dim]>::to_vec)), Value::new(dtype, state)])
}
