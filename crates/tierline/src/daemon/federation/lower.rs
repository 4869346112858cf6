//! The side that takes part: performs what a job's participant asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tierline_federate::{Contribution, Layout, Sender, Vectors, wire};
use tierline_graph::Model;
use tierline_node::Rng;
use tierline_node::federation::{
    Assignment, MemberAction, MemberEvent, Participant, Standing, Task, Update, Verdict, Work,
};
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    Code, Empty, Failure, JobStanding, TaskFailure, UpdateHeader, WorkReport, child_message, job_standing,
};
use tierline_proto::{Digest, Role};
use tierline_train::data::Dataset;
use tierline_train::federated::{self, Blueprint, Share, Workplace};
use tokio::sync::mpsc;

use super::upper::{ToUpper, internal};
use super::{Folder, JobManifest, verdict_of};
use crate::daemon::uplink::Uplink;
use crate::daemon::{Node, wait_until};
use crate::datasets::Datasets;
use crate::store::jobs::Side;

/// What comes to this side.
pub(super) enum ToLower {
    /// A parent says what it wants.
    Assigned { uplink: Arc<Uplink>, want: Want },
    /// A parent can be reached, or can't any more.
    Parent { uplink: Arc<Uplink>, up: bool },
    /// What was begun here has come to something.
    Event(MemberEvent),
    /// The model of a task is here: an edge's rounds begin.
    Fetched { work: Work, model: Vectors },
    /// An edge's rounds are done.
    Gathered { task: Task, contribution: Contribution },
}

pub(super) struct Lower {
    node: Arc<Node>,
    id: Digest,
    manifest: Arc<JobManifest>,
    folder: Folder,
    participant: Participant,
    first: Vec<MemberAction>,
    rng: Rng,
    /// The parent that the job came from.
    parent: Option<Arc<Uplink>>,
    /// Artefacts of the models that were named; `None` for the first one.
    models: BTreeMap<u64, Option<Digest>>,
    /// Of an edge: the side that coordinates.
    above: Option<mpsc::Sender<ToUpper>>,
    desk: Arc<Mutex<Option<Desk>>>,
    /// Tells the task under way to stop.
    stop: Arc<AtomicBool>,
    myself: Option<mpsc::Sender<ToLower>>,
    over: bool,
}

/// What work needs: made once, when the job is heard of.
struct Desk {
    layout: Layout,
    initial: Vectors,
    /// The job's.
    seed: u64,
    /// Of an end.
    place: Option<(Workplace, Share)>,
}

