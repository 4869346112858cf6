//! `tierline train` and what goes with it, on small made-up pictures.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tierline_zoo::{Batch, Bn, Options};

use crate::harness::{Ran, binary, tierline};

/// Pictures of two classes in folders, a small network, and their folder.
fn site() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    corners(folder.path());
    folder
}

pub fn corners(folder: &Path) {
    let mut rng = fastrand::Rng::with_seed(1);
    for (class, corner) in [("bottom-left", (14, 0)), ("top-right", (0, 14))] {
        let at = folder.join("pictures").join(class);
        std::fs::create_dir_all(&at).unwrap();
        for i in 0..30 {
            let picture = image::GrayImage::from_fn(28, 28, |x, y| {
                let inside = (corner.1..corner.1 + 14).contains(&x) && (corner.0..corner.0 + 14).contains(&y);
                image::Luma([rng.u8(0..60) + if inside { 180 } else { 0 }])
            });
            picture.save(at.join(format!("{i}.png"))).unwrap();
        }
    }
    let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed: 3 };
    tierline_zoo::mlp(&options).save(&folder.join("net.onnx")).unwrap();
    std::fs::write(folder.join("corners.toml"), block(&guide(), "toml")).unwrap();
}

fn guide() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/training.md")).unwrap()
}

/// The first block of this language in a page.
fn block(page: &str, language: &str) -> String {
    blocks(page, language).next().expect("the guide has one").to_owned()
}

fn blocks<'p>(page: &'p str, language: &str) -> impl Iterator<Item = &'p str> {
    let fence = format!("```{language}\n");
    let mut rest = page;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&fence)?;
        let (block, after) = after.split_once("```")?;
        rest = after;
        Some(block)
    })
}

/// Runs a command in a folder, with data of its own.
pub fn within(folder: &Path, args: &[&str]) -> Ran {
    let mut command = binary();
    command.args(args).current_dir(folder).env("TIERLINE_DATA", folder.join("data")).stdin(Stdio::null());
    Ran::of(command.output().expect("the binary runs"))
}

fn lines(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn events_say_how_it_went_and_the_same_seed_gives_the_same_model() {
    let folder = site();
    assert_eq!(within(folder.path(), &["data", "add", "corners", "pictures", "--size", "28x28", "--grey"]).code, 0);
    let run = |out: &str| lines(&within(folder.path(), &["train", "corners.toml", "--local", "--json", "--out", out]));
    let first = run("a");
    let kinds: Vec<&str> = first.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "epoch", "epoch", "epoch", "done"]);
    let done = first.last().unwrap();
    assert!(done["accuracy"].as_f64().unwrap() > 0.9, "{done}");
    assert!(done["loss"].as_f64().is_some() && done["seconds"].as_f64().is_some());
    assert_eq!(done["model"], run("b").last().unwrap()["model"]);
    let bytes = std::fs::read(folder.path().join("a/model.onnx")).unwrap();
    assert_eq!(done["model"], blake3::hash(&bytes).to_hex().to_string());

    // Fewer epochs first, then the rest: the schedule leads to the last epoch
    // of the job, so the job itself must say how many there are.
    let constant = std::fs::read_to_string(folder.path().join("corners.toml")).unwrap();
    let constant = constant.replace("decay = { kind = \"cosine\" }", "");
    std::fs::write(folder.path().join("constant.toml"), constant).unwrap();
    let train = |more: &[&str]| {
        let args = [&["train", "constant.toml", "--local", "--json"], more].concat();
        lines(&within(folder.path(), &args)).pop().unwrap()["model"].clone()
    };
    let whole = train(&["--out", "whole"]);
    train(&["--out", "parts", "--epochs", "1"]);
    assert_eq!(train(&["--out", "parts", "--resume"]), whole);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_trained() {
    let folder = site();
    let train = |args: &[&str]| within(folder.path(), &[&["train"], args].concat());
    train(&["corners.toml"]).refused(2, "--local");
    train(&["nowhere.toml", "--local"]).refused(3, "cannot read");
    train(&["corners.toml", "--local"]).refused(1, "corners");
    assert_eq!(within(folder.path(), &["data", "add", "corners", "pictures", "--size", "28x28", "--grey"]).code, 0);
    train(&["corners.toml", "--local", "--resume"]).refused(1, "checkpoint");
    let job = std::fs::read_to_string(folder.path().join("corners.toml")).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(job.contains(from), "{from}");
        std::fs::write(folder.path().join("changed.toml"), job.replace(from, to)).unwrap();
        train(&["changed.toml", "--local"])
    };
    changed("epochs = 3", "epoch = 3").refused(3, "unknown field `epoch`");
    changed("epochs = 3", "epochs = 0").refused(3, "epochs is 0");
    changed("\"sgd\"", "\"sdg\"").refused(3, "sdg");
    changed("rate = 0.02", "rate = -1").refused(3, "the learning rate is -1");
    changed("net.onnx", "none.onnx").refused(1, "none.onnx");
    changed("hold_out = 0.2", "hold_out = 2.0").refused(3, "2");
    changed("rate = 0.02", "rate = 1e30").refused(1, "is not finite");
    // What has been trained by another job isn't gone on with.
    assert_eq!(train(&["corners.toml", "--local", "--quiet"]).code, 0);
    std::fs::write(folder.path().join("corners.toml"), job.replace("momentum = 0.9", "momentum = 0.8")).unwrap();
    train(&["corners.toml", "--local", "--resume"]).refused(3, "belongs to another job");
    let step = within(folder.path(), &["model", "trainable", "net.onnx", "--freeze", "zzz*", "--out", "x.onnx"]);
    step.refused(1, "matches none of the");
    assert!(!folder.path().join("x.onnx").exists());
    assert_eq!(tierline(["model", "trainable", "nothing.onnx", "--out", "x.onnx"]).code, 1);
}

