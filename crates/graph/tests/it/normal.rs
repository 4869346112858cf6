//! What files may write in several ways is one and the same model.

use tierline_graph::constant::{tensor_from_proto, tensor_to_proto};
use tierline_graph::cuts::cuts;
use tierline_graph::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, OperatorSetIdProto, SparseTensorProto,
    attribute_proto::AttributeType,
};
use tierline_graph::{Elements, Model, Tensor, infer_types};

use crate::text::{graph, proto};

fn main_graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.mut_or_insert_default()
}

fn body(name: &str, graph: GraphProto) -> AttributeProto {
    let mut attribute = AttributeProto::new();
    attribute.set_name(name.to_owned());
    attribute.set_type(AttributeType::GRAPH as i32);
    attribute.g = Some(graph).into();
    attribute
}

fn frontiers(model: &Model) -> Vec<Vec<String>> {
    cuts(model, &infer_types(model).unwrap()).into_iter().map(|c| c.tensors).collect()
}

/// Nodes in the reverse of a valid order, in the graph, its bodies and functions.
#[test]
fn the_order_of_nodes_makes_no_difference() {
    let text = "x: f32[N,4]\na = Relu(x)\nb = Exp(a)\nc = Abs(b)\nd = Add(a, c)\ne = Neg(d)";
    let mut sound = proto(text);
    let call = graph("f = local.Twice(e)").node.remove(0);
    main_graph(&mut sound).node.push(call);
    main_graph(&mut sound).output[0].set_name("f".to_owned());
    sound.opset_import.push(OperatorSetIdProto {
        domain: Some("local".to_owned()),
        version: Some(1),
        ..Default::default()
    });
    sound.functions.push(FunctionProto {
        domain: Some("local".to_owned()),
        name: Some("Twice".to_owned()),
        input: vec!["i".to_owned()],
        output: vec!["o".to_owned()],
        node: graph("h = Relu(i)\no = Add(h, h)").node,
        ..Default::default()
    });
    let branch = graph("p = Sin(a)\nq = Cos(p)");
    let mut choice = graph("g = If(k)").node.remove(0);
    choice.attribute = vec![body("then_branch", branch.clone()), body("else_branch", branch)];
    main_graph(&mut sound).node.push(choice);
    main_graph(&mut sound).initializer.push(tensor_to_proto("k", &Tensor::new([], Elements::Bool(vec![1])).unwrap()));
    main_graph(&mut sound).output.push(graph("g = Relu(a)").output.remove(0));

    let mut backwards = sound.clone();
    main_graph(&mut backwards).node.reverse();
    backwards.functions[0].node.reverse();
    for attribute in main_graph(&mut backwards).node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute.g.mut_or_insert_default().node.reverse();
    }
    let (sound, backwards) = (Model::from_proto(sound).unwrap(), Model::from_proto(backwards).unwrap());
    let types = infer_types(&sound).unwrap();
    assert_eq!(infer_types(&backwards).unwrap(), types);
    assert_eq!(types.get("f").unwrap().shape, types.get("x").unwrap().shape);
    assert_eq!(types.get("g").unwrap().shape, types.get("x").unwrap().shape);
    // Nodes that need no other stand where the file has them.
    assert_eq!(frontiers(&backwards).len(), frontiers(&sound).len());
    assert_eq!(backwards.proto().functions[0].node, sound.proto().functions[0].node);
    let order = |m: &Model| -> Vec<String> { m.graph().node.iter().map(|n| n.output[0].clone()).collect() };
    assert_eq!(order(&sound), ["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(order(&backwards)[0], "a");
}

#[test]
fn the_default_domain_may_be_spelled_out() {
    let text = "opset 17\nx: f32[N,4]\na = Relu(x)\nb = Exp(a)";
    let plain = Model::from_proto(proto(text)).unwrap();
    let spelled = |nodes: bool, imports: &[(&str, i64)]| {
        let mut model = proto(text);
        if nodes {
            main_graph(&mut model).node.iter_mut().for_each(|n| n.set_domain("ai.onnx".to_owned()));
        }
        let import = |(domain, version): &(&str, i64)| OperatorSetIdProto {
            domain: Some((*domain).to_owned()),
            version: Some(*version),
            ..Default::default()
        };
        model.opset_import = imports.iter().map(import).collect();
        Model::from_proto(model).unwrap()
    };
    for (nodes, imports) in [
        (true, &[("ai.onnx", 17)][..]),
        (false, &[("ai.onnx", 17)]),
        (true, &[("", 17)]),
        (true, &[("ai.onnx", 9), ("", 17)]),
    ] {
        let model = spelled(nodes, imports);
        assert_eq!(model.opset(""), Some(17));
        assert_eq!(frontiers(&model), [["a"]]);
        assert!(model.graph().node.iter().all(|n| n.domain().is_empty()));
        assert_eq!(model.graph().node.len(), plain.graph().node.len());
    }
}

/// Before IR 4 weights had to be listed as inputs; some exporters still do.
#[test]
fn weights_listed_as_inputs_are_weights() {
    for ir in [3, 8] {
        let mut listed = proto("opset 9\nx: f32[N,4]\nw: f32[4,3]\nw = f32[4,3]\ny = MatMul(x, w)");
        listed.set_ir_version(ir);
        let model = Model::from_proto(listed).unwrap();
        let inputs: Vec<String> = model.graph().input.iter().map(|i| i.name().to_owned()).collect();
        assert_eq!(inputs, ["x"], "IR {ir}");
        assert_eq!(model.graph().initializer.len(), 1);
        assert!(model.proto().ir_version() >= 4);
        assert_eq!(tierline_graph::step::parameters(&model, &[]).unwrap(), ["w"], "IR {ir}");
    }
    // What isn't listed keeps its version.
    let mut old = proto("opset 9\nx: f32[N,4]\ny = Relu(x)");
    old.set_ir_version(3);
    assert_eq!(Model::from_proto(old).unwrap().proto().ir_version(), 3);
}

fn sparse(values: &[f32], indices: (&[usize], &[i64]), dims: &[i64]) -> SparseTensorProto {
    let values = Tensor::new([values.len()], Elements::F32(values.to_vec())).unwrap();
    let indices = Tensor::new(indices.0, Elements::I64(indices.1.to_vec())).unwrap();
    SparseTensorProto {
        values: Some(tensor_to_proto("w", &values)).into(),
        indices: Some(tensor_to_proto("", &indices)).into(),
        dims: dims.to_vec(),
        ..Default::default()
    }
}

fn sparse_attribute(sparse: SparseTensorProto) -> AttributeProto {
    let mut attribute = AttributeProto::new();
    attribute.set_name("sparse_value".to_owned());
    attribute.set_type(AttributeType::SPARSE_TENSOR as i32);
    attribute.sparse_tensor = Some(sparse).into();
    attribute
}

#[test]
fn sparse_constants_are_written_out() {
    let dense = Tensor::new([2, 3], Elements::F32(vec![0.0, 2.0, 0.0, 0.0, 0.0, 5.0])).unwrap();
    let forms = [sparse(&[2.0, 5.0], (&[2], &[1, 5]), &[2, 3]), sparse(&[2.0, 5.0], (&[2, 2], &[0, 1, 1, 2]), &[2, 3])];
    for form in forms {
        let mut initialiser = proto("x: f32[N,2]\ny = MatMul(x, w)\nw = f32[1]");
        let graph = main_graph(&mut initialiser);
        graph.initializer.clear();
        graph.sparse_initializer.push(form.clone());
        let model = Model::from_proto(initialiser).unwrap();
        assert!(model.graph().sparse_initializer.is_empty());
        assert_eq!(tensor_from_proto(&model.graph().initializer[0]).unwrap(), dense);
        assert_eq!(infer_types(&model).unwrap().get("y").unwrap().shape.as_ref().unwrap().len(), 2);

        let mut node = proto("x: f32[N,2]\nw = Constant()\ny = MatMul(x, w)");
        main_graph(&mut node).node[0].attribute.push(sparse_attribute(form));
        let model = Model::from_proto(node).unwrap();
        let attribute = &model.graph().node[0].attribute[0];
        assert_eq!((attribute.name(), attribute.type_), ("value", Some(AttributeType::TENSOR as i32)));
        assert_eq!(tensor_from_proto(&attribute.t).unwrap(), dense);
    }
    let empty = sparse(&[], (&[0], &[]), &[2, 3]);
    let mut model = proto("x: f32[N,2]\nw = Constant()\ny = MatMul(x, w)");
    main_graph(&mut model).node[0].attribute.push(sparse_attribute(empty));
    let zeros = Tensor::new([2, 3], Elements::F32(vec![0.0; 6])).unwrap();
    assert_eq!(tensor_from_proto(&Model::from_proto(model).unwrap().graph().node[0].attribute[0].t).unwrap(), zeros);
}

#[test]
fn sparse_constants_that_are_none_are_refused() {
    let cases = [
        (sparse(&[2.0], (&[1], &[6]), &[2, 3]), "index [6] lies outside of [2, 3]"),
        (sparse(&[2.0], (&[1], &[-1]), &[2, 3]), "index [-1] lies outside of [2, 3]"),
        (sparse(&[2.0], (&[1, 2], &[2, 0]), &[2, 3]), "index [2, 0] lies outside of [2, 3]"),
        (sparse(&[2.0], (&[2], &[1, 2]), &[2, 3]), "1 values and indices of shape [2]"),
        (sparse(&[2.0], (&[1, 3], &[1, 2, 0]), &[2, 3]), "1 values and indices of shape [1, 3]"),
        (sparse(&[2.0], (&[1], &[1]), &[1 << 20, 1 << 20]), "a model's sparse constants may take"),
    ];
    for (form, reason) in cases {
        let mut model = proto("x: f32[N,2]\nw = Constant()\ny = MatMul(x, w)");
        main_graph(&mut model).node[0].attribute.push(sparse_attribute(form));
        let error = Model::from_proto(model).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
