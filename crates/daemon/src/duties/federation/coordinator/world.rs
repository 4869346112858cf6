//! The world around a side that coordinates: this node's disk, its links, its
//! processor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tierline_federate::{Channel, Contribution, FederateError, Layout, RoundScores, Vectors, wire};
use tierline_node::Time;
use tierline_node::federation::coordination::{Effects, Evaluation, Neighbourhood, News, Published, Start};
use tierline_node::federation::{Assignment, Coordinator, Record, Routes, Task, Update, Verdict};
use tierline_proto::envelope::FEDERATION;
use tierline_proto::limits::NEIGHBOURS_MAX;
use tierline_proto::v1::{ClassNames, Code, Failure, JobAssignment, JobEvent, JobVerdict, Neighbour};
use tierline_proto::{Digest, Role};
use tierline_store::State;
use tierline_store::jobs::Side;
use tierline_train::data::Dataset;
use tierline_train::federated::{LocalTrainer, ParameterLayout, Tutor};
use tokio::sync::oneshot;

use super::{CoordinatorSide, ToCoordinator};
use crate::duties::federation::Jobs;
use crate::duties::federation::classes::Classes;
use crate::duties::federation::folder::Said;
use crate::duties::federation::messages::{self, internal};
use crate::duties::federation::participant::ToParticipant;
use crate::duties::federation::{gossip, journal};
use crate::runtime::tasks::Owned;

/// What members begin with is numbered by the model and their place among
/// members, of which there are at most 2^20.
const MEMBER_BITS: u32 = 20;

/// Who waits to hear what becomes of an update, and the file that it is in.
type Waiting = (oneshot::Sender<JobVerdict>, PathBuf);

/// This node, for a side that coordinates.
pub(super) struct CoordinatorWorld {
    pub(super) side: CoordinatorSide,
    pub(super) parameter_layout: ParameterLayout,
    /// Where the aggregator's own models are: apart from those that members
    /// hold, where the two differ.
    pub(super) own_models: Side,
    /// Data held out here, and what evaluates models on it.
    pub(super) evaluator: Option<(LocalTrainer, Dataset)>,
    /// The cloud's, where models learn of public examples or of features.
    pub(super) tutor: Option<Tutor>,
    /// Members that wait to hear what becomes of their updates.
    pub(super) waiting: HashMap<(String, Task), Waiting>,
    /// Where members are, those behind edges too.
    pub(super) routes: Routes,
    /// Where members that gossip are reached.
    pub(super) urls: BTreeMap<String, String>,
    /// What members' next tasks begin with, where that isn't a model.
    pub(super) said: BTreeMap<String, Said>,
    /// How classes are numbered.
    pub(super) classes: Classes,
    /// Fetches a neighbour's model; whoever drops it doesn't want it any more.
    asking: Option<Owned<()>>,
    /// The model that the job has led to.
    pub(super) finished: Option<u64>,
}

impl CoordinatorWorld {
    pub(super) fn new(
        side: CoordinatorSide,
        parameter_layout: ParameterLayout,
        classes: Classes,
        said: BTreeMap<String, Said>,
    ) -> Self {
        let own_models = if side.hop.down.is_empty() { Side::Coordinator } else { Side::CoordinatorOwn };
        Self {
            side,
            parameter_layout,
            own_models,
            evaluator: None,
            tutor: None,
            waiting: HashMap::new(),
            routes: Routes::default(),
            urls: BTreeMap::new(),
            said,
            classes,
            asking: None,
            finished: None,
        }
    }

    pub(super) fn jobs(&self) -> Arc<Jobs> {
        Arc::clone(&self.side.jobs)
    }

    pub(super) fn tell_watchers(&self, kind: &str, json: &serde_json::Value) {
        // Nobody watching is the usual case.
        let _ = self.side.feed.send(JobEvent { kind: kind.to_owned(), json: json.to_string() });
    }

