//! One request to a service that is made of several models.
//!
//! The service is a graph of steps; each asks one model as an ordinary request
//! with a plan of its own. A step begins when those before it have ended as its
//! [`Gate`] says, and [`Answers`] says which answers make the service's. A
//! cascade, an ensemble and a chain are [`Form`]s of that graph.
//!
//! What an earlier model of a cascade has answered is kept: when a later one
//! fails, is late or can't be reached, it is the answer, `degraded`, within the
//! deadline. A model that takes more than its share of the time isn't given up;
//! the next one is asked beside it.
//!
//! Pure, one machine per request; tensors stay in the shell, which judges
//! answers, and makes the inputs of each step of the outputs of those before.
//! Start at [`Setup`], then [`Composition::step`].

mod forms;

use std::time::Duration;

use tierline_proto::v1::{Degraded, degraded::Cause};
use tierline_proto::{Code, Failure};

pub use self::forms::{Form, SHARE_DEFAULT};
use crate::request::cause_of;
use crate::time::{Time, seconds};

/// Pieces of one step that are asked at once: more would only wait for each
/// other in the models' queues.
pub const ABREAST_MAX: usize = 4;

/// Kept back of the time that there is, for making the answer: this share of
/// it, and no more than [`RESERVE_MAX`].
const RESERVE_SHARE: f64 = 0.05;

/// See [`RESERVE_SHARE`].
const RESERVE_MAX: Duration = Duration::from_millis(20);

/// What the node knows of a request when it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// This node's name, for degraded answers and failures.
    pub node: String,
    /// When it must be answered.
    pub deadline: Time,
    /// The service.
    pub form: Form,
}

/// One model's part.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Steps that come before it, by their places; all of them are smaller.
    pub after: Vec<usize>,
    /// How those must have ended.
    pub gate: Gate,
    /// The share of the time left that it may take before those that wait for
    /// its failure go on beside it.
    pub share: f64,
    /// It is asked once for each piece that [`Event::Answered`] of the step
    /// before it names, rather than once.
    pub pieces: bool,
}

/// How steps before must have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// With an answer, each of them.
    Answered,
    /// With an answer that isn't sure, or with none, or not in their share of
    /// the time.
    Unsure,
}

/// Which answers make the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// The latest step's that has one; a sure one at once.
    Latest,
    /// All that there are once no more come, if they are so many.
    Least(usize),
    /// Those of all steps.
    All,
}

/// Names one asking of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask(pub u32);

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Begin.
    Start,
    /// A model answered.
    Answered {
        /// Which asking.
        ask: Ask,
        /// Whether the answer is sure enough to stand.
        sure: bool,
        /// Why it isn't the planned answer, if it isn't.
        degraded: Option<Degraded>,
        /// How many pieces there are for the step behind it that takes pieces.
        pieces: usize,
    },
    /// A model didn't answer.
    Failed {
        /// Which asking.
        ask: Ask,
        /// Why.
        failure: Failure,
    },
    /// The node above, whom an asking waits for, shows no sign of life.
    Silent {
        /// Which asking.
        ask: Ask,
        /// What was waited for, for people.
        reason: String,
    },
    /// The caller went away.
    Cancel,
    /// The time [`Composition::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask a model; report `Answered` or `Failed`.
    Ask {
        /// Its name.
        ask: Ask,
        /// Whose turn it is.
        step: usize,
        /// Which piece; 0 where there is only one.
        piece: usize,
        /// When its answer must be there.
        deadline: Time,
        /// Whether nearer nodes shall answer when its plan fails: not where
        /// another model's answer is at hand.
        recover: bool,
    },
    /// An asking is no longer wanted; report nothing more about it.
    Abandon {
        /// Which.
        ask: Ask,
    },
    /// Answer the caller. Once, and nothing follows.
    Finish(Outcome),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With the answers of these steps.
    Answer {
        /// In their order; one, where the latest counts.
        steps: Vec<usize>,
        /// Why it isn't the planned answer, if it isn't.
        degraded: Option<Degraded>,
    },
    /// Without an answer.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Waiting,
    Out {
        /// Past its share of the time: those behind it go on.
        overdue: bool,
        /// When it is.
        overdue_at: Time,
        /// Pieces not asked yet, from this one on, of so many.
        next: usize,
        pieces: usize,
        degraded: Option<Degraded>,
    },
    Answered {
        sure: bool,
        degraded: Option<Degraded>,
    },
    Failed(Failure),
    Skipped,
}

