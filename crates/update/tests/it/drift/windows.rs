//! Windows beside a reference: each distance against scipy and frouros on the
//! same samples (`windows.py` wrote what they say), rates of false alarms, and
//! documents that are refused.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tierline_update::drift::correct::Correction;
use tierline_update::drift::grid::{Counts, Grid};
use tierline_update::drift::random::Random;
use tierline_update::drift::reference::VERSION;
use tierline_update::drift::window::Distance;
use tierline_update::drift::{
    Answer, Builder, Calibration, Example, Options, Reference, ReferenceError, Settings, Verdict, Window, ks, mmd,
};

#[derive(Deserialize)]
struct Said {
    windows: Vec<Case>,
    p_values: Vec<PValue>,
    classes: Vec<Classes>,
    calibration: Fitted,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    seed: u64,
    n: usize,
    shift: f64,
    scale: f64,
    features: Vec<OfFeature>,
    mmd: Option<f64>,
}

#[derive(Deserialize)]
struct OfFeature {
    ks: f64,
    p: f64,
    whole_ks: f64,
    wasserstein: f64,
}

#[derive(Deserialize)]
struct PValue {
    n: usize,
    m: usize,
    distance: f64,
    exact: bool,
    p: f64,
}

#[derive(Deserialize)]
struct Classes {
    reference: Vec<u64>,
    window: Vec<u64>,
    statistic: f64,
    p: f64,
}

#[derive(Deserialize)]
struct Fitted {
    upto: Vec<f64>,
    fitted: Vec<f64>,
}

fn said() -> Said {
    serde_json::from_str(include_str!("windows.json")).unwrap()
}

fn bell(random: &mut Random) -> f64 {
    (0..12).fold(0.0, |sum, _| sum + random.uniform()) - 6.0
}

fn sample(seed: u64, n: usize, shift: f64, scale: f64) -> Vec<Vec<f64>> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let (x, y, z) = (bell(&mut random), bell(&mut random), bell(&mut random));
            vec![shift + scale * x, (y + shift).max(0.0), (2.0 * z + shift).floor(), 0.25]
        })
        .collect()
}

fn column(rows: &[Vec<f64>], j: usize) -> Vec<f64> {
    rows.iter().map(|row| row[j]).collect()
}

fn counted(grid: &Grid, numbers: &[f64]) -> Counts {
    let mut counts = grid.counts();
    numbers.iter().for_each(|&x| grid.count(&mut counts, x));
    counts
}

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64, place: &str) {
    assert!((found - expected).abs() <= tolerance, "{place}: {found} for {expected}");
}

#[test]
fn distances_equal_scipy() {
    let reference = sample(1, 1000, 0.0, 1.0);
    for case in said().windows {
        let window = sample(case.seed, case.n, case.shift, case.scale);
        for (j, expected) in case.features.iter().enumerate() {
            let place = format!("{} {j}", case.name);
            let grid = Grid::of(&mut column(&reference, j), 65).unwrap();
            let counts = counted(&grid, &column(&window, j));
            // Along the grid, exactly scipy's test of the numbers' places in it.
            close(grid.ks(&counts), expected.ks, 1e-12, &place);
            let tolerance = if case.n > 1_048 { 0.012 } else { 1e-9 };
            close(grid.ks_p(&counts), expected.p, tolerance, &place);
            // Of whole samples, no more than a grid step away, and never above.
            let whole = ks_of(column(&reference, j), column(&window, j));
            close(whole, expected.whole_ks, 1e-12, &place);
            assert!(grid.ks(&counts) <= whole + 1e-12 && whole - grid.ks(&counts) <= 2.0 / 64.0, "{place}");
            // One number is spread over its cell.
            let tolerance = if case.n == 1 { 0.1 } else { 0.01 * (1.0 + expected.wasserstein) };
            close(grid.wasserstein(&counts), expected.wasserstein, tolerance, &place);
        }
        if let Some(expected) = case.mmd {
            close(mmd::squared(&reference, &window, 1.5), expected, 1e-9, &case.name);
        }
    }
}

