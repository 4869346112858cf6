//! Attention and what surrounds it, in the default domain.

use crate::types::Dim;

use super::dims::{self, Shape, known};
use super::elementwise::same;
use super::error::Fault;
use super::op::{Op, Outputs, Rule};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] =
    &[("Attention", attention), ("RotaryEmbedding", same), ("LinearAttention", linear)];

pub(super) const PREVIEW: &[(&str, Rule)] = &[("FlexAttention", attention)];

/// An input's axes `[batch, heads, sequence, head]`, from either layout.
fn heads(op: &Op, input: usize, attribute: &str) -> Result<Option<Shape>, Fault> {
    let shape = op.shape_where(input, "3: [batch, sequence, hidden], or 4: [batch, heads, sequence, head]", |n| {
        n == 3 || n == 4
    })?;
    let Some(shape) = shape else { return Ok(None) };
    if shape.len() == 4 {
        return Ok(Some(shape.to_vec()));
    }
    let count = op.int(attribute).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let count = count.ok_or_else(|| Fault::invalid(input, format!("attribute `{attribute}` is missing")))?;
    let head = dims::div_exact(&shape[2], count)
        .ok_or_else(|| Fault::invalid(input, format!("{} hidden sizes do not divide into {count} heads", shape[2])))?;
    Ok(Some(vec![shape[0].clone(), known(count), shape[1].clone(), head]))
}

fn attention(op: &Op) -> Outputs {
    op.same_dtype(0, 1)?;
    let q = heads(op, 0, "q_num_heads")?;
    let k = heads(op, 1, "kv_num_heads")?;
    let v = heads(op, 2, "kv_num_heads")?;
    if let (Some(q), Some(k)) = (&q, &k)
        && dims::meet(&q[3], &k[3]).is_none()
    {
        return Err(Fault::shapes(1, k, q, "the head sizes of query and key differ"));
    }
    let packed = op.shape(0).is_some_and(|s| s.len() == 3);
    let past = |i: usize| match op.input(i) {
        None => Some(known(0)),
        Some(past) => past.shape.as_ref().and_then(|s| s.get(2)).cloned(),
    };
    let present = |new: &Option<Shape>, i: usize| {
        let mut present = new.clone()?;
        present[2] = dims::add(&present[2], &past(i).unwrap_or(Dim::Unknown));
        Some(present)
    };
    let (keys, values) = (present(&k, 4), present(&v, 5));
    let output = q.as_ref().map(|q| {
        let head = v.as_ref().map_or(Dim::Unknown, |v| v[3].clone());
        if packed {
            vec![q[0].clone(), q[2].clone(), dims::mul(&q[1], &head)]
        } else {
            vec![q[0].clone(), q[1].clone(), q[2].clone(), head]
        }
    });
    let total = keys.as_ref().map_or(Dim::Unknown, |k| k[2].clone());
    let scores = q.map(|q| vec![q[0].clone(), q[1].clone(), q[2].clone(), total]);
    Ok(vec![
        Value::new(op.dtype(0), output),
        Value::new(op.dtype(1), keys),
        Value::new(op.dtype(2), values),
        Value::new(op.dtype(0), scores),
    ])
}

fn linear(op: &Op) -> Outputs {
    let said = "3: [batch, steps, heads * head]";
    let (q, k, v) = (op.shape_of_rank(0, 3, said)?, op.shape_of_rank(1, 3, said)?, op.shape_of_rank(2, 3, said)?);
    let count = |name: &str| op.int(name).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    let head = |shape: Option<&[Dim]>, heads: Option<u64>| match (shape, heads) {
        (Some(shape), Some(heads)) => dims::div_exact(&shape[2], heads).unwrap_or(Dim::Unknown),
        _ => Dim::Unknown,
    };
    let (heads_q, heads_kv) = (count("q_num_heads"), count("kv_num_heads"));
    let (key, value) = (head(k, heads_kv), head(v, heads_kv));
    let output = q.map(|q| vec![q[0].clone(), q[1].clone(), dims::mul(&heads_q.map_or(Dim::Unknown, known), &value)]);
    let batch = q.map_or(Dim::Unknown, |q| q[0].clone());
    let state = vec![batch, heads_kv.map_or(Dim::Unknown, known), key, value];
    // The state keeps its own precision.
    let dtype = op.input(3).map_or(op.dtype(0), |v| v.dtype);
    Ok(vec![Value::new(op.dtype(0), output), Value::new(dtype, Some(state))])
}
