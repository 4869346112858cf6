//! The upper side of a hop at work: what its [`Coordinator`] asks for, done.
//!
//! A [`Coordination`] checks updates, adds them up, makes and publishes models,
//! exchanges them with neighbours, keeps scores, and tells members where their
//! tasks begin. Whatever that takes of the world it asks of its [`Effects`], of
//! which there are two: a node's (its disk, its links, its processor) and a
//! simulation's (virtual time). So what is deployed is what is simulated.

mod effects;
mod exchange;
mod models;

use std::collections::BTreeMap;

use tierline_federate::{
    Aggregator, Contribution, FederateError, Federation, HeldOut, Hop, Report, Scoreboard, aggregate, wire,
};
use tierline_proto::Digest;

pub use self::effects::{Effects, Evaluation, Neighbourhood, News, Published, Start};
use self::exchange::GossipExchange;
use super::{Action, Assignment, Coordinator, Event, MemberStatus, Record, Task, Update};
use crate::Time;

/// What a side goes by.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The job's seed.
    pub seed: u64,
    /// The node's name.
    pub node: String,
    /// Whether it is an edge's side, which answers to another one.
    pub is_edge: bool,
    /// The job's federation.
    pub federation: Federation,
}

/// What a side begins with, or goes on with after a crash.
pub struct Taken {
    /// The machine.
    pub coordinator: Coordinator,
    /// The models.
    pub aggregator: Aggregator,
    /// A round of which members hadn't said all.
    pub board: Scoreboard,
    /// Bytes of the newest model as it travels whole.
    pub model_bytes: u64,
}

/// The upper side of one hop of one job.
///
/// Invariant: a step's records are in the journal before anything else that
/// the step asks for is done.
pub struct Coordination<E> {
    /// The world around it.
    pub effects: E,
    setting: Setting,
    coordinator: Coordinator,
    aggregator: Aggregator,
    board: Scoreboard,
    /// The contribution that has just arrived, checked.
    arrived: Option<(Task, Contribution)>,
    /// The work each member was told of last.
    assigned: BTreeMap<String, Task>,
    /// The model that each member holds, once it has what it was told of.
    holds: BTreeMap<String, u64>,
    /// Of an edge that waits for its neighbours' models.
    exchange: Option<GossipExchange>,
    /// Of updates and models, on all hops below, since the last round.
    bytes_up: u64,
    bytes_down: u64,
    model_bytes: u64,
    round_began: Time,
}

impl<E: Effects> Coordination<E> {
    /// A side that has done nothing yet.
    #[must_use]
    pub fn new(setting: Setting, taken: Taken, effects: E) -> Self {
        let Taken { coordinator, aggregator, board, model_bytes } = taken;
        let round_began = effects.now();
        Self {
            effects,
            setting,
            coordinator,
            aggregator,
            board,
            arrived: None,
            assigned: BTreeMap::new(),
            holds: BTreeMap::new(),
            exchange: None,
            bytes_up: 0,
            bytes_down: 0,
            model_bytes,
            round_began,
        }
    }

    /// The machine, to look at.
    #[must_use]
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The machine, to be told what isn't an event.
    pub fn coordinator_mut(&mut self) -> &mut Coordinator {
        &mut self.coordinator
    }

    /// The models.
    #[must_use]
    pub fn aggregator(&self) -> &Aggregator {
        &self.aggregator
    }

    /// Its own hop.
    fn hop(&self) -> &Hop {
        let Federation { cloud, edge, .. } = &self.setting.federation;
        edge.as_ref().filter(|_| self.setting.is_edge).unwrap_or(cloud)
    }

