//! An end below two edges: both take its requests, and either alone takes all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Link, Node, Site, until, until_planned};
use crate::serve::Http;

/// Requests at once.
const CALLERS: usize = 6;

struct Asker {
    address: String,
    body: String,
}

impl Asker {
    fn new(end: &Node) -> Self {
        let address = end.http.trim_start_matches("http://").to_owned();
        let (_, meta) = Http::connect(&address).get("/v2/models/digits");
        let of = &meta["inputs"][0];
        let shape: Vec<i64> =
            of["shape"].as_array().expect("axes").iter().map(|a| a.as_i64().expect("one").max(1)).collect();
        let count = shape.iter().product::<i64>() as usize;
        let body = json!({
            "parameters": { "tier": "edge", "deadline_ms": 20_000 },
            "inputs": [{ "name": of["name"], "shape": shape, "datatype": of["datatype"], "data": vec![0.5; count] }],
        });
        Self { address, body: body.to_string() }
    }

    /// Asks `each` times with every caller; who answered how often, and that all
    /// say the same.
    fn ask(&self, each: usize) -> BTreeMap<String, usize> {
        let answers = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut http = Http::connect(&self.address);
                        let path = "/v2/models/digits/infer";
                        (0..each).map(|_| http.post(path, "", self.body.as_bytes())).collect::<Vec<(u16, Value)>>()
                    })
                })
                .collect();
            callers.into_iter().flat_map(|caller| caller.join().expect("answers")).collect::<Vec<_>>()
        });
        let mut by = BTreeMap::new();
        for (status, answer) in &answers {
            assert_eq!(*status, 200, "{answer}");
            // Requests that run as one add in another order.
            let values = |answer: &Value| -> Vec<f64> {
                let data = answer["outputs"][0]["data"].as_array().expect("values");
                data.iter().map(|value| value.as_f64().expect("a number")).collect()
            };
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-5;
            assert!(values(answer).iter().zip(&values(&answers[0].1)).all(near), "{answer}");
            *by.entry(answer["parameters"]["node"].as_str().expect("a node").to_owned()).or_default() += 1;
        }
        by
    }
}

#[test]
fn two_edges_share_an_ends_requests_and_one_takes_all_when_the_other_is_gone() {
    let site = Site::new();
    let _model = site.add_model();
    let (first, mut second) = (site.edge("first"), site.edge("second"));
    let parents = ["--parent", &first.url, "--parent", &second.url];
    let end = site.end("cam", &first.url, &[&parents[..], &["--http", "127.0.0.1:0", "--grpc", "off"]].concat());
    until_planned(&end);
    let asker = Asker::new(&end);
    // Both, once both are measured and planned with.
    let by = until("both edges answer", || {
        let by = asker.ask(8);
        (by.len() == 2).then_some(by)
    });
    assert!(by.contains_key("first") && by.contains_key("second"), "{by:?}");
    let by = asker.ask(30);
    let least = by.values().min().copied().unwrap_or(0);
    assert!(by.len() == 2 && least * 8 >= CALLERS * 30, "one of two alike has almost nothing: {by:?}");
    let metrics = Http::connect(&asker.address).text("/metrics");
    let elsewhere = metrics.lines().find_map(|line| line.strip_prefix("tierline_elsewhere_total "));
    assert!(elsewhere.is_some_and(|n| n.parse::<u64>().expect("a number") > 0), "{metrics}");
    second.kill();
    let by = asker.ask(10);
    assert!(by.get("first").is_some_and(|n| *n >= CALLERS * 10 - CALLERS), "{by:?}");
    until("the other alone", || (asker.ask(4).len() == 1).then_some(()));
}

