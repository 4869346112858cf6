//! Operators on this thread alone, without the runtime: every form of the
//! code that the processor can run gives the same, and whatever the shapes,
//! the answer is a fault or every element of the outputs.

use std::cell::Cell;

use fastrand::Rng;

use super::batch_norm::{BatchNorm, Statistics};
use super::conv_weight::ConvWeight;
use super::depthwise::Depthwise;
use super::mask::Mask;
use super::max_pool::MaxPool;
use super::update::{Adam, Sgd};
use super::wide::{Width, width};
use super::window::Window;
use super::workers::{Buffers, Workers};
use super::{Array, Compute, Fault};

thread_local! {
    /// The widest instructions that this test's thread may use.
    pub(super) static WIDTH_MAX: Cell<Option<Width>> = const { Cell::new(None) };
}

type Given = Vec<(Vec<usize>, Vec<f32>)>;

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Every output of an operator; elements that it leaves out are NaN.
fn computed(compute: &dyn Compute, given: &Given, buffers: &Buffers) -> Result<Vec<Vec<f32>>, Fault> {
    let shapes: Vec<&[usize]> = given.iter().map(|(shape, _)| shape.as_slice()).collect();
    let mut made: Vec<Vec<f32>> = compute.shapes(&shapes)?.iter().map(|s| vec![f32::NAN; count(s)]).collect();
    let inputs: Vec<Array<'_>> = given.iter().map(|(shape, data)| Array { shape, data }).collect();
    let outputs = made.iter_mut().map(Vec::as_mut_slice).collect();
    compute.run(&inputs, outputs, &Workers::alone(buffers))?;
    Ok(made)
}

/// Outputs by the widest form, after those by every narrower one were held
/// against them.
fn computed_by_all_forms(what: &str, compute: &dyn Compute, given: &Given, apart_max: f32) -> Vec<Vec<f32>> {
    let widest = computed(compute, given, &Buffers::default()).unwrap();
    let size = |values: &[f32]| values.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    for most in [Width::Portable, Width::Avx2] {
        WIDTH_MAX.set(Some(most));
        // Else this would hold the wide form against itself.
        assert!(width() <= most);
        let narrow = computed(compute, given, &Buffers::default()).unwrap();
        WIDTH_MAX.set(None);
        for (output, (narrow, wide)) in narrow.iter().zip(&widest).enumerate() {
            let far = apart_max * size(wide);
            for (i, (a, b)) in narrow.iter().zip(wide).enumerate() {
                let agree = if apart_max == 0.0 { a.to_bits() == b.to_bits() } else { (a - b).abs() <= far };
                assert!(agree, "{what}: {most:?} gives {a} at {output}[{i}], the widest form {b}");
            }
        }
    }
    widest
}

fn noise(random: &mut Rng, shape: &[usize]) -> (Vec<usize>, Vec<f32>) {
    (shape.to_vec(), (0..count(shape)).map(|_| random.f32() * 2.0 - 1.0).collect())
}

/// As [`noise`], above zero: variances, and sums of squares.
fn spread(random: &mut Rng, shape: &[usize]) -> (Vec<usize>, Vec<f32>) {
    (shape.to_vec(), (0..count(shape)).map(|_| random.f32() + 0.1).collect())
}

fn window(kernel: &[i64], strides: &[i64], dilations: &[i64], pads: &[i64]) -> Result<Window, Fault> {
    Window::of(|name| {
        let values = match name {
            "kernel_shape" => kernel,
            "strides" => strides,
            "dilations" => dilations,
            _ => pads,
        };
        Some(values.to_vec())
    })
}

/// Lengths around those of vectors, of blocks that sums are kept in, and of
/// pieces that threads take.
const LENGTHS: &[usize] = &[1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 65, 1023, 1024, 1025, 2051, 16_384, 16_385, 40_001];

