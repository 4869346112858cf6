//! The lower side of a hop: one member's duty for one job.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Assignment, MemberStatus, Task, Update, Verdict};
use crate::Rng;
use crate::time::{Time, ns};

/// First pause before an update is sent again, at most; doubles.
pub const PAUSE_BASE: Duration = Duration::from_millis(500);

/// Longest pause between two tries.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Time between two reports: a lost message is mended by the next one.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A model that can't be had now, or a task that can't begin now, is tried
/// again after this.
pub const AGAIN: Duration = Duration::from_secs(10);

/// What a member lacks is looked for again after this.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Its name.
    pub task: Task,
    /// From 0, over the whole job.
    pub round: u64,
    /// The model to start from.
    pub version: u64,
    /// Whether nothing is to be learned: the member evaluates the model.
    pub evaluate: bool,
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The coordinator says what it wants.
    Assigned(Assignment),
    /// Model and data are there, or can't be. Who can't be prepared is asked to
    /// look again.
    Prepared(Result<u64, String>),
    /// They can't be had just now.
    Unprepared,
    /// This member can't take part, whatever comes.
    Unable(String),
    /// A task is done, and what came of it lies on the disk; or it failed.
    Worked {
        /// Which.
        task: Task,
        /// The update.
        result: Result<Update, String>,
    },
    /// A task can't begin just now.
    Hindered {
        /// Which.
        task: Task,
    },
    /// The coordinator said what became of an update.
    Answered {
        /// Of which task.
        task: Task,
        /// What.
        verdict: Verdict,
    },
    /// An update didn't get through.
    Unsent {
        /// Of which task.
        task: Task,
    },
    /// The coordinator can be reached.
    LinkUp,
    /// It can't any more.
    LinkDown,
    /// The time [`Participant::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Fetch the model, open the data; then [`Event::Prepared`] or
    /// [`Event::Unprepared`].
    Prepare,
    /// Write to the journal, through to the disk; in place of all of it when
    /// the record is [`Record::Settled`].
    Keep(Record),
    /// Tell the coordinator what this member is at.
    Report(MemberStatus),
    /// Do it; then [`Event::Worked`] or [`Event::Hindered`].
    Work(Work),
    /// Stop working on it; nobody wants it any more.
    Abandon(Task),
    /// Send an update; then [`Event::Answered`] or [`Event::Unsent`].
    Send(Update),
    /// What the task left behind counts from now on, or doesn't.
    Settle {
        /// Which.
        task: Task,
        /// Whether its update was counted.
        counted: bool,
    },
    /// The job is over; this is its model.
    Finish {
        /// The last one.
        version: u64,
    },
    /// This member is left out.
    Leave {
        /// Why.
        reason: String,
    },
}

/// What the journal holds, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// An update lies on the disk.
    Held(Update),
    /// The coordinator answered it; takes the place of the records before it.
    Settled {
        /// Its task.
        task: Task,
        /// Whether it was counted.
        counted: bool,
    },
}

impl Record {
    /// Whether the journal needs nothing of what lies before this.
    #[must_use]
    pub fn replaces_earlier(&self) -> bool {
        matches!(self, Self::Settled { .. })
    }
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// Model and data are on their way.
    Preparing,
    /// It can't take part.
    Unable(String),
    /// Nothing to do.
    Idle,
    /// At work, or waiting to begin it again.
    Working { work: Work, again_at: Option<Time> },
    /// An update waits to be answered.
    Held {
        update: Update,
        /// Whether it is on its way now.
        sending: bool,
        /// When to try again.
        not_before: Time,
        tries: u32,
    },
}

/// One member's duty for one job.
///
/// Invariants: one task at a time; an update is in the journal before it is
/// sent, and sent until it is answered; the next task begins only when the
/// last one is settled.
#[derive(Debug)]
pub struct Participant {
    state: State,
    wanted: Assignment,
    examples: u64,
    /// Why it can't take part any more, once its last update is answered.
    unable: Option<String>,
    /// A task that failed, until another is wanted.
    failed: Option<(Task, String)>,
    /// The latest task that was settled, and whether it counted: older
    /// assignments of its coordinator are echoes. One that didn't count may be
    /// wanted still, by a coordinator that had lost sight of it.
    settled: Option<(Task, bool)>,
    up: bool,
    /// When to prepare again.
    prepare_at: Option<Time>,
    /// When to report again.
    report_at: Time,
    /// Whether the end was told.
    over: bool,
}

