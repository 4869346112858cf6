//! Quantisers. Gradients go through them as if nothing had been rounded
//! (Bengio et al., 2013), and are zero where a number was out of range, as in
//! PyTorch's `fake_quantize`.
//!
//! The gradient of integers is that of the numbers they stand for: so it
//! passes from a DequantizeLinear to the QuantizeLinear before it as it is.

use super::context::{Fault, Gradients, RuleContext};
use super::registry::Family;
use crate::emit::Attribute;
use crate::onnx::NodeProto;
use crate::tensor::DataType;

pub(super) const RULES: Family =
    &[("QuantizeLinear", quantize), ("DequantizeLinear", dequantize), ("DynamicQuantizeLinear", dynamic)];

/// What quantises, and by what.
struct Quantiser<'a> {
    x: &'a str,
    scale: &'a str,
    /// Empty for none.
    zero: &'a str,
    axis: i64,
    block: i64,
}

impl<'a> Quantiser<'a> {
    fn of(node: &'a NodeProto) -> Self {
        let name = |names: &'a [String], i: usize| names.get(i).map_or("", String::as_str);
        let attributes = crate::attributes::Attributes::of(node);
        let (scale, zero) = match node.op_type() {
            "DynamicQuantizeLinear" => (name(&node.output, 1), name(&node.output, 2)),
            _ => (name(&node.input, 1), name(&node.input, 2)),
        };
        let (axis, block) = (attributes.int_or("axis", 1), attributes.int_or("block_size", 0));
        Self { x: name(&node.input, 0), scale, zero, axis, block }
    }

    /// The quantiser behind the integers `name`, and whether what is between
    /// moves them.
    fn behind(s: &RuleContext<'a>, mut name: &'a str) -> Result<(Self, bool), Fault> {
        let mut moved = false;
        loop {
            let Some(node) = s.index.producer.get(name).map(|&at| &s.index.graph.node[at]) else {
                return Err(Fault::new(format!("`{name}`, which it dequantises, isn't made by a QuantizeLinear")));
            };
            match node.op_type() {
                "QuantizeLinear" | "DynamicQuantizeLinear" => return Ok((Self::of(node), moved)),
                "Identity" | "Clip" => {}
                "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" => moved = true,
                other => {
                    return Err(Fault::new(format!(
                        "`{name}`, which it dequantises, is made by {other}, not by a QuantizeLinear"
                    )));
                }
            }
            name = node.input.first().map_or("", String::as_str);
        }
    }
}

/// Whether two names are the same tensor, or constants of the same numbers; no
/// name is as zeros.
fn same(s: &RuleContext, a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    let constant = |name: &str| crate::constant::tensor_from_proto(s.constants.get(name)?).ok();
    let zeros =
        |name: &str| constant(name).and_then(|t| t.to_bytes()).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    match (a, b) {
        ("", name) | (name, "") => zeros(name),
        _ => constant(a).is_some_and(|a| constant(b) == Some(a)),
    }
}

fn dequantize(s: &mut RuleContext) -> Gradients {
    // Scales and zero points are what they are, as in PyTorch.
    if !s.wants(0) {
        return Ok(vec![None]);
    }
    let dy = s.dy()?;
    let (from, moved) = Quantiser::behind(s, s.x(0))?;
    let to = Quantiser::of(s.node);
    if !same(s, from.scale, to.scale) || !same(s, from.zero, to.zero) {
        return Err(Fault::new("it dequantises by another scale or zero point than was quantised by"));
    }
    let single = s.fixed(to.scale).is_some_and(|shape| shape.iter().product::<i64>() == 1);
    if !single && (moved || from.axis != to.axis || from.block != to.block) {
        return Err(Fault::new("it dequantises along another axis than was quantised along"));
    }
    let dtype = s.dtype(from.x);
    let dx = if s.dtype(s.y(0)) == dtype { dy } else { s.cast(&dy, dtype) };
    s.only(dx)
}

