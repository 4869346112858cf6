//! What children and parents say of jobs, and which side of one hears it.

use std::sync::Arc;

use bytes::Bytes;
use tierline_node::federation::relay;
use tierline_proto::Digest;
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Code, Empty, Failure, JobAssignment, JobStatus, JobVerdict, UpdateHeader};
use tierline_store::State;
use tierline_store::jobs::{JobRow, Side};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::arrivals::{self, Arrival};
use super::coordinator::ToCoordinator;
use super::participant::ToParticipant;
use super::{AGAIN, Folder, JOBS_MAX, JobManifest, Sides, may_pass, messages};
use crate::duties::federation::Jobs;
use crate::net::Uplink;

/// Children that say something of jobs that aren't under way, at once.
static NEWS: Semaphore = Semaphore::const_new(64);

impl Jobs {
    /// A child says what it, or a member below it, is at.
    pub(super) fn child_reported(self: &Arc<Self>, child: &str, status: JobStatus) {
        let Ok(job) = messages::digest(&status.job) else { return };
        if let Some(sides) = self.get(job) {
            if let Some(relay) = &sides.relay {
                relay.step(self, relay::Event::Reported { child: child.to_owned(), status });
            } else if let Some(coordinator) = &sides.coordinator {
                sides.late.reported(coordinator, child, status);
            }
            return;
        }
        let (jobs, child) = (Arc::clone(self), child.to_owned());
        // One that finds no turn says it again.
        let Ok(turn) = NEWS.try_acquire() else { return };
        self.cx.tasks.spawn("news of an end", async move {
            let _turn = turn;
            // It was away when the job ended.
            let rows = jobs.cx.state.with(State::jobs).await;
            if rows.is_ok_and(|rows| rows.iter().any(|row| row.job == job && row.ended.is_some())) {
                let over = messages::assignment(job, &status.node, Want::Over(Empty {}));
                jobs.cx.children.tell(&child, FEDERATION, &over);
            }
        });
    }

    /// A parent says what it wants for a job.
    pub(super) fn hear_assignment(self: &Arc<Self>, uplink: &Arc<Uplink>, assignment: JobAssignment) {
        // In the order of arrival, once the job is known.
        let known = Digest::try_from(&assignment.job).ok().and_then(|id| self.get(id));
        if let Some(sides) = known {
            if sides.relay.is_some() {
                self.pass_on(&sides, uplink, assignment);
            } else if let (Some(participant), Some(want)) = (&sides.participant, assignment.want) {
                sides.late.assigned(participant, uplink, want, assignment.classes);
            }
            return;
        }
        let Ok(id) = messages::digest(&assignment.job) else { return };
        let key = (id, uplink.peer);
        // Not within the match: a lock would be held through it.
        let arrival = self.arriving().hear(key, assignment);
        match arrival {
            Arrival::First => {}
            Arrival::Beside => return,
            Arrival::Refused => {
                return self.tell_unable(uplink, id, "this node is told of more jobs than it can take up");
            }
        }
        let (jobs, uplink) = (Arc::clone(self), Arc::clone(uplink));
        let (told, parent) = (Arc::clone(self), Arc::clone(&uplink));
        let take_up = async move { jobs.take_up(&uplink, key).await };
        self.cx.tasks.spawn_then("assignment", take_up, move |taken_up| async move {
            if let Err(failure) = taken_up {
                told.arriving().over(key);
                told.tell_unable(&parent, id, &failure.to_string());
            }
        });
    }

    /// Does what a parent wants for a job that isn't known yet, until nothing is
    /// wanted any more.
    async fn take_up(self: &Arc<Self>, uplink: &Arc<Uplink>, key: arrivals::Key) {
        let (id, _) = key;
        loop {
            let Some(wanted) = self.arriving().take(key) else { return };
            let mut again = false;
            for assignment in wanted {
                let Err(failure) = self.assigned(uplink, assignment.clone()).await else { continue };
                self.cx.events.record("job", format!("a job can't be taken up: {failure}"), &serde_json::json!({}));
                if !may_pass(failure.code()) {
                    self.arriving().over(key);
                    return self.tell_unable(uplink, id, &failure.to_string());
                }
                self.arriving().put_back(key, assignment);
                again = true;
            }
            if again {
                tokio::time::sleep(AGAIN).await;
                // Whoever took it up meanwhile has heard something newer.
                if self.get(id).is_some() || !uplink.is_up() {
                    return self.arriving().over(key);
                }
            }
        }
    }

    /// Passes on what a parent wants of members below.
    fn pass_on(self: &Arc<Self>, sides: &Sides, uplink: &Arc<Uplink>, assignment: JobAssignment) {
        let Ok(id) = messages::digest(&assignment.job) else { return };
        let told = relay::Event::Told { parent: uplink.peer, up: uplink.is_up(), assignment };
        if sides.relay.as_ref().is_none_or(|relay| !relay.step(self, told)) {
            return;
        }
        self.leave_job(id);
        let over = messages::assignment(id, "", Want::Over(Empty {}));
        self.cx.children.tell_all(FEDERATION, &over);
        let jobs = Arc::clone(self);
        self.cx.tasks.spawn("job cleaning", async move {
            if let Err(failure) = jobs.cx.state.with(move |state| state.end_job(id, "over", "")).await {
                let text = format!("the end of a job can't be kept: {failure}");
                jobs.cx.events.record("job", text, &serde_json::json!({ "job": id.to_string() }));
            }
            // What stays behind only takes room.
            for side in [Side::Relay, Side::RelayDifferences] {
                let _ = jobs.drop_models(id, side, &[]).await;
            }
        });
    }

