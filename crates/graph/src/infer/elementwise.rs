//! Operators that work element by element, with NumPy broadcasting.

use crate::tensor::DataType;
use crate::types::Dim;

use super::arithmetic;
use super::dims::{Shape, broadcast};
use super::error::Fault;
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value, rearrange};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Abs", unary),
    ("Acos", same),
    ("Acosh", same),
    ("Asin", same),
    ("Asinh", same),
    ("Atan", same),
    ("Atanh", same),
    ("BitwiseNot", same),
    ("Ceil", unary),
    ("Celu", same),
    ("Clip", clip),
    ("Cos", same),
    ("Cosh", same),
    ("CumProd", same),
    ("CumSum", same),
    ("Elu", same),
    ("Erf", same),
    ("Exp", unary),
    ("Floor", unary),
    ("Gelu", same),
    ("HardSigmoid", same),
    ("HardSwish", same),
    ("Identity", unary),
    ("LeakyRelu", same),
    ("Log", unary),
    ("Mish", same),
    ("Neg", unary),
    ("Reciprocal", unary),
    ("Relu", unary),
    ("Round", unary),
    ("Selu", same),
    ("Shrink", same),
    ("Sigmoid", same),
    ("Sign", unary),
    ("Sin", same),
    ("Sinh", same),
    ("Softplus", same),
    ("Softsign", same),
    ("Sqrt", unary),
    ("Swish", same),
    ("Tan", same),
    ("Tanh", same),
    ("ThresholdedRelu", same),
    ("IsInf", predicate),
    ("IsNaN", predicate),
    ("Not", unary),
    ("Add", binary),
    ("Sub", binary),
    ("Mul", binary),
    ("Div", binary),
    ("Mod", binary),
    ("Pow", binary),
    ("BitShift", binary),
    ("BitwiseAnd", binary),
    ("BitwiseOr", binary),
    ("BitwiseXor", binary),
    ("And", comparison),
    ("Or", comparison),
    ("Xor", comparison),
    ("Equal", comparison),
    ("Less", comparison),
    ("LessOrEqual", comparison),
    ("Greater", comparison),
    ("GreaterOrEqual", comparison),
    ("Max", variadic),
    ("Min", variadic),
    ("Sum", variadic),
    ("Mean", variadic),
    ("PRelu", prelu),
    ("SwiGLU", gated),
    ("Where", select),
    ("Cast", cast),
    ("CastLike", cast),
    ("BitCast", bit_cast),
    ("Dropout", dropout),
    ("Bernoulli", bernoulli),
];

/// The output is what the first input is.
pub(super) fn same(op: &Op) -> Outputs {
    Ok(vec![op.like(0)])
}

fn unary(op: &Op) -> Outputs {
    let Some(input) = op.input(0) else { return Ok(Vec::new()) };
    if op.kind() == "Identity" {
        return one(input.clone());
    }
    let follow = |e: &Vec<Scalar>| e.iter().map(|x| arithmetic::unary(op.kind(), x, input.dtype)).collect();
    one(op.like(0).with(input.elements.as_ref().map(follow)))
}

fn predicate(op: &Op) -> Outputs {
    one(Value::typed(DataType::Bool, op.like(0).shape))
}

fn clip(op: &Op) -> Outputs {
    let Some(input) = op.input(0) else { return Ok(Vec::new()) };
    let bound = |i: usize, kind: &str, e: Vec<Scalar>| match (op.input(i), op.input(i).and_then(Value::scalar)) {
        (None, _) => Some(e),
        (Some(_), Some(limit)) => {
            Some(e.iter().map(|x| arithmetic::binary(kind, x, limit, input.dtype, false)).collect())
        }
        (Some(_), None) => None,
    };
    let attributes = op.attribute("min").is_some() || op.attribute("max").is_some();
    let elements = input.elements.clone().filter(|_| !attributes);
    one(op.like(0).with(elements.and_then(|e| bound(1, "Max", e)).and_then(|e| bound(2, "Min", e))))
}

/// The broadcast shape of some inputs; unknown when one of them is.
pub(super) fn broadcast_inputs(op: &Op, inputs: impl IntoIterator<Item = usize>) -> Result<Option<Shape>, Fault> {
    let mut shape: Option<Shape> = None;
    let mut complete = true;
    for i in inputs {
        let Some(next) = op.shape(i) else {
            complete = false;
            continue;
        };
        shape = Some(match shape {
            None => next.to_vec(),
            Some(so_far) => {
                broadcast(&so_far, next).ok_or_else(|| Fault::shapes(i, next, &so_far, "the axes do not broadcast"))?
            }
        });
    }
    Ok(shape.filter(|_| complete))
}

