//! Every network runs, in every copy, and the copies agree.

use std::path::Path;
use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions};
use tierline_graph::{DataType, Elements, Model, Tensor};
use tierline_zoo::{Batch, Bn, MODELS, Options, by_name, half, quantize};

/// Small pictures: these tests run unoptimised code beside the engines.
fn options() -> Options {
    Options { image: Some(64), ..Options::default() }
}

/// ONNX Runtime where `cargo xtask test` put it; it takes every element type.
fn onnxruntime() -> Option<Arc<dyn Engine>> {
    let Some(path) = std::env::var_os("ORT_DYLIB_PATH") else {
        eprintln!("skipped: ORT_DYLIB_PATH is not set; run cargo xtask test");
        return None;
    };
    Some(tierline_engine::onnxruntime(Some(Path::new(&path))).expect("ORT_DYLIB_PATH names ONNX Runtime"))
}

/// Inputs of the model's types and shapes; free axes become `free`.
fn inputs(model: &Model, free: u64) -> Vec<(String, Tensor)> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut make = |info: tierline_graph::ValueInfo| {
        let shape: Vec<usize> = info.shape.unwrap().iter().map(|d| d.known().unwrap_or(free) as usize).collect();
        let n = shape.iter().product();
        let elements = match (info.dtype.unwrap(), info.name.as_str()) {
            (DataType::I64, "input_ids") => Elements::I64((0..n).map(|_| rng.i64(0..30_000)).collect()),
            (DataType::I64, name) => Elements::I64(vec![i64::from(name == "attention_mask"); n]),
            _ => Elements::F32((0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()),
        };
        (info.name, Tensor::new(shape, elements).unwrap())
    };
    model.inputs().into_iter().map(&mut make).collect()
}

fn run(engine: &dyn Engine, model: &Model, inputs: &[(String, Tensor)]) -> Vec<f32> {
    let mut session = engine.load(model, &LoadOptions::default()).unwrap();
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    match session.run(&inputs).unwrap().remove(0).into_parts().1 {
        Elements::F32(v) => v,
        Elements::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
        other => panic!("an output of {}", other.dtype()),
    }
}

/// Root mean square of the difference over that of the expectation.
fn difference(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let square = |v: f32| f64::from(v) * f64::from(v);
    let wrong: f64 = actual.iter().zip(expected).map(|(a, e)| square(a - e)).sum();
    (wrong / expected.iter().map(|&e| square(e)).sum::<f64>()).sqrt()
}

#[test]
fn engines_agree_on_every_network() {
    let Some(ort) = onnxruntime() else { return };
    let rten = tierline_engine::rten();
    for (name, build) in MODELS {
        let model = build(&options());
        let inputs = inputs(&model, 9);
        let expected = run(&*ort, &model, &inputs);
        assert!(expected.iter().all(|v| v.is_finite()), "{name}");
        let off = difference(&run(&*rten, &model, &inputs), &expected);
        assert!(off < 1e-4, "{name}: engines differ by {off}");
    }
}

#[test]
fn free_batches_and_kept_normalisation_run() {
    let Some(ort) = onnxruntime() else { return };
    for (name, build) in MODELS {
        let model = build(&Options { batch: Batch::Free, bn: Bn::Kept, ..options() });
        let output = run(&*ort, &model, &inputs(&model, 2));
        assert!(output.iter().all(|v| v.is_finite()), "{name}");
    }
}

#[test]
fn int8_copies_stay_close() {
    let Some(ort) = onnxruntime() else { return };
    for name in ["lenet", "unet_small", "mobilenet_v2", "resnet18"] {
        let model = by_name(name, &options()).unwrap();
        let inputs = inputs(&model, 1);
        let off = difference(&run(&*ort, &quantize::qdq(&model), &inputs), &run(&*ort, &model, &inputs));
        // Fixed ranges and random weights: close enough to be the same network.
        assert!(off > 0.0 && off < 0.4, "{name}: {off}");
    }
}

#[test]
fn fp16_copies_stay_close() {
    let Some(ort) = onnxruntime() else { return };
    for name in ["lenet", "unet_small", "mobilenet_v2", "lstm", "vit_tiny", "minilm"] {
        let model = by_name(name, &options()).unwrap();
        let narrow = half::fp16(&model);
        let wide_inputs = inputs(&model, 9);
        let narrow_inputs: Vec<_> = wide_inputs
            .iter()
            .map(|(name, tensor)| match tensor.as_f32() {
                Some(v) => {
                    let elements = Elements::F16(v.iter().map(|&x| ::half::f16::from_f32(x)).collect());
                    (name.clone(), Tensor::new(tensor.shape(), elements).unwrap())
                }
                None => (name.clone(), tensor.clone()),
            })
            .collect();
        let off = difference(&run(&*ort, &narrow, &narrow_inputs), &run(&*ort, &model, &wide_inputs));
        assert!(off < 0.02, "{name}: {off}");
    }
}