fn ks_of(mut a: Vec<f64>, mut b: Vec<f64>) -> f64 {
    a.sort_by(f64::total_cmp);
    b.sort_by(f64::total_cmp);
    ks::distance(&a, &b)
}

#[test]
fn p_values_equal_scipy() {
    for row in said().p_values {
        let found = ks::p_value(row.n, row.m, row.distance);
        let place = format!("{} {} {}", row.n, row.m, row.distance);
        if row.exact {
            close(found, row.p, 1e-9 + 1e-6 * row.p, &place);
        } else {
            // scipy approximates as well, by the one-sample distribution.
            let tolerance = if row.p > 0.1 { 0.012 } else { 0.06 * row.p + 1e-9 };
            close(found, row.p, tolerance, &place);
        }
    }
    for (n, m, distance, p) in
        [(0, 5, 0.5, 1.0), (5, 5, 0.0, 1.0), (5, 5, 1.1, 0.0), (usize::MAX, usize::MAX, 0.5, 0.0)]
    {
        assert_eq!(ks::p_value(n, m, distance), p);
    }
}

#[test]
fn isotonic_regression_equals_scipy() {
    let expected = said().calibration;
    let mut random = Random::new(11);
    let mut labelled: Vec<(f64, bool)> = (0..1280)
        .map(|_| {
            let confidence = random.uniform();
            (confidence, random.uniform() < 0.3 + 0.6 * confidence * confidence)
        })
        .collect();
    let calibration = Calibration::learn(&mut labelled).unwrap();
    for (upto, fitted) in expected.upto.iter().zip(&expected.fitted) {
        let step = calibration.steps()[calibration.step(*upto)];
        close(step.accuracy(), *fitted, 1e-12, &format!("{upto}"));
    }
    assert_eq!(calibration.n(), 1280);
}

/// A classifier of two classes on four features, with labels of its reference.
struct World {
    random: Random,
    shift: f32,
}

impl World {
    /// Features, answer and truth of one example.
    fn example(&mut self) -> (Vec<f32>, Answer, bool) {
        let features: Vec<f32> = (0..4).map(|_| self.random.normal() as f32 + self.shift).collect();
        let sure = 1.0 / (1.0 + (-f64::from(features[0] + features[1]).abs()).exp());
        // Less sure than right: a calibration has something to mend.
        let right = self.random.uniform() < sure;
        let answer =
            Answer { class: usize::from(features[0] + features[1] > 0.0), confidence: 0.5 + (sure - 0.5) / 2.0 };
        (features, answer, right)
    }
}

fn reference(n: usize, seed: u64) -> Arc<Reference> {
    let mut builder = Builder::new(Settings { seed, frequencies: 16, ..Settings::of(4, 2) }).unwrap();
    let mut world = World { random: Random::new(seed), shift: 0.0 };
    for _ in 0..n {
        let (features, answer, right) = world.example();
        builder.push(&Example { features: &features, answer: Some(answer), right: Some(right) });
    }
    Arc::new(builder.finish().unwrap())
}

#[test]
fn windows_without_change_are_stable_at_the_stated_rate() {
    let reference = reference(20_000, 1);
    let mut world = World { random: Random::new(2), shift: 0.0 };
    let mut window = Window::new(reference);
    let windows = 300;
    // How often each p-value is at most 0.05: confidence, classes, together, each
    // feature by either distance.
    let (mut at_most, mut alarms, mut missed) = ([0u32; 5], 0, 0);
    for _ in 0..windows {
        window.clear();
        let mut right = 0;
        for _ in 0..300 {
            let (features, answer, truth) = world.example();
            right += u32::from(truth);
            assert!(window.push(&Example { features: &features, answer: Some(answer), right: None }));
        }
        let options = Options { alpha: 0.05, ..Options::default() };
        let report = window.report(&options);
        let by_moves = window.report(&Options { distance: Distance::Wasserstein, ..options });
        alarms += u32::from(report.verdict == Verdict::Drift);
        for (i, p) in [
            report.confidence.unwrap().p,
            report.classes.unwrap().p,
            report.together.unwrap().p,
            report.features[2].p,
            by_moves.features[2].p,
        ]
        .into_iter()
        .enumerate()
        {
            at_most[i] += u32::from(p <= 0.05);
        }
        let estimate = report.estimate.unwrap();
        let truth = f64::from(right) / 300.0;
        missed += u32::from(truth < estimate.low || truth > estimate.high);
        close(estimate.accuracy, truth, 0.12, "estimate");
    }
    println!("of {windows}: {at_most:?} at most 0.05, {alarms} alarms, {missed} estimates missed");
    // 15 expected each; beyond 29 lies a chance of 4 in 10,000.
    assert!(at_most.iter().all(|&n| n <= 29), "{at_most:?}");
    assert!(at_most.iter().all(|&n| n >= 3), "no test is idle: {at_most:?}");
    assert!(alarms <= 29, "{alarms}");
    assert!(missed <= 29, "{missed}");
}

