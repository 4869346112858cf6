//! Dropout whose randomness is a function of the seed, the step's number and
//! the place: the same on every engine, and on a run that was resumed.
//!
//! The numbers are murmur3's final mix (Appleby, 2011) of a counter, in 32-bit
//! integers that wrap.

use super::{STEP, StepError};
use crate::emit::{Attribute, Emitter};
use crate::infer::infer_types;
use crate::model::Model;
use crate::slice::value_info_proto;
use crate::tensor::{DataType, Elements, Tensor};
use crate::types::ValueInfo;

/// The model with every Dropout drawing from the seed.
pub(super) fn drawn(model: &Model, seed: u64) -> Result<Model, StepError> {
    let is_dropout = |n: &crate::onnx::NodeProto| n.op_type() == "Dropout" && n.domain().is_empty();
    let types = infer_types(model)?;
    if types.get(STEP).is_some() {
        return Err(StepError::Taken { name: STEP.to_owned() });
    }
    if !model.graph().node.iter().any(is_dropout) {
        return Ok(model.clone());
    }
    let mut proto = model.proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let names: Vec<String> = types.iter().map(|t| t.name.clone()).collect();
    let mut out = Emitter::new(names.iter().map(String::as_str));
    let step = base(seed, &mut out);
    let mut number = 0u32;
    for node in std::mem::take(&mut graph.node) {
        if !is_dropout(&node) {
            out.push(node);
            continue;
        }
        number += 1;
        let (x, y) = (node.input[0].as_str(), node.output[0].as_str());
        let dtype = types.get(x).and_then(|t| t.dtype).unwrap_or(DataType::F32);
        let ratio = match node.input.get(1).filter(|r| !r.is_empty()) {
            Some(ratio) => out.op("Cast", &[ratio], &[("to", Attribute::Int(DataType::F32.to_onnx().into()))]),
            None => out.scalar(DataType::F32, 0.5),
        };
        let uniform = uniform(x, &step, number, &mut out);
        let kept = out.op("GreaterOrEqual", &[&uniform, &ratio], &[]);
        let one = out.scalar(DataType::F32, 1.0);
        let share = out.op("Sub", &[&one, &ratio], &[]);
        let share = out.op("Cast", &[&share], &[("to", Attribute::Int(dtype.to_onnx().into()))]);
        let scaled = out.op("Div", &[x, &share], &[]);
        let zero = out.scalar(dtype, 0.0);
        out.named("Where", &[&kept, &scaled, &zero], &[y], &[]);
        if let Some(mask) = node.output.get(1).filter(|m| !m.is_empty()) {
            out.named("Identity", &[&kept], &[mask], &[]);
        }
    }
    let (nodes, constants) = out.finish();
    graph.node = nodes;
    graph.initializer.extend(constants);
    let counter = ValueInfo { name: STEP.to_owned(), dtype: Some(DataType::I64), shape: Some(vec![]) };
    graph.input.push(value_info_proto(&counter));
    Ok(Model::from_proto(proto)?)
}

fn i32s(out: &mut Emitter, value: u32) -> String {
    out.constant(&Tensor::new([], Elements::I32(vec![value as i32])).expect("a scalar"))
}

fn cast(out: &mut Emitter, x: &str, dtype: DataType) -> String {
    out.op("Cast", &[x], &[("to", Attribute::Int(dtype.to_onnx().into()))])
}

/// One number for the seed and the step.
fn base(seed: u64, out: &mut Emitter) -> String {
    let wrapped = out.int(i64::from(i32::MAX));
    let step = out.op("Mod", &[STEP, &wrapped], &[]);
    let step = cast(out, &step, DataType::I32);
    let factor = i32s(out, 0x9e37_79b9);
    let spread = out.op("Mul", &[&step, &factor], &[]);
    let seed = i32s(out, (seed ^ (seed >> 32)) as u32);
    let sum = out.op("Add", &[&spread, &seed], &[]);
    mixed(&sum, out)
}

/// Numbers in `[0, 1)`, one for each element of `x`.
fn uniform(x: &str, step: &str, number: u32, out: &mut Emitter) -> String {
    let salt = i32s(out, number.wrapping_mul(0x85eb_ca6b));
    let start = out.op("BitwiseXor", &[step, &salt], &[]);
    let size = out.op("Size", &[x], &[]);
    let (zero, one) = (out.int(0), out.int(1));
    let places = out.op("Range", &[&zero, &size, &one], &[]);
    let places = cast(out, &places, DataType::I32);
    let places = out.op("Add", &[&places, &start], &[]);
    let bits = mixed(&places, out);
    // The upper 24 bits are what an f32 holds exactly.
    let bits = shifted(&bits, 8, out);
    let number = cast(out, &bits, DataType::F32);
    let scale = out.scalar(DataType::F32, 1.0 / f64::from(1u32 << 24));
    let flat = out.op("Mul", &[&number, &scale], &[]);
    let shape = out.op("Shape", &[x], &[]);
    out.op("Reshape", &[&flat, &shape], &[])
}

/// The bits moved down, zeros behind them.
fn shifted(x: &str, by: u32, out: &mut Emitter) -> String {
    let bits = cast(out, x, DataType::U32);
    let by = out.constant(&Tensor::new([], Elements::U32(vec![by])).expect("a scalar"));
    let bits = out.op("BitShift", &[&bits, &by], &[("direction", Attribute::Text("RIGHT".into()))]);
    cast(out, &bits, DataType::I32)
}

fn mixed(x: &str, out: &mut Emitter) -> String {
    let mut x = x.to_owned();
    for (shift, factor) in [(16, Some(0x85eb_ca6b)), (13, Some(0xc2b2_ae35)), (16, None)] {
        let down = shifted(&x, shift, out);
        x = out.op("BitwiseXor", &[&x, &down], &[]);
        if let Some(factor) = factor {
            let factor = i32s(out, factor);
            x = out.op("Mul", &[&x, &factor], &[]);
        }
    }
    x
}
