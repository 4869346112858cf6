//! Applications by the hundred: models swapped under them, callers that go
//! away, crash or say little at a time, more of them than there is room for.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tierline_proto::oip::messages::ModelInferRequest;
use tierline_proto::oip::messages::grpc_inference_service_client::GrpcInferenceServiceClient;
use tierline_proto::oip::messages::model_infer_request::InferInputTensor;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{Node, tierline, until};
use crate::serve::{Http, INFER, Served, ones};

/// A cloud that serves applications.
struct Busy {
    node: Node,
    folder: tempfile::TempDir,
}

impl Busy {
    /// `config` is its `node.toml`.
    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("cloud");
        std::fs::create_dir_all(&data).expect("a folder");
        std::fs::write(data.join("node.toml"), config).expect("written");
        let places = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"];
        let node = Node::start(&data, &[&["--role", "cloud", "--listen", "127.0.0.1:0"], &places[..]].concat());
        Self { node, folder }
    }

    /// Writes an architecture with weights of a seed.
    fn zoo(&self, name: &str, seed: &str) -> String {
        let path = self.folder.path().join(format!("{name}-{seed}.onnx"));
        let path = path.to_str().expect("UTF-8").to_owned();
        let ran = tierline(["model", "zoo", name, "--batch", "1", "--seed", seed, "--out", &path]);
        assert_eq!(ran.code, 0, "{ran:?}");
        path
    }

    fn add(&self, file: &str, name: &str) {
        let ran = self.node.ask(&["model", "add", file, "--name", name, "--replace", "--cuts", "1"]);
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    fn http(&self) -> String {
        self.node.http.trim_start_matches("http://").to_owned()
    }

    fn connect(&self) -> Http {
        Http::connect(&self.http())
    }

    /// A number of the node's.
    fn number(&self, series: &str) -> f64 {
        let mut http = self.connect();
        http.write(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n");
        let text = String::from_utf8(http.answer().2).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.parse().expect("a number"))
    }

    /// Nothing is under way, and nothing is held.
    #[track_caller]
    fn is_idle(&self) {
        until("nothing is under way any more", || {
            let left = ["tierline_jobs_waiting", "tierline_request_memory_bytes"].map(|name| self.number(name));
            (left == [0.0, 0.0]).then_some(())
        });
    }

    async fn channel(&self) -> Channel {
        let url = format!("http://{}", self.node.grpc);
        Endpoint::from_shared(url).expect("an address").connect().await.expect("it listens")
    }
}

/// A request for a model's only input, as JSON.
fn request(http: &str, model: &str) -> Value {
    let (status, meta) = Http::connect(http).get(&format!("/v2/models/{model}"));
    assert_eq!(status, 200, "{meta}");
    let of = &meta["inputs"][0];
    let axis = |axis: &Value| axis.as_i64().expect("a number").max(1);
    let shape: Vec<i64> = of["shape"].as_array().expect("axes").iter().map(axis).collect();
    let count = shape.iter().product::<i64>() as usize;
    let data: Vec<f64> = (0..count).map(|n| (n % 17) as f64 / 17.0).collect();
    json!({ "inputs": [{ "name": of["name"], "shape": shape, "datatype": of["datatype"], "data": data }] })
}

/// The same over gRPC.
fn message(request: &Value, model: &str) -> ModelInferRequest {
    let of = &request["inputs"][0];
    let data: Vec<f32> = serde_json::from_value(of["data"].clone()).expect("numbers");
    let input = InferInputTensor {
        name: of["name"].as_str().expect("a name").to_owned(),
        datatype: "FP32".to_owned(),
        shape: serde_json::from_value(of["shape"].clone()).expect("axes"),
        ..InferInputTensor::default()
    };
    let raw: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![raw.into()],
        ..ModelInferRequest::default()
    }
}

/// Whether two answers are of one version: what runs with others may differ in
/// the last digits.
fn alike(a: &Value, b: &Value) -> bool {
    let values = |outputs: &Value| -> Vec<f64> {
        let data = outputs[0]["data"].as_array().expect("data");
        data.iter().map(|value| value.as_f64().expect("a number")).collect()
    };
    let (a, b) = (values(a), values(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + a.abs()))
}

