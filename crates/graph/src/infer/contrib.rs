//! Operators of ONNX Runtime's `com.microsoft` domain that quantised and
//! fused models use.

use crate::tensor::DataType::{self, F32, I32, U8};
use crate::types::Dim;

use super::dims::{self, Shape, known};
use super::elementwise::{broadcast_inputs, same};
use super::error::Fault;
use super::matmul::{multiplied, product};
use super::op::{Op, Outputs, Rule, one};
use super::value::{Scalar, Value};
use super::{conv, pool};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("FusedConv", conv::conv),
    ("NhwcFusedConv", element_type),
    ("NhwcMaxPool", max_pool),
    ("FusedMatMul", fused_matmul),
    ("TransposeMatMul", fused_matmul),
    ("FusedMatMulActivation", fused_matmul),
    ("FusedGemm", super::matmul::gemm),
    ("GemmFastGelu", fused_matmul),
    ("MatMulNBits", packed_matmul),
    ("MatMulBnb4", packed_matmul),
    ("MatMulInteger16", matmul_integer),
    ("DynamicQuantizeMatMul", float_matmul),
    ("MatMulIntegerToFloat", integer_to_float),
    ("QGemm", qgemm),
    ("QLinearConv", qlinear_conv),
    ("QLinearAdd", qlinear_binary),
    ("QLinearMul", qlinear_binary),
    ("QLinearAveragePool", qlinear_pool),
    ("QLinearGlobalAveragePool", qlinear_global),
    ("QLinearConcat", qlinear_concat),
    ("QLinearLeakyRelu", same),
    ("QLinearSigmoid", same),
    ("QLinearSoftmax", same),
    ("QLinearReduceMean", element_type),
    ("QLinearWhere", qlinear_where),
    ("Gelu", same),
    ("FastGelu", same),
    ("QuickGelu", same),
    ("BiasGelu", same),
    ("BiasAdd", same),
    ("BiasSoftmax", same),
    ("BiasDropout", same),
    ("BiasSplitGelu", halved),
    ("GroupNorm", same),
    ("SkipGroupNorm", same),
    ("LayerNormalization", same),
    ("SimplifiedLayerNormalization", same),
    ("SkipLayerNormalization", skip_norm),
    ("SkipSimplifiedLayerNormalization", skip_norm),
    ("EmbedLayerNormalization", embed),
    ("Attention", attention),
    ("QAttention", quantized_attention),
    ("MultiHeadAttention", multi_head),
    ("DecoderMaskedMultiHeadAttention", multi_head),
    ("GroupQueryAttention", grouped),
    ("SparseAttention", grouped),
    ("LongformerAttention", same),
    ("RotaryEmbedding", same),
    ("GemmaRotaryEmbedding", element_type_of_two),
    ("MoE", same),
    ("QMoE", same),
    ("GatherBlockQuantized", gather_quantized),
    ("Trilu", same),
    ("Inverse", same),
    ("ComplexMul", same),
    ("ComplexMulConj", same),
    ("CDist", distances),
    ("ExpandDims", expand_dims),
    ("Pad", super::join::pad),
    ("GridSample", super::resize::grid_sample),
    ("MaxpoolWithMask", element_type),
    ("CropAndResize", element_type),
    ("BeamSearch", sequences),
    ("GreedySearch", sequences),
    ("Sampling", sequences),
    ("WhisperBeamSearch", sequences),
];

/// Operators on ONNX Runtime's blocked layout, in models that it saved
/// optimised for one machine. Shapes depend on that machine's block.
pub(super) const BLOCKED: &[(&str, Rule)] = &[
    ("Conv", element_type),
    ("MaxPool", element_type),
    ("AveragePool", element_type),
    ("GlobalMaxPool", element_type),
    ("GlobalAveragePool", element_type),
    ("ReorderInput", element_type),
    ("ReorderOutput", reorder_output),
    ("Upsample", element_type),
];

/// The first input's element type; the shape stays unknown.
fn element_type(op: &Op) -> Outputs {
    one(Value::new(op.dtype(0), None))
}

/// Back from blocks: how many channels there are stands in the node.
fn reorder_output(op: &Op) -> Outputs {
    let channels = op.int("channels").and_then(|n| u64::try_from(n).ok()).map_or(Dim::Unknown, known);
    let mut shape = vec![Dim::Unknown; 4];
    shape[if op.flag("channels_last") { 3 } else { 1 }] = channels;
    one(Value::new(op.dtype(0), Some(shape)))
}

fn element_type_of_two(op: &Op) -> Outputs {
    Ok(vec![Value::new(op.dtype(1), None), Value::new(op.dtype(1), None)])
}

fn sequences(op: &Op) -> Outputs {
    one(Value::typed(op.dtype(0).unwrap_or(I32), None))
}

