//! The side that takes part: performs what a job's participant asks.

mod finish;
mod start;
mod workspace;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tierline_engine::Stop;
use tierline_federate::{Contribution, Sender, Vectors, wire};
use tierline_node::Rng;
use tierline_node::federation::home::Change;
use tierline_node::federation::{
    Assignment, Home, MemberAction, MemberEvent, MemberRecord, Participant, Standing, Task, Update, Verdict, Work,
};
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{ClassNames, Code, Failure, JobStanding};
use tierline_proto::{Digest, Role};
use tierline_train::data::Others;
use tokio::sync::mpsc;

use self::workspace::Workspace;
use super::classes::{self, Asked};
use super::coordinator::ToCoordinator;
use super::messages::{Start, internal};
use super::{AGAIN, Folder, INBOX_MAX, JobManifest, data, gossip, journal, may_pass, messages, sending};
use crate::duties::federation::Jobs;
use crate::net::Uplink;
use crate::runtime::tasks::TaskHandle as Running;
use crate::runtime::wait_until;
use tierline_store::jobs::Side;

/// Between two looks for data sets that this node lacked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What comes to this side.
pub(super) enum ToParticipant {
    /// A parent says what it wants.
    Assigned { uplink: Arc<Uplink>, want: Want, classes: Option<ClassNames> },
    /// A parent can be reached, or can't any more.
    Parent { uplink: Arc<Uplink>, up: bool },
    /// Classes that data sets name, here or below.
    Names(Vec<String>),
    /// What was begun here has come to something.
    Event(MemberEvent),
    /// An end that was away at the end has a model of its own now.
    Concluded,
    /// Work that was begun here broke off.
    Broken(Failure),
    /// The model of a task is here: an edge's rounds begin.
    Fetched { work: Work, model: Vectors },
    /// An edge's rounds are done.
    Gathered { task: Task, contribution: Contribution },
}

/// What a node is told to do its part of a job.
pub(super) struct ParticipantSide {
    pub(super) jobs: Arc<Jobs>,
    pub(super) id: Digest,
    pub(super) manifest: Arc<JobManifest>,
    pub(super) folder: Folder,
    /// Of an edge: the side that coordinates.
    pub(super) above: Option<mpsc::Sender<ToCoordinator>>,
}

/// The side while it runs.
struct Member {
    side: ParticipantSide,
    participant: Participant,
    rng: Rng,
    /// The parent that it answers to.
    home: Home,
    /// Where the model that was named last is.
    start: Start,
    /// The parent's model that is here, by its number.
    holds: Arc<AtomicU64>,
    workspace: Arc<Mutex<Option<Workspace>>>,
    /// How the job numbers the classes that are named here.
    asked: Asked,
    /// Tells the task under way to stop.
    stop: Stop,
    /// Tasks under way, and those that were told to stop.
    at_work: Vec<Running<()>>,
    /// Its own door, for what it begins.
    door: mpsc::Sender<ToParticipant>,
    over: bool,
}

impl ParticipantSide {
    /// Does this node's part until the job is over, or can't go on here.
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<ToParticipant>) {
        let (jobs, id, name) = (Arc::clone(&self.jobs), self.id, self.manifest.name.clone());
        match self.work_on(&mut inbox).await {
            Ok(true) => jobs.leave_job(id),
            // Nobody needs this side any more.
            Ok(false) => {}
            Err(failure) => jobs.job_failed(id, &name, &failure).await,
        }
    }

    /// Whether the job is over; an end of the inbox comes before that.
    async fn work_on(self, inbox: &mut mpsc::Receiver<ToParticipant>) -> Result<bool, Failure> {
        let journal = journal::read(&self.jobs, self.id).await?;
        let (participant, first) = Participant::restored(journal);
        let asked = Asked::knowing(self.folder.load_classes()?.unwrap_or_default());
        let (door, mut own) = mpsc::channel(INBOX_MAX);
        let mut member = Member {
            side: self,
            participant,
            rng: Rng::new(),
            home: Home::default(),
            start: Start::default(),
            holds: Arc::default(),
            workspace: Arc::default(),
            asked,
            stop: Stop::asked(),
            at_work: Vec::new(),
            door,
            over: false,
        };
        member.holds.store(start::newest(&member.side.jobs, member.side.id).await?.0, Ordering::Relaxed);
        member.perform(first).await?;
        while !member.over {
            let wake = member.participant.wake().into_iter().chain(member.home.wake()).min();
            let wake = wake.map(|t| member.side.jobs.cx.clock.instant_of(t));
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => member.hear(message).await?,
                    None => return Ok(false),
                },
                Some(message) = own.recv() => member.hear(message).await?,
                () = wait_until(wake) => member.wake().await?,
            }
            if inbox.is_empty() {
                member.catch_up().await?;
            }
        }
        Ok(true)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Whoever takes the job up again begins its work anew.
        self.stop.pull();
    }
}

