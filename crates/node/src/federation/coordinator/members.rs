//! What members say and send, and what becomes of it.

use tierline_federate::{Late, Timing, select};

use super::journal::{AssignedTask, TaskStatus};
use super::{Action, Coordinator, FAILURES_MAX, MEMBERS_MAX, Record};
use crate::federation::{Assignment, MemberStatus, Task, Update, Verdict};
use crate::time::Time;

impl Coordinator {
    /// A member says what it is at.
    pub(super) fn reported(&mut self, now: Time, member: String, status: MemberStatus, out: &mut Vec<Action>) {
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&member) {
            return;
        }
        let task = self.ledger.task_of(&member);
        let entry = self.members.entry(member.clone()).or_default();
        if let Some(settling) = self.settling.as_mut()
            && (!entry.present || entry.status.as_ref() != Some(&status))
        {
            settling.last = now;
            if let (Some(awaited), false) = (settling.awaited.as_mut(), status == MemberStatus::Preparing) {
                awaited.remove(&member);
            }
        }
        let was_able = entry.is_able();
        entry.present = true;
        if let Some(at) = entry.lost_at.take() {
            self.lost.remove(&(at, member.clone()));
        }
        if let MemberStatus::Failed { task: failed, reason, examples } = status {
            // Not today, but maybe tomorrow.
            entry.status = Some(MemberStatus::Ready { examples });
            self.count_able(now, was_able, true);
            let entry = self.members.entry(member.clone()).or_default();
            if task == Some(failed) {
                entry.failures += 1;
                let failures = entry.failures;
                self.keep(Record::Dropped { task: failed }, out);
                if failures >= FAILURES_MAX {
                    let reason = format!("{failures} tasks in a row failed, the last one with: {reason}");
                    self.exclude(&member, reason, out);
                }
            }
            // It says so until it hears of other work, which may have been lost on the way.
            out.push(Action::Tell { member });
            return;
        }
        let unable = matches!(status, MemberStatus::Unable { .. });
        entry.status = Some(status);
        let is_able = entry.is_able();
        self.count_able(now, was_able, is_able);
        if is_able && self.settling.is_some() && !self.ledger.members.contains_key(&member) {
            self.keep(Record::Met { member: member.clone() }, out);
        }
        if let (true, Some(task)) = (unable, task) {
            self.keep(Record::Dropped { task }, out);
        }
        // Who can't take part may answer whatever it is told with just that.
        if !unable || task.is_some() || self.assignment(&member) != Assignment::Wait {
            out.push(Action::Tell { member });
        }
    }

    /// A member's link is gone.
    pub(super) fn lost(&mut self, now: Time, member: &str) {
        if let Some(entry) = self.members.get_mut(member).filter(|m| m.present) {
            let was_able = entry.is_able();
            entry.present = false;
            entry.lost_at = Some(now);
            self.count_able(now, was_able, false);
            if self.ledger.task_of(member).is_some() {
                self.lost.insert((now, member.to_owned()));
            }
        }
    }

    /// Counts a member that has become able to work, or is no longer.
    fn count_able(&mut self, now: Time, was: bool, is: bool) {
        self.able = self.able + usize::from(is) - usize::from(was);
        if let Some(settling) = self.settling.as_mut().filter(|_| self.able >= self.terms.clients.min) {
            settling.enough_since.get_or_insert(now);
        }
    }

    fn exclude(&mut self, member: &str, reason: String, out: &mut Vec<Action>) {
        if let Some(task) = self.ledger.task_of(member) {
            self.keep(Record::Dropped { task }, out);
        }
        let member = member.to_owned();
        self.keep(Record::Excluded { member: member.clone(), reason: reason.clone() }, out);
        out.push(Action::Excluded { member, reason });
    }

    /// What would become of an answer to a task if it can't be counted any
    /// more; `None` when it is wanted. Lets the shell refuse bytes before they
    /// come.
    #[must_use]
    pub fn would(&self, member: &str, task: Task) -> Option<Verdict> {
        let Some(assigned) = self.ledger.assigned(task).filter(|g| g.member == member) else {
            // Given once, and dropped since.
            let assigned = task.tag() == self.terms.tag && task.number() < self.ledger.next_task;
            return Some(if assigned { Verdict::Late } else { Verdict::Unknown });
        };
        match assigned.status {
            TaskStatus::Counted(_) | TaskStatus::Closed(_) | TaskStatus::Spent => Some(Verdict::Counted),
            TaskStatus::Open => self.too_stale(assigned).then_some(Verdict::Late),
        }
    }

    pub(super) fn too_stale(&self, assigned: &AssignedTask) -> bool {
        // Nothing that was learned before counts any more.
        if self.ledger.evaluates() && !assigned.evaluate {
            return true;
        }
        match self.terms.timing {
            Timing::Buffer { staleness_max, .. } => self.ledger.version - assigned.version > staleness_max,
            Timing::Round => assigned.round < self.ledger.round && self.terms.clients.late == Late::Refuse,
        }
    }

    /// A fit update is here.
    pub(super) fn arrived(&mut self, now: Time, member: String, update: Update, out: &mut Vec<Action>) {
        let task = update.task;
        if let Some(verdict) = self.would(&member, task) {
            self.decline(member, task, verdict, out);
            return;
        }
        let Some(assigned) = self.ledger.assigned(task).cloned() else { return };
        if let Some(entry) = self.members.get_mut(&member) {
            let seconds = now.since(entry.asked_at).as_secs_f64();
            entry.last = Some(select::Last { loss: update.report.loss, seconds, round: assigned.round });
            entry.failures = 0;
        }
        self.keep(Record::Counted { member: member.clone(), update: update.clone() }, out);
        if !assigned.evaluate {
            out.push(self.add(&assigned, &update));
        }
        out.push(Action::Answer { member: member.clone(), task, verdict: Verdict::Counted });
        out.push(Action::Tell { member });
    }

    /// An update that can't be used is here.
    pub(super) fn unfit(&mut self, member: String, task: Task, reason: String, out: &mut Vec<Action>) {
        if let Some(verdict) = self.would(&member, task) {
            self.decline(member, task, verdict, out);
            return;
        }
        // One bad update is one too many: what made it will make others.
        self.exclude(&member, reason.clone(), out);
        out.push(Action::Answer { member: member.clone(), task, verdict: Verdict::Refused { reason } });
        out.push(Action::Tell { member });
    }

    /// Says what became of an answer that isn't taken.
    fn decline(&mut self, member: String, task: Task, verdict: Verdict, out: &mut Vec<Action>) {
        if self.ledger.task_of(&member) == Some(task) {
            self.keep(Record::Dropped { task }, out);
        }
        out.push(Action::Answer { member: member.clone(), task, verdict });
        out.push(Action::Tell { member });
    }
}
