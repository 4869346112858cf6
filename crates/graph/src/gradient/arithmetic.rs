//! Arithmetic, element by element, with broadcasting.

use super::context::{Fault, Gradients, RuleContext};
use super::flat::sums_squares;
use super::registry::Family;
use crate::emit::Attribute;
use crate::tensor::{DataType, Elements};

pub(super) const RULES: Family = &[
    ("Add", add),
    ("Sub", sub),
    ("Mul", mul),
    ("Div", div),
    ("Pow", pow),
    ("Sum", sum),
    ("Mean", mean),
    ("Max", extreme),
    ("Min", extreme),
    ("Where", choose),
    ("Clip", clip),
    ("Neg", |s| unary(s, |s, dy| s.neg(dy))),
    ("Abs", |s| unary(s, |s, dy| factor(s, dy, |s, x, _| s.sign(x)))),
    ("Exp", |s| unary(s, |s, dy| factor(s, dy, |_, _, y| y.to_owned()))),
    ("Log", |s| unary(s, |s, dy| s.div(dy, s.x(0)))),
    ("Sqrt", sqrt),
    ("Reciprocal", reciprocal),
    ("Sin", |s| unary(s, |s, dy| factor(s, dy, |s, x, _| s.op("Cos", &[x], &[])))),
    ("Cos", cos),
    ("Tan", tan),
    ("Sinh", |s| unary(s, |s, dy| factor(s, dy, |s, x, _| s.op("Cosh", &[x], &[])))),
    ("Cosh", |s| unary(s, |s, dy| factor(s, dy, |s, x, _| s.op("Sinh", &[x], &[])))),
    ("Asin", |s| inverse(s, |s, square| s.number_minus(1.0, square), false)),
    ("Acos", |s| inverse(s, |s, square| s.number_minus(1.0, square), true)),
    ("Asinh", |s| inverse(s, |s, square| s.plus(square, 1.0), false)),
    ("Acosh", |s| inverse(s, |s, square| s.plus(square, -1.0), false)),
    ("Atan", |s| over(s, |s, square| s.plus(square, 1.0))),
    ("Atanh", |s| over(s, |s, square| s.number_minus(1.0, square))),
    ("Erf", erf),
    ("Identity", |s| unary(s, |_, dy| dy.to_owned())),
    ("Cast", cast),
    ("CastLike", cast),
    ("Mod", modulo),
];

/// One input, one output.
fn unary(s: &mut RuleContext, rule: impl FnOnce(&mut RuleContext, &str) -> String) -> Gradients {
    let dy = s.dy()?;
    let dx = rule(s, &dy);
    s.only(dx)
}

/// `dy` times a derivative made of the input and the output.
fn factor(s: &mut RuleContext, dy: &str, derivative: impl FnOnce(&mut RuleContext, &str, &str) -> String) -> String {
    let (x, y) = (s.x(0), s.y(0));
    let derivative = derivative(s, x, y);
    s.mul(dy, &derivative)
}

fn add(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    (0..2).map(|i| s.wants(i).then(|| s.reduced(i, dy.clone(), s.y(0))).transpose()).collect()
}

fn sub(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let a = s.wants(0).then(|| s.reduced(0, dy.clone(), s.y(0))).transpose()?;
    let b = if s.wants(1) {
        // The sum first: there is less to negate then.
        let sum = s.reduced(1, dy, s.y(0))?;
        Some(s.neg(&sum))
    } else {
        None
    };
    Ok(vec![a, b])
}

fn mul(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let mut gradients = Vec::new();
    for i in 0..2 {
        gradients.push(if s.wants(i) {
            let other = s.x(1 - i);
            let full = s.mul(&dy, other);
            Some(s.reduced(i, full, s.y(0))?)
        } else {
            None
        });
    }
    Ok(gradients)
}

fn div(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let a = if s.wants(0) {
        let scaled = s.div(&dy, s.x(1));
        Some(s.reduced(0, scaled, s.y(0))?)
    } else {
        None
    };
    let b = if s.wants(1) {
        // In this order, since a gradient over a tiny divisor may be infinite
        // where the quotient is zero.
        let slope = s.div(s.y(0), s.x(1));
        let full = s.mul(&dy, &slope);
        let sum = s.reduced(1, full, s.y(0))?;
        Some(s.neg(&sum))
    } else {
        None
    };
    Ok(vec![a, b])
}

