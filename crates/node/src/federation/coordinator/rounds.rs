//! Begins, fills and ends rounds.

use std::collections::BTreeSet;

use tierline_federate::{Candidate, Clients, Counted, Late, Timing};

use super::{Action, Coordinator, GATHER, Record, Settling};
use crate::Rng;
use crate::federation::Task;
use crate::time::Time;

impl Coordinator {
    /// When the machine wants [`Event::Wake`](super::Event::Wake): the next
    /// time at which something changes though nothing happens.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        let Self { ledger, terms, .. } = self;
        if ledger.making.is_some() || ledger.ended || ledger.is_idle() {
            return None;
        }
        let patience = terms.clients.patience();
        let away = self.lost.first().map(|(lost_at, _)| *lost_at + patience);
        let deadline = ledger.goal.and(terms.clients.deadline()).map(|d| self.begun_at + d);
        let together = ledger.evaluates() || matches!(terms.timing, Timing::Round);
        let before = ledger.goal.is_none() && !ledger.paused && (together || self.holds);
        let gather = before.then_some(self.gathering_since).flatten().map(|t| t + GATHER);
        let settle = self.settling.as_ref().filter(|_| before).map(Settling::until);
        // A time that the last step has seen has done what it does.
        let to_come = |time: &Time| self.stepped_at.is_none_or(|stepped| *time > stepped);
        away.into_iter().chain(deadline).chain(gather).chain(settle).filter(to_come).min()
    }

    /// Does whatever can be done now.
    pub(super) fn go_on(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.ledger.making.is_some() || self.ledger.ended {
            return;
        }
        if self.ledger.is_idle() {
            if !self.announced {
                self.announce(out);
            }
            return;
        }
        if self.ledger.goal.is_some() {
            self.give_up_on_the_lost(now, out);
            if self.is_full(now) {
                self.close(out);
                return;
            }
        }
        if self.ledger.paused {
            return;
        }
        match self.terms.timing {
            Timing::Buffer { size, .. } if !self.ledger.evaluates() => self.ask_more(now, size, out),
            _ => self.ask_round(now, out),
        }
        // One that evaluates a model and finds nobody to ask is over.
        if self.ledger.evaluates() && self.ledger.goal == Some(0) {
            self.close(out);
        }
    }

    /// Says that a stretch is done.
    pub(super) fn announce(&mut self, out: &mut Vec<Action>) {
        self.announced = true;
        let Self { ledger, .. } = self;
        let counted = ledger.so_far.clone();
        out.push(Action::Done { stretch: ledger.stretch, version: ledger.version, counted });
    }

    /// Drops tasks of members that have been away too long.
    fn give_up_on_the_lost(&mut self, now: Time, out: &mut Vec<Action>) {
        let patience = self.terms.clients.patience();
        while let Some((lost_at, member)) = self.lost.first().cloned() {
            let still = self.members.get(&member).is_some_and(|m| m.lost_at == Some(lost_at));
            let task = self.ledger.task_of(&member).filter(|_| still);
            match task {
                Some(_) if now.since(lost_at) < patience => break,
                Some(task) => self.keep(Record::Dropped { task }, out),
                None => {}
            }
            self.lost.pop_first();
        }
    }

    /// Whether the next model can be made.
    fn is_full(&self, now: Time) -> bool {
        let counted = self.ledger.waiting().len();
        let goal = self.ledger.goal.unwrap_or(usize::MAX);
        if counted >= goal {
            return true;
        }
        // A model that is made doesn't wait for those who would evaluate it.
        let evaluates = self.ledger.evaluates();
        let enough = evaluates || counted >= self.terms.clients.min.min(goal) && counted > 0;
        let together = evaluates || matches!(self.terms.timing, Timing::Round);
        let nobody_left = together && !self.ledger.is_at_work();
        enough && (self.is_overdue(now) || nobody_left)
    }

    /// Whether the round under way should have ended.
    fn is_overdue(&self, now: Time) -> bool {
        self.terms.clients.deadline().is_some_and(|d| now.since(self.begun_at) >= d)
    }

    /// Ends the round under way with what it has.
    fn close(&mut self, out: &mut Vec<Action>) {
        let counted = self.ledger.waiting().map(|(_, update)| update.task).collect();
        let members = self.members.keys().filter(|name| self.ledger.out(name).is_none()).count();
        self.keep(Record::Closed { tasks: counted, members }, out);
        out.extend(self.make());
    }

    /// What makes the model of a round that closed, or tells what was seen.
    pub(super) fn make(&self) -> Option<Action> {
        let Self { ledger, .. } = self;
        let members = ledger.making?;
        let counted = ledger.closed().map(|(assigned, update)| Counted {
            member: assigned.member.clone(),
            report: update.report,
            staleness: ledger.staleness(assigned),
        });
        if ledger.evaluates() {
            return Some(Action::Evaluated { version: ledger.version, counted: counted.collect() });
        }
        Some(Action::Make {
            version: ledger.version + 1,
            round: ledger.round,
            counted: counted.collect(),
            members,
            last: ledger.round + 1 + u64::from(ledger.evaluate) >= ledger.until,
        })
    }

    /// Members that can work, and have none.
    fn eligible(&self) -> impl Iterator<Item = &str> {
        let free = |name: &str| self.ledger.task_of(name).is_none() && self.ledger.out(name).is_none();
        self.members.iter().filter(move |(name, m)| m.is_able() && free(name)).map(|(name, _)| name.as_str())
    }

    /// Members whose answer the next model has already; a round asks nobody
    /// twice.
    fn answered(&self) -> BTreeSet<&str> {
        match self.terms.timing {
            Timing::Round => self.ledger.waiting().map(|(assigned, _)| assigned.member.as_str()).collect(),
            Timing::Buffer { .. } => BTreeSet::new(),
        }
    }

    /// Asks members for the round under way: all that it needs, or, when too
    /// many were lost, others in their place.
    fn ask_round(&mut self, now: Time, out: &mut Vec<Action>) {
        let Some(goal) = self.ledger.goal else { return self.begin_round(now, out) };
        // All that were asked have answered, were lost, or take too long, and it
        // isn't enough.
        let missing = self.terms.clients.min.saturating_sub(self.ledger.waiting().len());
        let others = self.is_overdue(now) || !self.ledger.is_at_work();
        if missing > 0 && !self.ledger.evaluates() && others {
            let answered = self.answered();
            let fresh = self.eligible().filter(|member| !answered.contains(member)).count();
            if fresh > 0 {
                self.begun_at = now;
                self.ask(now, goal, missing.min(fresh), out);
            }
        }
    }

    fn begin_round(&mut self, now: Time, out: &mut Vec<Action>) {
        let Clients { per_round, min, over, late, .. } = self.terms.clients;
        let settles = self.settling.as_ref().is_some_and(|settling| settling.lasts(now));
        // Everybody who is there evaluates.
        let evaluates = self.ledger.evaluates();
        let (per_round, min) = if evaluates { (None, 0) } else { (per_round, min) };
        // Members come one behind the other: not all of them are gone through
        // for each.
        if (per_round.is_none() || self.holds) && !evaluates && settles {
            return;
        }
        // Whoever still works for a round that is over is not asked until it
        // answers or is told to stop.
        if late == Late::Refuse || evaluates {
            self.drop_all(|_, _| true, out);
        }
        let eligible = self.eligible().count();
        let wanted = match per_round {
            // Members that are away for a moment may want to evaluate it as well.
            None if evaluates => {
                self.members.iter().filter(|(m, at)| at.may_work() && self.ledger.out(m).is_none()).count()
            }
            None => eligible.max(min),
            Some(n) => ((n as f64 * over).ceil() as usize).max(min),
        };
        if eligible < min {
            self.gathering_since = None;
            return;
        }
        if eligible < wanted && now.since(*self.gathering_since.get_or_insert(now)) < GATHER {
            return;
        }
        if per_round.is_none() && settles {
            return;
        }
        (self.gathering_since, self.settling) = (None, None);
        self.begun_at = now;
        let goal = per_round.unwrap_or(eligible).min(eligible).max(min);
        self.note_presence();
        self.ask(now, goal, wanted.min(eligible), out);
    }

    /// Keeps as many members at work as there should be.
    fn ask_more(&mut self, now: Time, size: usize, out: &mut Vec<Action>) {
        let Clients { per_round, min, .. } = self.terms.clients;
        let eligible = self.eligible().count();
        let open = self.ledger.open().len();
        let able = eligible + open;
        let begins = self.ledger.goal.is_none();
        let settles = self.settling.as_ref().is_some_and(|settling| settling.lasts(now));
        if begins && (able < min || self.holds && settles) {
            return;
        }
        let places = per_round.unwrap_or(able).saturating_sub(open).min(eligible);
        if begins {
            self.settling = None;
            self.begun_at = now;
            self.note_presence();
        }
        if begins || places > 0 {
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
        let answered = self.answered();
        let candidate = |name| {
            let member = self.members.get(name)?;
            let available = member.seen.1 as f64 / member.seen.0.max(1) as f64;
            Some(Candidate { member: name, examples: member.examples(), available, last: member.last })
        };
        let candidates: Vec<Candidate<'_>> =
            self.eligible().filter(|name| !answered.contains(name)).filter_map(candidate).collect();
        let Self { ledger, terms, .. } = &*self;
        // The same after a restart, whatever was drawn before.
        let mut rng = Rng::with_seed(terms.seed ^ ledger.next_task.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let chosen = terms.clients.select.choose(&candidates, count, ledger.round, &mut rng);
        let names: Vec<String> = chosen.into_iter().map(|i| candidates[i].member.to_owned()).collect();
        let tasks = (ledger.next_task..).map(|number| Task::new(terms.tag, number)).zip(names.clone()).collect();
        let (round, version, evaluate) = (ledger.round, ledger.version, ledger.evaluates());
        self.keep(Record::Asked { round, version, goal, evaluate, tasks }, out);
        for member in names {
            if let Some(entry) = self.members.get_mut(&member) {
                entry.asked_at = now;
            }
            out.push(Action::Tell { member });
        }
    }
}
