//! Requests from children: admit, run the route's next stage, pass on.
//!
//! What a header says is judged before any tensor is collected, and what the
//! tensors say of themselves before any is decoded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_proto::limits::CHUNK_BYTES;
use tierline_proto::v1::infer_server::Infer;
use tierline_proto::v1::{Code, Empty, Failure, LoadReport, Reply, Route, RunChunk, RunHeader, run_chunk};
use tierline_proto::{Digest, Encoded, Sound, frame};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::flow::{self, Answer, Inputs, RoutedRequest};
use super::{Inference, exits, wire};
use crate::device::budget::Held;
use crate::duties::planning::segment_after;
use crate::net::gate;
use crate::runtime::tasks::{Holding, in_place_over};
use crate::runtime::traces::Open;

/// Chunks of an answer ahead of the connection.
const CHUNKS_AHEAD_MAX: usize = 8;

/// An answer on its way, whose memory counts until it is read.
type Sent = Holding<ReceiverStream<Result<RunChunk, Status>>, Option<Arc<Held>>>;

/// The service.
pub struct InferService(pub Arc<Inference>);

#[tonic::async_trait]
impl Infer for InferService {
    type RunStream = Sent;

    async fn load(&self, request: Request<Empty>) -> Result<Response<LoadReport>, Status> {
        gate::caller(&request)?;
        Ok(Response::new(self.0.cx.device.load()))
    }

    async fn run(&self, request: Request<Streaming<RunChunk>>) -> Result<Response<Self::RunStream>, Status> {
        let arrived = Instant::now();
        let peer = gate::caller(&request)?;
        let mut stream = request.into_inner();
        let Some(RunChunk { body: Some(run_chunk::Body::Header(header)) }) = stream.message().await? else {
            return Err(Failure::new(Code::Protocol, "a request begins with its header").into_status());
        };
        let mut header = Sound::read(header)?.into_inner();
        let (trace, span) = self.0.cx.traces.relay(&header.trace, arrived);
        header.trace = trace;
        let route = header.route.clone().unwrap_or_default();
        let id = header.request.to_vec();
        let routed = match prepare(&self.0, &header, &route, arrived).await {
            Ok(routed) => routed,
            Err(failure) => return Ok(Response::new(refused(&self.0, id, failure, span))),
        };
        let held = self.0.cx.device.budget.request(&peer.id);
        let declared = std::mem::take(&mut header.tensors);
        let deadline = arrived + remaining(&header);
        let collected = wire::collect_by(deadline, &mut stream, declared, &held, |chunk| {
            // Its heartbeats wait behind its tensors.
            self.0.cx.children.heard(&peer.id);
            match chunk.body {
                Some(run_chunk::Body::Tensor(t)) => Some(t),
                _ => None,
            }
        });
        let encoded = match collected.await {
            Ok(encoded) => encoded,
            Err(failure) => return Ok(Response::new(refused(&self.0, id, failure, span))),
        };
        let segment = segment_after(route.from);
        if let Err(mut failure) = wire::check_wanted(&encoded, &routed.program.taken(segment)) {
            // What a node below made of the inputs isn't the caller's fault.
            if segment > 0 {
                failure.code = Code::Protocol.into();
            }
            return Ok(Response::new(refused(&self.0, id, failure, span)));
        }
        let inputs = Inputs::new(segment, encoded, Arc::new(held));
        if header.forwarded {
            self.0.siblings.taken();
        } else if let Some((reply, tensors)) = self.0.at_sibling(&header, &routed, &inputs).await {
            if let Some(span) = span {
                span.end(None);
            }
            let reply = Reply { tensors: frame::declare(&tensors), ..reply };
            return Ok(Response::new(send(&self.0, reply, tensors, Some(inputs.shared()))));
        }
        let answer = flow::answer(&self.0, routed, inputs).await;
        if let Some(span) = span {
            span.end(answer.reply.failure.as_ref());
        }
        let held = answer.held.clone();
        let (reply, tensors) = pack(answer, &route.reply_codec);
        Ok(Response::new(send(&self.0, reply, tensors, held)))
    }
}

/// Answers one that isn't run.
fn refused(duty: &Inference, id: Vec<u8>, failure: Failure, span: Option<Open>) -> Sent {
    if let Some(span) = span {
        span.end(Some(&failure));
    }
    let reply = Reply { request: id.into(), failure: Some(failure.at(duty.cx.me.name())), ..Reply::default() };
    send(duty, reply, Vec::new(), None)
}

/// Time left to a request: at the door it was found to be what a request may take.
fn remaining(header: &RunHeader) -> Duration {
    Duration::from_micros(header.remaining_us)
}

/// What is to be done with a request, as its header says.
async fn prepare(
    duty: &Arc<Inference>,
    header: &RunHeader,
    route: &Route,
    arrived: Instant,
) -> Result<RoutedRequest, Failure> {
    let digest = Digest::try_from(&header.model).map_err(|e| Failure::new(Code::Protocol, e.to_string()))?;
    let entry = duty.catalogue.known.by_model(digest).ok_or_else(|| {
        Failure::new(Code::UnknownModel, format!("model {} is not in this node's catalogue", digest.short()))
    })?;
    let deadline = arrived + remaining(header);
    let program = duty.catalogue.program_within(&entry, deadline).await?;
    let (from, segments) = (segment_after(route.from), program.segments());
    if from >= segments {
        let text = format!("a route from segment {from} of {segments}; the nodes hold different models");
        return Err(Failure::new(Code::Protocol, text).with_help("add the model again on the cloud"));
    }
    let boundaries = route.boundaries.clone();
    let mut exits = exits::heard(&program, &header.exits);
    exits.retain(|exit| exit.segment > from);
    Ok(RoutedRequest {
        id: header.request.to_vec(),
        program,
        peer: (!boundaries.is_empty()).then(|| duty.cx.parents.first()).flatten().map(|parent| parent.peer),
        boundaries,
        deadline,
        hops: header.hops,
        trace: header.trace.clone(),
        fallback: !header.no_fallback,
        reply_codec: route.reply_codec.clone(),
        hedged: false,
        hedge: None,
        exits,
        priority: header.priority,
        guarded: false,
    })
}

/// Encodes an answer's outputs for the way back.
pub fn pack(answer: Answer, codec: &str) -> (Reply, Vec<Encoded>) {
    let mut reply = answer.reply;
    if reply.failure.is_some() {
        return (reply, Vec::new());
    }
    let codec = if codec.is_empty() { wire::raw().name() } else { codec };
    match in_place_over(wire::bytes(&answer.outputs), || wire::pack(&answer.outputs, |_| codec)) {
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

/// Sends an answer, and holds its memory until it is out.
fn send(duty: &Inference, reply: Reply, tensors: Vec<Encoded>, held: Option<Arc<Held>>) -> Sent {
    let sending = duty.cx.tasks.stream("answer sending", CHUNKS_AHEAD_MAX, |send| async move {
        let bodies = std::iter::once(run_chunk::Body::Reply(reply))
            .chain(frame::chunks(tensors, CHUNK_BYTES).map(run_chunk::Body::Tensor));
        for body in bodies {
            // The caller went away: nobody wants the rest.
            if send.send(Ok(RunChunk { body: Some(body) })).await.is_err() {
                return;
            }
        }
    });
    Holding::new(sending, held)
}
