//! Broken models are refused by an error that names what is broken.

use protobuf::Message;
use tierline_graph::onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, OperatorSetIdProto};
use tierline_graph::{LoadError, Model};

use crate::text::{graph, proto};

const MODEL: &str = "x: f32[1,4]\nw = f32[4,4]\na = MatMul(x, w)\nb = Relu(a)\nc = Add(b, x)";

fn refused(model: ModelProto) -> LoadError {
    match Model::from_proto(model) {
        Ok(_) => panic!("this model is broken and was taken"),
        Err(e) => e,
    }
}

/// A sound model with one thing changed.
fn broken(change: impl FnOnce(&mut ModelProto)) -> LoadError {
    let mut model = proto(MODEL);
    change(&mut model);
    refused(model)
}

fn main_graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.mut_or_insert_default()
}

#[test]
fn errors_name_node_and_tensor() {
    let cases: [(&str, LoadError); 16] = [
        (
            "node `Relu b` (Relu) reads tensor `ghost`, which nothing makes",
            broken(|m| main_graph(m).node[1].input[0] = "ghost".to_owned()),
        ),
        (
            "output `ghost` is made by no node and given by no input",
            broken(|m| main_graph(m).output[0].set_name("ghost".to_owned())),
        ),
        (
            "tensor `a` is made twice, the second time by node `Relu b` (Relu)",
            broken(|m| main_graph(m).node[1].output[0] = "a".to_owned()),
        ),
        (
            "tensor `w` is made twice, the second time by a second initialiser of that name",
            broken(|m| {
                let again = main_graph(m).initializer[0].clone();
                main_graph(m).initializer.push(again);
            }),
        ),
        (
            "tensor `x` is made twice, the second time by a second input of that name",
            broken(|m| {
                let again = main_graph(m).input[0].clone();
                main_graph(m).input.push(again);
            }),
        ),
        (
            "tensor `w` is made twice, the second time by node `MatMul a` (MatMul)",
            broken(|m| main_graph(m).node[0].output[0] = "w".to_owned()),
        ),
        // `c` only waits for the cycle of `a` and `b`; the error is about these.
        (
            "the graph has a cycle through node `Relu b` (Relu), which makes `b`",
            broken(|m| main_graph(m).node[0].input[0] = "b".to_owned()),
        ),
        (
            "node `Relu b` uses operator `Relu` of domain `com.example`, which the model does not import",
            broken(|m| main_graph(m).node[1].set_domain("com.example".to_owned())),
        ),
        (
            "constant `w`: shape [4, 4] of f32 takes 64 bytes; the file has 60",
            broken(|m| main_graph(m).initializer[0].set_raw_data(vec![0; 60].into())),
        ),
        ("constant `w`: a dimension of -4", broken(|m| main_graph(m).initializer[0].dims[0] = -4)),
        (
            "constant `w`: shape [4611686018427387904, 4611686018427387904] has more elements than memory can hold",
            broken(|m| main_graph(m).initializer[0].dims = vec![1 << 62; 2]),
        ),
        ("constant `w`: 65 axes; at most 64 are taken", broken(|m| main_graph(m).initializer[0].dims = vec![1; 65])),
        ("constant `w`: it has no element type", broken(|m| main_graph(m).initializer[0].data_type = None)),
        (
            "input `x`: its shape [1,9223372036854775807] has more elements than memory can hold",
            broken(|m| {
                let kind = main_graph(m).input[0].type_.mut_or_insert_default();
                let shape = kind.mut_tensor_type().shape.mut_or_insert_default();
                shape.dim[1].set_dim_value(i64::MAX);
            }),
        ),
        (
            "IR version 2 is not supported (4 and newer); export the model again with a newer exporter",
            broken(|m| m.set_ir_version(2)),
        ),
        (
            "operator set version 6 is not supported (7 and newer); export the model again with a newer exporter",
            broken(|m| m.opset_import[0].set_version(6)),
        ),
    ];
    for (expected, error) in cases {
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_file_without_a_graph_is_no_model() {
    for bytes in [&b""[..], b"\x08\x0a", b"not a model", &[0xff; 64], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
        let error = Model::parse(bytes.to_vec().into()).unwrap_err();
        assert!(matches!(error, LoadError::NotOnnx { .. }), "{error}");
    }
}

/// Puts a subgraph into the last node.
/// Files that are given in a model's place are called by their names.
#[test]
fn other_formats_are_told_apart() {
    let cases: [(&[u8], &str); 8] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
        (b"\x18\0\0\0ORTM\0\0\0\0", "ONNX Runtime's own format"),
        (b"\x1c\0\0\0TFL3\0\0\0\0", "TensorFlow Lite"),
        (b"PK\x03\x04\0\0\x08\x08", "PyTorch"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", "Keras"),
        (b"\x1f\x8b\x08\0\0", "compressed"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"<!DOCTYPE html>", "a web page"),
    ];
    for (bytes, what) in cases {
        let error = Model::parse(bytes.to_vec().into()).unwrap_err();
        assert!(matches!(error, LoadError::OtherFormat { .. }) && error.to_string().contains(what), "{error}");
    }
    // A model may bear such letters all the same.
    let mut proto = proto("x: f32[2]\na = Relu(x)");
    proto.producer_name = Some("ORTM".to_owned());
    let bytes = proto.write_to_bytes().unwrap();
    assert_eq!(&bytes[4..8], b"ORTM");
    Model::parse(bytes.into()).unwrap();
}

fn with_body(model: &mut ModelProto, body: GraphProto) {
    let mut attribute = AttributeProto::new();
    attribute.set_name("body".to_owned());
    attribute.g = Some(body).into();
    let nodes = &mut main_graph(model).node;
    nodes.last_mut().expect("a node").attribute.push(attribute);
}

#[test]
fn bodies_are_checked_and_see_the_names_around_them() {
    let mut model = proto(MODEL);
    let mut body = graph("y = Sum(b, w)");
    with_body(&mut model, body.clone());
    Model::from_proto(model.clone()).expect("a body may capture outer names");

    body.node[0].input[0] = "ghost".to_owned();
    let mut missing = proto(MODEL);
    with_body(&mut missing, body.clone());
    assert_eq!(refused(missing).to_string(), "node `Sum y` (Sum) reads tensor `ghost`, which nothing makes");

    // What a body captures is waited for as well.
    body.node[0].input[0] = "c".to_owned();
    let mut cycle = proto(MODEL);
    with_body(&mut cycle, body);
    assert_eq!(refused(cycle).to_string(), "the graph has a cycle through node `Add c` (Add), which makes `c`");

    let mut deep = graph("y = Relu(x)");
    for _ in 0..40 {
        let mut outer = ModelProto::new();
        outer.graph = Some(graph("y = Relu(x)")).into();
        with_body(&mut outer, deep);
        deep = outer.graph.unwrap();
    }
    let mut model = proto(MODEL);
    with_body(&mut model, deep);
    assert_eq!(refused(model.clone()).to_string(), "subgraphs nest deeper than 32 at node `Relu y`");
    assert!(Model::parse(model.write_to_bytes().unwrap().into()).is_err());
}

/// A function of domain `local`, called by the last node.
fn with_function(body: &str, call: &str) -> ModelProto {
    let mut model = proto(MODEL);
    let inner = graph(body);
    let mut function = FunctionProto::new();
    function.set_domain("local".to_owned());
    function.set_name("Twice".to_owned());
    function.input = vec!["x".to_owned()];
    function.output = inner.output.iter().map(|o| o.name().to_owned()).collect();
    function.node = inner.node;
    model.functions.push(function);
    let mut import = OperatorSetIdProto::new();
    import.set_domain("local".to_owned());
    import.set_version(1);
    model.opset_import.push(import);
    let node = graph(call).node.remove(0);
    main_graph(&mut model).node.push(node);
    model
}

#[test]
fn functions_are_checked() {
    Model::from_proto(with_function("y = Add(x, x)", "d = local.Twice(c)")).expect("a sound function");
    let error = refused(with_function("y = Add(x, ghost)", "d = local.Twice(c)"));
    assert_eq!(error.to_string(), "node `Add y` (Add) reads tensor `ghost`, which nothing makes");
    let error = refused(with_function("y = local.Twice(x)", "d = local.Twice(c)"));
    assert_eq!(error.to_string(), "the graph has a cycle through node `Twice y` (Twice), which makes `y`");
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = proto(MODEL).write_to_bytes().unwrap();
    let mut between_fields = Vec::new();
    for length in 0..bytes.len() {
        match Model::parse(bytes[..length].to_vec().into()) {
            Ok(_) => panic!("taken with {length} of {} bytes", bytes.len()),
            Err(LoadError::NotOnnx { reason }) => assert!(!reason.is_empty()),
            Err(_) => between_fields.push(length),
        }
    }
    // All that is left of the file is sound, but a field is missing: the
    // operator set, behind the graph.
    assert_eq!(between_fields, [bytes.len() - 6]);
    Model::parse(bytes.into()).expect("the whole file");
}

/// Fields of numbers that the format doesn't have (yet).
fn mark(fields: &mut protobuf::SpecialFields, number: u64) {
    fields.mut_unknown_fields().add_varint(5_000, number);
    fields.mut_unknown_fields().add_length_delimited(5_001, format!("kept {number}").into_bytes());
}

#[test]
fn unknown_fields_are_kept() {
    let mut model = proto(MODEL);
    mark(&mut model.special_fields, 1);
    let graph = main_graph(&mut model);
    mark(&mut graph.special_fields, 2);
    mark(&mut graph.node[0].special_fields, 3);
    mark(&mut graph.initializer[0].special_fields, 4);
    mark(&mut graph.input[0].special_fields, 5);
    let bytes = model.write_to_bytes().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    Model::parse(bytes.clone().into()).unwrap().save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(Model::load(&path).unwrap().proto(), &model);

    // Slices of the model keep them as well.
    let model = Model::load(&path).unwrap();
    let types = tierline_graph::infer_types(&model).unwrap();
    let at = [vec!["x".to_owned(), "a".to_owned()]];
    let slices = tierline_graph::slice::slice(&model, &types, &at).unwrap();
    assert_eq!(slices[0].proto().special_fields, model.proto().special_fields);
    assert_eq!(slices[1].graph().special_fields, model.graph().special_fields);
    assert_eq!(slices[0].graph().node[0], model.graph().node[0]);
    assert_eq!(slices[0].graph().initializer[0], model.graph().initializer[0]);
}
