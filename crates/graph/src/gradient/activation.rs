//! Activation functions.

use super::arithmetic::gauss;
use super::context::{Gradients, RuleContext};
use super::registry::Family;

pub(super) const RULES: Family = &[
    ("Relu", relu),
    ("LeakyRelu", leaky_relu),
    ("PRelu", prelu),
    ("ThresholdedRelu", thresholded_relu),
    ("Elu", elu),
    ("Selu", selu),
    ("Celu", celu),
    ("Sigmoid", sigmoid),
    ("HardSigmoid", hard_sigmoid),
    ("HardSwish", hard_swish),
    ("Swish", swish),
    ("Tanh", tanh),
    ("Softplus", softplus),
    ("Softsign", softsign),
    ("Gelu", gelu),
    ("Mish", mish),
    ("Softmax", softmax),
    ("LogSoftmax", log_softmax),
];

fn positive(s: &mut RuleContext, x: &str) -> String {
    let zero = s.num(0.0);
    s.op("Greater", &[x, &zero], &[])
}

/// `dy` where `x > 0`, else `dy * below`.
fn split(s: &mut RuleContext, dy: &str, below: &str) -> String {
    let positive = positive(s, s.x(0));
    let other = s.mul(dy, below);
    s.op("Where", &[&positive, dy, &other], &[])
}

fn relu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    if s.has("ReluGrad") {
        let dx = s.kernel("ReluGrad", &[&dy, s.y(0)], &[]);
        return s.only(dx);
    }
    let positive = positive(s, s.y(0));
    let dx = s.only_where(&positive, &dy);
    s.only(dx)
}

fn leaky_relu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let alpha = s.float_or("alpha", 0.01);
    let alpha = s.num(alpha);
    let dx = split(s, &dy, &alpha);
    s.only(dx)
}

fn prelu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let dx = s.wants(0).then(|| split(s, &dy, s.x(1)));
    let slope = if s.wants(1) {
        let positive = positive(s, s.x(0));
        let full = s.mul(&dy, s.x(0));
        let full = s.except_where(&positive, &full);
        Some(s.reduced(1, full, s.y(0))?)
    } else {
        None
    };
    Ok(vec![dx, slope])
}

fn thresholded_relu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let alpha = s.float_or("alpha", 1.0);
    let alpha = s.num(alpha);
    let above = s.op("Greater", &[s.x(0), &alpha], &[]);
    let dx = s.only_where(&above, &dy);
    s.only(dx)
}

/// Below zero the slope of `a (e^x - 1)` is `y + a`.
fn elu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let alpha = s.float_or("alpha", 1.0);
    let slope = s.plus(s.y(0), alpha);
    let dx = split(s, &dy, &slope);
    s.only(dx)
}

fn selu(s: &mut RuleContext) -> Gradients {
    let alpha = s.float_or("alpha", 1.673_263_2);
    let gamma = s.float_or("gamma", 1.050_701);
    let dy = s.dy()?;
    let scaled = s.times(&dy, gamma);
    let below = s.plus(s.y(0), alpha * gamma);
    let below = s.mul(&dy, &below);
    let positive = positive(s, s.x(0));
    let dx = s.op("Where", &[&positive, &scaled, &below], &[]);
    s.only(dx)
}

/// Below zero the slope of `a (e^(x/a) - 1)` is `y / a + 1`.
fn celu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let alpha = s.float_or("alpha", 1.0);
    let slope = s.times(s.y(0), 1.0 / alpha);
    let slope = s.plus(&slope, 1.0);
    let dx = split(s, &dy, &slope);
    s.only(dx)
}