fn pow(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let exponent = s.constant(1).filter(|t| t.len() == 1).and_then(|t| number(&t));
    let a = if s.wants(0) {
        let slope = match exponent {
            Some(0.0) => s.zeros_like(s.x(0)),
            // x^(c-1) of a zero or negative x is what a product makes of it.
            Some(2.0) => s.times(s.x(0), 2.0),
            Some(3.0) => {
                let square = s.mul(s.x(0), s.x(0));
                s.times(&square, 3.0)
            }
            Some(c) => {
                let less = s.num(c - 1.0);
                let power = s.op("Pow", &[s.x(0), &less], &[]);
                s.times(&power, c)
            }
            None => {
                let exponent = same_type(s, s.x(1), s.x(0));
                let one = s.num(1.0);
                let less = s.sub(&exponent, &one);
                let power = s.op("Pow", &[s.x(0), &less], &[]);
                let slope = s.mul(&power, &exponent);
                // A constant has no slope, where the formula has 0 * 0^-1.
                let zero = s.num(0.0);
                let constant = s.op("Equal", &[&exponent, &zero], &[]);
                s.except_where(&constant, &slope)
            }
        };
        let mut full = s.mul(&dy, &slope);
        if exponent.is_some_and(|c| 0.0 < c && c < 1.0) {
            full = rooted(s, full);
        }
        Some(s.reduced(0, full, s.y(0))?)
    } else {
        None
    };
    let b = if s.wants(1) {
        let log = s.op("Log", &[s.x(0)], &[]);
        let slope = s.mul(s.y(0), &log);
        // 0^b is 0 for every b > 0: no slope, where the formula has 0 * -inf.
        // At 0^0 PyTorch says the same.
        let exponent = same_type(s, s.x(1), s.x(0));
        let zero = s.num(0.0);
        let none = s.op("Equal", &[s.x(0), &zero], &[]);
        let risen = s.op("GreaterOrEqual", &[&exponent, &zero], &[]);
        let still = s.op("And", &[&none, &risen], &[]);
        let slope = s.except_where(&still, &slope);
        let full = s.mul(&dy, &slope);
        Some(s.reduced(1, full, s.y(0))?)
    } else {
        None
    };
    Ok(vec![a, b])
}

/// `x` in the type of `like`.
fn same_type(s: &mut RuleContext, x: &str, like: &str) -> String {
    let dtype = s.dtype(like);
    if s.dtype(x) == dtype {
        return x.to_owned();
    }
    s.cast(x, dtype)
}

/// The one number of a constant.
pub(super) fn number(tensor: &crate::Tensor) -> Option<f64> {
    use crate::Elements;
    match tensor.elements() {
        Elements::F32(v) => v.first().map(|&x| f64::from(x)),
        Elements::F64(v) => v.first().copied(),
        Elements::I64(v) => v.first().map(|&x| x as f64),
        Elements::I32(v) => v.first().map(|&x| f64::from(x)),
        _ => None,
    }
}

fn sum(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    (0..s.node.input.len()).map(|i| s.wants(i).then(|| s.reduced(i, dy.clone(), s.y(0))).transpose()).collect()
}

fn mean(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let count = s.node.input.len();
    let share = s.times(&dy, 1.0 / count as f64);
    (0..count).map(|i| s.wants(i).then(|| s.reduced(i, share.clone(), s.y(0))).transpose()).collect()
}

/// Max and Min: equal winners share the gradient, as in PyTorch.
fn extreme(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let inputs: Vec<&str> = (0..s.node.input.len()).map(|i| s.x(i)).collect();
    let shares = winners(s, &dy, s.y(0), &inputs);
    let each = shares.into_iter().enumerate();
    each.map(|(i, share)| s.wants(i).then(|| s.reduced(i, share, s.y(0))).transpose()).collect()
}

/// What each of some values gets of the gradient of the best of them, `y`, in
/// the shape of that.
fn winners(s: &mut RuleContext, dy: &str, y: &str, values: &[&str]) -> Vec<String> {
    let won: Vec<String> = values.iter().map(|x| s.op("Equal", &[x, y], &[])).collect();
    let ones: Vec<String> = won.iter().map(|won| s.cast(won, s.dtype(s.y(0)))).collect();
    let ones: Vec<&str> = ones.iter().map(String::as_str).collect();
    let count = s.op("Sum", &ones, &[]);
    let share = s.div(dy, &count);
    won.iter().map(|won| s.only_where(won, &share)).collect()
}

fn choose(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let mut gradients = vec![None];
    for i in 1..3 {
        gradients.push(if s.wants(i) {
            let full = if i == 1 { s.only_where(s.x(0), &dy) } else { s.except_where(s.x(0), &dy) };
            Some(s.reduced(i, full, s.y(0))?)
        } else {
            None
        });
    }
    Ok(gradients)
}

/// A bound that is a constant, or isn't there.
fn bound(s: &RuleContext, i: usize, without: f32) -> Option<f32> {
    if !s.given(i) {
        return Some(without);
    }
    match s.constant(i)?.elements() {
        Elements::F32(values) => values.first().copied(),
        _ => None,
    }
}