#[test]
fn a_model_swapped_under_load_is_always_one_or_the_other() {
    let busy = Busy::start("");
    let files = ["1", "2"].map(|seed| busy.zoo("mlp", seed));
    busy.add(&files[0], "one");
    busy.add(&files[1], "other");
    busy.add(&files[0], "swapped");
    let body = request(&busy.http(), "swapped").to_string();
    let ask = |http: &mut Http, model: &str| {
        let (status, answer) = http.post(&format!("/v2/models/{model}/infer"), "", body.as_bytes());
        assert_eq!(status, 200, "{answer}");
        answer["outputs"].clone()
    };
    let versions = ["one", "other"].map(|model| ask(&mut busy.connect(), model));
    assert!(!alike(&versions[0], &versions[1]));
    let (swapping, answered) = (AtomicBool::new(true), std::sync::Mutex::new([0u32; 2]));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut http = busy.connect();
                while swapping.load(Ordering::Relaxed) {
                    let outputs = ask(&mut http, "swapped");
                    let version = versions.iter().position(|of| alike(of, &outputs));
                    answered.lock().expect("whole")[version.expect("one version answers, whole")] += 1;
                }
            });
        }
        for round in 0..6 {
            std::thread::sleep(Duration::from_millis(200));
            busy.add(&files[(round + 1) % 2], "swapped");
            // Whoever asks behind the swap gets what was swapped in.
            assert!(alike(&ask(&mut busy.connect(), "swapped"), &versions[(round + 1) % 2]));
        }
        swapping.store(false, Ordering::Relaxed);
    });
    let answered = answered.into_inner().expect("whole");
    assert!(answered.iter().all(|count| *count > 20), "{answered:?}");
}

/// A node on which an answer takes a while.
fn slow() -> (Busy, Value) {
    let busy = Busy::start("slowdown = 20.0\n");
    let file = busy.zoo("lenet", "1");
    busy.add(&file, "slow");
    let request = request(&busy.http(), "slow");
    (busy, request)
}

#[test]
fn whoever_goes_away_is_not_computed_for() {
    let (busy, request) = slow();
    let mut deadline = request.clone();
    deadline["parameters"] = json!({ "deadline_ms": 60_000 });
    let body = deadline.to_string();
    let path = "/v2/models/slow/infer";
    let begun = Instant::now();
    assert_eq!(busy.connect().post(path, "", body.as_bytes()).0, 200);
    let once = begun.elapsed();
    let cancelled = "tierline_served_cancelled_total{model=\"slow\"}";
    // Over HTTP: most of them wait.
    let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let many = 60;
    let callers: Vec<Http> = (0..many)
        .map(|_| {
            let mut http = busy.connect();
            http.write(head.as_bytes());
            http
        })
        .collect();
    until("they wait", || (busy.number("tierline_jobs_waiting") > 5.0).then_some(()));
    drop(callers);
    let begun = Instant::now();
    busy.is_idle();
    assert!(begun.elapsed() < once * many / 2 + Duration::from_secs(1), "{:?}", begun.elapsed());
    let gone = busy.number(cancelled);
    assert!(gone > 5.0, "{gone}");
    // Over gRPC: calls, and streams.
    let message = message(&request, "slow");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    runtime.block_on(async {
        let client = GrpcInferenceServiceClient::new(busy.channel().await);
        let calls: Vec<_> = (0..many)
            .map(|at| {
                let (mut client, message) = (client.clone(), message.clone());
                tokio::spawn(async move {
                    if at % 2 == 0 {
                        let _ = client.model_infer(message).await;
                    } else {
                        let requests = tokio_stream::iter(std::iter::repeat_n(message, 4));
                        if let Ok(answers) = client.model_stream_infer(requests).await {
                            let mut answers = answers.into_inner();
                            while let Ok(Some(_)) = answers.message().await {}
                        }
                    }
                })
            })
            .collect();
        until("they wait", || (busy.number("tierline_jobs_waiting") > 5.0).then_some(()));
        calls.iter().for_each(tokio::task::JoinHandle::abort);
    });
    busy.is_idle();
    let gone_since = busy.number(cancelled) - gone;
    assert!(gone_since > 5.0, "{gone_since}");
    // They count as failed in the protocol's own statistics, whichever way they came.
    let (_, stats) = busy.connect().get("/v2/models/slow/stats");
    let failed = stats["model_stats"][0]["inference_stats"]["fail"]["count"].as_f64().expect("a number");
    assert_eq!(failed, busy.number("tierline_served_failures_total{model=\"slow\"}"));
    assert!(failed >= gone + gone_since, "{failed}");
    assert_eq!(busy.connect().post(path, "", body.as_bytes()).0, 200);
}

