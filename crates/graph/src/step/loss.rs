//! Losses.

use serde::{Deserialize, Serialize};

use super::{StepError, TARGET};
use crate::emit::{Attribute, Emitter};
use crate::infer::infer_types;
use crate::model::Model;
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::{Dim, ValueInfo};

/// What cross-entropy compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Targets {
    /// One class per example: i64 `[batch, ..]`.
    #[default]
    Classes,
    /// A probability for each class: f32, shaped as the output.
    Probabilities,
}

/// What is to become small; each is averaged over the batch, and agrees with
/// PyTorch's loss of its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Loss {
    /// Softmax and negative log-likelihood. The output holds logits, classes
    /// along axis 1; of a model that ends in Softmax, what goes into it.
    CrossEntropy {
        /// What targets are.
        #[serde(default)]
        targets: Targets,
        /// Share of the target spread evenly over all classes, below 1.
        #[serde(default)]
        smoothing: f64,
        /// A weight per class; empty for none.
        #[serde(default)]
        weights: Vec<f64>,
    },
    /// Mean squared error; targets shaped as the output.
    Mse,
    /// Binary cross-entropy on logits; targets in 0..=1, shaped as the output.
    /// Of a model that ends in Sigmoid, what goes into it.
    Bce,
    /// Kullback-Leibler divergence from a teacher's logits (targets, shaped
    /// as the output), both softened, scaled by the temperature's square
    /// (Hinton et al., 2015).
    Kl {
        /// Divides the logits, above 0.
        temperature: f64,
    },
    /// Cross-entropy with a class, and with it `weight` times the divergence
    /// from a teacher's logits, as [`Loss::Kl`] has it. Targets are f32
    /// `[batch, 1 + classes]`: the class, then the teacher's logits.
    Distil {
        /// Divides the logits, above 0.
        temperature: f64,
        /// Of the divergence, at least 0.
        weight: f64,
    },
}

/// A loss in its graph.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) loss: String,
    pub(super) correct: Option<String>,
    pub(super) classes: Option<u64>,
}

impl Loss {
    /// Its name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy { .. } => "cross-entropy",
            Self::Mse => "mse",
            Self::Bce => "bce",
            Self::Kl { .. } => "kl",
            Self::Distil { .. } => "distil",
        }
    }

    pub(super) fn check(&self) -> Result<(), StepError> {
        let range = |what, value, range| Err(StepError::Range { what, value, range });
        match self {
            Self::CrossEntropy { smoothing, .. } if !(0.0..1.0).contains(smoothing) => {
                range("label smoothing", *smoothing, "at least 0 and below 1")
            }
            Self::CrossEntropy { weights, .. } => match weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
                Some(weight) => range("a class weight", *weight, "at least 0 and finite"),
                None => Ok(()),
            },
            Self::Kl { temperature } | Self::Distil { temperature, .. }
                if !(*temperature > 0.0 && temperature.is_finite()) =>
            {
                range("the temperature", *temperature, "above 0 and finite")
            }
            Self::Distil { weight, .. } if !(*weight >= 0.0 && weight.is_finite()) => {
                range("the weight of what a teacher says", *weight, "at least 0 and finite")
            }
            _ => Ok(()),
        }
    }
}

