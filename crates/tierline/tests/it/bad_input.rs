//! What is wrong is named, with the next thing to do; the next request works.

use std::process::Command;

use crate::harness::{Node, Site, on_small_disk, tierline, until, until_planned, write_npy};

#[test]
fn noise_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("noise.onnx");
    let noise: Vec<u8> = (0..4_096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&file, noise).unwrap();
    tierline(["model", "inspect", file.to_str().unwrap()]).refused(1, "noise.onnx");
    tierline(["model", "inspect", "nowhere.onnx"]).refused(1, "nowhere.onnx");
}

#[test]
fn an_unknown_cut_names_the_near_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = crate::harness::Model::write(folder.path());
    let out = folder.path().join("out");
    let ran =
        tierline(["model", "slice", model.file.to_str().unwrap(), "--at", "nothing", "--out", out.to_str().unwrap()]);
    ran.refused(1, "nothing");
    assert!(ran.stderr.contains("model inspect"), "{ran:?}");
    assert!(!out.exists(), "nothing is written for a wrong cut");
}

#[test]
fn without_a_node_the_exit_says_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("none");
    tierline(["--data", data.to_str().unwrap(), "nodes"]).refused(4, "no node runs on this device");
}

#[test]
fn a_token_lets_one_device_in() {
    let site = Site::new();
    let token = site.token("end");
    let join = |name: &str| {
        let data = site.folder.path().join(name);
        tierline(["--data", data.to_str().unwrap(), "join", &site.cloud.url, "--token", &token, "--name", name])
    };
    assert_eq!(join("first").code, 0);
    join("second").refused(6, "used already");
    // A damaged token is no token; another site's is refused before its secret is sent.
    let data = site.folder.path().join("third");
    let data = data.to_str().unwrap();
    tierline(["--data", data, "join", &site.cloud.url, "--token", "tl1.abc"]).refused(2, "no join token");
    let other = Site::new();
    let foreign = other.token("end");
    tierline(["--data", data, "join", &site.cloud.url, "--token", &foreign])
        .refused(6, "not the one that made this token");
}

#[test]
fn a_token_taken_back_lets_nobody_in() {
    let site = Site::new();
    let made = site.cloud.ask(&["token", "create", "--json"]).json();
    assert_eq!(site.cloud.ask(&["token", "rm", made["id"].as_str().unwrap()]).code, 0);
    let data = site.folder.path().join("late");
    let token = made["token"].as_str().unwrap();
    tierline(["--data", data.to_str().unwrap(), "join", &site.cloud.url, "--token", token]).refused(6, "taken back");
    site.cloud.ask(&["token", "rm", "000000000000"]).refused(1, "there is no token");
}

#[test]
fn a_foreign_certificate_gets_nothing() {
    let (ours, theirs) = (Site::new(), Site::new());
    let data = theirs.join("operator", "admin", &theirs.cloud.url);
    let data = data.to_str().unwrap();
    assert_eq!(tierline(["--data", data, "nodes", "--endpoint", &theirs.cloud.url]).code, 0);
    let refused = tierline(["--data", data, "nodes", "--endpoint", &ours.cloud.url]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stdout.is_empty());
}

#[test]
fn an_end_may_not_administer() {
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    let data = data.to_str().unwrap();
    tierline(["--data", data, "token", "create", "--endpoint", &site.cloud.url]).refused(6, "role end may not");
}

#[test]
fn a_revoked_node_is_shut_out() {
    let site = Site::new();
    let end = site.end("cam", &site.cloud.url, &[]);
    until("the end's lease", || {
        let nodes = site.cloud.ask(&["nodes", "--json"]).json();
        nodes["nodes"].as_array()?.iter().any(|n| n["name"] == "cam" && n["state"] == "connected").then_some(())
    });
    site.cloud.ask(&["nodes", "revoke", "camm"]).refused(1, "did you mean `cam`?");
    assert_eq!(site.cloud.ask(&["nodes", "revoke", "cam", "--reason", "lost"]).code, 0);
    until("the end being shut out", || {
        let nodes = site.cloud.ask(&["nodes", "--json"]).json();
        nodes["nodes"].as_array()?.iter().all(|n| n["name"] != "cam" || n["state"] == "revoked").then_some(())
    });
    until("the end hearing of it", || end.log().contains("revoked").then_some(()));
}

