//! `tierline model trainable`, a model's training step as an ONNX file, and
//! `tierline model init`, fresh weights.

use std::path::PathBuf;

use serde::Serialize;
use tierline_daemon::models;
use tierline_graph::step::{
    Clip, Decay, Loss, Moments, Optimizer, Recipe, Role, Schedule, Targets, Untrained, trainable,
};
use tierline_graph::{Model, infer_types, memory};

use super::{Global, engines, usage};
use crate::output::{self, CommandError, CommandResult, ExitCode};

/// Options that say how a model learns.
#[derive(Debug, Clone, clap::Args)]
pub struct RecipeArgs {
    /// What is to become small
    #[arg(long, value_name = "LOSS", default_value = "cross-entropy", value_parser = ["cross-entropy", "mse", "bce", "kl"])]
    loss: String,
    /// The output that the loss is about; the first unless said
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Cross-entropy with a probability for each class in place of one class
    #[arg(long)]
    soft_targets: bool,
    /// Cross-entropy: share of the target spread over all classes
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    label_smoothing: f64,
    /// Cross-entropy: a weight for each class
    #[arg(long, value_name = "W,W,...", value_delimiter = ',')]
    class_weights: Vec<f64>,
    /// Divergence from a teacher: divides the logits
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,
    /// How weights follow their gradients
    #[arg(long, value_name = "NAME", default_value = "sgd", value_parser = ["sgd", "adam", "adamw"])]
    optimizer: String,
    /// Learning rate
    #[arg(long = "lr", value_name = "X", default_value_t = 0.01)]
    rate: f64,
    /// SGD: how much of the last direction is kept
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    momentum: f64,
    /// SGD: look ahead along the direction
    #[arg(long)]
    nesterov: bool,
    /// Pull of every weight towards zero
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    weight_decay: f64,
    /// Adam: how much of the mean gradient and of its square is kept
    #[arg(long, value_name = "B1,B2", value_delimiter = ',', default_values_t = [0.9, 0.999])]
    betas: Vec<f64>,
    /// Adam: keeps the division finite
    #[arg(long, value_name = "X", default_value_t = 1e-8)]
    epsilon: f64,
    /// Steps over which the learning rate rises
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    warmup: u64,
    /// How the learning rate falls: constant, step:EVERY:FACTOR, exponential:FACTOR, linear:STEPS[:LAST], cosine:STEPS[:LAST]
    #[arg(long, value_name = "DECAY", default_value = "constant")]
    decay: String,
    /// Scale all gradients down together to this norm at most
    #[arg(long, value_name = "X", conflicts_with = "clip_value")]
    clip_norm: Option<f64>,
    /// Hold every element of a gradient within plus and minus this
    #[arg(long, value_name = "X")]
    clip_value: Option<f64>,
    /// Weights that stay as they are: `*` is any characters, `?` one (repeat for more)
    #[arg(long, value_name = "PATTERN")]
    freeze: Vec<String>,
    /// Where dropout's randomness comes from
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Compute activations again in the backward pass in place of keeping them: more time, less memory
    #[arg(long)]
    recompute: bool,
}

impl RecipeArgs {
    /// The recipe.
    ///
    /// # Errors
    /// When options contradict each other.
    pub fn recipe(&self) -> CommandResult<Recipe> {
        let [beta1, beta2] = self.betas[..] else {
            return Err(usage("--betas takes two numbers, as in --betas 0.9,0.999"));
        };
        let moments = Moments { beta1, beta2, epsilon: self.epsilon, weight_decay: self.weight_decay };
        let targets = if self.soft_targets { Targets::Probabilities } else { Targets::Classes };
        Ok(Recipe {
            loss: match self.loss.as_str() {
                "mse" => Loss::Mse,
                "bce" => Loss::Bce,
                "kl" => Loss::Kl { temperature: self.temperature },
                _ => {
                    Loss::CrossEntropy { targets, smoothing: self.label_smoothing, weights: self.class_weights.clone() }
                }
            },
            output: self.output.clone(),
            also: Vec::new(),
            optimizer: match self.optimizer.as_str() {
                "adam" => Optimizer::Adam(moments),
                "adamw" => Optimizer::AdamW(moments),
                _ => {
                    Optimizer::Sgd { momentum: self.momentum, nesterov: self.nesterov, weight_decay: self.weight_decay }
                }
            },
            schedule: Schedule { rate: self.rate, warmup: self.warmup, decay: decay(&self.decay)? },
            clip: self.clip_norm.map(Clip::Norm).or(self.clip_value.map(Clip::Value)),
            freeze: self.freeze.clone(),
            seed: self.seed,
            recompute: self.recompute,
            steering: None,
        })
    }
}

fn decay(text: &str) -> CommandResult<Decay> {
    let wrong = || {
        usage(format!(
            "--decay {text}: write constant, step:EVERY:FACTOR, exponential:FACTOR, linear:STEPS[:LAST] or \
             cosine:STEPS[:LAST]"
        ))
    };
    let mut parts = text.split(':');
    let kind = parts.next().unwrap_or_default();
    let numbers: Vec<f64> = parts.map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
    let steps = |x: f64| if x >= 0.0 && x.fract() == 0.0 { Ok(x as u64) } else { Err(wrong()) };
    Ok(match (kind, numbers[..].as_ref()) {
        ("constant", []) => Decay::Constant,
        ("step", &[every, factor]) => Decay::Step { every: steps(every)?, factor },
        ("exponential", &[factor]) => Decay::Exponential { factor },
        ("linear", &[count]) => Decay::Linear { steps: steps(count)?, last: 0.0 },
        ("linear", &[count, last]) => Decay::Linear { steps: steps(count)?, last },
        ("cosine", &[count]) => Decay::Cosine { steps: steps(count)?, last: 0.0 },
        ("cosine", &[count, last]) => Decay::Cosine { steps: steps(count)?, last },
        _ => return Err(wrong()),
    })
}

