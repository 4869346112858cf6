//! Nodes as members: fetch, train, hold updates, send them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tierline_engine::Stop;
use tierline_federate::{Contribution, Vectors};
use tierline_node::federation::coordination::{Neighbourhood, Start};
use tierline_node::federation::participation::{Encoded, Encoder, MemberEffects};
use tierline_node::federation::{
    Assignment, MemberEvent, MemberRecord, MemberStatus, Participation, Task, Update, Work,
};
use tierline_node::{Peer, Time};
use tierline_train::federated::MemberState;

use super::network::bytes_of;
use super::{Happening, MESSAGE_BYTES, PARENT, SimError, Site, ready};
use crate::clock::seconds;
use crate::workers::{Done, WorkItem};

/// What a member has for the site to do.
pub(super) enum MemberRequest {
    Report(MemberStatus),
    Send(Update),
    Work(Work),
    Stop(Task),
}

/// The world around a member.
#[derive(Default)]
pub(super) struct MemberWorld {
    now: Time,
    requests: Vec<MemberRequest>,
    /// The update that waits to be counted.
    update: Option<Encoded>,
    /// What it keeps between its tasks.
    kept: MemberState,
}

impl MemberWorld {
    /// The update of a task, as it travels.
    pub(super) fn outgoing(&self, task: Task) -> Option<Arc<Vec<u8>>> {
        let update = self.update.as_ref().filter(|encoded| encoded.update.task == task);
        update.map(|encoded| Arc::clone(&encoded.bytes))
    }
}

impl MemberEffects for MemberWorld {
    type Error = SimError;

    fn now(&self) -> Time {
        self.now
    }

    async fn keep(&mut self, _: MemberRecord) -> Result<(), SimError> {
        Ok(())
    }

    fn settle(&mut self, _: Task, counted: bool) -> Result<(), SimError> {
        if let Some(update) = self.update.take().filter(|_| counted) {
            self.kept = update.counted;
        }
        Ok(())
    }

    fn report(&mut self, _: Option<Peer>, status: &MemberStatus) {
        self.requests.push(MemberRequest::Report(status.clone()));
    }

    fn send(&mut self, _: Option<Peer>, update: Update) {
        self.requests.push(MemberRequest::Send(update));
    }

    fn prepare(&mut self) {}

    fn work(&mut self, _: Option<Peer>, work: Work) {
        self.requests.push(MemberRequest::Work(work));
    }

    fn stop(&mut self, task: Task) {
        self.requests.push(MemberRequest::Stop(task));
    }

    async fn finish(&mut self) -> Result<(), SimError> {
        Ok(())
    }

    async fn leave(&mut self, _: &str) -> Result<(), SimError> {
        Ok(())
    }
}

impl Site {
    /// One step of a node's participant.
    pub(super) fn take_part(&mut self, at: usize, event: MemberEvent) -> Result<(), SimError> {
        self.with_member(at, async |member| member.step(event).await)
    }

    /// A node's link to its parent came or went.
    pub(super) fn links(&mut self, at: usize, up: bool) -> Result<(), SimError> {
        self.with_member(at, async |member| member.reaches(PARENT, up).await)
    }

    /// Does something with a node's side that takes part, and what it then asks
    /// for.
    pub(super) fn with_member(
        &mut self,
        at: usize,
        act: impl AsyncFnOnce(&mut Participation<MemberWorld>) -> Result<(), SimError>,
    ) -> Result<(), SimError> {
        let now = self.clock.now();
        if let Some(below) = &mut self.nodes[at].below {
            below.member.effects.now = now;
            ready(act(&mut below.member))?;
            for request in std::mem::take(&mut below.member.effects.requests) {
                self.perform_below(at, request)?;
            }
        }
        self.set_alarm(at);
        Ok(())
    }

    fn perform_below(&mut self, at: usize, request: MemberRequest) -> Result<(), SimError> {
        match request {
            MemberRequest::Report(status) => {
                let holds = self.nodes[at].below.as_ref().map_or(0, |below| below.holds);
                self.up(at, MESSAGE_BYTES, Happening::Reported(at, status, holds));
            }
            MemberRequest::Work(work) => {
                let bytes = self.bytes_to(at, work);
                self.fetch(at, bytes + MESSAGE_BYTES, work);
            }
            MemberRequest::Stop(task) => {
                if let Some(trainee) = &mut self.nodes[at].trainee
                    && trainee.running.as_ref().is_some_and(|(work, ..)| work.task == task)
                    && let Some((_, _, stop)) = trainee.running.take()
                {
                    stop.pull();
                }
            }
            MemberRequest::Send(update) => {
                let task = update.task;
                if !self.up(at, MESSAGE_BYTES, Happening::Offered(at, update)) {
                    self.take_part(at, MemberEvent::Unsent { task })?;
                }
            }
        }
        Ok(())
    }

    /// A member sends the bytes of an update.
    pub(super) fn send_update(&mut self, at: usize, update: Update) -> Result<(), SimError> {
        let (bytes, task) = (update.bytes, update.task);
        match self.up(at, bytes, Happening::Submitted(at, update)) {
            true => Ok(()),
            false => self.take_part(at, MemberEvent::Unsent { task }),
        }
    }

    /// A member hears what its coordinator wants of it.
    pub(super) fn told(&mut self, at: usize, assignment: Assignment, start: Start) -> Result<(), SimError> {
        // What was on its way when the link broke is lost with it.
        if !self.is_reachable(at) {
            return Ok(());
        }
        if let (Assignment::Work { task, round, .. }, Start::Model { neighbours, .. }) = (&assignment, start)
            && let (Some(side), false) = (&mut self.nodes[at].above, neighbours.is_empty())
        {
            let before = side.effects.neighbourhood.take().filter(|before| before.task == *task);
            let mut all: BTreeSet<String> = before.into_iter().flat_map(|before| before.neighbours).collect();
            all.extend(neighbours);
            let neighbours = all.into_iter().collect();
            side.effects.neighbourhood = Some(Neighbourhood { task: *task, round: *round, neighbours });
        }
        self.with_member(at, async |member| match member.asked(PARENT).await? {
            true => member.is_told(assignment).await,
            false => Ok(()),
        })
    }

