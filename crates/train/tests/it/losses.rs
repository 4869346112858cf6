//! Losses and the targets that they take, worked out by hand.

use tierline_graph::constant::tensor_to_proto;
use tierline_graph::emit::Emitter;
use tierline_graph::onnx::{GraphProto, ModelProto, OperatorSetIdProto};
use tierline_graph::slice::value_info_proto;
use tierline_graph::step::{Loss, Optimizer, Recipe, Role, Schedule};
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo};
use tierline_train::Trainer;
use tierline_train::data::{BatchOptions, Batches, Dataset, Position, Targets};

use crate::training::{engines, network, options, pictures};

const EXAMPLES: usize = 24;
const CLASSES: usize = 10;

fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::MIN, f64::max);
    let exp: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// The loss of one example, and its gradient by the logits: of a class, and
/// of a teacher's logits.
fn by_class(logits: &[f64], class: usize) -> (f64, Vec<f64>) {
    let p = softmax(logits);
    let gradient = p.iter().enumerate().map(|(i, p)| p - f64::from(u8::from(i == class))).collect();
    (-p[class].ln(), gradient)
}

fn by_teacher(logits: &[f64], teacher: &[f64], t: f64) -> (f64, Vec<f64>) {
    let cool = |x: &[f64]| softmax(&x.iter().map(|x| x / t).collect::<Vec<_>>());
    let (p, q) = (cool(logits), cool(teacher));
    let divergence: f64 = p.iter().zip(&q).map(|(p, q)| q * (q / p).ln()).sum();
    (t * t * divergence, p.iter().zip(&q).map(|(p, q)| t * (p - q)).collect())
}

#[test]
fn what_a_teacher_says_is_learned_as_worked_out_by_hand() {
    let data = pictures(EXAMPLES, 1, 28, 1);
    let classes = data.classes().unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let teacher: Vec<f32> = (0..EXAMPLES * CLASSES).map(|_| 6.0 * rng.f32() - 3.0).collect();
    let rows: Vec<usize> = (0..EXAMPLES).collect();
    let with = |values: Vec<f32>, width: usize| {
        let values = Tensor::new([EXAMPLES, width], Elements::F32(values)).unwrap();
        Dataset::new("taught", data.features(&rows).unwrap(), Targets::Values(values)).unwrap()
    };
    let both = classes.iter().zip(teacher.chunks(CLASSES));
    let both = both.flat_map(|(class, said)| std::iter::once(*class as f32).chain(said.iter().copied())).collect();
    let recipe = |loss: Loss| Recipe {
        loss,
        optimizer: Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
        schedule: Schedule::constant(1.0),
        ..Recipe::default()
    };
    let (temperature, weight) = (2.5, 0.7);
    for (loss, taught, of_class, of_teacher) in [
        (Loss::Kl { temperature }, with(teacher.clone(), CLASSES), 0.0, 1.0),
        (Loss::Distil { temperature, weight }, with(both, 1 + CLASSES), 1.0, weight),
    ] {
        for engine in engines() {
            let mut trainer = Trainer::new(&engine, network("mlp"), &recipe(loss.clone()), &options()).unwrap();
            let logits = trainer.answers(&data, &BatchOptions::default()).unwrap();
            let (mut expected, mut gradient) = (0.0, [0.0; CLASSES]);
            for (example, class) in classes.iter().enumerate() {
                let row = |all: &[f32]| -> Vec<f64> {
                    all[example * CLASSES..][..CLASSES].iter().map(|x| f64::from(*x)).collect()
                };
                let (own, by_own) = by_class(&row(&logits), *class);
                let (other, by_other) = by_teacher(&row(&logits), &row(&teacher), temperature);
                expected += (of_class * own + of_teacher * other) / EXAMPLES as f64;
                for (sum, (own, other)) in gradient.iter_mut().zip(by_own.iter().zip(&by_other)) {
                    *sum += (of_class * own + of_teacher * other) / EXAMPLES as f64;
                }
            }
            let whole = BatchOptions { size: EXAMPLES, shuffle: false, ..BatchOptions::default() };
            let scores = trainer.evaluate(&taught, &whole).unwrap();
            assert!((scores.loss - expected).abs() < 1e-4 * expected, "{loss:?}: {} {expected}", scores.loss);
            // What is added to the logits follows their gradient.
            let slots = trainer.spec().state.clone();
            let bias = slots.iter().zip(trainer.state().unwrap());
            let bias = bias.filter(|(slot, tensor)| slot.role == Role::Parameter && tensor.shape() == [CLASSES]);
            let [(slot, before)] = <[_; 1]>::try_from(bias.collect::<Vec<_>>()).unwrap();
            let mut batches = Batches::start(&taught, &whole, Position::default(), 1).unwrap();
            let batch = batches.next().unwrap();
            let report = trainer.step(&batch, Position::default()).unwrap();
            assert!((report.loss - expected).abs() < 1e-4 * expected, "{loss:?}: {} {expected}", report.loss);
            let at = slots.iter().position(|other| other.input == slot.input).unwrap();
            let after = trainer.state().unwrap().swap_remove(at);
            let moved = before.as_f32().unwrap().iter().zip(after.as_f32().unwrap());
            for ((before, after), gradient) in moved.zip(gradient) {
                let step = f64::from(before - after);
                assert!((step - gradient).abs() < 1e-5, "{loss:?}: {step} {gradient}");
            }
        }
    }
}

