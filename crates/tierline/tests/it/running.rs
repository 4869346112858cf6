//! A node that runs, as whoever looks after it sees it: what it is at, what
//! happened on it, its end, and its next start.

use std::time::Duration;

use crate::harness::{Node, Site, until};

/// The node of that name as a node lists it.
fn listed(node: &Node, name: &str) -> serde_json::Value {
    let nodes = node.ask(&["nodes", "--json"]).json();
    nodes["nodes"].as_array().unwrap().iter().find(|n| n["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn a_node_that_was_stopped_comes_back_as_it_was_first_started() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    let cloud = Node::start(&data, &["--role", "cloud", "--listen", "127.0.0.1:0", "--memory", "1000000000"]);
    let status = cloud.ask(&["node", "status", "--json"]).json();
    assert_eq!((&status["name"], &status["role"]), (&"cloud".into(), &"cloud".into()));
    assert_eq!(status["memory_max_bytes"], 1_000_000_000u64);
    let text = cloud.ask(&["node", "status"]).stdout;
    assert!(text.contains("certificate  good for 89 days") || text.contains("certificate  good for 90 days"), "{text}");
    let stopped = cloud.ask(&["node", "stop"]);
    assert!(stopped.code == 0 && stopped.stderr.contains("cloud has stopped"), "{stopped:?}");
    cloud.ask(&["node", "status"]).refused(4, "no node runs on this device");
    let toml = std::fs::read_to_string(data.join("node.toml")).unwrap();
    assert!(toml.contains("listen = \"127.0.0.1:0\"") && toml.contains("memory_bytes = 1000000000"), "{toml}");
    // The engine came from the environment.
    assert!(toml.contains("engine = \"auto\""), "{toml}");
    // On the default port it would be in other nodes' way.
    let again = Node::start(&data, &[]);
    assert!(again.url.starts_with("https://127.0.0.1:"), "{}", again.url);
    assert_eq!(again.ask(&["node", "status", "--json"]).json()["memory_max_bytes"], 1_000_000_000u64);
}

#[test]
fn a_node_whose_parent_is_away_says_so() {
    let mut site = Site::new();
    let end = site.end("cam", &site.cloud.url.clone(), &[]);
    until("it is connected", || (listed(&end, "cam")["state"] == "connected").then_some(()));
    assert_eq!(listed(&end, "cam")["parent"], "cloud");
    site.cloud.kill();
    until("it says that it is cut off", || (listed(&end, "cam")["state"] == "cut off").then_some(()));
    let parent = || end.ask(&["node", "status", "--json"]).json()["parents"][0].clone();
    until("why, and when it tries again", || {
        let parent = parent();
        let why = parent["failure"].as_str()?.to_owned();
        (why.contains("cannot reach") && parent["next_try_ms"].as_u64()? > 0).then_some(())
    });
    let unknown = end.ask(&["model", "show", "detector"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("models come from above, and"), "{unknown:?}");
    let logs = end.ask(&["logs"]).stdout;
    assert!(logs.contains("connected to cloud") && logs.contains("not connected to"), "{logs}");
    assert_eq!(logs.matches("not connected to").count(), 1, "once, however often it is tried: {logs}");
    let links = end.ask(&["logs", "--kind", "lease", "--json"]).stdout;
    assert!(links.lines().count() >= 2 && links.lines().all(|line| line.contains("\"kind\":\"lease\"")), "{links}");
    site.cloud.restart();
    until("it is back", || (parent()["state"] == "connected").then_some(()));
}

#[test]
fn who_follows_hears_what_happens() {
    let site = Site::new();
    let log = site.folder.path().join("follow.txt");
    let file = std::fs::File::create(&log).unwrap();
    let mut follow = site.cloud.command(&["logs", "--follow", "--kind", "node"]).stdout(file).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let _end = site.end("cam", &site.cloud.url, &[]);
    until("it is told", || std::fs::read_to_string(&log).unwrap().contains("cam joined").then_some(()));
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn architectures_of_the_zoo_are_models() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = crate::harness::binary();
        crate::harness::Ran::of(command.current_dir(folder.path()).args(args).output().unwrap())
    };
    let listed = run(&["model", "zoo"]).stdout;
    assert!(listed.lines().any(|name| name == "lenet"), "{listed}");
    let written = run(&["model", "zoo", "lenet", "--out", "a.onnx", "--json"]).json();
    assert_eq!(written["inputs"][0]["shape"][0], "batch");
    assert_eq!(run(&["model", "zoo", "lenet", "--out", "b.onnx", "--seed", "1", "--batch", "2"]).code, 0);
    let file = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_ne!(file("a.onnx"), file("b.onnx"));
    assert_eq!(run(&["model", "trainable", "a.onnx", "--out", "step.onnx"]).code, 0);
    run(&["model", "zoo", "nothing", "--out", "c.onnx"]).refused(2, "no architecture here; there are mlp, lenet");
}
