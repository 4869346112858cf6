//! The side that coordinates: performs what a job's coordinator asks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tierline_federate::aggregate::{self, mean_of};
use tierline_federate::{
    Contribution, Counted, Desk, HeldOut, Hop, Report, RoundScores, Scoreboard, Server, Vectors, desk, wire,
};
use tierline_graph::Model;
use tierline_node::federation::{
    Action, Assignment, Coordinator, Event, Phase, Standing, Task, Terms, Update, Verdict,
};
use tierline_proto::Digest;
use tierline_proto::v1::{
    Code, Empty, Failure, JobAssignment, JobEvent, JobInfo, JobMember, JobVerdict, UpdateHeader, WorkOrder, WorkReport,
    job_assignment, parent_message,
};
use tierline_train::Scores;
use tierline_train::data::{Dataset, seed_of};
use tierline_train::federated::{Blueprint, Workplace};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::lower::ToLower;
use super::{Folder, JobManifest, verdict_message};
use crate::daemon::{Node, wait_until};
use crate::datasets::Datasets;
use crate::store::jobs::Side;

/// What an operator wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// No new work.
    Pause,
    /// Work again.
    Resume,
    /// The end.
    Cancel,
}

/// What comes to this side.
pub(super) enum ToUpper {
    ChildUp(String),
    ChildDown(String),
    Stands(String, Standing),
    Would {
        member: String,
        task: u64,
        answer: oneshot::Sender<Option<JobVerdict>>,
    },
    Submit {
        member: String,
        header: UpdateHeader,
        answer: oneshot::Sender<JobVerdict>,
    },
    /// An edge's task: rounds from this model.
    Begin {
        task: Task,
        model: Vectors,
        /// Whether ends only look at it.
        look: bool,
    },
    /// An edge's job is over.
    End,
    Info(oneshot::Sender<JobInfo>),
    Order(Order, oneshot::Sender<()>),
}

pub(super) struct Upper {
    node: Arc<Node>,
    id: Digest,
    manifest: Arc<JobManifest>,
    hop: Hop,
    folder: Folder,
    feed: broadcast::Sender<JobEvent>,
    /// Of an edge: who is told when a task's rounds are done.
    below: Option<mpsc::Sender<ToLower>>,
}

type Performed<'d> = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'd>>;

/// What a side holds once its model is here.
struct Desks {
    upper: Upper,
    blueprint: Blueprint,
    coordinator: Coordinator,
    desk: Desk,
    /// Data held out here, and what looks at it.
    judge: Option<(Workplace, Dataset)>,
    /// Rounds of which ends haven't said all.
    board: Scoreboard,
    waiting: HashMap<(String, Task), oneshot::Sender<JobVerdict>>,
    /// Contributions that were checked and wait to be added.
    checked: HashMap<Task, Contribution>,
    /// Files of updates that count for the model to come.
    files: Vec<PathBuf>,
    /// And of those that counted for the model just made.
    spent: Vec<PathBuf>,
    /// The work each member was told of last.
    told: BTreeMap<String, Task>,
    /// Members that can't take part, and why.
    unable: BTreeMap<String, String>,
    bytes_up: u64,
    bytes_down: u64,
    /// The newest model, as it travels.
    artefact_bytes: u64,
    round_began: Instant,
    over: bool,
}

impl Upper {
    pub(super) fn new(
        node: Arc<Node>,
        id: Digest,
        manifest: Arc<JobManifest>,
        hop: Hop,
        folder: Folder,
        feed: broadcast::Sender<JobEvent>,
        below: Option<mpsc::Sender<ToLower>>,
    ) -> Self {
        Self { node, id, manifest, hop, folder, feed, below }
    }

