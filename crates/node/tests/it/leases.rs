//! Children and a parent with lost messages, partitions, resets and crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_node::lease::{
    BACKOFF_MAX, Child, ChildAction, ChildEvent, ChildState, DIAL_TIMEOUT, Granted, HEARTBEAT, HELLO_TIMEOUT, Hello,
    LEASE, Lost, Parent, ParentAction, ParentEvent,
};
use tierline_node::{Rng, Time};
use tierline_proto::{Code, Failure, Role, Versions};

use crate::harness::{Alarm, Link, Schedule, between, ms, seeds};

const SCHEDULES: u64 = 1_500;
const FAULTS_END: Time = Time::from_ns(40_000_000_000);
/// A quiet minute suffices for whatever attempt is under way to end and the
/// next to succeed.
const END: Time = Time::from_ns(110_000_000_000);

/// A child's attempt at one start of the child.
type Conn = (usize, u32, u64);

#[derive(Debug, Clone)]
enum Ev {
    WakeChild(usize, u32),
    WakeParent,
    ToChild(Conn, Vec<ChildEvent>),
    ToParent(Conn, Message),
    Fault,
    Heal(usize),
    Restart(usize),
    RestartParent,
}

#[derive(Debug, Clone)]
enum Message {
    Dial,
    Hello,
    Beat { session: u64, sequence: u64 },
}

struct Node {
    machine: Child,
    /// Counts starts of the process.
    life: u32,
    alive: bool,
    link: Link,
    /// Whether `Up` was the last of `Up` and `Down`.
    up: bool,
    session: Option<u64>,
    alarm: Alarm,
}

struct World<'a> {
    rng: &'a mut Rng,
    schedule: Schedule<Ev>,
    children: Vec<Node>,
    parent: Option<Parent>,
    parent_life: u32,
    /// Sessions by the parent's start that granted them.
    granted: BTreeMap<u64, (u32, Conn)>,
    calls: BTreeMap<u64, Conn>,
    /// Connections that are gone: nothing passes any more.
    broken: BTreeSet<Conn>,
    up_at_parent: BTreeSet<u64>,
    alarm: Alarm,
}

impl<'a> World<'a> {
    fn new(rng: &'a mut Rng, children: usize) -> Self {
        let node = || Node {
            machine: Child::default(),
            life: 0,
            alive: true,
            link: Link::GOOD,
            up: false,
            session: None,
            alarm: Alarm::default(),
        };
        Self {
            rng,
            schedule: Schedule::new(),
            children: std::iter::repeat_with(node).take(children).collect(),
            parent: Some(Parent::new(1)),
            parent_life: 0,
            granted: BTreeMap::new(),
            calls: BTreeMap::new(),
            broken: BTreeSet::new(),
            up_at_parent: BTreeSet::new(),
            alarm: Alarm::default(),
        }
    }

    fn child(&mut self, at: usize, event: ChildEvent) {
        let now = self.schedule.now();
        let node = &mut self.children[at];
        if !node.alive {
            return;
        }
        let actions = node.machine.step(now, self.rng, event);
        let life = node.life;
        for action in actions {
            let conn = |conn: u64| (at, life, conn);
            match action {
                ChildAction::Dial { conn: c } => self.send(conn(c), Message::Dial),
                ChildAction::SayHello { conn: c } => self.send(conn(c), Message::Hello),
                ChildAction::Heartbeat { conn: c, session, sequence } => {
                    self.send(conn(c), Message::Beat { session, sequence });
                }
                ChildAction::Up { granted, .. } => {
                    let node = &mut self.children[at];
                    assert!(!node.up, "Up twice");
                    node.up = true;
                    node.session = Some(granted.session);
                }
                ChildAction::Down { .. } => {
                    let node = &mut self.children[at];
                    assert!(node.up, "Down without Up");
                    node.up = false;
                    node.session = None;
                }
                ChildAction::Close { conn: c } => self.hang_up(conn(c)),
                ChildAction::Rtt(rtt) => assert!(rtt <= ms(40), "{rtt:?}"),
                ChildAction::Refused(failure) => panic!("refused: {failure}"),
            }
        }
        let node = &mut self.children[at];
        if let Some(wake) = node.alarm.set(node.machine.wake()) {
            self.schedule.at(wake, Ev::WakeChild(at, life));
        }
    }