#[test]
fn masks_and_updates_are_the_same_bits_in_every_form() {
    let mut random = Rng::with_seed(1);
    for &length in LENGTHS {
        let two = vec![noise(&mut random, &[length]), noise(&mut random, &[length])];
        computed_by_all_forms("relu", &Mask::Relu, &two, 0.0);
        computed_by_all_forms("clip", &Mask::Clip { min: -0.5, max: 0.25 }, &two, 0.0);
        let mut given: Given = (0..3).map(|_| noise(&mut random, &[length])).collect();
        given.push((vec![], vec![0.1]));
        for nesterov in [false, true] {
            let sgd = Sgd { momentum: 0.9, nesterov, decay: 1e-3 };
            computed_by_all_forms("sgd", &sgd, &given, 0.0);
        }
        let adam = Adam { beta1: 0.9, rest1: 0.1, beta2: 0.999, rest2: 1e-3, epsilon: 1e-8, decay: 1e-3 };
        given[3] = spread(&mut random, &[length]);
        given.extend([1e-3, 0.5, 1e-4].map(|number| (vec![1], vec![number])));
        let made = computed_by_all_forms("adam", &adam, &given, 0.0);
        assert!(made.iter().flatten().all(|x| x.is_finite()));
    }
}

#[test]
fn sums_over_channels_are_the_same_bits_in_every_form() {
    let mut random = Rng::with_seed(2);
    for (examples, channels, plane) in [(1, 1, 1), (3, 5, 7), (2, 17, 33), (5, 3, 1025), (2, 2, 2051), (7, 65, 9)] {
        let x = [examples, channels, plane];
        let given = vec![
            noise(&mut random, &x),
            noise(&mut random, &x),
            noise(&mut random, &[channels]),
            noise(&mut random, &[channels]),
            spread(&mut random, &[channels]),
        ];
        let what = format!("batch norm of {x:?}");
        let made = computed_by_all_forms(&what, &BatchNorm { epsilon: 1e-5 }, &given, 0.0);
        assert!(made.iter().flatten().all(|x| x.is_finite()), "{what}");
        let statistics = computed_by_all_forms(&what, &Statistics, &vec![given[1].clone()], 0.0);
        for channel in 0..channels {
            let (_, values) = &given[1];
            let own = || values.chunks(plane).skip(channel).step_by(channels).flatten().map(|&x| f64::from(x));
            let count = (examples * plane) as f64;
            let mean = own().sum::<f64>() / count;
            let variance = own().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
            for (made, expected) in statistics.iter().zip([mean, variance]) {
                let apart = (f64::from(made[channel]) - expected).abs();
                assert!(apart < 1e-6, "{what}: {} {expected}", made[channel]);
            }
        }
    }
}

#[test]
fn convolutions_agree_in_every_form() {
    let mut random = Rng::with_seed(3);
    for case in 0..60 {
        let axes = 1 + usize::from(case % 3 != 0);
        let mut ints =
            |from: i64, to: i64, count: usize| -> Vec<i64> { (0..count).map(|_| random.i64(from..=to)).collect() };
        let (kernel, strides, dilations) = (ints(1, 3, axes), ints(1, 3, axes), ints(1, 2, axes));
        let (pads, sizes) = (ints(0, 2, 2 * axes), ints(5, 37, axes));
        let window = window(&kernel, &strides, &dilations, &pads).unwrap();
        let sizes: Vec<usize> = sizes.iter().map(|&n| n as usize).collect();
        let (examples, input, out) = (random.usize(1..=3), random.usize(1..=70), random.usize(1..=35));
        let x = [&[examples, input], &sizes[..]].concat();
        let places = window.output(window.picture(&x).unwrap()).unwrap();
        let places = &places[2 - axes..];
        let what = format!("case {case}: {x:?} to {out}, {window:?}");
        let dy = noise(&mut random, &[&[examples, out], places].concat());
        let given = vec![dy, noise(&mut random, &x)];
        let made = computed_by_all_forms(&what, &ConvWeight(window), &given, 2e-5);
        assert!(made.iter().flatten().all(|x| x.is_finite()), "{what}");
        let kernel: Vec<usize> = kernel.iter().map(|&k| k as usize).collect();
        let dy = noise(&mut random, &[&[examples, input], places].concat());
        let given = vec![dy, noise(&mut random, &x), noise(&mut random, &[&[input, 1], &kernel[..]].concat())];
        let made = computed_by_all_forms(&what, &Depthwise(window), &given, 0.0);
        assert!(made.iter().flatten().all(|x| x.is_finite()), "{what}");
    }
}

