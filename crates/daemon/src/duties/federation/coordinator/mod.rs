//! The side that coordinates: performs what a job's coordinator asks.

mod exchange;
mod members;
mod models;
mod set_up;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tierline_federate::{Aggregator, Contribution, HeldOut, Hop, Scoreboard, Vectors, wire};
use tierline_node::federation::{Action, Coordinator, Event, Phase, Record, Routes, Task, Verdict};
use tierline_proto::Digest;
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Empty, Failure, JobEvent, JobInfo, JobStanding, JobVerdict, UpdateHeader};
use tierline_train::data::Dataset;
use tierline_train::federated::{LocalTrainer, ParameterLayout, Tutor};
use tokio::sync::{broadcast, mpsc, oneshot};

use self::exchange::GossipExchange;
use super::classes::Classes;
use super::folder::Said;
use super::gossip::Met;
use super::messages::{self, internal};
use super::numbers::JobKey;
use super::participant::ToParticipant;
use super::{Folder, JobManifest, journal};
use crate::duties::federation::Jobs;
use crate::runtime::wait_until;

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
pub(super) enum ToCoordinator {
    ChildUp(String),
    ChildDown(String),
    /// What a child says of itself, or of a member below it.
    Stands {
        child: String,
        standing: JobStanding,
    },
    /// What would become of an update, and whether it is the child's to send.
    Would {
        child: String,
        header: UpdateHeader,
        answer: oneshot::Sender<Result<Option<JobVerdict>, Failure>>,
    },
    Submit {
        child: String,
        header: UpdateHeader,
        answer: oneshot::Sender<JobVerdict>,
    },
    /// An edge's task: rounds from this model.
    Begin {
        task: Task,
        model: Vectors,
        /// Whether ends only evaluate it.
        evaluate: bool,
    },
    /// How an edge's job numbers its classes.
    Named(Vec<String>),
    /// An edge has met its neighbours.
    Met(Met),
    /// Work that was begun here broke off.
    Broken(Failure),
    /// An edge's job is over.
    End,
    Info(oneshot::Sender<JobInfo>),
    Order(Order, oneshot::Sender<()>),
}

/// What a node is told to coordinate.
pub(super) struct CoordinatorSide {
    pub(super) jobs: Arc<Jobs>,
    pub(super) id: Digest,
    pub(super) manifest: Arc<JobManifest>,
    pub(super) hop: Hop,
    pub(super) folder: Folder,
    pub(super) feed: broadcast::Sender<JobEvent>,
    /// Of an edge: who is told when a task's rounds are done.
    pub(super) below: Option<mpsc::Sender<ToParticipant>>,
}

type Performed<'d> = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'd>>;

/// What a side holds once its model is here.
struct Coordination {
    side: CoordinatorSide,
    parameter_layout: ParameterLayout,
    coordinator: Coordinator,
    aggregator: Aggregator,
    /// Data held out here, and what looks at it.
    evaluator: Option<(LocalTrainer, Dataset)>,
    /// The cloud's, where models learn of public examples.
    tutor: Option<Tutor>,
    /// Rounds of which ends haven't said all.
    board: Scoreboard,
    /// Members that wait to hear what becomes of their updates, and the files
    /// of these.
    waiting: HashMap<(String, Task), (oneshot::Sender<JobVerdict>, PathBuf)>,
    /// Contributions that were checked and wait to be added.
    checked: HashMap<Task, Contribution>,
    /// Where members are, those behind edges too.
    routes: Routes,
    /// The work each member was told of last.
    told: BTreeMap<String, Task>,
    /// The model that each member holds, once it has what it was told of.
    holds: BTreeMap<String, u64>,
    /// Where members that gossip are reached.
    urls: BTreeMap<String, String>,
    /// Of an edge that meets its neighbours.
    exchange: Option<GossipExchange>,
    /// What members' next tasks begin with, where that isn't a model.
    said: BTreeMap<String, Said>,
    tells_apart: bool,
    /// How classes are numbered.
    classes: Classes,
    /// What members said whose classes the node above was asked for.
    held: BTreeMap<String, (String, JobStanding)>,
    /// Members that can't take part, and why.
    unable: BTreeMap<String, String>,
    bytes_up: u64,
    bytes_down: u64,
    /// The newest model, as it travels.
    artefact_bytes: u64,
    round_began: Instant,
    over: bool,
}

