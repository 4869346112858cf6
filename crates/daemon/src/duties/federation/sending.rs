//! Updates on their way to a parent: a member's own, and those that pass through
//! an edge.

use bytes::Bytes;
use tierline_proto::Sound;
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::{
    Code, Failure, JobVerdict, SubmitChunk, SubmitReply, UpdateHeader, submit_chunk, submit_reply,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::net::Uplink;
use crate::runtime::Context;

/// Chunks ahead of the connection.
const CHUNKS_AHEAD_MAX: usize = 8;

/// Sends an update, from where an earlier try broke off; what became of
/// it.
///
/// # Errors
/// When the parent can't be reached or breaks the protocol.
pub(super) async fn submit(
    cx: &Context,
    parent: &Uplink,
    header: UpdateHeader,
    update: Bytes,
) -> Result<JobVerdict, Failure> {
    let mut client = parent.connections()?.federate();
    let _occupied = parent.occupied();
    let (send, receive) = mpsc::channel(CHUNKS_AHEAD_MAX);
    let broken = || Failure::new(Code::Unreachable, "the connection broke off").at(&parent.name());
    let head = SubmitChunk { body: Some(submit_chunk::Body::Header(header)) };
    send.send(head).await.map_err(|_| broken())?;
    let mut stream = client.submit(ReceiverStream::new(receive)).await.map_err(|s| parent.failure(&s))?.into_inner();
    let mut feeder = None;
    while let Some(reply) = stream.message().await.map_err(|s| parent.failure(&s))? {
        match reply.body {
            Some(submit_reply::Body::From(from)) if feeder.is_none() => {
                let from = usize::try_from(from).ok().filter(|from| *from <= update.len()).ok_or_else(broken)?;
                let (rest, send) = (update.slice(from..), send.clone());
                // Ends with the call.
                let feeding = cx.tasks.spawn("update feed", async move {
                    for at in (0..rest.len()).step_by(CHUNK_BYTES) {
                        let data = rest.slice(at..rest.len().min(at + CHUNK_BYTES));
                        if send.send(SubmitChunk { body: Some(submit_chunk::Body::Data(data)) }).await.is_err() {
                            return;
                        }
                    }
                });
                feeder = Some(feeding.owned());
            }
            Some(submit_reply::Body::Verdict(verdict)) => return Ok(Sound::read(verdict)?.into_inner()),
            _ => return Err(Failure::new(Code::Protocol, "that is no answer to an update").at(&parent.name())),
        }
    }
    Err(broken())
}

/// Passes a child's update on as it comes: the parent says from where it
/// wants it, and what became of it.
///
/// # Errors
/// When the parent can't be reached or breaks the protocol, or the child is
/// gone.
pub(super) async fn pass_on(
    parent: &Uplink,
    header: UpdateHeader,
    from_child: &mut Streaming<SubmitChunk>,
    to_child: &mpsc::Sender<Result<SubmitReply, Status>>,
) -> Result<JobVerdict, Failure> {
    let mut client = parent.connections()?.federate();
    let _occupied = parent.occupied();
    let (send, receive) = mpsc::channel(CHUNKS_AHEAD_MAX);
    let broken = || Failure::new(Code::Unreachable, "the connection broke off").at(&parent.name());
    let gone = |_| Failure::new(Code::Cancelled, "the member is gone");
    let head = SubmitChunk { body: Some(submit_chunk::Body::Header(header)) };
    send.send(head).await.map_err(|_| broken())?;
    let mut stream = client.submit(ReceiverStream::new(receive)).await.map_err(|s| parent.failure(&s))?.into_inner();
    let mut sends = true;
    loop {
        tokio::select! {
            reply = stream.message() => {
                let reply = reply.map_err(|s| parent.failure(&s))?.ok_or_else(broken)?;
                if let Some(submit_reply::Body::Verdict(verdict)) = reply.body {
                    return Ok(Sound::read(verdict)?.into_inner());
                }
                to_child.send(Ok(reply)).await.map_err(gone)?;
            }
            chunk = from_child.message(), if sends => match chunk.map_err(|s| Failure::from_status(&s))? {
                // Who doesn't want it any more has said why.
                Some(chunk) => sends = send.send(chunk).await.is_ok(),
                None => return Err(Failure::new(Code::Cancelled, "the member is gone")),
            },
        }
    }
}
