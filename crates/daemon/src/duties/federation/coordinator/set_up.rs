//! Takes a job up: its model, its journal, the data that judges it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tierline_federate::{Aggregator, Federation, Layout, Scoreboard, Server, Vectors, wire};
use tierline_graph::Model;
use tierline_node::Time;
use tierline_node::admit::Class;
use tierline_node::federation::coordination::{Setting, Taken};
use tierline_node::federation::{Action, Coordination, Coordinator, Event, Record, Terms};
use tierline_proto::v1::Failure;
use tierline_store::jobs::Side;
use tierline_train::data::{Dataset, seed_of};
use tierline_train::federated::{LocalTrainer, ParameterLayout, Tutor};

use super::world::CoordinatorWorld;
use super::{Coordinating, CoordinatorSide};
use crate::duties::federation::Jobs;
use crate::duties::federation::classes::Classes;
use crate::duties::federation::data;
use crate::duties::federation::journal;
use crate::duties::federation::messages::internal;
use crate::duties::federation::spill::OnDisk;

impl CoordinatorSide {
    /// Takes up the job where its journal ends.
    pub(super) async fn set_up(self) -> Result<Coordinating, Failure> {
        let jobs = Arc::clone(&self.jobs);
        jobs.artefacts.ensure(self.manifest.model).await?;
        let model = jobs.artefacts.get(self.manifest.model).await?;
        let model_bytes = model.len() as u64;
        let said = self.folder.load_said()?;
        let parameter_layout = tokio::task::block_in_place(|| {
            let model = Model::parse(model).map_err(internal)?;
            ParameterLayout::new(model, &self.manifest.job).map_err(internal)
        })?;
        let id = self.id;
        let past = jobs.cx.state.with(move |state| state.rounds(id)).await?;
        let past: Vec<_> = past.iter().filter_map(|scores| serde_json::from_str(scores).ok()).collect();
        jobs.numbers.begin(self.metrics_key(), &self.manifest.name, &past);
        let (is_edge, federation) = (self.below.is_some(), self.manifest.federation());
        let terms = Terms {
            clients: self.hop.clients.clone(),
            timing: self.hop.strategy.behaviour().timing(),
            seed: seed_of(&[self.manifest.job.seed, u64::from(is_edge)]),
            tag: if is_edge { tag_of(&jobs) } else { 0 },
            sums_up: is_edge,
        };
        let journal = self.journal(&terms, parameter_layout.layout()).await?;
        let (coordinator, actions) = Coordinator::restored(terms, journal, jobs.cx.clock.now());
        let channels = self.hop.strategy.makes();
        let initial: Vectors = parameter_layout.initial().into_iter().filter(|(c, _)| channels.contains(c)).collect();
        let version = coordinator.version();
        let server = Server { model: initial, kept: self.folder.load_server(version)? };
        let spill = Box::new(OnDisk::new(self.folder.incoming_folder()));
        let mut aggregator = Aggregator::new(parameter_layout.layout().clone(), &self.hop, version, server, spill);
        let classes = match (is_edge, self.folder.load_classes()?) {
            // The node above decides.
            (true, kept) => Classes::decided(kept.unwrap_or_default(), 0),
            (false, Some(kept)) => Classes::decided(kept, parameter_layout.classes()),
            // Work was given out by a version that agreed on no names: whoever
            // asks for theirs is told at once, since nobody decides any more.
            (false, None) if coordinator.version() > 0 || coordinator.progress().goal > 0 => {
                Classes::decided(Vec::new(), parameter_layout.classes())
            }
            (false, None) => Classes::new(parameter_layout.classes()),
        };
        let setting = Setting {
            seed: self.manifest.job.seed,
            node: jobs.cx.me.name().to_owned(),
            is_edge,
            federation: federation.clone(),
        };
        let mut world = CoordinatorWorld::new(self, parameter_layout, classes, said);
        if version > 0 {
            world.restore(&mut aggregator, &coordinator).await?;
        }
        let mut board = Scoreboard::default();
        if !is_edge {
            world.evaluator = world.evaluator()?;
            world.tutor = world.tutor()?;
            board = Scoreboard::behind(world.side.folder.load_round()?);
        }
        let taken = Taken { coordinator, aggregator, board, model_bytes };
        let mut rounds = Coordination::new(setting, taken, world);
        rounds.perform(actions).await?;
        // One that has led to its model already is not begun again.
        if !is_edge && rounds.effects.finished.is_none() {
            let (rounds_of_job, evaluate) = (federation.cloud.rounds, federation.evaluates_at_ends());
            rounds.step(Event::Begin { version: 0, rounds: rounds_of_job, evaluate, stretch: 1 }).await?;
        }
        Ok(Coordinating { rounds, held: BTreeMap::new(), unable: BTreeMap::new(), kept_in: None, over: false })
    }
}