impl CoordinatorSide {
    /// Coordinates the job until it is over, or can't go on here.
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<ToCoordinator>) {
        let (jobs, id, name) = (Arc::clone(&self.jobs), self.id, self.manifest.name.clone());
        match self.coordinate(&mut inbox).await {
            Ok(true) => jobs.leave_job(id),
            // Nobody needs this side any more.
            Ok(false) => {}
            Err(failure) => jobs.job_failed(id, &name, &failure).await,
        }
    }

    /// Names the job among the node's numbers.
    fn metrics_key(&self) -> JobKey {
        (self.manifest.created_ms, self.id)
    }

    /// Whether the job is over; an end of the inbox comes before that.
    async fn coordinate(self, inbox: &mut mpsc::Receiver<ToCoordinator>) -> Result<bool, Failure> {
        let jobs = Arc::clone(&self.jobs);
        let mut coordination = self.set_up().await?;
        while !coordination.over {
            jobs.numbers.progress(coordination.side.metrics_key(), &coordination.coordinator.progress());
            let wake = coordination.coordinator.wake().map(|t| jobs.cx.clock.instant_of(t));
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => coordination.hear(message).await?,
                    None => return Ok(false),
                },
                () = wait_until(wake) => coordination.step(Event::Wake).await?,
            }
            if inbox.is_empty() {
                coordination.catch_up().await?;
            }
        }
        Ok(true)
    }
}

impl Coordination {
    fn jobs(&self) -> Arc<Jobs> {
        Arc::clone(&self.side.jobs)
    }

    /// Removes updates that are in a model, or in none.
    fn sweep(&self) {
        self.side.folder.sweep(|task| self.coordinator.needs(Task(task)));
    }

