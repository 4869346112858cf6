//! Types, shapes and bad input on small graphs, the same for every engine.

use std::time::{Duration, Instant};

use half::f16;
use tierline_engine::{
    CandidateState, Choice, Engine, EngineError, LoadOptions, Provider, Search, Session, StateSlot, Stop,
};
use tierline_graph::DataType::{self, *};
use tierline_graph::{Elements, Model, Tensor};
use tierline_zoo::build::{Attribute, Builder};

use crate::support::{Attributes, engines, f32s, model, node, onnxruntime};

fn load(engine: &dyn Engine, model: &Model) -> Box<dyn Session> {
    engine.load(model, &LoadOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", engine.name()))
}

/// Inputs `a [n, 2]` and `b [2]`; outputs `sum` and `product`.
fn two_by_two() -> Model {
    model(
        17,
        &[("a", F32, &["n", "2"]), ("b", F32, &["2"])],
        &[("sum", F32, &["n", "2"]), ("product", F32, &["n", "2"])],
        &[],
        vec![node("Add", &["a", "b"], &["sum"]), node("Mul", &["a", "b"], &["product"])],
    )
}

#[test]
fn several_inputs_and_outputs_with_a_dynamic_axis() {
    for engine in engines() {
        let mut session = load(&*engine, &two_by_two());
        let b = f32s(&[2], &[10., 100.]);
        let mut outputs = Vec::new();
        for n in [1, 3, 3] {
            let a = f32s(&[n, 2], &vec![2.; 2 * n]);
            // The order in which inputs are given doesn't matter.
            session.run_into(&[("b", &b), ("a", &a)], &mut outputs).unwrap();
            assert_eq!(outputs[0], f32s(&[n, 2], &[12., 102.].repeat(n)), "{}", engine.name());
            assert_eq!(outputs[1], f32s(&[n, 2], &[20., 200.].repeat(n)), "{}", engine.name());
            assert_eq!(outputs.len(), 2);
        }
    }
}

#[test]
fn bad_inputs_are_named_and_the_next_run_works() {
    for engine in engines() {
        let mut session = load(&*engine, &two_by_two());
        let (a, b) = (f32s(&[1, 2], &[1., 2.]), f32s(&[2], &[1., 1.]));
        let ints = Tensor::new([2], Elements::I32(vec![1, 1])).unwrap();
        let wide = f32s(&[3], &[1., 1., 1.]);
        let flat = f32s(&[2], &[1., 1.]);
        let mut error = |given: &[(&str, &Tensor)]| session.run(given).unwrap_err();

        let missing = error(&[("a", &a)]);
        assert!(matches!(&missing, EngineError::MissingInput { name, .. } if name == "b"));
        assert_eq!(missing.to_string(), "input `b` is missing; the model takes `a`, `b`");
        let extra = error(&[("a", &a), ("b", &b), ("c", &b)]);
        assert!(matches!(extra, EngineError::ExtraInput { name, .. } if name == "c"));
        let twice = error(&[("a", &a), ("a", &a), ("b", &b)]);
        assert!(matches!(twice, EngineError::DuplicateInput { name } if name == "a"));
        let kind = error(&[("a", &a), ("b", &ints)]);
        assert_eq!(kind.to_string(), "input `b` has element type i32; the model takes f32");
        let shape = error(&[("a", &a), ("b", &wide)]);
        assert_eq!(shape.to_string(), "input `b` has shape [3]; the model takes [2]");
        let rank = error(&[("a", &flat), ("b", &b)]);
        assert_eq!(rank.to_string(), "input `a` has shape [2]; the model takes [n, 2]");

        session.run(&[("a", &a), ("b", &b)]).unwrap();
    }
}

#[test]
fn a_failing_operator_is_an_error_and_the_next_run_works() {
    // Reshape of n elements to [2, 3] fails unless n is 6.
    let shape = Tensor::new([2], Elements::I64(vec![2, 3])).unwrap();
    let reshape = model(
        17,
        &[("x", F32, &["n"])],
        &[("y", F32, &["2", "3"])],
        &[("shape", shape)],
        vec![node("Reshape", &["x", "shape"], &["y"])],
    );
    for engine in engines() {
        let mut session = load(&*engine, &reshape);
        let error = session.run(&[("x", &f32s(&[5], &[0.; 5]))]).unwrap_err();
        assert!(matches!(error, EngineError::Run { .. } | EngineError::Panicked { .. }), "{error}");
        let y = session.run(&[("x", &f32s(&[6], &[1.; 6]))]).unwrap();
        assert_eq!(y[0].shape(), [2, 3]);
    }
}

fn sample(dtype: DataType) -> Tensor {
    let elements = match dtype {
        F32 => Elements::F32(vec![1.5, -2.]),
        F16 => Elements::F16(vec![f16::from_f32(1.5), f16::from_f32(-2.)]),
        F64 => Elements::F64(vec![1.5, -2.]),
        U8 => Elements::U8(vec![200, 1]),
        I8 => Elements::I8(vec![-100, 1]),
        U16 => Elements::U16(vec![60_000, 1]),
        I16 => Elements::I16(vec![-30_000, 1]),
        U32 => Elements::U32(vec![4_000_000_000, 1]),
        I32 => Elements::I32(vec![-2_000_000_000, 1]),
        U64 => Elements::U64(vec![u64::MAX, 1]),
        I64 => Elements::I64(vec![-5, 1]),
        Bool => Elements::Bool(vec![1, 0]),
        String => Elements::String(vec!["čau".into(), "".into()]),
        _ => Elements::BF16(vec![half::bf16::from_f32(1.5), half::bf16::from_f32(-2.)]),
    };
    Tensor::new([2], elements).unwrap()
}

#[test]
fn every_element_type_passes_or_is_refused_at_load() {
    let all = [F32, F16, F64, U8, I8, U16, I16, U32, I32, U64, I64, Bool, String, BF16];
    for engine in engines() {
        let mut refused = Vec::new();
        for dtype in all {
            let identity = model(
                17,
                &[("x", dtype, &["2"])],
                &[("y", dtype, &["2"])],
                &[],
                vec![node("Identity", &["x"], &["y"])],
            );
            match engine.load(&identity, &LoadOptions::default()) {
                Ok(mut session) => {
                    let x = sample(dtype);
                    assert_eq!(session.outputs()[0].dtype, Some(dtype));
                    let y = session.run(&[("x", &x)]).unwrap_or_else(|e| panic!("{} {dtype}: {e}", engine.name()));
                    assert_eq!(y, [x], "{} {dtype}", engine.name());
                }
                Err(EngineError::Refused { reason, .. }) => {
                    assert!(!reason.is_empty());
                    refused.push(dtype);
                }
                Err(other) => panic!("{other}"),
            }
        }
        let expected: &[DataType] =
            if engine.name() == "rten" { &[F64, U16, I16, U32, U64, String, BF16] } else { &[] };
        assert_eq!(refused, expected, "{}", engine.name());
    }
}

#[test]
fn rten_refuses_integers_beyond_32_bits() {
    let add = model(17, &[("x", I64, &["2"])], &[("y", I64, &["2"])], &[], vec![node("Add", &["x", "x"], &["y"])]);
    let mut session = load(&*tierline_engine::rten(), &add);
    let big = Tensor::new([2], Elements::I64(vec![1, 1 << 40])).unwrap();
    let error = session.run(&[("x", &big)]).unwrap_err();
    assert!(matches!(error, EngineError::InputValue { index: 1, .. }), "{error}");
    assert!(error.to_string().contains("1099511627776"), "{error}");
    let small = Tensor::new([2], Elements::I64(vec![1, -7])).unwrap();
    assert_eq!(session.run(&[("x", &small)]).unwrap()[0].as_i64(), Some(&[2, -14][..]));
}

#[test]
fn values_may_pass_straight_through() {
    // A slice hands values on that only later slices use.
    let model = model(
        17,
        &[("x", F32, &["2"]), ("ids", I64, &["1"])],
        &[("x", F32, &["2"]), ("y", F32, &["2"]), ("ids", I64, &["1"])],
        &[],
        vec![node("Relu", &["x"], &["y"])],
    );
    for engine in engines() {
        let mut session = load(&*engine, &model);
        let (x, ids) = (f32s(&[2], &[-1., 1.]), Tensor::new([1], Elements::I64(vec![3])).unwrap());
        let out = session.run(&[("x", &x), ("ids", &ids)]).unwrap();
        assert_eq!(out, [x.clone(), f32s(&[2], &[0., 1.]), ids], "{}", engine.name());
        assert_eq!(session.outputs().iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), ["x", "y", "ids"]);
    }
}

