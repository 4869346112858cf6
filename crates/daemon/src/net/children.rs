//! Children: their leases, what they say, what they are told.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use tierline_identity::Peer;
use tierline_node::lease::{Entry, Hello, Lost, Parent, ParentAction, ParentEvent};
use tierline_node::policy::{Roles, Rule};
use tierline_proto::door::session::FromChild;
use tierline_proto::envelope;
use tierline_proto::limits::SUBTREE_NODES_MAX;
use tierline_proto::v1::control_server::Control;
use tierline_proto::v1::{
    ChildMessage, Code, Envelope, Failure, Goodbye, HeartbeatAck, HelloReply, HelloRequest, LinkEstimate,
    ParentMessage, parent_message,
};
use tierline_proto::{Role, Sound, Versions};
use tierline_store::members::NodeRow;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Net, gate};
use crate::runtime::duty::Duty;
use crate::runtime::events::now_ms;
use crate::runtime::tasks::sound;
use crate::runtime::wait_until;

/// Messages to one child waiting for its stream; behind an edge, a round's
/// assignments for all of its ends come at once, and of several jobs.
const OUTBOX_MAX: usize = 2 * SUBTREE_NODES_MAX;

/// The way to a child.
struct Outbox {
    send: mpsc::Sender<Result<ParentMessage, Status>>,
    /// Whether it knows envelopes.
    takes_envelopes: bool,
}

/// What a child's heartbeats say.
#[derive(Debug, Clone, Copy, Default)]
struct Beat {
    link: Option<LinkEstimate>,
    heard_ms: u64,
}

/// A child that is or was there.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// How it is, in a word.
    pub state: &'static str,
    /// Whether its session is open.
    pub here: bool,
    /// Its estimate of the link between.
    pub link: Option<LinkEstimate>,
    /// When it was last heard of, Unix time in milliseconds.
    pub heard_ms: u64,
}

struct Inner {
    register: Parent,
    outboxes: HashMap<u64, Outbox>,
    beats: HashMap<String, Beat>,
    /// Identities of children that know envelopes.
    takers: HashSet<String>,
    /// Names of children whose leases a fault ended, of which nobody has heard.
    lost: Vec<String>,
}

/// The children of a node; clones share them.
#[derive(Clone)]
pub struct Children(Arc<Shared>);

struct Shared {
    net: Net,
    inner: Mutex<Inner>,
    /// Children at once.
    max: usize,
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
    /// No children yet, and so many at most. `first_session` differs between
    /// starts.
    #[must_use]
    pub fn new(net: Net, first_session: u64, max: usize) -> Self {
        let inner = Inner {
            register: Parent::new(first_session).at_most(max),
            outboxes: HashMap::new(),
            beats: HashMap::new(),
            takers: HashSet::new(),
            lost: Vec::new(),
        };
        let (inner, moved) = (Mutex::new(inner), Notify::new());
        Self(Arc::new(Shared { net, inner, max, calls: AtomicU64::new(0), moved }))
    }

