//! What holds for every pipeline of updates.

use proptest::prelude::*;
use tierline_codec::CodecError;
use tierline_codec::update::{Pipeline, SentElements, decode, decode_into, support_of};

const SUPPORTS: [&str; 6] = ["", "topk:0.1", "topk:1", "random:0.25", "random:1", "powersgd:2"];
const PRECISIONS: [&str; 10] = ["", "fp16", "int8", "int4", "qsgd:2", "qsgd:3", "qsgd:5", "qsgd:7", "qsgd:8", "sign"];
const SCALE: &str = "the encoding is corrupt: a block's scale is not a finite number";

/// Every combination.
fn pipelines() -> Vec<Pipeline> {
    let mut pipelines = Vec::new();
    for support in SUPPORTS {
        for precision in PRECISIONS {
            for lossless in ["", "zstd"] {
                pipelines.push(pipeline(&format!("{support} {precision} {lossless}")));
            }
        }
    }
    pipelines
}

/// The pipeline of stages with spaces between them.
fn pipeline(stages: &str) -> Pipeline {
    Pipeline::parse(&stages.split_whitespace().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{stages}: {e}"))
}

fn encoded(pipeline: &Pipeline, vector: &[f32], shapes: &[Vec<usize>], seed: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    pipeline.encode(vector, shapes, seed, &mut bytes).unwrap_or_else(|e| panic!("{pipeline:?}: {e}"));
    bytes
}

fn roundtrip(pipeline: &Pipeline, vector: &[f32], shapes: &[Vec<usize>], seed: u64) -> Vec<f32> {
    decode(&encoded(pipeline, vector, shapes, seed), shapes).unwrap_or_else(|e| panic!("{pipeline:?}: {e}"))
}

fn kept(pipeline: &Pipeline, vector: &[f32], shapes: &[Vec<usize>], seed: u64) -> Vec<usize> {
    match support_of(&encoded(pipeline, vector, shapes, seed), shapes).expect("a support") {
        SentElements::All => (0..vector.len()).collect(),
        SentElements::Indices(indices) => indices.into_iter().map(|i| i as usize).collect(),
    }
}

fn bits(vector: &[f32]) -> Vec<u32> {
    vector.iter().map(|v| v.to_bits()).collect()
}

fn norm(vector: impl IntoIterator<Item = f64>) -> f64 {
    vector.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn error(a: &[f32], b: &[f32]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut draw = || (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0;
    (0..count).map(|_| draw()).collect()
}

#[derive(Debug, Clone)]
struct Update {
    shapes: Vec<Vec<usize>>,
    vector: Vec<f32>,
    seed: u64,
}

/// Parts of up to four axes, empty ones among them; now and then one that
/// takes several blocks.
fn shapes() -> impl Strategy<Value = Vec<Vec<usize>>> {
    let axis = || prop_oneof![1 => Just(0usize), 20 => 1usize..9];
    let part = prop_oneof![
        8 => prop::collection::vec(axis(), 0..5),
        1 => (1usize..3_000).prop_map(|n| vec![n]),
        1 => (20usize..40, 20usize..90).prop_map(|(a, b)| vec![a, b]),
    ];
    prop::collection::vec(part, 0..4)
}

/// Updates of one magnitude, from the smallest to the largest there are.
fn updates() -> impl Strategy<Value = Update> {
    let magnitude = prop_oneof![6 => -6i32..4, 1 => -45i32..38];
    (shapes(), magnitude, any::<u64>()).prop_map(|(shapes, magnitude, seed)| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
        let value = |_| ((rng.f64() - 0.5) * rng.f64() * 12.0 * 10f64.powi(magnitude)) as f32;
        Update { vector: (0..count).map(value).collect(), shapes, seed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fractions_print_as_they_are_read(fraction in prop_oneof![0.0f64..=1.0, 1e-12f64..1e-6], rank in 1u8..=64) {
        prop_assume!(fraction > 0.0);
        for stage in [format!("topk:{fraction}"), format!("random:{fraction}"), format!("powersgd:{rank}")] {
            let pipeline = Pipeline::parse(&[&stage]).unwrap();
            prop_assert_eq!(pipeline.stages(), [stage]);
        }
    }

    #[test]
    fn without_loss_every_bit_comes_back(given in updates(), raw in any::<bool>()) {
        let mut rng = fastrand::Rng::with_seed(given.seed);
        // Any finite bits: -0.0 and subnormals among them.
        let any = |v: &f32| if raw { f32::from_bits(rng.u32(..) & !(1 << 30)) } else { *v };
        let vector: Vec<f32> = given.vector.iter().map(any).collect();
        for stages in ["", "zstd", "topk:1", "topk:1 zstd", "random:1"] {
            let pipeline = pipeline(stages);
            prop_assert_eq!(pipeline.is_lossless(), !stages.contains(':'));
            prop_assert_eq!(bits(&roundtrip(&pipeline, &vector, &given.shapes, given.seed)), bits(&vector), "{}", stages);
        }
    }

    #[test]
    fn equal_calls_give_equal_bytes_behind_what_was_there(given in updates()) {
        for pipeline in pipelines() {
            let mut twice = encoded(&pipeline, &given.vector, &given.shapes, given.seed);
            let once = twice.clone();
            pipeline.encode(&given.vector, &given.shapes, given.seed, &mut twice).unwrap();
            prop_assert_eq!(&twice[..once.len()], &once);
            prop_assert_eq!(&twice[once.len()..], &once);
        }
    }

    #[test]
    fn what_was_not_kept_is_zero(given in updates()) {
        for pipeline in pipelines() {
            let bytes = encoded(&pipeline, &given.vector, &given.shapes, given.seed);
            let decoded = decode(&bytes, &given.shapes).unwrap();
            // Whatever was there is overwritten.
            let mut into = vec![f32::NAN; decoded.len()];
            decode_into(&bytes, &given.shapes, &mut into).unwrap();
            prop_assert_eq!(bits(&into), bits(&decoded));
            prop_assert!(decoded.iter().all(|v| v.is_finite()));
            if let SentElements::Indices(kept) = support_of(&bytes, &given.shapes).unwrap() {
                prop_assert!(kept.is_sorted_by(|a, b| a < b));
                for (index, value) in decoded.iter().enumerate() {
                    prop_assert!(value.to_bits() == 0 || kept.binary_search(&(index as u32)).is_ok(), "{:?}", pipeline);
                }
            }
        }
    }

    #[test]
    fn values_are_within_a_step_of_their_block(given in updates()) {
        for (stages, levels, steps) in
            [("int8", 127.0, 0.5), ("int4", 7.0, 0.5), ("qsgd:2", 1.0, 1.0), ("qsgd:5", 15.0, 1.0), ("qsgd:8", 127.0, 1.0)]
        {
            for stages in [stages.to_owned(), format!("{stages} zstd")] {
                let decoded = roundtrip(&pipeline(&stages), &given.vector, &given.shapes, given.seed);
                for (given, got) in given.vector.chunks(1024).zip(decoded.chunks(1024)) {
                    let largest = given.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
                    // And f32's own rounding, of a step too small for it too.
                    let bound = steps * largest / levels + largest * 1e-6 + 256.0 * 1.5e-45;
                    for (a, b) in given.iter().zip(got) {
                        prop_assert!((f64::from(*a) - f64::from(*b)).abs() <= bound, "{stages}: {a} became {b}, {bound}");
                    }
                }
            }
        }
    }

    #[test]
    fn halves_are_as_near_as_halves_can_be(given in updates()) {
        for (&a, b) in given.vector.iter().zip(roundtrip(&pipeline("fp16 zstd"), &given.vector, &given.shapes, 0)) {
            let bound = (a.abs() / 2048.0).max(2f32.powi(-25));
            prop_assert!((a.clamp(-65_504.0, 65_504.0) - b).abs() <= bound, "{a} became {b}");
        }
    }

    #[test]
    fn signs_bring_the_mean_magnitude(given in updates()) {
        let decoded = roundtrip(&pipeline("sign"), &given.vector, &given.shapes, 0);
        for (given, got) in given.vector.chunks(1024).zip(decoded.chunks(1024)) {
            let mean = given.iter().map(|v| f64::from(v.abs())).sum::<f64>() / given.len() as f64;
            for (a, b) in given.iter().zip(got) {
                prop_assert_eq!(a.is_sign_negative(), b.is_sign_negative());
                prop_assert!((f64::from(b.abs()) - mean).abs() <= mean * 1e-6 + 1.5e-45);
            }
        }
    }

    #[test]
    fn an_error_is_no_larger_than_the_vector(given in updates()) {
        let size = norm(given.vector.iter().map(|v| f64::from(*v)));
        for pipeline in pipelines() {
            // Unbiased rounding pays in variance; errors of factors multiply.
            let stages = pipeline.stages().join(" ");
            if stages.contains("qsgd") || stages.contains("powersgd:2 ") {
                continue;
            }
            let lost = error(&given.vector, &roundtrip(&pipeline, &given.vector, &given.shapes, given.seed));
            prop_assert!(lost <= size * (1.0 + 1e-6) + 1e-42, "{stages}: {lost} of {size}");
        }
    }

    #[test]
    fn topk_keeps_the_largest(given in updates(), coarse in any::<bool>(), fraction in 0.001f64..1.0) {
        // Few magnitudes, so that many are equal: of these the first are kept.
        let top = given.vector.iter().fold(0f32, |m, v| m.max(v.abs()));
        let coarsen = |v: &f32| if coarse { (v / top * 3.0).round() } else { *v };
        let vector: Vec<f32> = given.vector.iter().map(coarsen).collect();
        let mut order: Vec<usize> = (0..vector.len()).collect();
        order.sort_by(|&a, &b| vector[b].abs().total_cmp(&vector[a].abs()).then(a.cmp(&b)));
        order.truncate(((fraction * vector.len() as f64).round() as usize).max(1));
        order.sort_unstable();
        let pipeline = Pipeline::parse(&[format!("topk:{fraction}")]).unwrap();
        prop_assert_eq!(&kept(&pipeline, &vector, &given.shapes, 0), &order);
        let decoded = roundtrip(&pipeline, &vector, &given.shapes, 0);
        prop_assert!(order.iter().all(|&i| decoded[i].to_bits() == vector[i].to_bits()));
    }

    #[test]
    fn masks_are_drawn_alike_on_both_sides(given in updates(), fraction in 0.001f64..=1.0) {
        let pipeline = Pipeline::parse(&[format!("random:{fraction}")]).unwrap();
        let kept = kept(&pipeline, &given.vector, &given.shapes, given.seed);
        let count = given.vector.len();
        prop_assert_eq!(kept.len(), ((fraction * count as f64).round() as usize).max(1).min(count));
        let decoded = roundtrip(&pipeline, &given.vector, &given.shapes, given.seed);
        prop_assert!(kept.iter().all(|&i| decoded[i].to_bits() == given.vector[i].to_bits()));
    }

    #[test]
    fn powersgd_keeps_matrices_of_its_rank(seed in any::<u64>(), true_rank in 0usize..4, spare in 0usize..3) {
        let shapes = [vec![24, 4, 5], vec![24], vec![3, 2], vec![30, 16]];
        let mut vector = Vec::new();
        for shape in &shapes {
            let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
            let (p, q) = (normal(rows * true_rank, seed), normal(columns * true_rank, seed ^ 1));
            for row in 0..rows {
                let value = |column| (0..true_rank).map(|k| p[row * true_rank + k] * q[column * true_rank + k]).sum::<f32>();
                vector.extend((0..columns).map(value));
            }
        }
        let pipeline = Pipeline::parse(&[format!("powersgd:{}", (true_rank + spare).max(1))]).unwrap();
        let size = norm(vector.iter().map(|v| f64::from(*v)));
        prop_assert!(error(&vector, &roundtrip(&pipeline, &vector, &shapes, seed)) <= size * 1e-5);
    }

    #[test]
    fn other_lengths_are_refused(given in updates()) {
        for pipeline in pipelines() {
            let mut bytes = encoded(&pipeline, &given.vector, &given.shapes, given.seed);
            for length in (0..bytes.len()).step_by(bytes.len() / 10 + 1) {
                prop_assert!(decode(&bytes[..length], &given.shapes).is_err(), "{pipeline:?}: {length}");
            }
            prop_assert!(decode(&bytes[..bytes.len() - 1], &given.shapes).is_err(), "{:?}", pipeline);
            bytes.push(0);
            prop_assert!(decode(&bytes, &given.shapes).is_err(), "{:?}: a byte too many", pipeline);
        }
    }
}

#[test]
fn stages_print_as_they_are_read() {
    for pipeline in pipelines() {
        assert_eq!(Pipeline::parse(&pipeline.stages()), Ok(pipeline));
    }
    assert_eq!(pipeline(""), Pipeline::default());
    assert!(Pipeline::default().is_lossless() && Pipeline::default().stages().is_empty());
    assert_eq!(pipeline("topk:1e-2 int8 zstd").stages(), ["topk:0.01", "int8", "zstd"]);
}

#[test]
fn what_is_no_pipeline_says_why() {
    let list = "topk:F, random:F, powersgd:R (what survives), fp16, int8, int4, qsgd:B, sign (how precisely), \
                zstd (without loss)";
    let fraction = "a fraction above 0 and up to 1, like";
    let cases = [
        ("gzip", format!("there is no stage `gzip`; there are {list}")),
        ("topk", format!("stage `topk` takes {fraction} `topk:0.01`")),
        ("topk:0", format!("stage `topk:0` takes {fraction} `topk:0.01`")),
        ("random:1.1", format!("stage `random:1.1` takes {fraction} `random:0.01`")),
        ("random:NaN", format!("stage `random:NaN` takes {fraction} `random:0.01`")),
        ("powersgd:65", "stage `powersgd:65` takes a rank from 1 to 64, like `powersgd:4`".to_owned()),
        ("qsgd:1", "stage `qsgd:1` takes bits from 2 to 8, like `qsgd:4`".to_owned()),
        ("qsgd:9", "stage `qsgd:9` takes bits from 2 to 8, like `qsgd:4`".to_owned()),
        ("sign:2", "stage `sign:2` takes no option; write `sign`".to_owned()),
        ("int8 fp16", "stages `int8` and `fp16` both choose the precision; keep one of them".to_owned()),
        ("zstd zstd", "stages `zstd` and `zstd` both choose how to pack; keep one of them".to_owned()),
        ("int8 topk:0.1", format!("stage `topk:0.1` comes before `int8`, not after; the order is {list}")),
        ("zstd sign", format!("stage `sign` comes before `zstd`, not after; the order is {list}")),
    ];
    for (stages, expected) in cases {
        let error = Pipeline::parse(&stages.split(' ').collect::<Vec<_>>()).expect_err(stages);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let shapes = [vec![2, 3], vec![2]];
    let vector = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0];
    for pipeline in pipelines() {
        let mut bytes = encoded(&pipeline, &vector, &shapes, 0);
        let error = |shapes: &[Vec<usize>]| {
            let error = decode(&bytes, shapes).expect_err("other shapes");
            assert_eq!(support_of(&bytes, shapes), Err(error.clone()));
            error.to_string()
        };
        assert_eq!(error(&[vec![9]]), "8 elements were given; the shapes of the parts hold 9");
        assert_eq!(error(&[]), "8 elements were given; the shapes of the parts hold 0");
        for shapes in [vec![vec![8]], vec![vec![3, 2], vec![2]], vec![vec![2], vec![2, 3]]] {
            assert_eq!(
                error(&shapes),
                "the update was encoded for parts of other shapes; both sides need the same model"
            );
        }
        assert_eq!(error(&[vec![usize::MAX, 2]]), "the encoding is corrupt: the parts' shapes exceed memory");
        assert!(error(&[vec![1 << 33]]).starts_with("the encoding declares 8589934592 elements"));
        assert!(decode_into(&bytes, &shapes, &mut [0.0; 7]).is_err());
        // On the way in as well; what was there stays.
        let before = bytes.clone();
        assert_eq!(
            pipeline.encode(&vector[1..], &shapes, 0, &mut bytes),
            Err(CodecError::Elements { given: 7, expected: 8 })
        );
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut vector = vector;
            vector[5] = odd;
            let error = pipeline.encode(&vector, &shapes, 0, &mut bytes).unwrap_err();
            assert_eq!(error.to_string(), format!("element 5 of the update is {odd}; only finite values are sent"));
        }
        assert_eq!(bytes, before);
    }
}

#[test]
fn broken_encodings_say_what_is_wrong() {
    let shapes = [vec![4, 8]];
    let damaged = |stages: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = encoded(&pipeline(stages), &normal(32, 3), &shapes, 0);
        change(&mut bytes);
        decode(&bytes, &shapes).expect_err(stages).to_string()
    };
    let huge = |at: usize| move |b: &mut Vec<u8>| b[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let nan = |b: &mut Vec<u8>| b[15..19].copy_from_slice(&f32::NAN.to_le_bytes());
    let many = "the encoding is corrupt: more elements are kept than there are";
    let cases = [
        (damaged("", &|b| b[1] = b'L'), "the encoding is corrupt: the first bytes are not an encoded update's"),
        (damaged("", &|b| b[2] = 9), "encoding version 9 is unknown here; update this node"),
        (damaged("", &|b| b[3] = 9), "the encoding is corrupt: unknown support of an update"),
        (damaged("", &|b| b[4] = 9), "the encoding is corrupt: unknown precision of an update"),
        (damaged("int8", &|b| b[5] = 2), "the encoding is corrupt: unknown precision of an update"),
        (damaged("qsgd:2", &|b| b[5] = 9), "the encoding is corrupt: unknown precision of an update"),
        (damaged("", &|b| b[6] = 2), "the encoding is corrupt: unknown packing of an update"),
        (damaged("", &huge(7)), "4294967295 elements were given; the shapes of the parts hold 32"),
        (damaged("", &|b| b.truncate(20)), "the encoding is cut short: 128 bytes were expected, 5 are left"),
        (damaged("", &|b| b.push(0)), "1 bytes follow the end of the encoding"),
        (damaged("", &nan), "the encoding is corrupt: a value is not a finite number"),
        (damaged("int8", &nan), SCALE),
        (damaged("sign", &|b| b[18] |= 0x80), SCALE),
        (damaged("topk:0.5", &huge(15)), many),
        (damaged("random:0.5", &huge(15)), many),
        (
            damaged("topk:0.1", &|b| b[19..23].fill(0xff)),
            "the encoding is corrupt: an index lies behind the vector's end",
        ),
        (damaged("powersgd:1", &|b| b[15] = 0), "the encoding is corrupt: unknown rank of an update"),
        (damaged("powersgd:1", &|b| b[15] = 255), "the encoding is corrupt: unknown rank of an update"),
    ];
    for (error, expected) in cases {
        assert_eq!(error, expected);
    }
}

#[test]
fn damaged_encodings_are_vectors_or_errors() {
    let mut rng = fastrand::Rng::with_seed(21);
    let shapes = [vec![12, 10], vec![12], vec![40, 30]];
    let count = 120 + 12 + 1200;
    let valid: Vec<_> = pipelines().iter().map(|p| encoded(p, &normal(count, 5), &shapes, 7)).collect();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = rng.choice(&valid).expect("samples").clone();
        for _ in 0..rng.usize(1..4) {
            // Headers are short and matter most.
            let reach = if rng.bool() { bytes.len().min(40) } else { bytes.len() };
            let at = rng.usize(..reach);
            match rng.u8(..4) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes.insert(at, rng.u8(..)),
                _ => bytes[at] ^= 1 << rng.u8(..8),
            }
        }
        match decode(&bytes, &shapes) {
            Ok(vector) => {
                taken += 1;
                assert!(vector.len() == count && vector.iter().all(|v| v.is_finite()));
                assert!(support_of(&bytes, &shapes).is_ok());
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().is_empty());
            }
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn every_truncation_is_refused() {
    let shapes = [vec![5, 8], vec![3]];
    for pipeline in pipelines() {
        let bytes = encoded(&pipeline, &normal(43, 4), &shapes, 1);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], &shapes).is_err(), "{pipeline:?}: {length} of {}", bytes.len());
        }
    }
}

