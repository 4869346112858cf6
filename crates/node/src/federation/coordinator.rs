//! The upper side of a hop: whom to ask, what counts, when a round ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tierline_federate::{Candidate, Clients, Counted, Late, Timing, select};

use super::{Assignment, Standing, Task, Update, Verdict};
use crate::Rng;
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
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Run some rounds from a model that is there.
    Begin {
        /// The model.
        version: u64,
        /// Rounds to run from here on.
        rounds: u64,
        /// Whether members look at the model that they lead to, in one more
        /// round that makes none.
        look: bool,
        /// What asked for it: told back when they are done.
        stretch: u64,
    },
    /// A member's link is there, or its standing changed.
    Member {
        /// Who.
        member: String,
        /// What it is at.
        standing: Standing,
    },
    /// A member's link is gone.
    Lost {
        /// Who.
        member: String,
    },
    /// An update lies safely on the disk and was found fit.
    Arrived {
        /// Whose.
        member: String,
        /// The update.
        update: Update,
    },
    /// An update can't be used.
    Unfit {
        /// Whose.
        member: String,
        /// The task it answers.
        task: Task,
        /// What is wrong with it.
        reason: String,
    },
    /// The model of [`Action::Make`] is made and kept, or [`Action::Looked`]
    /// is dealt with.
    Made {
        /// Its number.
        version: u64,
        /// Whether the job has reached what it is for.
        enough: bool,
    },
    /// No new work is given out.
    Pause,
    /// Work goes on.
    Resume,
    /// The job is over, for whatever reason: members are let go.
    End,
    /// The time [`Coordinator::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write to the journal, through to the disk.
    Keep(Record),
    /// Tell a member its [`Coordinator::assignment`].
    Tell {
        /// Who.
        member: String,
    },
    /// Answer a member that sent an update.
    Answer {
        /// Who.
        member: String,
        /// The task it was sent for.
        task: Task,
        /// What became of it.
        verdict: Verdict,
    },
    /// Add the update to what the next model is made of.
    Add {
        /// Whose.
        member: String,
        /// The update.
        update: Update,
        /// The model it starts from.
        version: u64,
        /// How many models old that is.
        staleness: u64,
    },
    /// Make the next model of what was added; then [`Event::Made`].
    Make {
        /// The model's number.
        version: u64,
        /// The round that it ends.
        round: u64,
        /// What it is made of.
        counted: Vec<Counted>,
        /// Members there are.
        members: usize,
        /// Whether it is the last of its stretch.
        last: bool,
    },
    /// Members have looked at the newest model; then [`Event::Made`] with its
    /// number.
    Looked {
        /// That number.
        version: u64,
        /// What they say; nothing when all of them are gone.
        counted: Vec<Counted>,
    },
    /// All rounds of a stretch are done.
    Done {
        /// What asked for it.
        stretch: u64,
        /// The model it led to.
        version: u64,
        /// What was counted in it: for what this node sends further up.
        counted: Vec<Counted>,
    },
    /// A member is left out.
    Excluded {
        /// Who.
        member: String,
        /// Why.
        reason: String,
    },
}

/// What the journal holds, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// A stretch began.
    Began {
        /// The model.
        version: u64,
        /// Rounds to run.
        rounds: u64,
        /// Whether members look at the last model.
        look: bool,
        /// What asked for it.
        stretch: u64,
    },
    /// Work was given out.
    Asked {
        /// The round.
        round: u64,
        /// The model to start from.
        version: u64,
        /// How many answers are enough.
        goal: usize,
        /// Whether nothing is to be learned.
        look: bool,
        /// What, to whom.
        tasks: Vec<(Task, String)>,
    },
    /// An update counts.
    Counted {
        /// Whose.
        member: String,
        /// The update.
        update: Update,
    },
    /// A task will get no answer that counts.
    Dropped {
        /// Which.
        task: Task,
    },
    /// The next model is to be made of these, and of nothing that is counted
    /// from now on.
    Closed {
        /// What counts for it.
        tasks: Vec<Task>,
    },
    /// That model is made.
    Made {
        /// Its number.
        version: u64,
        /// Whether that was enough.
        enough: bool,
    },
    /// A member is left out.
    Excluded {
        /// Who.
        member: String,
        /// Why.
        reason: String,
    },
    /// No new work.
    Paused,
    /// Work again.
    Resumed,
    /// The job is over.
    Ended,
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
    standing: Option<Standing>,
    present: bool,
    /// When its link was lost.
    lost_at: Option<Time>,
    out: Option<String>,
    failures: u32,
    last: Option<select::Last>,
    /// Rounds for which it was looked for, and those in which it was there.
    seen: (u64, u64),
    /// The latest task that it was given and has not answered.
    task: Option<Task>,
}

