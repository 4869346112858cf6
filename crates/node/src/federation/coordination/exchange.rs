//! Edges that gossip: the cloud says who exchanges models with whom, an edge
//! does so between two of its rounds.

use std::collections::VecDeque;

use tierline_federate::gossip::{Mix, Offer};
use tierline_federate::{Counted, FederateError, Report, seed};
use tierline_proto::v1::{Code, Failure};

use super::{Coordination, Effects, News};
use crate::Time;
use crate::federation::exchange::{Action, Event as ExchangeEvent};
use crate::federation::{Event, Exchange};

/// One under way.
pub(super) struct GossipExchange {
    /// The model to be made.
    version: u64,
    number: u64,
    machine: Exchange,
    mix: Mix,
    /// Who was asked last.
    asked: Option<String>,
}

impl GossipExchange {
    pub(super) fn wake(&self) -> Option<Time> {
        self.machine.wake()
    }
}

impl<E: Effects> Coordination<E> {
    /// Whom an edge exchanges models with in a round of the cloud.
    pub(super) fn neighbours_of(&self, member: &str, round: u64) -> Vec<String> {
        let gossip = self.setting.federation.edge.as_ref().and_then(|edge| edge.gossip.as_ref());
        let Some(gossip) = gossip.filter(|_| !self.setting.is_edge) else { return Vec::new() };
        // Ends that answer the cloud don't gossip.
        let asked = self.coordinator.asked(round);
        let edges: Vec<&str> = asked.into_iter().filter(|edge| self.effects.gossips(edge)).collect();
        let seed = seed::of_exchange(self.setting.seed, round);
        gossip.graph.neighbours(&edges, member, seed).into_iter().map(str::to_owned).collect()
    }

    /// The number of the exchange behind the round that closed, if there is one.
    pub(super) fn exchange_behind(&self) -> Option<u64> {
        let gossip = self.hop().gossip.as_ref().filter(|_| self.setting.is_edge)?;
        let neighbourhood = self.effects.neighbourhood()?;
        let rounds = self.hop().rounds;
        let within = rounds.checked_sub(self.coordinator.left_of(neighbourhood.task.0 + 1)?)?;
        gossip.meets_behind(within).then_some(neighbourhood.round * rounds + within)
    }

    /// Makes this edge's own model, offers it to its neighbours, and sets out to
    /// mix in theirs. What follows if there are none.
    pub(super) async fn begin_exchange(
        &mut self,
        version: u64,
        number: u64,
        counted: &[Counted],
        members: usize,
    ) -> Result<Option<Event>, E::Error> {
        let Some(gossip) = self.hop().gossip.clone() else { return Ok(None) };
        let neighbours = self.effects.neighbourhood().map_or_else(Vec::new, |neighbourhood| neighbourhood.neighbours);
        let seed = seed::of_update(self.setting.seed, &self.setting.node, number);
        let make = || {
            self.aggregator.make(counted, members)?;
            let (layout, model) = (self.aggregator.layout(), self.aggregator.server().model.clone());
            let offer = Offer { examples: Report::together(counted).examples, model: model.clone() };
            let bytes = offer.encode(layout, &gossip.pipeline(), seed)?;
            let offer = Offer::decode(&bytes, layout)?;
            Ok::<_, FederateError>((Mix::new(model, offer, neighbours.len()), bytes))
        };
        let (mix, bytes) = E::compute(make).map_err(E::failed)?;
        // A neighbour may be one exchange behind.
        self.effects.offer(number, number.saturating_sub(gossip.every), bytes).await?;
        let machine = Exchange::new(neighbours, &gossip);
        self.exchange = Some(GossipExchange { version, number, machine, mix, asked: None });
        self.exchange_steps(ExchangeEvent::Start).await
    }

    /// A neighbour's model of an exchange came, or can't be had.
    ///
    /// # Errors
    /// Those of the effects.
    pub async fn heard(
        &mut self,
        exchange: u64,
        neighbour: &str,
        model: Result<Vec<u8>, Failure>,
    ) -> Result<(), E::Error> {
        let Some(under_way) = self.exchange.as_mut().filter(|under_way| under_way.number == exchange) else {
            return Ok(());
        };
        if under_way.asked.take_if(|asked| asked == neighbour).is_none() {
            return Ok(());
        }
        let event = match model {
            Ok(bytes) => {
                let layout = self.aggregator.layout();
                match E::compute(|| under_way.mix.meet(&Offer::decode(&bytes, layout)?)) {
                    Ok(()) => {
                        // Each transfer counts once, where it arrives.
                        self.bytes_up += bytes.len() as u64;
                        ExchangeEvent::Mixed
                    }
                    Err(error) => ExchangeEvent::Failed(Failure::new(Code::InvalidInput, error.to_string())),
                }
            }
            Err(failure) => ExchangeEvent::Failed(failure),
        };
        self.exchange_goes_on(event).await
    }

    /// Whatever it is waiting for may be there now.
    pub(super) async fn exchange_wakes(&mut self) -> Result<(), E::Error> {
        match &self.exchange {
            Some(_) => self.exchange_goes_on(ExchangeEvent::Wake).await,
            None => Ok(()),
        }
    }

    /// Ends one that nobody wants any more.
    pub(super) async fn cut_exchange_short(&mut self) -> Result<(), E::Error> {
        let Some(exchange) = self.exchange.take() else { return Ok(()) };
        self.effects.ask_no_more();
        let event = self.conclude(exchange.version).await?;
        self.step(event).await
    }

    /// Forgets one that is under way: the job is over.
    pub fn forget_exchange(&mut self) {
        self.exchange = None;
        self.effects.ask_no_more();
    }

    async fn exchange_goes_on(&mut self, event: ExchangeEvent) -> Result<(), E::Error> {
        match self.exchange_steps(event).await? {
            Some(event) => self.step(event).await,
            None => Ok(()),
        }
    }

    /// One step of the exchange: what follows when it is over.
    async fn exchange_steps(&mut self, event: ExchangeEvent) -> Result<Option<Event>, E::Error> {
        let now = self.effects.now();
        let Some(exchange) = &mut self.exchange else { return Ok(None) };
        let number = exchange.number;
        let mut actions = VecDeque::from(exchange.machine.step(now, event));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Ask { neighbour, patience } => {
                    self.effects.ask(number, &neighbour, patience);
                    if let Some(exchange) = &mut self.exchange {
                        exchange.asked = Some(neighbour);
                    }
                }
                Action::Absent { neighbour, reason } => {
                    let reason = reason.to_string();
                    self.effects.note(News::Absent { neighbour: &neighbour, reason: &reason }).await?;
                }
                Action::Done => {
                    let Some(GossipExchange { version, mix, .. }) = self.exchange.take() else { return Ok(None) };
                    let mixed = E::compute(|| mix.mixed());
                    self.aggregator.replace(version, &mixed);
                    return self.conclude(version).await.map(Some);
                }
            }
        }
        Ok(None)
    }

    async fn conclude(&mut self, version: u64) -> Result<Event, E::Error> {
        self.publish(version).await?;
        Ok(Event::Made { version, enough: false })
    }
}
