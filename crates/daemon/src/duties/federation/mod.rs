//! Federations on this node: every job that it coordinates or takes part in.
//!
//! Each job has up to two sides, each a task of its own around one machine of
//! `tierline_node::federation`: the coordinator coordinates the nodes below
//! (the cloud's duty, and an edge's), the participant answers to the parent
//! (an end's duty, and an edge's). Where a job gives edges nothing to do, they
//! are `relaying`. Start at [`Jobs`].

mod arrivals;
mod classes;
mod coordinator;
mod data;
mod folder;
mod gossip;
mod journal;
mod late;
mod messages;
mod neighbours;
mod numbers;
mod operators;
mod participant;
mod receiving;
mod relaying;
mod sending;
mod service;
mod spill;
pub mod watching;

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tierline_federate::{Federation, Gossip};
use tierline_identity::Peer;
use tierline_node::federation::{MemberRecord, MemberStatus, Record, relay};
use tierline_node::policy::{Roles, Rule};
use tierline_proto::envelope::FEDERATION;
use tierline_proto::limits::MESSAGE_BYTES_MAX;
use tierline_proto::v1::federate_server::FederateServer;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Code, Empty, Failure, JobAssignment, JobEvent, JobStatus};
use tierline_proto::{Breach, Digest, Role, Sound};
use tierline_store::State;
use tierline_store::jobs::{self, Side};
use tierline_train::Job;
use tokio::sync::{Notify, broadcast, mpsc};
use tonic::service::RoutesBuilder;

use self::arrivals::Arrivals;
pub use self::coordinator::JobCommand;
use self::coordinator::ToCoordinator;
pub use self::folder::Folder;
use self::late::Late;
use self::numbers::Numbers;
use self::participant::ToParticipant;
use self::receiving::Receiving;
use self::relaying::Relay;
use self::service::FederateService;
use super::artefacts::Artefacts;
use super::site::Site;
use crate::documents::{self, Document};
use crate::net::Uplink;
use crate::net::gate::Door;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};

/// Its line in the registry. Jobs begin at the cloud; other nodes take part.
pub const DUTY: Registration = Registration {
    name: FEDERATION,
    tables: jobs::TABLES,
    rules: &[
        Rule::new("/tierline.v1.Federate/Submit", Roles::CHILDREN, Roles::PARENTS),
        Rule::new("/tierline.v1.Federate/Meet", Roles::EDGE, Roles::EDGE),
        Rule::new("/tierline.v1.Local/JobSubmit", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/JobList", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/JobShow", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/JobControl", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/JobWatch", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/JobModel", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let jobs = Jobs::new(assembly);
        Box::new(assembly.add(jobs))
    },
};

/// Messages to one side of one job; senders wait while it is full.
const INBOX_MAX: usize = 1_024;

/// Events that a slow watcher of a job may fall behind.
const FEED_MAX: usize = 256;

/// What failed for want of room is tried again after this time.
const AGAIN: Duration = Duration::from_secs(10);

/// A job whose work breaks off more often than this is over on this node: what
/// breaks it off is in the job.
const FAULTS_MAX: u32 = 3;

/// Jobs under way on one node.
const JOBS_MAX: usize = 256;

/// What every node knows of a job: an artefact, whose digest names the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobManifest {
    /// For people.
    pub name: String,
    /// When it was given to the site; makes two runs of one job two jobs.
    pub created_ms: u64,
    /// Artefact: the model, folded for training, with the weights it starts
    /// from.
    pub model: Digest,
    /// Those of the job's `models`, in their order, made ready in the same way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Digest>,
    /// The job's file; its paths of models mean nothing here.
    pub job: Job,
}

impl JobManifest {
    fn federation(&self) -> Federation {
        self.job.federation.clone().unwrap_or_default()
    }

    /// How edges gossip, where they do.
    fn gossip(&self) -> Option<Gossip> {
        self.job.federation.as_ref()?.edge.as_ref()?.gossip.clone()
    }

    /// The model that an end trains.
    fn model_of(&self, end: &str) -> Digest {
        let other = self.job.variant_of(end).and_then(|variant| self.models.get(variant));
        *other.unwrap_or(&self.model)
    }
}

/// One job on this node.
struct Sides {
    coordinator: Option<mpsc::Sender<ToCoordinator>>,
    /// What found no room in an inbox.
    late: Late,
    participant: Option<mpsc::Sender<ToParticipant>>,
    relay: Option<Relay>,
}

