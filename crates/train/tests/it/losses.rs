//! Losses that learn from a teacher, and their gradients, worked out by hand.

use tierline_graph::step::{Loss, Optimizer, Recipe, Role, Schedule};
use tierline_graph::{Elements, Tensor};
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