    /// A model of the job that is on the disk.
    pub(super) async fn load(&mut self, side: Side, version: u64) -> Result<Vectors, Failure> {
        if version == 0 {
            return Ok(self.parameter_layout.initial());
        }
        let missing = || Failure::new(Code::Corrupt, format!("model {version} of the job is gone"));
        let (jobs, id) = (self.jobs(), self.side.id);
        let digest = jobs.cx.state.with(move |state| state.version(id, side, version)).await?.ok_or_else(missing)?;
        let bytes = jobs.artefacts.get(digest).await?;
        tokio::task::block_in_place(|| wire::decode(&bytes, self.parameter_layout.layout())).map_err(internal)
    }

    /// Keeps an artefact for one side of the job, by its number.
    async fn put(&mut self, side: Side, number: u64, bytes: Vec<u8>) -> Result<Digest, Failure> {
        let (jobs, id) = (self.jobs(), self.side.id);
        let digest = jobs.artefacts.put(Bytes::from(bytes)).await?;
        jobs.cx.state.with(move |state| state.set_version(id, side, number, digest)).await?;
        Ok(digest)
    }

    /// Where a member's task begins, for the member.
    async fn start(&mut self, member: &str, start: Start) -> messages::Start {
        let (version, leading, neighbours) = match start {
            Start::Nothing => return messages::Start::default(),
            Start::Said => {
                let model = self.said.get(member).map(|said| said.digest);
                return messages::Start { model, ..messages::Start::default() };
            }
            Start::Model { version, differences, neighbours } => (version, differences, neighbours),
        };
        let id = self.side.id;
        let look = move |state: &State| {
            let of = |side, version| state.version(id, side, version).ok().flatten();
            // None where one of them is gone: they are followed one behind the other.
            let differences: Option<_> =
                leading.iter().map(|version| of(Side::CoordinatorDifferences, *version)).collect();
            Ok((of(Side::Coordinator, version), differences.unwrap_or_default()))
        };
        // Who can't be told now is told again.
        let (model, differences) = self.jobs().cx.state.with(look).await.unwrap_or_default();
        let reached = |name: String| Some(Neighbour { url: self.urls.get(&name)?.clone(), name });
        messages::Start {
            model,
            differences,
            neighbours: neighbours.into_iter().filter_map(reached).take(NEIGHBOURS_MAX).collect(),
        }
    }

    /// Keeps what members' next tasks begin with, where that differs from one
    /// to the other.
    async fn keep_said(&mut self, version: u64, layout: &Layout) -> Result<(), Failure> {
        let Some(said) = self.tutor.as_ref().and_then(Tutor::said) else { return Ok(()) };
        let classes = layout.logits.first().and_then(|part| part.shape.last()).copied().unwrap_or(1).max(1);
        let encoded = said.iter().map(|(member, vectors)| {
            let rows = vectors.get(&Channel::Logits).map_or(0, Vec::len);
            let layout = layout.of_examples((rows / classes) as u64)?;
            Ok((member.clone(), wire::encode(vectors, &layout)?))
        });
        let encoded = tokio::task::block_in_place(|| encoded.collect::<Result<Vec<_>, FederateError>>());
        for (number, (member, bytes)) in encoded.map_err(internal)?.into_iter().enumerate() {
            let (key, length) = ((version << MEMBER_BITS) + number as u64, bytes.len() as u64);
            let digest = self.put(Side::Said, key, bytes).await?;
            self.said.insert(member, Said { key, digest, bytes: length });
        }
        self.side.folder.save_said(&self.said)?;
        let needed: Vec<u64> = self.said.values().map(|said| said.key).collect();
        self.jobs().drop_models(self.side.id, Side::Said, &needed).await
    }

    /// A round of which all is known now.
    async fn tell_of(&mut self, round: &RoundScores) -> Result<(), Failure> {
        let json = serde_json::to_value(round).map_err(internal)?;
        let (jobs, id, number, text) = (self.jobs(), self.side.id, round.round, json.to_string());
        jobs.cx.state.with(move |state| state.add_round(id, number, &text)).await?;
        jobs.numbers.round(self.side.metrics_key(), round);
        self.tell_watchers("round", &json);
        Ok(())
    }

    /// Whether a child is no member itself, but passes on what is said to those
    /// below it: an edge, where the job gives edges nothing to do.
    pub(super) fn passes_on(&self, child: &str) -> bool {
        let flat = self.side.below.is_none() && self.side.manifest.federation().edge.is_none();
        flat && self.side.jobs.cx.children.role_of(child) == Some(Role::Edge)
    }
}

