//! Messages to one side of a job that found no room in its inbox.
//!
//! They say how things are, so of each speaker only the newest matters; none
//! is lost. A side takes them once its inbox is empty: all that came before is
//! heard by then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_node::Peer;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{ClassNames, JobStatus};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::coordinator::ToCoordinator;
use super::participant::ToParticipant;
use crate::duties::federation::Jobs;
use crate::net::Uplink;

/// Members that may speak for themselves while a side is busy; a site has
/// fewer, and one that makes more up is not listened to.
const SPEAKERS_MAX: usize = 1 << 16;

/// What waits for a side's time.
#[derive(Default)]
pub(super) struct Late(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// By child and member.
    statuses: BTreeMap<(String, String), JobStatus>,
    /// By the parent that spoke.
    assigned: BTreeMap<Peer, (Arc<Uplink>, Want, Option<ClassNames>)>,
    /// Whether a child, or a parent, came or went.
    children: bool,
    parents: bool,
}

impl Late {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the coordinator how a member is.
    pub(super) fn reported(&self, coordinator: &mpsc::Sender<ToCoordinator>, child: &str, status: JobStatus) {
        let mut waiting = self.lock();
        let key = (child.to_owned(), status.node.clone());
        // Behind what waits already: an older word must not come last.
        let status = match waiting.statuses.contains_key(&key) {
            true => status,
            false => match coordinator.try_send(ToCoordinator::Reported { child: child.to_owned(), status }) {
                Err(TrySendError::Full(ToCoordinator::Reported { status, .. })) => status,
                _ => return,
            },
        };
        if waiting.statuses.len() < SPEAKERS_MAX || waiting.statuses.contains_key(&key) {
            waiting.statuses.insert(key, status);
        } else {
            tracing::warn!(child, "more members speak than a site has; this one is not heard");
        }
    }

    /// Tells the coordinator that a child came or went.
    pub(super) fn child(&self, coordinator: &mpsc::Sender<ToCoordinator>, message: ToCoordinator) {
        let mut waiting = self.lock();
        if waiting.children || matches!(coordinator.try_send(message), Err(TrySendError::Full(_))) {
            waiting.children = true;
        }
    }

    /// Tells the participant what a parent wants.
    pub(super) fn assigned(
        &self,
        participant: &mpsc::Sender<ToParticipant>,
        uplink: &Arc<Uplink>,
        want: Want,
        classes: Option<ClassNames>,
    ) {
        let mut waiting = self.lock();
        let (want, classes) = match waiting.assigned.contains_key(&uplink.peer) {
            true => (want, classes),
            false => {
                match participant.try_send(ToParticipant::Assigned { uplink: Arc::clone(uplink), want, classes }) {
                    Err(TrySendError::Full(ToParticipant::Assigned { want, classes, .. })) => (want, classes),
                    _ => return,
                }
            }
        };
        waiting.assigned.insert(uplink.peer, (Arc::clone(uplink), want, classes));
    }

    /// Tells the participant that a parent came or went.
    pub(super) fn parent(&self, participant: &mpsc::Sender<ToParticipant>, uplink: &Arc<Uplink>, up: bool) {
        let mut waiting = self.lock();
        let message = ToParticipant::Parent { uplink: Arc::clone(uplink), up };
        if waiting.parents || matches!(participant.try_send(message), Err(TrySendError::Full(_))) {
            waiting.parents = true;
        }
    }

    /// What the coordinator has not heard, now that its inbox is empty, and
    /// whether it shall look which children there are.
    pub(super) fn for_coordinator(&self) -> (bool, Vec<ToCoordinator>) {
        let mut waiting = self.lock();
        let statuses = std::mem::take(&mut waiting.statuses).into_iter();
        let reported = |((child, _), status)| ToCoordinator::Reported { child, status };
        (std::mem::take(&mut waiting.children), statuses.map(reported).collect())
    }

    /// What the participant has not heard, now that its inbox is empty.
    pub(super) fn for_participant(&self, jobs: &Jobs) -> Vec<ToParticipant> {
        let mut waiting = self.lock();
        let mut messages = Vec::new();
        if std::mem::take(&mut waiting.parents) {
            let now = |uplink: &Arc<Uplink>| ToParticipant::Parent { up: uplink.is_up(), uplink: Arc::clone(uplink) };
            messages.extend(jobs.cx.parents.iter().map(now));
        }
        let assigned = std::mem::take(&mut waiting.assigned).into_values();
        messages.extend(assigned.map(|(uplink, want, classes)| ToParticipant::Assigned { uplink, want, classes }));
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node: &str, holds: u64) -> JobStatus {
        JobStatus { node: node.to_owned(), holds, ..JobStatus::default() }
    }

    fn said(message: ToCoordinator) -> (String, u64) {
        match message {
            ToCoordinator::Reported { status, .. } => (status.node, status.holds),
            _ => panic!("not a status"),
        }
    }

    #[test]
    fn a_full_inbox_loses_no_news_and_turns_none_around() {
        let (late, (coordinator, mut inbox)) = (Late::default(), mpsc::channel(1));
        late.reported(&coordinator, "edge", status("a", 1));
        for (node, holds) in [("a", 2), ("b", 3)] {
            late.reported(&coordinator, "edge", status(node, holds));
        }
        assert_eq!(said(inbox.try_recv().unwrap()), ("a".to_owned(), 1));
        // There is room again, but an older word waits still.
        late.reported(&coordinator, "edge", status("a", 4));
        assert!(inbox.try_recv().is_err());
        late.child(&coordinator, ToCoordinator::ChildUp("x".into()));
        late.child(&coordinator, ToCoordinator::ChildDown("x".into()));
        let (anew, news) = late.for_coordinator();
        let heard: Vec<_> = news.into_iter().map(said).collect();
        assert!(anew && heard == [("a".to_owned(), 4), ("b".to_owned(), 3)], "{heard:?}");
        assert!(matches!(inbox.try_recv(), Ok(ToCoordinator::ChildUp(_))));
        late.reported(&coordinator, "edge", status("a", 5));
        assert_eq!(said(inbox.try_recv().unwrap()), ("a".to_owned(), 5));
        assert!(late.for_coordinator().1.is_empty());
    }
}