    async fn assigned(self: &Arc<Self>, uplink: &Arc<Uplink>, assignment: JobAssignment) -> Result<(), Failure> {
        let id = messages::digest(&assignment.job)?;
        let Some(want) = assignment.want.clone() else {
            let text = format!("{} wants something of a job that is not known here", uplink.name());
            return Err(Failure::new(Code::VersionMismatch, text).with_help("update this node"));
        };
        if self.get(id).is_none() {
            if matches!(want, Want::Over(_) | Want::Out(_)) {
                return Ok(());
            }
            if let Some(row) =
                self.cx.state.with(State::jobs).await?.into_iter().find(|row| row.job == id && row.ended.is_some())
            {
                // Whoever asks may not have heard that this node is out.
                self.tell_unable(uplink, id, &row.failure);
                return Ok(());
            }
            // One node sets a job up once, however often it hears of it.
            let _turn = self.adopting.lock().await;
            if self.get(id).is_none() {
                let running = self.lock().len();
                if running >= JOBS_MAX {
                    let text = format!("{running} jobs are under way, the limit here");
                    return Err(Failure::new(Code::Overloaded, text));
                }
                let manifest: JobManifest = self.artefacts.document(id).await?;
                let row = JobRow {
                    job: id,
                    name: manifest.name.clone(),
                    coordinates: false,
                    created_ms: manifest.created_ms,
                    ended: None,
                    failure: String::new(),
                };
                self.cx.state.with(move |state| state.add_job(&row)).await?;
                self.begin(id, manifest, false).await?;
            }
        }
        let Some(sides) = self.get(id) else { return Ok(()) };
        if sides.relay.is_some() {
            self.pass_on(&sides, uplink, assignment);
        } else if let Some(participant) = &sides.participant {
            let classes = assignment.classes;
            let _ = participant.send(ToParticipant::Assigned { uplink: Arc::clone(uplink), want, classes }).await;
        }
        Ok(())
    }

    /// The parent that takes an update which a child passes or sends on through
    /// this node; `None` where it is counted here.
    ///
    /// # Errors
    /// When the child doesn't speak for the member, or no parent takes it now.
    pub fn update_goes_to(&self, child: &str, header: &UpdateHeader) -> Result<Option<Arc<Uplink>>, Failure> {
        let sides = self.get(messages::digest(&header.job)?);
        let relay = sides.as_ref().and_then(|sides| sides.relay.as_ref());
        relay.map(|relay| relay.parent_of(self, child, messages::member(child, &header.node))).transpose()
    }

    /// What would become of an update, if it can't be counted any more; `None`
    /// when its bytes are wanted.
    ///
    /// # Errors
    /// When the job is unknown here, or the update is not the child's to send.
    pub async fn would_count(&self, child: &str, header: &UpdateHeader) -> Result<Option<JobVerdict>, Failure> {
        let (ask, answer) = oneshot::channel();
        let message = ToCoordinator::Would { child: child.to_owned(), header: header.clone(), answer: ask };
        self.upper_of(&header.job).await?.send(message).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Counts an update whose bytes are here, or says why not.
    ///
    /// # Errors
    /// When the job is unknown here, or ends meanwhile.
    pub async fn count_update(&self, child: &str, header: UpdateHeader) -> Result<JobVerdict, Failure> {
        let (ask, answer) = oneshot::channel();
        let coordinator = self.upper_of(&header.job).await?;
        let message = ToCoordinator::Submit { child: child.to_owned(), header, answer: ask };
        coordinator.send(message).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// Where an update's bytes go.
    ///
    /// # Errors
    /// When the folder can't be used.
    pub fn update_folder(&self, job: &Bytes) -> Result<Folder, Failure> {
        let id = messages::digest(job)?;
        Folder::open(&self.cx.me.config().data, id)
    }

    /// The side that counts a job's updates.
    async fn upper_of(&self, job: &Bytes) -> Result<mpsc::Sender<ToCoordinator>, Failure> {
        let id = messages::digest(job)?;
        if let Some(coordinator) = self.get(id).and_then(|sides| sides.coordinator.clone()) {
            return Ok(coordinator);
        }
        // A member that hears "not found" throws its update away.
        if self.cx.state.with(State::jobs).await?.iter().any(|row| row.job == id && row.ended.is_none()) {
            let text = format!("job {} is not taken up yet by {}", id.short(), self.cx.me.name());
            return Err(Failure::new(Code::Unreachable, text));
        }
        Err(Failure::new(Code::NotFound, format!("job {} is not coordinated by {}", id.short(), self.cx.me.name())))
    }
}

/// The side that was asked is gone: the job is over, or is taken up again.
pub(super) fn stopped() -> Failure {
    Failure::new(Code::Unreachable, "the job has stopped here, at least for now")
}