#[test]
fn change_is_found_and_named() {
    let reference = reference(5_000, 1);
    for (shift, expected) in [(0.0, Verdict::Stable), (0.5, Verdict::Drift)] {
        let mut world = World { random: Random::new(9), shift };
        let mut window = Window::new(Arc::clone(&reference));
        let mut right = 0;
        for _ in 0..1_000 {
            let (features, answer, truth) = world.example();
            right += u32::from(truth);
            window.push(&Example { features: &features, answer: Some(answer), right: None });
        }
        let report = window.report(&Options::default());
        assert_eq!(report.verdict, expected, "{report}");
        assert_eq!(report.p() <= 0.01, expected == Verdict::Drift);
        let estimate = report.estimate.unwrap();
        assert!((estimate.accuracy - f64::from(right) / 1_000.0).abs() < 0.05, "{estimate:?} {right}");
        if expected == Verdict::Drift {
            assert_eq!(report.changed, 4);
            assert!(report.features.iter().all(|feature| (feature.moved - 0.5).abs() < 0.1));
            let words = report.to_string();
            assert!(words.contains("drift, at a false alarm in 100 windows"), "{words}");
            assert!(words.contains("single features: 4 of 4 changed"), "{words}");
            assert!(words.contains("expected accuracy"), "{words}");
        }
    }
}

/// Random frequencies approach the kernel's discrepancy.
#[test]
fn frequencies_approach_the_kernel() {
    let (a, b) = (sample(1, 400, 0.0, 1.0), sample(3, 400, 0.5, 1.0));
    let exact = mmd::squared(&a, &b, 1.5);
    let frequencies = mmd::Frequencies::draw(5, 4, 1_024, 1.5);
    let mean = |rows: &[Vec<f64>]| {
        let mut mean = vec![0.0; frequencies.len()];
        for row in rows {
            let row: Vec<f32> = row.iter().map(|&x| x as f32).collect();
            frequencies.image(&row, |i, x| mean[i] += x / rows.len() as f64);
        }
        mean
    };
    let apart: f64 = mean(&a).iter().zip(mean(&b)).map(|(a, b)| (a - b) * (a - b)).sum();
    // The biased estimate lies above by about 1 / n + 1 / m.
    assert!(exact > 0.01 && (apart - exact - 2.0 / 400.0).abs() < 0.15 * exact + 0.003, "{apart} for {exact}");
}

#[test]
fn classes_equal_scipy() {
    for row in said().classes {
        let classes = row.reference.len();
        let mut builder = Builder::new(Settings::of(0, classes)).unwrap();
        let push = |counts: &[u64], each: &mut dyn FnMut(&Example<'_>)| {
            for (class, &n) in counts.iter().enumerate() {
                for _ in 0..n {
                    each(&Example { features: &[], answer: Some(Answer { class, confidence: 0.9 }), right: None });
                }
            }
        };
        push(&row.reference, &mut |example| builder.push(example));
        let mut window = Window::new(Arc::new(builder.finish().unwrap()));
        push(&row.window, &mut |example| assert!(window.push(example)));
        let test = window.report(&Options { examples_min: 1, ..Options::default() }).classes.unwrap();
        close(test.distance, row.statistic, 1e-9, "statistic");
        close(test.p, row.p, 1e-9, "p");
    }
}

