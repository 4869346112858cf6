//! Models written as text, for tests.
//!
//! One statement a line; `_` is an input left out:
//! ```text
//! opset 17
//! x: f32[N,3,8,8]                     an input
//! w = f32[8,3,3,3]                    an initialiser of zeros
//! s = i64{0,-1}                       an initialiser, a vector of these
//! y, z = Split(x, s) axis=1           a node; attributes are 1, 1.5, [1,2], "text"
//! b = com.microsoft.BiasGelu(x, w)    a node of another domain
//! y: f32[N,3,8,8] declared            an intermediate value's declared type
//! ```
//! Outputs are the values that no node reads.

use tierline_graph::Model;
use tierline_graph::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto, tensor_shape_proto, type_proto,
};

const TYPES: [(&str, i32, usize); 8] = [
    ("f32", 1, 4),
    ("u8", 2, 1),
    ("i8", 3, 1),
    ("i32", 6, 4),
    ("i64", 7, 8),
    ("string", 8, 0),
    ("bool", 9, 1),
    ("f16", 10, 2),
];

fn dtype(name: &str) -> (i32, usize) {
    let found = TYPES.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("unknown type {name}"));
    (found.1, found.2)
}

fn value_info(name: &str, text: &str) -> ValueInfoProto {
    let (kind, axes) = text.split_once('[').expect("f32[...]");
    let mut shape = TensorShapeProto::new();
    for axis in axes.trim_end_matches(']').split(',').filter(|a| !a.is_empty()) {
        let mut dim = tensor_shape_proto::Dimension::new();
        match axis.parse() {
            Ok(n) => dim.set_dim_value(n),
            Err(_) if axis == "?" => {}
            Err(_) => dim.set_dim_param(axis.to_owned()),
        }
        shape.dim.push(dim);
    }
    let mut tensor = type_proto::Tensor::new();
    tensor.set_elem_type(dtype(kind).0);
    tensor.shape = Some(shape).into();
    let mut declared = TypeProto::new();
    declared.set_tensor_type(tensor);
    let mut value = ValueInfoProto::new();
    value.set_name(name.to_owned());
    value.type_ = Some(declared).into();
    value
}

fn tensor(name: &str, text: &str) -> TensorProto {
    let (kind, body) = text.split_at(text.find(['[', '{']).expect("f32[..] or i64{..}"));
    let list: Vec<&str> = body[1..body.len() - 1].split(',').map(str::trim).filter(|t| !t.is_empty()).collect();
    let (code, size) = dtype(kind);
    let mut tensor = TensorProto::new();
    tensor.set_name(name.to_owned());
    tensor.set_data_type(code);
    if body.starts_with('{') {
        tensor.dims = vec![list.len() as i64];
        if code == 1 {
            tensor.float_data = list.iter().map(|t| t.parse().expect("a number")).collect();
        } else {
            tensor.int64_data = list.iter().map(|t| t.parse().expect("a number")).collect();
        }
    } else {
        tensor.dims = list.iter().map(|t| t.parse().expect("a size")).collect();
        let count: i64 = tensor.dims.iter().product();
        tensor.set_raw_data(vec![0; count as usize * size].into());
    }
    tensor
}

fn attribute(text: &str) -> AttributeProto {
    use attribute_proto::AttributeType as T;
    let (name, value) = text.split_once('=').expect("name=value");
    let mut a = AttributeProto::new();
    a.set_name(name.to_owned());
    let kind = if let Some(text) = value.strip_prefix('"') {
        a.set_s(text.trim_end_matches('"').as_bytes().to_vec().into());
        T::STRING
    } else if let Some(list) = value.strip_prefix('[') {
        a.ints = list.trim_end_matches(']').split(',').filter(|t| !t.is_empty()).map(|t| t.parse().unwrap()).collect();
        T::INTS
    } else if let Ok(n) = value.parse() {
        a.set_i(n);
        T::INT
    } else {
        a.set_f(value.parse().expect("a number"));
        T::FLOAT
    };
    a.set_type(kind as i32);
    a
}

fn node(outputs: &str, call: &str) -> NodeProto {
    let (op, rest) = call.split_once('(').expect("Op(...)");
    let (inputs, attributes) = rest.split_once(')').expect("Op(...)");
    let (domain, kind) = op.rsplit_once('.').unwrap_or(("", op));
    let names = |list: &str| list.split(',').map(str::trim).filter(|n| !n.is_empty()).map(blank).collect();
    let mut node = NodeProto::new();
    node.set_op_type(kind.to_owned());
    node.set_domain(domain.to_owned());
    node.set_name(format!("{kind} {}", outputs.split(',').next().unwrap_or("")));
    node.input = names(inputs);
    node.output = names(outputs);
    node.attribute = attributes.split_whitespace().map(attribute).collect();
    node
}

fn blank(name: &str) -> String {
    if name == "_" { String::new() } else { name.to_owned() }
}

/// A graph from statements; the model's operator set stays with the caller.
pub fn graph(text: &str) -> GraphProto {
    let mut graph = GraphProto::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("opset")) {
        if let Some((name, kind)) = line.split_once(": ") {
            match kind.strip_suffix(" declared") {
                Some(kind) => graph.value_info.push(value_info(name, kind)),
                None => graph.input.push(value_info(name, kind)),
            }
        } else {
            let (left, right) = line.split_once(" = ").expect("name: type, or names = ...");
            if right.contains('(') {
                graph.node.push(node(left, right));
            } else {
                graph.initializer.push(tensor(left, right));
            }
        }
    }
    let read: Vec<&String> = graph.node.iter().flat_map(|n| &n.input).collect();
    let unread = graph.node.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty() && !read.contains(o));
    let outputs = unread.map(|name| {
        let mut value = ValueInfoProto::new();
        value.set_name(name.clone());
        value
    });
    graph.output = outputs.collect();
    graph
}

/// A model's message from statements.
pub fn proto(text: &str) -> ModelProto {
    let opset =
        text.lines().find_map(|l| l.trim().strip_prefix("opset ")).map_or(21, |v| v.parse().expect("a version"));
    let mut model = ModelProto::new();
    model.set_ir_version(10);
    let mut graph = graph(text);
    graph.set_name("test".to_owned());
    let mut domains: Vec<&str> = graph.node.iter().map(|n| n.domain()).collect();
    domains.push("");
    domains.sort_unstable();
    domains.dedup();
    for domain in domains {
        let mut import = OperatorSetIdProto::new();
        import.set_domain(domain.to_owned());
        import.set_version(if domain.is_empty() { opset } else { 1 });
        model.opset_import.push(import);
    }
    model.graph = Some(graph).into();
    model
}

/// A checked model from statements.
pub fn model(text: &str) -> Model {
    Model::from_proto(proto(text)).unwrap_or_else(|e| panic!("{e}\n{text}"))
}
