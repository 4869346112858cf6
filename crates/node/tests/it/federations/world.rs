//! A coordinator and its members under virtual time: links that delay, lose
//! and repeat, processes that are killed between any two actions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tierline_federate::{Clients, Report, Timing};
use tierline_node::federation::{
    Action, Assignment, Coordinator, Event, MemberAction, MemberEvent, MemberStatus, Participant, Record, Task, Terms,
    Update, Verdict,
};
use tierline_node::{Rng, Time};
use tierline_proto::Digest;

use crate::harness::{Link, Schedule, ms};

pub const STEP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub enum Happening {
    ToMember(usize, u64, Assignment),
    ToCoordinator(usize, MemberStatus),
    Submitted(usize, Update),
    Answered(usize, u64, Task, Verdict),
    Unsent(usize, u64, Task),
    Prepared(usize, u64),
    Worked(usize, u64, Task),
    Made(u64, u64),
    KillCoordinator,
    StartCoordinator,
    KillMember(usize),
    StartMember(usize),
    Order(Event),
    Tick,
}

/// A member's process: what dies with it, and what is on its disk.
pub struct Member {
    pub running: Option<Participant>,
    /// Grows with every start: what an earlier life was told is nobody's.
    pub life: u64,
    /// As it is on the disk.
    pub journal: Vec<String>,
    pub settled: BTreeMap<Task, bool>,
    pub finished: bool,
    pub bad: bool,
    pub fails: bool,
    /// Whether its next task fails.
    pub stumbles: bool,
}

pub struct World {
    pub schedule: Schedule<Happening>,
    pub rng: Rng,
    pub link: Link,
    pub terms: Terms,
    pub rounds: u64,
    /// Whether members evaluate the last model.
    pub evaluate: bool,
    pub evaluated: Option<(u64, BTreeSet<String>)>,
    pub coordinator: Option<Coordinator>,
    pub life: u64,
    /// As it is on the disk.
    pub journal: Vec<String>,
    /// Records and bytes of it, when it was longest.
    pub longest: (usize, usize),
    /// Restarts that began with a snapshot.
    pub from_snapshot: usize,
    /// Every update that was counted, in order.
    pub counted: Vec<Update>,
    /// What was added since the last model: dies with the process.
    pub added: BTreeSet<Task>,
    /// What each model was made of: on the disk.
    pub models: BTreeMap<u64, BTreeSet<Task>>,
    pub members: Vec<Member>,
    pub done: Option<u64>,
    /// Odds that a process dies before an action.
    pub mortality: f64,
}

pub fn name(member: usize) -> String {
    format!("end-{member:03}")
}

pub fn index(member: &str) -> usize {
    member[4..].parse().unwrap()
}

pub fn terms(clients: Clients, timing: Timing) -> Terms {
    Terms { clients, timing, seed: 7, tag: 0, sums_up: false }
}

/// Writes a record where it belongs in a journal.
pub fn write<R: Serialize>(journal: &mut Vec<String>, record: &R, replaces_earlier: bool) {
    if replaces_earlier {
        journal.clear();
    }
    journal.push(serde_json::to_string(record).unwrap());
}

pub fn read<R: DeserializeOwned>(journal: &[String]) -> Vec<R> {
    journal.iter().map(|record| serde_json::from_str(record).unwrap()).collect()
}

impl World {
    pub fn new(seed: u64, members: usize, rounds: u64, terms: Terms, link: Link) -> Self {
        let mut world = Self {
            schedule: Schedule::new(),
            rng: Rng::with_seed(seed),
            link,
            terms: terms.clone(),
            rounds,
            evaluate: false,
            evaluated: None,
            coordinator: None,
            life: 0,
            journal: Vec::new(),
            longest: (0, 0),
            from_snapshot: 0,
            counted: Vec::new(),
            added: BTreeSet::new(),
            models: BTreeMap::new(),
            members: Vec::new(),
            done: None,
            mortality: 0.0,
        };
        for member in 0..members {
            world.members.push(Member {
                running: None,
                life: 0,
                journal: Vec::new(),
                settled: BTreeMap::new(),
                finished: false,
                bad: false,
                fails: false,
                stumbles: false,
            });
            world.schedule.after(ms(member as u64), Happening::StartMember(member));
        }
        world.schedule.after(ms(1), Happening::StartCoordinator);
        world.schedule.after(STEP, Happening::Tick);
        world
    }

