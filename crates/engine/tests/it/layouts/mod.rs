//! Files as the public writes them: odd, but valid. Folded, and cut
//! everywhere, each gives what ONNX Runtime makes of the file as it is.

use std::collections::HashMap;
use std::sync::Arc;

use tierline_engine::{Engine, Evaluator, LoadOptions};
use tierline_graph::constant::tensor_to_proto;
use tierline_graph::cuts::cuts;
use tierline_graph::fold::fold;
use tierline_graph::onnx::{
    AttributeProto, FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorAnnotation, attribute_proto::AttributeType,
};
use tierline_graph::slice::slice;
use tierline_graph::{DataType, Elements, Model, Tensor, infer_computed_types, infer_types};
use tierline_zoo::{Batch, Options};

use crate::support::{Attributes, engines, f32s, model, node, onnxruntime};

mod tools;

type Values = HashMap<String, Tensor>;

fn run(engine: &Arc<dyn Engine>, model: &Model, given: &Values, what: &str) -> Vec<(String, Tensor)> {
    let mut session =
        engine.load(model, &LoadOptions::with_threads(1)).unwrap_or_else(|e| panic!("{what}: loading: {e}"));
    let names: Vec<String> = session.inputs().iter().map(|v| v.name.clone()).collect();
    let inputs: Vec<(&str, &Tensor)> = names.iter().map(|n| (n.as_str(), &given[n])).collect();
    let outputs = session.run(&inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
    model.outputs().into_iter().map(|v| v.name).zip(outputs).collect()
}

#[track_caller]
fn assert_close(expected: &[(String, Tensor)], made: &[(String, Tensor)], what: &str) {
    assert_eq!(expected.len(), made.len(), "{what}");
    for ((name, a), (_, b)) in expected.iter().zip(made) {
        assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{what}: `{name}`");
        match (a.as_f32(), b.as_f32()) {
            (Some(a), Some(b)) => {
                let scale = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
                let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                assert!(worst <= 1e-5 * scale, "{what}: `{name}` differs by {worst:e}");
            }
            _ => assert_eq!(a, b, "{what}: `{name}`"),
        }
    }
}

/// Runs the slices at `at` one after the other.
fn run_sliced(
    engine: &Arc<dyn Engine>,
    model: &Model,
    at: &[Vec<String>],
    given: &Values,
    what: &str,
) -> Vec<(String, Tensor)> {
    let types = infer_computed_types(model).expect("infers");
    let mut values = given.clone();
    let mut outputs = Vec::new();
    for (i, part) in slice(model, &types, at).unwrap_or_else(|e| panic!("{what}: {e}")).iter().enumerate() {
        // As other tools get them: written and read again.
        let part = Model::parse(part.to_bytes().unwrap().into()).expect("a slice is a model");
        outputs = run(engine, &part, &values, &format!("{what}, slice {i} at {at:?}"));
        values = outputs.iter().cloned().collect();
    }
    outputs
}

/// On every engine that takes it, the model and its slices at every cut give
/// the same for each of these inputs.
fn everywhere_the_same(what: &str, given: Model, reference: &Model, inputs: &[Values]) {
    let Some(runtime) = onnxruntime() else { return };
    let mut folded = given;
    fold(&mut folded, &mut Evaluator(Arc::clone(&runtime))).unwrap_or_else(|e| panic!("{what}: {e}"));
    let types = infer_types(&folded).unwrap_or_else(|e| panic!("{what}: {e}"));
    let found: Vec<Vec<String>> = cuts(&folded, &types).into_iter().map(|c| c.tensors).collect();
    for engine in engines() {
        let what = format!("{what} on {}", engine.name());
        for values in inputs {
            let expected = run(&runtime, reference, values, &format!("{what}, as it is"));
            assert_close(&expected, &run(&engine, &folded, values, &what), &what);
            let tried = if folded.graph().node.len() > 100 { 3 } else { 8 };
            let step = found.len().div_ceil(tried).max(1);
            for at in found.iter().step_by(step) {
                let sliced = run_sliced(&engine, &folded, std::slice::from_ref(at), values, &what);
                assert_close(&expected, &sliced, &format!("{what} at {at:?}"));
            }
            if found.len() > 1 {
                let all: Vec<Vec<String>> = found.iter().step_by(step).cloned().collect();
                assert_close(&expected, &run_sliced(&engine, &folded, &all, values, &what), &what);
            }
        }
    }
}

fn counted(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    f32s(shape, &(0..count).map(|i| (i as f32 * 0.618).sin()).collect::<Vec<_>>())
}

fn x(shape: &[usize]) -> Values {
    HashMap::from([("x".to_owned(), counted(shape))])
}

fn i64s(values: &[i64]) -> Tensor {
    Tensor::new([values.len()], Elements::I64(values.to_vec())).unwrap()
}

const F32: DataType = DataType::F32;

/// `x: [N, 4]`, through these nodes to `y`.
fn small(weights: &[(&str, Tensor)], nodes: Vec<NodeProto>) -> Model {
    model(17, &[("x", F32, &["N", "4"])], &[("y", F32, &["N", "4"])], weights, nodes)
}

fn chain() -> Vec<NodeProto> {
    vec![
        node("MatMul", &["x", "w"], &["a"]),
        node("Relu", &["a"], &["b"]),
        node("Exp", &["b"], &["c"]),
        node("Add", &["a", "c"], &["d"]),
        node("Neg", &["d"], &["y"]),
    ]
}

fn weighted() -> Model {
    small(&[("w", counted(&[4, 4]))], chain())
}

/// The weighted chain with its file changed, which must mean the same.
fn changed(change: impl FnOnce(&mut ModelProto)) -> Model {
    let mut proto = weighted().proto().clone();
    change(&mut proto);
    Model::from_proto(proto).unwrap()
}

fn sparse(dims: &[i64]) -> SparseTensorProto {
    SparseTensorProto {
        values: Some(tensor_to_proto("w", &f32s(&[2], &[1.0, 2.0]))).into(),
        indices: Some(tensor_to_proto("i", &i64s(&[0, 6]))).into(),
        dims: dims.to_vec(),
        ..Default::default()
    }
}

fn dense() -> Tensor {
    let mut values = vec![0.0; 16];
    (values[0], values[6]) = (1.0, 2.0);
    f32s(&[4, 4], &values)
}

#[test]
fn a_file_may_say_the_same_in_other_ways() {
    let inputs = [x(&[1, 4]), x(&[3, 4])];
    let import = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
        ..Default::default()
    };
    let cases: Vec<(&str, Model)> = vec![
        ("nodes backwards", changed(|m| m.graph.mut_or_insert_default().node.reverse())),
        (
            "the domain spelled out",
            changed(|m| {
                m.graph.mut_or_insert_default().node.iter_mut().for_each(|n| n.set_domain("ai.onnx".to_owned()));
                m.opset_import = vec![import("ai.onnx", 17)];
            }),
        ),
        (
            "weights as inputs",
            changed(|m| {
                let graph = m.graph.mut_or_insert_default();
                let mut listed = graph.input[0].clone();
                listed.set_name("w".to_owned());
                listed.type_.mut_or_insert_default().mut_tensor_type().shape = None.into();
                graph.input.insert(0, listed);
            }),
        ),
        (
            "IR 3, operator set 7",
            changed(|m| {
                let graph = m.graph.mut_or_insert_default();
                let mut listed = graph.input[0].clone();
                listed.set_name("w".to_owned());
                listed.type_.mut_or_insert_default().mut_tensor_type().shape.mut_or_insert_default().dim[0]
                    .set_dim_value(4);
                graph.input.push(listed);
                m.ir_version = Some(3);
                m.opset_import = vec![import("", 7)];
            }),
        ),
        (
            "wrong and missing declarations",
            changed(|m| {
                let graph = m.graph.mut_or_insert_default();
                for (name, dims) in [("a", &[7i64, 9][..]), ("b", &[1, 4]), ("c", &[]), ("d", &[1, 2, 3])] {
                    let mut value = graph.input[0].clone();
                    value.set_name(name.to_owned());
                    let shape = value.type_.mut_or_insert_default().mut_tensor_type().shape.mut_or_insert_default();
                    shape.dim.resize_with(dims.len(), Default::default);
                    shape.dim.iter_mut().zip(dims).for_each(|(d, n)| d.set_dim_value(*n));
                    graph.value_info.push(value.clone());
                    graph.value_info.push(value);
                }
                graph.output[0]
                    .type_
                    .mut_or_insert_default()
                    .mut_tensor_type()
                    .shape
                    .mut_or_insert_default()
                    .dim
                    .clear();
            }),
        ),
        ("an output without a type", changed(|m| m.graph.mut_or_insert_default().output[0].type_ = None.into())),
        (
            "notes of all kinds",
            changed(|m| {
                m.metadata_props.push(StringStringEntryProto {
                    key: Some("k".into()),
                    value: Some("v".into()),
                    ..Default::default()
                });
                let graph = m.graph.mut_or_insert_default();
                graph
                    .quantization_annotation
                    .push(TensorAnnotation { tensor_name: Some("a".into()), ..Default::default() });
                graph.doc_string = Some("notes".into());
                graph.node[0].name = None;
                graph.name = None;
            }),
        ),
        (
            "an unused weight, an unused node",
            changed(|m| {
                let graph = m.graph.mut_or_insert_default();
                graph.initializer.push(tensor_to_proto("unused", &counted(&[3])));
                graph.node.push(node("Sin", &["unused"], &["nowhere"]));
            }),
        ),
        (
            "a weight in a typed field",
            changed(|m| {
                let weight = &mut m.graph.mut_or_insert_default().initializer[0];
                weight.raw_data = None;
                weight.float_data = counted(&[4, 4]).as_f32().unwrap().to_vec();
            }),
        ),
        (
            "names with commas, blanks and slashes",
            changed(|m| {
                for name in m
                    .graph
                    .mut_or_insert_default()
                    .node
                    .iter_mut()
                    .flat_map(|n| n.input.iter_mut().chain(&mut n.output))
                {
                    if ["a", "b", "c", "d"].contains(&name.as_str()) {
                        *name = format!("/layer {name}, out:0");
                    }
                }
            }),
        ),
    ];
    for (what, model) in cases {
        everywhere_the_same(what, model, &weighted(), &inputs);
    }
}

