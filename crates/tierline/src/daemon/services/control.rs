//! Children: their leases, what they report, what they are told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tierline_node::lease::{Entry, Hello, Lost, Parent, ParentAction, ParentEvent};
use tierline_proto::v1::control_server::Control;
use tierline_proto::v1::{
    ChildMessage, Code, Failure, Goodbye, HeartbeatAck, HelloReply, HelloRequest, LinkEstimate, LoadReport, ModelOffer,
    NodeInfo, ParentMessage, child_message, parent_message,
};
use tierline_proto::{Role, Versions};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::gate;
use crate::daemon::Node;

/// Messages to one child waiting for its stream; behind an edge, a round's
/// assignments for all of its ends come at once, and of several jobs.
const OUTBOX_MAX: usize = 8 * SUBTREE_NODES_MAX;

/// Nodes below one child that are kept and told of: with more, a message to
/// the cloud would exceed its limit.
const SUBTREE_NODES_MAX: usize = 1_024;

/// What a child last reported of itself.
#[derive(Debug, Clone, Default)]
pub struct Report {
    link: Option<LinkEstimate>,
    load: Option<LoadReport>,
    models: Vec<ModelOffer>,
    subtree: Vec<NodeInfo>,
    heard_ms: u64,
}

struct Inner {
    register: Parent,
    outboxes: HashMap<u64, mpsc::Sender<Result<ParentMessage, Status>>>,
    reports: HashMap<String, Report>,
}

/// The children of this node.
pub struct Children {
    inner: Mutex<Inner>,
    calls: AtomicU64,
    /// Rings when the register's next expiry may have moved.
    moved: Notify,
}

/// What a step of the register asks of the caller.
#[derive(Default)]
struct Effects {
    granted: Option<(u32, u64, Duration, Duration)>,
    denied: Option<Failure>,
    went: Vec<(String, Lost)>,
    came: Vec<String>,
}

impl Children {
    /// No children yet. `first_session` differs between starts.
    #[must_use]
    pub fn new(first_session: u64) -> Self {
        let register = Parent::new(first_session);
        Self {
            inner: Mutex::new(Inner { register, outboxes: HashMap::new(), reports: HashMap::new() }),
            calls: AtomicU64::new(0),
            moved: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, node: &Node, event: ParentEvent) -> Effects {
        let mut effects = Effects::default();
        let mut inner = self.lock();
        let actions = inner.register.step(node.now(), event);
        for action in actions {
            match action {
                ParentAction::Grant { version, session, lease, heartbeat, .. } => {
                    effects.granted = Some((version, session, lease, heartbeat));
                }
                ParentAction::Deny { failure, .. } => effects.denied = Some(failure),
                ParentAction::Ack { session, sequence } => {
                    let lease_ms = millis(inner.register.lease_of(session));
                    let ack = HeartbeatAck { sequence, lease_ms, ..HeartbeatAck::default() };
                    inner.send(session, parent_message::Body::Ack(ack));
                }
                ParentAction::Up { node, .. } => effects.came.push(node),
                ParentAction::Down { node, why, .. } => effects.went.push((node, why)),
                ParentAction::Close { session, failure } => {
                    let goodbye = Goodbye { reason: Some(failure), return_after_ms: 0 };
                    inner.send(session, parent_message::Body::Goodbye(goodbye));
                    inner.outboxes.remove(&session);
                }
            }
        }
        drop(inner);
        self.moved.notify_one();
        for (id, why) in &effects.went {
            // A new hello of the same node is no loss.
            if *why != Lost::Replaced {
                node.child_down(id, *why);
            }
        }
        effects
    }

    /// Lets leases expire, until the node ends.
    pub async fn watch(&self, node: &Node) {
        loop {
            let wake = self.lock().register.wake().map(|t| node.instant_of(t));
            tokio::select! {
                () = self.moved.notified() => {}
                () = crate::daemon::wait_until(wake) => {
                    self.step(node, ParentEvent::Wake);
                }
            }
        }
    }

    /// Tells every child.
    pub fn tell_all(&self, body: &parent_message::Body) {
        let mut inner = self.lock();
        let sessions: Vec<u64> = inner.outboxes.keys().copied().collect();
        for session in sessions {
            inner.send(session, body.clone());
        }
    }

    /// Tells one child, by its name; one that isn't connected hears nothing.
    pub fn tell(&self, name: &str, body: parent_message::Body) {
        let mut inner = self.lock();
        if let Some(session) = inner.named(name).and_then(|entry| entry.session) {
            inner.send(session, body);
        }
    }

    /// Names of the children that are connected.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let inner = self.lock();
        let connected = inner.register.children().filter(|(_, entry)| entry.session.is_some());
        connected.map(|(_, entry)| entry.hello.name.clone()).collect()
    }

