//! Requests through an end, an edge and a cloud, with links cut, replies
//! lost, nodes crashed, engines failing and queues full.

use std::collections::BTreeMap;
use std::time::Duration;

use tierline_node::admit::{self, Class, Job, JobId, Limits, Priority, Queue};
use tierline_node::request::{Action, Event, Local, Op, Ran, Recovery, Request, RequestOutcome, Setup, Upstream};
use tierline_node::{Peer, Rng, Span, Time};
use tierline_proto::v1::{Degraded, degraded::Cause};
use tierline_proto::{Code, Failure};

use crate::harness::{Schedule, between, ms, seeds};

const PARENT: Peer = Peer(0);
const END: Time = Time::from_ns(60_000_000_000);
const LAST_ARRIVAL: Time = Time::from_ns(12_000_000_000);
/// A heartbeat lease: so long may a lost link go unnoticed.
const LEASE: Duration = ms(800);

/// What a schedule may do.
#[derive(Debug, Clone, Copy)]
struct Weather {
    faults: bool,
    /// Also let engines fail, at every node.
    engine_faults: bool,
    /// Requests per second and slots per node.
    rate: u64,
    slots: usize,
    /// Whether half of the models have exits.
    exits: bool,
}

type Key = u64;

/// Whom to answer: a request's op on the node below; `None` for the client.
type Caller = Option<(Key, Op)>;

#[derive(Debug)]
enum Ev {
    Arrive,
    Wake(usize, Key),
    RunDone(usize, JobId, bool),
    CallArrives { node: usize, key: Key, caller: (Key, Op), remaining: Duration, whole: bool },
    ReplyArrives { node: usize, key: Key, op: Op, result: Result<Option<Degraded>, Failure> },
    CancelArrives { node: usize, key: Key },
    Fault,
    Cut(usize),
    Noticed(usize, u32),
    Mend(usize),
    Crash(usize),
    Restart(usize),
}

struct Live {
    machine: Request,
    caller: Caller,
    /// This request on the node above.
    above: BTreeMap<Op, Key>,
    /// Ops that are the planned path.
    planned: Vec<Op>,
    /// Second copies, which are as good.
    copies: Vec<Op>,
    /// Those of the planned ones that end at an exit.
    judged: Vec<Op>,
    deadline: Time,
    /// Degraded answers that came from above, by op.
    came_degraded: BTreeMap<Op, bool>,
    /// Exits that were passed, and the verdict that ended the request.
    passed: u32,
    verdict: Option<(Op, Ran)>,
}

struct Node {
    queue: Queue,
    live: BTreeMap<Key, Live>,
    jobs: BTreeMap<JobId, (Key, Op, Duration)>,
    alive: bool,
    /// The link to the parent passes messages.
    link: bool,
    cuts: u32,
    /// The lease is held, as far as this node knows.
    leased: bool,
}

/// Whole-model times per tier, and where a request's plan cuts.
#[derive(Debug, Clone, Copy)]
struct Shape {
    whole: [Duration; 3],
    /// Share of the model done before leaving tier 0 and tier 1.
    cuts: [f64; 2],
    holds: [bool; 2],
    /// Whether each tier's part has exits inside and at its end.
    exits: bool,
}

struct World<'a> {
    rng: &'a mut Rng,
    weather: Weather,
    schedule: Schedule<Ev>,
    nodes: Vec<Node>,
    next: u64,
    shapes: BTreeMap<Key, Shape>,
    outcomes: BTreeMap<Key, (Time, RequestOutcome, bool)>,
    entered: Vec<(Key, Time, bool)>,
}

fn share(time: Duration, from: f64, to: f64) -> Duration {
    time.mul_f64((to - from).max(0.0))
}

