//! What a job's operator sees and does: lines for programs, exit codes, pause,
//! resume, cancel.

use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;
use tierline_sim::Scenario;
use tierline_store::jobs::{self, JobRow};
use tierline_store::state::Tables;
use tierline_store::{ArtefactStore, State};

use crate::faults::{artefacts, records};
use crate::federation::{EXAMPLES, Federation, lines, round_of, rounds};
use crate::harness::{Node, Ran, until};

const TABLES: Tables = Tables { of: "federation", steps: jobs::TABLES };

/// Keys of a line, sorted.
fn keys(line: &Value) -> Vec<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What programs rely on: another key may come, none of these may go or mean
/// something else.
fn pinned(lines: &[Value], simulated: bool) {
    let start: &[_] = if simulated { &["ends", "event", "job", "rounds"] } else { &["event", "job", "rounds"] };
    for (event, wanted) in [
        ("start", start),
        (
            "round",
            &["accuracy", "bytes_down", "bytes_up", "clients", "event", "loss", "round", "seconds", "train_loss"],
        ),
        ("unable", &["event", "node", "reason"]),
        ("done", &["accuracy", "bytes_down", "bytes_up", "event", "file", "loss", "model", "rounds", "seconds"]),
    ] {
        let wanted: Vec<&str> = wanted.iter().copied().chain(["schema_version"]).collect();
        for line in lines.iter().filter(|line| line["event"] == event) {
            let (mut wanted, mut found) = (wanted.clone(), keys(line));
            wanted.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, wanted, "{line}");
        }
    }
    let all = rounds(lines);
    for (number, round) in (1..).zip(&all) {
        assert_eq!(round["round"].as_u64(), Some(number));
        for key in ["bytes_up", "bytes_down", "clients"] {
            assert!(round[key].is_u64(), "{key}: {round}");
        }
        for key in ["accuracy", "loss", "train_loss", "seconds"] {
            assert!(round[key].as_f64().is_some(), "{key}: {round}");
        }
    }
    let done = lines.last().unwrap();
    assert_eq!((done["event"].as_str(), done["rounds"].as_u64()), (Some("done"), Some(all.len() as u64)));
    let sum = |key: &str| all.iter().map(|round| round[key].as_f64().unwrap()).sum::<f64>();
    for key in ["seconds", "bytes_up", "bytes_down"] {
        assert!((done[key].as_f64().unwrap() - sum(key)).abs() < 1e-6, "{key} of all rounds: {done}");
    }
    for key in ["accuracy", "loss"] {
        assert_eq!(done[key], all.last().unwrap()[key], "{key} of the last round");
    }
    let model = std::fs::read(done["file"].as_str().unwrap()).unwrap();
    assert_eq!(done["model"], blake3::hash(&model).to_hex().as_str());
}

#[test]
fn programs_read_the_same_lines_of_nodes_and_of_a_simulation() {
    let federation = Federation::new("[federation.cloud]\nrounds = 3\nclients = { min = 2 }\n");
    let cloud = &federation.site.cloud;
    // It can't take part, and says so before the job can begin.
    let bare = federation.site.end("bare", &cloud.url, &[]);
    let watcher = federation.watch_lines();
    until("it says why not", || {
        let shown = cloud.ask(&["job", "show", "squares", "--json"]);
        (shown.code == 0).then(|| shown.json()["excluded"][0]["node"] == "bare")?.then_some(())
    });
    let _ends: Vec<Node> = (0..2).map(|i| federation.end(i, &cloud.url)).collect();
    let followed = lines(&Ran::of(watcher.wait_with_output().unwrap()));
    pinned(&followed, false);
    let unable = followed.iter().find(|line| line["event"] == "unable").unwrap();
    assert_eq!(unable["node"], "bare");
    assert!(unable["reason"].as_str().unwrap().contains("no data set `squares`"), "{unable}");
    // Whoever looks later sees the same rounds, and how long they took.
    let out = federation.folder.path().join("later");
    let logs = lines(&cloud.ask(&["job", "logs", "squares", "--out", out.to_str().unwrap(), "--json"]));
    pinned(&logs, false);
    assert_eq!(rounds(&logs), rounds(&followed));
    let job = federation.folder.path().join("squares.toml");
    federation.add_data(cloud, "squares", 200, 5);
    pinned(&lines(&cloud.ask(&["train", job.to_str().unwrap(), "--sim", "3", "--json", "--replace"])), true);
    drop(bare);
}

/// However late it is given its data: nobody starts its node again for that.
#[test]
fn an_end_that_lacks_its_data_takes_part_once_it_has_some() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 2 }\n");
    let cloud = &federation.site.cloud;
    let watcher = federation.watch_lines();
    let _first = federation.end(0, &cloud.url);
    let late = federation.site.end("end-001", &cloud.url, &[]);
    until("it says why not", || {
        let shown = cloud.ask(&["job", "show", "squares", "--json"]);
        let excluded =
            |shown: &Ran| shown.json()["excluded"].as_array().unwrap().iter().any(|e| e["node"] == "end-001");
        (shown.code == 0 && excluded(&shown)).then_some(())
    });
    federation.add_data(&late, "squares", EXAMPLES, 1);
    let followed = lines(&Ran::of(watcher.wait_with_output().unwrap()));
    assert_eq!(rounds(&followed).len(), 2);
    assert!(rounds(&followed).iter().all(|round| round["clients"] == 2), "{followed:?}");
}

