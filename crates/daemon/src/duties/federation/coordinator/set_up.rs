//! Takes a job up: its model, its journal, the data that judges it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use tierline_federate::{Aggregator, Federation, Layout, Scoreboard, Server, Vectors, wire};
use tierline_graph::Model;
use tierline_node::Time;
use tierline_node::admit::Class;
use tierline_node::federation::{Action, Coordinator, Event, Record, Routes, Terms};
use tierline_proto::v1::Failure;
use tierline_train::data::{Dataset, seed_of};
use tierline_train::federated::{LocalTrainer, ParameterLayout, Tutor};

use super::{Coordination, CoordinatorSide};
use crate::duties::federation::Jobs;
use crate::duties::federation::classes::Classes;
use crate::duties::federation::data;
use crate::duties::federation::journal;
use crate::duties::federation::messages::internal;
use crate::duties::federation::spill::OnDisk;

impl CoordinatorSide {
    /// Takes up the job where its journal ends.
    pub(super) async fn set_up(self) -> Result<Coordination, Failure> {
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
        let behaviour = self.hop.strategy.behaviour();
        let terms = Terms {
            clients: self.hop.clients.clone(),
            timing: behaviour.timing(),
            seed: seed_of(&[self.manifest.job.seed, u64::from(self.below.is_some())]),
            tag: if self.below.is_some() { tag_of(&jobs) } else { 0 },
            sums_up: self.below.is_some(),
        };
        let journal = self.journal(&terms, parameter_layout.layout()).await?;
        let (coordinator, actions) = Coordinator::restored(terms, journal, jobs.cx.clock.now());
        let channels = self.hop.strategy.makes();
        let initial: Vectors = parameter_layout.initial().into_iter().filter(|(c, _)| channels.contains(c)).collect();
        let version = coordinator.version();
        let server = Server { model: initial, kept: self.folder.load_server(version)? };
        let spill = Box::new(OnDisk::new(self.folder.incoming_folder()));
        let aggregator = Aggregator::new(parameter_layout.layout().clone(), &self.hop, version, server, spill);
        let kept = self.folder.load_classes()?;
        let classes = match (&self.below, kept) {
            // The node above decides.
            (Some(_), kept) => Classes::decided(kept.unwrap_or_default(), 0),
            (None, Some(kept)) => Classes::decided(kept, parameter_layout.classes()),
            (None, None) => Classes::new(parameter_layout.classes()),
        };
        let mut coordination = Coordination {
            evaluator: None,
            tutor: None,
            board: Scoreboard::default(),
            parameter_layout,
            coordinator,
            aggregator,
            waiting: HashMap::new(),
            checked: HashMap::new(),
            routes: Routes::default(),
            told: BTreeMap::new(),
            holds: BTreeMap::new(),
            urls: BTreeMap::new(),
            exchange: None,
            classes,
            held: BTreeMap::new(),
            unable: BTreeMap::new(),
            said,
            tells_apart: self.manifest.federation().transfer().is_some(),
            bytes_up: 0,
            bytes_down: 0,
            artefact_bytes: model_bytes,
            round_began: Instant::now(),
            over: false,
            side: self,
        };
        if version > 0 {
            let model = coordination.load_own(version).await?;
            coordination.aggregator.replace(version, &model);
            coordination.take_up_way_down(version).await?;
            if coordination.aggregator.looks_back() {
                for past in coordination.coordinator.versions_in_use() {
                    let model =
                        if past > 0 { coordination.load(past).await? } else { coordination.parameter_layout.initial() };
                    coordination.aggregator.remember(past, model);
                }
            }
        }
        if coordination.side.below.is_none() {
            coordination.evaluator = coordination.evaluator()?;
            coordination.tutor = coordination.tutor()?;
            coordination.board = Scoreboard::behind(coordination.side.folder.load_round()?);
        }
        coordination.perform(actions).await?;
        if coordination.side.below.is_none() {
            let (rounds, evaluate) =
                (coordination.side.hop.rounds, coordination.side.manifest.federation().evaluates_at_ends());
            coordination.step(Event::Begin { version: 0, rounds, evaluate, stretch: 1 }).await?;
        }
        Ok(coordination)
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

impl Coordination {
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
