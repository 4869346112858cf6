//! The command line: shapes of its documents, exit codes, help.

use clap::CommandFactory;

use crate::harness::{Model, tierline};

#[test]
fn help_lists_every_verb() {
    let help = tierline(["--help"]);
    assert_eq!(help.code, 0);
    insta::assert_snapshot!("help", help.stdout);
}

/// Every command that does something for people, as its words.
fn commands() -> Vec<Vec<String>> {
    fn below(command: &clap::Command, words: &[String], all: &mut Vec<Vec<String>>) {
        if !words.is_empty() && !command.is_subcommand_required_set() {
            all.push(words.to_vec());
        }
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
            below(sub, &[words, &[sub.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    below(&tierline::cli::Cli::command(), &[], &mut all);
    all
}

/// The page is the commands' own help; `TIERLINE_BLESS=1` writes it.
#[test]
fn the_reference_says_what_help_says() {
    let mut page = String::from(
        "# Commands\n\nWhat `--help` prints, verb by verb. Options under *Everywhere* are the same for all and shown once.\n",
    );
    for (i, verb) in commands().iter().enumerate() {
        let help = tierline(verb.iter().map(String::as_str).chain(["--help"]));
        let verb = verb.join(" ");
        assert_eq!(help.code, 0, "{help:?}");
        let (own, everywhere) = help.stdout.split_once("\nEverywhere:").expect("every verb takes the common options");
        let rest = if i == 0 { format!("\nEverywhere:{everywhere}") } else { String::new() };
        page.push_str(&format!("\n## tierline {verb}\n\n```text\n{}\n{}```\n", own.trim_end(), rest));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/commands.md");
    if std::env::var_os("TIERLINE_BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page, "docs/reference/commands.md is not what help prints; write it with TIERLINE_BLESS=1");
}

#[test]
fn inspect_has_the_fixed_shape() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::write(folder.path());
    let report = tierline(["model", "inspect", model.file.to_str().unwrap(), "--json"]).json();
    assert_eq!(report["inputs"][0]["name"], "input");
    assert_eq!(report["inputs"][0]["dtype"], "float32");
    assert_eq!(report["inputs"][0]["shape"], serde_json::json!([1, 1, 28, 28]));
    assert_eq!(report["outputs"][0]["name"], "logits");
    assert_eq!(report["parameters"], 61_706);
    // Two convolutions on 28x28 and 10x10, three dense layers.
    let macs = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10;
    assert_eq!(report["macs"], macs);
    assert!(report["nodes"].as_u64().unwrap() >= 10);
    let cuts = report["cuts"].as_array().unwrap();
    assert!(cuts.len() >= 9, "{cuts:?}");
    assert!(cuts.iter().all(|c| !c["tensors"].as_array().unwrap().is_empty() && c["bytes"].as_u64().unwrap() > 0));
}

#[test]
fn slices_join_up() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::write(folder.path());
    let file = model.file.to_str().unwrap();
    let report = tierline(["model", "inspect", file, "--json"]).json();
    let cut = |i: usize| report["cuts"][i]["tensors"][0].as_str().unwrap().to_owned();
    let out = folder.path().join("slices");
    let ran =
        tierline(["model", "slice", file, "--at", &cut(2), "--at", &cut(5), "--out", out.to_str().unwrap(), "--json"])
            .json();
    let slices = ran["slices"].as_array().unwrap();
    assert_eq!(slices.len(), 3);
    assert_eq!(slices[0]["outputs"], serde_json::json!([cut(2)]));
    assert_eq!(slices[1]["inputs"], serde_json::json!([cut(2)]));
    assert_eq!(slices[2]["inputs"], serde_json::json!([cut(5)]));
    for i in 0..3 {
        let part = tierline(["model", "inspect", out.join(format!("{i}.onnx")).to_str().unwrap(), "--json"]).json();
        assert!(part["nodes"].as_u64().unwrap() > 0);
    }
}

/// The test network under other names, and changed.
fn renamed(folder: &std::path::Path, change: impl FnOnce(&mut tierline_graph::onnx::GraphProto)) -> std::path::PathBuf {
    let model = Model::write(folder);
    let mut proto = tierline_graph::Model::load(&model.file).unwrap().proto().clone();
    change(proto.graph.mut_or_insert_default());
    let file = folder.join("changed.onnx");
    tierline_graph::Model::from_proto(proto).unwrap().save(&file).unwrap();
    file
}

/// Names of tensors may hold anything; what `inspect` prints, `slice` takes.
#[test]
fn names_with_commas_and_blanks_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let file = renamed(folder.path(), |graph| {
        let made: Vec<String> = graph.node.iter().flat_map(|n| n.output.clone()).filter(|n| n != "logits").collect();
        for node in &mut graph.node {
            for name in node.input.iter_mut().chain(&mut node.output).filter(|n| made.contains(n)) {
                *name = format!("layer {name}, out:0");
            }
        }
        graph.value_info.clear();
    });
    let file = file.to_str().unwrap();
    let report = tierline(["model", "inspect", file, "--json"]).json();
    let name = report["cuts"][3]["tensors"][0].as_str().unwrap();
    assert!(name.contains(", out:0"), "{name}");
    let table = tierline(["model", "inspect", file]).stdout;
    let marked = name.replace(',', "\\,");
    assert!(table.contains(&marked), "{marked}: {table}");
    for (at, out) in [(name, "plain"), (&marked, "marked")] {
        let out = folder.path().join(out);
        let ran = tierline(["model", "slice", file, "--at", at, "--out", out.to_str().unwrap(), "--json"]).json();
        assert_eq!(ran["slices"][1]["inputs"], serde_json::json!([name]));
    }
}

/// A file whose declarations are wrong is used, and the person is told.
#[test]
fn what_a_file_declares_wrongly_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = renamed(folder.path(), |graph| {
        let mut wrong = graph.output[0].clone();
        wrong.set_name(graph.node[0].output[0].clone());
        graph.value_info.retain(|v| v.name() != wrong.name());
        graph.value_info.push(wrong);
    });
    let ran = tierline(["model", "inspect", file.to_str().unwrap(), "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("warning: ") && ran.stderr.contains("which counts"), "{ran:?}");
    assert_eq!(tierline(["model", "inspect", file.to_str().unwrap(), "--quiet"]).stderr, "");
}

/// Weights beside the model may take more than one file of the format holds.
/// The file has no content, so that nothing is written.
#[test]
fn weights_beyond_two_gibibytes_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    const ELEMENTS: i64 = 560_000_000;
    let file = folder.path().join("large.onnx");
    let text = |s: &str| Some(s.to_owned());
    let weight = tierline_graph::onnx::TensorProto {
        name: text("w"),
        dims: vec![4, ELEMENTS / 4],
        data_type: Some(1),
        data_location: Some(1),
        external_data: vec![tierline_graph::onnx::StringStringEntryProto {
            key: text("location"),
            value: text("w.bin"),
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut proto = tierline_graph::Model::load(&Model::write(folder.path()).file).unwrap().proto().clone();
    let graph = proto.graph.mut_or_insert_default();
    let mut node = graph.node[0].clone();
    (node.op_type, node.input, node.output) = (text("MatMul"), vec!["x".into(), "w".into()], vec!["y".into()]);
    node.attribute.clear();
    let value = |name: &str, sizes: [i64; 2]| {
        let info = tierline_graph::ValueInfo {
            name: name.to_owned(),
            dtype: Some(tierline_graph::DataType::F32),
            shape: Some(sizes.iter().map(|n| tierline_graph::Dim::Known(*n as u64)).collect()),
        };
        tierline_graph::slice::value_info_proto(&info)
    };
    (graph.node, graph.initializer, graph.value_info) = (vec![node], vec![weight], Vec::new());
    (graph.input, graph.output) = (vec![value("x", [1, 4])], vec![value("y", [1, ELEMENTS / 4])]);
    std::fs::write(&file, protobuf::Message::write_to_bytes(&proto).unwrap()).unwrap();
    std::fs::File::create(folder.path().join("w.bin")).unwrap().set_len(4 * ELEMENTS as u64).unwrap();
    let report = tierline(["model", "inspect", file.to_str().unwrap(), "--json"]).json();
    assert_eq!(report["parameters"], ELEMENTS);
}

const PROBLEM: &str = r#"{"tiers":2,
    "nodes":[{"name":"in","cost_ns":[0,null]},{"name":"a","cost_ns":[10,1]},{"name":"b","cost_ns":[100,10]}],
    "tensors":[{"producer":"in","consumers":["a"],"up_ns":[500],"down_ns":[null]},
               {"producer":"a","consumers":["b"],"up_ns":[20],"down_ns":[null]}]}"#;

#[test]
fn a_bare_problem_is_solved() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.json");
    std::fs::write(&file, PROBLEM).unwrap();
    let plan = tierline(["plan", "--problem", file.to_str().unwrap(), "--json"]).json();
    assert_eq!(plan["assignment"], serde_json::json!({"in": 0, "a": 0, "b": 1}));
    assert_eq!(plan["objective_ns"], 10 + 20 + 10);
    assert_eq!(plan["optimal"], true);
    assert_eq!(plan["gap"].as_f64(), Some(0.0));
    assert!(plan["solve_us"].as_u64().is_some_and(|us| us > 0), "{plan}");
}

/// The time is measured: thousands of nodes can't be solved in no time.
#[test]
fn the_time_of_solving_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.json");
    let node = |i: usize| format!(r#"{{"name":"n{i}","cost_ns":[{},1]}}"#, 2 + i % 7);
    let tensor = |i: usize| {
        format!(r#"{{"producer":"n{i}","consumers":["n{}"],"up_ns":[{}],"down_ns":[null]}}"#, i + 1, 3 + i % 5)
    };
    let nodes: Vec<String> = (0..3_000).map(node).collect();
    let tensors: Vec<String> = (0..2_999).map(tensor).collect();
    let problem = format!(r#"{{"tiers":2,"nodes":[{}],"tensors":[{}]}}"#, nodes.join(","), tensors.join(","));
    std::fs::write(&file, problem).unwrap();
    let started = std::time::Instant::now();
    let plan = tierline(["plan", "--problem", file.to_str().unwrap(), "--json"]).json();
    let spent = started.elapsed().as_micros() as u64;
    let told = plan["solve_us"].as_u64().unwrap();
    assert!((20..=spent).contains(&told), "{told} us of {spent}");
}

#[test]
fn an_infeasible_problem_exits_with_5() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.json");
    let stuck = r#"{"tiers":2,"nodes":[{"name":"a","cost_ns":[null,1]},{"name":"b","cost_ns":[1,null]}],
        "tensors":[{"producer":"a","consumers":["b"],"up_ns":[1],"down_ns":[null]}]}"#;
    std::fs::write(&file, stuck).unwrap();
    tierline(["plan", "--problem", file.to_str().unwrap(), "--json"]).refused(5, "");
}

#[test]
fn completions_name_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let text = tierline(["completions", shell]);
        assert_eq!(text.code, 0);
        assert!(text.stdout.contains("explain"), "{shell}");
    }
}

#[test]
fn doctor_names_the_engine_in_use() {
    let report = tierline(["doctor", "--json"]).json();
    assert!(report["chosen"].as_str().unwrap().starts_with("rten"), "{report}");
    assert_eq!(report["schema_version"], 1);
}

const SITE: &str = r#"
[[tier]]
name = "camera"
role = "end"
scale_of = "server"
factor = 8.0
[[tier]]
name = "server"
role = "cloud"
profile = "server.toml"
[[link]]
from = "camera"
to = "server"
up_mbit = 1000
rtt_ms = 0.01
"#;

#[test]
fn a_file_is_profiled_and_planned_for_a_described_site() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::write(folder.path());
    let file = model.file.to_str().unwrap();
    let profile = folder.path().join("server.toml");
    let site = folder.path().join("site.toml");
    std::fs::write(&site, SITE).unwrap();
    let site = site.to_str().unwrap();
    tierline(["plan", file, "--site", site]).refused(3, "server.toml");
    let measured =
        tierline(["profile", file, "--out", profile.to_str().unwrap(), "--device", "server", "--json"]).json();
    let segments = measured["segments"].as_array().unwrap();
    assert_eq!(segments.len(), measured["cuts"].as_array().unwrap().len() + 1);
    assert!(segments.iter().all(|s| s["time_ns"].as_u64().unwrap() > 0));
    assert!(std::fs::read_to_string(&profile).unwrap().contains("device = \"server\""));
    let plan = tierline(["plan", file, "--site", site, "--json"]).json();
    assert_eq!(plan["tiers"], serde_json::json!(["camera", "server"]));
    assert_eq!(plan["gap"].as_f64(), Some(0.0));
    let all = segments.len().to_string();
    let private = tierline(["explain", file, "--site", site, "--private-segments", &all, "--json"]).json();
    assert_eq!(private["bounds"][0], segments.len(), "all private: all on the camera");
    tierline(["plan", file, "--site", site, "--deadline", "1 us"]).refused(5, "no placement satisfies the limits");
    std::fs::write(site, SITE.replace("up_mbit", "up_mbits")).unwrap();
    tierline(["plan", file, "--site", site]).refused(3, "did you mean `up_mbit`?");
}
