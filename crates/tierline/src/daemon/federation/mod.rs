//! Federations on this node: every job that it coordinates or takes part in.
//!
//! Each job has up to two sides, each a task of its own around one machine of
//! `tierline_node::federation`: the [`upper`] side coordinates the nodes below
//! (the cloud's duty, and an edge's), the [`lower`] side answers to the parent
//! (an end's duty, and an edge's). Where a job gives edges nothing to do, they
//! are a [`relay`]. Start at [`Federations`].

mod folder;
mod journal;
mod lower;
mod messages;
mod relay;
mod upper;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tierline_federate::Federation;
use tierline_graph::Model;
use tierline_node::federation::Standing;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    Code, Empty, Failure, JobAssignment, JobEvent, JobInfo, JobStanding, JobVerdict, UpdateHeader, child_message,
    parent_message,
};
use tierline_proto::{Digest, Role};
use tierline_train::Job;
use tierline_train::federated::Blueprint;
use tokio::sync::{broadcast, mpsc, oneshot};

pub use self::folder::Folder;
use self::lower::ToLower;
use self::relay::Relay;
pub use self::upper::Order;
use self::upper::ToUpper;
use super::Node;
use super::uplink::Uplink;
use crate::store::jobs::{JobRow, Side};

/// Messages to one side of one job; senders wait while it is full.
const INBOX_MAX: usize = 1_024;

/// Events that a slow watcher of a job may fall behind.
const FEED_MAX: usize = 256;

/// What failed for want of room is tried again after this time.
const AGAIN: Duration = Duration::from_secs(10);

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
    /// The job's file; its `model` means nothing here.
    pub job: Job,
}

impl JobManifest {
    fn federation(&self) -> Federation {
        self.job.federation.clone().unwrap_or_default()
    }
}

/// One job on this node.
struct Duty {
    upper: Option<mpsc::Sender<ToUpper>>,
    lower: Option<mpsc::Sender<ToLower>>,
    relay: Option<Relay>,
    /// What happens to the job, for watchers.
    feed: broadcast::Sender<JobEvent>,
}

/// Every job of this node.
#[derive(Default)]
pub struct Federations {
    jobs: Mutex<BTreeMap<Digest, Arc<Duty>>>,
}

impl Federations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Duty>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, job: Digest) -> Option<Arc<Duty>> {
        self.lock().get(&job).cloned()
    }

    fn all(&self) -> Vec<Arc<Duty>> {
        self.lock().values().cloned().collect()
    }

    /// Tells every job's upper side, in the order of calls. A side that is
    /// hopelessly behind misses it; members repeat what they say.
    fn tell_uppers(&self, message: impl Fn() -> ToUpper) {
        for upper in self.all().iter().filter_map(|duty| duty.upper.as_ref()) {
            let _ = upper.try_send(message());
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
        for lower in self.all().iter().filter_map(|duty| duty.lower.as_ref()) {
            let _ = lower.try_send(ToLower::Parent { uplink: Arc::clone(uplink), up });
        }
    }
}

impl Node {
    /// Takes up the jobs that were under way before the start.
    ///
    /// # Errors
    /// Those of the store; a job that can't be taken up is told of, and the
    /// others are.
    pub async fn resume_jobs(self: &Arc<Self>) -> Result<(), Failure> {
        for row in self.state.jobs()?.into_iter().filter(|row| row.ended.is_none()) {
            let begun = async {
                let manifest = self.artefacts.get(row.job).await?;
                let manifest = manifest_of(&manifest)?;
                self.begin(row.job, manifest, row.coordinates).await
            };
            if let Err(failure) = begun.await {
                let text = format!("job {} can't be taken up: {failure}", row.name);
                self.events.record("job", text, &serde_json::json!({ "job": row.job.to_string() }));
            }
        }
        Ok(())
    }

