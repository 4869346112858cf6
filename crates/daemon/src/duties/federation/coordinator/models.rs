//! Makes models of what was counted, keeps them, and lets go of them.

use std::time::Instant;

use bytes::Bytes;
use tierline_federate::aggregate::mean_of;
use tierline_federate::{
    Channel, Contribution, Counted, FederateError, HeldOut, Report, RoundScores, Vectors, aggregator, wire,
};
use tierline_node::federation::{Event, Record, Task};
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Code, Empty, Failure};
use tierline_store::jobs::Side;
use tierline_train::Scores;
use tierline_train::federated::seed_of_model;

use super::Coordination;
use crate::duties::federation::folder::Said;
use crate::duties::federation::journal;
use crate::duties::federation::messages::{self, internal};
use crate::duties::federation::participant::ToParticipant;

/// What members begin with is numbered by the model and their place among
/// members, of which there are at most 2^20.
const MEMBER_BITS: u32 = 20;

impl Coordination {
    /// Makes a model, looks at it, and keeps it.
    pub(super) async fn make(
        &mut self,
        version: u64,
        round: u64,
        counted: &[Counted],
        members: usize,
        last: bool,
    ) -> Result<Event, Failure> {
        tokio::task::block_in_place(|| {
            self.aggregator.make(counted, members).map_err(messages::of_round)?;
            if let Some(tutor) = &mut self.tutor {
                let taught = tutor.teach(&self.aggregator.server().model, round).map_err(internal)?;
                self.aggregator.replace(version, &taught);
            }
            Ok::<_, Failure>(())
        })?;
        self.publish(version).await?;
        self.publish_said(version).await?;
        let mut enough = false;
        if self.side.below.is_none() {
            let federation = self.side.manifest.federation();
            let number = round + 1;
            let evaluate = federation.evaluates_behind(number, last);
            let evaluated: Option<Scores> = match self.evaluator.as_mut().filter(|_| evaluate) {
                Some((place, data)) => {
                    let model = &self.aggregator.server().model;
                    Some(tokio::task::block_in_place(|| place.evaluate(model, data)).map_err(internal)?)
                }
                None => None,
            };
            let scores = RoundScores {
                round: number,
                accuracy: evaluated.and_then(|s| s.accuracy),
                loss: evaluated.map(|s| s.loss),
                train_loss: mean_of(counted, |report| report.loss),
                bytes_up: std::mem::take(&mut self.bytes_up),
                bytes_down: std::mem::take(&mut self.bytes_down),
                seconds: std::mem::replace(&mut self.round_began, Instant::now()).elapsed().as_secs_f64(),
                clients: counted.len(),
            };
            let at_ends = federation.evaluates_at_ends();
            let known = self.board.ended(scores.clone(), HeldOut::together(counted), at_ends);
            if let Some(known) = known {
                enough = federation.is_reached(&known);
                self.tell_of(&known).await?;
            }
            if at_ends {
                self.side.folder.save_round(&scores)?;
            }
        }
        Ok(Event::Made { version, enough })
    }

    /// A round of which all is known now.
    pub(super) async fn tell_of(&mut self, round: &RoundScores) -> Result<(), Failure> {
        let json = serde_json::to_value(round).map_err(internal)?;
        let (jobs, id, number, text) = (self.jobs(), self.side.id, round.round, json.to_string());
        jobs.cx.state.with(move |state| state.add_round(id, number, &text)).await?;
        jobs.numbers.round(self.side.metrics_key(), round);
        self.tell_watchers("round", &json);
        Ok(())
    }

