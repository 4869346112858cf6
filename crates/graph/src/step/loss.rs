//! Losses.

use serde::{Deserialize, Serialize};

use super::{StepError, TARGET};
use crate::emit::{Attribute, Emitter};
use crate::infer::{Types, infer_types};
use crate::model::Model;
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::{Dim, ValueInfo};

/// What cross-entropy compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Targets {
    /// One class per example: i64 `[batch, ..]`. [`LEFT_OUT`] doesn't count;
    /// any other number that is no class is refused when the step runs.
    #[default]
    Classes,
    /// A probability for each class: f32, shaped as the output.
    Probabilities,
}

/// The class of an example, or of a place of one, that is left out: of the
/// loss, of its mean, and of those that are right. PyTorch's `ignore_index`.
pub const LEFT_OUT: i64 = -100;

/// A teacher's logit of a class that it says nothing of; so is any below it.
pub const NOT_SAID: f32 = -1e30;

/// What is to become small; each is averaged over the batch, and agrees with
/// PyTorch's loss of its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Loss {
    /// Softmax and negative log-likelihood. The output holds logits, classes
    /// along axis 1; of a model that ends in Softmax over them, what goes into
    /// it. Where all targets of a batch are left out it is not a number.
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
    ///
    /// Either may be missing. A class of [`LEFT_OUT`] doesn't count in the first
    /// mean. Logits of [`NOT_SAID`] are left out of both distributions, those of
    /// the teacher and of the model, as if there were no such class; where a
    /// teacher says nothing of an example, it doesn't count in the second mean.
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
    pub(super) counted: Option<String>,
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

/// An output that a loss is about.
pub(super) struct About<'a> {
    /// Its name.
    pub(super) output: &'a str,
    /// What [`super::logits`] found for it.
    pub(super) logits: &'a str,
    /// What its loss is multiplied by.
    pub(super) weight: f64,
}