#[test]
fn unusable_examples_are_counted() {
    let reference = reference(500, 1);
    let mut window = Window::new(Arc::clone(&reference));
    let answer = Some(Answer { class: 1, confidence: 0.9 });
    let good = [0.0f32; 4];
    for (features, answer) in [
        (&[f32::NAN, 0.0, 0.0, 0.0][..], answer),
        (&[f32::INFINITY, 0.0, 0.0, 0.0][..], answer),
        (&[0.0; 3][..], answer),
        (&good[..], None),
        (&good[..], Some(Answer { class: 2, confidence: 0.9 })),
        (&good[..], Some(Answer { class: 0, confidence: f64::NAN })),
    ] {
        assert!(!window.push(&Example { features, answer, right: None }));
    }
    assert_eq!((window.examples(), window.refused()), (0, 6));
    let report = window.report(&Options::default());
    assert_eq!(report.verdict, Verdict::TooFew);
    assert!(report.to_string().contains("6 more had numbers that can't be used"), "{report}");
    assert_eq!(Answer::of(&[f32::NAN, 1.0]), None);
    assert_eq!(Answer::of(&[]), None);
    let softmax = Answer::of(&[1.0, 3.0, 2.0]).unwrap();
    assert_eq!(softmax.class, 1);
    close(softmax.confidence, 0.665_240_955_774_821_5, 1e-12, "softmax");
    close(Answer::of(&[0.1, 0.7, 0.2]).unwrap().confidence, f64::from(0.7f32), 1e-12, "probabilities");
}

#[test]
fn constant_features_hold() {
    let mut builder = Builder::new(Settings::of(3, 0)).unwrap();
    for _ in 0..200 {
        builder.push(&Example { features: &[1.0, -0.0, 3.0], answer: None, right: None });
    }
    let reference = Arc::new(builder.finish().unwrap());
    let mut window = Window::new(reference);
    for _ in 0..200 {
        window.push(&Example { features: &[1.0, 0.0, 3.0], answer: None, right: None });
    }
    let options = Options { distance: Distance::Wasserstein, ..Options::default() };
    assert_eq!(window.report(&options).verdict, Verdict::Stable);
    for _ in 0..200 {
        window.push(&Example { features: &[1.0, 0.5, 3.0], answer: None, right: None });
    }
    let report = window.report(&options);
    assert_eq!((report.verdict, report.changed), (Verdict::Drift, 1));
    assert_eq!(window.report(&Options::default()).changed, 1);
}

#[test]
fn many_features_are_sketched() {
    let mut builder = Builder::new(Settings { seed: 4, ..Settings::of(1_280, 0) }).unwrap();
    let mut random = Random::new(1);
    let mut draw = |shift: f32| -> Vec<f32> { (0..1_280).map(|_| random.normal() as f32 + shift).collect() };
    for _ in 0..1_000 {
        builder.push(&Example { features: &draw(0.0), answer: None, right: None });
    }
    let reference = Arc::new(builder.finish().unwrap());
    assert_eq!(reference.features().len(), 64);
    for (shift, verdict) in [(0.0, Verdict::Stable), (0.5, Verdict::Drift)] {
        let mut window = Window::new(Arc::clone(&reference));
        for _ in 0..300 {
            window.push(&Example { features: &draw(shift), answer: None, right: None });
        }
        let report = window.report(&Options { correction: Correction::BenjaminiHochberg, ..Options::default() });
        assert_eq!(report.verdict, verdict, "{report}");
    }
}

#[test]
fn documents_come_back_as_they_were() {
    let reference = reference(1_000, 3);
    let written = reference.write();
    assert!(written.len() < 64 << 10, "{}", written.len());
    let read = Reference::read(&written).unwrap();
    assert_eq!(read, *reference);
    assert_eq!(read.write(), written);
}