    /// The name of a child that is or was there.
    #[must_use]
    pub fn name_of(&self, id: &str) -> Option<String> {
        self.lock().register.children().find(|(child, _)| *child == id).map(|(_, entry)| entry.hello.name.clone())
    }

    /// The role of a child that is or was there, by its name.
    #[must_use]
    pub fn role_of(&self, name: &str) -> Option<Role> {
        self.lock().named(name).map(|entry| entry.hello.role)
    }

    /// A node's certificate is revoked: its lease ends now.
    pub fn revoke(&self, node: &Node, id: &str) {
        self.step(node, ParentEvent::Revoked { node: id.to_owned() });
    }

    /// Bytes of a child arrived, on whichever connection: it lives.
    pub fn heard(&self, node: &Node, id: &str) {
        let session =
            self.lock().register.children().find(|(child, _)| *child == id).and_then(|(_, entry)| entry.session);
        if let Some(session) = session {
            self.step(node, ParentEvent::Heard { session });
        }
    }

    /// Says goodbye to every child.
    pub fn drain(&self, node: &Node) {
        self.step(node, ParentEvent::Drain);
    }

    /// Children and everything below them.
    #[must_use]
    pub fn list(&self, own_id: &str) -> Vec<NodeInfo> {
        let inner = self.lock();
        let mut nodes = Vec::new();
        for (id, entry) in inner.register.children() {
            let report = inner.reports.get(id).cloned().unwrap_or_default();
            let state = match (entry.session, entry.lost) {
                (Some(_), _) => "connected",
                (None, Some(Lost::Revoked)) => "revoked",
                _ => "lost",
            };
            nodes.push(NodeInfo {
                node_id: id.to_owned(),
                node_name: entry.hello.name.clone(),
                role: entry.hello.role.into(),
                parent_id: own_id.to_owned(),
                state: state.to_owned(),
                last_seen_ms: report.heard_ms,
                link: report.link,
                load: report.load,
                models: report.models,
                version: String::new(),
            });
            nodes.extend(report.subtree);
        }
        nodes
    }
}

impl Inner {
    /// The child of this name: the one that is connected, if there were several
    /// one after the other.
    fn named(&self, name: &str) -> Option<&Entry> {
        let mut named: Vec<&Entry> =
            self.register.children().map(|(_, entry)| entry).filter(|entry| entry.hello.name == name).collect();
        named.sort_by_key(|entry| entry.session.is_none());
        named.first().copied()
    }

    /// Sends a message to a child. One that doesn't fit ends the session: at the
    /// next one the child is told everything anew, and misses nothing.
    fn send(&mut self, session: u64, body: parent_message::Body) {
        let message = Ok(ParentMessage { body: Some(body) });
        let sent = self.outboxes.get(&session).map(|outbox| outbox.try_send(message));
        if let Some(Err(TrySendError::Full(_))) = sent {
            tracing::warn!(session, "a child reads nothing; its session begins anew");
            self.outboxes.remove(&session);
        }
    }
}

/// The service.
pub struct ControlService(pub Arc<Node>);

