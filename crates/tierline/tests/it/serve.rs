//! Applications: `tierline serve` and nodes, through clients that aren't ours
//! and through bytes that nobody means well with.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Site, binary, tierline, until};

/// `tierline serve` as a process; ends with the value.
pub struct Served {
    pub child: Child,
    pub http: String,
    pub grpc: String,
}

impl Served {
    pub fn start(mut command: Command, args: &[&str]) -> Self {
        let mut child = command
            .args(["serve", "--json", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let serving: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it doesn't serve: {line}"));
        assert_eq!(serving["event"], "serving");
        let text = |key: &str| serving[key].as_str().unwrap_or_default().to_owned();
        Self { child, http: text("http").trim_start_matches("http://").to_owned(), grpc: text("grpc") }
    }

    /// Serves the zoo's small perceptron.
    pub fn mlp(folder: &Path) -> Self {
        let path = folder.join("mlp.onnx");
        let made = tierline(["model", "zoo", "mlp", "--out", path.to_str().expect("UTF-8")]);
        assert_eq!(made.code, 0, "{made:?}");
        Self::start(binary(), &[path.to_str().expect("UTF-8")])
    }

    pub fn connect(&self) -> Http {
        Http::connect(&self.http)
    }

    /// The model's input, as its metadata have it.
    pub fn input(&self) -> String {
        let (status, meta) = self.connect().get("/v2/models/mlp");
        assert_eq!(status, 200, "{meta}");
        meta["inputs"][0]["name"].as_str().expect("a name").to_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection, and no more of HTTP than the tests mean to send.
pub struct Http(BufReader<TcpStream>);

impl Http {
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self(BufReader::new(stream))
    }

    pub fn write(&mut self, bytes: &[u8]) {
        // The other side may have answered and gone before all of it was sent.
        let _ = self.0.get_mut().write_all(bytes);
    }

    /// Status, head and body of the next answer.
    pub fn answer(&mut self) -> (u16, String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.0.read_line(&mut head).expect("it answers");
            assert!(read > 0, "the connection was closed: {head}");
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.trim().parse().expect("a number")];
        self.0.read_exact(&mut body).expect("all of it");
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        (status, head, body)
    }

    pub fn get(&mut self, path: &str) -> (u16, Value) {
        self.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let (status, _, body) = self.answer();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// What isn't JSON.
    pub fn text(&mut self, path: &str) -> String {
        self.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let (status, _, body) = self.answer();
        assert_eq!(status, 200);
        String::from_utf8(body).expect("text")
    }

    pub fn post_bytes(&mut self, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        self.write(&[head.as_bytes(), body].concat());
        self.answer()
    }

    pub fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> (u16, Value) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        self.write(&[head.as_bytes(), body].concat());
        let (status, _, body) = self.answer();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

pub const INFER: &str = "/v2/models/mlp/infer";

pub fn ones(input: &str) -> Value {
    json!({ "inputs": [{ "name": input, "shape": [1, 784], "datatype": "FP32", "data": vec![1; 784] }] })
}

#[test]
fn tritonclient_is_answered_over_http_and_grpc() {
    let Some(python) = std::env::var_os("TIERLINE_PYTHON") else {
        eprintln!("skipped: TIERLINE_PYTHON is not set; run cargo xtask test");
        return;
    };
    let found = Command::new(&python)
        .args(["-c", "import tritonclient.http, tritonclient.grpc"])
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!("skipped: the tests' Python has no tritonclient; run cargo xtask test");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/open_inference.py");
    let judge = |args: &[&str]| {
        let output = Command::new(&python).arg(script).args(args).output().expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let path = folder.path().to_str().expect("UTF-8");
    judge(&["make", path]);
    let mlp = folder.path().join("mlp.onnx");
    assert_eq!(tierline(["model", "zoo", "mlp", "--out", mlp.to_str().expect("UTF-8")]).code, 0);
    // The embedded engine doesn't take every datatype.
    let mut command = binary();
    if std::env::var_os("ORT_DYLIB_PATH").is_some() {
        command.env("TIERLINE_ENGINE", "onnxruntime");
    }
    let kinds = Served::start(command, &[path]);
    judge(&["judge", &kinds.http, &kinds.grpc, path, mlp.to_str().expect("UTF-8")]);
}

#[test]
fn every_form_of_a_request_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let input = served.input();
    let mut http = served.connect();
    let (status, flat) = http.post(INFER, "", ones(&input).to_string().as_bytes());
    assert_eq!(status, 200, "{flat}");
    let outputs = flat["outputs"].clone();
    // Nested; data before its datatype; what nobody asks for.
    let row = vec![1.0; 784];
    let nested = format!(
        r#"{{"extra":{{"a":[1,{{}}]}},"inputs":[{{"data":[{}],"name":{},"shape":[1,784],"datatype":"FP32"}}]}}"#,
        json!(row),
        json!(input)
    );
    assert_eq!(http.post(INFER, "", nested.as_bytes()).1["outputs"], outputs);
    // Bytes behind JSON.
    let bytes: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), 784).flatten().collect();
    let head = json!({ "inputs": [{
        "name": input, "shape": [1, 784], "datatype": "FP32", "parameters": { "binary_data_size": bytes.len() } }] });
    let head = head.to_string();
    let length = format!("Inference-Header-Content-Length: {}\r\n", head.len());
    let (status, binary) = http.post(INFER, &length, &[head.as_bytes(), &bytes].concat());
    assert_eq!((status, &binary["outputs"]), (200, &outputs));
    // Bytes alone, and bytes back.
    let request = format!(
        "POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\nInference-Header-Content-Length: 0\r\n\r\n",
        bytes.len()
    );
    http.write(&[request.as_bytes(), &bytes].concat());
    let (status, head, body) = http.answer();
    assert_eq!(status, 200);
    let json_length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("inference-header-content-length: "))
        .expect("bytes follow")
        .parse()
        .expect("a number");
    let answer: Value = serde_json::from_slice(&body[..json_length]).expect("JSON");
    assert_eq!(answer["outputs"][0]["shape"], outputs[0]["shape"]);
    let floats: Vec<f32> = body[json_length..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let told: Vec<f32> = serde_json::from_value(outputs[0]["data"].clone()).expect("numbers");
    assert_eq!(floats, told);
    // In chunks.
    let body = ones(&input).to_string();
    let mut chunked = format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.as_bytes().chunks(100) {
        chunked += &format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).expect("ASCII"));
    }
    http.write((chunked + "0\r\n\r\n").as_bytes());
    assert_eq!(http.answer().0, 200);
    // By its version.
    assert_eq!(http.post("/v2/models/mlp/versions/1/infer", "", body.as_bytes()).0, 200);
    assert_eq!(http.post("/v2/models/mlp/versions/2/infer", "", body.as_bytes()).0, 404);
}

