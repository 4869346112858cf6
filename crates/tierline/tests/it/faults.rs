//! Federations among faults: members that vanish, repeat themselves, lie,
//! or have data or disks that won't do.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tierline_graph::Model;
use tierline_sim::Scenario;

use crate::federation::{Federation, lines, part, pictures, round_of, rounds};
use crate::harness::{Node, on_small_disk, tierline, until};

impl Federation {
    /// The job as the cloud knows it.
    pub fn shown(&self) -> Option<Value> {
        let ran = self.site.cloud.ask(&["job", "show", "squares", "--json"]);
        (ran.code == 0).then(|| ran.json())
    }

    /// Waits until the job is done; its rounds.
    pub fn done(&self) -> Vec<Value> {
        until("the job is done", || self.shown().filter(|job| job["state"] == "done"));
        let out = self.folder.path().join("out");
        let ran = self.site.cloud.ask(&["job", "logs", "squares", "--out", out.to_str().unwrap(), "--json"]);
        rounds(&lines(&ran)).into_iter().cloned().collect()
    }

    /// Why a member is out, once it is.
    pub fn reason(&self, member: &str) -> String {
        until(member, || {
            let excluded = self.shown()?["excluded"].clone();
            let found = excluded.as_array()?.iter().find(|e| e["node"] == member)?;
            Some(found["reason"].as_str()?.to_owned())
        })
    }
}

#[test]
fn a_round_goes_on_without_a_member_that_vanishes() {
    let federation = Federation::new("[federation.cloud]\nrounds = 3\nclients = { min = 2, patience_s = 3.0 }\n");
    let _ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    // Still at work when the others are done.
    let mut lost = federation.site.end("end-002", &federation.site.cloud.url, &["--slowdown", "5000"]);
    federation.add_data(&lost, "squares", 120, 2);
    let mut watcher = federation.watch();
    until("the others are done with the first round", || {
        let job = federation.shown()?;
        (job["counted"] == 2 && job["goal"] == 3).then_some(())
    });
    lost.kill();
    assert!(federation.reason("end-002").contains("can't be reached"));
    assert!(watcher.wait().unwrap().success());
    let rounds = federation.done();
    assert!(rounds.iter().all(|round| round["clients"] == 2), "{rounds:?}");
}

/// Work that was done before a kill counts, and a round begins although nobody
/// is ever quiet for long.
#[test]
fn a_job_is_done_though_somebody_is_killed_each_second() {
    let mut federation = Federation::new("[federation.cloud]\nrounds = 3\nclients = { min = 2 }\n");
    let mut ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let mut watcher = federation.watch();
    until("the job is given", || federation.shown());
    let mut turn = 0;
    let job = until("it is done", || {
        std::thread::sleep(Duration::from_secs(1));
        match turn % 3 {
            0 => ends[0].restart(),
            1 => federation.site.cloud.restart(),
            _ => ends[1].restart(),
        }
        turn += 1;
        federation.shown().filter(|job| job["state"] == "done")
    });
    let _ended = watcher.wait();
    assert_eq!(job["round"], 3);
    federation.done();
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    assert!(std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap() == simulated, "bit for bit");
}

/// As above where edges average their ends: each keeps what was counted there.
#[test]
fn a_hierarchy_is_done_though_somebody_is_killed_each_second() {
    let text = "[federation.cloud]\nrounds = 2\nclients = { min = 2 }\n\
                [federation.edge]\nrounds = 2\nclients = { min = 2 }\n";
    let mut federation = Federation::new(text);
    let mut edges: Vec<Node> = (0..2).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let mut ends: Vec<Node> = (0..4).map(|i| federation.end(i, &edges[i as usize / 2].url)).collect();
    let mut watcher = federation.watch();
    until("the job is given", || federation.shown());
    let mut turn = 0;
    until("it is done", || {
        std::thread::sleep(Duration::from_secs(1));
        match turn % 7 {
            0 => federation.site.cloud.restart(),
            edge @ 1..=2 => edges[edge - 1].restart(),
            end => ends[end - 3].restart(),
        }
        turn += 1;
        federation.shown().filter(|job| job["state"] == "done")
    });
    let _ended = watcher.wait();
    federation.done();
    let scenario = Scenario { edges: 2, ..Scenario::default() };
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &scenario);
    assert!(std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap() == simulated, "bit for bit");
}

