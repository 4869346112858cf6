//! Traces across tiers, as a receiver that isn't ours reads them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Node, Site, binary, tierline, until};
use crate::serve::{Http, INFER, Served, ones};

/// A receiver as a process; ends with the value.
struct Receiver {
    child: Child,
    address: String,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// None where there is no Python that knows the protocol.
    fn start() -> Option<Self> {
        let python = std::env::var_os("TIERLINE_PYTHON")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/otlp.py");
        let known = ["-c", "import grpc, opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc"];
        let found = Command::new(&python).args(known).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut child = Command::new(python).arg(script).stdout(Stdio::piped()).spawn().expect("Python runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let address = lines.next().expect("a line").expect("an address");
        let spans = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&spans);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                seen.lock().expect("whole").push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Some(Self { child, address, spans })
    }

    /// Spans of a trace so far.
    fn of(&self, trace: &str) -> Vec<Value> {
        self.spans.lock().expect("whole").iter().filter(|span| span["trace"] == trace).cloned().collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell(data: &Path, receiver: &Receiver, share: f64) {
    std::fs::create_dir_all(data).expect("a folder");
    let mut file = OpenOptions::new().create(true).append(true).open(data.join("node.toml")).expect("a file");
    write!(file, "\n[traces]\nendpoint = \"{}\"\nshare = {share:?}\n", receiver.address).expect("written");
}

/// Asks an end for an answer of a tier, under a trace's context.
fn ask(end: &Node, context: &str, tier: &str) {
    let (status, answer) = try_ask(end, context, tier);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["parameters"]["tier"], tier, "{answer}");
}

fn try_ask(end: &Node, context: &str, tier: &str) -> (u16, Value) {
    let mut http = Http::connect(end.http.trim_start_matches("http://"));
    let (_, meta) = http.get("/v2/models/digits");
    let of = &meta["inputs"][0];
    let shape: Vec<i64> =
        of["shape"].as_array().expect("axes").iter().map(|a| a.as_i64().expect("a number").max(1)).collect();
    let count = shape.iter().product::<i64>() as usize;
    let request = json!({
        "parameters": { "tier": if tier == "end" { "here" } else { tier }, "deadline_ms": 20_000 },
        "inputs": [{ "name": of["name"], "shape": shape, "datatype": of["datatype"], "data": vec![0.5; count] }],
    });
    let header = if context.is_empty() { String::new() } else { format!("traceparent: {context}\r\n") };
    http.post("/v2/models/digits/infer", &header, request.to_string().as_bytes())
}

fn named<'s>(spans: &'s [Value], node: &str, name: &str) -> Vec<&'s Value> {
    spans.iter().filter(|span| span["node"] == node && span["name"] == name).collect()
}

