//! Operators of our own against the plain ONNX form of the same rule, on
//! random shapes, and whole training steps with and without them.

use std::sync::Arc;

use tierline_engine::{Engine, EngineError, LoadOptions};
use tierline_graph::DataType::F32;
use tierline_graph::gradient::backward_with;
use tierline_graph::kernels::DOMAIN;
use tierline_graph::onnx::attribute_proto::AttributeType;
use tierline_graph::onnx::{AttributeProto, NodeProto, OperatorSetIdProto};
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
    let one = run(engine, &ours, 1, &given);
    // ONNX Runtime's own operators may sum in another order with more threads.
    let nodes = &ours.graph().node;
    let made: Vec<&String> = nodes.iter().filter(|n| n.op_type() == operator).flat_map(|n| &n.output).collect();
    let handed = nodes.iter().filter(|n| n.op_type() == "Identity" && made.contains(&&n.input[0]));
    let handed: Vec<&String> = handed.map(|n| &n.output[0]).collect();
    for threads in [2, 3, 7] {
        let more = run(engine, &ours, threads, &given);
        for ((output, a), b) in ours.outputs().iter().zip(&one).zip(&more) {
            let same = a == b || !handed.contains(&&output.name);
            assert!(same, "{what}: {threads} threads change {}", output.name);
        }
    }
    assert!(!handed.is_empty(), "{what}: no gradient is made by {operator}");
    for ((output, ours), plain) in plain.outputs().iter().zip(&one).zip(&expected) {
        close(what, &output.name, ours, plain, APART_MAX);
    }
}

fn sizes(shape: &[usize]) -> Vec<String> {
    shape.iter().map(usize::to_string).collect()
}