    /// When it wants [`Coordination::wakes`].
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let exchange = self.exchange.as_ref().and_then(GossipExchange::wake);
        self.coordinator.wake().into_iter().chain(exchange).min()
    }

    /// The time that [`Coordination::wake`] named.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn wakes(&mut self) -> Result<(), E::Error> {
        self.exchange_wakes().await?;
        self.step(Event::Wake).await
    }

    /// One step of the machine, and whatever follows from it.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn step(&mut self, event: Event) -> Result<(), E::Error> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let is_made = matches!(event, Event::Made { .. });
            let actions = self.coordinator.step(self.effects.now(), event);
            next = self.perform_all(actions).await?;
            if is_made {
                self.effects.sweep(&self.coordinator);
            }
        }
        Ok(())
    }

    /// Performs what the machine asked for when it was set up again.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn perform(&mut self, actions: Vec<Action>) -> Result<(), E::Error> {
        match self.perform_all(actions).await? {
            Some(event) => self.step(event).await,
            None => Ok(()),
        }
    }

    /// The event that a model which is made leads to: what the rest of the
    /// actions say is of before.
    async fn perform_all(&mut self, actions: Vec<Action>) -> Result<Option<Event>, E::Error> {
        // All records of a step come first, in one transaction.
        let is_record = |action: &Action| matches!(action, Action::Keep(_));
        let (records, rest): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_record);
        let record = |action| match action {
            Action::Keep(record) => Some(record),
            _ => None,
        };
        let records: Vec<Record> = records.into_iter().filter_map(record).collect();
        if !records.is_empty() {
            self.effects.keep(records).await?;
        }
        let mut made = None;
        for action in rest {
            made = self.act(action).await?.or(made);
        }
        Ok(made)
    }

    async fn act(&mut self, action: Action) -> Result<Option<Event>, E::Error> {
        match action {
            // Kept before.
            Action::Keep(_) => {}
            Action::Tell { member } => self.tell(&member).await,
            Action::Answer { member, task, verdict } => self.effects.answer(&member, task, &verdict),
            Action::Add { member, update, version, staleness } => {
                self.add(member, &update, version, staleness).await?;
            }
            Action::Make { version, round, counted, members, last } => {
                return match self.exchange_behind() {
                    Some(number) => self.begin_exchange(version, number, &counted, members).await,
                    None => self.make(version, round, &counted, members, last).await.map(Some),
                };
            }
            Action::Evaluated { version, counted } => {
                if let Some(known) = self.board.evaluated(HeldOut::together(&counted)) {
                    self.effects.note(News::Round(&known)).await?;
                }
                return Ok(Some(Event::Made { version, enough: false }));
            }
            Action::Done { stretch, version, counted } => self.done(stretch, version, &counted).await?,
            Action::Excluded { member, reason } => {
                self.effects.note(News::Excluded { member: &member, reason: &reason }).await?;
            }
        }
        Ok(None)
    }

    /// A member is at this, and holds this model of its coordinator's.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn reported(&mut self, member: String, status: MemberStatus, holds: u64) -> Result<(), E::Error> {
        self.holds.insert(member.clone(), holds);
        self.step(Event::Member { member: member.clone(), status }).await?;
        if !self.coordinator.knows_member(&member) {
            self.holds.remove(&member);
        }
        Ok(())
    }

    /// Members that were told of work.
    pub fn assigned(&self) -> impl Iterator<Item = &str> {
        self.assigned.keys().map(String::as_str)
    }

    /// Tells a member what is wanted of it now.
    pub async fn tell(&mut self, member: &str) {
        let assignment = self.coordinator.assignment(member);
        let mut start = Start::Nothing;
        if let Assignment::Work { task, version, round, evaluate } = assignment {
            let says = self.setting.federation.transfer().is_some() && !evaluate;
            start = if says { Start::Said } else { self.start(member, version, round) };
            let before = self.assigned.insert(member.to_owned(), task);
            if before != Some(task) {
                // What was sent before a restart was counted by who is gone.
                let sent_before = before.is_none() && self.holds.get(member) == Some(&version);
                let holds = if sent_before { Some(version.saturating_sub(1)) } else { self.holds.get(member).copied() };
                self.bytes_down += match says {
                    true => self.effects.said_bytes(member),
                    false => self.bytes_between(holds.unwrap_or(0), version),
                };
                self.holds.insert(member.to_owned(), version);
            }
        }
        self.effects.tell(member, assignment, start).await;
    }

    /// Where a task begins that starts from a model.
    fn start(&self, member: &str, version: u64, round: u64) -> Start {
        let differences = self.aggregator.down().into_iter().flat_map(|down| down.leading_to(version)).collect();
        Start::Model { version, differences, neighbours: self.neighbours_of(member, round) }
    }

    /// Bytes that take a member to a model: the job's first one whole, others
    /// by what differs where they travel so.
    fn bytes_between(&self, holds: u64, version: u64) -> u64 {
        let followed = self.aggregator.down().filter(|_| version > 0).and_then(|down| down.bytes(holds, version));
        followed.unwrap_or(self.model_bytes)
    }

    /// Why an update of so many bytes is not worth them, before they come.
    #[must_use]
    pub fn too_long(&self, bytes: u64, examples: u64) -> Option<String> {
        let layout = match self.aggregator.layout().of_examples(examples) {
            Ok(layout) => layout,
            Err(error) => return Some(error.to_string()),
        };
        let most = wire::longest(&layout);
        (bytes > most).then(|| format!("an update of {bytes} bytes; one of this model has {most} at most"))
    }

    /// An update is here, its bytes on the disk.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn submitted(&mut self, member: String, update: Update, bytes: &[u8]) -> Result<(), E::Error> {
        let (task, report) = (update.task, update.report);
        if self.coordinator.would(&member, task).is_some() {
            return self.unwanted(&member, task).await;
        }
        let is_evaluation = self.coordinator.is_evaluation(task);
        let check = || {
            let contribution = self.aggregator.read(report, bytes)?;
            match is_evaluation {
                true => aggregate::check_evaluation(&contribution)?,
                false => self.aggregator.check(&contribution)?,
            }
            Ok::<_, FederateError>(contribution)
        };
        let event = match E::compute(check) {
            Ok(contribution) => {
                self.bytes_up += update.bytes + report.bytes_up;
                self.bytes_down += report.bytes_down;
                if is_evaluation {
                    self.effects.forget_update(&update);
                } else {
                    self.arrived = Some((task, contribution));
                }
                Event::Arrived { member, update }
            }
            Err(error) => Event::Unfit { member, task, reason: error.to_string() },
        };
        self.step(event).await
    }

    /// A member would send an answer that isn't wanted any more: it is told so,
    /// and its task is not open for ever.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn unwanted(&mut self, member: &str, task: Task) -> Result<(), E::Error> {
        let update = Update { task, digest: Digest([0; 32]), bytes: 0, report: Report::default() };
        self.step(Event::Arrived { member: member.to_owned(), update }).await
    }

    async fn add(&mut self, member: String, update: &Update, version: u64, staleness: u64) -> Result<(), E::Error> {
        let (task, report) = (update.task, update.report);
        let contribution = match self.arrived.take_if(|(arrived, _)| *arrived == task) {
            Some((_, contribution)) => contribution,
            None => {
                // From before a restart, as is what it took to bring it.
                self.bytes_up += update.bytes + report.bytes_up;
                self.bytes_down += report.bytes_down;
                let bytes = self.effects.load_update(update).await?;
                E::compute(|| self.aggregator.read(report, &bytes)).map_err(E::failed)?
            }
        };
        // Those of an older model would teach what was known then.
        if staleness == 0 {
            self.effects.listen(&member, self.aggregator.held(), &contribution)?;
        }
        E::compute(|| self.aggregator.add(contribution, version, staleness)).map_err(E::failed)
    }
}
