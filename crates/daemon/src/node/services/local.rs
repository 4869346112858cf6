//! Operators and applications: everything the command line asks of a node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tierline_engine::profiler::Watch;
use tierline_proto::limits::{CHUNK_BYTES, DEADLINE_MS_MAX, MODEL_FILES_MAX};
use tierline_proto::v1::local_server::Local;
use tierline_proto::v1::{
    Code, DrainRequest, Empty, Event, Failure, InferChunk, InferHeader, InferReply, JobControlRequest, JobInfo,
    JobListReply, JobRequest, JobSubmitChunk, MetricsReply, ModelAddChunk, ModelAddReply, ModelInfo, ModelListReply,
    ModelRemoveRequest, ModelRenameRequest, ModelShowReply, ModelShowRequest, NodeRemoveRequest, NodeRenameRequest,
    NodeRevokeRequest, NodeStatus, NodesReply, Placement, PlanReply, PlanRequest, ProfileProgress, ProfileRequest,
    Reply, Route, TokenCreateReply, TokenCreateRequest, TokenListReply, TokenRevokeRequest, WatchRequest, infer_chunk,
    model_add_chunk,
};
use tierline_proto::{Digest, Encoded, Sound, frame};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::infer::pack;
use super::{jobs, upload};
use crate::node::budget::Held;
use crate::node::catalogue::unknown_model;
use crate::node::flow::{self, Answer, Inputs, Order};
use crate::node::{Node, wire};

/// Messages of a stream ahead of the connection.
const AHEAD_MAX: usize = 8;

/// Time for a request whose caller named none.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// The service.
pub struct LocalService(pub Arc<Node>);