impl Member {
    /// Hears what found no room in the inbox.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        let jobs = Arc::clone(&self.side.jobs);
        let Some(sides) = jobs.get(self.side.id) else { return Ok(()) };
        for message in sides.late.for_participant(&jobs) {
            self.hear(message).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: ToParticipant) -> Result<(), Failure> {
        match message {
            ToParticipant::Assigned { uplink, want, classes } => {
                let (own, change) = self.home.asked(uplink.peer);
                self.changed(change).await?;
                if !own {
                    return Ok(());
                }
                let Some((assignment, start)) = messages::assignment_of(want)? else { return Ok(()) };
                if let Assignment::Work { task, round, .. } = assignment {
                    if !start.neighbours.is_empty() {
                        gossip::remember(&self.side.folder, task, round, &start.neighbours)?;
                    }
                    self.start = start;
                }
                if self.is_named(&assignment, classes).await? {
                    self.step(MemberEvent::Assigned(assignment)).await?;
                }
                Ok(())
            }
            ToParticipant::Parent { uplink, up } => {
                let now = self.side.jobs.cx.clock.now();
                let change = if up { self.home.up(uplink.peer) } else { self.home.down(now, uplink.peer) };
                self.changed(change).await
            }
            ToParticipant::Names(names) => {
                if self.asked.want(&names) {
                    self.report(&self.participant.standing());
                }
                Ok(())
            }
            ToParticipant::Event(event) => self.step(event).await,
            ToParticipant::Concluded => self.end("over", "").await,
            ToParticipant::Broken(failure) => Err(self.side.jobs.fault(self.side.id, failure)),
            ToParticipant::Fetched { work, model } => {
                if let (Some(above), true) = (&self.side.above, self.participant.working() == Some(work)) {
                    let _ = above.send(ToCoordinator::Begin { task: work.task, model, evaluate: work.evaluate }).await;
                }
                Ok(())
            }
            ToParticipant::Gathered { task, mut contribution } => {
                let Some(work) = self.participant.working().filter(|work| work.task == task) else { return Ok(()) };
                if work.evaluate {
                    contribution.vectors.clear();
                }
                let held = tokio::task::block_in_place(|| {
                    let workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
                    let workspace = workspace.as_ref().ok_or_else(|| internal("the job isn't prepared"))?;
                    let before = self.side.folder.load_kept()?;
                    workspace.hold(
                        &self.side.jobs,
                        &self.side.folder,
                        &self.sender(),
                        work,
                        &contribution,
                        (&before, before.clone()),
                    )
                });
                let result = held.map_err(|f| f.to_string());
                self.step(MemberEvent::Worked { task, result }).await
            }
        }
    }

    /// Takes down how the job numbers its classes. Whether what is wanted can
    /// be done: an end that doesn't know its classes' numbers learns nothing.
    async fn is_named(&mut self, wanted: &Assignment, classes: Option<ClassNames>) -> Result<bool, Failure> {
        let told = classes.as_ref().is_some_and(|classes| !classes.names.is_empty());
        if let Some(ClassNames { names }) = classes.clone().filter(|_| told) {
            let names = classes::checked(names)?;
            self.side.folder.save_classes(&names)?;
            self.asked.hear(names.clone());
            if let Some(above) = &self.side.above {
                let _ = above.send(ToCoordinator::Named(names)).await;
            }
        }
        if self.side.above.is_some() || self.asked.open().is_empty() {
            return Ok(true);
        }
        let data = &self.side.manifest.job.data;
        if told && data.other_classes == Others::Drop {
            self.asked.give_up();
            return Ok(true);
        }
        let unable = match (wanted, &classes) {
            _ if told => self.asked.unknown(&data.train).map(|unnamed| unnamed.to_string()),
            (Assignment::Work { .. }, None) => Some(
                "the node above doesn't number classes by name: update it, or name them in the job's file (data.classes)"
                    .to_owned(),
            ),
            // It is told once that is decided.
            (Assignment::Work { .. } | Assignment::Wait, _) => return Ok(!matches!(wanted, Assignment::Work { .. })),
            _ => None,
        };
        if let Some(reason) = unable {
            self.step(MemberEvent::Prepared(Err(reason))).await?;
        }
        Ok(true)
    }