/// The duty: every job of this node.
pub struct Jobs {
    cx: Context,
    artefacts: Arc<Artefacts>,
    site: Arc<Site>,
    jobs: Mutex<BTreeMap<Digest, Arc<Sides>>>,
    /// What happens to jobs, for watchers: outlives a side that is taken up
    /// again.
    feeds: Mutex<BTreeMap<Digest, broadcast::Sender<JobEvent>>>,
    /// Times that work for a job broke off.
    faults: Mutex<BTreeMap<Digest, u32>>,
    /// What parents want for jobs that aren't set up here yet.
    arriving: Mutex<Arrivals>,
    /// One job is set up at a time.
    adopting: tokio::sync::Mutex<()>,
    /// Rings when this node offers another model to its neighbours.
    offered: Notify,
    /// Updates on their way in.
    receiving: Receiving,
    numbers: Numbers,
}

impl Jobs {
    fn new(assembly: &Assembly) -> Arc<Self> {
        Arc::new(Self {
            cx: assembly.cx.clone(),
            artefacts: assembly.get(),
            site: assembly.get(),
            jobs: Mutex::default(),
            feeds: Mutex::default(),
            faults: Mutex::default(),
            arriving: Mutex::default(),
            adopting: tokio::sync::Mutex::default(),
            offered: Notify::new(),
            receiving: Receiving::default(),
            numbers: Numbers::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Sides>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, job: Digest) -> Option<Arc<Sides>> {
        self.lock().get(&job).cloned()
    }

    fn arriving(&self) -> MutexGuard<'_, Arrivals> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Sides>> {
        self.lock().values().cloned().collect()
    }

    /// What a fault in work for a job means for it: its machines are as their
    /// journals say, so it begins again from there, but not for ever.
    fn fault(&self, job: Digest, failure: Failure) -> Failure {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let count = faults.entry(job).or_default();
        *count += 1;
        if *count > FAULTS_MAX {
            return failure;
        }
        let text = format!("{}; the job begins again where its journal ends", failure.message);
        Failure::new(Code::Cancelled, text)
    }

    /// Where a job's watchers hear of it.
    fn feed(&self, job: Digest) -> broadcast::Sender<JobEvent> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.entry(job).or_insert_with(|| broadcast::channel(FEED_MAX).0).clone()
    }

    /// Tells every job that passes through here what happened.
    fn tell_relays(self: &Arc<Self>, event: impl Fn() -> relay::Event) {
        for sides in self.all() {
            if let Some(relay) = &sides.relay {
                relay.step(self, event());
            }
        }
    }

    fn parent_changed(self: &Arc<Self>, parent: &Arc<Uplink>, up: bool) {
        self.tell_relays(|| relay::Event::Parent { parent: parent.peer, up });
        for sides in self.all() {
            sides.participant.iter().for_each(|participant| sides.late.parent(participant, parent, up));
        }
    }

    /// Tells every job's coordinator that a child came or went, in the order of
    /// calls.
    fn tell_coordinators(&self, message: impl Fn() -> ToCoordinator) {
        for sides in self.all() {
            sides.coordinator.iter().for_each(|coordinator| sides.late.child(coordinator, message()));
        }
    }
}

#[tonic::async_trait]
impl Duty for Arc<Jobs> {
    async fn begin(&self) -> Result<(), Failure> {
        self.resume_jobs().await
    }

    fn serve(&self, door: Door, routes: &mut RoutesBuilder) {
        if door == Door::Network {
            let service = FederateServer::new(FederateService(Arc::clone(self)));
            routes.add_service(service.max_decoding_message_size(MESSAGE_BYTES_MAX));
        }
    }

    /// A child hears of every job.
    fn child_up(&self, child: &Peer) {
        self.tell_coordinators(|| ToCoordinator::ChildUp(child.name.clone()));
        self.tell_relays(|| relay::Event::ChildUp(child.name.clone()));
    }

    fn child_down(&self, child: &str) {
        self.tell_coordinators(|| ToCoordinator::ChildDown(child.to_owned()));
        self.tell_relays(|| relay::Event::ChildDown(child.to_owned()));
    }

    fn hear_child(&self, child: &Peer, payload: Bytes) -> Result<(), Breach> {
        let status = Sound::<JobStatus>::decode(payload)?;
        if self.site.speaks_for(&child.name, &status.node) {
            self.child_reported(&child.name, status.into_inner());
        } else {
            tracing::debug!(child = child.name, member = status.node, "it speaks for a node that isn't below it");
        }
        Ok(())
    }

    fn parent_up(&self, parent: &Arc<Uplink>) {
        self.parent_changed(parent, true);
    }

    fn parent_down(&self, parent: &Arc<Uplink>) {
        self.parent_changed(parent, false);
    }

