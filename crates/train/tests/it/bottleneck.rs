//! A learned bottleneck on made-up pictures: what is sent and what comes out
//! against reference code of this file, fitted in closed form and by steps, on
//! every engine.

use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions};
use tierline_graph::bottleneck::{Bottleneck, Coder, Form, Wanted, attach, best};
use tierline_graph::constant::tensor_from_proto;
use tierline_graph::exits::giving;
use tierline_graph::{Elements, Model, Tensor, infer_types};
use tierline_train::bottleneck::{principal, train};
use tierline_train::data::{BatchOptions, Dataset};
use tierline_train::exits::{Fitting, Steps, answers};

use crate::training::{engines, network, options, pictures};

fn with<'d>(engine: &Arc<dyn Engine>, data: &'d Dataset) -> Fitting<'d> {
    Fitting { engine: Arc::clone(engine), load: options(), data, batch: BatchOptions::default() }
}

fn made(model: &Model, at: &str, times: f64) -> (Model, Bottleneck, Coder) {
    attach(model, &Wanted { at: at.to_owned(), times, stands_for: "the file".to_owned() }).unwrap()
}

fn weight(model: &Model, name: &str) -> Vec<f64> {
    let tensor = model.graph().initializer.iter().find(|t| t.name() == name).unwrap();
    tensor_from_proto(tensor).unwrap().as_f32().unwrap().iter().map(|&v| f64::from(v)).collect()
}

/// Runs a model on one input.
fn ran(engine: &Arc<dyn Engine>, model: &Model, name: &str, input: &Tensor) -> Vec<Tensor> {
    engine.load(model, &LoadOptions::with_threads(1)).unwrap().run(&[(name, input)]).unwrap()
}

/// The mean over examples of the share of the variance that is lost.
fn lost(before: &[f32], after: &[f32]) -> f64 {
    let mean = before.iter().map(|v| f64::from(*v)).sum::<f64>() / before.len() as f64;
    let error: f64 = before.iter().zip(after).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / before.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>()
}

/// The divergence of softened answers of ten classes.
fn divergence(goal: &[f32], found: &[f32]) -> f64 {
    let softened = |row: &[f32]| {
        let powers: Vec<f64> = row.iter().map(|v| (f64::from(*v) / 2.0).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|p| p / sum).collect::<Vec<f64>>()
    };
    let of = |(goal, found): (&[f32], &[f32])| {
        softened(goal).iter().zip(softened(found)).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
    };
    goal.chunks_exact(10).zip(found.chunks_exact(10)).map(of).sum()
}

/// Encodes one patch and decodes it again, in f64, as the file's weights say.
fn by_hand(model: &Model, coder: &Coder, patch: &[f64]) -> (Vec<u8>, Vec<f64>) {
    let [we, be] = [&coder.encoder[0], &coder.encoder[1]].map(|name| weight(model, name));
    let [wd, bd] = [&coder.decoder[0], &coder.decoder[1]].map(|name| weight(model, name));
    let (width, codes) = (patch.len(), be.len());
    let places = matches!(coder.form, Form::Places { .. });
    let sent: Vec<u8> = (0..codes)
        .map(|code| {
            let at = |i: usize| if places { we[code * width + i] } else { we[i * codes + code] };
            let value = be[code] + (0..width).map(|i| at(i) * patch[i]).sum::<f64>();
            ((value * 16.0).round_ties_even() + 128.0).clamp(0.0, 255.0) as u8
        })
        .collect();
    let numbers: Vec<f64> = sent.iter().map(|code| (f64::from(*code) - 128.0) / 16.0).collect();
    let decoded = (0..width).map(|i| {
        let at = |code: usize| if places { wd[i * codes + code] } else { wd[code * width + i] };
        bd[i] + (0..codes).map(|code| at(code) * numbers[code]).sum::<f64>()
    });
    (sent, decoded.collect())
}

