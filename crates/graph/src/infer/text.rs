//! Strings and encoded pictures.

use crate::tensor::DataType::{Bool, F32, I64, String, U8};
use crate::types::Dim;

use super::dims::{self, known};
use super::elementwise::broadcast_inputs;
use super::op::{Op, Outputs, Rule, one};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("StringConcat", concat),
    ("StringNormalizer", normalize),
    ("StringSplit", split),
    ("RegexFullMatch", full_match),
    ("TfIdfVectorizer", tf_idf),
    ("ImageDecoder", picture),
];

fn concat(op: &Op) -> Outputs {
    one(Value::typed(String, broadcast_inputs(op, 0..2)?))
}

fn normalize(op: &Op) -> Outputs {
    // Stop words are dropped; case alone changes no size.
    let keeps = op.attribute("stopwords").is_none_or(|a| a.strings.is_empty());
    let shape = op.shape(0).map(|s| match s {
        whole if keeps => whole.to_vec(),
        [_] => dims::unknown(1),
        _ => vec![known(1), Dim::Unknown],
    });
    one(Value::typed(String, shape))
}

fn split(op: &Op) -> Outputs {
    let shape = op.shape(0).map(|s| [s, &[Dim::Unknown]].concat());
    Ok(vec![Value::typed(String, shape), Value::typed(I64, op.like(0).shape)])
}

fn full_match(op: &Op) -> Outputs {
    one(Value::typed(Bool, op.like(0).shape))
}

fn tf_idf(op: &Op) -> Outputs {
    let terms = op.ints("ngram_indexes").and_then(|i| i.iter().max().copied());
    let terms = terms.and_then(|n| u64::try_from(n).ok()?.checked_add(1)).map_or(Dim::Unknown, known);
    let shape = op.shape_where(0, "1 or 2", |n| n == 1 || n == 2)?;
    one(Value::typed(F32, shape.map(|s| [&s[..s.len() - 1], &[terms]].concat())))
}

/// `[height, width, channels]`.
fn picture(op: &Op) -> Outputs {
    let channels = known(if op.text("pixel_format") == Some("Grayscale") { 1 } else { 3 });
    one(Value::typed(U8, Some(vec![Dim::Unknown, Dim::Unknown, channels])))
}
