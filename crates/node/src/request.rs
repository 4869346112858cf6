//! The path of one request through one node, entry or relay.
//!
//! The node runs its own segments, hands the frontier to the next tier with
//! what is left of the deadline, waits, and passes the answer back. When the
//! next tier fails, is late or is lost, the rest of the model runs on the
//! nearest node that can hold it: usually here. Such an answer is `degraded`
//! and says why; when no node can, the request ends with a typed failure.
//!
//! Time for that is reserved from the start: when only as much time is left
//! as the recovery is expected to take, it starts although the call is still
//! out, and whichever answers first wins. A call that would have been in time
//! is therefore never thrown away, and one that hangs costs no deadline.
//!
//! A next tier that shows no sign of life is not waited for either: a recovery
//! starts beside the call, or with it where the silence began before.
//!
//! A caller may ask for a second copy: where the next tier takes longer than it
//! usually does, the request is sent to another one as well, or run here,
//! whichever is expected sooner. Nothing has gone wrong then, and the answer
//! isn't degraded, whoever gives it first.
//!
//! Where the model has early exits, the node's own segments run in steps, and
//! the shell judges each exit's answer. One that is sure enough ends the
//! request. One that isn't is kept: it is the answer when going on fails, when
//! the caller may go no deeper, or when no time is left; so a request that has
//! passed an exit is always answered.
//!
//! A request that is wrong in itself (tensors that don't fit the model) fails
//! at once, whoever says so: no other node would answer it.
//!
//! Pure, one machine per request; tensors stay in the shell, which keeps the
//! request's inputs and its frontier until the machine is done.
//! Start at [`Setup`], then [`Request::step`].

use std::collections::BTreeSet;
use std::time::Duration;

use tierline_proto::v1::{Degraded, degraded::Cause};
use tierline_proto::{Code, Failure};

use crate::time::{Time, seconds};
use crate::{Peer, Span};

/// A recovery is given this many times its predicted duration: predictions
/// are medians, and a session may be cold.
pub const RESERVE_FACTOR: f64 = 1.5;

/// Reserved on top, for queueing and for the way back.
pub const RESERVE_SLACK: Duration = Duration::from_millis(5);

/// Why a caller gets an exit's answer that isn't sure.
pub const DEEP_BUDGET_SPENT: &str = "the caller has used up its budget of inferences that go deeper";

/// Ways to recover that a request may carry.
pub const RECOVERIES_MAX: usize = 8;

/// What the node knows about a request when it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// This node's name, for degraded answers and failures.
    pub node: String,
    /// When it must be answered.
    pub deadline: Time,
    /// Segments to run here first, one step after the other: each but the last
    /// ends where an exit is judged. None relays the tensors as they came.
    pub local: Vec<Local>,
    /// Who runs the rest; `None` when `local` reaches the outputs.
    pub upstream: Option<Upstream>,
    /// Longest wait for the next tier before a recovery starts beside it;
    /// `None` waits until the reserve is reached.
    pub patience: Option<Duration>,
    /// Time from the beginning after which a second copy goes another way, where
    /// the caller asked for one.
    pub hedge: Option<Duration>,
    /// Ways to answer without the planned next tier, nearest first; at most
    /// [`RECOVERIES_MAX`].
    pub recoveries: Vec<Recovery>,
}

/// Work on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Segments.
    pub span: Span,
    /// Expected time: decode, queue, compute, encode.
    pub predicted: Duration,
}

/// A call to another tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upstream {
    /// Whom to call.
    pub peer: Peer,
    /// Expected time until the whole answer is here.
    pub predicted: Duration,
    /// The part of it that the answer is on its way back; not given to the
    /// tier above.
    pub back: Duration,
}

/// A way to answer when the planned one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Run these segments here; they start at the inputs or at the frontier,
    /// both of which the shell still has, and end at the outputs.
    Here(Local),
    /// Send the tensors as they came to a parent, which runs everything
    /// after them (the whole model, at an entry node).
    Above(Upstream),
}

/// Names one run or call of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op(pub u32);

