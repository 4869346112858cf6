//! What the fleet's machine hears, and what it wants done.

use serde::{Deserialize, Serialize};

use super::Record;
use crate::rollout::{Attributes, Health, Limits, Report, Version, Want};

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A device can be reached, or said again what it is. What the shell's own
    /// connection says, not a message that may come late.
    Seen {
        /// Its name.
        device: String,
        /// What is known of it.
        attributes: Attributes,
        /// What it says of the model, with its first breath.
        report: Report,
    },
    /// A device can't be reached any more.
    Lost {
        /// Its name.
        device: String,
    },
    /// A device says what it is at.
    Report {
        /// Its name.
        device: String,
        /// What it says.
        report: Report,
    },
    /// How a version does on a device.
    Health {
        /// Its name.
        device: String,
        /// The device's start, as in its reports.
        session: u64,
        /// The version that ran.
        version: Version,
        /// How it did, since that start.
        health: Health,
    },
    /// An edge has the bytes of a version, or hasn't any more.
    Holds {
        /// Its name.
        edge: String,
        /// The version.
        version: Version,
        /// Whether it has.
        holds: bool,
    },
    /// What an operator says.
    Command(Command),
    /// The time that [`Fleet::next_deadline`](super::Fleet::next_deadline)
    /// named.
    Tick,
}

/// What an operator says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// No device is asked any more, until it is resumed.
    Pause,
    /// It goes on; failures so far are excused.
    Resume,
    /// What waits for approval goes on.
    Approve,
    /// A group is passed over, with its devices as they are.
    Skip {
        /// Its name.
        group: String,
    },
    /// All devices go back to the old version; also when the rollout is over.
    Abort {
        /// Why, for people.
        reason: String,
    },
    /// A later rollout of the same model takes its place.
    Supersede {
        /// Which.
        by: u64,
    },
}

/// What the shell shall do, in this order. Records come first: what is behind
/// them is done when they are durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write to the journal, through to the disk; in place of all of it when
    /// [`Record::replaces_earlier`] says so.
    Keep(Record),
    /// Tell a device what it shall run.
    Want {
        /// Whom.
        device: String,
        /// What.
        want: Want,
    },
    /// Tell an edge to get a version's bytes, for its site; it answers with
    /// [`Event::Holds`], again and again.
    Prefetch {
        /// Whom.
        edge: String,
        /// What.
        version: Version,
        /// How.
        limits: Limits,
    },
    /// Tell people.
    Notify {
        /// What happened and why, in a sentence.
        text: String,
    },
    /// It is over; [`Fleet::step`](super::Fleet::step) still brings devices
    /// that come late to the right version.
    Finished(Outcome),
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All groups are through.
    Succeeded,
    /// All devices went back by themselves: an error.
    RolledBack,
    /// All devices went back: an operator said so.
    Aborted,
    /// A later rollout took its place.
    Superseded,
}

impl Outcome {
    /// In a word or two, for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::RolledBack => "rolled back",
            Self::Aborted => "aborted",
            Self::Superseded => "superseded",
        }
    }
}

impl Command {
    /// In a word, as operators say it.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Approve => "approve",
            Self::Skip { .. } => "skip",
            Self::Abort { .. } => "abort",
            Self::Supersede { .. } => "supersede",
        }
    }
}