/// A model of one node over inputs `x0..`, all differentiated.
fn single(make: impl FnOnce(&[&str]) -> Vec<NodeProto>, inputs: &[&[usize]], y: &[usize]) -> Model {
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
        let ones = |values: &[i64]| values.iter().all(|v| *v == 1);
        if ones(&s.kernel) && ones(&s.strides) && s.pads.iter().all(|p| *p == 0) {
            // Single elements have the plain form.
            continue;
        }
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

/// One step of a model, both ways: state and loss must agree. Statistics are
/// computed in one way: a deep network of fresh weights is so steep that
/// rounding them differently changes gradients by a hundredth.
fn steps_agree(name: &str, image: Option<u64>, batch: usize, recipe: &Recipe) {
    let Some(engine) = onnxruntime() else { return };
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image, ..Options::default() };
    let model = by_name(name, &options).unwrap();
    let kernels: Kernels = engine.kernels().iter().copied().filter(|k| *k != "BatchNormStatistics").collect();
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
    for case in 0..60 {
        let s = shapes(&mut random, if case % 3 == 0 { 1 } else { 2 }, true);
        // A pool of pads alone has no maximum.
        let empty = s.pads.iter().enumerate().any(|(i, p)| *p >= s.kernel[i % s.kernel.len()]);
        // Windows apart from each other have the plain form.
        let apart = s.kernel.iter().zip(&s.strides).all(|(length, stride)| length <= stride);
        if empty || apart {
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
        // One more window where the last doesn't reach the end.
        let reach = |i: usize| (s.kernel[i] - 1) * s.dilations[i] + 1;
        let ceil = |i: usize| {
            let padded = s.sizes[i] as i64 + s.pads[i] + s.pads[s.kernel.len() + i];
            let out = (padded - reach(i) + s.strides[i] - 1) / s.strides[i] + 1;
            let starts_inside = (out - 1) * s.strides[i] < s.sizes[i] as i64 + s.pads[i];
            (if starts_inside { out } else { out - 1 }) as usize
        };
        let y = [&[batch, channels], &(0..s.kernel.len()).map(ceil).collect::<Vec<_>>()[..]].concat();
        let beyond = |x: &[&str]| pool(x).into_iter().map(|node| node.int("ceil_mode", 1)).collect();
        agree(&engine, &what, "MaxPoolGrad", &single(beyond, &[&x], &y), &mut random);
    }
}

/// Equal elements, and windows of nothing but the lowest: both forms give the
/// gradient to the first.
#[test]
fn max_pools_of_equal_elements() {
    let Some(engine) = onnxruntime() else { return };
    let mut random = fastrand::Rng::with_seed(6);
    for pads in [[0; 4], [1, 0, 0, 1]] {
        let pool = |x: &[&str]| {
            let node = node("MaxPool", x, &["y"]).ints("kernel_shape", &[2, 3]).ints("strides", &[2, 1]);
            vec![node.ints("pads", &pads)]
        };
        let (x, y) = ([2, 3, 7, 9], [2, 3, if pads[0] == 1 { 4 } else { 3 }, if pads[0] == 1 { 8 } else { 7 }]);
        let model = single(pool, &[&x], &y);
        let made = |kernels: &Kernels| backward_with(&model, &["y"], &["x0"], kernels).unwrap().model;
        let (plain, ours) = (made(&Kernels::none()), made(&Kernels::from_iter(["MaxPoolGrad"])));
        let whole = |random: &mut fastrand::Rng, shape: &[usize]| {
            f32s(shape, &(0..shape.iter().product()).map(|_| f32::from(random.i8(-1..2))).collect::<Vec<_>>())
        };
        let given =
            vec![("x0".to_owned(), whole(&mut random, &x)), (plain.inputs()[1].name.clone(), whole(&mut random, &y))];
        assert_eq!(run(&engine, &ours, 1, &given)[1], run(&engine, &plain, 1, &given)[1], "{pads:?}");
        // Whatever isn't finite, some element of every window gets its part.
        for odd in [f32::NAN, f32::NEG_INFINITY] {
            let mut given = given.clone();
            given[0].1 = f32s(&x, &vec![odd; x.iter().product()]);
            let sum = |tensor: &Tensor| floats(tensor).iter().sum::<f32>();
            let dx = &run(&engine, &ours, 1, &given)[1];
            assert_eq!(sum(dx), sum(&given[1].1), "{odd}");
        }
    }
}

/// A node of our own with inputs `x0..`, of the ranks given and any size.
fn ours(operator: &str, ranks: &[usize], outputs: &[usize], attributes: impl Fn(NodeProto) -> NodeProto) -> Model {
    let named = |name: &str, rank: usize| (0..rank).map(|axis| format!("{name}.{axis}")).collect::<Vec<String>>();
    let names = |of: &[usize], stem: &str| (0..of.len()).map(|i| format!("{stem}{i}")).collect::<Vec<String>>();
    let (xs, ys) = (names(ranks, "x"), names(outputs, "y"));
    let shapes =
        |names: &[String], ranks: &[usize]| names.iter().zip(ranks).map(|(n, &r)| named(n, r)).collect::<Vec<_>>();
    let (x_shapes, y_shapes) = (shapes(&xs, ranks), shapes(&ys, outputs));
    let borrowed: Vec<Vec<&str>> =
        x_shapes.iter().chain(&y_shapes).map(|s| s.iter().map(String::as_str).collect()).collect();
    let declared: Vec<(&str, DataType, &[&str])> =
        xs.iter().chain(&ys).zip(&borrowed).map(|(name, shape)| (name.as_str(), F32, shape.as_slice())).collect();
    let (inputs, made) = declared.split_at(xs.len());
    let [xs, ys] = [&xs, &ys].map(|all| all.iter().map(String::as_str).collect::<Vec<&str>>());
    let node = attributes(node(operator, &xs, &ys));
    let mut proto = model(17, inputs, made, &[], vec![node]).proto().clone();
    proto.graph.as_mut().unwrap().node[0].domain = Some(DOMAIN.into());
    let import = OperatorSetIdProto { domain: Some(DOMAIN.into()), version: Some(1), ..Default::default() };
    proto.opset_import.push(import);
    Model::from_proto(proto).unwrap()
}

fn window(node: NodeProto) -> NodeProto {
    node.ints("kernel_shape", &[2, 2]).ints("strides", &[1, 1])
}

fn float(node: NodeProto, name: &str) -> NodeProto {
    let kind = AttributeType::FLOAT as i32;
    node.with(AttributeProto { name: Some(name.into()), type_: Some(kind), f: Some(0.5), ..Default::default() })
}

fn all_floats(node: NodeProto) -> NodeProto {
    let names = ["epsilon", "momentum", "nesterov", "weight_decay", "min", "max", "beta1", "rest1", "beta2", "rest2"];
    let float = |node, name: &&str| float(node, name);
    names.iter().fold(node, float)
}

/// The answer to tensors of these shapes, all elements 1.
fn answered(engine: &Arc<dyn Engine>, model: &Model, shapes: &[&[usize]]) -> Result<Vec<Tensor>, EngineError> {
    let mut session = engine.load(model, &LoadOptions::with_threads(2))?;
    let tensors: Vec<Tensor> = shapes.iter().map(|s| f32s(s, &vec![1.0; s.iter().product()])).collect();
    let names: Vec<String> = (0..shapes.len()).map(|i| format!("x{i}")).collect();
    session.run(&names.iter().map(String::as_str).zip(&tensors).collect::<Vec<_>>())
}

#[test]
fn what_does_not_fit_is_said() {
    let Some(engine) = onnxruntime() else { return };
    let plain = |node: NodeProto| node;
    let refused = |operator: &str, model: &Model, shapes: &[&[usize]], part: &str| {
        let said = answered(&engine, model, shapes).map(|_| "an answer").unwrap_err().to_string();
        assert!(said.contains(operator) && said.contains(part), "{operator} of {shapes:?}: `{said}` lacks `{part}`");
    };
    // Attributes that are missing, or of no use.
    for (operator, inputs, outputs) in [
        ("ConvWeightGrad", 2, 1),
        ("DepthwiseGrad", 3, 2),
        ("MaxPoolGrad", 2, 1),
        ("BatchNormGrad", 5, 3),
        ("ClipGrad", 2, 1),
        ("SgdUpdate", 4, 2),
        ("AdamUpdate", 7, 3),
    ] {
        let model = ours(operator, &vec![4; inputs], &vec![4; outputs], plain);
        refused(operator, &model, &vec![&[1, 1, 2, 2][..]; inputs], "it has no");
    }
    let bent = |node: NodeProto| window(node).ints("pads", &[1, 1]);
    refused("MaxPoolGrad", &ours("MaxPoolGrad", &[4; 2], &[4], bent), &[&[1, 1, 2, 2][..]; 2], "2 pads");
    let still = |node: NodeProto| node.ints("kernel_shape", &[2, 2]).ints("strides", &[0, 1]);
    refused("ConvWeightGrad", &ours("ConvWeightGrad", &[4; 2], &[4], still), &[&[1, 1, 2, 2][..]; 2], "strides");
    let solid = |node: NodeProto| node.ints("kernel_shape", &[2, 2, 2]);
    refused("MaxPoolGrad", &ours("MaxPoolGrad", &[5; 2], &[5], solid), &[&[1, 1, 2, 2, 2][..]; 2], "3 spatial axes");

    // Shapes that don't fit, and other ranks.
    let conv = ours("ConvWeightGrad", &[4; 2], &[4], window);
    refused("ConvWeightGrad", &conv, &[&[1, 2, 4, 4], &[1, 3, 4, 4]], "gives pictures of 3 by 3");
    refused("ConvWeightGrad", &conv, &[&[2, 2, 3, 3], &[1, 3, 4, 4]], "the gradient is");
    refused("ConvWeightGrad", &conv, &[&[1, 2, 3, 3], &[1, 3, 1, 1]], "a window of 2 over 1");
    refused(
        "ConvWeightGrad",
        &ours("ConvWeightGrad", &[3; 2], &[4], window),
        &[&[1, 2, 3], &[1, 2, 4]],
        "spatial axes",
    );
    let depthwise = ours("DepthwiseGrad", &[4; 3], &[4; 2], window);
    refused("DepthwiseGrad", &depthwise, &[&[1, 2, 3, 3], &[1, 2, 4, 4], &[3, 1, 2, 2]], "don't fit");
    let pool = ours("MaxPoolGrad", &[4; 2], &[4], window);
    refused("MaxPoolGrad", &pool, &[&[1, 2, 5, 5], &[1, 2, 4, 4]], "the gradient is");
    refused("MaxPoolGrad", &pool, &[&[1, 3, 3, 3], &[1, 2, 4, 4]], "the gradient is");
    let norm = |ranks: &[usize]| ours("BatchNormGrad", ranks, &[ranks[1], 1, 1], all_floats);
    refused("BatchNormGrad", &norm(&[4, 4, 1, 1, 1]), &[&[1, 2, 3, 3], &[1, 2, 3, 3], &[2], &[3], &[2]], "don't fit");
    refused("BatchNormGrad", &norm(&[1, 1, 1, 1, 1]), &[&[2], &[2], &[2], &[2], &[2]], "no channels");
    refused("ReluGrad", &ours("ReluGrad", &[2; 2], &[2], plain), &[&[2, 3], &[3, 2]], "should be the same");
    refused("ClipGrad", &ours("ClipGrad", &[2, 1], &[2], all_floats), &[&[2, 3], &[6]], "should be the same");
    let sgd = ours("SgdUpdate", &[1; 4], &[1; 2], all_floats);
    refused("SgdUpdate", &sgd, &[&[3], &[3], &[2], &[1]], "should be the same");
    refused("SgdUpdate", &sgd, &[&[3], &[3], &[3], &[0]], "a number is of shape [0]");
    let adam = ours("AdamUpdate", &[1; 7], &[1; 3], all_floats);
    refused("AdamUpdate", &adam, &[&[3], &[3], &[3], &[3], &[1], &[2], &[1]], "a number is of shape [2]");
}

#[test]
fn nothing_gives_nothing() {
    let Some(engine) = onnxruntime() else { return };
    let zeros = |operator: &str, model: &Model, shapes: &[&[usize]], expected: &[&[usize]]| {
        let made = answered(&engine, model, shapes).unwrap_or_else(|e| panic!("{operator} of {shapes:?}: {e}"));
        for (tensor, shape) in made.iter().zip(expected) {
            assert_eq!(tensor.shape(), *shape, "{operator} of {shapes:?}");
            assert!(floats(tensor).iter().all(|&x| x == 0.0), "{operator} of {shapes:?}");
        }
    };
    let conv = ours("ConvWeightGrad", &[4; 2], &[4], window);
    zeros("ConvWeightGrad", &conv, &[&[0, 5, 3, 3], &[0, 2, 4, 4]], &[&[5, 2, 2, 2]]);
    zeros("ConvWeightGrad", &conv, &[&[1, 0, 3, 3], &[1, 2, 4, 4]], &[&[0, 2, 2, 2]]);
    zeros("ConvWeightGrad", &conv, &[&[1, 5, 3, 3], &[1, 0, 4, 4]], &[&[5, 0, 2, 2]]);
    let depthwise = ours("DepthwiseGrad", &[4; 3], &[4; 2], window);
    zeros("DepthwiseGrad", &depthwise, &[&[0, 2, 3, 3], &[0, 2, 4, 4], &[2, 1, 2, 2]], &[&[0, 2, 4, 4], &[2, 1, 2, 2]]);
    zeros("DepthwiseGrad", &depthwise, &[&[1, 0, 3, 3], &[1, 0, 4, 4], &[0, 1, 2, 2]], &[&[1, 0, 4, 4], &[0, 1, 2, 2]]);
    let pool = ours("MaxPoolGrad", &[4; 2], &[4], window);
    zeros("MaxPoolGrad", &pool, &[&[0, 2, 3, 3], &[0, 2, 4, 4]], &[&[0, 2, 4, 4]]);
    zeros("MaxPoolGrad", &pool, &[&[2, 0, 3, 3], &[2, 0, 4, 4]], &[&[2, 0, 4, 4]]);
    let norm = ours("BatchNormGrad", &[4, 4, 1, 1, 1], &[4, 1, 1], all_floats);
    zeros("BatchNormGrad", &norm, &[&[0, 2, 3, 3], &[0, 2, 3, 3], &[2], &[2], &[2]], &[&[0, 2, 3, 3], &[2], &[2]]);
    zeros("BatchNormGrad", &norm, &[&[3, 0, 3, 3], &[3, 0, 3, 3], &[0], &[0], &[0]], &[&[3, 0, 3, 3], &[0], &[0]]);
    zeros("BatchNormGrad", &norm, &[&[3, 2, 0, 3], &[3, 2, 0, 3], &[2], &[2], &[2]], &[&[3, 2, 0, 3], &[2], &[2]]);
    let relu = ours("ReluGrad", &[2; 2], &[2], |node| node);
    zeros("ReluGrad", &relu, &[&[0, 3], &[0, 3]], &[&[0, 3]]);
    zeros("SgdUpdate", &ours("SgdUpdate", &[1; 4], &[1; 2], all_floats), &[&[0], &[0], &[0], &[1]], &[&[0], &[0]]);
}
