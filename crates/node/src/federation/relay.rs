//! An edge that neither coordinates nor takes part: what is said of a job
//! passes through it, between the members below and whoever coordinates them
//! above.
//!
//! It keeps nothing but what passes: messages say how things are, and both
//! sides repeat them.

use std::collections::{BTreeMap, BTreeSet};

use tierline_proto::Digest;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{ClassNames, Code, Empty, Failure, JobAssignment, JobStatus, WorkOrder, job_status};

use super::Routes;
use crate::Peer;

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A child's session opened.
    ChildUp(String),
    /// A child's lease ended, and with it the members behind it.
    ChildDown(String),
    /// A child says what it, or a member below it, is at.
    Reported {
        /// The child.
        child: String,
        /// What it says.
        status: JobStatus,
    },
    /// A parent can be reached, or can't any more.
    Parent {
        /// Which.
        parent: Peer,
        /// Whether it can.
        up: bool,
    },
    /// A parent says what it wants.
    Told {
        /// Which.
        parent: Peer,
        /// Whether it can still be reached: it may have gone since it spoke.
        up: bool,
        /// What.
        assignment: JobAssignment,
    },
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Pass on to a child what is wanted of it, or of a member below it.
    TellChild {
        /// The child.
        child: String,
        /// What is wanted.
        assignment: JobAssignment,
    },
    /// Pass on what a member says.
    TellParent {
        /// The parent that keeps the job.
        parent: Peer,
        /// What it says.
        status: JobStatus,
    },
    /// Take down the models that a task begins with, and let go of those that no
    /// member's does any more.
    KeepModels(Passing),
    /// A parent can't reach past this node.
    Refuse {
        /// Which.
        parent: Peer,
    },
    /// The job is over.
    Over,
}

/// Models that pass by, for members to fetch.
#[derive(Debug, Clone, PartialEq)]
pub struct Passing {
    /// What a member was told to do, and from where.
    pub order: WorkOrder,
    /// Tasks that members have: where each member gets something else, all have
    /// one version.
    pub tasks: Vec<u64>,
    /// Versions that differences lead to which members may follow.
    pub versions: Vec<u64>,
}

/// What a member was last told to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    task: u64,
    version: u64,
    /// How many of them lead to the model.
    differences: u64,
}

/// What passes through for one job.
///
/// Invariant: one parent at a time keeps the job, for as long as it is up.
#[derive(Debug)]
pub struct Relay {
    job: Digest,
    routes: Routes,
    /// What members said last.
    statuses: BTreeMap<String, JobStatus>,
    starts: BTreeMap<String, Start>,
    parent: Option<Peer>,
    up: BTreeSet<Peer>,
}

impl Relay {
    /// For a job of which nobody has said anything yet.
    #[must_use]
    pub fn new(job: Digest) -> Self {
        Self {
            job,
            routes: Routes::default(),
            statuses: BTreeMap::new(),
            starts: BTreeMap::new(),
            parent: None,
            up: BTreeSet::new(),
        }
    }