    fn parent(&mut self, conn: Option<Conn>, event: ParentEvent) {
        let now = self.schedule.now();
        let Some(parent) = &mut self.parent else { return };
        for action in parent.step(now, event) {
            match action {
                ParentAction::Grant { call, version, session, lease, heartbeat } => {
                    let conn = self.calls[&call];
                    self.granted.insert(session, (self.parent_life, conn));
                    let granted = Granted { version, session, lease, heartbeat };
                    self.reply(conn, ChildEvent::Hello { conn: conn.2, result: Ok(granted) });
                }
                ParentAction::Deny { call, failure } => {
                    let conn = self.calls[&call];
                    self.reply(conn, ChildEvent::Hello { conn: conn.2, result: Err(failure) });
                }
                ParentAction::Ack { session, sequence } => {
                    let conn = conn.expect("a heartbeat comes on a connection");
                    let lease = self.parent.as_ref().map_or(Duration::ZERO, |parent| parent.lease_of(session));
                    let heartbeat = self.parent.as_ref().map_or(Duration::ZERO, Parent::heartbeat);
                    // One message on the wire.
                    let ack = ChildEvent::Ack { conn: conn.2, sequence, held: Duration::ZERO };
                    let both = vec![ChildEvent::Lease { conn: conn.2, lease, heartbeat }, ack];
                    self.carry(conn, |conn| Ev::ToChild(conn, both));
                }
                ParentAction::Close { session, failure } => {
                    let known = self.granted.get(&session).map(|(_, conn)| *conn).or(conn);
                    let Some(conn) = known else { continue };
                    let goodbye = ChildEvent::Goodbye { conn: conn.2, reason: failure, return_after: Duration::ZERO };
                    self.reply(conn, goodbye);
                }
                // A hello of an earlier start that was long on its way looks like one.
                ParentAction::Copied { .. } => {}
                ParentAction::Up { session, .. } => assert!(self.up_at_parent.insert(session)),
                ParentAction::Down { session, why: Lost::Expired, .. } => {
                    assert!(self.up_at_parent.remove(&session));
                    let holds = |node: &Node| node.alive && node.session == Some(session) && node.machine.holds(now);
                    assert!(!self.children.iter().any(holds), "the parent let go first, at {now:?}");
                }
                ParentAction::Down { session, why, .. } => {
                    assert!(self.up_at_parent.remove(&session));
                    assert!(matches!(why, Lost::Ended | Lost::Replaced), "{why:?}");
                }
            }
        }
        if let Some(wake) = self.alarm.set(self.parent.as_ref().and_then(Parent::wake)) {
            self.schedule.at(wake, Ev::WakeParent);
        }
    }

    /// A lost message breaks its connection silently, as with TCP: what
    /// follows on it is lost too.
    fn send(&mut self, conn: Conn, message: Message) {
        self.carry(conn, |conn| Ev::ToParent(conn, message));
    }

    fn reply(&mut self, conn: Conn, event: ChildEvent) {
        self.carry(conn, |conn| Ev::ToChild(conn, vec![event]));
    }

    fn carry(&mut self, conn: Conn, event: impl FnOnce(Conn) -> Ev) {
        if self.broken.contains(&conn) {
            return;
        }
        match self.children[conn.0].link.carry(self.rng) {
            Some(delay) => self.schedule.after(delay, event(conn)),
            None => drop(self.broken.insert(conn)),
        }
    }

