//! Golden inputs: a model that gives something else than is expected of it.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Site, until, until_planned};
use crate::serve::Http;

#[test]
fn a_model_that_gives_other_values_than_are_expected_is_not_offered() {
    let site = Site::new();
    let model = site.add_model();
    let end = site.end("cam", &site.cloud.url, &["--http", "127.0.0.1:0", "--grpc", "off"]);
    until_planned(&end);
    let out = site.folder.path().join("out");
    let out = out.to_str().expect("UTF-8");
    let ask = ["infer", "--model", "digits", "--placement", "here", "--input", &model.input, "--out", out, "--json"];
    let answer = end.ask(&ask).json();
    let output = answer["outputs"][0]["name"].as_str().expect("a name").to_owned();
    let right = answer["outputs"][0]["file"].as_str().expect("a file").to_owned();
    // The last value is another one.
    let wrong = format!("{out}/wrong.npy");
    let mut bytes = std::fs::read(&right).expect("a file");
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&1e3f32.to_le_bytes());
    std::fs::write(&wrong, bytes).expect("a file");
    let file = model.file.to_str().expect("UTF-8");
    let add = |expected: &str| {
        let expect = format!("{output}=@{expected}");
        let args = ["model", "add", file, "--name", "digits", "--replace", "--wait", "20 s"];
        site.cloud.ask(&[&args[..], &["--golden", &model.input, "--expect", &expect]].concat())
    };
    let ready = || Http::connect(end.http.trim_start_matches("http://")).get("/v2/models/digits/ready").0;
    let state = |node: &crate::harness::Node| -> Value {
        node.ask(&["model", "ls", "--json"]).json()["models"][0]["state"].clone()
    };

    let added = add(&wrong);
    assert_eq!(added.code, 0, "{added:?}");
    until("the end finds out", || (ready() != 200).then_some(()));
    until("both say so", || (state(&end) == "refused" && state(&site.cloud) == "refused").then_some(()));
    for node in [&end, &site.cloud] {
        let log = node.ask(&["logs"]).stdout;
        assert!(log.contains(&format!("golden inputs: output `{output}` is off by")), "{log}");
    }
    let asked = end.ask(&["infer", "--model", "digits", "--placement", "here", "--input", &model.input]);
    assert!(asked.code != 0 && asked.stderr.contains("can't be run here"), "{asked:?}");
    let shown = site.cloud.ask(&["model", "show", "digits"]).stdout;
    assert!(shown.contains("golden inputs, checked on every node"), "{shown}");

    // Expected rightly, it is offered again; and still after a start.
    assert_eq!(add(&right).code, 0);
    until("the end offers it", || (ready() == 200).then_some(()));
    until("both say so", || (state(&end) == "ready" && state(&site.cloud) == "ready").then_some(()));
    assert_eq!(end.ask(&["infer", "--model", "digits", "--input", &model.input, "--json"]).json()["degraded"], false);

    // What can't be expected of it is refused at once.
    let file_of = |name: &str, path: &str| format!("{name}=@{path}");
    let bad = site.cloud.ask(&[
        "model",
        "add",
        file,
        "--name",
        "other",
        "--golden",
        &model.input,
        "--expect",
        &file_of("nobody", &right),
    ]);
    assert!(bad.code != 0 && bad.stderr.contains("no output `nobody`"), "{bad:?}");
    site.cloud.ask(&["model", "add", file, "--name", "other", "--golden", &model.input]).refused(2, "--expect");
    assert!(Path::new(&right).exists());
}
