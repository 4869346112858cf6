//! Federations on this node: every job that it coordinates or takes part in.
//!
//! Each job has up to two sides, each a task of its own around one machine of
//! `tierline_node::federation`: the `upper` side coordinates the nodes below
//! (the cloud's duty, and an edge's), the `lower` side answers to the parent
//! (an end's duty, and an edge's). Where a job gives edges nothing to do, they
//! are a `relay`. Start at [`Federations`].

mod arrivals;
mod classes;
mod data;
mod folder;
mod gossip;
mod journal;
mod late;
mod lower;
mod messages;
mod neighbours;
mod operators;
mod receiving;
mod relay;
mod shelf;
mod upper;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierline_federate::{Federation, Gossip};
use tierline_node::federation::{MemberRecord, Record, Standing};
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Code, Empty, Failure, JobEvent, child_message, parent_message};
use tierline_proto::{Digest, Role};
use tierline_train::Job;
use tokio::sync::{Notify, broadcast, mpsc};

use self::arrivals::Arrivals;
pub use self::folder::Folder;
use self::late::Late;
use self::lower::ToLower;
use self::receiving::Receiving;
use self::relay::Relay;
pub use self::upper::Order;
use self::upper::ToUpper;
use super::Node;
use super::uplink::Uplink;
use crate::documents::{self, Document};
use tierline_store::State;
use tierline_store::jobs::Side;

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
struct Duty {
    upper: Option<mpsc::Sender<ToUpper>>,
    /// What found no room in an inbox.
    late: Late,
    lower: Option<mpsc::Sender<ToLower>>,
    relay: Option<Relay>,
}

/// Every job of this node.
#[derive(Default)]
pub struct Federations {
    jobs: Mutex<BTreeMap<Digest, Arc<Duty>>>,
    /// What happens to jobs, for watchers: outlives a side that is taken up
    /// again.
    feeds: Mutex<BTreeMap<Digest, broadcast::Sender<JobEvent>>>,
    /// Times that work for a job broke off.
    faults: Mutex<BTreeMap<Digest, u32>>,
    /// What parents want for jobs that aren't set up here yet.
    arriving: Mutex<Arrivals>,
    /// Rings when this node offers another model to its neighbours.
    offered: Notify,
    /// Updates on their way in.
    pub receiving: Receiving,
}

impl Federations {
    /// How many jobs are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Duty>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, job: Digest) -> Option<Arc<Duty>> {
        self.lock().get(&job).cloned()
    }

    fn arriving(&self) -> MutexGuard<'_, Arrivals> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Duty>> {
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

    /// Tells every job's upper side that a child came or went, in the order of
    /// calls.
    fn tell_uppers(&self, message: impl Fn() -> ToUpper) {
        for duty in self.all() {
            duty.upper.iter().for_each(|upper| duty.late.child(upper, message()));
        }
    }

    /// A child's session opened: it hears of every job.
    pub fn child_up(&self, node: &Node, name: &str) {
        self.tell_uppers(|| ToUpper::ChildUp(name.to_owned()));
        self.all().iter().filter_map(|duty| duty.relay.as_ref()).for_each(|relay| relay.child_up(node, name));
    }

    /// A child's lease ended.
    pub fn child_down(&self, name: &str) {
        self.tell_uppers(|| ToUpper::ChildDown(name.to_owned()));
        self.all().iter().filter_map(|duty| duty.relay.as_ref()).for_each(|relay| relay.child_down(name));
    }

    /// A parent's session opened or ended.
    pub fn parent(&self, uplink: &Arc<Uplink>, up: bool) {
        for duty in self.all() {
            duty.lower.iter().for_each(|lower| duty.late.parent(lower, uplink, up));
        }
    }
}

