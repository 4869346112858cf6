//! The side that coordinates, on this node: what comes to it, and what it is
//! there for besides the rounds, which are the business of
//! [`tierline_node::federation::Coordination`].

mod members;
mod set_up;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tierline_federate::{Hop, Vectors};
use tierline_node::federation::{Coordination, Event, Phase, Record, Task};
use tierline_proto::Digest;
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Empty, Failure, JobEvent, JobInfo, JobStatus, JobVerdict, UpdateHeader};
use tierline_store::jobs::Side;
use tokio::sync::{broadcast, mpsc, oneshot};

use self::world::CoordinatorWorld;
use super::messages;
use super::numbers::JobKey;
use super::participant::ToParticipant;
use super::{Folder, JobManifest, journal};
use crate::duties::federation::Jobs;
use crate::runtime::wait_until;

/// What an operator wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobCommand {
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
    Reported {
        child: String,
        status: JobStatus,
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
    /// A neighbour's model of an exchange, or why it can't be had.
    Heard {
        exchange: u64,
        neighbour: String,
        model: Result<Vec<u8>, Failure>,
    },
    /// Work that was begun here broke off.
    Broken(Failure),
    /// An edge's job is over.
    End,
    Info(oneshot::Sender<JobInfo>),
    Command(JobCommand, oneshot::Sender<()>),
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

/// What a side holds once its model is here.
struct Coordinating {
    /// The rounds.
    rounds: Coordination<CoordinatorWorld>,
    /// What members said whose classes the node above was asked for.
    held: BTreeMap<String, (String, JobStatus)>,
    /// Members that can't take part, and why.
    unable: BTreeMap<String, String>,
    /// The round in which members were kept last, and whether it had begun.
    kept_in: Option<(u64, bool)>,
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
        self.set_up().await?.go_on(inbox).await
    }
}

impl Coordinating {
    fn world(&self) -> &CoordinatorWorld {
        &self.rounds.effects
    }

    fn jobs(&self) -> Arc<Jobs> {
        self.world().jobs()
    }

