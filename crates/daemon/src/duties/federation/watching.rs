//! What operators ask of jobs.

use std::sync::Arc;

use tierline_proto::limits::{CHUNK_BYTES, JOB_MODELS_MAX};
use tierline_proto::v1::job_control_request::What;
use tierline_proto::v1::{
    Code, Failure, FetchChunk, JobControlRequest, JobEvent, JobInfo, JobSubmitChunk, job_submit_chunk,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{JobCommand, Jobs};
use crate::duties::artefacts::upload;

/// Messages of a stream ahead of the connection.
const AHEAD_MAX: usize = 8;

/// What happens to a job.
pub type Events = ReceiverStream<Result<JobEvent, Status>>;
/// A job's model, on its way.
pub type Model = ReceiverStream<Result<FetchChunk, Status>>;

/// A job is given.
///
/// # Errors
/// As [`Jobs`] says.
pub async fn submit(jobs: &Arc<Jobs>, mut stream: Streaming<JobSubmitChunk>) -> Result<JobInfo, Status> {
    let Some(JobSubmitChunk { body: Some(job_submit_chunk::Body::Header(header)) }) = stream.message().await? else {
        return Err(Failure::new(Code::Protocol, "a job begins with its header").into());
    };
    let lengths: Vec<u64> = std::iter::once(header.length).chain(header.further).collect();
    if lengths.len() > JOB_MODELS_MAX {
        let text = format!("a job of {} models; at most {JOB_MODELS_MAX} are taken", lengths.len());
        return Err(Failure::new(Code::TooLarge, text).into());
    }
    let models = upload::take(&jobs.artefacts, &mut stream, &lengths, |chunk| match chunk.body {
        Some(job_submit_chunk::Body::Data(data)) => Some(data),
        _ => None,
    });
    let models = models.await?;
    Ok(jobs.submit_job(&header.name, &header.toml, models).await?)
}

/// A job is to pause, go on or end.
///
/// # Errors
/// As [`Jobs`] says.
pub async fn control(jobs: &Arc<Jobs>, request: &JobControlRequest) -> Result<JobInfo, Failure> {
    let command = match request.what() {
        What::Pause => JobCommand::Pause,
        What::Resume => JobCommand::Resume,
        What::Cancel => JobCommand::Cancel,
        What::Unspecified => return Err(Failure::new(Code::Protocol, "that is no command for a job")),
    };
    jobs.job_control(&request.job, command).await
}

/// A job is followed.
///
/// # Errors
/// As [`Jobs`] says.
pub async fn watch(jobs: &Arc<Jobs>, job: &str) -> Result<Events, Failure> {
    let (mut past, mut feed) = jobs.job_watch(job).await?;
    let (watched, job) = (Arc::clone(jobs), job.to_owned());
    let events = jobs.cx.tasks.stream("job watch", AHEAD_MAX, |send| async move {
        let mut told = 0;
        loop {
            for event in past.drain(..) {
                if !tell(&send, event, &mut told).await {
                    return;
                }
            }
            let Some(news) = &mut feed else { return };
            match news.recv().await {
                Ok(event) => past.push(event),
                // Who is slow to read misses no round: they are kept.
                Err(RecvError::Lagged(_)) => match watched.job_watch(&job).await {
                    Ok(now) => (past, feed) = now,
                    Err(failure) => {
                        let _ = send.send(Err(failure.into_status())).await;
                        return;
                    }
                },
                Err(RecvError::Closed) => return,
            }
        }
    });
    Ok(events)
}

/// Tells a watcher of a job something that it wasn't told; whether there will
/// be more.
async fn tell(send: &mpsc::Sender<Result<JobEvent, Status>>, event: JobEvent, told: &mut u64) -> bool {
    let last = matches!(event.kind.as_str(), "done" | "cancelled" | "failed");
    if event.kind == "round" {
        let json = serde_json::from_str::<serde_json::Value>(&event.json).ok();
        let round = json.and_then(|json| json["round"].as_u64()).unwrap_or(*told + 1);
        if round <= *told {
            return true;
        }
        *told = round;
    }
    send.send(Ok(event)).await.is_ok() && !last
}

/// A job's model is fetched.
///
/// # Errors
/// As [`Jobs`] says.
pub async fn model(jobs: &Arc<Jobs>, job: &str) -> Result<Model, Failure> {
    let bytes = jobs.job_model(job).await?;
    let sending = jobs.cx.tasks.stream("model sending", AHEAD_MAX, |send| async move {
        let total = bytes.len() as u64;
        for at in (0..bytes.len()).step_by(CHUNK_BYTES) {
            let data = bytes.slice(at..bytes.len().min(at + CHUNK_BYTES));
            if send.send(Ok(FetchChunk { total, offset: at as u64, data })).await.is_err() {
                return;
            }
        }
    });
    Ok(sending)
}