impl Lower {
    pub(super) fn new(
        node: Arc<Node>,
        id: Digest,
        manifest: Arc<JobManifest>,
        folder: Folder,
        above: Option<mpsc::Sender<ToUpper>>,
    ) -> Self {
        Self {
            node,
            id,
            manifest,
            folder,
            participant: Participant::default(),
            first: Vec::new(),
            rng: Rng::new(),
            parent: None,
            models: BTreeMap::new(),
            above,
            desk: Arc::default(),
            stop: Arc::default(),
            myself: None,
            over: false,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<ToLower>) {
        let (node, id) = (Arc::clone(&self.node), self.id);
        // Its own door, for what it begins. It ends when the job does.
        let (door, mut own) = mpsc::channel(super::INBOX_MAX);
        self.myself = Some(door);
        let journal = node.state.journal_of(id, Side::Lower).unwrap_or_default();
        let journal: Vec<_> = journal.iter().filter_map(|r| serde_json::from_str(r).ok()).collect();
        (self.participant, self.first) = Participant::restored(&journal);
        let first = std::mem::take(&mut self.first);
        let mut done = self.perform(first);
        while let Ok(()) = done {
            if self.over {
                break;
            }
            let wake = self.participant.wake().map(|t| node.instant_of(t));
            done = tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.hear(message).await,
                    None => return,
                },
                Some(message) = own.recv() => self.hear(message).await,
                () = wait_until(wake) => self.step(MemberEvent::Wake),
            };
        }
        if let Err(failure) = done {
            let text = format!("job {} stopped here: {failure}", self.manifest.name);
            node.events.record("job", text, &serde_json::json!({ "job": id.to_string() }));
            node.resume_later(id);
            return;
        }
        node.leave_job(id);
    }

    fn later(&self) -> mpsc::Sender<ToLower> {
        self.myself.clone().expect("set before anything runs")
    }

    async fn hear(&mut self, message: ToLower) -> Result<(), Failure> {
        match message {
            ToLower::Assigned { uplink, want } => {
                // Parents of one site know the same job; the first one keeps it.
                if self.parent.as_ref().is_none_or(|p| !p.is_up()) {
                    self.parent = Some(Arc::clone(&uplink));
                    self.step(MemberEvent::LinkUp)?;
                }
                if self.parent.as_ref().is_some_and(|p| p.peer != uplink.peer) {
                    return Ok(());
                }
                let assignment = self.assignment(want)?;
                self.step(MemberEvent::Assigned(assignment))
            }
            ToLower::Parent { uplink, up: true } => {
                if self.parent.is_none() {
                    self.parent = Some(Arc::clone(&uplink));
                }
                if self.parent.as_ref().is_some_and(|p| p.peer == uplink.peer) {
                    return self.step(MemberEvent::LinkUp);
                }
                Ok(())
            }
            ToLower::Parent { uplink, up: false } => {
                if self.parent.as_ref().is_some_and(|p| p.peer == uplink.peer) {
                    return self.step(MemberEvent::LinkDown);
                }
                Ok(())
            }
            ToLower::Event(event) => self.step(event),
            ToLower::Fetched { work, model } => {
                if let (Some(above), true) = (&self.above, self.participant.working() == Some(work)) {
                    let _ = above.send(ToUpper::Begin { task: work.task, model, look: work.look }).await;
                }
                Ok(())
            }
            ToLower::Gathered { task, mut contribution } => {
                let Some(work) = self.participant.working().filter(|work| work.task == task) else { return Ok(()) };
                if work.look {
                    contribution.vectors.clear();
                }
                let held = tokio::task::block_in_place(|| {
                    let desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
                    let desk = desk.as_ref().ok_or_else(|| internal("the job isn't prepared"))?;
                    let before = self.folder.load_kept()?;
                    desk.hold(&self.node, &self.folder, &self.sender(), work, &contribution, (&before, before.clone()))
                });
                let result = held.map_err(|f| f.to_string());
                self.step(MemberEvent::Worked { task, result })
            }
        }
    }

    fn assignment(&mut self, want: Want) -> Result<Assignment, Failure> {
        Ok(match want {
            Want::Wait(_) => Assignment::Wait,
            Want::Over(_) => Assignment::Over { version: 0 },
            Want::Out(failure) => Assignment::Out { reason: failure.message },
            Want::Work(order) => {
                let model = match order.model.is_empty() {
                    true => None,
                    false => Some(Digest::try_from(&order.model).map_err(internal)?),
                };
                self.models.insert(order.version, model);
                let version = order.version;
                self.models.retain(|v, _| *v + 8 > version);
                Assignment::Work { task: Task(order.task), round: order.round, version, look: order.look }
            }
        })
    }

    fn step(&mut self, event: MemberEvent) -> Result<(), Failure> {
        let actions = self.participant.step(self.node.now(), &mut self.rng, event);
        self.perform(actions)
    }

    fn perform(&mut self, actions: Vec<MemberAction>) -> Result<(), Failure> {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                MemberAction::Keep(record) => {
                    let record = serde_json::to_string(&record).map_err(internal)?;
                    let node = &self.node;
                    tokio::task::block_in_place(|| node.state.journal(self.id, Side::Lower, &[record]))?;
                }
                MemberAction::Prepare => self.prepare(),
                MemberAction::Report(standing) => self.report(&standing),
                MemberAction::Work(work) => self.work(work),
                MemberAction::Abandon(_) => self.stop.store(true, Ordering::Relaxed),
                MemberAction::Send(update) => self.send(update),
                MemberAction::Settle { task, counted } => self.folder.settle(task.0, counted)?,
                MemberAction::Finish { .. } => self.end("over", "")?,
                MemberAction::Leave { reason } => self.end("left out", &reason)?,
            }
        }
        Ok(())
    }

    fn end(&mut self, how: &str, reason: &str) -> Result<(), Failure> {
        self.over = true;
        self.node.state.end_job(self.id, how, reason)?;
        self.folder.clear();
        let text = match reason {
            "" => format!("job {} is over", self.manifest.name),
            reason => format!("job {} goes on without this node: {reason}", self.manifest.name),
        };
        self.node.events.record("job", text, &serde_json::json!({ "job": self.id.to_string() }));
        if let Some(above) = self.above.clone() {
            tokio::spawn(async move {
                let _ = above.send(ToUpper::End).await;
            });
        }
        Ok(())
    }

    fn report(&self, standing: &Standing) {
        let failure = |reason: &str| Failure::new(Code::Infeasible, reason);
        let standing = match standing {
            Standing::Preparing => job_standing::Standing::Preparing(Empty {}),
            Standing::Ready { examples } => job_standing::Standing::Examples(*examples),
            Standing::Unable { reason } => job_standing::Standing::Unable(failure(reason)),
            Standing::Failed { task, reason } => {
                job_standing::Standing::Failed(TaskFailure { task: task.0, reason: Some(failure(reason)) })
            }
        };
        if let Some(parent) = &self.parent {
            let standing = JobStanding { job: self.id.to_bytes(), standing: Some(standing) };
            parent.tell(child_message::Body::Standing(standing));
        }
    }

    /// How updates travel to the parent there is now.
    fn sender(&self) -> Sender {
        let federation = self.manifest.federation();
        match self.parent.as_ref().map(|p| p.parent_role()) {
            Some(Role::Edge) => federation.of_ends().sender(),
            _ => federation.cloud.sender(),
        }
    }

    /// Fetches the model and opens the data.
    fn prepare(&self) {
        let (node, manifest, desk, later) =
            (Arc::clone(&self.node), Arc::clone(&self.manifest), Arc::clone(&self.desk), self.later());
        let coordinates = self.above.is_some();
        let edge = node.role() == Role::Edge;
        tokio::spawn(async move {
            let prepared = async {
                if edge && !coordinates {
                    let text = "the job has no [federation.edge], which says what edges do";
                    return Err(Failure::new(Code::Infeasible, text));
                }
                node.ensure_artefact(manifest.model).await?;
                let bytes = node.artefacts.get(manifest.model).await?;
                tokio::task::block_in_place(|| made(&node, &manifest, bytes, coordinates))
            };
            let event = match prepared.await {
                Ok((made, examples)) => {
                    *desk.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
                    MemberEvent::Prepared(Ok(examples))
                }
                Err(failure) => MemberEvent::Prepared(Err(failure.to_string())),
            };
            let _ = later.send(ToLower::Event(event)).await;
        });
    }

    /// Fetches the model of a task, and does it or has it done below.
    fn work(&mut self, work: Work) {
        let (node, desk, folder, later) =
            (Arc::clone(&self.node), Arc::clone(&self.desk), self.folder.clone(), self.later());
        let model = self.models.get(&work.version).copied().flatten();
        let (coordinates, sender) = (self.above.is_some(), self.sender());
        self.stop = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&self.stop);
        tokio::spawn(async move {
            let fetched = async {
                let Some(digest) = model else { return Ok(None) };
                node.ensure_artefact(digest).await?;
                Ok::<_, Failure>(Some(node.artefacts.get(digest).await?))
            };
            let done = match fetched.await {
                Ok(bytes) => {
                    // A thread of its own: training takes as long as it takes.
                    let node = Arc::clone(&node);
                    let doing = tokio::task::spawn_blocking(move || {
                        let mut desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
                        let Some(desk) = desk.as_mut() else { return Err(internal("the job isn't prepared")) };
                        let start = match &bytes {
                            None => desk.initial.clone(),
                            Some(bytes) => wire::decode(bytes, &desk.layout).map_err(internal)?,
                        };
                        if coordinates {
                            return Ok(Some(ToLower::Fetched { work, model: start }));
                        }
                        let update = desk.train(&node, &folder, &sender, work, &start, &stop)?;
                        Ok(update
                            .map(|update| ToLower::Event(MemberEvent::Worked { task: work.task, result: Ok(update) })))
                    });
                    doing.await.unwrap_or_else(|e| Err(internal(e)))
                }
                Err(failure) => Err(failure),
            };
            let message = match done {
                Ok(Some(message)) => message,
                // It was told to stop.
                Ok(None) => return,
                Err(failure) => {
                    let result = Err(failure.to_string());
                    ToLower::Event(MemberEvent::Worked { task: work.task, result })
                }
            };
            let _ = later.send(message).await;
        });
    }

    fn send(&self, update: Update) {
        let (folder, later, parent, job) = (self.folder.clone(), self.later(), self.parent.clone(), self.id);
        tokio::spawn(async move {
            let task = update.task;
            let sent = async {
                let parent = parent.ok_or_else(|| Failure::new(Code::Unreachable, "no parent has asked for it"))?;
                let bytes = folder.read(&folder.outgoing(task.0))?;
                let header = UpdateHeader {
                    job: job.to_bytes(),
                    task: task.0,
                    digest: update.digest.to_bytes(),
                    length: bytes.len() as u64,
                    report: Some(report(&update)),
                };
                parent.submit(header, bytes.into()).await
            };
            let event = match sent.await {
                Ok(verdict) => MemberEvent::Answered { task, verdict: verdict_of(&verdict) },
                Err(failure) => match failure.code() {
                    // It will never be taken.
                    Code::TooLarge | Code::NotFound => MemberEvent::Answered { task, verdict: Verdict::Unknown },
                    _ => MemberEvent::Unsent { task },
                },
            };
            let _ = later.send(ToLower::Event(event)).await;
        });
    }
}