#[test]
fn a_request_is_one_trace_on_every_tier_that_it_passes() {
    let Some(receiver) = Receiver::start() else {
        eprintln!("skipped: there is no receiver of spans; run cargo xtask test");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("cloud");
    // Where a request enters it is decided: the others draw nobody.
    tell(&data, &receiver, 0.0);
    let cloud = Node::start(&data, &["--role", "cloud", "--listen", "127.0.0.1:0"]);
    let site = Site { cloud, folder };
    site.add_model();
    let data = site.join("edge", "gateway", &site.cloud.url);
    tell(&data, &receiver, 0.0);
    let edge = Node::start(&data, &["--listen", "127.0.0.1:0"]);
    let data = site.join("end", "cam", &edge.url);
    tell(&data, &receiver, 1.0);
    let mut end = Node::start(&data, &["--http", "127.0.0.1:0", "--grpc", "off", "--metrics", "127.0.0.1:0"]);
    until("the end knows the model", || {
        let (status, _) = Http::connect(end.http.trim_start_matches("http://")).get("/v2/models/digits");
        (status == 200).then_some(())
    });
    // By another way than the plan's.
    let unsampled = "00-11f92f3577b34da6a3ce929d0e0e4711-00f067aa0ba902b7-00";
    until("the cloud is reached", || (try_ask(&end, unsampled, "cloud").0 == 200).then_some(()));

    let (trace, above) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    ask(&end, &format!("00-{trace}-{above}-01"), "cloud");
    let spans = until("the cloud's part is told", || {
        let spans = receiver.of(trace);
        let told = ["cam", "gateway", "cloud"].iter().all(|node| spans.iter().any(|span| span["node"] == *node));
        (told && !named(&spans, "cam", "request").is_empty() && !named(&spans, "cloud", "relay").is_empty())
            .then_some(spans)
    });
    let by_id: BTreeMap<&str, &Value> =
        spans.iter().map(|span| (span["span"].as_str().expect("an id"), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "ids are each one's own");
    let parents = |node: &str, name: &str| -> Vec<String> {
        named(&spans, node, name).iter().map(|span| span["parent"].as_str().expect("an id").to_owned()).collect()
    };
    let only = |node: &str, name: &str| -> String {
        let found = named(&spans, node, name);
        assert_eq!(found.len(), 1, "{node} has one {name}: {spans:#?}");
        found[0]["span"].as_str().expect("an id").to_owned()
    };
    assert_eq!(parents("cam", "request"), [above]);
    assert_eq!(parents("cam", "send"), [only("cam", "request")]);
    assert_eq!(parents("gateway", "relay"), [only("cam", "send")]);
    assert_eq!(parents("gateway", "send"), [only("gateway", "relay")]);
    assert_eq!(parents("cloud", "relay"), [only("gateway", "send")]);
    for part in ["decode", "queue", "run"] {
        assert_eq!(parents("cloud", part), [only("cloud", "relay")], "{part}");
    }
    for span in &spans {
        assert_eq!((&span["service"], &span["failed"], &span["flags"]), (&json!("tierline"), &json!(false), &json!(1)));
        let (start, end) = (span["start"].as_u64().expect("a time"), span["end"].as_u64().expect("a time"));
        assert!(start <= end, "{span}");
        if let Some(around) = by_id.get(span["parent"].as_str().expect("an id")) {
            // Clocks of one machine, each read twice at a node's start.
            let slack = 20_000_000;
            let (from, to) = (around["start"].as_u64().expect("a time"), around["end"].as_u64().expect("a time"));
            assert!(from <= start + slack && end <= to + slack, "{span} isn't within {around}");
        }
    }
    let request = named(&spans, "cam", "request")[0];
    assert_eq!(request["kind"], 2);
    assert_eq!(
        (&request["known"]["tierline.model"], &request["known"]["tierline.answered_by"]),
        (&json!("digits"), &json!("cloud"))
    );

    // Who isn't traced by its caller's word isn't; who says nothing is, at this end.
    ask(&end, unsampled, "cloud");
    ask(&end, "", "end");
    let own = until("a trace begins here", || {
        let spans = receiver.spans.lock().expect("whole");
        let own = spans.iter().find(|span| span["name"] == "request" && span["parent"] == "");
        own.map(|span| span["trace"].as_str().expect("an id").to_owned())
    });
    until("it has its parts", || (!named(&receiver.of(&own), "cam", "run").is_empty()).then_some(()));
    assert!(receiver.of("11f92f3577b34da6a3ce929d0e0e4711").is_empty());

    // What is recorded reaches the receiver before the node ends.
    let last = "22f92f3577b34da6a3ce929d0e0e4722";
    ask(&end, &format!("00-{last}-{above}-01"), "cloud");
    assert!(end.stop().success());
    until("the last spans", || (!named(&receiver.of(last), "cam", "request").is_empty()).then_some(()));

    // A receiver that is away holds nobody up, and what it misses is counted.
    drop(receiver);
    end.restart();
    until("the end is back", || {
        let (status, _) = Http::connect(end.http.trim_start_matches("http://")).get("/v2/models/digits");
        (status == 200).then_some(())
    });
    for _ in 0..20 {
        ask(&end, "", "end");
    }
    until("spans are dropped", || {
        let text = end.scrape();
        let line = text.lines().find_map(|line| line.strip_prefix("tierline_spans_dropped_total "));
        (line.expect("it is told").parse::<u64>().expect("a number") >= 20).then_some(())
    });
    std::thread::sleep(Duration::from_millis(100));
    ask(&end, "", "end");
}

#[test]
fn one_process_that_serves_traces_as_nodes_do() {
    let Some(receiver) = Receiver::start() else {
        eprintln!("skipped: there is no receiver of spans; run cargo xtask test");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mlp.onnx");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(tierline(["model", "zoo", "mlp", "--out", file]).code, 0);
    let served = Served::start(binary(), &[file, "--traces", &receiver.address, "--trace-share", "0"]);
    let body = ones(&served.input()).to_string();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let context = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n");
    assert_eq!(served.connect().post(INFER, &context, body.as_bytes()).0, 200);
    assert_eq!(served.connect().post(INFER, "", body.as_bytes()).0, 200);
    let spans = until("the request's spans", || {
        let spans = receiver.of(trace);
        (!named(&spans, "serve", "request").is_empty() && !named(&spans, "serve", "run").is_empty()).then_some(spans)
    });
    assert!(spans.iter().all(|span| span["node"] == "serve" && span["failed"] == false), "{spans:#?}");
    let all = receiver.spans.lock().expect("whole");
    assert!(all.iter().all(|span| span["trace"] == trace), "who says nothing isn't traced: {all:#?}");
}
