//! ResNet (He et al., 2015), with torchvision's layer shapes: in bottlenecks
//! the 3x3 convolution takes the stride.

use tierline_graph::{DataType, Model};

use crate::build::{Attribute, Builder, Conv, Value};
use crate::{Bn, Options};

/// Channels of the four stages.
const STAGES: [u64; 4] = [64, 128, 256, 512];

/// What a residual branch is scaled by, so that sums of many stay small.
const BRANCH_GAIN: f32 = 0.3;

/// ResNet-18: 11.69 M parameters, 1.81 G multiply-adds at 224.
///
/// `input` f32 `[batch, 3, 224, 224]` to `logits` f32 `[batch, 1000]`.
#[must_use]
pub fn resnet18(options: &Options) -> Model {
    resnet("resnet18", [2, 2, 2, 2], basic, options)
}

/// ResNet-50: 25.56 M parameters, 4.09 G multiply-adds at 224.
///
/// `input` f32 `[batch, 3, 224, 224]` to `logits` f32 `[batch, 1000]`.
#[must_use]
pub fn resnet50(options: &Options) -> Model {
    resnet("resnet50", [3, 4, 6, 3], bottleneck, options)
}

/// ResNet-18 as it is used on small pictures: a 3x3 convolution in front, no
/// pooling, batch normalisation kept: 11.17 M parameters.
///
/// `input` f32 `[batch, 3, 32, 32]` to `logits` f32 `[batch, 10]`.
#[must_use]
pub fn resnet18_small(options: &Options) -> Model {
    let options = &Options { bn: Bn::Kept, ..options.clone() };
    let (size, batch) = (options.image.unwrap_or(32), options.batch);
    let mut b = Builder::new("resnet18_small", options.seed);
    let x = b.input("input", DataType::F32, &format!("{batch} 3 {size} {size}"));
    let x = b.conv(&x, Conv::same(64, 3), options.bn);
    let x = b.op("Relu", &[&x], &[]);
    let x = stages(&mut b, x, [2, 2, 2, 2], basic, options);
    let x = b.pool_to_vector(&x);
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, &format!("{batch} 10"));
    b.build()
}

type Branch = fn(&mut Builder, &Value, u64, u64, &Options) -> Value;

fn resnet(name: &str, blocks: [u64; 4], branch: Branch, options: &Options) -> Model {
    let (size, batch) = (options.image.unwrap_or(224), options.batch);
    let mut b = Builder::new(name, options.seed);
    let x = b.input("input", DataType::F32, &format!("{batch} 3 {size} {size}"));
    let x = b.conv(&x, Conv::same(64, 7).stride(2), options.bn);
    let x = b.op("Relu", &[&x], &[]);
    let square = |n: i64, times: usize| Attribute::Ints(vec![n; times]);
    let pool = [("kernel_shape", square(3, 2)), ("pads", square(1, 4)), ("strides", square(2, 2))];
    let x = b.op("MaxPool", &[&x], &pool);
    let x = stages(&mut b, x, blocks, branch, options);
    let x = b.pool_to_vector(&x);
    let x = b.gemm(&x, 1000);
    b.output("logits", &x, DataType::F32, &format!("{batch} 1000"));
    b.build()
}

fn stages(b: &mut Builder, mut x: Value, blocks: [u64; 4], branch: Branch, options: &Options) -> Value {
    for (stage, (&channels, &repeats)) in STAGES.iter().zip(&blocks).enumerate() {
        for i in 0..repeats {
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            let y = branch(b, &x, channels, stride, options);
            if stride != 1 || x.width != y.width {
                x = b.conv(&x, Conv::same(y.width, 1).stride(stride).gain(0.7), options.bn);
            }
            let sum = b.op("Add", &[&y, &x], &[]);
            x = b.op("Relu", &[&sum], &[]);
        }
    }
    x
}

fn basic(b: &mut Builder, x: &Value, channels: u64, stride: u64, options: &Options) -> Value {
    let y = b.conv(x, Conv::same(channels, 3).stride(stride), options.bn);
    let y = b.op("Relu", &[&y], &[]);
    b.conv(&y, Conv::same(channels, 3).gain(BRANCH_GAIN), options.bn)
}

fn bottleneck(b: &mut Builder, x: &Value, channels: u64, stride: u64, options: &Options) -> Value {
    let y = b.conv(x, Conv::same(channels, 1), options.bn);
    let y = b.op("Relu", &[&y], &[]);
    let y = b.conv(&y, Conv::same(channels, 3).stride(stride), options.bn);
    let y = b.op("Relu", &[&y], &[]);
    b.conv(&y, Conv::same(channels * 4, 1).gain(BRANCH_GAIN), options.bn)
}