    /// The parent that it answers to.
    fn parent(&self) -> Option<Arc<Uplink>> {
        self.side.jobs.cx.parents.get(self.home.parent()?).ok()
    }

    /// What a change of parents means.
    async fn changed(&mut self, change: Option<Change>) -> Result<(), Failure> {
        match change {
            Some(Change::Up) => self.step(MemberEvent::LinkUp).await,
            Some(Change::Down) => self.step(MemberEvent::LinkDown).await,
            None => Ok(()),
        }
    }

    async fn wake(&mut self) -> Result<(), Failure> {
        let change = self.home.wakes(self.side.jobs.cx.clock.now());
        self.changed(change).await?;
        self.step(MemberEvent::Wake).await
    }

    async fn step(&mut self, event: MemberEvent) -> Result<(), Failure> {
        let actions = self.participant.step(self.side.jobs.cx.clock.now(), &mut self.rng, event);
        self.perform(actions).await
    }

    async fn perform(&mut self, actions: Vec<MemberAction>) -> Result<(), Failure> {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                MemberAction::Keep(record) => {
                    let jobs = Arc::clone(&self.side.jobs);
                    journal::write(&jobs, self.side.id, &[record]).await?;
                }
                MemberAction::Prepare => self.prepare(),
                MemberAction::Report(standing) => self.report(&standing),
                MemberAction::Work(work) => self.work(work),
                MemberAction::Abandon(_) => self.stop.pull(),
                MemberAction::Send(update) => self.send(update),
                MemberAction::Settle { task, counted } => self.side.folder.settle(task.0, counted)?,
                MemberAction::Finish { .. } => self.finish().await?,
                MemberAction::Leave { reason } => self.end("left out", &reason).await?,
            }
        }
        Ok(())
    }

    /// The job is over: an end that should have a model of its own makes it
    /// first.
    async fn finish(&mut self) -> Result<(), Failure> {
        let ParticipantSide { jobs, id, manifest, folder, above } = &self.side;
        if above.is_some() || !finish::lacks_own(manifest, folder) {
            return self.end("over", "").await;
        }
        let (jobs, id, manifest, folder) = (Arc::clone(jobs), *id, Arc::clone(manifest), folder.clone());
        let (workspace, later) = (Arc::clone(&self.workspace), self.door.clone());
        let (told, name) = (Arc::clone(&jobs), manifest.name.clone());
        let conclude = async move { finish::conclude(&jobs, id, &manifest, &folder, &workspace).await };
        self.side.jobs.cx.tasks.spawn_then("own model", conclude, move |concluded| async move {
            if let Err(failure) = concluded.flatten() {
                let text = format!("no model of this end's own came of job {name}: {failure}");
                told.cx.events.record("job", text, &serde_json::json!({ "job": id.to_string() }));
            }
            let _ = later.send(ToParticipant::Concluded).await;
        });
        Ok(())
    }

    async fn end(&mut self, how: &'static str, reason: &str) -> Result<(), Failure> {
        self.over = true;
        let (jobs, id, why) = (Arc::clone(&self.side.jobs), self.side.id, reason.to_owned());
        jobs.cx.state.with(move |state| state.end_job(id, how, &why)).await?;
        journal::forget::<MemberRecord>(&jobs, id).await?;
        self.side.folder.clear();
        let text = match reason {
            "" => format!("job {} is over", self.side.manifest.name),
            reason => format!("job {} goes on without this node: {reason}", self.side.manifest.name),
        };
        self.side.jobs.cx.events.record("job", text, &serde_json::json!({ "job": self.side.id.to_string() }));
        let (jobs, id, above) = (Arc::clone(&self.side.jobs), self.side.id, self.side.above.clone());
        self.stop.pull();
        let (at_work, folder) = (std::mem::take(&mut self.at_work), self.side.folder.clone());
        self.side.jobs.cx.tasks.spawn("job cleaning", async move {
            if let Some(above) = above {
                let _ = above.send(ToCoordinator::End).await;
            }
            // What is under way may fetch or write something still.
            for task in at_work {
                let _ = task.await;
            }
            folder.clear();
            // What stays behind only takes room.
            for side in [Side::Participant, Side::ParticipantDifferences] {
                let _ = jobs.drop_models(id, side, &[]).await;
            }
        });
        Ok(())
    }

    fn report(&self, standing: &Standing) {
        if let Some(parent) = self.parent() {
            let holds = self.holds.load(Ordering::Relaxed);
            let gossips = self.side.manifest.gossip().is_some() && self.side.above.is_some();
            let url = if gossips { self.side.jobs.cx.me.url() } else { "" };
            let standing = messages::standing(self.side.id, standing, holds, url);
            let classes = self.asked.open().to_vec();
            parent.tell(FEDERATION, &JobStanding { classes, ..standing });
        }
    }

    /// How updates travel to the parent there is now.
    fn sender(&self) -> Sender {
        let federation = self.side.manifest.federation();
        match self.parent().map(|p| p.parent_role()) {
            Some(Role::Edge) => federation.of_ends().sender(),
            _ => federation.cloud.sender(),
        }
    }

    /// Fetches the model and opens the data; where that can't be, looks again
    /// once what the job needs of this node's data sets has changed.
    fn prepare(&self) {
        let (jobs, manifest, workspace, later) = (
            Arc::clone(&self.side.jobs),
            Arc::clone(&self.side.manifest),
            Arc::clone(&self.workspace),
            self.door.clone(),
        );
        let (coordinates, waiting) = (self.side.above.is_some(), self.door.clone());
        let prepare = async move {
            let stamp = || tokio::task::block_in_place(|| data::stamp(&jobs, &manifest.job));
            loop {
                let before = stamp();
                match open(&jobs, &manifest, coordinates).await {
                    Ok((made, examples)) => {
                        let _ = waiting.send(ToParticipant::Names(made.names.clone())).await;
                        *workspace.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
                        return Some(examples);
                    }
                    Err(failure) if may_pass(failure.code()) && !waiting.is_closed() => {
                        let text = format!("job {} waits: {failure}", manifest.name);
                        jobs.cx.events.record("job", text, &serde_json::json!({}));
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(failure) => {
                        let unable = MemberEvent::Prepared(Err(failure.to_string()));
                        let _ = waiting.send(ToParticipant::Event(unable)).await;
                        while stamp() == before {
                            tokio::time::sleep(LOOK_AGAIN).await;
                            if waiting.is_closed() {
                                return None;
                            }
                        }
                    }
                }
            }
        };
        self.side.jobs.cx.tasks.spawn_then("job preparation", prepare, move |prepared| async move {
            let message = match prepared {
                Ok(Some(examples)) => ToParticipant::Event(MemberEvent::Prepared(Ok(examples))),
                // Nobody waits for it any more.
                Ok(None) => return,
                Err(failure) => ToParticipant::Broken(failure),
            };
            let _ = later.send(message).await;
        });
    }

    /// Fetches the model of a task, and does it or has it done below.
    fn work(&mut self, work: Work) {
        let (jobs, workspace, folder, later) =
            (Arc::clone(&self.side.jobs), Arc::clone(&self.workspace), self.side.folder.clone(), self.door.clone());
        let (id, name) = (self.side.id, self.side.manifest.name.clone());
        let (start, holds) = (self.start.clone(), Arc::clone(&self.holds));
        let (coordinates, sender) = (self.side.above.is_some(), self.sender());
        let names = self.asked.known().to_vec();
        self.stop = Stop::asked();
        let stop = self.stop.clone();
        self.at_work.retain(|task| !task.is_finished());
        let (tasks, done) = (self.side.jobs.cx.tasks.clone(), self.door.clone());
        let working = async move {
            let attempt = async || {
                let bytes = match start.model {
                    None => None,
                    Some(model) => {
                        start::fetch(&jobs, id, work.version, &start, &workspace).await?;
                        holds.store(work.version, Ordering::Relaxed);
                        // One that was told to stop knows no more what is needed.
                        if !stop.is_pulled() {
                            jobs.drop_models(id, Side::Participant, &[work.version]).await?;
                        }
                        Some(jobs.artefacts.get(model).await?)
                    }
                };
                // A thread of its own: training takes as long as it takes.
                let (jobs, workspace, folder, sender, stop) =
                    (Arc::clone(&jobs), Arc::clone(&workspace), folder.clone(), sender.clone(), stop.clone());
                let names = names.clone();
                let doing = jobs.cx.tasks.clone().blocking("training", move || {
                    let mut workspace = workspace.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(workspace) = workspace.as_mut() else { return Err(internal("the job isn't prepared")) };
                    let start = match &bytes {
                        None => workspace.initial.clone(),
                        Some(bytes) => wire::decode(bytes, &workspace.layout).map_err(internal)?,
                    };
                    if coordinates {
                        return Ok(Some(ToParticipant::Fetched { work, model: start }));
                    }
                    workspace.name_classes(&names)?;
                    let update = workspace.train(&jobs, &folder, &sender, work, &start, &stop)?;
                    Ok(update.map(|update| {
                        ToParticipant::Event(MemberEvent::Worked { task: work.task, result: Ok(update) })
                    }))
                });
                // Whatever broke off there may have left the workspace half changed.
                doing.await.unwrap_or_else(|failure| Ok(Some(ToParticipant::Broken(failure))))
            };
            loop {
                match attempt().await {
                    Ok(Some(message)) => return Some(message),
                    // It was told to stop.
                    Ok(None) => return None,
                    Err(failure) if may_pass(failure.code()) => {
                        let text = format!("job {name} waits: {failure}");
                        jobs.cx.events.record("job", text, &serde_json::json!({}));
                        tokio::time::sleep(AGAIN).await;
                        if stop.is_pulled() || later.is_closed() {
                            return None;
                        }
                    }
                    Err(failure) => {
                        let result = Err(failure.to_string());
                        return Some(ToParticipant::Event(MemberEvent::Worked { task: work.task, result }));
                    }
                }
            }
        };
        self.at_work.push(tasks.spawn_then("task of a job", working, move |worked| async move {
            if let Some(message) = worked.unwrap_or_else(|failure| Some(ToParticipant::Broken(failure))) {
                let _ = done.send(message).await;
            }
        }));
    }

    fn send(&self, update: Update) {
        let (folder, later, parent, job) = (self.side.folder.clone(), self.door.clone(), self.parent(), self.side.id);
        let cx = self.side.jobs.cx.clone();
        let sending = async move {
            let task = update.task;
            let sent = async {
                let parent = parent.ok_or_else(|| Failure::new(Code::Unreachable, "no parent has asked for it"))?;
                let bytes = folder.read(&folder.outgoing(task.0))?;
                sending::submit(&cx, &parent, messages::header(job, &update), bytes.into()).await
            };
            match sent.await {
                Ok(verdict) => MemberEvent::Answered { task, verdict: messages::verdict_of(&verdict) },
                Err(failure) => match failure.code() {
                    // It will never be taken.
                    Code::TooLarge | Code::NotFound => MemberEvent::Answered { task, verdict: Verdict::Unknown },
                    _ => MemberEvent::Unsent { task },
                },
            }
        };
        self.side.jobs.cx.tasks.spawn_then("update sending", sending, move |sent| async move {
            let _ = later.send(sent.map_or_else(ToParticipant::Broken, ToParticipant::Event)).await;
        });
    }
}

/// Makes ready what work needs: the model from above, the data here. Examples
/// come with it.
async fn open(jobs: &Arc<Jobs>, manifest: &JobManifest, coordinates: bool) -> Result<(Workspace, u64), Failure> {
    let model = if coordinates { manifest.model } else { manifest.model_of(jobs.cx.me.name()) };
    jobs.artefacts.ensure(model).await?;
    let bytes = jobs.artefacts.get(model).await?;
    tokio::task::block_in_place(|| Workspace::open(jobs, manifest, bytes, coordinates))
}