/// Opens what a job needs on this node; the examples it learns from.
fn made(node: &Node, manifest: &JobManifest, model: Bytes, coordinates: bool) -> Result<(Desk, u64), Failure> {
    let job = &manifest.job;
    let model = Model::parse(model).map_err(internal)?;
    if coordinates {
        let blueprint = Blueprint::new(model, job).map_err(internal)?;
        let (layout, initial) = (blueprint.layout().clone(), blueprint.initial());
        return Ok((Desk { layout, initial, seed: job.seed, place: None }, 1));
    }
    let all = Datasets::of(&node.config().data).open(&job.data.train).map_err(|e| {
        let help = e.help().map_or(String::new(), |help| format!("; {help}"));
        Failure::new(Code::Infeasible, format!("{e}{help}"))
    })?;
    let mut share = Share::of(&all, job).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
    if let (true, Some(name)) = (manifest.federation().looks_at_ends(), &job.data.test)
        && let Some(other) = held_out(node, name)?
    {
        share.held_out = Some(other);
    }
    let place = Workplace::new(&node.engine, model, job, &node.config().load_options()).map_err(internal)?;
    for data in [&share.seen].into_iter().chain(&share.held_out) {
        place.check(data).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
    }
    let examples = share.seen.len() as u64;
    let layout = place.blueprint().layout().clone();
    let initial = place.blueprint().initial();
    Ok((Desk { layout, initial, seed: job.seed, place: Some((place, share)) }, examples))
}