impl<'a> World<'a> {
    fn new(rng: &'a mut Rng, weather: Weather) -> Self {
        let node = || Node {
            queue: Queue::new(Limits { slots: weather.slots, waiting: 8 }),
            live: BTreeMap::new(),
            jobs: BTreeMap::new(),
            alive: true,
            link: true,
            cuts: 0,
            leased: true,
        };
        Self {
            rng,
            weather,
            schedule: Schedule::new(),
            nodes: vec![node(), node(), node()],
            next: 1,
            shapes: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            entered: Vec::new(),
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Begins a request at `node`, at `from` of its model.
    fn begin(&mut self, node: usize, key: Key, shape: Shape, caller: Caller, deadline: Time, from: f64) {
        let now = self.schedule.now();
        let time = shape.whole[node];
        let until = if node < 2 { shape.cuts[node].max(from) } else { 1.0 };
        let span = |from: f64, to: f64| Span { first: (from * 100.0) as u32, last: (to * 100.0) as u32 };
        let steps = if shape.exits { 3 } else { 1 };
        let step = |at: u32| if at == steps { until } else { from + (until - from) * f64::from(at) / f64::from(steps) };
        let local = (0..steps).map(|s| (step(s), step(s + 1)));
        let local = local.map(|(from, to)| Local { span: span(from, to), predicted: share(time, from, to) });
        let local = if until > from { local.collect() } else { Vec::new() };
        let upstream = (until < 1.0).then(|| {
            let above: Duration = share(shape.whole[node + 1], until, 1.0);
            Upstream { peer: PARENT, predicted: above + ms(20), back: ms(5) }
        });
        let here = Recovery::Here(Local { span: span(until, 1.0), predicted: share(time, until, 1.0) });
        let holds = node == 2 || shape.holds[node];
        let recoveries = if holds && upstream.is_some() { vec![here] } else { vec![] };
        // One of three callers wants a second copy, after a while that is often too short.
        let hedge = (self.rng.u8(..3) == 0).then(|| between(self.rng, [ms(0), ms(100)]));
        let setup = Setup { node: format!("n{node}"), deadline, local, upstream, patience: None, hedge, recoveries };
        let down = if self.nodes[node].leased { vec![] } else { vec![(PARENT, "no lease".to_owned())] };
        let machine = Request::new(setup, down);
        let (above, came_degraded) = (BTreeMap::new(), BTreeMap::new());
        let live = Live {
            machine,
            caller,
            above,
            planned: vec![],
            copies: vec![],
            judged: vec![],
            deadline,
            came_degraded,
            passed: 0,
            verdict: None,
        };
        self.shapes.insert(key, shape);
        self.nodes[node].live.insert(key, live);
        assert!(now <= deadline);
        self.event(node, key, Event::Start);
    }

    fn event(&mut self, node: usize, key: Key, event: Event) {
        let now = self.schedule.now();
        let Some(live) = self.nodes[node].live.get_mut(&key) else { return };
        if let Event::CallDone { op, result: Ok(degraded) } = &event {
            live.came_degraded.insert(*op, degraded.is_some());
        }
        let cancelled = event == Event::Cancel;
        let actions = live.machine.step(now, event);
        live.copies = live.machine.second().into_iter().collect();
        // One that has ended while its end is still being performed stays until then.
        let ends = cancelled || actions.iter().any(|action| matches!(action, Action::Finish(_)));
        for action in actions {
            self.perform(node, key, action);
        }
        let Some(live) = self.nodes[node].live.get(&key) else { return };
        assert!(now < live.deadline || live.machine.is_done(), "still going at its deadline");
        match live.machine.wake() {
            Some(wake) => self.schedule.at(wake, Ev::Wake(node, key)),
            None if ends => drop(self.nodes[node].live.remove(&key)),
            None => {}
        }
    }

    fn perform(&mut self, node: usize, key: Key, action: Action) {
        let now = self.schedule.now();
        let shape = self.shapes[&key];
        match action {
            Action::Run { op, span, recovery, deadline } => {
                let service = share(shape.whole[node], f64::from(span.first) / 100.0, f64::from(span.last) / 100.0);
                let id = JobId(self.fresh());
                let actual = service.mul_f64(0.5 + 0.8 * self.rng.f64());
                self.nodes[node].jobs.insert(id, (key, op, actual));
                let of_plan = |live: &&mut Live| !recovery && !live.copies.contains(&op);
                if let Some(live) = self.nodes[node].live.get_mut(&key).filter(of_plan) {
                    live.planned.push(op);
                    // Where the outputs are, nothing is left to judge.
                    live.judged.extend((span.last < 100).then_some(op));
                }
                let class = if recovery { Class::Recovery } else { Class::Interactive };
                let (caller, service) = (admit::Caller(0), service.mul_f64(0.99));
                let job = Job {
                    id,
                    caller,
                    class,
                    priority: Priority::NONE,
                    deadline,
                    service,
                    after: Duration::ZERO,
                    batch: None,
                };
                self.queue(node, admit::Event::Submit(job));
            }
            Action::Call { op, whole, remaining, .. } => {
                let above = self.fresh();
                let live = self.nodes[node].live.get_mut(&key).expect("alive while it acts");
                live.above.insert(op, above);
                if !whole {
                    live.planned.push(op);
                }
                // What is sent into a cut link is lost.
                if self.nodes[node].link && self.nodes[node + 1].alive {
                    let delay = between(self.rng, [ms(1), ms(8)]);
                    let caller = (key, op);
                    let event = Ev::CallArrives { node: node + 1, key: above, caller, remaining, whole };
                    self.schedule.after(delay, event);
                }
            }
            Action::Abandon { op } => {
                let job = self.nodes[node].jobs.iter().find(|(_, (of, run, _))| (*of, *run) == (key, op));
                if let Some(id) = job.map(|(id, _)| *id) {
                    self.queue(node, admit::Event::Cancel(id));
                }
                let above = self.nodes[node].live.get(&key).and_then(|live| live.above.get(&op)).copied();
                if let Some(above) = above.filter(|_| self.nodes[node].link) {
                    self.schedule.after(ms(3), Ev::CancelArrives { node: node + 1, key: above });
                }
            }
            Action::Finish(outcome) => {
                let live = &self.nodes[node].live[&key];
                let planned = match &outcome {
                    RequestOutcome::Answer { op, degraded } => {
                        let planned = live.planned.contains(op);
                        let came = live.came_degraded.get(op).copied().unwrap_or(false);
                        // An exit's answer is the planned one where it was sure.
                        let kept = match live.verdict {
                            Some((at, Ran::Sure)) if at == *op => false,
                            Some((at, _)) if at == *op => true,
                            _ => false,
                        };
                        let copy = live.copies.contains(op);
                        // What went wrong with the first explains a second copy's answer as well.
                        let fits = degraded.is_some() == (!planned || came || kept) || (copy && !came);
                        assert!(fits, "degraded iff not the planned way");
                        (planned || copy) && !kept
                    }
                    RequestOutcome::Failed(failure) => {
                        assert_eq!(live.passed, 0, "an answer was at hand: {failure}");
                        false
                    }
                };
                assert!(now <= live.deadline);
                match live.caller {
                    None => {
                        let before = self.outcomes.insert(key, (now, outcome, planned));
                        assert!(before.is_none(), "answered twice");
                    }
                    Some((below, op)) => {
                        // A reply on a link that is cut is lost.
                        if !self.nodes[node - 1].link {
                            return;
                        }
                        let result = match outcome {
                            RequestOutcome::Answer { degraded, .. } => Ok(degraded),
                            RequestOutcome::Failed(failure) => Err(failure),
                        };
                        let delay = between(self.rng, [ms(1), ms(8)]);
                        self.schedule.after(delay, Ev::ReplyArrives { node: node - 1, key: below, op, result });
                    }
                }
            }
        }
    }

    fn queue(&mut self, node: usize, event: admit::Event) {
        let now = self.schedule.now();
        for action in self.nodes[node].queue.step(now, event) {
            match action {
                admit::Action::Start(id) => {
                    let fails = self.weather.engine_faults && self.rng.u8(..10) == 0;
                    let actual = self.nodes[node].jobs[&id].2;
                    self.schedule.after(actual, Ev::RunDone(node, id, fails));
                }
                admit::Action::Join(_) | admit::Action::Try(..) => unreachable!("nothing here runs with others"),
                admit::Action::Refuse(id, refusal) => {
                    if let Some((key, op, _)) = self.nodes[node].jobs.remove(&id) {
                        let failure = Failure::new(Code::Overloaded, refusal.to_string());
                        self.event(node, key, Event::RunDone { op, result: Err(failure) });
                    }
                }
            }
        }
    }

    fn arrive(&mut self) {
        let now = self.schedule.now();
        let whole = between(self.rng, [ms(20), ms(200)]);
        let first = [0.0, 0.0, 0.3, 0.6, 1.0][self.rng.usize(..5)];
        let second = [first, f64::max(first, 0.8), 1.0][self.rng.usize(..3)];
        let shape = Shape {
            whole: [whole, whole / 4, whole / 16],
            cuts: [first, second],
            holds: [self.rng.u8(..4) != 0, self.rng.bool()],
            exits: self.weather.exits && self.rng.bool(),
        };
        // The planned part, then a recovery of the rest, fit with room.
        let deadline = now + whole.mul_f64(1.9) + ms(30) + between(self.rng, [ms(0), ms(2_000)]);
        let key = self.fresh();
        self.entered.push((key, deadline, shape.holds[0] || first >= 1.0));
        self.begin(0, key, shape, None, deadline, 0.0);
        if now < LAST_ARRIVAL {
            let gap = Duration::from_secs(1) / self.weather.rate as u32;
            let pause = between(self.rng, [Duration::ZERO, gap * 2]);
            self.schedule.after(pause, Ev::Arrive);
        }
    }

    fn fault(&mut self) {
        let pause = between(self.rng, [ms(20), ms(3_000)]);
        let at = self.rng.usize(..2);
        match self.rng.u8(..4) {
            0 | 1 => {
                self.schedule.after(ms(0), Ev::Cut(at));
                self.schedule.after(pause, Ev::Mend(at));
            }
            2 => {
                self.schedule.after(ms(0), Ev::Crash(at + 1));
                self.schedule.after(pause, Ev::Restart(at + 1));
            }
            _ => {}
        }
        if self.schedule.now() < LAST_ARRIVAL {
            let next = between(self.rng, [ms(100), ms(3_000)]);
            self.schedule.after(next, Ev::Fault);
        }
    }

    /// The child learns of it at once (a reset) or when its lease ends.
    fn cut(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.link = false;
        node.cuts += 1;
        let notice = if self.rng.bool() { ms(1) } else { LEASE };
        self.schedule.after(notice, Ev::Noticed(at, node.cuts));
    }

    fn tell_all(&mut self, node: usize, event: &Event) {
        let keys: Vec<Key> = self.nodes[node].live.keys().copied().collect();
        keys.into_iter().for_each(|key| self.event(node, key, event.clone()));
    }

    fn step(&mut self, event: Ev) {
        let now = self.schedule.now();
        match event {
            Ev::Arrive => self.arrive(),
            Ev::Wake(node, key) => self.event(node, key, Event::Wake),
            Ev::RunDone(node, id, fails) => {
                let Some((key, op, _)) = self.nodes[node].jobs.remove(&id) else { return };
                self.queue(node, admit::Event::Done(id));
                let result = if fails {
                    Err(Failure::new(Code::Engine, "the engine failed"))
                } else {
                    Ok(self.judge(node, key, op))
                };
                self.event(node, key, Event::RunDone { op, result });
            }
            Ev::CallArrives { node, key, caller, remaining, whole } => {
                let Some(mut shape) = self.shapes.get(&caller.0).copied() else { return };
                if !self.nodes[node].alive || !self.nodes[node - 1].link {
                    return;
                }
                let from = if whole { 0.0 } else { shape.cuts[node - 1] };
                if whole {
                    shape.cuts[node.min(1)] = 1.0;
                }
                self.begin(node, key, shape, Some(caller), now + remaining, from);
            }
            Ev::ReplyArrives { node, key, op, result } => {
                if self.nodes[node].link {
                    self.event(node, key, Event::CallDone { op, result });
                }
            }
            Ev::CancelArrives { node, key } => self.event(node, key, Event::Cancel),
            Ev::Fault => self.fault(),
            Ev::Cut(at) => self.cut(at),
            Ev::Noticed(at, cuts) => {
                if self.nodes[at].cuts == cuts && !self.nodes[at].link {
                    self.nodes[at].leased = false;
                    self.tell_all(at, &Event::PeerDown { peer: PARENT, reason: "the lease is lost".into() });
                }
            }
            Ev::Mend(at) => {
                if self.nodes[at + 1].alive {
                    // A connection never survives: what was out is lost.
                    self.tell_all(at, &Event::PeerDown { peer: PARENT, reason: "reconnected".into() });
                    self.nodes[at].link = true;
                    self.nodes[at].leased = true;
                    self.tell_all(at, &Event::PeerUp { peer: PARENT });
                }
            }
            Ev::Crash(at) => {
                let node = &mut self.nodes[at];
                node.alive = false;
                node.live.clear();
                node.jobs.clear();
                node.queue = Queue::new(Limits { slots: self.weather.slots, waiting: 8 });
                self.cut(at - 1);
            }
            Ev::Restart(at) => {
                self.nodes[at].alive = true;
                self.schedule.after(ms(5), Ev::Mend(at - 1));
            }
        }
    }

    /// What the exit behind a planned run says.
    fn judge(&mut self, node: usize, key: Key, op: Op) -> Ran {
        let exits = self.shapes.get(&key).is_some_and(|shape| shape.exits);
        let live = self.nodes[node].live.get_mut(&key).filter(|live| exits && live.judged.contains(&op));
        let Some(live) = live else { return Ran::On };
        let ran = match self.rng.u8(..20) {
            0..3 => Ran::Sure,
            3 => Ran::Capped,
            4 => return Ran::On,
            _ => Ran::Unsure,
        };
        live.verdict = Some((op, ran));
        live.passed += u32::from(ran == Ran::Unsure);
        ran
    }

    fn run(mut self) -> Vec<(RequestOutcome, bool, bool)> {
        self.schedule.after(ms(0), Ev::Arrive);
        if self.weather.faults {
            self.schedule.after(ms(50), Ev::Fault);
        }
        while let Some(event) = self.schedule.next(END) {
            self.step(event);
        }
        for (at, node) in self.nodes.iter().enumerate() {
            assert!(node.live.is_empty(), "requests left on node {at}");
            assert_eq!(node.queue.depth(), (0, 0), "jobs left on node {at}");
        }
        let mut ended = Vec::new();
        for (key, deadline, holds) in self.entered {
            let (at, outcome, planned) = self.outcomes.remove(&key).expect("every request is answered");
            assert!(at <= deadline);
            ended.push((outcome, planned, holds));
        }
        ended
    }
}

#[test]
fn without_faults_every_answer_is_the_planned_one() {
    let weather = Weather { faults: false, engine_faults: false, rate: 4, slots: 64, exits: false };
    seeds(300, |rng| {
        for (outcome, planned, _) in World::new(rng, weather).run() {
            assert!(matches!(outcome, RequestOutcome::Answer { .. }) && planned, "{outcome:?}");
        }
    });
}

#[test]
fn an_end_that_holds_the_model_answers_whatever_happens_above() {
    let weather = Weather { faults: true, engine_faults: false, rate: 10, slots: 64, exits: false };
    let (degraded, failed) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    seeds(1_200, |rng| {
        for (outcome, _, holds) in World::new(rng, weather).run() {
            match outcome {
                RequestOutcome::Answer { degraded: Some(why), .. } => {
                    degraded.set(degraded.get() + 1);
                    assert!(why.cause() != Cause::Unspecified && !why.reason.is_empty() && !why.node.is_empty());
                }
                RequestOutcome::Answer { .. } => {}
                RequestOutcome::Failed(failure) => {
                    failed.set(failed.get() + 1);
                    assert!(!holds, "{failure}");
                    assert!(matches!(failure.code(), Code::Unreachable | Code::DeadlineExceeded), "{failure}");
                    assert!(!failure.node.is_empty());
                }
            }
        }
    });
    // The schedules do reach both.
    assert!(degraded.get() > 500 && failed.get() > 50, "{degraded:?} {failed:?}");
}

#[test]
fn full_queues_and_failing_engines_still_end_every_request_once_and_in_time() {
    let weather = Weather { faults: true, engine_faults: true, rate: 40, slots: 1, exits: false };
    let codes = std::cell::RefCell::new(BTreeMap::<Code, u32>::new());
    seeds(1_200, |rng| {
        for (outcome, ..) in World::new(rng, weather).run() {
            if let RequestOutcome::Failed(failure) = outcome {
                *codes.borrow_mut().entry(failure.code()).or_default() += 1;
            }
        }
    });
    let codes: Vec<Code> = codes.into_inner().into_keys().collect();
    for code in [Code::Overloaded, Code::Engine, Code::Unreachable, Code::DeadlineExceeded] {
        assert!(codes.contains(&code), "{codes:?}");
    }
}

#[test]
fn a_request_that_has_passed_an_exit_is_always_answered() {
    let causes = std::cell::RefCell::new(BTreeMap::<Cause, u32>::new());
    for (rate, slots, engine_faults) in [(10, 64, false), (40, 1, true)] {
        let weather = Weather { faults: true, engine_faults, rate, slots, exits: true };
        seeds(1_000, |rng| {
            for (outcome, ..) in World::new(rng, weather).run() {
                if let RequestOutcome::Answer { degraded: Some(degraded), .. } = outcome {
                    *causes.borrow_mut().entry(degraded.cause()).or_default() += 1;
                }
            }
        });
    }
    let causes: Vec<Cause> = causes.into_inner().into_keys().collect();
    for cause in [Cause::DeepBudget, Cause::Deadline, Cause::LinkDown, Cause::LocalFailure] {
        assert!(causes.contains(&cause), "{causes:?}");
    }
}

/// Two steps here with an exit behind each, then the call.
fn with_exits(recoveries: Vec<Recovery>) -> Request {
    let step = |first, last| Local { span: Span { first, last }, predicted: ms(10) };
    let local = vec![step(0, 1), step(1, 2)];
    Request::new(Setup { local, ..setup(recoveries) }, vec![])
}

#[test]
fn an_exit_that_is_sure_ends_the_request_and_one_that_is_not_is_kept() {
    let at = |t: u64| Time::ZERO + ms(t);
    let ran = |op, ran| Event::RunDone { op: Op(op), result: Ok(ran) };
    let answer = |actions: &[Action]| match actions.last() {
        Some(Action::Finish(RequestOutcome::Answer { op, degraded })) => (op.0, degraded.as_ref().map(Degraded::cause)),
        _ => panic!("{actions:?}"),
    };
    let mut request = with_exits(vec![]);
    let _ = request.step(at(0), Event::Start);
    assert_eq!(answer(&request.step(at(10), ran(0, Ran::Sure))), (0, None));
    // Not sure: the next step, and then the call; when that fails, the deepest exit's answer at once.
    let mut request = with_exits(vec![]);
    let _ = request.step(at(0), Event::Start);
    let actions = request.step(at(10), ran(0, Ran::Unsure));
    assert!(matches!(actions[..], [Action::Run { op: Op(1), span: Span { first: 1, last: 2 }, .. }]), "{actions:?}");
    let actions = request.step(at(20), ran(1, Ran::Unsure));
    assert!(matches!(actions[..], [Action::Call { op: Op(2), .. }]), "{actions:?}");
    let lost = Event::PeerDown { peer: PARENT, reason: "cut".into() };
    assert_eq!(answer(&request.step(at(30), lost)), (1, Some(Cause::LinkDown)));
    // The caller may go no deeper.
    let mut request = with_exits(vec![HERE]);
    let _ = request.step(at(0), Event::Start);
    assert_eq!(answer(&request.step(at(10), ran(0, Ran::Capped))), (0, Some(Cause::DeepBudget)));
    // Nothing comes: in time for the answer to get out.
    let mut request = with_exits(vec![]);
    let _ = request.step(at(0), Event::Start);
    let _ = request.step(at(10), ran(0, Ran::Unsure));
    assert_eq!(request.wake(), Some(at(195)));
    assert_eq!(answer(&request.step(at(195), Event::Wake)), (0, Some(Cause::Deadline)));
    // With a way to recover the rest, that is tried first.
    let mut request = with_exits(vec![HERE]);
    let _ = request.step(at(0), Event::Start);
    let _ = request.step(at(10), ran(0, Ran::Unsure));
    let _ = request.step(at(20), ran(1, Ran::Unsure));
    let failed = Event::CallDone { op: Op(2), result: Err(Failure::new(Code::Draining, "going down")) };
    let actions = request.step(at(30), failed);
    assert!(matches!(actions[..], [Action::Run { op: Op(3), recovery: true, .. }]), "{actions:?}");
    let broken = Event::RunDone { op: Op(3), result: Err(Failure::new(Code::Engine, "broken")) };
    assert_eq!(answer(&request.step(at(60), broken)), (1, Some(Cause::UpstreamOverloaded)));
}

fn setup(recoveries: Vec<Recovery>) -> Setup {
    let local = Local { span: Span { first: 0, last: 2 }, predicted: ms(10) };
    let upstream = Upstream { peer: PARENT, predicted: ms(30), back: ms(5) };
    let deadline = Time::ZERO + ms(200);
    let (local, upstream) = (vec![local], Some(upstream));
    Setup { node: "end".into(), deadline, local, upstream, patience: None, hedge: None, recoveries }
}

const HERE: Recovery = Recovery::Here(Local { span: Span { first: 2, last: 9 }, predicted: ms(40) });

/// Runs the planned segments; the call is then out.
fn called(recoveries: Vec<Recovery>) -> Request {
    let mut request = Request::new(setup(recoveries), vec![]);
    assert!(matches!(request.step(Time::ZERO, Event::Start)[..], [Action::Run { op: Op(0), recovery: false, .. }]));
    let actions = request.step(Time::ZERO + ms(10), Event::RunDone { op: Op(0), result: Ok(Ran::On) });
    let remaining = ms(185);
    assert_eq!(actions, [Action::Call { op: Op(1), peer: PARENT, remaining, whole: false }]);
    request
}

#[test]
fn a_recovery_starts_beside_a_late_call_and_the_first_answer_wins() {
    // 40 ms predicted, reserved half as much again and 5 ms: 65 of 200.
    let hedge = Time::ZERO + ms(135);
    for call_first in [true, false] {
        let mut request = called(vec![HERE]);
        assert_eq!(request.wake(), Some(hedge));
        let actions = request.step(hedge, Event::Wake);
        assert!(matches!(
            actions[..],
            [Action::Run { op: Op(2), recovery: true, span: Span { first: 2, last: 9 }, .. }]
        ));
        let (event, loser) = if call_first {
            (Event::CallDone { op: Op(1), result: Ok(None) }, Op(2))
        } else {
            (Event::RunDone { op: Op(2), result: Ok(Ran::On) }, Op(1))
        };
        let actions = request.step(hedge + ms(20), event);
        let [Action::Abandon { op }, Action::Finish(RequestOutcome::Answer { op: winner, degraded })] = &actions[..]
        else {
            panic!("{actions:?}")
        };
        assert_eq!((*op, *winner == Op(1)), (loser, call_first));
        let cause = degraded.as_ref().map(Degraded::cause);
        assert_eq!(cause, (!call_first).then_some(Cause::UpstreamTimeout));
        // Nothing follows.
        assert_eq!(request.step(hedge + ms(30), Event::CallDone { op: Op(1), result: Ok(None) }), []);
        assert_eq!(request.wake(), None);
    }
}

/// With a second copy wanted 50 ms after the beginning; the call is out.
fn hedged(recoveries: Vec<Recovery>) -> Request {
    let mut request = Request::new(Setup { hedge: Some(ms(50)), ..setup(recoveries) }, vec![]);
    let _ = request.step(Time::ZERO, Event::Start);
    let actions = request.step(Time::ZERO + ms(10), Event::RunDone { op: Op(0), result: Ok(Ran::On) });
    assert!(matches!(actions[..], [Action::Call { op: Op(1), whole: false, .. }]), "{actions:?}");
    request
}

#[test]
fn a_second_copy_goes_the_soonest_other_way_and_the_first_answer_wins_undegraded() {
    let at = |t: u64| Time::ZERO + ms(t);
    let above = |predicted| Recovery::Above(Upstream { peer: Peer(1), predicted, back: ms(5) });
    for copy_first in [true, false] {
        let mut request = hedged(vec![HERE, above(ms(25))]);
        assert_eq!((request.wake(), request.second()), (Some(at(50)), None));
        assert_eq!(request.step(at(49), Event::Wake), [], "not yet");
        let actions = request.step(at(50), Event::Wake);
        let copy = Action::Call { op: Op(2), peer: Peer(1), remaining: ms(145), whole: true };
        assert_eq!((&actions[..], request.second()), (&[copy][..], Some(Op(2))));
        let (first, other) = if copy_first { (Op(2), Op(1)) } else { (Op(1), Op(2)) };
        let actions = request.step(at(60), Event::CallDone { op: first, result: Ok(None) });
        let answer = RequestOutcome::Answer { op: first, degraded: None };
        assert_eq!(actions, [Action::Abandon { op: other }, Action::Finish(answer)]);
    }
    // Here, where that is sooner; it doesn't go first in the queue.
    let mut request = hedged(vec![HERE, above(ms(60))]);
    let actions = request.step(at(50), Event::Wake);
    assert!(matches!(actions[..], [Action::Run { op: Op(2), recovery: false, .. }]), "{actions:?}");
    let actions = request.step(at(90), Event::RunDone { op: Op(2), result: Ok(Ran::On) });
    let answer = RequestOutcome::Answer { op: Op(2), degraded: None };
    assert_eq!(actions, [Action::Abandon { op: Op(1) }, Action::Finish(answer)]);
}

#[test]
fn a_second_copy_takes_nothing_from_what_a_request_does_in_trouble() {
    let at = |t: u64| Time::ZERO + ms(t);
    let above = Recovery::Above(Upstream { peer: Peer(1), predicted: ms(25), back: ms(5) });
    let failed = |op| Event::CallDone { op: Op(op), result: Err(Failure::new(Code::Draining, "going down")) };
    // The first fails: the copy is waited for, and its answer says why.
    let mut request = hedged(vec![above]);
    let _ = request.step(at(50), Event::Wake);
    assert_eq!(request.step(at(60), failed(1)), []);
    let actions = request.step(at(70), Event::CallDone { op: Op(2), result: Ok(None) });
    let [Action::Finish(RequestOutcome::Answer { degraded: Some(degraded), .. })] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(degraded.cause(), Cause::UpstreamOverloaded);
    // The copy fails: the first goes on, and is as planned.
    let mut request = hedged(vec![above]);
    let _ = request.step(at(50), Event::Wake);
    assert_eq!(request.step(at(60), failed(2)), []);
    let actions = request.step(at(70), Event::CallDone { op: Op(1), result: Ok(None) });
    assert_eq!(actions, [Action::Finish(RequestOutcome::Answer { op: Op(1), degraded: None })]);
    // Both do: what is left is tried.
    let mut request = hedged(vec![HERE, above]);
    let _ = request.step(at(50), Event::Wake);
    let _ = request.step(at(60), failed(2));
    let actions = request.step(at(70), failed(1));
    assert!(matches!(actions[..], [Action::Run { op: Op(3), recovery: true, .. }]), "{actions:?}");
    // No other way, or none in time: no copy. One that is out already is enough.
    assert_eq!(hedged(vec![]).step(at(50), Event::Wake), []);
    let slow = Recovery::Above(Upstream { peer: Peer(1), predicted: ms(500), back: ms(5) });
    assert_eq!(hedged(vec![slow]).step(at(50), Event::Wake), []);
    let mut request = hedged(vec![HERE, above]);
    let _ = request.step(at(20), Event::Silent { peer: PARENT, reason: "silent".into() });
    assert_eq!(request.step(at(50), Event::Wake), []);
    assert_eq!(request.second(), None);
    // An answer before that time needs none.
    let mut request = hedged(vec![above]);
    let _ = request.step(at(30), Event::CallDone { op: Op(1), result: Ok(None) });
    assert_eq!((request.step(at(50), Event::Wake), request.second()), (vec![], None));
}

#[test]
fn a_silent_next_tier_is_not_waited_for() {
    let silent = || Event::Silent { peer: PARENT, reason: "edge has shown no sign of life".into() };
    let at = |t: u64| Time::ZERO + ms(t);
    // With the call out: at once, and the call may still win.
    let mut request = called(vec![HERE]);
    let actions = request.step(at(20), silent());
    assert!(matches!(actions[..], [Action::Run { op: Op(2), recovery: true, .. }]), "{actions:?}");
    assert_eq!(request.step(at(21), silent()), [], "once");
    let actions = request.step(at(60), Event::RunDone { op: Op(2), result: Ok(Ran::On) });
    let [Action::Abandon { op: Op(1) }, Action::Finish(RequestOutcome::Answer { degraded: Some(degraded), .. })] =
        &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!((degraded.cause(), degraded.reason.contains("no sign of life")), (Cause::LinkDown, true));
    // Before it: together with the call.
    let mut request = Request::new(setup(vec![HERE]), vec![]);
    let _ = request.step(Time::ZERO, Event::Start);
    assert_eq!(request.step(at(5), silent()), []);
    let actions = request.step(at(10), Event::RunDone { op: Op(0), result: Ok(Ran::On) });
    assert!(
        matches!(actions[..], [Action::Call { op: Op(1), .. }, Action::Run { op: Op(2), recovery: true, .. }]),
        "{actions:?}"
    );
    let actions = request.step(at(30), Event::CallDone { op: Op(1), result: Ok(None) });
    assert!(
        matches!(
            actions[..],
            [Action::Abandon { op: Op(2) }, Action::Finish(RequestOutcome::Answer { degraded: None, .. })]
        ),
        "{actions:?}"
    );
    // Another parent's silence is of no concern, and nor is one without a way around.
    let other = || Event::Silent { peer: Peer(1), reason: "silent".into() };
    assert_eq!(called(vec![HERE]).step(at(20), other()), []);
    assert_eq!(called(vec![]).step(at(20), silent()), []);
}

#[test]
fn the_nearest_way_that_is_open_and_in_time_is_taken() {
    let other = Upstream { peer: Peer(1), predicted: ms(60), back: ms(5) };
    let failed = || Event::CallDone { op: Op(1), result: Err(Failure::new(Code::Draining, "going down")) };
    let at = |t: u64| Time::ZERO + ms(t);
    // At once on a failure, not at the reserve.
    let actions = called(vec![HERE, Recovery::Above(other)]).step(at(20), failed());
    assert!(matches!(actions[..], [Action::Run { op: Op(2), recovery: true, .. }]));
    // Without room here: the other parent, with all of the model.
    let slow = Recovery::Here(Local { span: Span { first: 2, last: 9 }, predicted: ms(500) });
    let mut request = called(vec![slow, Recovery::Above(other)]);
    let actions = request.step(at(20), failed());
    assert_eq!(actions, [Action::Call { op: Op(2), peer: Peer(1), remaining: ms(175), whole: true }]);
    // And when that one is lost as well, nothing is left.
    let actions = request.step(at(30), Event::PeerDown { peer: Peer(1), reason: "lost".into() });
    let [Action::Abandon { op: Op(2) }, Action::Finish(RequestOutcome::Failed(failure))] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(failure.code(), Code::Unreachable);
    insta::assert_snapshot!(failure, @"end: lost, and no other way is left in time (first: going down)");
    // Nowhere to go from the start.
    let actions = called(vec![]).step(at(20), failed());
    let [Action::Finish(RequestOutcome::Failed(failure))] = &actions[..] else { panic!("{actions:?}") };
    insta::assert_snapshot!(failure, @"end: going down, and no nearer node can hold the model");
    // By the deadline.
    let actions = called(vec![]).step(at(200), Event::Wake);
    let [Action::Abandon { .. }, Action::Finish(RequestOutcome::Failed(failure))] = &actions[..] else {
        panic!("{actions:?}")
    };
    insta::assert_snapshot!(failure, @"end: no answer by the deadline; allow more time, or see `tierline explain`");
}

#[test]
fn a_lost_lease_is_not_called_and_a_cancelled_request_says_nothing() {
    let mut request = Request::new(setup(vec![HERE]), vec![(PARENT, "the link is down".into())]);
    let _ = request.step(Time::ZERO, Event::Start);
    let actions = request.step(Time::ZERO + ms(9), Event::RunDone { op: Op(0), result: Ok(Ran::On) });
    assert!(matches!(actions[..], [Action::Run { op: Op(1), recovery: true, .. }]));
    let actions = request.step(Time::ZERO + ms(50), Event::RunDone { op: Op(1), result: Ok(Ran::On) });
    let [Action::Finish(RequestOutcome::Answer { degraded: Some(degraded), .. })] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((degraded.cause(), degraded.node.as_str()), (Cause::LinkDown, "end"));
    let mut request = called(vec![HERE]);
    assert_eq!(request.step(Time::ZERO + ms(20), Event::Cancel), [Action::Abandon { op: Op(1) }]);
    assert!(request.is_done());
}

#[test]
fn what_is_wrong_in_itself_goes_nowhere_else() {
    let other = Recovery::Above(Upstream { peer: Peer(1), predicted: ms(60), back: ms(5) });
    let failed = |code| Event::CallDone { op: Op(1), result: Err(Failure::new(code, "no")) };
    let at = Time::ZERO + ms(20);
    // The tensors don't fit: final, whoever says it, and whatever is still out.
    let actions = called(vec![HERE, other]).step(at, failed(Code::InvalidInput));
    let [Action::Finish(RequestOutcome::Failed(failure))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(failure.code(), Code::InvalidInput);
    let mut request = called(vec![HERE]);
    let hedge = Time::ZERO + ms(135);
    let _ = request.step(hedge, Event::Wake);
    let result = Err(Failure::new(Code::InvalidInput, "no"));
    let actions = request.step(hedge + ms(1), Event::RunDone { op: Op(2), result });
    assert!(
        matches!(actions[..], [Action::Abandon { op: Op(1) }, Action::Finish(RequestOutcome::Failed(_))]),
        "{actions:?}"
    );
    // A model unknown above is run here, and asked of no other parent.
    let actions = called(vec![other, HERE]).step(at, failed(Code::UnknownModel));
    assert!(matches!(actions[..], [Action::Run { op: Op(2), recovery: true, .. }]), "{actions:?}");
    let actions = called(vec![other]).step(at, failed(Code::UnknownModel));
    assert!(matches!(actions[..], [Action::Finish(RequestOutcome::Failed(_))]), "{actions:?}");
}
