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

use super::{Desks, ToUpper};
use crate::duties::federation::gossip::{self, Meets, Met};
use crate::duties::federation::messages;
use crate::runtime::tasks::Owned;

/// One under way; whoever drops it doesn't want it any more.
pub(super) struct Meeting {
    /// The model to be made.
    version: u64,
    /// Its number.
    number: u64,
    _task: Owned<()>,
}

impl Desks {
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
        let manifest = &self.upper.manifest;
        let Some(gossip) = manifest.gossip().filter(|_| self.upper.below.is_none()) else { return Vec::new() };
        // Ends that answer the cloud don't gossip.
        let asked = self.coordinator.asked(round);
        let edges: Vec<&str> = asked.into_iter().filter(|edge| self.urls.contains_key(*edge)).collect();
        let seed = seed_of_meeting(manifest.job.seed, round);
        let of = |name: &str| Neighbour { name: name.to_owned(), url: self.urls[name].clone() };
        gossip.graph.neighbours(&edges, member, seed).into_iter().map(of).collect()
    }

    /// The number of the meeting behind the round that closed, if there is one.
    pub(super) fn meets(&self) -> Option<u64> {
        let gossip = self.upper.manifest.gossip().filter(|_| self.upper.below.is_some())?;
        let circle = gossip::circle(&self.upper.folder)?;
        let rounds = self.upper.hop.rounds;
        let within = rounds.checked_sub(self.coordinator.left_of(circle.task + 1)?)?;
        gossip.meets_behind(within).then_some(circle.round * rounds + within)
    }

    /// Makes this edge's own model, offers it to its neighbours, and sets out to
    /// meet theirs.
    pub(super) async fn begin_meeting(
        &mut self,
        version: u64,
        counted: &[Counted],
        members: usize,
    ) -> Result<(), Failure> {
        let (jobs, id) = (self.jobs(), self.upper.id);
        let (Some(number), Some(gossip)) = (self.meets(), self.upper.manifest.gossip()) else { return Ok(()) };
        let seed = seed_of_update(self.upper.manifest.job.seed, jobs.cx.me.name(), number);
        let (mix, bytes) = tokio::task::block_in_place(|| {
            self.desk.make(counted, members)?;
            let (layout, model) = (self.desk.layout(), self.desk.server().model.clone());
            let offer = Offer { examples: Report::together(counted).examples, model: model.clone() };
            let bytes = offer.encode(layout, &gossip.pipeline(), seed)?;
            let offer = Offer::decode(&bytes, layout)?;
            let neighbours = gossip::circle(&self.upper.folder).map_or(0, |circle| circle.names().len());
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
            folder: self.upper.folder.clone(),
            layout: self.desk.layout().clone(),
            gossip,
            number,
        };
        let tasks = jobs.cx.tasks.clone();
        let task = tasks.spawn_then("meeting", meets.all(mix), move |met| async move {
            if let Some(upper) = jobs.get(id).and_then(|sides| sides.upper.clone()) {
                let _ = upper.send(met.map_or_else(ToUpper::Broken, ToUpper::Met)).await;
            }
        });
        self.meeting = Some(Meeting { version, number, _task: task.owned() });
        Ok(())
    }

    /// All neighbours were met that could be.
    pub(super) async fn met(&mut self, met: Met) -> Result<(), Failure> {
        let Some(meeting) = self.meeting.take_if(|meeting| meeting.number == met.number) else { return Ok(()) };
        for (name, reason) in &met.absent {
            let text = format!("job {} goes on without the model of {name}: {reason}", self.upper.manifest.name);
            self.jobs().cx.events.record("job", text, &serde_json::json!({ "node": name, "reason": reason }));
        }
        // Each transfer counts once, where it arrives.
        self.bytes_up += met.bytes;
        self.desk.replace(meeting.version, &met.model);
        self.conclude(meeting).await
    }

    /// Ends a meeting that nobody wants any more.
    pub(super) async fn cut_short(&mut self) -> Result<(), Failure> {
        match self.meeting.take() {
            Some(meeting) => self.conclude(meeting).await,
            None => Ok(()),
        }
    }

    async fn conclude(&mut self, meeting: Meeting) -> Result<(), Failure> {
        self.publish(meeting.version).await?;
        self.step(Event::Made { version: meeting.version, enough: false }).await?;
        self.sweep();
        Ok(())
    }
}