#[derive(Debug, Clone, PartialEq)]
struct Given {
    member: String,
    round: u64,
    version: u64,
    look: bool,
    /// Unknown after a restart: counted from then.
    at: Time,
    fate: Fate,
}

#[derive(Debug, Clone, PartialEq)]
enum Fate {
    /// No answer yet.
    Open,
    /// Its answer counts, for a model to come.
    Counted(Update),
    /// Its answer counts for the model that is being made.
    Closed(Update),
    /// Its answer counted for a model that is made.
    Spent,
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
    members: BTreeMap<String, Member>,
    tasks: BTreeMap<Task, Given>,
    next_task: u64,
    /// The round under way.
    round: u64,
    /// The newest model.
    version: u64,
    /// The model that the stretch began with.
    base: u64,
    /// End of the stretch (one past its last round), and its name.
    until: u64,
    stretch: u64,
    /// Whether the stretch's last round only looks at its model.
    look: bool,
    /// What the stretch counted so far.
    so_far: Vec<Counted>,
    /// Answers that are enough for the round under way; `None` before it began.
    goal: Option<usize>,
    begun_at: Time,
    /// Since when there were enough members to begin, though not all.
    gathering_since: Option<Time>,
    /// When the last member came, until the first round of this process.
    settling: Option<Time>,
    making: bool,
    paused: bool,
    ended: bool,
    /// Whether the model that ends a stretch was already announced.
    announced: bool,
}

