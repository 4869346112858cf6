//! Operators of our own against the plain ONNX form of the same rule, on
//! random shapes, and whole training steps with and without them.

use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions};
use tierline_graph::DataType::F32;
use tierline_graph::gradient::backward_with;
use tierline_graph::step::{Clip, Moments, Optimizer, Recipe, Role, Spec, Step, trainable, trainable_with};
use tierline_graph::{DataType, Dim, Elements, Kernels, Model, Tensor};
use tierline_zoo::{Batch, Bn, Options, by_name};

use crate::support::{Attributes, f32s, model, node, onnxruntime};

/// How far values may be from the plain form's, relative to the largest.
const APART_MAX: f32 = 2e-5;

fn noise(random: &mut fastrand::Rng, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    f32s(shape, &(0..count).map(|_| random.f32() * 2.0 - 1.0).collect::<Vec<_>>())
}

fn floats(tensor: &Tensor) -> &[f32] {
    match tensor.elements() {
        Elements::F32(values) => values,
        other => panic!("{:?}", other.dtype()),
    }
}

fn run(engine: &Arc<dyn Engine>, model: &Model, threads: usize, inputs: &[(String, Tensor)]) -> Vec<Tensor> {
    let mut session = engine.load(model, &LoadOptions::with_threads(threads)).unwrap();
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&inputs).unwrap()
}

fn close(what: &str, name: &str, ours: &Tensor, plain: &Tensor, apart_max: f32) {
    assert_eq!(ours.shape(), plain.shape(), "{what}: {name}");
    let largest = floats(plain).iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in floats(ours).iter().zip(floats(plain)).enumerate() {
        assert!((a - b).abs() <= apart_max * largest, "{what}: {name}[{i}] is {a}, the plain form's {b}");
    }
}

/// Both forms of the gradients of every input; `operator` must be in use.
fn agree(engine: &Arc<dyn Engine>, what: &str, operator: &str, model: &Model, random: &mut fastrand::Rng) {
    let inputs = model.inputs();
    let wanted: Vec<&str> = inputs.iter().map(|v| v.name.as_str()).collect();
    let output = &model.outputs()[0].name;
    let made = |kernels: &Kernels| backward_with(model, &[output], &wanted, kernels).unwrap().model;
    let (plain, ours) = (made(&Kernels::none()), made(&Kernels::from_iter([operator])));
    assert!(ours.graph().node.iter().any(|n| n.op_type() == operator), "{what}: {operator} isn't used");
    let given: Vec<(String, Tensor)> = plain
        .inputs()
        .into_iter()
        .map(|v| {
            let shape: Vec<usize> = v.shape.unwrap().iter().map(|d| d.known().unwrap() as usize).collect();
            (v.name, noise(random, &shape))
        })
        .collect();
    let expected = run(engine, &plain, 1, &given);
    let [one, two] = [1, 2].map(|threads| run(engine, &ours, threads, &given));
    assert_eq!(one, two, "{what}: two threads change the result");
    for ((output, ours), plain) in plain.outputs().iter().zip(&one).zip(&expected) {
        close(what, &output.name, ours, plain, APART_MAX);
    }
}

fn sizes(shape: &[usize]) -> Vec<String> {
    shape.iter().map(usize::to_string).collect()
}

/// A model of one node over inputs `x0..`, all differentiated.
fn single(
    make: impl FnOnce(&[&str]) -> Vec<tierline_graph::onnx::NodeProto>,
    inputs: &[&[usize]],
    y: &[usize],
) -> Model {
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let shapes: Vec<Vec<String>> = inputs.iter().chain([&y]).map(|s| sizes(s)).collect();
    let shapes: Vec<Vec<&str>> = shapes.iter().map(|s| s.iter().map(String::as_str).collect()).collect();
    let (y, xs) = shapes.split_last().unwrap();
    let declared: Vec<(&str, DataType, &[&str])> = names.iter().zip(xs).map(|(n, s)| (*n, F32, s.as_slice())).collect();
    model(17, &declared, &[("y", F32, y)], &[], make(&names))
}

/// A random window and picture: kernel, strides, dilations, pads, sizes,
/// output sizes.
struct Shapes {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    sizes: Vec<usize>,
    out: Vec<usize>,
}

fn shapes(random: &mut fastrand::Rng, axes: usize, dilated: bool) -> Shapes {
    let mut s = Shapes {
        kernel: vec![],
        strides: vec![],
        dilations: vec![],
        pads: vec![0; 2 * axes],
        sizes: vec![],
        out: vec![],
    };
    for axis in 0..axes {
        let (kernel, stride) = (random.i64(1..=4), random.i64(1..=3));
        let dilation = if dilated { random.i64(1..=2) } else { 1 };
        let reach = (kernel - 1) * dilation + 1;
        s.pads[axis] = random.i64(0..kernel);
        s.pads[axes + axis] = random.i64(0..kernel);
        let size = reach + random.i64(0..=9);
        let out = (size + s.pads[axis] + s.pads[axes + axis] - reach) / stride + 1;
        s.kernel.push(kernel);
        s.strides.push(stride);
        s.dilations.push(dilation);
        s.sizes.push(size as usize);
        s.out.push(out as usize);
    }
    s
}

