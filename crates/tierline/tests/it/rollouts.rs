//! Rollouts on real nodes: a new version reaches all of them while they answer,
//! a bad one goes back by itself, and the cloud may die in between.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Model, Node, Site, same_outputs, until, until_planned};
use crate::versions::{aliases, another, push};

/// A site whose ends answer for `digits`, in one version and soon in another.
struct Fleet {
    site: Site,
    model: Model,
    edge: Node,
    ends: Vec<Node>,
}

fn version(node: &Node, model: &Model) -> Option<u64> {
    let ran = node.ask(&["infer", "--model", "digits", "--input", &model.input, "--deadline", "20 s", "--json"]);
    if ran.code == 0 { ran.json()["version"].as_u64() } else { None }
}

impl Fleet {
    fn new() -> Self {
        let site = Site::new();
        let edge = site.edge("edge-1");
        let model = site.add_model();
        let ends: Vec<Node> = (1..=3).map(|i| site.end(&format!("end-{i}"), &edge.url, &[])).collect();
        ends.iter().for_each(until_planned);
        Self { site, model, edge, ends }
    }

    /// A specification with times that tests can wait for.
    fn spec(&self, to: u64, more: &str) -> PathBuf {
        let file = self.site.folder.path().join(format!("rollout-{to}.toml"));
        let text = format!(
            "model = \"digits\"\nfrom = \"production\"\nto = \"{to}\"\nother = \"update\"\n[trial]\nwindow_s = 1\n\
             runs_min = 1\n[health]\nwindow_s = 1\nruns_min = 5\n{more}\n[[group]]\nname = \"canary\"\n\
             match = {{ names = [\"end-1\"] }}\nconcurrency = 1\n[[group]]\nname = \"rest\"\nconcurrency = \"100%\"\n"
        );
        std::fs::write(&file, text).expect("it is written");
        file
    }