#[derive(Debug, clap::Args)]
pub struct Trainable {
    /// The ONNX file
    model: PathBuf,
    /// Where the training step goes
    #[arg(long, value_name = "STEP.onnx")]
    out: PathBuf,
    #[command(flatten)]
    recipe: RecipeArgs,
}

#[derive(Serialize)]
struct Report {
    file: String,
    bytes: u64,
    /// Nodes of the forward pass, and of the step.
    nodes_forward: usize,
    nodes: usize,
    inputs: Vec<String>,
    target: String,
    loss: String,
    metrics: Vec<String>,
    /// Weights that are trained.
    parameters: Vec<String>,
    /// Weights that aren't though nothing froze them, and why.
    untrained: Vec<Untrained>,
    statistics: usize,
    optimizer_state: usize,
    /// Bytes of all tensors where they are most, for a batch of none, and for
    /// each example more.
    memory: u64,
    memory_per_example: u64,
}

pub fn trainable_model(global: &Global, args: &Trainable) -> CommandResult {
    let engine = engines::engine(global)?;
    let recipe = args.recipe.recipe()?;
    let model = models::for_training(engines::load(global, &args.model)?, &engine)?;
    let step = trainable(&model, &recipe).map_err(|e| CommandError::new(ExitCode::Failure, e))?;
    step.model.save(&args.out)?;
    let (fixed, each) = memory(&step.model)?;
    let of = |role: Role| step.spec.state.iter().filter(move |s| s.role == role);
    let report = Report {
        file: args.out.display().to_string(),
        bytes: std::fs::metadata(&args.out)?.len(),
        nodes_forward: model.graph().node.len(),
        nodes: step.model.graph().node.len(),
        inputs: step.spec.inputs.clone(),
        target: step.spec.target.clone(),
        loss: step.spec.loss.clone(),
        metrics: step.spec.metrics.clone(),
        parameters: of(Role::Parameter).map(|s| s.input.clone()).collect(),
        untrained: step.spec.untrained.clone(),
        statistics: of(Role::Statistic).count(),
        optimizer_state: of(Role::Optimizer).count(),
        memory: fixed,
        memory_per_example: each,
    };
    tell_untrained(global, &step.spec.untrained);
    global.output().data(&report, |r| {
        format!(
            "step        {} ({})\nnodes       {} ({} forward)\nbatch       {}, {}\ntrains      {} weights, {} running \
             statistics, {} of the optimiser\nmemory      about {} and {} for each example\ngives       {}, {}, and the \
             next state\n",
            r.file,
            output::bytes(r.bytes),
            r.nodes,
            r.nodes_forward,
            r.inputs.join(", "),
            r.target,
            r.parameters.len(),
            r.statistics,
            r.optimizer_state,
            output::bytes(r.memory),
            output::bytes(r.memory_per_example),
            r.loss,
            r.metrics.join(", "),
        )
    })
}

/// Weights told of by name; of more their number is told.
const UNTRAINED_SHOWN: usize = 8;

/// Says on stderr which weights stay as they are, and why.
pub(super) fn tell_untrained(global: &Global, weights: &[Untrained]) {
    for Untrained { weight, reason } in weights.iter().take(UNTRAINED_SHOWN) {
        // Names and operators are whatever a file says.
        let (weight, reason) = (weight.escape_debug(), reason.escape_debug());
        global.output().say(format!("warning: `{weight}` is not trained: {reason}"));
    }
    if let Some(more) = weights.len().checked_sub(UNTRAINED_SHOWN).filter(|more| *more > 0) {
        global
            .output()
            .say(format!("warning: {more} further weights are not trained; `model trainable --json` lists them"));
    }
}

/// What tensors take where they are most: always, and for each example.
fn memory(step: &Model) -> CommandResult<(u64, u64)> {
    const MANY: u64 = 64;
    let types = infer_types(step).map_err(|e| CommandError::new(ExitCode::Failure, e))?;
    let [one, many] = [1, 1 + MANY].map(|batch| memory::peak(step, &types, batch));
    let each = many.saturating_sub(one) / MANY;
    Ok((one.saturating_sub(each), each))
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// The ONNX file
    model: PathBuf,
    /// Where the model with fresh weights goes
    #[arg(long, value_name = "FRESH.onnx")]
    out: PathBuf,
    /// The same seed draws the same weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Fresh {
    file: String,
    digest: String,
    parameters: Vec<String>,
}

pub fn init_model(global: &Global, args: &Init) -> CommandResult {
    let engine = engines::engine(global)?;
    let model = models::for_training(engines::load(global, &args.model)?, &engine)?;
    let parameters = tierline_graph::step::parameters(&model, &[])?;
    let fresh = tierline_train::init::fresh(&model, args.seed)?;
    fresh.save(&args.out)?;
    let digest = models::digest_of(&fresh);
    let report = Fresh { file: args.out.display().to_string(), digest, parameters };
    global.output().data(&report, |r| {
        format!("model   {}\ndigest  {}\ndrawn   {} weights\n", r.file, r.digest, r.parameters.len())
    })
}