/// The model with its loss behind it, and an input for targets.
pub(super) fn attach(model: &Model, loss: &Loss, output: &str) -> Result<(Model, Attached), StepError> {
    let types = infer_types(model)?;
    let graph = model.graph();
    let taken: Vec<&str> = types.iter().map(|t| t.name.as_str()).collect();
    for name in [TARGET, "loss", "correct"] {
        if taken.contains(&name) {
            return Err(StepError::Taken { name: name.to_owned() });
        }
    }
    let mut out = Emitter::new(taken);
    let ends_in = match loss {
        Loss::CrossEntropy { .. } | Loss::Kl { .. } | Loss::Distil { .. } => "Softmax",
        Loss::Bce => "Sigmoid",
        Loss::Mse => "",
    };
    let last = graph.node.iter().find(|n| n.output.first().is_some_and(|o| o == output));
    let logits = match last {
        Some(node) if node.op_type() == ends_in && node.domain().is_empty() => node.input[0].clone(),
        _ => output.to_owned(),
    };
    let unknown = ValueInfo { name: logits.clone(), dtype: None, shape: None };
    let info = types.get(&logits).unwrap_or(&unknown);
    let wrong = |needs: &str| StepError::Shape {
        loss: loss.name(),
        output: output.to_owned(),
        needs: needs.to_owned(),
        found: describe(info),
    };
    let dtype = info.dtype.filter(|d| matches!(d, DataType::F32 | DataType::F64));
    let dtype = dtype.ok_or_else(|| wrong("f32 numbers"))?;
    let shape = info.shape.clone().ok_or_else(|| wrong("an output of known rank"))?;
    let classes = match loss {
        Loss::CrossEntropy { .. } | Loss::Kl { .. } | Loss::Distil { .. } => {
            let classes = shape.get(1).and_then(Dim::known).filter(|c| *c > 0);
            Some(classes.ok_or_else(|| wrong("[batch, classes, ..] with a fixed number of classes"))?)
        }
        _ => None,
    };
    let mut w = Writer { out: &mut out, dtype };
    let mut target = ValueInfo { name: TARGET.to_owned(), dtype: Some(dtype), shape: Some(shape.clone()) };
    let mut correct = None;
    let value = match loss {
        Loss::CrossEntropy { targets, smoothing, weights } => {
            let classes = classes.unwrap_or_default();
            if !weights.is_empty() && weights.len() as u64 != classes {
                return Err(wrong(&format!("{} classes, one for each weight", weights.len())));
            }
            let hard = *targets == Targets::Classes;
            if hard {
                target.dtype = Some(DataType::I64);
                target.shape.iter_mut().for_each(|s| drop(s.remove(1)));
                correct = Some(w.correct(&logits));
            }
            w.cross_entropy(&logits, TARGET, hard, *smoothing, weights, classes, shape.len())
        }
        Loss::Mse => {
            let difference = w.op("Sub", &[&logits, TARGET]);
            let square = w.op("Mul", &[&difference, &difference]);
            w.mean(&square)
        }
        Loss::Bce => {
            let soft = w.op("Softplus", &[&logits]);
            let along = w.op("Mul", &[&logits, TARGET]);
            let each = w.op("Sub", &[&soft, &along]);
            w.mean(&each)
        }
        Loss::Kl { temperature } => w.divergence(&logits, TARGET, *temperature),
        Loss::Distil { temperature, weight } => {
            let classes = classes.unwrap_or_default();
            if shape.len() != 2 {
                return Err(wrong("[batch, classes]"));
            }
            target.shape.iter_mut().for_each(|s| s[1] = Dim::Known(classes + 1));
            let class = w.columns(0, 1);
            let axis = w.out.ints(&[1]);
            let class = w.op("Squeeze", &[&class, &axis]);
            let class = w.out.op("Cast", &[&class], &[("to", Attribute::Int(i64::from(DataType::I64.to_onnx())))]);
            let teacher = w.columns(1, classes as i64 + 1);
            let own = w.cross_entropy(&logits, &class, true, 0.0, &[], classes, 2);
            let taught = w.divergence(&logits, &teacher, *temperature);
            let weight = w.number(*weight);
            let taught = w.op("Mul", &[&taught, &weight]);
            w.op("Add", &[&own, &taught])
        }
    };
    let mut proto = model.proto().clone();
    out.named("Identity", &[&value], &["loss"], &[]);
    if let Some(count) = &correct {
        out.named("Identity", &[count], &["correct"], &[]);
    }
    let (nodes, constants) = out.finish();
    let graph = proto.graph.mut_or_insert_default();
    graph.node.extend(nodes);
    graph.initializer.extend(constants);
    graph.input.push(value_info_proto(&target));
    // Only what is an output is checked to be there.
    let scalar = |name: &str, dtype| ValueInfo { name: name.to_owned(), dtype: Some(dtype), shape: Some(vec![]) };
    graph.output.push(value_info_proto(&scalar("loss", dtype)));
    if correct.is_some() {
        graph.output.push(value_info_proto(&scalar("correct", DataType::I64)));
    }
    let classes = classes.filter(|_| correct.is_some());
    let attached = Attached { loss: "loss".into(), correct: correct.map(|_| "correct".into()), classes };
    Ok((Model::from_proto(proto)?, attached))
}

fn describe(info: &ValueInfo) -> String {
    let dtype = info.dtype.map_or("of unknown type".to_owned(), |d| d.to_string());
    let shape = info.shape.as_ref().map_or("of unknown shape".to_owned(), |s| {
        format!("[{}]", s.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    });
    format!("{dtype} {shape}")
}

struct Writer<'o> {
    out: &'o mut Emitter,
    dtype: DataType,
}