#[test]
fn what_is_sent_and_decoded_is_what_reference_code_computes() {
    let data = pictures(200, 1, 28, 1);
    let whole = network("lenet");
    for (at, times, bytes) in [("MaxPool_2_out0", 64.0, 72), ("Relu_4_out0", 40.0, 150), ("Relu_8_out0", 16.0, 30)] {
        let (model, bottleneck, coder) = made(&whole, at, times);
        assert_eq!(bottleneck.bytes, bytes, "{at}");
        for engine in engines() {
            let model = principal(&with(&engine, &data), &model, &coder, 1).unwrap();
            let types = infer_types(&model).unwrap();
            let sending = giving(&model, &types, &[at, &bottleneck.tensor]).unwrap();
            let receiving = tierline_graph::slice::slice(&model, &types, &[vec![bottleneck.tensor.clone()]]).unwrap();
            let input = data.features(&(0..8).collect::<Vec<_>>()).unwrap();
            let Elements::U8(pixels) = input.elements() else { panic!("pixels") };
            let input = Elements::F32(pixels.iter().map(|p| f32::from(*p) / 255.0).collect());
            let input = Tensor::new([8, 1, 28, 28], input).unwrap();
            let given = ran(&engine, &sending, "input", &input);
            let Elements::U8(sent) = given[1].elements() else { panic!("integers") };
            assert_eq!(sent.len() as u64, 8 * bytes, "{at}");
            let features = given[0].as_f32().unwrap();
            let per = features.len() / 8;
            // Of one example: patches, in the order of places.
            let (width, codes) = (coder.width as usize, coder.codes as usize);
            let count = per / width;
            let place = |patch: usize, number: usize| match (coder.form, given[0].shape()) {
                (Form::Places { side }, &[_, _, height, across]) => {
                    let side = side as usize;
                    let (channel, inner) = (number / (side * side), number % (side * side));
                    let (down, right) = (patch / (across / side) * side, patch % (across / side) * side);
                    (channel * height + down + inner / side) * across + right + inner % side
                }
                _ => patch * width + number,
            };
            let code = |patch: usize, code: usize| match coder.form {
                Form::Places { .. } => code * count + patch,
                _ => patch * codes + code,
            };
            let mut decoded = vec![0f32; features.len()];
            for example in 0..8 {
                for patch in 0..count {
                    let at_place = |i: usize| f64::from(features[example * per + place(patch, i)]);
                    let numbers: Vec<f64> = (0..width).map(at_place).collect();
                    let (expected, back) = by_hand(&model, &coder, &numbers);
                    for (i, expected) in expected.iter().enumerate() {
                        let found = sent[example * bytes as usize + code(patch, i)];
                        // Sums in another order may fall on the other side of a half.
                        assert!(found.abs_diff(*expected) <= 1, "{at}: {found} {expected}");
                    }
                    back.iter()
                        .enumerate()
                        .for_each(|(i, v)| decoded[example * per + place(patch, i)] = v.max(0.0) as f32);
                }
            }
            // What is behind takes the integers alone, and answers what the whole answers.
            let codes = &given[1];
            let answer = ran(&engine, &receiving[1], &bottleneck.tensor, codes);
            let all = ran(&engine, &model, "input", &input);
            assert_eq!(answer[0].shape(), [8, 10]);
            for (a, b) in answer[0].as_f32().unwrap().iter().zip(all[0].as_f32().unwrap()) {
                assert!((a - b).abs() < 1e-4, "{at} {}: {a} {b}", engine.name());
            }
            // The model without it, fed what was decoded by hand.
            let types = infer_types(&whole).unwrap();
            let rest = tierline_graph::slice::slice(&whole, &types, &[vec![at.to_owned()]]).unwrap();
            let decoded = Tensor::new(given[0].shape().to_vec(), Elements::F32(decoded)).unwrap();
            let by_hand = ran(&engine, &rest[1], at, &decoded);
            for (a, b) in by_hand[0].as_f32().unwrap().iter().zip(all[0].as_f32().unwrap()) {
                assert!((a - b).abs() < 0.03 * (1.0 + b.abs()), "{at} {}: {a} {b}", engine.name());
            }
            assert!(lost(features, decoded.as_f32().unwrap()) < 0.6, "{at}");
        }
    }
}

