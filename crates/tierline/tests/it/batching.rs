//! Requests that run as one: values as each alone, counted as what they are,
//! and only where a model's rows stay apart.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tierline_graph::emit::{Attribute, Emitter};
use tierline_graph::onnx::{GraphProto, ModelProto, OperatorSetIdProto};
use tierline_graph::slice::value_info_proto;
use tierline_graph::{DataType, Dim, Elements, Model, Tensor, ValueInfo};

use crate::harness::binary;
use crate::serve::{Http, Served};

/// Callers at once.
const CALLERS: usize = 24;

/// Requests of each.
const EACH: usize = 40;

/// Narrow: a run costs as much for some rows as for one.
const WIDE: usize = 64;

/// Many: a run is most of a request's time.
const LAYERS: usize = 200;

/// `y = relu(x w) w`, and `y - mean of y over all rows` where `mixes`.
fn model(path: &Path, mixes: bool) {
    let info = |name: &str, axes: Vec<Dim>| {
        value_info_proto(&ValueInfo { name: name.into(), dtype: Some(DataType::F32), shape: Some(axes) })
    };
    let mut out = Emitter::new(["x", "y"]);
    // Small, so that sums in another order stay near through all layers.
    let weights = (0..WIDE * WIDE).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.1).collect();
    let w = out.constant(&Tensor::new([WIDE, WIDE], Elements::F32(weights)).expect("a tensor"));
    let mut last = "x".to_owned();
    for _ in 0..LAYERS {
        let product = out.op("MatMul", &[&last, &w], &[]);
        last = out.op("Tanh", &[&product], &[]);
    }
    if mixes {
        let mean =
            out.op("ReduceMean", &[&last], &[("axes", Attribute::Ints(vec![0])), ("keepdims", Attribute::Int(1))]);
        last = out.op("Sub", &[&last, &mean], &[]);
    }
    out.named("Identity", &[&last], &["y"], &[]);
    let (node, initializer) = out.finish();
    let axes = || vec![Dim::Symbol("n".into()), Dim::Known(WIDE as u64)];
    let graph = GraphProto {
        name: Some("g".into()),
        node,
        initializer,
        input: vec![info("x", axes())],
        output: vec![info("y", axes())],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(13), ..OperatorSetIdProto::default() };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset],
        graph: Some(graph).into(),
        ..ModelProto::default()
    };
    Model::from_proto(proto).expect("a model").save(path).expect("a file");
}

fn input(caller: usize, rows: usize) -> Vec<u8> {
    let value = |i: usize| ((i * 31 + caller * 17) % 97) as f32 / 97.0 - 0.5;
    (0..rows * WIDE).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// Answers of one caller, as numbers.
fn ask(http: &mut Http, name: &str, caller: usize, rows: usize) -> Vec<f32> {
    let (length, body) = request(caller, rows);
    let (status, _, body) = http.post_bytes(&format!("/v2/models/{name}/infer"), &length, &body);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let from = body.len() - 4 * rows * WIDE;
    body[from..].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect()
}

/// A request's own header, and its body.
fn request(caller: usize, rows: usize) -> (String, Vec<u8>) {
    let data = input(caller, rows);
    let head = json!({
        "inputs": [{ "name": "x", "shape": [rows, WIDE], "datatype": "FP32",
                     "parameters": { "binary_data_size": data.len() } }],
        "parameters": { "binary_data_output": true },
    })
    .to_string();
    let length = format!("Inference-Header-Content-Length: {}\r\n", head.len());
    (length, [head.as_bytes(), &data].concat())
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5)
}

/// A number of the node's.
fn number(served: &Served, name: &str) -> u64 {
    let text = served.connect().text("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

/// All callers at once, each with rows of its own, against what each was
/// answered alone. Where `leaving`, others go away before they are answered.
fn load(served: &Served, name: &str, leaving: bool) {
    let rows = |caller: usize| 1 + caller % 3;
    let alone: Vec<Vec<f32>> =
        (0..CALLERS).map(|caller| ask(&mut served.connect(), name, caller, rows(caller))).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while leaving && !over.load(Ordering::Relaxed) {
                let (length, body) = request(99, 2);
                let line =
                    format!("POST /v2/models/{name}/infer HTTP/1.1\r\nHost: t\r\nContent-Length: {}", body.len());
                served.connect().write(&[format!("{line}\r\n{length}\r\n").as_bytes(), &body].concat());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let alone = &alone[caller];
                scope.spawn(move || {
                    let mut http = served.connect();
                    for _ in 0..EACH {
                        assert!(near(&ask(&mut http, name, caller, rows(caller)), alone), "{name}: caller {caller}");
                    }
                })
            })
            .collect();
        let ended: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
}

fn statistics(served: &Served, name: &str) -> Value {
    let (status, statistics) = served.connect().get(&format!("/v2/models/{name}/stats"));
    assert_eq!(status, 200, "{statistics}");
    statistics["model_stats"][0].clone()
}

#[test]
fn who_waits_runs_as_one_and_is_answered_as_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (apart, mixes) = (folder.path().join("apart.onnx"), folder.path().join("mixes.onnx"));
    model(&apart, false);
    model(&mixes, true);
    let served = Served::start(binary(), &[apart.to_str().unwrap(), mixes.to_str().unwrap()]);
    load(&served, "apart", false);
    let (batches, batched) =
        (number(&served, "tierline_batches_total"), number(&served, "tierline_batched_requests_total"));
    println!("{batched} of {} requests in {batches} batches", CALLERS * (EACH + 1));
    assert!(batches > 0 && batched >= 2 * batches, "{}", served.connect().text("/metrics"));
    // Every row counts once, every run once, whatever it held.
    let of = statistics(&served, "apart");
    let rows: usize = (0..CALLERS).map(|caller| (1 + caller % 3) * (EACH + 1)).sum();
    assert_eq!(of["inference_count"], json!(rows), "{of}");
    assert_eq!(of["inference_stats"]["success"]["count"], json!(CALLERS * (EACH + 1)), "{of}");
    let runs = (CALLERS * (EACH + 1)) as u64 - batched + batches;
    assert_eq!(of["execution_count"], json!(runs), "{of}");
    let sizes = of["batch_stats"].as_array().unwrap();
    let sum = |f: &dyn Fn(&Value) -> u64| sizes.iter().map(f).sum::<u64>();
    assert_eq!(sum(&|size| size["compute_infer"]["count"].as_u64().unwrap()), runs, "{of}");
    let told = |size: &Value| size["compute_infer"]["count"].as_u64().unwrap() * size["batch_size"].as_u64().unwrap();
    assert_eq!(sum(&told), rows as u64, "{of}");
    assert!(sizes.iter().any(|size| size["batch_size"].as_u64() > Some(3)), "{of}");
    let (_, config) = served.connect().get("/v2/models/apart/config");
    assert_eq!(config["dynamic_batching"], json!({ "preferred_batch_size": [], "max_queue_delay_microseconds": 0 }));
    assert_eq!(config["max_batch_size"], 0, "shapes are as the model has them, rows included");

    // Nothing of a model that mixes rows runs as one, and nobody notices the others.
    load(&served, "mixes", false);
    assert_eq!(number(&served, "tierline_batches_total"), batches);
    let of = statistics(&served, "mixes");
    assert_eq!(of["execution_count"], of["inference_stats"]["success"]["count"], "{of}");
    let (_, config) = served.connect().get("/v2/models/mixes/config");
    assert_eq!(config["dynamic_batching"], Value::Null);

    // Whoever goes away takes nobody along.
    load(&served, "apart", true);
    assert!(number(&served, "tierline_batches_total") > batches);
}
