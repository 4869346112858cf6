//! The parent's side: a register of children and their leases.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tierline_proto::limits::CHILDREN_MAX;
use tierline_proto::{Code, Failure, Role, Versions};

use super::{BEATS_IN_LEASE, HEARTBEAT, HEARTBEATS_PER_S, LEASE, LEASE_RANGE, QUEUED_BYTES};
use crate::time::Time;

/// A child's hello, from an identity the shell has checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Identity, from its certificate.
    pub node: String,
    /// Role, from its certificate.
    pub role: Role,
    /// Its name, for people.
    pub name: String,
    /// Versions it speaks.
    pub versions: Versions,
    /// Start of its process.
    pub incarnation: u64,
}

/// What happens to the register.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A child says hello; `call` names the answer.
    Hello {
        /// Which call to answer.
        call: u64,
        /// What it said.
        hello: Hello,
    },
    /// A heartbeat on the stream of `session`.
    Heartbeat {
        /// The lease.
        session: u64,
        /// The heartbeat's number.
        sequence: u64,
    },
    /// Anything else of the child arrived, on any of its connections: it
    /// lives, though its heartbeats may wait behind its tensors.
    Heard {
        /// The lease.
        session: u64,
    },
    /// What the child says of its link: thin links get longer leases. Say it
    /// before the heartbeat that carried it.
    Link {
        /// The lease.
        session: u64,
        /// Bytes per second towards this node; 0 when unknown.
        up_bytes_per_s: f64,
    },
    /// The session's stream ended.
    Ended {
        /// The lease.
        session: u64,
    },
    /// The node's certificate is revoked.
    Revoked {
        /// Identity.
        node: String,
    },
    /// Take no new children, and say goodbye to those here.
    Drain,
    /// The time [`Parent::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Answer the hello: a lease.
    Grant {
        /// Call to answer.
        call: u64,
        /// Protocol version agreed on.
        version: u32,
        /// The lease.
        session: u64,
        /// Its length.
        lease: Duration,
        /// Between heartbeats.
        heartbeat: Duration,
    },
    /// Answer the hello: no.
    Deny {
        /// Call to answer.
        call: u64,
        /// Why.
        failure: Failure,
    },
    /// Acknowledge a heartbeat.
    Ack {
        /// The lease.
        session: u64,
        /// The heartbeat's number.
        sequence: u64,
    },
    /// A child is here from now on.
    Up {
        /// Identity.
        node: String,
        /// Its lease.
        session: u64,
    },
    /// A child is gone.
    Down {
        /// Identity.
        node: String,
        /// The lease it had.
        session: u64,
        /// Why.
        why: Lost,
    },
    /// Another process with the same identity wants this lease: its operator
    /// and that of who holds it have to be told.
    Copied {
        /// Identity.
        node: String,
    },
    /// End the session's stream with a goodbye, and its connections.
    Close {
        /// The lease.
        session: u64,
        /// What to say.
        failure: Failure,
    },
}

/// Why a child is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// No heartbeat within the lease.
    Expired,
    /// Its stream ended.
    Ended,
    /// It said hello again; a new lease follows.
    Replaced,
    /// Its certificate is revoked.
    Revoked,
    /// This node is draining.
    Draining,
}

/// A child, present or past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it last said.
    pub hello: Hello,
    /// Its lease, while it has one.
    pub session: Option<u64>,
    /// When it was last heard.
    pub seen: Time,
    /// Why it has no lease.
    pub lost: Option<Lost>,
    /// Starts that gave way to a later one, the last of them last. One that
    /// comes back isn't a restart but a copy that still runs.
    gave_way: VecDeque<u64>,
    /// When such a copy was last turned away.
    copied: Option<Time>,
}

impl Entry {
    /// Whether a copy of it was turned away lately.
    #[must_use]
    pub fn is_copied(&self, now: Time) -> bool {
        self.copied.is_some_and(|at| now.since(at) < COPIED_FOR)
    }
}

