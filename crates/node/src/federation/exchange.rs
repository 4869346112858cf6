//! An edge's exchange with its neighbours between two rounds (gossip): whom it
//! asks next, how long it waits, and when it goes on without somebody.
//!
//! Neighbours are asked one behind the other, in their order, so that no more
//! than two models are in memory and sums don't depend on who is first.

use std::collections::VecDeque;
use std::time::Duration;

use tierline_federate::Gossip;
use tierline_proto::{Code, Failure};

use crate::Time;

/// A neighbour whose model isn't made yet answers after so long; it is asked
/// again at once.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(8);

/// One that can't be reached, or has nothing yet, is asked again after this, and
/// no sooner.
pub const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It begins.
    Start,
    /// The model of the neighbour that was asked is mixed in.
    Mixed,
    /// The neighbour that was asked has no model to give, now or ever.
    Failed(Failure),
    /// The time that [`Exchange::wake`] named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask a neighbour for its model, and wait so long for its answer.
    Ask {
        /// By name.
        neighbour: String,
        /// Longest wait.
        patience: Duration,
    },
    /// A neighbour is not waited for any more.
    Absent {
        /// By name.
        neighbour: String,
        /// Why.
        reason: Failure,
    },
    /// All were asked; the model is as mixed as it will be.
    Done,
}

/// The exchange.
///
/// Invariants: each neighbour is mixed in or absent, once; nobody is asked
/// while another is; behind the deadline each is asked once more at most.
#[derive(Debug)]
pub struct Exchange {
    neighbours: VecDeque<String>,
    deadline: Option<Duration>,
    patience: Duration,
    began: Time,
    /// When the neighbour at hand was last asked.
    asked: Time,
    /// When it was last heard of.
    heard: Time,
    /// Whether it was asked behind the deadline.
    late: bool,
    again_at: Option<Time>,
    done: bool,
}

impl Exchange {
    /// With these neighbours, in the order in which they are asked.
    #[must_use]
    pub fn new(neighbours: impl IntoIterator<Item = String>, gossip: &Gossip) -> Self {
        Self {
            neighbours: neighbours.into_iter().collect(),
            deadline: gossip.deadline(),
            patience: gossip.patience(),
            began: Time::ZERO,
            asked: Time::ZERO,
            heard: Time::ZERO,
            late: false,
            again_at: None,
            done: false,
        }
    }

    /// One step.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        if self.done {
            return Vec::new();
        }
        match event {
            Event::Start => {
                (self.began, self.heard) = (now, now);
                self.ask(now)
            }
            Event::Mixed => {
                self.neighbours.pop_front();
                self.heard = self.began;
                self.ask(now)
            }
            Event::Failed(failure) => self.failed(now, failure),
            Event::Wake if self.again_at.is_some_and(|at| at <= now) => self.ask(now),
            Event::Wake => Vec::new(),
        }
    }

    /// When it wants to be woken.
    #[must_use]
    pub fn wake(&self) -> Option<Time> {
        self.again_at.filter(|_| !self.done)
    }

    fn ask(&mut self, now: Time) -> Vec<Action> {
        self.again_at = None;
        let Some(neighbour) = self.neighbours.front().cloned() else {
            self.done = true;
            return vec![Action::Done];
        };
        let left = self.deadline.map(|deadline| deadline.saturating_sub(now.since(self.began)));
        self.late = left.is_some_and(|left| left.is_zero());
        // One more try behind the deadline finds those that are ready.
        let patience = left.unwrap_or(ANSWER_PATIENCE).clamp(ASK_AGAIN, 2 * ANSWER_PATIENCE);
        self.asked = now;
        vec![Action::Ask { neighbour, patience }]
    }

    fn failed(&mut self, now: Time, failure: Failure) -> Vec<Action> {
        use Code::{Corrupt, DeadlineExceeded, Forbidden, InvalidInput, ModelNotReady, NotFound, TooLarge};
        match failure.code() {
            NotFound | Forbidden | Corrupt | TooLarge | InvalidInput => self.absent(now, failure),
            _ if self.late => self.absent(now, failure),
            // It is there, and will have it.
            ModelNotReady | DeadlineExceeded => {
                self.heard = now;
                if now.since(self.asked) >= ASK_AGAIN {
                    return self.ask(now);
                }
                self.again_at = Some(self.asked + ASK_AGAIN);
                Vec::new()
            }
            _ if now.since(self.heard) >= self.patience => self.absent(now, failure),
            _ => {
                self.again_at = Some(now + ASK_AGAIN);
                Vec::new()
            }
        }
    }

    fn absent(&mut self, now: Time, reason: Failure) -> Vec<Action> {
        let Some(neighbour) = self.neighbours.pop_front() else { return Vec::new() };
        self.heard = self.began;
        let mut actions = vec![Action::Absent { neighbour, reason }];
        actions.extend(self.ask(now));
        actions
    }
}