    /// One step.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::ChildUp(child) => {
                let assignment = self.assignment("", Want::Join(Empty {}), None);
                vec![Action::TellChild { child, assignment }]
            }
            Event::ChildDown(child) => {
                let lost = self.routes.lost(&child);
                lost.iter().filter_map(|member| self.away(member)).collect()
            }
            Event::Reported { child, status } => self.reported(&child, status).into_iter().collect(),
            Event::Parent { parent, up } => {
                self.reaches(parent, up);
                Vec::new()
            }
            Event::Told { parent, up, assignment } => {
                self.reaches(parent, up);
                self.told(parent, assignment)
            }
        }
    }

    /// The parent that takes a member's update.
    ///
    /// # Errors
    /// When the child doesn't speak for the member, or no parent has asked.
    pub fn parent_of(&self, child: &str, member: &str) -> Result<Peer, Failure> {
        if !self.routes.speaks(child, member) {
            return Err(super::stranger(child, member));
        }
        let parent = self.parent.filter(|parent| self.up.contains(parent));
        parent.ok_or_else(|| Failure::new(Code::Unreachable, "the node that coordinates the job can't be reached"))
    }

    fn reported(&mut self, child: &str, mut status: JobStatus) -> Option<Action> {
        let member = if status.node.is_empty() { child.to_owned() } else { status.node.clone() };
        if let Some(job_status::Status::Away(_)) = status.status {
            return self.routes.release(child, &member).then(|| self.away(&member)).flatten();
        }
        if !self.routes.claim(child, &member) {
            return None;
        }
        status.node.clone_from(&member);
        self.statuses.insert(member, status.clone());
        self.tell(status)
    }

    fn reaches(&mut self, parent: Peer, up: bool) {
        match up {
            true => self.up.insert(parent),
            false => self.up.remove(&parent),
        };
    }

    fn told(&mut self, parent: Peer, assignment: JobAssignment) -> Vec<Action> {
        let JobAssignment { node: member, want, classes, .. } = assignment;
        // Parents of one site know the same job; the first one keeps it.
        if self.parent.is_none_or(|kept| !self.up.contains(&kept)) {
            self.parent = Some(parent);
        }
        if self.parent != Some(parent) {
            return Vec::new();
        }
        match want {
            Some(Want::Over(_)) => vec![Action::Over],
            Some(Want::Join(_)) => self.statuses.values().filter_map(|said| self.tell(said.clone())).collect(),
            Some(want) if !member.is_empty() => self.pass_down(&member, want, classes),
            _ => vec![Action::Refuse { parent }],
        }
    }

    fn pass_down(&mut self, member: &str, want: Want, classes: Option<ClassNames>) -> Vec<Action> {
        let Some(child) = self.routes.via(member).map(str::to_owned) else { return Vec::new() };
        let mut actions = Vec::new();
        if let Want::Work(order) = &want {
            let differences = order.differences.len() as u64;
            let now = Start { task: order.task, version: order.version, differences };
            if self.starts.insert(member.to_owned(), now) != Some(now) {
                actions.push(Action::KeepModels(self.passing(order.clone())));
            }
        }
        let further = if child == member { "" } else { member };
        let assignment = self.assignment(further, want, classes);
        actions.push(Action::TellChild { child, assignment });
        actions
    }

    fn passing(&self, order: WorkOrder) -> Passing {
        let tasks: BTreeSet<u64> = self.starts.values().map(|start| start.task).collect();
        let leading = |start: &Start| start.version.saturating_sub(start.differences) + 1..=start.version;
        let versions: BTreeSet<u64> = self.starts.values().flat_map(leading).collect();
        Passing { order, tasks: tasks.into_iter().collect(), versions: versions.into_iter().collect() }
    }

    fn tell(&self, status: JobStatus) -> Option<Action> {
        Some(Action::TellParent { parent: self.parent?, status })
    }

    /// Forgets a member, and says so above.
    fn away(&mut self, member: &str) -> Option<Action> {
        self.starts.remove(member);
        self.statuses.remove(member);
        let status = Some(job_status::Status::Away(Empty {}));
        let (job, node) = (self.job.to_bytes(), member.to_owned());
        self.tell(JobStatus { job, node, status, ..JobStatus::default() })
    }

    fn assignment(&self, node: &str, want: Want, classes: Option<ClassNames>) -> JobAssignment {
        JobAssignment { job: self.job.to_bytes(), node: node.to_owned(), want: Some(want), classes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Digest = Digest([7; 32]);

    fn reported(child: &str, node: &str, examples: u64) -> Event {
        let status = JobStatus {
            node: node.to_owned(),
            status: Some(job_status::Status::Examples(examples)),
            ..JobStatus::default()
        };
        Event::Reported { child: child.to_owned(), status }
    }

    fn told(parent: u32, node: &str, want: Want) -> Event {
        let assignment = JobAssignment { node: node.to_owned(), want: Some(want), ..JobAssignment::default() };
        Event::Told { parent: Peer(parent), up: true, assignment }
    }

    fn work(task: u64, version: u64, differences: usize) -> Want {
        let differences = vec![vec![1; 32].into(); differences];
        Want::Work(WorkOrder { task, version, differences, model: vec![2; 32].into(), ..WorkOrder::default() })
    }

    /// Which members are told of to which parents, and what children are told.
    fn passed(actions: &[Action]) -> Vec<String> {
        let text = |action: &Action| match action {
            Action::TellChild { child, assignment } => format!("{child} < {:?}", assignment.node),
            Action::TellParent { parent, status } => {
                let away = matches!(status.status, Some(job_status::Status::Away(_)));
                format!("{}{} > {}", status.node, if away { " away" } else { "" }, parent.0)
            }
            Action::KeepModels(passing) => format!("keep {:?} {:?}", passing.tasks, passing.versions),
            Action::Refuse { parent } => format!("refuse {}", parent.0),
            Action::Over => "over".to_owned(),
        };
        actions.iter().map(text).collect()
    }

    #[test]
    fn what_members_say_goes_to_the_parent_that_asked() {
        let mut relay = Relay::new(JOB);
        assert_eq!(passed(&relay.step(Event::ChildUp("a".into()))), ["a < \"\""]);
        assert_eq!(relay.step(reported("a", "", 3)), [], "nobody has asked yet");
        assert_eq!(passed(&relay.step(told(1, "", Want::Join(Empty {})))), ["a > 1"]);
        assert_eq!(passed(&relay.step(reported("gateway", "b", 4))), ["b > 1"], "through another that passes on");
        assert_eq!(relay.step(reported("a", "b", 4)), [], "it isn't this one's to say");
        assert_eq!(passed(&relay.step(told(1, "b", work(1, 0, 0)))), ["keep [1] []", "gateway < \"b\""]);
        assert_eq!(passed(&relay.step(told(1, "b", work(1, 0, 0)))), ["gateway < \"b\""], "said again");
        assert_eq!(passed(&relay.step(told(1, "a", work(2, 5, 3)))), ["keep [1, 2] [3, 4, 5]", "a < \"\""]);
        assert_eq!(relay.step(told(1, "nobody", work(3, 0, 0))), []);
        assert_eq!(passed(&relay.step(Event::ChildDown("gateway".into()))), ["b away > 1"]);
        assert_eq!(passed(&relay.step(told(1, "", Want::Wait(Empty {})))), ["refuse 1"]);
        assert_eq!(passed(&relay.step(told(1, "", Want::Over(Empty {})))), ["over"]);
    }

    #[test]
    fn another_parent_takes_the_job_over_once_the_first_is_away() {
        let mut relay = Relay::new(JOB);
        relay.step(reported("a", "", 3));
        relay.step(told(1, "", Want::Join(Empty {})));
        assert_eq!(relay.step(told(2, "a", work(9, 0, 0))), [], "the first keeps it");
        assert_eq!(relay.parent_of("a", "a").unwrap(), Peer(1));
        assert_eq!(relay.parent_of("a", "b").unwrap_err().code(), Code::Unreachable);
        relay.step(Event::Parent { parent: Peer(1), up: false });
        assert_eq!(relay.parent_of("a", "a").unwrap_err().code(), Code::Unreachable);
        assert_eq!(passed(&relay.step(told(2, "", Want::Join(Empty {})))), ["a > 2"]);
        relay.step(Event::Parent { parent: Peer(1), up: true });
        assert_eq!(relay.step(told(1, "a", work(10, 0, 0))), [], "it is not taken back");
        assert_eq!(relay.parent_of("a", "a").unwrap(), Peer(2));
        // Its last word comes behind its end: it is no more there for that.
        relay.step(Event::Parent { parent: Peer(2), up: false });
        let assignment = JobAssignment { want: Some(Want::Join(Empty {})), ..JobAssignment::default() };
        relay.step(Event::Told { parent: Peer(2), up: false, assignment });
        assert_eq!(relay.parent_of("a", "a").unwrap_err().code(), Code::Unreachable);
        assert_eq!(passed(&relay.step(told(1, "", Want::Join(Empty {})))), ["a > 1"]);
    }
}