#[test]
fn sparse_weights_are_weights() {
    let reference = small(&[("w", dense())], chain());
    let inputs = [x(&[2, 4])];
    let initialiser = changed(|m| {
        let graph = m.graph.mut_or_insert_default();
        graph.initializer.clear();
        graph.sparse_initializer.push(sparse(&[4, 4]));
    });
    everywhere_the_same("a sparse initialiser", initialiser, &reference, &inputs);
    let constant = |in_function: bool| {
        let mut attribute = AttributeProto::new();
        attribute.set_name("sparse_value".to_owned());
        attribute.set_type(AttributeType::SPARSE_TENSOR as i32);
        attribute.sparse_tensor = Some(sparse(&[4, 4])).into();
        let mut made = node("Constant", &[], &["w"]);
        made.attribute.push(attribute);
        changed(|m| {
            if in_function {
                m.functions.push(FunctionProto {
                    domain: Some("local".to_owned()),
                    name: Some("Weight".to_owned()),
                    output: vec!["w".to_owned()],
                    node: vec![made],
                    opset_import: m.opset_import.clone(),
                    ..Default::default()
                });
                m.opset_import.push(OperatorSetIdProto {
                    domain: Some("local".to_owned()),
                    version: Some(1),
                    ..Default::default()
                });
                made = node("Weight", &[], &["w"]);
                made.set_domain("local".to_owned());
            }
            let graph = m.graph.mut_or_insert_default();
            graph.initializer.clear();
            graph.node.insert(0, made);
        })
    };
    everywhere_the_same("a sparse constant", constant(false), &reference, &inputs);
    // As an output nothing folds it, and an engine would give it as it is.
    let mut bare = constant(false).proto().clone();
    let graph = bare.graph.mut_or_insert_default();
    let mut w = graph.output[0].clone();
    w.set_name("w".to_owned());
    w.type_.mut_or_insert_default().mut_tensor_type().shape = None.into();
    graph.output.push(w);
    let bare = Model::from_proto(bare).unwrap();
    for engine in engines() {
        let made = run(&engine, &bare, &inputs[0], "a sparse output");
        assert_eq!(made[1].1, dense(), "{}", engine.name());
    }
    // rten knows no functions; ONNX Runtime does.
    if let Some(runtime) = onnxruntime() {
        let made = run(&runtime, &constant(true), &inputs[0], "in a function");
        assert_close(&run(&runtime, &reference, &inputs[0], "dense"), &made, "in a function");
    }
}

