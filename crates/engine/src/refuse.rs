//! What an engine is known to get wrong, refused at load with the reason.
//!
//! The conformance suite finds these; each rule names an operator and the
//! condition under which the result would be wrong without a word. What the
//! engine refuses or fails by itself needs no rule.

use tierline_graph::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto};
use tierline_graph::{DataType, Model};

use crate::bounds;
use crate::error::EngineError;
use crate::known::Known;

/// A node where it stands.
pub(crate) struct NodeContext<'m> {
    pub(crate) node: &'m NodeProto,
    /// Version of the default operator set.
    pub(crate) opset: i64,
    pub(crate) known: &'m Known<'m>,
}

struct Rule {
    engine: &'static str,
    operators: &'static [&'static str],
    wrong: fn(&NodeContext) -> bool,
    reason: &'static str,
}

const RTEN: &str = crate::rten::NAME;
const ORT: &str = crate::ort::NAME;

const RULES: &[Rule] = &[
    Rule {
        engine: RTEN,
        operators: &["ConvInteger"],
        wrong: conv_integer,
        reason: "integer convolution with a kernel above 1, not depthwise, with padding or a batch above 1, or padded \
                 beside a zero point, gives wrong sums",
    },
    Rule {
        engine: RTEN,
        operators: &["Conv", "ConvInteger", "ConvTranspose", "MaxPool", "AveragePool"],
        wrong: |cx| cx.text("auto_pad") == Some("SAME_LOWER"),
        reason: "it pads SAME_LOWER as SAME_UPPER; give `pads`",
    },
    Rule {
        engine: RTEN,
        operators: &["Resize", "Upsample"],
        wrong: |cx| cx.text("mode") == Some("cubic"),
        reason: "it computes cubic interpolation as linear",
    },
    Rule {
        engine: RTEN,
        operators: &["Resize"],
        wrong: fractional_align_corners,
        reason: "align_corners with fractional scales is off; give `sizes`, or scales that are whole numbers",
    },
    Rule {
        engine: RTEN,
        operators: &["NonMaxSuppression"],
        wrong: |_| true,
        reason: "it limits boxes over all batches and classes together and mistakes flipped corners",
    },
    Rule {
        engine: RTEN,
        operators: &["Sign"],
        wrong: |cx| cx.dtype(0).is_none_or(DataType::is_float),
        reason: "it takes the sign of 0.0 for 1",
    },
    Rule {
        engine: RTEN,
        operators: &["MatMul"],
        wrong: |cx| cx.rank(1) == Some(1) && cx.rank(0).is_none_or(|r| r > 2),
        reason: "a batch of matrices times a vector keeps an axis too many",
    },
    Rule {
        engine: RTEN,
        operators: &["ReduceMax", "ReduceMin"],
        wrong: |cx| cx.dtype(0) == Some(DataType::Bool),
        reason: "over no booleans it gives the wrong one",
    },
    Rule {
        engine: RTEN,
        operators: &["Softmax", "LogSoftmax"],
        wrong: |cx| cx.opset < 13 && !softmax_over_last_axis(cx),
        reason: "before operator set 13 Softmax runs over all axes from `axis` on, it takes one; convert the model to \
                 operator set 13",
    },
    Rule {
        engine: RTEN,
        operators: &["Cast"],
        wrong: |cx| cx.int("to") == Some(DataType::Bool as i64) && cx.dtype(0).is_none(),
        reason: "casting to boolean must tell numbers from zero, and the type of what is cast is unknown; run shape \
                 inference on the model",
    },
    Rule {
        engine: RTEN,
        operators: &["MatMulInteger", "ConvInteger"],
        wrong: |cx| crate::overflow::in_rten() && !crate::adapt::has_constant_weights(cx),
        reason: "on this processor sums of products of bytes are cut off where the weights are computed; quantise the \
                 model with constant weights, or run it on ONNX Runtime",
    },
    Rule {
        engine: RTEN,
        operators: &["MatMulInteger"],
        wrong: |cx| {
            let packed = cx.known.bytes(second(cx)).is_some_and(|(dtype, ..)| dtype == DataType::I8);
            packed && cx.given(3) && !crate::adapt::has_constant_weights(cx)
        },
        reason: "of constant weights that are signed it takes a computed zero point for 0; make the zero point constant",
    },
    Rule {
        engine: ORT,
        operators: &["MatMulInteger"],
        wrong: |cx| {
            let signed = cx.dtype(1).is_none_or(|t| t == DataType::I8) && cx.dtype(0) != Some(DataType::I8);
            crate::overflow::in_onnxruntime() && signed && cx.known.bytes(second(cx)).is_none()
        },
        reason: "on this processor sums of products of bytes are cut off where the weights are computed; quantise the \
                 model with constant weights",
    },
    Rule {
        engine: ORT,
        operators: &["MaxUnpool"],
        wrong: |cx| cx.given(2),
        reason: "with `output_shape` it puts values in the wrong places",
    },
    Rule {
        engine: ORT,
        operators: &["Resize"],
        wrong: fractional_align_corners,
        reason: "align_corners with fractional scales is off; give `sizes`, or scales that are whole numbers",
    },
];

