//! Judges that aren't ours, unmodified, before a node that serves applications.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::serve::{INFER, Served, ones};

/// A program of the tests' Python environment.
fn program(name: &str) -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("TIERLINE_PYTHON")?);
    Some(python.with_file_name(name)).filter(|path| path.exists())
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text.into_owned()
}

#[test]
fn the_description_is_what_is_answered() {
    let Some(schemathesis) = program("schemathesis") else {
        eprintln!("skipped: there is no schemathesis; run cargo xtask test");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schemathesis.toml");
    let text = succeeds(
        Command::new(schemathesis)
            .current_dir(folder.path())
            .args(["--config-file", config, "run", "--no-color", "--max-examples", "15", "--seed", "7"])
            .arg(format!("http://{}/openapi.json", served.http)),
    );
    assert!(text.contains("Tested: 26"), "{text}");
    // What is described is there: no path is answered as one that isn't.
    let (_, description) = served.connect().get("/openapi.json");
    for (path, methods) in description["paths"].as_object().expect("paths") {
        let path = path.replace("{model}", "mlp").replace("{version}", "1").replace("{job}", "none");
        if methods["get"].is_object() {
            let (status, answer) = served.connect().get(&path);
            assert_ne!(answer["error"], "there is nothing at this path", "{path}");
            assert!(status == 200 || path.ends_with("/none"), "{path}: {status} {answer}");
        }
    }
}

#[test]
fn numbers_are_what_prometheus_reads() {
    let Some(python) = program("python").filter(|python| {
        let known = Command::new(python).args(["-c", "import prometheus_client"]).stderr(Stdio::null()).status();
        known.is_ok_and(|status| status.success())
    }) else {
        eprintln!("skipped: there is no Prometheus client; run cargo xtask test");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let mut http = served.connect();
    assert_eq!(http.post(INFER, "", ones(&served.input()).to_string().as_bytes()).0, 200);
    assert_eq!(http.post(INFER, "", b"{}").0, 400);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/numbers.py");
    succeeds(Command::new(python).args([script, &served.http]));
}