    /// Hears what comes, and wakes when it is time.
    async fn go_on(&mut self, inbox: &mut mpsc::Receiver<ToCoordinator>) -> Result<bool, Failure> {
        let jobs = self.jobs();
        self.finish().await?;
        while !self.over {
            let progress = self.rounds.coordinator().progress();
            jobs.numbers.progress(self.world().side.metrics_key(), &progress);
            let at = (progress.round, progress.goal > 0);
            if self.kept_in.replace(at) != Some(at) {
                self.keep_members().await?;
            }
            let wake = self.rounds.wake().map(|t| jobs.cx.clock.instant_of(t));
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.hear(message).await?,
                    None => return Ok(false),
                },
                () = wait_until(wake) => self.rounds.wakes().await?,
            }
            if inbox.is_empty() {
                self.catch_up().await?;
            }
            self.finish().await?;
        }
        Ok(true)
    }

    /// Hears what found no room in the inbox.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        let jobs = self.jobs();
        let Some(sides) = jobs.get(self.world().side.id) else { return Ok(()) };
        let (look, news) = sides.late.for_coordinator();
        if look {
            self.look_for_children(&jobs).await?;
        }
        for message in news {
            self.hear(message).await?;
        }
        Ok(())
    }

    async fn look_for_children(&mut self, jobs: &Arc<Jobs>) -> Result<(), Failure> {
        let here: BTreeSet<String> = jobs.cx.children.names().into_iter().collect();
        for child in self.world().routes.children() {
            if !here.contains(&child) {
                self.hear(ToCoordinator::ChildDown(child)).await?;
            }
        }
        for child in here {
            self.hear(ToCoordinator::ChildUp(child)).await?;
        }
        Ok(())
    }

    async fn hear(&mut self, message: ToCoordinator) -> Result<(), Failure> {
        match message {
            ToCoordinator::ChildUp(child) => {
                if self.world().passes_on(&child) {
                    let join = messages::assignment(self.world().side.id, "", Want::Join(Empty {}));
                    self.jobs().cx.children.tell(&child, FEDERATION, &join);
                } else {
                    self.rounds.tell(&child).await;
                }
                Ok(())
            }
            ToCoordinator::ChildDown(child) => {
                for member in self.rounds.effects.routes.lost(&child) {
                    self.rounds.step(Event::Lost { member }).await?;
                }
                Ok(())
            }
            ToCoordinator::Reported { child, status } => self.reported(&child, status).await,
            ToCoordinator::Would { child, header, answer } => self.would(&child, &header, answer).await,
            ToCoordinator::Submit { child, header, answer } => {
                let member = messages::member(&child, &header.node).to_owned();
                // Its link may have gone meanwhile: it sends it again.
                if !self.world().routes.speaks(&child, &member) {
                    return Ok(());
                }
                self.submitted(member, header, answer).await
            }
            ToCoordinator::Named(names) => self.named(names).await,
            ToCoordinator::Heard { exchange, neighbour, model } => self.rounds.heard(exchange, &neighbour, model).await,
            ToCoordinator::Broken(failure) => Err(self.jobs().fault(self.world().side.id, failure)),
            ToCoordinator::Begin { task, model, evaluate } => self.rounds.begin(task, &model, evaluate).await,
            ToCoordinator::End => {
                self.rounds.forget_exchange();
                self.rounds.step(Event::End).await?;
                self.clean().await
            }
            ToCoordinator::Info(answer) => {
                let _ = answer.send(self.info()?);
                Ok(())
            }
            ToCoordinator::Command(command, answer) => {
                match command {
                    JobCommand::Pause => self.rounds.step(Event::Pause).await?,
                    JobCommand::Resume => self.rounds.step(Event::Resume).await?,
                    JobCommand::Cancel => self.end("cancelled", &serde_json::json!({ "reason": "" })).await?,
                }
                let _ = answer.send(());
                Ok(())
            }
        }
    }

    /// The rounds may have led to the job's model: it is done.
    async fn finish(&mut self) -> Result<(), Failure> {
        let Some(version) = self.rounds.effects.finished.take() else { return Ok(()) };
        let json = serde_json::json!({ "version": version });
        self.end("done", &json).await
    }

    /// The job is over: who takes part is kept, and everybody is told.
    async fn end(&mut self, how: &'static str, json: &serde_json::Value) -> Result<(), Failure> {
        let (jobs, id) = (self.jobs(), self.world().side.id);
        // The end leaves nobody.
        self.keep_members().await?;
        jobs.cx.state.with(move |state| state.end_job(id, how, "")).await?;
        jobs.cx.events.record("job", format!("job {} is {how}", self.world().side.manifest.name), json);
        self.rounds.step(Event::End).await?;
        self.world().tell_watchers(how, json);
        self.clean().await
    }

    /// Keeps who takes part and who doesn't: shown when the job is over, however
    /// it ended.
    async fn keep_members(&mut self) -> Result<(), Failure> {
        let (id, kept) = (self.world().side.id, prost::Message::encode_to_vec(&self.info()?));
        self.jobs().cx.state.with(move |state| state.keep_end(id, &kept)).await
    }

    /// Nothing but the result is kept of a job that is over.
    async fn clean(&mut self) -> Result<(), Failure> {
        self.over = true;
        let (jobs, world) = (self.jobs(), self.world());
        for child in jobs.cx.children.names().into_iter().filter(|child| world.passes_on(child)) {
            let over = messages::assignment(world.side.id, "", Want::Over(Empty {}));
            jobs.cx.children.tell(&child, FEDERATION, &over);
        }
        let (folder, id) = (world.side.folder.clone(), world.side.id);
        folder.clear();
        journal::forget::<Record>(&jobs, id).await?;
        for side in [Side::Coordinator, Side::CoordinatorOwn, Side::CoordinatorDifferences, Side::Offers, Side::Said] {
            jobs.drop_models(id, side, &[]).await?;
        }
        Ok(())
    }

    fn info(&self) -> Result<JobInfo, Failure> {
        let progress = self.rounds.coordinator().progress();
        let state = match self.rounds.coordinator().phase() {
            Phase::Idle => "idle",
            Phase::Gathering => "gathering",
            Phase::Working => "working",
            Phase::Making => "making",
            Phase::Paused => "paused",
            Phase::Ended => "over",
        };
        let out = self.rounds.coordinator().excluded().into_iter().map(|(n, r)| (n.to_owned(), r.to_owned()));
        let away = self.rounds.coordinator().away().into_iter().filter(|node| !self.unable.contains_key(*node));
        let away = away.map(|node| (node.to_owned(), "it can't be reached".to_owned()));
        let excluded = messages::listed(out.chain(self.unable.clone()).chain(away));
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let least = self.world().side.hop.clients.min;
        let waits_for = match self.rounds.coordinator().phase() {
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
            rounds: self.world().side.manifest.federation().cloud.rounds,
            counted: number(progress.counted),
            goal: number(progress.goal),
            ready: number(progress.ready),
            members: number(progress.members),
            excluded,
            ..JobInfo::default()
        })
    }

    /// What the job's operator should know of it.
    fn notes(&self) -> Vec<String> {
        let (job, federation) = (&self.world().side.manifest.job, self.world().side.manifest.federation());
        if self.world().side.below.is_some() || self.world().evaluator.is_some() || federation.evaluates_at_ends() {
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
}
