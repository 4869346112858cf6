//! The world around a side that takes part: this node's disk, its links, its
//! processor.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tierline_engine::Stop;
use tierline_federate::{Sender, Vectors, wire};
use tierline_node::federation::participation::MemberEffects;
use tierline_node::federation::{MemberEvent, MemberRecord, MemberStatus, Task, Update, Verdict, Work};
use tierline_node::{Peer, Time};
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::{Code, Failure, JobStatus};
use tierline_proto::{Digest, Role};
use tierline_store::jobs::Side;
use tokio::sync::mpsc;

use super::workspace::Workspace;
use super::{ParticipantSide, ToParticipant, finish, open, start};
use crate::duties::federation::classes::Asked;
use crate::duties::federation::coordinator::ToCoordinator;
use crate::duties::federation::messages::{self, Start, internal};
use crate::duties::federation::{Folder, Jobs};
use crate::duties::federation::{data, journal, may_pass, sending};
use crate::net::Uplink;
use crate::runtime::tasks::TaskHandle;

/// What this node lacked when it last looked: when it was told of its data
/// sets, and what was missing.
type Missing = Arc<Mutex<Option<(Vec<Option<SystemTime>>, String)>>>;

/// This node, for a side that takes part.
pub(super) struct MemberWorld {
    pub(super) side: ParticipantSide,
    /// Where the models are that tasks begin with: of the one under way, and of
    /// the one that was named last.
    starts: BTreeMap<Task, Start>,
    /// The parent's model that is here, by its number.
    holds: Arc<AtomicU64>,
    pub(super) workspace: Arc<Mutex<Option<Workspace>>>,
    missing: Missing,
    /// How the job numbers the classes that are named here.
    pub(super) asked: Asked,
    /// Tells the task under way to stop.
    stop: Stop,
    /// Tasks under way, and those that were told to stop.
    at_work: Vec<TaskHandle<()>>,
    /// The side's own door, for what is begun here.
    door: mpsc::Sender<ToParticipant>,
    pub(super) over: bool,
}

impl MemberWorld {
    pub(super) fn new(side: ParticipantSide, asked: Asked, holds: u64, door: mpsc::Sender<ToParticipant>) -> Self {
        Self {
            side,
            starts: BTreeMap::new(),
            holds: Arc::new(AtomicU64::new(holds)),
            workspace: Arc::default(),
            missing: Arc::default(),
            asked,
            stop: Stop::asked(),
            at_work: Vec::new(),
            door,
            over: false,
        }
    }

    /// Takes down where a task begins that may be done next.
    pub(super) fn begins(&mut self, task: Task, start: Start, under_way: Option<Task>) {
        self.starts.retain(|known, _| Some(*known) == under_way);
        self.starts.insert(task, start);
    }

    fn uplink(&self, parent: Option<Peer>) -> Option<Arc<Uplink>> {
        self.side.jobs.cx.parents.get(parent?).ok()
    }

    /// How updates travel to the parent there is now.
    pub(super) fn sender(&self, parent: Option<Peer>) -> Sender {
        let federation = self.side.manifest.federation();
        match self.uplink(parent).map(|uplink| uplink.parent_role()) {
            Some(Role::Edge) => federation.of_ends().sender(),
            _ => federation.cloud.sender(),
        }
    }

    /// Ends the job here, however it ended, and lets go of what it took.
    pub(super) async fn end(&mut self, how: &'static str, reason: &str) -> Result<(), Failure> {
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

    /// Says in the node's events what a job waits for.
    fn waits(&self) -> impl Fn(&Failure) + Send + Sync + 'static {
        let (events, name) = (self.side.jobs.cx.events.clone(), self.side.manifest.name.clone());
        move |failure: &Failure| events.record("job", format!("job {name} waits: {failure}"), &serde_json::json!({}))
    }
}

impl Drop for MemberWorld {
    fn drop(&mut self) {
        // Whoever takes the job up again begins its work anew.
        self.stop.pull();
    }
}

impl MemberEffects for MemberWorld {
    type Error = Failure;

    fn now(&self) -> Time {
        self.side.jobs.cx.clock.now()
    }

    async fn keep(&mut self, record: MemberRecord) -> Result<(), Failure> {
        journal::write(&self.side.jobs, self.side.id, &[record]).await
    }

    fn settle(&mut self, task: Task, counted: bool) -> Result<(), Failure> {
        self.side.folder.settle(task.0, counted)
    }

    fn report(&mut self, parent: Option<Peer>, status: &MemberStatus) {
        let Some(parent) = self.uplink(parent) else { return };
        let holds = self.holds.load(Ordering::Relaxed);
        let gossips = self.side.manifest.gossip().is_some() && self.side.above.is_some();
        let url = if gossips { self.side.jobs.cx.me.url() } else { "" };
        let status = messages::status(self.side.id, status, holds, url);
        let classes = self.asked.open().to_vec();
        parent.tell(FEDERATION, &JobStatus { classes, ..status });
    }

