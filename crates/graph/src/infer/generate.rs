//! Operators that make tensors from attributes and sizes.

use crate::tensor::DataType::{self, F32, I64};
use crate::types::Dim;

use super::dims::{self, Shape, known};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{ELEMENTS_MAX, Scalar, Value};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("Range", range),
    ("EyeLike", eye_like),
    ("RandomNormal", random),
    ("RandomUniform", random),
    ("RandomNormalLike", random_like),
    ("RandomUniformLike", random_like),
    ("Multinomial", multinomial),
];

fn constant(op: &Op) -> Outputs {
    if let Some(tensor) = op.tensor("value") {
        return one(Value::constant(tensor));
    }
    let vector = |dtype: DataType, elements: Vec<Scalar>| {
        Value::typed(dtype, Some(vec![known(elements.len() as u64)])).with(Some(elements))
    };
    for attribute in &op.node.attribute {
        let name = attribute.name();
        let Some(a) = op.attribute(name) else { continue };
        let real = |x: &f32| Scalar::Real(f64::from(*x));
        return one(match name {
            "value_float" => Value::typed(F32, Some(Vec::new())).with(Some(vec![real(&a.f())])),
            "value_floats" => vector(F32, a.floats.iter().map(real).collect()),
            "value_int" => Value::typed(I64, Some(Vec::new())).with(Some(vec![Scalar::Int(a.i())])),
            "value_ints" => vector(I64, a.ints.iter().map(|n| Scalar::Int(*n)).collect()),
            "value_string" => Value::typed(DataType::String, Some(Vec::new())),
            "value_strings" => Value::typed(DataType::String, Some(vec![known(a.strings.len() as u64)])),
            _ => continue,
        });
    }
    Ok(Vec::new())
}

fn constant_of_shape(op: &Op) -> Outputs {
    op.shape_of_rank(0, 1, "1: the shape is a list")?;
    let fill = op.tensor("value").map(Value::constant);
    let dtype = fill.as_ref().map_or(Some(F32), |v| v.dtype);
    let Some(sizes) = op.input(0).and_then(Value::vector) else { return one(Value::new(dtype, None)) };
    let shape: Option<Shape> = sizes.iter().map(Scalar::to_dim).collect();
    let shape = shape.ok_or_else(|| Fault::invalid(0, "a shape has no negative sizes"))?;
    let value = Value::new(dtype, Some(shape));
    let fill = fill.map_or(Some(Scalar::Real(0.0)), |v| v.scalar().cloned());
    let count = value.count().filter(|n| *n <= ELEMENTS_MAX);
    let elements = fill.zip(count).map(|(fill, n)| vec![fill; n as usize]);
    one(value.with(elements))
}

fn range(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    let part = |i: usize| op.input(i).and_then(Value::scalar);
    let (Some(start), Some(limit), Some(delta)) = (part(0), part(1), part(2)) else {
        return one(Value::new(dtype, Some(dims::unknown(1))));
    };
    if delta.real() == Some(0.0) {
        return Err(Fault::invalid(2, "a step of 0 never ends"));
    }
    if let (Scalar::Int(0), Scalar::Size(s), Scalar::Int(1)) = (start, limit, delta) {
        return one(Value::new(dtype, Some(vec![Dim::Symbol(s.clone())])));
    }
    let (size, elements) = match (start, limit, delta) {
        (Scalar::Int(start), Scalar::Int(limit), Scalar::Int(delta)) => {
            let distance = i128::from(*limit) - i128::from(*start);
            let count = (distance.signum() == i128::from(delta.signum()))
                .then(|| distance.unsigned_abs().div_ceil(u128::from(delta.unsigned_abs())))
                .map_or(Some(0), |n| u64::try_from(n).ok());
            let elements = count.filter(|n| *n <= ELEMENTS_MAX).map(|n| {
                (0..n as i64)
                    .map(|i| {
                        i.checked_mul(*delta).and_then(|d| start.checked_add(d)).map_or(Scalar::Unknown, Scalar::Int)
                    })
                    .collect()
            });
            (count.map_or(Dim::Unknown, known), elements)
        }
        _ => match (start.real(), limit.real(), delta.real()) {
            (Some(start), Some(limit), Some(delta)) => {
                let count = ((limit - start) / delta).ceil().max(0.0);
                (if count < 9e15 { known(count as u64) } else { Dim::Unknown }, None)
            }
            _ => (Dim::Unknown, None),
        },
    };
    one(Value::new(dtype, Some(vec![size])).with(elements))
}

fn dtype_or_input(op: &Op) -> Option<DataType> {
    if op.attribute("dtype").is_some() { op.dtype_attribute("dtype") } else { op.dtype(0) }
}

fn eye_like(op: &Op) -> Outputs {
    op.shape_of_rank(0, 2, "2")?;
    random_like(op)
}

fn random_like(op: &Op) -> Outputs {
    one(Value::new(dtype_or_input(op), op.like(0).shape))
}

fn random(op: &Op) -> Outputs {
    let dtype = if op.attribute("dtype").is_some() { op.dtype_attribute("dtype") } else { Some(F32) };
    let shape = op.attribute("shape").and_then(|a| a.ints.iter().map(|n| u64::try_from(*n).ok().map(known)).collect());
    one(Value::new(dtype, shape))
}

fn multinomial(op: &Op) -> Outputs {
    let dtype = if op.attribute("dtype").is_some() { op.dtype_attribute("dtype") } else { Some(DataType::I32) };
    let rows = op.shape_of_rank(0, 2, "2: [batch, classes]")?.map_or(Dim::Unknown, |s| s[0].clone());
    let samples = u64::try_from(op.int_or("sample_size", 1)).map_or(Dim::Unknown, known);
    one(Value::new(dtype, Some(vec![rows, samples])))
}
