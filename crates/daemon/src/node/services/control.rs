//! Children: their leases, what they report, what they are told.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tierline_identity::Peer;
use tierline_node::Time;
use tierline_node::lease::{Entry, Hello, Lost, Parent, ParentAction, ParentEvent};
use tierline_proto::door::session::FromChild;
use tierline_proto::limits::{NODES_BELOW_MAX, SUBTREE_NODES_MAX, SUBTREE_PART_MAX};
use tierline_proto::v1::control_server::Control;
use tierline_proto::v1::{
    ChildMessage, Code, Failure, Goodbye, HeartbeatAck, HelloReply, HelloRequest, LinkEstimate, LoadReport, NodeInfo,
    ParentMessage, Subtree, parent_message,
};
use tierline_proto::{Role, Sound, Versions};
use tierline_store::state::{NodeRow, SeenRow};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::gate;
use crate::node::Node;
use crate::node::tasks::sound;

/// Messages to one child waiting for its stream; behind an edge, a round's
/// assignments for all of its ends come at once, and of several jobs.
const OUTBOX_MAX: usize = 2 * SUBTREE_NODES_MAX;

/// What a child last reported of itself.
#[derive(Debug, Clone, Default)]
struct Report {
    link: Option<LinkEstimate>,
    load: Option<LoadReport>,
    /// Models that it offers. Which they are, nobody above needs.
    models: u32,
    /// What it knows by name, as one number.
    catalogue: u64,
    below: Below,
    heard_ms: u64,
}

/// The nodes below a child, as it tells of them.
#[derive(Debug, Clone, Default)]
struct Below {
    nodes: Vec<NodeInfo>,
    /// Those that are there, but not listed.
    left_out: u64,
    /// Parts of a report that isn't whole yet, and what they leave out.
    parts: Vec<NodeInfo>,
    parts_left_out: u64,
}

impl Below {
    /// Takes in what a child says, at most `room` nodes; those that weren't
    /// there before.
    fn take(&mut self, said: Subtree, room: usize) -> Vec<NodeInfo> {
        let Subtree { nodes, more, news, left_out } = said;
        let known: HashSet<&str> = self.nodes.iter().map(|node| node.node_id.as_str()).collect();
        let new: Vec<NodeInfo> = nodes.iter().filter(|node| !known.contains(node.node_id.as_str())).cloned().collect();
        if news {
            for node in nodes {
                match self.nodes.iter().position(|known| known.node_id == node.node_id) {
                    Some(at) => self.nodes[at] = node,
                    None if self.nodes.len() < room => self.nodes.push(node),
                    None => self.left_out += 1,
                }
            }
            return new;
        }
        let fit = room.saturating_sub(self.parts.len()).min(nodes.len());
        self.parts_left_out = self.parts_left_out.saturating_add(left_out).saturating_add((nodes.len() - fit) as u64);
        self.parts.extend(nodes.into_iter().take(fit));
        if !more {
            self.nodes = std::mem::take(&mut self.parts);
            self.left_out = std::mem::take(&mut self.parts_left_out);
        }
        new
    }
}

/// Nodes as a node lists them.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Those that are listed.
    pub nodes: Vec<NodeInfo>,
    /// How many more there are.
    pub left_out: u64,
}

impl Listed {
    /// What a parent is told of them: in parts that leave room for heartbeats.
    #[must_use]
    pub fn reports(mut self) -> Vec<Subtree> {
        let beyond = self.nodes.len().saturating_sub(SUBTREE_NODES_MAX);
        self.nodes.truncate(SUBTREE_NODES_MAX);
        let left_out = self.left_out + beyond as u64;
        let mut parts: Vec<Subtree> = self
            .nodes
            .chunks(SUBTREE_PART_MAX)
            .map(|part| Subtree { nodes: part.to_vec(), more: true, ..Subtree::default() })
            .collect();
        match parts.last_mut() {
            Some(last) => (last.more, last.left_out) = (false, left_out),
            None => parts.push(Subtree { left_out, ..Subtree::default() }),
        }
        parts
    }
}

struct Inner {
    register: Parent,
    outboxes: HashMap<u64, mpsc::Sender<Result<ParentMessage, Status>>>,
    reports: HashMap<String, Report>,
    /// Names of children whose leases a fault ended, of which nobody has heard.
    lost: Vec<String>,
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
    copied: Vec<String>,
}