    async fn hear_parent(&self, parent: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        self.hear_assignment(parent, Sound::<JobAssignment>::decode(payload)?.into_inner());
        Ok(())
    }

    /// Manifests of jobs, also of those that are over, which are shown; their
    /// models, and what leads to them.
    async fn needs(&self, needed: &mut HashSet<Digest>) -> Result<(), Failure> {
        let named = self.cx.state.with(State::named).await?;
        needed.extend(named.of_jobs);
        needed.extend(&named.jobs);
        for job in named.jobs {
            // A job that was heard of and not fetched yet needs nothing yet.
            if self.artefacts.length(job).await?.is_some() {
                let manifest = documents::read::<JobManifest>(&self.artefacts.get(job).await?)?;
                needed.insert(manifest.model);
                needed.extend(manifest.models);
            }
        }
        Ok(())
    }

    fn numbers(&self, out: &mut String) {
        self.numbers.text(out);
    }
}

type Ended<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Jobs {
    /// Takes up the jobs that were under way before the start.
    ///
    /// # Errors
    /// Those of the store; a job that can't be taken up is told of, and the
    /// others are.
    async fn resume_jobs(self: &Arc<Self>) -> Result<(), Failure> {
        for row in self.cx.state.with(State::jobs).await? {
            if row.ended.is_some() {
                // Cleaning up may have been cut short. What stays behind only
                // takes room, and is no reason not to go on with other jobs.
                if let Err(failure) = self.clean_up(row.job).await {
                    let text = format!("what job {} left behind can't be removed: {failure}", row.name);
                    self.cx.events.record("job", text, &serde_json::json!({ "job": row.job.to_string() }));
                }
                continue;
            }
            let begun = async {
                let manifest = documents::read::<JobManifest>(&self.artefacts.get(row.job).await?)?;
                self.begin(row.job, manifest, row.coordinates).await
            };
            match begun.await {
                Err(failure) if row.coordinates => self.job_failed(row.job, &row.name, &failure).await,
                // Whoever coordinates it says again what is wanted, and what is
                // missing is fetched then.
                Err(failure) => {
                    let text = format!("job {} can't be taken up: {failure}", row.name);
                    self.cx.events.record("job", text, &serde_json::json!({ "job": row.job.to_string() }));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// A job can't go on on this node: tried again later if the cause may
    /// pass, else over here, and whoever answers for it is told.
    ///
    /// Boxed, since a job that is taken up again may fail again.
    fn job_failed<'a>(self: &'a Arc<Self>, id: Digest, name: &'a str, failure: &'a Failure) -> Ended<'a> {
        Box::pin(async move {
            let json = serde_json::json!({ "job": id.to_string() });
            self.cx.events.record("job", format!("job {name} stopped here: {failure}"), &json);
            self.lock().remove(&id);
            if may_pass(failure.code()) {
                // The journal has all of it; nothing is lost by beginning again.
                let jobs = Arc::clone(self);
                self.cx.tasks.spawn("job retry", async move {
                    tokio::time::sleep(AGAIN).await;
                    if let Err(failure) = jobs.resume_jobs().await {
                        jobs.cx.events.record("job", failure.to_string(), &serde_json::json!({}));
                    }
                });
                return;
            }
            // The database may be what failed; the next start finds out then.
            let reason = failure.to_string();
            let _ = self.cx.state.with(move |state| state.end_job(id, "failed", &reason)).await;
            let json = serde_json::json!({ "reason": failure.to_string() }).to_string();
            // Nobody watching is the usual case.
            let _ = self.feed(id).send(JobEvent { kind: "failed".to_owned(), json });
            self.leave_job(id);
            let over = messages::assignment(id, "", Want::Over(Empty {}));
            self.cx.children.tell_all(FEDERATION, &over);
            for uplink in self.cx.parents.iter() {
                self.tell_unable(uplink, id, &failure.to_string());
            }
        })
    }

    /// Removes what a job that is over has left on the disk, but for its result.
    async fn clean_up(&self, id: Digest) -> Result<(), Failure> {
        Folder::at(&self.cx.me.config().data, id).clear();
        journal::forget::<Record>(self, id).await?;
        journal::forget::<MemberRecord>(self, id).await?;
        for side in Side::ALL {
            self.drop_models(id, side, &[]).await?;
        }
        Ok(())
    }

    /// Lets go of the models of one side of a job, but for those needed.
    async fn drop_models(&self, id: Digest, side: Side, needed: &[u64]) -> Result<(), Failure> {
        let needed = needed.to_vec();
        let gone = self.cx.state.with(move |state| state.forget_versions(id, side, &needed)).await?;
        if let Err(failure) = self.artefacts.remove_unneeded(gone).await {
            // What stays is found again by whoever keeps house; the round goes on.
            tracing::warn!(%failure, "models that a job needs no more stay for now");
        }
        Ok(())
    }

    /// Tells a parent that this node takes no part in a job.
    fn tell_unable(&self, uplink: &Uplink, job: Digest, reason: &str) {
        let status = messages::status(job, &MemberStatus::Unable { reason: reason.to_owned() }, 0, "");
        uplink.tell(FEDERATION, &status);
    }

    /// Sets up the sides of a job on this node.
    async fn begin(self: &Arc<Self>, id: Digest, manifest: JobManifest, coordinates: bool) -> Result<(), Failure> {
        let feed = self.feed(id);
        let hop = match (coordinates, self.cx.me.role()) {
            (true, _) => Some(manifest.federation().cloud),
            (false, Role::Edge) => manifest.federation().edge,
            (false, _) => None,
        };
        let passes_on = !coordinates && self.cx.me.role() == Role::Edge && hop.is_none();
        let takes_part = !coordinates && !passes_on;
        let (participant, participant_inbox) = mpsc::channel(INBOX_MAX);
        let (coordinator, coordinator_inbox) = mpsc::channel(INBOX_MAX);
        let manifest = Arc::new(manifest);
        let folder = Folder::open(&self.cx.me.config().data, id)?;
        let sides = Arc::new(Sides {
            coordinator: hop.is_some().then(|| coordinator.clone()),
            late: Late::default(),
            participant: takes_part.then(|| participant.clone()),
            relay: passes_on.then(|| Relay::new(id)),
        });
        {
            let mut jobs = self.lock();
            if jobs.contains_key(&id) {
                return Ok(());
            }
            jobs.insert(id, Arc::clone(&sides));
        }
        if let Some(relay) = &sides.relay {
            let up = self.cx.parents.iter().filter(|uplink| uplink.is_up());
            let parents = up.map(|uplink| relay::Event::Parent { parent: uplink.peer, up: true });
            let children = self.cx.children.names().into_iter().map(relay::Event::ChildUp);
            for event in parents.chain(children) {
                relay.step(self, event);
            }
            return Ok(());
        }
        let edge_coordinates = hop.is_some();
        if let Some(hop) = hop {
            // An edge coordinates for the work that it was given.
            let below = (!coordinates).then(|| participant.clone());
            let (jobs, manifest, folder) = (Arc::clone(self), Arc::clone(&manifest), folder.clone());
            let side = coordinator::CoordinatorSide { jobs, id, manifest, hop, folder, feed, below };
            self.run_side("coordinator", id, &side.manifest.name.clone(), side.run(coordinator_inbox));
            for name in self.cx.children.names() {
                let _ = coordinator.send(ToCoordinator::ChildUp(name)).await;
            }
        }
        if takes_part {
            let above = edge_coordinates.then_some(coordinator);
            let side = participant::ParticipantSide { jobs: Arc::clone(self), id, manifest, folder, above };
            self.run_side("participant", id, &side.manifest.name.clone(), side.run(participant_inbox));
            for uplink in self.cx.parents.iter().filter(|u| u.is_up()) {
                let _ = participant.send(ToParticipant::Parent { uplink: Arc::clone(uplink), up: true }).await;
            }
        }
        Ok(())
    }

    /// Runs a side of a job, as a task of its own.
    fn run_side(
        self: &Arc<Self>,
        side: &'static str,
        id: Digest,
        name: &str,
        run: impl Future<Output = ()> + Send + 'static,
    ) {
        let (jobs, name) = (Arc::clone(self), name.to_owned());
        self.cx.tasks.spawn_then(side, run, move |ran| async move {
            if let Err(failure) = ran {
                jobs.job_failed(id, &name, &jobs.fault(id, failure)).await;
            }
        });
    }

    /// A side is done with a job: nothing of it is kept in memory.
    fn leave_job(&self, id: Digest) {
        self.lock().remove(&id);
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Whether trying again later may help.
fn may_pass(code: Code) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Draining, ModelNotReady, Overloaded, StorageFull, Unreachable};
    matches!(code, StorageFull | Unreachable | DeadlineExceeded | Overloaded | Draining | Cancelled | ModelNotReady)
}

impl Document for JobManifest {
    const WHAT: &'static str = "the job's manifest";

    /// Settings that aren't known here would change what is learned: a job that
    /// has any is not for this version.
    const UNREADABLE: Code = Code::VersionMismatch;
}