#[test]
fn more_callers_than_there_is_room_for_are_told_so() {
    let (busy, request) = slow();
    let mut hurried = request.clone();
    hurried["parameters"] = json!({ "deadline_ms": 2_000 });
    let body = hurried.to_string();
    let path = "/v2/models/slow/infer";
    let begun = Instant::now();
    let statuses: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let ask = || {
            let mut http = busy.connect();
            http.post(path, "", body.as_bytes())
        };
        let callers: Vec<_> = (0..500).map(|_| scope.spawn(ask)).collect();
        callers.into_iter().map(|caller| caller.join().expect("each is answered")).collect()
    });
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
    for (status, answer) in &statuses {
        *counts.entry(*status).or_default() += 1;
        assert!(*status == 200 || answer["error"].is_string(), "{status}: {answer}");
    }
    assert!(counts.keys().all(|status| [200, 503, 504].contains(status)), "{counts:?}");
    assert!(counts.contains_key(&200) && counts.contains_key(&503), "{counts:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let message = message(&request, "slow");
    let codes = runtime.block_on(async {
        let mut calls = Vec::new();
        for _ in 0..5 {
            let client = GrpcInferenceServiceClient::new(busy.channel().await);
            for _ in 0..100 {
                let (mut client, mut call) = (client.clone(), tonic::Request::new(message.clone()));
                call.set_timeout(Duration::from_secs(2));
                calls.push(tokio::spawn(async move {
                    client.model_infer(call).await.map_or_else(|s| s.code(), |_| Code::Ok)
                }));
            }
        }
        let mut codes: BTreeMap<i32, u32> = BTreeMap::new();
        for call in calls {
            *codes.entry(call.await.expect("it ends").into()).or_default() += 1;
        }
        codes
    });
    let known = [Code::Ok, Code::ResourceExhausted, Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled];
    assert!(codes.keys().all(|code| known.contains(&Code::from(*code))), "{codes:?}");
    assert!(codes.len() > 1 && codes.contains_key(&Code::Ok.into()), "{codes:?}");
    busy.is_idle();
    assert_eq!(busy.connect().post(path, "", request.to_string().as_bytes()).0, 200);
}

/// Memory of a process that isn't a file's, bytes.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.split_whitespace().next().expect("a number").parse::<u64>().expect("a number") << 10
}

#[test]
fn a_million_chunks_are_answered_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let served = Served::mlp(folder.path());
    let good = ones(&served.input()).to_string();
    let chunks = b"1\r\n \r\n".repeat(1_000_000);
    let ask = || {
        let mut http = served.connect();
        http.write(format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes());
        http.write(&chunks);
        assert_eq!(http.answer().0, 413);
    };
    (0..5).for_each(|_| ask());
    let (before, begun) = (resident(served.child.id()), Instant::now());
    (0..15).for_each(|_| ask());
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let grown = resident(served.child.id()).saturating_sub(before);
    assert!(grown < 2 << 20, "it grew by {grown} bytes");
    // As many as are taken.
    let mut few = format!("POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for byte in good.bytes().take(60_000) {
        few.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    }
    let mut http = served.connect();
    http.write(&[&few[..], b"0\r\n\r\n"].concat());
    assert_eq!(http.answer().0, 200);
}

/// A caller as a process of its own, that says something and then nothing.
fn caller(address: &str, says: &str) -> Child {
    let (host, port) = address.rsplit_once(':').expect("a port");
    let script = "exec 3<>/dev/tcp/$0/$1 && printf %s \"$2\" >&3; echo said; exec sleep 100";
    let mut child = Command::new("bash")
        .args(["-c", script, host, port, says])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash runs");
    let mut said = [0; 4];
    std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut said).expect("it speaks");
    child
}

/// Ends a process as a crash would.
fn crash(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn callers_that_crash_hold_nothing() {
    let (busy, request) = slow();
    let body = request.to_string();
    let head = format!("POST /v2/models/slow/infer HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", body.len());
    let whole = format!("{head}{body}");
    let address = busy.http();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", busy.node.id())).expect("it runs").count();
    let before = open();
    for _ in 0..3 {
        let said =
            [&whole[..20], &head, &whole[..head.len() + body.len() / 2], &whole, "\r\n\r\n", "PRI * HTTP/2.0\r\n"];
        let callers: Vec<Child> =
            said.iter().flat_map(|says| [caller(&address, says), caller(&busy.node.grpc, says)]).collect();
        std::thread::sleep(Duration::from_millis(50));
        callers.into_iter().for_each(crash);
        // Reset, in place of closed.
        let mut stream = TcpStream::connect(&address).expect("it listens");
        stream.write_all(&whole.as_bytes()[..head.len() + 100]).expect("sent");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
        drop(stream);
        assert_eq!(busy.connect().post("/v2/models/slow/infer", "", body.as_bytes()).0, 200);
    }
    // In the middle of a stream.
    if let Some(python) = std::env::var_os("TIERLINE_PYTHON") {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/crashing.py");
        let callers: Vec<Child> = (0..3)
            .map(|_| {
                let mut child = Command::new(&python)
                    .args([script, &busy.node.grpc, "slow"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("Python runs");
                let mut said = [0; 4];
                // Without the client it ends at once.
                let _ = std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut said);
                child
            })
            .collect();
        callers.into_iter().for_each(crash);
    }
    busy.is_idle();
    until("their connections are gone", || (open() <= before + 2).then_some(()));
    assert_eq!(busy.connect().post("/v2/models/slow/infer", "", body.as_bytes()).0, 200);
}
