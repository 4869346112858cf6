//! The law of slicing: running the slices in order is running the whole, for
//! every cut of real models.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tierline_engine::{Engine, Evaluator, LoadOptions};
use tierline_graph::cuts::{Cut, cuts};
use tierline_graph::fold::fold;
use tierline_graph::infer::{Types, infer_types_with};
use tierline_graph::slice::slice;
use tierline_graph::{DataType, Elements, Model, Tensor};
use tierline_zoo::Options;

use crate::support::{asset, onnxruntime};

/// Relative to the largest value of an output; fusion across a cut may
/// change the order of sums.
const TOLERANCE: f32 = 1e-5;

struct Case {
    model: Model,
    types: Types,
    inputs: Vec<(String, Tensor)>,
    cuts: Vec<Cut>,
}

type Shapes<'s> = &'s [(&'s str, &'s [u64])];

/// A real model; `None`, said aloud, where there are no assets.
fn real(file: &str) -> Option<Model> {
    Some(Model::load(&asset(&format!("models/{file}.onnx"))?).expect("a real model loads"))
}

/// The graph of a real model that comes with one value for all weights, with
/// seeded weights: else it answers the same for anything.
fn reseeded(file: &str) -> Option<Model> {
    let mut model = real(file)?;
    fold(&mut model, &mut Evaluator(tierline_engine::rten())).expect("folds");
    let mut proto = model.proto().clone();
    let mut rng = fastrand::Rng::with_seed(5);
    let graph = proto.graph.as_mut().expect("has a graph");
    // Their weights are made by nodes, as constants of an architecture are.
    let stated = graph.node.iter_mut().filter(|n| n.op_type() == "Constant");
    let stated = stated.flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut());
    for weight in graph.initializer.iter_mut().chain(stated) {
        let count: i64 = weight.dims.iter().product();
        if weight.data_type() != DataType::F32.to_onnx() || count < 2 {
            continue;
        }
        // Vectors are biases, scales and variances, which stay near 1; what
        // feeds a sum is as small as the sum is long.
        let reach = weight.dims.iter().skip(1).product::<i64>() as f32;
        let mut draw = || match weight.dims.len() {
            1 => 0.75 + rng.f32() / 2.,
            _ => (rng.f32() - 0.5) * (24. / reach).sqrt(),
        };
        let bytes: Vec<u8> = (0..count).flat_map(|_| draw().to_le_bytes()).collect();
        weight.float_data.clear();
        weight.set_raw_data(bytes.into());
    }
    Some(Model::from_proto(proto).expect("stays a model"))
}

fn case(mut model: Model, shapes: Shapes, engine: &Arc<dyn Engine>) -> Case {
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
            let count: usize = shape.iter().product();
            let width = *shape.last().expect("ranked");
            let height = shape.len().checked_sub(2).map_or(1, |axis| shape[axis]);
            let pixel = |i: usize| if inked(i / width % height, i % width) { -2. } else { 2. };
            let elements = match input.dtype {
                // The first token counts, whatever the mask says of others.
                Some(DataType::I64) => Elements::I64((0..count).map(|i| i64::from(i == 0 || rng.bool())).collect()),
                _ => Elements::F32((0..count).map(|i| pixel(i) + rng.f32() * 0.05).collect()),
            };
            (input.name, Tensor::new(shape, elements).expect("fits"))
        })
        .collect();
    let cuts = cuts(&model, &types);
    Case { model, types, inputs, cuts }
}

/// Whether a page of text has ink there. Detectors answer anything else with
/// a flat nothing, in which only rounding differs.
fn inked(row: usize, column: usize) -> bool {
    /// H, E, L, O: five rows of four bits.
    const LETTERS: [[u8; 5]; 4] = [[9, 9, 15, 9, 9], [15, 8, 14, 8, 15], [8, 8, 8, 8, 15], [6, 9, 9, 9, 6]];
    /// Pixels per dot.
    const DOT: usize = 2;
    let (line, letter) = (row / DOT % 9, column / DOT / 5);
    let (y, x) = (line.checked_sub(3), column / DOT % 5);
    y.and_then(|y| LETTERS[letter % 4].get(y)).is_some_and(|bits| x < 4 && bits >> (3 - x) & 1 == 1)
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
        assert!(says_something(a), "{what}: `{name}` is all but zero or the same everywhere, which compares nothing");
        let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max) / scale;
        assert!(worst <= TOLERANCE, "{what}: `{name}` differs by {worst:e} of its largest value");
    }
}

