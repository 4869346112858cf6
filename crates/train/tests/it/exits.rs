//! Early exits on made-up pictures: heads and sureness against reference code
//! of this file, fitted in closed form and by steps, on every engine.

use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions};
use tierline_graph::constant::tensor_from_proto;
use tierline_graph::exits::{Exits, Head, Part, Wanted, attach, candidates, learned, places, slice};
use tierline_graph::{Model, Tensor, infer_types};
use tierline_train::data::{BatchOptions, Dataset};
use tierline_train::exits::{Fitting, Training, answers, closed, sureness, train};

use crate::training::{engines, network, options, pictures};

fn with<'d>(engine: &Arc<dyn Engine>, data: &'d Dataset) -> Fitting<'d> {
    Fitting { engine: Arc::clone(engine), load: options(), data, batch: BatchOptions::default() }
}

fn weight(model: &Model, name: &str) -> Vec<f64> {
    let tensor = model.graph().initializer.iter().find(|t| t.name() == name).unwrap();
    tensor_from_proto(tensor).unwrap().as_f32().unwrap().iter().map(|&v| f64::from(v)).collect()
}

fn two(hidden: u64) -> (Model, Exits, Vec<Head>) {
    let at = ["MaxPool_2_out0", "MaxPool_5_out0"].map(str::to_owned).to_vec();
    attach(&network("lenet"), &Wanted { at, hidden }).unwrap()
}