    pub(super) async fn run(self, mut inbox: mpsc::Receiver<ToUpper>) {
        let (node, id, name) = (Arc::clone(&self.node), self.id, self.manifest.name.clone());
        let mut desks = match self.set_up().await {
            Ok(desks) => desks,
            Err(failure) => {
                node.events.record(
                    "job",
                    format!("job {name} can't be coordinated: {failure}"),
                    &serde_json::json!({ "job": id.to_string() }),
                );
                return;
            }
        };
        while !desks.over {
            let wake = desks.coordinator.wake().map(|t| node.instant_of(t));
            let done = tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => desks.hear(message).await,
                    None => return,
                },
                () = wait_until(wake) => desks.step(Event::Wake).await,
            };
            if let Err(failure) = done {
                desks.fail(&failure).await;
                return;
            }
        }
        node.leave_job(id);
    }

    /// Takes up the job where its journal ends.
    async fn set_up(self) -> Result<Desks, Failure> {
        let node = Arc::clone(&self.node);
        node.ensure_artefact(self.manifest.model).await?;
        let model = node.artefacts.get(self.manifest.model).await?;
        let model_bytes = model.len() as u64;
        let blueprint = tokio::task::block_in_place(|| {
            let model = Model::parse(model).map_err(internal)?;
            Blueprint::new(model, &self.manifest.job).map_err(internal)
        })?;
        let journal = node.state.journal_of(self.id, Side::Upper)?;
        let journal =
            journal.iter().map(|r| serde_json::from_str(r).map_err(internal)).collect::<Result<Vec<_>, _>>()?;
        let behaviour = self.hop.strategy.behaviour();
        let terms = Terms {
            clients: self.hop.clients.clone(),
            timing: behaviour.timing(),
            seed: seed_of(&[self.manifest.job.seed, u64::from(self.below.is_some())]),
        };
        let (coordinator, actions) = Coordinator::restored(terms, &journal, node.now());
        let channels = self.hop.strategy.channels();
        let initial: Vectors = blueprint.initial().into_iter().filter(|(c, _)| channels.contains(c)).collect();
        let version = coordinator.version();
        let server = Server { model: initial, kept: self.folder.load_server(version)? };
        let desk = Desk::new(blueprint.layout().clone(), &self.hop, version, server);
        let mut desks = Desks {
            judge: None,
            board: Scoreboard::default(),
            blueprint,
            coordinator,
            desk,
            waiting: HashMap::new(),
            checked: HashMap::new(),
            files: Vec::new(),
            spent: Vec::new(),
            told: BTreeMap::new(),
            unable: BTreeMap::new(),
            bytes_up: 0,
            bytes_down: 0,
            artefact_bytes: model_bytes,
            round_began: Instant::now(),
            over: false,
            upper: self,
        };
        if version > 0 {
            let model = desks.load(version).await?;
            desks.desk.replace(version, &model);
            if desks.desk.looks_back() {
                for past in desks.coordinator.versions_in_use() {
                    if past > 0 {
                        let model = desks.load(past).await?;
                        desks.desk.remember(past, model);
                    }
                }
            }
        }
        if desks.upper.below.is_none() {
            desks.judge = desks.judge()?;
            desks.board = Scoreboard::behind(desks.upper.folder.load_round()?);
        }
        desks.perform(actions).await?;
        if desks.upper.below.is_none() {
            let (rounds, look) = (desks.upper.hop.rounds, desks.upper.manifest.federation().looks_at_ends());
            desks.step(Event::Begin { version: 0, rounds, look, stretch: 1 }).await?;
        }
        Ok(desks)
    }
}

impl Desks {
    fn node(&self) -> Arc<Node> {
        Arc::clone(&self.upper.node)
    }

    /// The data held out for the job, if this node has it.
    fn judge(&self) -> Result<Option<(Workplace, Dataset)>, Failure> {
        let node = self.node();
        let job = &self.upper.manifest.job;
        if self.upper.manifest.federation().looks_at_ends() {
            return Ok(None);
        }
        let known = Datasets::of(&node.config().data);
        let (name, own) = match &job.data.test {
            Some(name) => (name, true),
            None => (&job.data.train, false),
        };
        if known.record(name).is_err() {
            return Ok(None);
        }
        let prepare = || {
            let all = known.open(name).map_err(internal)?;
            let held_out = match all.splits().contains(&"test") {
                true => all.named_split("test").map_err(internal)?,
                false if own => all,
                false => return Ok(None),
            };
            let model = self.blueprint.export(&self.blueprint.initial()).map_err(internal)?;
            let place = Workplace::new(&node.engine, model, job, &node.config().load_options()).map_err(internal)?;
            place.check(&held_out).map_err(internal)?;
            Ok(Some((place, held_out)))
        };
        tokio::task::block_in_place(prepare)
    }

