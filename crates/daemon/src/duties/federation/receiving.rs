//! Updates on their way in: one stream at a time for each task.
//!
//! A member whose link came back sends again while its old stream may still
//! live. The newer one goes on where the older one has got to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_proto::Digest;
use tokio::sync::{Notify, OwnedMutexGuard};

/// The job, the child that sends, the task: nobody has a say in what another
/// one sends.
type Key = (Digest, String, u64);

#[derive(Default)]
struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Rings when a newer stream waits.
    newer: Notify,
}

/// The tasks whose updates are on their way.
#[derive(Default)]
pub struct Receiving(Mutex<BTreeMap<Key, Arc<Lane>>>);

/// The right to receive a task's update, until it is dropped.
pub struct Turn<'r> {
    receiving: &'r Receiving,
    key: Key,
    lane: Arc<Lane>,
    _turn: OwnedMutexGuard<()>,
}

impl Receiving {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a task's turn; whoever has it is told to give it up.
    pub async fn turn(&self, job: Digest, child: &str, task: u64) -> Turn<'_> {
        let key = (job, child.to_owned(), task);
        let lane = Arc::clone(self.lock().entry(key.clone()).or_default());
        lane.newer.notify_one();
        let turn = Arc::clone(&lane.turn).lock_owned().await;
        // A ring that nobody heard was for the one before.
        let mut heard = std::pin::pin!(lane.newer.notified());
        heard.as_mut().enable();
        Turn { receiving: self, key, lane: Arc::clone(&lane), _turn: turn }
    }
}

impl Turn<'_> {
    /// Ends when a newer stream brings the same update.
    pub async fn is_over(&self) {
        self.lane.newer.notified().await;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lanes = self.receiving.lock();
        // Here, and in the map: nobody else waits.
        if Arc::strong_count(&self.lane) <= 2 {
            lanes.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn the_newer_stream_has_the_turn() {
        let receiving = Receiving::default();
        let job = Digest([1; 32]);
        let first = receiving.turn(job, "end", 7).await;
        let others = [receiving.turn(job, "end", 8).await, receiving.turn(job, "spoiler", 7).await];
        let second = async {
            let turn = receiving.turn(job, "end", 7).await;
            // Its own ring is not for itself.
            let over = tokio::time::timeout(Duration::from_millis(20), turn.is_over()).await;
            assert!(over.is_err());
        };
        let first = async {
            first.is_over().await;
            drop(first);
        };
        tokio::join!(first, second);
        drop(others);
        assert!(receiving.lock().is_empty(), "nothing is left behind");
    }
}
