//! The law of slicing: running the slices in order is running the whole, for
//! every cut of real models.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tierline_engine::{Engine, Evaluator, LoadOptions};
use tierline_graph::cuts::{Cut, cuts};
use tierline_graph::fold::fold;
use tierline_graph::infer::{Types, infer_types_with};
use tierline_graph::slice::slice;
use tierline_graph::{Elements, Model, Tensor};

use crate::support::{asset, engines, onnxruntime};

/// Relative to the largest value of an output; fusion across a cut may
/// change the order of sums.
const TOLERANCE: f32 = 1e-5;

struct Case {
    model: Model,
    types: Types,
    inputs: Vec<(String, Tensor)>,
    cuts: Vec<Cut>,
}

fn case(file: &str, shapes: &[(&str, &[u64])], engine: &Arc<dyn Engine>) -> Option<Case> {
    let path = asset(&format!("models/{file}.onnx"))?;
    let mut model = Model::load(&path).expect("a real model loads");
    fold(&mut model, &mut Evaluator(Arc::clone(engine))).expect("folds");
    let shapes: BTreeMap<String, Vec<u64>> = shapes.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect();
    let types = infer_types_with(&model, &shapes).expect("infers");
    let mut rng = fastrand::Rng::with_seed(11);
    let inputs = model
        .inputs()
        .into_iter()
        .map(|input| {
            let shape: Vec<usize> = match shapes.get(&input.name) {
                Some(shape) => shape.iter().map(|&d| d as usize).collect(),
                None => input.shape.expect("ranked").iter().map(|d| d.known().expect("fixed") as usize).collect(),
            };
            // Dark strokes on a bright ground, with grain: detectors answer
            // noise with zeros, which would compare nothing.
            let width = *shape.last().expect("ranked");
            let stroke = |i: usize| if (i / width / 6 + i % width / 4) % 3 == 0 { -1.8 } else { 1.8 };
            let values = (0..shape.iter().product()).map(|i| stroke(i) + rng.f32() * 0.2).collect();
            (input.name, Tensor::new(shape, Elements::F32(values)).expect("fits"))
        })
        .collect();
    let cuts = cuts(&model, &types);
    Some(Case { model, types, inputs, cuts })
}

fn run(engine: &Arc<dyn Engine>, model: &Model, given: &HashMap<String, Tensor>) -> Vec<(String, Tensor)> {
    let mut session = engine.load(model, &LoadOptions::with_threads(2)).expect("loads");
    let names: Vec<String> = session.inputs().iter().map(|v| v.name.clone()).collect();
    let inputs: Vec<(&str, &Tensor)> = names.iter().map(|n| (n.as_str(), &given[n])).collect();
    let outputs = session.run(&inputs).expect("runs");
    model.outputs().into_iter().map(|v| v.name).zip(outputs).collect()
}

/// Runs the slices one after the other; only what a cut carries is passed on.
fn run_sliced(engine: &Arc<dyn Engine>, case: &Case, at: &[Vec<String>]) -> Vec<(String, Tensor)> {
    let mut values: HashMap<String, Tensor> = case.inputs.iter().cloned().collect();
    let mut outputs = Vec::new();
    for part in slice(&case.model, &case.types, at).unwrap_or_else(|e| panic!("{at:?}: {e}")) {
        outputs = run(engine, &part, &values);
        values = outputs.iter().cloned().collect();
    }
    outputs
}

#[track_caller]
fn assert_same(whole: &[(String, Tensor)], sliced: &[(String, Tensor)], what: &str) {
    assert_eq!(whole.len(), sliced.len(), "{what}");
    for ((name, a), (other, b)) in whole.iter().zip(sliced) {
        assert_eq!((name, a.shape()), (other, b.shape()), "{what}");
        let (a, b) = (a.as_f32().expect("f32"), b.as_f32().expect("f32"));
        let scale = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max) / scale;
        assert!(worst <= TOLERANCE, "{what}: `{name}` differs by {worst:e} of its largest value");
    }
}

fn every_cut(file: &str, shapes: &[(&str, &[u64])], cuts_min: usize, cuts_tried: usize) {
    let Some(engine) = onnxruntime() else { return };
    let Some(case) = case(file, shapes, &engine) else { return };
    assert!(case.cuts.len() >= cuts_min, "{file}: {} cuts", case.cuts.len());
    let whole = run(&engine, &case.model, &case.inputs.iter().cloned().collect());
    // Every cut where the model is small; of the large ones so many that the
    // suite stays short, spread over the whole depth.
    let step = case.cuts.len().div_ceil(cuts_tried).max(1);
    for cut in case.cuts.iter().step_by(step) {
        let sliced = run_sliced(&engine, &case, std::slice::from_ref(&cut.tensors));
        assert_same(&whole, &sliced, &format!("{file} at {:?}", cut.tensors));
    }
    // And several cuts at once, seeded.
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..3 {
        let count = rng.usize(2..5).min(case.cuts.len());
        let mut at = rng.choose_multiple(0..case.cuts.len(), count);
        at.sort_unstable();
        let at: Vec<Vec<String>> = at.into_iter().map(|i| case.cuts[i].tensors.clone()).collect();
        assert_same(&whole, &run_sliced(&engine, &case, &at), &format!("{file} at {at:?}"));
    }
    println!("{file}: {} cuts, all equal", case.cuts.len());
}

#[test]
fn every_cut_of_ppocr_detection() {
    every_cut("ppocr-det", &[("x", &[1, 3, 64, 96])], 20, 1000);
}

#[test]
fn every_cut_of_ppocr_classification() {
    every_cut("ppocr-cls", &[("x", &[1, 3, 48, 96])], 20, 1000);
}

#[test]
fn every_cut_of_ppocr_recognition() {
    every_cut("ppocr-rec", &[("x", &[1, 3, 48, 64])], 20, 40);
}

#[test]
fn every_cut_of_squeezenet() {
    every_cut("light-squeezenet", &[], 20, 1000);
}

#[test]
fn every_cut_of_shufflenet() {
    every_cut("light-shufflenet", &[], 20, 40);
}

#[test]
fn every_cut_of_resnet50() {
    every_cut("light-resnet50", &[], 50, 12);
}

#[test]
fn every_cut_of_densenet121() {
    every_cut("light-densenet121", &[], 50, 12);
}

#[test]
fn rten_slices_like_it_runs() {
    for engine in engines().into_iter().filter(|e| e.name() == "rten") {
        let Some(case) = case("ppocr-cls", &[("x", &[1, 3, 48, 96])], &engine) else { return };
        let whole = run(&engine, &case.model, &case.inputs.iter().cloned().collect());
        for cut in case.cuts.iter().step_by(5) {
            let sliced = run_sliced(&engine, &case, std::slice::from_ref(&cut.tensors));
            assert_same(&whole, &sliced, &format!("at {:?}", cut.tensors));
        }
    }
}