    /// The job can't go on: said, and kept.
    async fn fail(&mut self, failure: &Failure) {
        let node = self.node();
        let json = serde_json::json!({ "job": self.upper.id.to_string() });
        node.events.record("job", format!("job {} stopped: {failure}", self.upper.manifest.name), &json);
        if failure.code() == Code::StorageFull {
            // The journal has all of it; nothing is lost by beginning again.
            self.node().resume_later(self.upper.id);
            return;
        }
        // The database may be what failed.
        let _ = node.state.end_job(self.upper.id, "failed", &failure.to_string());
        self.tell_watchers("failed", &serde_json::json!({ "reason": failure.to_string() }));
        let _ = self.step(Event::End).await;
        node.leave_job(self.upper.id);
    }

    fn tell_watchers(&self, kind: &str, json: &serde_json::Value) {
        // Nobody watching is the usual case.
        let _ = self.upper.feed.send(JobEvent { kind: kind.to_owned(), json: json.to_string() });
    }

    async fn hear(&mut self, message: ToUpper) -> Result<(), Failure> {
        match message {
            ToUpper::ChildUp(member) => {
                self.tell(&member);
                Ok(())
            }
            ToUpper::ChildDown(member) => self.step(Event::Lost { member }).await,
            ToUpper::Stands(member, standing) => {
                match &standing {
                    Standing::Unable { reason } => {
                        if self.unable.insert(member.clone(), reason.clone()).as_ref() != Some(reason) {
                            let json = serde_json::json!({ "node": member, "reason": reason });
                            self.tell_watchers("unable", &json);
                        }
                    }
                    _ => drop(self.unable.remove(&member)),
                }
                self.step(Event::Member { member, standing }).await
            }
            ToUpper::Would { member, task, answer } => {
                let task = Task(task);
                let wanted = self.coordinator.wants(&member, task);
                let verdict = (!wanted).then(|| verdict_message(&self.coordinator.would(&member, task)));
                if !wanted {
                    // Its task may be open though it is too late for it.
                    self.unwanted(&member, task).await?;
                }
                let _ = answer.send(verdict);
                Ok(())
            }
            ToUpper::Submit { member, header, answer } => self.submitted(member, header, answer).await,
            ToUpper::Begin { task, model, look } => {
                let version = self.desk.version() + 1;
                let stretch = task.0 + 1;
                let rounds = if look { 0 } else { self.upper.hop.rounds };
                // Of one that is under way the model has moved on.
                if !self.coordinator.knows(stretch) {
                    self.desk.replace(version, &model);
                    self.publish(version).await?;
                    self.round_began = Instant::now();
                }
                self.step(Event::Begin { version, rounds, look, stretch }).await
            }
            ToUpper::End => {
                self.step(Event::End).await?;
                self.clean().await
            }
            ToUpper::Info(answer) => {
                let _ = answer.send(self.info()?);
                Ok(())
            }
            ToUpper::Order(order, answer) => {
                match order {
                    Order::Pause => self.step(Event::Pause).await?,
                    Order::Resume => self.step(Event::Resume).await?,
                    Order::Cancel => {
                        self.node().state.end_job(self.upper.id, "cancelled", "")?;
                        self.step(Event::End).await?;
                        self.tell_watchers("cancelled", &serde_json::json!({ "reason": "" }));
                        self.clean().await?;
                    }
                }
                let _ = answer.send(());
                Ok(())
            }
        }
    }

    /// Lets the coordinator know of an answer that it doesn't want, so that its
    /// task is not open for ever.
    async fn unwanted(&mut self, member: &str, task: Task) -> Result<(), Failure> {
        let update = Update { task, digest: Digest([0; 32]), bytes: 0, report: Report::default() };
        self.step(Event::Arrived { member: member.to_owned(), update }).await
    }

