//! Batches: each example once an epoch, the same from any place in a run.

use proptest::prelude::*;
use tierline_graph::{DataType, Elements, Tensor};
use tierline_train::data::{
    Augment, BATCHES_AHEAD, Batch, BatchOptions, Batches, Dataset, Last, Normalize, Position, Targets,
};

use crate::samples::counting;

fn pictures(n: usize) -> Dataset {
    let classes = (0..n as u32).collect();
    let targets = Targets::Classes { classes, count: n, names: Vec::new() };
    Dataset::new("pictures", counting(&[n, 1, 4, 5]), targets).unwrap()
}

fn run(dataset: &Dataset, options: &BatchOptions, from: Position, epochs: u64) -> Vec<Batch> {
    Batches::start(dataset, options, from, epochs).unwrap().collect()
}

fn varied(size: usize, seed: u64) -> BatchOptions {
    let augment = Augment { crop_padding: 2, flip: true, rotation_degrees: 20.0, noise: 0.1 };
    BatchOptions { size, seed, augment, ..BatchOptions::default() }
}

fn classes(batches: &[Batch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.targets.as_i64().unwrap().to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_epoch_has_each_example_once(n in 1usize..40, size in 1usize..12, seed: u64, epoch in 0u64..5) {
        let batches = run(&pictures(n), &varied(size, seed), Position { epoch, batch: 0 }, epoch + 1);
        let mut seen = classes(&batches);
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..n as i64).collect::<Vec<_>>());
        prop_assert!(batches.iter().all(|b| b.examples == b.features.shape()[0] && b.examples <= size));
    }

    #[test]
    fn a_run_taken_up_again_is_the_unbroken_run(n in 1usize..30, size in 1usize..8, seed: u64, at in 0usize..100) {
        let (dataset, options) = (pictures(n), varied(size, seed));
        let whole = run(&dataset, &options, Position::default(), 3);
        let at = at % whole.len();
        prop_assert_eq!(&run(&dataset, &options, whole[at].position, 3)[..], &whole[at..]);
    }

    #[test]
    fn an_example_is_varied_alike_in_any_batch_size(seed: u64, size in 1usize..10) {
        let dataset = pictures(10);
        let features = |size| {
            let batches = run(&dataset, &varied(size, seed), Position::default(), 1);
            batches.iter().flat_map(|b| b.features.as_f32().unwrap().to_vec()).collect::<Vec<f32>>()
        };
        prop_assert_eq!(features(size), features(10));
    }
}

#[test]
fn bytes_are_scaled_and_normalized_per_channel() {
    let features = Tensor::new([1, 2, 1, 2], Elements::U8(vec![0, 255, 51, 102])).unwrap();
    let targets = Targets::Values(Tensor::new([1], Elements::F32(vec![7.0])).unwrap());
    let dataset = Dataset::new("two", features, targets).unwrap();
    let batch = |normalize| {
        let options = BatchOptions { normalize, ..BatchOptions::default() };
        run(&dataset, &options, Position::default(), 1).remove(0)
    };
    assert_eq!(batch(None).features.as_f32().unwrap(), [0.0, 1.0, 0.2, 0.4]);
    assert_eq!(batch(None).targets, Tensor::new([1], Elements::F32(vec![7.0])).unwrap());
    let normalize = Normalize { mean: vec![0.5, 0.2], std: vec![0.5, 0.1] };
    let normalized = batch(Some(normalize)).features;
    for (actual, expected) in normalized.as_f32().unwrap().iter().zip([-1.0, 1.0, 0.0, 2.0]) {
        assert!((actual - expected).abs() < 1e-5, "{actual} {expected}");
    }
}

#[test]
fn measured_means_and_deviations_normalize() {
    let rows: Vec<f32> = (0..1_000).flat_map(|i| [1e6 + (i % 10) as f32, 3.0]).collect();
    let features = Tensor::new([1_000, 2], Elements::F32(rows)).unwrap();
    let classes = vec![0; 1_000];
    let dataset = Dataset::new("rows", features, Targets::Classes { classes, count: 1, names: vec![] }).unwrap();
    let normalize = Normalize::of(&dataset);
    assert_eq!(normalize.mean, [1_000_004.5, 3.0]);
    assert!((normalize.std[0] - 2.872).abs() < 1e-3 && normalize.std[1] == 1.0, "{:?}", normalize.std);
}

#[test]
fn the_last_batch_is_kept_or_dropped() {
    let examples = |last| {
        let options = BatchOptions { size: 4, last, ..BatchOptions::default() };
        run(&pictures(10), &options, Position::default(), 1).iter().map(|b| b.examples).collect::<Vec<_>>()
    };
    assert_eq!(examples(Last::Keep), [4, 4, 2]);
    assert_eq!(examples(Last::Drop), [4, 4]);
}

#[test]
fn epochs_differ_in_order_and_variation_unless_told() {
    let (dataset, options) = (pictures(20), varied(20, 3));
    let [first, second] = &run(&dataset, &options, Position::default(), 2)[..] else { panic!() };
    assert_ne!(first.targets, second.targets);
    let still = BatchOptions { shuffle: false, ..BatchOptions::default() };
    assert_eq!(classes(&run(&dataset, &still, Position::default(), 1)), (0..20).collect::<Vec<_>>());
}

#[test]
fn memory_handed_back_serves_again_and_a_run_may_be_left() {
    let dataset = pictures(100);
    let options = BatchOptions { size: 1, ..BatchOptions::default() };
    let expected = run(&dataset, &options, Position::default(), 1);
    let mut batches = Batches::start(&dataset, &options, Position::default(), 1).unwrap();
    for batch in &expected[..BATCHES_AHEAD * 3] {
        let next = batches.next().unwrap();
        assert_eq!((&next, next.features.dtype()), (batch, DataType::F32));
        batches.recycle(next);
    }
    // With most of the run unread: dropping must not wait for it.
    drop(batches);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let table =
        Dataset::new("table", counting(&[4, 3]), Targets::Classes { classes: vec![0; 4], count: 1, names: Vec::new() })
            .unwrap();
    let said = |dataset: &Dataset, options: BatchOptions, batch: usize| {
        Batches::start(dataset, &options, Position { epoch: 0, batch }, 1).map(|_| ()).unwrap_err().to_string()
    };
    let plain = BatchOptions::default;
    let with = |augment| BatchOptions { augment, ..plain() };
    let normalize = Some(Normalize { mean: vec![0.0], std: vec![0.0] });
    for (said, expected) in [
        (said(&table, BatchOptions { size: 0, ..plain() }, 0), "option `size`"),
        (said(&table, BatchOptions { last: Last::Drop, ..plain() }, 0), "4 examples make no whole batch of 32"),
        (said(&table, plain(), 1), "1 is beyond"),
        (said(&table, with(Augment { flip: true, ..Augment::default() }), 0), "need pictures"),
        (said(&table, with(Augment { noise: f32::NAN, ..Augment::default() }), 0), "option `noise`"),
        (said(&pictures(2), with(Augment { rotation_degrees: 200.0, ..Augment::default() }), 0), "200 degrees"),
        (said(&pictures(2), with(Augment { crop_padding: 5, ..Augment::default() }), 0), "option `crop_padding`"),
        (said(&pictures(2), BatchOptions { normalize, ..plain() }, 0), "deviations above 0"),
    ] {
        assert!(said.contains(expected), "`{said}` lacks `{expected}`");
    }
    assert!(serde_json::from_str::<BatchOptions>(r#"{"sise": 3}"#).is_err());
    assert_eq!(serde_json::from_str::<BatchOptions>(r#"{"augment": {}}"#).unwrap(), plain());
}