/// What a run of segments came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// Nothing to judge: the tensors are at hand.
    On,
    /// An exit's answer, sure enough.
    Sure,
    /// An exit's answer, to be kept while the request goes on.
    Unsure,
    /// An exit's answer, not sure enough; but the caller may go no deeper.
    Capped,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Begin.
    Start,
    /// A run ended.
    RunDone {
        /// Which.
        op: Op,
        /// How. A refusal by the queue is a failure too.
        result: Result<Ran, Failure>,
    },
    /// A call was answered: all tensors are here and decoded.
    CallDone {
        /// Which.
        op: Op,
        /// `Ok(Some(..))`: an answer, but a degraded one.
        result: Result<Option<Degraded>, Failure>,
    },
    /// The lease with a parent is lost.
    PeerDown {
        /// Which parent.
        peer: Peer,
        /// Why, for people.
        reason: String,
    },
    /// A parent shows no sign of life, though its lease isn't lost yet.
    Silent {
        /// Which parent.
        peer: Peer,
        /// What was waited for, for people.
        reason: String,
    },
    /// It is held again.
    PeerUp {
        /// Which parent.
        peer: Peer,
    },
    /// The caller went away.
    Cancel,
    /// The time [`Request::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run segments here, report `RunDone`.
    Run {
        /// Its name.
        op: Op,
        /// Segments; tensors at `span.first` are at hand.
        span: Span,
        /// Goes first in the queue.
        recovery: bool,
        /// When its result must be there.
        deadline: Time,
    },
    /// Call a parent, report `CallDone`.
    Call {
        /// Its name.
        op: Op,
        /// Whom.
        peer: Peer,
        /// The time it may take, to be put into the header.
        remaining: Duration,
        /// False: send the frontier with the rest of the route. True: send
        /// the tensors as they came, everything after them to be run there.
        whole: bool,
    },
    /// A run or call is no longer wanted; report nothing more about it.
    Abandon {
        /// Which.
        op: Op,
    },
    /// Answer the caller. Once, and nothing follows.
    Finish(RequestOutcome),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestOutcome {
    /// With the tensors that `op` produced.
    Answer {
        /// The run or call they come from.
        op: Op,
        /// Why it is not the planned answer, when it is not.
        degraded: Option<Degraded>,
    },
    /// Without tensors.
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The planned segments here.
    Local,
    /// The planned call.
    Planned,
    /// A recovery, here or above.
    Recovery,
    /// A second copy that the caller asked for, here or above.
    Copy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Active {
    op: Op,
    kind: Kind,
    /// For calls: whom.
    peer: Option<Peer>,
}

/// One request on one node.
///
/// Invariants: `Finish` is emitted exactly once, at the latest at the first
/// step at or after the deadline, unless the caller cancelled; nothing is
/// active afterwards. Once an exit's answer is at hand, only a request that is
/// wrong in itself fails.
#[derive(Debug)]
pub struct Request {
    setup: Setup,
    active: Vec<Active>,
    next_op: u32,
    /// Parents whose lease is lost, and why.
    down: Vec<(Peer, String)>,
    /// When it began.
    begun: Time,
    /// When a recovery starts beside a call that is out.
    hedge_at: Option<Time>,
    /// When a second copy does.
    copy_at: Option<Time>,
    /// The second copy.
    copy: Option<Op>,
    /// The parent that shows no sign of life, and what was waited for.
    silent: Option<(Peer, String)>,
    /// Local steps begun.
    steps: usize,
    /// The run whose exit has the best answer so far.
    at_hand: Option<Op>,
    /// Recoveries begun or ruled out.
    tried: BTreeSet<usize>,
    /// What went wrong first: the cause of a degraded answer.
    trouble: Option<(Cause, Failure)>,
    done: bool,
}

impl Request {
    /// A request that has not begun. `down` names parents without a lease.
    #[must_use]
    pub fn new(mut setup: Setup, down: Vec<(Peer, String)>) -> Self {
        setup.recoveries.truncate(RECOVERIES_MAX);
        Self {
            setup,
            active: Vec::new(),
            next_op: 0,
            down,
            begun: Time::ZERO,
            hedge_at: None,
            copy_at: None,
            copy: None,
            silent: None,
            steps: 0,
            at_hand: None,
            tried: BTreeSet::new(),
            trouble: None,
            done: false,
        }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.done {
            return actions;
        }
        let out = &mut actions;
        // An answer that arrives at the deadline still counts; nothing else
        // begins from then on.
        let late = now >= self.setup.deadline;
        match event {
            Event::Cancel => self.end(None, out),
            Event::RunDone { op, result } => self.run_done(now, op, result, late, out),
            Event::CallDone { op, result } => self.call_done(now, op, result, late, out),
            _ if late => {}
            Event::Start => self.start(now, out),
            Event::PeerDown { peer, reason } => self.peer_down(now, peer, reason, out),
            Event::PeerUp { peer } => self.down.retain(|(other, _)| *other != peer),
            Event::Silent { peer, reason } => self.silent(now, peer, reason, out),
            Event::Wake => {
                self.hedge(now, out);
                self.copy(now, out);
            }
        }
        // An answer at hand goes out in time; without one, time decides alone.
        if !self.done && (late || now >= self.due()) {
            self.give_up(Cause::Deadline, self.deadline_failure(), out);
        }
        actions
    }

    /// When the request must end, with what is at hand.
    fn due(&self) -> Time {
        let deadline = self.setup.deadline;
        if self.at_hand.is_some() { deadline - RESERVE_SLACK } else { deadline }
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let due = self.due();
        (!self.done).then(|| [self.hedge_at, self.copy_at].into_iter().flatten().fold(due, Time::min))
    }

    /// The second copy, once there is one.
    #[must_use]
    pub fn second(&self) -> Option<Op> {
        self.copy
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    fn start(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.next_op != 0 {
            return;
        }
        self.begun = now;
        if self.setup.local.is_empty() && self.setup.upstream.is_none() {
            let failure = Failure::new(Code::Internal, "a request without a plan: neither segments nor a next tier");
            return self.fail(failure, out);
        }
        self.go_on(now, None, out);
    }

    /// The next step here, or what comes after the last: `made` has the
    /// tensors at hand.
    fn go_on(&mut self, now: Time, made: Option<Op>, out: &mut Vec<Action>) {
        let next = self.setup.local.get(self.steps).copied();
        match (next, self.setup.upstream, made) {
            (Some(step), _, _) => {
                self.steps += 1;
                self.run(step.span, Kind::Local, out);
            }
            (None, Some(upstream), _) => self.hand_on(now, upstream, out),
            (None, None, Some(made)) => self.answer(made, None, out),
            (None, None, None) => {}
        }
    }

    fn run_done(&mut self, now: Time, op: Op, result: Result<Ran, Failure>, late: bool, out: &mut Vec<Action>) {
        let Some(active) = self.take(op) else { return };
        match (active.kind, result) {
            (_, Err(failure)) => self.trouble(now, Cause::LocalFailure, failure, late, out),
            (Kind::Recovery | Kind::Copy, Ok(_)) | (Kind::Local, Ok(Ran::Sure)) => self.answer(op, None, out),
            (Kind::Local, Ok(Ran::Capped)) => {
                let failure = Failure::new(Code::Overloaded, DEEP_BUDGET_SPENT);
                self.trouble = Some((Cause::DeepBudget, failure));
                self.answer(op, None, out);
            }
            (Kind::Local, Ok(ran)) => {
                if ran == Ran::Unsure {
                    self.at_hand = Some(op);
                }
                // What reaches the outputs at the deadline is an answer still.
                let ends = self.steps == self.setup.local.len() && self.setup.upstream.is_none();
                if !late || ends {
                    self.go_on(now, Some(op), out);
                }
            }
            (Kind::Planned, Ok(_)) => {}
        }
    }

    fn call_done(
        &mut self,
        now: Time,
        op: Op,
        result: Result<Option<Degraded>, Failure>,
        late: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(active) = self.take(op) else { return };
        match result {
            Ok(degraded) if active.kind == Kind::Planned => {
                // In time after all, whatever went wrong meanwhile.
                self.trouble = None;
                self.answer(op, degraded, out);
            }
            Ok(degraded) => self.answer(op, degraded, out),
            Err(failure) => self.trouble(now, cause_of(failure.code()), failure, late, out),
        }
    }

    fn peer_down(&mut self, now: Time, peer: Peer, reason: String, out: &mut Vec<Action>) {
        self.down.retain(|(other, _)| *other != peer);
        self.down.push((peer, reason.clone()));
        let lost: Vec<Op> = self.active.iter().filter(|a| a.peer == Some(peer)).map(|a| a.op).collect();
        for op in lost {
            self.take(op);
            out.push(Action::Abandon { op });
            let failure = Failure::new(Code::Unreachable, reason.clone());
            self.trouble(now, Cause::LinkDown, failure, false, out);
        }
    }

    /// Sends the frontier on, or recovers at once when nobody is there.
    fn hand_on(&mut self, now: Time, upstream: Upstream, out: &mut Vec<Action>) {
        if let Some(reason) = self.down_reason(upstream.peer) {
            let failure = Failure::new(Code::Unreachable, reason);
            return self.trouble(now, Cause::LinkDown, failure, false, out);
        }
        self.call(now, upstream, Kind::Planned, out);
        let reserve = self.setup.recoveries.iter().map(reserve).min();
        let by_reserve = reserve.map(|reserve| self.setup.deadline - reserve);
        let by_patience = self.setup.patience.filter(|_| reserve.is_some()).map(|patience| now + patience);
        let by_silence = self.silent.as_ref().filter(|(peer, _)| *peer == upstream.peer).map(|_| now);
        self.hedge_at = by_reserve.into_iter().chain(by_patience).chain(by_silence).min();
        self.copy_at = self.setup.hedge.map(|hedge| self.begun + hedge);
        // With less time than that there is no point in waiting first.
        self.hedge(now, out);
        self.copy(now, out);
    }

    /// The next tier may be gone: a call to it that is out gets a recovery
    /// beside it now, one that is still to come as it begins.
    fn silent(&mut self, now: Time, peer: Peer, reason: String, out: &mut Vec<Action>) {
        self.silent = Some((peer, reason));
        if self.hedge_at.is_some() && self.active.iter().any(|a| a.kind == Kind::Planned && a.peer == Some(peer)) {
            self.hedge_at = Some(now);
            self.hedge(now, out);
        }
    }

    /// Starts a recovery beside the call that is out, when it is time.
    fn hedge(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.hedge_at.is_none_or(|at| now < at) {
            return;
        }
        self.hedge_at = None;
        if let Some(recovery) = self.next_recovery(now) {
            let trouble = match &self.silent {
                Some((_, reason)) => (Cause::LinkDown, Failure::new(Code::Unreachable, reason.clone())),
                None => {
                    let text = "the next tier did not answer in its share of the deadline";
                    (Cause::UpstreamTimeout, Failure::new(Code::DeadlineExceeded, text))
                }
            };
            self.trouble.get_or_insert(trouble);
            self.recover(now, recovery, out);
        }
    }

    /// Starts a second copy beside the call that is out, when it is time.
    fn copy(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.copy_at.is_none_or(|at| now < at) {
            return;
        }
        self.copy_at = None;
        // One way beside the planned one is enough.
        let alone = matches!(self.active[..], [Active { kind: Kind::Planned, .. }]);
        let ways = self.setup.recoveries.iter().enumerate();
        let open = ways.filter(|(index, way)| !self.tried.contains(index) && self.is_open(now, way));
        let soonest = open.min_by_key(|(_, way)| predicted(way)).map(|(index, way)| (index, *way));
        if let Some((index, way)) = soonest.filter(|_| alone) {
            self.tried.insert(index);
            self.copy = Some(Op(self.next_op));
            match way {
                Recovery::Here(local) => self.run(local.span, Kind::Copy, out),
                Recovery::Above(above) => self.call(now, above, Kind::Copy, out),
            }
        }
    }

    /// Something failed: recover, wait for what is still out, or give up.
    fn trouble(&mut self, now: Time, cause: Cause, failure: Failure, late: bool, out: &mut Vec<Action>) {
        if is_final(failure.code()) {
            return self.fail(failure, out);
        }
        if failure.code() == Code::UnknownModel {
            // Catalogues flow down: what is unknown above is had here or nowhere.
            let above = |(_, way): &(usize, &Recovery)| matches!(way, Recovery::Above(_));
            self.tried.extend(self.setup.recoveries.iter().enumerate().filter(above).map(|(index, _)| index));
        }
        // The first trouble explains a degraded answer; the last one, being
        // nearest, explains a failure.
        self.trouble.get_or_insert((cause, failure.clone()));
        if !self.active.is_empty() || late {
            return;
        }
        match self.next_recovery(now) {
            Some(recovery) => self.recover(now, recovery, out),
            None => {
                let failure = self.no_way(failure);
                self.give_up(cause, failure, out);
            }
        }
    }

    /// The nearest way that is open and expected to be in time.
    fn next_recovery(&mut self, now: Time) -> Option<Recovery> {
        let mut ways = self.setup.recoveries.iter().enumerate().filter(|(index, _)| !self.tried.contains(index));
        let (index, recovery) = ways.find(|(_, recovery)| self.is_open(now, recovery))?;
        let recovery = *recovery;
        self.tried.insert(index);
        Some(recovery)
    }

    /// Whether a way can be gone, and is expected to be in time.
    fn is_open(&self, now: Time, way: &Recovery) -> bool {
        let reached = match way {
            Recovery::Here(_) => true,
            Recovery::Above(above) => self.down_reason(above.peer).is_none(),
        };
        reached && predicted(way) <= now.until(self.setup.deadline)
    }

    fn recover(&mut self, now: Time, recovery: Recovery, out: &mut Vec<Action>) {
        self.hedge_at = None;
        match recovery {
            Recovery::Here(local) => self.run(local.span, Kind::Recovery, out),
            Recovery::Above(above) => self.call(now, above, Kind::Recovery, out),
        }
    }

    fn run(&mut self, span: Span, kind: Kind, out: &mut Vec<Action>) {
        let op = self.begin(kind, None);
        out.push(Action::Run { op, span, recovery: kind == Kind::Recovery, deadline: self.setup.deadline });
    }

    fn call(&mut self, now: Time, upstream: Upstream, kind: Kind, out: &mut Vec<Action>) {
        let Upstream { peer, back, .. } = upstream;
        let op = self.begin(kind, Some(peer));
        let remaining = now.until(self.setup.deadline).saturating_sub(back);
        out.push(Action::Call { op, peer, remaining, whole: kind != Kind::Planned });
    }

    fn begin(&mut self, kind: Kind, peer: Option<Peer>) -> Op {
        let op = Op(self.next_op);
        self.next_op += 1;
        self.active.push(Active { op, kind, peer });
        op
    }

    fn take(&mut self, op: Op) -> Option<Active> {
        let at = self.active.iter().position(|active| active.op == op)?;
        Some(self.active.swap_remove(at))
    }

    fn answer(&mut self, op: Op, degraded: Option<Degraded>, out: &mut Vec<Action>) {
        // Our own trouble explains more than what a recovery above adds.
        let own = self.trouble.take().map(|(cause, failure)| Degraded {
            cause: cause.into(),
            reason: failure.to_string(),
            node: self.setup.node.clone(),
        });
        self.end(Some(RequestOutcome::Answer { op, degraded: own.or(degraded) }), out);
    }

    /// Nothing better is to come: an exit's answer where there is one, else
    /// the failure.
    fn give_up(&mut self, cause: Cause, failure: Failure, out: &mut Vec<Action>) {
        match self.at_hand {
            Some(op) => {
                self.trouble.get_or_insert((cause, failure));
                self.answer(op, None, out);
            }
            None => self.fail(failure, out),
        }
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Action>) {
        let failure = failure.at(&self.setup.node);
        self.end(Some(RequestOutcome::Failed(failure)), out);
    }

    fn end(&mut self, outcome: Option<RequestOutcome>, out: &mut Vec<Action>) {
        self.done = true;
        out.extend(self.active.drain(..).map(|active| Action::Abandon { op: active.op }));
        out.extend(outcome.map(Action::Finish));
    }

    fn down_reason(&self, peer: Peer) -> Option<&str> {
        self.down.iter().find(|(other, _)| *other == peer).map(|(_, reason)| reason.as_str())
    }

    fn deadline_failure(&self) -> Failure {
        let mut text = "no answer by the deadline".to_owned();
        if let Some((_, failure)) = &self.trouble {
            text = format!("{text}: {failure}");
        }
        Failure::new(Code::DeadlineExceeded, text).with_help("allow more time, or see `tierline explain`")
    }

    /// The failure when the last way is gone. The cause's code stays, so that
    /// a caller can tell a lost link from a bad input.
    fn no_way(&self, last: Failure) -> Failure {
        if self.setup.upstream.is_none() && self.tried.is_empty() {
            // Nothing but this node was ever meant to answer.
            return last;
        }
        let first = self.trouble.as_ref().map(|(_, failure)| failure).filter(|first| **first != last);
        let why = match (self.setup.recoveries.len(), self.tried.len()) {
            (0, _) => "and no nearer node can hold the model",
            (all, tried) if tried < all => "and no other way is left in time",
            _ => "and every other way failed too",
        };
        let history = first.map_or_else(String::new, |first| format!(" (first: {first})"));
        let mut failure = Failure::new(last.code(), format!("{}, {why}{history}", last.message)).with_help(last.help);
        failure.node = last.node;
        failure
    }
}

/// Whether the request itself is at fault: wherever else it goes, it fails the
/// same, so it ends here and says so.
fn is_final(code: Code) -> bool {
    matches!(code, Code::InvalidInput)
}

fn predicted(way: &Recovery) -> Duration {
    match way {
        Recovery::Here(local) => local.predicted,
        Recovery::Above(above) => above.predicted,
    }
}

fn reserve(recovery: &Recovery) -> Duration {
    seconds(predicted(recovery).as_secs_f64() * RESERVE_FACTOR).saturating_add(RESERVE_SLACK)
}

pub(crate) fn cause_of(code: Code) -> Cause {
    match code {
        Code::Unreachable => Cause::LinkDown,
        Code::DeadlineExceeded => Cause::UpstreamTimeout,
        Code::Overloaded | Code::Draining => Cause::UpstreamOverloaded,
        Code::Corrupt | Code::Protocol => Cause::UpstreamCorrupt,
        _ => Cause::UpstreamFailure,
    }
}
