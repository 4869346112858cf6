//! What a coordinator hears, and what it has done.

use tierline_federate::Counted;

use super::Record;
use crate::federation::{MemberStatus, Task, Update, Verdict};

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Run some rounds from a model that is there.
    Begin {
        /// The model.
        version: u64,
        /// Rounds to run from here on.
        rounds: u64,
        /// Whether members evaluate the model that they lead to, in one more
        /// round that makes none.
        evaluate: bool,
        /// What asked for it: told back when they are done.
        stretch: u64,
    },
    /// A member's link is there, or its status changed.
    Member {
        /// Who.
        member: String,
        /// What it is at.
        status: MemberStatus,
    },
    /// A member's link is gone.
    Lost {
        /// Who.
        member: String,
    },
    /// An update lies safely on the disk and was found fit.
    Arrived {
        /// Whose.
        member: String,
        /// The update.
        update: Update,
    },
    /// An update can't be used.
    Unfit {
        /// Whose.
        member: String,
        /// The task it answers.
        task: Task,
        /// What is wrong with it.
        reason: String,
    },
    /// The model of [`Action::Make`] is made and kept, or [`Action::Evaluated`]
    /// is dealt with.
    Made {
        /// Its number.
        version: u64,
        /// Whether the job has reached what it is for.
        enough: bool,
    },
    /// No new work is given out.
    Pause,
    /// Work goes on.
    Resume,
    /// The job is over, for whatever reason: members are let go.
    End,
    /// The time [`Coordinator::wake`](super::Coordinator::wake) named.
    Wake,
}

/// What the shell shall do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write to the journal, through to the disk; in place of all of it when
    /// the record is [`Record::Snapshot`].
    Keep(Record),
    /// Tell a member its [`Coordinator::assignment`](super::Coordinator::assignment).
    Tell {
        /// Who.
        member: String,
    },
    /// Answer a member that sent an update.
    Answer {
        /// Who.
        member: String,
        /// The task it was sent for.
        task: Task,
        /// What became of it.
        verdict: Verdict,
    },
    /// Add the update to what the next model is made of.
    Add {
        /// Whose.
        member: String,
        /// The update.
        update: Update,
        /// The model it starts from.
        version: u64,
        /// How many models old that is.
        staleness: u64,
    },
    /// Make the next model of what was added; then [`Event::Made`].
    Make {
        /// The model's number.
        version: u64,
        /// The round that it ends.
        round: u64,
        /// What it is made of.
        counted: Vec<Counted>,
        /// Members there are.
        members: usize,
        /// Whether it is the last of its stretch.
        last: bool,
    },
    /// Members have evaluated the newest model; then [`Event::Made`] with its
    /// number.
    Evaluated {
        /// That number.
        version: u64,
        /// What they say; nothing when all of them are gone.
        counted: Vec<Counted>,
    },
    /// All rounds of a stretch are done.
    Done {
        /// What asked for it.
        stretch: u64,
        /// The model it led to.
        version: u64,
        /// What was counted in it, if [`Terms::sums_up`](super::Terms::sums_up).
        counted: Vec<Counted>,
    },
    /// A member is left out.
    Excluded {
        /// Who.
        member: String,
        /// Why.
        reason: String,
    },
}
