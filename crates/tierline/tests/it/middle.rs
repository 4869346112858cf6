//! Somebody between a node and its parent, who has both their identities: what
//! they say to each other passes through, changed as a test wants it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tierline_daemon::net::transport::{self, Pair};
use tierline_identity::{Ca, Grant, Identity, NODE_VALIDITY, tls};
use tierline_proto::v1::{FetchChunk, FetchRequest};
use tierline_proto::{Digest, Role};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::harness::{Node, doors};

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

/// What becomes of a message: those that go on in its place. `path` is the
/// call's.
pub type Rule = dyn Fn(Way, &str, Bytes) -> Vec<Bytes> + Send + Sync;

/// The session's stream.
pub const SESSION: &str = "/tierline.v1.Control/Session";

struct Shared {
    first: Channel,
    second: Channel,
    rule: Box<Rule>,
    /// Artefacts that only this one has.
    artefacts: Mutex<HashMap<Digest, Bytes>>,
    /// Whether messages are changed at all.
    on: AtomicBool,
}

pub struct Middle {
    pub url: String,
    runtime: Runtime,
    shared: Arc<Shared>,
    pair: Pair,
}

impl Middle {
    /// Between the child that joined in `data` and a parent below `cloud`.
    pub fn between(cloud: &Node, parent: &str, data: &Path, rule: Box<Rule>) -> Self {
        let now = SystemTime::now();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ca = Ca::open(&cloud.data.join("ca")).unwrap();
        let (id, name) = (Ca::new_node_id().unwrap(), "middle");
        let role = if parent == cloud.url { Role::Cloud } else { Role::Edge };
        let own = Identity::issue(&ca, &Grant { id: &id, role, name, validity: NODE_VALIDITY }, now).unwrap();
        let child = Identity::load(&data.join("identity"), now).unwrap();
        let endpoint = transport::endpoint(parent, transport::client_tls(&child)).unwrap();
        let pair = runtime.block_on(Pair::connect(&endpoint)).unwrap();
        // The second connection is made where somebody asks for it.
        let connecting = runtime.enter();
        let shared = Arc::new(Shared {
            first: pair.first(),
            second: pair.second(),
            rule,
            artefacts: Mutex::default(),
            on: AtomicBool::new(true),
        });
        drop(connecting);
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tls = tls::server_config(&tls::LiveIdentity::new(own).unwrap()).unwrap();
        let _in = runtime.enter();
        let callers = doors().listen(listener, tls, |_| false);
        let router = Server::builder()
            .add_service(Control(Arc::clone(&shared)))
            .add_service(Infer(Arc::clone(&shared)))
            .add_service(Bulk(Arc::clone(&shared)))
            .add_service(Federate(Arc::clone(&shared)));
        runtime.spawn(async move {
            let _strangers = callers.strangers;
            router.serve_with_incoming(ReceiverStream::new(callers.members)).await
        });
        drop(_in);
        Self { url, runtime, shared, pair }
    }

    /// Changes messages, or lets them be.
    pub fn change(&self, on: bool) {
        self.shared.on.store(on, Ordering::SeqCst);
    }

    /// An artefact of the parent's.
    pub fn artefact(&self, digest: Digest) -> Vec<u8> {
        self.runtime.block_on(async {
            let (mut chunks, mut bytes) = (self.pair.fetch(digest, 0).await.unwrap(), Vec::new());
            while let Some(chunk) = chunks.next().await.unwrap() {
                bytes.extend_from_slice(&chunk.data);
            }
            bytes
        })
    }

    /// Has an artefact that the parent doesn't have.
    pub fn offer(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        self.shared.artefacts.lock().unwrap().insert(digest, bytes.into());
        digest
    }
}

/// Messages as bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<Bytes, Status>> + Send>>;
type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Shared {
    fn changed(&self, way: Way, path: &str, message: Bytes) -> Vec<Bytes> {
        if self.on.load(Ordering::SeqCst) { (self.rule)(way, path, message) } else { vec![message] }
    }

    async fn pass(self: Arc<Self>, path: String, mut from: Streaming<Bytes>) -> Result<Response<Answers>, Status> {
        if path.ends_with("Bulk/Fetch") {
            let first = from.message().await?.unwrap_or_default();
            let wanted = FetchRequest::decode(first.clone()).ok();
            let wanted = wanted.and_then(|wanted| Some((Digest::try_from(&wanted.digest).ok()?, wanted.offset)));
            let own = wanted
                .and_then(|(digest, offset)| Some((self.artefacts.lock().unwrap().get(&digest)?.clone(), offset)));
            if let Some((bytes, offset)) = own {
                let data = bytes.slice(usize::try_from(offset).unwrap().min(bytes.len())..);
                let chunk = FetchChunk { total: bytes.len() as u64, offset, data };
                let answer: Answers = Box::pin(tokio_stream::iter([Ok(Bytes::from(chunk.encode_to_vec()))]));
                return Ok(Response::new(answer));
            }
            return self.pass_from(path, Some(first), from).await;
        }
        self.pass_from(path, None, from).await
    }

    async fn pass_from(
        self: Arc<Self>,
        path: String,
        first: Option<Bytes>,
        mut from: Streaming<Bytes>,
    ) -> Result<Response<Answers>, Status> {
        let (send, receive) = mpsc::channel(16);
        let (this, call) = (Arc::clone(&self), path.clone());
        tokio::spawn(async move {
            let mut next = first;
            loop {
                let message = match next.take() {
                    Some(first) => first,
                    None => match from.message().await {
                        Ok(Some(message)) => message,
                        _ => return,
                    },
                };
                for message in this.changed(Way::Up, &call, message) {
                    if send.send(message).await.is_err() {
                        return;
                    }
                }
            }
        });
        let bulk = path.contains("Bulk") || path.contains("Federate");
        let channel = if bulk { self.second.clone() } else { self.first.clone() };
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let at = path.parse().map_err(|_| Status::internal("a path"))?;
        let answers = client.streaming(Request::new(ReceiverStream::new(receive)), at, Raw).await?.into_inner();
        let answers = answers.map(move |answer| match answer {
            Ok(message) => self.changed(Way::Down, &path, message).into_iter().map(Ok).collect::<Vec<_>>(),
            Err(status) => vec![Err(status)],
        });
        let (send, receive) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut answers = Box::pin(answers);
            while let Some(some) = answers.next().await {
                for one in some {
                    if send.send(one).await.is_err() {
                        return;
                    }
                }
            }
        });
        let answers: Answers = Box::pin(ReceiverStream::new(receive));
        Ok(Response::new(answers))
    }
}

/// A call that was heard.
struct Call(Arc<Shared>, String);

impl tonic::server::StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Later<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(Arc::clone(&self.0).pass(self.1.clone(), request.into_inner()))
    }
}

macro_rules! service {
    ($name:ident, $path:literal) => {
        #[derive(Clone)]
        struct $name(Arc<Shared>);

        impl tonic::server::NamedService for $name {
            const NAME: &'static str = $path;
        }

        impl tower_service::Service<http::Request<tonic::body::Body>> for $name {
            type Response = http::Response<tonic::body::Body>;
            type Error = Infallible;
            type Future = Later<Result<Self::Response, Infallible>>;

            fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
                let call = Call(Arc::clone(&self.0), request.uri().path().to_owned());
                Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(call, request).await) })
            }
        }
    };
}

service!(Control, "tierline.v1.Control");
service!(Infer, "tierline.v1.Infer");
service!(Bulk, "tierline.v1.Bulk");
service!(Federate, "tierline.v1.Federate");
