//! What breaks off in a node takes nothing else with it.

use crate::federation::Federation;
use crate::harness::{Node, Site, breaking, until, until_planned};

/// Whether a node counts so many panics of a task, and has told of them.
#[track_caller]
fn broke_off(node: &Node, task: &str, times: u32) {
    let line = format!("tierline_task_panics_total{{task=\"{task}\"}} {times}");
    let text = node.scrape();
    assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    let log = node.log();
    assert!(log.contains(&format!("{task} broke off: a test wants {task} to break off")), "{log}");
    // With its place, for who mends it.
    assert!(log.contains(&format!("task=\"{task}\"")) && log.contains("tasks.rs:"), "{log}");
}

fn numbers() -> [&'static str; 2] {
    ["--metrics", "127.0.0.1:0"]
}

#[test]
fn a_request_that_breaks_off_fails_by_itself() {
    let mut site = Site::new();
    let model = site.add_model();
    until_planned(&site.cloud);
    for task in ["run", "compute", "answer sending"] {
        site.cloud.restart_by(breaking(&format!("{task}:1")));
        until_planned(&site.cloud);
        let ask = || site.cloud.ask(&["infer", "--model", "digits", "--input", &model.input, "--json"]);
        let refused = ask();
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains(&format!("{task} broke off")), "{refused:?}");
        broke_off(&site.cloud, task, 1);
        let answer = ask().json();
        assert_eq!(answer["degraded"], false, "{answer}");
    }
    assert!(site.cloud.stop().success());
}

#[test]
fn a_call_that_breaks_off_is_answered() {
    let mut site = Site::new();
    site.cloud.restart_by(breaking("call:1"));
    let refused = site.cloud.ask(&["nodes", "--json"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("call broke off"), "{refused:?}");
    broke_off(&site.cloud, "call", 1);
    site.cloud.ask(&["nodes", "--json"]).json();
}

#[test]
fn lasting_tasks_that_break_off_begin_again() {
    const LASTING: [&str; 9] =
        ["uplink", "leases", "artefacts", "plans", "tables", "renewal", "scrape", "socket", "network"];
    let mut site = Site::new();
    let model = site.add_model();
    let data = site.join("edge", "edge-1", &site.cloud.url);
    let all = LASTING.map(|task| format!("{task}:1")).join(",");
    let args = [&["--listen", "127.0.0.1:0"][..], &numbers()].concat();
    let mut edge = Node::start_by(breaking(&all), &data, &args);
    until_planned(&edge);
    for task in LASTING {
        broke_off(&edge, task, 1);
        let line = format!("tierline_task_restarts_total{{task=\"{task}\"}} 1");
        assert!(edge.scrape().lines().any(|l| l == line), "{line}");
        assert!(edge.log().contains("it begins again in 100 ms"), "{}", edge.log());
    }
    // Through all of them: a lease, a model fetched, plans, an end behind its door.
    let end = site.end("end-1", &edge.url, &[]);
    until_planned(&end);
    let answer = end.ask(&["infer", "--model", "digits", "--input", &model.input, "--placement", "edge", "--json"]);
    assert_eq!(answer.json()["degraded"], false);
    // What the session tells breaks off once more, and another one is held.
    site.cloud.restart_by(breaking("child's messages:1"));
    until("what a child says breaks off", || {
        site.cloud.scrape().contains("{task=\"child's messages\"} 1").then_some(())
    });
    until("the edge is back", || {
        let nodes = site.cloud.ask(&["nodes", "--json"]).json();
        let nodes = nodes["nodes"].as_array()?.clone();
        nodes.iter().any(|n| n["name"] == "edge-1" && n["state"] == "connected").then_some(())
    });
    broke_off(&site.cloud, "child's messages", 1);
    until_planned(&edge);
    assert!(edge.stop().success());
}

#[test]
fn jobs_go_on_where_their_sides_and_tasks_break_off() {
    let mut federation = Federation::new("[federation.cloud]\nrounds = 3\nclients = { min = 2 }\n");
    federation.site.cloud.restart_by(breaking("coordinator:1"));
    let url = federation.site.cloud.url.clone();
    let ends: Vec<Node> = ["participant:1", "training:1"]
        .into_iter()
        .enumerate()
        .map(|(i, tasks)| {
            let data = federation.site.join("end", &format!("end-{i:03}"), &url);
            let end = Node::start_by(breaking(tasks), &data, &numbers());
            federation.add_data(&end, "squares", 120, i as u64);
            end
        })
        .collect();
    let mut watcher = federation.watch();
    assert!(watcher.wait().unwrap().success());
    let rounds = federation.done();
    assert!(rounds.len() == 3 && rounds.iter().all(|round| round["clients"] == 2), "{rounds:?}");
    for (node, task) in [(&federation.site.cloud, "coordinator"), (&ends[0], "participant"), (&ends[1], "training")] {
        broke_off(node, task, 1);
        assert!(node.log().contains("the job begins again where its journal ends"), "{}", node.log());
    }
}

#[test]
fn a_job_that_breaks_off_each_time_is_over() {
    let mut federation = Federation::new("[federation.cloud]\nrounds = 3\nclients = { min = 1 }\n");
    federation.site.cloud.restart_by(breaking("coordinator:9"));
    let mut watcher = federation.watch();
    assert!(!watcher.wait().unwrap().success());
    let shown = until("the job is over", || federation.shown().filter(|job| job["state"] == "failed"));
    assert!(shown["failure"].as_str().unwrap().contains("coordinator broke off"), "{shown}");
    broke_off(&federation.site.cloud, "coordinator", 4);
}