#[test]
fn a_graph_without_nodes_hands_its_inputs_on() {
    let model = model(17, &[("x", F32, &["2"])], &[("x", F32, &["2"])], &[], vec![]);
    for engine in engines() {
        let x = f32s(&[2], &[-1., 1.]);
        assert_eq!(load(&*engine, &model).run(&[("x", &x)]).unwrap(), std::slice::from_ref(&x), "{}", engine.name());
    }
}

#[test]
fn strings_run_on_onnxruntime() {
    let Some(engine) = onnxruntime() else { return };
    let upper = model(
        17,
        &[("x", String, &["n"])],
        &[("y", String, &["m"])],
        &[],
        vec![node("StringNormalizer", &["x"], &["y"]).text("case_change_action", "UPPER").text("locale", "C")],
    );
    let mut session = load(&*engine, &upper);
    let words = |list: &[&str]| {
        Tensor::new([list.len()], Elements::String(list.iter().map(|s| (*s).to_owned()).collect())).unwrap()
    };
    assert_eq!(session.run(&[("x", &words(&["edge", "cloud"]))]).unwrap(), [words(&["EDGE", "CLOUD"])]);
    let error = session.run(&[("x", &words(&["a\0b"]))]).unwrap_err();
    assert!(matches!(error, EngineError::InputValue { index: 0, .. }), "{error}");
}