    /// What a member's task begins with: its parent's model, or what is said of
    /// its own examples.
    fn start_of(&self, at: usize, work: Work) -> Option<Arc<Vectors>> {
        let world = &self.nodes[self.parent(at)].above.as_ref()?.effects;
        if let (Some(_), false) = (self.federation.transfer(), work.evaluate) {
            let said = world.cloud.as_ref().and_then(|cloud| cloud.said.get(&self.nodes[at].name));
            return Some(said.cloned().unwrap_or_default());
        }
        world.held(work.version).cloned()
    }

    /// Bytes that take a member to what a task begins with: a model whole, or by
    /// what differs where models travel so.
    fn bytes_to(&self, at: usize, work: Work) -> u64 {
        let whole = self.start_of(at, work).map_or(0, |start| bytes_of(&start));
        let says = self.federation.transfer().is_some() && !work.evaluate;
        let (Some(below), Some(side)) = (&self.nodes[at].below, &self.nodes[self.parent(at)].above) else { return 0 };
        let down = side.aggregator().down().filter(|_| work.version > 0 && !says);
        down.and_then(|down| down.bytes(below.holds, work.version)).unwrap_or(whole)
    }

    /// The model of a task is there: an end trains, an edge begins rounds.
    pub(super) fn fetched(&mut self, at: usize, work: Work) -> Result<(), SimError> {
        let wanted = self.nodes[at].below.as_ref().and_then(|b| b.member.working()) == Some(work);
        let start = self.start_of(at, work);
        let (true, Some(start)) = (wanted, start) else { return Ok(()) };
        let now = self.clock.now();
        self.moved_at = now;
        let node = &mut self.nodes[at];
        let Some(below) = &mut node.below else { return Ok(()) };
        below.holds = work.version;
        if let Some(trainee) = &mut node.trainee {
            let stop = Stop::asked();
            // An evaluation takes next to nothing beside training.
            let epochs = if work.evaluate { 0 } else { self.epochs };
            let examples = trainee.share.seen.len() as f64 * epochs as f64;
            let done = now + seconds(examples / trainee.examples_per_s);
            let item = WorkItem {
                member: node.name.clone(),
                round: work.round,
                start,
                share: Arc::clone(&trainee.share),
                evaluate: work.evaluate,
                model: trainee.model,
                kept: below.member.effects.kept.clone(),
                stop: stop.clone(),
            };
            let ticket = self.workers.queue(done, item);
            trainee.running = Some((work, ticket, stop));
            self.clock.at(done, Happening::Worked(at, work.task));
            return Ok(());
        }
        self.with_side(at, async |side| side.begin(work.task, &start, work.evaluate).await)
    }

    pub(super) fn worked(&mut self, at: usize, task: Task) -> Result<(), SimError> {
        self.moved_at = self.clock.now();
        let Some(trainee) = &mut self.nodes[at].trainee else { return Ok(()) };
        if trainee.running.as_ref().is_none_or(|(work, ..)| work.task != task) {
            return Ok(());
        }
        let Some((work, ticket, _)) = trainee.running.take() else { return Ok(()) };
        let Done { result, kept, own } = self.workers.collect(ticket).ok_or(SimError::Worker)?;
        if let Some(own) = own {
            self.own.insert(self.nodes[at].name.clone(), own);
        }
        let result = match result {
            Ok(Some(mut contribution)) => {
                let attack = self.nodes[at].trainee.as_ref().and_then(|t| t.attack);
                if let Some(attack) = attack {
                    attack.spoil(&mut contribution.vectors);
                }
                Ok(self.hold(at, work, &contribution, kept)?)
            }
            Ok(None) => return Ok(()),
            Err(error) => Err(error.to_string()),
        };
        self.take_part(at, MemberEvent::Worked { task, result })
    }

    /// The rounds of an edge's task are done.
    pub(super) fn gathered(&mut self, at: usize, task: Task, mut contribution: Contribution) -> Result<(), SimError> {
        let Some(below) = &self.nodes[at].below else { return Ok(()) };
        let Some(work) = below.member.working().filter(|work| work.task == task) else { return Ok(()) };
        if work.evaluate {
            contribution.vectors.clear();
        }
        let kept = below.member.effects.kept.clone();
        let result = Ok(self.hold(at, work, &contribution, kept)?);
        self.take_part(at, MemberEvent::Worked { task, result })
    }

    /// Keeps a contribution, as it travels, until it is counted.
    fn hold(
        &mut self,
        at: usize,
        work: Work,
        contribution: &Contribution,
        after: MemberState,
    ) -> Result<Update, SimError> {
        let parent = self.parent(at);
        let layout = self.nodes[parent].coordination().aggregator().layout();
        let (sender, layout) = (self.sender_to(parent), layout.of_examples(contribution.report.examples)?);
        let node = &mut self.nodes[at];
        let Some(below) = &mut node.below else { return Err(SimError::Worker) };
        let encoder = Encoder { sender: &sender, layout: &layout, seed: self.seed, member: &node.name };
        let world = &mut below.member.effects;
        let encoded = encoder.encode(work, contribution, &world.kept, after)?;
        let update = encoded.update.clone();
        world.update = Some(encoded);
        Ok(update)
    }
}
