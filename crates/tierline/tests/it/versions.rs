//! Versions of models in the registry: pushed, tagged, asked for, pulled, removed.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Node, Site, same_outputs, until, until_planned};
use crate::serve::Http;

/// The harness's model with other weights.
pub fn another(folder: &Path, seed: u64) -> PathBuf {
    let file = folder.join(format!("digits-{seed}.onnx"));
    let options = tierline_zoo::Options { seed, ..tierline_zoo::Options::default() };
    tierline_zoo::lenet(&options).save(&file).expect("it is saved");
    file
}

pub fn push(cloud: &Node, file: &Path, more: &[&str]) -> Value {
    let args = ["model", "push", file.to_str().expect("UTF-8"), "--name", "digits", "--json"];
    let ran = cloud.ask(&[&args[..], more].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()
}

/// Aliases of each version of `digits`.
pub fn aliases(cloud: &Node) -> Vec<(u64, Vec<String>)> {
    let listed = cloud.ask(&["model", "ls", "digits", "--json"]).json();
    let of = |version: &Value| {
        let aliases = version["aliases"].as_array().expect("aliases").iter();
        let aliases = aliases.map(|alias| alias.as_str().expect("a name").to_owned());
        (version["version"].as_u64().expect("a number"), aliases.collect())
    };
    listed["versions"].as_array().expect("versions").iter().map(of).collect()
}

fn stored(cloud: &Node) -> u64 {
    cloud.ask(&["node", "status", "--json"]).json()["store_bytes"].as_u64().expect("bytes")
}

#[test]
fn a_version_is_pushed_tagged_asked_for_pulled_and_removed() {
    let mut site = Site::new();
    let model = site.add_model();
    let end = site.end("cam", &site.cloud.url, &["--http", "127.0.0.1:0"]);
    until_planned(&end);
    let ask = |node: &Node, name: &str| {
        let ran = node.ask(&["infer", "--model", name, "--placement", "here", "--input", &model.input, "--json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()
    };
    let first = ask(&end, "digits");
    assert_eq!(first["version"], 1);

    // Pushed, it runs nowhere, and nobody below hears of it.
    let file = another(site.folder.path(), 2);
    let pushed = push(&site.cloud, &file, &["--parent", "1", "--metric", "accuracy=0.9", "--trained-on", "squares"]);
    assert_eq!((&pushed["name"], &pushed["version"]), (&json!("digits"), &json!(2)));
    assert_eq!(push(&site.cloud, &file, &[])["version"], 2, "the same again is that version");
    assert_eq!(aliases(&site.cloud), [(1, vec!["production".to_owned()]), (2, vec![])]);
    let listed = site.cloud.ask(&["model", "ls", "digits"]).stdout;
    assert!(listed.contains("digits@2") && listed.contains("accuracy 0.9"), "{listed}");
    let http = || Http::connect(end.http.trim_start_matches("http://"));
    assert_eq!(http().get("/v2/models/digits/versions/2/ready").0, 404);
    assert_eq!(ask(&end, "digits")["version"], 1);
    end.ask(&["model", "ls", "digits"]).refused(6, "kept on the cloud");
    site.cloud.ask(&["model", "push", file.to_str().unwrap(), "--name", "nobody"]).refused(1, "model add");
    site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "digits"]).refused(1, "model push");
    site.cloud.ask(&["model", "add", file.to_str().unwrap(), "--name", "digits@7"]).refused(2, "`@`");

    // With an alias it is in use: asked for by it, by its number, and over the open protocol.
    let tag = |args: &[&str]| site.cloud.ask(&[&["model", "tag"], args].concat());
    assert_eq!(tag(&["digits@2", "canary"]).code, 0);
    until("the end knows it", || (http().get("/v2/models/digits/versions/2").0 == 200).then_some(()));
    let second = ask(&end, "digits@2");
    assert_eq!(second["version"], 2);
    assert_ne!(first["outputs"], second["outputs"]);
    same_outputs(&ask(&end, "digits@canary"), &second);
    same_outputs(&ask(&end, "digits"), &first);
    assert_eq!(http().get("/v2/models/digits").1["versions"], json!(["1", "2"]));
    tag(&["digits@3", "canary"]).refused(1, "no version `3`");
    tag(&["digits@2", "Canary"]).refused(2, "no alias");
    tag(&["digits", "production", "--remove"]).refused(2, "in production");
    site.cloud.ask(&["model", "rm", "digits@2"]).refused(5, "canary");

    // What comes back is the file that was given.
    let out = site.folder.path().join("back.onnx");
    let pull = ["model", "pull", "digits@canary", "--out", out.to_str().unwrap()];
    assert_eq!(site.cloud.ask(&pull).code, 0);
    let given = tierline_graph::Model::load(&file).expect("a model").to_bytes().expect("bytes");
    assert_eq!(std::fs::read(&out).expect("a file"), given);

    // In production it is what the plain name means, everywhere; a restart changes nothing.
    assert_eq!(tag(&["digits@2", "production"]).code, 0);
    until("the end follows", || (ask(&end, "digits")["version"] == 2).then_some(()));
    same_outputs(&ask(&end, "digits"), &second);
    same_outputs(&ask(&end, "digits@1"), &first);
    site.cloud.restart();
    let now = |version: u64, names: &[&str]| (version, names.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(aliases(&site.cloud), [now(1, &["previous"]), now(2, &["canary", "production"])]);
    until("the end is back", || end.ask(&["node", "status"]).stdout.contains("connected").then_some(()));

    // What nobody uses can go, and frees the disk; its number is not given again.
    let before = stored(&site.cloud);
    let third = push(&site.cloud, &another(site.folder.path(), 3), &[]);
    assert_eq!(third["version"], 3);
    assert!(stored(&site.cloud) > before);
    assert_eq!(site.cloud.ask(&["model", "rm", "digits@3"]).code, 0);
    assert_eq!(stored(&site.cloud), before);
    assert_eq!(push(&site.cloud, &another(site.folder.path(), 4), &[])["version"], 4);
    assert_eq!(site.cloud.ask(&["model", "rename", "digits", "numbers"]).code, 0);
    let renamed = site.cloud.ask(&["model", "ls", "numbers", "--json"]).json();
    assert_eq!(renamed["versions"].as_array().expect("versions").len(), 3);
    until("the end follows", || {
        let ran = end.ask(&["infer", "--model", "numbers@1", "--placement", "here", "--input", &model.input, "--json"]);
        (ran.code == 0).then(|| same_outputs(&ran.json(), &first))
    });
    assert_eq!(site.cloud.ask(&["model", "rm", "numbers"]).code, 0);
    // Copies of the cloud's measurements may stay at the end until the next sweep.
    until("nothing is left", || (stored(&site.cloud) == 0 && stored(&end) < 20_000).then_some(()));
}
