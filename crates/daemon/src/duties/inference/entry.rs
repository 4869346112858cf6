//! Requests that enter the site here: where they go, and their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_proto::limits::{CHUNK_BYTES, DEADLINE_MS_MAX};
use tierline_proto::otlp::known;
use tierline_proto::v1::{Code, Failure, InferChunk, InferHeader, InferReply, Placement, Reply, Route, infer_chunk};
use tierline_proto::{Digest, Encoded, Role, Sound, frame};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::flow::{self, Answer, Inputs, RoutedRequest};
use super::nearby::Chosen;
use super::service::pack;
use super::{Inference, exits, wire};
use crate::device::budget::Held;
use crate::net::gate;
use crate::runtime::ns;
use crate::runtime::traces::Open;

/// Messages of an answer ahead of the connection.
const AHEAD_MAX: usize = 8;

/// Time for a request whose caller named none.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// An answer on its way.
pub type Answered = ReceiverStream<Result<InferChunk, Status>>;

/// Answers a request of an application.
///
/// # Errors
/// When it doesn't come whole, or there is no room for it; what else goes wrong
/// is in the answer.
pub async fn infer(
    duty: &Arc<Inference>,
    request: Request<Streaming<InferChunk>>,
) -> Result<Response<Answered>, Status> {
    let arrived = Instant::now();
    // Operators on the socket are one caller.
    let caller = gate::caller(&request).map_or_else(|_| String::new(), |peer| peer.id);
    let mut stream = request.into_inner();
    let Some(InferChunk { body: Some(infer_chunk::Body::Header(header)) }) = stream.message().await? else {
        return Err(Failure::new(Code::Protocol, "a request begins with its header").into());
    };
    let mut header = Sound::read(header)?.into_inner();
    let declared = std::mem::take(&mut header.tensors);
    let held = duty.cx.device.budget.request(&caller);
    let deadline = arrived + deadline(&header);
    let collected = wire::collect_by(deadline, &mut stream, declared, &held, |chunk| match chunk.body {
        Some(infer_chunk::Body::Tensor(t)) => Some(t),
        _ => None,
    });
    let encoded = collected.await?;
    let Entered { predicted, plan, model, version, answer } =
        ask(duty, &header, encoded, arrived, Arc::new(held)).await;
    let held = answer.held.clone();
    let (reply, tensors) = pack(answer, wire::raw().name());
    let reply = InferReply {
        reply: Some(reply),
        total_ns: ns(arrived.elapsed()),
        predicted_ns: predicted,
        plan,
        model,
        version,
    };
    Ok(Response::new(send(duty, reply, tensors, held)))
}

/// Answers what an application asks, however it asked: the one way in. What it
/// wants of model, placement, deadline, exit and priority, the header says.
/// The answer is counted, and planning learns from it.
pub async fn ask(
    duty: &Arc<Inference>,
    header: &InferHeader,
    encoded: Vec<Encoded>,
    arrived: Instant,
    held: Arc<Held>,
) -> Entered {
    let (trace, span) = duty.cx.traces.enter(&header.trace, arrived);
    let header = &InferHeader { trace, ..header.clone() };
    let entered = enter(duty, header, encoded, arrived + deadline(header), held).await;
    if let Some(span) = span {
        traced(span, &header.model, &entered.answer.reply);
    }
    let total = arrived.elapsed();
    duty.count_request(total, &entered.answer.reply);
    duty.health.observe(&entered.model, total, &entered.answer.reply);
    let Answer { reply, exits, .. } = &entered.answer;
    duty.planning.observe_answer(header, &entered.model, &entered.plan, exits, total, reply);
    entered
}

/// Ends a request's span with what became of it.
fn traced(mut span: Open, model: &str, reply: &Reply) {
    span.attributes = vec![
        known("tierline.model", model),
        known("tierline.exit", u64::from(reply.exit)),
        known("tierline.degraded", reply.degraded.is_some()),
    ];
    if let Some(last) = reply.stages.last() {
        span.attributes.push(known("tierline.answered_by", last.node.as_str()));
    }
    span.end(reply.failure.as_ref());
}

/// Time for a request.
fn deadline(header: &InferHeader) -> Duration {
    match header.deadline_ms {
        0 => DEADLINE_DEFAULT,
        ms => Duration::from_millis(ms.min(DEADLINE_MS_MAX)),
    }
}

/// What became of a request that entered the site here.
pub struct Entered {
    /// Expected time, nanoseconds.
    pub predicted: u64,
    /// The plan in force.
    pub plan: String,
    /// Digest of the model that its name pointed at.
    pub model: bytes::Bytes,
    /// Its version; 0 for what has none.
    pub version: u64,
    /// Outputs, and how it went.
    pub answer: Answer,
}

