//! What somebody tries who has just begun: what is asked twice, in the wrong
//! place, or by a wrong name, and what nothing may replace without a word.

use crate::harness::{Site, binary, outputs, tierline, until_planned, write_npy};

#[test]
fn a_folder_that_is_a_member_keeps_its_identity_unless_told_otherwise() {
    let site = Site::new();
    let data = site.join("end", "cam", &site.cloud.url);
    let identity = || std::fs::read(data.join("identity/node.pem")).unwrap();
    let before = identity();
    let token = site.token("end");
    let join = |folder: &std::path::Path, more: &[&str]| {
        let folder = folder.to_str().unwrap();
        let args = ["--data", folder, "join", &site.cloud.url, "--token", &token, "--name", "other"];
        tierline([&args[..], more].concat())
    };
    join(&data, &[]).refused(3, "is cam (end) already");
    assert!(identity() == before, "it is the same as before");
    // A cloud's would be the end of its site.
    join(&site.cloud.data, &[]).refused(3, "is cloud (cloud) already");
    assert_eq!(join(&data, &["--replace"]).code, 0);
    assert!(identity() != before);
}

#[test]
fn a_model_is_measured_anew_only_when_that_is_wanted() {
    let site = Site::new();
    let end = site.end("cam", &site.cloud.url, &[]);
    let file = site.folder.path().join("net.onnx");
    let file = file.to_str().unwrap();
    assert_eq!(tierline(["model", "zoo", "lenet", "--out", file]).code, 0);
    let add = |more: &[&str]| site.cloud.ask(&[&["model", "add", file, "--name", "digits"], more].concat());
    let added = add(&["--shape", "input=1,1,28,28"]);
    assert!(added.code == 0 && added.stderr.contains("all 2 nodes know it"), "{added:?}");
    assert_eq!(end.ask(&["model", "show", "digits"]).code, 0, "it does indeed");
    until_planned(&end);
    add(&["--shape", "input=4,1,28,28"]).refused(1, "measured at input=1,1,28,28");
    add(&["--shape", "input=1,1,28,28", "--cuts", "2"]).refused(1, "with other cuts");
    assert_eq!(add(&["--shape", "input=1,1,28,28"]).code, 0, "the same again changes nothing");
    let models = end.ask(&["model", "ls", "--json"]).json();
    assert_eq!(models["models"][0]["profiled"], true, "nothing was dropped: {models}");

    // An answer says which model it is of.
    let npy = site.folder.path().join("input.npy");
    write_npy(&npy, vec![1, 1, 28, 28], vec![0.5; 784]);
    let input = format!("input=@{}", npy.display());
    let infer = || end.ask(&["infer", "--model", "digits", "--input", &input, "--json"]).json();
    let first = infer();
    assert_eq!(first["digest"], models["models"][0]["digest"]);
    assert_eq!(tierline(["model", "zoo", "lenet", "--seed", "9", "--out", file]).code, 0);
    let replaced = add(&["--shape", "input=1,1,28,28", "--replace", "--json"]).json();
    assert_eq!((&replaced["known_by"], &replaced["not_yet"]), (&2.into(), &serde_json::json!([])));
    let second = infer();
    assert_eq!(second["digest"], replaced["digest"], "every node knows it once the command has ended");
    assert_ne!(outputs(&first), outputs(&second));

    // A wrong name is told from a missing one.
    let wrong = end.ask(&["infer", "--model", "digits", "--input", &input.replace("input=", "image=")]);
    wrong.refused(2, "the model has no input `image`; it takes `input`");
}

#[test]
fn what_only_the_cloud_does_is_asked_of_the_cloud() {
    let site = Site::new();
    let end = site.end("cam", &site.cloud.url, &[]);
    let refused = end.ask(&["token", "create"]);
    refused.refused(6, "this node is an end, and only cloud nodes do that");
    assert!(refused.stderr.contains("run it on the cloud"), "{refused:?}");
    let lost = site.folder.path().join("nobody");
    tierline(["--data", lost.to_str().unwrap(), "node"]).refused(3, "no identity in");
}

