//! Networks for pictures of 28 by 28: one with an early exit behind a tensor
//! that is small on the wire, one that is small altogether.

use anyhow::Result;
use tierline_graph::exits::{Exit, Exits};
use tierline_graph::{DataType, Model};
use tierline_zoo::Bn;
use tierline_zoo::build::{Attribute, Builder, Conv, Value};

/// The input of both, the model's end, and the exit.
pub const INPUT: &str = "input";
pub const END: &str = "logits";
pub const EARLY: &str = "early";

/// A tenth of its multiply-adds lead to 8 maps of 7 by 7, which an exit reads;
/// half as many values as a picture has.
pub fn large(seed: u64) -> Result<Model> {
    let mut b = Builder::new("large", seed);
    let x = b.input(INPUT, DataType::F32, "batch 1 28 28");
    let x = layer(&mut b, &x, Conv::same(12, 5).stride(2));
    let x = layer(&mut b, &x, Conv::same(16, 3).stride(2));
    let x = layer(&mut b, &x, Conv::same(8, 1));
    let head = flat(&mut b, &x, 8 * 7 * 7);
    let head = b.gemm(&head, 64);
    let head = b.op("Relu", &[&head], &[]);
    let head = b.gemm(&head, 10);
    let x = layer(&mut b, &x, Conv::same(32, 3));
    let x = layer(&mut b, &x, Conv::same(64, 3));
    let x = layer(&mut b, &x, Conv::same(48, 3));
    let x = pooled(&mut b, &x);
    let x = flat(&mut b, &x, 48 * 3 * 3);
    let x = b.gemm(&x, 96);
    let x = b.op("Relu", &[&x], &[]);
    let x = b.gemm(&x, 10);
    b.output(EARLY, &head, DataType::F32, "batch 10");
    b.output(END, &x, DataType::F32, "batch 10");
    let outputs = [(END.to_owned(), EARLY.to_owned())].into();
    let exits = Exits { exits: vec![Exit { outputs, sureness: None, rule: None }], axis: -1, ..Exits::default() };
    Ok(exits.write(&b.build())?)
}

/// A fiftieth of the large one's multiply-adds.
pub fn small(seed: u64) -> Model {
    let mut b = Builder::new("small", seed);
    let x = b.input(INPUT, DataType::F32, "batch 1 28 28");
    let x = layer(&mut b, &x, Conv::same(6, 5).stride(2));
    let x = pooled(&mut b, &x);
    let x = flat(&mut b, &x, 6 * 7 * 7);
    let x = b.gemm(&x, 32);
    let x = b.op("Relu", &[&x], &[]);
    let x = b.gemm(&x, 10);
    b.output(END, &x, DataType::F32, "batch 10");
    b.build()
}

fn layer(b: &mut Builder, x: &Value, conv: Conv) -> Value {
    let x = b.conv(x, conv, Bn::Kept);
    b.op("Relu", &[&x], &[])
}

fn pooled(b: &mut Builder, x: &Value) -> Value {
    let two = || Attribute::Ints(vec![2, 2]);
    b.op("MaxPool", &[x], &[("kernel_shape", two()), ("strides", two())])
}

fn flat(b: &mut Builder, x: &Value, width: u64) -> Value {
    Value { width, ..b.op("Flatten", &[x], &[("axis", Attribute::Int(1))]) }
}
