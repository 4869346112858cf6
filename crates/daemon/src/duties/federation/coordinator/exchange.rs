//! Edges that gossip: the cloud says who meets whom, an edge meets its
//! neighbours between two of its rounds.

use std::sync::Arc;

use bytes::Bytes;
use tierline_federate::gossip::{Mix, Offer};
use tierline_federate::{Counted, FederateError, Report};
use tierline_node::federation::Event;
use tierline_proto::v1::{Failure, Neighbour};
use tierline_store::jobs::Side;
use tierline_train::federated::{seed_of_meeting, seed_of_update};

use super::{Coordination, ToCoordinator};
use crate::duties::federation::gossip::{self, Meets, Met};
use crate::duties::federation::messages;
use crate::runtime::tasks::Owned;

/// One under way; whoever drops it doesn't want it any more.
pub(super) struct GossipExchange {
    /// The model to be made.
    version: u64,
    /// Its number.
    number: u64,
    _task: Owned<()>,
}

impl Coordination {
    /// A member says where it is reached: its neighbours should know.
    pub(super) async fn reached_at(&mut self, member: &str, url: String) {
        if url.is_empty() || self.urls.get(member) == Some(&url) {
            return;
        }
        self.urls.insert(member.to_owned(), url);
        let others: Vec<String> = self.told.keys().filter(|other| *other != member).cloned().collect();
        for other in &others {
            self.tell(other).await;
        }
    }

    /// Whom an edge meets in a round of the cloud.
    pub(super) fn neighbours_of(&self, member: &str, round: u64) -> Vec<Neighbour> {
        let manifest = &self.side.manifest;
        let Some(gossip) = manifest.gossip().filter(|_| self.side.below.is_none()) else { return Vec::new() };
        // Ends that answer the cloud don't gossip.
        let asked = self.coordinator.asked(round);
        let edges: Vec<&str> = asked.into_iter().filter(|edge| self.urls.contains_key(*edge)).collect();
        let seed = seed_of_meeting(manifest.job.seed, round);
        let of = |name: &str| Neighbour { name: name.to_owned(), url: self.urls[name].clone() };
        gossip.graph.neighbours(&edges, member, seed).into_iter().map(of).collect()
    }

    /// The number of the meeting behind the round that closed, if there is one.
    pub(super) fn meets(&self) -> Option<u64> {
        let gossip = self.side.manifest.gossip().filter(|_| self.side.below.is_some())?;
        let neighbourhood = gossip::neighbourhood(&self.side.folder)?;
        let rounds = self.side.hop.rounds;
        let within = rounds.checked_sub(self.coordinator.left_of(neighbourhood.task + 1)?)?;
        gossip.meets_behind(within).then_some(neighbourhood.round * rounds + within)
    }

    /// Makes this edge's own model, offers it to its neighbours, and sets out to
    /// meet theirs.
    pub(super) async fn begin_exchange(
        &mut self,
        version: u64,
        counted: &[Counted],
        members: usize,
    ) -> Result<(), Failure> {
        let (jobs, id) = (self.jobs(), self.side.id);
        let (Some(number), Some(gossip)) = (self.meets(), self.side.manifest.gossip()) else { return Ok(()) };
        let seed = seed_of_update(self.side.manifest.job.seed, jobs.cx.me.name(), number);
        let (mix, bytes) = tokio::task::block_in_place(|| {
            self.aggregator.make(counted, members)?;
            let (layout, model) = (self.aggregator.layout(), self.aggregator.server().model.clone());
            let offer = Offer { examples: Report::together(counted).examples, model: model.clone() };
            let bytes = offer.encode(layout, &gossip.pipeline(), seed)?;
            let offer = Offer::decode(&bytes, layout)?;
            let neighbours =
                gossip::neighbourhood(&self.side.folder).map_or(0, |neighbourhood| neighbourhood.names().len());
            Ok::<_, FederateError>((Mix::new(model, offer, neighbours), Bytes::from(bytes)))
        })
        .map_err(messages::of_round)?;
        let digest = jobs.artefacts.put(bytes).await?;
        jobs.cx.state.with(move |state| state.set_version(id, Side::Offers, number, digest)).await?;
        // A neighbour may be one meeting behind.
        let before = number.saturating_sub(gossip.every);
        jobs.drop_models(id, Side::Offers, &[before, number]).await?;
        jobs.offered.notify_waiters();
        let meets = Meets {
            jobs: Arc::clone(&jobs),
            id,
            folder: self.side.folder.clone(),
            layout: self.aggregator.layout().clone(),
            gossip,
            number,
        };
        let tasks = jobs.cx.tasks.clone();
        let task = tasks.spawn_then("gossip exchange", meets.all(mix), move |met| async move {
            if let Some(coordinator) = jobs.get(id).and_then(|sides| sides.coordinator.clone()) {
                let _ = coordinator.send(met.map_or_else(ToCoordinator::Broken, ToCoordinator::Met)).await;
            }
        });
        self.exchange = Some(GossipExchange { version, number, _task: task.owned() });
        Ok(())
    }

    /// All neighbours were met that could be.
    pub(super) async fn met(&mut self, met: Met) -> Result<(), Failure> {
        let Some(exchange) = self.exchange.take_if(|exchange| exchange.number == met.number) else { return Ok(()) };
        for (name, reason) in &met.absent {
            let text = format!("job {} goes on without the model of {name}: {reason}", self.side.manifest.name);
            self.jobs().cx.events.record("job", text, &serde_json::json!({ "node": name, "reason": reason }));
        }
        // Each transfer counts once, where it arrives.
        self.bytes_up += met.bytes;
        self.aggregator.replace(exchange.version, &met.model);
        self.conclude(exchange).await
    }

    /// Ends a meeting that nobody wants any more.
    pub(super) async fn cut_short(&mut self) -> Result<(), Failure> {
        match self.exchange.take() {
            Some(exchange) => self.conclude(exchange).await,
            None => Ok(()),
        }
    }

    async fn conclude(&mut self, exchange: GossipExchange) -> Result<(), Failure> {
        self.publish(exchange.version).await?;
        self.step(Event::Made { version: exchange.version, enough: false }).await?;
        self.sweep();
        Ok(())
    }
}
