//! Small networks for quick tests.

use tierline_graph::{DataType, Model};

use crate::build::{Attribute, Builder, Conv, Value};
use crate::{Bn, Options};

/// A perceptron 784-128-10: 101,770 parameters.
///
/// `input` f32 `[batch, 784]` to `logits` f32 `[batch, 10]`.
#[must_use]
pub fn mlp(options: &Options) -> Model {
    let batch = options.batch;
    let mut b = Builder::new("mlp", options.seed);
    let x = b.input("input", DataType::F32, &format!("{batch} 784"));
    let x = b.gemm(&x, 128);
    let x = b.op("Relu", &[&x], &[]);
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, &format!("{batch} 10"));
    b.build()
}

/// LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: 61,706 parameters.
///
/// `input` f32 `[batch, 1, 28, 28]` to `logits` f32 `[batch, 10]`.
#[must_use]
pub fn lenet(options: &Options) -> Model {
    let batch = options.batch;
    let mut b = Builder::new("lenet", options.seed);
    let x = b.input("input", DataType::F32, &format!("{batch} 1 28 28"));
    let x = conv_pool(&mut b, &x, Conv::same(6, 5));
    let x = conv_pool(&mut b, &x, Conv { pad: 0, ..Conv::same(16, 5) });
    let x = Value { width: 400, ..b.op("Flatten", &[&x], &[("axis", Attribute::Int(1))]) };
    let x = b.gemm(&x, 120);
    let x = b.op("Relu", &[&x], &[]);
    let x = b.gemm(&x, 84);
    let x = b.op("Relu", &[&x], &[]);
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, &format!("{batch} 10"));
    b.build()
}

fn conv_pool(b: &mut Builder, x: &Value, conv: Conv) -> Value {
    let y = b.conv(x, conv, Bn::Folded);
    let y = b.op("Relu", &[&y], &[]);
    let two = || Attribute::Ints(vec![2, 2]);
    b.op("MaxPool", &[&y], &[("kernel_shape", two()), ("strides", two())])
}

/// Two LSTM layers over a sequence of 32 features, and a classifier on the
/// last step: 59,018 parameters.
///
/// `input` f32 `[sequence, batch, 32]` to `logits` f32 `[batch, 10]`.
#[must_use]
pub fn lstm(options: &Options) -> Model {
    const HIDDEN: u64 = 64;
    let batch = options.batch;
    let mut b = Builder::new("lstm", options.seed);
    let mut x = b.input("input", DataType::F32, &format!("sequence {batch} 32"));
    let mut last = x.clone();
    for _ in 0..2 {
        let deviation = (1.0 / HIDDEN as f32).sqrt();
        let input = b.weights(&[1, 4 * HIDDEN, x.width], deviation);
        let state = b.weights(&[1, 4 * HIDDEN, HIDDEN], deviation);
        let bias = b.weights(&[1, 8 * HIDDEN], 0.02);
        let size = [("hidden_size", Attribute::Int(HIDDEN as i64))];
        let ends = b.node("LSTM", &[&x, &input, &state, &bias], 2, &size);
        let [steps, end] = [0, 1].map(|i| Value { name: ends[i].clone(), width: HIDDEN });
        // [sequence, directions, batch, hidden]: there is one direction.
        let axis = b.ints(&[1]);
        x = b.op("Squeeze", &[&steps, &axis], &[]);
        last = end;
    }
    let axis = b.ints(&[0]);
    let y = b.op("Squeeze", &[&last, &axis], &[]);
    let y = b.gemm(&y, 10);
    b.output("logits", &y, DataType::F32, &format!("{batch} 10"));
    b.build()
}
