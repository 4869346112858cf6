//! Signal processing.

use crate::tensor::DataType;
use crate::types::Dim;

use super::dims::{self, known};
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("BlackmanWindow", window),
    ("HammingWindow", window),
    ("HannWindow", window),
    ("MelWeightMatrix", mel_weights),
    ("DFT", dft),
    ("STFT", stft),
];

fn output_datatype(op: &Op) -> Option<DataType> {
    if op.attribute("output_datatype").is_some() { op.dtype_attribute("output_datatype") } else { Some(DataType::F32) }
}

fn size(op: &Op, i: usize) -> Dim {
    op.input(i).and_then(Value::scalar).and_then(Scalar::to_dim).unwrap_or(Dim::Unknown)
}

fn window(op: &Op) -> Outputs {
    one(Value::new(output_datatype(op), Some(vec![size(op, 0)])))
}

/// Bins of a transform of real numbers that has no redundant ones.
fn half(size: &Dim) -> Dim {
    size.known().map_or(Dim::Unknown, |n| known(n / 2 + 1))
}

fn mel_weights(op: &Op) -> Outputs {
    one(Value::new(output_datatype(op), Some(vec![half(&size(op, 1)), size(op, 0)])))
}

fn dft(op: &Op) -> Outputs {
    let Some(from) = op.shape_where(0, "at least 2: [.., signal, real and imaginary]", |n| n >= 2)? else {
        return one(Value::new(op.dtype(0), None));
    };
    // The axis was an attribute in version 17, and is an input since 20.
    let axis = match (op.opset < 20, op.input(2)) {
        (true, _) => op.int_or("axis", 1),
        (false, None) => -2,
        (false, Some(axis)) => match axis.scalar().and_then(Scalar::int) {
            Some(axis) => axis,
            None => return one(Value::new(op.dtype(0), Some(dims::unknown(from.len())))),
        },
    };
    let at = op.axis(0, axis, from.len())?;
    let mut shape = from.to_vec();
    if op.input(1).is_some() {
        shape[at] = size(op, 1);
    }
    let (onesided, inverse) = (op.flag("onesided"), op.flag("inverse"));
    let last = shape.len() - 1;
    if onesided && inverse {
        // From half a spectrum back to as many real numbers as were asked for.
        if op.input(1).is_none() {
            let bins = from[at].known().filter(|n| *n > 0);
            shape[at] = bins.and_then(|n| (n - 1).checked_mul(2)).map_or(Dim::Unknown, known);
        }
        shape[last] = known(1);
    } else {
        if onesided {
            shape[at] = half(&shape[at]);
        }
        shape[last] = known(2);
    }
    one(Value::new(op.dtype(0), Some(shape)))
}

fn stft(op: &Op) -> Outputs {
    let from = op.shape_where(0, "2 or 3: [batch, length, real and imaginary]", |n| n == 2 || n == 3)?;
    let frame = match op.input(3) {
        Some(_) => size(op, 3),
        None => op.shape(2).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown),
    };
    let bins = if op.int_or("onesided", 1) != 0 { half(&frame) } else { frame.clone() };
    let frames = || {
        let length = from?.get(1)?.known()?;
        let step = size(op, 1).known().filter(|s| *s > 0)?;
        Some(known(length.checked_sub(frame.known()?)? / step + 1))
    };
    let batch = from.map_or(Dim::Unknown, |s| s[0].clone());
    one(Value::new(op.dtype(0), Some(vec![batch, frames().unwrap_or(Dim::Unknown), bins, known(2)])))
}