/// A request that enters the site here.
async fn enter(
    duty: &Arc<Inference>,
    header: &InferHeader,
    encoded: Vec<Encoded>,
    deadline: Instant,
    held: Arc<Held>,
) -> Entered {
    let id = fastrand::u128(..).to_be_bytes().to_vec();
    if let Some(services) = duty.services().filter(|services| services.has(&header.model)) {
        return services.answer(id, header.clone(), encoded, deadline, held).await;
    }
    match prepare(duty, header, encoded, deadline, &id, held).await {
        Ok(Prepared { routed, inputs, predicted, plan, version, chosen: _chosen }) => {
            let model = routed.program.manifest.digest.parse().map(Digest::to_bytes).unwrap_or_default();
            Entered { predicted, plan, model, version, answer: flow::answer(duty, routed, inputs).await }
        }
        Err(failure) => Entered::failed(id, failure.at(duty.cx.me.name())),
    }
}

impl Entered {
    /// One that failed.
    #[must_use]
    pub fn failed(id: Vec<u8>, failure: Failure) -> Self {
        let reply = Reply { request: id.into(), failure: Some(failure), ..Reply::default() };
        let answer = Answer { outputs: Vec::new(), held: None, exits: Vec::new(), reply };
        Self { predicted: 0, plan: String::new(), model: bytes::Bytes::new(), version: 0, answer }
    }
}

/// A request whose way is known.
pub(super) struct Prepared {
    pub(super) routed: RoutedRequest,
    pub(super) inputs: Inputs,
    /// Expected time, nanoseconds.
    pub(super) predicted: u64,
    /// The plan in words.
    pub(super) plan: String,
    /// The version of the model.
    pub(super) version: u64,
    /// Which of several parents takes it; kept until it has ended.
    pub(super) chosen: Option<Chosen>,
}

pub(super) async fn prepare(
    duty: &Arc<Inference>,
    header: &InferHeader,
    encoded: Vec<Encoded>,
    deadline: Instant,
    id: &[u8],
    held: Arc<Held>,
) -> Result<Prepared, Failure> {
    let entry = duty.catalogue.entry(&header.model)?;
    // Where the request enters, so that a wrong one costs no transfer.
    wire::check_wanted(&encoded, &entry.manifest.inputs)
        .map_err(|f| f.with_help(format!("`tierline model show {}` lists the inputs", entry.manifest.name)))?;
    let version = entry.manifest.version;
    let entry = match (header.placement(), header.exit) {
        (Placement::Plan, None) => duty.planning.stand_in(entry),
        _ => entry,
    };
    let program = duty.catalogue.program_within(&entry, deadline).await?;
    let mut exits = exits::active(&program, header.exit)?;
    let mut placed = match header.placement() {
        Placement::Plan => duty.planning.current_plan(&entry, &program),
        Placement::Here => duty.planning.all_here(&program),
        Placement::Edge => duty.planning.all_at_role(&program, Role::Edge)?,
        Placement::Cloud => duty.planning.all_at_role(&program, Role::Cloud)?,
        Placement::Fixed => duty.planning.fixed(&program, header.route.as_ref().unwrap_or(&Route::default()))?,
    };
    if let (None, Some(used)) = (header.exit, &placed.exits) {
        exits.retain(|exit| used.contains(&(exit.index + 1)));
    }
    let chosen = match header.placement() {
        Placement::Plan | Placement::Edge => duty.choose(&program, &mut placed),
        _ => None,
    };
    // What is asked for by name is waited for; a plan only has to be quick.
    let hedged = header.placement() == Placement::Plan;
    let routed = RoutedRequest {
        id: id.to_vec(),
        program,
        boundaries: placed.boundaries,
        peer: placed.peer,
        deadline,
        hops: 0,
        trace: header.trace.clone(),
        fallback: true,
        reply_codec: duty.planning.reply_codec(entry.model),
        hedged,
        hedge: duty.planning.usual(entry.model, &placed.text, header.hedge),
        exits,
        priority: header.priority,
        guarded: true,
    };
    let inputs = Inputs::new(0, encoded, held);
    Ok(Prepared { routed, inputs, predicted: placed.predicted_ns, plan: placed.text, version, chosen })
}

/// Sends an answer, and holds its memory until it is out.
fn send(
    duty: &Inference,
    reply: InferReply,
    tensors: Vec<Encoded>,
    held: Option<Arc<Held>>,
) -> ReceiverStream<Result<InferChunk, Status>> {
    duty.cx.tasks.stream("answer sending", AHEAD_MAX, |send| async move {
        let _held = held;
        let bodies = std::iter::once(infer_chunk::Body::Reply(reply))
            .chain(frame::chunks(tensors, CHUNK_BYTES).map(infer_chunk::Body::Tensor));
        for body in bodies {
            if send.send(Ok(InferChunk { body: Some(body) })).await.is_err() {
                return;
            }
        }
    })
}
