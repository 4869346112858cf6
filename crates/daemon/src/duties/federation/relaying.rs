//! The side of an edge that neither coordinates nor takes part: performs what
//! a job's [`tierline_node::federation::Relay`] asks. On this node's disk are
//! the models that members fetch through it, and nothing else.

use std::sync::{Arc, Mutex, PoisonError};

use tierline_node::Peer;
use tierline_node::federation::relay::{self, Action, Event, Passing};
use tierline_proto::Digest;
use tierline_proto::envelope::FEDERATION;
use tierline_proto::v1::Failure;
use tierline_store::State;
use tierline_store::jobs::Side;

use crate::duties::federation::Jobs;
use crate::net::Uplink;

/// What passes through for one job.
pub(super) struct Relay {
    id: Digest,
    machine: Mutex<relay::Relay>,
}

impl Relay {
    pub(super) fn new(id: Digest) -> Self {
        Self { id, machine: Mutex::new(relay::Relay::new(id)) }
    }

    /// One step. True when the job is over.
    pub(super) fn step(&self, jobs: &Arc<Jobs>, event: Event) -> bool {
        // Held to the end: what is said passes on in the order in which it came.
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let mut over = false;
        for action in machine.step(event) {
            match action {
                Action::TellChild { child, assignment } => jobs.cx.children.tell(&child, FEDERATION, &assignment),
                Action::TellParent { parent, status } => {
                    jobs.cx.parents.get(parent).into_iter().for_each(|uplink| uplink.tell(FEDERATION, &status));
                }
                Action::KeepModels(passing) => self.keep_models(jobs, passing),
                Action::Refuse { parent } => {
                    let text = "the job has no [federation.edge], and the node above can't reach past edges: update it";
                    jobs.cx.parents.get(parent).into_iter().for_each(|uplink| jobs.tell_unable(&uplink, self.id, text));
                }
                Action::Over => over = true,
            }
        }
        over
    }

    /// The parent that takes a member's update.
    ///
    /// # Errors
    /// When the child doesn't speak for the member, or no parent has asked.
    pub(super) fn parent_of(&self, jobs: &Jobs, child: &str, member: &str) -> Result<Arc<Uplink>, Failure> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let parent: Peer = machine.parent_of(child, member)?;
        jobs.cx.parents.get(parent)
    }

    /// Remembers which models came by here, so that those which nobody starts
    /// from any more can go.
    fn keep_models(&self, jobs: &Arc<Jobs>, passing: Passing) {
        let (jobs, job) = (Arc::clone(jobs), self.id);
        jobs.cx.tasks.clone().spawn("models passing", async move {
            let Passing { order, tasks, versions } = passing;
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
            for (side, needed) in [(Side::Relay, tasks), (Side::RelayDifferences, versions)] {
                let _ = jobs.drop_models(job, side, &needed).await;
            }
        });
    }
}
