//! Architectures in the sizes at which training is measured.

use tierline_graph::{DataType, Model};

use crate::build::{Attribute, Builder, Value};
use crate::{Bn, Options};

/// Words that [`text_classifier`] knows.
const VOCABULARY: u64 = 1_000;

/// Words of one text.
const WORDS: u64 = 64;

const WIDTH: u64 = 128;
const HEADS: i64 = 4;

/// A perceptron 784-512-512-10: 669,706 parameters.
///
/// `input` f32 `[batch, 784]` to `logits` f32 `[batch, 10]`.
#[must_use]
pub fn mlp_wide(options: &Options) -> Model {
    let batch = options.batch;
    let mut b = Builder::new("mlp_wide", options.seed);
    let mut x = b.input("input", DataType::F32, &format!("{batch} 784"));
    for width in [512, 512] {
        x = b.gemm(&x, width);
        x = b.op("Relu", &[&x], &[]);
    }
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, &format!("{batch} 10"));
    b.build()
}

/// MobileNetV2 on pictures of 64 by 64 unless said otherwise, its batch
/// normalisation kept.
#[must_use]
pub fn mobilenet_v2_small(options: &Options) -> Model {
    crate::mobilenet_v2(&Options { image: options.image.or(Some(64)), bn: Bn::Kept, ..options.clone() })
}

/// A transformer encoder with four layers of width 128, normalised before each
/// branch, and a classifier on the mean of its words: 922,762 parameters.
///
/// `input` i64 `[batch, 64]` (words below 1,000) to `logits` f32 `[batch, 10]`.
#[must_use]
pub fn text_classifier(options: &Options) -> Model {
    let batch = options.batch;
    let mut b = Builder::new("text_classifier", options.seed);
    let ids = b.input("input", DataType::I64, &format!("{batch} {WORDS}"));
    let table = b.weights(&[VOCABULARY, WIDTH], 0.05);
    let places = b.weights(&[WORDS, WIDTH], 0.05);
    let x = b.op("Gather", &[&table, &ids], &[]);
    let mut x = Value { width: WIDTH, ..b.op("Add", &[&x, &places], &[]) };
    for _ in 0..4 {
        let y = b.layer_norm(&x, 1e-5);
        let y = attention(&mut b, &y);
        x = b.op("Add", &[&x, &y], &[]);
        let y = b.layer_norm(&x, 1e-5);
        let y = b.linear(&y, WIDTH * 4);
        let y = b.gelu(&y);
        let y = b.linear(&y, WIDTH);
        x = b.op("Add", &[&x, &y], &[]);
    }
    let x = b.layer_norm(&x, 1e-5);
    let keep = [("axes", Attribute::Ints(vec![1])), ("keepdims", Attribute::Int(0))];
    let x = Value { width: WIDTH, ..b.op("ReduceMean", &[&x], &keep) };
    let x = b.gemm(&x, 10);
    b.output("logits", &x, DataType::F32, &format!("{batch} 10"));
    b.build()
}

fn attention(b: &mut Builder, x: &Value) -> Value {
    let head = WIDTH as i64 / HEADS;
    let heads = |b: &mut Builder, axes: &[i64]| {
        let y = b.linear(x, WIDTH);
        let y = b.reshape(&y, &[0, 0, HEADS, head]);
        b.transpose(&y, axes)
    };
    let q = heads(b, &[0, 2, 1, 3]);
    let k = heads(b, &[0, 2, 3, 1]);
    let v = heads(b, &[0, 2, 1, 3]);
    let root = b.scalar((head as f32).sqrt().recip());
    let q = b.op("Mul", &[&q, &root], &[]);
    let scores = b.op("MatMul", &[&q, &k], &[]);
    let scores = b.op("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    let y = b.op("MatMul", &[&scores, &v], &[]);
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    let y = b.reshape(&y, &[0, 0, WIDTH as i64]);
    b.linear(&y, WIDTH)
}