    fn start(&self, spec: &std::path::Path) -> Value {
        let ran = self.site.cloud.ask(&["rollout", "start", spec.to_str().expect("UTF-8"), "--json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()
    }

    fn status(&self) -> Value {
        let ran = self.site.cloud.ask(&["rollout", "status", "digits", "--json"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json()
    }

    fn until_state(&self, state: &str) -> Value {
        let mut last = Value::Null;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until(state, || {
                last = self.status();
                (last["state"] == state).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| {
            let logs: Vec<String> = self.ends.iter().chain([&self.site.cloud]).map(Node::log).collect();
            panic!("not {state}: {last:#}\n{}", logs.join("\n"))
        })
    }

    /// Asks every end again and again while `during` runs: how many answers, and
    /// what went wrong.
    fn answering<T>(&self, during: impl FnOnce() -> T) -> (T, u64) {
        let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
        let result = std::thread::scope(|scope| {
            let asking: Vec<_> = self
                .ends
                .iter()
                .map(|end| {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            let ran = end.ask(&["infer", "--model", "digits", "--input", &self.model.input, "--json"]);
                            assert_eq!(ran.code, 0, "no request fails because of a change: {ran:?}");
                            answers.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    })
                })
                .collect();
            let result = during();
            stop.store(true, Ordering::Relaxed);
            asking.into_iter().for_each(|asking| asking.join().expect("every request is answered"));
            result
        });
        (result, answers.into_inner())
    }

    fn versions(&self) -> Vec<Option<u64>> {
        self.ends.iter().map(|end| version(end, &self.model)).collect()
    }
}

#[test]
fn a_version_reaches_every_node_while_they_answer_and_goes_back_on_demand() {
    let mut fleet = Fleet::new();
    let first = fleet.ends[0].ask(&["infer", "--model", "digits", "--input", &fleet.model.input, "--json"]).json();
    // A few weights are other ones.
    let mut bytes = std::fs::read(&fleet.model.file).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
    let file = fleet.site.folder.path().join("nearly.onnx");
    std::fs::write(&file, bytes).expect("it is written");
    push(&fleet.site.cloud, &file, &[]);
    let started = fleet.start(&fleet.spec(2, ""));
    assert_eq!((&started["from"], &started["to"]), (&"1".into(), &"2".into()));
    fleet.site.cloud.ask(&["rollout", "start", fleet.spec(2, "").to_str().unwrap()]).refused(1, "isn't over");
    let (done, answers) = fleet.answering(|| fleet.until_state("succeeded"));
    assert!(answers > 10, "{answers}");
    let total = &done["progress"]["total"];
    assert_eq!((&total["failed"], &total["percent"]), (&0.into(), &100.0.into()), "{done:#}");
    let told = done["told"].as_array().expect("sentences").last().cloned().unwrap_or_default();
    assert_eq!(told, "rollout 1 is over, succeeded: all groups are through");
    assert_eq!(fleet.versions(), [Some(2); 3]);
    for node in fleet.ends.iter().chain([&fleet.edge]) {
        assert!(node.log().contains("came as a delta of"), "{}", node.log());
    }
    let now = |version: u64, names: &[&str]| (version, names.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(aliases(&fleet.site.cloud), [now(1, &["previous"]), now(2, &["production"])]);

    // What runs outlives every process.
    fleet.ends[0].restart();
    until("it is back", || (version(&fleet.ends[0], &fleet.model) == Some(2)).then_some(()));

    // And back again.
    let ran = fleet.site.cloud.ask(&["rollback", "digits", "--wait", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    until("all are back", || (fleet.versions() == [Some(1); 3]).then_some(()));
    let again = fleet.ends[0].ask(&["infer", "--model", "digits", "--input", &fleet.model.input, "--json"]).json();
    same_outputs(&first, &again);
    until("so is the name", || (aliases(&fleet.site.cloud)[0].1.contains(&"production".to_owned())).then_some(()));

    // A model that is removed is gone, also where its versions changed.
    assert_eq!(fleet.site.cloud.ask(&["model", "rm", "digits"]).code, 0);
    let gone = |node: &Node| {
        let ran = node.ask(&["infer", "--model", "digits", "--input", &fleet.model.input]);
        ran.code == 1 && ran.stderr.contains("no model `digits`")
    };
    until("nobody knows it", || fleet.ends.iter().all(gone).then_some(()));
    fleet.ends[0].restart();
    until("nor behind a start", || gone(&fleet.ends[0]).then_some(()));
}

#[test]
fn a_version_that_gives_other_values_than_are_expected_goes_back_by_itself() {
    let fleet = Fleet::new();
    let folder = fleet.site.folder.path();
    let file = another(folder, 2);
    let out = folder.join("out");
    let ask = ["infer", "--model", "digits", "--input", &fleet.model.input, "--out", out.to_str().unwrap(), "--json"];
    let answer = fleet.ends[0].ask(&ask).json();
    let output = answer["outputs"][0]["name"].as_str().expect("a name");
    // What the first version says is expected of the second, which says something else.
    let expected = format!("{output}=@{}", answer["outputs"][0]["file"].as_str().expect("a file"));
    push(&fleet.site.cloud, &file, &["--golden", &fleet.model.input, "--expect", &expected]);
    let spec = fleet.spec(2, "");
    let ran = fleet.site.cloud.ask(&["rollout", "start", spec.to_str().unwrap(), "--wait"]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.stdout.contains("golden inputs"), "{ran:?}");
    assert_eq!(fleet.versions(), [Some(1); 3]);
    assert!(aliases(&fleet.site.cloud)[0].1.contains(&"production".to_owned()));
}

#[test]
fn a_cloud_that_is_killed_goes_on_where_it_was() {
    let mut fleet = Fleet::new();
    push(&fleet.site.cloud, &another(fleet.site.folder.path(), 2), &[]);
    fleet.start(&fleet.spec(2, ""));
    fleet.site.cloud.kill();
    fleet.site.cloud.restart();
    fleet.answering(|| fleet.until_state("succeeded"));
    until("all run it", || (fleet.versions() == [Some(2); 3]).then_some(()));
}