impl State {
    fn is_over(&self) -> bool {
        !matches!(self, Self::Waiting | Self::Out { .. })
    }
}

/// One request to one service.
///
/// Invariants: `Finish` is emitted exactly once, at the latest at the first
/// step at or after the deadline, unless the caller cancelled; nothing is out
/// afterwards.
#[derive(Debug)]
pub struct Composition {
    setup: Setup,
    /// The deadline less what is kept back; as soon as the request began.
    end: Time,
    states: Vec<State>,
    /// What is out, and of which step and piece.
    out: Vec<(Ask, usize)>,
    /// Pieces that each step's answer names.
    pieces: Vec<usize>,
    next_ask: u32,
    begun: bool,
    done: bool,
}

impl Composition {
    /// A request that has not begun.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let steps = setup.form.steps.len();
        Self {
            end: setup.deadline,
            setup,
            states: vec![State::Waiting; steps],
            out: Vec::new(),
            pieces: vec![0; steps],
            next_ask: 0,
            begun: false,
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
        match event {
            Event::Cancel => {
                self.finish(None, out);
                return actions;
            }
            Event::Start if !self.begun => {
                self.begun = true;
                let left = now.until(self.setup.deadline);
                self.end = self.setup.deadline - seconds(left.as_secs_f64() * RESERVE_SHARE).min(RESERVE_MAX);
            }
            Event::Start | Event::Wake => {}
            Event::Answered { ask, sure, degraded, pieces } => self.answered(ask, sure, degraded, pieces),
            Event::Failed { ask, failure } => self.failed(ask, failure, out),
            Event::Silent { ask, reason } => self.silent(ask, reason, out),
        }
        if self.begun && !self.done {
            self.go_on(now, out);
        }
        actions
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let overdue = self.states.iter().filter_map(|state| match state {
            State::Out { overdue: false, overdue_at, .. } => Some(*overdue_at),
            _ => None,
        });
        (!self.done).then(|| overdue.chain([self.end]).min().unwrap_or(self.end))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    fn take(&mut self, ask: Ask) -> Option<usize> {
        let at = self.out.iter().position(|(other, _)| *other == ask)?;
        Some(self.out.swap_remove(at).1)
    }

    fn answered(&mut self, ask: Ask, is_sure: bool, why: Option<Degraded>, count: usize) {
        let Some(step) = self.take(ask) else { return };
        let more = self.out.iter().any(|(_, other)| *other == step);
        let State::Out { next, pieces, degraded, .. } = &mut self.states[step] else { return };
        *degraded = degraded.take().or(why);
        if *next < *pieces || more {
            return;
        }
        let degraded = degraded.take();
        self.pieces[step] = count;
        self.states[step] = State::Answered { sure: is_sure, degraded };
    }

    fn failed(&mut self, ask: Ask, failure: Failure, out: &mut Vec<Action>) {
        let Some(step) = self.take(ask) else { return };
        // An answer of some of its pieces is none.
        self.abandon(|other| other == step, out);
        self.states[step] = State::Failed(failure);
    }

    /// The link of an asking may be gone: where another model's answer is at
    /// hand, it is not waited for.
    fn silent(&mut self, ask: Ask, reason: String, out: &mut Vec<Action>) {
        let Some((_, step)) = self.out.iter().copied().find(|(other, _)| *other == ask) else { return };
        if self.setup.form.answers != Answers::Latest || self.fallback().is_none() {
            return;
        }
        self.abandon(|other| other == step, out);
        self.states[step] = State::Failed(Failure::new(Code::Unreachable, reason));
        // Those behind it are asked over the same link.
        for state in self.states.iter_mut().skip(step).filter(|state| **state == State::Waiting) {
            *state = State::Skipped;
        }
    }

    fn abandon(&mut self, of: impl Fn(usize) -> bool, out: &mut Vec<Action>) {
        self.out.retain(|(ask, step)| {
            let gone = of(*step);
            if gone {
                out.push(Action::Abandon { ask: *ask });
            }
            !gone
        });
    }

    /// The latest step that has an answer.
    fn fallback(&self) -> Option<usize> {
        self.states.iter().rposition(|state| matches!(state, State::Answered { .. }))
    }

    /// Begins what may begin, and ends what is over.
    fn go_on(&mut self, now: Time, out: &mut Vec<Action>) {
        let late = now >= self.end;
        for state in &mut self.states {
            if let State::Out { overdue, overdue_at, .. } = state {
                *overdue |= now >= *overdue_at;
            }
        }
        if let Some(outcome) = self.outcome(late) {
            return self.finish(Some(outcome), out);
        }
        // Each step stands behind those that it waits for, so one pass is enough.
        for step in 0..self.states.len() {
            match self.states[step] {
                State::Waiting => self.begin(now, step, out),
                State::Out { .. } => self.ask_pieces(step, out),
                _ => {}
            }
        }
        // What was skipped, or had no pieces, may have been the last.
        if let Some(outcome) = self.outcome(false) {
            self.finish(Some(outcome), out);
        }
    }

    fn begin(&mut self, now: Time, step: usize, out: &mut Vec<Action>) {
        let Step { after, gate, share, pieces } = self.setup.form.steps[step].clone();
        let before = after.iter().filter_map(|place| self.states.get(*place));
        let open = match gate {
            Gate::Answered if before.clone().all(|state| matches!(state, State::Answered { .. })) => true,
            Gate::Answered if before.clone().any(|state| matches!(state, State::Failed(_) | State::Skipped)) => {
                self.states[step] = State::Skipped;
                return;
            }
            Gate::Answered => false,
            Gate::Unsure => before.clone().all(|state| match state {
                State::Answered { sure, .. } => !sure,
                State::Failed(_) => true,
                State::Out { overdue, .. } => *overdue,
                State::Waiting | State::Skipped => false,
            }),
        };
        if !open {
            return;
        }
        let pieces = if pieces { after.iter().map(|place| self.pieces[*place]).sum() } else { 1 };
        if pieces == 0 {
            self.states[step] = State::Answered { sure: false, degraded: None };
            return;
        }
        let left = now.until(self.end);
        let overdue_at = if share < 1.0 { now + seconds(left.as_secs_f64() * share.max(0.0)) } else { self.end };
        self.states[step] = State::Out { overdue: false, overdue_at, next: 0, pieces, degraded: None };
        self.ask_pieces(step, out);
    }

    fn ask_pieces(&mut self, step: usize, out: &mut Vec<Action>) {
        let recover = self.setup.form.answers != Answers::Latest || self.fallback().is_none();
        let mut abreast = self.out.iter().filter(|(_, other)| *other == step).count();
        let State::Out { next, pieces, .. } = &mut self.states[step] else { return };
        while *next < *pieces && abreast < ABREAST_MAX {
            let ask = Ask(self.next_ask);
            self.next_ask += 1;
            self.out.push((ask, step));
            out.push(Action::Ask { ask, step, piece: *next, deadline: self.end, recover });
            *next += 1;
            abreast += 1;
        }
    }

    /// How the request ends, if it does now; `late`: it must.
    fn outcome(&self, late: bool) -> Option<Outcome> {
        let failures = || {
            self.states.iter().filter_map(|state| match state {
                State::Failed(failure) => Some(failure),
                _ => None,
            })
        };
        // Wherever else it goes, it fails the same.
        if let Some(wrong) = failures().find(|failure| failure.code() == Code::InvalidInput)
            && (self.setup.form.answers == Answers::All || self.fallback().is_none())
            && !self.is_ensemble()
        {
            return Some(Outcome::Failed(wrong.clone()));
        }
        // Whoever stands before an answer has no say any more.
        let from = if self.setup.form.answers == Answers::Latest { self.fallback().unwrap_or(0) } else { 0 };
        let over = late || self.states[from..].iter().all(State::is_over);
        let answered = || self.states.iter().enumerate().filter(|(_, state)| matches!(state, State::Answered { .. }));
        let steps: Vec<usize> = answered().map(|(step, _)| step).collect();
        let why_none = || {
            let late_text = || Failure::new(Code::DeadlineExceeded, "no answer by the deadline");
            failures().next_back().cloned().unwrap_or_else(late_text)
        };
        match self.setup.form.answers {
            Answers::Latest => {
                let sure = answered().find(|(_, state)| matches!(state, State::Answered { sure: true, .. }));
                if let Some((step, state)) = sure {
                    return Some(Outcome::Answer { steps: vec![step], degraded: state.degraded() });
                }
                if !over {
                    return None;
                }
                let Some(step) = self.fallback() else { return Some(Outcome::Failed(why_none())) };
                // Whoever stands behind was asked, and didn't answer.
                let behind = self.states[step + 1..].iter().find_map(|state| self.trouble(state));
                let degraded = behind.or_else(|| self.states[step].degraded());
                Some(Outcome::Answer { steps: vec![step], degraded })
            }
            Answers::Least(least) => {
                let possible = self.states.iter().filter(|s| !matches!(s, State::Failed(_) | State::Skipped)).count();
                if possible < least || (over && steps.len() < least) {
                    let mut failure = why_none();
                    let text = format!("{} of {least} answers came: {}", steps.len(), failure.message);
                    failure.message = text;
                    return Some(Outcome::Failed(failure));
                }
                if !over {
                    return None;
                }
                let missing = self.states.iter().find_map(|state| self.trouble(state));
                let degraded = missing.or_else(|| steps.iter().find_map(|step| self.states[*step].degraded()));
                Some(Outcome::Answer { steps, degraded })
            }
            Answers::All => {
                if steps.len() == self.states.len() {
                    let degraded = steps.iter().find_map(|step| self.states[*step].degraded());
                    return Some(Outcome::Answer { steps, degraded });
                }
                (late || failures().next().is_some()).then(|| Outcome::Failed(why_none()))
            }
        }
    }

    fn is_ensemble(&self) -> bool {
        matches!(self.setup.form.answers, Answers::Least(_))
    }

    /// Why a step gave no answer.
    fn trouble(&self, state: &State) -> Option<Degraded> {
        let (cause, reason) = match state {
            State::Failed(failure) => (cause_of(failure.code()), failure.to_string()),
            State::Out { .. } => (Cause::UpstreamTimeout, "a model did not answer in time".to_owned()),
            State::Waiting => (Cause::UpstreamTimeout, "no time was left to ask a further model".to_owned()),
            State::Answered { .. } | State::Skipped => return None,
        };
        Some(Degraded { cause: cause.into(), reason, node: self.setup.node.clone() })
    }

    fn finish(&mut self, outcome: Option<Outcome>, out: &mut Vec<Action>) {
        self.done = true;
        self.abandon(|_| true, out);
        let node = &self.setup.node;
        out.extend(outcome.map(|outcome| {
            Action::Finish(match outcome {
                Outcome::Failed(failure) => Outcome::Failed(failure.at(node)),
                answer @ Outcome::Answer { .. } => answer,
            })
        }));
    }
}

impl State {
    fn degraded(&self) -> Option<Degraded> {
        match self {
            Self::Answered { degraded, .. } => degraded.clone(),
            _ => None,
        }
    }
}