#[test]
fn steps_bring_answers_nearer_and_leave_the_rest_alone() {
    let (seen, held_out) = (pictures(600, 1, 28, 1), pictures(200, 1, 28, 2));
    let whole = network("lenet");
    let (model, bottleneck, coder) = made(&whole, "MaxPool_2_out0", 64.0);
    for engine in engines() {
        let fitted = principal(&with(&engine, &seen), &model, &coder, 1).unwrap();
        let steps = Steps { epochs: 4, rate: 0.002, seed: 1 };
        let trained = train(&with(&engine, &seen), &whole, &fitted, &coder, (steps, false), &mut |_| Ok(())).unwrap();
        assert_eq!(Bottleneck::of(&bottleneck.write(&trained).unwrap()).unwrap().unwrap(), bottleneck);
        let own: Vec<&String> = coder.parameters().collect();
        for tensor in &fitted.graph().initializer {
            let after = trained.graph().initializer.iter().find(|t| t.name() == tensor.name()).unwrap();
            let same = tensor_from_proto(after).unwrap() == tensor_from_proto(tensor).unwrap();
            assert_eq!(same, !own.iter().any(|name| *name == tensor.name()), "{}", tensor.name());
        }
        // With what lies behind, and nothing before.
        let more = train(&with(&engine, &seen), &whole, &fitted, &coder, (steps, true), &mut |_| Ok(())).unwrap();
        let before = coder.before(&fitted);
        for tensor in fitted.graph().initializer.iter().filter(|t| t.data_type() == 1 && t.dims.len() > 1) {
            let after = more.graph().initializer.iter().find(|t| t.name() == tensor.name()).unwrap();
            let same = tensor_from_proto(after).unwrap() == tensor_from_proto(tensor).unwrap();
            assert_eq!(same, before.contains(tensor.name()), "{}", tensor.name());
        }
        let said = |model: &Model| answers(&with(&engine, &held_out), model, &["logits"]).unwrap().0.remove(0);
        let (goal, before, after) = (said(&whole), said(&fitted), said(&trained));
        let apart = |found: &Tensor| divergence(goal.as_f32().unwrap(), found.as_f32().unwrap());
        assert!(apart(&after) < 0.8 * apart(&before), "{} {}", apart(&after), apart(&before));
    }
}

#[test]
fn what_can_not_have_one_is_refused() {
    let whole = network("lenet");
    let refused = |model: &Model, at: &str, times: f64| {
        attach(model, &Wanted { at: at.to_owned(), times, stands_for: String::new() }).unwrap_err().to_string()
    };
    for (at, times, part) in [
        ("nowhere", 64.0, "no tensor `nowhere`"),
        ("logits", 16.0, "no cut by itself"),
        ("Relu_8_out0", 1_000.0, "too few"),
        ("Relu_1_out0", 4.0, "more than 4"),
        ("Relu_1_out0", f64::NAN, "more than 4"),
    ] {
        let error = refused(&whole, at, times);
        assert!(error.contains(part), "{at}: {error}");
    }
    let (once, ..) = made(&whole, "MaxPool_2_out0", 64.0);
    assert!(refused(&once, "Relu_8_out0", 16.0).contains("already, at `MaxPool_2_out0`"));
    let at = ["MaxPool_2_out0".to_owned()].to_vec();
    let (exits, ..) = tierline_graph::exits::attach(&whole, &tierline_graph::exits::Wanted { at, hidden: 0 }).unwrap();
    assert!(refused(&exits, "Relu_8_out0", 16.0).contains("early exits"));
    // Within a block of ResNet another tensor flows past.
    let residual = network("resnet18");
    let inner = residual.graph().node.iter().find(|n| n.op_type() == "Conv").unwrap().output[0].clone();
    attach(&residual, &Wanted { at: inner, times: 16.0, stands_for: String::new() }).unwrap();
    let types = infer_types(&residual).unwrap();
    let cuts = tierline_graph::cuts::cuts(&residual, &types);
    let within = residual.graph().node.iter().map(|n| &n.output[0]).find(|name| {
        cuts.iter().any(|c| c.tensors.len() > 1 && c.tensors.contains(name))
            && cuts.iter().all(|c| c.tensors != [name.as_str()])
    });
    assert!(refused(&residual, within.unwrap(), 16.0).contains("no cut by itself"));
}

#[test]
fn a_place_is_found_early_where_a_code_is_small() {
    let lenet = network("lenet");
    let at = best(&lenet, 64.0).unwrap();
    let (_, bottleneck, _) = made(&lenet, &at, 64.0);
    assert!(bottleneck.times() >= 64.0 && bottleneck.bytes < 784, "{bottleneck:?}");
    let resnet = network("resnet18");
    let (_, bottleneck, coder) = made(&resnet, &best(&resnet, 64.0).unwrap(), 64.0);
    assert!(bottleneck.times() >= 64.0 && coder.width <= 1_024, "{bottleneck:?}");
}