#[test]
fn convolutions_weight_gradients() {
    let Some(engine) = onnxruntime() else { return };
    let mut random = fastrand::Rng::with_seed(1);
    for case in 0..40 {
        let s = shapes(&mut random, if case % 3 == 0 { 1 } else { 2 }, true);
        let (batch, input, out) = (random.usize(1..=4), random.usize(1..=70), random.usize(1..=40));
        let x = [&[batch, input], s.sizes.as_slice()].concat();
        let kernel: Vec<usize> = s.kernel.iter().map(|&k| k as usize).collect();
        let w = [&[out, input], kernel.as_slice()].concat();
        let y = [&[batch, out], s.out.as_slice()].concat();
        let what = format!("case {case}: {x:?} by {w:?}, {:?} {:?} {:?}", s.strides, s.dilations, s.pads);
        let conv = |x: &[&str]| {
            let node = node("Conv", x, &["y"]).ints("kernel_shape", &s.kernel).ints("strides", &s.strides);
            vec![node.ints("dilations", &s.dilations).ints("pads", &s.pads)]
        };
        agree(&engine, &what, "ConvWeightGrad", &single(conv, &[&x, &w], &y), &mut random);
    }
}

/// One step of a model, both ways: state and loss must agree.
fn steps_agree(name: &str, image: Option<u64>, batch: usize, recipe: &Recipe) {
    let Some(engine) = onnxruntime() else { return };
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image, ..Options::default() };
    let model = by_name(name, &options).unwrap();
    let kernels: Kernels = engine.kernels().iter().copied().collect();
    let (plain, ours) = (trainable(&model, recipe).unwrap(), trainable_with(&model, recipe, &kernels).unwrap());
    let given = batch_of(&model, &plain.spec, batch);
    let after = |step: &Step, threads: usize| {
        let (model, state) = step.divided().unwrap();
        let mut inputs = given.clone();
        inputs.extend(step.spec.state.iter().map(|s| s.input.clone()).zip(state));
        run(&engine, &model, threads, &inputs)
    };
    let names: Vec<String> = plain.model.outputs().into_iter().map(|o| o.name).collect();
    assert_eq!(names, ours.model.outputs().into_iter().map(|o| o.name).collect::<Vec<_>>());
    let (expected, made) = (after(&plain, 1), after(&ours, 1));
    let roles: Vec<(&String, Role)> = plain.spec.state.iter().map(|s| (&s.output, s.role)).collect();
    for ((name, a), b) in names.iter().zip(&made).zip(&expected) {
        let role = roles.iter().find(|(output, _)| *output == name).map(|(_, role)| *role);
        match a.dtype() {
            F32 if role == Some(Role::Optimizer) => close(name, name, a, b, 2e-3),
            F32 => close(name, name, a, b, 1e-4),
            _ => assert_eq!(a, b),
        }
    }
}

/// A seeded batch for a model and its step's target.
fn batch_of(model: &Model, spec: &Spec, batch: usize) -> Vec<(String, Tensor)> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut given = Vec::new();
    for input in model.inputs() {
        let shape: Vec<usize> = input
            .shape
            .unwrap()
            .iter()
            .map(|d| match d {
                Dim::Known(n) => *n as usize,
                _ => batch,
            })
            .collect();
        given.push((input.name, noise(&mut random, &shape)));
    }
    let classes = (0..batch).map(|_| random.i64(0..10)).collect();
    given.push((spec.target.clone(), Tensor::new([batch], Elements::I64(classes)).unwrap()));
    given
}

#[test]
fn steps() {
    let sgd = |momentum, nesterov, weight_decay| Optimizer::Sgd { momentum, nesterov, weight_decay };
    let with = |optimizer| Recipe { optimizer, ..Recipe::default() };
    steps_agree("lenet", None, 5, &with(sgd(0.9, true, 1e-3)));
    steps_agree("resnet18_small", Some(16), 3, &with(sgd(0.9, false, 0.0)));
    steps_agree("mobilenet_v2_small", Some(32), 4, &with(sgd(0.0, false, 1e-4)));
    let adam = Moments { weight_decay: 0.01, ..Moments::default() };
    let clipped = Recipe { clip: Some(Clip::Norm(1.0)), ..with(Optimizer::AdamW(adam.clone())) };
    steps_agree("lenet", None, 5, &clipped);
    steps_agree("lenet", None, 5, &with(Optimizer::Adam(adam)));
}

