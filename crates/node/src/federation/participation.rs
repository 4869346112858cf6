//! The lower side of a hop at work: what its [`Participant`] asks for, done.
//!
//! A [`Participation`] listens to the parent that keeps it, and asks whatever
//! its machine wants of its [`MemberEffects`]: a node's, or a simulation's.

use std::sync::Arc;

use tierline_federate::sender::MemberState;
use tierline_federate::{Contribution, FederateError, Layout, Sender, seed};
use tierline_proto::Digest;

use super::home::Change;
use super::{Assignment, Home, MemberAction, MemberEvent, MemberRecord, MemberStatus, Participant, Task, Update, Work};
use crate::{Peer, Rng, Time};

/// The world around a side that takes part: where it stores, how it sends, who
/// trains, what time it is.
///
/// What stores is done, through to the disk, when the call comes back. What
/// sends or trains is only begun: what comes of it is an event.
pub trait MemberEffects: Send {
    /// What can go wrong.
    type Error: Send;

    // Time.

    /// Now.
    fn now(&self) -> Time;

    // Store.

    /// Writes to the journal; in place of all of it when the record says so.
    fn keep(&mut self, record: MemberRecord) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What a task left behind counts from now on, or doesn't.
    ///
    /// # Errors
    /// When it can't be kept.
    fn settle(&mut self, task: Task, counted: bool) -> Result<(), Self::Error>;

    // Send.

    /// Tells the parent what this member is at.
    fn report(&mut self, parent: Option<Peer>, status: &MemberStatus);

    /// Sends an update to the parent.
    fn send(&mut self, parent: Option<Peer>, update: Update);

    // Train.

    /// Fetches the model, opens the data.
    fn prepare(&mut self);

    /// Begins a task, of which the parent knows where it starts.
    fn work(&mut self, parent: Option<Peer>, work: Work);

    /// Stops the task under way; nobody wants it any more.
    fn stop(&mut self, task: Task);

    // The end.

    /// The job is over.
    fn finish(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// This member is left out.
    fn leave(&mut self, reason: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// One member's side of one job.
pub struct Participation<E> {
    /// The world around it.
    pub effects: E,
    participant: Participant,
    home: Home,
    rng: Rng,
}

impl<E: MemberEffects> Participation<E> {
    /// A side that has done nothing yet.
    #[must_use]
    pub fn new(participant: Participant, rng: Rng, effects: E) -> Self {
        Self { effects, participant, home: Home::default(), rng }
    }

    /// What it is at.
    #[must_use]
    pub fn status(&self) -> MemberStatus {
        self.participant.status()
    }

    /// The task it works on.
    #[must_use]
    pub fn working(&self) -> Option<Work> {
        self.participant.working()
    }

    /// The parent that it answers to.
    #[must_use]
    pub fn parent(&self) -> Option<Peer> {
        self.home.parent()
    }

    /// When it wants [`Participation::wakes`].
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        self.participant.wake().into_iter().chain(self.home.wake()).min()
    }

    /// The time that [`Participation::wake`] named.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn wakes(&mut self) -> Result<(), E::Error> {
        let change = self.home.wakes(self.effects.now());
        self.changed(change).await?;
        self.step(MemberEvent::Wake).await
    }

    /// A parent can be reached, or can't any more.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn reaches(&mut self, parent: Peer, up: bool) -> Result<(), E::Error> {
        let now = self.effects.now();
        let change = if up { self.home.up(parent) } else { self.home.down(now, parent) };
        self.changed(change).await
    }

    /// A parent wants something; whether it is the one that this side answers
    /// to.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn asked(&mut self, parent: Peer) -> Result<bool, E::Error> {
        let (own, change) = self.home.asked(parent);
        self.changed(change).await?;
        Ok(own)
    }

    /// Tells the parent what this side is at: something else that is said with
    /// it has changed.
    pub fn report(&mut self) {
        self.effects.report(self.home.parent(), &self.participant.status());
    }

    /// What the parent that this side answers to wants.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn is_told(&mut self, assignment: Assignment) -> Result<(), E::Error> {
        self.step(MemberEvent::Assigned(assignment)).await
    }

    async fn changed(&mut self, change: Option<Change>) -> Result<(), E::Error> {
        match change {
            Some(Change::Up) => self.step(MemberEvent::LinkUp).await,
            Some(Change::Down) => self.step(MemberEvent::LinkDown).await,
            None => Ok(()),
        }
    }

    /// One step of the machine.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn step(&mut self, event: MemberEvent) -> Result<(), E::Error> {
        let actions = self.participant.step(self.effects.now(), &mut self.rng, event);
        self.perform(actions).await
    }

    /// Performs what the machine asked for when it was set up.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn perform(&mut self, actions: Vec<MemberAction>) -> Result<(), E::Error> {
        let parent = self.home.parent();
        for action in actions {
            match action {
                MemberAction::Keep(record) => self.effects.keep(record).await?,
                MemberAction::Prepare => self.effects.prepare(),
                MemberAction::Report(status) => self.effects.report(parent, &status),
                MemberAction::Work(work) => self.effects.work(parent, work),
                MemberAction::Abandon(task) => self.effects.stop(task),
                MemberAction::Send(update) => self.effects.send(parent, update),
                MemberAction::Settle { task, counted } => self.effects.settle(task, counted)?,
                MemberAction::Finish { .. } => self.effects.finish().await?,
                MemberAction::Leave { reason } => self.effects.leave(&reason).await?,
            }
        }
        Ok(())
    }
}

/// An update as it travels, and what the member keeps behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// What is said of it.
    pub update: Update,
    /// Its bytes.
    pub bytes: Arc<Vec<u8>>,
    /// What the member keeps if it is counted. If it isn't, all is as before the
    /// task.
    pub counted: MemberState,
}

/// Who encodes updates, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// How they travel.
    pub sender: &'a Sender,
    /// What their vectors are.
    pub layout: &'a Layout,
    /// The job's seed.
    pub seed: u64,
    /// The member.
    pub member: &'a str,
}

impl Encoder<'_> {
    /// Encodes what came of a task. `before` is what the member kept before it,
    /// `after` what it keeps besides if it is counted.
    ///
    /// # Errors
    /// When a number isn't finite.
    pub fn encode(
        &self,
        work: Work,
        contribution: &Contribution,
        before: &MemberState,
        after: MemberState,
    ) -> Result<Encoded, FederateError> {
        let Work { task, round, .. } = work;
        let seed = seed::of_update(self.seed, self.member, task.number());
        let sent = self.sender.encode(self.layout, &contribution.vectors, before, after, round, seed)?;
        let digest = Digest(*blake3::hash(&sent.bytes).as_bytes());
        let update = Update { task, digest, bytes: sent.bytes.len() as u64, report: contribution.report };
        Ok(Encoded { update, bytes: Arc::new(sent.bytes), counted: sent.counted })
    }
}