#[test]
fn an_end_goes_to_its_other_edge_when_the_first_one_stays_away() {
    let text = "[federation.cloud]\nrounds = 5000\nclients = { min = 1, patience_s = 2.0 }\n\
                [federation.edge]\nrounds = 1\nclients = { min = 1, patience_s = 2.0 }\n";
    let federation = Federation::new(text);
    let mut edges: Vec<Node> = (0..2).map(|i| federation.site.edge(&format!("edge-{i:02}"))).collect();
    let _stays = federation.end(0, &edges[0].url);
    let both = ["--parent", &edges[1].url, "--parent", &edges[0].url].map(str::to_owned);
    let moves = federation.site.end("end-001", &edges[1].url, &both.each_ref().map(String::as_str));
    federation.add_data(&moves, "squares", 120, 1);
    let mut watcher = federation.watch();
    let has = |edge: &Node, ends: u64| {
        let ran = edge.ask(&["job", "show", "squares", "--json"]);
        (ran.code == 0 && ran.json()["ready"] == ends).then_some(())
    };
    until("both edges take part", || has(&edges[0], 1).and(has(&edges[1], 1)));
    edges[1].kill();
    until("its end is at the other one", || has(&edges[0], 2));
    let ran = federation.site.cloud.ask(&["job", "cancel", "squares"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let _cancelled = watcher.wait();
    until("it is let go", || moves.ask(&["job", "ls", "--json"]).stdout.contains("over").then_some(()));
}

#[test]
fn an_end_that_is_away_at_the_end_has_its_own_model_later() {
    let text = "[federation.cloud]\nrounds = 12\nclients = { min = 1, patience_s = 2.0 }\n\
                [federation.personal]\nkind = 'ditto'\nlambda = 0.1\n";
    let federation = Federation::new(text);
    let job = federation.folder.path().join("squares.toml");
    let text = std::fs::read_to_string(&job).unwrap().replace("test = 'held-out'", "hold_out = 0.25");
    std::fs::write(&job, text).unwrap();
    let mut ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let mut watcher = federation.watch();
    until("some rounds have ended", || (round_of(&federation.site.cloud)? >= 3).then_some(()));
    ends[1].kill();
    let _ended = watcher.wait();
    let last = federation.done();
    assert_eq!(last.last().unwrap()["clients"], 1, "{last:?}");
    let own = |end: &Node| {
        let file = federation.folder.path().join("own.onnx");
        let ran = end.ask(&["job", "model", "squares", "--out", file.to_str().unwrap(), "--json"]);
        (ran.code == 0).then(|| Model::load(&file).unwrap())
    };
    assert!(own(&ends[0]).is_some());
    ends[1].restart();
    let own = until("it makes its own", || own(&ends[1]));
    assert!(own != Model::load(&federation.folder.path().join("out/model.onnx")).unwrap());
    until("and is done", || ends[1].ask(&["job", "ls", "--json"]).stdout.contains("over").then_some(()));
}

#[test]
fn a_round_ends_at_its_deadline_and_its_numbers_are_scraped() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 2, deadline_s = 3.0 }\n");
    let _ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let slow = federation.site.end("end-002", &federation.site.cloud.url, &["--slowdown", "5000"]);
    federation.add_data(&slow, "squares", 120, 2);
    let mut watcher = federation.watch();
    until("a round is under way", || {
        let text = federation.site.cloud.scrape();
        number(&text, "tierline_job_members_ready{").filter(|ready| *ready == 3.0)
    });
    assert!(watcher.wait().unwrap().success());
    let rounds = federation.done();
    assert!(rounds.iter().all(|round| round["clients"] == 2), "{rounds:?}");
    let text = federation.site.cloud.scrape();
    let sum = |key: &str| rounds.iter().map(|round| round[key].as_f64().unwrap()).sum::<f64>();
    assert_eq!(number(&text, "tierline_job_rounds_total{job=\"squares\""), Some(2.0), "{text}");
    assert_eq!(number(&text, "tierline_job_round_seconds_count{"), Some(2.0));
    assert_eq!(number(&text, "tierline_job_accuracy{"), rounds[1]["accuracy"].as_f64());
    assert_eq!(number(&text, "tierline_job_loss{"), rounds[1]["loss"].as_f64());
    assert_eq!(of(&text, "tierline_job_updates_total{", "counted"), Some(4.0), "{text}");
    assert_eq!(of(&text, "tierline_job_bytes_total{", "\"up\""), Some(sum("bytes_up")));
    assert_eq!(of(&text, "tierline_job_bytes_total{", "\"down\""), Some(sum("bytes_down")));
    // Everything that is documented is there, and the other way about.
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md"));
    let documented = page.lines().filter_map(|line| line.strip_prefix("| `tierline_")?.split('`').next());
    let given = text.lines().filter_map(|line| line.strip_prefix("# TYPE tierline_")?.split(' ').next());
    let (mut documented, mut given): (Vec<_>, Vec<_>) = (documented.collect(), given.collect());
    // The cloud has no link above, and no collector of traces.
    documented.retain(|name| !name.starts_with("link_") && !name.starts_with("spans_"));
    documented.sort_unstable();
    given.sort_unstable();
    assert_eq!(documented, given);
}