#[test]
fn depthwise_gradients() {
    let Some(engine) = onnxruntime() else { return };
    let mut random = fastrand::Rng::with_seed(2);
    for case in 0..40 {
        let s = shapes(&mut random, if case % 3 == 0 { 1 } else { 2 }, true);
        let (batch, channels) = (random.usize(1..=4), random.usize(2..=20));
        let x = [&[batch, channels], s.sizes.as_slice()].concat();
        let kernel: Vec<usize> = s.kernel.iter().map(|&k| k as usize).collect();
        let w = [&[channels, 1], kernel.as_slice()].concat();
        let y = [&[batch, channels], s.out.as_slice()].concat();
        let what = format!("case {case}: {x:?} by {w:?}, {:?} {:?} {:?}", s.strides, s.dilations, s.pads);
        let conv = |x: &[&str]| {
            let node = node("Conv", x, &["y"]).ints("kernel_shape", &s.kernel).ints("strides", &s.strides);
            vec![node.ints("dilations", &s.dilations).ints("pads", &s.pads).int("group", channels as i64)]
        };
        agree(&engine, &what, "DepthwiseGrad", &single(conv, &[&x, &w], &y), &mut random);
    }
}

#[test]
fn batch_norm_gradients() {
    let Some(engine) = onnxruntime() else { return };
    let mut random = fastrand::Rng::with_seed(3);
    for case in 0..20 {
        let channels = random.usize(1..=40);
        let spatial: Vec<usize> = (0..case % 4).map(|_| random.usize(1..=13)).collect();
        // Of a few values the gradient is next to nothing but rounding.
        let x = [&[random.usize(6..=9), channels], spatial.as_slice()].concat();
        let norm = |x: &[&str]| {
            let inputs = [x[0], x[1], x[2], "mean", "variance"];
            vec![node("BatchNormalization", &inputs, &["y", "m", "v"]).int("training_mode", 1)]
        };
        let (rank, channel) = (sizes(&x), channels.to_string());
        let rank: Vec<&str> = rank.iter().map(String::as_str).collect();
        let each: &[&str] = &[&channel];
        let zeros = f32s(&[channels], &vec![0.0; channels]);
        let model = model(
            17,
            &[("x", F32, &rank), ("scale", F32, each), ("bias", F32, each)],
            &[("y", F32, &rank)],
            &[("mean", zeros.clone()), ("variance", zeros)],
            norm(&["x", "scale", "bias"]),
        );
        agree(&engine, &format!("case {case}: {x:?}"), "BatchNormGrad", &model, &mut random);
    }
}

#[test]
fn masks() {
    let Some(engine) = onnxruntime() else { return };
    let mut random = fastrand::Rng::with_seed(4);
    for size in [1, 7, 64, 40_001] {
        let relu = |x: &[&str]| vec![node("Relu", x, &["y"])];
        agree(&engine, "relu", "ReluGrad", &single(relu, &[&[size]], &[size]), &mut random);
        let text = size.to_string();
        let bounds = [("low", f32s(&[], &[-0.5])), ("high", f32s(&[], &[0.25]))];
        for inputs in [&["x", "low", "high"][..], &["x", "low"], &["x", "", "high"]] {
            let clip = vec![node("Clip", inputs, &["y"])];
            let given: Vec<(&str, Tensor)> = bounds.iter().filter(|(name, _)| inputs.contains(name)).cloned().collect();
            let clip = model(17, &[("x", F32, &[&text])], &[("y", F32, &[&text])], &given, clip);
            agree(&engine, "clip", "ClipGrad", &clip, &mut random);
        }
    }
}

#[test]
fn max_pool_gradients() {
    let Some(engine) = onnxruntime() else { return };
    let mut random = fastrand::Rng::with_seed(5);
    for case in 0..30 {
        let s = shapes(&mut random, if case % 3 == 0 { 1 } else { 2 }, true);
        // A pool of pads alone has no maximum.
        if s.pads.iter().enumerate().any(|(i, p)| *p >= s.kernel[i % s.kernel.len()]) {
            continue;
        }
        let (batch, channels) = (random.usize(1..=3), random.usize(1..=9));
        let x = [&[batch, channels], s.sizes.as_slice()].concat();
        let y = [&[batch, channels], s.out.as_slice()].concat();
        let what =
            format!("case {case}: {x:?} to {y:?}, {:?} {:?} {:?} {:?}", s.kernel, s.strides, s.dilations, s.pads);
        let pool = |x: &[&str]| {
            let node = node("MaxPool", x, &["y"]).ints("kernel_shape", &s.kernel).ints("strides", &s.strides);
            vec![node.ints("dilations", &s.dilations).ints("pads", &s.pads)]
        };
        agree(&engine, &what, "MaxPoolGrad", &single(pool, &[&x], &y), &mut random);
    }
}
