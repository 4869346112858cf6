//! The rounds of a federation, on both sides of a hop.
//!
//! A [`Coordinator`] is the upper side: it knows its members, asks them for
//! work, counts their updates and says when the next model is made. A
//! [`Participant`] is the lower side: one member's duty for one job. An edge
//! is both: its participant's work is a stretch of its own coordinator.
//!
//! Messages carry *levels*, not edges: a coordinator tells a member what it
//! wants of it now ([`Assignment`]), a member says what it is at
//! ([`MemberStatus`]). Either may be lost, repeated or overtaken by a newer one;
//! the next one mends it. What must not be lost goes into a journal: a
//! `Keep` action is done, through to the disk, before any action behind it,
//! and after a crash [`Coordinator::restored`] and [`Participant::restored`]
//! take up the journal where it ends. Hence an update counts exactly once:
//! its task is in the journal as counted before anybody hears of it, and
//! whoever sends it again is told so.
//!
//! The machines are pure: they see names, numbers and digests. What they ask
//! for is done by a [`Coordination`] and a [`Participation`], which hold the
//! weights and ask the world for the rest through their effects: a node's, or a
//! simulation's.

pub mod coordination;
mod coordinator;
pub mod exchange;
pub mod home;
mod participant;
pub mod participation;
pub mod relay;
mod routes;

use serde::{Deserialize, Serialize};
use tierline_federate::Report;
use tierline_proto::Digest;

pub use coordination::Coordination;
pub use coordinator::{Action, Coordinator, Event, Ledger, Phase, Progress, Record, Terms};
pub use exchange::Exchange;
pub use home::Home;
pub use participant::{Action as MemberAction, Event as MemberEvent, Participant, Record as MemberRecord, Work};
pub use participation::Participation;
pub use relay::Relay;
pub use routes::{Routes, stranger};

/// Names a piece of work, for good: never given twice in a job.
///
/// The upper half says which coordinator gave it, so that a member that came
/// to another one doesn't take its tasks for those of the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Task(pub u64);

impl Task {
    /// A task by its coordinator's tag and its number there, from 0.
    #[must_use]
    pub fn new(tag: u32, number: u64) -> Self {
        Self(u64::from(tag) << 32 | number & u64::from(u32::MAX))
    }

    /// Which task of its coordinator's it is.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0 & u64::from(u32::MAX)
    }

    /// The coordinator's tag.
    #[must_use]
    pub fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What a coordinator wants of a member now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignment {
    /// Get ready, and wait.
    Wait,
    /// Do this.
    Work {
        /// Its name.
        task: Task,
        /// From 0, over the whole job.
        round: u64,
        /// The model to start from.
        version: u64,
        /// Whether nothing is to be learned: the member evaluates the model.
        #[serde(rename = "look")]
        evaluate: bool,
    },
    /// The job has ended with this model.
    Over {
        /// The last one.
        version: u64,
    },
    /// This member takes no part any more.
    Out {
        /// Why.
        reason: String,
    },
}

/// What a member is at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberStatus {
    /// It fetches the model and opens its data.
    Preparing,
    /// It can work, or is at work.
    Ready {
        /// Examples it learns from.
        examples: u64,
    },
    /// It can't take part.
    Unable {
        /// Why.
        reason: String,
    },
    /// A task failed; it may be asked for others.
    Failed {
        /// Which.
        task: Task,
        /// Why.
        reason: String,
        /// Examples it learns from.
        examples: u64,
    },
}

/// An update on its way to being counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// The work that it answers.
    pub task: Task,
    /// Of its bytes.
    pub digest: Digest,
    /// Their number.
    pub bytes: u64,
    /// How it came about.
    pub report: Report,
}

/// What became of an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It counts, or did already.
    Counted,
    /// Its round is over; it won't count.
    Late,
    /// Nobody asked for it.
    Unknown,
    /// It can't be used.
    Refused {
        /// What is wrong with it.
        reason: String,
    },
}