    /// The child closed: the parent may or may not learn of it.
    fn hang_up(&mut self, conn: Conn) {
        if !self.broken.insert(conn) || self.rng.bool() {
            return;
        }
        let session = self.granted.iter().find(|(_, (life, of))| *of == conn && *life == self.parent_life);
        if let Some(session) = session.map(|(session, _)| *session) {
            self.parent(None, ParentEvent::Ended { session });
        }
    }

    fn received(&mut self, conn: Conn, message: Message) {
        if self.broken.contains(&conn) {
            return;
        }
        if self.parent.is_none() {
            let failure = Failure::new(Code::Unreachable, "connection refused");
            return self.reply(conn, ChildEvent::Disconnected { conn: conn.2, failure });
        }
        match message {
            Message::Dial => self.reply(conn, ChildEvent::Connected { conn: conn.2 }),
            Message::Hello => {
                let call = self.calls.len() as u64;
                self.calls.insert(call, conn);
                let hello = Hello {
                    node: format!("node-{}", conn.0),
                    role: Role::End,
                    name: format!("end-{}", conn.0),
                    versions: Versions::OURS,
                    incarnation: u64::from(conn.1),
                };
                self.parent(None, ParentEvent::Hello { call, hello });
            }
            Message::Beat { session, sequence } => {
                // Links of all widths: leases get longer and shorter.
                if self.rng.u8(..4) == 0 {
                    let up_bytes_per_s = [0.0, 20_000.0, 100_000.0, 1e7][self.rng.usize(..4)];
                    self.parent(None, ParentEvent::Link { session, up_bytes_per_s });
                }
                self.parent(Some(conn), ParentEvent::Heartbeat { session, sequence })
            }
        }
    }

    fn fault(&mut self) {
        let at = self.rng.usize(..self.children.len());
        let pause = between(self.rng, [ms(10), ms(8_000)]);
        match self.rng.u8(..6) {
            0 => {
                self.children[at].link.partitioned = true;
                self.schedule.after(pause, Ev::Heal(at));
            }
            1 => {
                self.children[at].link.loss = self.rng.f64() * 0.5;
                self.schedule.after(pause, Ev::Heal(at));
            }
            2 if self.children[at].alive => {
                let node = &mut self.children[at];
                node.alive = false;
                node.up = false;
                node.session = None;
                self.schedule.after(pause, Ev::Restart(at));
            }
            3 if self.parent.is_some() && self.rng.u8(..3) == 0 => {
                self.parent = None;
                self.up_at_parent.clear();
                self.schedule.after(pause, Ev::RestartParent);
            }
            // The connection is reset; both sides learn of it.
            _ => {
                if let ChildState::Held(_) = self.children[at].machine.state() {
                    let Some(session) = self.children[at].session else { return };
                    let Some((life, conn)) = self.granted.get(&session).copied() else { return };
                    self.broken.insert(conn);
                    let failure = Failure::new(Code::Unreachable, "connection reset");
                    self.child(at, ChildEvent::Disconnected { conn: conn.2, failure });
                    if life == self.parent_life {
                        self.parent(None, ParentEvent::Ended { session });
                    }
                }
            }
        }
    }

    fn step(&mut self, event: Ev) {
        match event {
            Ev::WakeChild(at, life) if life == self.children[at].life => {
                self.children[at].alarm.ring();
                self.child(at, ChildEvent::Wake);
            }
            Ev::ToChild((at, life, conn), events)
                if life == self.children[at].life && !self.broken.contains(&(at, life, conn)) =>
            {
                events.into_iter().for_each(|event| self.child(at, event));
            }
            Ev::WakeChild(..) | Ev::ToChild(..) => {}
            Ev::WakeParent => {
                self.alarm.ring();
                self.parent(None, ParentEvent::Wake);
            }
            Ev::ToParent(conn, message) => self.received(conn, message),
            Ev::Fault => {
                self.fault();
                let pause = between(self.rng, [ms(50), ms(4_000)]);
                if self.schedule.now() + pause < FAULTS_END {
                    self.schedule.after(pause, Ev::Fault);
                }
            }
            Ev::Heal(at) => self.children[at].link = Link::GOOD,
            Ev::Restart(at) => {
                let node = &mut self.children[at];
                node.machine = Child::default();
                node.alive = true;
                node.life += 1;
                node.alarm.ring();
                self.child(at, ChildEvent::Start);
            }
            Ev::RestartParent => {
                self.parent_life += 1;
                self.parent = Some(Parent::new(1_000_000 * u64::from(self.parent_life)));
            }
        }
    }

