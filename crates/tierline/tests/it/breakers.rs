//! A parent that takes requests and doesn't answer them: its circuit breaker.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Node, Ran, Site, until, until_planned};

/// As many as open it, and one more.
const CALLERS: usize = 6;

fn signal(node: &Node, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &node.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

fn number(node: &Node, name: &str, of: &str) -> Option<u64> {
    let text = node.scrape();
    let start = format!("{name}{{parent=\"{of}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&start)).map(|n| n.parse().expect("a number"))
}

#[test]
fn a_breaker_opens_when_requests_go_unanswered_and_closes_by_the_next_answer() {
    let site = Site::new();
    let model = site.add_model();
    let edge = site.edge("edge");
    // Too slow to answer in the edge's place.
    let slow = ["--slowdown", "100000", "--metrics", "127.0.0.1:0"];
    let end = site.end("cam", &edge.url, &slow);
    until_planned(&end);
    let command = |deadline: &str| {
        let args = ["infer", "--model", "digits", "--placement", "edge", "--deadline", deadline, "--json"];
        let mut command = end.command(&args);
        command.args(["--input", &model.input]).stdin(Stdio::null());
        command
    };
    let ask = |deadline: &str| Ran::of(command(deadline).output().expect("the binary runs"));
    let parent = || -> Value { end.ask(&["node", "status", "--json"]).json()["parents"][0].clone() };
    until("the edge answers", || (ask("5 s").code == 0).then_some(()));
    assert_eq!(
        (number(&end, "tierline_breaker_open", "edge"), parent()["breaker"].as_str()),
        (Some(0), Some("closed"))
    );

    // It stands still for less than its lease.
    signal(&edge, "STOP");
    let begun = Instant::now();
    let waiting: Vec<_> = (0..CALLERS)
        .map(|_| command("1100 ms").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs"))
        .collect();
    let failed: Vec<Ran> =
        waiting.into_iter().map(|child| Ran::of(child.wait_with_output().expect("it ends"))).collect();
    let stood = begun.elapsed();
    signal(&edge, "CONT");
    for ran in &failed {
        assert_eq!(ran.code, 124, "{ran:?}");
    }
    assert_eq!(number(&end, "tierline_breaker_open", "edge"), Some(1));
    assert_eq!(number(&end, "tierline_breaker_opened_total", "edge"), Some(1));
    assert_eq!((parent()["state"].as_str(), parent()["breaker"].as_str()), (Some("connected"), Some("open")));
    let said = end.ask(&["node", "status"]).stdout;
    assert!(said.contains("circuit breaker open"), "{said}");

    // Nobody waits for what doesn't answer, while it is open.
    if begun.elapsed() < stood + Duration::from_millis(500) {
        let refused = ask("1 s");
        assert!(refused.code != 0 && refused.stderr.contains("circuit breaker towards edge is open"), "{refused:?}");
    }

    // One request sees that it is well again, and all others follow.
    until("the edge is asked again", || (ask("5 s").code == 0).then_some(()));
    assert_eq!(number(&end, "tierline_breaker_open", "edge"), Some(0));
    assert_eq!(number(&end, "tierline_breaker_opened_total", "edge"), Some(1));
    assert_eq!(parent()["breaker"], "closed");
    for _ in 0..CALLERS {
        assert_eq!(ask("5 s").json()["degraded"], false);
    }
}