#[tonic::async_trait]
impl Control for ControlService {
    type SessionStream = ReceiverStream<Result<ParentMessage, Status>>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let peer = gate::caller(&request)?;
        let node = &self.0;
        let HelloRequest { versions, role, incarnation, .. } = request.into_inner();
        if role != i32::from(peer.role) {
            let text = "the role in the hello is not the one in the certificate";
            return Err(Failure::new(Code::Forbidden, text)
                .with_help("join again with a token of the right role")
                .into());
        }
        let versions = versions.map_or(Versions { min: 0, max: 0 }, |v| Versions { min: v.min, max: v.max });
        // The certificate's name: what is said of members goes by names.
        let hello = Hello { node: peer.id.clone(), role: peer.role, name: peer.name.clone(), versions, incarnation };
        let call = node.children.calls.fetch_add(1, Ordering::Relaxed);
        let effects = node.children.step(node, ParentEvent::Hello { call, hello });
        if let Some(failure) = effects.denied {
            return Err(failure.at(node.name()).into());
        }
        let Some((version, session, lease, heartbeat)) = effects.granted else {
            return Err(Failure::new(Code::Internal, "the hello was neither granted nor denied").into());
        };
        Ok(Response::new(HelloReply {
            version,
            node_id: node.id().to_owned(),
            node_name: node.name().to_owned(),
            role: node.role().into(),
            features: Vec::new(),
            incarnation: node.incarnation,
            session,
            lease_ms: millis(lease),
            heartbeat_ms: millis(heartbeat),
        }))
    }

    async fn session(
        &self,
        request: Request<Streaming<ChildMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = gate::caller(&request)?;
        let node = Arc::clone(&self.0);
        let mut stream = request.into_inner();
        // The first heartbeat names the lease that this stream belongs to.
        let first = stream.message().await?;
        let Some(ChildMessage { body: Some(child_message::Body::Heartbeat(beat)) }) = first else {
            return Err(Failure::new(Code::Protocol, "a session begins with a heartbeat").into());
        };
        let session = beat.session;
        if node.children.lock().register.holder(node.now(), session) != Some(peer.id.as_str()) {
            return Err(Failure::new(Code::Cancelled, "this lease is not held; say hello again").into());
        }
        let (send, receive) = mpsc::channel(OUTBOX_MAX);
        {
            let mut inner = node.children.lock();
            inner.outboxes.insert(session, send);
            inner.reports.entry(peer.id.clone()).or_default();
            inner.send(session, parent_message::Body::Revocations(node.revocations()));
            inner.send(session, parent_message::Body::Catalogue(node.catalogue.message()));
            inner.send(session, parent_message::Body::Path(node.path_for_children()));
        }
        node.child_up(&peer);
        self.0.tasks.spawn("session", async move {
            let heard = async {
                hear(&node, &peer.id, session, child_message::Body::Heartbeat(beat));
                while let Ok(Some(message)) = stream.message().await {
                    // A lease that is lost or revoked has nothing more to say.
                    if node.children.lock().register.holder(node.now(), session) != Some(peer.id.as_str()) {
                        break;
                    }
                    if let Some(body) = message.body {
                        hear(&node, &peer.id, session, body);
                    }
                }
            };
            // Broken off, it is told and counted, and the child begins another.
            let _ = node.tasks.caught("child's messages", heard).await;
            node.children.lock().outboxes.remove(&session);
            node.children.step(&node, ParentEvent::Ended { session });
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

fn hear(node: &Arc<Node>, id: &str, session: u64, body: child_message::Body) {
    use child_message::Body;
    if let Body::Heartbeat(beat) = &body {
        let up_bytes_per_s = beat.link.map_or(0.0, |link| link.up_bytes_per_s);
        node.children.step(node, ParentEvent::Link { session, up_bytes_per_s });
        node.children.step(node, ParentEvent::Heartbeat { session, sequence: beat.sequence });
    } else {
        node.children.step(node, ParentEvent::Heard { session });
    }
    let mut inner = node.children.lock();
    let report = inner.reports.entry(id.to_owned()).or_default();
    report.heard_ms = crate::daemon::events::now_ms();
    match body {
        Body::Heartbeat(beat) => report.link = beat.link,
        Body::Load(load) => report.load = Some(load),
        Body::Offers(offers) => report.models = offers.models,
        Body::Subtree(mut subtree) => {
            subtree.nodes.truncate(SUBTREE_NODES_MAX);
            report.subtree = subtree.nodes;
        }
        Body::Hints(hints) => {
            drop(inner);
            node.warm_hints(&hints);
        }
        Body::Standing(standing) => {
            drop(inner);
            if let Some(name) = node.children.name_of(id) {
                node.child_stands(&name, standing);
            }
        }
        Body::Reply(_) | Body::Goodbye(_) => {}
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