impl Default for Participant {
    fn default() -> Self {
        Self {
            state: State::Preparing,
            wanted: Assignment::Wait,
            examples: 0,
            unable: None,
            failed: None,
            settled: None,
            up: false,
            prepare_at: None,
            report_at: Time::ZERO,
            over: false,
        }
    }
}

impl Participant {
    /// Heard of a job; what it does first.
    #[must_use]
    pub fn new() -> (Self, Vec<Action>) {
        (Self::default(), vec![Action::Prepare])
    }

    /// What a journal leads to, and what it does first. Settling may have
    /// been cut short, so the last one is done again.
    #[must_use]
    pub fn restored(journal: impl IntoIterator<Item = Record>) -> (Self, Vec<Action>) {
        let (mut it, mut actions) = Self::new();
        let mut held = None;
        let mut last = None;
        for record in journal {
            match record {
                Record::Held(update) => held = Some(update),
                Record::Settled { task, counted } => {
                    (held, last) = (None, Some((task, counted)));
                    it.settled = last;
                }
            }
        }
        if let Some((task, counted)) = last {
            actions.insert(0, Action::Settle { task, counted });
        }
        if let Some(update) = held {
            it.state = State::Held { update, sending: false, not_before: Time::ZERO, tries: 0 };
        }
        (it, actions)
    }

    /// What it is at, for the coordinator.
    #[must_use]
    pub fn status(&self) -> MemberStatus {
        if let Some((task, reason)) = &self.failed {
            return MemberStatus::Failed { task: *task, reason: reason.clone(), examples: self.examples };
        }
        match &self.state {
            State::Unable(reason) => MemberStatus::Unable { reason: reason.clone() },
            State::Preparing => MemberStatus::Preparing,
            // An update that waits from before a restart, with the data not
            // opened yet.
            _ if self.examples == 0 => MemberStatus::Preparing,
            _ => MemberStatus::Ready { examples: self.examples },
        }
    }

    /// The task it works on.
    #[must_use]
    pub fn working(&self) -> Option<Work> {
        match self.state {
            State::Working { work, .. } => Some(work),
            _ => None,
        }
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        if self.over {
            return None;
        }
        let send = match &self.state {
            State::Held { sending: false, not_before, .. } if self.up => Some(*not_before),
            _ => None,
        };
        let work = match self.state {
            State::Working { again_at, .. } => again_at,
            _ => None,
        };
        let report = self.up.then_some(self.report_at);
        [send, work, report, self.prepare_at].into_iter().flatten().min()
    }