    /// Keeps the aggregator's model under a number, for members to fetch.
    pub(super) async fn publish(&mut self, version: u64) -> Result<(), Failure> {
        let (jobs, id) = (self.jobs(), self.side.id);
        let seed = seed_of_model(self.side.manifest.job.seed, version);
        let encoded = tokio::task::block_in_place(|| {
            let difference = self.aggregator.publish(seed)?;
            let mut encoded =
                vec![(Side::Coordinator, wire::encode(self.aggregator.held(), self.aggregator.layout())?)];
            if let Some(difference) = difference {
                let own = wire::encode(&self.aggregator.server().model, self.aggregator.layout())?;
                encoded.extend([(Side::CoordinatorOwn, own), (Side::CoordinatorDifferences, difference)]);
            }
            Ok::<_, FederateError>(encoded)
        });
        let kept = encoded.map_err(internal)?;
        self.artefact_bytes = kept[0].1.len() as u64;
        tokio::task::block_in_place(|| self.side.folder.save_server(version, &self.aggregator.server().kept))?;
        for (side, bytes) in kept {
            let digest = jobs.artefacts.put(Bytes::from(bytes)).await?;
            jobs.cx.state.with(move |state| state.set_version(id, side, version, digest)).await?;
        }
        let mut needed: Vec<u64> = self.coordinator.versions_in_use().into_iter().collect();
        needed.extend([version, self.base().unwrap_or(version)]);
        self.aggregator.retain(&needed.iter().copied().collect());
        jobs.drop_models(id, Side::Coordinator, &needed).await?;
        if let Some(down) = self.aggregator.down() {
            let offered: Vec<u64> = down.leading_to(version).collect();
            jobs.drop_models(id, Side::CoordinatorDifferences, &offered).await?;
            jobs.drop_models(id, Side::CoordinatorOwn, &needed).await?;
        }
        Ok(())
    }

    /// Keeps what members' next tasks begin with, where that differs from one
    /// to the other.
    async fn publish_said(&mut self, version: u64) -> Result<(), Failure> {
        let (jobs, id) = (self.jobs(), self.side.id);
        let Some(said) = self.tutor.as_ref().and_then(|tutor| tutor.said()) else { return Ok(()) };
        let encoded = said.iter().map(|(member, vectors)| {
            let rows = vectors.get(&Channel::Logits).map_or(0, Vec::len);
            let classes =
                self.aggregator.layout().logits.first().and_then(|part| part.shape.last()).copied().unwrap_or(1);
            let layout = self.aggregator.layout().of_examples((rows / classes.max(1)) as u64)?;
            Ok((member.clone(), Bytes::from(wire::encode(vectors, &layout)?)))
        });
        let encoded = tokio::task::block_in_place(|| encoded.collect::<Result<Vec<_>, FederateError>>());
        let encoded = encoded.map_err(internal)?;
        for (number, (member, bytes)) in encoded.into_iter().enumerate() {
            let (key, length) = ((version << MEMBER_BITS) + number as u64, bytes.len() as u64);
            let digest = jobs.artefacts.put(bytes).await?;
            jobs.cx.state.with(move |state| state.set_version(id, Side::Said, key, digest)).await?;
            self.said.insert(member, Said { key, digest, bytes: length });
        }
        self.side.folder.save_said(&self.said)?;
        let needed: Vec<u64> = self.said.values().map(|said| said.key).collect();
        jobs.drop_models(id, Side::Said, &needed).await
    }

    /// Of an edge: the model that its task began with.
    fn base(&self) -> Option<u64> {
        self.side.below.as_ref().map(|_| self.coordinator.base())
    }

    /// A model as members start from it.
    pub(super) async fn load(&mut self, version: u64) -> Result<Vectors, Failure> {
        self.load_of(Side::Coordinator, version).await
    }

    /// A model of this side's own.
    pub(super) async fn load_own(&mut self, version: u64) -> Result<Vectors, Failure> {
        let side = if self.aggregator.down().is_some() { Side::CoordinatorOwn } else { Side::Coordinator };
        self.load_of(side, version).await
    }