impl Effects for CoordinatorWorld {
    type Error = Failure;

    fn failed(error: FederateError) -> Failure {
        messages::of_round(error)
    }

    fn now(&self) -> Time {
        self.side.jobs.cx.clock.now()
    }

    fn compute<T>(work: impl FnOnce() -> T) -> T {
        tokio::task::block_in_place(work)
    }

    async fn keep(&mut self, records: Vec<Record>) -> Result<(), Failure> {
        // Nobody works with numbers that a crash could change.
        if !self.classes.decided && records.iter().any(|record| matches!(record, Record::Asked { .. })) {
            self.classes.decide();
            self.side.folder.save_classes(&self.classes.names)?;
        }
        journal::write(&self.jobs(), self.side.id, &records).await
    }

    async fn keep_model(&mut self, model: Published<'_>) -> Result<u64, Failure> {
        let Published { version, layout, held, own, difference, kept } = model;
        let encode = || {
            let held = wire::encode(held, layout)?;
            let own = own.map(|own| wire::encode(own, layout)).transpose()?;
            Ok::<_, FederateError>((held, own))
        };
        let (held, own) = tokio::task::block_in_place(encode).map_err(internal)?;
        tokio::task::block_in_place(|| self.side.folder.save_server(version, kept))?;
        let bytes = held.len() as u64;
        self.put(Side::Coordinator, version, held).await?;
        if let Some(own) = own {
            self.put(Side::CoordinatorOwn, version, own).await?;
        }
        if let Some(difference) = difference {
            self.put(Side::CoordinatorDifferences, version, difference).await?;
        }
        Ok(bytes)
    }

    async fn retain(&mut self, models: &BTreeSet<u64>, differences: Option<&[u64]>) -> Result<(), Failure> {
        let (jobs, id) = (self.jobs(), self.side.id);
        let models: Vec<u64> = models.iter().copied().collect();
        jobs.drop_models(id, Side::Coordinator, &models).await?;
        if let Some(differences) = differences {
            jobs.drop_models(id, Side::CoordinatorDifferences, differences).await?;
            jobs.drop_models(id, Side::CoordinatorOwn, &models).await?;
        }
        Ok(())
    }

    async fn load_model(&mut self, version: u64) -> Result<Vectors, Failure> {
        self.load(self.own_models, version).await
    }

    async fn load_update(&mut self, update: &Update) -> Result<Vec<u8>, Failure> {
        self.side.folder.read(&self.side.folder.incoming(update.task.0, &update.digest.0))
    }

    fn forget_update(&mut self, update: &Update) {
        self.side.folder.remove(&[self.side.folder.incoming(update.task.0, &update.digest.0)]);
    }

    fn sweep(&mut self, coordinator: &Coordinator) {
        self.side.folder.sweep(|task| coordinator.needs(Task(task)));
    }

    async fn tell(&mut self, member: &str, assignment: Assignment, start: Start) {
        let want = messages::want(assignment, self.start(member, start).await);
        // A child that has said nothing yet is reached by its own name.
        let child = self.routes.via(member).unwrap_or(member);
        let further = if child == member { "" } else { member };
        let classes = Some(ClassNames { names: self.classes.told(member) });
        let assignment = JobAssignment { classes, ..messages::assignment(self.side.id, further, want) };
        self.side.jobs.cx.children.tell(child, FEDERATION, &assignment);
    }

    fn answer(&mut self, member: &str, task: Task, verdict: &Verdict) {
        self.jobs().numbers.answered(self.side.metrics_key(), verdict);
        // Only who was asked for its bytes has brought any: the task may be
        // another member's, whose update counts.
        let Some((answer, file)) = self.waiting.remove(&(member.to_owned(), task)) else { return };
        if *verdict != Verdict::Counted {
            self.side.folder.remove(&[file]);
        }
        // A member that is gone asks again.
        let _ = answer.send(messages::verdict(verdict));
    }

    fn gossips(&self, member: &str) -> bool {
        self.urls.contains_key(member)
    }

    fn neighbourhood(&self) -> Option<Neighbourhood> {
        gossip::neighbourhood(&self.side.folder).map(|known| known.for_exchange())
    }