    /// Whoever believes that it holds its lease does, unless the parent died.
    fn check(&self) {
        let now = self.schedule.now();
        let Some(parent) = &self.parent else { return };
        for (at, node) in self.children.iter().enumerate() {
            let Some(session) = node.session.filter(|_| node.alive && node.machine.holds(now)) else { continue };
            if self.granted[&session].0 != self.parent_life {
                continue;
            }
            let holder = parent.holder(now, session);
            // Unless the parent has let go by itself, on a stream that ended
            // or a new hello, and its goodbye is on the way.
            let told = !self.up_at_parent.contains(&session);
            let own = || holder.and_then(|node| node.strip_prefix("node-")?.parse().ok()) == Some(at);
            assert!(told || own(), "child {at} at {now:?}");
        }
    }
}

#[test]
fn a_child_never_holds_a_lease_longer_than_its_parent_and_always_comes_back() {
    seeds(SCHEDULES, |rng| {
        let children = rng.usize(1..4);
        let mut world = World::new(rng, children);
        (0..children).for_each(|at| world.child(at, ChildEvent::Start));
        world.schedule.after(ms(500), Ev::Fault);
        while let Some(event) = world.schedule.next(END) {
            world.step(event);
            world.check();
        }
        let now = END;
        for (at, node) in world.children.iter().enumerate() {
            let session = node.session.unwrap_or_else(|| panic!("child {at} is {:?}", node.machine.state()));
            assert!(node.machine.holds(now));
            assert_eq!(world.parent.as_ref().unwrap().holder(now, session), Some(format!("node-{at}").as_str()));
        }
        // One lease each at the parent, of the right sessions.
        assert_eq!(world.up_at_parent.len(), children);
    });
}

#[test]
fn expiry_alone_never_finds_the_child_still_holding() {
    // No stream ends and nobody says hello again: only clocks decide, so the
    // child must let go first, whatever is lost and delayed.
    seeds(5_000, |rng| {
        let mut child = Child::default();
        let mut parent = Parent::new(1);
        let connected = ChildEvent::Connected { conn: 1 };
        let _ = child.step(Time::ZERO, rng, ChildEvent::Start);
        let _ = child.step(Time::from_ns(1), rng, connected);
        let hello =
            Hello { node: "n".into(), role: Role::End, name: "n".into(), versions: Versions::OURS, incarnation: 0 };
        let asked = Time::from_ns(1);
        let answered = asked + between(rng, [ms(0), ms(900)]);
        let Some(ParentAction::Grant { version, session, lease, heartbeat, .. }) =
            parent.step(answered, ParentEvent::Hello { call: 0, hello }).into_iter().next()
        else {
            panic!("not granted")
        };
        let mut now = answered + between(rng, [ms(0), ms(900)]);
        let granted = Granted { version, session, lease, heartbeat };
        let mut actions = child.step(now, rng, ChildEvent::Hello { conn: 1, result: Ok(granted) });
        let mut acks: Vec<(Time, u64)> = Vec::new();
        let mut beats: Vec<(Time, u64)> = Vec::new();
        for _ in 0..200 {
            for action in actions.drain(..) {
                if let ChildAction::Heartbeat { sequence, .. } = action
                    && rng.f64() < 0.6
                {
                    beats.push((now + between(rng, [ms(0), ms(1_500)]), sequence));
                }
            }
            beats.sort();
            acks.sort();
            let next = [child.wake(), beats.first().map(|b| b.0), acks.first().map(|a| a.0), parent.wake()];
            now = next.into_iter().flatten().min().unwrap().max(now);
            if let Some(at) = beats.iter().position(|(at, _)| *at <= now) {
                let (_, sequence) = beats.remove(at);
                for action in parent.step(now, ParentEvent::Heartbeat { session, sequence }) {
                    if let ParentAction::Ack { sequence, .. } = action {
                        acks.push((now + between(rng, [ms(0), ms(1_500)]), sequence));
                    }
                }
            } else if let Some(at) = acks.iter().position(|(at, _)| *at <= now) {
                let (_, sequence) = acks.remove(at);
                actions.extend(child.step(now, rng, ChildEvent::Ack { conn: 1, sequence, held: Duration::ZERO }));
            } else {
                actions.extend(child.step(now, rng, ChildEvent::Wake));
                let _ = parent.step(now, ParentEvent::Wake);
            }
            if child.holds(now) {
                assert!(parent.holder(now, session).is_some(), "the parent let go first, at {now:?}");
            } else {
                return;
            }
        }
    });
}