/// The value of the first line that begins so.
pub fn number(text: &str, name: &str) -> Option<f64> {
    text.lines().find(|line| line.starts_with(name))?.rsplit(' ').next()?.parse().ok()
}

/// The value of the first line that begins so and has that label.
pub fn of(text: &str, name: &str, label: &str) -> Option<f64> {
    text.lines().find(|line| line.starts_with(name) && line.contains(label))?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn data_that_will_not_do_keeps_one_end_out() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 2 }\n");
    let _ends: Vec<Node> = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let wild = federation.site.end("wild", &federation.site.cloud.url, &[]);
    let folder = federation.folder.path().join("wild");
    pictures(&folder, 60, 7);
    // Class 200, where the network knows ten.
    let labels = folder.join("train-labels-idx1-ubyte");
    let mut bytes = std::fs::read(&labels).unwrap();
    bytes[8 + 30] = 200;
    std::fs::write(&labels, bytes).unwrap();
    let ran = wild.ask(&["data", "add", "squares", folder.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // An empty set is refused where it is given.
    let none = federation.site.end("none", &federation.site.cloud.url, &[]);
    let empty = federation.folder.path().join("empty");
    part(&empty, "train", 0, 8);
    let ran = none.ask(&["data", "add", "squares", empty.to_str().unwrap()]);
    assert!(ran.code != 0 && ran.stderr.contains("no examples"), "{ran:?}");
    let mut watcher = federation.watch();
    let reason = federation.reason("wild");
    assert!(reason.contains("201 classes"), "{reason}");
    assert!(federation.reason("none").contains("no data set `squares`"));
    assert!(watcher.wait().unwrap().success());
    assert!(federation.done().iter().all(|round| round["clients"] == 2));
}

/// Makes one record of a node's journals unreadable.
fn damage_journal(node: &Node) {
    let state = rusqlite::Connection::open(node.data.join("state.db")).unwrap();
    let changed = state.execute("UPDATE job_journal SET record = '{' || record", []).unwrap();
    assert!(changed > 0, "it has a journal");
}

#[test]
fn a_damaged_journal_ends_the_job_where_it_is_and_says_so() {
    let mut federation = Federation::new("[federation.cloud]\nrounds = 40\nclients = { min = 2 }\n");
    let mut ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let mut watcher = federation.watch();
    until("a round has ended", || federation.shown()?["round"].as_u64().filter(|round| *round >= 1));
    ends[2].kill();
    damage_journal(&ends[2]);
    ends[2].restart();
    let reason = until("the end says why it is out", || {
        Some(federation.reason("end-002")).filter(|reason| !reason.contains("can't be reached"))
    });
    assert!(reason.contains("the job's journal is damaged: record 1"), "{reason}");
    assert_eq!(ends[2].ask(&["job", "show", "squares", "--json"]).json()["state"], "failed");
    let before = federation.shown().unwrap()["round"].as_u64().unwrap();
    until("the others go on", || federation.shown()?["round"].as_u64().filter(|round| *round > before));
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    damage_journal(&federation.site.cloud);
    federation.site.cloud.restart();
    let job = until("the job has failed", || federation.shown().filter(|job| job["state"] == "failed"));
    assert!(job["failure"].as_str().unwrap().contains("the job's journal is damaged"), "{job}");
    assert_eq!(job["members"], 3, "who took part is known still: {job}");
    until("ends hear of it", || {
        let over = |end: &Node| end.ask(&["job", "show", "squares", "--json"]).json()["state"] == "over";
        ends[..2].iter().all(over).then_some(())
    });
}

/// Artefacts that a node has.
pub fn artefacts(node: &Node) -> usize {
    let folders = std::fs::read_dir(node.data.join("artefacts/whole")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
}

#[test]
fn what_a_job_needs_no_more_is_let_go_everywhere() {
    let federation = Federation::new("[federation.cloud]\nrounds = 8\nclients = { min = 2 }\n");
    let edge = federation.site.edge("edge-00");
    let ends: Vec<Node> = (0..2).map(|i| federation.end(i, &edge.url)).collect();
    let mut watcher = federation.watch();
    let most = until("the job is done", || {
        let now = ends.iter().chain([&edge, &federation.site.cloud]).map(artefacts).max()?;
        // The job, the model it begins with, and what two rounds need.
        assert!(now <= 6, "{now} artefacts on one node");
        watcher.try_wait().unwrap().map(|_| now)
    });
    assert!(most >= 2);
    until("the job and its first model are left", || {
        ends.iter().chain([&edge, &federation.site.cloud]).all(|node| artefacts(node) == 2).then_some(())
    });
    until("no journal is left", || {
        ends.iter().chain([&federation.site.cloud]).all(|node| records(node) == 0).then_some(())
    });
}

/// Records in a node's journals.
pub fn records(node: &Node) -> i64 {
    let state = rusqlite::Connection::open(node.data.join("state.db")).unwrap();
    state.query_row("SELECT count(*) FROM job_journal", [], |row| row.get(0)).unwrap()
}

/// A node whose data folder is a file system of its own, of so many megabytes.
fn small_disk(data: &Path, megabytes: u32, args: &[&str]) -> Option<Node> {
    let mut node = Node::start_by(on_small_disk(data, megabytes)?, data, args);
    node.apart = true;
    Some(node)
}

/// Runs a shell command where a node's folder is its small file system.
fn within(node: &Node, script: &str) {
    let id = node.id().to_string();
    let ran = Command::new("nsenter")
        .args(["--user", "--mount", "--preserve-credentials", "-t", &id, "sh", "-c", script])
        .status()
        .unwrap();
    assert!(ran.success() || script.contains("|| true"), "{script}");
}

fn fill(node: &Node) {
    let ballast = node.data.join("ballast");
    within(node, &format!("dd if=/dev/zero of='{}' bs=4k 2>/dev/null || true", ballast.display()));
}

fn make_room(node: &Node) {
    within(node, &format!("rm '{}'", node.data.join("ballast").display()));
}

#[test]
fn an_end_whose_disk_is_full_waits_for_room() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 2 }\n");
    let _end = federation.end(0, &federation.site.cloud.url);
    let data = federation.site.join("end", "end-001", &federation.site.cloud.url);
    let folder = federation.folder.path().join("tight");
    pictures(&folder, 120, 1);
    let ran = tierline(["--data", data.to_str().unwrap(), "data", "add", "squares", folder.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let Some(tight) = small_disk(&data, 12, &[]) else { return };
    fill(&tight);
    let mut watcher = federation.watch();
    until("the full disk is told of", || tight.log().contains("no room").then_some(()));
    assert_eq!(federation.shown().unwrap()["round"], 0);
    make_room(&tight);
    let rounds = federation.done();
    assert!(watcher.wait().unwrap().success());
    assert!(rounds.iter().all(|round| round["clients"] == 2));
}

#[test]
fn a_cloud_whose_disk_is_full_goes_on_when_there_is_room() {
    let mut federation = Federation::new("[federation.cloud]\nrounds = 30\nclients = { min = 2 }\n");
    // The same cloud once more, on a small file system, where it was.
    federation.site.cloud.kill();
    let address = federation.site.cloud.url.trim_start_matches("https://").to_owned();
    let args = ["--listen", &address, "--metrics", "127.0.0.1:0"];
    let Some(small) = small_disk(&federation.site.cloud.data.clone(), 16, &args) else { return };
    federation.site.cloud = small;
    let cloud = &federation.site.cloud;
    let ends: Vec<Node> = (0..2).map(|i| federation.end(i, &cloud.url)).collect();
    let mut watcher = federation.watch();
    until("some rounds have ended", || federation.shown()?["round"].as_u64().filter(|round| *round >= 2));
    fill(cloud);
    until("the full disk is told of", || cloud.log().contains("no room").then_some(()));
    make_room(cloud);
    let rounds = federation.done();
    // It follows a job as long as the node does.
    let _ended = watcher.wait();
    assert!(rounds.len() == 30 && rounds.iter().all(|round| round["clients"] == 2), "{rounds:?}");
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    assert!(made == simulated, "bit for bit");
}

#[test]
fn an_edge_whose_disk_is_full_goes_on_when_there_is_room() {
    let text = "[federation.cloud]\nrounds = 6\nclients = { min = 1 }\n\
                [federation.edge]\nrounds = 3\nclients = { min = 2 }\n";
    let federation = Federation::new(text);
    let data = federation.site.join("edge", "edge-00", &federation.site.cloud.url);
    let Some(edge) = small_disk(&data, 16, &["--listen", "127.0.0.1:0"]) else { return };
    let ends: Vec<Node> = (0..2).map(|i| federation.end(i, &edge.url)).collect();
    let mut watcher = federation.watch();
    until("a round has ended", || federation.shown()?["round"].as_u64().filter(|round| *round >= 1));
    fill(&edge);
    until("the full disk is told of", || edge.log().contains("no room").then_some(()));
    make_room(&edge);
    assert_eq!(federation.done().len(), 6);
    assert!(watcher.wait().unwrap().success());
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    let scenario = Scenario { edges: 1, ..Scenario::default() };
    assert!(made == federation.simulated(&ends.iter().collect::<Vec<_>>(), &scenario), "bit for bit");
}

#[test]
fn data_damaged_since_they_were_named_keep_one_end_out() {
    let federation = Federation::new("[federation.cloud]\nrounds = 3\nclients = { min = 2 }\n");
    let ends: Vec<Node> = (0..3).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let pixels = federation.folder.path().join("squares-2/train-images-idx3-ubyte");
    let file = std::fs::File::options().write(true).open(&pixels).unwrap();
    file.set_len(5_000).unwrap();
    let mut watcher = federation.watch();
    let reason = federation.reason("end-002");
    for part in ["the data set `squares`", "train-images-idx3-ubyte", "bring its files back"] {
        assert!(reason.contains(part), "`{part}` is not in: {reason}");
    }
    assert!(watcher.wait().unwrap().success());
    assert!(federation.done().iter().all(|round| round["clients"] == 2));
    let listed = ends[2].ask(&["job", "ls", "--json"]).json();
    assert_eq!(listed["jobs"][0]["name"], "squares", "{listed}");
}