type Told<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Node {
    /// Takes up the jobs that were under way before the start.
    ///
    /// # Errors
    /// Those of the store; a job that can't be taken up is told of, and the
    /// others are.
    pub async fn resume_jobs(self: &Arc<Self>) -> Result<(), Failure> {
        for row in self.state.with(State::jobs).await? {
            if row.ended.is_some() {
                // Cleaning up may have been cut short. What stays behind only
                // takes room, and is no reason not to go on with other jobs.
                if let Err(failure) = self.clean_up(row.job).await {
                    let text = format!("what job {} left behind can't be removed: {failure}", row.name);
                    self.events.record("job", text, &serde_json::json!({ "job": row.job.to_string() }));
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
                    self.events.record("job", text, &serde_json::json!({ "job": row.job.to_string() }));
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
    fn job_failed<'a>(self: &'a Arc<Self>, id: Digest, name: &'a str, failure: &'a Failure) -> Told<'a> {
        Box::pin(async move {
            let json = serde_json::json!({ "job": id.to_string() });
            self.events.record("job", format!("job {name} stopped here: {failure}"), &json);
            self.federations.lock().remove(&id);
            if may_pass(failure.code()) {
                // The journal has all of it; nothing is lost by beginning again.
                let node = Arc::clone(self);
                self.tasks.spawn("job retry", async move {
                    tokio::time::sleep(AGAIN).await;
                    if let Err(failure) = node.resume_jobs().await {
                        node.events.record("job", failure.to_string(), &serde_json::json!({}));
                    }
                });
                return;
            }
            // The database may be what failed; the next start finds out then.
            let reason = failure.to_string();
            let _ = self.state.with(move |state| state.end_job(id, "failed", &reason)).await;
            let json = serde_json::json!({ "reason": failure.to_string() }).to_string();
            // Nobody watching is the usual case.
            let _ = self.federations.feed(id).send(JobEvent { kind: "failed".to_owned(), json });
            self.leave_job(id);
            let over = messages::assignment(id, "", Want::Over(Empty {}));
            self.children.tell_all(&parent_message::Body::Assignment(over));
            for uplink in self.uplinks() {
                self.tell_unable(uplink, id, &failure.to_string());
            }
        })
    }

    /// Removes what a job that is over has left on the disk, but for its result.
    async fn clean_up(&self, id: Digest) -> Result<(), Failure> {
        Folder::at(&self.config.data, id).clear();
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
        let gone = self.state.with(move |state| state.forget_versions(id, side, &needed)).await?;
        if let Err(failure) = self.remove_unneeded(gone).await {
            // What stays is found again by whoever keeps house; the round goes on.
            tracing::warn!(%failure, "models that a job needs no more stay for now");
        }
        Ok(())
    }

    /// Tells a parent that this node takes no part in a job.
    fn tell_unable(&self, uplink: &Uplink, job: Digest, reason: &str) {
        let standing = messages::standing(job, &Standing::Unable { reason: reason.to_owned() }, 0, "");
        uplink.tell(child_message::Body::Standing(standing));
    }

    /// Sets up the sides of a job on this node.
    async fn begin(self: &Arc<Self>, id: Digest, manifest: JobManifest, coordinates: bool) -> Result<(), Failure> {
        let feed = self.federations.feed(id);
        let hop = match (coordinates, self.role()) {
            (true, _) => Some(manifest.federation().cloud),
            (false, Role::Edge) => manifest.federation().edge,
            (false, _) => None,
        };
        let passes_on = !coordinates && self.role() == Role::Edge && hop.is_none();
        let takes_part = !coordinates && !passes_on;
        let (lower, lower_inbox) = mpsc::channel(INBOX_MAX);
        let (upper, upper_inbox) = mpsc::channel(INBOX_MAX);
        let manifest = Arc::new(manifest);
        let folder = Folder::open(&self.config.data, id)?;
        let duty = Arc::new(Duty {
            upper: hop.is_some().then(|| upper.clone()),
            late: Late::default(),
            lower: takes_part.then(|| lower.clone()),
            relay: passes_on.then(|| Relay::new(id)),
        });
        {
            let mut jobs = self.federations.lock();
            if jobs.contains_key(&id) {
                return Ok(());
            }
            jobs.insert(id, Arc::clone(&duty));
        }
        if let Some(relay) = &duty.relay {
            self.children.names().iter().for_each(|child| relay.child_up(self, child));
            return Ok(());
        }
        let edge_coordinates = hop.is_some();
        if let Some(hop) = hop {
            // An edge coordinates for the work that it was given.
            let below = (!coordinates).then(|| lower.clone());
            let (node, manifest, folder) = (Arc::clone(self), Arc::clone(&manifest), folder.clone());
            let side = upper::Upper { node, id, manifest, hop, folder, feed, below };
            self.run_side("coordinator", id, &side.manifest.name.clone(), side.run(upper_inbox));
            for name in self.children.names() {
                let _ = upper.send(ToUpper::ChildUp(name)).await;
            }
        }
        if takes_part {
            let above = edge_coordinates.then_some(upper);
            let side = lower::Lower { node: Arc::clone(self), id, manifest, folder, above };
            self.run_side("participant", id, &side.manifest.name.clone(), side.run(lower_inbox));
            for uplink in self.uplinks().iter().filter(|u| u.is_up()) {
                let _ = lower.send(ToLower::Parent { uplink: Arc::clone(uplink), up: true }).await;
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
        let (node, name) = (Arc::clone(self), name.to_owned());
        self.tasks.spawn_then(side, run, move |ran| async move {
            if let Err(failure) = ran {
                node.job_failed(id, &name, &node.federations.fault(id, failure)).await;
            }
        });
    }

    /// A side is done with a job: nothing of it is kept in memory.
    fn leave_job(&self, id: Digest) {
        self.federations.lock().remove(&id);
        self.federations.feeds.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.federations.faults.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Whether trying again later may help.
fn may_pass(code: Code) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Draining, ModelNotReady, Overloaded, StorageFull, Unreachable};
    matches!(code, StorageFull | Unreachable | DeadlineExceeded | Overloaded | Draining | Cancelled | ModelNotReady)
}

/// Artefacts that a job's manifest names.
pub(super) fn named_by(json: &[u8]) -> Result<Vec<Digest>, Failure> {
    let manifest = documents::read::<JobManifest>(json)?;
    Ok(std::iter::once(manifest.model).chain(manifest.models).collect())
}

impl Document for JobManifest {
    const WHAT: &'static str = "the job's manifest";

    /// Settings that aren't known here would change what is learned: a job that
    /// has any is not for this version.
    const UNREADABLE: Code = Code::VersionMismatch;
}
