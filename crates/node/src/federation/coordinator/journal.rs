//! What a coordinator keeps through a crash: its journal, and what it leads to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tierline_federate::Counted;

use crate::federation::{Task, Update};

/// What the journal holds, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// All that the records before it led to; takes their place.
    Snapshot(Box<Ledger>),
    /// A stretch began.
    Began {
        /// The model.
        version: u64,
        /// Rounds to run.
        rounds: u64,
        /// Whether members evaluate the last model.
        #[serde(rename = "look")]
        evaluate: bool,
        /// What asked for it.
        stretch: u64,
    },
    /// A member can work, before the first round: after a restart it is known
    /// whom to wait for.
    Met {
        /// Who.
        member: String,
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
        #[serde(rename = "look")]
        evaluate: bool,
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
        /// Members there are.
        members: usize,
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

impl Record {
    /// Whether the journal needs nothing of what lies before this.
    #[must_use]
    pub fn replaces_earlier(&self) -> bool {
        matches!(self, Self::Snapshot(_))
    }
}

/// What a journal leads to: all that a coordinator must not forget.
///
/// As large as the members are many, however long the job runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    pub(super) next_task: u64,
    /// The round under way.
    pub(super) round: u64,
    /// The newest model.
    pub(super) version: u64,
    /// The model that the stretch began with.
    pub(super) base: u64,
    /// End of the stretch (one past its last round), and its name.
    pub(super) until: u64,
    pub(super) stretch: u64,
    /// Whether the stretch's last round only evaluates its model.
    #[serde(rename = "look")]
    pub(super) evaluate: bool,
    /// What the stretch counted so far.
    pub(super) so_far: Vec<Counted>,
    /// Answers that are enough for the round under way; `None` before it began.
    pub(super) goal: Option<usize>,
    /// A model is being made; the members there were when its round closed.
    pub(super) making: Option<usize>,
    pub(super) paused: bool,
    pub(super) ended: bool,
    tasks: BTreeMap<Task, AssignedTask>,
    /// Those that were met before the first round, asked or left out.
    pub(super) members: BTreeMap<String, KnownMember>,
    /// Follows from `tasks`.
    #[serde(skip)]
    index: Index,
}

/// Tasks by their fates: steps don't go through all of them.
#[derive(Debug, Clone, Default, PartialEq)]
struct Index {
    /// With their rounds.
    open: BTreeSet<(u64, Task)>,
    counted: BTreeSet<Task>,
    closed: BTreeSet<Task>,
}

impl Index {
    fn of(tasks: &BTreeMap<Task, AssignedTask>) -> Self {
        let mut index = Self::default();
        tasks.iter().for_each(|(task, assigned)| index.note(*task, assigned));
        index
    }

    fn note(&mut self, task: Task, assigned: &AssignedTask) {
        let _new = match assigned.status {
            TaskStatus::Open => self.open.insert((assigned.round, task)),
            TaskStatus::Counted(_) => self.counted.insert(task),
            TaskStatus::Closed(_) => self.closed.insert(task),
            TaskStatus::Spent => false,
        };
    }

    fn forget(&mut self, task: Task, assigned: &AssignedTask) {
        let _was = match assigned.status {
            TaskStatus::Open => self.open.remove(&(assigned.round, task)),
            TaskStatus::Counted(_) => self.counted.remove(&task),
            TaskStatus::Closed(_) => self.closed.remove(&task),
            TaskStatus::Spent => false,
        };
    }
}