/// Constant nodes in all their forms, and parts left out.
#[test]
fn constants_have_many_forms() {
    let constant = |output: &str, attribute: AttributeProto| {
        let mut made = node("Constant", &[], &[output]);
        made.attribute.push(attribute);
        made
    };
    let attribute = |name: &str, kind: AttributeType, set: &dyn Fn(&mut AttributeProto)| {
        let mut attribute = AttributeProto::new();
        attribute.set_name(name.to_owned());
        attribute.set_type(kind as i32);
        set(&mut attribute);
        attribute
    };
    let nodes = vec![
        constant("f", attribute("value_float", AttributeType::FLOAT, &|a| a.set_f(0.5))),
        constant("fs", attribute("value_floats", AttributeType::FLOATS, &|a| a.floats = vec![1.0, 2.0, 3.0, 4.0])),
        constant("i", attribute("value_int", AttributeType::INT, &|a| a.set_i(1))),
        constant("is", attribute("value_ints", AttributeType::INTS, &|a| a.ints = vec![0, -1])),
        constant("s", attribute("value_string", AttributeType::STRING, &|a| a.set_s("text".into()))),
        constant(
            "ss",
            attribute("value_strings", AttributeType::STRINGS, &|a| a.strings = vec!["a".into(), "b".into()]),
        ),
        node("Mul", &["x", "fs"], &["a"]),
        node("Add", &["a", "f"], &["b"]),
        node("Reshape", &["b", "is"], &["c"]),
        node("Gather", &["c", "i"], &["row"]).int("axis", 1),
        node("Unsqueeze", &["row", "one"], &["column"]),
        // Left out: the first of two bounds, the mask behind.
        node("Clip", &["c", "", "f"], &["d"]),
        node("Dropout", &["d"], &["e", ""]),
        node("Add", &["e", "column"], &["y"]),
    ];
    let built = small(&[("one", i64s(&[1]))], nodes);
    everywhere_the_same("constants of all forms", built.clone(), &built, &[x(&[2, 4]), x(&[5, 4])]);
}

