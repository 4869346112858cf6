//! Prints what each codec costs and loses on a tensor like those at a cut:
//! `[1, 96, 56, 56]`, half zeros after a ReLU, the rest smooth with noise.
//!
//! `cargo run --release -p tierline-codec --example codecs`

use std::time::Duration;

use tierline_codec::{codecs, measure};
use tierline_graph::{Elements, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shape = [1, 96, 56, 56];
    let mut state = 1u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let count = shape.iter().product::<usize>();
    let values = (0..count).map(|i| ((i as f32 / 40.0).sin() + noise()).max(0.0)).collect();
    let tensor = Tensor::new(shape, Elements::F32(values))?;
    println!(
        "{:<8} {:>9} {:>12} {:>12} {:>11} {:>12}",
        "codec", "bytes", "encode ns", "decode ns", "max abs", "relative rms"
    );
    for codec in codecs() {
        let m = measure(*codec, &tensor, Duration::from_millis(300))?;
        let name = codec.name();
        println!(
            "{name:<8} {:>9} {:>12} {:>12} {:>11.2e} {:>12.2e}",
            m.bytes, m.encode_ns, m.decode_ns, m.loss.max_abs, m.loss.relative_rms
        );
    }
    Ok(())
}