#[test]
fn empty_vectors_and_single_elements() {
    for shapes in [vec![], vec![vec![0]], vec![vec![3, 0], vec![0, 2]], vec![vec![]], vec![vec![1, 1]], vec![vec![1]]] {
        let count = shapes.iter().map(|s| s.iter().product::<usize>()).sum();
        for pipeline in pipelines() {
            let vector = vec![0.5; count];
            assert_eq!(roundtrip(&pipeline, &vector, &shapes, 1), vector, "{pipeline:?} {shapes:?}");
            assert_eq!(kept(&pipeline, &vector, &shapes, 1).len(), count);
        }
    }
}

#[test]
fn extremes_of_the_range_stay_finite() {
    let tiny = f32::from_bits(1);
    for values in
        [[f32::MAX, f32::MIN, f32::MAX, 0.0], [tiny, -tiny, 0.0, -0.0], [0.0; 4], [f32::MAX, tiny, -1.0, 1e-38]]
    {
        let vector: Vec<f32> = values.iter().copied().cycle().take(1_600).collect();
        for pipeline in pipelines() {
            let decoded = roundtrip(&pipeline, &vector, &[vec![40, 40]], 3);
            assert!(decoded.iter().all(|v| v.is_finite()), "{pipeline:?}");
            assert!(values != [0.0; 4] || decoded.iter().all(|v| *v == 0.0), "{pipeline:?}");
        }
    }
}