type Reply1<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Local for LocalService {
    type ProfileStream = ReceiverStream<Result<ProfileProgress, Status>>;
    type InferStream = ReceiverStream<Result<InferChunk, Status>>;
    type WatchStream = ReceiverStream<Result<Event, Status>>;
    type JobWatchStream = jobs::Events;
    type JobModelStream = jobs::Model;

    async fn status(&self, _: Request<Empty>) -> Reply1<NodeStatus> {
        Ok(Response::new(self.0.status().await))
    }

    async fn nodes(&self, _: Request<Empty>) -> Reply1<NodesReply> {
        Ok(Response::new(self.0.nodes()))
    }

    async fn token_create(&self, request: Request<TokenCreateRequest>) -> Reply1<TokenCreateReply> {
        Ok(Response::new(self.0.the_authority()?.token_create(&request.into_inner()).await?))
    }

    async fn token_list(&self, _: Request<Empty>) -> Reply1<TokenListReply> {
        Ok(Response::new(self.0.the_authority()?.token_list().await?))
    }

    async fn token_revoke(&self, request: Request<TokenRevokeRequest>) -> Reply1<Empty> {
        self.0.the_authority()?.token_revoke(&request.into_inner().token_id).await?;
        Ok(Response::new(Empty {}))
    }

    async fn node_revoke(&self, request: Request<NodeRevokeRequest>) -> Reply1<Empty> {
        let request = request.into_inner();
        self.0.the_authority()?.node_revoke(&self.0, &request).await?;
        Ok(Response::new(Empty {}))
    }

    async fn node_remove(&self, request: Request<NodeRemoveRequest>) -> Reply1<Empty> {
        self.0.the_authority()?.node_remove(&self.0, &request.into_inner()).await?;
        Ok(Response::new(Empty {}))
    }

    async fn node_rename(&self, request: Request<NodeRenameRequest>) -> Reply1<Empty> {
        self.0.the_authority()?.node_rename(&self.0, &request.into_inner()).await?;
        Ok(Response::new(Empty {}))
    }

    async fn model_list(&self, _: Request<Empty>) -> Reply1<ModelListReply> {
        let mut models = Vec::new();
        for entry in self.0.catalogue.list() {
            models.push(info(&self.0, &entry).await?);
        }
        Ok(Response::new(ModelListReply { models }))
    }

    async fn model_show(&self, request: Request<ModelShowRequest>) -> Reply1<ModelShowReply> {
        let name = request.into_inner().model;
        let entry = entry(&self.0, &name)?;
        let profile = self.0.catalogue.profile(entry.model);
        Ok(Response::new(ModelShowReply {
            info: Some(info(&self.0, &entry).await?),
            manifest_json: json(&entry.manifest)?,
            profile_json: profile.map_or(Ok(String::new()), |p| json(p.as_ref()))?,
        }))
    }

    async fn model_add(&self, request: Request<Streaming<ModelAddChunk>>) -> Reply1<ModelAddReply> {
        let mut stream = request.into_inner();
        let Some(ModelAddChunk { body: Some(model_add_chunk::Body::Header(header)) }) = stream.message().await? else {
            return Err(Failure::new(Code::Protocol, "adding a model begins with its header").into());
        };
        if header.files.len() > MODEL_FILES_MAX {
            let text = format!("{} files; at most {MODEL_FILES_MAX} are taken", header.files.len());
            return Err(Failure::new(Code::TooLarge, text).into());
        }
        // Refused before anything is sent, where that is known.
        self.0.check_new_model(&header)?;
        let lengths: Vec<u64> = header.files.iter().map(|file| file.length).collect();
        let uploads = upload::take(&self.0, &mut stream, &lengths, |chunk| match chunk.body {
            Some(model_add_chunk::Body::Data(data)) => Some(data),
            _ => None,
        });
        let entry = self.0.add_model(header, uploads.await?).await?;
        Ok(Response::new(ModelAddReply { entry: Some(entry.message()), notes: Vec::new() }))
    }

    async fn model_remove(&self, request: Request<ModelRemoveRequest>) -> Reply1<Empty> {
        let name = request.into_inner().model;
        self.0.remove_model(&name).await?;
        Ok(Response::new(Empty {}))
    }

    async fn model_rename(&self, request: Request<ModelRenameRequest>) -> Reply1<ModelAddReply> {
        let ModelRenameRequest { model, name } = request.into_inner();
        let entry = self.0.rename_model(&model, &name).await?;
        Ok(Response::new(ModelAddReply { entry: Some(entry.message()), notes: Vec::new() }))
    }

    async fn profile(&self, request: Request<ProfileRequest>) -> Reply1<Self::ProfileStream> {
        let request = request.into_inner();
        let entry = entry(&self.0, &request.model)?;
        let node = Arc::clone(&self.0);
        let progress = self.0.tasks.stream("profile command", AHEAD_MAX, |send| async move {
            let report = send.clone();
            let watch = Watch::new(move |p| {
                let step = ProfileProgress {
                    done: (p.done * 100.0) as u32,
                    total: 100,
                    step: p.phase.to_string(),
                    ..ProfileProgress::default()
                };
                // A watcher that is slow to read misses steps.
                let _ = report.try_send(Ok(step));
            });
            let last = match node.profile_model(&entry, watch).await {
                Ok((digest, profile)) => json(profile.as_ref()).map(|profile_json| ProfileProgress {
                    done: 100,
                    total: 100,
                    step: "done".into(),
                    profile: digest.to_bytes(),
                    profile_json,
                }),
                Err(failure) => Err(failure),
            };
            let _ = send.send(last.map_err(Failure::into_status)).await;
        });
        Ok(Response::new(progress))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Reply1<PlanReply> {
        let request = request.into_inner();
        let entry = entry(&self.0, &request.model)?;
        self.0.have_plans(&entry).await?;
        Ok(Response::new(self.0.plan_now(&entry, &request, false)?))
    }

    async fn explain(&self, request: Request<PlanRequest>) -> Reply1<PlanReply> {
        let request = request.into_inner();
        let entry = entry(&self.0, &request.model)?;
        self.0.have_plans(&entry).await?;
        Ok(Response::new(self.0.plan_now(&entry, &request, true)?))
    }

    async fn infer(&self, request: Request<Streaming<InferChunk>>) -> Reply1<Self::InferStream> {
        let arrived = Instant::now();
        // Operators on the socket are one caller.
        let caller = super::gate::caller(&request).map_or_else(|_| String::new(), |peer| peer.id);
        let mut stream = request.into_inner();
        let Some(InferChunk { body: Some(infer_chunk::Body::Header(header)) }) = stream.message().await? else {
            return Err(Failure::new(Code::Protocol, "a request begins with its header").into());
        };
        let mut header = Sound::read(header)?.into_inner();
        let declared = std::mem::take(&mut header.tensors);
        let held = self.0.budget.request(&caller);
        let deadline = arrived + deadline(&header);
        let collected = wire::collect_by(deadline, &mut stream, declared, &held, |chunk| match chunk.body {
            Some(infer_chunk::Body::Tensor(t)) => Some(t),
            _ => None,
        });
        let encoded = collected.await?;
        let Entered { predicted, plan, model, answer } =
            enter(&self.0, &header, encoded, deadline, Arc::new(held)).await;
        let held = answer.held.clone();
        let (reply, tensors) = pack(answer, wire::raw().name());
        let total = arrived.elapsed();
        self.0.count_request(total, &reply);
        self.0.observe_answer(&header, &plan, total, &reply);
        let reply = InferReply { reply: Some(reply), total_ns: flow::ns(total), predicted_ns: predicted, plan, model };
        Ok(Response::new(send(&self.0, reply, tensors, held)))
    }

    async fn job_submit(&self, request: Request<Streaming<JobSubmitChunk>>) -> Reply1<JobInfo> {
        Ok(Response::new(jobs::submit(&self.0, request.into_inner()).await?))
    }

    async fn job_list(&self, _: Request<Empty>) -> Reply1<JobListReply> {
        Ok(Response::new(JobListReply { jobs: self.0.job_list().await? }))
    }

    async fn job_show(&self, request: Request<JobRequest>) -> Reply1<JobInfo> {
        Ok(Response::new(self.0.job_info(&request.into_inner().job).await?))
    }

    async fn job_control(&self, request: Request<JobControlRequest>) -> Reply1<JobInfo> {
        Ok(Response::new(jobs::control(&self.0, &request.into_inner()).await?))
    }

    async fn job_watch(&self, request: Request<JobRequest>) -> Reply1<Self::JobWatchStream> {
        Ok(Response::new(jobs::watch(&self.0, &request.into_inner().job).await?))
    }

    async fn job_model(&self, request: Request<JobRequest>) -> Reply1<Self::JobModelStream> {
        Ok(Response::new(jobs::model(&self.0, &request.into_inner().job).await?))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Reply1<Empty> {
        self.0.drain(&request.into_inner());
        Ok(Response::new(Empty {}))
    }

    async fn metrics(&self, _: Request<Empty>) -> Reply1<MetricsReply> {
        Ok(Response::new(MetricsReply { text: self.0.metrics_text() }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Reply1<Self::WatchStream> {
        let WatchRequest { kinds, past_only } = request.into_inner();
        let (past, mut feed) = self.0.events.watch();
        let told = self.0.tasks.stream("event watch", AHEAD_MAX, |send| async move {
            let wanted = |e: &Event| kinds.is_empty() || kinds.contains(&e.kind);
            for event in past.into_iter().filter(wanted) {
                if send.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            while !past_only {
                match feed.recv().await {
                    Ok(event) if wanted(&event) => {
                        if send.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                    // A slow watcher misses events rather than slowing the node.
                    Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        Ok(Response::new(told))
    }
}

fn entry(node: &Node, name: &str) -> Result<crate::node::catalogue::Entry, Failure> {
    node.catalogue.get(name).ok_or_else(|| {
        if node.is_announced(name) {
            let text = format!("model `{name}` is on its way to {}", node.name());
            return Failure::new(Code::ModelNotReady, text).with_help("send the request again in a moment");
        }
        let failure = unknown_model(name, &node.catalogue.list());
        match node.uplinks().first().filter(|_| node.is_cut_off()) {
            // It may well be known above.
            Some(uplink) => failure.with_help(format!("models come from above, and {}", uplink.reason())),
            None => failure,
        }
    })
}

async fn info(node: &Node, entry: &crate::node::catalogue::Entry) -> Result<ModelInfo, Failure> {
    let stored = node.artefact_length(entry.model).await?.is_some();
    Ok(ModelInfo {
        entry: Some(entry.message()),
        state: node.catalogue.state(entry, stored).into(),
        profiled: node.catalogue.profile(entry.model).is_some(),
    })
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new(Code::Internal, e.to_string()))
}

/// Time for a request.
fn deadline(header: &InferHeader) -> Duration {
    match header.deadline_ms {
        0 => DEADLINE_DEFAULT,
        ms => Duration::from_millis(ms.min(DEADLINE_MS_MAX)),
    }
}

/// What became of a request that entered the site here.
struct Entered {
    /// Expected time, nanoseconds.
    predicted: u64,
    /// The plan in force.
    plan: String,
    /// Digest of the model that its name pointed at.
    model: bytes::Bytes,
    answer: Answer,
}

/// A request that enters the site here.
async fn enter(
    node: &Arc<Node>,
    header: &InferHeader,
    encoded: Vec<Encoded>,
    deadline: Instant,
    held: Arc<Held>,
) -> Entered {
    let id = fastrand::u128(..).to_be_bytes().to_vec();
    match prepare(node, header, encoded, deadline, &id, held).await {
        Ok((order, inputs, predicted, plan)) => {
            let model = order.program.manifest.digest.parse().map(Digest::to_bytes).unwrap_or_default();
            Entered { predicted, plan, model, answer: flow::answer(node, order, inputs).await }
        }
        Err(failure) => {
            let reply = Reply { request: id.into(), failure: Some(failure.at(node.name())), ..Reply::default() };
            let answer = Answer { outputs: Vec::new(), held: None, reply };
            Entered { predicted: 0, plan: String::new(), model: bytes::Bytes::new(), answer }
        }
    }
}

async fn prepare(
    node: &Arc<Node>,
    header: &InferHeader,
    encoded: Vec<Encoded>,
    deadline: Instant,
    id: &[u8],
    held: Arc<Held>,
) -> Result<(Order, Inputs, u64, String), Failure> {
    let entry = entry(node, &header.model)?;
    // Where the request enters, so that a wrong one costs no transfer.
    wire::check_wanted(&encoded, &entry.manifest.inputs)
        .map_err(|f| f.with_help(format!("`tierline model show {}` lists the inputs", entry.manifest.name)))?;
    let program = node.program_within(&entry, deadline).await?;
    let placed = match header.placement() {
        Placement::Plan => node.current_plan(&entry, &program),
        Placement::Here => node.all_here(&program),
        Placement::Edge => node.all_at_role(&program, tierline_proto::Role::Edge)?,
        Placement::Cloud => node.all_at_role(&program, tierline_proto::Role::Cloud)?,
        Placement::Fixed => node.fixed(&program, header.route.as_ref().unwrap_or(&Route::default()))?,
    };
    // What is asked for by name is waited for; a plan only has to be quick.
    let hedged = header.placement() == Placement::Plan;
    let order = Order {
        id: id.to_vec(),
        program,
        boundaries: placed.boundaries,
        peer: placed.peer,
        deadline,
        hops: 0,
        trace: header.trace.clone(),
        fallback: true,
        reply_codec: node.reply_codec(entry.model),
        hedged,
    };
    Ok((order, Inputs::new(0, encoded, held), placed.predicted_ns, placed.text))
}

/// Sends an answer, and holds its memory until it is out.
fn send(
    node: &Node,
    reply: InferReply,
    tensors: Vec<Encoded>,
    held: Option<Arc<Held>>,
) -> ReceiverStream<Result<InferChunk, Status>> {
    node.tasks.stream("answer sending", AHEAD_MAX, |send| async move {
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