/// Refuses a model that `engine` would get wrong.
pub(crate) fn check(engine: &'static str, model: &Model) -> Result<(), EngineError> {
    boundary(engine, model.graph())?;
    if engine == RTEN {
        rten_types(model)?;
    }
    let types = tierline_graph::infer_types(model).unwrap_or_default();
    if engine == RTEN {
        bounds::refuse(engine, types.largest(), bounds::available())?;
    }
    let known = Known::new(model, &types);
    walk(engine, model.graph(), model.opset("").unwrap_or(1), &known)
}

fn walk(engine: &'static str, graph: &GraphProto, opset: i64, known: &Known) -> Result<(), EngineError> {
    if engine == RTEN {
        graph.initializer.iter().try_for_each(wide_integers)?;
    }
    for node in &graph.node {
        let cx = NodeContext { node, opset, known };
        let ours = node.domain().is_empty();
        for rule in RULES.iter().filter(|r| ours && r.engine == engine && r.operators.contains(&node.op_type())) {
            if (rule.wrong)(&cx) {
                let reason = format!("{}: {}", node.op_type(), rule.reason);
                return Err(EngineError::Refused { engine, node: Some(label(node)), reason });
            }
        }
        for attribute in &node.attribute {
            if engine == RTEN && attribute.t.is_some() {
                wide_integers(&attribute.t)?;
            }
            // What a body captures may shadow nothing, but its own values are
            // unknown here.
            let bodies = attribute.g.iter().chain(&attribute.graphs);
            for body in bodies {
                walk(engine, body, opset, &known.inside(body))?;
            }
        }
    }
    Ok(())
}

fn label(node: &NodeProto) -> String {
    if node.name().is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name().to_owned() }
}

impl NodeContext<'_> {
    pub(crate) fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.node.attribute.iter().find(|a| a.name() == name)
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(AttributeProto::i)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.attribute(name).and_then(|a| std::str::from_utf8(a.s()).ok())
    }

    fn given(&self, input: usize) -> bool {
        self.node.input.get(input).is_some_and(|i| !i.is_empty())
    }

    pub(crate) fn dtype(&self, input: usize) -> Option<DataType> {
        self.known.dtype(self.node.input.get(input)?)
    }

    fn shape(&self, input: usize) -> Option<Vec<Option<u64>>> {
        self.known.shape(self.node.input.get(input)?)
    }

    pub(crate) fn rank(&self, input: usize) -> Option<usize> {
        self.shape(input).map(|s| s.len())
    }
}

fn second<'s>(cx: &'s NodeContext) -> &'s str {
    cx.node.input.get(1).map_or("", String::as_str)
}