#[test]
fn qsgd_is_right_on_average() {
    let vector = normal(300, 9);
    let largest = vector.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (bits, levels) in [(2, 1.0), (4, 7.0), (8, 127.0)] {
        let pipeline = Pipeline::parse(&[format!("qsgd:{bits}")]).unwrap();
        const SEEDS: u64 = 2_000;
        let mut sums = vec![0f64; vector.len()];
        for seed in 0..SEEDS {
            let decoded = roundtrip(&pipeline, &vector, &[vec![300]], seed);
            sums.iter_mut().zip(decoded).for_each(|(sum, v)| *sum += f64::from(v));
        }
        // A step's coin has a spread of half a step at most; five of the mean's.
        let bound = 5.0 * 0.5 * f64::from(largest) / levels / (SEEDS as f64).sqrt();
        for (value, sum) in vector.iter().zip(sums) {
            let mean = sum / SEEDS as f64;
            assert!((mean - f64::from(*value)).abs() <= bound, "qsgd:{bits}: {value} became {mean} on average");
        }
    }
}

#[test]
fn what_is_lost_time_and_again_does_not_grow() {
    // The worst there is: one large value, and others half a step from a level.
    for (stages, contracts) in [("qsgd:2", false), ("qsgd:5", false), ("qsgd:6", true), ("qsgd:8", true)] {
        let step = 1.0 / ((1u32 << (stages[5..].parse::<u32>().unwrap() - 1)) - 1) as f32;
        let mut vector = vec![0.5 * step; 1_024];
        vector[0] = 1.0;
        let pipeline = pipeline(stages);
        assert_eq!(pipeline.is_contraction(), contracts, "{stages}");
        let size = norm(vector.iter().map(|v| f64::from(*v)));
        let lost = error(&vector, &roundtrip(&pipeline, &vector, &[vec![1_024]], 1));
        assert!(!contracts || lost < 0.6 * size, "{stages}: {lost} of {size}");
    }
}

