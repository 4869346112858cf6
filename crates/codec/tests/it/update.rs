//! Updates of models: what comes back, how far off, and in how many bytes.

use proptest::prelude::*;
use tierline_codec::CodecError;
use tierline_codec::update::{Kept, Pipeline, PipelineError, decode, support_of};

const SUPPORTS: [&str; 4] = ["", "topk:0.1", "random:0.25", "powersgd:2"];
const PRECISIONS: [&str; 7] = ["", "fp16", "int8", "int4", "qsgd:3", "qsgd:8", "sign"];

/// Every combination of stages.
fn pipelines() -> Vec<Pipeline> {
    let mut all = Vec::new();
    for support in SUPPORTS {
        for precision in PRECISIONS {
            for packed in ["", "zstd"] {
                let stages: Vec<&str> = [support, precision, packed].into_iter().filter(|s| !s.is_empty()).collect();
                let pipeline = Pipeline::parse(&stages).unwrap();
                assert_eq!(pipeline.stages(), stages);
                assert_eq!(Pipeline::parse(&pipeline.stages()), Ok(pipeline));
                all.push(pipeline);
            }
        }
    }
    all
}

fn pipeline(stages: &[&str]) -> Pipeline {
    Pipeline::parse(stages).unwrap()
}

fn encoded(pipeline: Pipeline, vector: &[f32], shapes: &[Vec<usize>], seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    pipeline.encode(vector, shapes, seed, &mut out).unwrap();
    out
}

fn both_ways(stages: &[&str], vector: &[f32]) -> Vec<f32> {
    let shapes = [vec![vector.len()]];
    decode(&encoded(pipeline(stages), vector, &shapes, 7), &shapes).unwrap()
}

/// Normally distributed, about.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0).collect()
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

fn apart(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

fn shapes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    proptest::collection::vec(proptest::collection::vec(0usize..7, 0..4), 0..5)
}

fn vector_of(shapes: &[Vec<usize>], seed: u64) -> Vec<f32> {
    normal(shapes.iter().map(|s| s.iter().product::<usize>()).sum(), seed)
}

proptest! {
    #[test]
    fn every_pipeline_gives_back_a_vector_no_further_off_than_nothing(shapes in shapes(), seed: u64) {
        let vector = vector_of(&shapes, seed);
        for pipeline in pipelines() {
            let bytes = encoded(pipeline, &vector, &shapes, seed);
            prop_assert_eq!(&bytes, &encoded(pipeline, &vector, &shapes, seed), "equal calls, equal bytes");
            let back = decode(&bytes, &shapes).unwrap();
            prop_assert_eq!(back.len(), vector.len());
            // Rounding at random into a few steps may be off by more, and so may products
            // of factors that were both rounded; all others approach.
            let stages = pipeline.stages();
            let rounded = stages.iter().any(|s| ["int4", "sign", "int8"].contains(&s.as_str()));
            let factors = stages[..].first().is_some_and(|s| s.starts_with("powersgd"));
            let random = stages.iter().any(|s| s.starts_with("qsgd"));
            if !(random || factors && rounded) {
                prop_assert!(apart(&back, &vector) <= norm(&vector) * (1.0 + 1e-3) + 1e-6, "{:?}", pipeline);
            }
            if pipeline.is_lossless() {
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&back), bits(&vector));
            }
        }
    }

    #[test]
    fn cut_or_damaged_bytes_are_refused_or_give_a_vector(
        shapes in shapes(), seed: u64, at in 0usize..200, flip in 1u8..=255, which in 0usize..56,
    ) {
        let vector = vector_of(&shapes, seed);
        let bytes = encoded(pipelines()[which], &vector, &shapes, seed);
        for end in 0..bytes.len() {
            prop_assert!(decode(&bytes[..end], &shapes).is_err(), "cut at {end} of {}", bytes.len());
        }
        let mut damaged = bytes.clone();
        let at = at % damaged.len();
        damaged[at] ^= flip;
        if let Ok(back) = decode(&damaged, &shapes) {
            prop_assert_eq!(back.len(), vector.len());
            prop_assert!(back.iter().all(|x| x.is_finite()));
        }
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(decode(&longer, &shapes).is_err());
    }

    #[test]
    fn any_bytes_are_no_danger(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let shapes = [vec![3, 5], vec![7]];
        let _ = decode(&bytes, &shapes);
        let _ = support_of(&bytes, &shapes);
    }
}

