//! Files as the public's tools leave them, through the command line: looked
//! into, cut with what is printed of their cuts, and the slices run one after
//! the other. The engine's tests hold every such file against ONNX Runtime at
//! every cut.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protobuf::Message;
use serde_json::Value;
use tierline_engine::{Engine, LoadOptions};
use tierline_graph::constant::tensor_from_proto;
use tierline_graph::onnx::GraphProto;
use tierline_graph::{Elements, Tensor};

use crate::harness::{Ran, binary};

type Values = BTreeMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/it/layouts/files").join(name)
}

/// What goes into the fixture's model first, and what stock ONNX Runtime makes of it.
fn values(name: &str) -> (Values, Values) {
    let graph = GraphProto::parse_from_bytes(&std::fs::read(fixture(name).join("values")).unwrap()).unwrap();
    let side = |prefix: &str| {
        let named = graph.initializer.iter().filter_map(|t| Some((t.name().strip_prefix(prefix)?.to_owned(), t)));
        named.map(|(name, t)| (name, tensor_from_proto(t).unwrap())).collect()
    };
    (side("0/given/"), side("0/made/"))
}

fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines = vec![tierline_engine::rten()];
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        let search = tierline_engine::Search { system: false, ..Default::default() };
        engines.push(tierline_engine::discover(&search).engine);
    }
    engines
}

fn run(engine: &Arc<dyn Engine>, file: &str, values: &Values) -> Values {
    let model = tierline_graph::Model::load(Path::new(file)).unwrap();
    let mut session = engine.load(&model, &LoadOptions::with_threads(1)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let names: Vec<String> = session.inputs().iter().map(|v| v.name.clone()).collect();
    let given: Vec<(&str, &Tensor)> = names.iter().map(|n| (n.as_str(), &values[n])).collect();
    let outputs = session.run(&given).unwrap_or_else(|e| panic!("{file}: {e}"));
    model.outputs().into_iter().map(|v| v.name).zip(outputs).collect()
}

fn near(made: &Values, expected: &Values, apart_max: f32, what: &str) {
    assert!(made.keys().eq(expected.keys()), "{what}: {:?}", made.keys());
    for (name, expected) in expected {
        let made = &made[name];
        assert_eq!((made.shape(), made.dtype()), (expected.shape(), expected.dtype()), "{what}: `{name}`");
        match (made.elements(), expected.elements()) {
            (Elements::F32(a), Elements::F32(b)) => {
                let largest = b.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
                let close = a.iter().zip(b).all(|(a, b)| (a - b).abs() <= apart_max * largest);
                assert!(close, "{what}: `{name}`: {a:?} for {b:?}");
            }
            (a, b) => assert_eq!(a, b, "{what}: `{name}`"),
        }
    }
}

/// A cut as `--at` takes it.
fn written(cut: &Value) -> String {
    let marked = |name: &str| name.replace('\\', "\\\\").replace(',', "\\,").replace(' ', "\\ ");
    let names = cut["tensors"].as_array().unwrap().iter().map(|t| marked(t.as_str().unwrap()));
    format!("--at={}", names.collect::<Vec<_>>().join(","))
}

#[test]
fn files_of_many_layouts_are_inspected_and_cut() {
    let cases = [
        ("quantised_cnn_qdq", "rten", 0.05),
        ("quantised_cnn_operators", "onnxruntime", 0.05),
        ("saved_extended_transformer", "onnxruntime", 1e-5),
        ("beside_in_parts", "rten", 1e-5),
        ("listed_old", "rten", 1e-5),
        ("shuffled_transformer", "rten", 1e-5),
        ("odd_names", "rten", 1e-5),
        ("functions", "onnxruntime", 1e-5),
        ("sparse", "rten", 1e-5),
        ("half_transformer_mixed", "onnxruntime", 5e-3),
    ];
    let engines = engines();
    for (name, wanted, apart_max) in cases {
        let Some(engine) = engines.iter().find(|e| e.name() == wanted) else {
            eprintln!("skipped: {name} needs {wanted}; run cargo xtask test");
            continue;
        };
        let tierline = |args: &[&str]| Ran::of(binary().env("TIERLINE_ENGINE", wanted).args(args).output().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let model = fixture(name).join("model.onnx");
        let model = model.to_str().unwrap();
        let report = tierline(&["model", "inspect", model, "--json"]).json();
        let cuts = report["cuts"].as_array().unwrap();
        assert!(cuts.len() > 1, "{name}: {cuts:?}");
        let at = [written(&cuts[cuts.len() / 3]), written(&cuts[cuts.len() - 1])];
        let out = folder.path().join("slices");
        let ran = tierline(&["model", "slice", model, &at[0], &at[1], "--out", out.to_str().unwrap(), "--json"]);
        let slices = ran.json();
        let (given, expected) = values(name);
        let mut made = given;
        for slice in slices["slices"].as_array().unwrap() {
            made = run(engine, slice["file"].as_str().unwrap(), &made);
        }
        near(&made, &expected, apart_max, name);
    }
}