/// One of each operator; those with a window at random.
fn operators(random: &mut Rng) -> Vec<(&'static str, usize, Box<dyn Compute>)> {
    let axes = random.usize(1..=2);
    let mut ints =
        |from: i64, to: i64, count: usize| -> Vec<i64> { (0..count).map(|_| random.i64(from..=to)).collect() };
    let window = window(&ints(1, 4, axes), &ints(1, 4, axes), &ints(1, 3, axes), &ints(0, 4, 2 * axes)).unwrap();
    vec![
        ("relu", 2, Box::new(Mask::Relu)),
        ("clip", 2, Box::new(Mask::Clip { min: -0.5, max: 0.5 })),
        ("sgd", 4, Box::new(Sgd { momentum: 0.9, nesterov: true, decay: 0.0 })),
        ("adam", 7, Box::new(Adam { beta1: 0.9, rest1: 0.1, beta2: 0.99, rest2: 0.01, epsilon: 1e-8, decay: 0.0 })),
        ("batch norm", 5, Box::new(BatchNorm { epsilon: 1e-5 })),
        ("batch statistics", 1, Box::new(Statistics)),
        ("conv weight", 2, Box::new(ConvWeight(window))),
        ("depthwise", 3, Box::new(Depthwise(window))),
        ("max pool", 2, Box::new(MaxPool(window))),
    ]
}

/// A change to a shape that may make it one that doesn't fit.
fn bent(random: &mut Rng, shape: &mut Vec<usize>) {
    let at = if shape.is_empty() { 0 } else { random.usize(0..shape.len()) };
    match random.u8(0..6) {
        0 if !shape.is_empty() => drop(shape.remove(at)),
        1 => shape.insert(at, random.usize(0..3)),
        2 if !shape.is_empty() => shape[at] = 0,
        3 if !shape.is_empty() => shape[at] += 1,
        _ => {}
    }
}

#[test]
fn whatever_the_shapes_there_is_a_fault_or_every_element() {
    let mut random = Rng::with_seed(4);
    let (mut faults, mut answers, mut empty) = (0, 0, 0);
    // Buffers that were used before hold what others left.
    let buffers = Buffers::default();
    for _ in 0..20_000 {
        let all = operators(&mut random);
        let (name, inputs, compute) = &all[random.usize(0..all.len())];
        let x: Vec<usize> = (0..random.usize(2..=4)).map(|_| random.usize(0..=6)).collect();
        let mut shapes: Vec<Vec<usize>> = match *name {
            "batch norm" => vec![x.clone(), x.clone(), vec![x[1]], vec![x[1]], vec![x[1]]],
            "sgd" => vec![x.clone(), x.clone(), x, vec![]],
            "adam" => [vec![x; 4], vec![vec![1]; 3]].concat(),
            // Most pictures don't fit; what does is found by trying.
            "conv weight" | "depthwise" | "max pool" => {
                let mut dy = x.clone();
                dy[2..].iter_mut().for_each(|n| *n = random.usize(0..=6));
                let mut w = vec![x[1], 1];
                w.extend((2..x.len()).map(|_| random.usize(1..=4)));
                vec![dy, x, w]
            }
            _ => vec![x; 2],
        };
        shapes.truncate(*inputs);
        if random.u8(0..3) == 0 {
            let at = random.usize(0..shapes.len());
            bent(&mut random, &mut shapes[at]);
        }
        let given: Given = shapes.iter().map(|shape| spread(&mut random, shape)).collect();
        match computed(&**compute, &given, &buffers) {
            Ok(made) => {
                answers += 1;
                empty += usize::from(made.iter().any(Vec::is_empty));
                assert!(made.iter().flatten().all(|x| x.is_finite()), "{name} leaves out elements of {shapes:?}");
            }
            Err(fault) => {
                faults += 1;
                assert!(!fault.0.is_empty(), "{name} of {shapes:?}");
            }
        }
    }
    assert!(faults > 1_000 && answers > 1_000 && empty > 100, "{faults} faults, {answers} answers, {empty} empty");
}

