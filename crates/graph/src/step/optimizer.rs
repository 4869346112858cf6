//! Optimisers and bounds on gradients. Each agrees with PyTorch's of its name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Role, StepError};
use crate::emit::{Attribute, Emitter};
use crate::kernels::Kernels;
use crate::onnx::TensorProto;
use crate::tensor::{DataType, Tensor};

/// How weights follow their gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Optimizer {
    /// Stochastic gradient descent.
    Sgd {
        /// How much of the last direction is kept, below 1.
        #[serde(default)]
        momentum: f64,
        /// Looks ahead along the direction (Nesterov).
        #[serde(default)]
        nesterov: bool,
        /// Share of a weight added to its gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba, 2015).
    Adam(Moments),
    /// Adam whose weight decay bypasses the moments (Loshchilov and Hutter,
    /// 2019).
    AdamW(Moments),
}

/// Settings of Adam.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Moments {
    /// How much of the mean gradient is kept, below 1.
    pub beta1: f64,
    /// How much of the mean squared gradient is kept, below 1.
    pub beta2: f64,
    /// Keeps the division finite.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Bounds on gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Clip {
    /// All gradients are scaled down together until their norm is at most this.
    Norm(f64),
    /// Every element is held within plus and minus this.
    Value(f64),
}

impl Clip {
    pub(super) fn check(self) -> Result<(), StepError> {
        let (Self::Norm(value) | Self::Value(value)) = self;
        if value > 0.0 && value.is_finite() {
            return Ok(());
        }
        Err(StepError::Range { what: "the bound on gradients", value, range: "above 0 and finite" })
    }
}

impl Optimizer {
    /// Its name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::Adam(_) => "adam",
            Self::AdamW(_) => "adamw",
        }
    }

    pub(super) fn check(&self) -> Result<(), StepError> {
        let below_one = |what, value: f64| {
            let range = "at least 0 and below 1";
            if (0.0..1.0).contains(&value) { Ok(()) } else { Err(StepError::Range { what, value, range }) }
        };
        let decay = |value: f64| {
            let (what, range) = ("the weight decay", "at least 0 and finite");
            if value >= 0.0 && value.is_finite() { Ok(()) } else { Err(StepError::Range { what, value, range }) }
        };
        match self {
            Self::Sgd { momentum, nesterov, weight_decay } => {
                below_one("the momentum", *momentum)?;
                if *nesterov && *momentum == 0.0 {
                    let range = "above 0 for Nesterov's";
                    return Err(StepError::Range { what: "the momentum", value: 0.0, range });
                }
                decay(*weight_decay)
            }
            Self::Adam(m) | Self::AdamW(m) => {
                below_one("beta1", m.beta1)?;
                below_one("beta2", m.beta2)?;
                decay(m.weight_decay)?;
                if m.epsilon > 0.0 && m.epsilon.is_finite() {
                    return Ok(());
                }
                Err(StepError::Range { what: "epsilon", value: m.epsilon, range: "above 0 and finite" })
            }
        }
    }
}

/// A weight and the name of its gradient.
pub(super) struct Weight<'a> {
    pub(super) name: &'a str,
    pub(super) gradient: &'a str,
    /// The weight's first value, for shape and type.
    pub(super) like: &'a TensorProto,
}

/// A piece of state and the name of its next value.
pub(super) struct Update {
    pub(super) input: String,
    pub(super) value: String,
    pub(super) role: Role,
    /// Its first value, where the model doesn't hold it already.
    pub(super) initial: Option<Tensor>,
}

pub(super) struct Clipped {
    pub(super) gradients: BTreeMap<String, String>,
    /// Of all gradients together, before clipping.
    pub(super) norm: String,
}

/// Bounds gradients, and takes their norm, which is of type `dtype`. A gradient
/// is given as the weight's name, its own, and its type.
pub(super) fn clip(
    gradients: &[(&str, &str, DataType)],
    clip: Option<Clip>,
    dtype: DataType,
    out: &mut Emitter,
) -> Clipped {
    let cast = |out: &mut Emitter, x: &str, from: DataType, to: DataType| {
        if from == to {
            return x.to_owned();
        }
        out.op("Cast", &[x], &[("to", Attribute::Int(i64::from(to.to_onnx())))])
    };
    let squares: Vec<String> = gradients
        .iter()
        .map(|(_, gradient, own)| {
            let square = out.op("ReduceSumSquare", &[gradient], &[("keepdims", Attribute::Int(0))]);
            cast(out, &square, *own, dtype)
        })
        .collect();
    let squares: Vec<&str> = squares.iter().map(String::as_str).collect();
    let sum = out.op("Sum", &squares, &[]);
    let norm = out.op("Sqrt", &[&sum], &[]);
    let each = |out: &mut Emitter, gradient: &str, own: DataType| match clip {
        None => gradient.to_owned(),
        Some(Clip::Value(bound)) => {
            let (low, high) = (out.scalar(own, -bound), out.scalar(own, bound));
            out.op("Clip", &[gradient, &low, &high], &[])
        }
        Some(Clip::Norm(bound)) => {
            let (bound, tiny, one) = (out.scalar(dtype, bound), out.scalar(dtype, 1e-6), out.scalar(dtype, 1.0));
            let above = out.op("Add", &[&norm, &tiny], &[]);
            let scale = out.op("Div", &[&bound, &above], &[]);
            let scale = out.op("Min", &[&scale, &one], &[]);
            let scale = cast(out, &scale, dtype, own);
            out.op("Mul", &[gradient, &scale], &[])
        }
    };
    let gradients = gradients.iter().map(|(name, g, own)| ((*name).to_owned(), each(out, g, *own))).collect();
    Clipped { gradients, norm }
}

