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

/// States by name, as a node lists them.
fn states(node: &Node) -> std::collections::BTreeMap<String, String> {
    let nodes = node.ask(&["nodes", "--json"]).json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    nodes["nodes"].as_array().unwrap().iter().map(|n| (text(&n["name"]), text(&n["state"]))).collect()
}

fn becomes(node: &Node, expected: &[(&str, &str)]) {
    let expected = expected.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect();
    until(&format!("{expected:?}"), || {
        let now = states(node);
        (now == expected).then_some(()).or_else(|| {
            eprintln!("{now:?}");
            None
        })
    });
}

#[test]
fn a_list_remembers_who_was_there() {
    let site = Site::new();
    let mut edge = site.edge("gateway");
    let mut kept = site.end("kept", &edge.url, &[]);
    let mut lost = site.end("lost", &edge.url, &[]);
    let mut sold = site.end("sold", &edge.url, &[]);
    site.join("end", "boxed", &site.cloud.url);
    let all = |edge: &'static str, kept: &'static str, lost: &'static str, sold: &'static str| {
        [("cloud", "connected"), ("gateway", edge), ("kept", kept), ("lost", lost), ("sold", sold), ("boxed", "never")]
    };
    becomes(&site.cloud, &all("connected", "connected", "connected", "connected"));
    // One that is away when it is shut out is known to be.
    lost.kill();
    sold.kill();
    becomes(&site.cloud, &all("connected", "connected", "lost", "lost"));
    assert_eq!(site.cloud.ask(&["nodes", "revoke", "sold"]).code, 0);
    becomes(&site.cloud, &all("connected", "connected", "lost", "revoked"));
    // An edge that begins anew still knows them all.
    edge.restart();
    becomes(&site.cloud, &all("connected", "connected", "lost", "revoked"));
    becomes(&edge, &[("gateway", "connected"), ("kept", "connected"), ("lost", "lost"), ("sold", "revoked")]);
    // Whom a lost edge had below it, nobody reaches.
    edge.kill();
    becomes(&site.cloud, &all("lost", "lost", "lost", "revoked"));
    let mut cloud = site.cloud;
    cloud.restart();
    becomes(&cloud, &all("lost", "lost", "lost", "revoked"));
    assert_eq!(listed(&cloud, "kept")["parent"], "gateway");
    kept.kill();
}

#[test]
fn a_node_that_is_removed_leaves_every_list_and_its_name() {
    let site = Site::new();
    let mut cam = site.end("cam", &site.cloud.url, &[]);
    becomes(&site.cloud, &[("cloud", "connected"), ("cam", "connected")]);
    site.cloud.ask(&["nodes", "rm", "cam"]).refused(5, "cam is connected");
    cam.kill();
    becomes(&site.cloud, &[("cloud", "connected"), ("cam", "lost")]);
    assert_eq!(site.cloud.ask(&["nodes", "rm", "cam"]).code, 0);
    becomes(&site.cloud, &[("cloud", "connected")]);
    // Its certificate is refused, and its name is free.
    let refused = crate::harness::Node::start(&cam.data, &[]);
    let status = || refused.ask(&["node", "status", "--json"]).json()["parents"][0].to_string();
    until("it hears that it is out", || status().contains("revoked").then_some(()));
    let other = site.folder.path().join("other");
    let token = site.token("end");
    let joined = crate::harness::tierline([
        "--data",
        other.to_str().unwrap(),
        "join",
        &site.cloud.url,
        "--token",
        &token,
        "--name",
        "cam",
    ]);
    assert_eq!(joined.code, 0, "{joined:?}");
    becomes(&site.cloud, &[("cloud", "connected"), ("cam", "never")]);
    site.cloud.ask(&["nodes", "rm", "nobody"]).refused(1, "there is no node `nobody`");
    site.cloud.ask(&["nodes", "rm", "cloud"]).refused(6, "can't shut itself out");
}

