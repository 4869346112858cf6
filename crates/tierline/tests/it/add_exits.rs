//! `tierline model add-exits`, on small made-up pictures.

use serde_json::Value;
use tierline_graph::Model;
use tierline_graph::exits::{Criterion, Exits};
use tierline_zoo::{Batch, Bn, Options};

use crate::train::{corners, within};

#[test]
fn a_model_gains_exits_that_are_calibrated_anew() {
    let folder = tempfile::tempdir().unwrap();
    corners(folder.path());
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 3 };
    tierline_zoo::by_name("lenet", &options).unwrap().save(&folder.path().join("net.onnx")).unwrap();
    let run = |args: &[&str]| within(folder.path(), args);
    assert_eq!(run(&["data", "add", "corners", "pictures", "--grey", "--size", "28x28"]).code, 0);
    let add = ["model", "add-exits", "net.onnx", "--dataset", "corners", "--out", "exits.onnx", "--json"];
    for (extra, criterion) in [
        (&["--exits", "1"][..], Criterion::Entropy),
        (&["--exits", "2", "--criterion", "learned", "--curve", "curve.svg"][..], Criterion::Learned),
        (&["--at", "MaxPool_2_out0", "--fit", "heads", "--hidden", "4", "--epochs", "1"][..], Criterion::Entropy),
    ] {
        let ran = run(&[&add[..], extra].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["calibrated_on"], 6, "a fifth of 60, halved");
        let model = Model::load(&folder.path().join("exits.onnx")).unwrap();
        let exits = Exits::of(&model).unwrap().unwrap();
        assert_eq!(exits.calibration.unwrap().criterion, criterion);
        // Two classes of the ten that the network has: what the end says is
        // never right by much, the exits nearly always are.
        assert!(exits.exits.iter().any(|exit| exit.rule.is_some_and(|rule| rule.criterion == criterion)));
        assert!(report["checked"]["share"].as_f64().unwrap() < 1.0, "{report}");
    }
    assert!(std::fs::read_to_string(folder.path().join("curve.svg")).unwrap().contains("the end alone"));

    // Bounds in other units: some way below going to the end, and never a worse bargain than allowed.
    for (extra, unit) in
        [(["--bytes", "10"], "bytes"), (["--latency", "1 s"], "latency_ns"), (["--cost", "60"], "macs")]
    {
        let ran = run(&[&add[..], &["--exits", "1"], &extra].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        let average = report["calibrated"][unit].as_f64().unwrap_or_else(|| panic!("{report}"));
        match unit {
            // The pictures have 28 x 28 floats.
            "bytes" => assert!(average <= 0.1 * 4.0 * 784.0, "{report}"),
            "latency_ns" => assert!(average > 100.0 && average <= 1e9, "{report}"),
            _ => assert!(average <= 0.6 * report["macs"].as_f64().unwrap(), "{report}"),
        }
        let model = Model::load(&folder.path().join("exits.onnx")).unwrap();
        let exits = Exits::of(&model).unwrap().unwrap();
        let thresholds: Vec<Option<f64>> = exits.exits.iter().map(|exit| exit.rule.map(|r| r.threshold)).collect();
        let points = exits.calibration.unwrap().points;
        assert!(points.iter().any(|point| point.thresholds == thresholds), "nodes find out how many leave");
    }
    let ran = run(&[&add[..], &["--exits", "1", "--latency", "1 us"]].concat());
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("costs that little") && ran.stderr.contains("on this device"), "{ran:?}");
    let ran = run(&[&add[..], &["--bytes", "5", "--loss", "1"]].concat());
    assert_eq!(ran.code, 2, "{ran:?}");

    let again =
        ["model", "add-exits", "exits.onnx", "--dataset", "corners", "--out", "again.onnx", "--criterion", "margin"];
    let ran = run(&again);
    assert_eq!(ran.code, 0, "{ran:?}");
    let exits = Exits::of(&Model::load(&folder.path().join("again.onnx")).unwrap()).unwrap().unwrap();
    assert_eq!(exits.exits[0].rule.unwrap().criterion, Criterion::Margin);
    let shown = run(&["model", "inspect", "again.onnx"]);
    assert!(shown.stdout.contains("margin of at least"), "{shown:?}");
    let refused = run(&[&again[..], &["--exits", "1"]].concat());
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("exits already"), "{refused:?}");
}