#[test]
fn a_second_copy_answers_where_the_first_takes_longer_than_usual() {
    let site = Site::new();
    let _model = site.add_model();
    let edge = site.edge("edge");
    let link = Link::to(&edge.url, &["--delay", "1 ms"]);
    let end = site.end("cam", &link.url(), &["--http", "127.0.0.1:0", "--grpc", "off"]);
    until_planned(&end);
    let asker = Asker::new(&end);
    let once = |hedge: Value| -> (Value, Duration) {
        let mut request: Value = serde_json::from_str(&asker.body).expect("JSON");
        request["parameters"]["hedge"] = hedge;
        let begun = Instant::now();
        let mut http = Http::connect(&asker.address);
        let (status, answer) = http.post("/v2/models/digits/infer", "", request.to_string().as_bytes());
        assert_eq!((status, &answer["parameters"]["degraded"]), (200, &false.into()), "{answer}");
        (answer, begun.elapsed())
    };
    let hedges = || {
        let text = Http::connect(&asker.address).text("/metrics");
        let of = |which: &str| {
            let start = format!("tierline_hedges_total{{answered=\"{which}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |n| n.parse::<u64>().expect("a number"))
        };
        (of("first"), of("second"))
    };
    // How long it usually takes shows.
    until("the edge answers", || (asker.ask(8).len() == 1).then_some(()));
    link.set(&["--delay", "300 ms"]);
    let (slow, waited) = once(false.into());
    assert_eq!((&slow["parameters"]["node"], hedges()), (&"edge".into(), (0, 0)));
    assert!(waited > Duration::from_millis(300), "{waited:?}");
    let (quick, took) = once(true.into());
    assert_eq!((&quick["parameters"]["node"], hedges()), (&"cam".into(), (0, 1)), "{quick}");
    assert!(took < waited, "{took:?} and {waited:?}");
    assert_eq!(quick["outputs"], slow["outputs"]);
    for wrong in [json!(1), json!(0), json!(1.5), json!("yes"), json!(-0.5)] {
        let mut request: Value = serde_json::from_str(&asker.body).expect("JSON");
        request["parameters"]["hedge"] = wrong;
        let mut http = Http::connect(&asker.address);
        let (status, answer) = http.post("/v2/models/digits/infer", "", request.to_string().as_bytes());
        assert_eq!(status, 400, "{answer}");
    }
}

/// Two edges that know one another; the ends are all below one of them.
#[test]
fn a_sibling_helps_the_busy_edge_and_nobody_misses_it() {
    let site = Site::new();
    let _model = site.add_model();
    let slow = ["--listen", "127.0.0.1:0", "--slowdown", "40"];
    let edge = |name: &str, sibling: Option<&str>| {
        let data = site.join("edge", name, &site.cloud.url);
        if let Some(url) = sibling {
            let file = data.join("node.toml");
            let said = std::fs::read_to_string(&file).expect("a file");
            std::fs::write(&file, format!("siblings = [\"{url}\"]\n{said}")).expect("a file");
        }
        Node::start(&data, &[&slow[..], &["--metrics", "127.0.0.1:0"]].concat())
    };
    let mut helper = edge("helper", None);
    let busy = edge("busy", Some(&helper.url));
    let end = site.end("cam", &busy.url, &["--http", "127.0.0.1:0", "--grpc", "off"]);
    until_planned(&end);
    let asker = Asker::new(&end);
    let by = until("the sibling helps", || {
        let by = asker.ask(10);
        by.contains_key("helper").then_some(by)
    });
    assert!(by.contains_key("busy"), "it runs some itself: {by:?}");
    let number = |node: &Node, name: &str| {
        let text = node.scrape();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.unwrap_or_else(|| panic!("no {name}")).parse::<u64>().expect("a number")
    };
    assert!(number(&busy, "tierline_sibling_answered_total") > 0);
    assert!(number(&helper, "tierline_sibling_taken_total") > 0);
    assert_eq!(number(&helper, "tierline_sibling_sent_total"), 0, "it knows no sibling");
    helper.kill();
    let by = asker.ask(10);
    assert!(by.values().sum::<usize>() == CALLERS * 10 && by.contains_key("busy"), "{by:?}");
}