/// What is kept of a member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct KnownMember {
    /// The latest task that it was given and has not answered.
    pub(super) task: Option<Task>,
    /// Tasks whose answers count or counted, and may be sent again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    answered: Vec<Task>,
    /// Why it is left out.
    pub(super) out: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AssignedTask {
    pub(super) member: String,
    pub(super) round: u64,
    pub(super) version: u64,
    /// Whether the answer holds nothing but a report.
    #[serde(rename = "look")]
    pub(super) evaluate: bool,
    #[serde(rename = "fate")]
    pub(super) status: TaskStatus,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TaskStatus {
    /// No answer yet.
    Open,
    /// Its answer counts, for a model to come.
    Counted(Update),
    /// Its answer counts for the model that is being made.
    Closed(Update),
    /// Its answer counted for a model that is made.
    Spent,
}

impl AssignedTask {
    /// With the update that answers it.
    ///
    /// # Panics
    /// For a task without one: the index says which have one.
    fn answered(&self) -> (&Self, &Update) {
        match &self.status {
            TaskStatus::Counted(update) | TaskStatus::Closed(update) => (self, update),
            TaskStatus::Open | TaskStatus::Spent => unreachable!("the index holds answered tasks only"),
        }
    }
}

impl Ledger {
    /// What a record changes; the same in a running coordinator and in one
    /// that is restored.
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Snapshot(ledger) => {
                *self = *ledger;
                self.index = Index::of(&self.tasks);
            }
            Record::Began { version, rounds, evaluate, stretch } => {
                (self.version, self.base, self.stretch, self.evaluate) = (version, version, stretch, evaluate);
                self.until = self.round + rounds + u64::from(evaluate);
                self.so_far.clear();
                self.goal = None;
                // What was counted in a stretch that was given up is of no model.
                let given_up: Vec<Task> = self.index.counted.iter().chain(&self.index.closed).copied().collect();
                given_up.into_iter().for_each(|task| self.settle(task, |_| TaskStatus::Spent));
                self.making = None;
            }
            Record::Asked { round, version, goal, evaluate, tasks } => {
                self.goal = Some(goal);
                for (task, member) in tasks {
                    self.next_task = self.next_task.max(task.number() + 1);
                    self.members.entry(member.clone()).or_default().task = Some(task);
                    let assigned = AssignedTask { member, round, version, evaluate, status: TaskStatus::Open };
                    self.index.note(task, &assigned);
                    self.tasks.insert(task, assigned);
                }
            }
            Record::Counted { member, update } => {
                let task = update.task;
                let staleness = self.tasks.get(&task).map_or(0, |assigned| self.staleness(assigned));
                self.so_far.push(Counted { member: member.clone(), report: update.report, staleness });
                self.settle(task, |_| TaskStatus::Counted(update));
                let kept = self.members.entry(member).or_default();
                kept.task = kept.task.filter(|t| *t != task);
                // Whoever answers this has heard what became of its earlier answers.
                let spent = |t: &Task| self.tasks.get(t).is_none_or(|assigned| assigned.status == TaskStatus::Spent);
                let (gone, left): (Vec<Task>, Vec<Task>) = kept.answered.iter().copied().partition(spent);
                kept.answered = left;
                kept.answered.push(task);
                gone.iter().for_each(|task| drop(self.tasks.remove(task)));
            }
            Record::Dropped { task } => {
                let Some(assigned) = self.tasks.remove(&task) else { return };
                self.index.forget(task, &assigned);
                if let Some(kept) = self.members.get_mut(&assigned.member) {
                    kept.task = kept.task.filter(|t| *t != task);
                    kept.answered.retain(|t| *t != task);
                }
                if let TaskStatus::Counted(update) | TaskStatus::Closed(update) = assigned.status {
                    self.so_far.retain(|c| c.member != assigned.member || c.report != update.report);
                }
            }
            Record::Closed { tasks, members } => {
                self.making = Some(members);
                for task in tasks {
                    self.settle(task, |status| match status {
                        TaskStatus::Counted(update) => TaskStatus::Closed(update),
                        other => other,
                    });
                }
            }
            Record::Made { version, enough } => {
                (self.making, self.goal) = (None, None);
                self.version = version;
                self.round += 1;
                if enough && self.round < self.until {
                    self.until = self.round + u64::from(self.evaluate);
                }
                let closed: Vec<Task> = self.index.closed.iter().copied().collect();
                closed.into_iter().for_each(|task| self.settle(task, |_| TaskStatus::Spent));
            }
            Record::Met { member } => {
                self.members.entry(member).or_default();
            }
            Record::Excluded { member, reason } => self.members.entry(member).or_default().out = Some(reason),
            Record::Paused => self.paused = true,
            Record::Resumed => self.paused = false,
            Record::Ended => self.ended = true,
        }
    }

    /// Gives a task another status.
    fn settle(&mut self, task: Task, status: impl FnOnce(TaskStatus) -> TaskStatus) {
        let Some(assigned) = self.tasks.get_mut(&task) else { return };
        self.index.forget(task, assigned);
        assigned.status = status(std::mem::replace(&mut assigned.status, TaskStatus::Spent));
        self.index.note(task, assigned);
    }

    /// Records that say as much as this does, about.
    pub(super) fn weight(&self) -> usize {
        self.tasks.len() + self.members.len() + self.so_far.len()
    }

    /// Whether all rounds that were asked for are done, or none were.
    pub(super) fn is_idle(&self) -> bool {
        self.round >= self.until
    }

    /// Whether the round under way makes no model: its members evaluate the
    /// newest one.
    pub(super) fn evaluates(&self) -> bool {
        self.evaluate && self.round + 1 == self.until
    }

    /// The task that a member was given and has not answered.
    pub(super) fn task_of(&self, member: &str) -> Option<Task> {
        self.members.get(member)?.task
    }

    /// Members that are known, and weren't left out.
    pub(super) fn taking_part(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|(_, kept)| kept.out.is_none()).map(|(name, _)| name.as_str())
    }

    /// Why a member is left out, if it is.
    pub(super) fn out(&self, member: &str) -> Option<&str> {
        self.members.get(member)?.out.as_deref()
    }

    /// A task that isn't forgotten.
    pub(super) fn assigned(&self, task: Task) -> Option<&AssignedTask> {
        self.tasks.get(&task)
    }

    /// All tasks that aren't forgotten.
    pub(super) fn all_given(&self) -> impl Iterator<Item = &AssignedTask> {
        self.tasks.values()
    }

    /// Tasks without an answer, by their rounds.
    pub(super) fn open(&self) -> impl ExactSizeIterator<Item = (Task, &AssignedTask)> {
        self.index.open.iter().map(|(_, task)| (*task, &self.tasks[task]))
    }

    /// Whether anybody is at work for the round under way.
    pub(super) fn is_at_work(&self) -> bool {
        self.index.open.range((self.round, Task(0))..).next().is_some_and(|(round, _)| *round == self.round)
    }

    /// What is counted for a model to come.
    pub(super) fn waiting(&self) -> impl ExactSizeIterator<Item = (&AssignedTask, &Update)> {
        self.index.counted.iter().map(|task| self.tasks[task].answered())
    }

    /// What counts for the model that is being made.
    pub(super) fn closed(&self) -> impl Iterator<Item = (&AssignedTask, &Update)> {
        self.index.closed.iter().map(|task| self.tasks[task].answered())
    }

    /// Versions between the model that a task starts from and the last one
    /// before that which its answer counts for.
    pub(super) fn staleness(&self, assigned: &AssignedTask) -> u64 {
        let later = self.making.is_some() && !matches!(assigned.status, TaskStatus::Closed(_));
        self.version + u64::from(later) - assigned.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_of_before_are_read() {
        let record = |json: &str| serde_json::from_str::<Record>(json).unwrap();
        let begun = Record::Began { version: 1, rounds: 2, evaluate: true, stretch: 3 };
        assert_eq!(record(r#"{"began":{"version":1,"rounds":2,"look":true,"stretch":3}}"#), begun);
        let tasks = vec![(Task(7), "a".to_owned())];
        let asked = Record::Asked { round: 4, version: 5, goal: 6, evaluate: true, tasks };
        assert_eq!(record(r#"{"asked":{"round":4,"version":5,"goal":6,"look":true,"tasks":[[7,"a"]]}}"#), asked);
        let open =
            serde_json::from_str::<AssignedTask>(r#"{"member":"a","round":0,"version":0,"look":true,"fate":"open"}"#);
        assert!(open.is_ok_and(|open| open.evaluate && open.status == TaskStatus::Open));
        let ledger = serde_json::to_value(Ledger { evaluate: true, ..Ledger::default() }).unwrap();
        assert_eq!(ledger["look"], true);
    }
}