#[test]
fn plain_numbers_keep_every_bit() {
    let vector = [0.0, -0.0, f32::MIN_POSITIVE / 8.0, -1e-30, 3.4e38, 1.0];
    for stages in [&[][..], &["zstd"]] {
        let back = both_ways(stages, &vector);
        assert!(back.iter().zip(vector).all(|(a, b)| a.to_bits() == b.to_bits()), "{back:?}");
    }
    assert!(both_ways(&["zstd"], &[]).is_empty());
}

#[test]
fn top_k_keeps_the_largest_and_of_equal_ones_the_first() {
    let back = both_ways(&["topk:0.5"], &[1.0, -3.0, 2.0, -2.0, 2.0, 0.5]);
    assert_eq!(back, [0.0, -3.0, 2.0, -2.0, 0.0, 0.0]);
    // One at least.
    assert_eq!(both_ways(&["topk:0.001"], &[1.0, 5.0, 2.0]), [0.0, 5.0, 0.0]);
    let shapes = [vec![6]];
    let bytes = encoded(pipeline(&["topk:0.5", "sign", "zstd"]), &[1.0, -3.0, 2.0, -2.0, 2.0, 0.5], &shapes, 1);
    assert_eq!(support_of(&bytes, &shapes), Ok(Kept::Indices(vec![1, 2, 3])));
}

#[test]
fn a_random_mask_is_the_same_on_both_sides_and_another_with_another_seed() {
    let (vector, shapes) = (normal(1_000, 1), [vec![1_000]]);
    let kept = |seed| match support_of(&encoded(pipeline(&["random:0.1"]), &vector, &shapes, seed), &shapes) {
        Ok(Kept::Indices(indices)) => indices,
        other => panic!("{other:?}"),
    };
    let back = decode(&encoded(pipeline(&["random:0.1"]), &vector, &shapes, 3), &shapes).unwrap();
    let indices = kept(3);
    assert_eq!(indices.len(), 100);
    for (i, (x, y)) in vector.iter().zip(&back).enumerate() {
        assert_eq!(*y, if indices.contains(&(i as u32)) { *x } else { 0.0 });
    }
    assert_ne!(kept(3), kept(4));
}

#[test]
fn rounding_is_off_by_no_more_than_its_step() {
    let vector = normal(5_000, 2);
    for (stage, steps, of_a_step) in [("int8", 127.0, 0.501), ("int4", 7.0, 0.501), ("qsgd:4", 7.0, 1.001)] {
        let back = both_ways(&[stage], &vector);
        for (block, rounded) in vector.chunks(1_024).zip(back.chunks(1_024)) {
            let step = block.iter().fold(0f32, |m, x| m.max(x.abs())) / steps;
            let worst = block.iter().zip(rounded).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst <= of_a_step * step, "{stage}: {worst} of {step}");
        }
    }
    let back = both_ways(&["fp16"], &[1.0, 1e9, -1e9, 0.1]);
    assert_eq!(back[..3], [1.0, 65_504.0, -65_504.0]);
    let back = both_ways(&["sign"], &[1.0, -3.0, 2.0]);
    assert_eq!(back, [2.0, -2.0, 2.0]);
}

#[test]
fn rounding_at_random_is_right_on_average() {
    let (vector, shapes) = (normal(64, 3), [vec![64]]);
    let mut sums = vec![0f64; 64];
    for seed in 0..4_000 {
        let back = decode(&encoded(pipeline(&["qsgd:2"]), &vector, &shapes, seed), &shapes).unwrap();
        sums.iter_mut().zip(back).for_each(|(sum, x)| *sum += f64::from(x) / 4_000.0);
    }
    let worst = sums.iter().zip(&vector).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
    assert!(worst < 0.15, "{worst}");
}