#[test]
fn pipelines_know_what_they_lose() {
    for (stages, unbiased, contracts, rounded) in [
        ("zstd", true, true, "zstd"),
        ("fp16", false, true, "fp16"),
        ("int4 zstd", false, true, "int8 zstd"),
        ("sign", false, true, "int8"),
        ("qsgd:3", true, false, "int8"),
        ("qsgd:7 zstd", true, true, "int8 zstd"),
        ("topk:0.1", false, true, ""),
        ("random:0.1 qsgd:4", false, false, "int8"),
        ("powersgd:2 fp16", false, true, "fp16"),
    ] {
        let it = pipeline(stages);
        assert_eq!((it.is_unbiased(), it.is_contraction()), (unbiased, contracts), "{stages}");
        assert_eq!(it.rounded().stages().join(" "), rounded, "{stages}");
    }
}

#[test]
fn masks_are_even_and_of_their_seed() {
    let (vector, shapes) = (vec![1.0; 1_000], [vec![1_000]]);
    let random = pipeline("random:0.1");
    let mut counts = vec![0; 1_000];
    for seed in 0..1_000 {
        kept(&random, &vector, &shapes, seed).into_iter().for_each(|i| counts[i] += 1);
    }
    // 100 each, with a spread of 9.5.
    assert!(counts.iter().all(|c| (50..150).contains(c)), "{counts:?}");
    assert_ne!(kept(&random, &vector, &shapes, 1), kept(&random, &vector, &shapes, 2));
}