/// Starts of one node that are remembered.
const STARTS_MAX: usize = 8;

/// A copy that was turned away comes back within this.
const COPIED_FOR: Duration = Duration::from_secs(60);

/// A live lease.
#[derive(Debug)]
struct Live {
    node: String,
    /// When it is lost unless renewed.
    expires: Time,
    /// Its entry in `due`.
    due: Time,
    /// How long a renewal lasts at least, for its link.
    queueing: Duration,
}

/// The register.
///
/// Invariants: a node has at most one lease; a lease belongs to one node; for
/// every `Up` there is later at most one `Down` of the same session.
#[derive(Debug)]
pub struct Parent {
    versions: Versions,
    lease: Duration,
    heartbeat: Duration,
    /// Leases at once.
    children_max: usize,
    children: BTreeMap<String, Entry>,
    sessions: BTreeMap<u64, Live>,
    /// When to look at a session: one entry each, at its expiry or before. A
    /// renewal moves none, so that a heartbeat costs the same among thousands.
    due: BTreeSet<(Time, u64)>,
    next_session: u64,
    draining: bool,
}

impl Parent {
    /// An empty register. `first_session` must differ between starts of the
    /// process (time will do), so that an old child's heartbeat is not taken
    /// for a new one's.
    #[must_use]
    pub fn new(first_session: u64) -> Self {
        Self::with_lease(first_session, LEASE, HEARTBEAT)
    }

    /// As [`Parent::new`], with another lease and heartbeat.
    #[must_use]
    pub fn with_lease(first_session: u64, lease: Duration, heartbeat: Duration) -> Self {
        Self {
            versions: Versions::OURS,
            lease,
            heartbeat,
            children_max: CHILDREN_MAX,
            children: BTreeMap::new(),
            sessions: BTreeMap::new(),
            due: BTreeSet::new(),
            next_session: first_session.max(1),
            draining: false,
        }
    }

    /// The same register, for so many children at once.
    #[must_use]
    pub fn at_most(self, children_max: usize) -> Self {
        Self { children_max: children_max.min(CHILDREN_MAX), ..self }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        // Whoever is late is gone before anything else is decided.
        self.expire(now, out);
        match event {
            Event::Hello { call, hello } => {
                let admitted = self.tell_apart(now, &hello, out).and_then(|()| self.admit(&hello));
                match admitted {
                    Ok(version) => self.grant(now, call, version, hello, out),
                    Err(failure) => out.push(Action::Deny { call, failure }),
                }
            }
            Event::Heartbeat { session, sequence } => self.beat(now, session, sequence, out),
            Event::Heard { session } => {
                self.renew(now, session);
            }
            Event::Link { session, up_bytes_per_s } => {
                if let Some(live) = self.sessions.get_mut(&session) {
                    live.queueing = queueing(up_bytes_per_s);
                }
            }
            Event::Ended { session } => self.drop_session(session, Lost::Ended, out),
            Event::Revoked { node } => {
                if let Some(session) = self.children.get(&node).and_then(|entry| entry.session) {
                    let failure = Failure::new(Code::Forbidden, "this node's certificate is revoked");
                    out.push(Action::Close { session, failure });
                    self.drop_session(session, Lost::Revoked, out);
                }
            }
            Event::Drain => {
                self.draining = true;
                let sessions: Vec<u64> = self.sessions.keys().copied().collect();
                for session in sessions {
                    out.push(Action::Close { session, failure: Failure::new(Code::Draining, "the node is draining") });
                    self.drop_session(session, Lost::Draining, out);
                }
            }
            Event::Wake => {}
        }
        actions
    }

    /// When the machine wants `Wake`: no later than the first lease expires.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A child, present or past, by its identity.
    #[must_use]
    pub fn child(&self, node: &str) -> Option<&Entry> {
        self.children.get(node)
    }

    /// How many children there are or were.
    #[must_use]
    pub fn known(&self) -> usize {
        self.children.len()
    }

