//! The training step as a graph: weights, optimiser state and a batch in; new
//! weights, new state, loss and metrics out.
//!
//! Forward pass, loss, gradients, clipping, schedule and optimiser are
//! ordinary nodes of one ONNX model, so whatever runs a graph trains it. The
//! first weights and the first state are in the model as defaults of their
//! inputs: any ONNX runtime can take the first step without being given them,
//! and then passes each output `next` back as the input it belongs to.
//!
//! Start at [`trainable`] and [`Step`].

mod dropout;
mod evaluate;
mod layers;
mod logits;
mod loss;
mod metadata;
mod normalise;
mod optimizer;
mod parameters;
mod recompute;
mod schedule;
mod sizes;
mod squares;
mod steering;
mod untrained;

use std::collections::HashMap;

use loss::About;
use serde::{Deserialize, Serialize};

pub use evaluate::{Evaluation, answering, deployed, evaluation, probe};
pub use layers::{Layer, layers};
pub use loss::{LEFT_OUT, Loss, NOT_SAID, Targets};
pub use metadata::{METADATA, Role, Slot, Spec};
pub use normalise::{learned_by_normalisation, variances_of_normalisation};
pub use optimizer::{Clip, Moments, Optimizer};
pub use parameters::matches;
pub use schedule::{Decay, Schedule};
pub use squares::{SquareSum, Squares, squares};
pub use steering::Steering;
pub use untrained::Untrained;

use crate::constant::{tensor_from_proto, tensor_to_proto};
use crate::error::LoadError;
use crate::gradient::{Forward, GradientError};
use crate::infer::InferError;
use crate::kernels::{self, Kernels};
use crate::model::Model;
use crate::onnx::TensorProto;
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::{Dim, ValueInfo};

/// How a model is to be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What is to become small.
    pub loss: Loss,
    /// The output that the loss is about; `None` for the only or first one.
    pub output: Option<String>,
    /// Further outputs that learn the same targets, such as early exits: their
    /// losses are added (BranchyNet: Teerapittayanon 2016).
    pub also: Vec<Also>,
    /// How weights follow their gradients.
    pub optimizer: Optimizer,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Bounds on gradients.
    pub clip: Option<Clip>,
    /// Patterns (`*` any characters, `?` one) of weights that stay as they are.
    pub freeze: Vec<String>,
    /// Where dropout's randomness comes from.
    pub seed: u64,
    /// Whether activations are computed again in the backward pass rather than
    /// kept, which takes about a third more time and a fraction of their memory.
    pub recompute: bool,
    /// What the step takes from outside at every run; `None` for nothing.
    pub steering: Option<Steering>,
}

/// A further output that learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    /// The output.
    pub output: String,
    /// What its loss is multiplied by, at least 0.
    #[serde(default = "Also::whole")]
    pub weight: f64,
}

impl Also {
    fn whole() -> f64 {
        1.0
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            loss: Loss::CrossEntropy { targets: Targets::Classes, smoothing: 0.0, weights: Vec::new() },
            output: None,
            also: Vec::new(),
            optimizer: Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
            schedule: Schedule::constant(0.01),
            clip: None,
            freeze: Vec::new(),
            seed: 0,
            recompute: false,
            steering: None,
        }
    }
}