/// Nothing flows where a bound held the value, nor at the bound itself, as in
/// PyTorch 2.15 (which let it flow there before).
fn clip(s: &mut RuleContext) -> Gradients {
    if s.wants(1) || s.wants(2) {
        return clip_by(s);
    }
    let dy = s.dy()?;
    if s.has("ClipGrad")
        && let (Some(min), Some(max)) = (bound(s, 1, f32::NEG_INFINITY), bound(s, 2, f32::INFINITY))
    {
        let attributes = [("min", Attribute::Float(min)), ("max", Attribute::Float(max))];
        let dx = s.kernel("ClipGrad", &[&dy, s.x(0)], &attributes);
        return s.only(dx);
    }
    // Not every engine compares integers of every width, which stand for
    // numbers behind a quantiser.
    let whole = !s.dtype(s.x(0)).is_float();
    let number = |s: &mut RuleContext, name: &str| if whole { s.cast(name, DataType::F32) } else { name.to_owned() };
    let x = number(s, s.x(0));
    let mut held: Option<String> = None;
    for (i, within) in [(1, "Greater"), (2, "Less")] {
        if s.given(i) {
            let bound = number(s, s.x(i));
            let within = s.op(within, &[&x, &bound], &[]);
            held = Some(match held {
                Some(other) => s.op("And", &[&other, &within], &[]),
                None => within,
            });
        }
    }
    let dx = match held {
        Some(within) => s.only_where(&within, &dy),
        None => dy,
    };
    s.only(dx)
}

/// A clip whose bounds are trained, as the smaller of the upper one and the
/// larger of the other two: what is equal shares the gradient, as in PyTorch.
fn clip_by(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let y = s.y(0);
    let (low, high) = (s.given(1), s.given(2));
    let raised = if low { s.op("Max", &[s.x(0), s.x(1)], &[]) } else { s.x(0).to_owned() };
    let mut shares = [None, None, None];
    let mut rest = dy;
    if high {
        let [inner, upper] = two(winners(s, &rest, y, &[&raised, s.x(2)]));
        (rest, shares[2]) = (inner, Some(upper));
    }
    if low {
        let [inner, lower] = two(winners(s, &rest, &raised, &[s.x(0), s.x(1)]));
        (rest, shares[1]) = (inner, Some(lower));
    }
    shares[0] = Some(rest);
    let mut gradients = Vec::with_capacity(3);
    for (i, share) in shares.into_iter().enumerate() {
        gradients.push(share.filter(|_| s.wants(i)).map(|share| s.reduced(i, share, y)).transpose()?);
    }
    Ok(gradients)
}

fn two(names: Vec<String>) -> [String; 2] {
    names.try_into().expect("one for each of two")
}

fn sqrt(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let half = s.times(&dy, 0.5);
    let dx = s.div(&half, s.y(0));
    let dx = rooted(s, dx);
    s.only(dx)
}

/// The gradient of what a root is taken of: nothing flows into squares that
/// are zero.
fn rooted(s: &mut RuleContext, dx: String) -> String {
    if !sums_squares(s, s.x(0)) {
        return dx;
    }
    let zero = s.num(0.0);
    let none = s.op("Equal", &[s.y(0), &zero], &[]);
    s.except_where(&none, &dx)
}

fn reciprocal(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let square = s.mul(s.y(0), s.y(0));
    let dx = s.mul(&dy, &square);
    let dx = s.neg(&dx);
    s.only(dx)
}

fn cos(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let sin = s.op("Sin", &[s.x(0)], &[]);
    let dx = s.mul(&dy, &sin);
    let dx = s.neg(&dx);
    s.only(dx)
}

fn tan(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let square = s.mul(s.y(0), s.y(0));
    let slope = s.plus(&square, 1.0);
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

/// `dy / sqrt(f(x^2))`, negated or not.
fn inverse(s: &mut RuleContext, f: impl FnOnce(&mut RuleContext, &str) -> String, negative: bool) -> Gradients {
    let dy = s.dy()?;
    let square = s.mul(s.x(0), s.x(0));
    let inside = f(s, &square);
    let root = s.op("Sqrt", &[&inside], &[]);
    let dx = s.div(&dy, &root);
    let dx = if negative { s.neg(&dx) } else { dx };
    s.only(dx)
}

/// `dy / f(x^2)`.
fn over(s: &mut RuleContext, f: impl FnOnce(&mut RuleContext, &str) -> String) -> Gradients {
    let dy = s.dy()?;
    let square = s.mul(s.x(0), s.x(0));
    let below = f(s, &square);
    let dx = s.div(&dy, &below);
    s.only(dx)
}

fn erf(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let bell = gauss(s, s.x(0), 1.0, std::f64::consts::FRAC_2_SQRT_PI);
    let dx = s.mul(&dy, &bell);
    s.only(dx)
}

/// `height * exp(-rate * x^2)`.
pub(super) fn gauss(s: &mut RuleContext, x: &str, rate: f64, height: f64) -> String {
    let square = s.mul(x, x);
    let exponent = s.times(&square, -rate);
    let bell = s.op("Exp", &[&exponent], &[]);
    s.times(&bell, height)
}

fn cast(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let dtype = s.dtype(s.x(0));
    if !dtype.is_float() {
        return Ok(vec![None]);
    }
    let dx = s.cast(&dy, dtype);
    s.only(dx)
}

/// `fmod(a, b)` runs along with `a` between its jumps.
fn modulo(s: &mut RuleContext) -> Gradients {
    if s.wants(1) {
        return Err(Fault::new("its divisor is trained; freeze it"));
    }
    let dy = s.dy()?;
    Ok(vec![Some(s.reduced(0, dy, s.y(0))?)])
}