    /// Children of a register in which a step broke off say hello again.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        sound(&self.0.inner, |inner| {
            let held = inner.register.children().filter(|(_, entry)| entry.session.is_some());
            inner.lost.extend(held.map(|(_, entry)| entry.hello.name.clone()));
            // Sessions of before are nobody's.
            inner.register = Parent::new(fastrand::u64(1..) >> 1).at_most(self.0.max);
            inner.outboxes.clear();
        })
    }

    fn step(&self, event: ParentEvent) -> Effects {
        let net = &self.0.net;
        let mut effects = Effects::default();
        let mut inner = self.lock();
        let before = inner.register.wake();
        let actions = inner.register.step(net.clock.now(), event);
        for action in actions {
            match action {
                ParentAction::Grant { version, session, lease, heartbeat, .. } => {
                    effects.granted = Some((version, session, lease, heartbeat));
                }
                ParentAction::Deny { failure, .. } => effects.denied = Some(failure),
                ParentAction::Copied { node } => effects.copied.push(node),
                ParentAction::Ack { session, sequence } => {
                    let lease_ms = millis(inner.register.lease_of(session));
                    let copied = inner.register.is_copied(net.clock.now(), session);
                    let heartbeat_ms = millis(inner.register.heartbeat());
                    let ack = HeartbeatAck { sequence, lease_ms, heartbeat_ms, copied, ..HeartbeatAck::default() };
                    inner.send(session, ParentMessage { body: Some(parent_message::Body::Ack(ack)) });
                }
                ParentAction::Up { node, .. } => effects.came.push(node),
                ParentAction::Down { node, why, .. } => effects.went.push((node, why)),
                ParentAction::Close { session, failure } => {
                    let goodbye = Goodbye { reason: Some(failure), return_after_ms: 0 };
                    inner.send(session, ParentMessage { body: Some(parent_message::Body::Goodbye(goodbye)) });
                    inner.outboxes.remove(&session);
                }
            }
        }
        let lost = std::mem::take(&mut inner.lost);
        // Of thousands of heartbeats, none moves it to an earlier time.
        let is_sooner = inner.register.wake().is_some_and(|wake| before.is_none_or(|before| wake < before));
        drop(inner);
        if is_sooner {
            self.0.moved.notify_one();
        }
        lost.iter().for_each(|name| net.duties.each(|duty| duty.child_down(name)));
        for (id, why) in &effects.went {
            // A new hello of the same node is no loss.
            if *why != Lost::Replaced {
                self.went(id, *why);
            }
        }
        effects.copied.iter().for_each(|id| self.copied(id));
        effects
    }

    /// A child's lease ended.
    fn went(&self, id: &str, why: Lost) {
        let net = &self.0.net;
        let name = self.name_of(id);
        let said = name.clone().unwrap_or_else(|| id.to_owned());
        let why = match why {
            Lost::Expired => "nothing was heard of it in time",
            Lost::Ended => "its connection ended",
            Lost::Replaced => "it said hello again",
            Lost::Revoked => "it is shut out",
            Lost::Draining => "this node stops",
        };
        let json = serde_json::json!({ "node": id, "name": said, "up": false });
        net.events.record("node", format!("{said} is gone: {why}"), &json);
        if let Some(name) = name {
            net.duties.each(|duty| duty.child_down(&name));
        }
    }

    /// Two processes with one identity want a child's lease.
    fn copied(&self, id: &str) {
        let name = self.name_of(id).unwrap_or_else(|| id.to_owned());
        let text = format!(
            "two copies of {name}'s data folder are running: the one that was started first is turned away; stop one of \
             them (if neither is yours: `tierline nodes revoke {id}`)"
        );
        self.0.net.events.record("node", text, &serde_json::json!({ "node": id, "copied": true }));
    }

    /// Lets leases expire, until the node ends.
    pub async fn run(self) {
        let clock = self.0.net.clock;
        loop {
            let wake = self.lock().register.wake().map(|t| clock.instant_of(t));
            tokio::select! {
                () = self.0.moved.notified() => {}
                () = wait_until(wake) => {
                    self.step(ParentEvent::Wake);
                }
            }
        }
    }

    /// Tells the same duty of every child something.
    pub fn tell_all(&self, duty: &str, message: &impl Message) {
        let envelope = Envelope::new(duty, message);
        let mut inner = self.lock();
        let sessions: Vec<u64> = inner.outboxes.keys().copied().collect();
        for session in sessions {
            inner.tell(session, envelope.clone());
        }
    }

    /// Tells the same duty of one child something, by the child's name; one
    /// that isn't connected hears nothing.
    pub fn tell(&self, name: &str, duty: &str, message: &impl Message) {
        let envelope = Envelope::new(duty, message);
        let mut inner = self.lock();
        if let Some(session) = inner.named(name).and_then(|entry| entry.session) {
            inner.tell(session, envelope);
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
        self.lock().register.child(id).map(|entry| entry.hello.name.clone())
    }

    /// The role of a child that is or was there, by its name.
    #[must_use]
    pub fn role_of(&self, name: &str) -> Option<Role> {
        self.lock().named(name).map(|entry| entry.hello.role)
    }

    /// Children of before this start, and when each was heard of last, Unix time
    /// in milliseconds: none of them is here yet.
    pub fn remember(&self, seen: impl IntoIterator<Item = (NodeRow, u64)>) {
        let (mut inner, now) = (self.lock(), self.0.net.clock.now());
        for (NodeRow { id, name, role }, heard_ms) in seen {
            inner.beats.entry(id.clone()).or_default().heard_ms = heard_ms;
            inner.register.remember(now, Hello { node: id, role, name, versions: Versions::OURS, incarnation: 0 });
        }
    }

    /// Forgets a child that isn't here.
    pub fn forget(&self, id: &str) {
        self.lock().register.forget(id);
    }

    /// A node's certificate is revoked: its lease ends now.
    pub fn revoke(&self, id: &str) {
        self.step(ParentEvent::Revoked { node: id.to_owned() });
    }

    /// Bytes of a child arrived, on whichever connection: it lives.
    pub fn heard(&self, id: &str) {
        let session = self.lock().register.child(id).and_then(|entry| entry.session);
        if let Some(session) = session {
            self.step(ParentEvent::Heard { session });
        }
    }

    /// Says goodbye to every child.
    pub fn drain(&self) {
        self.step(ParentEvent::Drain);
    }

    /// The identity of the child of this name, if it is connected and has this
    /// role.
    #[must_use]
    pub fn here(&self, name: &str, role: Role) -> Option<String> {
        let inner = self.lock();
        let here = |entry: &Entry| entry.hello.name == name && entry.session.is_some() && entry.hello.role == role;
        inner.register.children().find(|(_, entry)| here(entry)).map(|(id, _)| id.to_owned())
    }

    /// How many are or were there.
    #[must_use]
    pub fn known(&self) -> usize {
        self.lock().register.known()
    }

    /// Those that are or were there.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let (inner, now) = (self.lock(), self.0.net.clock.now());
        let listed = |(id, entry): (&str, &Entry)| {
            let Beat { link, heard_ms } = inner.beats.get(id).copied().unwrap_or_default();
            let state = match (entry.session, entry.lost) {
                (Some(_), _) if entry.is_copied(now) => "doubled",
                (Some(_), _) => "connected",
                (None, Some(Lost::Revoked)) => "revoked",
                _ => "lost",
            };
            let (name, role, here) = (entry.hello.name.clone(), entry.hello.role, entry.session.is_some());
            Listed { id: id.to_owned(), name, role, state, here, link, heard_ms }
        };
        inner.register.children().map(listed).collect()
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

    /// Sends what a duty says; what the child's version doesn't know is of no
    /// use to it.
    fn tell(&mut self, session: u64, envelope: Envelope) {
        let takes_envelopes = self.outboxes.get(&session).is_some_and(|outbox| outbox.takes_envelopes);
        if let Some(message) = envelope::to_child(envelope, takes_envelopes) {
            self.send(session, message);
        }
    }

    /// Sends a message to a child. One that doesn't fit ends the session: at the
    /// next one the child is told everything anew, and misses nothing.
    fn send(&mut self, session: u64, message: ParentMessage) {
        let sent = self.outboxes.get(&session).map(|outbox| outbox.send.try_send(Ok(message)));
        if let Some(Err(TrySendError::Full(_))) = sent {
            tracing::warn!(session, "a child reads nothing; its session begins anew");
            self.outboxes.remove(&session);
        }
    }
}

