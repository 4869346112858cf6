//! Nodes as coordinators: their world is virtual time and the site's links.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tierline_federate::{Contribution, FederateError, Layout, RoundScores, Vectors};
use tierline_node::Time;
use tierline_node::federation::coordination::{Effects, Evaluation, Neighbourhood, News, Published, Start};
use tierline_node::federation::{Assignment, Coordination, Coordinator, Event, Record, Task, Update, Verdict};
use tierline_proto::v1::{Code, Failure};
use tierline_train::data::Dataset;
use tierline_train::federated::{LocalTrainer, Tutor};

use super::network::bytes_of;
use super::{Happening, MESSAGE_BYTES, SimError, Site, ready};

/// What a side that coordinates has for the site to do.
pub(super) enum CoordinatorRequest {
    Tell { member: String, assignment: Assignment, start: Start },
    Answer { member: String, task: Task, verdict: Verdict },
    Offer { exchange: u64, oldest: u64, model: Vec<u8> },
    Ask { exchange: u64, neighbour: String, patience: Duration },
    Gathered { task: Task, contribution: Contribution },
    Finished,
    Round(RoundScores),
    Excluded { member: String, reason: String },
}

/// A model that was made: itself, and what members hold of it.
struct Made {
    own: Arc<Vectors>,
    held: Arc<Vectors>,
}

/// What only the cloud has.
pub(super) struct Cloud {
    /// Where models learn of public examples or of features.
    pub(super) tutor: Option<Tutor>,
    pub(super) evaluator: LocalTrainer,
    /// Held out, where the cloud evaluates.
    pub(super) test: Option<Dataset>,
    /// What members' tasks begin with, where that isn't a model.
    pub(super) said: BTreeMap<String, Arc<Vectors>>,
}

/// The world around a side that coordinates. Processes don't die here, so what
/// is stored is in memory; tests of the machines have them die.
pub(super) struct CoordinatorWorld {
    pub(super) now: Time,
    requests: Vec<CoordinatorRequest>,
    models: BTreeMap<u64, Made>,
    /// Members that gossip.
    edges: BTreeSet<String>,
    /// Of an edge that gossips.
    pub(super) neighbourhood: Option<Neighbourhood>,
    pub(super) cloud: Option<Cloud>,
}

impl CoordinatorWorld {
    pub(super) fn new(initial: &Arc<Vectors>, edges: BTreeSet<String>, cloud: Option<Cloud>) -> Self {
        let first = Made { own: Arc::clone(initial), held: Arc::clone(initial) };
        let models = BTreeMap::from([(0, first)]);
        Self { now: Time::ZERO, requests: Vec::new(), models, edges, neighbourhood: None, cloud }
    }

    /// The model that members start from.
    pub(super) fn held(&self, version: u64) -> Option<&Arc<Vectors>> {
        self.models.get(&version).map(|made| &made.held)
    }
}

impl Effects for CoordinatorWorld {
    type Error = SimError;

    fn failed(error: FederateError) -> SimError {
        error.into()
    }

    fn now(&self) -> Time {
        self.now
    }

    async fn keep(&mut self, _: Vec<Record>) -> Result<(), SimError> {
        Ok(())
    }

    async fn keep_model(&mut self, model: Published<'_>) -> Result<u64, SimError> {
        let held = Arc::new(model.held.clone());
        let own = model.own.map_or_else(|| Arc::clone(&held), |own| Arc::new(own.clone()));
        let bytes = bytes_of(&held);
        self.models.insert(model.version, Made { own, held });
        Ok(bytes)
    }

    async fn retain(&mut self, models: &BTreeSet<u64>, _: Option<&[u64]>) -> Result<(), SimError> {
        self.models.retain(|version, _| models.contains(version));
        Ok(())
    }

    async fn load_model(&mut self, version: u64) -> Result<Vectors, SimError> {
        let made = self.models.get(&version);
        Ok(made.map(|made| Vectors::clone(&made.own)).unwrap_or_default())
    }

    async fn load_update(&mut self, _: &Update) -> Result<Vec<u8>, SimError> {
        Err(FederateError::Broken("nobody restarts in a simulation").into())
    }

    fn forget_update(&mut self, _: &Update) {}

    fn sweep(&mut self, _: &Coordinator) {}

    async fn tell(&mut self, member: &str, assignment: Assignment, start: Start) {
        self.requests.push(CoordinatorRequest::Tell { member: member.to_owned(), assignment, start });
    }