    /// Sends an update, from where an earlier try broke off.
    fn send(&mut self, parent: Option<Peer>, update: Update) {
        let (folder, later, job) = (self.side.folder.clone(), self.door.clone(), self.side.id);
        let (parent, cx) = (self.uplink(parent), self.side.jobs.cx.clone());
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

    /// Fetches the model and opens the data. What was missing is looked for
    /// again only once this node was told of other data sets.
    fn prepare(&mut self) {
        let (jobs, manifest) = (Arc::clone(&self.side.jobs), Arc::clone(&self.side.manifest));
        let (workspace, missing, waits) = (Arc::clone(&self.workspace), Arc::clone(&self.missing), self.waits());
        let (coordinates, names, later) = (self.side.above.is_some(), self.door.clone(), self.door.clone());
        let tasks = self.side.jobs.cx.tasks.clone();
        let prepare = async move {
            let stamp = tokio::task::block_in_place(|| data::stamp(&jobs, &manifest.job));
            let lock = || missing.lock().unwrap_or_else(PoisonError::into_inner);
            let before = lock().clone().filter(|(seen, _)| *seen == stamp);
            if let Some((_, reason)) = before {
                return MemberEvent::Prepared(Err(reason));
            }
            match open(&jobs, &manifest, coordinates).await {
                Ok((made, examples)) => {
                    let _ = names.send(ToParticipant::Names(made.names.clone())).await;
                    *workspace.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
                    MemberEvent::Prepared(Ok(examples))
                }
                Err(failure) if may_pass(failure.code()) => {
                    waits(&failure);
                    MemberEvent::Unprepared
                }
                Err(failure) => {
                    let reason = failure.to_string();
                    *lock() = Some((stamp, reason.clone()));
                    MemberEvent::Prepared(Err(reason))
                }
            }
        };
        tasks.spawn_then("job preparation", prepare, move |prepared| async move {
            let _ = later.send(prepared.map_or_else(ToParticipant::Broken, ToParticipant::Event)).await;
        });
    }

    /// Fetches the model of a task, and does it or has it done below.
    fn work(&mut self, parent: Option<Peer>, work: Work) {
        self.stop = Stop::asked();
        self.at_work.retain(|task| !task.is_finished());
        let Some(start) = self.starts.get(&work.task).cloned() else { return };
        let ParticipantSide { jobs, id, folder, above, .. } = &self.side;
        let attempt = Attempt {
            jobs: Arc::clone(jobs),
            id: *id,
            folder: folder.clone(),
            coordinates: above.is_some(),
            work,
            start,
            holds: Arc::clone(&self.holds),
            workspace: Arc::clone(&self.workspace),
            sender: self.sender(parent),
            names: self.asked.known().to_vec(),
            stop: self.stop.clone(),
        };
        let (waits, stop, door) = (self.waits(), self.stop.clone(), self.door.clone());
        let task = work.task;
        let working = async move {
            match attempt.run().await {
                Ok(message) => message,
                Err(_) if stop.is_pulled() => None,
                Err(failure) if may_pass(failure.code()) => {
                    waits(&failure);
                    Some(ToParticipant::Event(MemberEvent::Hindered { task }))
                }
                Err(failure) => {
                    let result = Err(failure.to_string());
                    Some(ToParticipant::Event(MemberEvent::Worked { task, result }))
                }
            }
        };
        let tasks = self.side.jobs.cx.tasks.clone();
        self.at_work.push(tasks.spawn_then("task of a job", working, move |worked| async move {
            if let Some(message) = worked.unwrap_or_else(|failure| Some(ToParticipant::Broken(failure))) {
                let _ = door.send(message).await;
            }
        }));
    }

    fn stop(&mut self, _: Task) {
        self.stop.pull();
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

    async fn leave(&mut self, reason: &str) -> Result<(), Failure> {
        self.end("left out", reason).await
    }
}

/// One try at a task.
struct Attempt {
    jobs: Arc<Jobs>,
    id: Digest,
    folder: Folder,
    /// Whether others do the work: an edge's.
    coordinates: bool,
    work: Work,
    start: Start,
    holds: Arc<AtomicU64>,
    workspace: Arc<Mutex<Option<Workspace>>>,
    sender: Sender,
    /// How the job numbers its classes.
    names: Vec<String>,
    stop: Stop,
}

impl Attempt {
    /// What came of it; `None` when it was told to stop.
    async fn run(self) -> Result<Option<ToParticipant>, Failure> {
        let (jobs, id) = (Arc::clone(&self.jobs), self.id);
        let version = self.work.version;
        let bytes = match self.start.model {
            None => None,
            Some(model) => {
                start::fetch(&jobs, id, version, &self.start, &self.workspace).await?;
                self.holds.store(version, Ordering::Relaxed);
                // One that was told to stop knows no more what is needed.
                if !self.stop.is_pulled() {
                    jobs.drop_models(id, Side::Participant, &[version]).await?;
                }
                Some(jobs.artefacts.get(model).await?)
            }
        };
        // A thread of its own: training takes as long as it takes.
        let doing = jobs.cx.tasks.clone().blocking("training", move || {
            let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(workspace) = workspace.as_mut() else { return Err(internal("the job isn't prepared")) };
            let model: Vectors = match &bytes {
                None => workspace.initial.clone(),
                Some(bytes) => wire::decode(bytes, &workspace.layout).map_err(internal)?,
            };
            if self.coordinates {
                return Ok(Some(ToParticipant::Fetched { work: self.work, model }));
            }
            workspace.name_classes(&self.names)?;
            let update = workspace.train(&self.jobs, &self.folder, &self.sender, self.work, &model, &self.stop)?;
            let worked = |update| MemberEvent::Worked { task: self.work.task, result: Ok(update) };
            Ok(update.map(|update| ToParticipant::Event(worked(update))))
        });
        // Whatever broke off there may have left the workspace half changed.
        doing.await.unwrap_or_else(|failure| Ok(Some(ToParticipant::Broken(failure))))
    }
}
