//! How fast updates are added, beside a plain copy of the same bytes:
//! `cargo run --release -p tierline-federate --example sums [elements]`

use std::hint::black_box;
use std::time::Instant;

use tierline_federate::ExactSum;

/// Best of some runs, in seconds: what disturbs a run only makes it longer.
fn best(mut run: impl FnMut()) -> f64 {
    (0..20)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::MAX, f64::min)
}

fn main() {
    let elements: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let vector: Vec<f32> = (0..elements).map(|i| (i % 1_000) as f32 * 1e-3 - 0.5).collect();
    let mut copy = vec![0f32; elements];
    let copied = best(|| black_box(&mut copy).copy_from_slice(black_box(&vector)));
    let mut sum = ExactSum::new(elements);
    let added = best(|| sum.add(black_box(3.0), black_box(&vector)).expect("finite and small"));
    // Read and written: four bytes each way for a copy; an update of four and
    // two sums of eight, there and back, for an addition.
    let copy_rate = 8.0 * elements as f64 / copied;
    let sum_rate = 36.0 * elements as f64 / added;
    println!("{elements} elements");
    println!("copy      {:>8.2} ms  {:>6.2} GB/s", copied * 1e3, copy_rate / 1e9);
    println!(
        "addition  {:>8.2} ms  {:>6.2} GB/s, {:.2} of the copy's",
        added * 1e3,
        sum_rate / 1e9,
        sum_rate / copy_rate
    );
}
