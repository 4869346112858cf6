//! The dashboard of a real site: what the page reads, who is answered, and what
//! browsers are told.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Link, Node, Ran, Site, tierline, until, until_planned};

/// Status, head (in small letters) and body of what a node answers.
fn get(address: &str, path: &str, host: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_lowercase(), body.to_owned())
}

/// A node that is looked at.
struct Looked<'n>(&'n Node);

impl Looked<'_> {
    fn address(&self) -> &str {
        self.0.http.trim_start_matches("http://")
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        get(self.address(), path, "localhost")
    }

    /// An answer of the interface, which says nothing of this machine's folders.
    #[track_caller]
    fn read(&self, path: &str) -> Value {
        let (status, head, body) = self.get(&format!("/api/v1/{path}"));
        assert_eq!(status, 200, "{body}");
        assert!(head.contains("content-type: application/json"), "{head}");
        let folder = self.0.data.to_str().expect("UTF-8");
        assert!(!body.contains(folder), "{body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

#[test]
fn the_page_reads_the_site_its_plans_and_what_would_be() {
    let site = Site::new();
    let edge = site.edge("edge-1");
    let end = site.end("end-1", &edge.url, &["--http", "127.0.0.1:0", "--slowdown", "8"]);
    let model = site.add_model();
    until_planned(&end);
    end.ask(&["infer", "--model", "digits", "--input", &model.input]).refused(0, "");
    let looked = Looked(&end);

    let seen = until("the end knows the tiers above", || {
        let seen = looked.read("site");
        (seen["parents"][0]["tiers"].as_array()?.len() == 2).then_some(seen)
    });
    assert_eq!((&seen["node"]["name"], &seen["node"]["role"]), (&json!("end-1"), &json!("end")));
    assert_eq!(seen["parents"][0]["state"], "connected");
    assert_eq!(seen["parents"][0]["tiers"][0]["name"], "edge-1");
    assert_eq!(seen["parents"][0]["tiers"][1]["role"], "cloud");
    assert!(seen["nodes"][0]["link"]["up_bytes_per_s"].as_f64().expect("a speed") > 0.0, "{seen}");

    let models = looked.read("models");
    assert_eq!(models["models"][0]["name"], "digits");
    assert!(models["models"][0]["in_force"].is_string(), "{models}");

    // The document of `tierline plan`.
    let plan = looked.read("models/digits");
    let told = end.ask(&["plan", "digits", "--json"]).json();
    assert_eq!((&plan["model"], &plan["tiers"]), (&told["model"], &told["tiers"]));
    assert_eq!(plan["tiers"], json!(["end-1", "edge-1", "cloud"]));
    let steps = plan["explanation"]["steps"].as_array().expect("steps");
    let sum: f64 = steps.iter().filter_map(|step| step["predicted_ns"].as_f64()).sum();
    assert!(!steps.is_empty() && sum > 0.0, "{plan}");

    // A faster link is never worse, and over a very slow one less is sent.
    let answer = looked.read("models/digits/what-if");
    assert_eq!(answer["link"], json!(["end-1", "edge-1"]));
    let chosen = answer["chosen"].as_array().expect("an array");
    assert_eq!(chosen.len(), 61);
    let of = |key: &str| chosen.iter().map(|c| c[key].as_f64().expect("a number")).collect::<Vec<_>>();
    assert!(
        of("up_bytes_per_s").is_sorted() && of("latency_ns").is_sorted_by(|slow, fast| slow + 2.0 >= *fast),
        "{answer}"
    );
    let bytes =
        |c: &Value| c["links"].as_array().expect("links").iter().filter_map(|l| l["bytes"].as_u64()).sum::<u64>();
    assert!(bytes(&chosen[0]) <= bytes(&chosen[60]), "{answer}");
    let one = looked.read("models/digits/what-if?up=12500");
    assert_eq!(one["chosen"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["chosen"][0]["placement"], chosen[0]["placement"]);

    let events = looked.read("events");
    assert!(!events["events"].as_array().expect("events").is_empty());
    assert_eq!(looked.read("jobs"), json!({ "jobs": [] }));
    assert_eq!(looked.read("numbers")["numbers"]["tierline_requests_total{outcome=\"ok\"}"], 1.0);

    for (path, status, says) in [
        ("/api/v1/models/none", 404, "none"),
        ("/api/v1/models/digits/what-if?up=-1", 400, "above zero"),
        ("/api/v1/models/digits/what-if?up=nan", 400, "above zero"),
        ("/api/v1/models/%FF", 400, "no text"),
        ("/api/v1/jobs/none", 404, "none"),
        ("/api/v2", 404, "nothing"),
    ] {
        let (got, _, body) = looked.get(path);
        assert!(got == status && body.contains(says), "{path}: {got} {body}");
    }

    // The same on a terminal, and for programs.
    let text = end.ask(&["top", "--once"]);
    assert_eq!(text.code, 0, "{text:?}");
    for words in ["end-1 (end)", "edge-1", "cloud", "digits", "requests  ok"] {
        assert!(text.stdout.contains(words), "`{words}` is missing:\n{}", text.stdout);
    }
    let json = end.ask(&["top", "--json"]).json();
    assert_eq!(json["plans"][0]["model"], "digits");
    end.ask(&["top"]).refused(2, "draws on a terminal");
}

#[test]
fn a_browser_finds_nothing_wrong_with_the_page() {
    let driver =
        std::env::var_os("TIERLINE_PAGE").filter(|at| Path::new(at).join("node_modules/playwright-core").exists());
    let found = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
    };
    let (Some(driver), Some(node), Some(chromium)) = (driver, found("node"), found("chromium")) else {
        eprintln!("skipped: there is no browser, or nothing to drive it; run cargo xtask test");
        return;
    };
    let site = Site::new();
    let edge = site.edge("edge-1");
    let link = Link::to(&edge.url, &["--delay", "1 ms"]);
    let end = site.end("end-1", &link.url(), &["--http", "127.0.0.1:0", "--slowdown", "8"]);
    let model = site.add_model();
    let large = model.file.to_str().expect("UTF-8");
    assert_eq!(site.cloud.ask(&["model", "add", large, "--name", "large", "--wait", "20 s"]).code, 0);
    let toml = "kind = \"cascade\"\n[[member]]\nmodel = \"digits\"\nplacement = \"here\"\ncriterion = \"margin\"\n\
                threshold = 2.0\n[[member]]\nmodel = \"large\"\nplacement = \"edge\"\n";
    let file = site.folder.path().join("both.toml");
    std::fs::write(&file, toml).expect("a file");
    let add = ["model", "add", file.to_str().expect("UTF-8"), "--name", "both", "--wait", "20 s"];
    assert_eq!(site.cloud.ask(&add).code, 0);
    until_planned(&end);
    let ask = |deadline: &str| {
        end.ask(&["infer", "--model", "both", "--input", &model.input, "--deadline", deadline, "--json"])
    };
    until("the large model answers", || {
        let ran = ask("5 s");
        (ran.code == 0 && ran.json()["member"] == "large").then_some(())
    });
    // Ten minutes have sixty steps, however short the node has been there.
    let lately = Looked(&end).read("services");
    let of = &lately["services"][0];
    assert_eq!((&of["name"], &of["members"], &of["step_s"]), (&json!("both"), &json!(["digits", "large"]), &json!(10)));
    let answers: u64 = of["answers"].as_array().expect("steps").iter().filter_map(|step| step[1].as_u64()).sum();
    assert!(answers >= 1, "{lately}");
    // Degraded answers in a row, for one reason.
    link.set(&["--cut"]);
    until("it is cut off", || end.ask(&["node", "status"]).stdout.contains("tried again").then_some(()));
    for _ in 0..5 {
        assert_eq!(ask("5 s").json()["degraded"], true);
    }
    link.set(&["--restore"]);
    until("it is back", || (ask("5 s").json()["degraded"] == false).then_some(()));
    let gathered = gathered(Looked(&end).read("events")["events"].as_array().expect("events"));
    assert!(gathered.iter().any(|count| *count > 1), "{gathered:?}");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../dashboard/check.mjs");
    let mut check = Command::new(node);
    check.arg(script).arg(&end.http).current_dir(driver).env("CASCADE", "1").env("CHROMIUM", chromium);
    if let Some(folder) = std::env::var_os("TIERLINE_SCREENSHOTS") {
        check.arg(folder);
    }
    check.env("GATHERED", gathered.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
    let ran = Ran::of(check.output().expect("node runs"));
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
}

/// How many degraded answers came in a row for one reason (numbers in it
/// aside), row after row, the newest first.
fn gathered(events: &[Value]) -> Vec<usize> {
    let reason = |event: &Value| {
        let text = event["text"].as_str().expect("a text");
        (event["kind"] == "degraded").then(|| text.split(|c: char| c.is_ascii_digit() || c == '.').collect::<String>())
    };
    let mut rows: Vec<(Option<String>, usize)> = Vec::new();
    for reason in events.iter().rev().map(reason) {
        match rows.last_mut() {
            Some((last, count)) if reason.is_some() && *last == reason => *count += 1,
            _ => rows.push((reason, 1)),
        }
    }
    rows.into_iter().filter_map(|(reason, count)| reason.map(|_| count)).collect()
}

#[test]
fn only_this_machine_is_shown_the_page_and_browsers_are_told_to_stay() {
    let site = Site::new();
    let end = site.end("end-1", &site.cloud.url, &["--http", "127.0.0.1:0"]);
    let looked = Looked(&end);
    let (status, head, _) = looked.get("/");
    assert!(status == 307 && head.contains("location: /dashboard\r\n"), "{head}");
    let (status, head, page) = looked.get("/dashboard");
    assert!(status == 200 && head.contains("content-type: text/html"), "{head}");
    // Every file that the page names is there, and none is elsewhere.
    let named = page.split('"').filter(|part| part.starts_with("/dashboard/"));
    let mut files: Vec<String> = named.map(str::to_owned).collect();
    assert!(files.len() >= 2);
    files.extend(["/dashboard", "/dashboard/draw.js", "/dashboard/words.js", "/api/v1/site"].map(str::to_owned));
    for path in &files {
        let (status, head, body) = looked.get(path);
        assert_eq!(status, 200, "{path}");
        for said in [
            "content-security-policy: default-src 'none'; script-src 'self'",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(head.contains(said), "{path} lacks `{said}`: {head}");
        }
        assert!(!head.contains("access-control-allow"), "{head}");
        let links = body.replace("http://www.w3.org/2000/svg", "");
        assert!(!path.starts_with("/dashboard") || !links.contains("://"), "{path} leads elsewhere");
    }
    // A name of elsewhere that leads here.
    for host in ["example.org", "localhost.example.org:80", ""] {
        for path in ["/dashboard", "/api/v1/site"] {
            let (status, head, body) = get(looked.address(), path, host);
            assert!(status == 403 && body.contains("localhost"), "{host}: {head}");
        }
    }
    // A node on which nothing is planned yet, and that has no model.
    assert_eq!(looked.read("models"), json!({ "models": [] }));
    // No node, no page.
    let folder = site.end("end-2", &site.cloud.url, &["--http", "off"]);
    assert!(folder.http.is_empty());
    tierline(["top", "--once", "--data", "/nonexistent"]).refused(4, "no node runs");
}
