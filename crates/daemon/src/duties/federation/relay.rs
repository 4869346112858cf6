//! The side of an edge that neither coordinates nor takes part: what is said
//! of a job passes through it, between the members below and whoever
//! coordinates them above.
//!
//! It keeps nothing on its disk but the models that members fetch through it:
//! messages say how things are, and both sides repeat them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_node::federation::Routes;
use tierline_proto::Digest;
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{Code, Empty, Failure, JobAssignment, JobStanding, WorkOrder, job_standing};
use tierline_store::State;
use tierline_store::jobs::Side;

use super::messages;
use crate::duties::federation::Jobs;
use crate::net::Uplink;

/// What passes through for one job.
pub(super) struct Relay {
    id: Digest,
    inner: Mutex<Inner>,
}

/// What a member was last told to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Came {
    task: u64,
    version: u64,
    /// How many of them lead to the model.
    differences: u64,
}

#[derive(Default)]
struct Inner {
    routes: Routes,
    /// What members said last.
    standings: BTreeMap<String, JobStanding>,
    /// The model that each member was last told to start from, and the
    /// differences that lead to it.
    models: BTreeMap<String, Came>,
    /// The parent that asked for them.
    parent: Option<Arc<Uplink>>,
}

impl Relay {
    pub(super) fn new(id: Digest) -> Self {
        Self { id, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A child's session opened: it hears of the job.
    pub(super) fn child_up(&self, jobs: &Jobs, child: &str) {
        let join = messages::assignment(self.id, "", Want::Join(Empty {}));
        jobs.cx.children.tell(child, FEDERATION, &join);
    }

    /// A child's lease ended, and with it the members behind it.
    pub(super) fn child_down(&self, child: &str) {
        let mut inner = self.lock();
        for member in inner.routes.lost(child) {
            inner.away(self.id, &member);
        }
    }

    /// A child says what it, or a member below it, is at.
    pub(super) fn stands(&self, child: &str, mut standing: JobStanding) {
        let mut inner = self.lock();
        let member = messages::member(child, &standing.node).to_owned();
        if let Some(job_standing::Standing::Away(_)) = standing.standing {
            if inner.routes.release(child, &member) {
                inner.away(self.id, &member);
            }
            return;
        }
        if inner.routes.claim(child, &member) {
            standing.node.clone_from(&member);
            inner.tell(standing.clone());
            inner.standings.insert(member, standing);
        }
    }

    /// A parent says what it wants. True when the job is over.
    pub(super) fn hear(&self, jobs: &Arc<Jobs>, uplink: &Arc<Uplink>, assignment: JobAssignment) -> bool {
        let JobAssignment { node: member, want, classes, .. } = assignment;
        let mut inner = self.lock();
        // Parents of one site know the same job; the first one keeps it.
        if inner.parent.as_ref().is_none_or(|p| !p.is_up()) {
            inner.parent = Some(Arc::clone(uplink));
        }
        if inner.parent.as_ref().is_none_or(|p| p.peer != uplink.peer) {
            return false;
        }
        match want {
            Some(Want::Over(_)) => return true,
            Some(Want::Join(_)) => inner.standings.values().for_each(|standing| inner.tell(standing.clone())),
            Some(want) if !member.is_empty() => {
                let Some(child) = inner.routes.via(&member).map(str::to_owned) else { return false };
                if let Want::Work(order) = &want {
                    let differences = order.differences.len() as u64;
                    let now = Came { task: order.task, version: order.version, differences };
                    let before = inner.models.insert(member.clone(), now);
                    if before != Some(now) {
                        inner.keep_models(jobs, self.id, order);
                    }
                }
                let further = if child == member { "" } else { &member };
                let assignment = JobAssignment { classes, ..messages::assignment(self.id, further, want) };
                jobs.cx.children.tell(&child, FEDERATION, &assignment);
            }
            _ => {
                let text = "the job has no [federation.edge], and the node above can't reach past edges: update it";
                jobs.tell_unable(uplink, self.id, text);
            }
        }
        false
    }

    /// The parent that takes a member's update.
    ///
    /// # Errors
    /// When the child doesn't speak for the member, or no parent has asked.
    pub(super) fn parent_of(&self, child: &str, member: &str) -> Result<Arc<Uplink>, Failure> {
        let inner = self.lock();
        if !inner.routes.speaks(child, member) {
            return Err(messages::stranger(child, member));
        }
        let parent = inner.parent.clone().filter(|parent| parent.is_up());
        parent.ok_or_else(|| Failure::new(Code::Unreachable, "the node that coordinates the job can't be reached"))
    }
}

impl Inner {
    /// Passes on what a member says.
    fn tell(&self, standing: JobStanding) {
        if let Some(parent) = &self.parent {
            parent.tell(FEDERATION, &standing);
        }
    }

    /// Forgets a member, and says so above.
    fn away(&mut self, job: Digest, member: &str) {
        self.models.remove(member);
        self.standings.remove(member);
        let away = Some(job_standing::Standing::Away(Empty {}));
        self.tell(JobStanding {
            job: job.to_bytes(),
            node: member.to_owned(),
            standing: away,
            holds: 0,
            url: String::new(),
            classes: Vec::new(),
        });
    }

    /// Remembers which models came by here, so that those which nobody starts
    /// from any more can go.
    fn keep_models(&self, jobs: &Arc<Jobs>, job: Digest, order: &WorkOrder) {
        // By task: where each member gets something else, all have one version.
        let needed: BTreeSet<u64> = self.models.values().map(|came| came.task).collect();
        let leading = |came: &Came| came.version.saturating_sub(came.differences) + 1..=came.version;
        let followed: BTreeSet<u64> = self.models.values().flat_map(leading).collect();
        let of = |side, needed: BTreeSet<u64>| (side, needed.into_iter().collect::<Vec<_>>());
        let (jobs, order) = (Arc::clone(jobs), order.clone());
        jobs.cx.tasks.clone().spawn("models passing", async move {
            // What stays behind only takes room.
            let keep = move |state: &State| {
                let leading = (0..).zip(order.differences.iter().rev());
                let leading = leading.map(|(back, d)| (Side::RelayDifferences, order.version.saturating_sub(back), d));
                for (side, version, artefact) in leading.chain([(Side::Relay, order.task, &order.model)]) {
                    if let Ok(artefact) = Digest::try_from(artefact) {
                        state.set_version(job, side, version, artefact)?;
                    }
                }
                Ok(())
            };
            let _ = jobs.cx.state.with(keep).await;
            for (side, needed) in [of(Side::Relay, needed), of(Side::RelayDifferences, followed)] {
                let _ = jobs.drop_models(job, side, &needed).await;
            }
        });
    }
}