#[test]
fn sizes_are_those_of_theory() {
    let count = 1_000_000;
    let (vector, shapes) = (normal(count, 1), [vec![1_000, 1_000]]);
    let size = |stages: &str| encoded(&pipeline(stages), &vector, &shapes, 1).len();
    let header = 15;
    // Entropy of which elements are kept, in bytes.
    let choice = |kept: f64| {
        let f = kept / count as f64;
        (-(f * f.log2() + (1.0 - f) * (1.0 - f).log2()) * count as f64 / 8.0) as usize
    };
    let near = |size: usize, theory: usize| (theory..theory + theory / 50).contains(&size);
    let theory = header + 4 + choice(1e3) + 4 + 125;
    assert!(near(size("topk:0.001 sign zstd"), theory), "{} {theory}", size("topk:0.001 sign zstd"));
    let theory = header + 4 + choice(1e5) + 98 * 4 + 50_000;
    assert!(near(size("topk:0.1 int4"), theory), "{} {theory}", size("topk:0.1 int4"));
    // Exactly their bits.
    let scales = 977 * 4;
    assert_eq!(size(""), header + 4_000_000);
    assert_eq!(size("fp16"), header + 2_000_000);
    assert_eq!(size("int8"), header + scales + 1_000_000);
    assert_eq!(size("int4"), header + scales + 500_000);
    assert_eq!(size("qsgd:3"), header + scales + 375_000);
    assert_eq!(size("qsgd:7"), header + scales + 875_000);
    assert_eq!(size("sign"), header + scales + 125_000);
    assert_eq!(size("random:0.01"), header + 12 + 40_000);
    assert_eq!(size("powersgd:4"), header + 1 + 4 * 4 * 2_000);
    // zstd keeps what it can't shorten.
    assert_eq!(size("sign zstd"), size("sign"));
    assert!(size("qsgd:3 zstd") < size("qsgd:3") * 3 / 4 && size("fp16 zstd") < size("fp16") * 9 / 10);
}

#[test]
fn indices_that_crowd_take_fewer_bits() {
    // One layer has nearly all of what is kept.
    let mut vector = normal(200_000, 2);
    vector[50_000..54_000].iter_mut().for_each(|v| *v *= 100.0);
    let shapes = [vec![200_000]];
    let size = |vector: &[f32]| encoded(&pipeline("topk:0.01 sign"), vector, &shapes, 0).len();
    assert!(size(&vector) < size(&normal(200_000, 2)) / 2, "{} {}", size(&vector), size(&normal(200_000, 2)));
}