#[cfg(unix)]
#[test]
fn interrupted_training_leaves_a_checkpoint_and_ends_as_if_it_had_not_been() {
    let folder = site();
    assert_eq!(within(folder.path(), &["data", "add", "corners", "pictures", "--size", "28x28", "--grey"]).code, 0);
    let job = std::fs::read_to_string(folder.path().join("corners.toml")).unwrap();
    std::fs::write(folder.path().join("long.toml"), job.replace("epochs = 3", "epochs = 60")).unwrap();
    let whole = lines(&within(folder.path(), &["train", "long.toml", "--local", "--json", "--out", "whole"]));
    let mut child = Command::new(env!("CARGO_BIN_EXE_tierline"))
        .args(["train", "long.toml", "--local", "--json", "--out", "parts"])
        .current_dir(folder.path())
        .env("TIERLINE_ENGINE", "rten")
        .env("TIERLINE_DATA", folder.path().join("data"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Once an epoch is done it is well under way.
    let mut seen = String::new();
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    while !seen.contains("\"epoch\",") && !seen.contains("\"event\":\"epoch\"") {
        assert!(std::io::BufRead::read_line(&mut reader, &mut seen).unwrap() > 0, "{seen}");
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    std::io::Read::read_to_string(&mut reader, &mut seen).unwrap();
    let code = child.wait().unwrap().code();
    let done = seen.contains("\"event\":\"done\"");
    assert_eq!(code, Some(if done { 0 } else { 130 }), "{seen}");
    let rest =
        lines(&within(folder.path(), &["train", "long.toml", "--local", "--json", "--out", "parts", "--resume"]));
    assert_eq!(rest.last().unwrap()["model"], whole.last().unwrap()["model"]);
}

/// Files may not grow beyond a limit, so that a write fails in the middle of
/// one: as on a full disk, for every user.
#[cfg(unix)]
#[test]
fn a_run_that_finds_no_room_is_taken_up_again() {
    let folder = site();
    assert_eq!(within(folder.path(), &["data", "add", "corners", "pictures", "--size", "28x28", "--grey"]).code, 0);
    // Each epoch on its own must learn at the same rate.
    let job = std::fs::read_to_string(folder.path().join("corners.toml")).unwrap();
    let job = job.replace("decay = { kind = \"cosine\" }", "");
    std::fs::write(folder.path().join("constant.toml"), job).unwrap();
    let args = |out: &'static str, more: &[&'static str]| {
        [&["train", "constant.toml", "--local", "--json", "--out", out], more].concat()
    };
    let model = |ran: Ran| lines(&ran).pop().unwrap()["model"].clone();
    let whole = model(within(folder.path(), &args("whole", &[])));

    let files = |out: &str| -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(folder.path().join(out)).unwrap().map(Result::unwrap);
        // The lock names the process that had it last.
        let entries = entries.filter(|e| e.file_name() != ".lock");
        let mut all: Vec<_> =
            entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect();
        all.sort();
        all
    };
    assert_eq!(within(folder.path(), &args("parts", &["--epochs", "1"])).code, 0);
    let before = files("parts");
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_tierline")])
        .args(args("parts", &["--resume"]))
        .current_dir(folder.path())
        .env("TIERLINE_ENGINE", "rten")
        .env("TIERLINE_DATA", folder.path().join("data"))
        .stdin(Stdio::null())
        .output()
        .expect("a shell runs");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["checkpoint.safetensors", "cannot be written", "make room", "the last good checkpoint is"] {
        assert!(said.contains(part), "`{said}` lacks `{part}`");
    }
    // What was there is as it was, and nothing else is.
    assert!(files("parts") == before, "files of the run changed");
    assert_eq!(model(within(folder.path(), &args("parts", &["--resume"]))), whole);
}

#[test]
fn a_second_process_does_not_train_in_the_folder_of_another() {
    let folder = site();
    assert_eq!(within(folder.path(), &["data", "add", "corners", "pictures", "--size", "28x28", "--grey"]).code, 0);
    let job = std::fs::read_to_string(folder.path().join("corners.toml")).unwrap();
    std::fs::write(folder.path().join("endless.toml"), job.replace("epochs = 3", "epochs = 1000000")).unwrap();
    let begin = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tierline"))
            .args(["train", "endless.toml", "--local", "--json", "--replace", "--out", "run"])
            .current_dir(folder.path())
            .env("TIERLINE_ENGINE", "rten")
            .env("TIERLINE_DATA", folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("\"epoch\"") {
            line.clear();
            assert!(out.read_line(&mut line).expect("a line") > 0, "it ended");
        }
        child
    };
    let mut first = begin();
    for more in [&[][..], &["--resume"]] {
        let args = [&["train", "endless.toml", "--local", "--out", "run"], more].concat();
        let second = within(folder.path(), &args);
        second.refused(1, &format!("in use by process {}", first.id()));
        assert!(second.stderr.contains("--out DIR"), "{second:?}");
    }
    // The first goes on, and a folder whose holder was killed is free.
    assert!(first.try_wait().unwrap().is_none());
    first.kill().unwrap();
    first.wait().unwrap();
    let mut next = begin();
    next.kill().unwrap();
    next.wait().unwrap();
}