    fn answer(&mut self, member: &str, task: Task, verdict: &Verdict) {
        self.requests.push(CoordinatorRequest::Answer { member: member.to_owned(), task, verdict: verdict.clone() });
    }

    fn gossips(&self, member: &str) -> bool {
        self.edges.contains(member)
    }

    fn neighbourhood(&self) -> Option<Neighbourhood> {
        self.neighbourhood.clone()
    }

    async fn offer(&mut self, exchange: u64, oldest: u64, model: Vec<u8>) -> Result<(), SimError> {
        self.requests.push(CoordinatorRequest::Offer { exchange, oldest, model });
        Ok(())
    }

    fn ask(&mut self, exchange: u64, neighbour: &str, patience: Duration) {
        self.requests.push(CoordinatorRequest::Ask { exchange, neighbour: neighbour.to_owned(), patience });
    }

    fn ask_no_more(&mut self) {}

    async fn gathered(&mut self, task: Task, contribution: Contribution) {
        self.requests.push(CoordinatorRequest::Gathered { task, contribution });
    }

    async fn finished(&mut self, _: u64, _: &Vectors) -> Result<(), SimError> {
        self.requests.push(CoordinatorRequest::Finished);
        Ok(())
    }

    fn listen(&mut self, member: &str, held: &Vectors, contribution: &Contribution) -> Result<(), SimError> {
        match self.cloud.as_mut().and_then(|cloud| cloud.tutor.as_mut()) {
            Some(tutor) => Ok(tutor.hear(member, held, contribution)?),
            None => Ok(()),
        }
    }

    async fn teach(&mut self, _: u64, round: u64, model: &Vectors, _: &Layout) -> Result<Option<Vectors>, SimError> {
        let Some(Cloud { tutor: Some(tutor), said, .. }) = &mut self.cloud else { return Ok(None) };
        let learned = tutor.teach(model, round)?;
        let now = tutor.said().into_iter().flatten();
        said.extend(now.map(|(member, said)| (member.clone(), Arc::new(said.clone()))));
        Ok(Some(learned))
    }

    fn said_bytes(&self, member: &str) -> u64 {
        let said = self.cloud.as_ref().and_then(|cloud| cloud.said.get(member));
        said.map_or(0, |said| bytes_of(said))
    }

    fn evaluate(&mut self, model: &Vectors) -> Result<Option<Evaluation>, SimError> {
        let Some(Cloud { evaluator, test: Some(test), .. }) = &mut self.cloud else { return Ok(None) };
        let scores = evaluator.evaluate(model, test)?;
        Ok(Some(Evaluation { loss: scores.loss, accuracy: scores.accuracy }))
    }

    async fn note(&mut self, news: News<'_>) -> Result<(), SimError> {
        match news {
            News::Round(round) => self.requests.push(CoordinatorRequest::Round(round.clone())),
            News::Excluded { member, reason } => {
                self.requests
                    .push(CoordinatorRequest::Excluded { member: member.to_owned(), reason: reason.to_owned() });
            }
            News::Pending(_) | News::Absent { .. } => {}
        }
        Ok(())
    }
}

impl Site {
    /// One step of a node's coordinator.
    pub(super) fn coordinate(&mut self, at: usize, event: Event) -> Result<(), SimError> {
        self.with_side(at, async |side| side.step(event).await)
    }

    /// Does something with a node's side that coordinates, and what it then asks
    /// for.
    pub(super) fn with_side(
        &mut self,
        at: usize,
        act: impl AsyncFnOnce(&mut Coordination<CoordinatorWorld>) -> Result<(), SimError>,
    ) -> Result<(), SimError> {
        let now = self.clock.now();
        if let Some(side) = &mut self.nodes[at].above {
            side.effects.now = now;
            ready(act(side))?;
            for request in std::mem::take(&mut side.effects.requests) {
                self.perform(at, request)?;
            }
        }
        self.set_alarm(at);
        Ok(())
    }