    fn info(&self) -> Result<JobInfo, Failure> {
        let progress = self.coordinator.progress();
        let state = match self.coordinator.phase() {
            Phase::Idle => "idle",
            Phase::Gathering => "gathering",
            Phase::Working => "working",
            Phase::Making => "making",
            Phase::Paused => "paused",
            Phase::Ended => "over",
        };
        let out = self.coordinator.excluded().into_iter().map(|(n, r)| (n.to_owned(), r.to_owned()));
        let excluded = out.chain(self.unable.clone()).map(|(node, reason)| JobMember { node, reason });
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(JobInfo {
            state: state.to_owned(),
            round: progress.round,
            rounds: self.upper.manifest.federation().cloud.rounds,
            counted: number(progress.counted),
            goal: number(progress.goal),
            ready: number(progress.ready),
            members: number(progress.members),
            excluded: excluded.collect(),
            ..JobInfo::default()
        })
    }

    async fn submitted(
        &mut self,
        member: String,
        header: UpdateHeader,
        answer: oneshot::Sender<JobVerdict>,
    ) -> Result<(), Failure> {
        let task = Task(header.task);
        let report = report_of(header.report.unwrap_or_default());
        let bytes = self.upper.folder.read(&self.upper.folder.incoming(task.0))?;
        let layout = self.desk.layout();
        let look = self.coordinator.is_look(task);
        let checked = tokio::task::block_in_place(|| {
            let vectors = wire::decode(&bytes, layout)?;
            let contribution = Contribution { vectors, report };
            let checked = if look { aggregate::check_look(&contribution) } else { self.desk.check(&contribution) };
            checked.map(|()| contribution)
        });
        self.waiting.insert((member.clone(), task), answer);
        let event = match checked {
            Ok(contribution) => {
                let digest = Digest::try_from(&header.digest).unwrap_or(Digest([0; 32]));
                self.bytes_up += header.length + report.bytes_up;
                self.bytes_down += report.bytes_down;
                if look {
                    // All that it says is in the journal.
                    self.upper.folder.remove(&[self.upper.folder.incoming(task.0)]);
                } else {
                    self.checked.insert(task, contribution);
                }
                Event::Arrived { member, update: Update { task, digest, bytes: header.length, report } }
            }
            Err(error) => {
                self.upper.folder.remove(&[self.upper.folder.incoming(task.0)]);
                Event::Unfit { member, task, reason: error.to_string() }
            }
        };
        self.step(event).await
    }

    async fn step(&mut self, event: Event) -> Result<(), Failure> {
        let actions = self.coordinator.step(self.upper.node.now(), event);
        self.perform(actions).await
    }