/// Elements of an input as the broadcast shape reads them.
fn spread(op: &Op, i: usize, shape: Option<&[Dim]>) -> Option<Vec<Scalar>> {
    let (value, target) = (op.input(i)?, shape?);
    let source = value.shape.as_deref()?;
    if source == target {
        return value.elements.clone();
    }
    let lead = target.len() - source.len();
    rearrange(value.elements.as_deref(), source, target, |position| {
        Some(position[lead..].iter().zip(source).map(|(p, d)| if *d == Dim::Known(1) { 0 } else { *p }).collect())
    })
}

fn pairs(op: &Op, shape: Option<&[Dim]>, dtype: Option<DataType>) -> Option<Vec<Scalar>> {
    let (a, b) = (spread(op, 0, shape)?, spread(op, 1, shape)?);
    let modulo_c = op.flag("fmod");
    Some(a.iter().zip(&b).map(|(a, b)| arithmetic::binary(op.kind(), a, b, dtype, modulo_c)).collect())
}

fn binary(op: &Op) -> Outputs {
    if op.opset < 7 {
        // Before broadcasting was NumPy's, the left side kept its shape.
        return same(op);
    }
    // Only a power or a shift may mix element types.
    let dtype = if op.kind() == "Pow" { op.dtype(0) } else { op.same_dtype(0, 1)? };
    let shape = broadcast_inputs(op, 0..2)?;
    let elements = pairs(op, shape.as_deref(), dtype);
    one(Value::new(dtype, shape).with(elements))
}

fn comparison(op: &Op) -> Outputs {
    if op.opset < 7 {
        return predicate(op);
    }
    op.same_dtype(0, 1)?;
    let shape = broadcast_inputs(op, 0..2)?;
    let elements = pairs(op, shape.as_deref(), None);
    one(Value::typed(DataType::Bool, shape).with(elements))
}

fn variadic(op: &Op) -> Outputs {
    let mut dtype = op.dtype(0);
    for i in 1..op.inputs.len() {
        dtype = op.same_dtype(0, i)?.or(dtype);
    }
    let shape = broadcast_inputs(op, 0..op.inputs.len())?;
    let mut elements = spread(op, 0, shape.as_deref()).filter(|_| op.kind() != "Mean");
    for i in 1..op.inputs.len() {
        elements = match (elements, spread(op, i, shape.as_deref())) {
            (Some(a), Some(b)) => {
                Some(a.iter().zip(&b).map(|(a, b)| arithmetic::binary(op.kind(), a, b, dtype, false)).collect())
            }
            _ => None,
        };
    }
    one(Value::new(dtype, shape).with(elements))
}

fn prelu(op: &Op) -> Outputs {
    op.same_dtype(0, 1)?;
    if let (Some(x), Some(slope)) = (op.shape(0), op.shape(1))
        && op.opset >= 7
        && broadcast(x, slope).is_none_or(|s| s.len() != x.len())
    {
        return Err(Fault::shapes(1, slope, x, "the slope must broadcast to the input"));
    }
    same(op)
}

fn gated(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    let shape = match (op.shape(0), op.shape(1)) {
        (Some(a), Some(b)) => Some(op.same_shape(1, a, b)?),
        (a, b) => a.or(b).map(<[Dim]>::to_vec),
    };
    one(Value::new(dtype, shape))
}

fn select(op: &Op) -> Outputs {
    let dtype = op.same_dtype(1, 2)?;
    let shape = broadcast_inputs(op, 0..3)?;
    let parts = [0, 1, 2].map(|i| spread(op, i, shape.as_deref()));
    let elements = if let [Some(condition), Some(yes), Some(no)] = parts {
        let choose = |((c, y), n): ((&Scalar, Scalar), Scalar)| match c {
            Scalar::Int(0) => n,
            Scalar::Int(_) => y,
            _ if y == n => y,
            _ => Scalar::Unknown,
        };
        Some(condition.iter().zip(yes).zip(no).map(choose).collect())
    } else {
        None
    };
    one(Value::new(dtype, shape).with(elements))
}

fn cast(op: &Op) -> Outputs {
    let dtype = if op.kind() == "CastLike" { op.dtype(1) } else { op.dtype_attribute("to") };
    let value = Value::new(dtype, op.like(0).shape);
    let elements = op.input(0).and_then(|v| v.elements.as_ref());
    one(value.with(elements.map(|e| e.iter().map(|x| arithmetic::cast(x, dtype)).collect())))
}

fn bit_cast(op: &Op) -> Outputs {
    one(Value::new(op.dtype_attribute("to"), op.like(0).shape))
}

fn dropout(op: &Op) -> Outputs {
    // The mask was a float until version 10 made it boolean.
    let mask = if op.opset < 10 { op.dtype(0) } else { Some(DataType::Bool) };
    Ok(vec![op.like(0), Value::new(mask, op.like(0).shape)])
}

fn bernoulli(op: &Op) -> Outputs {
    let dtype = if op.attribute("dtype").is_some() { op.dtype_attribute("dtype") } else { op.dtype(0) };
    one(Value::new(dtype, op.like(0).shape))
}