#[test]
fn what_is_wrong_is_refused_and_the_next_request_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let input = served.input();
    let good = ones(&input).to_string();
    let with = |key: &str, value: Value| {
        let mut request = ones(&input);
        request["inputs"][0][key] = value;
        request.to_string().into_bytes()
    };
    let top = |key: &str, value: Value| {
        let mut request = ones(&input);
        request[key] = value;
        request.to_string().into_bytes()
    };
    let deep = |depth: usize| format!(r#"{{"inputs":{}{}}}"#, "[".repeat(depth), "]".repeat(depth)).into_bytes();
    let two = json!({ "name": input, "shape": [1, 784], "datatype": "FP32", "data": vec![1; 784] });
    let length = |n: u64| format!("Inference-Header-Content-Length: {n}\r\n");
    let none = String::new;
    let cases: Vec<(&str, String, Vec<u8>, u16)> = vec![
        ("nothing", none(), vec![], 400),
        ("no JSON", none(), b"hello".to_vec(), 400),
        ("half of it", none(), good.as_bytes()[..good.len() / 2].to_vec(), 400),
        ("more behind it", none(), format!("{good}x").into_bytes(), 400),
        ("a list", none(), b"[]".to_vec(), 400),
        ("no inputs", none(), b"{}".to_vec(), 400),
        ("inputs that are none", none(), br#"{"inputs":[]}"#.to_vec(), 400),
        ("NaN", none(), good.replacen("1,", "NaN,", 1).into_bytes(), 400),
        ("infinity", none(), with("data", json!([f64::MAX])), 400),
        ("an overflow", none(), good.replacen("1,", "1e999,", 1).into_bytes(), 400),
        ("a wrapped shape", none(), with("shape", json!([1u64 << 32, 1u64 << 32, 784])), 400),
        ("a shape of nothing and much", none(), with("shape", json!([0, i64::MAX, i64::MAX])), 400),
        ("a negative axis", none(), with("shape", json!([-1, 784])), 400),
        ("a fraction of an axis", none(), with("shape", json!([1.5, 784])), 400),
        ("many axes", none(), with("shape", json!(vec![1; 40])), 400),
        ("another shape", none(), with("shape", json!([784, 1])), 400),
        ("too few elements", none(), with("data", json!([1, 2, 3])), 400),
        ("ragged lists", none(), with("data", json!([vec![1; 783], [1]])), 400),
        ("a text among numbers", none(), with("data", json!(["a"])), 400),
        ("no list", none(), with("data", json!(7)), 400),
        ("a wrong datatype", none(), with("datatype", json!("INT32")), 400),
        ("no datatype", none(), with("datatype", json!("FP8")), 400),
        ("another input", none(), with("name", json!("nobody")), 400),
        ("one input twice", none(), json!({ "inputs": [two, two] }).to_string().into_bytes(), 400),
        ("one key twice", none(), good.replacen('{', r#"{"inputs":[],"#, 1).into_bytes(), 400),
        ("an unknown output", none(), top("outputs", json!([{ "name": "nobody" }])), 400),
        ("one output twice", none(), top("outputs", json!([{ "name": "a" }, { "name": "a" }])), 400),
        ("shared memory", none(), with("parameters", json!({ "shared_memory_region": "a" })), 400),
        ("a tier that is none", none(), top("parameters", json!({ "tier": "moon" })), 400),
        ("a negative priority", none(), top("parameters", json!({ "priority": -1 })), 400),
        ("a deadline of words", none(), top("parameters", json!({ "deadline_ms": "soon" })), 400),
        ("a hundred and fifty deep", none(), deep(150), 400),
        ("two hundred and fifty thousand deep", none(), deep(250_000), 400),
        ("that deep where nobody looks", none(), format!(r#"{{"x":{}}}"#, "[".repeat(250_000)).into_bytes(), 400),
        ("a long header", length(99_999_999_999), good.clone().into_bytes(), 400),
        ("a header beyond numbers", length(u64::MAX), good.clone().into_bytes(), 400),
        ("a header of words", "Inference-Header-Content-Length: all\r\n".into(), good.clone().into_bytes(), 400),
        ("a header before the end", length(10), good.clone().into_bytes(), 400),
        ("bytes that nobody asked for", length(good.len() as u64), format!("{good}abcd").into_bytes(), 400),
        ("bytes alone that fit no shape", length(0), vec![0; 13], 400),
        ("no bytes at all", length(0), vec![], 400),
        ("a packed body that is none", "Content-Encoding: gzip\r\n".into(), good.clone().into_bytes(), 400),
        ("an unknown encoding", "Content-Encoding: br\r\n".into(), good.clone().into_bytes(), 415),
        ("two encodings", "Content-Encoding: gzip, gzip\r\n".into(), good.clone().into_bytes(), 415),
    ];
    let mut http = served.connect();
    for (what, headers, body, status) in cases {
        let (got, answer) = http.post(INFER, &headers, &body);
        assert_eq!(got, status, "{what}: {answer}");
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{what} has no reason: {answer}"));
        // Nothing of this machine.
        let own = env!("CARGO_MANIFEST_DIR").split("/crates").next().unwrap_or_default();
        for inside in [own, "/tmp", ".rs", "panick", "serde"] {
            assert!(!error.contains(inside), "{what}: {error}");
        }
        assert!(error.len() < 1_000, "{what}: {error}");
        if status == 415 {
            // Its body wasn't read: this connection is over.
            http = served.connect();
        }
        assert_eq!(http.post(INFER, "", good.as_bytes()).0, 200, "after {what}");
    }
    for (method, path, status) in [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("GET", "/v2/models/mlp/versions/7", 404),
        ("GET", "/v2/models/%ff", 400),
        ("GET", "/nowhere", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/nobody/infer", 404),
    ] {
        http = served.connect();
        http.write(format!("{method} {path} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").as_bytes());
        let (got, _, body) = http.answer();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(answer["error"].is_string(), "{method} {path}: {}", String::from_utf8_lossy(&body));
    }
    // A body beyond every limit, told and not told beforehand.
    let mut http = served.connect();
    http.write(format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: 999999999999\r\n\r\n").as_bytes());
    assert_eq!(http.answer().0, 413);
    let mut http = served.connect();
    http.write(format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes());
    http.write("1\r\n \r\n".repeat(100_000).as_bytes());
    assert_eq!(http.answer().0, 413);
    // Nobody holds memory for what was refused.
    let (_, stats) = served.connect().get("/v2/models/mlp/stats");
    assert!(stats["model_stats"][0]["inference_stats"]["fail"]["count"].as_u64().expect("a number") > 30, "{stats}");
    let mut http = served.connect();
    http.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let text = String::from_utf8(http.answer().2).expect("text");
    assert!(text.lines().any(|line| line == "tierline_request_memory_bytes 0"), "{text}");
}

#[test]
fn silent_callers_keep_no_application_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let good = ones(&served.input()).to_string();
    let _silent: Vec<TcpStream> = (0..900).filter_map(|_| TcpStream::connect(&served.http).ok()).collect();
    let mut slow: Vec<Http> = (0..50).map(|_| served.connect()).collect();
    for http in &mut slow {
        http.write(format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: 50000\r\n\r\n{{").as_bytes());
    }
    std::thread::sleep(Duration::from_secs(3));
    until("an application gets in", || {
        let mut stream = TcpStream::connect(&served.http).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let head = format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{good}", good.len());
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).ok()?;
        (&answer == b"HTTP/1.1 200").then_some(())
    });
}

#[test]
fn what_was_admitted_is_answered_when_it_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut served = Served::mlp(folder.path());
    let good = ones(&served.input()).to_string();
    let mut http = served.connect();
    // Half of it is there when the end begins.
    let (first, second) = good.as_bytes().split_at(good.len() / 2);
    let head = format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", good.len());
    http.write(&[head.as_bytes(), first].concat());
    std::thread::sleep(Duration::from_millis(300));
    let pid = served.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    std::thread::sleep(Duration::from_millis(500));
    http.write(second);
    let (status, _, body) = http.answer();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let begun = Instant::now();
    assert!(served.child.wait().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn ends_serve_their_own_machine_and_say_where_an_answer_comes_from() {
    let mut site = Site::new();
    site.add_model();
    let end = site.end("cam", &site.cloud.url, &["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]);
    let address = end.http.trim_start_matches("http://").to_owned();
    let name = "digits";
    let meta = until("the end knows the model", || {
        let (status, meta) = Http::connect(&address).get(&format!("/v2/models/{name}"));
        (status == 200).then_some(meta)
    });
    let of = &meta["inputs"][0];
    let shape: Vec<i64> =
        of["shape"].as_array().expect("axes").iter().map(|a| a.as_i64().expect("a number").max(1)).collect();
    let count = shape.iter().product::<i64>() as usize;
    let ask = |tier: &str| {
        let request = json!({
            "id": tier,
            "parameters": { "tier": tier, "deadline_ms": 20_000 },
            "inputs": [{ "name": of["name"], "shape": shape, "datatype": of["datatype"], "data": vec![0.5; count] }],
        });
        let path = format!("/v2/models/{name}/infer");
        // Nobody passes such a trace on; the request goes its way all the same.
        let trace = format!("traceparent: {}\r\n", "0".repeat(2_000));
        let (status, answer) = Http::connect(&address).post(&path, &trace, request.to_string().as_bytes());
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["parameters"]["degraded"], false, "{answer}");
        answer
    };
    let (here, cloud) = (ask("here"), ask("cloud"));
    assert_eq!((&here["parameters"]["tier"], &here["parameters"]["node"]), (&json!("end"), &json!("cam")));
    assert_eq!(cloud["parameters"]["tier"], "cloud");
    assert_eq!(here["outputs"], cloud["outputs"]);
    // A network is not asked in without a word.
    let data = site.join("end", "open", &site.cloud.url);
    let ran = tierline(["--data", data.to_str().expect("UTF-8"), "node", "--http", "0.0.0.0:0", "--grpc", "off"]);
    ran.refused(3, "can be reached from the network");
    // Without the tiers above it is ready all the same, and says so.
    assert_eq!(Http::connect(&address).get("/readyz"), (200, json!({ "ready": true, "degraded": false })));
    site.cloud.kill();
    until("it is cut off", || {
        let (status, ready) = Http::connect(&address).get("/readyz");
        assert_eq!((status, &ready["ready"]), (200, &json!(true)));
        (ready["degraded"] == true).then_some(())
    });
    assert_eq!(Http::connect(&address).get("/v2/health/ready").1["degraded"], true);
}
