//! Jobs that parents told of and that aren't set up here yet: one task for each
//! job and parent, however often the parent speaks, and not without end.

use std::collections::BTreeMap;

use prost::Message;
use tierline_node::Peer;
use tierline_proto::Digest;
use tierline_proto::v1::JobAssignment;

/// What is wanted for jobs on their way, of all parents: for every job that a
/// node may have, and the members below an edge.
const WANTED_MAX: usize = 4_096;

/// Bytes of all of it: hundreds each are plenty.
const WANTED_BYTES_MAX: usize = 4 << 20;

/// A job, and the parent that told of it.
pub(super) type Key = (Digest, Peer);

/// What parents want for such jobs.
#[derive(Default)]
pub(super) struct Arrivals(BTreeMap<Key, Wanted>);

/// What one parent wants for one job, by member; the newest counts.
#[derive(Default)]
struct Wanted {
    waiting: BTreeMap<String, JobAssignment>,
    /// Bytes of what the task is at.
    taken_bytes: usize,
}

impl Wanted {
    fn bytes(&self) -> usize {
        self.taken_bytes + self.waiting.values().map(Message::encoded_len).sum::<usize>()
    }
}

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
        let before = self.0.get(&key).and_then(|wanted| wanted.waiting.get(&assignment.node));
        let count: usize = self.0.values().map(|wanted| wanted.waiting.len().max(1)).sum();
        let bytes: usize = self.0.values().map(Wanted::bytes).sum();
        let bytes = bytes - before.map_or(0, Message::encoded_len) + assignment.encoded_len();
        if bytes > WANTED_BYTES_MAX || (count >= WANTED_MAX && before.is_none()) {
            return Arrival::Refused;
        }
        let arrival = if self.0.contains_key(&key) { Arrival::Beside } else { Arrival::First };
        self.0.entry(key).or_default().waiting.insert(assignment.node.clone(), assignment);
        arrival
    }

    /// What is wanted now; `None` when it is nothing, and the task is over.
    pub(super) fn take(&mut self, key: Key) -> Option<Vec<JobAssignment>> {
        let wanted = self.0.get_mut(&key)?;
        let taken = std::mem::take(&mut wanted.waiting);
        wanted.taken_bytes = taken.values().map(Message::encoded_len).sum();
        if taken.is_empty() {
            self.0.remove(&key);
            return None;
        }
        Some(taken.into_values().collect())
    }

    /// Keeps something for another try, unless there is something newer.
    pub(super) fn put_back(&mut self, key: Key, assignment: JobAssignment) {
        if let Some(wanted) = self.0.get_mut(&key) {
            wanted.taken_bytes = wanted.taken_bytes.saturating_sub(assignment.encoded_len());
            wanted.waiting.entry(assignment.node.clone()).or_insert(assignment);
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

    #[test]
    fn large_words_fill_nothing_either() {
        let mut arrivals = Arrivals::default();
        let large = |node: &str| of(node, &"x".repeat(WANTED_BYTES_MAX / 3));
        assert_eq!(arrivals.hear(key(1), large("a")), Arrival::First);
        assert_eq!(arrivals.hear(key(2), large("a")), Arrival::First);
        // At work it still counts.
        arrivals.take(key(2));
        assert_eq!(arrivals.hear(key(3), large("a")), Arrival::Refused);
        assert_eq!(arrivals.hear(key(1), large("a")), Arrival::Beside, "in place of the one before");
        assert_eq!(arrivals.take(key(2)), None);
        assert_eq!(arrivals.hear(key(3), large("a")), Arrival::First);
    }
}
