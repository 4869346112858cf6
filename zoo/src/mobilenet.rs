//! MobileNetV2 (Sandler et al., 2018), with torchvision's layer shapes.

use tierline_graph::{DataType, Model};

use crate::Options;
use crate::build::{Builder, Conv, Value};

/// Expansion, channels, repeats and first stride of each group of blocks
/// (table 2 of the paper).
const GROUPS: &[(u64, u64, u64, u64)] =
    &[(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];

/// MobileNetV2: 3.50 M parameters, 0.30 G multiply-adds at 224.
///
/// `input` f32 `[batch, 3, 224, 224]` to `logits` f32 `[batch, 1000]`.
#[must_use]
pub fn mobilenet_v2(options: &Options) -> Model {
    let (size, batch) = (options.image.unwrap_or(224), options.batch);
    let mut b = Builder::new("mobilenet_v2", options.seed);
    let x = b.input("input", DataType::F32, &format!("{batch} 3 {size} {size}"));
    let mut x = layer(&mut b, &x, Conv::same(32, 3).stride(2), options);
    for &(expansion, out, repeats, stride) in GROUPS {
        for i in 0..repeats {
            x = block(&mut b, &x, expansion, out, if i == 0 { stride } else { 1 }, options);
        }
    }
    let x = layer(&mut b, &x, Conv::same(1280, 1), options);
    let x = b.pool_to_vector(&x);
    let x = b.gemm(&x, 1000);
    b.output("logits", &x, DataType::F32, &format!("{batch} 1000"));
    b.build()
}

/// Inverted residual: widen, filter each channel, narrow; add where shapes allow.
fn block(b: &mut Builder, x: &Value, expansion: u64, out: u64, stride: u64, options: &Options) -> Value {
    let hidden = x.width * expansion;
    let mut y = x.clone();
    if expansion != 1 {
        y = layer(b, &y, Conv::same(hidden, 1), options);
    }
    y = layer(b, &y, Conv::same(hidden, 3).stride(stride).groups(hidden), options);
    let adds = stride == 1 && x.width == out;
    y = b.conv(&y, Conv::same(out, 1).gain(if adds { 0.5 } else { 1.0 }), options.bn);
    if adds { b.op("Add", &[x, &y], &[]) } else { y }
}

/// Convolution, normalisation, ReLU6.
fn layer(b: &mut Builder, x: &Value, conv: Conv, options: &Options) -> Value {
    let y = b.conv(x, conv, options.bn);
    let [low, high] = [0.0, 6.0].map(|c| b.scalar(c));
    b.op("Clip", &[&y, &low, &high], &[])
}
