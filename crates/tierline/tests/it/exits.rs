//! Early exits on a site: who leaves where, what it answers, and how deep a
//! caller may go.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tierline_graph::exits::{Criterion, Exit, Exits, Rule};
use tierline_graph::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use tierline_graph::slice::value_info_proto;
use tierline_graph::{DataType, Dim, Model, ValueInfo};

use crate::harness::{Node, Site, outputs, until, write_npy};

/// Two layers that pass positive numbers on, an exit behind each: `x` is
/// answered as itself by the first, doubled by the second, fourfold at the end.
pub fn model() -> Model {
    let node = |op: &str, from: &[&str], to: &str| NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(to.to_owned()),
        input: from.iter().map(|&name| name.to_owned()).collect(),
        output: vec![to.to_owned()],
        ..NodeProto::default()
    };
    let value = |name: &str| {
        let shape = Some(vec![Dim::Known(1), Dim::Known(4)]);
        value_info_proto(&ValueInfo { name: name.to_owned(), dtype: Some(DataType::F32), shape })
    };
    let diagonal = |name: &str, factor: f32| TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(1),
        dims: vec![4, 4],
        float_data: (0..16).map(|i| if i % 5 == 0 { factor } else { 0.0 }).collect(),
        ..TensorProto::default()
    };
    let graph = GraphProto {
        name: Some("exits".to_owned()),
        node: vec![
            node("MatMul", &["x", "one"], "h1"),
            node("Relu", &["h1"], "r1"),
            node("MatMul", &["r1", "one"], "early"),
            node("MatMul", &["r1", "one"], "h2"),
            node("Relu", &["h2"], "r2"),
            node("MatMul", &["r2", "two"], "later"),
            node("MatMul", &["r2", "one"], "h3"),
            node("Relu", &["h3"], "r3"),
            node("MatMul", &["r3", "four"], "logits"),
        ],
        initializer: vec![diagonal("one", 1.0), diagonal("two", 2.0), diagonal("four", 4.0)],
        input: vec![value("x")],
        output: ["logits", "early", "later"].map(value).into(),
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let (ir_version, opset_import) = (Some(8), vec![opset]);
    let proto = ModelProto { ir_version, opset_import, graph: Some(graph).into(), ..ModelProto::default() };
    let rule = Some(Rule { criterion: Criterion::Confidence, threshold: 0.8 });
    let exit = |name: &str| Exit { outputs: [("logits".to_owned(), name.to_owned())].into(), sureness: None, rule };
    let exits = Exits { axis: -1, exits: vec![exit("early"), exit("later")], ..Exits::default() };
    exits.write(&Model::from_proto(proto).unwrap()).unwrap()
}

/// Inputs by the exit that is sure of them: confidence e^x / (e^x + 3) at the
/// first, e^2x at the second.
const INPUTS: [(&str, f32, u32, f64); 3] = [("sure", 4.0, 1, 4.0), ("later", 1.5, 2, 3.0), ("deep", 1.0, 0, 4.0)];

/// An end below an edge and a cloud that know the model.
struct World {
    site: Site,
    edge: Node,
    end: Node,
}

impl World {
    fn start(setting: &str) -> Self {
        let site = Site::new();
        let edge = site.edge("edge-1");
        let data = site.join("end", "end-1", &edge.url);
        let config = data.join("node.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{setting}\n{text}")).unwrap();
        let end = Node::start(&data, &["--metrics", "127.0.0.1:0"]);
        let file = site.folder.path().join("model.onnx");
        model().save(&file).unwrap();
        for (name, value, ..) in INPUTS {
            write_npy(&input(site.folder.path(), name), vec![1, 4], vec![value, 0.0, 0.0, 0.0]);
        }
        assert_eq!(site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "exits"]).code, 0);
        until("a plan", || {
            let ran = end.ask(&["plan", "exits", "--json"]);
            (ran.code == 0 && ran.json()["unmeasured"] == serde_json::json!([])).then_some(())
        });
        Self { site, edge, end }
    }

    fn ask(&self, name: &str, how: &[&str]) -> Value {
        let given = format!("x=@{}", input(self.site.folder.path(), name).display());
        self.end.ask(&[&["infer", "--model", "exits", "--input", &given, "--json"], how].concat()).json()
    }
}

