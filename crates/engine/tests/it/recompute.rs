//! Training steps that compute activations again: the same step, in less
//! memory.

use std::collections::HashSet;

use tierline_engine::{Engine, EngineError, LoadOptions};
use tierline_graph::DataType::F32;
use tierline_graph::step::{Optimizer, Recipe, Role, Step, trainable, trainable_with};
use tierline_graph::{Elements, Kernels, Model, Tensor, infer_types, memory};
use tierline_zoo::{Batch, Bn, Options, by_name};

use crate::support::{engines, f32s, model, node};

fn recipe(recompute: bool) -> Recipe {
    let optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
    Recipe { optimizer, recompute, seed: 3, ..Recipe::default() }
}

fn known(name: &str, image: Option<u64>) -> Model {
    by_name(name, &Options { bn: Bn::Kept, batch: Batch::Free, image, ..Options::default() }).unwrap()
}

/// Layers with normalisation and dropout, one behind the other.
fn deep() -> Model {
    let mut random = fastrand::Rng::with_seed(1);
    let mut weights = vec![("ratio", f32s(&[], &[0.3])), ("on", Tensor::new([], Elements::Bool(vec![1])).unwrap())];
    let names: Vec<[String; 5]> = (0..12).map(|i| ["w", "h", "r", "d", "s"].map(|kind| format!("{kind}{i}"))).collect();
    let mut nodes = Vec::new();
    let mut x = "x";
    for [w, h, r, d, s] in &names {
        weights.push((w, f32s(&[64, 64], &(0..4096).map(|_| random.f32() * 0.3 - 0.15).collect::<Vec<_>>())));
        nodes.push(node("MatMul", &[x, w], &[h]));
        nodes.push(node("Relu", &[h], &[r]));
        nodes.push(node("Dropout", &[r, "ratio", "on"], &[d]));
        // Skips the layer, so that two tensors cross.
        nodes.push(node("Add", &[d, x], &[s]));
        x = s;
    }
    nodes.push(node("Identity", &[x], &["y"]));
    model(18, &[("x", F32, &["batch", "64"])], &[("y", F32, &["batch", "64"])], &weights, nodes)
}

fn again(step: &Step) -> HashSet<&str> {
    step.model.graph().node.iter().filter_map(|n| n.name().strip_suffix(".again")).collect()
}

/// Outputs of the first step.
fn first(engine: &dyn Engine, step: &Step, batch: usize) -> Result<Vec<(String, Tensor)>, EngineError> {
    let mut random = fastrand::Rng::with_seed(7);
    let (graph, state) = step.divided().unwrap();
    let mut session = engine.load(&graph, &LoadOptions::with_threads(1))?;
    let mut given: Vec<(String, Tensor)> = Vec::new();
    let slots: Vec<&str> = step.spec.state.iter().map(|s| s.input.as_str()).collect();
    for input in session.inputs().iter().filter(|i| !slots.contains(&i.name.as_str())) {
        let sizes = input.shape.iter().flatten().map(|d| d.known().map_or(batch, |n| n as usize));
        let shape: Vec<usize> = sizes.collect();
        let count = shape.iter().product();
        let elements = if input.dtype == Some(F32) {
            Elements::F32((0..count).map(|_| random.f32()).collect())
        } else {
            Elements::I64((0..count).map(|_| random.i64(0..4)).collect())
        };
        given.push((input.name.clone(), Tensor::new(shape, elements).unwrap()));
    }
    given.extend(slots.into_iter().map(str::to_owned).zip(state));
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let names: Vec<String> = session.outputs().iter().map(|o| o.name.clone()).collect();
    Ok(names.into_iter().zip(session.run(&given)?).collect())
}

fn floats(tensor: &Tensor) -> Option<&[f32]> {
    if let Elements::F32(values) = tensor.elements() { Some(values) } else { None }
}

#[test]
fn the_step_is_the_same() {
    for (name, model, batch) in [
        ("deep", deep(), 9),
        ("mobilenet", known("mobilenet_v2_small", Some(32)), 4),
        ("resnet", known("resnet18_small", Some(16)), 3),
        ("text", known("text_classifier", None), 2),
    ] {
        for engine in engines() {
            let kernels: Kernels = engine.kernels().iter().copied().collect();
            let made = |recompute| trainable_with(&model, &recipe(recompute), &kernels).unwrap();
            let (kept, less) = (made(false), made(true));
            assert_eq!(kept.spec, less.spec, "{name}");
            assert!(again(&kept).is_empty());
            assert!(again(&less).len() > 3, "{name}: {:?}", again(&less));
            let (expected, found) = match first(engine.as_ref(), &kept, batch) {
                Ok(expected) => (expected, first(engine.as_ref(), &less, batch).unwrap()),
                // It lacks the integers of dropout and normalisation by batches.
                Err(_) if engine.name() == "rten" && name != "text" => continue,
                Err(error) => panic!("{name}: {error}"),
            };
            for ((output, a), (_, b)) in expected.iter().zip(&found) {
                let (Some(a), Some(b)) = (floats(a), floats(b)) else {
                    assert_eq!(a, b, "{name}: {output}");
                    continue;
                };
                let largest = a.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let apart = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
                assert!(apart <= 1e-4 * largest, "{name} on {}: {output} is {apart} apart", engine.name());
            }
        }
    }
}

#[test]
fn it_takes_less_memory() {
    for (name, model, share) in [
        ("deep", deep(), 0.6),
        ("mobilenet", known("mobilenet_v2_small", None), 0.5),
        ("text", known("text_classifier", None), 0.6),
    ] {
        let each = |recompute| {
            let step = trainable(&model, &recipe(recompute)).unwrap().model;
            let types = infer_types(&step).unwrap();
            (memory::peak(&step, &types, 64) - memory::peak(&step, &types, 32)) as f64
        };
        let (kept, less) = (each(false), each(true));
        assert!(less < share * kept, "{name}: {less} of {kept} bytes");
    }
}

#[test]
fn a_frozen_beginning_is_left_alone() {
    let model = known("resnet18_small", Some(16));
    let all = trainable(&model, &recipe(false)).unwrap();
    let weights = all.spec.state.iter().filter(|s| s.role == Role::Parameter);
    let names: Vec<&str> = weights.map(|s| s.input.as_str()).collect();
    // All but the last weights: nothing before them has a gradient.
    let frozen: Vec<String> = names[..names.len() - 2].iter().map(|n| (*n).to_owned()).collect();
    let step = trainable(&model, &Recipe { freeze: frozen, ..recipe(true) }).unwrap();
    assert!(again(&step).is_empty(), "{:?}", again(&step));
}
