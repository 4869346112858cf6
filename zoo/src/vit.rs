//! Vision transformer (Dosovitskiy et al., 2020), the tiny one with patches
//! of 16x16 (Touvron et al., 2020).

use tierline_graph::{DataType, Model};

use crate::build::{Attribute, Builder, Conv, Value};
use crate::{Bn, Options};

const WIDTH: u64 = 192;
const HEADS: u64 = 3;
const LAYERS: usize = 12;
const PATCH: u64 = 16;

/// ViT-tiny/16: 5.72 M parameters, 1.26 G multiply-adds at 224.
///
/// `input` f32 `[batch, 3, 224, 224]` to `logits` f32 `[batch, 1000]`.
#[must_use]
pub fn vit_tiny(options: &Options) -> Model {
    let (size, batch) = (options.image.unwrap_or(224), options.batch);
    let patches = (size / PATCH) * (size / PATCH);
    let mut b = Builder::new("vit_tiny", options.seed);
    let x = b.input("input", DataType::F32, &format!("{batch} 3 {size} {size}"));
    let embed = Conv { out: WIDTH, kernel: PATCH, stride: PATCH, pad: 0, groups: 1, gain: 0.7 };
    let y = b.conv(&x, embed, Bn::Folded);
    let y = b.reshape(&y, &[0, WIDTH as i64, -1]);
    let y = Value { width: WIDTH, ..b.transpose(&y, &[0, 2, 1]) };

    // One class token per picture of the batch, whose size may be free.
    let token = b.weights(&[1, 1, WIDTH], 0.02);
    let (sizes, zero) = (b.op("Shape", &[&y], &[]), b.ints(&[0]));
    let size = b.op("Gather", &[&sizes, &zero], &[]);
    let rest = b.ints(&[1, 1]);
    let shape = b.op("Concat", &[&size, &rest], &[("axis", Attribute::Int(0))]);
    let token = Value { width: WIDTH, ..b.op("Expand", &[&token, &shape], &[]) };
    let y = b.op("Concat", &[&token, &y], &[("axis", Attribute::Int(1))]);
    let positions = b.weights(&[1, patches + 1, WIDTH], 0.02);
    let mut y = b.op("Add", &[&y, &positions], &[]);

    for _ in 0..LAYERS {
        let z = b.layer_norm(&y, 1e-6);
        let z = attention(&mut b, &z);
        y = b.op("Add", &[&y, &z], &[]);
        let z = b.layer_norm(&y, 1e-6);
        let z = b.linear(&z, WIDTH * 4);
        let z = b.gelu(&z);
        let z = b.linear(&z, WIDTH);
        y = b.op("Add", &[&y, &z], &[]);
    }
    let y = b.layer_norm(&y, 1e-6);
    let first = b.constant(&crate::build::tensor(&[], tierline_graph::Elements::I64(vec![0])));
    let y = b.op("Gather", &[&y, &first], &[("axis", Attribute::Int(1))]);
    let y = b.gemm(&y, 1000);
    b.output("logits", &y, DataType::F32, &format!("{batch} 1000"));
    b.build()
}

/// Query, key and value from one product, split by Gather.
fn attention(b: &mut Builder, x: &Value) -> Value {
    let head = WIDTH / HEADS;
    let all = b.linear(x, WIDTH * 3);
    let all = b.reshape(&all, &[0, -1, 3, HEADS as i64, head as i64]);
    let all = b.transpose(&all, &[2, 0, 3, 1, 4]);
    let [q, k, v] = [0, 1, 2].map(|i| {
        let index = b.constant(&crate::build::tensor(&[], tierline_graph::Elements::I64(vec![i])));
        b.op("Gather", &[&all, &index], &[("axis", Attribute::Int(0))])
    });
    let scale = b.scalar((head as f32).sqrt().recip());
    let q = b.op("Mul", &[&q, &scale], &[]);
    let k = b.transpose(&k, &[0, 1, 3, 2]);
    let scores = b.op("MatMul", &[&q, &k], &[]);
    let scores = b.op("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    let y = b.op("MatMul", &[&scores, &v], &[]);
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    let y = b.reshape(&y, &[0, -1, WIDTH as i64]);
    b.linear(&y, WIDTH)
}