/// A free batch stays free in every slice, whatever it was profiled at: also
/// through shapes that the graph computes itself.
#[test]
fn slices_take_every_size_that_the_whole_takes() {
    let plain = weighted();
    everywhere_the_same("a chain", plain.clone(), &plain, &[x(&[1, 4]), x(&[2, 4]), x(&[7, 4])]);

    // [N, S, 8] in two heads and back, as exporters write it.
    let heads = vec![
        node("Shape", &["x"], &["sizes"]),
        node("Gather", &["sizes", "first"], &["n"]).int("axis", 0),
        node("Gather", &["sizes", "second"], &["s"]).int("axis", 0),
        node("Concat", &["n", "s", "rest"], &["split"]).int("axis", 0),
        node("MatMul", &["x", "w"], &["projected"]),
        node("Reshape", &["projected", "split"], &["apart"]),
        node("Transpose", &["apart"], &["heads"]).ints("perm", &[0, 2, 1, 3]),
        node("Transpose", &["apart"], &["keys"]).ints("perm", &[0, 2, 3, 1]),
        node("MatMul", &["heads", "keys"], &["scores"]),
        node("Softmax", &["scores"], &["weights"]).int("axis", -1),
        node("MatMul", &["weights", "heads"], &["mixed"]),
        node("Transpose", &["mixed"], &["back"]).ints("perm", &[0, 2, 1, 3]),
        node("Reshape", &["back", "flat"], &["joined"]),
        node("Add", &["joined", "x"], &["added"]),
        node("Slice", &["added", "zero", "one", "one"], &["head"]),
        node("Squeeze", &["head", "one"], &["token"]),
        node("Tanh", &["token"], &["y"]),
    ];
    let weights = [
        ("w", counted(&[8, 8])),
        ("first", i64s(&[0])),
        ("second", i64s(&[1])),
        ("rest", i64s(&[2, 4])),
        ("flat", i64s(&[0, 0, 8])),
        ("zero", i64s(&[0])),
        ("one", i64s(&[1])),
    ];
    let heads = model(17, &[("x", F32, &["N", "S", "8"])], &[("y", F32, &["N", "8"])], &weights, heads);
    everywhere_the_same("heads", heads.clone(), &heads, &[x(&[1, 3, 8]), x(&[2, 3, 8]), x(&[5, 2, 8])]);
}