#[test]
fn settings_of_teachers_that_make_no_sense_are_refused() {
    for (loss, what) in [
        (Loss::Distil { temperature: 0.0, weight: 1.0 }, "temperature"),
        (Loss::Distil { temperature: 1.0, weight: -1.0 }, "weight"),
    ] {
        let recipe = Recipe { loss, ..Recipe::default() };
        let error = Trainer::new(&engines()[0], network("mlp"), &recipe, &options()).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// `y = MatMul(x, w)` of two features, weights of ones, and what `behind` makes
/// of it; `shape` is the output's behind the batch.
fn linear(dtype: DataType, behind: &[(&str, Option<&[i64]>)], shape: &[u64]) -> Model {
    let written = |out: &mut Emitter, mut at: String| {
        for (kind, shape) in behind {
            let sizes = shape.map(|sizes| out.ints(sizes));
            let inputs: Vec<&str> = [at.as_str()].into_iter().chain(sizes.as_deref()).collect();
            at = out.op(kind, &inputs, &[]);
        }
        at
    };
    linear_and(dtype, &written, shape)
}

/// [`linear`], and what a function writes behind it.
fn linear_and(dtype: DataType, behind: &dyn Fn(&mut Emitter, String) -> String, shape: &[u64]) -> Model {
    let mut out = Emitter::new(["x", "w", "y"]);
    let product = out.op("MatMul", &["x", "w"], &[]);
    let at = behind(&mut out, product);
    out.named("Identity", &[&at], &["y"], &[]);
    let (node, mut initializer) = out.finish();
    let ones = match dtype {
        DataType::F64 => Elements::F64(vec![1.0; 2]),
        _ => Elements::F32(vec![1.0; 2]),
    };
    initializer.push(tensor_to_proto("w", &Tensor::new([2, 1], ones).unwrap()));
    let batch = || Dim::Symbol("N".into());
    let info = |name: &str, shape: Vec<Dim>| {
        value_info_proto(&ValueInfo { name: name.into(), dtype: Some(dtype), shape: Some(shape) })
    };
    let known = shape.iter().map(|&n| Dim::Known(n));
    let graph = GraphProto {
        name: Some("linear".into()),
        input: vec![info("x", vec![batch(), Dim::Known(2)])],
        output: vec![info("y", [batch()].into_iter().chain(known).collect())],
        node,
        initializer,
        ..GraphProto::default()
    };
    let set = OperatorSetIdProto { domain: Some(String::new()), version: Some(18), ..OperatorSetIdProto::default() };
    Model::from_proto(ModelProto {
        ir_version: Some(8),
        opset_import: vec![set],
        graph: Some(graph).into(),
        ..ModelProto::default()
    })
    .unwrap()
}

/// Rows of two features whose sum is what a linear model of ones says.
fn rows(targets: Targets) -> Dataset {
    let features = (0..8).map(|i| i as f32 / 8.0).collect();
    Dataset::new("rows", Tensor::new([4, 2], Elements::F32(features)).unwrap(), targets).unwrap()
}

fn values(shape: &[usize]) -> Targets {
    Targets::Values(Tensor::new(shape, Elements::F32(vec![0.5, 1.0, 0.0, 0.25])).unwrap())
}

#[test]
fn one_number_for_each_example_is_one_in_any_shape() {
    let said: Vec<f64> = (0..4).map(|i| f64::from(4 * i + 1) / 8.0).collect();
    let given = [0.5, 1.0, 0.0, 0.25];
    let mean = |each: &dyn Fn(f64, f64) -> f64| said.iter().zip(&given).map(|(s, t)| each(*s, *t)).sum::<f64>() / 4.0;
    let squares = mean(&|s, t| (s - t) * (s - t));
    let entropy = mean(&|s, t| s.exp().ln_1p() - s * t);
    let column: &[(&str, Option<&[i64]>)] = &[];
    let deep: &[(&str, Option<&[i64]>)] = &[("Unsqueeze", Some(&[2]))];
    let flat: &[(&str, Option<&[i64]>)] = &[("Squeeze", Some(&[1]))];
    for engine in engines() {
        for dtype in [DataType::F32, DataType::F64] {
            if dtype == DataType::F64 && engine.name() == "rten" {
                continue;
            }
            for (behind, shape) in [(column, &[1][..]), (deep, &[1, 1]), (flat, &[])] {
                for (loss, expected) in [(Loss::Mse, squares), (Loss::Bce, entropy)] {
                    for targets in [&[4][..], &[4, 1], &[4, 1, 1]] {
                        let recipe = Recipe { loss: loss.clone(), ..Recipe::default() };
                        let mut trainer =
                            Trainer::new(&engine, linear(dtype, behind, shape), &recipe, &options()).unwrap();
                        let data = rows(values(targets));
                        trainer.check(&data).unwrap();
                        let whole = BatchOptions { size: 4, shuffle: false, ..BatchOptions::default() };
                        let seen = trainer.evaluate(&data, &whole).unwrap().loss;
                        let batch = Batches::start(&data, &whole, Position::default(), 1).unwrap().next().unwrap();
                        let taken = trainer.step(&batch, Position::default()).unwrap().loss;
                        for got in [seen, taken] {
                            assert!((got - expected).abs() < 1e-6, "{loss:?} {shape:?} {targets:?}: {got} {expected}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn two_classes_are_zero_and_one_to_a_single_output() {
    let classes = |count| Targets::Classes { classes: vec![0, 1, 1, 0], count, names: Vec::new() };
    let recipe = Recipe { loss: Loss::Bce, ..Recipe::default() };
    for engine in engines() {
        let mut trainer = Trainer::new(&engine, linear(DataType::F32, &[], &[1]), &recipe, &options()).unwrap();
        let whole = BatchOptions { size: 4, shuffle: false, ..BatchOptions::default() };
        trainer.check(&rows(classes(2))).unwrap();
        let loss = trainer.evaluate(&rows(classes(2)), &whole).unwrap().loss;
        let each = |(i, t): (u8, f64)| {
            let said = f64::from(4 * i + 1) / 8.0;
            said.exp().ln_1p() - said * t
        };
        let expected = (0..4).zip([0.0, 1.0, 1.0, 0.0]).map(each).sum::<f64>() / 4.0;
        assert!((loss - expected).abs() < 1e-6, "{loss} {expected}");
        let error = trainer.check(&rows(classes(3))).unwrap_err().to_string();
        assert!(error.contains("3 classes"), "{error}");
    }
}

#[test]
fn targets_of_another_shape_are_refused_with_both_shapes() {
    let recipe = Recipe { loss: Loss::Mse, ..Recipe::default() };
    let trainer = Trainer::new(&engines()[0], linear(DataType::F32, &[], &[1]), &recipe, &options()).unwrap();
    let targets = Targets::Values(Tensor::new([4, 3], Elements::F32(vec![0.0; 12])).unwrap());
    let error = trainer.check(&rows(targets)).unwrap_err().to_string();
    assert!(error.contains("[3]") && error.contains("`y` gives [1]"), "{error}");
}

#[test]
fn outputs_that_hold_probabilities_without_logits_are_refused() {
    for (behind, loss, refused) in [
        (vec![("Sigmoid", None), ("Sqrt", None)], Loss::Bce, true),
        (vec![("HardSigmoid", None)], Loss::Bce, true),
        (vec![("Sigmoid", None), ("Identity", None)], Loss::Bce, false),
        (vec![("Sigmoid", None), ("Sqrt", None)], Loss::Mse, false),
    ] {
        let recipe = Recipe { loss, ..Recipe::default() };
        let made = Trainer::new(&engines()[0], linear(DataType::F32, &behind, &[1]), &recipe, &options());
        let error = made.err().map(|e| e.to_string());
        assert_eq!(error.is_some(), refused, "{behind:?}: {error:?}");
        assert!(error.is_none_or(|e| e.contains("holds probabilities")));
    }
}

#[test]
fn sums_and_means_of_probabilities_are_refused_as_well() {
    let with = |out: &mut Emitter, kind: &str, x: &str, value: f64| {
        let number = out.scalar(DataType::F32, value);
        out.op(kind, &[x, &number], &[])
    };
    let sigmoid = |out: &mut Emitter, x: &str| out.op("Sigmoid", &[x], &[]);
    type Behind<'b> = &'b dyn Fn(&mut Emitter, String) -> String;
    let kept_from_zero: Behind = &|out, x| {
        let p = sigmoid(out, &x);
        with(out, "Add", &p, 1e-7)
    };
    let mean: Behind = &|out, x| {
        let (p, half) = (sigmoid(out, &x), with(out, "Mul", &x, 0.5));
        let q = sigmoid(out, &half);
        let sum = out.op("Add", &[&p, &q], &[]);
        with(out, "Div", &sum, 2.0)
    };
    let tanh: Behind = &|out, x| {
        let t = out.op("Tanh", &[&x], &[]);
        let raised = with(out, "Add", &t, 1.0);
        with(out, "Div", &raised, 2.0)
    };
    let shifted_logit: Behind = &|out, x| with(out, "Add", &x, 0.5);
    let gated: Behind = &|out, x| {
        let p = sigmoid(out, &x);
        out.op("Add", &[&p, &x], &[])
    };
    for (behind, refused) in
        [(kept_from_zero, true), (mean, true), (tanh, true), (shifted_logit, false), (gated, false)]
    {
        let recipe = Recipe { loss: Loss::Bce, ..Recipe::default() };
        let made = Trainer::new(&engines()[0], linear_and(DataType::F32, behind, &[1]), &recipe, &options());
        let error = made.err().map(|e| e.to_string());
        assert_eq!(error.is_some(), refused, "{error:?}");
        assert!(error.is_none_or(|e| e.contains("holds probabilities")));
    }
}