fn quantize(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let quantiser = Quantiser::of(s.node);
    // Types of fewer bits than 8 are known by their number only.
    let of_zero = s.constants.get(quantiser.zero).map(|t| t.data_type());
    let of_zero = of_zero.or_else(|| s.types.get(quantiser.zero)?.dtype.map(DataType::to_onnx));
    let code = match s.int_or("output_dtype", 0) {
        0 if quantiser.zero.is_empty() => DataType::U8.to_onnx(),
        0 => of_zero.ok_or_else(|| Fault::new("the type of its zero point is unknown"))?,
        code => i32::try_from(code).unwrap_or(0),
    };
    let (low, high) = match code {
        2 => (0.0, 255.0),
        3 => (-128.0, 127.0),
        4 => (0.0, 65_535.0),
        5 => (-32_768.0, 32_767.0),
        21 => (0.0, 15.0),
        22 => (-8.0, 7.0),
        25 => (0.0, 3.0),
        26 => (-2.0, 1.0),
        _ => return Err(Fault::new("it quantises to other numbers than integers of at most 16 bits")),
    };
    let dx = within(s, &quantiser, &dy, low, high)?;
    s.only(dx)
}

fn dynamic(s: &mut RuleContext) -> Gradients {
    let dy = s.dy()?;
    let quantiser = Quantiser::of(s.node);
    let dx = within(s, &quantiser, &dy, 0.0, 255.0)?;
    s.only(dx)
}

/// The gradient where what was quantised fell between two integers.
fn within(s: &mut RuleContext, by: &Quantiser, dy: &str, low: f64, high: f64) -> Result<String, Fault> {
    let dtype = s.dtype(by.x);
    let scale = if s.dtype(by.scale) == dtype { by.scale.to_owned() } else { s.cast(by.scale, dtype) };
    let scale = spread(s, by, &scale, by.scale)?;
    let steps = s.div(by.x, &scale);
    let mut steps = s.op("Round", &[&steps], &[]);
    if !by.zero.is_empty() {
        let zero = s.cast(by.zero, dtype);
        let zero = spread(s, by, &zero, by.zero)?;
        steps = s.add(&steps, &zero);
    }
    let [low, high, none] = [low, high, 0.0].map(|n| s.out.scalar(dtype, n));
    let above = s.op("GreaterOrEqual", &[&steps, &low], &[]);
    let below = s.op("LessOrEqual", &[&steps, &high], &[]);
    let within = s.op("And", &[&above, &below], &[]);
    Ok(s.either(&within, dy, &none))
}

/// A scale or zero point as it broadcasts to what is quantised: one for all,
/// one for each place of an axis, or one for each block along it. `like` has
/// its shape.
fn spread(s: &mut RuleContext, by: &Quantiser, value: &str, like: &str) -> Result<String, Fault> {
    let Some(shape) = s.fixed(like) else {
        return Err(Fault::new(format!("the shape of `{like}` is unknown; export the model with shapes")));
    };
    if shape.iter().all(|&n| n == 1) && by.block == 0 {
        // One for all, however many axes it says it with.
        return Ok(if shape.len() > 1 { s.reshape(value, &[1]) } else { value.to_owned() });
    }
    let rank = s.rank(by.x)?;
    let axis = s.axis(by.axis, rank)?;
    if by.block == 0 {
        let mut around = vec![1; rank];
        around[axis] = -1;
        return Ok(s.reshape(value, &around));
    }
    if shape.len() != rank || by.block < 0 {
        return Err(Fault::new("its blocks don't fit what it quantises"));
    }
    // Each block's own, as often as the block is long, cut off at the end.
    let behind = s.out.ints(&[axis as i64 + 1]);
    let apart = s.op("Unsqueeze", &[value, &behind], &[]);
    let mut times = vec![1; rank + 1];
    times[axis + 1] = by.block;
    let times = s.out.ints(&times);
    let apart = s.op("Expand", &[&apart, &times], &[]);
    let mut joined = shape;
    joined[axis] = -1;
    let joined = s.reshape(&apart, &joined);
    let (start, which) = (s.out.ints(&[0]), s.out.ints(&[axis as i64]));
    let end = match s.dim(by.x, axis) {
        Some(size) => s.out.ints(&[size]),
        None => {
            let axis = axis as i64;
            s.op("Shape", &[by.x], &[("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))])
        }
    };
    Ok(s.op("Slice", &[&joined, &start, &end, &which], &[]))
}
