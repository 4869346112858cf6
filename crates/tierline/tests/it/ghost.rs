//! A member that a test moves by hand.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tierline_daemon::net::transport::{self, Pair};
use tierline_engine::Evaluator;
use tierline_federate::wire;
use tierline_graph::Model;
use tierline_graph::fold::{Purpose, fold_for};
use tierline_identity::Identity;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{
    ChildMessage, Code, Failure, Heartbeat, HelloRequest, JobAssignment, JobStatus, JobVerdict, NodeInfo, SubmitChunk,
    SubmitReply, Subtree, UpdateHeader, WorkReport, child_message, job_status, job_verdict, parent_message,
    submit_chunk, submit_reply,
};
use tierline_proto::{Role, Versions};
use tierline_train::Job;
use tierline_train::federated::ParameterLayout;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::federation::Federation;
use crate::harness::until;

/// A member that a test moves by hand: a node's identity without its process.
pub struct Ghost {
    runtime: Runtime,
    role: &'static str,
    /// Speaks on the session's stream.
    say: mpsc::Sender<ChildMessage>,
    name: String,
    pair: Pair,
    /// What the parent wants, the newest.
    wanted: Arc<Mutex<Option<JobAssignment>>>,
    data: PathBuf,
    pub parameter_layout: Arc<ParameterLayout>,
}

impl Ghost {
    pub fn new(federation: &Federation, name: &str) -> Self {
        Self::named(federation, "end", name)
    }

    pub fn named(federation: &Federation, role: &'static str, name: &str) -> Self {
        Self::below(federation, role, name, &federation.site.cloud.url)
    }

    /// A member below this parent.
    pub fn below(federation: &Federation, role: &'static str, name: &str, parent: &str) -> Self {
        let data = federation.site.join(role, name, parent);
        let text = std::fs::read_to_string(federation.folder.path().join("squares.toml")).unwrap();
        let job: Job = toml::from_str(&text).unwrap();
        let mut model = Model::load(&federation.folder.path().join("net.onnx")).unwrap();
        fold_for(&mut model, &mut Evaluator(tierline_engine::rten()), Purpose::Training).unwrap();
        let parameter_layout = Arc::new(ParameterLayout::new(model, &job).unwrap());
        Self::open(parent, role, name, data, parameter_layout)
    }

    /// The same member, connected anew to the cloud.
    pub fn again(self, federation: &Federation) -> Self {
        Self::open(
            &federation.site.cloud.url,
            self.role,
            &self.name,
            self.data.clone(),
            Arc::clone(&self.parameter_layout),
        )
    }

    fn open(
        parent: &str,
        role: &'static str,
        name: &str,
        data: PathBuf,
        parameter_layout: Arc<ParameterLayout>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let identity = Identity::load(&data.join("identity"), SystemTime::now()).unwrap();
        let endpoint = transport::endpoint(parent, transport::client_tls(&identity)).unwrap();
        let wanted: Arc<Mutex<Option<JobAssignment>>> = Arc::default();
        let told = Arc::clone(&wanted);
        let own = name.to_owned();
        let (pair, say) = runtime.block_on(async move {
            let pair = Pair::connect(&endpoint).await.unwrap();
            let hello = HelloRequest {
                versions: Some(Versions::OURS.into()),
                node_name: own,
                role: if role == "edge" { Role::Edge } else { Role::End }.into(),
                features: Vec::new(),
                incarnation: fastrand::u64(1..),
            };
            let reply = pair.control().hello(hello).await.unwrap().into_inner();
            let (send, receive) = mpsc::channel(16);
            let say = |body| ChildMessage { body: Some(body) };
            let beat = move |sequence| {
                say(child_message::Body::Heartbeat(Heartbeat {
                    session: reply.session,
                    sequence,
                    ..Heartbeat::default()
                }))
            };
            send.send(beat(0)).await.unwrap();
            let mut stream = pair.control().session(ReceiverStream::new(receive)).await.unwrap().into_inner();
            let (speaks, say_later) = (send.clone(), send.clone());
            tokio::spawn(async move {
                for sequence in 1.. {
                    tokio::time::sleep(Duration::from_millis(u64::from(reply.heartbeat_ms) / 2)).await;
                    if speaks.send(beat(sequence)).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    let Some(parent_message::Body::Assignment(assignment)) = message.body else { continue };
                    // Once: the answer is what is wanted of it, again.
                    if told.lock().unwrap().is_none() {
                        let ready = Some(job_status::Status::Examples(100));
                        let status = JobStatus {
                            job: assignment.job.clone(),
                            node: String::new(),
                            status: ready,
                            holds: 0,
                            url: String::new(),
                            classes: Vec::new(),
                        };
                        send.send(say(child_message::Body::Status(status))).await.unwrap();
                    }
                    *told.lock().unwrap() = Some(assignment);
                }
            });
            (pair, say_later)
        });
        Self { runtime, role, say, name: name.to_owned(), pair, wanted, data, parameter_layout }
    }

    /// The job and the task that are wanted of it, once there is one.
    pub fn work(&self) -> (bytes::Bytes, u64) {
        until("there is work", || {
            let wanted = self.wanted.lock().unwrap().clone()?;
            match wanted.want {
                Some(Want::Work(order)) => Some((wanted.job, order.task)),
                _ => None,
            }
        })
    }

    /// The job that it heard of.
    pub fn job(&self) -> bytes::Bytes {
        until("it hears of the job", || Some(self.wanted.lock().unwrap().clone()?.job))
    }