impl CoordinatorWorld {
    /// Goes on with the models of before.
    async fn restore(&mut self, aggregator: &mut Aggregator, coordinator: &Coordinator) -> Result<(), Failure> {
        let version = coordinator.version();
        aggregator.replace(version, &self.load(self.own_models, version).await?);
        if aggregator.down().is_some() {
            let (jobs, id) = (self.jobs(), self.side.id);
            let held = self.load(Side::Coordinator, version).await?;
            let mut offered = Vec::new();
            for (to, difference) in
                jobs.cx.state.with(move |state| state.versions(id, Side::CoordinatorDifferences)).await?
            {
                // One that leads further is of a model that is made again.
                if let (true, Some(bytes)) = (to <= version, jobs.artefacts.length(difference).await?) {
                    offered.push((to, bytes));
                }
            }
            if let Some(down) = aggregator.down_mut() {
                down.hold(held);
                offered.into_iter().for_each(|(to, bytes)| down.offer(to, bytes));
            }
        }
        if aggregator.looks_back() {
            for past in coordinator.versions_in_use() {
                aggregator.remember(past, self.load(Side::Coordinator, past).await?);
            }
        }
        Ok(())
    }
}

impl CoordinatorSide {
    /// What was decided so far. Updates that count but whose bytes the disk has
    /// lost, or holds as an older version sent them, count no more: all else
    /// goes on.
    async fn journal(&self, terms: &Terms, layout: &Layout) -> Result<Vec<Record>, Failure> {
        let (jobs, id, channels) = (&self.jobs, self.id, self.hop.strategy.channels());
        let journal: Vec<Record> = journal::read(jobs, id).await?;
        let (_, pending) = Coordinator::restored(terms.clone(), journal.iter().cloned(), Time::ZERO);
        let mut lost = Vec::new();
        for action in pending {
            let Action::Add { member, update, .. } = action else { continue };
            let file = self.folder.incoming(update.task.0, &update.digest.0);
            let there = tokio::task::block_in_place(|| {
                Ok::<_, Failure>(
                    wire::is_current(self.folder.first_byte(&file)?, layout, &channels)
                        && self.folder.holds(&file, &update.digest.0)?,
                )
            })?;
            if !there {
                let text = format!("job {}: the disk has no usable update of {member} any more", self.manifest.name);
                jobs.cx.events.record("job", text, &serde_json::json!({ "node": member }));
                lost.push(Record::Dropped { task: update.task });
            }
        }
        if lost.is_empty() {
            return Ok(journal);
        }
        journal::write(jobs, id, &lost).await?;
        journal::read(jobs, id).await
    }
}

/// Tells this edge's tasks from those of others.
fn tag_of(jobs: &Jobs) -> u32 {
    let hash = blake3::hash(jobs.cx.me.id().as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    // The cloud's is 0.
    u32::from_le_bytes([a, b, c, d]).max(1)
}

impl CoordinatorWorld {
    /// The data held out for the job, if this node has it.
    fn evaluator(&self) -> Result<Option<(LocalTrainer, Dataset)>, Failure> {
        let jobs = self.jobs();
        let job = &self.side.manifest.job;
        if self.side.manifest.federation().evaluates_at_ends() {
            return Ok(None);
        }
        let (name, own) = match &job.data.test {
            Some(name) => (name, true),
            None => (&job.data.train, false),
        };
        let prepare = || {
            let Some(held_out) = data::held_out(&jobs, name, own)? else { return Ok(None) };
            let (engine, options) = (jobs.cx.device.engine_for(Class::Training), jobs.cx.me.config().load_options());
            let place = LocalTrainer::new(&engine, self.model()?, job, &options).map_err(internal)?;
            let held_out = job.data.numbered(&held_out).map_err(internal)?;
            place.check(&held_out).map_err(internal)?;
            Ok(Some((place, held_out)))
        };
        tokio::task::block_in_place(prepare)
    }

    /// Where the cloud's models learn of public examples, or of features.
    fn tutor(&self) -> Result<Option<Tutor>, Failure> {
        let (jobs, job) = (self.jobs(), &self.side.manifest.job);
        let (engine, options) = (jobs.cx.device.engine_for(Class::Training), jobs.cx.me.config().load_options());
        let Some(distil) = job.federation.as_ref().and_then(Federation::distillation) else {
            let prepare = || Tutor::transfer(&engine, &self.parameter_layout, job, &options);
            return tokio::task::block_in_place(prepare).map_err(internal);
        };
        let prepare = || {
            let whole = data::open_public(&jobs, job, distil)?;
            Tutor::new(&engine, &self.model()?, job, &whole, &options).map(Some).map_err(internal)
        };
        tokio::task::block_in_place(prepare)
    }

    /// The model as the job begins with it.
    fn model(&self) -> Result<Model, Failure> {
        self.parameter_layout.export(&self.parameter_layout.initial()).map_err(internal)
    }
}
