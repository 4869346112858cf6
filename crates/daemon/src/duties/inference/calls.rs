//! Requests handed on to a parent.

use std::sync::Arc;

use tierline_proto::door::run::RequestId;
use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::infer_client::InferClient;
use tierline_proto::v1::{Code, Failure, Reply, RunChunk, RunHeader, run_chunk};
use tierline_proto::{Encoded, Sound, frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::wire;
use crate::device::budget::Held;
use crate::net::Uplink;
use crate::runtime::Context;

/// Chunks ahead of the connection: back-pressure reaches the encoder after these.
const CHUNKS_AHEAD_MAX: usize = 8;

/// Runs a request on the parent; its answer counts as `held`.
///
/// # Errors
/// When the parent can't be reached or breaks the protocol; a refusal by
/// the parent is in the reply.
pub async fn run(
    cx: &Context,
    parent: &Arc<Uplink>,
    header: RunHeader,
    tensors: Vec<Encoded>,
    held: &Held,
) -> Result<(Reply, Vec<Encoded>), Failure> {
    parent.wanted();
    run_at(cx, parent.connections()?.infer(), &parent.name(), header, tensors, held).await
}

/// Runs a request at a node of this name.
///
/// # Errors
/// As [`run`].
pub async fn run_at(
    cx: &Context,
    mut client: InferClient<Channel>,
    name: &str,
    header: RunHeader,
    tensors: Vec<Encoded>,
    held: &Held,
) -> Result<(Reply, Vec<Encoded>), Failure> {
    let failed = |status: tonic::Status| Failure::from_status(&status).at(name);
    let request: RequestId = header.request.as_ref().try_into().unwrap_or_default();
    let (send, receive) = mpsc::channel(CHUNKS_AHEAD_MAX);
    let feeder = cx.tasks.spawn("request feed", async move {
        let head = RunChunk { body: Some(run_chunk::Body::Header(header)) };
        if send.send(head).await.is_err() {
            return;
        }
        for chunk in frame::chunks(tensors, CHUNK_BYTES) {
            if send.send(RunChunk { body: Some(run_chunk::Body::Tensor(chunk)) }).await.is_err() {
                return;
            }
        }
    });
    // Dropping the call must stop the feeding too.
    let _feeder = feeder.owned();
    let mut stream = client.run(ReceiverStream::new(receive)).await.map_err(failed)?.into_inner();
    let first = stream.message().await.map_err(failed)?;
    let Some(RunChunk { body: Some(run_chunk::Body::Reply(reply)) }) = first else {
        return Err(Failure::new(Code::Protocol, "the answer did not begin with a reply").at(name));
    };
    let mut reply = Sound::read_for(request, reply).map_err(|breach| breach.failure().at(name))?.into_inner();
    let declared = std::mem::take(&mut reply.tensors);
    held.take(wire::declared_bytes(&declared))?;
    let tensors = wire::collect(&mut stream, declared, |chunk| match chunk.body {
        Some(run_chunk::Body::Tensor(t)) => Some(t),
        _ => None,
    })
    .await?;
    Ok((reply, tensors))
}
