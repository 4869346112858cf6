//! Prints what each pipeline costs and loses on an update of a million
//! normally distributed elements, one part of `[1000, 1000]`; best of several
//! runs. (Noise is PowerSGD's worst case: a real update is nearer to a low rank.)
//!
//! `cargo run --release -p tierline-codec --example updates`

use std::time::{Duration, Instant};

use tierline_codec::update::{Pipeline, decode_into};

const PIPELINES: [&[&str]; 16] = [
    &[],
    &["zstd"],
    &["fp16"],
    &["fp16", "zstd"],
    &["int8"],
    &["int8", "zstd"],
    &["int4"],
    &["int4", "zstd"],
    &["qsgd:4"],
    &["qsgd:3", "zstd"],
    &["sign"],
    &["random:0.01", "int8"],
    &["topk:0.01", "int8"],
    &["topk:0.01", "int8", "zstd"],
    &["topk:0.001", "sign", "zstd"],
    &["powersgd:4", "int8"],
];

const RUNS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shapes = [vec![1_000, 1_000]];
    let vector = normal(1_000_000);
    println!(
        "{:<22} {:>9} {:>8} {:>10} {:>10} {:>10}",
        "pipeline", "bytes", "times", "error", "encode ms", "decode ms"
    );
    for stages in PIPELINES {
        let pipeline = Pipeline::parse(stages)?;
        let (mut bytes, mut decoded) = (Vec::new(), vec![0.0; vector.len()]);
        let (mut encode, mut decode) = (Duration::MAX, Duration::MAX);
        for _ in 0..RUNS {
            bytes.clear();
            let start = Instant::now();
            pipeline.encode(&vector, &shapes, 1, &mut bytes)?;
            encode = encode.min(start.elapsed());
            let start = Instant::now();
            decode_into(&bytes, &shapes, &mut decoded)?;
            decode = decode.min(start.elapsed());
        }
        println!(
            "{:<22} {:>9} {:>8.1} {:>10.4} {:>10.2} {:>10.2}",
            if stages.is_empty() { "f32".to_owned() } else { pipeline.stages().join(" ") },
            bytes.len(),
            (vector.len() * 4) as f64 / bytes.len() as f64,
            relative_error(&vector, &decoded),
            encode.as_secs_f64() * 1e3,
            decode.as_secs_f64() * 1e3,
        );
    }
    Ok(())
}

/// By Box and Muller, with a spread like an update's.
fn normal(count: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut draw = || {
        let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * rng.f64()).cos() * 1e-3) as f32
    };
    (0..count).map(|_| draw()).collect()
}

/// In L2, relative to what was given.
fn relative_error(given: &[f32], got: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let error: f64 = given.iter().zip(got).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (error / given.iter().map(|v| square((*v).into())).sum::<f64>()).sqrt()
}
