//! Conversions between real numbers and scaled integers.

use crate::tensor::DataType::{self, F32, U8};

use super::op::{Op, Outputs, Rule, one};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] =
    &[("QuantizeLinear", quantize), ("DequantizeLinear", dequantize), ("DynamicQuantizeLinear", dynamic)];

/// The type that an attribute overrides, if it does.
fn output_dtype(op: &Op) -> Option<Option<DataType>> {
    op.int("output_dtype").filter(|code| *code != 0).map(|_| op.dtype_attribute("output_dtype"))
}

fn quantize(op: &Op) -> Outputs {
    // A zero point of a type not carried here leaves the type unknown.
    let by_zero_point = || op.input(2).map_or(Some(U8), |v| v.dtype);
    one(Value::new(output_dtype(op).unwrap_or_else(by_zero_point), op.like(0).shape))
}

fn dequantize(op: &Op) -> Outputs {
    one(Value::new(output_dtype(op).unwrap_or_else(|| op.dtype(1)), op.like(0).shape))
}

fn dynamic(op: &Op) -> Outputs {
    Ok(vec![
        Value::typed(U8, op.like(0).shape),
        Value::typed(F32, Some(Vec::new())),
        Value::typed(U8, Some(Vec::new())),
    ])
}