    /// Says who is below it, by their data folders.
    pub fn has_below(&self, folders: &[&Path]) {
        let node = |folder: &&Path| {
            let identity = Identity::load(&folder.join("identity"), SystemTime::now()).unwrap();
            let peer = identity.peer();
            NodeInfo {
                node_id: peer.id.clone(),
                node_name: peer.name.clone(),
                role: peer.role.into(),
                state: "connected".to_owned(),
                ..NodeInfo::default()
            }
        };
        let subtree = Subtree { nodes: folders.iter().map(node).collect(), news: true, ..Subtree::default() };
        self.say(child_message::Body::Subtree(subtree));
    }

    /// Says anything.
    pub fn say(&self, body: child_message::Body) {
        self.runtime.block_on(self.say.send(ChildMessage { body: Some(body) })).unwrap();
    }

    /// Says what somebody below it is at.
    pub fn reported(&self, job: &bytes::Bytes, node: &str, status: job_status::Status) {
        let status = JobStatus {
            job: job.clone(),
            node: node.to_owned(),
            status: Some(status),
            holds: 0,
            url: String::new(),
            classes: Vec::new(),
        };
        self.say(child_message::Body::Status(status));
    }

    /// An update that changes every weight by so much.
    pub fn update(&self, by: f32) -> Vec<u8> {
        let mut vectors = self.parameter_layout.initial();
        vectors.values_mut().for_each(|vector| vector.fill(by));
        wire::encode(&vectors, self.parameter_layout.layout()).unwrap()
    }

    /// Sends an update, for a later task if told so, in whose name.
    pub fn submit(
        &self,
        (job, task): &(bytes::Bytes, u64),
        later: u64,
        node: &str,
        update: &[u8],
    ) -> Result<job_verdict::Kind, Failure> {
        let header = UpdateHeader { node: node.to_owned(), ..header(job, task + later, update) };
        let verdict = self.runtime.block_on(async { Upload::open(self, header).await?.finish(update).await });
        verdict.map(|verdict| verdict.kind())
    }

    /// Sends an update with a report of its own.
    pub fn submit_with(
        &self,
        (job, task): &(bytes::Bytes, u64),
        report: WorkReport,
        update: &[u8],
    ) -> Result<JobVerdict, Failure> {
        let mut header = header(job, *task, update);
        header.report = Some(report);
        self.runtime.block_on(async { Upload::open(self, header).await?.finish(update).await })
    }

    /// Begins to send an update, and stops half way.
    pub fn begin(&self, (job, task): &(bytes::Bytes, u64), update: &[u8]) -> Upload {
        self.runtime.block_on(async {
            let mut upload = Upload::open(self, header(job, *task, update)).await.unwrap();
            upload.send(update, update.len() / 2).await.unwrap();
            upload
        })
    }

    /// Sends the rest of an update that was begun.
    pub fn finish(&self, upload: Upload, update: &[u8]) -> Result<JobVerdict, Failure> {
        self.runtime.block_on(upload.finish(update))
    }
}

fn header(job: &bytes::Bytes, task: u64, update: &[u8]) -> UpdateHeader {
    UpdateHeader {
        job: job.clone(),
        task,
        digest: blake3::hash(update).as_bytes().to_vec().into(),
        length: update.len() as u64,
        report: Some(WorkReport { examples: 100, steps: 8, effective_steps: 8.0, ..WorkReport::default() }),
        node: String::new(),
    }
}

/// A stream that brings an update.
pub struct Upload {
    send: mpsc::Sender<SubmitChunk>,
    stream: tonic::Streaming<SubmitReply>,
    /// Bytes that were sent, once it is known from where they are wanted.
    sent: Option<usize>,
    verdict: Option<JobVerdict>,
}

impl Upload {
    async fn open(ghost: &Ghost, header: UpdateHeader) -> Result<Self, Failure> {
        let (send, receive) = mpsc::channel(1_024);
        send.send(SubmitChunk { body: Some(submit_chunk::Body::Header(header)) }).await.unwrap();
        let stream = ghost.pair.federate().submit(ReceiverStream::new(receive)).await;
        let stream = stream.map_err(|s| Failure::from_status(&s))?.into_inner();
        Ok(Self { send, stream, sent: None, verdict: None })
    }

    /// Sends bytes up to this one, if they are wanted at all.
    async fn send(&mut self, update: &[u8], end: usize) -> Result<(), Failure> {
        if self.sent.is_none() {
            let reply = self.stream.message().await.map_err(|s| Failure::from_status(&s))?;
            match reply.and_then(|reply| reply.body) {
                Some(submit_reply::Body::From(from)) => self.sent = Some(from as usize),
                Some(submit_reply::Body::Verdict(verdict)) => self.verdict = Some(verdict),
                None => return Err(Failure::new(Code::Unreachable, "it broke off")),
            }
        }
        let from = self.sent.unwrap_or(end).min(end);
        for part in update[from..end].chunks(200_000) {
            let data = bytes::Bytes::copy_from_slice(part);
            // Who doesn't listen any more says why.
            let _ = self.send.send(SubmitChunk { body: Some(submit_chunk::Body::Data(data)) }).await;
        }
        self.sent = self.sent.map(|sent| sent.max(end));
        Ok(())
    }

    async fn finish(mut self, update: &[u8]) -> Result<JobVerdict, Failure> {
        self.send(update, update.len()).await?;
        if let Some(verdict) = self.verdict {
            return Ok(verdict);
        }
        match self.stream.message().await.map_err(|s| Failure::from_status(&s))?.and_then(|reply| reply.body) {
            Some(submit_reply::Body::Verdict(verdict)) => Ok(verdict),
            _ => Err(Failure::new(Code::Unreachable, "it broke off")),
        }
    }
}