fn largest(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn right(scores: &Tensor, classes: &[Option<usize>]) -> f64 {
    let rows = scores.as_f32().unwrap().chunks_exact(scores.shape()[1]);
    rows.zip(classes).filter(|(row, class)| Some(largest(row)) == **class).count() as f64 / classes.len() as f64
}

/// Average pooling to a grid, one layer, softmax, the logistic layer: written
/// anew, in f64.
fn head_by_hand(model: &Model, head: &Head, maps: &[f32], [channels, side]: [usize; 2]) -> (Vec<f64>, f64) {
    let width = head.width as usize;
    let grid = ((width / channels) as f64).sqrt() as usize;
    let step = side / grid;
    let window = side - (grid - 1) * step;
    let mut features = Vec::new();
    for map in maps.chunks_exact(side * side) {
        for y in 0..grid {
            for x in 0..grid {
                let cells = (0..window * window).map(|i| map[(y * step + i / window) * side + x * step + i % window]);
                features.push(cells.map(f64::from).sum::<f64>() / (window * window) as f64);
            }
        }
    }
    let (w, b) = (weight(model, &head.weight), weight(model, &head.bias));
    let logit = |class: usize| b[class] + (0..width).map(|i| features[i] * w[i * b.len() + class]).sum::<f64>();
    let logits: Vec<f64> = (0..b.len()).map(logit).collect();
    let Some([w, b]) = &head.sureness else { return (logits, 0.0) };
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    let mut shares: Vec<f64> = logits.iter().map(|l| l.exp() / sum).collect();
    shares.sort_by(|a, b| b.total_cmp(a));
    features.extend(&shares[..3]);
    let score = weight(model, b)[0] + features.iter().zip(weight(model, w)).map(|(x, w)| x * w).sum::<f64>();
    (logits, 1.0 / (1.0 + (-score).exp()))
}

#[test]
fn heads_and_their_sureness_are_what_reference_code_computes() {
    let data = pictures(60, 1, 28, 1);
    let (model, exits, mut heads) = two(0);
    let (model, exits) = learned(&model, &exits, &mut heads).unwrap();
    for engine in engines() {
        let with = with(&engine, &data);
        let model = closed(&with, &model, &exits, &heads).unwrap();
        let model = sureness(&with, &model, &exits, &heads).unwrap();
        for (head, exit) in heads.iter().zip(&exits.exits) {
            let (said, sure) = (&exit.outputs["logits"], exit.sureness.as_ref().unwrap());
            let (found, _) = answers(&with, &model, &[&head.tensor, said, sure]).unwrap();
            let &[_, channels, side, _] = found[0].shape() else { panic!("a map") };
            let maps = found[0].as_f32().unwrap().chunks_exact(channels * side * side);
            for (example, maps) in maps.enumerate() {
                let (logits, sureness) = head_by_hand(&model, head, maps, [channels, side]);
                for (a, b) in found[1].as_f32().unwrap()[example * 10..].iter().zip(&logits) {
                    assert!((f64::from(*a) - b).abs() < 1e-4 * (1.0 + b.abs()), "{}: {a} {b}", engine.name());
                }
                let sure = f64::from(found[2].as_f32().unwrap()[example]);
                assert!((sure - sureness).abs() < 1e-4, "{}: {sure} {sureness}", engine.name());
            }
        }
    }
}

#[test]
fn closed_heads_tell_classes_apart_and_their_trunk_stays() {
    let (seen, held_out) = (pictures(600, 1, 28, 1), pictures(200, 1, 28, 2));
    let (model, exits, heads) = two(0);
    for engine in engines() {
        let fitted = closed(&with(&engine, &seen), &model, &exits, &heads).unwrap();
        let (found, classes) = answers(&with(&engine, &held_out), &fitted, &["exit_1", "exit_2", "logits"]).unwrap();
        assert!(right(&found[0], &classes) > 0.9 && right(&found[1], &classes) > 0.9);
        let (before, _) = answers(&with(&engine, &held_out), &model, &["logits"]).unwrap();
        assert_eq!(found[2], before[0]);
    }
}

#[test]
fn steps_train_heads_alone_or_everything() {
    let (seen, held_out) = (pictures(600, 1, 28, 1), pictures(200, 1, 28, 2));
    let engine = engines().pop().unwrap();
    let (model, exits, heads) = two(16);
    let (before, classes) = answers(&with(&engine, &held_out), &model, &["logits", "exit_1"]).unwrap();
    for with_trunk in [false, true] {
        let training = Training { epochs: 4, rate: 0.005, with_trunk, seed: 1 };
        let mut epochs = 0;
        let trained = train(&with(&engine, &seen), &model, &exits, &heads, &training, &mut |event| {
            epochs += u64::from(matches!(event, tierline_train::Event::Epoch(_)));
            Ok(())
        });
        let trained = trained.unwrap();
        assert_eq!((epochs, Exits::of(&trained).unwrap().unwrap()), (4, exits.clone()));
        let (after, _) = answers(&with(&engine, &held_out), &trained, &["logits", "exit_1", "exit_2"]).unwrap();
        assert!(right(&after[1], &classes) > 0.9, "{with_trunk}: {}", right(&after[1], &classes));
        assert!(right(&after[2], &classes) > 0.9, "{with_trunk}: {}", right(&after[2], &classes));
        assert_eq!(after[0] == before[0], !with_trunk);
        assert_eq!(right(&after[0], &classes) > 0.9, with_trunk);
    }
}

/// Bit for bit: segments of one model, run one after the other with the exits
/// judged at their ends, beside the whole.
#[test]
fn slices_with_exits_give_what_the_whole_gives() {
    let data = pictures(3, 1, 28, 4);
    let (model, exits, mut heads) = two(8);
    let (model, exits) = learned(&model, &exits, &mut heads).unwrap();
    let types = infer_types(&model).unwrap();
    let cuts: Vec<Vec<String>> =
        candidates(&model, &types, &exits, 32).unwrap().into_iter().map(|cut| cut.tensors).collect();
    let places = places(&model, &exits, &cuts).unwrap();
    let names: Vec<String> = model.outputs().into_iter().map(|o| o.name).collect();
    let input = data.features(&[0, 1, 2]).unwrap();
    let input = Tensor::new(
        input.shape().to_vec(),
        tierline_graph::Elements::F32(input.to_bytes().unwrap().iter().map(|&b| f32::from(b) / 255.0).collect()),
    )
    .unwrap();
    // Fusion across cuts may change the order of sums.
    let load = LoadOptions { optimize: false, ..options() };
    for engine in engines() {
        let run = |part: &Model, given: &[(String, Tensor)]| -> Vec<(String, Tensor)> {
            let mut session = engine.load(part, &load).unwrap();
            let wanted: Vec<String> = session.inputs().iter().map(|v| v.name.clone()).collect();
            let value = |name: &String| &given.iter().find(|(own, _)| own == name).unwrap().1;
            let inputs: Vec<(&str, &Tensor)> = wanted.iter().map(|name| (name.as_str(), value(name))).collect();
            part.outputs().into_iter().map(|o| o.name).zip(session.run(&inputs).unwrap()).collect()
        };
        let whole = run(&model, &[("input".to_owned(), input.clone())]);
        for step in [1, 2, cuts.len() + 1] {
            let mut values = vec![("input".to_owned(), input.clone())];
            let mut seen: Vec<(String, Tensor)> = Vec::new();
            let mut from = 0;
            while from <= cuts.len() {
                let to = (from + step).min(cuts.len() + 1);
                let judged: Vec<usize> = (0..places.len()).filter(|&e| (from..to).contains(&places[e])).collect();
                let part = slice(&model, &types, &exits, Part { cuts: &cuts, from, to, exits: &judged }).unwrap();
                values = run(&part, &values);
                seen.extend(values.iter().filter(|(name, _)| names.contains(name)).cloned());
                from = to;
            }
            assert_eq!(seen.len(), names.len());
            for (name, value) in &whole {
                let found = seen.iter().find(|(own, _)| own == name).unwrap();
                assert_eq!(&found.1, value, "{}: `{name}`, {step} segments at once", engine.name());
            }
        }
    }
}
