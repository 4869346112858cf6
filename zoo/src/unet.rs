//! A small U-Net (Ronneberger et al., 2015): its skips make every frontier in
//! the middle several tensors wide.

use tierline_graph::{DataType, Model};

use crate::Options;
use crate::build::{Attribute, Builder, Conv, Value};

/// Channels of each level, the deepest last.
const LEVELS: [u64; 4] = [16, 32, 64, 128];

/// A U-Net of four levels.
///
/// `input` f32 `[batch, 3, 128, 128]` to `mask` f32 `[batch, 2, 128, 128]`;
/// the size must be a multiple of 8.
#[must_use]
pub fn unet_small(options: &Options) -> Model {
    let (size, batch) = (options.image.unwrap_or(128), options.batch);
    let mut b = Builder::new("unet_small", options.seed);
    let mut x = b.input("input", DataType::F32, &format!("{batch} 3 {size} {size}"));
    let mut skips = Vec::new();
    let two = || Attribute::Ints(vec![2, 2]);
    for (level, &channels) in LEVELS.iter().enumerate() {
        if level > 0 {
            skips.push(x.clone());
            x = b.op("MaxPool", &[&x], &[("kernel_shape", two()), ("strides", two())]);
        }
        x = double_conv(&mut b, &x, channels, options);
    }
    for skip in skips.iter().rev() {
        let weight = b.weights(&[x.width, skip.width, 2, 2], (1.0 / x.width as f32).sqrt());
        let bias = b.weights(&[skip.width], 0.02);
        let up = b.op("ConvTranspose", &[&x, &weight, &bias], &[("kernel_shape", two()), ("strides", two())]);
        let joined = b.op("Concat", &[skip, &up], &[("axis", Attribute::Int(1))]);
        x = double_conv(&mut b, &Value { width: skip.width * 2, ..joined }, skip.width, options);
    }
    let y = b.conv(&x, Conv::same(2, 1), crate::Bn::Folded);
    b.output("mask", &y, DataType::F32, &format!("{batch} 2 {size} {size}"));
    b.build()
}

fn double_conv(b: &mut Builder, x: &Value, channels: u64, options: &Options) -> Value {
    let mut y = x.clone();
    for _ in 0..2 {
        y = b.conv(&y, Conv::same(channels, 3), options.bn);
        y = b.op("Relu", &[&y], &[]);
    }
    y
}
