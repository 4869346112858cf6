//! The upper side of a hop: whom to ask, what counts, when a round ends.
//!
//! [`event`] has what it hears and does, [`journal`] what it keeps,
//! [`members`] what becomes of what members send, [`rounds`] when a round
//! begins and ends.

mod event;
mod journal;
mod members;
mod rounds;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierline_federate::{Clients, Timing, select};
use tierline_proto::Digest;

pub use self::event::{Action, Event};
use self::journal::{AssignedTask, TaskStatus};
pub use self::journal::{Ledger, Record};
use super::{Assignment, MemberStatus, Task, Update};
use crate::time::Time;

/// Members of one coordinator.
pub const MEMBERS_MAX: usize = 1 << 20;

/// A round for which more than enough members are not there yet begins
/// without them after this time.
pub const GATHER: Duration = Duration::from_secs(10);

/// The first round of all members begins when none has come for so long.
pub const SETTLE: Duration = Duration::from_secs(2);

/// Tasks in a row that a member may fail before it is left out.
pub const FAILURES_MAX: u32 = 3;

/// What a coordinator goes by.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// Whom a round asks.
    pub clients: Clients,
    /// When a model is made.
    pub timing: Timing,
    /// Decides whom a round asks.
    pub seed: u64,
    /// Tells its tasks from those of the job's other coordinators.
    pub tag: u32,
    /// Whether the end of a stretch says what was counted in it: for a node
    /// that answers to another one.
    pub sums_up: bool,
}

/// Where a coordinator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was asked for, or all of it is done.
    Idle,
    /// Too few members for a round.
    Gathering,
    /// Members are at work.
    Working,
    /// The next model is being made.
    Making,
    /// No new work is given out.
    Paused,
    /// The job is over.
    Ended,
}

/// How far a round is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// From 0.
    pub round: u64,
    /// Answers counted.
    pub counted: usize,
    /// Answers that are enough.
    pub goal: usize,
    /// Members that can work.
    pub ready: usize,
    /// Members known.
    pub members: usize,
}

#[derive(Debug, Clone, Default)]
struct Member {
    status: Option<MemberStatus>,
    present: bool,
    /// When its link was lost.
    lost_at: Option<Time>,
    /// When it got its latest task; after a restart, when that was.
    asked_at: Time,
    /// Tasks that failed since the last one that counted.
    failures: u32,
    last: Option<select::Last>,
    /// Rounds for which it was looked for, and those in which it was there.
    seen: (u64, u64),
}

/// A coordinator that waits for members before its first round: they come one
/// behind the other.
///
/// However they come and go, it doesn't wait for ever: somebody may be killed
/// each second.
#[derive(Debug)]
struct Settling {
    /// When the last one came.
    last: Time,
    /// Since when there were enough.
    enough_since: Option<Time>,
    /// How long it is waited for others, then.
    longest: Duration,
    /// Those of before a restart that aren't back; `None` where nobody is known.
    awaited: Option<BTreeSet<String>>,
}

impl Default for Settling {
    fn default() -> Self {
        Self { last: Time::ZERO, enough_since: None, longest: GATHER, awaited: None }
    }
}

impl Settling {
    /// When it is over, unless somebody else comes.
    fn until(&self) -> Time {
        let quiet = self.last + SETTLE;
        self.enough_since.map_or(quiet, |since| quiet.min(since + self.longest))
    }

    /// Whether it still is.
    fn lasts(&self, now: Time) -> bool {
        now < self.until() && self.awaited.as_ref().is_none_or(|awaited| !awaited.is_empty())
    }
}

/// The upper side of one hop of one job.
///
/// Invariants: a member has at most one open task; each task is counted at
/// most once, and in the journal before it is answered; a model is made of
/// all that was counted since the last one and of nothing else; rounds and
/// versions only grow.
#[derive(Debug)]
pub struct Coordinator {
    terms: Terms,
    /// What outlives this process.
    ledger: Ledger,
    /// Records since the last snapshot.
    records: usize,
    members: BTreeMap<String, Member>,
    /// Members whose links were lost while they were at work, and when; some
    /// may be back, or done, since.
    lost: BTreeSet<(Time, String)>,
    begun_at: Time,
    /// Since when there were enough members to begin, though not all.
    gathering_since: Option<Time>,
    /// Until the first round of this process.
    settling: Option<Settling>,
    /// Whether the first round waits for that even if it needs few members.
    holds: bool,
    /// Members that are there and can be asked for work.
    able: usize,
    /// Whether the model that ends a stretch was already announced.
    announced: bool,
    stepped_at: Option<Time>,
}