#[test]
fn a_quantized_convolution_agrees_between_engines() {
    // x -> Q -> DQ -> Conv(DQ weights) -> Q -> DQ -> y, as exporters write it.
    let scale = |s: f32| Tensor::new([], Elements::F32(vec![s])).unwrap();
    let zero = |z: u8| Tensor::new([], Elements::U8(vec![z])).unwrap();
    let weights =
        Tensor::new([2, 3, 3, 3], Elements::I8((0..54).map(|i| (i * 37 % 251 - 125) as i8).collect())).unwrap();
    let int8 = model(
        17,
        &[("x", F32, &["1", "3", "8", "8"])],
        &[("y", F32, &["1", "2", "8", "8"])],
        &[
            ("xs", scale(0.02)),
            ("xz", zero(128)),
            ("ws", scale(0.01)),
            ("wz", Tensor::new([], Elements::I8(vec![0])).unwrap()),
            ("ys", scale(0.05)),
            ("yz", zero(100)),
            ("w", weights),
        ],
        vec![
            node("QuantizeLinear", &["x", "xs", "xz"], &["xq"]),
            node("DequantizeLinear", &["xq", "xs", "xz"], &["xd"]),
            node("DequantizeLinear", &["w", "ws", "wz"], &["wd"]),
            node("Conv", &["xd", "wd"], &["c"]).ints("kernel_shape", &[3, 3]).ints("pads", &[1, 1, 1, 1]),
            node("QuantizeLinear", &["c", "ys", "yz"], &["cq"]),
            node("DequantizeLinear", &["cq", "ys", "yz"], &["y"]),
        ],
    );
    let x = f32s(&[1, 3, 8, 8], &(0..192).map(|i| (i as f32 * 0.37).sin() * 2.).collect::<Vec<_>>());
    let made: Vec<Tensor> = engines().iter().map(|e| load(&**e, &int8).run(&[("x", &x)]).unwrap().remove(0)).collect();
    for other in &made[1..] {
        for (a, b) in made[0].as_f32().unwrap().iter().zip(other.as_f32().unwrap()) {
            // One step of the output's quantisation: rounding may fall either way.
            assert!((a - b).abs() <= 0.0501, "{a} {b}");
        }
    }
}

