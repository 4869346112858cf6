//! Times a training step on ONNX Runtime, plain and with our own operators.
//!
//! ```console
//! $ cargo run --release --example step -- resnet18_small mobilenet_v2_small
//! ```
//!
//! Names are of [`tierline_zoo::TRAINED`]; none takes all of them. Both forms
//! take turns; times are medians.

use std::error::Error;
use std::time::{Duration, Instant};

use tierline_engine::{Engine, LoadOptions, Session, onnxruntime};
use tierline_graph::step::{Optimizer, Recipe, Spec, trainable_with};
use tierline_graph::{DataType, Dim, Elements, Kernels, Model, Tensor};
use tierline_zoo::{Batch, Bn, Options, TRAINED};

/// How long one comparison takes, and how many steps it has at least.
const BUDGET: Duration = Duration::from_secs(10);
const STEPS_MIN: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let engine = onnxruntime(None)?;
    let kernels: Kernels = engine.kernels().iter().copied().collect();
    println!("{:<20} {:>7} {:>10} {:>10} {:>6}", "", "threads", "plain", "kernels", "ratio");
    for ((name, build), batch) in TRAINED {
        if !names.is_empty() && !names.iter().any(|n| n == name) {
            continue;
        }
        let model = build(&Options { bn: Bn::Kept, batch: Batch::Free, ..Options::default() });
        for threads in [1, 2] {
            let mut plain = Training::new(engine.as_ref(), &model, *batch, threads, &Kernels::none())?;
            let mut ours = Training::new(engine.as_ref(), &model, *batch, threads, &kernels)?;
            let mut times = [Vec::new(), Vec::new()];
            plain.step()?;
            ours.step()?;
            let start = Instant::now();
            while start.elapsed() < BUDGET || times[0].len() < STEPS_MIN {
                times[0].push(plain.step()?);
                times[1].push(ours.step()?);
            }
            let [plain, ours] = times.map(|mut all| {
                all.sort_unstable();
                all[all.len() / 2].as_secs_f64() * 1e3
            });
            println!("{name:<20} {threads:>7} {plain:>7.2} ms {ours:>7.2} ms {:>6.2}", ours / plain);
        }
    }
    Ok(())
}

/// A model in training on one batch.
struct Training {
    session: Box<dyn Session>,
    spec: Spec,
    batch: Vec<(String, Tensor)>,
    state: Vec<Tensor>,
    /// What the step gave: loss, metrics, then the state that it was given
    /// the time before.
    outputs: Vec<Tensor>,
}

impl Training {
    fn new(
        engine: &dyn Engine,
        model: &Model,
        batch: u64,
        threads: usize,
        kernels: &Kernels,
    ) -> Result<Self, Box<dyn Error>> {
        let optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        let step = trainable_with(model, &Recipe { optimizer, ..Recipe::default() }, kernels)?;
        let (stateless, state) = step.divided()?;
        let session = engine.load(&stateless, &LoadOptions::with_threads(threads))?;
        let batch = examples(model, &step.spec, batch)?;
        Ok(Self { session, spec: step.spec, batch, state, outputs: Vec::new() })
    }

    fn step(&mut self) -> Result<Duration, Box<dyn Error>> {
        let start = Instant::now();
        let batch = self.batch.iter().map(|(name, tensor)| (name.as_str(), tensor));
        let state = self.spec.state.iter().map(|slot| slot.input.as_str()).zip(&self.state);
        let inputs: Vec<(&str, &Tensor)> = batch.chain(state).collect();
        self.session.run_into(&inputs, &mut self.outputs)?;
        let next = self.outputs.len() - self.state.len();
        self.state.swap_with_slice(&mut self.outputs[next..]);
        Ok(start.elapsed())
    }
}

/// A seeded batch with its targets.
fn examples(model: &Model, spec: &Spec, batch: u64) -> Result<Vec<(String, Tensor)>, Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(0);
    let mut examples = Vec::new();
    for input in model.inputs() {
        let sizes = input.shape.ok_or("an input has no shape")?;
        let shape: Vec<usize> = sizes
            .iter()
            .map(|d| match d {
                Dim::Known(n) => *n as usize,
                _ => batch as usize,
            })
            .collect();
        let count = shape.iter().product::<usize>();
        let elements = match input.dtype {
            Some(DataType::I64) => Elements::I64((0..count).map(|_| random.i64(0..1000)).collect()),
            _ => Elements::F32((0..count).map(|_| random.f32()).collect()),
        };
        examples.push((input.name, Tensor::new(shape, elements)?));
    }
    let classes = spec.classes.ok_or("the loss has no classes")? as i64;
    let targets = (0..batch).map(|_| random.i64(0..classes)).collect();
    examples.push((spec.target.clone(), Tensor::new([batch as usize], Elements::I64(targets))?));
    Ok(examples)
}