    fn perform(&mut self, at: usize, request: CoordinatorRequest) -> Result<(), SimError> {
        match request {
            CoordinatorRequest::Tell { member, assignment, start } => {
                let to = self.index[&member];
                self.down(to, MESSAGE_BYTES, Happening::Told(to, assignment, start));
            }
            CoordinatorRequest::Answer { member, task, verdict } => {
                let to = self.index[&member];
                self.down(to, MESSAGE_BYTES, Happening::Answered(to, task, verdict));
            }
            CoordinatorRequest::Offer { exchange, oldest, model } => self.offer(at, exchange, oldest, model),
            CoordinatorRequest::Ask { exchange, neighbour, patience } => {
                let to = self.index[&neighbour];
                let offers = &mut self.nodes[at].offers;
                offers.asks += 1;
                let ask = offers.asks;
                self.clock.at(self.clock.now() + patience, Happening::PatienceEnds { at, from: to, exchange, ask });
                self.across(at, to, MESSAGE_BYTES, Happening::Asked { at: to, from: at, exchange, ask });
            }
            CoordinatorRequest::Gathered { task, contribution } => self.gathered(at, task, contribution)?,
            CoordinatorRequest::Finished => self.over = true,
            CoordinatorRequest::Round(round) => self.rounds.push(round),
            CoordinatorRequest::Excluded { member, reason } => self.excluded.push((member, reason)),
        }
        Ok(())
    }

    /// A member's coordinator hears of an update: its bytes come only if they are
    /// wanted.
    pub(super) fn offered(&mut self, at: usize, update: Update) -> Result<(), SimError> {
        let (parent, member) = (self.parent(at), self.nodes[at].name.clone());
        let would = self.nodes[parent].coordination().coordinator().would(&member, update.task);
        if would.is_none() {
            self.down(at, MESSAGE_BYTES, Happening::Wanted(at, update));
            return Ok(());
        }
        self.with_side(parent, async |side| side.unwanted(&member, update.task).await)
    }

    /// An update is at a member's coordinator.
    pub(super) fn submitted(&mut self, at: usize, update: Update) -> Result<(), SimError> {
        let (parent, member) = (self.parent(at), self.nodes[at].name.clone());
        let below = self.nodes[at].below.as_ref();
        let Some(bytes) = below.and_then(|below| below.member.effects.outgoing(update.task)) else { return Ok(()) };
        self.with_side(parent, async |side| side.submitted(member, update, &bytes).await)
    }

    /// An edge has made its model of an exchange: neighbours that wait get it.
    fn offer(&mut self, at: usize, exchange: u64, oldest: u64, model: Vec<u8>) {
        let offers = &mut self.nodes[at].offers;
        offers.models.retain(|number, _| *number >= oldest);
        offers.models.insert(exchange, Arc::new(model));
        for ((exchange, from), ask) in std::mem::take(&mut offers.wanted) {
            self.asked(at, from, exchange, ask);
        }
    }

    /// A neighbour asks an edge for its model of an exchange.
    pub(super) fn asked(&mut self, at: usize, from: usize, exchange: u64, ask: u64) {
        let offers = &mut self.nodes[at].offers;
        let model = match offers.models.get(&exchange) {
            Some(model) => Ok(Arc::clone(model)),
            None if offers.models.last_key_value().is_some_and(|(newest, _)| *newest > exchange) => {
                Err(Failure::new(Code::NotFound, "it is at a later exchange"))
            }
            None => {
                offers.wanted.insert((exchange, from), ask);
                return;
            }
        };
        // Patience is for an answer: how long the model takes is the link's.
        self.nodes[from].offers.answered = ask;
        let bytes = MESSAGE_BYTES + model.as_ref().map_or(0, |model| model.len() as u64);
        self.across(at, from, bytes, Happening::Heard { at: from, from: at, exchange, model });
    }

    /// A neighbour's model is here, or won't be.
    pub(super) fn heard(
        &mut self,
        at: usize,
        from: usize,
        exchange: u64,
        model: Result<Arc<Vec<u8>>, Failure>,
    ) -> Result<(), SimError> {
        let neighbour = self.nodes[from].name.clone();
        let model = model.map(|model| model.to_vec());
        self.with_side(at, async |side| side.heard(exchange, &neighbour, model).await)
    }

    /// An edge doesn't wait for an answer any longer.
    pub(super) fn patience_ends(&mut self, at: usize, from: usize, exchange: u64, ask: u64) -> Result<(), SimError> {
        // It was answered, or has asked again since, or somebody else.
        let offers = &self.nodes[at].offers;
        if offers.asks != ask || offers.answered == ask {
            return Ok(());
        }
        self.heard(at, from, exchange, Err(Failure::new(Code::DeadlineExceeded, "the model isn't made yet")))
    }
}
