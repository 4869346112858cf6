//! Normalisations, softmax and losses.

use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{self, Shape, meet};
use super::elementwise::same;
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("BatchNormalization", batch),
    ("InstanceNormalization", per_channel),
    ("GroupNormalization", same),
    ("LayerNormalization", layer),
    ("RMSNormalization", rms),
    // ONNX Runtime's fused form of it lives in the default domain too.
    ("SimplifiedLayerNormalization", layer),
    ("LRN", same),
    ("LpNormalization", along_axis),
    ("MeanVarianceNormalization", same),
    ("Softmax", along_axis),
    ("LogSoftmax", along_axis),
    ("Hardmax", along_axis),
    ("NegativeLogLikelihoodLoss", loss),
    ("SoftmaxCrossEntropyLoss", loss),
];

fn along_axis(op: &Op) -> Outputs {
    if let (Some(from), Some(axis)) = (op.shape(0), op.int("axis"))
        // Softmax of old flattened at an axis, which may be past the last.
        && !(op.opset < 13 && axis == from.len() as i64)
    {
        op.axis(0, axis, from.len())?;
    }
    same(op)
}

/// Refuses vectors that aren't as long as there are channels.
fn channels(op: &Op, vectors: std::ops::Range<usize>) -> Result<(), Fault> {
    let Some(channels) = op.shape(0).and_then(|s| s.get(1)) else { return Ok(()) };
    for i in vectors {
        if let Some(vector) = op.shape_of_rank(i, 1, "1: [channels]")?
            && meet(&vector[0], channels).is_none()
        {
            let data = op.shape(0).unwrap_or_default();
            return Err(Fault::shapes(i, vector, data, "there is one value per channel"));
        }
    }
    Ok(())
}

fn batch(op: &Op) -> Outputs {
    if op.opset >= 9 || op.int_or("spatial", 1) != 0 {
        channels(op, 1..5)?;
    }
    // Statistics, where a model asks for them, are shaped as their inputs.
    let mean = op.like(3);
    let variance = op.like(4);
    Ok(vec![op.like(0), mean.clone(), variance.clone(), mean, variance])
}

fn per_channel(op: &Op) -> Outputs {
    channels(op, 1..3)?;
    same(op)
}

/// The input's shape with every axis from `axis` on reduced to 1.
fn statistics(op: &Op) -> Result<Option<Shape>, Fault> {
    let Some(from) = op.shape(0) else { return Ok(None) };
    let axis = op.axis(0, op.int_or("axis", -1), from.len())?;
    Ok(Some(from.iter().enumerate().map(|(i, d)| if i < axis { d.clone() } else { dims::ONE }).collect()))
}

fn layer(op: &Op) -> Outputs {
    if let (Some(from), Some(scale)) = (op.shape(0), op.shape(1))
        && dims::broadcast(from, scale).is_none_or(|s| s.len() != from.len())
    {
        return Err(Fault::shapes(1, scale, from, "the scale must broadcast to the input"));
    }
    let stash = i32::try_from(op.int_or("stash_type", 1)).ok().and_then(DataType::from_onnx);
    let statistics = Value::new(stash, statistics(op)?);
    Ok(vec![op.like(0), statistics.clone(), statistics])
}

fn rms(op: &Op) -> Outputs {
    one(Value::new(op.dtype(1).or(op.dtype(0)), op.like(0).shape))
}

fn loss(op: &Op) -> Outputs {
    let whole = op.text("reduction").is_some_and(|r| r == "none");
    let shape = if whole { op.shape(1).map(<[Dim]>::to_vec) } else { Some(Vec::new()) };
    Ok(vec![Value::new(op.dtype(0), shape), op.like(0)])
}