#[test]
fn providers_are_parsed_and_a_missing_one_is_told() {
    let provider: Provider = "cuda,required,device_id=1".parse().unwrap();
    assert_eq!(provider.to_string(), "cuda,required,device_id=1");
    assert_eq!("CUDAExecutionProvider".parse::<Provider>().unwrap().kind, provider.kind);
    assert_eq!(serde_json::to_string(&provider).unwrap(), "\"cuda,required,device_id=1\"");
    assert!("abacus".parse::<Provider>().unwrap_err().to_string().contains("tensorrt"));
    assert!("cuda,fast".parse::<Provider>().is_err());

    for engine in engines() {
        let mut options = LoadOptions { providers: vec!["rocm".parse().unwrap()], ..LoadOptions::default() };
        let session = engine.load(&two_by_two(), &options).unwrap();
        assert!(session.notes()[0].contains("`rocm` is not available"), "{:?}", session.notes());
        options.providers = vec!["rocm,required".parse().unwrap()];
        let Err(error) = engine.load(&two_by_two(), &options) else { panic!("loaded without its provider") };
        assert!(matches!(error, EngineError::ProviderUnavailable { .. }), "{error}");
    }
}

#[test]
fn broken_libraries_are_told_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let Err(missing) = tierline_engine::onnxruntime(Some(&folder.path().join("none.so"))) else { panic!() };
    assert!(missing.to_string().contains("pip install onnxruntime"), "{missing}");
    let Err(empty) = tierline_engine::onnxruntime(Some(folder.path())) else { panic!() };
    assert!(matches!(empty, EngineError::LibraryMissing { .. }), "{empty}");

    let text = write("libonnxruntime.so", b"not a library, though long enough to hold a header of sixty-four bytes");
    if onnxruntime().is_none() {
        let Err(error) = tierline_engine::onnxruntime(Some(&text)) else { panic!() };
        assert!(error.to_string().contains("ELF"), "{error}");
    }
    let search = Search {
        choice: Choice::OnnxRuntime,
        environment: false,
        system: false,
        folders: vec![folder.path().to_owned()],
        ..Search::default()
    };
    let found = tierline_engine::discover(&search);
    assert_eq!(found.engine.name(), "rten");
    assert!(found.fallback);
    assert!(matches!(&found.considered[0].state, CandidateState::Rejected(_)), "{found:?}");
    assert_eq!(found.considered[1].state, CandidateState::Chosen);
}

#[test]
fn a_truncated_library_is_refused() {
    // In a process of its own: this one may hold the whole library already.
    let Some(library) = std::env::var_os("ORT_DYLIB_PATH").filter(|_| onnxruntime().is_some()) else { return };
    let Ok(bytes) = std::fs::read(&library) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so.9.9.9");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let Err(error) = tierline_engine::onnxruntime(Some(&path)) else { panic!() };
    // Either it was never opened because another runs, or it is cut short.
    assert!(matches!(error, EngineError::LibraryLoaded { .. } | EngineError::LibraryUnusable { .. }), "{error}");
}

#[test]
fn sequences_and_maps_are_refused() {
    use protobuf::MessageField;
    use tierline_graph::onnx::{self, type_proto};
    let base =
        model(17, &[("x", F32, &["2"])], &[("y", F32, &["2"])], &[], vec![node("SequenceConstruct", &["x"], &["y"])]);
    let mut proto = base.proto().clone();
    let mut inner = onnx::TypeProto::new();
    inner.set_tensor_type(type_proto::Tensor { elem_type: Some(1), ..Default::default() });
    let mut kind = onnx::TypeProto::new();
    kind.set_sequence_type(type_proto::Sequence { elem_type: MessageField::some(inner), ..Default::default() });
    proto.graph.as_mut().unwrap().output[0].type_ = MessageField::some(kind);
    let sequence = Model::from_proto(proto).unwrap();
    for engine in engines() {
        let Err(error) = engine.load(&sequence, &LoadOptions::default()) else { panic!("loaded a sequence") };
        assert!(error.to_string().contains("output `y` is a sequence"), "{error}");
    }
}

#[test]
fn casting_to_boolean_tells_numbers_from_zero() {
    let cast = |from: DataType| {
        let to = DataType::Bool as i64;
        let nodes = vec![
            node("Cast", &["x"], &["b"]).int("to", to),
            node("Cast", &["b"], &["y"]).int("to", DataType::I64 as i64),
        ];
        model(17, &[("x", from, &["3"])], &[("b", Bool, &["3"]), ("y", I64, &["3"])], &[], nodes)
    };
    let samples = [
        Tensor::new([3], Elements::F32(vec![0.5, 0., -2.])).unwrap(),
        Tensor::new([3], Elements::I64(vec![5, 0, -2])).unwrap(),
        Tensor::new([3], Elements::U8(vec![5, 0, 255])).unwrap(),
        Tensor::new([3], Elements::Bool(vec![1, 0, 1])).unwrap(),
    ];
    for engine in engines() {
        for x in &samples {
            let made = load(&*engine, &cast(x.dtype())).run(&[("x", x)]).unwrap();
            assert_eq!(made[0].elements(), &Elements::Bool(vec![1, 0, 1]), "{} {}", engine.name(), x.dtype());
            assert_eq!(made[1].as_i64(), Some(&[1, 0, 1][..]), "{} {}", engine.name(), x.dtype());
        }
    }
}