#[test]
fn windows_that_make_no_sense_are_refused() {
    let said = |kernel: &[i64], strides: &[i64], dilations: &[i64], pads: &[i64]| {
        window(kernel, strides, dilations, pads).err().map(|fault| fault.0).unwrap_or_default()
    };
    assert!(said(&[], &[], &[], &[]).contains("0 spatial axes"));
    assert!(said(&[1, 1, 1], &[1; 3], &[1; 3], &[0; 6]).contains("3 spatial axes"));
    assert!(said(&[0, 1], &[1, 1], &[1, 1], &[0; 4]).contains("kernel_shape"));
    assert!(said(&[2, 2], &[1], &[1, 1], &[0; 4]).contains("strides"));
    assert!(said(&[2, 2], &[0, 1], &[1, 1], &[0; 4]).contains("strides"));
    assert!(said(&[2, 2], &[1, 1], &[-1, 1], &[0; 4]).contains("dilations"));
    assert!(said(&[2, 2], &[1, 1], &[1, 1], &[0; 3]).contains("3 pads"));
    assert!(said(&[2, 2], &[1, 1], &[1, 1], &[0, -1, 0, 0]).contains("pads"));
    assert!(said(&[i64::MAX, 2], &[1, 1], &[1, 1], &[0; 4]).contains("kernel_shape"));
    assert!(Window::of(|_| None).is_err());
    // Pads alone don't make it take all memory.
    let far = window(&[1, 1], &[1, 1], &[1, 1], &[1 << 20, 1 << 20, 1 << 20, 1 << 20]).unwrap();
    assert!(far.output([1, 1, 2, 2]).unwrap_err().0.contains("padded picture"));
}

fn pooled(kernel: i64, stride: i64, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let pool = MaxPool(window(&[kernel], &[stride], &[1], &[0, 0]).unwrap());
    let given = vec![(vec![1, 1, dy.len()], dy.to_vec()), (vec![1, 1, x.len()], x.to_vec())];
    computed(&pool, &given, &Buffers::default()).unwrap().remove(0)
}

#[test]
fn a_pools_gradient_is_given_once_whatever_the_window_holds() {
    let (nan, low) = (f32::NAN, f32::NEG_INFINITY);
    // Of equal ones the first.
    assert_eq!(pooled(2, 2, &[1.0, 1.0, 0.0, 0.0], &[3.0, 5.0]), [3.0, 0.0, 5.0, 0.0]);
    assert_eq!(pooled(2, 1, &[1.0, 2.0, 2.0], &[3.0, 5.0]), [0.0, 8.0, 0.0]);
    assert_eq!(pooled(2, 2, &[low, low, low, 0.0], &[3.0, 5.0]), [3.0, 0.0, 0.0, 5.0]);
    // The last window reaches beyond.
    assert_eq!(pooled(2, 2, &[1.0, 2.0, 3.0], &[3.0, 5.0]), [0.0, 3.0, 5.0]);
    for x in [[nan, nan], [nan, 1.0], [1.0, nan], [low, nan]] {
        let dx = pooled(2, 2, &x, &[3.0]);
        assert_eq!(dx.iter().sum::<f32>(), 3.0, "{x:?} gives {dx:?}");
    }
}
