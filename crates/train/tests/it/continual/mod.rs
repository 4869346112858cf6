//! Learning without forgetting: what is computed, against `reference.py`, and
//! what comes of it.

mod federated;
mod kept;
mod learning;

use std::sync::Arc;

use serde_json::Value;
use tierline_engine::{Engine, Stop};
use tierline_graph::constant::tensor_to_proto;
use tierline_graph::emit::{Attribute, Emitter};
use tierline_graph::onnx::{GraphProto, ModelProto, OperatorSetIdProto};
use tierline_graph::slice::value_info_proto;
use tierline_graph::step::{Loss, Optimizer, Recipe, Role, Schedule, Steering};
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo};
use tierline_train::continual::{At, Labels, fisher, importance};
use tierline_train::data::{BatchOptions, Batches, Dataset, Position, Targets};
use tierline_train::{Flat, Trainer};

use crate::training::{engines, options};

/// What NumPy made of it.
fn reference() -> Value {
    serde_json::from_str(include_str!("reference.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(rows) => rows.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn f32s(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

fn flat(value: &Value) -> Flat {
    value.as_object().unwrap().iter().map(|(name, values)| (name.clone(), f32s(values))).collect()
}

/// A perceptron 3-4-3 with tanh, of the reference's weights, with a free batch
/// or a fixed one.
fn perceptron(weights: &Flat, batch: Option<u64>) -> Model {
    let mut out = Emitter::new(["x", "w1", "b1", "w2", "b2"]);
    let transposed = || [("transB", Attribute::Int(1))];
    let h = out.op("Gemm", &["x", "w1", "b1"], &transposed());
    let h = out.op("Tanh", &[&h], &[]);
    out.named("Gemm", &[&h, "w2", "b2"], &["logits"], &transposed());
    let constant = |name: &str, shape: &[usize]| {
        tensor_to_proto(name, &Tensor::new(shape, Elements::F32(weights[name].clone())).unwrap())
    };
    let batch = || batch.map_or(Dim::Symbol("batch".into()), Dim::Known);
    let value = |name: &str| {
        let shape = Some(vec![batch(), Dim::Known(3)]);
        value_info_proto(&ValueInfo { name: name.to_owned(), dtype: Some(DataType::F32), shape })
    };
    let graph = GraphProto {
        name: Some("perceptron".to_owned()),
        node: out.finish().0,
        initializer: vec![constant("w1", &[4, 3]), constant("b1", &[4]), constant("w2", &[3, 4]), constant("b2", &[3])],
        input: vec![value("x")],
        output: vec![value("logits")],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(18), ..OperatorSetIdProto::default() };
    let mut proto = ModelProto { ir_version: Some(9), opset_import: vec![opset], ..ModelProto::default() };
    *proto.graph.mut_or_insert_default() = graph;
    Model::from_proto(proto).unwrap()
}

fn examples(reference: &Value) -> Dataset {
    let classes: Vec<u32> = numbers(&reference["classes"]).into_iter().map(|c| c as u32).collect();
    let features = Tensor::new([classes.len(), 3], Elements::F32(f32s(&reference["features"]))).unwrap();
    Dataset::new("reference", features, Targets::Classes { classes, count: 3, names: Vec::new() }).unwrap()
}

fn recipe(reference: &Value, loss: Loss, momentum: f64, steering: Steering) -> Recipe {
    Recipe {
        loss,
        optimizer: Optimizer::Sgd { momentum, nesterov: false, weight_decay: 0.0 },
        schedule: Schedule::constant(reference["rate"].as_f64().unwrap()),
        steering: Some(steering),
        ..Recipe::default()
    }
}

fn close(what: &str, given: &Flat, expected: &Value) {
    for (name, values) in expected.as_object().unwrap() {
        let (given, expected) = (&given[name], numbers(values));
        assert_eq!(given.len(), expected.len(), "{what}: {name}");
        for (at, (given, expected)) in given.iter().zip(&expected).enumerate() {
            let apart = (f64::from(*given) - expected).abs();
            assert!(apart < 2e-5 * (1.0 + expected.abs()), "{what}: {name}[{at}] is {given}, not {expected}");
        }
    }
}

/// Steps over batches of four, in order, or the last first.
fn stepped(trainer: &mut Trainer, data: &Dataset, reversed: bool) -> Vec<f64> {
    let mut order: Vec<usize> = (0..data.len()).collect();
    if reversed {
        order = order.chunks(4).rev().flatten().copied().collect();
    }
    let batch = BatchOptions { size: 4, shuffle: false, ..BatchOptions::default() };
    let batches = Batches::start(&data.subset(&order).unwrap(), &batch, Position::default(), 1).unwrap();
    batches.map(|batch| trainer.step(&batch, batch.position).unwrap().loss).collect()
}

fn cross_entropy() -> Loss {
    Recipe::default().loss
}

fn each(mut test: impl FnMut(&Arc<dyn Engine>, &Value)) {
    let reference = reference();
    engines().iter().for_each(|engine| test(engine, &reference));
}

#[test]
fn steps_are_held_masked_and_traced_as_worked_out_by_hand() {
    each(|engine, reference| {
        let data = examples(reference);
        let start = flat(&reference["start"]);
        let run = |what: &str, steering: Steering, set: &dyn Fn(&mut Trainer)| {
            let recipe = recipe(reference, cross_entropy(), reference["momentum"].as_f64().unwrap(), steering);
            let mut trainer = Trainer::new(engine, perceptron(&start, None), &recipe, &options()).unwrap();
            set(&mut trainer);
            let losses = stepped(&mut trainer, &data, false);
            for (given, expected) in losses.iter().zip(numbers(&reference[what]["losses"])) {
                assert!((given - expected).abs() < 1e-5, "{what}: {given} {expected}");
            }
            close(what, &trainer.flat(Role::Parameter).unwrap(), &reference[what]["weights"]);
            if steering.traced {
                close(what, &trainer.flat(Role::Path).unwrap(), &reference[what]["path"]);
            }
        };
        let none = Steering::default();
        let traced = Steering { traced: true, ..none };
        run("plain", traced, &|_| ());
        // With nothing given, nothing changes.
        let (anchored, masked) = (Steering { anchored: true, ..traced }, Steering { masked: true, ..traced });
        run("plain", anchored, &|_| ());
        run("plain", masked, &|_| ());
        run("plain", Steering { pulled: true, corrected: true, anchored: true, masked: true, traced: true }, &|_| ());
        // Stiffness of zero holds nothing, wherever its anchor is.
        let zero: Flat = start.iter().map(|(name, v)| (name.clone(), vec![0.0; v.len()])).collect();
        run("plain", anchored, &|trainer| trainer.set_anchors(&zero, &flat(&reference["anchor"])).unwrap());
        run("held", anchored, &|trainer| {
            trainer.set_anchors(&flat(&reference["stiffness"]), &flat(&reference["anchor"])).unwrap();
        });
        run("masked", masked, &|trainer| trainer.set_masks(&flat(&reference["mask"])).unwrap());
    });
}

#[test]
fn what_does_not_fit_a_step_is_refused() {
    each(|engine, reference| {
        let start = flat(&reference["start"]);
        let recipe = recipe(reference, cross_entropy(), 0.0, Steering { anchored: true, ..Steering::default() });
        let mut trainer = Trainer::new(engine, perceptron(&start, None), &recipe, &options()).unwrap();
        let short: Flat = [("w1".to_owned(), vec![1.0])].into();
        let refused = trainer.set_anchors(&short, &short).unwrap_err().to_string();
        assert!(refused.contains("1 numbers") && refused.contains("12"), "{refused}");
        // It takes no masks.
        assert!(trainer.set_masks(&short).is_err());
        assert!(trainer.set_masks(&Flat::new()).is_ok());
    });
}

#[test]
fn importance_by_paths_is_as_worked_out_by_hand() {
    each(|engine, reference| {
        let (data, start) = (examples(reference), flat(&reference["start"]));
        let traced = Steering { traced: true, ..Steering::default() };
        let recipe = recipe(reference, cross_entropy(), reference["momentum"].as_f64().unwrap(), traced);
        let damping = reference["damping"].as_f64().unwrap();
        let (mut omega, mut from) = (Flat::new(), start);
        for (task, reversed) in [false, true].into_iter().enumerate() {
            let mut trainer = Trainer::new(engine, perceptron(&from, None), &recipe, &options()).unwrap();
            stepped(&mut trainer, &data, reversed);
            let (path, end) = (trainer.flat(Role::Path).unwrap(), trainer.flat(Role::Parameter).unwrap());
            for (name, path) in &path {
                let moves: Vec<f32> = end[name].iter().zip(&from[name]).map(|(a, b)| a - b).collect();
                let before = omega.get(name).cloned().unwrap_or_default();
                omega.insert(name.clone(), importance(&before, path, &moves, damping));
            }
            // Quotients of small numbers: relative to the largest.
            for (name, expected) in reference["importance"][task].as_object().unwrap() {
                let expected = numbers(expected);
                let most = expected.iter().fold(1e-3f64, |most, x| most.max(*x));
                for (given, expected) in omega[name].iter().zip(&expected) {
                    assert!((f64::from(*given) - expected).abs() < 2e-3 * most, "{name}: {given} {expected}");
                }
            }
            from = end;
        }
    });
}

#[test]
fn the_fisher_information_is_as_worked_out_by_hand() {
    each(|engine, reference| {
        let (data, start) = (examples(reference), flat(&reference["start"]));
        let recipe = recipe(reference, cross_entropy(), 0.0, Steering::default());
        // A batch that is fixed is filled with one example.
        for batch in [None, Some(3)] {
            let model = perceptron(&start, batch);
            let stop = Stop::never();
            let batch = BatchOptions::default();
            let load = options();
            let at = At { engine, load: &load, model: &model, recipe: &recipe, batch: &batch, stop: &stop };
            close("fisher", &fisher(&at, &data, 12, Labels::Given, 1).unwrap(), &reference["fisher"]);
            // With classes drawn from what it says: the mean over draws is what is
            // expected, and every draw is one of the classes.
            let sampled = fisher(&at, &data, 12, Labels::Sampled, 1).unwrap();
            assert_eq!(sampled, fisher(&at, &data, 12, Labels::Sampled, 1).unwrap());
            assert_ne!(sampled, fisher(&at, &data, 12, Labels::Sampled, 2).unwrap());
            assert!(sampled.values().flatten().all(|x| *x >= 0.0 && x.is_finite()));
            // Fewer than asked for.
            assert_eq!(fisher(&at, &data, 5, Labels::Given, 3).unwrap().len(), 4);
        }
        let frozen = Recipe { freeze: vec!["w1".into(), "b1".into()], ..recipe };
        let (model, stop, load) = (perceptron(&start, None), Stop::never(), options());
        let batch = BatchOptions::default();
        let at = At { engine, load: &load, model: &model, recipe: &frozen, batch: &batch, stop: &stop };
        let of: Vec<String> = fisher(&at, &data, 12, Labels::Given, 1).unwrap().into_keys().collect();
        assert_eq!(of, ["b2", "w2"]);
    });
}

#[test]
fn teachers_that_say_some_are_learned_as_worked_out_by_hand() {
    each(|engine, reference| {
        let start = flat(&reference["start"]);
        let number = |name: &str| reference[name].as_f64().unwrap();
        let loss = Loss::Distil { temperature: number("temperature"), weight: number("weight") };
        let features = Tensor::new([5, 3], Elements::F32(f32s(&reference["features"])[..15].to_vec())).unwrap();
        for lesson in reference["lessons"].as_array().unwrap() {
            let rows = numbers(&lesson["classes"]).into_iter().zip(lesson["said"].as_array().unwrap());
            let values = rows.flat_map(|(class, said)| [vec![class as f32], f32s(said)].concat()).collect();
            let targets = Targets::Values(Tensor::new([5, 4], Elements::F32(values)).unwrap());
            let data = Dataset::new("lesson", features.clone(), targets).unwrap();
            let recipe = recipe(reference, loss.clone(), 0.0, Steering::default());
            let mut trainer = Trainer::new(engine, perceptron(&start, None), &recipe, &options()).unwrap();
            let batch = BatchOptions { size: 5, shuffle: false, ..BatchOptions::default() };
            let expected = lesson["loss"].as_f64().unwrap();
            let scores = trainer.evaluate(&data, &batch).unwrap();
            assert!((scores.loss - expected).abs() < 1e-5, "{}: {} {expected}", engine.name(), scores.loss);
            for batch in Batches::start(&data, &batch, Position::default(), 1).unwrap() {
                let loss = trainer.step(&batch, batch.position).unwrap().loss;
                assert!((loss - expected).abs() < 1e-5, "{}: {loss} {expected}", engine.name());
            }
            close("lesson", &trainer.flat(Role::Parameter).unwrap(), &lesson["weights"]);
        }
    });
}
