//! Rewrites for rten: operators it computes wrongly in one form and rightly
//! in another, so that they needn't be refused; defaults that it takes for
//! others are said outright.

use tierline_graph::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto};
use tierline_graph::{DataType, Model};

use crate::defaults;
use crate::known::Known;
use crate::refuse::NodeContext;

/// The model in forms that rten computes rightly; `None` when it is so already.
pub(crate) fn adapt(model: &Model) -> Option<ModelProto> {
    let needed = |node: &NodeProto| form(node).is_some() || defaults::missing(node);
    if !any(model.graph(), &needed) {
        return None;
    }
    let mut proto = model.proto().clone();
    let types = tierline_graph::infer_types(model).unwrap_or_default();
    rewrite(proto.graph.mut_or_insert_default(), model.graph(), &Known::new(model, &types));
    Some(proto)
}

#[derive(Clone, Copy)]
enum Form {
    /// Of equal elements it takes the last index; TopK takes the first, as
    /// both should.
    ArgExtreme { largest: bool },
    /// Casting to boolean keeps the number (2 stays 2, 0.5 becomes 0).
    ToBool,
    /// Sums of products of bytes are cut off on this processor, unless the
    /// weights are half as large: so it sums the products of each half.
    Halves,
    /// Of constant weights that are signed it takes the zero point for 0; of
    /// unsigned ones it doesn't.
    Unsigned,
}

fn form(node: &NodeProto) -> Option<Form> {
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name() == name).map_or(0, AttributeProto::i);
    match (node.domain(), node.op_type()) {
        ("", "ArgMax" | "ArgMin") if attribute("select_last_index") == 0 => {
            Some(Form::ArgExtreme { largest: node.op_type() == "ArgMax" })
        }
        ("", "Cast") if attribute("to") == DataType::Bool as i64 => Some(Form::ToBool),
        ("", "MatMulInteger" | "ConvInteger") if crate::overflow::in_rten() => Some(Form::Halves),
        ("", "MatMulInteger") if node.input.get(3).is_some_and(|zero| !zero.is_empty()) => Some(Form::Unsigned),
        _ => None,
    }
}

/// Whether the weights of an integer product can be halved, or said as
/// unsigned ones.
pub(crate) fn has_constant_weights(cx: &NodeContext) -> bool {
    weights(cx).is_some()
}

/// Weights of an integer product as signed numbers, and their zero point, each
/// with its axes.
struct Weights {
    signed: bool,
    shape: Vec<usize>,
    values: Vec<i16>,
    zero_shape: Vec<usize>,
    zero: Vec<i16>,
}

fn weights(cx: &NodeContext) -> Option<Weights> {
    let (dtype, shape, values) = cx.known.bytes(cx.node.input.get(1)?)?;
    let signed = dtype == DataType::I8;
    let (zero_shape, zero) = match cx.node.input.get(3).filter(|z| !z.is_empty()) {
        None => (Vec::new(), vec![0]),
        Some(name) => cx.known.bytes(name).map(|(_, axes, zero)| (axes, zero))?,
    };
    let lower = |values: Vec<i16>| if signed { values } else { values.into_iter().map(|v| v - 128).collect() };
    Some(Weights { signed, shape, values: lower(values), zero_shape, zero: lower(zero) })
}

fn any(graph: &GraphProto, needed: &dyn Fn(&NodeProto) -> bool) -> bool {
    graph.node.iter().any(|node| {
        let bodies = || node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
        needed(node) || bodies().any(|g| any(g, needed))
    })
}

