//! Training small networks on made-up data, on both engines.

use std::sync::Arc;
use std::time::Duration;

use tierline_engine::{Engine, EngineError, LoadOptions, Search, Stop};
use tierline_graph::fold::{Purpose, fold_for};
use tierline_graph::step::{Clip, Loss, Moments, Optimizer, Recipe, Role, Schedule, StepError};
use tierline_graph::{Elements, Model, Tensor};
use tierline_train::data::{Augment, BatchOptions, Batches, Dataset, Last, Position, Targets};
use tierline_train::{Checkpoint, Event, RunOptions, TrainError, Trainer, TrainingResult, init, run};
use tierline_zoo::{Batch, Bn, Options};

/// rten, and ONNX Runtime where it is set up.
pub fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines = vec![tierline_engine::rten()];
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        engines.push(tierline_engine::discover(&Search { system: false, ..Search::default() }).engine);
    } else {
        eprintln!("skipped: ORT_DYLIB_PATH is not set; run cargo xtask test");
    }
    engines
}

fn fastest() -> Arc<dyn Engine> {
    engines().pop().unwrap()
}

pub fn options() -> LoadOptions {
    LoadOptions::with_threads(1)
}

pub fn network(name: &str) -> Model {
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: Some(32), seed: 3 };
    let mut model = tierline_zoo::by_name(name, &options).unwrap();
    let mut evaluator = tierline_engine::Evaluator(tierline_engine::rten());
    fold_for(&mut model, &mut evaluator, Purpose::Training).unwrap();
    model
}

/// Pictures of ten classes, each a bright square at its own place on noise.
pub fn pictures(examples: usize, channels: usize, side: usize, seed: u64) -> Dataset {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pixels = Vec::with_capacity(examples * channels * side * side);
    let mut classes = Vec::with_capacity(examples);
    for _ in 0..examples {
        let class = rng.usize(0..10);
        let (top, left) = ((class / 4) * side / 4, (class % 4) * side / 4);
        for _ in 0..channels {
            for y in 0..side {
                for x in 0..side {
                    let inside = (top..top + side / 4).contains(&y) && (left..left + side / 4).contains(&x);
                    pixels.push(rng.u8(0..80) + if inside { 150 } else { 0 });
                }
            }
        }
        classes.push(class as u32);
    }
    let features = Tensor::new([examples, channels, side, side], Elements::U8(pixels)).unwrap();
    Dataset::new("pictures", features, Targets::Classes { classes, count: 10, names: Vec::new() }).unwrap()
}

fn sgd(rate: f64, momentum: f64) -> Recipe {
    Recipe {
        optimizer: Optimizer::Sgd { momentum, nesterov: false, weight_decay: 0.0 },
        schedule: Schedule::constant(rate),
        ..Recipe::default()
    }
}

fn run_options(epochs: u64, size: usize) -> RunOptions {
    let batch = BatchOptions { size, seed: 5, ..BatchOptions::default() };
    RunOptions { epochs, batch, evaluate_every: 1, checkpoint_every: 0 }
}

fn train(trainer: &mut Trainer, train: &Dataset, test: &Dataset, options: &RunOptions) -> TrainingResult {
    run(trainer, train, Some(test), options, None, &Stop::never(), &mut |_| Ok(())).unwrap()
}

fn f32s(tensor: &Tensor) -> &[f32] {
    tensor.as_f32().unwrap()
}