/// The same of a sentence encoder with free batch and length.
#[test]
fn slices_of_a_transformer_take_every_size() {
    let free = Options { batch: Batch::Free, ..Options::default() };
    let encoder = tierline_zoo::by_name("minilm", &free).expect("in the zoo");
    let given = |n: usize, s: usize| -> Values {
        let ids = |f: &dyn Fn(usize) -> i64| Tensor::new([n, s], Elements::I64((0..n * s).map(f).collect())).unwrap();
        HashMap::from([
            ("input_ids".to_owned(), ids(&|i| (i as i64 * 37 + 5) % 1_000)),
            ("attention_mask".to_owned(), ids(&|i| i64::from(i % s < s - 1))),
            ("token_type_ids".to_owned(), ids(&|_| 0)),
        ])
    };
    everywhere_the_same("minilm", encoder.clone(), &encoder, &[given(1, 12), given(3, 7)]);
    let picture = |n: usize| HashMap::from([("input".to_owned(), counted(&[n, 3, 224, 224]))]);
    let network = tierline_zoo::by_name("vit_tiny", &free).expect("in the zoo");
    everywhere_the_same("vit_tiny", network.clone(), &network, &[picture(1), picture(2)]);
}

/// Sizes may follow from what a caller gives. rten would end the process where
/// there isn't so much memory: such a request is refused, the next one works.
#[test]
fn a_request_too_large_for_memory_is_refused() {
    let far = 1 << 40;
    let int = |values: &[i64]| i64s(values);
    let scalar = |value: i64| Tensor::new([], Elements::I64(vec![value])).unwrap();
    let weights = [("one", f32s(&[1, 1, 1, 1], &[2.0])), ("w", f32s(&[1], &[1.0]))];
    type Case<'c> = (&'c str, &'c [&'c str], Vec<NodeProto>, Tensor, Tensor);
    let cases: Vec<Case<'_>> = vec![
        (
            "ConstantOfShape",
            &["2"],
            vec![node("ConstantOfShape", &["s"], &["y"])],
            int(&[far / 4, 1 << 8]),
            int(&[2, 3]),
        ),
        ("Expand", &["2"], vec![node("Expand", &["w", "s"], &["y"])], int(&[1 << 24, 1 << 24]), int(&[2, 3])),
        ("Tile", &["4"], vec![node("Tile", &["one", "s"], &["y"])], int(&[1 << 24, 1 << 20, 1, 1]), int(&[2, 2, 1, 1])),
        (
            "Resize",
            &["4"],
            vec![node("Resize", &["one", "", "", "s"], &["y"])],
            int(&[1, 1, 1 << 24, 1 << 24]),
            int(&[1, 1, 2, 2]),
        ),
        (
            "Pad",
            &["8"],
            vec![node("Pad", &["one", "s"], &["y"])],
            int(&[0, 0, 0, 0, 0, 0, 1 << 24, 1 << 24]),
            int(&[0; 8]),
        ),
        (
            "Range",
            &[],
            vec![node("Range", &["zero", "s", "step"], &["r"]), node("Cast", &["r"], &["y"]).int("to", 1)],
            scalar(i64::from(i32::MAX)),
            scalar(5),
        ),
    ];
    let engine = tierline_engine::rten();
    for (what, shape, nodes, huge, fitting) in cases {
        let mut weights = weights.to_vec();
        weights.extend([("zero", scalar(0)), ("step", scalar(1))]);
        let rank: Vec<&str> = shape.to_vec();
        let built = model(17, &[("s", DataType::I64, &rank)], &[("y", F32, &[])], &weights, nodes);
        let mut proto = built.proto().clone();
        proto.graph.mut_or_insert_default().output[0].type_.mut_or_insert_default().mut_tensor_type().shape =
            None.into();
        let built = Model::from_proto(proto).unwrap();
        let mut session = engine.load(&built, &LoadOptions::with_threads(1)).unwrap_or_else(|e| panic!("{what}: {e}"));
        if what != "Range" {
            let error = session.run(&[("s", &huge)]).expect_err(what);
            assert!(error.to_string().contains("are free; give smaller inputs"), "{what}: {error}");
        }
        assert!(!session.run(&[("s", &fitting)]).unwrap_or_else(|e| panic!("{what}: {e}"))[0].is_empty(), "{what}");
    }
    // From shapes alone: a column times a row.
    let outer = vec![
        node("Reshape", &["x", "column"], &["c"]),
        node("Reshape", &["x", "row"], &["r"]),
        node("Mul", &["c", "r"], &["y"]),
    ];
    let weights = [("column", i64s(&[-1, 1])), ("row", i64s(&[1, -1]))];
    let built = model(17, &[("x", F32, &["N"])], &[("y", F32, &["N", "N"])], &weights, outer);
    let mut session = engine.load(&built, &LoadOptions::with_threads(1)).unwrap();
    let error = session.run(&[("x", &counted(&[1 << 22]))]).unwrap_err();
    assert!(error.to_string().contains("are free; give smaller inputs"), "{error}");
    assert_eq!(session.run(&[("x", &counted(&[3]))]).unwrap()[0].shape(), [3, 3]);
}