fn fused_matmul(op: &Op) -> Outputs {
    let dtype = op.same_dtype(0, 1)?;
    // Batches that are transposed too take axes apart in their own way.
    let batches = op.flag("transBatchA") || op.flag("transBatchB");
    let (Some(a), Some(b), false) = (op.shape(0), op.shape(1), batches) else { return one(Value::new(dtype, None)) };
    let flipped = |shape: &[Dim], flag: &str| {
        let mut shape = shape.to_vec();
        let rank = shape.len();
        if op.flag(flag) && rank >= 2 {
            shape.swap(rank - 1, rank - 2);
        }
        shape
    };
    one(Value::new(dtype, Some(product(0, &flipped(a, "transA"), 1, &flipped(b, "transB"))?)))
}

/// The weight is packed: its attributes say what it is.
fn packed_matmul(op: &Op) -> Outputs {
    let size = |name: &str| op.int(name).and_then(|n| u64::try_from(n).ok()).map_or(Dim::Unknown, known);
    let Some([lead @ .., inner]) = op.shape(0) else { return element_type(op) };
    if dims::meet(inner, &size("K")).is_none() {
        return Err(Fault::shapes(0, op.shape(0).unwrap_or_default(), &[size("K")], "the inner sizes differ"));
    }
    one(Value::new(op.dtype(0), Some([lead, &[size("N")]].concat())))
}

fn matmul_integer(op: &Op) -> Outputs {
    one(Value::typed(I32, multiplied(op, 0, 1)?))
}

fn float_matmul(op: &Op) -> Outputs {
    one(Value::typed(F32, multiplied(op, 0, 1)?))
}

fn integer_to_float(op: &Op) -> Outputs {
    one(Value::new(op.dtype(2), multiplied(op, 0, 1)?))
}

/// Inputs: a, its scale and zero point, b, its, c, then the output's. Without
/// the last the result is real.
fn qgemm(op: &Op) -> Outputs {
    let a = op.shape_of_rank(0, 2, "2")?;
    let b = op.shape_of_rank(3, 2, "2")?;
    let side = |s: Option<&[Dim]>, flip: &str, i: usize| {
        s.map_or(Dim::Unknown, |s| s[if op.flag(flip) { 1 - i } else { i }].clone())
    };
    let dtype = if op.input(7).is_none() { Some(F32) } else { op.dtype(8).or(op.dtype(0)) };
    one(Value::new(dtype, Some(vec![side(a, "transA", 0), side(b, "transB", 1)])))
}

fn qlinear_conv(op: &Op) -> Outputs {
    if op.flag("channels_last") { channels_last(op, conv::qlinear_conv) } else { conv::qlinear_conv(op) }
}

fn qlinear_binary(op: &Op) -> Outputs {
    one(Value::new(op.dtype(0), broadcast_inputs(op, [0, 3])?))
}

fn qlinear_where(op: &Op) -> Outputs {
    one(Value::new(op.dtype(1), broadcast_inputs(op, [0, 1, 4])?))
}

fn qlinear_pool(op: &Op) -> Outputs {
    if op.flag("channels_last") { channels_last(op, pool::pool) } else { pool::pool(op) }
}

fn qlinear_global(op: &Op) -> Outputs {
    if op.flag("channels_last") { channels_last(op, pool::global) } else { pool::global(op) }
}

fn max_pool(op: &Op) -> Outputs {
    channels_last(op, pool::pool)
}

/// A rule for channels first, applied to `[batch, spatial..., channels]`.
fn channels_last(op: &Op, rule: Rule) -> Outputs {
    let moved = op.input(0).map(|value| {
        let mut value = value.clone().forget();
        value.shape.iter_mut().filter(|s| s.len() > 2).for_each(|s| s[1..].rotate_right(1));
        value
    });
    let inputs = std::iter::once(moved.as_ref()).chain(op.inputs.iter().copied().skip(1)).collect();
    let mut outputs = rule(&Op { node: op.node, inputs, opset: op.opset, env: op.env, scope: op.scope })?;
    outputs.iter_mut().filter_map(|v| v.shape.as_mut()).filter(|s| s.len() > 2).for_each(|s| s[1..].rotate_left(1));
    Ok(outputs)
}

/// Inputs: the output's scale and zero point, then tensor, scale and zero point of each.
fn qlinear_concat(op: &Op) -> Outputs {
    let mut joined: Option<Shape> = None;
    for i in (2..op.inputs.len()).step_by(3) {
        let Some(shape) = op.shape(i) else { return one(Value::new(op.dtype(1), None)) };
        let axis = op.axis(i, op.int_or("axis", 0), shape.len())?;
        joined = Some(match joined {
            None => shape.to_vec(),
            Some(mut so_far) if so_far.len() == shape.len() => {
                so_far[axis] = dims::add(&so_far[axis], &shape[axis]);
                so_far
            }
            Some(_) => return Err(Fault::Rank { input: i, expected: "as many as the others", actual: shape.len() }),
        });
    }
    one(Value::new(op.dtype(1), joined))
}

fn halved(op: &Op) -> Outputs {
    let shape = op.shape(0).and_then(|s| {
        let (last, lead) = s.split_last()?;
        Some([lead, &[dims::div_exact(last, 2)?]].concat())
    });
    one(Value::new(op.dtype(0), shape))
}