/// Why a model can't be trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// Nothing to train.
    #[error("the model has no weights to train{reason}")]
    NoParameters {
        /// Why not, if there is more to say.
        reason: String,
    },
    /// A pattern that matches nothing.
    #[error("`{pattern}` matches none of the {count} weights, such as {}", examples.join(", "))]
    Freeze {
        /// The pattern.
        pattern: String,
        /// Weights there are.
        count: usize,
        /// Some of them.
        examples: Vec<String>,
    },
    /// No such output.
    #[error("the model has no output `{output}`; it has {}", available.join(", "))]
    Output {
        /// The name.
        output: String,
        /// Those there are.
        available: Vec<String>,
    },
    /// An output that the loss can't be computed of.
    #[error("loss {loss} needs {needs}; output `{output}` is {found}")]
    Shape {
        /// The loss.
        loss: &'static str,
        /// The output.
        output: String,
        /// What it needs.
        needs: String,
        /// What the output is.
        found: String,
    },
    /// An output that isn't what the loss takes, though its shape is.
    #[error(
        "output `{output}` holds probabilities, made by {made_by}, and loss {loss} takes what goes into a {wanted}; only \
         nodes that move elements may stand behind that: make the logits an output and name it, or take another loss"
    )]
    Probabilities {
        /// The output.
        output: String,
        /// The loss.
        loss: &'static str,
        /// The operator that made them, and its output.
        made_by: String,
        /// The operator whose input the loss takes.
        wanted: &'static str,
    },
    /// A number outside of its range.
    #[error("{what} is {value}; it must be {range}")]
    Range {
        /// What.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// A name that the step needs for itself.
    #[error("the model has a tensor called `{name}`, a name that a training step needs; rename it")]
    Taken {
        /// The name.
        name: String,
    },
    /// Some operator can't be differentiated.
    #[error(transparent)]
    Gradient(#[from] GradientError),
    /// Shapes contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
    /// The step isn't a valid model.
    #[error("the training step is not a valid model: {0}")]
    Invalid(#[from] LoadError),
    /// A model that is no training step.
    #[error("the model is no training step: {reason}; make one with `tierline model trainable`")]
    NotAStep {
        /// What is missing.
        reason: String,
    },
}

/// A training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The step graph, defaults included: a file that any runtime takes.
    pub model: Model,
    /// Which input is what.
    pub spec: Spec,
}

/// Builds the training step of a model.
///
/// Weights are the floating-point constants that layers learn: see
/// `parameters.rs`. Constants should have been folded. BatchNormalization
/// works in training mode and keeps running statistics (those whose weights
/// are frozen stay as they are); of a single value per channel it learns the
/// mean and keeps the variance. Dropout draws from the seed and the step's
/// number.
///
/// # Errors
/// [`StepError`].
pub fn trainable(model: &Model, recipe: &Recipe) -> Result<Step, StepError> {
    trainable_with(model, recipe, &Kernels::none())
}

/// [`trainable`], for an engine that has these operators of its own: the step
/// is faster there, and runs nowhere else.
///
/// # Errors
/// As [`trainable`].
pub fn trainable_with(model: &Model, recipe: &Recipe, kernels: &Kernels) -> Result<Step, StepError> {
    recipe.check()?;
    crate::gradient::check_arity(model)?;
    let model = crate::gradient::prepare(model)?;
    let parameters::Found { all, trained: parameters } = parameters::find(&model, &recipe.freeze)?;
    untrained::refuse_inner_statistics(&model, &parameters)?;
    let (model, statistics) = normalise::in_training(&model, &all, &parameters, &recipe.freeze)?;
    let (model, answers) = answers(&model, recipe)?;
    let model = dropout::drawn(&model, recipe.seed)?;
    let (model, loss) = loss::attach(&model, &recipe.loss, &answers.about())?;
    let output = answers.output;

    let forward = Forward::new(&model, kernels)?;
    let mut out = forward.emitter();
    let dtype = forward.types.get(&loss.loss).and_then(|t| t.dtype).unwrap_or(DataType::F32);
    let one = out.scalar(dtype, 1.0);
    let names: Vec<&str> = parameters.iter().map(String::as_str).collect();
    let gradients = forward.backward(&[(loss.loss.as_str(), one)], &names, &mut out)?;
    sizes::from_inputs(&model, &forward, &mut out);
    let again =
        if recipe.recompute { recompute::recompute(&model, &forward, &gradients, &mut out) } else { Vec::new() };
    // What the loss doesn't depend on stays as it is.
    let mut trained: Vec<&str> = names.iter().copied().filter(|n| gradients.contains_key(*n)).collect();
    // In the order of the layers: runtimes work back from the last output, so
    // that gradients of the last layers, which are there first, go first.
    trained.sort_by_cached_key(|n| forward.index.order.iter().position(|&p| forward.index.reads[p].contains(n)));
    let untrained = untrained::untrained(&forward, &names, &trained, &recipe.freeze);
    if trained.is_empty() {
        let why = untrained.first().map(|u| format!(": of `{}`, {}", u.weight, u.reason)).unwrap_or_default();
        return Err(StepError::NoParameters { reason: format!(" that `{output}` depends on{why}") });
    }

    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let constants: HashMap<String, TensorProto> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.clone())).collect();
    let own = |name: &str| DataType::from_onnx(constants[name].data_type()).unwrap_or(DataType::F32);
    let mut rate = schedule::emit(&recipe.schedule, STEP, dtype, &mut out);
    let mut wanted: Vec<(&str, String)> = trained.iter().map(|n| (*n, gradients[*n].clone())).collect();
    if let Some(steering) = &recipe.steering {
        if let Some(name) = steering.names().find(|name| forward.types.get(name).is_some()) {
            return Err(StepError::Taken { name: name.to_owned() });
        }
        let pace = steering::of_type(steering::PACE, dtype, &mut out);
        rate = out.op("Mul", &[&rate, &pace], &[]);
        for (name, gradient) in &mut wanted {
            *gradient = steering.gradient(name, gradient, &rate, [own(name), dtype], &mut out);
        }
    }
    let wanted: Vec<_> = wanted.iter().map(|(name, gradient)| (*name, gradient.as_str(), own(name))).collect();
    let clipped = optimizer::clip(&wanted, recipe.clip, dtype, &mut out);
    let weights: Vec<optimizer::Weight> = trained
        .iter()
        .map(|name| optimizer::Weight { name, gradient: &clipped.gradients[*name], like: &constants[*name] })
        .collect();
    let mut updates = optimizer::emit(&recipe.optimizer, &weights, (&rate, dtype), STEP, kernels, &mut out);
    if let Some(steering) = &recipe.steering {
        let mut paths = Vec::new();
        for update in updates.iter_mut().filter(|update| update.role == Role::Parameter) {
            let of = steering::Move {
                weight: &update.input,
                gradient: &gradients[&update.input],
                like: &constants[&update.input],
            };
            let (next, path) = steering.moved(&of, &update.value, &mut out);
            update.value = next;
            paths.extend(path);
        }
        updates.extend(paths);
    }

    let mut spec = Spec { untrained, ..Spec::new(&model, &loss, &output) };
    let mut defaults = Vec::new();
    let state = updates.into_iter().chain(statistics.updates(&mut out, dtype, &forward.types));
    for update in state {
        let next = out.name(&format!("{}.next", update.input));
        if !out.rename(&update.value, &next) {
            out.named("Identity", &[&update.value], &[&next], &[]);
        }
        if let Some(initial) = update.initial {
            defaults.push(tensor_to_proto(&update.input, &initial));
        }
        let gradient = gradients.get(&update.input).filter(|_| update.role == Role::Parameter).cloned();
        spec.state.push(Slot { input: update.input, output: next, role: update.role, gradient });
    }
    let one = out.int(1);
    let next = out.name("step.next");
    out.named("Add", &[STEP, &one], &[&next], &[]);
    defaults.push(tensor_to_proto(STEP, &Tensor::new([], Elements::I64(vec![0])).expect("a scalar")));
    spec.state.push(Slot { input: STEP.to_owned(), output: next, role: Role::Counter, gradient: None });
    if let Some(steering) = &recipe.steering {
        let scalar = |value: f32| Tensor::new([], Elements::F32(vec![value])).expect("a scalar");
        spec.pace = Some(steering::PACE.to_owned());
        defaults.push(tensor_to_proto(steering::PACE, &scalar(1.0)));
        if steering.pulled {
            spec.pull = Some(steering::PULL.to_owned());
            defaults.push(tensor_to_proto(steering::PULL, &scalar(0.0)));
        }
        let mut shaped = |wanted: bool, of: fn(&str) -> String, value: f64, state: &[Slot]| -> Vec<String> {
            let made = if wanted { steering::defaults(of, value, state, &constants) } else { Vec::new() };
            let names = made.iter().map(|t| t.name().to_owned()).collect();
            defaults.extend(made);
            names
        };
        spec.stiffness = shaped(steering.anchored, steering::stiffness_of, 0.0, &spec.state);
        spec.anchors = shaped(steering.anchored, steering::anchor_of, 0.0, &spec.state);
        spec.masks = shaped(steering.masked, steering::mask_of, 1.0, &spec.state);
        spec.corrections = shaped(steering.corrected, steering::correction_of, 0.0, &spec.state);
    }
    for (name, value) in [("learning_rate", &rate), ("gradient_norm", &clipped.norm)] {
        let output = out.name(name);
        out.named("Identity", &[value], &[&output], &[]);
        spec.metrics.push(output);
    }

    sizes::from_inputs(&model, &forward, &mut out);
    let (nodes, emitted) = out.finish();
    graph.node.extend(nodes);
    graph.initializer.extend(emitted);
    graph.initializer.extend(defaults);
    graph.value_info.extend(again.iter().map(value_info_proto));
    declare(graph, &spec, &forward);
    spec.write(&mut proto);
    kernels::import(&mut proto);
    let model = Model::from_proto(proto)?;
    let model = normalise::written_out(model, kernels)?;
    // A second look: shapes of the whole must agree.
    crate::infer::infer_types(&model)?;
    Ok(Step { model: tidy(model)?, spec })
}