#[test]
fn a_perceptron_learns_on_every_engine() {
    let (seen, held_out) = (pictures(400, 1, 28, 1), pictures(100, 1, 28, 2));
    for engine in engines() {
        let mut trainer = Trainer::new(&engine, network("mlp"), &sgd(0.1, 0.9), &options()).unwrap();
        let before = trainer.evaluate(&held_out, &BatchOptions::default()).unwrap();
        let outcome = train(&mut trainer, &seen, &held_out, &run_options(3, 32));
        let after = outcome.epochs.last().unwrap().test.unwrap();
        assert!(outcome.finished && outcome.epochs.len() == 3);
        assert!(before.accuracy.unwrap() < 0.4, "{}: {before:?}", engine.name());
        assert!(after.accuracy.unwrap() > 0.95, "{}: {after:?}", engine.name());
        assert_eq!(trainer.steps().unwrap(), 3 * 13, "{}", engine.name());

        // The exported model answers as the trainer does.
        let exported = trainer.export().unwrap();
        let mut session = engine.load(&exported, &options()).unwrap();
        let mut right = 0;
        for batch in Batches::start(&held_out, &BatchOptions::default(), Position::default(), 1).unwrap() {
            let flat = Tensor::new([batch.examples, 784], batch.features.elements().clone()).unwrap();
            let logits = session.run(&[("input", &flat)]).unwrap().remove(0);
            for (row, &class) in f32s(&logits).chunks(10).zip(batch.targets.as_i64().unwrap()) {
                let likeliest = (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                right += usize::from(likeliest == class as usize);
            }
        }
        assert_eq!(right as f64 / 100.0, after.accuracy.unwrap(), "{}", engine.name());
    }
}

#[test]
fn convolutions_and_pools_learn_alike_on_every_engine() {
    let (seen, held_out) = (pictures(200, 1, 28, 1), pictures(60, 1, 28, 2));
    let ends: Vec<(Vec<Tensor>, TrainingResult)> = engines()
        .iter()
        .map(|engine| {
            let mut trainer = Trainer::new(engine, network("lenet"), &sgd(0.02, 0.9), &options()).unwrap();
            let outcome = train(&mut trainer, &seen, &held_out, &run_options(2, 20));
            let losses: Vec<f64> = outcome.epochs.iter().map(|e| e.loss).collect();
            assert!(losses[1] < 0.9 * losses[0], "{}: {losses:?}", engine.name());
            (trainer.state().unwrap(), outcome)
        })
        .collect();
    let [(one, _), (other, _)] = &ends[..] else { return };
    for (a, b) in one.iter().zip(other).filter(|(a, _)| a.as_f32().is_some()) {
        let largest = f32s(b).iter().fold(1e-3f32, |most, x| most.max(x.abs()));
        // Twenty steps in single precision, summed in other orders.
        let apart = f32s(a).iter().zip(f32s(b)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(apart < 2e-3 * largest, "{apart} apart, of {largest}");
    }
}

#[test]
fn convolutions_with_batch_normalisation_learn() {
    let (seen, held_out) = (pictures(160, 3, 32, 1), pictures(60, 3, 32, 2));
    let engine = fastest();
    if engine.name() == "rten" {
        return;
    }
    let model = init::fresh(&network("resnet18_small"), 7).unwrap();
    let mut trainer = Trainer::new(&engine, model, &sgd(0.05, 0.9), &options()).unwrap();
    let outcome = train(&mut trainer, &seen, &held_out, &run_options(3, 16));
    let losses: Vec<f64> = outcome.epochs.iter().map(|e| e.loss).collect();
    assert!(losses[2] < 0.5 * losses[0], "{losses:?}");
    // Running statistics have left their start.
    let statistic = trainer.spec().state.iter().position(|s| s.role == Role::Statistic).unwrap();
    assert!(f32s(&trainer.state().unwrap()[statistic]).iter().any(|&x| x != 0.0 && x != 1.0));
}

#[test]
fn a_run_taken_up_again_ends_as_an_unbroken_one() {
    let (seen, held_out) = (pictures(200, 1, 28, 1), pictures(50, 1, 28, 2));
    let augment = Augment { noise: 0.05, ..Augment::default() };
    let batch = BatchOptions { size: 32, seed: 5, last: Last::Keep, augment, ..BatchOptions::default() };
    let options_of_run = RunOptions { epochs: 3, batch, evaluate_every: 1, checkpoint_every: 2 };
    let adam = Recipe {
        optimizer: Optimizer::Adam(Moments { weight_decay: 1e-3, ..Moments::default() }),
        schedule: Schedule {
            rate: 1e-3,
            warmup: 4,
            decay: tierline_graph::step::Decay::Cosine { steps: 21, last: 1e-5 },
        },
        clip: Some(Clip::Norm(1.0)),
        ..Recipe::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint.safetensors");
    for engine in engines() {
        let trainer = || Trainer::new(&engine, network("lenet"), &adam, &options()).unwrap();
        let mut unbroken = trainer();
        let whole = train(&mut unbroken, &seen, &held_out, &options_of_run);
        for stop_after in [1, 5, 7, 12] {
            let stop = Stop::asked();
            let mut steps = 0;
            let mut first = trainer();
            let stopped = run(&mut first, &seen, Some(&held_out), &options_of_run, None, &stop, &mut |event| {
                if matches!(event, Event::Step { .. }) {
                    steps += 1;
                    if steps == stop_after {
                        stop.pull();
                    }
                }
                Ok(())
            })
            .unwrap();
            assert!(!stopped.finished);
            stopped.checkpoint.save(&file).unwrap();
            let from = Checkpoint::load(&file).unwrap();
            let mut second = trainer();
            let go = Stop::asked();
            let rest =
                run(&mut second, &seen, Some(&held_out), &options_of_run, Some(from), &go, &mut |_| Ok(())).unwrap();
            assert_eq!(rest.epochs, whole.epochs, "{} after {stop_after}", engine.name());
            assert_eq!(second.state().unwrap(), unbroken.state().unwrap(), "{} after {stop_after}", engine.name());
        }
    }
}

#[test]
fn frozen_weights_stay_and_others_move() {
    let seen = pictures(64, 1, 28, 1);
    let model = network("mlp");
    let names = tierline_graph::step::parameters(&model, &[]).unwrap();
    let recipe = Recipe { freeze: vec![names[0].clone(), names[1].clone()], ..sgd(0.1, 0.0) };
    let mut trainer = Trainer::new(&fastest(), model.clone(), &recipe, &options()).unwrap();
    train(&mut trainer, &seen, &seen, &run_options(1, 16));
    let exported = trainer.export().unwrap();
    let weight = |model: &Model, name: &str| model.graph().initializer.iter().find(|t| t.name() == name).cloned();
    assert_eq!(weight(&exported, &names[0]), weight(&model, &names[0]));
    assert_ne!(weight(&exported, &names[2]), weight(&model, &names[2]));
    let wrong = Recipe { freeze: vec!["nothing*".into()], ..sgd(0.1, 0.0) };
    let error = Trainer::new(&fastest(), model, &wrong, &options()).err().unwrap();
    assert!(matches!(error, TrainError::Step(StepError::Freeze { .. })), "{error}");
}

#[test]
fn numbers_that_overflow_stop_the_run_with_a_name() {
    let seen = pictures(64, 1, 28, 1);
    for engine in engines() {
        let mut trainer = Trainer::new(&engine, network("mlp"), &sgd(1e20, 0.0), &options()).unwrap();
        let stop = Stop::asked();
        let error = run(&mut trainer, &seen, None, &run_options(2, 16), None, &stop, &mut |_| Ok(())).unwrap_err();
        let TrainError::NotFinite { step, tensor, epoch: 0, batch } = &error else { panic!("{error}") };
        assert_eq!(*step as usize, *batch);
        assert!(tensor.starts_with('`') || tensor.starts_with("the gradient of"), "{error}");
        // The state is what it was before the step.
        assert!(trainer.state().unwrap().iter().all(|t| t.as_f32().is_none_or(|v| v.iter().all(|x| x.is_finite()))));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let engine = tierline_engine::rten();
    let trainer = |name: &str, recipe: &Recipe| Trainer::new(&engine, network(name), recipe, &options());
    let lenet = trainer("lenet", &sgd(0.1, 0.0)).unwrap();
    let said = |result: Result<(), TrainError>| result.unwrap_err().to_string();
    let other_size = said(lenet.check(&pictures(4, 1, 32, 1)));
    assert!(other_size.contains("[1, 32, 32]") && other_size.contains("resize"), "{other_size}");
    let features = Tensor::new([2, 1, 28, 28], Elements::U8(vec![0; 2 * 784])).unwrap();
    let many = Targets::Classes { classes: vec![3, 11], count: 12, names: Vec::new() };
    let classes = said(lenet.check(&Dataset::new("many", features.clone(), many).unwrap()));
    assert!(classes.contains("12 classes") && classes.contains("tells 10 apart"), "{classes}");
    let numbers = Targets::Values(Tensor::new([2, 1], Elements::F32(vec![0.5, 1.0])).unwrap());
    let values = said(lenet.check(&Dataset::new("values", features, numbers).unwrap()));
    assert!(values.contains("one class per example"), "{values}");
    let mse = trainer("lenet", &Recipe { loss: Loss::Mse, ..sgd(0.1, 0.0) }).unwrap();
    let classes = said(mse.check(&pictures(4, 1, 28, 1)));
    assert!(classes.contains("numbers shaped as the output") && classes.contains("classes"), "{classes}");
    let inputs = trainer("minilm", &Recipe { loss: Loss::Mse, ..sgd(0.1, 0.0) }).err().unwrap().to_string();
    assert!(inputs.contains("3 inputs"), "{inputs}");
    for (recipe, expected) in [
        (sgd(f64::NAN, 0.0), "the learning rate is NaN"),
        (sgd(0.1, 1.0), "the momentum is 1"),
        (Recipe { clip: Some(Clip::Norm(0.0)), ..sgd(0.1, 0.0) }, "the bound on gradients is 0"),
        (Recipe { output: Some("nowhere".into()), ..sgd(0.1, 0.0) }, "no output `nowhere`"),
    ] {
        let error = trainer("mlp", &recipe).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn broken_checkpoints_are_refused() {
    let seen = pictures(32, 1, 28, 1);
    let engine = tierline_engine::rten();
    let mut trainer = Trainer::new(&engine, network("mlp"), &sgd(0.1, 0.9), &options()).unwrap();
    let outcome = train(&mut trainer, &seen, &seen, &run_options(1, 16));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.safetensors");
    outcome.checkpoint.save(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        let cut = rng.usize(0..bytes.len());
        assert!(Checkpoint::parse(&bytes[..cut]).is_err());
        let mut changed = bytes.clone();
        let head = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        changed[rng.usize(0..head)] ^= 1 << rng.u8(0..8);
        // Whatever it says now, it says it without a panic.
        let _ = Checkpoint::parse(&changed);
    }
    // Of another model.
    let mut other = Trainer::new(&engine, network("lenet"), &sgd(0.1, 0.9), &options()).unwrap();
    let from = Some(Checkpoint::load(&file).unwrap());
    let stop = Stop::asked();
    let error = run(&mut other, &seen, None, &run_options(2, 16), from, &stop, &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
    // Nowhere to write it: what was there stays.
    let error = outcome.checkpoint.save(&folder.path().join("nowhere/c.safetensors")).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
}

/// Every write to `/dev/full` fails as on a full disk, for every user.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_no_more_than_the_checkpoint() {
    let seen = pictures(64, 1, 28, 1);
    let engine = tierline_engine::rten();
    let trainer = || Trainer::new(&engine, network("mlp"), &sgd(0.1, 0.9), &options()).unwrap();
    let go = Stop::asked();
    let mut unbroken = trainer();
    run(&mut unbroken, &seen, None, &run_options(3, 16), None, &go, &mut |_| Ok(())).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.safetensors");
    let partial = folder.path().join("c.safetensors.partial");
    let mut kept = Vec::new();
    let mut tell = |event: Event| {
        let Event::Checkpoint(checkpoint) = event else { return Ok(()) };
        if checkpoint.position.epoch == 2 {
            kept = std::fs::read(&file).unwrap();
            std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
        }
        checkpoint.save(&file)
    };
    let error = run(&mut trainer(), &seen, None, &run_options(3, 16), None, &go, &mut tell).unwrap_err();
    let TrainError::CheckpointWrite { path, source } = &error else { panic!("{error}") };
    assert_eq!((path, source.kind()), (&file, std::io::ErrorKind::StorageFull));
    assert!(error.to_string().contains("make room"), "{error}");

    // The one before is there, whole, and nothing else.
    assert!(!kept.is_empty() && std::fs::read(&file).unwrap() == kept);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let from = Checkpoint::load(&file).unwrap();
    assert_eq!(from.position, Position { epoch: 1, batch: 0 });

    // With room again the run ends as if nothing had been.
    let mut second = trainer();
    let save = &mut |event: Event| match event {
        Event::Checkpoint(checkpoint) => checkpoint.save(&file),
        _ => Ok(()),
    };
    run(&mut second, &seen, None, &run_options(3, 16), Some(from), &go, save).unwrap();
    assert_eq!(second.state().unwrap(), unbroken.state().unwrap());
    assert_eq!(Checkpoint::load(&file).unwrap().position.epoch, 3);
}

#[test]
fn a_step_that_was_stopped_can_be_taken_again() {
    let seen = pictures(32, 1, 28, 1);
    let batch_options = BatchOptions { size: 16, ..BatchOptions::default() };
    for engine in engines() {
        let trainer = || Trainer::new(&engine, network("mlp"), &sgd(0.1, 0.9), &options()).unwrap();
        let (mut unbroken, mut stopped) = (trainer(), trainer());
        let batches: Vec<_> = Batches::start(&seen, &batch_options, Position::default(), 1).unwrap().collect();
        for batch in &batches {
            unbroken.step(batch, batch.position).unwrap();
            // It has no time at all, then all there is.
            stopped.heed(Stop::never(), Some(Duration::ZERO));
            let error = stopped.step(batch, batch.position).unwrap_err();
            assert!(matches!(error, TrainError::Engine(EngineError::Stopped { .. })), "{error}");
            let error = stopped.evaluate(&seen, &batch_options).unwrap_err();
            assert!(matches!(error, TrainError::Engine(EngineError::Stopped { .. })), "{error}");
            stopped.heed(Stop::asked(), Some(Duration::from_secs(3_600)));
            stopped.step(batch, batch.position).unwrap();
        }
        assert_eq!(stopped.state().unwrap(), unbroken.state().unwrap(), "{}", engine.name());
        stopped.heed(Stop::never(), None);
        let scores = [&mut stopped, &mut unbroken].map(|t| t.evaluate(&seen, &batch_options).unwrap());
        assert_eq!(scores[0], scores[1]);
        // Told to stop within a step, a run ends as if told before it.
        let stop = Stop::asked();
        stop.pull();
        let outcome = run(&mut stopped, &seen, None, &run_options(1, 16), None, &stop, &mut |_| Ok(())).unwrap();
        assert!(!outcome.finished && outcome.checkpoint.position == Position::default());
    }
}