/// The model with its loss behind logits, and an input for targets. The loss
/// is the weighted sum over outputs that all learn the same targets; what is
/// counted is of the first.
pub(super) fn attach(model: &Model, loss: &Loss, about: &[About<'_>]) -> Result<(Model, Attached), StepError> {
    let types = infer_types(model)?;
    let taken: Vec<&str> = types.iter().map(|t| t.name.as_str()).collect();
    for name in [TARGET, "loss", "correct"] {
        if taken.contains(&name) {
            return Err(StepError::Taken { name: name.to_owned() });
        }
    }
    let mut out = Emitter::new(taken);
    let mut first: Option<Valued> = None;
    for about in about {
        let mut own = valued(&types, loss, about, &mut out)?;
        if about.weight != 1.0 {
            let weight = out.scalar(own.dtype, about.weight);
            own.value = out.op("Mul", &[&own.value, &weight], &[]);
        }
        match &mut first {
            None => first = Some(own),
            Some(first) if first.target == own.target => {
                first.value = out.op("Add", &[&first.value, &own.value], &[]);
            }
            Some(first) => {
                return Err(StepError::Shape {
                    loss: loss.name(),
                    output: about.output.to_owned(),
                    needs: format!("the same targets of every output, {}", describe(&first.target)),
                    found: format!("one for targets of {}", describe(&own.target)),
                });
            }
        }
    }
    let none = StepError::NoParameters { reason: ": its loss is about no output".to_owned() };
    let Valued { value, counts, target, classes, dtype } = first.ok_or(none)?;
    let mut proto = model.proto().clone();
    out.named("Identity", &[&value], &["loss"], &[]);
    let names = counts.as_ref().map(|_| ["correct".to_owned(), out.name("counted")]);
    for (count, name) in counts.iter().flatten().zip(names.iter().flatten()) {
        out.named("Identity", &[count], &[name], &[]);
    }
    let (nodes, constants) = out.finish();
    let graph = proto.graph.mut_or_insert_default();
    graph.node.extend(nodes);
    graph.initializer.extend(constants);
    graph.input.push(value_info_proto(&target));
    // Only what is an output is checked to be there.
    let scalar = |name: &str, dtype| ValueInfo { name: name.to_owned(), dtype: Some(dtype), shape: Some(vec![]) };
    graph.output.push(value_info_proto(&scalar("loss", dtype)));
    graph.output.extend(names.iter().flatten().map(|name| value_info_proto(&scalar(name, DataType::I64))));
    let classes = classes.filter(|_| names.is_some());
    let [correct, counted] = names.map_or([None, None], |names| names.map(Some));
    Ok((Model::from_proto(proto)?, Attached { loss: "loss".into(), correct, counted, classes }))
}

/// A loss of one output.
struct Valued {
    value: String,
    /// Examples that are right, and that count.
    counts: Option<[String; 2]>,
    target: ValueInfo,
    classes: Option<u64>,
    dtype: DataType,
}

fn valued(types: &Types, loss: &Loss, about: &About<'_>, out: &mut Emitter) -> Result<Valued, StepError> {
    let &About { output, logits, .. } = about;
    let unknown = ValueInfo { name: logits.to_owned(), dtype: None, shape: None };
    let info = types.get(logits).unwrap_or(&unknown);
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
    let mut w = Writer { out, dtype };
    let mut target = ValueInfo { name: TARGET.to_owned(), dtype: Some(dtype), shape: Some(shape.clone()) };
    let fixed = shape.iter().all(|d| d.known().is_some());
    let mut counts = None;
    let value = match loss {
        Loss::CrossEntropy { targets: Targets::Classes, smoothing, weights } => {
            let classes = classes.unwrap_or_default();
            check_weights(weights, classes, &wrong)?;
            target.dtype = Some(DataType::I64);
            target.shape.iter_mut().for_each(|s| drop(s.remove(1)));
            let given = if fixed { TARGET.to_owned() } else { w.shaped_without_classes(logits, shape.len()) };
            let hard = w.places(&given, classes);
            counts = Some([w.correct(logits, &given), w.total(&hard.counted)]);
            let (sum, count) = w.of_classes(logits, &hard, *smoothing, weights, classes, shape.len());
            w.op("Div", &[&sum, &count])
        }
        Loss::CrossEntropy { targets: Targets::Probabilities, smoothing, weights } => {
            let classes = classes.unwrap_or_default();
            check_weights(weights, classes, &wrong)?;
            let given = if fixed { TARGET.to_owned() } else { w.shaped_as(logits) };
            w.of_probabilities(logits, &given, *smoothing, weights, classes, shape.len())
        }
        Loss::Mse => {
            let given = if fixed { TARGET.to_owned() } else { w.shaped_as(logits) };
            let difference = w.op("Sub", &[logits, &given]);
            let square = w.op("Mul", &[&difference, &difference]);
            w.mean(&square)
        }
        Loss::Bce => {
            let given = if fixed { TARGET.to_owned() } else { w.shaped_as(logits) };
            let soft = w.softplus(logits, shape.len());
            let along = w.op("Mul", &[logits, &given]);
            let each = w.op("Sub", &[&soft, &along]);
            w.mean(&each)
        }
        Loss::Kl { temperature } => {
            let given = if fixed { TARGET.to_owned() } else { w.shaped_as(logits) };
            w.divergence(logits, &given, *temperature)
        }
        Loss::Distil { temperature, weight } => {
            let classes = classes.unwrap_or_default();
            if shape.len() != 2 {
                return Err(wrong("[batch, classes]"));
            }
            target.shape.iter_mut().for_each(|s| s[1] = Dim::Known(classes + 1));
            let given = if fixed { TARGET.to_owned() } else { w.rows_of(logits) };
            let class = w.columns(&given, 0, 1);
            let axis = w.out.ints(&[1]);
            let class = w.op("Squeeze", &[&class, &axis]);
            let class = w.out.op("Cast", &[&class], &[("to", Attribute::Int(i64::from(DataType::I64.to_onnx())))]);
            let teacher = w.columns(&given, 1, classes as i64 + 1);
            let hard = w.places(&class, classes);
            let (sum, count) = w.of_classes(logits, &hard, 0.0, &[], classes, 2);
            let one = w.number(1.0);
            let count = w.op("Max", &[&count, &one]);
            let own = w.op("Div", &[&sum, &count]);
            let taught = w.divergence_where_said(logits, &teacher, *temperature);
            let weight = w.number(*weight);
            let taught = w.op("Mul", &[&taught, &weight]);
            w.op("Add", &[&own, &taught])
        }
    };
    Ok(Valued { value, counts, target, classes, dtype })
}

fn check_weights(weights: &[f64], classes: u64, wrong: &dyn Fn(&str) -> StepError) -> Result<(), StepError> {
    if weights.is_empty() || weights.len() as u64 == classes {
        return Ok(());
    }
    Err(wrong(&format!("{} classes, one for each weight", weights.len())))
}

fn describe(info: &ValueInfo) -> String {
    let dtype = info.dtype.map_or("of unknown type".to_owned(), |d| d.to_string());
    let shape = info.shape.as_ref().map_or("of unknown shape".to_owned(), |s| {
        format!("[{}]", s.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    });
    format!("{dtype} {shape}")
}

/// Classes as places among the logits.
struct Places {
    /// The class, 0 where it is left out, beyond all classes where it is none.
    class: String,
    /// Where targets are left out; booleans.
    left_out: String,
    /// Where they aren't; 1 or 0.
    counted: String,
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

    /// Numbers, one per class.
    fn per_class(&mut self, values: &[f64], shape: Vec<usize>) -> String {
        let elements = match self.dtype {
            DataType::F64 => Elements::F64(values.to_vec()),
            _ => Elements::F32(values.iter().map(|&v| v as f32).collect()),
        };
        self.out.constant(&Tensor::new(shape, elements).expect("one number per class"))
    }

    /// Targets of this shape; any other is refused when the step runs, and
    /// nothing is broadcast: a place that isn't there is asked for.
    fn of_shape(&mut self, wanted: &str) -> String {
        let shape = self.op("Shape", &[TARGET]);
        let same = self.op("Equal", &[&shape, wanted]);
        let other = self.op("Not", &[&same]);
        let other = self.out.op("Cast", &[&other], &[("to", Attribute::Int(i64::from(DataType::I64.to_onnx())))]);
        let other = self.total(&other);
        let only = self.out.ints(&[1]);
        let one = self.op("Gather", &[&only, &other]);
        let shape = self.op("Mul", &[&shape, &one]);
        self.op("Reshape", &[TARGET, &shape])
    }

    fn shaped_as(&mut self, logits: &str) -> String {
        let shape = self.op("Shape", &[logits]);
        self.of_shape(&shape)
    }

    fn part_of_shape(&mut self, x: &str, from: i64, to: i64) -> String {
        self.out.op("Shape", &[x], &[("start", Attribute::Int(from)), ("end", Attribute::Int(to))])
    }

    fn shaped_without_classes(&mut self, logits: &str, rank: usize) -> String {
        let mut shape = self.part_of_shape(logits, 0, 1);
        if rank > 2 {
            let places = self.part_of_shape(logits, 2, rank as i64);
            shape = self.out.op("Concat", &[&shape, &places], &[("axis", Attribute::Int(0))]);
        }
        self.of_shape(&shape)
    }

    /// A row of targets for each row of logits.
    fn rows_of(&mut self, logits: &str) -> String {
        let (rows, columns) = (self.part_of_shape(logits, 0, 1), self.part_of_shape(TARGET, 1, 2));
        let shape = self.out.op("Concat", &[&rows, &columns], &[("axis", Attribute::Int(0))]);
        self.of_shape(&shape)
    }

    /// `log(1 + exp(x))`, which ONNX Runtime hasn't of doubles since operator
    /// set 22: there, of an axis that holds zero as well.
    fn softplus(&mut self, x: &str, rank: usize) -> String {
        if self.dtype == DataType::F32 {
            return self.op("Softplus", &[x]);
        }
        let last = self.out.ints(&[-1]);
        let mut pads = vec![0; 2 * (rank + 1)];
        pads[2 * rank + 1] = 1;
        let (pads, zero) = (self.out.ints(&pads), self.number(0.0));
        let wide = self.op("Unsqueeze", &[x, &last]);
        let both = self.op("Pad", &[&wide, &pads, &zero]);
        self.out.op("ReduceLogSumExp", &[&both, &last], &[("keepdims", Attribute::Int(0))])
    }

    /// Some columns of the targets.
    fn columns(&mut self, targets: &str, from: i64, to: i64) -> String {
        let [from, to, axis] = [from, to, 1].map(|n| self.out.ints(&[n]));
        self.op("Slice", &[targets, &from, &to, &axis])
    }

    /// Examples whose likeliest class is the target.
    fn correct(&mut self, logits: &str, target: &str) -> String {
        let axis = [("axis", Attribute::Int(1)), ("keepdims", Attribute::Int(0))];
        let likeliest = self.out.op("ArgMax", &[logits], &axis);
        let hit = self.op("Equal", &[&likeliest, target]);
        let hit = self.out.op("Cast", &[&hit], &[("to", Attribute::Int(i64::from(DataType::I64.to_onnx())))]);
        self.total(&hit)
    }

    /// Where classes are found among the logits, and which count.
    fn places(&mut self, target: &str, classes: u64) -> Places {
        let (left_out, zero, classes) = (self.out.int(LEFT_OUT), self.out.int(0), self.out.int(classes as i64));
        let left_out = self.op("Equal", &[target, &left_out]);
        // Places below zero are counted from the end: as far as this there is none.
        let below = self.op("Less", &[target, &zero]);
        let far = self.op("Sub", &[target, &classes]);
        let place = self.op("Where", &[&below, &far, target]);
        let class = self.op("Where", &[&left_out, &zero, &place]);
        let counts = self.op("Not", &[&left_out]);
        let counted = self.out.op("Cast", &[&counts], &[("to", Attribute::Int(i64::from(DataType::I64.to_onnx())))]);
        Places { class, left_out, counted }
    }

    /// Cross-entropy with one class for each example, or place of one: the sum,
    /// and what makes a mean of it.
    fn of_classes(
        &mut self,
        logits: &str,
        places: &Places,
        smoothing: f64,
        weights: &[f64],
        classes: u64,
        rank: usize,
    ) -> (String, String) {
        let log = self.out.op("LogSoftmax", &[logits], &[("axis", Attribute::Int(1))]);
        let (axis, none) = (self.out.ints(&[1]), self.number(0.0));
        let class = self.op("Unsqueeze", &[&places.class, &axis]);
        let own = self.out.op("GatherElements", &[&log, &class], &[("axis", Attribute::Int(1))]);
        let own = self.op("Squeeze", &[&own, &axis]);
        let mut own = self.op("Where", &[&places.left_out, &none, &own]);
        // A weighted mean weighs each example by its own class.
        let mut share = self.as_float(&places.counted);
        if !weights.is_empty() {
            let per_class = self.per_class(weights, vec![weights.len()]);
            let weight = self.op("Gather", &[&per_class, &places.class]);
            own = self.op("Mul", &[&own, &weight]);
            share = self.op("Mul", &[&share, &weight]);
        }
        let mut sum = self.total(&own);
        if smoothing > 0.0 {
            let mut all = log;
            if !weights.is_empty() {
                let mut wide = vec![weights.len()];
                wide.extend(vec![1; rank - 2]);
                let per_class = self.per_class(weights, wide);
                all = self.op("Mul", &[&all, &per_class]);
            }
            let all = self.out.op("ReduceSum", &[&all, &axis], &[("keepdims", Attribute::Int(0))]);
            let all = self.op("Where", &[&places.left_out, &none, &all]);
            let all = self.total(&all);
            let (keep, floor) = (self.number(1.0 - smoothing), self.number(smoothing / classes as f64));
            let (kept, spread) = (self.op("Mul", &[&sum, &keep]), self.op("Mul", &[&all, &floor]));
            sum = self.op("Add", &[&kept, &spread]);
        }
        let sum = self.op("Neg", &[&sum]);
        (sum, self.total(&share))
    }

    /// Cross-entropy with a probability for each class.
    fn of_probabilities(
        &mut self,
        logits: &str,
        target: &str,
        smoothing: f64,
        weights: &[f64],
        classes: u64,
        rank: usize,
    ) -> String {
        let log = self.out.op("LogSoftmax", &[logits], &[("axis", Attribute::Int(1))]);
        let mut target = target.to_owned();
        if smoothing > 0.0 {
            let (keep, floor) = (self.number(1.0 - smoothing), self.number(smoothing / classes as f64));
            target = self.op("Mul", &[&target, &keep]);
            target = self.op("Add", &[&target, &floor]);
        }
        if !weights.is_empty() {
            let mut wide = vec![weights.len()];
            wide.extend(vec![1; rank - 2]);
            let per_class = self.per_class(weights, wide);
            target = self.op("Mul", &[&target, &per_class]);
        }
        let each = self.op("Mul", &[&target, &log]);
        let sum = self.total(&each);
        let sum = self.op("Neg", &[&sum]);
        // Examples, or places of examples.
        let size = self.op("Size", &[logits]);
        let classes = self.out.int(classes as i64);
        let places = self.op("Div", &[&size, &classes]);
        let places = self.as_float(&places);
        self.op("Div", &[&sum, &places])
    }

    /// Batch axis 0, classes along axis 1.
    fn divergence(&mut self, logits: &str, target: &str, temperature: f64) -> String {
        let divisor = self.number(temperature);
        let [student, teacher] = [logits, target].map(|x| self.op("Div", &[x, &divisor]));
        let sum = self.divergences(&student, &teacher);
        let batch = self.out.op("Shape", &[logits], &[("start", Attribute::Int(0)), ("end", Attribute::Int(1))]);
        let zero = self.out.ints(&[0]);
        let batch = self.op("Squeeze", &[&batch, &zero]);
        let batch = self.as_float(&batch);
        self.scaled_mean(&sum, &batch, temperature)
    }

    /// The same over those logits that a teacher says, and those examples of
    /// which it says some; zero where there are none.
    fn divergence_where_said(&mut self, logits: &str, target: &str, temperature: f64) -> String {
        let (nothing, divisor) = (self.number(NOT_SAID.into()), self.number(temperature));
        let said = self.op("Greater", &[target, &nothing]);
        let [student, teacher] = [logits, target].map(|x| {
            let cool = self.op("Div", &[x, &divisor]);
            // Equal in both, and nothing beside whatever is said.
            self.op("Where", &[&said, &cool, &nothing])
        });
        let sum = self.divergences(&student, &teacher);
        let counted = self.as_float(&said);
        let axis = self.out.ints(&[1]);
        let counted = self.out.op("ReduceMax", &[&counted, &axis], &[("keepdims", Attribute::Int(0))]);
        let (counted, one) = (self.total(&counted), self.number(1.0));
        let counted = self.op("Max", &[&counted, &one]);
        self.scaled_mean(&sum, &counted, temperature)
    }

    /// The sum over examples.
    fn divergences(&mut self, student: &str, teacher: &str) -> String {
        let axis = [("axis", Attribute::Int(1))];
        let [student, teacher] = [student, teacher].map(|x| self.out.op("LogSoftmax", &[x], &axis));
        let share = self.op("Exp", &[&teacher]);
        let gap = self.op("Sub", &[&teacher, &student]);
        let each = self.op("Mul", &[&share, &gap]);
        self.total(&each)
    }

    fn scaled_mean(&mut self, sum: &str, count: &str, temperature: f64) -> String {
        let mean = self.op("Div", &[sum, count]);
        let square = self.number(temperature * temperature);
        self.op("Mul", &[&mean, &square])
    }
}