fn conv_integer(cx: &NodeContext) -> bool {
    let Some(kernel) = cx.shape(1) else { return true };
    let pointwise = kernel.iter().skip(2).all(|&k| k == Some(1));
    let depthwise = kernel.get(1) == Some(&Some(1));
    let padded = cx.attribute("pads").is_some_and(|a| a.ints.iter().any(|&p| p != 0))
        || cx.text("auto_pad").is_some_and(|p| p.starts_with("SAME"));
    let single = cx.shape(0).is_some_and(|s| s.first() == Some(&Some(1)));
    // It pads with zeros where the zero point stands for zero.
    padded && cx.given(2) || !pointwise && !depthwise && (padded || !single)
}

/// Whether the scales of a Resize by align_corners may be fractional: whole
/// numbers always give whole sizes.
fn fractional_align_corners(cx: &NodeContext) -> bool {
    cx.text("coordinate_transformation_mode") == Some("align_corners")
        && cx.given(2)
        && !cx.known.floats(&cx.node.input[2]).is_some_and(|scales| scales.iter().all(|s| s.fract() == 0.))
}

/// Before operator set 13 the axes from `axis` (default 1) on were one.
fn softmax_over_last_axis(cx: &NodeContext) -> bool {
    let axis = cx.int("axis").unwrap_or(1);
    axis == -1 && cx.attribute("axis").is_some()
        || cx.rank(0).is_some_and(|r| axis == r as i64 - 1 && (cx.attribute("axis").is_some() || r == 2))
}

/// Inputs and outputs must be tensors of types that Tierline carries.
fn boundary(engine: &'static str, graph: &GraphProto) -> Result<(), EngineError> {
    for (what, values) in [("input", &graph.input), ("output", &graph.output)] {
        for value in values {
            let Some(kind) = value.type_.as_ref() else { continue };
            if let Some(reason) = uncarried(kind) {
                return Err(EngineError::Refused {
                    engine,
                    node: None,
                    reason: format!("{what} `{}` is {reason}; nodes exchange tensors only", value.name()),
                });
            }
        }
    }
    Ok(())
}

fn uncarried(kind: &TypeProto) -> Option<String> {
    if kind.has_sequence_type() {
        return Some("a sequence".to_owned());
    }
    if kind.has_map_type() {
        return Some("a map".to_owned());
    }
    if kind.has_optional_type() {
        return Some("optional".to_owned());
    }
    if kind.has_sparse_tensor_type() {
        return Some("a sparse tensor".to_owned());
    }
    let code = kind.has_tensor_type().then(|| kind.tensor_type().elem_type())?;
    (code != 0 && DataType::from_onnx(code).is_none())
        .then(|| format!("a tensor of ONNX element type {code}, which Tierline does not carry"))
}

/// rten computes f64 in f32 and doesn't know the narrow and unsigned integers.
fn rten_types(model: &Model) -> Result<(), EngineError> {
    for (what, values) in [("input", model.inputs()), ("output", model.outputs())] {
        for value in values {
            let reason = match value.dtype {
                Some(DataType::F64) => "it computes f64 in 32 bits",
                Some(DataType::U16 | DataType::I16 | DataType::U32 | DataType::U64) => "it has no such integers",
                Some(DataType::String) => "it has no strings",
                Some(DataType::BF16) => "it has no bf16",
                _ => continue,
            };
            let kind = value.dtype.map(|t| t.to_string()).unwrap_or_default();
            let reason = format!("{what} `{}` is {kind}: {reason}", value.name);
            return Err(EngineError::Refused { engine: RTEN, node: None, reason });
        }
    }
    Ok(())
}

/// rten clamps i64 weights to 32 bits. The ends of the range mean "as far as
/// it goes" and survive that; other numbers wouldn't.
fn wide_integers(weight: &TensorProto) -> Result<(), EngineError> {
    if weight.data_type() != DataType::I64 as i32 {
        return Ok(());
    }
    let raw = weight.raw_data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()));
    let far = |x: &i64| i32::try_from(*x).is_err() && *x < i64::MAX - 1 && *x > i64::MIN + 1;
    match weight.int64_data.iter().copied().chain(raw).find(far) {
        None => Ok(()),
        Some(x) => Err(EngineError::Refused {
            engine: RTEN,
            node: None,
            reason: format!("weight `{}` holds {x}, and it computes i64 in 32 bits", weight.name()),
        }),
    }
}
