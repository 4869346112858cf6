//! The reference suite: three training steps of small models, every output
//! against PyTorch's, on every engine, in plain ONNX and with the engine's own
//! operators.
//!
//! `make.py` writes `models/`: each model at its oldest and its newest operator
//! set, and what PyTorch makes of it. A new model is a line there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protobuf::Message;
use serde::Deserialize;
use tierline_engine::{Engine, Evaluator, LoadOptions, StateSlot, Stateful};
use tierline_graph::fold::{Purpose, fold_for};
use tierline_graph::onnx::GraphProto;
use tierline_graph::step::{Clip, Loss, Optimizer, Recipe, Role, Schedule, Spec, trainable_with};
use tierline_graph::{DataType, Elements, Kernels, Model, Tensor};

use crate::support::{engines, tensor};

/// Steps of each model.
const STEPS: usize = 3;

/// How far a value may be from PyTorch's in double precision, relative to the
/// largest of its tensor (of a weight, to the largest change): in f32, and in
/// f64.
const APART_MAX: [f64; 2] = [5e-4, 1e-9];

/// How a model is trained, as `make.py` says it.
#[derive(Deserialize)]
struct Settings {
    loss: Loss,
    optimizer: Optimizer,
    schedule: Schedule,
    clip: Option<Clip>,
}

/// What goes into steps, and what PyTorch makes of it.
struct Reference {
    name: String,
    settings: Settings,
    tensors: BTreeMap<String, Tensor>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/steps/models")
}

fn references() -> Vec<Reference> {
    let paths = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "steps")).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let graph = GraphProto::parse_from_bytes(&std::fs::read(&path).unwrap()).unwrap();
        let settings = serde_json::from_str(graph.doc_string()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = graph.initializer.iter().map(|t| (t.name().to_owned(), tensor(t).unwrap())).collect();
        Reference { name: graph.name().to_owned(), settings, tensors }
    };
    paths.into_iter().map(read).collect()
}

impl Reference {
    /// The model at each of its operator sets.
    fn models(&self) -> Vec<(i64, Model)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder()).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.rsplit_once('-'));
            if let Some((name, opset)) = stem
                && name == self.name
            {
                found.push((opset.parse().unwrap(), Model::load(&path).unwrap()));
            }
        }
        found.sort_by_key(|(opset, _)| *opset);
        found
    }

    fn recipe(&self) -> Recipe {
        let Settings { loss, optimizer, schedule, clip } = &self.settings;
        let (loss, optimizer, schedule) = (loss.clone(), optimizer.clone(), schedule.clone());
        Recipe { loss, optimizer, schedule, clip: *clip, ..Recipe::default() }
    }

    /// What is wrong with the steps that an engine takes; `Err` with its words
    /// where it can't take them.
    fn compare(&self, engine: &Arc<dyn Engine>, model: &Model, kernels: &Kernels) -> Result<Vec<String>, String> {
        let mut model = model.clone();
        fold_for(&mut model, &mut Evaluator(Arc::clone(engine)), Purpose::Training).map_err(|e| e.to_string())?;
        let step = trainable_with(&model, &self.recipe(), kernels).map_err(|e| e.to_string())?;
        let (graph, mut before) = step.divided().map_err(|e| e.to_string())?;
        let slots = step.spec.state.iter();
        let slots: Vec<StateSlot> =
            slots.map(|s| StateSlot { input: s.input.clone(), output: s.output.clone() }).collect();
        let options = LoadOptions::with_threads(1);
        let loaded = engine.load_stateful(&graph, &options, &slots, before.clone());
        let mut session = loaded.map_err(|e| e.to_string())?;
        let mut wrong = Vec::new();
        for number in 0..STEPS {
            let given = |name: &str| &self.tensors[&format!("{number}/given/{name}")];
            let inputs = [("x", given("x")), (step.spec.target.as_str(), given("target"))];
            let mut outputs = Vec::new();
            session.run_into(&inputs, &mut outputs).map_err(|e| e.to_string())?;
            session.advance();
            let after = session.state().map_err(|e| e.to_string())?;
            let mut made: BTreeMap<String, (&Tensor, Option<&Tensor>)> = BTreeMap::new();
            made.extend(session.outputs().iter().map(|v| v.name.clone()).zip(outputs.iter().map(|t| (t, None))));
            for ((slot, old), new) in step.spec.state.iter().zip(&before).zip(&after) {
                let changes = matches!(slot.role, Role::Parameter | Role::Statistic);
                made.insert(slot.input.clone(), (new, changes.then_some(old)));
            }
            wrong.extend(self.apart(number, &made));
            before = after;
        }
        Ok(wrong)
    }

    /// What is missing, too much or too far from the reference of a step.
    fn apart(&self, number: usize, made: &BTreeMap<String, (&Tensor, Option<&Tensor>)>) -> Vec<String> {
        let prefix = format!("{number}/made/");
        let expected = self.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?, t)));
        let expected: BTreeMap<&str, &Tensor> = expected.collect();
        let mut wrong = Vec::new();
        let names: BTreeSet<&str> = expected.keys().copied().chain(made.keys().map(String::as_str)).collect();
        for name in names {
            let (Some(want), Some((got, old))) = (expected.get(name), made.get(name)) else {
                let side = if made.contains_key(name) { "PyTorch" } else { "the step" };
                wrong.push(format!("step {number}: {side} has no `{name}`"));
                continue;
            };
            if want.dtype() != got.dtype() || want.shape() != got.shape() {
                let (one, other) = ((got.dtype(), got.shape()), (want.dtype(), want.shape()));
                wrong.push(format!("step {number}: `{name}` is {one:?}, PyTorch's {other:?}"));
                continue;
            }
            let (got, want) = (numbers(got), numbers(want));
            let old = old.map_or_else(|| vec![0.0; want.len()], numbers);
            let largest = want.iter().zip(&old).fold(0f64, |m, (w, o)| m.max((w - o).abs()));
            // What isn't a number is too far as well.
            let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
            let apart = apart.fold(0f64, |m, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
            let double = self.tensors[&format!("{number}/made/loss")].dtype() == DataType::F64;
            let bound = if double { APART_MAX[1] * (largest + 1e-3) } else { APART_MAX[0] * largest + 5e-6 };
            if apart > bound {
                wrong.push(format!("step {number}: `{name}` is {apart:.1e} off, of {largest:.1e}"));
            }
        }
        wrong
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor.elements() {
        Elements::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
        Elements::F64(v) => v.clone(),
        Elements::I64(v) => v.iter().map(|&x| x as f64).collect(),
        other => panic!("a step gives {:?}", other.dtype()),
    }
}