    /// Goes on with what members hold, and the differences on offer to them.
    pub(super) async fn take_up_way_down(&mut self, version: u64) -> Result<(), Failure> {
        if self.aggregator.down().is_none() {
            return Ok(());
        }
        let jobs = self.jobs();
        let held = self.load(version).await?;
        let mut offered = Vec::new();
        let id = self.side.id;
        for (to, difference) in
            jobs.cx.state.with(move |state| state.versions(id, Side::CoordinatorDifferences)).await?
        {
            // One that leads further is of a model that is made again.
            if let (true, Some(bytes)) = (to <= version, jobs.artefacts.length(difference).await?) {
                offered.push((to, bytes));
            }
        }
        if let Some(down) = self.aggregator.down_mut() {
            down.hold(held);
            offered.into_iter().for_each(|(to, bytes)| down.offer(to, bytes));
        }
        Ok(())
    }

    async fn load_of(&mut self, side: Side, version: u64) -> Result<Vectors, Failure> {
        let jobs = self.jobs();
        let missing = || Failure::new(Code::Corrupt, format!("model {version} of the job is gone"));
        let id = self.side.id;
        let digest = jobs.cx.state.with(move |state| state.version(id, side, version)).await?.ok_or_else(missing)?;
        let bytes = jobs.artefacts.get(digest).await?;
        tokio::task::block_in_place(|| wire::decode(&bytes, self.aggregator.layout())).map_err(internal)
    }

    /// All rounds of a stretch are done: the cloud's job, or an edge's task.
    pub(super) async fn done(&mut self, stretch: u64, version: u64, counted: &[Counted]) -> Result<(), Failure> {
        let jobs = self.jobs();
        if let Some(below) = self.side.below.clone() {
            let base = match self.coordinator.base() {
                0 => self.parameter_layout.initial(),
                base => self.load_own(base).await?,
            };
            let channels = self.side.manifest.federation().cloud.strategy.channels();
            let vectors =
                tokio::task::block_in_place(|| aggregator::change(&base, &self.aggregator.server().model, &channels));
            let mut report = Report::together(counted);
            report.bytes_up += std::mem::take(&mut self.bytes_up);
            report.bytes_down += std::mem::take(&mut self.bytes_down);
            report.seconds = self.round_began.elapsed().as_secs_f64();
            let done =
                ToParticipant::Gathered { task: Task(stretch - 1), contribution: Contribution { vectors, report } };
            let _ = below.send(done).await;
            return Ok(());
        }
        let model = tokio::task::block_in_place(|| {
            let last = &self.aggregator.server().model;
            let model = match &mut self.tutor {
                Some(tutor) => tutor.conclude(last).map_err(internal)?,
                None => self.parameter_layout.export(last).map_err(internal)?,
            };
            model.to_bytes().map_err(internal)
        })?;
        self.side.folder.write(&self.side.folder.result(), &model)?;
        let id = self.side.id;
        self.keep_end().await?;
        jobs.cx.state.with(move |state| state.end_job(id, "done", "")).await?;
        let json = serde_json::json!({ "version": version });
        jobs.cx.events.record("job", format!("job {} is done", self.side.manifest.name), &json);
        self.tell_watchers("done", &json);
        self.step(Event::End).await?;
        self.clean().await
    }

    /// Nothing but the result is kept of a job that is over.
    pub(super) async fn clean(&mut self) -> Result<(), Failure> {
        self.over = true;
        let jobs = self.jobs();
        for child in jobs.cx.children.names().into_iter().filter(|child| self.passes_on(child)) {
            let over = messages::assignment(self.side.id, "", Want::Over(Empty {}));
            jobs.cx.children.tell(&child, FEDERATION, &over);
        }
        self.side.folder.clear();
        journal::forget::<Record>(&jobs, self.side.id).await?;
        for side in [Side::Coordinator, Side::CoordinatorOwn, Side::CoordinatorDifferences, Side::Offers, Side::Said] {
            jobs.drop_models(self.side.id, side, &[]).await?;
        }
        Ok(())
    }
}
