//! Requests from children: decode, run the route's next stage, pass on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::infer_server::Infer;
use tierline_proto::v1::{Code, Failure, Reply, Route, RunChunk, RunHeader, run_chunk};
use tierline_proto::{Digest, Encoded, Sound, frame};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::gate;
use crate::daemon::flow::{self, Answer, Inputs, Order};
use crate::daemon::{Node, wire};

/// Chunks of an answer ahead of the connection.
const CHUNKS_AHEAD_MAX: usize = 8;

/// The service.
pub struct InferService(pub Arc<Node>);

#[tonic::async_trait]
impl Infer for InferService {
    type RunStream = ReceiverStream<Result<RunChunk, Status>>;

    async fn run(&self, request: Request<Streaming<RunChunk>>) -> Result<Response<Self::RunStream>, Status> {
        let arrived = Instant::now();
        let peer = gate::caller(&request)?;
        let mut stream = request.into_inner();
        let Some(RunChunk { body: Some(run_chunk::Body::Header(header)) }) = stream.message().await? else {
            return Err(Failure::new(Code::Protocol, "a request begins with its header").into_status());
        };
        let mut header = Sound::read(header)?.into_inner();
        let declared = std::mem::take(&mut header.tensors);
        let collected = wire::collect(&mut stream, declared, |chunk| {
            // Its heartbeats wait behind its tensors.
            self.0.children.heard(&self.0, &peer.id);
            match chunk.body {
                Some(run_chunk::Body::Tensor(t)) => Some(t),
                _ => None,
            }
        });
        // A caller that stalls must not hold its bytes here for ever.
        let late =
            || Failure::new(Code::DeadlineExceeded, "the request did not arrive whole in its time").at(self.0.name());
        let encoded =
            tokio::time::timeout_at((arrived + remaining(&header)).into(), collected).await.map_err(|_| late())??;
        let codec = header.route.as_ref().map_or_else(String::new, |r| r.reply_codec.clone());
        let answer = relay(&self.0, header, encoded, arrived).await;
        let (reply, tensors) = pack(answer, &codec);
        Ok(Response::new(send(&self.0, reply, tensors)))
    }
}

/// Time left to a request: at the door it was found to be what a request may take.
fn remaining(header: &RunHeader) -> Duration {
    Duration::from_micros(header.remaining_us)
}

async fn relay(node: &Arc<Node>, header: RunHeader, encoded: Vec<Encoded>, arrived: Instant) -> Answer {
    let id = header.request.to_vec();
    match prepare(node, header, encoded, arrived).await {
        Ok((order, inputs)) => flow::answer(node, order, inputs).await,
        Err(failure) => Answer {
            outputs: Vec::new(),
            reply: Reply { request: id.into(), failure: Some(failure.at(node.name())), ..Reply::default() },
        },
    }
}

async fn prepare(
    node: &Arc<Node>,
    header: RunHeader,
    encoded: Vec<Encoded>,
    arrived: Instant,
) -> Result<(Order, Inputs), Failure> {
    let digest = Digest::try_from(&header.model).map_err(|e| Failure::new(Code::Protocol, e.to_string()))?;
    let entry = node.catalogue.by_model(digest).ok_or_else(|| {
        Failure::new(Code::UnknownModel, format!("model {} is not in this node's catalogue", digest.short()))
    })?;
    let deadline = arrived + remaining(&header);
    let program = node.program_within(&entry, deadline).await?;
    let Route { from, boundaries, reply_codec } = header.route.unwrap_or_default();
    let segment = flow::segment_after(from);
    let received = wire::total(&encoded);
    // Tensors that only pass through needn't be decoded here.
    let relayed = boundaries.first().is_some_and(|b| flow::segment_after(b.cut) == segment);
    let (tensors, decode) = {
        let encoded = encoded.clone();
        tokio::task::block_in_place(move || wire::unpack(encoded))?
    };
    let order = Order {
        id: header.request.to_vec(),
        program,
        peer: (!boundaries.is_empty()).then(|| node.first_parent()).flatten(),
        boundaries,
        deadline,
        hops: header.hops,
        trace: header.trace,
        fallback: !header.no_fallback,
        reply_codec,
        hedged: false,
    };
    Ok((order, Inputs { segment, tensors, encoded: relayed.then_some(encoded), decode, received }))
}

/// Encodes an answer's outputs for the way back.
pub fn pack(answer: Answer, codec: &str) -> (Reply, Vec<Encoded>) {
    let mut reply = answer.reply;
    if reply.failure.is_some() {
        return (reply, Vec::new());
    }
    let codec = if codec.is_empty() { wire::raw().name() } else { codec };
    match tokio::task::block_in_place(|| wire::pack(&answer.outputs, |_| codec)) {
        Ok(packed) => {
            reply.tensors = frame::declare(&packed.tensors);
            (reply, packed.tensors)
        }
        Err(failure) => {
            reply.failure = Some(failure);
            (reply, Vec::new())
        }
    }
}

fn send(node: &Node, reply: Reply, tensors: Vec<Encoded>) -> ReceiverStream<Result<RunChunk, Status>> {
    node.tasks.stream("answer sending", CHUNKS_AHEAD_MAX, |send| async move {
        let bodies = std::iter::once(run_chunk::Body::Reply(reply))
            .chain(frame::chunks(tensors, CHUNK_BYTES).map(run_chunk::Body::Tensor));
        for body in bodies {
            // The caller went away: nobody wants the rest.
            if send.send(Ok(RunChunk { body: Some(body) })).await.is_err() {
                return;
            }
        }
    })
}