/// Outputs: the normalised sum, its statistics, the sum.
fn skip_norm(op: &Op) -> Outputs {
    let statistics = op.shape(0).map(|s| {
        let last = s.len().saturating_sub(1);
        s.iter().enumerate().map(|(i, d)| if i == last { dims::ONE } else { d.clone() }).collect::<Shape>()
    });
    let statistics = Value::typed(F32, statistics);
    Ok(vec![op.like(0), statistics.clone(), statistics, op.like(0)])
}

/// Inputs: tokens, segments, then the tables; outputs: embeddings, mask index, sum.
fn embed(op: &Op) -> Outputs {
    let tokens = op.shape_of_rank(0, 2, "2: [batch, sequence]")?;
    let hidden = op.shape_of_rank(2, 2, "2: [words, hidden]")?.map_or(Dim::Unknown, |s| s[1].clone());
    let shape = tokens.map(|t| [t, &[hidden]].concat());
    let embeddings = Value::new(op.dtype(2), shape);
    let index = Value::typed(I32, tokens.map(|t| t[..1].to_vec()));
    Ok(vec![embeddings.clone(), index, embeddings])
}

/// One matrix projects to queries, keys and values.
fn projected(op: &Op, dtype: Option<DataType>) -> Outputs {
    let x = op.shape_of_rank(0, 3, "3: [batch, sequence, hidden]")?;
    let hidden = match op.ints("qkv_hidden_sizes") {
        Some([_, _, v]) => u64::try_from(*v).map_or(Dim::Unknown, known),
        _ => op.shape(1).and_then(|w| dims::div_exact(w.last()?, 3)).unwrap_or(Dim::Unknown),
    };
    let shape = x.map(|x| vec![x[0].clone(), x[1].clone(), hidden]);
    Ok(vec![Value::new(dtype, shape), Value::new(dtype, None)])
}

fn attention(op: &Op) -> Outputs {
    projected(op, op.dtype(0))
}

fn quantized_attention(op: &Op) -> Outputs {
    projected(op, op.dtype(3))
}

fn multi_head(op: &Op) -> Outputs {
    let shape = match (op.shape(0), op.shape(2)) {
        (Some([batch, sequence, _]), Some([_, _, hidden])) => {
            Some(vec![batch.clone(), sequence.clone(), hidden.clone()])
        }
        // Values as [batch, heads, sequence, head].
        (Some([batch, sequence, _]), Some([_, heads, _, head])) => {
            Some(vec![batch.clone(), sequence.clone(), dims::mul(heads, head)])
        }
        // All three packed, as [batch, sequence, heads, 3, head].
        (Some([batch, sequence, heads, _, head]), _) => {
            Some(vec![batch.clone(), sequence.clone(), dims::mul(heads, head)])
        }
        _ => None,
    };
    let present = |input: usize, past: usize| match (op.shape(input), op.input(past)) {
        (Some([batch, sequence, hidden]), None) => {
            let heads = op.int("num_heads").and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0)?;
            Some(vec![batch.clone(), known(heads), sequence.clone(), dims::div_exact(hidden, heads)?])
        }
        _ => None,
    };
    let value = |shape: Option<Shape>| Value::new(op.dtype(0), shape);
    Ok(vec![value(shape), value(present(1, 6)), value(present(2, 7))])
}

fn grouped(op: &Op) -> Outputs {
    // Without a key, all three are packed into the query.
    let shape = op.input(1).and_then(|_| op.like(0).shape);
    Ok(vec![Value::new(op.dtype(0), shape), Value::new(op.dtype(0), None), Value::new(op.dtype(0), None)])
}

/// Inputs: the table, the indices, its scales. Bytes hold several numbers of
/// few bits each, along the last axis.
fn gather_quantized(op: &Op) -> Outputs {
    let (Some(table), Some(indices)) = (op.shape(0), op.shape(1)) else { return one(Value::new(op.dtype(2), None)) };
    let mut shape = table.to_vec();
    let bits = op.int("bits").and_then(|n| u64::try_from(n).ok()).filter(|n| (1..=8).contains(n)).unwrap_or(4);
    if let (Some(U8), Some(last)) = (op.dtype(0), shape.last_mut()) {
        *last = dims::mul(last, &known(8 / bits));
    }
    let axis = op.axis(0, op.int_or("gather_axis", 0), shape.len())?;
    shape.splice(axis..=axis, indices.iter().cloned());
    one(Value::new(op.dtype(2), Some(shape)))
}

fn expand_dims(op: &Op) -> Outputs {
    let axis = op.input(1).and_then(Value::scalar).and_then(Scalar::int);
    let (Some(from), Some(axis)) = (op.shape(0), axis) else { return element_type(op) };
    let mut shape = from.to_vec();
    shape.insert(op.axis(0, axis, from.len() + 1)?, dims::ONE);
    one(Value::new(op.dtype(0), Some(shape)))
}

fn distances(op: &Op) -> Outputs {
    let rows = |i: usize| op.shape(i).and_then(|s| s.first().cloned()).unwrap_or(Dim::Unknown);
    one(Value::new(op.dtype(0), Some(vec![rows(0), rows(1)])))
}