fn says_something(values: &[f32]) -> bool {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    high.abs().max(low.abs()) > 1e-4 && high - low > 0.01 * high.abs()
}

/// Every cut where the model is small; of the large ones so many that the
/// suite stays short, spread over the whole depth.
fn every_cut(name: &str, model: Option<Model>, shapes: Shapes, cuts_min: usize, cuts_tried: usize) {
    let (Some(engine), Some(model)) = (onnxruntime(), model) else { return };
    let case = case(model, shapes, &engine);
    assert!(case.cuts.len() >= cuts_min, "{name}: {} cuts", case.cuts.len());
    let whole = run(&engine, &case.model, &case.inputs.iter().cloned().collect());
    let step = case.cuts.len().div_ceil(cuts_tried).max(1);
    for cut in case.cuts.iter().step_by(step) {
        let sliced = run_sliced(&engine, &case, std::slice::from_ref(&cut.tensors));
        assert_same(&whole, &sliced, &format!("{name} at {:?}", cut.tensors));
    }
    // And several cuts at once, seeded.
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..3 {
        let count = rng.usize(2..5).min(case.cuts.len());
        let mut at = rng.choose_multiple(0..case.cuts.len(), count);
        at.sort_unstable();
        let at: Vec<Vec<String>> = at.into_iter().map(|i| case.cuts[i].tensors.clone()).collect();
        assert_same(&whole, &run_sliced(&engine, &case, &at), &format!("{name} at {at:?}"));
    }
    println!("{name}: {} cuts, all equal", case.cuts.len());
}

#[test]
fn every_cut_of_ppocr_detection() {
    every_cut("ppocr-det", real("ppocr-det"), &[("x", &[1, 3, 64, 96])], 20, 1000);
}

#[test]
fn every_cut_of_ppocr_classification() {
    every_cut("ppocr-cls", real("ppocr-cls"), &[("x", &[1, 3, 48, 96])], 20, 1000);
}

#[test]
fn every_cut_of_ppocr_recognition() {
    every_cut("ppocr-rec", real("ppocr-rec"), &[("x", &[1, 3, 48, 64])], 20, 40);
}

#[test]
fn every_cut_of_squeezenet() {
    every_cut("squeezenet", reseeded("light-squeezenet"), &[], 20, 20);
}

#[test]
fn every_cut_of_shufflenet() {
    every_cut("shufflenet", reseeded("light-shufflenet"), &[], 20, 20);
}

#[test]
fn every_cut_of_densenet121() {
    every_cut("densenet121", reseeded("light-densenet121"), &[], 50, 8);
}

/// An architecture with seeded weights, the shapes it leaves open, and how
/// many cuts are tried.
const ZOO: &[(&str, Shapes, usize)] = &[
    ("mlp", &[], 100),
    ("lenet", &[], 100),
    ("lstm", &[("input", &[7, 1, 32])], 100),
    ("unet_small", &[], 20),
    ("mobilenet_v2", &[], 20),
    ("resnet18", &[], 12),
    ("resnet50", &[], 6),
    ("vit_tiny", &[], 20),
    ("minilm", &[("input_ids", &[1, 12]), ("attention_mask", &[1, 12]), ("token_type_ids", &[1, 12])], 8),
];

#[test]
fn every_cut_of_the_zoo() {
    for (name, shapes, cuts_tried) in ZOO {
        every_cut(name, tierline_zoo::by_name(name, &Options::default()), shapes, 1, *cuts_tried);
    }
}

#[test]
fn rten_slices_like_it_runs() {
    let engine = tierline_engine::rten();
    let zoo = |name: &str| tierline_zoo::by_name(name, &Options::default());
    let shapes: Shapes = &[("x", &[1, 3, 48, 96])];
    for (name, model, shapes, step) in [
        ("ppocr-cls", real("ppocr-cls"), shapes, 5),
        ("mobilenet_v2", zoo("mobilenet_v2"), &[], 12),
        ("lstm", zoo("lstm"), &[("input", &[7, 1, 32])], 1),
    ] {
        let Some(model) = model else { continue };
        let case = case(model, shapes, &engine);
        let whole = run(&engine, &case.model, &case.inputs.iter().cloned().collect());
        for cut in case.cuts.iter().step_by(step) {
            let sliced = run_sliced(&engine, &case, std::slice::from_ref(&cut.tensors));
            assert_same(&whole, &sliced, &format!("{name} at {:?}", cut.tensors));
        }
    }
}
