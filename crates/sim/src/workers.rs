//! Threads that do members' tasks: as many as the machine has cores, each with
//! a training step of its own.
//!
//! A task's outcome depends on nothing but the task, so which thread does it
//! and when changes nothing. Tasks are begun in the order in which they end in
//! virtual time, a few ahead: outcomes as large as the model don't pile up.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tierline_engine::Stop;
use tierline_federate::{Contribution, Vectors};
use tierline_graph::Model;
use tierline_node::Time;
use tierline_train::TrainError;
use tierline_train::federated::{LocalTask, LocalTrainer, MemberState, Share};

/// Tasks that are begun and not collected yet, per thread.
const AHEAD_MAX: usize = 4;

/// A member's task.
pub(crate) struct WorkItem {
    pub(crate) member: String,
    pub(crate) round: u64,
    pub(crate) start: Arc<Vectors>,
    pub(crate) share: Arc<Share>,
    /// Which of the job's models it trains.
    pub(crate) model: usize,
    /// Whether it only looks at the model.
    pub(crate) evaluate: bool,
    pub(crate) kept: MemberState,
    pub(crate) stop: Stop,
}

/// What came of it: `None` when it was stopped. With what the member keeps,
/// and of the last evaluation its own model.
pub(crate) struct Done {
    pub(crate) result: Result<Option<Contribution>, TrainError>,
    pub(crate) kept: MemberState,
    pub(crate) own: Option<Model>,
}

type Queued = (WorkItem, Sender<Done>);

/// Items that no thread has heard of yet, by when their outcomes are wanted.
#[derive(Default)]
struct Queue {
    waiting: RefCell<BTreeMap<(Time, u64), Queued>>,
    /// Tasks begun whose tickets are still there.
    begun: Cell<usize>,
    next: Cell<u64>,
}

/// The right to a task's outcome; who drops it doesn't want it any more.
pub(crate) struct Ticket {
    key: (Time, u64),
    queue: Rc<Queue>,
    outcome: Receiver<Done>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.queue.waiting.borrow_mut().remove(&self.key).is_none() {
            self.queue.begun.set(self.queue.begun.get() - 1);
        }
    }
}

/// The threads.
pub(crate) struct Workers {
    /// `None` once dropped, to tell the threads that nothing more comes.
    items: Option<Sender<Queued>>,
    queue: Rc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// One thread for each list of trainers, one for each of the job's
    /// models.
    pub(crate) fn new(trainers: Vec<Vec<LocalTrainer>>) -> Self {
        let (items, waiting) = channel::<Queued>();
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = trainers.into_iter().map(|trainers| {
            let waiting = Arc::clone(&waiting);
            std::thread::spawn(move || work(trainers, &waiting))
        });
        Self { items: Some(items), queue: Rc::default(), threads: threads.collect() }
    }

    /// Has a task done whose outcome is wanted at that time.
    pub(crate) fn queue(&self, wanted: Time, item: WorkItem) -> Ticket {
        let (done, outcome) = channel();
        let key = (wanted, self.queue.next.replace(self.queue.next.get() + 1));
        self.queue.waiting.borrow_mut().insert(key, (item, done));
        let ticket = Ticket { key, queue: Rc::clone(&self.queue), outcome };
        self.begin_some();
        ticket
    }

    /// Waits for a task's outcome; `None` when its thread is gone.
    pub(crate) fn collect(&self, ticket: Ticket) -> Option<Done> {
        let queued = self.queue.waiting.borrow_mut().remove(&ticket.key);
        // Queued only now, and wanted before those that were begun.
        queued.into_iter().for_each(|queued| self.begin(queued));
        let done = ticket.outcome.recv().ok();
        drop(ticket);
        self.begin_some();
        done
    }

    fn begin_some(&self) {
        while self.queue.begun.get() < AHEAD_MAX * self.threads.len() {
            let Some((_, queued)) = self.queue.waiting.borrow_mut().pop_first() else { return };
            self.begin(queued);
        }
    }

    fn begin(&self, queued: Queued) {
        self.queue.begun.set(self.queue.begun.get() + 1);
        if let Some(items) = &self.items {
            // Fails only when every thread has panicked; the outcome says so.
            let _ = items.send(queued);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.items = None;
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn work(mut trainers: Vec<LocalTrainer>, waiting: &Mutex<Receiver<(WorkItem, Sender<Done>)>>) {
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((item, done)) = next else { return };
        let WorkItem { member, round, start, share, model, evaluate, mut kept, stop } = item;
        let trainer = &mut trainers[model];
        let task = LocalTask { member: &member, round, start: &start };
        let mut own = None;
        let result = match evaluate {
            true => trainer.conclude(task, &share, &kept, &stop).map(|concluded| {
                let (report, model) = concluded?;
                own = model;
                Some(Contribution { vectors: Vectors::new(), report })
            }),
            false => trainer.work(task, &share, &mut kept, &stop),
        };
        // Who doesn't wait any more doesn't want to know.
        let _ = done.send(Done { result, kept, own });
    }
}