#[test]
fn unsound_documents_are_refused() {
    let written: Value = serde_json::from_slice(&reference(1_000, 3).write()).unwrap();
    let refused = |path: &str, value: Value| {
        let mut document = written.clone();
        *document.pointer_mut(path).unwrap() = value;
        let error = Reference::read(document.to_string().as_bytes()).unwrap_err();
        (error.to_string(), error)
    };
    assert!(matches!(refused("/version", json!(VERSION + 1)).1, ReferenceError::Newer(_)));
    for (path, value, named) in [
        ("/features/0/at/3", json!(-1e9), "ascend"),
        ("/features/0/at/3", json!(1e300), "finite"),
        ("/features/0/upto/0", json!(0), "ascend"),
        ("/features/0/below", json!([]), "length"),
        ("/features/0/at", json!([]), "no points"),
        ("/features", json!([]), "as many distributions"),
        ("/features/0/deviation", json!(-1.0), "finite"),
        ("/sketch/numbers", json!(0), "sketch"),
        ("/sketch/inputs", json!(u64::MAX), "sketch"),
        ("/examples", json!(3), "more numbers"),
        ("/classes", json!([]), "come together"),
        ("/images/mean", json!([0.1]), "odd"),
        ("/images/mean/0", json!(7.0), "cosines"),
        ("/images/width", json!(0.0), "cosines"),
        ("/images/traces", json!([-1.0, 0.0, 0.0]), "cosines"),
        ("/calibration/0/n", json!(0), "no examples"),
        ("/calibration/0/upto", json!(2.0), "confidence"),
        ("/model", json!("x".repeat(2_000)), "name"),
        ("/source", json!(7), "string"),
    ] {
        let (words, _) = refused(path, value);
        assert!(words.contains(named), "{path}: {words}");
    }
    for hostile in
        [&b""[..], b"{", b"[]", b"null", b"{\"version\":1}", b"{\"version\":-1}", &[0xFF; 100], &b"[".repeat(100_000)]
    {
        assert!(Reference::read(hostile).is_err());
    }
    let mut builder = Builder::new(Settings::of(1, 0)).unwrap();
    builder.push(&Example { features: &[f32::NAN], answer: None, right: None });
    assert!(matches!(builder.finish(), Err(ReferenceError::TooFew { usable: 0, refused: 1 })));
    assert!(Builder::new(Settings { classes: usize::MAX, ..Settings::of(1, 0) }).is_err());
    assert!(Builder::new(Settings { features: usize::MAX, ..Settings::of(1, 0) }).is_err());
    assert!(Builder::new(Settings { frequencies: usize::MAX, ..Settings::of(1, 0) }).is_err());
}

#[test]
fn bounds_of_estimates_hold_in_a_brute_force_world() {
    // Labelled examples and windows are drawn anew each time; confidence shifts.
    let mut random = Random::new(77);
    let mut draw = |power: f64| {
        let confidence = random.uniform().powf(power);
        (confidence, random.uniform() < 0.1 + 0.85 * confidence)
    };
    let (mut missed, rounds) = (0, 1_000);
    for _ in 0..rounds {
        let mut labelled: Vec<(f64, bool)> = (0..500).map(|_| draw(0.5)).collect();
        let calibration = Calibration::learn(&mut labelled).unwrap();
        let mut counts = calibration.counts();
        let mut right = 0;
        for _ in 0..200 {
            let (confidence, truth) = draw(0.8);
            counts[calibration.step(confidence)] += 1;
            right += u32::from(truth);
        }
        let estimate = calibration.estimate(&counts, 0.05).unwrap();
        let truth = f64::from(right) / 200.0;
        missed += u32::from(truth < estimate.low || truth > estimate.high);
    }
    println!("{missed} of {rounds} estimates missed");
    assert!(missed <= 75, "{missed} of {rounds} missed, 50 expected");
    assert_eq!(reference(100, 1).calibration().unwrap().estimate(&[], 0.05), None);
    assert!(Calibration::learn(&mut [(0.5, true); 29]).is_err());
    assert!(Calibration::learn(&mut [(f64::NAN, true); 40]).is_err());
    let certain = Calibration::learn(&mut [(1.0, true); 40]).unwrap();
    let estimate = certain.estimate(&[10], 0.05).unwrap();
    assert!(estimate.accuracy == 1.0 && estimate.high == 1.0 && estimate.low < 0.95, "{estimate:?}");
}