/// Rewrites `graph`; `original` is the same graph unchanged, for lookups.
fn rewrite(graph: &mut GraphProto, original: &GraphProto, known: &Known) {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for (mut node, before) in std::mem::take(&mut graph.node).into_iter().zip(&original.node) {
        for (attribute, unchanged) in node.attribute.iter_mut().zip(&before.attribute) {
            if let (Some(body), Some(original)) = (attribute.g.as_mut(), unchanged.g.as_ref()) {
                rewrite(body, original, &known.inside(original));
            }
            for (body, original) in attribute.graphs.iter_mut().zip(&unchanged.graphs) {
                rewrite(body, original, &known.inside(original));
            }
        }
        let cx = NodeContext { node: before, opset: 0, known };
        if node.domain().is_empty() {
            defaults::fill(&mut node, &cx);
        }
        match form(before) {
            None => nodes.push(node),
            Some(Form::Halves) => match weights(&cx) {
                Some(weights) => halved(node, weights, &mut nodes, &mut graph.initializer),
                None => nodes.push(node),
            },
            Some(Form::Unsigned) => {
                if let Some(weights) = weights(&cx).filter(|w| w.signed) {
                    node.input[1] = unsigned(&node, "weights", &weights.shape, &weights.values, &mut graph.initializer);
                    node.input[3] = unsigned(&node, "zero", &weights.zero_shape, &weights.zero, &mut graph.initializer);
                }
                nodes.push(node);
            }
            Some(Form::ArgExtreme { largest }) => {
                let axis = cx.int("axis").unwrap_or(0);
                let keep = cx.int("keepdims").unwrap_or(1) != 0;
                let (one, y) = (fresh(&node, "one"), node.output[0].clone());
                let indices = if keep { y.clone() } else { fresh(&node, "indices") };
                graph.initializer.push(i64s(&one, 1));
                let mut top = plain("TopK", &[&node.input[0], &one], &fresh(&node, "values"));
                top.output.push(indices.clone());
                top.attribute = vec![int("axis", axis), int("largest", largest.into())];
                nodes.push(top);
                if !keep {
                    let axes = fresh(&node, "axes");
                    graph.initializer.push(i64s(&axes, axis));
                    nodes.push(plain("Squeeze", &[&indices, &axes], &y));
                }
            }
            Some(Form::ToBool) => {
                let (x, y) = (node.input[0].clone(), node.output[0].clone());
                let between = fresh(&node, "compared");
                if cx.dtype(0).is_some_and(DataType::is_float) {
                    let zero = fresh(&node, "zero");
                    graph.initializer.push(TensorProto {
                        name: Some(zero.clone()),
                        data_type: Some(DataType::F32 as i32),
                        float_data: vec![0.],
                        ..TensorProto::default()
                    });
                    nodes.push(plain("Equal", &[&x, &zero], &between));
                } else {
                    // rten's booleans are 32-bit integers, as its other ones are.
                    let number = fresh(&node, "number");
                    let mut cast = plain("Cast", &[&x], &number);
                    cast.attribute.push(int("to", DataType::I32 as i64));
                    nodes.push(cast);
                    nodes.push(plain("Not", &[&number], &between));
                }
                nodes.push(plain("Not", &[&between], &y));
            }
        }
    }
    graph.node = nodes;
}

/// An integer product as the sum of two, each with one half of the weights:
/// the second with what is left, and their zero point.
fn halved(node: NodeProto, weights: Weights, nodes: &mut Vec<NodeProto>, constants: &mut Vec<TensorProto>) {
    let half: Vec<i16> = weights.values.iter().map(|w| w >> 1).collect();
    let rest: Vec<i16> = weights.values.iter().zip(&half).map(|(w, h)| w - h).collect();
    let input = |at: usize| node.input.get(at).cloned().unwrap_or_default();
    let half = signed(&node, "half", &weights.shape, &half, constants);
    // It takes a convolution's weights for the unsigned side.
    let write = if node.op_type() == "ConvInteger" { signed } else { unsigned };
    let rest = write(&node, "rest", &weights.shape, &rest, constants);
    let zero = write(&node, "zero", &weights.zero_shape, &weights.zero, constants);
    let sums = ["lower", "upper"].map(|what| fresh(&node, what));
    let inputs = [vec![input(0), half, input(2)], vec![input(0), rest, input(2), zero]];
    for (inputs, sum) in inputs.into_iter().zip(&sums) {
        let (name, output) = (Some(sum.clone()), vec![sum.clone()]);
        nodes.push(NodeProto { name, input: inputs, output, ..node.clone() });
    }
    nodes.push(plain("Add", &[&sums[0], &sums[1]], &node.output[0]));
}

/// A constant of signed bytes; its name.
fn signed(node: &NodeProto, what: &str, shape: &[usize], values: &[i16], to: &mut Vec<TensorProto>) -> String {
    bytes(DataType::I8, 0, node, what, shape, values, to)
}

/// A constant of unsigned bytes that are 128 more than these; its name.
fn unsigned(node: &NodeProto, what: &str, shape: &[usize], values: &[i16], to: &mut Vec<TensorProto>) -> String {
    bytes(DataType::U8, 128, node, what, shape, values, to)
}

fn bytes(
    dtype: DataType,
    more: i32,
    node: &NodeProto,
    what: &str,
    shape: &[usize],
    values: &[i16],
    to: &mut Vec<TensorProto>,
) -> String {
    let name = fresh(node, what);
    to.push(TensorProto {
        name: Some(name.clone()),
        dims: shape.iter().map(|&d| d as i64).collect(),
        data_type: Some(dtype as i32),
        int32_data: values.iter().map(|&v| i32::from(v) + more).collect(),
        ..TensorProto::default()
    });
    name
}

fn fresh(node: &NodeProto, what: &str) -> String {
    // Outputs are unique in a model, so this is too.
    format!("{}/tierline_{what}", node.output[0])
}

fn plain(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(operator.to_owned()),
        name: Some(format!("{operator}_{output}")),
        input: inputs.iter().map(|&i| i.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        type_: Some(attribute_proto::AttributeType::INT as i32),
        i: Some(value),
        ..AttributeProto::default()
    }
}

fn i64s(name: &str, value: i64) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: vec![1],
        data_type: Some(DataType::I64 as i32),
        int64_data: vec![value],
        ..TensorProto::default()
    }
}