#[test]
fn a_version_mismatch_is_final_until_reconfigured() {
    let mut rng = Rng::with_seed(1);
    for code in [Code::VersionMismatch, Code::Unauthenticated, Code::Forbidden] {
        let mut child = Child::default();
        let failure = Failure::new(code, "no");
        assert_eq!(child.step(Time::ZERO, &mut rng, ChildEvent::Start), [ChildAction::Dial { conn: 1 }]);
        let _ = child.step(Time::ZERO, &mut rng, ChildEvent::Connected { conn: 1 });
        let actions = child.step(Time::ZERO, &mut rng, ChildEvent::Hello { conn: 1, result: Err(failure.clone()) });
        assert_eq!(actions, [ChildAction::Close { conn: 1 }, ChildAction::Refused(failure)]);
        assert_eq!(child.wake(), None);
        assert_eq!(child.step(Time::from_ns(u64::MAX), &mut rng, ChildEvent::Wake), []);
        let again = child.step(Time::from_ns(5), &mut rng, ChildEvent::Reconfigured);
        assert_eq!(again, [ChildAction::Dial { conn: 2 }]);
    }
    // And the parent's side of it.
    let hello = |versions| Hello { node: "n".into(), role: Role::End, name: "n".into(), versions, incarnation: 0 };
    let future = ParentEvent::Hello { call: 7, hello: hello(Versions { min: 900, max: 901 }) };
    let actions = Parent::new(1).step(Time::ZERO, future);
    assert!(
        matches!(&actions[..], [ParentAction::Deny { call: 7, failure }] if failure.code() == Code::VersionMismatch)
    );
}

#[test]
fn pauses_grow_spread_and_stay_bounded() {
    let mut rng = Rng::with_seed(2);
    let mut pauses: Vec<Vec<Duration>> = vec![Vec::new(); 12];
    for _ in 0..200 {
        let mut child = Child::default();
        let mut now = Time::ZERO;
        let _ = child.step(now, &mut rng, ChildEvent::Start);
        for (conn, pauses) in (1..).zip(&mut pauses) {
            let failure = Failure::new(Code::Unreachable, "refused");
            let _ = child.step(now, &mut rng, ChildEvent::Disconnected { conn, failure });
            let next = child.wake().unwrap();
            pauses.push(next.since(now));
            now = next;
            let actions = child.step(now, &mut rng, ChildEvent::Wake);
            assert_eq!(actions, [ChildAction::Dial { conn: conn + 1 }]);
        }
    }
    let mean = |all: &Vec<Duration>| all.iter().sum::<Duration>() / all.len() as u32;
    let means: Vec<Duration> = pauses.iter().map(mean).collect();
    // Full jitter: half the bound on average, doubling from 200 ms to 10 s.
    assert!(means[0] > ms(80) && means[0] < ms(120), "{means:?}");
    assert!(means[3] > ms(650) && means[3] < ms(950), "{means:?}");
    assert!(means[11] > ms(4_200) && means[11] < ms(5_800), "{means:?}");
    assert!(pauses.iter().flatten().all(|pause| *pause <= BACKOFF_MAX));
    assert!(DIAL_TIMEOUT + HELLO_TIMEOUT + BACKOFF_MAX < END.since(FAULTS_END));
}

