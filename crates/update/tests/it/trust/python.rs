//! python-tuf on the other side. Without it these tests say so and pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tierline_update::trust::{Client, Holders, TargetCheck, UnixTime};

use super::{DAY, START, Site, search, update};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/trust/simulate.py");

/// A Python that has the packages `tuf` and `cryptography`.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("TIERLINE_PYTHON").unwrap_or_else(|| "python3".into()));
    let there = Command::new(&python).args(["-c", "import tuf.ngclient, cryptography"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {} lacks the packages `tuf` and `securesystemslib[crypto]`", python.display());
    None
}

fn script(python: &Path, args: &[&str]) -> String {
    let output = Command::new(python).arg(SCRIPT).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}\n{out}\n{err}");
    out.into_owned()
}

fn folder(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

/// Attacks and ordinary days, as a simulated repository makes them, before the
/// client with the conformance suite's command line.
#[test]
fn cases_of_a_lying_repository() {
    let Some(python) = python() else { return };
    // Tests and examples lie beside each other in one target folder.
    let test = std::env::current_exe().unwrap();
    let client = test.parent().unwrap().with_file_name("examples").join("tuf_client");
    assert!(client.exists(), "{} isn't built; plain `cargo test` builds examples", client.display());
    let said = script(&python, &["run", client.to_str().unwrap()]);
    assert!(said.contains(" 0 failed") && said.matches("ok ").count() > 50, "{said}");
}

#[test]
fn we_read_what_python_wrote() {
    let Some(python) = python() else { return };
    let at = tempfile::tempdir().unwrap();
    script(&python, &["write", at.path().to_str().unwrap()]);
    let files = folder(&at.path().join("metadata"));
    let mut client = Client::new(&fs::read(at.path().join("anchor.json")).unwrap()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    update(&mut client, &files, UnixTime(now)).unwrap();
    assert_eq!(client.root().head.version, 4);
    let expected: BTreeMap<String, String> =
        serde_json::from_slice(&fs::read(at.path().join("expected.json")).unwrap()).unwrap();
    let roles: Vec<String> = expected
        .iter()
        .map(|(target, content)| {
            search(&mut client, &files, target).unwrap_or_else(|error| panic!("{target}: {error}"));
            let found = client.found().unwrap();
            let mut check = TargetCheck::new(target, &found.target);
            check.update(content.as_bytes()).unwrap();
            check.finish().unwrap();
            found.role.clone()
        })
        .collect();
    assert_eq!(roles, ["detector", "site-a", "targets"]);
    assert!(search(&mut client, &files, "detector/3/model.onnx").is_err());
}

#[test]
fn python_reads_what_we_wrote() {
    let Some(python) = python() else { return };
    let now = UnixTime(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs());
    assert!(now > START.before(DAY * 3_650));
    let mut site = Site::new();
    // Rotated with a threshold, delegated, with names and custom data that need escaping.
    let two = Holders {
        keys: vec![site.keys["root-2"].public().clone(), site.keys["root-3"].public().clone()],
        threshold: 2,
    };
    site.repository.rotate("root", &two, now).unwrap();
    site.repository.rotate("targets", &two, now).unwrap();
    site.sign(&["root", "root-2", "root-3"]);
    site.publish(now);
    let one = Holders::one(site.keys["detector"].public());
    site.repository.delegate("targets", "detector", &one, &["detector/*/*".into()], true, now).unwrap();
    site.set("detector", "detector/2/mödel \"x\".onnx", b"model", now);
    site.sign(&["root-2", "root-3"]);
    site.publish(now);

    let at = tempfile::tempdir().unwrap();
    let write = |file: &str, bytes: &[u8]| {
        let path = at.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for (file, bytes) in site.repository.files() {
        write(&format!("metadata/{file}"), bytes);
    }
    write("anchor.json", &site.files()["1.root.json"]);
    let mut client = site.client();
    update(&mut client, &site.files(), now).unwrap();
    search(&mut client, &site.files(), "detector/2/mödel \"x\".onnx").unwrap();
    write(&format!("targets/{}", client.found().unwrap().file), b"model");

    let said = script(&python, &["read", at.path().to_str().unwrap(), "detector/2/mödel \"x\".onnx"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["root"], 2);
    assert_eq!(said["found"]["content"], "model");
    assert_eq!(said["found"]["custom"]["tierline"]["blake3"], blake3::hash(b"model").to_hex().as_str());
}