fn sigmoid(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let rest = s.number_minus(1.0, s.y(0));
    let slope = s.mul(s.y(0), &rest);
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

/// Slope `alpha` strictly between 0 and 1.
fn hard_sigmoid(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let alpha = s.float_or("alpha", 0.2);
    let slope = s.times(&dy, alpha);
    let (zero, one) = (s.num(0.0), s.num(1.0));
    let above = s.op("Greater", &[s.y(0), &zero], &[]);
    let below = s.op("Less", &[s.y(0), &one], &[]);
    let within = s.op("And", &[&above, &below], &[]);
    let dx = s.only_where(&within, &slope);
    s.only(dx)
}

/// `x * clip(x/6 + 1/2, 0, 1)`: slope 0, then `x/3 + 1/2`, then 1.
fn hard_swish(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let third = s.times(s.x(0), 1.0 / 3.0);
    let slope = s.plus(&third, 0.5);
    let (low, high) = (s.num(-3.0), s.num(3.0));
    let below = s.op("LessOrEqual", &[s.x(0), &low], &[]);
    let above = s.op("GreaterOrEqual", &[s.x(0), &high], &[]);
    let dx = s.mul(&dy, &slope);
    let dx = s.either(&above, &dy, &dx);
    let dx = s.except_where(&below, &dx);
    s.only(dx)
}

/// `x * sigmoid(a x)`: slope `g + a x g (1 - g)`.
fn swish(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let alpha = s.float_or("alpha", 1.0);
    let scaled = s.times(s.x(0), alpha);
    let gate = s.op("Sigmoid", &[&scaled], &[]);
    let rest = s.number_minus(1.0, &gate);
    let bend = s.mul(&scaled, &rest);
    let bend = s.plus(&bend, 1.0);
    let slope = s.mul(&gate, &bend);
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

fn tanh(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let square = s.mul(s.y(0), s.y(0));
    let slope = s.number_minus(1.0, &square);
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

fn softplus(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let slope = s.op("Sigmoid", &[s.x(0)], &[]);
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

/// `x / (1 + |x|)`: slope `1 / (1 + |x|)^2`.
fn softsign(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let size = s.op("Abs", &[s.x(0)], &[]);
    let below = s.plus(&size, 1.0);
    let once = s.div(&dy, &below);
    let dx = s.div(&once, &below);
    s.only(dx)
}

fn gelu(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let slope = if s.text("approximate") == "tanh" {
        // y = x/2 (1 + tanh u), u = c (x + k x^3).
        let (c, k) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044_715);
        let square = s.mul(x, x);
        let inner = s.times(&square, c * k);
        let inner = s.plus(&inner, c);
        let u = s.mul(x, &inner);
        let tanh = s.op("Tanh", &[&u], &[]);
        let half = s.times(&tanh, 0.5);
        let half = s.plus(&half, 0.5);
        let du = s.times(&square, 3.0 * c * k);
        let du = s.plus(&du, c);
        let bend = s.mul(&tanh, &tanh);
        let bend = s.number_minus(1.0, &bend);
        let bend = s.mul(&bend, &du);
        let bend = s.mul(&bend, x);
        let bend = s.times(&bend, 0.5);
        s.add(&half, &bend)
    } else {
        // Phi(x) + x phi(x).
        let scaled = s.times(x, std::f64::consts::FRAC_1_SQRT_2);
        let erf = s.op("Erf", &[&scaled], &[]);
        let half = s.times(&erf, 0.5);
        let phi = s.plus(&half, 0.5);
        let bell = gauss(s, x, 0.5, 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2);
        let bend = s.mul(x, &bell);
        s.add(&phi, &bend)
    };
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

/// `x tanh(softplus x)`: slope `t + x (1 - t^2) sigmoid(x)`.
fn mish(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let x = s.x(0);
    let soft = s.op("Softplus", &[x], &[]);
    let t = s.op("Tanh", &[&soft], &[]);
    let gate = s.op("Sigmoid", &[x], &[]);
    let square = s.mul(&t, &t);
    let rest = s.number_minus(1.0, &square);
    let bend = s.mul(x, &rest);
    let bend = s.mul(&bend, &gate);
    let slope = s.add(&t, &bend);
    let dx = s.mul(&dy, &slope);
    s.only(dx)
}

/// `y (dy - sum(dy y))`.
fn softmax(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let axis = s.int_or("axis", -1);
    let y = numbers(s);
    let weighted = s.mul(&dy, &y);
    let total = s.sum(&weighted, &[axis], true);
    let part = s.mul(&total, &y);
    let dx = s.sub(&weighted, &part);
    s.only(dx)
}

/// The result; where somebody puts something else in the place of what is not a
/// number, zeros there: a row that a mask leaves nothing of takes no part.
fn numbers(s: &mut RuleContext) -> String {
    let y = s.y(0);
    if !s.index.graph.node.iter().any(|n| n.op_type() == "IsNaN" && n.input.iter().any(|x| x == y)) {
        return y.to_owned();
    }
    let none = s.op("IsNaN", &[y], &[]);
    s.except_where(&none, y)
}

/// `dy - exp(y) sum(dy)`.
fn log_softmax(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let axis = s.int_or("axis", -1);
    let total = s.sum(&dy, &[axis], true);
    let y = numbers(s);
    let share = s.op("Exp", &[&y], &[]);
    let part = s.mul(&total, &share);
    let dx = s.sub(&dy, &part);
    s.only(dx)
}