impl Children {
    /// No children yet. `first_session` differs between starts.
    #[must_use]
    pub fn new(first_session: u64) -> Self {
        let register = Parent::new(first_session);
        Self {
            inner: Mutex::new(Inner { register, outboxes: HashMap::new(), reports: HashMap::new(), lost: Vec::new() }),
            calls: AtomicU64::new(0),
            moved: Notify::new(),
        }
    }

    /// Children of a register in which a step broke off say hello again.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        sound(&self.inner, |inner| {
            let held = inner.register.children().filter(|(_, entry)| entry.session.is_some());
            inner.lost.extend(held.map(|(_, entry)| entry.hello.name.clone()));
            // Sessions of before are nobody's.
            inner.register = Parent::new(fastrand::u64(1..) >> 1);
            inner.outboxes.clear();
        })
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
                ParentAction::Copied { node } => effects.copied.push(node),
                ParentAction::Ack { session, sequence } => {
                    let lease_ms = millis(inner.register.lease_of(session));
                    let copied = inner.register.is_copied(node.now(), session);
                    let ack = HeartbeatAck { sequence, lease_ms, copied, ..HeartbeatAck::default() };
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
        let lost = std::mem::take(&mut inner.lost);
        drop(inner);
        self.moved.notify_one();
        lost.iter().for_each(|name| node.federations.child_down(name));
        for (id, why) in &effects.went {
            // A new hello of the same node is no loss.
            if *why != Lost::Replaced {
                node.child_down(id, *why);
            }
        }
        effects.copied.iter().for_each(|id| node.child_copied(id));
        effects
    }

    /// Lets leases expire, until the node ends.
    pub async fn watch(&self, node: &Node) {
        loop {
            let wake = self.lock().register.wake().map(|t| node.instant_of(t));
            tokio::select! {
                () = self.moved.notified() => {}
                () = crate::node::wait_until(wake) => {
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

    /// Nodes of before this start: none of them is here yet.
    pub fn remember(&self, now: Time, seen: Vec<SeenRow>) {
        let mut inner = self.lock();
        let (children, below): (Vec<_>, Vec<_>) = seen.into_iter().partition(|row| row.via.is_empty());
        for SeenRow { node, seen_ms, .. } in children {
            inner.reports.entry(node.id.clone()).or_default().heard_ms = seen_ms;
            let NodeRow { id, name, role } = node;
            inner.register.remember(now, Hello { node: id, role, name, versions: Versions::OURS, incarnation: 0 });
        }
        for SeenRow { node, parent, via, seen_ms } in below {
            let Some(report) = inner.reports.get_mut(&via) else { continue };
            report.below.nodes.push(NodeInfo {
                node_id: node.id,
                node_name: node.name,
                role: node.role.into(),
                parent_id: parent,
                state: "lost".to_owned(),
                last_seen_ms: seen_ms,
                ..NodeInfo::default()
            });
        }
    }

    /// Forgets a node that isn't here, wherever it was.
    pub fn forget(&self, id: &str) {
        let mut inner = self.lock();
        inner.register.forget(id);
        for report in inner.reports.values_mut() {
            report.below.nodes.retain(|node| node.node_id != id);
        }
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

    /// The identity of the node of this name that a child has below it, if the
    /// child is connected, and an edge that has told of it.
    #[must_use]
    pub fn below(&self, child: &str, node: &str) -> Option<String> {
        let inner = self.lock();
        let here = |entry: &Entry| entry.hello.name == child && entry.session.is_some();
        let (id, _) = inner.register.children().find(|(_, entry)| here(entry) && entry.hello.role == Role::Edge)?;
        let below = &inner.reports.get(id)?.below;
        below.nodes.iter().find(|below| below.node_name == node).map(|below| below.node_id.clone())
    }

    /// Children and everything below them.
    #[must_use]
    pub fn list(&self, now: Time, own_id: &str) -> Listed {
        let inner = self.lock();
        let mut listed = Listed::default();
        let here: HashSet<&str> =
            inner.register.children().filter(|(_, entry)| entry.session.is_some()).map(|(id, _)| id).collect();
        for (id, entry) in inner.register.children() {
            let report = inner.reports.get(id).cloned().unwrap_or_default();
            let state = match (entry.session, entry.lost) {
                (Some(_), _) if entry.is_copied(now) => "doubled",
                (Some(_), _) => "connected",
                (None, Some(Lost::Revoked)) => "revoked",
                _ => "lost",
            };
            listed.nodes.push(NodeInfo {
                node_id: id.to_owned(),
                node_name: entry.hello.name.clone(),
                role: entry.hello.role.into(),
                parent_id: own_id.to_owned(),
                state: state.to_owned(),
                last_seen_ms: report.heard_ms,
                link: report.link,
                load: report.load,
                models: Vec::new(),
                version: String::new(),
                model_count: report.models,
                catalogue: report.catalogue,
                ..NodeInfo::default()
            });
            listed.left_out += report.below.left_out;
            // Of one that is here itself, nobody else has anything to say.
            let elsewhere = report.below.nodes.into_iter().filter(|node| !here.contains(node.node_id.as_str()));
            listed.nodes.extend(elsewhere.map(|mut node| {
                if entry.session.is_none() {
                    "lost".clone_into(&mut node.state);
                }
                node
            }));
        }
        listed
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
        let HelloRequest { versions, role, incarnation, .. } = Sound::read(request.into_inner())?.into_inner();
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
        let first = stream.message().await?.map_or(Ok(None), FromChild::read)?;
        let Some(FromChild::Heartbeat(beat)) = first else {
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
            let Inner { register, reports, .. } = &mut *inner;
            // Of children that are forgotten, nothing is kept.
            let known: HashSet<&str> = register.children().map(|(id, _)| id).collect();
            reports.retain(|id, _| known.contains(id.as_str()));
            reports.entry(peer.id.clone()).or_default();
            inner.send(session, parent_message::Body::Revocations(node.revocations()));
            inner.send(session, parent_message::Body::Names(node.names()));
            inner.send(session, parent_message::Body::Catalogue(node.catalogue.message()));
            inner.send(session, parent_message::Body::Path(node.path_for_children()));
        }
        node.child_up(&peer);
        self.0.tasks.spawn("session", async move {
            let heard = async {
                hear(&node, &peer, session, FromChild::Heartbeat(beat));
                while let Ok(Some(message)) = stream.message().await {
                    // A lease that is lost or revoked has nothing more to say.
                    if node.children.lock().register.holder(node.now(), session) != Some(peer.id.as_str()) {
                        break;
                    }
                    hear_one(&node, &peer, session, message);
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

/// What a child said: what breaks the protocol, or isn't known here, is passed by.
fn hear_one(node: &Arc<Node>, peer: &Peer, session: u64, message: ChildMessage) {
    match FromChild::read(message) {
        Ok(Some(said)) => hear(node, peer, session, said),
        Ok(None) => drop(node.children.step(node, ParentEvent::Heard { session })),
        Err(breach) => {
            node.children.step(node, ParentEvent::Heard { session });
            node.events.breach(&peer.name, &breach);
        }
    }
}

fn hear(node: &Arc<Node>, peer: &Peer, session: u64, said: FromChild) {
    if let FromChild::Heartbeat(beat) = &said {
        let up_bytes_per_s = beat.link.map_or(0.0, |link| link.up_bytes_per_s);
        node.children.step(node, ParentEvent::Link { session, up_bytes_per_s });
        node.children.step(node, ParentEvent::Heartbeat { session, sequence: beat.sequence });
    } else {
        node.children.step(node, ParentEvent::Heard { session });
    }
    let mut inner = node.children.lock();
    let all: usize = inner.reports.values().map(|report| report.below.nodes.len()).sum();
    let report = inner.reports.entry(peer.id.clone()).or_default();
    report.heard_ms = crate::node::events::now_ms();
    match said {
        FromChild::Heartbeat(beat) => report.link = beat.link,
        FromChild::Load(load) => report.load = Some(load.into_inner()),
        FromChild::Offers(offers) => {
            report.models = u32::try_from(offers.models.len()).unwrap_or(u32::MAX);
            if std::mem::replace(&mut report.catalogue, offers.catalogue) != offers.catalogue {
                drop(inner);
                node.report_up();
            }
        }
        FromChild::Subtree(subtree) => {
            // Ends have nobody below them.
            if peer.role != Role::Edge {
                return;
            }
            let mut subtree = subtree.into_inner();
            subtree.nodes.retain(|below| below.node_id != peer.id && node.may_be_below(below));
            let room = SUBTREE_NODES_MAX.min(NODES_BELOW_MAX.saturating_sub(all - report.below.nodes.len()));
            let new = report.below.take(subtree, room);
            drop(inner);
            if !new.is_empty() {
                node.tell_of_new(new, &peer.id);
            }
            node.report_up();
        }
        FromChild::Hints(hints) => {
            drop(inner);
            node.warm_hints(&hints);
        }
        FromChild::Standing(standing) => {
            drop(inner);
            if node.speaks_for(&peer.name, &standing.node) {
                node.child_stands(&peer.name, standing.into_inner());
            } else {
                tracing::debug!(child = peer.name, member = standing.node, "it speaks for a node that isn't below it");
            }
        }
        FromChild::Reply(_) | FromChild::Goodbye(_) => {}
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tierline_node::Time;

    fn node(id: usize) -> NodeInfo {
        NodeInfo { node_id: id.to_string(), node_name: format!("end-{id}"), ..NodeInfo::default() }
    }

    fn said(ids: std::ops::Range<usize>, more: bool, news: bool) -> Subtree {
        Subtree { nodes: ids.map(node).collect(), more, news, left_out: 0 }
    }

    fn ids(below: &Below) -> Vec<&str> {
        below.nodes.iter().map(|node| node.node_id.as_str()).collect()
    }

    #[test]
    fn reports_of_many_come_in_parts_and_the_rest_is_counted() {
        let listed = Listed { nodes: (0..SUBTREE_NODES_MAX + 7).map(node).collect(), left_out: 5 };
        let reports = listed.reports();
        assert_eq!(reports.len(), SUBTREE_NODES_MAX.div_ceil(SUBTREE_PART_MAX));
        let mut below = Below::default();
        for (i, report) in reports.iter().enumerate() {
            assert!(prost::Message::encoded_len(report) < 256 << 10);
            assert!(below.nodes.is_empty(), "nothing counts before the whole is here: {i}");
            below.take(report.clone(), SUBTREE_NODES_MAX);
        }
        assert_eq!((below.nodes.len(), below.left_out), (SUBTREE_NODES_MAX, 12));
        // Where there is less room, more is only counted.
        let mut below = Below::default();
        reports.into_iter().for_each(|report| drop(below.take(report, 100)));
        assert_eq!((below.nodes.len(), below.left_out), (100, SUBTREE_NODES_MAX as u64 - 100 + 12));
        assert_eq!(Listed::default().reports(), [Subtree::default()], "that there is nobody is said, too");
    }

    #[test]
    fn news_come_on_top_and_a_report_replaces_all() {
        let mut below = Below::default();
        assert_eq!(below.take(said(0..2, false, false), 9).len(), 2);
        assert_eq!(below.take(said(1..4, false, true), 9).len(), 2, "one was known");
        assert_eq!(ids(&below), ["0", "1", "2", "3"]);
        below.take(said(4..9, false, true), 5);
        assert_eq!((below.nodes.len(), below.left_out), (5, 4));
        below.take(said(7..8, true, false), 9);
        assert_eq!(below.nodes.len(), 5, "more is to come");
        below.take(said(8..9, false, false), 9);
        assert_eq!((ids(&below), below.left_out), (vec!["7", "8"], 0));
    }

    #[test]
    fn a_register_in_which_a_step_broke_off_begins_without_leases() {
        let children = Children::new(7);
        let versions = Versions::OURS;
        let hello = Hello { node: "id".into(), role: Role::End, name: "end".into(), versions, incarnation: 1 };
        let say = |hello| children.lock().register.step(Time::ZERO, ParentEvent::Hello { call: 0, hello });
        say(hello.clone());
        assert_eq!(children.names(), ["end"]);
        let step = std::panic::AssertUnwindSafe(|| {
            let _inner = children.lock();
            panic!("on purpose");
        });
        assert!(std::panic::catch_unwind(step).is_err());
        assert!(children.names().is_empty());
        assert_eq!(children.lock().lost, ["end"]);
        // It says hello again, and holds a lease again.
        say(hello);
        assert_eq!(children.names(), ["end"]);
    }
}
