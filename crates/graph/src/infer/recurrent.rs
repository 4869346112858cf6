//! Recurrent networks: `[steps, batch, input]`, or batch first by `layout`.

use crate::types::Dim;

use super::dims::{known, meet};
use super::error::Fault;
use super::op::{Op, Outputs, Rule};
use super::value::Value;

pub(super) const RULES: &[(&str, Rule)] = &[("LSTM", recurrent), ("GRU", recurrent), ("RNN", recurrent)];

pub(super) const CONTRIB: &[(&str, Rule)] = &[("DynamicQuantizeLSTM", quantized_lstm)];

fn recurrent(op: &Op) -> Outputs {
    let gates = match op.kind() {
        "LSTM" => 4,
        "GRU" => 3,
        _ => 1,
    };
    op.same_dtype(0, 1)?;
    let x = op.shape_of_rank(0, 3, "3: [steps, batch, input]")?;
    let w = op.shape_of_rank(1, 3, "3: [directions, gates * hidden, input]")?;
    let r = op.shape_of_rank(2, 3, "3: [directions, gates * hidden, hidden]")?;
    if let (Some(x), Some(w)) = (x, w)
        && meet(&x[2], &w[2]).is_none()
    {
        return Err(Fault::shapes(1, w, x, "the weight takes another input size"));
    }
    let rows = w.and_then(|w| w[1].known());
    let hidden = match (op.int("hidden_size").and_then(|n| u64::try_from(n).ok()), r) {
        (Some(n), _) => known(n),
        (None, Some(r)) => r[2].clone(),
        (None, None) => Dim::Unknown,
    };
    if let (Some(rows), Some(hidden), Some(w)) = (rows, hidden.known(), w)
        && hidden.checked_mul(gates) != Some(rows)
    {
        return Err(Fault::shapes(1, w, &[hidden_rows(hidden, gates)], "the weight has not one row per gate and unit"));
    }
    layers(op, x, hidden)
}

fn hidden_rows(hidden: u64, gates: u64) -> Dim {
    hidden.checked_mul(gates).map_or(Dim::Unknown, known)
}

/// Weights are transposed here: `[directions, input, gates * hidden]`.
fn quantized_lstm(op: &Op) -> Outputs {
    let x = op.shape_of_rank(0, 3, "3: [steps, batch, input]")?;
    let hidden = op.int("hidden_size").and_then(|n| u64::try_from(n).ok()).map_or(Dim::Unknown, known);
    layers(op, x, hidden)
}

/// All steps, then the last states.
fn layers(op: &Op, x: Option<&[Dim]>, hidden: Dim) -> Outputs {
    let directions = known(if op.text("direction") == Some("bidirectional") { 2 } else { 1 });
    let axis = |i: usize| x.map_or(Dim::Unknown, |x| x[i].clone());
    let (all, last) = if op.flag("layout") {
        (vec![axis(0), axis(1), directions.clone(), hidden.clone()], vec![axis(0), directions, hidden])
    } else {
        (vec![axis(0), directions.clone(), axis(1), hidden.clone()], vec![directions, axis(1), hidden])
    };
    let last = Value::new(op.dtype(0), Some(last));
    Ok(vec![Value::new(op.dtype(0), Some(all)), last.clone(), last])
}
