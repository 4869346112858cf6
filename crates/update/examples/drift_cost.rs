//! What watching costs: time of one example, of each detector and of a window
//! along a reference.
//!
//!     cargo run --release -p tierline-update --example drift_cost

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tierline_update::drift::random::Random;
use tierline_update::drift::stream::{Detector, Method};
use tierline_update::drift::{Answer, Builder, Example, Options, Settings, Window};

/// Numbers, or examples, that are timed at once: short enough that other work
/// on the machine rarely falls between.
const NUMBERS: usize = 1_000;
const EXAMPLES: usize = 50;

fn main() {
    let mut random = Random::new(1);
    let errors: Vec<f64> = (0..NUMBERS).map(|_| f64::from(u8::from(random.uniform() < 0.1))).collect();
    println!("one number, median of 201");
    for name in Method::NAMES {
        let method: Method = name.parse().expect("a method's own name");
        let mut detector = Detector::new(&method, 1).expect("default options");
        let ns = median(|| {
            let begin = Instant::now();
            for &x in &errors {
                let _ = black_box(detector.update(x));
            }
            begin.elapsed().as_nanos() as f64 / NUMBERS as f64
        });
        println!("  {name:<14}{ns:>9.0} ns");
    }
    println!("one example of 10 classes, median of 201");
    for (features, frequencies) in [(10, 0), (10, 64), (64, 0), (64, 64), (1_280, 64)] {
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal() as f32).collect() };
        let examples: Vec<(Vec<f32>, Vec<f32>)> = (0..2_000).map(|_| (draw(features), draw(10))).collect();
        let mut builder =
            Builder::new(Settings { frequencies, ..Settings::of(features, 10) }).expect("sizes within bounds");
        for (features, scores) in &examples {
            builder.push(&Example { features, answer: Answer::of(scores), right: None });
        }
        let reference = Arc::new(builder.finish().expect("finite numbers"));
        let bytes = reference.write().len();
        let mut window = Window::new(reference);
        let mut chunks = examples.chunks(EXAMPLES).cycle();
        let push = median(|| {
            let chunk = chunks.next().unwrap_or_default();
            let begin = Instant::now();
            for (features, scores) in chunk {
                window.push(&Example { features, answer: Answer::of(scores), right: None });
            }
            begin.elapsed().as_nanos() as f64 / EXAMPLES as f64
        });
        let report = median(|| {
            let begin = Instant::now();
            black_box(window.report(&Options::default()));
            begin.elapsed().as_nanos() as f64
        });
        println!(
            "  {features:>5} features, {frequencies:>2} frequencies {push:>9.0} ns; a report {:>8.0} us; the reference {bytes} bytes",
            report / 1_000.0
        );
    }
}

fn median(mut once: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = (0..201).map(|_| once()).collect();
    all.sort_by(f64::total_cmp);
    all[100]
}
