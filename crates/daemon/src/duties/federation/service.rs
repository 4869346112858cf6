//! Updates from members: taken up where they were cut off, checked, counted.

use std::io::Write;
use std::sync::Arc;

use tierline_identity::Peer;
use tierline_proto::v1::federate_server::Federate;
use tierline_proto::v1::{
    Code, Failure, JobVerdict, MeetReply, MeetRequest, SubmitChunk, SubmitReply, UpdateHeader, submit_chunk,
    submit_reply,
};
use tierline_proto::{Digest, Sound};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Jobs, sending};
use crate::net::gate;

/// Answers ahead of the connection: there are two at most.
const AHEAD_MAX: usize = 2;

/// The service.
pub struct FederateService(pub Arc<Jobs>);

type Answers = mpsc::Sender<Result<SubmitReply, Status>>;

#[tonic::async_trait]
impl Federate for FederateService {
    type SubmitStream = ReceiverStream<Result<SubmitReply, Status>>;

    async fn submit(&self, request: Request<Streaming<SubmitChunk>>) -> Result<Response<Self::SubmitStream>, Status> {
        let peer = gate::caller(&request)?;
        let jobs = Arc::clone(&self.0);
        let mut stream = request.into_inner();
        let Some(SubmitChunk { body: Some(submit_chunk::Body::Header(header)) }) = stream.message().await? else {
            return Err(Failure::new(Code::Protocol, "an update begins with its header").into());
        };
        let header = Sound::read(header)?;
        let taken = self.0.cx.tasks.stream("update", AHEAD_MAX, |answers| async move {
            let body = match take(&jobs, &peer, header, &mut stream, &answers).await {
                Ok(verdict) => Ok(SubmitReply { body: Some(submit_reply::Body::Verdict(verdict)) }),
                Err(failure) => {
                    // The member tries again; only somebody here can make room.
                    if failure.code() == Code::StorageFull {
                        let text = format!("an update of {} can't be taken: {failure}", peer.name);
                        jobs.cx.events.record("job", text, &serde_json::json!({ "node": peer.name }));
                    }
                    Err(failure.at(jobs.cx.me.name()).into_status())
                }
            };
            // A member that is gone asks again.
            let _ = answers.send(body).await;
        });
        Ok(Response::new(taken))
    }

    async fn meet(&self, request: Request<MeetRequest>) -> Result<Response<MeetReply>, Status> {
        let peer = gate::caller(&request)?;
        let request = Sound::read(request.into_inner())?;
        let reply = self.0.meet(&peer.name, &request).await;
        Ok(Response::new(reply.map_err(|failure| failure.at(self.0.cx.me.name()).into_status())?))
    }
}

async fn take(
    jobs: &Arc<Jobs>,
    peer: &Peer,
    header: Sound<UpdateHeader>,
    stream: &mut Streaming<SubmitChunk>,
    answers: &Answers,
) -> Result<JobVerdict, Failure> {
    let (child, mut header) = (&peer.name, header.into_inner());
    if !jobs.site.speaks_for(child, &header.node) {
        // It may be known soon: what is said of who is below travels, too.
        let text = format!("{child} has not said that {} is below it", header.node);
        return Err(Failure::new(Code::Unreachable, text));
    }
    if let Some(parent) = jobs.update_goes_to(child, &header)? {
        if header.node.is_empty() {
            header.node.clone_from(child);
        }
        return sending::pass_on(&parent, header, stream, answers).await;
    }
    let job = Digest::try_from(&header.job).map_err(|_| Failure::new(Code::Protocol, "an update of no job"))?;
    let turn = jobs.receiving.turn(job, child, header.task).await;
    if let Some(verdict) = jobs.would_count(child, &header).await? {
        return Ok(verdict);
    }
    let folder = jobs.update_folder(&header.job)?;
    let partial = folder.partial(header.task, &header.digest);
    let (mut file, mut have) = folder.go_on(header.task, &header.digest)?;
    if have > header.length {
        folder.remove(std::slice::from_ref(&partial));
        (file, have) = folder.go_on(header.task, &header.digest)?;
    }
    let from = SubmitReply { body: Some(submit_reply::Body::From(have)) };
    if answers.send(Ok(from)).await.is_err() {
        return Err(Failure::new(Code::Cancelled, "the member is gone"));
    }
    while have < header.length {
        let chunk = tokio::select! {
            chunk = stream.message() => chunk.map_err(|s| Failure::from_status(&s))?,
            () = turn.is_over() => return Err(Failure::new(Code::Cancelled, "the update comes by a newer stream")),
        };
        let Some(SubmitChunk { body: Some(submit_chunk::Body::Data(data)) }) = chunk else {
            return Err(Failure::new(Code::Unreachable, "the update broke off; what has come is kept"));
        };
        have += data.len() as u64;
        if have > header.length {
            return Err(Failure::new(Code::Protocol, "more bytes came than the header declared"));
        }
        tokio::task::block_in_place(|| file.write_all(&data)).map_err(|e| folder.failed(&e))?;
    }
    tokio::task::block_in_place(|| folder.finish(file, &partial, header.task, &header.digest))?;
    // Uploads take their time.
    jobs.cx.revoked.check(peer)?;
    jobs.count_update(child, header).await
}