/// A data set to look at models with, if the node has it.
fn held_out(node: &Node, name: &str) -> Result<Option<Dataset>, Failure> {
    let known = Datasets::of(&node.config().data);
    if known.record(name).is_err() {
        return Ok(None);
    }
    let all = known.open(name).map_err(internal)?;
    Ok(Some(if all.splits().contains(&"test") { all.named_split("test").map_err(internal)? } else { all }))
}

impl Desk {
    /// Does an end's task; `None` when it was told to stop.
    fn train(
        &mut self,
        node: &Node,
        folder: &Folder,
        sender: &Sender,
        work: Work,
        start: &Vectors,
        stop: &AtomicBool,
    ) -> Result<Option<Update>, Failure> {
        let Some((place, share)) = &mut self.place else { return Err(internal("this node doesn't train")) };
        let begun = Instant::now();
        let before = folder.load_kept()?;
        let mut kept = before.clone();
        let task = federated::Task { member: node.name(), round: work.round, start };
        let done = if work.look {
            let concluded = place.conclude(task, share, &kept, stop).map_err(internal)?;
            if let Some((_, Some(own))) = &concluded {
                folder.write(&folder.result(), &own.to_bytes().map_err(internal)?)?;
            }
            concluded.map(|(report, _)| Contribution { vectors: Vectors::new(), report })
        } else {
            place.work(task, share, &mut kept, stop).map_err(internal)?
        };
        let Some(mut contribution) = done else { return Ok(None) };
        // A device that is said to be slower is.
        std::thread::sleep(begun.elapsed().mul_f64((node.config().slowdown - 1.0).max(0.0)));
        contribution.report.seconds = begun.elapsed().as_secs_f64();
        self.hold(node, folder, sender, work, &contribution, (&before, kept)).map(Some)
    }

    /// Puts an update of this member on the disk.
    fn hold(
        &self,
        node: &Node,
        folder: &Folder,
        sender: &Sender,
        work: Work,
        contribution: &Contribution,
        (before, after): (&federated::Kept, federated::Kept),
    ) -> Result<Update, Failure> {
        let seed = federated::seed_of_update(self.seed, node.name(), work.task.0);
        let sent = sender.encode(&self.layout, &contribution.vectors, before, after, work.round, seed);
        let sent = sent.map_err(internal)?;
        let task = work.task;
        folder.write(&folder.outgoing(task.0), &sent.bytes)?;
        folder.save_kept(task.0, &sent.counted, &sent.refused)?;
        let digest = Digest(*blake3::hash(&sent.bytes).as_bytes());
        Ok(Update { task, digest, bytes: sent.bytes.len() as u64, report: contribution.report })
    }
}

fn report(update: &Update) -> WorkReport {
    let report = &update.report;
    WorkReport {
        examples: report.examples,
        steps: report.steps,
        effective_steps: report.effective_steps,
        loss: report.loss,
        accuracy: report.accuracy,
        seconds: report.seconds,
        bytes_up: report.bytes_up,
        bytes_down: report.bytes_down,
        held_out: report.held_out.map(|h| tierline_proto::v1::HeldOut {
            examples: h.examples,
            loss: h.loss,
            accuracy: h.accuracy,
        }),
    }
}
