//! Attributes that ONNX gives a default and an engine takes for another: said
//! outright, before the engine sees the node.

use tierline_graph::onnx::{AttributeProto, NodeProto, attribute_proto};

use crate::refuse::NodeContext;

/// Operators with a window, and the input whose axes behind the first two are
/// spatial.
const WINDOWS: [(&str, usize); 7] = [
    ("Conv", 1),
    ("ConvInteger", 1),
    ("ConvTranspose", 1),
    ("MaxPool", 0),
    ("AveragePool", 0),
    ("LpPool", 0),
    ("QLinearConv", 3),
];

fn window(node: &NodeProto) -> Option<usize> {
    WINDOWS.iter().find(|(name, _)| *name == node.op_type()).map(|(_, input)| *input)
}

fn has(node: &NodeProto, name: &str) -> bool {
    node.attribute.iter().any(|a| a.name() == name)
}

/// An empty list says as little as none.
fn lists(node: &NodeProto, name: &str) -> bool {
    node.attribute.iter().any(|a| a.name() == name && !a.ints.is_empty())
}

/// Whether rten would read the node otherwise than it is meant: without
/// `kernel_shape` it doesn't know for how many axes strides, dilations and
/// pads hold, and it quantises along the last axis by default.
pub(crate) fn missing(node: &NodeProto) -> bool {
    match node.op_type() {
        "QuantizeLinear" => !has(node, "axis"),
        _ => window(node).is_some() && !["strides", "dilations", "pads"].iter().all(|name| lists(node, name)),
    }
}

/// Adds to `node` what it leaves out; `cx` is where it stands.
pub(crate) fn fill(node: &mut NodeProto, cx: &NodeContext) {
    if node.op_type() == "QuantizeLinear" && !has(node, "axis") {
        node.attribute.push(AttributeProto {
            name: Some("axis".to_owned()),
            type_: Some(attribute_proto::AttributeType::INT as i32),
            i: Some(1),
            ..AttributeProto::default()
        });
    }
    let Some(input) = window(node) else { return };
    let given = cx.attribute("kernel_shape").map(|a| a.ints.len()).filter(|axes| *axes > 0);
    let Some(axes) = given.or_else(|| cx.rank(input)?.checked_sub(2)).or_else(|| cx.rank(0)?.checked_sub(2)) else {
        return;
    };
    // Pads that follow from `auto_pad` aren't given as well; an operator that
    // knows no dilations may not take them.
    let padded = cx.text("auto_pad").is_some_and(|p| p.starts_with("SAME"));
    let pools = matches!(node.op_type(), "MaxPool" | "AveragePool" | "LpPool");
    let windows = [("strides", 1, axes, true), ("dilations", 1, axes, !pools), ("pads", 0, 2 * axes, !padded)];
    for (name, value, count, wanted) in windows {
        if lists(node, name) || !wanted {
            continue;
        }
        node.attribute.retain(|a| a.name() != name);
        node.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            type_: Some(attribute_proto::AttributeType::INTS as i32),
            ints: vec![value; count],
            ..AttributeProto::default()
        });
    }
}