#[test]
fn a_run_is_not_lost_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    crate::train::corners(folder.path());
    let run = |args: &[&str]| {
        let mut command = binary();
        command.current_dir(folder.path()).env("TIERLINE_DATA", folder.path().join("data")).args(args);
        crate::harness::Ran::of(command.output().unwrap())
    };
    assert_eq!(run(&["data", "add", "corners", "pictures", "--size", "28x28", "--grey"]).code, 0);
    let train = |more: &[&str]| run(&[&["train", "corners.toml", "--local", "--epochs", "1"], more].concat());
    assert_eq!(train(&[]).code, 0);
    let model = || std::fs::read(folder.path().join("corners.run/model.onnx")).unwrap();
    let before = model();
    let refused = train(&[]);
    refused.refused(3, "is of an earlier run");
    assert!(refused.stderr.contains("--resume") && refused.stderr.contains("--replace"), "{refused:?}");
    assert!(model() == before);
    assert_eq!(train(&["--out", "elsewhere"]).code, 0);
    assert_eq!(train(&["--replace"]).code, 0);
}

#[test]
fn a_library_beside_the_python_in_use_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let capi = folder.path().join("env/lib/python3.12/site-packages/onnxruntime/capi");
    std::fs::create_dir_all(&capi).unwrap();
    std::fs::create_dir_all(folder.path().join("env/bin")).unwrap();
    std::fs::write(folder.path().join("env/bin/python3"), "").unwrap();
    std::fs::write(capi.join("libonnxruntime.so.1.99.0"), "no library").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tierline"));
    command.args(["doctor", "--json"]).env_clear();
    command.env("PATH", folder.path().join("env/bin")).env("HOME", folder.path());
    let report = crate::harness::Ran::of(command.output().unwrap()).json();
    let found = report["engines"].as_array().unwrap().iter().find(|engine| engine["name"] == "onnxruntime").unwrap();
    let detail = found["detail"].as_str().unwrap();
    assert!(detail.contains("env/lib/python3.12") && detail.contains("(python package)"), "{detail}");
}

#[test]
fn a_job_says_what_it_waits_for_and_is_known_after_its_end() {
    let federation = crate::federation::Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 2 }\n");
    let cloud = &federation.site.cloud;
    let first = federation.end(0, &cloud.url);
    let bare = federation.site.end("bare", &cloud.url, &[]);
    let mut watcher = federation.watch();
    let show = || cloud.ask(&["job", "show", "squares"]).stdout;
    crate::harness::until("one is ready, the other can't", || {
        let said = show();
        (said.contains("waits    for 2 nodes that can take part; 1 can") && said.contains("without  bare: "))
            .then_some(())
    });
    // Jobs know their members by name.
    cloud.ask(&["nodes", "rename", "bare", "other"]).refused(5, "under way, which know their members by name");
    federation.add_data(&bare, "squares", 60, 7);
    assert!(watcher.wait().unwrap().success());
    let said = show();
    assert!(said.contains("state    done") && said.contains("members  2 took part"), "{said}");
    assert!(!said.contains("waits") && !said.contains("note"), "{said}");
    drop(first);
}

#[test]
fn a_cloud_that_holds_nothing_out_says_so() {
    let federation = crate::federation::Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 1 }\n");
    let cloud = &federation.site.cloud;
    let _end = federation.end(0, &cloud.url);
    assert_eq!(cloud.ask(&["data", "rm", "held-out"]).code, 0);
    let job = federation.folder.path().join("squares.toml");
    let ran = cloud.ask(&["train", job.to_str().unwrap(), "--replace"]);
    assert!(ran.code == 0 && ran.stderr.contains("nothing is held out, so no accuracy is known"), "{ran:?}");
    let shown = cloud.ask(&["job", "show", "squares"]).stdout;
    assert!(shown.contains("no data set `held-out`"), "{shown}");
}