/// Names of a model's weights, those that match a pattern of `freeze` left out.
///
/// # Errors
/// When there are none, or a pattern matches none.
pub fn parameters(model: &Model, freeze: &[String]) -> Result<Vec<String>, StepError> {
    Ok(parameters::find(model, freeze)?.trained)
}

/// The counter's input.
const STEP: &str = "step";

/// The input that takes targets.
const TARGET: &str = "target";

impl Recipe {
    /// Refuses numbers outside of their ranges.
    ///
    /// # Errors
    /// [`StepError::Range`], naming the first of them.
    pub fn check(&self) -> Result<(), StepError> {
        self.loss.check()?;
        if let Some(also) = self.also.iter().find(|also| !(also.weight >= 0.0 && also.weight.is_finite())) {
            let (what, range) = ("the weight of an output's loss", "at least 0 and finite");
            return Err(StepError::Range { what, value: also.weight, range });
        }
        self.optimizer.check()?;
        self.schedule.check()?;
        self.clip.map_or(Ok(()), Clip::check)
    }
}

/// Outputs that a loss is about, and their logits.
struct Answers {
    output: String,
    logits: String,
    /// Of further outputs, with what their losses weigh.
    also: Vec<(Also, String)>,
}

impl Answers {
    fn about(&self) -> Vec<About<'_>> {
        let first = About { output: &self.output, logits: &self.logits, weight: 1.0 };
        let others = self.also.iter().map(|(also, logits)| About { output: &also.output, logits, weight: also.weight });
        [first].into_iter().chain(others).collect()
    }
}