    /// A job can't go on on this node: tried again later if the cause may
    /// pass, else over here, and whoever answers for it is told.
    fn job_failed(self: &Arc<Self>, id: Digest, name: &str, failure: &Failure) {
        let json = serde_json::json!({ "job": id.to_string() });
        self.events.record("job", format!("job {name} stopped here: {failure}"), &json);
        let duty = self.federations.get(id);
        self.leave_job(id);
        if may_pass(failure.code()) {
            // The journal has all of it; nothing is lost by beginning again.
            let node = Arc::clone(self);
            let again: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
                tokio::time::sleep(AGAIN).await;
                if let Err(failure) = node.resume_jobs().await {
                    node.events.record("job", failure.to_string(), &serde_json::json!({}));
                }
            });
            tokio::spawn(again);
            return;
        }
        // The database may be what failed; the next start finds out then.
        let _ = self.state.end_job(id, "failed", &failure.to_string());
        if let Some(duty) = duty {
            let json = serde_json::json!({ "reason": failure.to_string() }).to_string();
            let _ = duty.feed.send(JobEvent { kind: "failed".to_owned(), json });
        }
        let over = messages::assignment(id, "", Want::Over(Empty {}));
        self.children.tell_all(&parent_message::Body::Assignment(over));
        for uplink in self.uplinks() {
            self.tell_unable(uplink, id, &failure.to_string());
        }
    }

    /// Lets go of the models of one side of a job, but for those needed.
    async fn drop_models(&self, id: Digest, side: Side, needed: &[u64]) -> Result<(), Failure> {
        for gone in self.state.forget_versions(id, side, needed)? {
            self.artefacts.remove(gone).await?;
        }
        Ok(())
    }

    /// Tells a parent that this node takes no part in a job.
    fn tell_unable(&self, uplink: &Uplink, job: Digest, reason: &str) {
        let standing = messages::standing(job, &Standing::Unable { reason: reason.to_owned() });
        uplink.tell(child_message::Body::Standing(standing));
    }

    /// Begins to coordinate a job that was given to this node.
    ///
    /// # Errors
    /// When the job or its model makes no sense; nothing is kept then.
    pub async fn submit_job(self: &Arc<Self>, name: &str, toml: &str, model: Bytes) -> Result<JobInfo, Failure> {
        let invalid = |text: String| Failure::new(Code::InvalidInput, text);
        let job: Job = toml::from_str(toml).map_err(|e| invalid(format!("{name}: {e}")))?;
        let Some(federation) = &job.federation else {
            return Err(invalid(format!("{name} has no table [federation]: it says nothing of many nodes")));
        };
        federation.check().map_err(|e| invalid(format!("{name}: {e}")))?;
        job.stated_normalization().map_err(|e| invalid(format!("{name}: {e}")))?;
        let running = self.federations.lock().len();
        if running >= JOBS_MAX {
            let text = format!("{running} jobs are under way, the limit here");
            return Err(Failure::new(Code::Overloaded, text).with_help("tierline job ls; tierline job cancel JOB"));
        }
        // What can't be trained is refused before anybody hears of it.
        tokio::task::block_in_place(|| {
            let parsed = Model::parse(model.clone()).map_err(|e| invalid(format!("the model: {e}")))?;
            Blueprint::new(parsed, &job).map(drop).map_err(|e| invalid(format!("the model: {e}")))
        })?;
        let model = self.artefacts.put(model).await?;
        let created_ms = super::events::now_ms();
        let manifest = JobManifest { name: name.to_owned(), created_ms, model, job };
        let json = serde_json::to_vec(&manifest).map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
        let id = self.artefacts.put(json.into()).await?;
        self.state.add_job(&JobRow {
            job: id,
            name: name.to_owned(),
            coordinates: true,
            created_ms,
            ended: None,
            failure: String::new(),
        })?;
        self.events.record("job", format!("job {name} begins"), &serde_json::json!({ "job": id.to_string() }));
        self.begin(id, manifest, true).await?;
        self.job_info(&id.to_string()).await
    }

    /// Sets up the sides of a job on this node.
    async fn begin(self: &Arc<Self>, id: Digest, manifest: JobManifest, coordinates: bool) -> Result<(), Failure> {
        let feed = broadcast::channel(FEED_MAX).0;
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
            lower: takes_part.then(|| lower.clone()),
            relay: passes_on.then(|| Relay::new(id)),
            feed: feed.clone(),
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
            tokio::spawn(side.run(upper_inbox));
            for name in self.children.names() {
                let _ = upper.send(ToUpper::ChildUp(name)).await;
            }
        }
        if takes_part {
            let above = edge_coordinates.then_some(upper);
            let side = lower::Lower { node: Arc::clone(self), id, manifest, folder, above };
            tokio::spawn(side.run(lower_inbox));
            for uplink in self.uplinks().iter().filter(|u| u.is_up()) {
                let _ = lower.send(ToLower::Parent { uplink: Arc::clone(uplink), up: true }).await;
            }
        }
        Ok(())
    }

    /// A child says what it, or a member below it, is at.
    pub fn child_stands(&self, child: &str, standing: JobStanding) {
        let Ok(job) = messages::digest(&standing.job) else { return };
        if let Some(duty) = self.federations.get(job) {
            if let Some(relay) = &duty.relay {
                relay.stands(child, standing);
            } else if let Some(upper) = &duty.upper {
                let _ = upper.try_send(ToUpper::Stands { child: child.to_owned(), standing });
            }
            return;
        }
        // It was away when the job ended.
        let ended = self.state.jobs().is_ok_and(|rows| rows.iter().any(|r| r.job == job && r.ended.is_some()));
        if ended {
            let over = messages::assignment(job, &standing.node, Want::Over(Empty {}));
            self.children.tell(child, parent_message::Body::Assignment(over));
        }
    }

    /// A side is done with a job: nothing of it is kept in memory.
    fn leave_job(&self, id: Digest) {
        self.federations.lock().remove(&id);
    }

    /// A parent says what it wants for a job.
    pub fn hear_assignment(self: &Arc<Self>, uplink: &Arc<Uplink>, assignment: JobAssignment) {
        // In the order of arrival, once the job is known.
        let known = Digest::try_from(&assignment.job).ok().and_then(|id| self.federations.get(id));
        if let Some(duty) = known {
            if duty.relay.is_some() {
                self.pass_on(&duty, uplink, assignment);
            } else if let (Some(lower), Some(want)) = (&duty.lower, assignment.want) {
                let _ = lower.try_send(ToLower::Assigned { uplink: Arc::clone(uplink), want });
            }
            return;
        }
        let (node, uplink) = (Arc::clone(self), Arc::clone(uplink));
        tokio::spawn(async move {
            if let Err(failure) = node.assigned(&uplink, assignment).await {
                node.events.record("job", format!("a job can't be taken up: {failure}"), &serde_json::json!({}));
            }
        });
    }

    /// Passes on what a parent wants of members below.
    fn pass_on(self: &Arc<Self>, duty: &Duty, uplink: &Arc<Uplink>, assignment: JobAssignment) {
        let Ok(id) = messages::digest(&assignment.job) else { return };
        if duty.relay.as_ref().is_none_or(|relay| !relay.hear(self, uplink, assignment)) {
            return;
        }
        self.leave_job(id);
        if let Err(error) = self.state.end_job(id, "over", "") {
            let text = format!("the end of a job can't be kept: {error}");
            self.events.record("job", text, &serde_json::json!({ "job": id.to_string() }));
        }
        let over = messages::assignment(id, "", Want::Over(Empty {}));
        self.children.tell_all(&parent_message::Body::Assignment(over));
        let node = Arc::clone(self);
        tokio::spawn(async move {
            // What stays behind only takes room.
            let _ = node.drop_models(id, Side::Relay, &[]).await;
        });
    }

    async fn assigned(self: &Arc<Self>, uplink: &Arc<Uplink>, assignment: JobAssignment) -> Result<(), Failure> {
        let id = messages::digest(&assignment.job)?;
        let Some(want) = assignment.want.clone() else { return Ok(()) };
        if self.federations.get(id).is_none() {
            if matches!(want, Want::Over(_) | Want::Out(_)) {
                return Ok(());
            }
            if let Some(row) = self.state.jobs()?.into_iter().find(|row| row.job == id && row.ended.is_some()) {
                // Whoever asks may not have heard that this node is out.
                self.tell_unable(uplink, id, &row.failure);
                return Ok(());
            }
            // One node sets a job up once, however often it hears of it.
            let _turn = self.adopting_jobs.lock().await;
            if self.federations.get(id).is_none() {
                self.ensure_artefact(id).await?;
                let manifest = manifest_of(&self.artefacts.get(id).await?)?;
                self.state.add_job(&JobRow {
                    job: id,
                    name: manifest.name.clone(),
                    coordinates: false,
                    created_ms: manifest.created_ms,
                    ended: None,
                    failure: String::new(),
                })?;
                self.begin(id, manifest, false).await?;
            }
        }
        let Some(duty) = self.federations.get(id) else { return Ok(()) };
        if duty.relay.is_some() {
            self.pass_on(&duty, uplink, assignment);
        } else if let Some(lower) = &duty.lower {
            let _ = lower.send(ToLower::Assigned { uplink: Arc::clone(uplink), want }).await;
        }
        Ok(())
    }

    /// The parent that takes an update which a child passes or sends on through
    /// this node; `None` where it is counted here.
    ///
    /// # Errors
    /// When the child doesn't speak for the member, or no parent takes it now.
    pub fn update_goes_to(&self, child: &str, header: &UpdateHeader) -> Result<Option<Arc<Uplink>>, Failure> {
        let duty = self.federations.get(messages::digest(&header.job)?);
        let relay = duty.as_ref().and_then(|duty| duty.relay.as_ref());
        relay.map(|relay| relay.parent_of(child, messages::member(child, &header.node))).transpose()
    }

    /// What would become of an update, if it can't be counted any more; `None`
    /// when its bytes are wanted.
    ///
    /// # Errors
    /// When the job is unknown here, or the update is not the child's to send.
    pub async fn would_count(&self, child: &str, header: &UpdateHeader) -> Result<Option<JobVerdict>, Failure> {
        let (ask, answer) = oneshot::channel();
        let message = ToUpper::Would { child: child.to_owned(), header: header.clone(), answer: ask };
        self.upper_of(&header.job)?.send(message).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Counts an update whose bytes are here, or says why not.
    ///
    /// # Errors
    /// When the job is unknown here, or ends meanwhile.
    pub async fn count_update(&self, child: &str, header: UpdateHeader) -> Result<JobVerdict, Failure> {
        let (ask, answer) = oneshot::channel();
        let upper = self.upper_of(&header.job)?;
        let message = ToUpper::Submit { child: child.to_owned(), header, answer: ask };
        upper.send(message).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// Where an update's bytes go.
    ///
    /// # Errors
    /// When the folder can't be used.
    pub fn update_folder(&self, job: &Bytes) -> Result<Folder, Failure> {
        let id = messages::digest(job)?;
        Folder::open(&self.config.data, id)
    }

    /// The side that counts a job's updates.
    fn upper_of(&self, job: &Bytes) -> Result<mpsc::Sender<ToUpper>, Failure> {
        let id = messages::digest(job)?;
        if let Some(upper) = self.federations.get(id).and_then(|duty| duty.upper.clone()) {
            return Ok(upper);
        }
        // A member that hears "not found" throws its update away.
        if self.state.jobs()?.iter().any(|row| row.job == id && row.ended.is_none()) {
            let text = format!("job {} is not taken up yet by {}", id.short(), self.name());
            return Err(Failure::new(Code::Unreachable, text));
        }
        Err(Failure::new(Code::NotFound, format!("job {} is not coordinated by {}", id.short(), self.name())))
    }

    // ---- for operators

    /// The one job of this name, digest, or first digits of it; the newest of
    /// a name.
    fn job_row(&self, wanted: &str) -> Result<JobRow, Failure> {
        let rows = self.state.jobs()?;
        let named = rows.iter().find(|row| row.name == wanted);
        let mut matching = rows.iter().filter(|row| wanted.len() >= 4 && row.job.to_string().starts_with(wanted));
        let found = named.or_else(|| matching.next());
        found.cloned().ok_or_else(|| {
            let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
            let known = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
            Failure::new(Code::NotFound, format!("no job `{wanted}` is known here; {known}"))
                .with_help("tierline job ls")
        })
    }

    /// Every job that this node knows of, the newest first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn job_list(&self) -> Result<Vec<JobInfo>, Failure> {
        let mut jobs = Vec::new();
        for row in self.state.jobs()? {
            jobs.push(self.info_of(&row).await?);
        }
        Ok(jobs)
    }

    /// One job.
    ///
    /// # Errors
    /// When it is unknown.
    pub async fn job_info(&self, wanted: &str) -> Result<JobInfo, Failure> {
        self.info_of(&self.job_row(wanted)?).await
    }

    async fn info_of(&self, row: &JobRow) -> Result<JobInfo, Failure> {
        let round = self.state.rounds(row.job)?.len() as u64;
        let manifest = self.artefacts.get(row.job).await.and_then(|json| manifest_of(&json));
        let rounds = manifest.map_or(round, |m| m.federation().cloud.rounds);
        let ended = row.ended.clone().unwrap_or_else(|| "takes part".to_owned());
        let mut info = JobInfo {
            job: row.job.to_bytes(),
            name: row.name.clone(),
            state: ended,
            round,
            rounds,
            failure: row.failure.clone(),
            created_ms: row.created_ms,
            ..JobInfo::default()
        };
        if let Some(upper) = self.federations.get(row.job).and_then(|duty| duty.upper.clone()) {
            let (ask, answer) = oneshot::channel();
            if upper.send(ToUpper::Info(ask)).await.is_ok()
                && let Ok(live) = answer.await
            {
                info = JobInfo { job: info.job, name: info.name, created_ms: info.created_ms, ..live };
            }
        }
        Ok(info)
    }

    /// Tells a job's coordinator what its operator wants.
    ///
    /// # Errors
    /// When the job is unknown or over.
    pub async fn job_control(&self, wanted: &str, order: Order) -> Result<JobInfo, Failure> {
        let row = self.job_row(wanted)?;
        let Some(upper) = self.federations.get(row.job).and_then(|duty| duty.upper.clone()) else {
            let how = row.ended.as_deref().unwrap_or("coordinated elsewhere");
            return Err(Failure::new(Code::Infeasible, format!("job {} is {how}", row.name)));
        };
        let (ask, answer) = oneshot::channel();
        upper.send(ToUpper::Order(order, ask)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?;
        self.job_info(&row.job.to_string()).await
    }

    /// What happened in a job's rounds so far, and the feed of what comes;
    /// `None` when nothing comes any more.
    ///
    /// # Errors
    /// When the job is unknown.
    pub fn job_watch(&self, wanted: &str) -> Result<(Vec<JobEvent>, Option<broadcast::Receiver<JobEvent>>), Failure> {
        let row = self.job_row(wanted)?;
        let feed = self.federations.get(row.job).map(|duty| duty.feed.subscribe());
        let event = |kind: &str, json: String| JobEvent { kind: kind.to_owned(), json };
        let mut past: Vec<JobEvent> =
            self.state.rounds(row.job)?.into_iter().map(|scores| event("round", scores)).collect();
        // Read again: it may have ended since.
        let row = self.job_row(&row.job.to_string())?;
        if let Some(ended) = row.ended {
            past.push(event(&ended, serde_json::json!({ "reason": row.failure }).to_string()));
            return Ok((past, None));
        }
        Ok((past, feed))
    }

    /// A job's newest model, for use.
    ///
    /// # Errors
    /// When the job is unknown or has none yet.
    pub fn job_model(&self, wanted: &str) -> Result<Bytes, Failure> {
        let row = self.job_row(wanted)?;
        let folder = Folder::open(&self.config.data, row.job)?;
        let read = std::fs::read(folder.result());
        read.map(Bytes::from).map_err(|_| {
            Failure::new(Code::NotFound, format!("job {} has made no model yet", row.name))
                .with_help("follow it with: tierline job logs JOB")
        })
    }
}

/// The side that was asked is gone: the job is over, or is taken up again.
fn stopped() -> Failure {
    Failure::new(Code::Unreachable, "the job has stopped here, at least for now")
}

/// Whether trying again later may help.
fn may_pass(code: Code) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Draining, ModelNotReady, Overloaded, StorageFull, Unreachable};
    matches!(code, StorageFull | Unreachable | DeadlineExceeded | Overloaded | Draining | Cancelled | ModelNotReady)
}

fn manifest_of(json: &[u8]) -> Result<JobManifest, Failure> {
    serde_json::from_slice(json)
        .map_err(|e| Failure::new(Code::Corrupt, format!("the job's manifest: {e}")).with_help("update this node"))
}