    /// Hears what found no room in the inbox.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        let jobs = self.jobs();
        let Some(sides) = jobs.get(self.side.id) else { return Ok(()) };
        let (evaluate, news) = sides.late.for_coordinator();
        if evaluate {
            self.look_for_children(&jobs).await?;
        }
        for message in news {
            self.hear(message).await?;
        }
        Ok(())
    }

    async fn look_for_children(&mut self, jobs: &Arc<Jobs>) -> Result<(), Failure> {
        let here: BTreeSet<String> = jobs.cx.children.names().into_iter().collect();
        for child in self.routes.children() {
            if !here.contains(&child) {
                self.hear(ToCoordinator::ChildDown(child)).await?;
            }
        }
        for child in here {
            self.hear(ToCoordinator::ChildUp(child)).await?;
        }
        Ok(())
    }

    fn tell_watchers(&self, kind: &str, json: &serde_json::Value) {
        // Nobody watching is the usual case.
        let _ = self.side.feed.send(JobEvent { kind: kind.to_owned(), json: json.to_string() });
    }

    async fn hear(&mut self, message: ToCoordinator) -> Result<(), Failure> {
        match message {
            ToCoordinator::ChildUp(child) => {
                if self.passes_on(&child) {
                    let join = messages::assignment(self.side.id, "", Want::Join(Empty {}));
                    self.jobs().cx.children.tell(&child, FEDERATION, &join);
                } else {
                    self.tell(&child).await;
                }
                Ok(())
            }
            ToCoordinator::ChildDown(child) => {
                for member in self.routes.lost(&child) {
                    self.step(Event::Lost { member }).await?;
                }
                Ok(())
            }
            ToCoordinator::Stands { child, standing } => self.stands(&child, standing).await,
            ToCoordinator::Would { child, header, answer } => {
                let member = messages::member(&child, &header.node);
                if !self.routes.speaks(&child, member) {
                    let _ = answer.send(Err(messages::stranger(&child, member)));
                    return Ok(());
                }
                let task = Task(header.task);
                let mut verdict = self.coordinator.would(member, task);
                if verdict.is_some() {
                    // Its task may be open though it is too late for it.
                    self.unwanted(member, task).await?;
                } else if let Some(reason) = self.too_long(&header) {
                    verdict = Some(Verdict::Refused { reason: reason.clone() });
                    self.step(Event::Unfit { member: member.to_owned(), task, reason }).await?;
                }
                let _ = answer.send(Ok(verdict.as_ref().map(messages::verdict)));
                Ok(())
            }
            ToCoordinator::Submit { child, header, answer } => {
                let member = messages::member(&child, &header.node).to_owned();
                // Its link may have gone meanwhile: it sends it again.
                if !self.routes.speaks(&child, &member) {
                    return Ok(());
                }
                self.submitted(member, header, answer).await
            }
            ToCoordinator::Named(names) => self.named(names).await,
            ToCoordinator::Met(met) => self.met(met).await,
            ToCoordinator::Broken(failure) => Err(self.side.jobs.fault(self.side.id, failure)),
            ToCoordinator::Begin { task, model, evaluate } => {
                let stretch = task.0 + 1;
                let rounds = if evaluate { 0 } else { self.side.hop.rounds };
                // Of one that is under way the model has moved on.
                if !self.coordinator.knows(stretch) {
                    self.cut_short().await?;
                    let version = self.aggregator.version() + 1;
                    self.aggregator.begin(version, &model).map_err(messages::of_round)?;
                    self.publish(version).await?;
                    self.round_began = Instant::now();
                }
                let version = self.aggregator.version();
                self.step(Event::Begin { version, rounds, evaluate, stretch }).await?;
                self.sweep();
                Ok(())
            }
            ToCoordinator::End => {
                self.exchange = None;
                self.step(Event::End).await?;
                self.clean().await
            }
            ToCoordinator::Info(answer) => {
                let _ = answer.send(self.info()?);
                Ok(())
            }
            ToCoordinator::Order(order, answer) => {
                match order {
                    Order::Pause => self.step(Event::Pause).await?,
                    Order::Resume => self.step(Event::Resume).await?,
                    Order::Cancel => {
                        let id = self.side.id;
                        self.keep_end().await?;
                        self.jobs().cx.state.with(move |state| state.end_job(id, "cancelled", "")).await?;
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
        let away = self.coordinator.away().into_iter().filter(|node| !self.unable.contains_key(*node));
        let away = away.map(|node| (node.to_owned(), "it can't be reached".to_owned()));
        let excluded = messages::listed(out.chain(self.unable.clone()).chain(away));
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let least = self.side.hop.clients.min;
        let waits_for = match self.coordinator.phase() {
            Phase::Gathering if progress.ready < least => {
                format!("{least} nodes that can take part; {} can", progress.ready)
            }
            _ => String::new(),
        };
        Ok(JobInfo {
            waits_for,
            notes: self.notes(),
            state: state.to_owned(),
            round: progress.round,
            rounds: self.side.manifest.federation().cloud.rounds,
            counted: number(progress.counted),
            goal: number(progress.goal),
            ready: number(progress.ready),
            members: number(progress.members),
            excluded,
            ..JobInfo::default()
        })
    }

    /// Keeps who takes part and who doesn't: the end leaves nobody.
    async fn keep_end(&mut self) -> Result<(), Failure> {
        let (id, kept) = (self.side.id, prost::Message::encode_to_vec(&self.info()?));
        self.jobs().cx.state.with(move |state| state.keep_end(id, &kept)).await
    }

    /// What the job's operator should know of it.
    fn notes(&self) -> Vec<String> {
        let (job, federation) = (&self.side.manifest.job, self.side.manifest.federation());
        if self.side.below.is_some() || self.evaluator.is_some() || federation.evaluates_at_ends() {
            return Vec::new();
        }
        let name = self.jobs().cx.me.name().to_owned();
        let set = match &job.data.test {
            Some(test) => format!("no data set `{test}`"),
            None => format!("no data set `{}` with a part for tests", job.data.train),
        };
        let add = job.data.test.as_ref().unwrap_or(&job.data.train);
        vec![format!(
            "nothing is held out, so no accuracy is known: {name} has {set} (before the job begins: `tierline data add \
             {add} PATH` there)"
        )]
    }

    async fn step(&mut self, event: Event) -> Result<(), Failure> {
        let actions = self.coordinator.step(self.side.jobs.cx.clock.now(), event);
        self.perform(actions).await
    }

    /// Boxed, since performing an action may lead to others.
    fn perform(&mut self, actions: Vec<Action>) -> Performed<'_> {
        Box::pin(self.perform_all(actions))
    }

    async fn perform_all(&mut self, actions: Vec<Action>) -> Result<(), Failure> {
        // All records of a step come first, in one transaction.
        let is_record = |action: &Action| matches!(action, Action::Keep(_));
        let (records, rest): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_record);
        let records = records.into_iter().filter_map(|action| match action {
            Action::Keep(record) => Some(record),
            _ => None,
        });
        let records: Vec<Record> = records.collect();
        // Nobody works with numbers that a crash could change.
        if !self.classes.decided && records.iter().any(|record| matches!(record, Record::Asked { .. })) {
            self.classes.decide();
            self.side.folder.save_classes(&self.classes.names)?;
        }
        journal::write(&self.jobs(), self.side.id, &records).await?;
        let mut made = None;
        for action in rest {
            made = self.act(action).await?.or(made);
        }
        // Only now: what the rest of the actions say is of before.
        if let Some(event) = made {
            self.step(event).await?;
            self.sweep();
        }
        Ok(())
    }

    async fn act(&mut self, action: Action) -> Result<Option<Event>, Failure> {
        match action {
            // Written before.
            Action::Keep(_) => {}
            Action::Tell { member } => self.tell(&member).await,
            Action::Answer { member, task, verdict } => {
                self.jobs().numbers.answered(self.side.metrics_key(), &verdict);
                // Only who was asked for its bytes has brought any: the task
                // may be another member's, whose update counts.
                let Some((answer, file)) = self.waiting.remove(&(member, task)) else { return Ok(None) };
                if verdict != Verdict::Counted {
                    self.checked.remove(&task);
                    self.side.folder.remove(&[file]);
                }
                // A member that is gone asks again.
                let _ = answer.send(messages::verdict(&verdict));
            }
            Action::Add { member, update, version, staleness } => {
                let checked = self.checked.remove(&update.task);
                if checked.is_none() {
                    // From before a restart, as is what it took to bring it.
                    self.bytes_up += update.bytes + update.report.bytes_up;
                    self.bytes_down += update.report.bytes_down;
                }
                tokio::task::block_in_place(|| {
                    let contribution = match checked {
                        Some(contribution) => contribution,
                        None => {
                            let file = self.side.folder.incoming(update.task.0, &update.digest.0);
                            let layout =
                                self.aggregator.layout().of_examples(update.report.examples).map_err(internal)?;
                            let vectors = wire::decode_update(&self.side.folder.read(&file)?, &layout);
                            Contribution { vectors: vectors.map_err(internal)?, report: update.report }
                        }
                    };
                    // Those of an older model would teach what was known then.
                    if let Some(tutor) = self.tutor.as_mut().filter(|_| staleness == 0) {
                        tutor.hear(&member, self.aggregator.held(), &contribution).map_err(internal)?;
                    }
                    self.aggregator.add(contribution, version, staleness).map_err(messages::of_round)
                })?;
            }
            Action::Make { version, counted, members, .. } if self.meets().is_some() => {
                self.begin_exchange(version, &counted, members).await?;
            }
            Action::Make { version, round, counted, members, last } => {
                return self.make(version, round, &counted, members, last).await.map(Some);
            }
            Action::Looked { version, counted } => {
                if let Some(known) = self.board.evaluated(HeldOut::together(&counted)) {
                    self.tell_of(&known).await?;
                }
                return Ok(Some(Event::Made { version, enough: false }));
            }
            Action::Done { stretch, version, counted } => self.done(stretch, version, &counted).await?,
            Action::Excluded { member, reason } => {
                self.side.folder.save_left_out(&member, &reason)?;
                let json = serde_json::json!({ "node": member, "reason": reason });
                let text = format!("{member} is left out of job {}: {reason}", self.side.manifest.name);
                self.jobs().cx.events.record("job", text, &json);
                self.tell_watchers("excluded", &json);
            }
        }
        Ok(None)
    }
}