/// rten's own inference of shapes panics on a list of sizes that is shorter
/// than the tensor has axes; the model is sound and runs.
#[test]
fn a_panic_of_the_engine_stays_behind_its_border() {
    let nodes = vec![node("Expand", &["x", "s"], &["y"])];
    let built = model(
        17,
        &[("x", F32, &["2", "3", "4"]), ("s", DataType::I64, &["1"])],
        &[("y", F32, &["a", "b", "c"])],
        &[],
        nodes,
    );
    for engine in engines() {
        let values = HashMap::from([("x".to_owned(), counted(&[2, 3, 4])), ("s".to_owned(), i64s(&[4]))]);
        let made = run(&engine, &built, &values, engine.name());
        assert_eq!(made[0].1, counted(&[2, 3, 4]), "{}", engine.name());
    }
}

/// On processors without instructions for it, engines would cut sums of
/// products of bytes off; other engines on other tiers wouldn't.
#[test]
fn sums_of_products_of_bytes_are_whole() {
    const INNER: usize = 48;
    let (rows, columns) = (3, 5);
    let bytes =
        |from: usize, count: usize| (0..count).map(move |i| [255u8, 254, 3, 128, 127, 129, 0][(i * i + from) % 7]);
    let signed = |values: Vec<u8>| Elements::I8(values.into_iter().map(|v| v as i8).collect());
    for (a_signed, b_signed, constant) in
        [(false, false, true), (false, true, true), (true, false, true), (true, true, true), (false, true, false)]
    {
        let kind = |is_signed: bool| if is_signed { DataType::I8 } else { DataType::U8 };
        let tensor = |values: Vec<u8>, shape: &[usize], is_signed: bool| {
            Tensor::new(shape, if is_signed { signed(values) } else { Elements::U8(values) }).unwrap()
        };
        let number = |v: u8, is_signed: bool| if is_signed { i64::from(v as i8) } else { i64::from(v) };
        let a: Vec<u8> = bytes(0, rows * INNER).collect();
        let b: Vec<u8> = bytes(1, INNER * columns).map(|v| if v == 0 && b_signed { 128 } else { v }).collect();
        let (a_zero, b_zero) = (7u8, 130u8);
        let sum = |row: usize, column: usize| -> i64 {
            let zeros = (number(a_zero, a_signed), number(b_zero, b_signed));
            let each = (0..INNER).map(|i| (a[row * INNER + i], b[i * columns + column]));
            each.map(|(x, y)| (number(x, a_signed) - zeros.0) * (number(y, b_signed) - zeros.1)).sum()
        };
        let expected: Vec<i32> = (0..rows * columns).map(|i| sum(i / columns, i % columns) as i32).collect();
        let mut weights = vec![
            ("az", tensor(vec![a_zero], &[], a_signed)),
            ("bz", tensor(vec![b_zero], &[], b_signed)),
            ("b", tensor(b.clone(), &[INNER, columns], b_signed)),
        ];
        let mut inputs = vec![("a", kind(a_signed), &["3", "48"][..])];
        let mut given = HashMap::from([("a".to_owned(), tensor(a.clone(), &[rows, INNER], a_signed))]);
        if !constant {
            inputs.push(("b", kind(b_signed), &["48", "5"][..]));
            given.insert("b".to_owned(), weights.pop().unwrap().1);
        }
        let nodes = vec![node("MatMulInteger", &["a", "b", "az", "bz"], &["y"])];
        let built = model(13, &inputs, &[("y", DataType::I32, &["3", "5"])], &weights, nodes);
        for engine in engines() {
            let what = format!("{} of signed {a_signed} {b_signed}", engine.name());
            match engine.load(&built, &LoadOptions::with_threads(1)) {
                Err(error) => assert!(!constant && error.to_string().contains("cut off"), "{what}: {error}"),
                Ok(_) => {
                    let made = run(&engine, &built, &given, &what);
                    assert_eq!(made[0].1.elements(), &Elements::I32(expected.clone()), "{what}");
                }
            }
        }
    }
    // Channels through a convolution of one place, as exporters of quantised
    // networks write it.
    let (channels, outputs, places) = (32, 4, 6);
    let x: Vec<u8> = bytes(2, channels * places).collect();
    let w: Vec<u8> = bytes(3, outputs * channels).collect();
    let sum = |output: usize, place: usize| -> i32 {
        (0..channels).map(|c| i32::from(x[c * places + place]) * (i32::from(w[output * channels + c]) - 128)).sum()
    };
    let expected: Vec<i32> = (0..outputs * places).map(|i| sum(i / places, i % places)).collect();
    let weights = [
        ("w", Tensor::new([outputs, channels, 1, 1], Elements::U8(w.clone())).unwrap()),
        ("xz", Tensor::new([], Elements::U8(vec![0])).unwrap()),
        ("wz", Tensor::new([], Elements::U8(vec![128])).unwrap()),
    ];
    let nodes = vec![node("ConvInteger", &["x", "w", "xz", "wz"], &["y"])];
    let shape: &[&str] = &["1", "32", "2", "3"];
    let built =
        model(13, &[("x", DataType::U8, shape)], &[("y", DataType::I32, &["1", "4", "2", "3"])], &weights, nodes);
    let given = HashMap::from([("x".to_owned(), Tensor::new([1, channels, 2, 3], Elements::U8(x.clone())).unwrap())]);
    for engine in engines() {
        let made = run(&engine, &built, &given, engine.name());
        assert_eq!(made[0].1.elements(), &Elements::I32(expected.clone()), "{}", engine.name());
    }
}