    /// Children, present and past, by identity.
    pub fn children(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.children.iter().map(|(node, entry)| (node.as_str(), entry))
    }

    /// A child of before this start, which isn't here; one that is known stays
    /// as it is.
    pub fn remember(&mut self, now: Time, hello: Hello) {
        let lost = Some(Lost::Ended);
        let entry = Entry { hello, session: None, seen: now, lost, gave_way: VecDeque::new(), copied: None };
        self.children.entry(entry.hello.node.clone()).or_insert(entry);
    }

    /// Forgets a child that isn't here.
    pub fn forget(&mut self, node: &str) {
        if self.children.get(node).is_some_and(|entry| entry.session.is_none()) {
            self.children.remove(node);
        }
    }

    /// The node that holds `session`, if it is live at `now`.
    #[must_use]
    pub fn holder(&self, now: Time, session: u64) -> Option<&str> {
        self.sessions.get(&session).filter(|live| now < live.expires).map(|live| live.node.as_str())
    }

    /// Whether a copy of the node that holds `session` was turned away lately.
    #[must_use]
    pub fn is_copied(&self, now: Time, session: u64) -> bool {
        let node = self.sessions.get(&session).map(|live| &live.node);
        node.and_then(|node| self.children.get(node)).is_some_and(|entry| entry.is_copied(now))
    }

    /// How long the next renewal of `session` lasts: to be put into the
    /// acknowledgement of a heartbeat.
    #[must_use]
    pub fn lease_of(&self, session: u64) -> Duration {
        let queueing = self.sessions.get(&session).map_or(Duration::ZERO, |live| live.queueing);
        self.lease.max(self.heartbeat() * BEATS_IN_LEASE).max(queueing).min(LEASE_RANGE[1])
    }

