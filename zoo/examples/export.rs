//! Writes an architecture as an ONNX file:
//! `cargo run -p tierline-zoo --example export -- mobilenet_v2 out.onnx [int8|fp16|bn|free]..`

use tierline_zoo::{Batch, Bn, MODELS, Options, by_name, half, quantize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, path, variants @ ..] = &args[..] else {
        let names: Vec<&str> = MODELS.iter().map(|(name, _)| *name).collect();
        return Err(format!("usage: export NAME FILE [int8|fp16|bn|free]..\nnames: {}", names.join(", ")).into());
    };
    let has = |variant: &str| variants.iter().any(|v| v == variant);
    let options = Options {
        bn: if has("bn") { Bn::Kept } else { Bn::Folded },
        batch: if has("free") { Batch::Free } else { Batch::Fixed(1) },
        ..Options::default()
    };
    let mut model = by_name(name, &options).ok_or_else(|| format!("no architecture `{name}`"))?;
    if has("int8") {
        model = quantize::qdq(&model);
    }
    if has("fp16") {
        model = half::fp16(&model);
    }
    std::fs::write(path, model.to_bytes()?)?;
    Ok(())
}
