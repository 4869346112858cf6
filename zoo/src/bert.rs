//! A BERT encoder (Devlin et al., 2018) in the sizes of MiniLM-L6 (Wang et
//! al., 2020), without the pooler.

use tierline_graph::{DataType, Elements, Model};

use crate::build::{Attribute, Builder, Value, tensor};
use crate::{Batch, Options};

const VOCABULARY: u64 = 30_522;
const POSITIONS: u64 = 512;
const WIDTH: u64 = 384;
const HEADS: i64 = 12;
const LAYERS: usize = 6;

/// MiniLM-L6: 22.57 M parameters.
///
/// `input_ids`, `attention_mask`, `token_type_ids`, i64 `[batch, sequence]`,
/// to `last_hidden_state` f32 `[batch, sequence, 384]`; the sequence is free,
/// at most 512. `Options::image` means nothing here.
#[must_use]
pub fn minilm(options: &Options) -> Model {
    let shape = match options.batch {
        Batch::Free => "batch sequence".to_owned(),
        Batch::Fixed(n) => format!("{n} sequence"),
    };
    let mut b = Builder::new("minilm", options.seed);
    let ids = b.input("input_ids", DataType::I64, &shape);
    let mask = b.input("attention_mask", DataType::I64, &shape);
    let types = b.input("token_type_ids", DataType::I64, &shape);

    let mut y = embeddings(&mut b, &ids, &types);
    let bias = mask_to_bias(&mut b, &mask);
    for _ in 0..LAYERS {
        let z = attention(&mut b, &y, &bias);
        let z = b.op("Add", &[&z, &y], &[]);
        let x = b.layer_norm(&z, 1e-12);
        let z = b.linear(&x, WIDTH * 4);
        let z = b.gelu(&z);
        let z = b.linear(&z, WIDTH);
        let z = b.op("Add", &[&z, &x], &[]);
        y = b.layer_norm(&z, 1e-12);
    }
    b.output("last_hidden_state", &y, DataType::F32, &format!("{shape} {WIDTH}"));
    b.build()
}

/// Words, kinds of token and positions, summed and normalised.
fn embeddings(b: &mut Builder, ids: &Value, types: &Value) -> Value {
    let rows = |b: &mut Builder, count: u64, index: &Value| {
        let table = b.weights(&[count, WIDTH], 0.05);
        b.op("Gather", &[&table, index], &[])
    };
    let words = rows(b, VOCABULARY, ids);
    let kinds = rows(b, 2, types);
    // The first `sequence` positions.
    let all = b.constant(&tensor(&[1, POSITIONS], Elements::I64((0..POSITIONS as i64).collect())));
    let sizes = b.op("Shape", &[ids], &[]);
    let one = b.ints(&[1]);
    let length = b.op("Gather", &[&sizes, &one], &[]);
    let zero = b.ints(&[0]);
    let used = b.op("Slice", &[&all, &zero, &length, &one], &[]);
    let places = rows(b, POSITIONS, &used);
    let y = b.op("Add", &[&words, &kinds], &[]);
    let y = b.op("Add", &[&y, &places], &[]);
    b.layer_norm(&y, 1e-12)
}

/// `[batch, sequence]` of 0 and 1 to `[batch, 1, 1, sequence]` of -3.4e38 and 0.
fn mask_to_bias(b: &mut Builder, mask: &Value) -> Value {
    let axes = b.ints(&[1, 2]);
    let y = b.op("Unsqueeze", &[mask, &axes], &[]);
    let y = b.op("Cast", &[&y], &[("to", Attribute::Int(i64::from(DataType::F32.to_onnx())))]);
    let [one, lowest] = [1.0, f32::MIN].map(|c| b.scalar(c));
    let y = b.op("Sub", &[&one, &y], &[]);
    b.op("Mul", &[&y, &lowest], &[])
}

fn attention(b: &mut Builder, x: &Value, bias: &Value) -> Value {
    let head = WIDTH as i64 / HEADS;
    let heads = |b: &mut Builder, axes: &[i64]| {
        let y = b.linear(x, WIDTH);
        let y = b.reshape(&y, &[0, 0, HEADS, head]);
        b.transpose(&y, axes)
    };
    let q = heads(b, &[0, 2, 1, 3]);
    let k = heads(b, &[0, 2, 3, 1]);
    let v = heads(b, &[0, 2, 1, 3]);
    let scores = b.op("MatMul", &[&q, &k], &[]);
    let root = b.scalar((head as f32).sqrt());
    let scores = b.op("Div", &[&scores, &root], &[]);
    let scores = b.op("Add", &[&scores, bias], &[]);
    let scores = b.op("Softmax", &[&scores], &[("axis", Attribute::Int(-1))]);
    let y = b.op("MatMul", &[&scores, &v], &[]);
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    let y = b.reshape(&y, &[0, 0, WIDTH as i64]);
    b.linear(&y, WIDTH)
}
