//! The command line: shapes of its documents, exit codes, help.

use crate::harness::{Model, tierline};

#[test]
fn help_lists_every_verb() {
    let help = tierline(["--help"]);
    assert_eq!(help.code, 0);
    insta::assert_snapshot!("help", help.stdout);
}

#[test]
fn every_verb_has_help() {
    let verbs = [
        "doctor",
        "node",
        "token",
        "join",
        "nodes",
        "model",
        "profile",
        "plan",
        "explain",
        "infer",
        "bench",
        "link",
        "completions",
    ];
    let pages: Vec<String> = verbs
        .iter()
        .map(|verb| {
            let page = tierline([verb, "--help"]);
            assert_eq!(page.code, 0, "{page:?}");
            format!("=== {verb}\n{}", page.stdout)
        })
        .collect();
    insta::assert_snapshot!("verbs", pages.join("\n"));
}

#[test]
fn inspect_has_the_fixed_shape() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::write(folder.path());
    let report = tierline(["model", "inspect", model.file.to_str().unwrap(), "--json"]).json();
    assert_eq!(report["inputs"][0]["name"], "input");
    assert_eq!(report["inputs"][0]["dtype"], "f32");
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
    assert!(plan["solve_us"].is_u64());
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
