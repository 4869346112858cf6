//! Control flow: the bodies of If, Loop, Scan and SequenceMap are inferred
//! with the names around them in sight.

use crate::onnx::GraphProto;
use crate::tensor::DataType::{Bool, I64};
use crate::types::Dim;

use super::dims::known;
use super::error::Fault;
use super::op::{Op, Outputs, Rule};
use super::scope::infer_body;
use super::value::{Scalar, Value};

pub(super) const RULES: &[(&str, Rule)] =
    &[("If", branch), ("Loop", repeat), ("Scan", scan), ("SequenceMap", sequence_map)];

/// Rounds after which a loop's growing values are given up on: each round
/// makes at least one axis unknown, and few values change in more than one.
const ROUNDS_MAX: usize = 4;

fn body<'a>(op: &Op<'a>, name: &str) -> Result<&'a GraphProto, Fault> {
    op.graph(name).ok_or_else(|| Fault::invalid(0, format!("attribute `{name}` is missing")))
}

fn branch(op: &Op) -> Outputs {
    let (then, or_else) = (body(op, "then_branch")?, body(op, "else_branch")?);
    // A branch that is never taken may contradict itself.
    match op.input(0).and_then(Value::scalar) {
        Some(Scalar::Int(0)) => return Ok(infer_body(op, or_else, Vec::new())?),
        Some(Scalar::Int(_)) => return Ok(infer_body(op, then, Vec::new())?),
        _ => {}
    }
    let (a, b) = (infer_body(op, then, Vec::new())?, infer_body(op, or_else, Vec::new())?);
    Ok(a.iter().zip(&b).map(|(a, b)| a.join(b)).collect())
}

/// Infers a body whose first `states` outputs (after `skip`) feed its inputs
/// again, until their types no longer change.
fn settle(
    op: &Op,
    graph: &GraphProto,
    mut states: Vec<Value>,
    skip: usize,
    inputs: impl Fn(&[Value]) -> Vec<Value>,
) -> Result<Vec<Value>, Fault> {
    let count = states.len();
    for round in 0.. {
        let mut outputs = infer_body(op, graph, inputs(&states))?;
        let mut settled = true;
        for (state, output) in states.iter_mut().zip(outputs.iter_mut().skip(skip)) {
            let mut joined = state.join(output);
            // The specification keeps a state's element type.
            joined.dtype = state.dtype.or(output.dtype);
            if round >= ROUNDS_MAX && joined != *state {
                joined.shape = None;
                joined.items = None;
            }
            settled &= joined == *state;
            *state = joined.clone();
            *output = joined;
        }
        if settled || round > ROUNDS_MAX + count {
            return Ok(outputs);
        }
    }
    Ok(Vec::new())
}

/// Inputs: trip count, condition, states. The body's: iteration, condition,
/// states; its outputs: condition, states, elements of the scan outputs.
fn repeat(op: &Op) -> Outputs {
    let graph = body(op, "body")?;
    let states: Vec<Value> = op.inputs.iter().skip(2).map(|v| v.cloned().unwrap_or_default().forget()).collect();
    let count = states.len();
    let outputs = settle(op, graph, states, 1, |states| {
        let iteration = Value::typed(I64, Some(Vec::new()));
        // The body runs only while the condition holds.
        let condition = Value::typed(Bool, Some(Vec::new())).with(Some(vec![Scalar::Int(1)]));
        [vec![iteration, condition], states.to_vec()].concat()
    })?;
    let holds = |v: Option<&Value>| matches!(v.and_then(Value::scalar), Some(Scalar::Int(n)) if *n != 0);
    let starts = op.input(1).is_none() || holds(op.input(1));
    let never = matches!(op.input(1).and_then(Value::scalar), Some(Scalar::Int(0)));
    let trips = match op.input(0).and_then(Value::scalar) {
        _ if never => known(0),
        Some(Scalar::Int(n)) if starts && holds(outputs.first()) => known((*n).max(0) as u64),
        Some(Scalar::Size(s)) if starts && holds(outputs.first()) => Dim::Symbol(s.clone()),
        _ => Dim::Unknown,
    };
    let mut results = outputs.into_iter().skip(1);
    let mut all: Vec<Value> = results.by_ref().take(count).map(Value::forget).collect();
    all.extend(results.map(|v| stacked(v, 0, trips.clone())));
    Ok(all)
}

/// One element of a scan output becomes the whole of it.
fn stacked(element: Value, axis: i64, length: Dim) -> Value {
    let shape = element.shape.and_then(|mut shape| {
        let at = super::dims::axis_index(axis, shape.len() + 1)?;
        shape.insert(at, length);
        Some(shape)
    });
    Value::new(element.dtype, shape)
}

/// Inputs: states, then sequences; the body sees one step of each.
fn scan(op: &Op) -> Outputs {
    let graph = body(op, "body")?;
    let scanned = usize::try_from(op.int_or("num_scan_inputs", 0)).unwrap_or(0);
    // Version 8 had sequence lengths in front and a batch axis everywhere.
    let batched = op.opset < 9;
    let inputs = if batched { op.inputs.get(1..).unwrap_or_default() } else { &op.inputs };
    let Some(count) = inputs.len().checked_sub(scanned) else {
        return Err(Fault::invalid(0, format!("{scanned} scan inputs of {} inputs", inputs.len())));
    };
    let axis = |name: &str, i: usize| op.ints(name).and_then(|a| a.get(i)).copied().unwrap_or(0);
    let lead = usize::from(batched);
    let mut length = Dim::Unknown;
    let mut batch = Dim::Unknown;
    let mut steps = Vec::new();
    for (i, value) in inputs[count..].iter().enumerate() {
        let mut step = value.cloned().unwrap_or_default().forget();
        if let Some(shape) = &mut step.shape {
            if batched && !shape.is_empty() {
                batch = shape.remove(0);
            }
            let at = op.axis(count + i + lead, axis("scan_input_axes", i), shape.len())?;
            let size = shape.remove(at);
            length = super::dims::meet(&length, &size)
                .ok_or_else(|| Fault::invalid(count + i + lead, "the sequences have different lengths"))?;
        }
        steps.push(step);
    }
    let mut states: Vec<Value> = inputs[..count].iter().map(|v| v.cloned().unwrap_or_default().forget()).collect();
    if batched {
        states.iter_mut().filter_map(|s| s.shape.as_mut()).filter(|s| !s.is_empty()).for_each(|s| drop(s.remove(0)));
    }
    let outputs = settle(op, graph, states, 0, |states| [states, &steps[..]].concat())?;
    let mut results = outputs.into_iter();
    let whole = |value: Value| if batched { stacked(value, 0, batch.clone()) } else { value };
    let mut all: Vec<Value> = results.by_ref().take(count).map(|v| whole(v.forget())).collect();
    let scans = results.enumerate().map(|(i, v)| stacked(v, axis("scan_output_axes", i), length.clone()));
    all.extend(scans.map(whole));
    Ok(all)
}

fn sequence_map(op: &Op) -> Outputs {
    let graph = body(op, "body")?;
    let item = |v: &Option<&Value>| v.map(|v| v.items.as_deref().unwrap_or(v).clone().forget()).unwrap_or_default();
    let outputs = infer_body(op, graph, op.inputs.iter().map(item).collect())?;
    Ok(outputs.into_iter().map(Value::sequence).collect())
}