impl Writer<'_> {
    fn op(&mut self, kind: &str, inputs: &[&str]) -> String {
        self.out.op(kind, inputs, &[])
    }

    fn number(&mut self, value: f64) -> String {
        self.out.scalar(self.dtype, value)
    }

    fn total(&mut self, x: &str) -> String {
        self.out.op("ReduceSum", &[x], &[("keepdims", Attribute::Int(0))])
    }

    fn mean(&mut self, x: &str) -> String {
        self.out.op("ReduceMean", &[x], &[("keepdims", Attribute::Int(0))])
    }

    fn as_float(&mut self, x: &str) -> String {
        self.out.op("Cast", &[x], &[("to", Attribute::Int(i64::from(self.dtype.to_onnx())))])
    }

    /// Numbers, one per class, along axis 1 of `rank`.
    fn per_class(&mut self, values: &[f64], rank: usize) -> String {
        let elements = match self.dtype {
            DataType::F64 => Elements::F64(values.to_vec()),
            _ => Elements::F32(values.iter().map(|&v| v as f32).collect()),
        };
        let mut shape = vec![values.len()];
        shape.extend(vec![1; rank - 2]);
        self.out.constant(&Tensor::new(shape, elements).expect("one number per class"))
    }

    /// Examples whose likeliest class is the target.
    fn correct(&mut self, logits: &str) -> String {
        let axis = [("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(0))];
        let likeliest = self.out.op("ArgMax", &[logits], &axis);
        let hit = self.op("Equal", &[&likeliest, TARGET]);
        let hit = self.out.op("Cast", &[&hit], &[("to", Attribute::Int(i64::from(DataType::I64.to_onnx())))]);
        self.total(&hit)
    }

    /// Examples, or places of examples, that have a target.
    fn places(&mut self, classes: u64, logits: &str) -> String {
        let size = self.op("Size", &[logits]);
        let classes = self.out.int(classes as i64);
        let places = self.op("Div", &[&size, &classes]);
        self.as_float(&places)
    }

    /// Some columns of the targets.
    fn columns(&mut self, from: i64, to: i64) -> String {
        let [from, to, axis] = [from, to, 1].map(|n| self.out.ints(&[n]));
        self.op("Slice", &[TARGET, &from, &to, &axis])
    }

    #[allow(clippy::too_many_arguments, reason = "what a loss has to say")]
    fn cross_entropy(
        &mut self,
        logits: &str,
        target: &str,
        hard: bool,
        smoothing: f64,
        weights: &[f64],
        classes: u64,
        rank: usize,
    ) -> String {
        let log = self.out.op("LogSoftmax", &[logits], &[("axis", Attribute::Int(1))]);
        let share = if hard {
            let depth = self.out.int(classes as i64);
            let ends = match self.dtype {
                DataType::F64 => Elements::F64(vec![0.0, 1.0]),
                _ => Elements::F32(vec![0.0, 1.0]),
            };
            let ends = self.out.constant(&Tensor::new([2], ends).expect("two numbers"));
            self.out.op("OneHot", &[target, &depth, &ends], &[("axis", Attribute::Int(1))])
        } else {
            target.to_owned()
        };
        // A weighted mean weighs each example by its own class.
        let count = if weights.is_empty() || !hard {
            self.places(classes, logits)
        } else {
            let per_class = self.per_class(weights, rank);
            let weighted = self.op("Mul", &[&share, &per_class]);
            self.total(&weighted)
        };
        let mut target = share;
        if smoothing > 0.0 {
            let keep = self.number(1.0 - smoothing);
            let floor = self.number(smoothing / classes as f64);
            target = self.op("Mul", &[&target, &keep]);
            target = self.op("Add", &[&target, &floor]);
        }
        if !weights.is_empty() {
            let per_class = self.per_class(weights, rank);
            target = self.op("Mul", &[&target, &per_class]);
        }
        let each = self.op("Mul", &[&target, &log]);
        let sum = self.total(&each);
        let sum = self.op("Neg", &[&sum]);
        self.op("Div", &[&sum, &count])
    }

    /// Batch axis 0, classes along axis 1.
    fn divergence(&mut self, logits: &str, target: &str, temperature: f64) -> String {
        let axis = [("axis", Attribute::Int(1))];
        let divisor = self.number(temperature);
        let soft = |w: &mut Self, x: &str| {
            let cool = w.op("Div", &[x, &divisor]);
            w.out.op("LogSoftmax", &[&cool], &axis)
        };
        let student = soft(self, logits);
        let teacher = soft(self, target);
        let share = self.op("Exp", &[&teacher]);
        let gap = self.op("Sub", &[&teacher, &student]);
        let each = self.op("Mul", &[&share, &gap]);
        let sum = self.total(&each);
        let batch = self.out.op("Shape", &[logits], &[("start", Attribute::Int(0)), ("end", Attribute::Int(1))]);
        let zero = self.out.ints(&[0]);
        let batch = self.op("Squeeze", &[&batch, &zero]);
        let batch = self.as_float(&batch);
        let mean = self.op("Div", &[&sum, &batch]);
        let square = self.number(temperature * temperature);
        self.op("Mul", &[&mean, &square])
    }
}