/// The model with the logits in it that a recipe's loss is about.
fn answers(model: &Model, recipe: &Recipe) -> Result<(Model, Answers), StepError> {
    let output = output(model, recipe)?;
    let (mut model, logits) = logits::found(model, &recipe.loss, &output)?;
    let mut also = Vec::with_capacity(recipe.also.len());
    for other in &recipe.also {
        named(&model, &other.output)?;
        let logits;
        (model, logits) = logits::found(&model, &recipe.loss, &other.output)?;
        also.push((other.clone(), logits));
    }
    Ok((model, Answers { output, logits, also }))
}

fn output(model: &Model, recipe: &Recipe) -> Result<String, StepError> {
    match &recipe.output {
        Some(name) => named(model, name).map(|()| name.clone()),
        None => {
            let first = model.outputs().into_iter().next().map(|o| o.name);
            first.ok_or(StepError::NoParameters { reason: ": it has no outputs".into() })
        }
    }
}

fn named(model: &Model, output: &str) -> Result<(), StepError> {
    let available: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
    if available.iter().any(|name| name == output) {
        return Ok(());
    }
    Err(StepError::Output { output: output.to_owned(), available })
}

/// State becomes inputs with defaults; the loss, metrics and the next state
/// become the outputs.
fn declare(graph: &mut crate::onnx::GraphProto, spec: &Spec, forward: &Forward<'_>) {
    let constants: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name(), t)).collect();
    let like = |name: &str| {
        let tensor = constants[name];
        let shape = tensor.dims.iter().map(|&d| Dim::Known(d.max(0) as u64)).collect();
        (DataType::from_onnx(tensor.data_type()), Some(shape))
    };
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    for name in [&spec.loss].into_iter().chain(&spec.metrics) {
        let known = forward.types.get(name).and_then(|t| t.dtype);
        let dtype = known.or(forward.types.get(&spec.loss).and_then(|t| t.dtype));
        outputs.push(value_info_proto(&ValueInfo { name: name.clone(), dtype, shape: Some(vec![]) }));
    }
    for slot in &spec.state {
        let (dtype, shape) = like(&slot.input);
        inputs.push(value_info_proto(&ValueInfo { name: slot.input.clone(), dtype, shape: shape.clone() }));
        outputs.push(value_info_proto(&ValueInfo { name: slot.output.clone(), dtype, shape }));
    }
    for name in spec.steering() {
        let (dtype, shape) = like(name);
        inputs.push(value_info_proto(&ValueInfo { name: name.to_owned(), dtype, shape }));
    }
    graph.input.extend(inputs.into_iter().filter(|i| i.name() != STEP));
    if !graph.input.iter().any(|i| i.name() == STEP) {
        graph.input.push(value_info_proto(&ValueInfo {
            name: STEP.to_owned(),
            dtype: Some(DataType::I64),
            shape: Some(vec![]),
        }));
    }
    graph.output = outputs;
}

