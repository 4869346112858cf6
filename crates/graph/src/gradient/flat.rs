//! Sums of squares: where one is zero, all that it is made of is, and nothing
//! flows into it, whatever root is taken of it.
//!
//! Exporters write norms, deviations and distances out as roots of such sums.
//! The root has an infinite slope at zero and the squares none, which makes no
//! number; the norm itself has a gradient of zero there, in PyTorch as well.

use super::arithmetic::number;
use super::context::RuleContext;
use crate::constant::tensor_from_proto;
use crate::onnx::NodeProto;

/// Nodes that are looked at behind a root.
const DEPTH_MAX: usize = 16;

/// Whether a value is a sum of squares, as far as its nodes say.
pub(super) fn sums_squares(s: &RuleContext, name: &str) -> bool {
    look(s, name, DEPTH_MAX)
}

fn look(s: &RuleContext, name: &str, depth: usize) -> bool {
    let Some(node) = made_by(s, name).filter(|_| depth > 0) else { return false };
    let input = |i: usize| node.input.get(i).map_or("", String::as_str);
    let behind = |i: usize| look(s, input(i), depth - 1);
    match node.op_type() {
        "ReduceSumSquare" => true,
        // Something by itself, or a sum that is scaled.
        "Mul" => input(0) == input(1) || behind(0) || behind(1),
        "Pow" => squares(s, node) || raises(s, node) && behind(0),
        "Sum" | "Add" => (0..node.input.len()).all(behind),
        "Div" | "ReduceSum" | "ReduceMean" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Transpose"
        | "Expand" | "Identity" | "Cast" | "CastLike" | "Slice" | "Gather" => behind(0),
        _ => false,
    }
}

fn made_by<'a>(s: &RuleContext<'a>, name: &str) -> Option<&'a NodeProto> {
    let node = &s.index.graph.node[*s.index.producer.get(name)?];
    node.domain().is_empty().then_some(node)
}

fn exponent(s: &RuleContext, node: &NodeProto) -> Option<f64> {
    number(&tensor_from_proto(s.constants.get(node.input.get(1)?.as_str())?).ok()?)
}

/// Whether a power is of an even exponent, or of what has no sign.
fn squares(s: &RuleContext, node: &NodeProto) -> bool {
    let unsigned = || made_by(s, &node.input[0]).is_some_and(|n| n.op_type() == "Abs");
    exponent(s, node).is_some_and(|e| e >= 2.0 && e % 2.0 == 0.0 || e > 1.0 && unsigned())
}

fn raises(s: &RuleContext, node: &NodeProto) -> bool {
    exponent(s, node).is_some_and(|e| e > 0.0)
}