    /// Boxed, since performing an action may lead to others.
    fn perform(&mut self, actions: Vec<Action>) -> Performed<'_> {
        Box::pin(self.perform_all(actions))
    }

    async fn perform_all(&mut self, actions: Vec<Action>) -> Result<(), Failure> {
        let mut actions = VecDeque::from(actions);
        // All records of a step in one transaction.
        let mut records = Vec::new();
        while let Some(Action::Keep(record)) = actions.front() {
            records.push(serde_json::to_string(record).map_err(internal)?);
            actions.pop_front();
        }
        if !records.is_empty() {
            let node = self.node();
            tokio::task::block_in_place(|| node.state.journal(self.upper.id, Side::Upper, &records))?;
        }
        while let Some(action) = actions.pop_front() {
            let more = self.act(action).await?;
            // What a made model leads to comes behind what was asked before.
            if let Some(event) = more {
                let further = self.coordinator.step(self.upper.node.now(), event);
                let spent = std::mem::take(&mut self.spent);
                self.perform(actions.drain(..).collect()).await?;
                self.perform(further).await?;
                // Only now is the model in the journal, and they are not needed.
                self.upper.folder.remove(&spent);
            }
        }
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<Option<Event>, Failure> {
        match action {
            // Comes first, and was done above.
            Action::Keep(_) => {}
            Action::Tell { member } => self.tell(&member),
            Action::Answer { member, task, verdict } => {
                if verdict != Verdict::Counted {
                    self.checked.remove(&task);
                    self.upper.folder.remove(&[self.upper.folder.incoming(task.0)]);
                }
                if let Some(answer) = self.waiting.remove(&(member, task)) {
                    // A member that is gone asks again.
                    let _ = answer.send(verdict_message(&verdict));
                }
            }
            Action::Add { update, version, staleness, .. } => {
                let file = self.upper.folder.incoming(update.task.0);
                let contribution = match self.checked.remove(&update.task) {
                    Some(contribution) => contribution,
                    // From before a restart.
                    None => {
                        let vectors = wire::decode(&self.upper.folder.read(&file)?, self.desk.layout());
                        Contribution { vectors: vectors.map_err(internal)?, report: update.report }
                    }
                };
                tokio::task::block_in_place(|| self.desk.add(contribution, version, staleness)).map_err(internal)?;
                self.files.push(file);
            }
            Action::Make { version, round, counted, members, last } => {
                return self.make(version, round, &counted, members, last).await.map(Some);
            }
            Action::Looked { version, counted } => {
                if let Some(known) = self.board.looked(HeldOut::together(&counted)) {
                    self.tell_of(&known)?;
                }
                return Ok(Some(Event::Made { version, enough: false }));
            }
            Action::Done { stretch, version, counted } => self.done(stretch, version, &counted).await?,
            Action::Excluded { member, reason } => {
                let json = serde_json::json!({ "node": member, "reason": reason });
                let text = format!("{member} is left out of job {}: {reason}", self.upper.manifest.name);
                self.node().events.record("job", text, &json);
                self.tell_watchers("excluded", &json);
            }
        }
        Ok(None)
    }

    /// Makes a model, looks at it, and keeps it.
    async fn make(
        &mut self,
        version: u64,
        round: u64,
        counted: &[Counted],
        members: usize,
        last: bool,
    ) -> Result<Event, Failure> {
        tokio::task::block_in_place(|| self.desk.make(counted, members)).map_err(internal)?;
        self.publish(version).await?;
        self.spent = std::mem::take(&mut self.files);
        let mut enough = false;
        if self.upper.below.is_none() {
            let federation = self.upper.manifest.federation();
            let number = round + 1;
            let look = last || number.is_multiple_of(federation.evaluate_every.max(1));
            let looked: Option<Scores> = match self.judge.as_mut().filter(|_| look) {
                Some((place, data)) => {
                    let model = &self.desk.server().model;
                    Some(tokio::task::block_in_place(|| place.evaluate(model, data)).map_err(internal)?)
                }
                None => None,
            };
            let scores = RoundScores {
                round: number,
                accuracy: looked.and_then(|s| s.accuracy),
                loss: looked.map(|s| s.loss),
                train_loss: mean_of(counted, |report| report.loss),
                bytes_up: std::mem::take(&mut self.bytes_up),
                bytes_down: std::mem::take(&mut self.bytes_down),
                seconds: std::mem::replace(&mut self.round_began, Instant::now()).elapsed().as_secs_f64(),
                clients: counted.len(),
            };
            let at_ends = federation.looks_at_ends();
            let known = self.board.ended(scores.clone(), HeldOut::together(counted), at_ends);
            if let Some(known) = known {
                enough = federation.stop.accuracy.zip(known.accuracy).is_some_and(|(goal, found)| found >= goal);
                self.tell_of(&known)?;
            }
            if at_ends {
                self.upper.folder.save_round(&scores)?;
            }
        }
        Ok(Event::Made { version, enough })
    }

    /// A round of which all is known now.
    fn tell_of(&self, round: &RoundScores) -> Result<(), Failure> {
        let json = serde_json::to_value(round).map_err(internal)?;
        self.upper.node.state.add_round(self.upper.id, round.round, &json.to_string())?;
        self.tell_watchers("round", &json);
        Ok(())
    }

    /// Keeps the desk's model under a number, for members to fetch.
    async fn publish(&mut self, version: u64) -> Result<(), Failure> {
        let node = self.node();
        let bytes = wire::encode(&self.desk.server().model, self.desk.layout()).map_err(internal)?;
        self.artefact_bytes = bytes.len() as u64;
        let digest = node.artefacts.put(Bytes::from(bytes)).await?;
        self.upper.folder.save_server(version, &self.desk.server().kept)?;
        node.state.set_version(self.upper.id, version, digest)?;
        let mut needed: Vec<u64> = self.coordinator.versions_in_use().into_iter().collect();
        needed.extend([version, self.base().unwrap_or(version)]);
        self.desk.retain(&needed.iter().copied().collect());
        for gone in node.state.forget_versions(self.upper.id, &needed)? {
            node.artefacts.remove(gone).await?;
        }
        Ok(())
    }

    /// Of an edge: the model that its task began with.
    fn base(&self) -> Option<u64> {
        self.upper.below.as_ref().map(|_| self.coordinator.base())
    }

    async fn load(&mut self, version: u64) -> Result<Vectors, Failure> {
        let node = self.node();
        let missing = || Failure::new(Code::Corrupt, format!("model {version} of the job is gone"));
        let digest = node.state.version(self.upper.id, version)?.ok_or_else(missing)?;
        let bytes = node.artefacts.get(digest).await?;
        wire::decode(&bytes, self.desk.layout()).map_err(internal)
    }

    /// Tells a member what is wanted of it now.
    fn tell(&mut self, member: &str) {
        use job_assignment::Want;
        let node = self.node();
        let want = match self.coordinator.assignment(member) {
            Assignment::Wait => Want::Wait(Empty {}),
            Assignment::Over { .. } => Want::Over(Empty {}),
            Assignment::Out { reason } => Want::Out(Failure::new(Code::Forbidden, reason)),
            Assignment::Work { task, round, version, look } => {
                let model = node.state.version(self.upper.id, version).ok().flatten();
                if self.told.insert(member.to_owned(), task) != Some(task) {
                    self.bytes_down += self.artefact_bytes;
                }
                let model = model.map(Digest::to_bytes).unwrap_or_default();
                Want::Work(WorkOrder { task: task.0, round, version, model, look })
            }
        };
        let assignment = JobAssignment { job: self.upper.id.to_bytes(), want: Some(want) };
        node.children.tell(member, parent_message::Body::Assignment(assignment));
    }

    /// All rounds of a stretch are done: the cloud's job, or an edge's task.
    async fn done(&mut self, stretch: u64, version: u64, counted: &[Counted]) -> Result<(), Failure> {
        let node = self.node();
        if let Some(below) = self.upper.below.clone() {
            let base = match self.coordinator.base() {
                0 => self.blueprint.initial(),
                base => self.load(base).await?,
            };
            let channels = self.upper.manifest.federation().cloud.strategy.channels();
            let vectors = desk::change(&base, &self.desk.server().model, &channels);
            let mut report = Report::together(counted);
            report.bytes_up += std::mem::take(&mut self.bytes_up);
            report.bytes_down += std::mem::take(&mut self.bytes_down);
            report.seconds = self.round_began.elapsed().as_secs_f64();
            let done = ToLower::Gathered { task: Task(stretch - 1), contribution: Contribution { vectors, report } };
            let _ = below.send(done).await;
            return Ok(());
        }
        let model = tokio::task::block_in_place(|| {
            let model = self.blueprint.export(&self.desk.server().model).map_err(internal)?;
            model.to_bytes().map_err(internal)
        })?;
        self.upper.folder.write(&self.upper.folder.result(), &model)?;
        node.state.end_job(self.upper.id, "done", "")?;
        let json = serde_json::json!({ "version": version });
        node.events.record("job", format!("job {} is done", self.upper.manifest.name), &json);
        self.tell_watchers("done", &json);
        self.step(Event::End).await?;
        self.clean().await
    }

    /// Nothing but the result is kept of a job that is over.
    async fn clean(&mut self) -> Result<(), Failure> {
        self.over = true;
        let node = self.node();
        self.upper.folder.clear();
        for gone in node.state.forget_versions(self.upper.id, &[])? {
            node.artefacts.remove(gone).await?;
        }
        Ok(())
    }
}

fn report_of(message: WorkReport) -> Report {
    Report {
        examples: message.examples,
        steps: message.steps,
        effective_steps: message.effective_steps,
        loss: message.loss,
        accuracy: message.accuracy,
        seconds: message.seconds,
        bytes_up: message.bytes_up,
        bytes_down: message.bytes_down,
        held_out: message.held_out.map(|h| HeldOut { examples: h.examples, loss: h.loss, accuracy: h.accuracy }),
    }
}

pub(super) fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, error.to_string())
}
