//! Learning rates over time, computed in the step from its number.

use serde::{Deserialize, Serialize};

use super::StepError;
use crate::emit::{Attribute, Emitter};
use crate::tensor::DataType;

/// A learning rate over time, counted in steps from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The rate where nothing raises or lowers it, above 0.
    pub rate: f64,
    /// Steps over which the rate rises in a line to `rate`.
    #[serde(default)]
    pub warmup: u64,
    /// What happens then.
    #[serde(default)]
    pub decay: Decay,
}

/// How a learning rate falls behind its warm-up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    /// Not at all.
    #[default]
    Constant,
    /// By `factor` every `every` steps.
    Step {
        /// Steps between two falls.
        every: u64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// By `factor` at every step.
    Exponential {
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// In a line to `last`, reached at step `steps`.
    Linear {
        /// The step, warm-up included, from which on the rate is `last`.
        steps: u64,
        /// The last rate.
        #[serde(default)]
        last: f64,
    },
    /// Along half a cosine to `last`, reached at step `steps` (Loshchilov and
    /// Hutter, 2017).
    Cosine {
        /// The step, warm-up included, from which on the rate is `last`.
        steps: u64,
        /// The last rate.
        #[serde(default)]
        last: f64,
    },
}

impl Schedule {
    /// Always this rate.
    #[must_use]
    pub fn constant(rate: f64) -> Self {
        Self { rate, warmup: 0, decay: Decay::Constant }
    }

    pub(super) fn check(&self) -> Result<(), StepError> {
        let positive = |what, value: f64| {
            let range = "above 0 and finite";
            if value > 0.0 && value.is_finite() { Ok(()) } else { Err(StepError::Range { what, value, range }) }
        };
        positive("the learning rate", self.rate)?;
        match self.decay {
            Decay::Constant => Ok(()),
            Decay::Step { every, factor } => {
                positive("the schedule's `every`", every as f64)?;
                positive("the schedule's factor", factor)
            }
            Decay::Exponential { factor } => positive("the schedule's factor", factor),
            Decay::Linear { steps, last } | Decay::Cosine { steps, last } => {
                if !(last >= 0.0 && last.is_finite()) {
                    let range = "at least 0 and finite";
                    return Err(StepError::Range { what: "the last learning rate", value: last, range });
                }
                if steps <= self.warmup {
                    let range = "more than the warm-up's steps";
                    return Err(StepError::Range { what: "the schedule's `steps`", value: steps as f64, range });
                }
                Ok(())
            }
        }
    }

    /// The rate at a step: what the graph computes, up to rounding.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        let since = step.saturating_sub(self.warmup) as f64;
        let share = |steps: u64| (since / (steps.saturating_sub(self.warmup).max(1)) as f64).min(1.0);
        let decayed = match self.decay {
            Decay::Constant => self.rate,
            Decay::Step { every, factor } => self.rate * factor.powf((since / every as f64).floor()),
            Decay::Exponential { factor } => self.rate * factor.powf(since),
            Decay::Linear { steps, last } => self.rate + (last - self.rate) * share(steps),
            Decay::Cosine { steps, last } => {
                last + (self.rate - last) * 0.5 * (1.0 + (std::f64::consts::PI * share(steps)).cos())
            }
        };
        decayed * ((step + 1) as f64 / (self.warmup + 1) as f64).min(1.0)
    }
}

/// The rate at the step whose number is in `step`, an i64 scalar.
pub(super) fn emit(schedule: &Schedule, step: &str, dtype: DataType, out: &mut Emitter) -> String {
    let rate = out.scalar(dtype, schedule.rate);
    if schedule.warmup == 0 && schedule.decay == Decay::Constant {
        return rate;
    }
    // Doubles count further than 2^24 steps.
    let f64 = DataType::F64;
    let now = out.op("Cast", &[step], &[("to", Attribute::Int(i64::from(f64.to_onnx())))]);
    let warmup = schedule.warmup as f64;
    let number = |out: &mut Emitter, x: f64| out.scalar(f64, x);
    let since = number(out, warmup);
    let since = out.op("Sub", &[&now, &since], &[]);
    let zero = number(out, 0.0);
    let since = out.op("Max", &[&since, &zero], &[]);
    let share = |out: &mut Emitter, steps: u64| {
        let span = number(out, (steps - schedule.warmup) as f64);
        let share = out.op("Div", &[&since, &span], &[]);
        let one = number(out, 1.0);
        out.op("Min", &[&share, &one], &[])
    };
    let power = |out: &mut Emitter, factor: f64, exponent: &str| {
        let log = number(out, factor.ln());
        let exponent = out.op("Mul", &[exponent, &log], &[]);
        let power = out.op("Exp", &[&exponent], &[]);
        let rate = number(out, schedule.rate);
        out.op("Mul", &[&rate, &power], &[])
    };
    let mut value = match schedule.decay {
        Decay::Constant => number(out, schedule.rate),
        Decay::Step { every, factor } => {
            let every = number(out, every as f64);
            let falls = out.op("Div", &[&since, &every], &[]);
            let falls = out.op("Floor", &[&falls], &[]);
            power(out, factor, &falls)
        }
        Decay::Exponential { factor } => power(out, factor, &since),
        Decay::Linear { steps, last } => {
            let share = share(out, steps);
            let fall = number(out, last - schedule.rate);
            let fall = out.op("Mul", &[&fall, &share], &[]);
            let rate = number(out, schedule.rate);
            out.op("Add", &[&rate, &fall], &[])
        }
        Decay::Cosine { steps, last } => {
            let share = share(out, steps);
            // (1 + cos(pi x)) / 2 = sin(pi/2 (1 - x))^2: ONNX Runtime has no
            // cosine of doubles.
            let one = number(out, 1.0);
            let left = out.op("Sub", &[&one, &share], &[]);
            let quarter = number(out, std::f64::consts::FRAC_PI_2);
            let angle = out.op("Mul", &[&left, &quarter], &[]);
            let wave = out.op("Sin", &[&angle], &[]);
            let wave = out.op("Mul", &[&wave, &wave], &[]);
            let span = number(out, schedule.rate - last);
            let above = out.op("Mul", &[&wave, &span], &[]);
            let last = number(out, last);
            out.op("Add", &[&last, &above], &[])
        }
    };
    if schedule.warmup > 0 {
        let one = number(out, 1.0);
        let next = out.op("Add", &[&now, &one], &[]);
        let span = number(out, warmup + 1.0);
        let rise = out.op("Div", &[&next, &span], &[]);
        let rise = out.op("Min", &[&rise, &one], &[]);
        value = out.op("Mul", &[&value, &rise], &[]);
    }
    out.op("Cast", &[&value], &[("to", Attribute::Int(i64::from(dtype.to_onnx())))])
}