#[test]
fn a_node_takes_the_name_that_it_is_given() {
    let site = Site::new();
    let mut edge = site.edge("gateway");
    // At one address, to which it comes back.
    edge.restart();
    let cam = site.end("cam", &edge.url, &[]);
    becomes(&site.cloud, &[("cloud", "connected"), ("gateway", "connected"), ("cam", "connected")]);
    site.cloud.ask(&["nodes", "rename", "cam", "gateway"]).refused(1, "another node is called `gateway`");
    site.cloud.ask(&["nodes", "rename", "cam", "Not A Name"]).refused(2, "can't name a node");
    let renamed = site.cloud.ask(&["nodes", "rename", "cam", "front-door"]);
    assert!(renamed.code == 0 && renamed.stderr.contains("cam is called front-door from now on"), "{renamed:?}");
    // It is back when that is said.
    assert_eq!(cam.ask(&["node", "status", "--json"]).json()["name"], "front-door");
    becomes(&site.cloud, &[("cloud", "connected"), ("gateway", "connected"), ("front-door", "connected")]);
    // It has a certificate of that name, by which the edge knows it, and keeps it.
    becomes(&edge, &[("gateway", "connected"), ("front-door", "connected")]);
    let status = || cam.ask(&["node", "status", "--json"]);
    until("it knows itself by it", || {
        let status = status();
        (status.code == 0 && status.json()["name"] == "front-door").then_some(())
    });
    let toml = std::fs::read_to_string(cam.data.join("node.toml")).unwrap();
    assert!(toml.contains("name = \"front-door\""), "{toml}");
    // An edge, with those below it.
    assert_eq!(site.cloud.ask(&["nodes", "rename", "gateway", "hall"]).code, 0);
    becomes(&site.cloud, &[("cloud", "connected"), ("hall", "connected"), ("front-door", "connected")]);
    until("the end knows its parent by it", || {
        let status = status();
        (status.code == 0 && status.json()["parents"][0]["name"] == "hall").then_some(())
    });
}

#[test]
fn a_model_keeps_what_was_measured_under_another_name() {
    let site = Site::new();
    let end = site.end("cam", &site.cloud.url, &[]);
    let model = site.add_model();
    crate::harness::until_planned(&end);
    let profile = || end.ask(&["model", "ls", "--json"]).json()["models"].clone();
    let before = profile();
    site.cloud.ask(&["model", "rename", "digits", ""]).refused(2, "name");
    end.ask(&["model", "rename", "digits", "letters"]).refused(6, "kept on the cloud");
    assert_eq!(site.cloud.ask(&["model", "rename", "digits", "letters"]).code, 0);
    until("the end knows it", || (profile()[0]["name"] == "letters").then_some(()));
    let after = profile();
    assert_eq!(after.as_array().unwrap().len(), 1);
    assert_eq!((&after[0]["digest"], &after[0]["profiled"]), (&before[0]["digest"], &true.into()));
    let logs = end.ask(&["logs", "--kind", "model"]).stdout;
    assert_eq!(logs.matches("profiled").count(), 1, "it was measured once: {logs}");
    assert_eq!(end.ask(&["infer", "--model", "letters", "--input", &model.input]).code, 0);
    end.ask(&["infer", "--model", "digits", "--input", &model.input]).refused(1, "no model `digits`");
}

fn folder_copied(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn a_cloud_is_restored_from_a_copy_and_its_nodes_come_back() {
    let mut site = Site::new();
    // At one address, as in life.
    site.cloud.restart();
    let edge = site.edge("gateway");
    let end = site.end("cam", &edge.url, &[]);
    let sold = site.end("sold", &site.cloud.url.clone(), &[]);
    let model = site.add_model();
    crate::harness::until_planned(&end);
    assert_eq!(site.cloud.ask(&["nodes", "revoke", "sold"]).code, 0);
    let before = site.cloud.ask(&["infer", "--model", "digits", "--input", &model.input, "--json"]).json();
    assert_eq!(site.cloud.ask(&["node", "stop"]).code, 0);
    let (data, copy) = (site.cloud.data.clone(), site.folder.path().join("copy"));
    folder_copied(&data, &copy);
    site.cloud.restart();
    // What happens behind the copy isn't in it.
    let late = site.join("end", "late", &site.cloud.url);
    site.cloud.kill();
    std::fs::remove_dir_all(&data).unwrap();
    folder_copied(&copy, &data);
    site.cloud.restart();
    let known = [("cloud", "connected"), ("gateway", "connected"), ("cam", "connected"), ("sold", "revoked")];
    becomes(&site.cloud, &known);
    let after = site.cloud.ask(&["infer", "--model", "digits", "--input", &model.input, "--json"]).json();
    assert_eq!((&after["digest"], &after["outputs"]), (&before["digest"], &before["outputs"]));
    // It signs as before: others join, whoever was shut out stays out.
    let _new = site.end("new", &edge.url, &[]);
    becomes(&site.cloud, &[&known[..], &[("new", "connected")]].concat());
    until("who was shut out hears it", || {
        sold.ask(&["node", "status", "--json"]).json()["parents"][0].to_string().contains("revoked").then_some(())
    });
    assert!(late.exists());
}