fn input(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.npy"))
}

fn first(answer: &Value) -> f64 {
    let [(name, values)] = &outputs(answer)[..] else { panic!("one output: {answer}") };
    assert_eq!(name, "logits");
    values[0]
}

#[test]
fn who_is_sure_leaves_wherever_the_exit_is_judged() {
    let world = World::start("");
    let shown = world.end.ask(&["model", "show", "exits", "--json"]).json();
    let cuts = shown["cuts"].as_array().unwrap().len();
    assert!(cuts >= 4, "{shown}");
    let here = ["--placement", "here"].map(str::to_owned).to_vec();
    let splits = (0..=cuts + 1).flat_map(|first| {
        [first, (first + 2).min(cuts + 1)].map(|second| vec!["--split".to_owned(), format!("{first},{second}")])
    });
    for how in std::iter::once(here).chain(splits) {
        let how: Vec<&str> = how.iter().map(String::as_str).collect();
        for (name, _, exit, expected) in INPUTS {
            let answer = world.ask(name, &how);
            assert_eq!((&answer["exit"], first(&answer)), (&exit.into(), expected), "{how:?}: {answer}");
            assert_eq!(answer["degraded"], false);
        }
    }
    // What leaves on the end isn't sent anywhere.
    let answer = world.ask("sure", &["--split", "3,3"]);
    assert_eq!(answer["stages"].as_array().unwrap().len(), 1, "{answer}");
    let explained = world.end.ask(&["explain", "exits"]).stdout;
    assert!(explained.contains("exit 1: behind segment 1"), "{explained}");
    let numbers = world.end.scrape();
    for exit in ["0", "1", "2"] {
        assert!(numbers.contains(&format!("tierline_exits_total{{exit=\"{exit}\"}}")), "{numbers}");
    }
}

#[test]
fn a_caller_may_ask_for_an_exit() {
    let world = World::start("");
    assert_eq!(first(&world.ask("sure", &["--exit", "0"])), 16.0);
    assert_eq!(first(&world.ask("deep", &["--exit", "1"])), 1.0);
    assert_eq!(first(&world.ask("deep", &["--exit", "2"])), 2.0);
    assert_eq!(world.ask("sure", &["--exit", "2"])["exit"], 1, "at the latest");
    // Judged on the cloud.
    let answer = world.ask("deep", &["--exit", "2", "--split", "1,1"]);
    assert_eq!((&answer["exit"], first(&answer)), (&2.into(), 2.0));
    assert_eq!(answer["stages"].as_array().unwrap().last().unwrap()["node"], "cloud");
    let given = format!("x=@{}", input(world.site.folder.path(), "deep").display());
    let ran = world.end.ask(&["infer", "--model", "exits", "--input", &given, "--exit", "3"]);
    ran.refused(2, "exit 3 is asked for; model `exits` has 2");
}

#[test]
fn a_lost_link_is_answered_and_a_spent_budget_too() {
    let mut world = World::start("deep_per_minute = 2");
    let split = ["--split", "4,4"];
    for _ in 0..2 {
        let answer = world.ask("deep", &split);
        assert_eq!((&answer["degraded"], first(&answer)), (&false.into(), 4.0));
    }
    let capped = world.ask("deep", &split);
    assert_eq!((&capped["degraded"], &capped["exit"], first(&capped)), (&true.into(), &2.into(), 2.0));
    assert!(capped["reason"].as_str().unwrap().contains("budget"), "{capped}");
    // Where the last exit is above, that one answers.
    let capped = world.ask("deep", &["--split", "2,2"]);
    assert_eq!((&capped["degraded"], &capped["exit"], first(&capped)), (&true.into(), &2.into(), 2.0));
    // Who leaves early goes on as before.
    assert_eq!(world.ask("sure", &split)["degraded"], false);
    // Behind the first exit the link is gone: the rest is run here.
    world.edge.kill();
    let answer = world.ask("later", &["--split", "2,2"]);
    assert_eq!((&answer["degraded"], &answer["exit"], first(&answer)), (&true.into(), &0.into(), 6.0), "{answer}");
}
