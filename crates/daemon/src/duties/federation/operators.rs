//! What operators ask of jobs: give one, list, show, pause, follow, fetch.

use std::sync::Arc;

use bytes::Bytes;
use tierline_graph::Model;
use tierline_proto::v1::{Code, Failure, JobEvent, JobInfo};
use tierline_store::State;
use tierline_store::jobs::JobRow;
use tierline_train::federated::ParameterLayout;
use tokio::sync::{broadcast, oneshot};

use super::coordinator::ToCoordinator;
use super::neighbours::stopped;
use super::{Folder, JOBS_MAX, JobCommand, JobManifest, data, messages};
use crate::duties::artefacts::upload::Uploads;
use crate::duties::federation::Jobs;
use crate::runtime::events;
use crate::{documents, jobs};

impl Jobs {
    /// Begins to coordinate a job that was given to this node.
    ///
    /// # Errors
    /// When the job or its model makes no sense; nothing is kept then.
    ///
    /// `models`: the job's own, then those of its `models`, in their order.
    pub async fn submit_job(self: &Arc<Self>, name: &str, toml: &str, mut models: Uploads) -> Result<JobInfo, Failure> {
        let invalid = |text: String| Failure::new(Code::InvalidInput, text);
        jobs::Name::new(name).map_err(invalid)?;
        let mut job = jobs::read(toml).map_err(|reason| invalid(format!("{name}: {reason}")))?;
        tokio::task::block_in_place(|| data::name_classes(self, &mut job))?;
        let Some(federation) = &job.federation else {
            return Err(invalid(format!("{name} has no table [federation]: it says nothing of many nodes")));
        };
        job.stated_normalization().map_err(|e| invalid(format!("{name}: {e}")))?;
        let running = self.lock().len();
        if running >= JOBS_MAX {
            let text = format!("{running} jobs are under way, the limit here");
            return Err(Failure::new(Code::Overloaded, text).with_help("tierline job ls; tierline job cancel JOB"));
        }
        let came = models.files.len();
        if came != 1 + job.models.len() {
            let text = format!("{name} names {} models, and {came} came with it", 1 + job.models.len());
            return Err(invalid(text));
        }
        // What can't be trained is refused before anybody hears of it, and read
        // one model at a time.
        let reading = self.artefacts.reading.lock().await;
        tokio::task::block_in_place(|| {
            if let Some(distil) = federation.distillation() {
                data::open_public(self, &job, distil)?;
            }
            let mut layout = None;
            for (at, model) in models.files.iter_mut().enumerate() {
                let file = if at == 0 { &job.model } else { &job.models[at - 1].model };
                let unfit = |e: &dyn std::fmt::Display| invalid(format!("{}: {e}", file.display()));
                let parsed = Model::parse(model.read()?).map_err(|e| unfit(&e))?;
                let own = ParameterLayout::new(parsed, &job).map_err(|e| unfit(&e))?.layout().clone();
                if layout.get_or_insert_with(|| own.clone()) != &own {
                    return Err(unfit(&"it tells apart other classes than the job's own model"));
                }
            }
            Ok(())
        })?;
        drop(reading);
        // What is stored and not named yet must not be taken for what a removal left.
        let turn = self.artefacts.naming.lock().await;
        let mut kept = Vec::new();
        for model in &mut models.files {
            kept.push(self.artefacts.put_file(model.rewound()).await?);
        }
        let created_ms = events::now_ms();
        let models = kept.split_off(1);
        let manifest = JobManifest { name: name.to_owned(), created_ms, model: kept[0], models, job };
        let id = self.artefacts.put(documents::write(&manifest)?.into()).await?;
        let row = JobRow {
            job: id,
            name: name.to_owned(),
            coordinates: true,
            created_ms,
            ended: None,
            failure: String::new(),
        };
        self.cx.state.with(move |state| state.add_job(&row)).await?;
        drop(turn);
        self.cx.events.record("job", format!("job {name} begins"), &serde_json::json!({ "job": id.to_string() }));
        self.begin(id, manifest, true).await?;
        self.job_info(&id.to_string()).await
    }