#[test]
fn wrong_requests_are_told_apart_and_the_next_one_works() {
    let site = Site::new();
    let model = site.add_model();
    let infer = |args: &[&str]| site.cloud.ask(&[&["infer", "--json"], args].concat());
    let folder = site.folder.path();
    infer(&["--model", "digit", "--input", &model.input]).refused(1, "did you mean `digits`?");
    let small = folder.join("small.npy");
    write_npy(&small, vec![1, 1, 2, 2], vec![0.0; 4]);
    infer(&["--model", "digits", "--input", &format!("{}=@{}", model.name, small.display())])
        .refused(2, "has shape [1, 1, 2, 2]");
    infer(&["--model", "digits", "--input", &format!("other=@{}", small.display())])
        .refused(2, "no input `other`; it takes `input`");
    infer(&["--model", "digits", "--input", "input"]).refused(2, "NAME=@FILE.npy");
    std::fs::write(folder.join("broken.npy"), b"\x93NUMPY\x01\x00").unwrap();
    infer(&["--model", "digits", "--input", &format!("input=@{}", folder.join("broken.npy").display())])
        .refused(1, "broken.npy");
    infer(&["--model", "digits", "--input", &model.input, "--placement", "edge"]).refused(4, "no edge is above cloud");
    let answer = infer(&["--model", "digits", "--input", &model.input]).json();
    assert_eq!(answer["outputs"][0]["shape"], serde_json::json!([1, 10]));
}

#[test]
fn impossible_limits_exit_with_5() {
    let site = Site::new();
    site.add_model();
    until_planned(&site.cloud);
    site.cloud.ask(&["plan", "digits", "--deadline", "1 us"]).refused(5, "no placement satisfies the limits");
    assert_eq!(site.cloud.ask(&["plan", "digits"]).code, 0);
}

#[test]
fn a_wrong_configuration_names_the_key() {
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    std::fs::write(data.join("node.toml"), "thread = 2\n").unwrap();
    let data = data.to_str().unwrap();
    tierline(["--data", data, "node"]).refused(3, "did you mean `threads`?");
    std::fs::write(std::path::Path::new(data).join("node.toml"), "slowdown = 0.5\n").unwrap();
    tierline(["--data", data, "node"]).refused(3, "slowdown");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    let key = data.join("identity/node.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    tierline(["--data", data.to_str().unwrap(), "node"]).refused(6, "chmod 600");
}

#[test]
fn two_nodes_cannot_share_a_folder() {
    let site = Site::new();
    let data = site.cloud.data.to_str().unwrap();
    tierline(["--data", data, "node", "--listen", "127.0.0.1:0"]).refused(3, "already runs");
}

/// A file system of 3 MB, in a mount namespace of the node's own.
#[test]
fn a_full_disk_refuses_the_model_and_the_node_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("cloud");
    let Some(command) = on_small_disk(&data, 3) else { return };
    let node = Node::start_by(command, &data, &["--role", "cloud", "--listen", "127.0.0.1:0"]);
    // Its socket lies within its own namespace; an operator comes over the network.
    let token = Command::new("nsenter")
        .args([
            "--user",
            "--mount",
            "--preserve-credentials",
            "-t",
            &node.id().to_string(),
            env!("CARGO_BIN_EXE_tierline"),
            "--data",
        ])
        .arg(&data)
        .args(["token", "create", "--role", "operator", "--quiet"])
        .output()
        .unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    let admin = folder.path().join("admin");
    let admin = admin.to_str().unwrap();
    let joined = tierline(["--data", admin, "join", &node.url, "--token", token.trim(), "--name", "admin"]);
    assert_eq!(joined.code, 0, "{joined:?}");
    let large = tierline_zoo::mobilenet_v2(&tierline_zoo::Options::default());
    let file = folder.path().join("large.onnx");
    large.save(&file).unwrap();
    let add = |file: &std::path::Path, name: &str| {
        tierline(["--data", admin, "model", "add", file.to_str().unwrap(), "--name", name, "--endpoint", &node.url])
    };
    add(&file, "large").refused(1, "no room left");
    let small = crate::harness::Model::write(folder.path());
    assert_eq!(add(&small.file, "digits").code, 0);
    let answer = tierline([
        "--data",
        admin,
        "infer",
        "--model",
        "digits",
        "--input",
        &small.input,
        "--endpoint",
        &node.url,
        "--json",
    ])
    .json();
    assert_eq!(answer["degraded"], false);
}