/// The service: hellos and sessions.
pub struct ControlService(pub Children);

/// Who may call it.
pub const RULES: &[Rule] = &[
    Rule::new("/tierline.v1.Control/Hello", Roles::CHILDREN, Roles::PARENTS),
    Rule::new("/tierline.v1.Control/Session", Roles::CHILDREN, Roles::PARENTS),
];

#[tonic::async_trait]
impl Control for ControlService {
    type SessionStream = ReceiverStream<Result<ParentMessage, Status>>;

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let peer = gate::caller(&request)?;
        let (children, me) = (&self.0, &self.0.0.net.me);
        let HelloRequest { versions, role, incarnation, features, .. } =
            Sound::read(request.into_inner())?.into_inner();
        if role != i32::from(peer.role) {
            let text = "the role in the hello is not the one in the certificate";
            return Err(Failure::new(Code::Forbidden, text)
                .with_help("join again with a token of the right role")
                .into());
        }
        let versions = versions.map_or(Versions { min: 0, max: 0 }, |v| Versions { min: v.min, max: v.max });
        // The certificate's name: what is said of members goes by names.
        let hello = Hello { node: peer.id.clone(), role: peer.role, name: peer.name.clone(), versions, incarnation };
        let call = children.0.calls.fetch_add(1, Ordering::Relaxed);
        let effects = children.step(ParentEvent::Hello { call, hello });
        if let Some(failure) = effects.denied {
            return Err(failure.at(me.name()).into());
        }
        let Some((version, session, lease, heartbeat)) = effects.granted else {
            return Err(Failure::new(Code::Internal, "the hello was neither granted nor denied").into());
        };
        {
            let mut inner = children.lock();
            match features.is_empty() {
                true => inner.takers.remove(&peer.id),
                false => inner.takers.insert(peer.id.clone()),
            };
        }
        Ok(Response::new(HelloReply {
            version,
            node_id: me.id().to_owned(),
            node_name: me.name().to_owned(),
            role: me.role().into(),
            features: envelope::features(),
            incarnation: me.incarnation,
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
        let (children, mut stream) = (self.0.clone(), request.into_inner());
        // The first heartbeat names the lease that this stream belongs to.
        let first = stream.message().await?.map_or(Ok(None), FromChild::read)?;
        let Some(FromChild::Heartbeat(beat)) = first else {
            return Err(Failure::new(Code::Protocol, "a session begins with a heartbeat").into());
        };
        let session = beat.session;
        if !children.holds(&peer, session) {
            return Err(Failure::new(Code::Cancelled, "this lease is not held; say hello again").into());
        }
        let receive = children.open(&peer, session);
        let tasks = children.0.net.tasks.clone();
        tasks.clone().spawn("session", async move {
            let heard = async {
                children.hear(&peer, session, FromChild::Heartbeat(beat));
                while let Ok(Some(message)) = stream.message().await {
                    // A lease that is lost or revoked has nothing more to say.
                    if !children.holds(&peer, session) {
                        break;
                    }
                    children.hear_one(&peer, session, message);
                }
            };
            // Broken off, it is told and counted, and the child begins another.
            let _ = tasks.caught("child's messages", heard).await;
            children.lock().outboxes.remove(&session);
            children.step(ParentEvent::Ended { session });
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

impl Children {
    /// Whether a child holds the lease of a session.
    fn holds(&self, peer: &Peer, session: u64) -> bool {
        self.lock().register.holder(self.0.net.clock.now(), session) == Some(peer.id.as_str())
    }

    /// Opens a child's session: it is greeted by every duty, before anything
    /// else is said to it.
    fn open(&self, peer: &Peer, session: u64) -> mpsc::Receiver<Result<ParentMessage, Status>> {
        let net = &self.0.net;
        let (send, receive) = mpsc::channel(OUTBOX_MAX);
        {
            let mut inner = self.lock();
            let takes_envelopes = inner.takers.contains(&peer.id);
            inner.outboxes.insert(session, Outbox { send, takes_envelopes });
            let Inner { register, beats, takers, .. } = &mut *inner;
            // Of children that are forgotten, nothing is kept.
            if beats.len().max(takers.len()) > register.known() {
                beats.retain(|id, _| register.child(id).is_some());
                takers.retain(|id| register.child(id).is_some());
            }
            for greeting in net.duties.all().flat_map(Duty::greetings) {
                inner.tell(session, greeting);
            }
        }
        let json = serde_json::json!({ "node": peer.name, "up": true });
        net.events.record("node", format!("{} joined", peer.name), &json);
        net.duties.each(|duty| duty.child_up(peer));
        receive
    }

    /// What a child said: what breaks the protocol, or isn't known here, is passed by.
    fn hear_one(&self, peer: &Peer, session: u64, message: ChildMessage) {
        match FromChild::read(message) {
            Ok(Some(said)) => self.hear(peer, session, said),
            Ok(None) => drop(self.step(ParentEvent::Heard { session })),
            Err(breach) => {
                self.step(ParentEvent::Heard { session });
                self.0.net.events.breach(&peer.name, &breach);
            }
        }
    }

    fn hear(&self, peer: &Peer, session: u64, said: FromChild) {
        match said {
            FromChild::Heartbeat(beat) => {
                let up_bytes_per_s = beat.link.map_or(0.0, |link| link.up_bytes_per_s);
                self.step(ParentEvent::Link { session, up_bytes_per_s });
                self.step(ParentEvent::Heartbeat { session, sequence: beat.sequence });
                let heard = Beat { link: beat.link, heard_ms: now_ms() };
                self.lock().beats.insert(peer.id.clone(), heard);
            }
            FromChild::Envelope(envelope) => {
                self.step(ParentEvent::Heard { session });
                self.lock().beats.entry(peer.id.clone()).or_default().heard_ms = now_ms();
                let Envelope { duty, payload } = envelope.into_inner();
                let Some(duty) = self.0.net.duties.named(&duty) else { return };
                if let Err(breach) = duty.hear_child(peer, payload) {
                    self.0.net.events.breach(&peer.name, &breach);
                }
            }
            FromChild::Goodbye(_) => drop(self.step(ParentEvent::Heard { session })),
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::net;
    use tierline_node::Time;

    #[test]
    fn a_register_in_which_a_step_broke_off_begins_without_leases() {
        let children = Children::new(net(), 7, 1);
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