    /// One step.
    pub fn step(&mut self, now: Time, rng: &mut Rng, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            Event::Assigned(assignment) => self.wanted = assignment,
            Event::Prepared(Ok(examples)) => {
                self.examples = examples;
                self.unable = None;
                // What was missing may have come.
                if matches!(self.state, State::Preparing | State::Unable(_)) {
                    self.state = State::Idle;
                }
                self.report(now, out);
            }
            Event::Prepared(Err(reason)) => {
                self.prepare_at = Some(now + LOOK_AGAIN);
                self.is_unable(now, reason, out);
            }
            Event::Unable(reason) => self.is_unable(now, reason, out),
            Event::Unprepared => self.prepare_at = Some(now + AGAIN),
            Event::Hindered { task } => {
                if let State::Working { work, again_at } = &mut self.state
                    && work.task == task
                {
                    *again_at = Some(now + AGAIN);
                }
            }
            Event::Worked { task, result } => self.worked(now, task, result, out),
            Event::Answered { task, verdict } => self.answered(now, task, &verdict, out),
            Event::Unsent { task } => {
                if let State::Held { update, sending, not_before, tries } = &mut self.state
                    && update.task == task
                {
                    *sending = false;
                    *tries += 1;
                    let bound = ns(PAUSE_MAX).min(ns(PAUSE_BASE) << (*tries).min(16));
                    *not_before = now + Duration::from_nanos(rng.u64(0..=bound));
                }
            }
            Event::LinkUp => {
                self.up = true;
                self.report(now, out);
                if let State::Held { sending, not_before, .. } = &mut self.state {
                    (*sending, *not_before) = (false, now);
                }
            }
            Event::LinkDown => self.up = false,
            Event::Wake if now >= self.report_at && !self.over => self.report(now, out),
            Event::Wake => {}
        }
        self.go_on(now, out);
        actions
    }

    fn report(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.up {
            self.report_at = now + REPORT_EVERY;
            out.push(Action::Report(self.status()));
        }
    }

    /// It can't take part: said once, since it is asked to look again and again.
    fn is_unable(&mut self, now: Time, reason: String, out: &mut Vec<Action>) {
        self.abandon(out);
        let before = match &mut self.state {
            // An update from before a restart is as good as ever.
            State::Held { .. } => self.unable.replace(reason.clone()),
            state => match std::mem::replace(state, State::Unable(reason.clone())) {
                State::Unable(before) => Some(before),
                _ => None,
            },
        };
        if before.as_ref() != Some(&reason) {
            self.report(now, out);
        }
    }

    fn worked(&mut self, now: Time, task: Task, result: Result<Update, String>, out: &mut Vec<Action>) {
        if self.working().is_none_or(|work| work.task != task) {
            return;
        }
        match result {
            Ok(update) => {
                out.push(Action::Keep(Record::Held(update.clone())));
                self.state = State::Held { update, sending: false, not_before: now, tries: 0 };
            }
            Err(reason) => {
                self.state = State::Idle;
                self.failed = Some((task, reason));
                self.report(now, out);
            }
        }
    }

    fn answered(&mut self, now: Time, task: Task, verdict: &Verdict, out: &mut Vec<Action>) {
        let State::Held { update, .. } = &self.state else { return };
        if update.task != task {
            return;
        }
        let counted = *verdict == Verdict::Counted;
        out.push(Action::Keep(Record::Settled { task, counted }));
        out.push(Action::Settle { task, counted });
        self.settled = Some((task, counted));
        self.state = match self.unable.take() {
            Some(reason) => State::Unable(reason),
            None if self.examples == 0 => State::Preparing,
            None => State::Idle,
        };
        if matches!(self.state, State::Unable(_)) {
            self.report(now, out);
        }
    }

    fn go_on(&mut self, now: Time, out: &mut Vec<Action>) {
        if !self.over && self.prepare_at.take_if(|at| *at <= now).is_some() {
            out.push(Action::Prepare);
        }
        if let State::Working { work, again_at } = &mut self.state
            && again_at.take_if(|at| *at <= now).is_some()
        {
            out.push(Action::Work(*work));
        }
        if let State::Held { update, sending, not_before, .. } = &mut self.state {
            if self.up && !*sending && now >= *not_before {
                *sending = true;
                out.push(Action::Send(update.clone()));
            }
            return;
        }
        match self.wanted.clone() {
            Assignment::Work { task, round, version, evaluate } => {
                // An echo of what was settled, or of what failed and is known to have.
                let echoes = |of: Task| task.tag() == of.tag() && task < of;
                let done = self.settled.is_some_and(|(last, counted)| echoes(last) || counted && task == last);
                let failed = self.failed.as_ref().is_some_and(|(last, _)| echoes(*last) || task == *last);
                if done || failed {
                    return;
                }
                let work = Work { task, round, version, evaluate };
                match self.state {
                    State::Working { work: other, .. } if other.task == task => return,
                    State::Working { work: other, .. } => out.push(Action::Abandon(other.task)),
                    State::Idle => {}
                    State::Preparing | State::Unable(_) | State::Held { .. } => return,
                }
                self.failed = None;
                self.state = State::Working { work, again_at: None };
                out.push(Action::Work(work));
            }
            Assignment::Wait => self.abandon(out),
            Assignment::Over { version } => {
                self.abandon(out);
                if !std::mem::replace(&mut self.over, true) {
                    out.push(Action::Finish { version });
                }
            }
            Assignment::Out { reason } => {
                self.abandon(out);
                if !std::mem::replace(&mut self.over, true) {
                    out.push(Action::Leave { reason });
                }
            }
        }
    }

    fn abandon(&mut self, out: &mut Vec<Action>) {
        if let State::Working { work, .. } = self.state {
            out.push(Action::Abandon(work.task));
            self.state = State::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operator gives the node its data set while the job waits for it.
    #[test]
    fn who_was_unable_takes_part_once_it_can() {
        let (mut it, _) = Participant::new();
        let mut rng = Rng::with_seed(1);
        let mut step = |event| it.step(Time::ZERO, &mut rng, event);
        step(Event::LinkUp);
        let missing = "no data set `squares` is known here";
        let said = step(Event::Prepared(Err(missing.to_owned())));
        assert_eq!(said, [Action::Report(MemberStatus::Unable { reason: missing.to_owned() })]);
        assert_eq!(step(Event::Assigned(Assignment::Wait)), []);
        let said = step(Event::Prepared(Ok(7)));
        assert_eq!(said, [Action::Report(MemberStatus::Ready { examples: 7 })]);
        let work = Work { task: Task(3), round: 0, version: 0, evaluate: false };
        let Work { task, round, version, evaluate } = work;
        let asked = step(Event::Assigned(Assignment::Work { task, round, version, evaluate }));
        assert_eq!(asked, [Action::Work(work)]);
    }

    /// The disk is full, or the parent's model is on its way still.
    #[test]
    fn what_cannot_be_done_now_is_tried_again() {
        let (mut it, first) = Participant::new();
        assert_eq!(first, [Action::Prepare]);
        let mut rng = Rng::with_seed(1);
        let mut step = |it: &mut Participant, at, event| it.step(at, &mut rng, event);
        assert_eq!(step(&mut it, Time::ZERO, Event::Unprepared), []);
        let later = it.wake().expect("it looks again, whether its parent is there or not");
        assert_eq!(later, Time::ZERO + AGAIN);
        assert_eq!(step(&mut it, Time::ZERO, Event::Wake), [], "not yet");
        assert_eq!(step(&mut it, later, Event::Wake), [Action::Prepare]);
        step(&mut it, later, Event::LinkUp);
        step(&mut it, later, Event::Prepared(Ok(7)));
        let work = Work { task: Task(3), round: 0, version: 0, evaluate: false };
        let Work { task, round, version, evaluate } = work;
        let wanted = Event::Assigned(Assignment::Work { task, round, version, evaluate });
        assert_eq!(step(&mut it, later, wanted.clone()), [Action::Work(work)]);
        assert_eq!(step(&mut it, later, Event::Hindered { task: Task(2) }), [], "an older one");
        assert_eq!(step(&mut it, later, Event::Hindered { task }), []);
        assert_eq!(step(&mut it, later, wanted), [], "it waits");
        let again = later + AGAIN;
        assert!(it.wake().is_some_and(|at| at <= again));
        assert!(step(&mut it, again, Event::Wake).contains(&Action::Work(work)));
        // Nobody wants it any more.
        step(&mut it, again, Event::Hindered { task });
        assert_eq!(step(&mut it, again, Event::Assigned(Assignment::Wait)), [Action::Abandon(task)]);
        let said = step(&mut it, again + AGAIN, Event::Wake);
        assert!(!said.contains(&Action::Work(work)), "{said:?}");
    }

    /// A parent that says one thing and another keeps nobody busy: a time to wake
    /// is always to come.
    #[test]
    fn who_waits_to_begin_again_is_not_woken_for_what_it_does_no_more() {
        let work = |number| {
            let (task, round, version, evaluate) = (Task(number), 0, 0, false);
            Event::Assigned(Assignment::Work { task, round, version, evaluate })
        };
        let unable = Event::Unable("no such class".to_owned());
        for instead in [unable, Event::Assigned(Assignment::Wait), work(4), work(2)] {
            let (mut it, _) = Participant::new();
            let mut rng = Rng::with_seed(1);
            let mut step = |it: &mut Participant, at, event| it.step(at, &mut rng, event);
            let mut now = Time::ZERO;
            for event in [Event::LinkUp, Event::Prepared(Ok(7)), work(3), Event::Hindered { task: Task(3) }] {
                step(&mut it, now, event);
            }
            step(&mut it, now, instead.clone());
            for _ in 0..10 {
                now = it.wake().expect("it reports");
                step(&mut it, now, Event::Wake);
                assert!(it.wake().is_some_and(|next| next > now), "{instead:?}: woken at {now:?} again and again");
            }
        }
    }

    /// It is asked to look each second, and says the same only once.
    #[test]
    fn who_lacks_the_same_says_so_once() {
        let (mut it, _) = Participant::new();
        let mut rng = Rng::with_seed(1);
        it.step(Time::ZERO, &mut rng, Event::LinkUp);
        let missing = Event::Prepared(Err("no data".to_owned()));
        assert_eq!(it.step(Time::ZERO, &mut rng, missing.clone()).len(), 1);
        let looks = Time::ZERO + LOOK_AGAIN;
        assert_eq!(it.wake(), Some(looks));
        assert_eq!(it.step(looks, &mut rng, Event::Wake), [Action::Prepare]);
        assert_eq!(it.step(looks, &mut rng, missing), []);
        assert_eq!(it.wake(), Some(looks + LOOK_AGAIN));
    }
}
