//! Operators on single elements of followed tensors.
//!
//! Sizes of named axes pass through what doesn't change them; anything else
//! done to them is unknown. Results that don't fit the element type are
//! unknown too, so overflow never makes a plausible wrong size.

use crate::tensor::DataType;

use super::value::Scalar::{self, Int, Real, Size, Unknown};

/// `op` is the operator's name; `modulo_c` is `Mod`'s `fmod`.
pub(super) fn binary(op: &str, a: &Scalar, b: &Scalar, dtype: Option<DataType>, modulo_c: bool) -> Scalar {
    let result = match (a, b) {
        (Int(x), Int(y)) => int_int(op, *x, *y, modulo_c),
        (Int(_) | Real(_), Int(_) | Real(_)) => match (a.real(), b.real()) {
            (Some(x), Some(y)) => real_real(op, x, y, modulo_c),
            _ => Unknown,
        },
        _ => symbolic(op, a, b),
    };
    fit(result, dtype)
}

fn int_int(op: &str, x: i64, y: i64, modulo_c: bool) -> Scalar {
    let whole = match op {
        "Add" | "Sum" => x.checked_add(y),
        "Sub" => x.checked_sub(y),
        "Mul" => x.checked_mul(y),
        "Div" => x.checked_div(y),
        "Mod" if modulo_c => x.checked_rem(y),
        // Otherwise the sign follows the divisor.
        "Mod" => x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r }),
        "Pow" => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
        "Min" => Some(x.min(y)),
        "Max" => Some(x.max(y)),
        "BitwiseAnd" => Some(x & y),
        "BitwiseOr" => Some(x | y),
        "BitwiseXor" => Some(x ^ y),
        _ => return truth(op, x.partial_cmp(&y), (x != 0, y != 0)),
    };
    whole.map_or(Unknown, Int)
}

fn real_real(op: &str, x: f64, y: f64, modulo_c: bool) -> Scalar {
    Real(match op {
        "Add" | "Sum" => x + y,
        "Sub" => x - y,
        "Mul" => x * y,
        "Div" => x / y,
        "Mod" if modulo_c => x % y,
        "Mod" => x - y * (x / y).floor(),
        "Pow" => x.powf(y),
        "Min" => x.min(y),
        "Max" => x.max(y),
        _ => return truth(op, x.partial_cmp(&y), (x != 0.0, y != 0.0)),
    })
}

fn truth(op: &str, order: Option<std::cmp::Ordering>, (x, y): (bool, bool)) -> Scalar {
    use std::cmp::Ordering::{Equal, Greater, Less};
    Int(i64::from(match op {
        "Equal" => order == Some(Equal),
        "Less" => order == Some(Less),
        "Greater" => order == Some(Greater),
        "LessOrEqual" => matches!(order, Some(Less | Equal)),
        "GreaterOrEqual" => matches!(order, Some(Greater | Equal)),
        "And" => x && y,
        "Or" => x || y,
        "Xor" => x != y,
        _ => return Unknown,
    }))
}

/// At least one side isn't a number.
fn symbolic(op: &str, a: &Scalar, b: &Scalar) -> Scalar {
    let same = matches!((a, b), (Size(x), Size(y)) if x == y);
    match (op, a, b) {
        ("Add" | "Sum", x, Int(0)) | ("Add" | "Sum", Int(0), x) | ("Sub", x, Int(0)) => x.clone(),
        ("Mul", x, Int(1)) | ("Mul", Int(1), x) | ("Div", x, Int(1)) => x.clone(),
        ("Mul", _, Int(0)) | ("Mul", Int(0), _) => Int(0),
        ("Sub", ..) if same => Int(0),
        ("Min" | "Max", x, _) if same => x.clone(),
        ("Equal" | "LessOrEqual" | "GreaterOrEqual", ..) if same => Int(1),
        // A size isn't negative.
        ("Max", Size(s), Int(n)) | ("Max", Int(n), Size(s)) if *n <= 0 => Size(s.clone()),
        ("Min", Size(_), Int(n)) | ("Min", Int(n), Size(_)) if *n <= 0 => Int(*n),
        ("Equal", Size(_), Int(n)) | ("Equal", Int(n), Size(_)) if *n < 0 => Int(0),
        ("Less", Size(_), Int(n)) | ("Greater", Int(n), Size(_)) if *n <= 0 => Int(0),
        ("Greater", Size(_), Int(n)) | ("Less", Int(n), Size(_)) if *n < 0 => Int(1),
        ("GreaterOrEqual", Size(_), Int(n)) | ("LessOrEqual", Int(n), Size(_)) if *n <= 0 => Int(1),
        ("And", x, Int(1)) | ("And", Int(1), x) | ("Or", x, Int(0)) | ("Or", Int(0), x) => x.clone(),
        ("And", _, Int(0)) | ("And", Int(0), _) => Int(0),
        ("Or", _, Int(1)) | ("Or", Int(1), _) => Int(1),
        _ => Unknown,
    }
}