#[test]
fn what_rten_gets_wrong_is_refused_with_the_reason() {
    let rten = tierline_engine::rten();
    let kernel =
        |m: usize, c: usize, k: usize| Tensor::new([m, c, k, k], Elements::I8(vec![1; m * c * k * k])).unwrap();
    let convolve = |batch: &str, weights: Tensor, pads: &[i64]| {
        let inputs: &[(&str, DataType, &[&str])] = &[("x", U8, &[batch, "4", "8", "8"])];
        let outputs: &[(&str, DataType, &[&str])] = &[("y", I32, &["n", "m", "h", "w"])];
        let groups = if weights.shape()[1] == 1 { 4 } else { 1 };
        let kernel = [weights.shape()[2] as i64; 2];
        let conv = node("ConvInteger", &["x", "w"], &["y"]).ints("pads", pads).int("group", groups);
        let conv = conv.ints("kernel_shape", &kernel);
        model(17, inputs, outputs, &[("w", weights)], vec![conv])
    };
    let (none, one) = ([0; 4], [1; 4]);
    for (batch, weights, pads, right) in [
        ("1", kernel(4, 4, 3), none, true),
        ("1", kernel(4, 4, 3), one, false),
        ("2", kernel(4, 4, 3), none, false),
        ("n", kernel(4, 4, 3), none, false),
        ("2", kernel(4, 4, 1), none, true),
        ("2", kernel(4, 1, 3), one, true),
    ] {
        let convolution = convolve(batch, weights, &pads);
        let loaded = rten.load(&convolution, &LoadOptions::default());
        assert_eq!(loaded.is_ok(), right, "batch {batch}, pads {pads:?}");
        if right {
            let n = batch.parse().unwrap();
            let bytes = (0..n * 256).map(|i| (i * 73 % 256) as u8).collect();
            let x = Tensor::new([n, 4, 8, 8], Elements::U8(bytes)).unwrap();
            let made: Vec<_> = engines().iter().map(|e| load(&**e, &convolution).run(&[("x", &x)]).unwrap()).collect();
            assert!(made.iter().all(|m| *m == made[0]), "batch {batch}, pads {pads:?}");
        }
        if let Err(e) = loaded {
            assert!(e.to_string().starts_with("rten refuses the model at node `ConvInteger_y`: ConvInteger:"), "{e}");
        }
    }

    let softmax = |opset, axis| {
        let shape: &[&str] = &["2", "3", "4"];
        let node = node("Softmax", &["x"], &["y"]).int("axis", axis);
        model(opset, &[("x", F32, shape)], &[("y", F32, shape)], &[], vec![node])
    };
    for (opset, axis, right) in [(11, 1, false), (11, 2, true), (11, -1, true), (13, 1, true)] {
        assert_eq!(rten.load(&softmax(opset, axis), &LoadOptions::default()).is_ok(), right, "{opset} {axis}");
    }

    let far = Tensor::new([1], Elements::I64(vec![1 << 40])).unwrap();
    let add =
        model(17, &[("x", I64, &["1"])], &[("y", I64, &["1"])], &[("w", far)], vec![node("Add", &["x", "w"], &["y"])]);
    let Err(error) = rten.load(&add, &LoadOptions::default()) else { panic!("loaded a weight it can't hold") };
    assert!(error.to_string().contains("1099511627776"), "{error}");
}

#[test]
fn an_unknown_rank_is_no_scalar() {
    let known = model(17, &[("x", F32, &["2"])], &[("y", F32, &["2"])], &[], vec![node("Relu", &["x"], &["y"])]);
    let mut proto = known.proto().clone();
    let graph = proto.graph.as_mut().unwrap();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        value.type_.as_mut().unwrap().mut_tensor_type().shape.take();
    }
    let free = Model::from_proto(proto).unwrap();
    for engine in engines() {
        let mut session = load(&*engine, &free);
        assert_eq!(session.inputs()[0].shape, None, "{}", engine.name());
        let x = f32s(&[2, 1], &[-1., 1.]);
        assert_eq!(session.run(&[("x", &x)]).unwrap(), [f32s(&[2, 1], &[0., 1.])], "{}", engine.name());
    }
}

