//! `tierline delta`: made, applied, refused.

use tierline_zoo::{Batch, Bn, Options};

use crate::train::within;

#[test]
fn a_delta_makes_the_new_file_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let net = |seed| {
        let options = Options { bn: Bn::Kept, batch: Batch::Free, image: None, seed };
        tierline_zoo::by_name("lenet", &options).unwrap()
    };
    net(1).save(&path("old.onnx")).unwrap();
    net(2).save(&path("other.onnx")).unwrap();
    let old = std::fs::read(path("old.onnx")).unwrap();
    let mut new = old.clone();
    // The lowest byte of every 16th weight, about.
    new.iter_mut().skip(400).step_by(64).for_each(|byte| *byte ^= 3);
    std::fs::write(path("new.onnx"), &new).unwrap();
    let run = |args: &[&str]| within(folder.path(), args);

    let made = run(&["delta", "make", "old.onnx", "new.onnx", "--out", "d", "--json"]).json();
    let delta_bytes = std::fs::metadata(path("d")).unwrap().len();
    assert_eq!(made["delta_bytes"], delta_bytes);
    assert!(delta_bytes * 8 < new.len() as u64, "{made}");
    assert_eq!(made["result"], blake3::hash(&new).to_hex().to_string());
    let shown = run(&["delta", "make", "old.onnx", "new.onnx", "--out", "d"]);
    assert!(shown.code == 0 && shown.stdout.contains("times smaller"), "{shown:?}");

    let applied = run(&["delta", "apply", "old.onnx", "d", "--out", "again.onnx", "--json"]).json();
    assert_eq!((&applied["result"], &applied["lossy"]), (&made["result"], &false.into()));
    assert_eq!(std::fs::read(path("again.onnx")).unwrap(), new);

    let lossy = ["delta", "make", "old.onnx", "other.onnx", "--out", "l", "--lossy", "int4", "--result", "close.onnx"];
    let made = run(&[&lossy[..], &["--json"]].concat()).json();
    assert!(made["deviation"]["largest"].as_f64().unwrap() > 0.0, "{made}");
    assert_eq!(made["result"], blake3::hash(&std::fs::read(path("close.onnx")).unwrap()).to_hex().to_string());
    tierline_graph::Model::load(&path("close.onnx")).unwrap();
    assert_eq!(run(&["delta", "apply", "old.onnx", "l", "--out", "again.onnx"]).code, 0);
    assert_eq!(std::fs::read(path("again.onnx")).unwrap(), std::fs::read(path("close.onnx")).unwrap());
    assert!(run(&lossy).stdout.contains("With loss"));

    // Nothing appears where something was wrong, and nothing is left behind.
    let apply = ["delta", "apply", "old.onnx", "broken", "--out", "never.onnx"];
    let delta = std::fs::read(path("d")).unwrap();
    let broken = |bytes: &[u8], said: &str| {
        std::fs::write(path("broken"), bytes).unwrap();
        run(&apply).refused(6, said);
    };
    broken(&delta[..delta.len() - 1], "cut short");
    broken(b"PK and so on", "no delta");
    let mut damaged = delta.clone();
    damaged[200] ^= 0x10;
    broken(&damaged, "the");
    std::fs::write(path("broken"), &delta).unwrap();
    std::fs::copy(path("other.onnx"), path("old.onnx")).unwrap();
    run(&apply).refused(6, "was made from");
    // Far more than any disk has: said before anything is written.
    damaged.clone_from(&delta);
    damaged[20..28].copy_from_slice(&(1u64 << 60).to_le_bytes());
    broken(&damaged, "the");
    run(&["delta", "apply", "old.onnx", "missing", "--out", "never.onnx"]).refused(1, "cannot open missing");
    run(&["delta", "make", "old.onnx", "new.onnx", "--out", "d", "--lossy", "int2"]).refused(2, "int8");
    assert!(!path("never.onnx").exists());
    let left = std::fs::read_dir(folder.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tierline-"));
    assert_eq!(left.count(), 0);
}