    /// Time between the heartbeats of a child: with many children, more.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        let children = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let shared = Duration::from_secs(1) * children / HEARTBEATS_PER_S;
        self.heartbeat.max(shared.min(LEASE_RANGE[1] / BEATS_IN_LEASE))
    }

    /// Two copies of one data folder would push each other out for ever: the
    /// one that was started later keeps the lease for as long as it holds it.
    fn tell_apart(&mut self, now: Time, hello: &Hello, out: &mut Vec<Action>) -> Result<(), Failure> {
        let Some(entry) = self.children.get_mut(&hello.node) else { return Ok(()) };
        if entry.session.is_none() || !entry.gave_way.contains(&hello.incarnation) {
            return Ok(());
        }
        if !entry.is_copied(now) {
            out.push(Action::Copied { node: hello.node.clone() });
        }
        entry.copied = Some(now);
        let text = format!("another process with the identity of {} was started later and is connected", hello.name);
        Err(Failure::new(Code::AlreadyExists, text)
            .with_help("stop one of the two; a second device joins with a token of its own"))
    }

    fn admit(&self, hello: &Hello) -> Result<u32, Failure> {
        let version = self.versions.agree(hello.versions);
        let version = version.map_err(|error| Failure::new(Code::VersionMismatch, error.to_string()))?;
        if self.draining {
            return Err(Failure::new(Code::Draining, "the node is draining"));
        }
        let max = self.children_max;
        if self.sessions.len() >= max && self.children.get(&hello.node).is_none_or(|e| e.session.is_none()) {
            let failure = Failure::new(Code::Overloaded, format!("this node has {max} children already"));
            return Err(failure.with_help(
                "join another edge of the site, or let this one have more: `children_max` in its node.toml, and its limit \
                 of open files",
            ));
        }
        Ok(version)
    }

    fn grant(&mut self, now: Time, call: u64, version: u32, hello: Hello, out: &mut Vec<Action>) {
        let node = hello.node.clone();
        if let Some(session) = self.children.get(&node).and_then(|entry| entry.session) {
            let failure = Failure::new(Code::Cancelled, "the same node said hello again");
            out.push(Action::Close { session, failure });
            self.drop_session(session, Lost::Replaced, out);
        }
        self.forget_oldest();
        let session = self.next_session;
        self.next_session += 1;
        let live = Live { node: node.clone(), expires: now, due: now, queueing: Duration::ZERO };
        self.sessions.insert(session, live);
        let (lease, heartbeat) = (self.lease_of(session), self.heartbeat());
        if let Some(live) = self.sessions.get_mut(&session) {
            (live.expires, live.due) = (now + lease, now + lease);
        }
        self.due.insert((now + lease, session));
        let before = self.children.remove(&node);
        let mut gave_way = VecDeque::new();
        let copied = before.as_ref().and_then(|entry| entry.copied);
        if let Some(mut entry) = before {
            gave_way.append(&mut entry.gave_way);
            gave_way.push_back(entry.hello.incarnation);
        }
        gave_way.retain(|start| *start != hello.incarnation);
        while gave_way.len() > STARTS_MAX {
            gave_way.pop_front();
        }
        let entry = Entry { hello, session: Some(session), seen: now, lost: None, gave_way, copied };
        self.children.insert(node.clone(), entry);
        out.push(Action::Grant { call, version, session, lease, heartbeat });
        out.push(Action::Up { node, session });
    }

    fn beat(&mut self, now: Time, session: u64, sequence: u64, out: &mut Vec<Action>) {
        if self.renew(now, session) {
            out.push(Action::Ack { session, sequence });
        } else {
            // Expired, replaced, or of another start of this process.
            let failure = Failure::new(Code::Cancelled, "this lease is no longer held; say hello again");
            out.push(Action::Close { session, failure });
        }
    }

    fn renew(&mut self, now: Time, session: u64) -> bool {
        let lease = self.lease_of(session);
        let Some(live) = self.sessions.get_mut(&session) else { return false };
        // Never earlier than promised before, when the lease was longer.
        live.expires = live.expires.max(now + lease);
        if let Some(entry) = self.children.get_mut(&live.node) {
            entry.seen = now;
        }
        true
    }

    fn drop_session(&mut self, session: u64, why: Lost, out: &mut Vec<Action>) {
        let Some(Live { node, due, .. }) = self.sessions.remove(&session) else { return };
        self.due.remove(&(due, session));
        if let Some(entry) = self.children.get_mut(&node) {
            entry.session = None;
            entry.lost = Some(why);
        }
        out.push(Action::Down { node, session, why });
    }

    fn expire(&mut self, now: Time, out: &mut Vec<Action>) {
        while let Some(&(at, session)) = self.due.first()
            && at <= now
        {
            if let Some(live) = self.sessions.get_mut(&session)
                && live.expires > now
            {
                // Renewed meanwhile.
                self.due.pop_first();
                live.due = live.expires;
                self.due.insert((live.due, session));
                continue;
            }
            let failure = Failure::new(Code::Cancelled, "no heartbeat within the lease; say hello again");
            out.push(Action::Close { session, failure });
            self.drop_session(session, Lost::Expired, out);
        }
    }

    /// Keeps the register bounded: the child gone longest makes room.
    fn forget_oldest(&mut self) {
        while self.children.len() >= 2 * CHILDREN_MAX {
            let gone = self.children.iter().filter(|(_, entry)| entry.session.is_none());
            let Some(node) = gone.min_by_key(|(_, entry)| entry.seen).map(|(node, _)| node.clone()) else { return };
            self.children.remove(&node);
        }
    }
}

/// How long a heartbeat may wait behind tensors on a link of this bandwidth.
fn queueing(bytes_per_s: f64) -> Duration {
    let seconds = QUEUED_BYTES as f64 / bytes_per_s;
    // Unknown, absurd, or so thin that the range decides.
    if bytes_per_s > 0.0 { Duration::try_from_secs_f64(seconds).unwrap_or(LEASE_RANGE[1]) } else { Duration::ZERO }
}
