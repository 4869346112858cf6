//! Federations among faults: members that vanish, repeat themselves, lie,
//! or have data or disks that won't do.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tierline::daemon::transport::{self, Pair};
use tierline::identity::Identity;
use tierline_engine::Evaluator;
use tierline_federate::wire;
use tierline_graph::Model;
use tierline_graph::fold::{Purpose, fold_for};
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    ChildMessage, Code, Empty, Failure, Heartbeat, HelloRequest, JobAssignment, JobStanding, JobVerdict, SubmitChunk,
    UpdateHeader, WorkReport, child_message, job_standing, job_verdict, parent_message, submit_chunk, submit_reply,
};
use tierline_proto::{Role, Versions};
use tierline_sim::Scenario;
use tierline_train::Job;
use tierline_train::federated::Blueprint;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::federation::{Federation, lines, part, pictures, round_of, rounds};
use crate::harness::{Node, Ran, on_small_disk, tierline, until};

impl Federation {
    /// The job as the cloud knows it.
    fn shown(&self) -> Option<Value> {
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
    fn reason(&self, member: &str) -> String {
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
    // The cloud has no link above.
    documented.retain(|name| !name.starts_with("link_"));
    documented.sort_unstable();
    given.sort_unstable();
    assert_eq!(documented, given);
}

/// The value of the first line that begins so.
fn number(text: &str, name: &str) -> Option<f64> {
    text.lines().find(|line| line.starts_with(name))?.rsplit(' ').next()?.parse().ok()
}

/// The value of the first line that begins so and has that label.
fn of(text: &str, name: &str, label: &str) -> Option<f64> {
    text.lines().find(|line| line.starts_with(name) && line.contains(label))?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn an_update_counts_once_however_often_it_is_sent() {
    let federation = Federation::new("[federation.cloud]\nrounds = 2\nclients = { min = 1 }\n");
    let ghost = Ghost::new(&federation, "ghost");
    let mut watcher = federation.watch();
    let first = ghost.work();
    let update = ghost.update(1.0);
    assert_eq!(ghost.submit(&first, 0, "", &update).unwrap(), job_verdict::Kind::Counted);
    assert_eq!(ghost.submit(&first, 0, "", &update).unwrap(), job_verdict::Kind::Counted);
    // Other bytes for a task that is answered change nothing.
    assert_eq!(ghost.submit(&first, 0, "", &ghost.update(7.0)).unwrap(), job_verdict::Kind::Counted);
    let second = until("the next round", || Some(ghost.work()).filter(|(_, task)| *task != first.1));
    assert_eq!(ghost.submit(&first, 0, "", &update).unwrap(), job_verdict::Kind::Counted, "of a model that is made");
    assert_eq!(ghost.submit(&second, 90, "", &update).unwrap(), job_verdict::Kind::Unknown);
    let stolen = ghost.submit(&second, 0, "somebody", &update).unwrap_err();
    assert_eq!(stolen.code(), Code::Unreachable, "{stolen}");
    assert!(stolen.message.contains("has not said that somebody is below it"), "{stolen}");
    assert_eq!(ghost.submit(&second, 0, "", &ghost.update(0.5)).unwrap(), job_verdict::Kind::Counted);
    assert!(watcher.wait().unwrap().success());
    let rounds = federation.done();
    assert!(rounds.len() == 2 && rounds.iter().all(|round| round["clients"] == 1), "{rounds:?}");
}

#[test]
fn a_member_can_neither_spoil_nor_take_what_another_one_sent() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 2 }\n");
    let (good, bad) = (Ghost::new(&federation, "good"), Ghost::new(&federation, "spoiler"));
    let mut watcher = federation.watch();
    let (work, own) = (good.work(), bad.work());
    assert_eq!(good.submit(&work, 0, "", &good.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    // In its own name, for the other one's task.
    assert_eq!(bad.submit(&work, 0, "", &bad.update(9.0)).unwrap(), job_verdict::Kind::Late);
    assert_eq!(of(&federation.site.cloud.scrape(), "tierline_job_updates_total{", "\"late\""), Some(1.0));
    // What was counted must still be there after a crash.
    let mut federation = federation;
    federation.site.cloud.kill();
    let _ended = watcher.wait();
    federation.site.cloud.restart();
    let bad = bad.again(&federation);
    let _good = good.again(&federation);
    let verdict = until("the job is taken up", || bad.submit(&own, 0, "", &bad.update(1.0)).ok());
    assert_eq!(verdict, job_verdict::Kind::Counted);
    assert_eq!(federation.done()[0]["clients"], 2);
}

#[test]
fn an_edge_speaks_for_nobody_who_is_here_or_behind_another() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 2 }\n");
    let good = Ghost::new(&federation, "good");
    let (edge, liar) = (Ghost::named(&federation, "edge", "honest"), Ghost::named(&federation, "edge", "liar"));
    let mut watcher = federation.watch();
    let job = edge.job();
    edge.stands(&job, "behind", job_standing::Standing::Examples(50));
    let work = good.work();
    let behind = edge.work();
    // Of a node that is here, and of one behind the other edge.
    for (node, work) in [("good", &work), ("behind", &behind)] {
        liar.stands(&job, node, job_standing::Standing::Examples(1));
        liar.stands(&job, node, job_standing::Standing::Away(Empty {}));
        let refused = liar.submit(work, 0, node, &liar.update(9.0)).unwrap_err();
        assert!(refused.message.contains(&format!("liar has not said that {node} is below it")), "{refused}");
    }
    assert_eq!(good.submit(&work, 0, "", &good.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    assert_eq!(edge.submit(&behind, 0, "behind", &edge.update(1.0)).unwrap(), job_verdict::Kind::Counted);
    assert!(watcher.wait().unwrap().success());
    assert_eq!(federation.done()[0]["clients"], 2);
    // Edges that pass a job on are no members of it.
    assert_eq!(number(&federation.site.cloud.scrape(), "tierline_job_members{"), Some(2.0));
}

/// A member that a test moves by hand: a node's identity without its process.
struct Ghost {
    runtime: Runtime,
    role: &'static str,
    /// Speaks on the session's stream.
    say: mpsc::Sender<ChildMessage>,
    name: String,
    pair: Pair,
    /// What the parent wants, the newest.
    wanted: Arc<Mutex<Option<JobAssignment>>>,
    data: std::path::PathBuf,
    blueprint: Arc<Blueprint>,
}

impl Ghost {
    fn new(federation: &Federation, name: &str) -> Self {
        Self::named(federation, "end", name)
    }

    fn named(federation: &Federation, role: &'static str, name: &str) -> Self {
        let data = federation.site.join(role, name, &federation.site.cloud.url);
        let text = std::fs::read_to_string(federation.folder.path().join("squares.toml")).unwrap();
        let job: Job = toml::from_str(&text).unwrap();
        let mut model = Model::load(&federation.folder.path().join("net.onnx")).unwrap();
        fold_for(&mut model, &mut Evaluator(tierline_engine::rten()), Purpose::Training).unwrap();
        let blueprint = Arc::new(Blueprint::new(model, &job).unwrap());
        Self::open(federation, role, name, data, blueprint)
    }

    /// The same member, connected anew.
    fn again(self, federation: &Federation) -> Self {
        Self::open(federation, self.role, &self.name, self.data.clone(), Arc::clone(&self.blueprint))
    }

    fn open(
        federation: &Federation,
        role: &'static str,
        name: &str,
        data: std::path::PathBuf,
        blueprint: Arc<Blueprint>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let identity = Identity::load(&data.join("identity"), SystemTime::now()).unwrap();
        let endpoint = transport::endpoint(&federation.site.cloud.url, transport::client_tls(&identity)).unwrap();
        let wanted: Arc<Mutex<Option<JobAssignment>>> = Arc::default();
        let told = Arc::clone(&wanted);
        let own = name.to_owned();
        let (pair, say) = runtime.block_on(async move {
            let pair = Pair::connect(&endpoint).await.unwrap();
            let hello = HelloRequest {
                versions: Some(Versions::OURS.into()),
                node_name: own,
                role: if role == "edge" { Role::Edge } else { Role::End }.into(),
                features: Vec::new(),
                incarnation: fastrand::u64(1..),
            };
            let reply = pair.control().hello(hello).await.unwrap().into_inner();
            let (send, receive) = mpsc::channel(16);
            let say = |body| ChildMessage { body: Some(body) };
            let beat = move |sequence| {
                say(child_message::Body::Heartbeat(Heartbeat {
                    session: reply.session,
                    sequence,
                    ..Heartbeat::default()
                }))
            };
            send.send(beat(0)).await.unwrap();
            let mut stream = pair.control().session(ReceiverStream::new(receive)).await.unwrap().into_inner();
            let (speaks, say_later) = (send.clone(), send.clone());
            tokio::spawn(async move {
                for sequence in 1.. {
                    tokio::time::sleep(Duration::from_millis(u64::from(reply.heartbeat_ms) / 2)).await;
                    if speaks.send(beat(sequence)).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    let Some(parent_message::Body::Assignment(assignment)) = message.body else { continue };
                    // Once: the answer is what is wanted of it, again.
                    if told.lock().unwrap().is_none() {
                        let ready = Some(job_standing::Standing::Examples(100));
                        let standing = JobStanding {
                            job: assignment.job.clone(),
                            node: String::new(),
                            standing: ready,
                            holds: 0,
                            url: String::new(),
                        };
                        send.send(say(child_message::Body::Standing(standing))).await.unwrap();
                    }
                    *told.lock().unwrap() = Some(assignment);
                }
            });
            (pair, say_later)
        });
        Self { runtime, role, say, name: name.to_owned(), pair, wanted, data, blueprint }
    }

    /// The job and the task that are wanted of it, once there is one.
    fn work(&self) -> (bytes::Bytes, u64) {
        until("there is work", || {
            let wanted = self.wanted.lock().unwrap().clone()?;
            match wanted.want {
                Some(Want::Work(order)) => Some((wanted.job, order.task)),
                _ => None,
            }
        })
    }

    /// The job that it heard of.
    fn job(&self) -> bytes::Bytes {
        until("it hears of the job", || Some(self.wanted.lock().unwrap().clone()?.job))
    }

    /// Says what somebody below it is at.
    fn stands(&self, job: &bytes::Bytes, node: &str, standing: job_standing::Standing) {
        let standing = JobStanding {
            job: job.clone(),
            node: node.to_owned(),
            standing: Some(standing),
            holds: 0,
            url: String::new(),
        };
        let message = ChildMessage { body: Some(child_message::Body::Standing(standing)) };
        self.runtime.block_on(self.say.send(message)).unwrap();
    }

    /// An update that changes every weight by so much.
    fn update(&self, by: f32) -> Vec<u8> {
        let mut vectors = self.blueprint.initial();
        vectors.values_mut().for_each(|vector| vector.fill(by));
        wire::encode(&vectors, self.blueprint.layout()).unwrap()
    }

    /// Sends an update, for a later task if told so, in whose name.
    fn submit(
        &self,
        (job, task): &(bytes::Bytes, u64),
        later: u64,
        node: &str,
        update: &[u8],
    ) -> Result<job_verdict::Kind, Failure> {
        let header = UpdateHeader {
            job: job.clone(),
            task: task + later,
            digest: blake3::hash(update).as_bytes().to_vec().into(),
            length: update.len() as u64,
            report: Some(WorkReport { examples: 100, steps: 8, effective_steps: 8.0, ..WorkReport::default() }),
            node: node.to_owned(),
        };
        let chunk = |body| SubmitChunk { body: Some(body) };
        self.runtime.block_on(async {
            let (send, receive) = mpsc::channel(1_024);
            send.send(chunk(submit_chunk::Body::Header(header))).await.unwrap();
            let stream = self.pair.federate().submit(ReceiverStream::new(receive)).await;
            let mut stream = stream.map_err(|s| Failure::from_status(&s))?.into_inner();
            while let Some(reply) = stream.message().await.map_err(|s| Failure::from_status(&s))? {
                match reply.body {
                    Some(submit_reply::Body::From(from)) => {
                        for part in update[from as usize..].chunks(200_000) {
                            let data = bytes::Bytes::copy_from_slice(part);
                            send.send(chunk(submit_chunk::Body::Data(data))).await.unwrap();
                        }
                    }
                    Some(submit_reply::Body::Verdict(JobVerdict { kind, .. })) => {
                        return Ok(job_verdict::Kind::try_from(kind).unwrap());
                    }
                    None => panic!("an empty answer"),
                }
            }
            Err(Failure::new(Code::Unreachable, "it broke off"))
        })
    }
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
fn an_update_that_is_not_finite_is_refused_and_its_sender_left_out() {
    let federation = Federation::new("[federation.cloud]\nrounds = 1\nclients = { min = 1 }\n");
    let _end = federation.end(0, &federation.site.cloud.url);
    let ghost = Ghost::new(&federation, "ghost");
    let watcher = federation.watch_lines();
    let work = ghost.work();
    let mut update = ghost.update(1.0);
    // Wherever numbers begin, one of them has no bit that is not set.
    let middle = update.len() / 2;
    update[middle..middle + 8].fill(0xff);
    assert_eq!(ghost.submit(&work, 0, "", &update).unwrap(), job_verdict::Kind::Refused);
    assert_eq!(of(&federation.site.cloud.scrape(), "tierline_job_updates_total{", "\"refused\""), Some(1.0));
    let lines = lines(&Ran::of(watcher.wait_with_output().unwrap()));
    let excluded = lines.iter().find(|line| line["event"] == "excluded").expect("a line says so");
    assert_eq!(excluded["node"], "ghost");
    assert!(excluded["reason"].as_str().unwrap().contains("finite"), "{excluded}");
    assert_eq!(federation.done()[0]["clients"], 1);
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
