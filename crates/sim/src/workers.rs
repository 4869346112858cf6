//! Threads that do members' tasks: as many as the machine has cores, each with
//! a training step of its own.
//!
//! A task's outcome depends on nothing but the task, so which thread does it
//! and when changes nothing.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tierline_federate::{Contribution, Vectors};
use tierline_graph::Model;
use tierline_train::TrainError;
use tierline_train::federated::{Kept, Share, Task, Workplace};

/// Tasks that wait for a thread, per thread.
const WAITING_MAX: usize = 1_024;

/// A member's task.
pub(crate) struct Order {
    pub(crate) member: String,
    pub(crate) round: u64,
    pub(crate) start: Arc<Vectors>,
    pub(crate) share: Arc<Share>,
    /// Whether it only looks at the model.
    pub(crate) look: bool,
    pub(crate) kept: Kept,
    pub(crate) stop: Arc<AtomicBool>,
}

/// What came of it: `None` when it was stopped. With what the member keeps,
/// and of the last look its own model.
pub(crate) struct Done {
    pub(crate) result: Result<Option<Contribution>, TrainError>,
    pub(crate) kept: Kept,
    pub(crate) own: Option<Model>,
}

/// The threads.
pub(crate) struct Workers {
    /// `None` once dropped, to tell the threads that nothing more comes.
    orders: Option<SyncSender<(Order, Sender<Done>)>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(crate) fn new(workplaces: Vec<Workplace>) -> Self {
        let (orders, waiting) = sync_channel::<(Order, Sender<Done>)>(WAITING_MAX * workplaces.len());
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = workplaces.into_iter().map(|place| {
            let waiting = Arc::clone(&waiting);
            std::thread::spawn(move || work(place, &waiting))
        });
        Self { orders: Some(orders), threads: threads.collect() }
    }

    /// Has a task done; its outcome comes later.
    pub(crate) fn order(&self, order: Order) -> Receiver<Done> {
        let (done, outcome) = channel();
        if let Some(orders) = &self.orders {
            // Fails only when every thread has panicked; the outcome says so.
            let _ = orders.send((order, done));
        }
        outcome
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.orders = None;
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn work(mut place: Workplace, waiting: &Mutex<Receiver<(Order, Sender<Done>)>>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((order, done)) = next else { return };
        let Order { member, round, start, share, look, mut kept, stop } = order;
        let task = Task { member: &member, round, start: &start };
        let mut own = None;
        let result = match look {
            true => place.conclude(task, &share, &kept, &stop).map(|concluded| {
                let (report, model) = concluded?;
                own = model;
                Some(Contribution { vectors: Vectors::new(), report })
            }),
            false => place.work(task, &share, &mut kept, &stop),
        };
        // Who doesn't wait any more doesn't want to know.
        let _ = done.send(Done { result, kept, own });
    }
}
