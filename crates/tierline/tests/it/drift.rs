//! `tierline drift`: a reference of a small classifier, and what is said of
//! data that has changed.

use std::fmt::Write as _;

use serde_json::Value;
use tierline_graph::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use tierline_graph::slice::value_info_proto;
use tierline_graph::{DataType, Dim, Model, ValueInfo};

use crate::train::within;

/// Two features to two scores: class 1 where `a` is above `b`.
fn model(sharpness: f32) -> Model {
    let value = |name: &str| {
        let shape = Some(vec![Dim::Symbol("batch".to_owned()), Dim::Known(2)]);
        value_info_proto(&ValueInfo { name: name.to_owned(), dtype: Some(DataType::F32), shape })
    };
    let weights = TensorProto {
        name: Some("weights".to_owned()),
        data_type: Some(1),
        dims: vec![2, 2],
        float_data: vec![-sharpness, sharpness, sharpness, -sharpness],
        ..TensorProto::default()
    };
    let node = NodeProto {
        op_type: Some("MatMul".to_owned()),
        name: Some("dense".to_owned()),
        input: vec!["x".to_owned(), "weights".to_owned()],
        output: vec!["scores".to_owned()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: Some("two".to_owned()),
        node: vec![node],
        initializer: vec![weights],
        input: vec![value("x")],
        output: vec![value("scores")],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let (ir_version, opset_import) = (Some(8), vec![opset]);
    Model::from_proto(ModelProto { ir_version, opset_import, graph: Some(graph).into(), ..ModelProto::default() })
        .unwrap()
}

/// Rows of two numbers and the class, which `a + noise > b` decides; `a` moves
/// by `shift` from row `from` on.
fn rows(n: usize, seed: u64, shift: f64, from: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut csv = "a,b,label\n".to_owned();
    for i in 0..n {
        let (a, b, noise) = (random.f64(), random.f64(), 0.3 * (random.f64() - 0.5));
        let a = a + if i >= from { shift } else { 0.0 };
        writeln!(csv, "{a},{b},{}", u8::from(a + noise > b)).unwrap();
    }
    csv
}

#[test]
fn drift_is_found_where_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| within(folder.path(), args);
    model(2.0).save(&folder.path().join("net.onnx")).unwrap();
    model(3.0).save(&folder.path().join("other.onnx")).unwrap();
    for (name, csv) in
        [("before", rows(2_000, 1, 0.0, 0)), ("same", rows(1_000, 2, 0.0, 0)), ("moved", rows(1_500, 3, 0.7, 600))]
    {
        std::fs::write(folder.path().join(format!("{name}.csv")), csv).unwrap();
        assert_eq!(run(&["data", "add", name, &format!("{name}.csv"), "--label-column", "label"]).code, 0);
    }
    let made = run(&["drift", "reference", "net.onnx", "--dataset", "before", "--out", "net.drift.json", "--json"]);
    assert_eq!(made.code, 0, "{made:?}");
    let report: Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!((&report["examples"], &report["numbers"]), (&2_000.into(), &2.into()), "{report}");

    let check = ["drift", "check", "net.onnx", "--reference", "net.drift.json", "--window", "300"];
    let all = ["--stream", "adwin,hddm-w,hddm-a,page-hinkley,kswin,ddm,eddm", "--json"];
    let verdicts = |report: &Value| -> Vec<String> {
        report["windows"].as_array().unwrap().iter().map(|w| w["verdict"].as_str().unwrap().to_owned()).collect()
    };
    let same = run(&[&check[..], &["--dataset", "same"], &all].concat());
    assert_eq!(same.code, 0, "{same:?}");
    let same: Value = serde_json::from_str(&same.stdout).unwrap();
    let alarms = |verdicts: &[String]| verdicts.iter().filter(|verdict| *verdict == "drift").count();
    assert_eq!(verdicts(&same).len(), 4, "{same}");
    assert!(alarms(&verdicts(&same)) <= 1, "one in a hundred is expected: {same}");
    let moved = run(&[&check[..], &["--dataset", "moved"], &all].concat());
    let moved: Value = serde_json::from_str(&moved.stdout).unwrap();
    let found = verdicts(&moved);
    assert!(found.len() == 5 && alarms(&found[..2]) <= 1 && alarms(&found[2..]) == 3, "{moved}");
    for window in moved["windows"].as_array().unwrap() {
        let (expected, right) = (&window["estimate"]["accuracy"], &window["accuracy_by_labels"]);
        assert!((expected.as_f64().unwrap() - right.as_f64().unwrap()).abs() < 0.06, "{window}");
    }
    // The model grows surer: what watches both ways finds it, what waits for more errors doesn't.
    let stream = |name: &str| moved["streams"].as_array().unwrap().iter().find(|s| s["method"] == name).unwrap();
    let first = stream("adwin")["drifts"][0].as_u64().unwrap();
    assert!((600..800).contains(&first), "{moved}");
    assert_eq!(stream("hddm-w")["drifts"].as_array().unwrap().len(), 0, "{moved}");

    let told = run(&[&check[..], &["--dataset", "moved", "--stream", "adwin"]].concat());
    for words in ["right by labels", "the first window with drift, from example", "features together:"] {
        assert!(told.stdout.contains(words), "{words}: {told:?}");
    }
    assert!(told.stdout.contains(&format!("adwin on how unsure the model is: at example {first}")), "{told:?}");

    for (args, code, words) in [
        (&["other.onnx", "--reference", "net.drift.json"][..], 1, "tierline drift reference"),
        (&["net.onnx", "--reference", "before.csv"], 1, "not a reference"),
        (&["net.onnx", "--reference", "nowhere.json"], 1, "nowhere.json"),
        (&["net.onnx", "--reference", "net.drift.json", "--stream", "cusum"], 2, "page-hinkley"),
        (&["net.onnx", "--reference", "net.drift.json", "--window", "0"], 2, "--window"),
        (&["net.onnx", "--reference", "net.drift.json", "--alpha", "1"], 2, "--alpha"),
        (&["net.onnx", "--reference", "net.drift.json", "--correction", "tukey"], 2, "holm"),
    ] {
        let ran = run(&[&["drift", "check", "--dataset", "same"], args].concat());
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
}