    pub fn carry(&mut self, happening: Happening) {
        // Once more now and then: what is repeated must change nothing.
        let copies = if self.rng.f64() < 0.05 { 2 } else { 1 };
        for _ in 0..copies {
            if let Some(delay) = self.link.carry(&mut self.rng) {
                self.schedule.after(delay, happening.clone());
            }
        }
    }

    pub fn dies(&mut self) -> bool {
        self.rng.f64() < self.mortality
    }

    pub fn coordinate(&mut self, event: Event) {
        let now = self.schedule.now();
        let Some(coordinator) = &mut self.coordinator else { return };
        let actions = coordinator.step(now, event);
        let wake = coordinator.wake();
        assert!(wake.is_none_or(|t| t > now), "woken at {now:?}, it wants to be again at {wake:?}");
        self.perform(actions);
    }

    pub fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            if self.dies() {
                self.kill_coordinator();
                return;
            }
            match action {
                Action::Keep(record) => {
                    write(&mut self.journal, &record, record.replaces_earlier());
                    let bytes = self.journal.iter().map(String::len).sum();
                    self.longest = (self.longest.0.max(self.journal.len()), self.longest.1.max(bytes));
                    if let Record::Counted { update, .. } = record {
                        self.counted.push(update);
                    }
                }
                Action::Tell { member } => {
                    let assignment = self.coordinator.as_ref().unwrap().assignment(&member);
                    let at = index(&member);
                    let life = self.members[at].life;
                    self.carry(Happening::ToMember(at, life, assignment));
                }
                Action::Answer { member, task, verdict } => {
                    let at = index(&member);
                    let life = self.members[at].life;
                    self.carry(Happening::Answered(at, life, task, verdict));
                }
                Action::Add { update, .. } => {
                    assert!(self.added.insert(update.task), "{:?} was added twice", update.task);
                }
                Action::Make { version, counted, .. } => {
                    let made = std::mem::take(&mut self.added);
                    assert_eq!(made.len(), counted.len(), "a model is made of what was counted");
                    if let Some(before) = self.models.insert(version, made.clone()) {
                        assert_eq!(before, made, "a model that is made again is the same");
                    }
                    let delay = Duration::from_millis(self.rng.u64(1..200));
                    self.schedule.after(delay, Happening::Made(self.life, version));
                }
                Action::Evaluated { version, counted } => {
                    let who: BTreeSet<String> = counted.iter().map(|c| c.member.clone()).collect();
                    if let Some(before) = self.evaluated.replace((version, who.clone())) {
                        assert_eq!(before, (version, who), "those who have evaluated did");
                    }
                    self.schedule.after(ms(10), Happening::Made(self.life, version));
                }
                Action::Done { version, .. } => self.done = Some(version),
                Action::Excluded { .. } => {}
            }
        }
    }

    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
        self.life += 1;
        self.added.clear();
        let delay = Duration::from_millis(self.rng.u64(1..5_000));
        self.schedule.after(delay, Happening::StartCoordinator);
    }

    pub fn kill_member(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.running = None;
        member.life += 1;
        let delay = Duration::from_millis(self.rng.u64(1..5_000));
        self.schedule.after(delay, Happening::StartMember(at));
        self.coordinate(Event::Lost { member: name(at) });
    }

    pub fn take_part(&mut self, at: usize, event: MemberEvent) {
        let now = self.schedule.now();
        let Some(participant) = &mut self.members[at].running else { return };
        let woken = event == MemberEvent::Wake;
        let actions = participant.step(now, &mut self.rng, event);
        let wake = participant.wake().filter(|_| woken);
        assert!(wake.is_none_or(|t| t > now), "{} is woken at {now:?}, and wants to be again at {wake:?}", name(at));
        self.perform_for(at, actions);
    }

    pub fn perform_for(&mut self, at: usize, actions: Vec<MemberAction>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            if self.dies() {
                return self.kill_member(at);
            }
            let life = self.members[at].life;
            match action {
                MemberAction::Prepare => {
                    let delay = Duration::from_millis(self.rng.u64(1..500));
                    self.schedule.after(delay, Happening::Prepared(at, life));
                }
                MemberAction::Keep(record) => {
                    write(&mut self.members[at].journal, &record, record.replaces_earlier());
                    let length = self.members[at].journal.len();
                    assert!(length <= 2, "{length} records of one task");
                }
                MemberAction::Report(status) => self.carry(Happening::ToCoordinator(at, status)),
                MemberAction::Work(work) => {
                    assert!(!work.evaluate || work.version == self.rounds, "only the last model is evaluated");
                    let slow = if at.is_multiple_of(7) { 20 } else { 1 };
                    let delay = Duration::from_millis(self.rng.u64(50..500) * slow);
                    self.schedule.after(delay, Happening::Worked(at, life, work.task));
                }
                MemberAction::Abandon(_) => {}
                MemberAction::Send(update) => {
                    let task = update.task;
                    self.carry(Happening::Submitted(at, update));
                    self.schedule.after(Duration::from_secs(2), Happening::Unsent(at, life, task));
                }
                MemberAction::Settle { task, counted } => {
                    let before = self.members[at].settled.insert(task, counted);
                    assert!(before.is_none_or(|b| b == counted), "{task:?} was settled both ways");
                }
                MemberAction::Finish { .. } | MemberAction::Leave { .. } => self.members[at].finished = true,
            }
        }
    }

    pub fn happen(&mut self, happening: Happening) {
        let now = self.schedule.now();
        match happening {
            Happening::ToMember(at, life, assignment) if self.members[at].life == life => {
                self.take_part(at, MemberEvent::Assigned(assignment));
            }
            Happening::ToCoordinator(at, status) if self.members[at].running.is_some() => {
                self.coordinate(Event::Member { member: name(at), status });
            }
            Happening::Submitted(at, update) => {
                let member = name(at);
                if self.members[at].bad {
                    let (task, reason) = (update.task, "not a number".to_owned());
                    self.coordinate(Event::Unfit { member, task, reason });
                } else {
                    self.coordinate(Event::Arrived { member, update });
                }
            }
            Happening::Answered(at, life, task, verdict) if self.members[at].life == life => {
                self.take_part(at, MemberEvent::Answered { task, verdict });
            }
            Happening::Unsent(at, life, task) if self.members[at].life == life => {
                self.take_part(at, MemberEvent::Unsent { task });
            }
            Happening::Prepared(at, life) if self.members[at].life == life => {
                self.take_part(at, MemberEvent::Prepared(Ok(100 + at as u64)));
            }
            Happening::Worked(at, life, task) if self.members[at].life == life => {
                let report = Report { examples: 100, steps: 10, effective_steps: 10.0, ..Report::default() };
                let update = Update { task, digest: Digest([at as u8; 32]), bytes: 1_000, report };
                let stumbles = std::mem::take(&mut self.members[at].stumbles);
                let result = if stumbles || self.members[at].fails { Err("no memory".to_owned()) } else { Ok(update) };
                self.take_part(at, MemberEvent::Worked { task, result });
            }
            Happening::Made(life, version) if self.life == life => {
                self.coordinate(Event::Made { version, enough: false });
            }
            Happening::Order(order) => {
                self.coordinate(order.clone());
                let resume = Duration::from_millis(self.rng.u64(1..15_000));
                match order {
                    // Whoever gives an order tries again until it is heard.
                    _ if self.coordinator.is_none() => self.schedule.after(ms(500), Happening::Order(order)),
                    Event::Pause => self.schedule.after(resume, Happening::Order(Event::Resume)),
                    _ => {}
                }
            }
            Happening::KillCoordinator if self.coordinator.is_some() => self.kill_coordinator(),
            Happening::KillMember(at) if self.members[at].running.is_some() => self.kill_member(at),
            Happening::StartCoordinator if self.coordinator.is_none() => {
                let journal: Vec<Record> = read(&self.journal);
                self.from_snapshot += usize::from(matches!(journal.first(), Some(Record::Snapshot(_))));
                let (coordinator, actions) = Coordinator::restored(self.terms.clone(), journal, now);
                self.coordinator = Some(coordinator);
                self.perform(actions);
                self.coordinate(Event::Begin { version: 0, rounds: self.rounds, evaluate: self.evaluate, stretch: 1 });
                // Links are made anew: members say what they are at.
                for at in 0..self.members.len() {
                    self.take_part(at, MemberEvent::LinkUp);
                }
            }
            Happening::StartMember(at) if self.members[at].running.is_none() => {
                let (participant, actions) = Participant::restored(read(&self.members[at].journal));
                self.members[at].running = Some(participant);
                self.perform_for(at, actions);
                if self.coordinator.is_some() {
                    self.take_part(at, MemberEvent::LinkUp);
                }
            }
            Happening::Tick => {
                if self.coordinator.as_ref().is_some_and(|c| c.wake().is_some_and(|t| t <= now)) {
                    self.coordinate(Event::Wake);
                }
                for at in 0..self.members.len() {
                    let due = self.members[at].running.as_ref().and_then(Participant::wake).is_some_and(|t| t <= now);
                    if due {
                        self.take_part(at, MemberEvent::Wake);
                    }
                }
                self.schedule.after(STEP, Happening::Tick);
            }
            _ => {}
        }
    }

    pub fn run_until(&mut self, time: Duration) {
        while let Some(happening) = self.schedule.next(Time::ZERO + time) {
            self.happen(happening);
        }
    }

    pub fn run(&mut self, limit: Duration) {
        let end = Time::ZERO + limit;
        while self.done.is_none() {
            match self.schedule.next(end) {
                Some(happening) => self.happen(happening),
                None => break,
            }
        }
        let phase = self.coordinator.as_ref().map(Coordinator::phase);
        let progress = self.coordinator.as_ref().map(Coordinator::progress);
        assert!(
            self.done.is_some(),
            "not done after {limit:?}: {phase:?} {progress:?}, models {:?}",
            self.models.len()
        );
        self.mortality = 0.0;
        // What is on its way still arrives, and everybody hears what became of theirs.
        let settle = self.schedule.now() + Duration::from_secs(120);
        while let Some(happening) = self.schedule.next(settle) {
            self.happen(happening);
        }
        self.check();
    }

    pub fn check(&self) {
        assert_eq!(self.models.len() as u64, self.rounds, "a model per round");
        assert_eq!(self.evaluated.as_ref().map(|(version, _)| *version), self.evaluate.then_some(self.rounds));
        let mut used: BTreeMap<Task, u64> = BTreeMap::new();
        for (version, tasks) in &self.models {
            for task in tasks {
                assert!(used.insert(*task, *version).is_none(), "{task:?} is in two models");
            }
        }
        let distinct: BTreeSet<Task> = self.counted.iter().map(|u| u.task).collect();
        assert_eq!(distinct.len(), self.counted.len(), "each task is counted once");
        for member in &self.members {
            for (task, was_counted) in &member.settled {
                assert_eq!(distinct.contains(task), *was_counted, "{task:?}: both sides agree on what became of it");
            }
        }
        // Whatever a model is made of was told to whoever made it.
        let told: BTreeSet<Task> = self
            .members
            .iter()
            .flat_map(|m| m.settled.iter().filter(|(_, counted)| **counted).map(|(t, _)| *t))
            .collect();
        assert!(used.keys().all(|task| told.contains(task)), "members know what was counted");
    }
}