/// Patterns of what engines refuse, as `engine model-opset`; the list may only
/// shrink.
fn known() -> impl Iterator<Item = &'static str> {
    include_str!("refused.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'))
}

fn is(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

fn is_known(name: &str) -> bool {
    known().any(|pattern| is(pattern, name))
}

#[test]
fn every_output_of_three_steps_is_pytorchs() {
    let (mut wrong, mut refused, mut compared) = (Vec::new(), BTreeMap::new(), 0);
    let engines = engines();
    for reference in references() {
        for (opset, model) in reference.models() {
            for engine in &engines {
                let name = format!("{} {}-{opset}", engine.name(), reference.name);
                let own: Kernels = engine.kernels().iter().copied().collect();
                let forms = [("plain", Kernels::none()), ("own operators", own)];
                for (form, kernels) in forms.into_iter().filter(|(f, k)| *f == "plain" || *k != Kernels::none()) {
                    match reference.compare(engine, &model, &kernels) {
                        Ok(found) => wrong.extend(found.into_iter().map(|fault| format!("{name}, {form}: {fault}"))),
                        Err(reason) => drop(refused.insert(name.clone(), reason)),
                    }
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0, "no models: run make.py");
    assert!(wrong.is_empty(), "of {compared} runs these differ: {wrong:#?}");
    let new: Vec<_> = refused.iter().filter(|(name, _)| !is_known(name)).collect();
    let here = |k: &&str| engines.iter().any(|e| k.starts_with(e.name()));
    let mended: Vec<_> = known().filter(here).filter(|k| !refused.keys().any(|name| is(k, name))).collect();
    assert!(
        new.is_empty() && mended.is_empty(),
        "these are refused and are not in refused.txt: {new:#?}; these work now, take them out of it: {mended:#?}"
    );
}

/// A reference by name, at its newest operator set.
fn newest(name: &str) -> (Model, Reference) {
    let reference = references().into_iter().find(|r| r.name == name).unwrap();
    (reference.models().pop().unwrap().1, reference)
}

/// The step of a model in an engine, and its state.
fn loaded(engine: &Arc<dyn Engine>, model: &Model, recipe: &Recipe) -> (Box<dyn Stateful>, Spec, Vec<Tensor>) {
    let own: Kernels = engine.kernels().iter().copied().collect();
    let step = trainable_with(model, recipe, &own).unwrap();
    let (graph, state) = step.divided().unwrap();
    let slots = step.spec.state.iter();
    let slots: Vec<StateSlot> = slots.map(|s| StateSlot { input: s.input.clone(), output: s.output.clone() }).collect();
    let session = engine.load_stateful(&graph, &LoadOptions::with_threads(1), &slots, state.clone()).unwrap();
    (session, step.spec, state)
}

#[test]
fn targets_that_are_no_class_or_of_another_shape_are_refused_by_the_step() {
    for (name, places) in [("loss_left_out", &[][..]), ("loss_of_places", &[4, 3])] {
        let (model, reference) = newest(name);
        let refused = |engine: &Arc<dyn Engine>| is_known(&format!("{} {name}-23", engine.name()));
        let x = &reference.tensors["0/given/x"];
        let examples = x.shape()[0];
        let target = |examples: usize, class: i64| {
            let shape = [&[examples][..], places].concat();
            let count = shape.iter().product();
            Tensor::new(shape, Elements::I64((0..count).map(|i| if i == 1 { class } else { 2 }).collect())).unwrap()
        };
        for engine in engines().into_iter().filter(|e| !refused(e)) {
            let (mut session, ..) = loaded(&engine, &model, &reference.recipe());
            let mut taken = |target: &Tensor| {
                let mut outputs = Vec::new();
                session.run_into(&[("x", x), ("target", target)], &mut outputs)
            };
            for (class, fits) in [(3, true), (-100, true), (-1, false), (4, false), (-101, false), (i64::MIN, false)] {
                // rten has 32 bits.
                if class == i64::MIN && engine.name() == "rten" {
                    continue;
                }
                let said = taken(&target(examples, class));
                assert_eq!(said.is_ok(), fits, "{name} on {}: class {class}: {said:?}", engine.name());
            }
            for other in [1, examples - 1, examples + 1] {
                assert!(taken(&target(other, 0)).is_err(), "{name} on {}: {other} targets", engine.name());
            }
        }
    }
}

#[test]
fn a_batch_of_nothing_but_targets_left_out_has_no_loss() {
    let (model, reference) = newest("loss_left_out");
    let x = &reference.tensors["0/given/x"];
    let target = Tensor::new([8], Elements::I64(vec![-100; 8])).unwrap();
    for engine in engines() {
        let (mut session, ..) = loaded(&engine, &model, &reference.recipe());
        let mut outputs = Vec::new();
        session.run_into(&[("x", x), ("target", &target)], &mut outputs).unwrap();
        let said = |name: &str| numbers(&outputs[session.outputs().iter().position(|v| v.name == name).unwrap()])[0];
        assert!(said("loss").is_nan());
        assert_eq!((said("correct"), said("counted")), (0.0, 0.0));
    }
}

#[test]
fn a_single_value_has_no_variance_to_learn_and_a_run_leaves_the_state_alone() {
    let (model, reference) = newest("batch_norm_of_rows");
    let row = |values: &[f32]| Tensor::new([values.len() / 5, 5], Elements::F32(values.to_vec())).unwrap();
    let x = row(&[0.5, -1.0, 2.0, 0.25, 1.5]);
    let target = Tensor::new([1], Elements::I64(vec![1])).unwrap();
    for engine in engines() {
        let (mut session, spec, before) = loaded(&engine, &model, &reference.recipe());
        let given = [("x", &x), ("target", &target)];
        let mut outputs = Vec::new();
        for _ in 0..2 {
            session.run_into(&given, &mut outputs).unwrap();
            assert_eq!(session.state().unwrap(), before, "on {}", engine.name());
        }
        session.advance();
        let after = session.state().unwrap();
        let at = |name: &str| spec.state.iter().position(|s| s.input == name).unwrap();
        assert_eq!(after[at("var")], before[at("var")], "on {}", engine.name());
        // h = x w is the batch's own mean.
        let w = numbers(&before[at("w")]);
        for channel in 0..4 {
            let mean: f64 = numbers(&x).iter().enumerate().map(|(i, x)| x * w[i * 4 + channel]).sum();
            let expected = 0.9 * numbers(&before[at("mean")])[channel] + 0.1 * mean;
            assert!((numbers(&after[at("mean")])[channel] - expected).abs() < 1e-5, "on {}", engine.name());
        }
    }
}

/// The variance of layers whose weights are frozen, or that a pattern names by
/// their mean, stays.
#[test]
fn frozen_layers_keep_their_statistics() {
    let (model, reference) = newest("batch_norm");
    let names = |freeze: &[&str]| {
        let freeze = freeze.iter().map(|&p| p.to_owned()).collect();
        let step = trainable_with(&model, &Recipe { freeze, ..reference.recipe() }, &Kernels::none()).unwrap();
        let slots = step.spec.state.into_iter();
        slots.filter(|s| s.role == Role::Statistic).map(|s| s.input).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["mean", "var"]);
    assert_eq!(names(&["s"]), ["mean", "var"]);
    assert!(names(&["s", "b"]).is_empty());
    // Its weights say what becomes of it.
    assert_eq!(names(&["mean"]), ["mean", "var"]);
}
