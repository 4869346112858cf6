//! Jobs that parents told of and that aren't set up here yet: one task for each
//! job and parent, however often the parent speaks, and not without end.

use std::collections::BTreeMap;

use tierline_node::Peer;
use tierline_proto::Digest;
use tierline_proto::v1::JobAssignment;

/// What is wanted for jobs on their way, of all parents: for every job that a
/// node may have, and the members below an edge.
const WANTED_MAX: usize = 4_096;

/// A job, and the parent that told of it.
pub(super) type Key = (Digest, Peer);

/// What parents want for such jobs.
#[derive(Default)]
pub(super) struct Arrivals(BTreeMap<Key, BTreeMap<String, JobAssignment>>);

/// What becomes of something that a parent wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A task begins with it.
    First,
    /// The task at work takes it up.
    Beside,
    /// There is no room.
    Refused,
}

impl Arrivals {
    /// A parent wants something; the newest for each member counts.
    pub(super) fn hear(&mut self, key: Key, assignment: JobAssignment) -> Arrival {
        let wanted: usize = self.0.values().map(|wanted| wanted.len().max(1)).sum();
        let known = self.0.get(&key).is_some_and(|wanted| wanted.contains_key(&assignment.node));
        if wanted >= WANTED_MAX && !known {
            return Arrival::Refused;
        }
        let arrival = if self.0.contains_key(&key) { Arrival::Beside } else { Arrival::First };
        self.0.entry(key).or_default().insert(assignment.node.clone(), assignment);
        arrival
    }

    /// What is wanted now; `None` when it is nothing, and the task is over.
    pub(super) fn take(&mut self, key: Key) -> Option<Vec<JobAssignment>> {
        let wanted = std::mem::take(self.0.get_mut(&key)?);
        if wanted.is_empty() {
            self.0.remove(&key);
            return None;
        }
        Some(wanted.into_values().collect())
    }

    /// Keeps something for another try, unless there is something newer.
    pub(super) fn put_back(&mut self, key: Key, assignment: JobAssignment) {
        if let Some(wanted) = self.0.get_mut(&key) {
            wanted.entry(assignment.node.clone()).or_insert(assignment);
        }
    }

    /// The task is over, whatever is still wanted.
    pub(super) fn over(&mut self, key: Key) {
        self.0.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use tierline_proto::v1::ClassNames;

    use super::*;

    fn key(job: u8) -> Key {
        (Digest([job; 32]), Peer(0))
    }

    fn of(node: &str, classes: &str) -> JobAssignment {
        let classes = Some(ClassNames { names: vec![classes.to_owned()] });
        JobAssignment { node: node.to_owned(), classes, ..JobAssignment::default() }
    }

    #[test]
    fn one_task_takes_up_the_newest() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.hear(key(1), of("a", "old")), Arrival::First);
        assert_eq!(arrivals.hear(key(1), of("a", "new")), Arrival::Beside);
        assert_eq!(arrivals.hear(key(1), of("b", "other")), Arrival::Beside);
        assert_eq!(arrivals.take(key(1)), Some(vec![of("a", "new"), of("b", "other")]));
        assert_eq!(arrivals.hear(key(1), of("a", "newest")), Arrival::Beside, "the task is still at work");
        arrivals.put_back(key(1), of("a", "new"));
        arrivals.put_back(key(1), of("b", "other"));
        assert_eq!(arrivals.take(key(1)), Some(vec![of("a", "newest"), of("b", "other")]));
        assert_eq!(arrivals.take(key(1)), None);
        assert_eq!(arrivals.hear(key(1), of("a", "again")), Arrival::First);
        arrivals.over(key(1));
        arrivals.put_back(key(1), of("a", "late"));
        assert_eq!(arrivals.take(key(1)), None);
    }

    #[test]
    fn ever_new_jobs_come_to_an_end() {
        let mut arrivals = Arrivals::default();
        let jobs = (0..WANTED_MAX as u64).map(|n| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            (Digest(digest), Peer(0))
        });
        let first = jobs.clone().next().unwrap();
        assert!(jobs.into_iter().all(|key| arrivals.hear(key, of("", "")) == Arrival::First));
        assert_eq!(arrivals.hear(key(9), of("", "")), Arrival::Refused);
        assert_eq!(arrivals.hear(first, of("", "newer")), Arrival::Beside);
        // Also while a task looks at what it took.
        arrivals.take(first);
        assert_eq!(arrivals.hear(key(9), of("", "")), Arrival::Refused);
        arrivals.over(first);
        assert_eq!(arrivals.hear(key(9), of("", "")), Arrival::First);
    }
}