    async fn offer(&mut self, exchange: u64, oldest: u64, model: Vec<u8>) -> Result<(), Failure> {
        self.put(Side::Offers, exchange, model).await?;
        let jobs = self.jobs();
        jobs.drop_models(self.side.id, Side::Offers, &[oldest, exchange]).await?;
        jobs.offered.notify_waiters();
        Ok(())
    }

    fn ask(&mut self, exchange: u64, neighbour: &str, patience: Duration) {
        let (jobs, id, neighbour) = (self.jobs(), self.side.id, neighbour.to_owned());
        let fetch = gossip::Fetch { jobs: self.jobs(), id, folder: self.side.folder.clone(), exchange, patience };
        let of = neighbour.clone();
        let asking = async move { fetch.model_of(&of).await };
        let task = self.side.jobs.cx.tasks.spawn_then("gossip exchange", asking, move |model| async move {
            if let Some(coordinator) = jobs.get(id).and_then(|sides| sides.coordinator.clone()) {
                let message = match model {
                    Ok(model) => ToCoordinator::Heard { exchange, neighbour, model },
                    Err(fault) => ToCoordinator::Broken(fault),
                };
                let _ = coordinator.send(message).await;
            }
        });
        self.asking = Some(task.owned());
    }

    fn ask_no_more(&mut self) {
        self.asking = None;
    }

    async fn gathered(&mut self, task: Task, contribution: Contribution) {
        if let Some(below) = &self.side.below {
            let _ = below.send(ToParticipant::Gathered { task, contribution }).await;
        }
    }

    async fn finished(&mut self, version: u64, model: &Vectors) -> Result<(), Failure> {
        let model = tokio::task::block_in_place(|| {
            let model = match &mut self.tutor {
                Some(tutor) => tutor.conclude(model).map_err(internal)?,
                None => self.parameter_layout.export(model).map_err(internal)?,
            };
            model.to_bytes().map_err(internal)
        })?;
        self.side.folder.write(&self.side.folder.result(), &model)?;
        self.finished = Some(version);
        Ok(())
    }

    fn listen(&mut self, member: &str, held: &Vectors, contribution: &Contribution) -> Result<(), Failure> {
        match &mut self.tutor {
            Some(tutor) => tokio::task::block_in_place(|| tutor.hear(member, held, contribution)).map_err(internal),
            None => Ok(()),
        }
    }

    async fn teach(
        &mut self,
        version: u64,
        round: u64,
        model: &Vectors,
        layout: &Layout,
    ) -> Result<Option<Vectors>, Failure> {
        let Some(tutor) = &mut self.tutor else { return Ok(None) };
        let learned = tokio::task::block_in_place(|| tutor.teach(model, round)).map_err(internal)?;
        self.keep_said(version, layout).await?;
        Ok(Some(learned))
    }

    fn said_bytes(&self, member: &str) -> u64 {
        self.said.get(member).map_or(0, |said| said.bytes)
    }

    fn evaluate(&mut self, model: &Vectors) -> Result<Option<Evaluation>, Failure> {
        let Some((trainer, data)) = &mut self.evaluator else { return Ok(None) };
        let scores = tokio::task::block_in_place(|| trainer.evaluate(model, data)).map_err(internal)?;
        Ok(Some(Evaluation { loss: scores.loss, accuracy: scores.accuracy }))
    }

    async fn note(&mut self, news: News<'_>) -> Result<(), Failure> {
        let job = &self.side.manifest.name;
        match news {
            News::Round(round) => self.tell_of(round).await?,
            News::Pending(round) => self.side.folder.save_round(round)?,
            News::Excluded { member, reason } => {
                self.side.folder.save_left_out(member, reason)?;
                let json = serde_json::json!({ "node": member, "reason": reason });
                self.jobs().cx.events.record("job", format!("{member} is left out of job {job}: {reason}"), &json);
                self.tell_watchers("excluded", &json);
            }
            News::Absent { neighbour, reason } => {
                let json = serde_json::json!({ "node": neighbour, "reason": reason });
                let text = format!("job {job} goes on without the model of {neighbour}: {reason}");
                self.jobs().cx.events.record("job", text, &json);
            }
        }
        Ok(())
    }
}
