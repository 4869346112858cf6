//! Edges that gossip: an edge's model crosses its link to the cloud's network
//! and each neighbour's, and is mixed in once it is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use tierline_federate::gossip::{Mix, Offer};
use tierline_federate::{Counted, Gossip, Report};
use tierline_node::federation::Event;
use tierline_train::federated::{seed_of_meeting, seed_of_model, seed_of_update};

use super::{Happening, Node, SimError, Site};

/// What an edge knows of its neighbours.
#[derive(Default)]
pub(super) struct Neighbourhood {
    exchange: Option<GossipExchange>,
    /// Models that are here, by meeting and whose they are.
    heard: BTreeMap<(u64, usize), Arc<Offer>>,
}

/// One that waits for neighbours' models.
struct GossipExchange {
    number: u64,
    version: u64,
    own: Arc<Offer>,
    /// By name.
    neighbours: Vec<usize>,
}

impl Site {
    /// The number of the meeting behind the round that closed, if there is one.
    pub(super) fn meets(&self, at: usize) -> Option<(u64, Gossip)> {
        let gossip = self.gossip.clone().filter(|_| at > 0)?;
        let work = self.nodes[at].below.as_ref()?.participant.working()?;
        let left = self.nodes[at].above.as_ref()?.coordinator.left_of(work.task.0 + 1)?;
        let within = self.edge_rounds.checked_sub(left)?;
        gossip.meets_behind(within).then_some((work.round * self.edge_rounds + within, gossip))
    }

    /// Makes an edge's own model and sends it to its neighbours.
    pub(super) fn begin_exchange(
        &mut self,
        at: usize,
        (number, gossip): (u64, Gossip),
        counted: &[Counted],
        members: usize,
    ) -> Result<(), SimError> {
        let neighbours = self.neighbours(at, &gossip);
        let seed = seed_of_update(self.seed, &self.nodes[at].name, number);
        let Some(above) = &mut self.nodes[at].above else { return Ok(()) };
        above.aggregator.make(counted, members)?;
        let model = above.aggregator.server().model.clone();
        let own = Offer { examples: Report::together(counted).examples, model };
        let layout = above.aggregator.layout();
        let encoded = own.encode(layout, &gossip.pipeline(), seed)?;
        let (own, bytes) = (Arc::new(Offer::decode(&encoded, layout)?), encoded.len() as u64);
        let version = above.aggregator.version();
        for &to in &neighbours {
            let then = Box::new(Happening::Met { at: to, from: at, number, offer: Arc::clone(&own) });
            if self.up(at, bytes, Happening::Falling { to, bytes, then }) {
                self.bytes_up += bytes;
            }
        }
        self.nodes[at].neighbourhood.exchange = Some(GossipExchange { number, version, own, neighbours });
        if let Some(deadline) = gossip.deadline() {
            self.clock.at(self.clock.now() + deadline, Happening::MeetingEnds(at, number));
        }
        self.meet(at, false)
    }

    fn neighbours(&self, at: usize, gossip: &Gossip) -> Vec<usize> {
        let (Some(cloud), Some(below)) = (&self.nodes[0].above, &self.nodes[at].below) else { return Vec::new() };
        let Some(work) = below.participant.working() else { return Vec::new() };
        let edge = |name: &&str| self.nodes[self.index[*name]].above.is_some();
        let edges: Vec<&str> = cloud.coordinator.asked(work.round).into_iter().filter(edge).collect();
        let seed = seed_of_meeting(self.seed, work.round);
        let neighbours = gossip.graph.neighbours(&edges, &self.nodes[at].name, seed);
        neighbours.into_iter().map(|name| self.index[name]).collect()
    }

    /// A neighbour's model is there.
    pub(super) fn hear(&mut self, at: usize, from: usize, number: u64, offer: Arc<Offer>) -> Result<(), SimError> {
        self.nodes[at].neighbourhood.heard.insert((number, from), offer);
        self.meet(at, false)
    }

    /// An edge doesn't wait any longer.
    pub(super) fn meeting_ends(&mut self, at: usize, number: u64) -> Result<(), SimError> {
        let waits = self.nodes[at].neighbourhood.exchange.as_ref().is_some_and(|exchange| exchange.number == number);
        if waits { self.meet(at, true) } else { Ok(()) }
    }

    /// Mixes what is there, if all is or nobody waits for more.
    fn meet(&mut self, at: usize, late: bool) -> Result<(), SimError> {
        let Node { neighbourhood: Neighbourhood { exchange, heard }, above, .. } = &mut self.nodes[at];
        let ready = |m: &mut GossipExchange| late || m.neighbours.iter().all(|n| heard.contains_key(&(m.number, *n)));
        let Some(exchange) = exchange.take_if(ready) else { return Ok(()) };
        let Some(above) = above else { return Ok(()) };
        let model = above.aggregator.server().model.clone();
        let mut mix = Mix::new(model, Offer::clone(&exchange.own), exchange.neighbours.len());
        for neighbour in &exchange.neighbours {
            if let Some(offer) = heard.get(&(exchange.number, *neighbour)) {
                mix.meet(offer)?;
            }
        }
        heard.retain(|(number, _), _| *number > exchange.number);
        above.aggregator.replace(exchange.version, &mix.mixed());
        self.conclude(at, exchange.version)
    }

    /// Ends a meeting that nobody wants any more.
    pub(super) fn cut_short(&mut self, at: usize) -> Result<(), SimError> {
        match self.nodes[at].neighbourhood.exchange.take() {
            Some(exchange) => self.conclude(at, exchange.version),
            None => Ok(()),
        }
    }

    /// A node's model can be had by its members.
    pub(super) fn publish(&mut self, at: usize, version: u64) -> Result<(), SimError> {
        let Some(above) = &mut self.nodes[at].above else { return Ok(()) };
        above.aggregator.publish(seed_of_model(self.seed, version))?;
        above.published.insert(version, Arc::new(above.aggregator.held().clone()));
        Ok(())
    }

    fn conclude(&mut self, at: usize, version: u64) -> Result<(), SimError> {
        self.publish(at, version)?;
        self.let_go(at, version);
        self.coordinate(at, Event::Made { version, enough: false })
    }
}