impl Coordinator {
    /// Knows nobody yet, and has nothing to do.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            members: BTreeMap::new(),
            tasks: BTreeMap::new(),
            next_task: 0,
            round: 0,
            version: 0,
            base: 0,
            until: 0,
            stretch: 0,
            look: false,
            so_far: Vec::new(),
            goal: None,
            begun_at: Time::ZERO,
            gathering_since: None,
            settling: Some(Time::ZERO),
            making: false,
            paused: false,
            ended: false,
            announced: true,
        }
    }

    /// What a journal leads to, and what is to be done again: updates that
    /// count for a model that isn't made yet, to be added once more.
    #[must_use]
    pub fn restored(terms: Terms, journal: &[Record], now: Time) -> (Self, Vec<Action>) {
        let mut it = Self::new(terms);
        for record in journal {
            it.replay(record.clone(), now);
        }
        it.begun_at = now;
        it.settling = Some(now);
        // Whoever doesn't come back is away from now on.
        it.members.values_mut().for_each(|m| m.lost_at = Some(now));
        let closed = it.tasks.values().filter_map(|given| match &given.fate {
            Fate::Closed(update) if !given.look => Some(it.add(given, update)),
            _ => None,
        });
        let mut actions: Vec<Action> = closed.collect();
        actions.extend(it.making.then(|| it.make()));
        let waiting = it.waiting().filter(|(given, _)| !given.look);
        actions.extend(waiting.map(|(given, update)| it.add(given, update)));
        if !it.announced && it.round >= it.until {
            it.announce(&mut actions);
        }
        (it, actions)
    }

    /// What is counted for a model to come.
    fn waiting(&self) -> impl Iterator<Item = (&Given, &Update)> {
        self.tasks.values().filter_map(|given| match &given.fate {
            Fate::Counted(update) => Some((given, update)),
            _ => None,
        })
    }

    fn add(&self, given: &Given, update: &Update) -> Action {
        let staleness = self.staleness(given);
        let (member, update) = (given.member.clone(), update.clone());
        Action::Add { member, update, version: given.version, staleness }
    }

    /// Versions between the model that a task starts from and the last one
    /// before that which its answer counts for.
    fn staleness(&self, given: &Given) -> u64 {
        let later = self.making && !matches!(given.fate, Fate::Closed(_));
        self.version + u64::from(later) - given.version
    }

    /// What a record changes; the same in a running coordinator and in one
    /// that is restored.
    fn replay(&mut self, record: Record, now: Time) {
        match record {
            Record::Began { version, rounds, look, stretch } => {
                (self.version, self.base, self.stretch, self.look) = (version, version, stretch, look);
                self.until = self.round + rounds + u64::from(look);
                self.so_far.clear();
                self.goal = None;
                self.announced = false;
            }
            Record::Asked { round, version, goal, look, tasks } => {
                self.goal = Some(goal);
                for (task, member) in tasks {
                    self.next_task = self.next_task.max(task.0 + 1);
                    let entry = self.members.entry(member.clone()).or_default();
                    entry.task = Some(task);
                    self.tasks.insert(task, Given { member, round, version, look, at: now, fate: Fate::Open });
                }
            }
            Record::Counted { member, update } => {
                let task = update.task;
                if let Some(entry) = self.members.get_mut(&member) {
                    entry.task = entry.task.filter(|t| *t != task);
                    entry.failures = 0;
                }
                // Whoever answers this has heard what became of its earlier answers.
                self.tasks.retain(|&other, g| !(other < task && g.member == member && g.fate == Fate::Spent));
                let staleness = self.tasks.get(&task).map_or(0, |given| self.staleness(given));
                self.so_far.push(Counted { member, report: update.report, staleness });
                if let Some(given) = self.tasks.get_mut(&task) {
                    given.fate = Fate::Counted(update);
                }
            }
            Record::Dropped { task } => {
                if let Some(given) = self.tasks.remove(&task)
                    && let Some(member) = self.members.get_mut(&given.member)
                {
                    member.task = member.task.filter(|t| *t != task);
                }
            }
            Record::Closed { tasks } => {
                self.making = true;
                for task in tasks {
                    if let Some(given) = self.tasks.get_mut(&task)
                        && let Fate::Counted(update) = &given.fate
                    {
                        given.fate = Fate::Closed(update.clone());
                    }
                }
            }
            Record::Made { version, enough } => {
                self.making = false;
                self.version = version;
                self.round += 1;
                self.goal = None;
                if enough && self.round < self.until {
                    self.until = self.round + u64::from(self.look);
                }
                for given in self.tasks.values_mut() {
                    if matches!(given.fate, Fate::Closed(_)) {
                        given.fate = Fate::Spent;
                    }
                }
            }
            Record::Excluded { member, reason } => {
                let entry = self.members.entry(member).or_default();
                entry.out = Some(reason);
            }
            Record::Paused => self.paused = true,
            Record::Resumed => self.paused = false,
            Record::Ended => self.ended = true,
        }
    }

    fn keep(&mut self, record: Record, now: Time, out: &mut Vec<Action>) {
        self.replay(record.clone(), now);
        out.push(Action::Keep(record));
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            Event::Begin { version, rounds, look, stretch } => {
                if self.knows(stretch) {
                    // Asked again by who was killed meanwhile: told again when it is done.
                    self.announced = false;
                } else {
                    self.keep(Record::Began { version, rounds, look, stretch }, now, out);
                    self.tell_all(out);
                }
            }
            Event::Member { member, standing } => self.member(now, member, standing, out),
            Event::Lost { member } => {
                if let Some(entry) = self.members.get_mut(&member).filter(|m| m.present) {
                    entry.present = false;
                    entry.lost_at = Some(now);
                }
            }
            Event::Arrived { member, update } => self.arrived(now, member, update, out),
            Event::Unfit { member, task, reason } => self.unfit(now, member, task, reason, out),
            Event::Made { version, enough } => {
                if self.making && version == self.version + u64::from(!self.looks()) {
                    self.keep(Record::Made { version, enough }, now, out);
                    self.tell_all(out);
                }
            }
            Event::Pause if !self.paused => self.keep(Record::Paused, now, out),
            Event::Resume if self.paused => self.keep(Record::Resumed, now, out),
            Event::End if !self.ended => {
                self.keep(Record::Ended, now, out);
                self.tell_all(out);
            }
            Event::Pause | Event::Resume | Event::End | Event::Wake => {}
        }
        self.go_on(now, out);
        // What members are told is read from this machine when the shell gets
        // there: all of it must be in the journal by then.
        actions.sort_by_key(|action| !matches!(action, Action::Keep(_)));
        actions
    }

    /// What a member is to do now.
    #[must_use]
    pub fn assignment(&self, member: &str) -> Assignment {
        if self.ended {
            return Assignment::Over { version: self.version };
        }
        let Some(entry) = self.members.get(member) else { return Assignment::Wait };
        if let Some(reason) = &entry.out {
            return Assignment::Out { reason: reason.clone() };
        }
        match entry.task.and_then(|task| Some((task, self.tasks.get(&task)?))) {
            Some((task, given)) => {
                Assignment::Work { task, round: given.round, version: given.version, look: given.look }
            }
            None => Assignment::Wait,
        }
    }

    /// Whether the round under way makes no model: its members look at the
    /// newest one.
    fn looks(&self) -> bool {
        self.look && self.round + 1 == self.until
    }

    /// Whether the answer to a task holds nothing but a report.
    #[must_use]
    pub fn is_look(&self, task: Task) -> bool {
        self.tasks.get(&task).is_some_and(|given| given.look)
    }

    /// Whether the latest stretch is this one, under way or done.
    #[must_use]
    pub fn knows(&self, stretch: u64) -> bool {
        stretch == self.stretch && self.until > 0
    }

    /// The newest model.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The model that the stretch under way began with.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Models that members may still start from, oldest first.
    #[must_use]
    pub fn versions_in_use(&self) -> BTreeSet<u64> {
        let used = self
            .tasks
            .values()
            .filter(|g| matches!(g.fate, Fate::Open | Fate::Counted(_) | Fate::Closed(_)))
            .map(|g| g.version);
        used.chain([self.version]).collect()
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match () {
            () if self.ended => Phase::Ended,
            () if self.making => Phase::Making,
            () if self.round >= self.until => Phase::Idle,
            () if self.paused => Phase::Paused,
            () if self.goal.is_some() => Phase::Working,
            () => Phase::Gathering,
        }
    }

    /// How far the round under way is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            round: self.round,
            counted: self.waiting().count(),
            goal: self.goal.unwrap_or(0),
            ready: self.members.values().filter(|m| m.able()).count(),
            members: self.members.len(),
        }
    }

    /// Members left out, and why.
    #[must_use]
    pub fn excluded(&self) -> Vec<(&str, &str)> {
        self.members.iter().filter_map(|(name, m)| Some((name.as_str(), m.out.as_deref()?))).collect()
    }

    /// When the machine wants `Wake`.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        if self.making || self.paused || self.ended || self.round >= self.until {
            return None;
        }
        let patience = self.terms.clients.patience();
        let away = self.members.values().filter(|m| m.task.is_some()).filter_map(|m| m.lost_at).map(|t| t + patience);
        let deadline = self.goal.and(self.terms.clients.deadline()).map(|d| self.begun_at + d);
        let gather = self.goal.is_none().then_some(self.gathering_since).flatten().map(|t| t + GATHER);
        let settle = self.goal.is_none().then_some(self.settling).flatten().map(|t| t + SETTLE);
        away.chain(deadline).chain(gather).chain(settle).min()
    }

    fn tell_all(&self, out: &mut Vec<Action>) {
        out.extend(
            self.members.iter().filter(|(_, m)| m.present).map(|(member, _)| Action::Tell { member: member.clone() }),
        );
    }

    fn member(&mut self, now: Time, member: String, standing: Standing, out: &mut Vec<Action>) {
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&member) {
            return;
        }
        let entry = self.members.entry(member.clone()).or_default();
        if !entry.present || entry.standing.as_ref() != Some(&standing) {
            self.settling = self.settling.map(|_| now);
        }
        entry.present = true;
        entry.lost_at = None;
        if let Standing::Failed { task, reason } = &standing {
            let (task, reason) = (*task, reason.clone());
            if entry.task == Some(task) {
                entry.failures += 1;
                let failures = entry.failures;
                self.keep(Record::Dropped { task }, now, out);
                if failures >= FAILURES_MAX {
                    self.exclude(
                        now,
                        &member,
                        format!("{failures} tasks in a row failed, the last one with: {reason}"),
                        out,
                    );
                }
                out.push(Action::Tell { member });
            }
            return;
        }
        let unable = matches!(standing, Standing::Unable { .. });
        entry.standing = Some(standing);
        if let (true, Some(task)) = (unable, entry.task) {
            self.keep(Record::Dropped { task }, now, out);
        }
        out.push(Action::Tell { member });
    }

    fn exclude(&mut self, now: Time, member: &str, reason: String, out: &mut Vec<Action>) {
        if let Some(task) = self.members.get(member).and_then(|m| m.task) {
            self.keep(Record::Dropped { task }, now, out);
        }
        let (member, kept) = (member.to_owned(), reason.clone());
        self.keep(Record::Excluded { member: member.clone(), reason: kept }, now, out);
        out.push(Action::Excluded { member, reason });
    }

    /// What would become of an answer to a task, without taking it: lets the
    /// shell refuse bytes before they come.
    #[must_use]
    pub fn would(&self, member: &str, task: Task) -> Verdict {
        let Some(given) = self.tasks.get(&task).filter(|g| g.member == member) else {
            // Given once, and dropped since.
            return if task.0 < self.next_task { Verdict::Late } else { Verdict::Unknown };
        };
        match given.fate {
            Fate::Counted(_) | Fate::Closed(_) | Fate::Spent => Verdict::Counted,
            Fate::Open if self.too_stale(given) => Verdict::Late,
            // Not counted, and not refused.
            Fate::Open => Verdict::Refused { reason: String::new() },
        }
    }

    /// Whether the answer to a task would be taken.
    #[must_use]
    pub fn wants(&self, member: &str, task: Task) -> bool {
        matches!(self.would(member, task), Verdict::Refused { reason } if reason.is_empty())
    }

    fn too_stale(&self, given: &Given) -> bool {
        // Nothing that was learned before counts any more.
        if self.looks() && !given.look {
            return true;
        }
        match self.terms.timing {
            Timing::Buffer { staleness_max, .. } => self.version - given.version > staleness_max,
            Timing::Round => given.round < self.round && self.terms.clients.late == Late::Refuse,
        }
    }

    fn arrived(&mut self, now: Time, member: String, update: Update, out: &mut Vec<Action>) {
        let task = update.task;
        if !self.wants(&member, task) {
            self.decline(now, member, task, out);
            return;
        }
        let Some(given) = self.tasks.get(&task).cloned() else { return };
        if let Some(entry) = self.members.get_mut(&member) {
            let seconds = now.since(given.at).as_secs_f64();
            entry.last = Some(select::Last { loss: update.report.loss, seconds, round: given.round });
        }
        self.keep(Record::Counted { member: member.clone(), update: update.clone() }, now, out);
        if !given.look {
            out.push(self.add(&given, &update));
        }
        out.push(Action::Answer { member: member.clone(), task, verdict: Verdict::Counted });
        out.push(Action::Tell { member });
    }

    /// Says what became of an answer that isn't taken.
    fn decline(&mut self, now: Time, member: String, task: Task, out: &mut Vec<Action>) {
        let verdict = self.would(&member, task);
        let open = self.tasks.get(&task).is_some_and(|g| g.member == member && g.fate == Fate::Open);
        if open {
            self.keep(Record::Dropped { task }, now, out);
        }
        out.push(Action::Answer { member: member.clone(), task, verdict });
        out.push(Action::Tell { member });
    }

    fn unfit(&mut self, now: Time, member: String, task: Task, reason: String, out: &mut Vec<Action>) {
        if !self.wants(&member, task) {
            self.decline(now, member, task, out);
            return;
        }
        // One bad update is one too many: what made it will make others.
        self.exclude(now, &member, reason.clone(), out);
        out.push(Action::Answer { member: member.clone(), task, verdict: Verdict::Refused { reason } });
        out.push(Action::Tell { member });
    }

    /// Begins, fills and ends rounds.
    fn go_on(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.making || self.ended {
            return;
        }
        if self.round >= self.until {
            if !self.announced {
                self.announce(out);
            }
            return;
        }
        if self.goal.is_some() {
            self.give_up_on_the_lost(now, out);
            if self.is_full(now) {
                let counted = |given: &Given| matches!(given.fate, Fate::Counted(_));
                let tasks = self.tasks.iter().filter(|(_, g)| counted(g)).map(|(task, _)| *task).collect();
                self.keep(Record::Closed { tasks }, now, out);
                out.push(self.make());
                return;
            }
        }
        if self.paused {
            return;
        }
        match self.terms.timing {
            Timing::Buffer { size, .. } if !self.looks() => self.ask_more(now, size, out),
            _ => self.ask_round(now, out),
        }
    }

    fn announce(&mut self, out: &mut Vec<Action>) {
        self.announced = true;
        let counted = self.so_far.clone();
        out.push(Action::Done { stretch: self.stretch, version: self.version, counted });
    }

    /// Drops tasks of members that have been away too long.
    fn give_up_on_the_lost(&mut self, now: Time, out: &mut Vec<Action>) {
        let patience = self.terms.clients.patience();
        let gone: Vec<Task> = self
            .members
            .values()
            .filter(|m| m.lost_at.is_some_and(|at| now.since(at) >= patience))
            .filter_map(|m| m.task)
            .collect();
        gone.into_iter().for_each(|task| self.keep(Record::Dropped { task }, now, out));
    }

    /// Whether the next model can be made.
    fn is_full(&self, now: Time) -> bool {
        let counted = self.waiting().count();
        let goal = self.goal.unwrap_or(usize::MAX);
        if counted >= goal {
            return true;
        }
        // A model that is made doesn't wait for those who would look at it.
        let enough = self.looks() || counted >= self.terms.clients.min.min(goal) && counted > 0;
        let late = self.terms.clients.deadline().is_some_and(|d| now.since(self.begun_at) >= d);
        let together = self.looks() || matches!(self.terms.timing, Timing::Round);
        let nobody_left = together && !self.open().any(|g| g.round == self.round);
        enough && (late || nobody_left)
    }

    fn open(&self) -> impl Iterator<Item = &Given> {
        self.tasks.values().filter(|given| given.fate == Fate::Open)
    }

    fn make(&self) -> Action {
        let counted = self.tasks.values().filter_map(|given| match &given.fate {
            Fate::Closed(update) => {
                Some(Counted { member: given.member.clone(), report: update.report, staleness: self.staleness(given) })
            }
            _ => None,
        });
        if self.looks() {
            return Action::Looked { version: self.version, counted: counted.collect() };
        }
        let members = self.members.values().filter(|m| m.out.is_none()).count();
        Action::Make {
            version: self.version + 1,
            round: self.round,
            counted: counted.collect(),
            members,
            last: self.round + 1 + u64::from(self.look) >= self.until,
        }
    }

    /// Members that may be asked now.
    fn eligible(&self) -> Vec<&str> {
        self.members.iter().filter(|(_, m)| m.able() && m.task.is_none()).map(|(name, _)| name.as_str()).collect()
    }

    /// Asks members for the round under way: all that it needs, or, when too
    /// many were lost, others in their place.
    fn ask_round(&mut self, now: Time, out: &mut Vec<Action>) {
        let Clients { per_round, min, over, .. } = self.terms.clients;
        // Everybody who is there looks.
        let (per_round, min) = if self.looks() { (None, 0) } else { (per_round, min) };
        // Whoever still works for a round that is over is not asked until it
        // answers or is told to stop.
        if (self.terms.clients.late == Late::Refuse || self.looks()) && self.goal.is_none() {
            let stale: Vec<(Task, String)> =
                self.tasks.iter().filter(|(_, g)| g.fate == Fate::Open).map(|(t, g)| (*t, g.member.clone())).collect();
            for (task, member) in stale {
                self.keep(Record::Dropped { task }, now, out);
                out.push(Action::Tell { member });
            }
        }
        let eligible = self.eligible().len();
        let counted = self.waiting().count();
        if self.goal.is_none() {
            let wanted = match per_round {
                // Members that are away for a moment may want to look as well.
                None if self.looks() => self.members.values().filter(|m| m.may_work()).count(),
                None => eligible.max(min),
                Some(n) => ((n as f64 * over).ceil() as usize).max(min),
            };
            if eligible < min {
                self.gathering_since = None;
                return;
            }
            if eligible < wanted {
                let since = *self.gathering_since.get_or_insert(now);
                if now.since(since) < GATHER {
                    return;
                }
            }
            if per_round.is_none() && self.settling.is_some_and(|at| now.since(at) < SETTLE) {
                return;
            }
            (self.gathering_since, self.settling) = (None, None);
            self.begun_at = now;
            let goal = per_round.unwrap_or(eligible).min(eligible).max(min);
            let count = wanted.min(eligible);
            self.note_presence();
            self.ask(now, goal, count, out);
            return;
        }
        // All that were asked have answered or were lost, and it isn't enough.
        let goal = self.goal.unwrap_or(min);
        let open = self.open().filter(|g| g.round == self.round).count();
        if open == 0 && counted < min {
            let answered: BTreeSet<&str> = self.waiting().map(|(given, _)| given.member.as_str()).collect();
            let fresh = self.eligible().iter().filter(|m| !answered.contains(*m)).count();
            if fresh > 0 {
                self.begun_at = now;
                self.ask(now, goal, (min - counted).min(fresh), out);
            }
        }
    }

    /// Keeps as many members at work as there should be.
    fn ask_more(&mut self, now: Time, size: usize, out: &mut Vec<Action>) {
        let Clients { per_round, min, .. } = self.terms.clients;
        let eligible = self.eligible().len();
        let open = self.open().count();
        let able = eligible + open;
        if self.goal.is_none() && able < min {
            return;
        }
        let places = per_round.unwrap_or(able).saturating_sub(open).min(eligible);
        if places > 0 || self.goal.is_none() {
            if self.goal.is_none() {
                self.begun_at = now;
                self.note_presence();
            }
            self.ask(now, size, places, out);
        }
    }

    fn note_presence(&mut self) {
        for member in self.members.values_mut() {
            member.seen.0 += 1;
            member.seen.1 += u64::from(member.present);
        }
    }

    fn ask(&mut self, now: Time, goal: usize, count: usize, out: &mut Vec<Action>) {
        let answered: BTreeSet<&str> = match self.terms.timing {
            Timing::Round => self.waiting().map(|(given, _)| given.member.as_str()).collect(),
            Timing::Buffer { .. } => BTreeSet::new(),
        };
        let candidates: Vec<Candidate<'_>> = self
            .members
            .iter()
            .filter(|(name, m)| m.able() && m.task.is_none() && !answered.contains(name.as_str()))
            .map(|(name, m)| Candidate {
                member: name,
                examples: m.examples(),
                available: m.seen.1 as f64 / m.seen.0.max(1) as f64,
                last: m.last,
            })
            .collect();
        // The same after a restart, whatever was drawn before.
        let mut rng = Rng::with_seed(self.terms.seed ^ self.next_task.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let chosen = self.terms.clients.select.choose(&candidates, count, self.round, &mut rng);
        let names: Vec<String> = chosen.into_iter().map(|i| candidates[i].member.to_owned()).collect();
        let tasks: Vec<(Task, String)> = (self.next_task..).map(Task).zip(names).collect();
        let (round, version) = (self.round, self.version);
        let told: Vec<String> = tasks.iter().map(|(_, member)| member.clone()).collect();
        self.keep(Record::Asked { round, version, goal, look: self.looks(), tasks }, now, out);
        out.extend(told.into_iter().map(|member| Action::Tell { member }));
    }
}

impl Member {
    /// Whether it can be asked for work.
    fn able(&self) -> bool {
        self.present && self.may_work()
    }

    /// Whether it can be asked for work, if it is there.
    fn may_work(&self) -> bool {
        self.out.is_none() && matches!(self.standing, Some(Standing::Ready { .. }))
    }

    fn examples(&self) -> u64 {
        match self.standing {
            Some(Standing::Ready { examples }) => examples,
            _ => 0,
        }
    }
}
