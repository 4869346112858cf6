//! Messages to one side of a job that found no room in its inbox.
//!
//! They say how things are, so of each speaker only the newest matters; none
//! is lost. A side takes them once its inbox is empty: all that came before is
//! heard by then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_node::Peer;
use tierline_proto::v1::job_assignment::Want;
use tierline_proto::v1::{ClassNames, JobStanding};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::lower::ToLower;
use super::upper::ToUpper;
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
    standings: BTreeMap<(String, String), JobStanding>,
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

    /// Tells the upper side how a member is.
    pub(super) fn stands(&self, upper: &mpsc::Sender<ToUpper>, child: &str, standing: JobStanding) {
        let mut waiting = self.lock();
        let key = (child.to_owned(), standing.node.clone());
        // Behind what waits already: an older word must not come last.
        let standing = match waiting.standings.contains_key(&key) {
            true => standing,
            false => match upper.try_send(ToUpper::Stands { child: child.to_owned(), standing }) {
                Err(TrySendError::Full(ToUpper::Stands { standing, .. })) => standing,
                _ => return,
            },
        };
        if waiting.standings.len() < SPEAKERS_MAX || waiting.standings.contains_key(&key) {
            waiting.standings.insert(key, standing);
        } else {
            tracing::warn!(child, "more members speak than a site has; this one is not heard");
        }
    }

    /// Tells the upper side that a child came or went.
    pub(super) fn child(&self, upper: &mpsc::Sender<ToUpper>, message: ToUpper) {
        let mut waiting = self.lock();
        if waiting.children || matches!(upper.try_send(message), Err(TrySendError::Full(_))) {
            waiting.children = true;
        }
    }

    /// Tells the lower side what a parent wants.
    pub(super) fn assigned(
        &self,
        lower: &mpsc::Sender<ToLower>,
        uplink: &Arc<Uplink>,
        want: Want,
        classes: Option<ClassNames>,
    ) {
        let mut waiting = self.lock();
        let (want, classes) = match waiting.assigned.contains_key(&uplink.peer) {
            true => (want, classes),
            false => match lower.try_send(ToLower::Assigned { uplink: Arc::clone(uplink), want, classes }) {
                Err(TrySendError::Full(ToLower::Assigned { want, classes, .. })) => (want, classes),
                _ => return,
            },
        };
        waiting.assigned.insert(uplink.peer, (Arc::clone(uplink), want, classes));
    }

    /// Tells the lower side that a parent came or went.
    pub(super) fn parent(&self, lower: &mpsc::Sender<ToLower>, uplink: &Arc<Uplink>, up: bool) {
        let mut waiting = self.lock();
        let message = ToLower::Parent { uplink: Arc::clone(uplink), up };
        if waiting.parents || matches!(lower.try_send(message), Err(TrySendError::Full(_))) {
            waiting.parents = true;
        }
    }

    /// What the upper side has not heard, now that its inbox is empty, and
    /// whether it shall look which children there are.
    pub(super) fn for_upper(&self) -> (bool, Vec<ToUpper>) {
        let mut waiting = self.lock();
        let standings = std::mem::take(&mut waiting.standings).into_iter();
        let stands = |((child, _), standing)| ToUpper::Stands { child, standing };
        (std::mem::take(&mut waiting.children), standings.map(stands).collect())
    }

    /// What the lower side has not heard, now that its inbox is empty.
    pub(super) fn for_lower(&self, jobs: &Jobs) -> Vec<ToLower> {
        let mut waiting = self.lock();
        let mut messages = Vec::new();
        if std::mem::take(&mut waiting.parents) {
            let now = |uplink: &Arc<Uplink>| ToLower::Parent { up: uplink.is_up(), uplink: Arc::clone(uplink) };
            messages.extend(jobs.cx.parents.iter().map(now));
        }
        let assigned = std::mem::take(&mut waiting.assigned).into_values();
        messages.extend(assigned.map(|(uplink, want, classes)| ToLower::Assigned { uplink, want, classes }));
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(node: &str, holds: u64) -> JobStanding {
        JobStanding { node: node.to_owned(), holds, ..JobStanding::default() }
    }

    fn said(message: ToUpper) -> (String, u64) {
        match message {
            ToUpper::Stands { standing, .. } => (standing.node, standing.holds),
            _ => panic!("not a standing"),
        }
    }

    #[test]
    fn a_full_inbox_loses_no_news_and_turns_none_around() {
        let (late, (upper, mut inbox)) = (Late::default(), mpsc::channel(1));
        late.stands(&upper, "edge", standing("a", 1));
        for (node, holds) in [("a", 2), ("b", 3)] {
            late.stands(&upper, "edge", standing(node, holds));
        }
        assert_eq!(said(inbox.try_recv().unwrap()), ("a".to_owned(), 1));
        // There is room again, but an older word waits still.
        late.stands(&upper, "edge", standing("a", 4));
        assert!(inbox.try_recv().is_err());
        late.child(&upper, ToUpper::ChildUp("x".into()));
        late.child(&upper, ToUpper::ChildDown("x".into()));
        let (look, news) = late.for_upper();
        let heard: Vec<_> = news.into_iter().map(said).collect();
        assert!(look && heard == [("a".to_owned(), 4), ("b".to_owned(), 3)], "{heard:?}");
        assert!(matches!(inbox.try_recv(), Ok(ToUpper::ChildUp(_))));
        late.stands(&upper, "edge", standing("a", 5));
        assert_eq!(said(inbox.try_recv().unwrap()), ("a".to_owned(), 5));
        assert!(late.for_upper().1.is_empty());
    }
}