/// Writes the next value of every weight and of what the optimiser keeps.
pub(super) fn emit(
    optimizer: &Optimizer,
    weights: &[Weight],
    rate: (&str, DataType),
    step: &str,
    kernels: &Kernels,
    out: &mut Emitter,
) -> Vec<Update> {
    let corrections = match optimizer {
        Optimizer::Adam(m) | Optimizer::AdamW(m) => Some(corrections(m, step, out)),
        Optimizer::Sgd { .. } => None,
    };
    let mut kept = Vec::new();
    let mut updates = Vec::with_capacity(weights.len());
    for weight in weights {
        let mut w = Writer { out, weight, rate, kernels, kept: &mut kept };
        let value = match optimizer {
            Optimizer::Sgd { momentum, nesterov, weight_decay } => w.sgd(*momentum, *nesterov, *weight_decay),
            Optimizer::Adam(m) => w.adam(m, false, corrections.as_ref()),
            Optimizer::AdamW(m) => w.adam(m, true, corrections.as_ref()),
        };
        updates.push(Update { input: weight.name.to_owned(), value, role: Role::Parameter, initial: None });
    }
    updates.extend(kept);
    updates
}

/// `1 - beta^t` for both moments, the second's root, as f64.
struct Corrections {
    first: String,
    second: String,
}

fn corrections(m: &Moments, step: &str, out: &mut Emitter) -> Corrections {
    let double = DataType::F64;
    let one = out.int(1);
    let next = out.op("Add", &[step, &one], &[]);
    let t = out.op("Cast", &[&next], &[("to", Attribute::Int(i64::from(double.to_onnx())))]);
    let mut correction = |beta: f64, root: bool| {
        let log = out.scalar(double, if beta > 0.0 { beta.ln() } else { f64::NEG_INFINITY });
        let exponent = out.op("Mul", &[&t, &log], &[]);
        let power = out.op("Exp", &[&exponent], &[]);
        let one = out.scalar(double, 1.0);
        let mut rest = out.op("Sub", &[&one, &power], &[]);
        if root {
            rest = out.op("Sqrt", &[&rest], &[]);
        }
        rest
    };
    Corrections { first: correction(m.beta1, false), second: correction(m.beta2, true) }
}

struct Writer<'a, 'w> {
    out: &'a mut Emitter,
    weight: &'a Weight<'w>,
    /// The rate and its type.
    rate: (&'a str, DataType),
    kernels: &'a Kernels,
    kept: &'a mut Vec<Update>,
}

impl Writer<'_, '_> {
    fn op(&mut self, kind: &str, a: &str, b: &str) -> String {
        self.out.op(kind, &[a, b], &[])
    }

    fn times(&mut self, x: &str, factor: f64) -> String {
        let factor = self.out.scalar(self.dtype(), factor);
        self.op("Mul", x, &factor)
    }

    fn dtype(&self) -> DataType {
        DataType::from_onnx(self.weight.like.data_type()).unwrap_or(DataType::F32)
    }

    /// The rate in the weight's own type.
    fn rate(&mut self) -> String {
        let (rate, dtype) = self.rate;
        if dtype == self.dtype() { rate.to_owned() } else { self.cast(rate) }
    }

    /// Something the optimiser keeps for this weight, zero at first; its name.
    fn kept(&mut self, what: &str) -> String {
        self.out.name(&format!("{}.{what}", self.weight.name))
    }

    fn keep(&mut self, input: String, value: String) {
        let shape: Vec<usize> = self.weight.like.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
        let initial = Tensor::zeros(self.dtype(), shape).expect("a weight's shape and type");
        self.kept.push(Update { input, value, role: Role::Optimizer, initial: Some(initial) });
    }

    fn decayed(&mut self, decay: f64) -> String {
        if decay == 0.0 {
            return self.weight.gradient.to_owned();
        }
        let pull = self.times(self.weight.name, decay);
        self.op("Add", self.weight.gradient, &pull)
    }