    /// The one job of this name, digest, or first digits of it; the newest of
    /// a name.
    async fn job_row(&self, wanted: &str) -> Result<JobRow, Failure> {
        let rows = self.cx.state.with(State::jobs).await?;
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
        for row in self.cx.state.with(State::jobs).await? {
            jobs.push(self.info_of(&row).await?);
        }
        Ok(jobs)
    }

    /// One job.
    ///
    /// # Errors
    /// When it is unknown.
    pub async fn job_info(&self, wanted: &str) -> Result<JobInfo, Failure> {
        self.info_of(&self.job_row(wanted).await?).await
    }

    async fn info_of(&self, row: &JobRow) -> Result<JobInfo, Failure> {
        let job = row.job;
        let round = self.cx.state.with(move |state| state.round_count(job)).await?;
        let manifest = self.artefacts.get(row.job).await.and_then(|json| documents::read::<JobManifest>(&json));
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
        if row.coordinates {
            let left_out = Folder::at(&self.cx.me.config().data, row.job).load_left_out()?;
            info.excluded = messages::listed(left_out);
            // Of before this version, nothing was kept.
            if let Some(kept) = self.cx.state.with(move |state| state.kept_end(job)).await? {
                let kept = <JobInfo as prost::Message>::decode(&*kept)
                    .map_err(|e| Failure::new(Code::Corrupt, format!("what is known of job {}: {e}", row.name)))?;
                let JobInfo { members, ready, excluded, notes, .. } = kept;
                info = JobInfo { members, ready, excluded, notes, ..info };
            }
        }
        if let Some(coordinator) = self.get(row.job).and_then(|sides| sides.coordinator.clone()) {
            let (ask, answer) = oneshot::channel();
            if coordinator.send(ToCoordinator::Info(ask)).await.is_ok()
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
    pub async fn job_control(&self, wanted: &str, command: JobCommand) -> Result<JobInfo, Failure> {
        let row = self.job_row(wanted).await?;
        let Some(coordinator) = self.get(row.job).and_then(|sides| sides.coordinator.clone()) else {
            let how = row.ended.as_deref().unwrap_or("coordinated elsewhere");
            return Err(Failure::new(Code::Infeasible, format!("job {} is {how}", row.name)));
        };
        let (ask, answer) = oneshot::channel();
        coordinator.send(ToCoordinator::Command(command, ask)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?;
        self.job_info(&row.job.to_string()).await
    }

    /// What happened in a job's rounds so far, and the feed of what comes;
    /// `None` when nothing comes any more.
    ///
    /// # Errors
    /// When the job is unknown.
    pub async fn job_watch(
        &self,
        wanted: &str,
    ) -> Result<(Vec<JobEvent>, Option<broadcast::Receiver<JobEvent>>), Failure> {
        let row = self.job_row(wanted).await?;
        let feed = row.ended.is_none().then(|| self.feed(row.job).subscribe());
        let event = |kind: &str, json: String| JobEvent { kind: kind.to_owned(), json };
        let rounds = self.cx.state.with(move |state| state.rounds(row.job)).await?;
        let mut past: Vec<JobEvent> = rounds.into_iter().map(|scores| event("round", scores)).collect();
        // Read again: it may have ended since.
        let row = self.job_row(&row.job.to_string()).await?;
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
    pub async fn job_model(&self, wanted: &str) -> Result<Bytes, Failure> {
        let row = self.job_row(wanted).await?;
        let folder = Folder::at(&self.cx.me.config().data, row.job);
        let read = folder.read(&folder.result());
        read.map(Bytes::from).map_err(|_| {
            let text = match row.coordinates {
                true => format!("job {} has made no model yet", row.name),
                false => format!("job {} has left no model of its own on {}", row.name, self.cx.me.name()),
            };
            Failure::new(Code::NotFound, text).with_help("follow it on the cloud with: tierline job logs JOB")
        })
    }
}