/// Drops what no output of the step needs, such as the model's own outputs
/// behind the logits.
fn tidy(mut model: Model) -> Result<Model, LoadError> {
    crate::fold::drop_unused(&mut model).map_err(|e| LoadError::Encode { reason: e.to_string() })?;
    Ok(model)
}

impl Step {
    /// Reads a step that [`trainable`] made.
    ///
    /// # Errors
    /// [`StepError::NotAStep`].
    pub fn read(model: Model) -> Result<Self, StepError> {
        let spec = Spec::read(&model)?;
        Ok(Self { model, spec })
    }

    /// The step without its defaults, and the first state, in the order of
    /// [`Spec::state`]: for engines, which must be given every input.
    ///
    /// # Errors
    /// When a default is missing or broken.
    pub fn divided(&self) -> Result<(Model, Vec<Tensor>), StepError> {
        let mut proto = self.model.proto().clone();
        let graph = proto.graph.mut_or_insert_default();
        let mut initial = Vec::with_capacity(self.spec.state.len());
        for slot in &self.spec.state {
            let found = graph.initializer.iter().position(|t| t.name() == slot.input);
            let at = found.ok_or_else(|| StepError::NotAStep { reason: format!("`{}` has no default", slot.input) })?;
            initial.push(tensor_from_proto(&graph.initializer[at])?);
        }
        let state = self.spec.state.iter().map(|s| s.input.as_str());
        let given: std::collections::HashSet<&str> = state.chain(self.spec.steering()).collect();
        graph.initializer.retain(|t| !given.contains(t.name()));
        Ok((Model::from_proto(proto)?, initial))
    }
}

impl Spec {
    /// `model`, which the step was made of, for use, with the state's weights
    /// and statistics in place of its own.
    ///
    /// # Errors
    /// When the state doesn't fit the model.
    pub fn export(&self, model: &Model, state: &[Tensor]) -> Result<Model, StepError> {
        let mut proto = deployed(model)?.proto;
        let graph = proto.graph.mut_or_insert_default();
        for (slot, tensor) in self.state.iter().zip(state) {
            if !matches!(slot.role, Role::Parameter | Role::Statistic) {
                continue;
            }
            let missing = || StepError::NotAStep { reason: format!("the model has no weight `{}`", slot.input) };
            let own = graph.initializer.iter_mut().find(|t| t.name() == slot.input).ok_or_else(missing)?;
            *own = tensor_to_proto(&slot.input, tensor);
        }
        Ok(Model::from_proto(proto)?)
    }
}