    /// Whether the engine's own operator of this name may stand in: they all
    /// are of f32.
    fn has(&self, kernel: &str) -> bool {
        self.dtype() == DataType::F32 && self.kernels.has(kernel)
    }

    fn sgd(&mut self, momentum: f64, nesterov: bool, decay: f64) -> String {
        if momentum != 0.0 && self.has("SgdUpdate") {
            let velocity = self.kept("momentum");
            let rate = self.rate();
            let inputs = [self.weight.name, self.weight.gradient, &velocity, &rate];
            let attributes = [
                ("momentum", Attribute::Float(momentum as f32)),
                ("nesterov", Attribute::Float(f32::from(u8::from(nesterov)))),
                ("weight_decay", Attribute::Float(decay as f32)),
            ];
            let [weight, next] = two(self.out.kernel("SgdUpdate", &inputs, 2, &attributes));
            self.keep(velocity, next);
            return weight;
        }
        let mut gradient = self.decayed(decay);
        if momentum != 0.0 {
            let velocity = self.kept("momentum");
            let slowed = self.times(&velocity, momentum);
            let next = self.op("Add", &slowed, &gradient);
            gradient = if nesterov {
                let ahead = self.times(&next, momentum);
                self.op("Add", &gradient, &ahead)
            } else {
                next.clone()
            };
            self.keep(velocity, next);
        }
        let rate = self.rate();
        let change = self.op("Mul", &gradient, &rate);
        self.op("Sub", self.weight.name, &change)
    }

    fn adam(&mut self, m: &Moments, decoupled: bool, corrections: Option<&Corrections>) -> String {
        let Some(corrections) = corrections else { return self.weight.name.to_owned() };
        let (first, second) = (self.kept("mean"), self.kept("square"));
        if self.has("AdamUpdate") {
            return self.adam_at_once(m, decoupled, corrections, [first, second]);
        }
        let rate = self.rate();
        let gradient = if decoupled { self.weight.gradient.to_owned() } else { self.decayed(m.weight_decay) };
        let old = self.times(&first, m.beta1);
        let new = self.times(&gradient, 1.0 - m.beta1);
        let mean = self.op("Add", &old, &new);
        let square = self.op("Mul", &gradient, &gradient);
        let old = self.times(&second, m.beta2);
        let new = self.times(&square, 1.0 - m.beta2);
        let square = self.op("Add", &old, &new);
        // rate / c1 * mean / (sqrt(square) / sqrt(c2) + epsilon)
        let root = self.out.op("Sqrt", &[&square], &[]);
        let (c1, c2) = (self.cast(&corrections.first), self.cast(&corrections.second));
        let root = self.op("Div", &root, &c2);
        let epsilon = self.out.scalar(self.dtype(), m.epsilon);
        let below = self.op("Add", &root, &epsilon);
        let pace = self.op("Div", &rate, &c1);
        let direction = self.op("Div", &mean, &below);
        let change = self.op("Mul", &direction, &pace);
        let mut weight = self.weight.name.to_owned();
        if decoupled && m.weight_decay != 0.0 {
            let shrink = self.times(&rate, m.weight_decay);
            let pull = self.op("Mul", self.weight.name, &shrink);
            weight = self.op("Sub", &weight, &pull);
        }
        self.keep(first, mean);
        self.keep(second, square);
        self.op("Sub", &weight, &change)
    }

    /// [`Self::adam`] by the engine's own operator.
    fn adam_at_once(&mut self, m: &Moments, decoupled: bool, corrections: &Corrections, kept: [String; 2]) -> String {
        let rate = self.rate();
        let (first, second) = (self.cast(&corrections.first), self.cast(&corrections.second));
        let pace = self.op("Div", &rate, &first);
        let past = if decoupled { m.weight_decay } else { 0.0 };
        let shrink = self.times(&rate, past);
        let float = |value: f64| Attribute::Float(value as f32);
        let attributes = [
            ("beta1", float(m.beta1)),
            ("rest1", float(1.0 - m.beta1)),
            ("beta2", float(m.beta2)),
            ("rest2", float(1.0 - m.beta2)),
            ("epsilon", float(m.epsilon)),
            ("weight_decay", float(m.weight_decay - past)),
        ];
        let moments = [self.weight.name, self.weight.gradient, &kept[0], &kept[1]];
        let inputs = [&moments[..], &[&pace, &second, &shrink]].concat();
        let mut next = self.out.kernel("AdamUpdate", &inputs, 3, &attributes);
        let updated = two(next.split_off(1));
        for (kept, next) in kept.into_iter().zip(updated) {
            self.keep(kept, next);
        }
        next.remove(0)
    }

    /// A number of another type in the weight's own.
    fn cast(&mut self, number: &str) -> String {
        self.out.op("Cast", &[number], &[("to", Attribute::Int(i64::from(self.dtype().to_onnx())))])
    }
}

fn two(names: Vec<String>) -> [String; 2] {
    names.try_into().expect("as many outputs as were asked for")
}
