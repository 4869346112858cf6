//! The side that takes part, on this node: what comes to it, and how it gets
//! to know the numbers of its classes. The rest is the business of
//! [`tierline_node::federation::Participation`].

mod finish;
mod start;
mod workspace;
mod world;

use std::sync::{Arc, PoisonError};

use tierline_federate::{Contribution, Vectors};
use tierline_node::Rng;
use tierline_node::federation::{Assignment, MemberEvent, Participant, Participation, Task, Work};
use tierline_proto::Digest;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{ClassNames, Failure};
use tierline_train::data::Others;
use tokio::sync::mpsc;

use self::workspace::Workspace;
use self::world::MemberWorld;
use super::classes::{self, Asked};
use super::coordinator::ToCoordinator;
use super::messages::internal;
use super::{Folder, INBOX_MAX, JobManifest, gossip, journal, messages};
use crate::duties::federation::Jobs;
use crate::net::Uplink;
use crate::runtime::wait_until;

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
struct TakingPart {
    rounds: Participation<MemberWorld>,
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
        let jobs = Arc::clone(&self.jobs);
        let journal = journal::read(&jobs, self.id).await?;
        let (participant, first) = Participant::restored(journal);
        let asked = Asked::knowing(self.folder.load_classes()?.unwrap_or_default());
        let (door, mut own) = mpsc::channel(INBOX_MAX);
        let holds = start::newest(&jobs, self.id).await?.0;
        let world = MemberWorld::new(self, asked, holds, door);
        let mut side = TakingPart { rounds: Participation::new(participant, Rng::new(), world) };
        side.rounds.perform(first).await?;
        while !side.world().over {
            let wake = side.rounds.wake().map(|t| jobs.cx.clock.instant_of(t));
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => side.hear(message).await?,
                    None => return Ok(false),
                },
                Some(message) = own.recv() => side.hear(message).await?,
                () = wait_until(wake) => side.rounds.wakes().await?,
            }
            if inbox.is_empty() {
                side.catch_up().await?;
            }
        }
        Ok(true)
    }
}

impl TakingPart {
    fn world(&self) -> &MemberWorld {
        &self.rounds.effects
    }

    /// Hears what found no room in the inbox.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        let jobs = Arc::clone(&self.world().side.jobs);
        let Some(sides) = jobs.get(self.world().side.id) else { return Ok(()) };
        for message in sides.late.for_participant(&jobs) {
            self.hear(message).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: ToParticipant) -> Result<(), Failure> {
        match message {
            ToParticipant::Assigned { uplink, want, classes } => {
                if !self.rounds.asked(uplink.peer).await? {
                    return Ok(());
                }
                let Some((assignment, start)) = messages::assignment_of(want)? else { return Ok(()) };
                if let Assignment::Work { task, round, .. } = assignment {
                    if !start.neighbours.is_empty() {
                        gossip::remember(&self.world().side.folder, task, round, &start.neighbours)?;
                    }
                    let under_way = self.rounds.working().map(|work| work.task);
                    self.rounds.effects.begins(task, start, under_way);
                }
                if self.is_named(&assignment, classes).await? {
                    self.rounds.is_told(assignment).await?;
                }
                Ok(())
            }
            ToParticipant::Parent { uplink, up } => self.rounds.reaches(uplink.peer, up).await,
            ToParticipant::Names(names) => {
                if self.rounds.effects.asked.want(&names) {
                    self.rounds.report();
                }
                Ok(())
            }
            ToParticipant::Event(event) => self.rounds.step(event).await,
            ToParticipant::Concluded => self.rounds.effects.end("over", "").await,
            ToParticipant::Broken(failure) => {
                let side = &self.world().side;
                Err(side.jobs.fault(side.id, failure))
            }
            ToParticipant::Fetched { work, model } => {
                if let (Some(above), true) = (&self.world().side.above, self.rounds.working() == Some(work)) {
                    let _ = above.send(ToCoordinator::Begin { task: work.task, model, evaluate: work.evaluate }).await;
                }
                Ok(())
            }
            ToParticipant::Gathered { task, contribution } => self.gathered(task, contribution).await,
        }
    }

    /// The rounds of an edge's task are done.
    async fn gathered(&mut self, task: Task, mut contribution: Contribution) -> Result<(), Failure> {
        let Some(work) = self.rounds.working().filter(|work| work.task == task) else { return Ok(()) };
        if work.evaluate {
            contribution.vectors.clear();
        }
        let sender = self.world().sender(self.rounds.parent());
        let held = tokio::task::block_in_place(|| {
            let world = self.world();
            let workspace = world.workspace.lock().unwrap_or_else(PoisonError::into_inner);
            let workspace = workspace.as_ref().ok_or_else(|| internal("the job isn't prepared"))?;
            let before = world.side.folder.load_kept()?;
            let after = before.clone();
            workspace.hold(&world.side.jobs, &world.side.folder, &sender, work, &contribution, (&before, after))
        });
        let result = held.map_err(|f| f.to_string());
        self.rounds.step(MemberEvent::Worked { task, result }).await
    }

    /// Takes down how the job numbers its classes. Whether what is wanted can
    /// be done: an end that doesn't know its classes' numbers learns nothing.
    async fn is_named(&mut self, wanted: &Assignment, classes: Option<ClassNames>) -> Result<bool, Failure> {
        let world = &mut self.rounds.effects;
        let told = classes.as_ref().is_some_and(|classes| !classes.names.is_empty());
        if let Some(ClassNames { names }) = classes.clone().filter(|_| told) {
            let names = classes::checked(names)?;
            world.side.folder.save_classes(&names)?;
            world.asked.hear(names.clone());
            if let Some(above) = &world.side.above {
                let _ = above.send(ToCoordinator::Named(names)).await;
            }
        }
        if world.side.above.is_some() || world.asked.open().is_empty() {
            return Ok(true);
        }
        let data = &world.side.manifest.job.data;
        if told && data.other_classes == Others::Drop {
            world.asked.give_up();
            return Ok(true);
        }
        let unable = match (wanted, &classes) {
            _ if told => world.asked.unknown(&data.train).map(|unnamed| unnamed.to_string()),
            (Assignment::Work { .. }, None) => Some(
                "the node above doesn't number classes by name: update it, or name them in the job's file (data.classes)"
                    .to_owned(),
            ),
            // It is told once that is decided.
            (Assignment::Work { .. } | Assignment::Wait, _) => return Ok(!matches!(wanted, Assignment::Work { .. })),
            _ => None,
        };
        if let Some(reason) = unable {
            self.rounds.step(MemberEvent::Unable(reason)).await?;
        }
        Ok(true)
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