/// `op` is the operator's name.
pub(super) fn unary(op: &str, a: &Scalar, dtype: Option<DataType>) -> Scalar {
    let result = match (op, a) {
        ("Identity", x) => x.clone(),
        ("Neg", Int(x)) => x.checked_neg().map_or(Unknown, Int),
        ("Abs", Int(x)) => x.checked_abs().map_or(Unknown, Int),
        ("Abs" | "Relu", Size(s)) => Size(s.clone()),
        ("Sign", Int(x)) => Int(x.signum()),
        ("Relu", Int(x)) => Int((*x).max(0)),
        ("Not", Int(x)) => Int(i64::from(*x == 0)),
        (_, Real(x)) => match op {
            "Neg" => Real(-x),
            "Abs" => Real(x.abs()),
            "Floor" => Real(x.floor()),
            "Ceil" => Real(x.ceil()),
            "Round" => Real(x.round_ties_even()),
            "Sqrt" => Real(x.sqrt()),
            "Reciprocal" => Real(1.0 / x),
            "Relu" => Real(x.max(0.0)),
            "Exp" => Real(x.exp()),
            "Log" => Real(x.ln()),
            _ => Unknown,
        },
        // Sizes that were cast to floats stay whole.
        ("Floor" | "Ceil" | "Round", Size(s)) => Size(s.clone()),
        _ => Unknown,
    };
    fit(result, dtype)
}

/// Converts an element to another type, as `Cast` does.
pub(super) fn cast(a: &Scalar, to: Option<DataType>) -> Scalar {
    let Some(to) = to else { return Unknown };
    match a {
        _ if to == DataType::String => Unknown,
        Int(x) if to.is_float() => fit(Real(*x as f64), Some(to)),
        Int(x) if to == DataType::Bool => Int(i64::from(*x != 0)),
        Real(x) if to == DataType::Bool => Int(i64::from(*x != 0.0)),
        // Towards zero; out of range is undefined, hence unknown.
        Real(x) if !to.is_float() => {
            if x.is_finite() && x.abs() < 9e18 {
                fit(Int(x.trunc() as i64), Some(to))
            } else {
                Unknown
            }
        }
        Size(s) if matches!(to, DataType::I64 | DataType::I32 | DataType::U64 | DataType::F32 | DataType::F64) => {
            Size(s.clone())
        }
        Size(_) => Unknown,
        other => fit(other.clone(), Some(to)),
    }
}

/// Rounds or refuses a result as its element type does.
fn fit(result: Scalar, dtype: Option<DataType>) -> Scalar {
    use DataType::{BF16, F16, F32, I8, I16, I32, U8, U16, U32, U64};
    match (&result, dtype) {
        // One operation in f64 rounded to f32 equals the operation in f32.
        (Real(x), Some(F32)) => Real(f64::from(*x as f32)),
        (Real(x), Some(F16)) => Real(half::f16::from_f64(*x).to_f64()),
        (Real(x), Some(BF16)) => Real(half::bf16::from_f64(*x).to_f64()),
        (Int(x), Some(dtype)) => {
            let fits = match dtype {
                I8 => i8::try_from(*x).is_ok(),
                I16 => i16::try_from(*x).is_ok(),
                I32 => i32::try_from(*x).is_ok(),
                U8 => u8::try_from(*x).is_ok(),
                U16 => u16::try_from(*x).is_ok(),
                U32 => u32::try_from(*x).is_ok(),
                U64 => *x >= 0,
                _ => true,
            };
            if fits { result } else { Unknown }
        }
        _ => result,
    }
}