fn shown(federation: &Federation, key: &str) -> Option<Value> {
    let ran = federation.site.cloud.ask(&["job", "show", "squares", "--json"]);
    (ran.code == 0).then(|| ran.json()[key].clone())
}

fn begun(text: &str) -> (Federation, Vec<Node>, Child) {
    let federation = Federation::new(text);
    let ends = (0..2).map(|i| federation.end(i, &federation.site.cloud.url)).collect();
    let watcher = federation.watch_lines();
    until("some rounds have ended", || (round_of(&federation.site.cloud)? >= 2).then_some(()));
    (federation, ends, watcher)
}

fn order(federation: &Federation, verb: &str) -> Ran {
    federation.site.cloud.ask(&["job", verb, "squares", "--json"])
}

#[test]
fn a_job_that_is_paused_stays_so_whatever_is_killed() {
    let (mut federation, ends, watcher) = begun("[federation.cloud]\nrounds = 30\nclients = { min = 2 }\n");
    order(&federation, "pause").json();
    federation.site.cloud.kill();
    // Whoever follows it learns that the node is gone.
    let followed = Ran::of(watcher.wait_with_output().unwrap());
    followed.refused(4, "the node ended before the job did");
    assert!(followed.stderr.contains("tierline job logs squares"), "{followed:?}");
    federation.site.cloud.restart();
    // What was under way when it was paused still counts.
    std::thread::sleep(Duration::from_secs(2));
    let round =
        until("the job is paused", || (shown(&federation, "state")? == "paused").then(|| shown(&federation, "round")));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((shown(&federation, "round"), shown(&federation, "state")), (round, Some("paused".into())));
    order(&federation, "resume").json();
    assert_eq!(federation.done().len(), 30);
    let made = std::fs::read(federation.folder.path().join("out/model.onnx")).unwrap();
    let simulated = federation.simulated(&ends.iter().collect::<Vec<_>>(), &Scenario::default());
    assert!(made == simulated, "bit for bit");
}

#[test]
fn a_job_that_is_cancelled_ends_everywhere() {
    let (federation, ends, watcher) = begun("[federation.cloud]\nrounds = 500\nclients = { min = 2 }\n");
    assert_eq!(order(&federation, "cancel").code, 0);
    Ran::of(watcher.wait_with_output().unwrap()).refused(130, "job squares was cancelled");
    let run = federation.folder.path().join("squares.run");
    assert!(run.join("curves.svg").exists() && run.join("curves.png").exists(), "of the rounds that there were");
    let listed = federation.site.cloud.ask(&["job", "ls", "--json"]).json();
    assert_eq!(listed["jobs"][0]["state"], "cancelled");
    until("ends let go", || {
        let over = |end: &Node| end.ask(&["job", "show", "squares", "--json"]).json()["state"] == "over";
        ends.iter().all(|end| over(end) && artefacts(end) == 2 && records(end) == 0).then_some(())
    });
    order(&federation, "resume").refused(5, "job squares is cancelled");
    let logs = federation.site.cloud.ask(&["job", "logs", "squares", "--out", run.to_str().unwrap()]);
    logs.refused(130, "job squares was cancelled");
}

#[test]
fn who_follows_a_job_may_leave_it() {
    let (federation, _ends, mut watcher) = begun("[federation.cloud]\nrounds = 500\nclients = { min = 2 }\n");
    let interrupt = |child: &Child| Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt(&watcher).success());
    assert_eq!(watcher.wait().unwrap().code(), Some(130));
    let run = federation.folder.path().join("squares.run");
    assert!(run.join("curves.svg").exists() && run.join("curves.png").exists());
    let before = round_of(&federation.site.cloud).unwrap();
    until("the job goes on", || (round_of(&federation.site.cloud)? > before).then_some(()));
    assert_eq!(order(&federation, "cancel").code, 0);
}

/// Kept by a version that took such times, it would stop the node at every start.
#[test]
fn a_stored_job_with_an_endless_deadline_ends_and_the_node_starts() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 1, deadline_s = 5.0 }\n");
    let data = federation.site.cloud.data.clone();
    let watcher = federation.watch_lines();
    let rows = || State::open(&data.join("state.db"), &[TABLES]).unwrap().jobs().unwrap();
    let row = until("the job is stored", || rows().pop());
    let (mut cloud, folder) = (federation.site.cloud, federation.folder);
    cloud.kill();
    drop(watcher.wait_with_output());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let stored = runtime.block_on(async {
        let store = ArtefactStore::open(&data.join("artefacts")).unwrap();
        let json = String::from_utf8(store.get(row.job).await.unwrap().to_vec()).unwrap();
        assert!(json.contains("\"deadline_s\":5.0"), "{json}");
        store.put(json.replace("\"deadline_s\":5.0", "\"deadline_s\":1e20").into()).await.unwrap()
    });
    let state = State::open(&data.join("state.db"), &[TABLES]).unwrap();
    state.end_job(row.job, "cancelled", "").unwrap();
    state.add_job(&JobRow { job: stored, name: "endless".to_owned(), ..row }).unwrap();
    drop(state);
    cloud.restart();
    let shown = cloud.ask(&["job", "show", "endless", "--json"]).json();
    assert_eq!(shown["state"], "failed", "{shown}");
    assert!(shown["failure"].as_str().is_some_and(|reason| reason.contains("1e9")), "{shown}");
    // And once more, from what the first start made of it.
    cloud.restart();
    assert_eq!(cloud.ask(&["job", "ls"]).code, 0);
    drop(folder);
}