#[test]
fn what_follows_from_the_graph_is_not_refused() {
    // Only inference tells that `r` has two axes, so that axis 1 is the last.
    let softmax = node("Softmax", &["r"], &["y"]).int("axis", 1);
    let nodes = vec![node("Relu", &["x"], &["r"]), softmax];
    let two = model(11, &[("x", F32, &["1", "2"])], &[("y", F32, &["1", "2"])], &[], nodes.clone());
    for engine in engines() {
        let made = load(&*engine, &two).run(&[("x", &f32s(&[1, 2], &[-1., 0.]))]).unwrap();
        assert_eq!(made, [f32s(&[1, 2], &[0.5, 0.5])], "{}", engine.name());
    }
    let shape: &[&str] = &["1", "2", "1"];
    let three = model(11, &[("x", F32, shape)], &[("y", F32, shape)], &[], nodes);
    let Err(error) = tierline_engine::rten().load(&three, &LoadOptions::default()) else { panic!("loaded") };
    assert!(error.to_string().contains("before operator set 13"), "{error}");
}

/// A step that adds to its state as often as it is told, which takes for ever
/// if it is told so.
#[test]
fn a_step_that_is_stopped_leaves_its_state_as_it_was() {
    let Some(engine) = onnxruntime() else { return };
    let body = {
        let mut b = Builder::new("body", 1);
        b.input("i", DataType::I64, "");
        let (go, v) = (b.input("go", DataType::Bool, ""), b.input("v", DataType::F32, "1"));
        let one = b.scalar(1.0);
        let (on, more) = (b.op("Identity", &[&go], &[]), b.op("Add", &[&v, &one], &[]));
        b.output("on", &on, DataType::Bool, "");
        b.output("more", &more, DataType::F32, "1");
        b.build().graph().clone()
    };
    let mut b = Builder::new("counting", 1);
    let (x, n) = (b.input("x", DataType::F32, "1"), b.input("n", DataType::I64, ""));
    let go = b.constant(&Tensor::new([], Elements::Bool(vec![1])).unwrap());
    let next = b.op("Loop", &[&n, &go, &x], &[("body", Attribute::Graph(body))]);
    let told = b.op("Add", &[&next, &next], &[]);
    b.output("next", &next, DataType::F32, "1");
    b.output("told", &told, DataType::F32, "1");
    let slots = [StateSlot { input: "x".into(), output: "next".into() }];
    let state = vec![f32s(&[1], &[1.0])];
    let mut step = engine.load_stateful(&b.build(), &LoadOptions::with_threads(1), &slots, state).unwrap();
    let times = |n: i64| Tensor::new([], Elements::I64(vec![n])).unwrap();
    let mut outputs = Vec::new();
    step.run_into(&[("n", &times(2))], &mut outputs).unwrap();
    assert_eq!(outputs, [f32s(&[1], &[6.0])]);
    step.advance();
    let job = Stop::asked();
    let endless = times(1 << 40);
    // By its own deadline, and on a word from elsewhere.
    let soon = job.no_later_than(Instant::now() + Duration::from_millis(50));
    let error = step.run_until(&[("n", &endless)], &mut outputs, &soon).unwrap_err();
    assert!(matches!(error, EngineError::Stopped { .. }), "{error}");
    assert!(!job.is_pulled());
    let word = job.clone();
    let caller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        word.pull();
    });
    let error = step.run_until(&[("n", &endless)], &mut outputs, &job).unwrap_err();
    assert!(matches!(error, EngineError::Stopped { .. }), "{error}");
    caller.join().unwrap();
    // Nothing is taken over, and the next step goes on from there.
    step.advance();
    assert_eq!(step.state().unwrap(), [f32s(&[1], &[3.0])]);
    step.run_into(&[("n", &times(4))], &mut outputs).unwrap();
    step.advance();
    assert_eq!(step.state().unwrap(), [f32s(&[1], &[7.0])]);
}