impl Coordinator {
    /// Knows nobody yet, and has nothing to do.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            ledger: Ledger::default(),
            records: 0,
            members: BTreeMap::new(),
            lost: BTreeSet::new(),
            begun_at: Time::ZERO,
            gathering_since: None,
            settling: Some(Settling::default()),
            holds: false,
            able: 0,
            announced: true,
            stepped_at: None,
        }
    }

    /// What a journal leads to, and what is to be done again: updates that
    /// count for a model that isn't made yet, to be added once more.
    #[must_use]
    pub fn restored(terms: Terms, journal: impl IntoIterator<Item = Record>, now: Time) -> (Self, Vec<Action>) {
        let mut it = Self::new(terms);
        for record in journal {
            it.apply(record);
        }
        // Whoever took part before is waited for, a moment long; who hasn't come
        // by then may be away for good.
        let awaited: BTreeSet<String> = it.ledger.taking_part().map(str::to_owned).collect();
        let longest = if awaited.is_empty() { GATHER } else { SETTLE };
        it.begun_at = now;
        it.settling =
            Some(Settling { last: now, enough_since: None, longest, awaited: Some(awaited).filter(|a| !a.is_empty()) });
        // Whoever doesn't come back is away from now on.
        let away = Member { lost_at: Some(now), asked_at: now, ..Member::default() };
        it.members = it.ledger.members.keys().map(|name| (name.clone(), away.clone())).collect();
        it.lost = it.ledger.open().map(|(_, assigned)| (now, assigned.member.clone())).collect();
        let learned = |(assigned, _): &(&AssignedTask, &Update)| !assigned.evaluate;
        let add = |(assigned, update)| it.add(assigned, update);
        let mut actions: Vec<Action> = it.ledger.closed().filter(learned).map(add).collect();
        actions.extend(it.make());
        actions.extend(it.ledger.waiting().filter(learned).map(add));
        it.announced = it.ledger.until == 0;
        if !it.announced && it.ledger.is_idle() {
            it.announce(&mut actions);
        }
        (it, actions)
    }

    /// Members agree on something before the first round: it waits until no
    /// others come, however few it needs.
    pub fn hold_until_settled(&mut self) {
        self.holds = true;
    }

    fn add(&self, assigned: &AssignedTask, update: &Update) -> Action {
        let staleness = self.ledger.staleness(assigned);
        let (member, update) = (assigned.member.clone(), update.clone());
        Action::Add { member, update, version: assigned.version, staleness }
    }

    fn apply(&mut self, record: Record) {
        self.records = if record.replaces_earlier() { 0 } else { self.records + 1 };
        self.ledger.apply(record);
        if !self.terms.sums_up {
            self.ledger.so_far.clear();
        }
    }

    fn keep(&mut self, record: Record, out: &mut Vec<Action>) {
        self.apply(record.clone());
        out.push(Action::Keep(record));
    }

    /// Keeps the journal about as long as its snapshot, at twice the cost of
    /// writing each record.
    fn compact(&mut self, out: &mut Vec<Action>) {
        if self.records > self.ledger.weight() {
            self.keep(Record::Snapshot(Box::new(self.ledger.clone())), out);
        }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            Event::Begin { version, rounds, evaluate, stretch } => {
                // Asked again by who was killed meanwhile: told again when it is done.
                self.announced = false;
                if !self.knows(stretch) {
                    // What was asked for before is of no use to what begins.
                    self.drop_all(|_, _| true, out);
                    self.keep(Record::Began { version, rounds, evaluate, stretch }, out);
                    self.compact(out);
                }
            }
            Event::Member { member, status } => self.reported(now, member, status, out),
            Event::Lost { member } => self.lost(now, &member),
            Event::Arrived { member, update } => self.arrived(now, member, update, out),
            Event::Unfit { member, task, reason } => self.unfit(member, task, reason, out),
            Event::Made { version, enough } => {
                let next = self.ledger.version + u64::from(!self.ledger.evaluates());
                if self.ledger.making.is_some() && version == next {
                    self.keep(Record::Made { version, enough }, out);
                    // Answers that would come too late aren't waited for.
                    if matches!(self.terms.timing, Timing::Buffer { .. }) {
                        self.drop_all(Self::too_stale, out);
                    }
                    self.compact(out);
                }
            }
            Event::Pause if !self.ledger.paused => self.keep(Record::Paused, out),
            Event::Resume if self.ledger.paused => self.keep(Record::Resumed, out),
            Event::End if !self.ledger.ended => {
                self.keep(Record::Ended, out);
                self.tell_all(out);
            }
            Event::Pause | Event::Resume | Event::End | Event::Wake => {}
        }
        self.go_on(now, out);
        self.stepped_at = Some(now);
        // What members are told is read from this machine when the shell gets
        // there: all of it must be in the journal by then.
        actions.sort_by_key(|action| !matches!(action, Action::Keep(_)));
        actions
    }

    /// Drops open tasks, and tells their members.
    fn drop_all(&mut self, which: impl Fn(&Self, &AssignedTask) -> bool, out: &mut Vec<Action>) {
        let open = self.ledger.open().filter(|(_, assigned)| which(self, assigned));
        let gone: Vec<(Task, String)> = open.map(|(task, assigned)| (task, assigned.member.clone())).collect();
        for (task, member) in gone {
            self.keep(Record::Dropped { task }, out);
            out.push(Action::Tell { member });
        }
    }

    fn tell_all(&self, out: &mut Vec<Action>) {
        let present = self.members.iter().filter(|(_, m)| m.present);
        out.extend(present.map(|(member, _)| Action::Tell { member: member.clone() }));
    }

    /// What a member is to do now.
    #[must_use]
    pub fn assignment(&self, member: &str) -> Assignment {
        let Self { ledger, .. } = self;
        if ledger.ended {
            return Assignment::Over { version: ledger.version };
        }
        if let Some(reason) = ledger.out(member) {
            return Assignment::Out { reason: reason.to_owned() };
        }
        match ledger.task_of(member).and_then(|task| Some((task, ledger.assigned(task)?))) {
            Some((task, assigned)) => {
                Assignment::Work { task, round: assigned.round, version: assigned.version, evaluate: assigned.evaluate }
            }
            None => Assignment::Wait,
        }
    }

    /// Whether just this update counts, for a model that isn't made yet.
    #[must_use]
    pub fn counts(&self, task: Task, digest: Digest) -> bool {
        let status = self.ledger.assigned(task).map(|assigned| &assigned.status);
        matches!(status, Some(TaskStatus::Counted(update) | TaskStatus::Closed(update)) if update.digest == digest)
    }

    /// Whether something may still come for a task, or is needed of it.
    #[must_use]
    pub fn needs(&self, task: Task) -> bool {
        self.ledger.assigned(task).is_some_and(|assigned| assigned.status != TaskStatus::Spent)
    }

    /// Whether the answer to a task holds nothing but a report.
    #[must_use]
    pub fn is_evaluation(&self, task: Task) -> bool {
        self.ledger.assigned(task).is_some_and(|assigned| assigned.evaluate)
    }

    /// Whether the latest stretch is this one, under way or done.
    #[must_use]
    pub fn knows(&self, stretch: u64) -> bool {
        stretch == self.ledger.stretch && self.ledger.until > 0
    }

    /// Whether this stretch is under way, and how many of its rounds make a
    /// model still, the one under way included.
    #[must_use]
    pub fn left_of(&self, stretch: u64) -> Option<u64> {
        let Ledger { until, round, evaluate, .. } = self.ledger;
        self.knows(stretch).then(|| until.saturating_sub(round + u64::from(evaluate)))
    }

    /// Members that were asked for a round and weren't given up.
    #[must_use]
    pub fn asked(&self, round: u64) -> BTreeSet<&str> {
        let asked = self.ledger.all_given().filter(|assigned| assigned.round == round);
        asked.map(|assigned| assigned.member.as_str()).collect()
    }

    /// The newest model.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.ledger.version
    }

    /// The model that the stretch under way began with.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.ledger.base
    }

    /// Models that members may still start from, oldest first.
    #[must_use]
    pub fn versions_in_use(&self) -> BTreeSet<u64> {
        let tasks = self.ledger.all_given();
        let used = tasks.filter(|assigned| assigned.status != TaskStatus::Spent).map(|assigned| assigned.version);
        used.chain([self.ledger.version]).collect()
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.ledger {
            it if it.ended => Phase::Ended,
            it if it.making.is_some() => Phase::Making,
            it if it.is_idle() => Phase::Idle,
            it if it.paused => Phase::Paused,
            it if it.goal.is_some() => Phase::Working,
            _ => Phase::Gathering,
        }
    }

    /// How far the round under way is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            round: self.ledger.round,
            counted: self.ledger.waiting().len(),
            goal: self.ledger.goal.unwrap_or(0),
            ready: self.members.iter().filter(|(name, m)| m.is_able() && self.ledger.out(name).is_none()).count(),
            members: self.members.len(),
        }
    }

    /// Whether a member was heard of, and is not one too many.
    #[must_use]
    pub fn knows_member(&self, member: &str) -> bool {
        self.members.contains_key(member)
    }

    /// Members that can't be reached.
    #[must_use]
    pub fn away(&self) -> Vec<&str> {
        let away = self.members.iter().filter(|(name, m)| !m.present && self.ledger.out(name).is_none());
        away.map(|(name, _)| name.as_str()).collect()
    }

    /// Members left out, and why.
    #[must_use]
    pub fn excluded(&self) -> Vec<(&str, &str)> {
        let members = self.ledger.members.iter();
        members.filter_map(|(name, kept)| Some((name.as_str(), kept.out.as_deref()?))).collect()
    }
}

impl Member {
    /// Whether it is there, and can be asked for work.
    fn is_able(&self) -> bool {
        self.present && self.may_work()
    }

    /// Whether it can be asked for work, if it is there.
    fn may_work(&self) -> bool {
        matches!(self.status, Some(MemberStatus::Ready { .. }))
    }

    fn examples(&self) -> u64 {
        match self.status {
            Some(MemberStatus::Ready { examples }) => examples,
            _ => 0,
        }
    }
}
