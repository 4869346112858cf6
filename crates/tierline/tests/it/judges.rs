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
    // What is described is there: no path is answered as one that isn't.
    let (_, description) = served.connect().get("/openapi.json");
    assert!(text.contains("No issues found") && !text.contains("Tested: 0"), "{text}");
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
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/prometheus_reads.py");
    succeeds(Command::new(python).args([script, &served.http]));
}

/// A judge that `cargo xtask judges` names.
fn named(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: {variable} is not set; run cargo xtask judges");
    }
    found
}

#[test]
fn kserves_client_is_answered_over_http_and_grpc() {
    let Some(python) = named("TIERLINE_KSERVE_PYTHON") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let input = served.input();
    let (_, answer) = served.connect().post(INFER, "", ones(&input).to_string().as_bytes());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/kserve_client.py");
    let expected = answer["outputs"][0]["data"].to_string();
    succeeds(Command::new(python).args([script, &served.http, &served.grpc, &input, &expected]));
}

#[test]
fn perf_analyzer_measures_what_the_server_counts() {
    let Some(program) = named("TIERLINE_PERF_ANALYZER") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let shape = format!("{}:1,784", served.input());
    let load = ["--measurement-mode", "count_windows", "--measurement-request-count", "200", "-s", "999"];
    for (kind, address, more) in [
        ("http", &served.http, &["--async", "--concurrency-range", "1"][..]),
        ("http", &served.http, &["--async", "--concurrency-range", "32"]),
        ("http", &served.http, &["--sync", "--concurrency-range", "4"]),
        ("grpc", &served.grpc, &["--async", "--concurrency-range", "1"]),
        ("grpc", &served.grpc, &["--async", "--concurrency-range", "32"]),
        ("grpc", &served.grpc, &["--async", "--streaming", "--concurrency-range", "32"]),
        ("grpc", &served.grpc, &["--async", "--grpc-compression-algorithm", "gzip", "--concurrency-range", "4"]),
    ] {
        let mut command = Command::new(&program);
        command.args(["-m", "mlp", "--shape", &shape, "-i", kind, "-u", address]).args(load).args(more);
        let text = succeeds(&mut command);
        let number = |what: &str| -> f64 {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(what)).unwrap_or_else(|| panic!("{text}"));
            line.trim().parse().expect("a number")
        };
        let (asked, counted) = (number("Request count: "), number("Successful request count: "));
        assert!(asked >= 200.0 && (asked - counted).abs() <= asked * 0.1, "{kind} {more:?}: {text}");
        let overall = text.lines().any(|line| line.contains("queue") && line.contains("compute infer"));
        assert!(overall, "the server's own times are told: {text}");
    }
}