#[test]
fn power_iteration_finds_matrices_of_its_rank() {
    let mut rng = fastrand::Rng::with_seed(5);
    let (rows, columns) = (30, 40);
    let factor = |n: usize, rng: &mut fastrand::Rng| (0..2 * n).map(|_| rng.f32() - 0.5).collect::<Vec<_>>();
    let (left, right) = (factor(rows, &mut rng), factor(columns, &mut rng));
    let entry = |i: usize, j: usize| left[2 * i] * right[2 * j] + left[2 * i + 1] * right[2 * j + 1];
    let mut vector: Vec<f32> = (0..rows * columns).map(|k| entry(k / columns, k % columns)).collect();
    vector.extend([1.0, 2.0, 3.0]);
    let shapes = [vec![30, 8, 5], vec![3]];
    let bytes = encoded(pipeline(&["powersgd:2"]), &vector, &shapes, 1);
    let back = decode(&bytes, &shapes).unwrap();
    assert!(apart(&vector, &back) < 1e-5 * norm(&vector), "{}", apart(&vector, &back));
    // Two factors of rank 2, three numbers as they are, and the head.
    assert_eq!(bytes.len(), 4 * (2 * (30 + 40) + 3) + 21 + 8);
}

#[test]
fn bytes_are_near_what_theory_says() {
    let (vector, shapes) = (normal(1_000_000, 6), [vec![1_000_000]]);
    let bytes = |stages: &[&str]| encoded(pipeline(stages), &vector, &shapes, 1).len() as f64;
    // A random mask of 0.1% takes 11.4 bits an index; a sign takes one.
    let entropy = 1_000.0 * (11.41 + 1.0) / 8.0;
    let found = bytes(&["topk:0.001", "sign", "zstd"]);
    assert!(found < 1.05 * entropy + 40.0, "{found} for {entropy}");
    assert!((bytes(&["int8"]) - 1_003_908.0 - 21.0).abs() < 8.0);
    assert!((bytes(&["sign"]) - 128_908.0 - 21.0).abs() < 8.0);
    assert!(bytes(&["zstd"]) < 0.95 * 4_000_000.0);
    assert!(bytes(&["random:0.01", "int4"]) < 5_000.0 + 100.0);
}

#[test]
fn lists_that_make_no_pipeline_are_refused_with_the_reason() {
    let refused = |stages: &[&str]| Pipeline::parse(stages).unwrap_err();
    assert!(matches!(refused(&["topl:0.1"]), PipelineError::Unknown { .. }));
    assert!(refused(&["int9"]).to_string().contains("topk:SHARE"));
    for stage in ["topk", "topk:0", "topk:1.5", "topk:x", "random:", "powersgd:0", "qsgd:1", "qsgd:9", "int8:3"] {
        assert!(matches!(refused(&[stage]), PipelineError::Option { .. }), "{stage}");
    }
    for stages in [&["zstd", "int8"][..], &["int8", "topk:0.1"], &["int8", "int4"], &["topk:0.1", "random:0.1"]] {
        assert!(matches!(refused(stages), PipelineError::Order { .. }), "{stages:?}");
    }
}

#[test]
fn what_is_not_this_vector_is_refused() {
    let shapes = [vec![10]];
    let mut out = Vec::new();
    let error = pipeline(&["int8"]).encode(&[0.0, f32::NAN], &[vec![2]], 1, &mut out).unwrap_err();
    assert!(matches!(error, CodecError::Value { index: 1, .. }));
    let bytes = encoded(pipeline(&["int8", "zstd"]), &normal(10, 1), &shapes, 1);
    assert!(matches!(decode(&bytes, &[vec![11]]), Err(CodecError::TooLarge { what: "elements", .. })));
    let mut other = bytes;
    other[0] = 9;
    assert_eq!(decode(&other, &shapes), Err(CodecError::Version(9)));
}
