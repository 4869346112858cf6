//! `tierline train` on the nodes of the site: gives the job to the cloud, and
//! follows it.

use tierline_federate::RoundScores;
use tierline_graph::Model;
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{JobInfo, JobRequest, JobSubmitChunk, JobSubmitHeader, job_submit_chunk};
use tierline_train::Job;
use tierline_train::federated::Models;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::rounds::{Rounds, Without};
use super::{Folder, Train, folder_beside, job_models};
use crate::cli::client::{connect, refused};
use crate::cli::engines;
use crate::cli::{Global, block_on};
use crate::output::{CommandError, CommandResult, ExitCode, ExitWith};

/// Chunks ahead of the connection.
const AHEAD_MAX: usize = 4;

pub fn site(global: &Global, args: &Train, job: &Job) -> CommandResult {
    if let Some(federation) = &job.federation {
        federation.check().exit_with(ExitCode::Configuration)?;
    }
    let engine = engines::engine(global)?;
    let Models { own, others } = job_models(global, &args.job, job, &engine)?;
    let files = std::iter::once(&own).chain(&others).map(Model::to_bytes).collect::<Result<Vec<_>, _>>()?;
    let name = args.job.file_stem().and_then(|stem| stem.to_str()).unwrap_or("job").to_owned();
    let toml = toml::to_string(job)?;
    let folder = Folder::take_new(folder_beside(&args.job, args.out.as_deref()), args.replace)?;
    block_on(async {
        let connected = connect(global, args.endpoint.as_deref()).await;
        let mut node = connected.map_err(|failure| match failure.hint.clone() {
            Some(hint) => failure.hint(format!("{hint}; or simulate the site with --sim N")),
            None => failure,
        })?;
        let (send, receive) = tokio::sync::mpsc::channel(AHEAD_MAX);
        let mut lengths = files.iter().map(|file| file.len() as u64);
        let length = lengths.next().unwrap_or(0);
        let header = JobSubmitHeader { name, toml, length, further: lengths.collect() };
        tokio::spawn(async move {
            let chunks = files.iter().flat_map(|file| file.chunks(CHUNK_BYTES));
            let data = chunks.map(|data| job_submit_chunk::Body::Data(data.to_vec().into()));
            for body in std::iter::once(job_submit_chunk::Body::Header(header)).chain(data) {
                if send.send(JobSubmitChunk { body: Some(body) }).await.is_err() {
                    return;
                }
            }
        });
        let info = node.job_submit(ReceiverStream::new(receive)).await.map_err(|s| refused(&s))?.into_inner();
        let digest = crate::cli::job::digest(&info);
        let wanted = job.federation.as_ref().map_or(1, |f| f.cloud.clients.min);
        let nodes = if wanted == 1 { "node" } else { "nodes" };
        let text = format!("job {} ({}) begins with {wanted} {nodes} or more", info.name, &digest[..8]);
        global.output().say(text);
        info.notes.iter().for_each(|note| global.output().say(format!("note: {note}")));
        match follow(global, &mut node, &info, folder).await? {
            Followed::Ended => Ok(()),
            Followed::Left => {
                let text = format!("job {} goes on without you", info.name);
                Err(CommandError::message(ExitCode::Interrupted, text).hint(format!(
                    "follow it with `tierline job logs {0}`, end it with `tierline job cancel {0}`",
                    info.name
                )))
            }
        }
    })
}

/// How following a job ended.
pub enum Followed {
    /// The job is done, and its model is here.
    Ended,
    /// The user left; the job goes on.
    Left,
}

/// Shows a job's rounds until it ends, then fetches its model to `folder`.
pub async fn follow(
    global: &Global,
    node: &mut LocalClient<Channel>,
    info: &JobInfo,
    folder: Folder,
) -> CommandResult<Followed> {
    let mut shown = Rounds::begin(global, &info.name, info.rounds, None, folder)?;
    let followed = watch(node, info, &mut shown).await;
    let drawn = shown.draw();
    if let Followed::Left = followed? {
        return Ok(Followed::Left);
    }
    drawn?;
    let bytes = fetch_model(node, info).await?;
    std::fs::write(shown.folder().model(), bytes)?;
    shown.done()?;
    Ok(Followed::Ended)
}

/// Shows what happens until the job is done.
async fn watch(node: &mut LocalClient<Channel>, info: &JobInfo, shown: &mut Rounds<'_>) -> CommandResult<Followed> {
    for out in &info.excluded {
        shown.without(Without::Excluded, Some(&out.node), Some(&out.reason))?;
    }
    let request = JobRequest { job: crate::cli::job::digest(info) };
    let mut events = node.job_watch(request).await.map_err(|s| refused(&s))?.into_inner();
    loop {
        let event = tokio::select! {
            event = events.message() => event,
            _ = tokio::signal::ctrl_c() => return Ok(Followed::Left),
        };
        // A node that ends properly closes the stream, one that is killed breaks it.
        let Ok(Some(event)) = event else {
            let text = "the node ended before the job did; the job goes on when the node is back";
            return Err(
                CommandError::message(ExitCode::Unreachable, text).hint(format!("tierline job logs {}", info.name))
            );
        };
        let json: serde_json::Value = serde_json::from_str(&event.json).unwrap_or_default();
        let (node, reason) = (json["node"].as_str(), json["reason"].as_str());
        match event.kind.as_str() {
            "round" => shown.round(&serde_json::from_str::<RoundScores>(&event.json)?)?,
            "excluded" => shown.without(Without::Excluded, node, reason)?,
            "unable" => shown.without(Without::Unable, node, reason)?,
            "done" => return Ok(Followed::Ended),
            "cancelled" => {
                return Err(CommandError::message(ExitCode::Interrupted, format!("job {} was cancelled", info.name)));
            }
            _ => {
                let reason = reason.unwrap_or("no reason was given");
                return Err(CommandError::message(ExitCode::Failure, format!("job {} failed: {reason}", info.name)));
            }
        }
    }
}

/// Fetches a job's model.
pub async fn fetch_model(node: &mut LocalClient<Channel>, info: &JobInfo) -> CommandResult<Vec<u8>> {
    let request = JobRequest { job: crate::cli::job::digest(info) };
    let mut stream = node.job_model(request).await.map_err(|s| refused(&s))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await.map_err(|s| refused(&s))? {
        bytes.extend_from_slice(&chunk.data);
    }
    Ok(bytes)
}