#[test]
fn revoked_and_replaced_children_lose_their_lease() {
    let hello = |incarnation| {
        let versions = Versions::OURS;
        ParentEvent::Hello {
            call: incarnation,
            hello: Hello { node: "n".into(), role: Role::End, name: "n".into(), versions, incarnation },
        }
    };
    let mut parent = Parent::new(10);
    let _ = parent.step(Time::ZERO, hello(1));
    assert_eq!(parent.holder(Time::ZERO, 10), Some("n"));
    let again = parent.step(Time::from_ns(1), hello(2));
    assert!(matches!(again[0], ParentAction::Close { session: 10, .. }));
    assert!(matches!(again[1], ParentAction::Down { session: 10, why: Lost::Replaced, .. }));
    assert_eq!((parent.holder(Time::from_ns(1), 10), parent.holder(Time::from_ns(1), 11)), (None, Some("n")));
    let revoked = parent.step(Time::from_ns(2), ParentEvent::Revoked { node: "n".into() });
    assert!(matches!(&revoked[0], ParentAction::Close { session: 11, failure } if failure.code() == Code::Forbidden));
    // The heartbeat of a lease from another life is answered with a goodbye.
    assert!(parent.step(Time::from_ns(3), ParentEvent::Heard { session: 3 }).is_empty());
    let stale = parent.step(Time::from_ns(3), ParentEvent::Heartbeat { session: 3, sequence: 0 });
    assert!(matches!(stale[..], [ParentAction::Close { session: 3, .. }]));
}

#[test]
fn thin_links_get_longer_leases_and_data_is_a_sign_of_life() {
    let mut parent = Parent::new(1);
    let hello = Hello { node: "n".into(), role: Role::End, name: "n".into(), versions: Versions::OURS, incarnation: 0 };
    let _ = parent.step(Time::ZERO, ParentEvent::Hello { call: 0, hello });
    assert_eq!(parent.lease_of(1), LEASE);
    let at = |seconds: u64| Time::ZERO + Duration::from_secs(seconds);
    // 1 Mbit/s: half a MiB takes 4.2 s.
    let mut link = |up_bytes_per_s| {
        let _ = parent.step(at(1), ParentEvent::Link { session: 1, up_bytes_per_s });
        parent.lease_of(1).as_secs_f64()
    };
    assert!((link(125_000.0) - 4.19).abs() < 0.01);
    assert_eq!(link(f64::NAN), 3.0);
    assert_eq!(link(-1.0), 3.0);
    assert_eq!(link(f64::INFINITY), 3.0);
    assert_eq!(link(1e-300), 30.0);
    let _ = parent.step(at(2), ParentEvent::Heard { session: 1 });
    let until = |parent: &Parent| (0..60).find(|s| parent.holder(at(*s), 1).is_none());
    assert_eq!(until(&parent), Some(32));
    // A shorter lease does not take back what was promised.
    let _ = parent.step(at(3), ParentEvent::Link { session: 1, up_bytes_per_s: 1e9 });
    let _ = parent.step(at(3), ParentEvent::Heartbeat { session: 1, sequence: 1 });
    assert_eq!(until(&parent), Some(32));
    // It is looked at before, and is gone when its time is over.
    assert!(parent.wake() <= Some(at(32)));
    assert_eq!(parent.step(at(31), ParentEvent::Wake), []);
    assert_eq!(parent.wake(), Some(at(32)));
    let gone = parent.step(at(32), ParentEvent::Wake);
    assert!(matches!(gone[..], [_, ParentAction::Down { session: 1, why: Lost::Expired, .. }]), "{gone:?}");
    assert_eq!(parent.wake(), None);
}

#[test]
fn of_thousands_each_is_asked_for_fewer_heartbeats() {
    let mut parent = Parent::new(0).at_most(10_000);
    let mut granted = Vec::new();
    let join = |parent: &mut Parent, n: u64| {
        let versions = Versions::OURS;
        let hello = Hello { node: format!("{n}"), role: Role::End, name: "n".into(), versions, incarnation: 0 };
        parent.step(Time::ZERO, ParentEvent::Hello { call: 0, hello })
    };
    for n in 1..=10_000 {
        match join(&mut parent, n)[..] {
            [ParentAction::Grant { lease, heartbeat, .. }, _] => granted.push((heartbeat, lease)),
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (granted[0], granted[1_499]),
        ((HEARTBEAT, LEASE), (HEARTBEAT, LEASE)),
        "few are asked as often as ever"
    );
    assert_eq!(granted[9_999], (Duration::from_secs(5), Duration::from_secs(20)));
    // Those of before hear of it with their next acknowledgement.
    let at = |seconds: u64| Time::ZERO + Duration::from_secs(seconds);
    assert_eq!(parent.step(at(1), ParentEvent::Heartbeat { session: 1, sequence: 0 }).len(), 1);
    assert_eq!((parent.heartbeat(), parent.lease_of(1)), granted[9_999]);
    assert_eq!([20, 21].map(|s| parent.holder(at(s), 1).is_some()), [true, false]);
    // More there are not, but whoever is here may come again.
    let full = join(&mut parent, 10_001);
    assert!(
        matches!(&full[..], [ParentAction::Deny { failure, .. }] if failure.code() == Code::Overloaded),
        "{full:?}"
    );
    assert!(join(&mut parent, 7).iter().any(|action| matches!(action, ParentAction::Grant { .. })));
    // Nobody else renews: all but the first are gone by then, each once.
    let gone = parent.step(at(20), ParentEvent::Wake);
    assert_eq!(gone.iter().filter(|action| matches!(action, ParentAction::Down { .. })).count(), 9_999);
    assert_eq!((parent.heartbeat(), parent.wake()), (HEARTBEAT, Some(at(21))));
}

#[test]
fn a_child_follows_the_pace_that_its_parent_asks_for() {
    let (mut child, rng) = (Child::default(), &mut Rng::with_seed(1));
    let at = |ms: u64| Time::ZERO + Duration::from_millis(ms);
    let _ = child.step(Time::ZERO, rng, ChildEvent::Start);
    let _ = child.step(Time::ZERO, rng, ChildEvent::Connected { conn: 1 });
    let granted = Granted { version: 1, session: 7, lease: Duration::ZERO, heartbeat: Duration::ZERO };
    let _ = child.step(Time::ZERO, rng, ChildEvent::Hello { conn: 1, result: Ok(granted) });
    let mut told = |now, sequence, lease, heartbeat| {
        let pace = ChildEvent::Lease { conn: 1, lease: ms(lease), heartbeat: ms(heartbeat) };
        let _ = child.step(at(now), rng, pace);
        let _ = child.step(at(now), rng, ChildEvent::Ack { conn: 1, sequence, held: Duration::ZERO });
        let wake = child.wake().unwrap();
        let beats = child.step(wake, rng, ChildEvent::Wake).len();
        (wake, beats, child.wake().unwrap())
    };
    assert_eq!(told(10, 0, 20_000, 5_000), (at(750), 1, at(5_750)));
    // Fewer children are left: from now on, not from the next heartbeat on.
    assert_eq!(told(800, 1, 3_000, 750), (at(1_550), 1, at(2_300)));
    // One that says nothing of it leaves it as it is.
    assert_eq!(told(1_600, 2, 0, 0), (at(2_300), 1, at(3_050)));
    // A third of the lease at most, whatever is asked for.
    assert_eq!(told(2_400, 3, 3_000, 60_000), (at(3_050), 1, at(4_050)));
}

#[test]
fn of_two_copies_the_later_start_keeps_the_lease() {
    let at = |seconds: u64| Time::ZERO + Duration::from_secs(seconds);
    let hello = |incarnation| {
        let versions = Versions::OURS;
        let hello = Hello { node: "n".into(), role: Role::End, name: "cam".into(), versions, incarnation };
        ParentEvent::Hello { call: 0, hello }
    };
    let granted = |actions: &[ParentAction]| actions.iter().any(|a| matches!(a, ParentAction::Grant { .. }));
    let denied = |actions: &[ParentAction]| match actions.last() {
        Some(ParentAction::Deny { failure, .. }) => failure.code() == Code::AlreadyExists,
        _ => false,
    };
    let copied = |actions: &[ParentAction]| actions.iter().any(|a| matches!(a, ParentAction::Copied { .. }));
    let mut parent = Parent::new(10);
    assert!(granted(&parent.step(at(0), hello(1))));
    // A restart, or a copy: nobody knows yet.
    assert!(granted(&parent.step(at(1), hello(2))));
    assert!(granted(&parent.step(at(1), hello(2))), "the same process may always come again");
    let first = parent.step(at(2), hello(1));
    assert!(denied(&first) && copied(&first), "the first one still runs: {first:?}");
    assert!(parent.is_copied(at(2), 12) && !parent.is_copied(at(62), 12));
    let second = parent.step(at(3), hello(1));
    assert!(denied(&second) && !copied(&second), "told of once");
    assert_eq!(parent.holder(at(3), 12), Some("n"), "nobody was pushed out");
    // The later one is gone: now the first one serves as well as any.
    parent.step(at(4), ParentEvent::Ended { session: 12 });
    assert!(granted(&parent.step(at(5), hello(1))));
    assert!(denied(&parent.step(at(6), hello(2))));
    assert!(granted(&parent.step(at(7), hello(3))), "a real restart");
}

#[test]
fn whoever_needs_the_parent_asks_for_a_heartbeat() {
    let (mut child, rng) = (Child::default(), &mut Rng::with_seed(1));
    let at = |ms: u64| Time::ZERO + Duration::from_millis(ms);
    assert_eq!(child.step(Time::ZERO, rng, ChildEvent::Urge), []);
    let _ = child.step(Time::ZERO, rng, ChildEvent::Start);
    let _ = child.step(Time::ZERO, rng, ChildEvent::Connected { conn: 1 });
    let granted = Granted { version: 1, session: 7, lease: Duration::ZERO, heartbeat: Duration::ZERO };
    let _ = child.step(Time::ZERO, rng, ChildEvent::Hello { conn: 1, result: Ok(granted) });
    // The first is on its way.
    assert_eq!(child.step(at(10), rng, ChildEvent::Urge), []);
    let beat = |sequence| ChildAction::Heartbeat { conn: 1, session: 7, sequence };
    assert_eq!(child.step(at(30), rng, ChildEvent::Urge), [beat(1)]);
    let ack = ChildEvent::Ack { conn: 1, sequence: 1, held: Duration::ZERO };
    assert_eq!(child.step(at(34), rng, ack), [ChildAction::Rtt(Duration::from_millis(4))]);
    assert_eq!(child.step(at(35), rng, ChildEvent::Urge), [beat(2)]);
    // The next of its own comes as long after that.
    assert_eq!(child.wake(), Some(at(35) + HEARTBEAT));
}
