//! Federations: many nodes train one model, and what they send is put
//! together.
//!
//! Pure: no files, clocks or sockets, and nothing is trained here. A
//! [`Federation`] says how a job is run: which [`Strategy`] each hop follows,
//! whom it asks, and how updates travel. A [`Layout`] lists what is learned;
//! members answer with a [`Contribution`], vectors by [`Channel`]; an
//! [`Aggregate`] puts contributions together as they arrive; the strategy makes
//! the next model of that. Start at [`Federation`], then [`strategy`].

#![forbid(unsafe_code)]

pub mod aggregate;
pub mod aggregator;
pub mod config;
pub mod down;
pub mod gossip;
pub mod layout;
pub mod modifier;
pub mod personal;
pub mod progress;
pub mod report;
pub mod rule;
pub mod seconds;
pub mod seed;
pub mod select;
pub mod sender;
pub mod strategy;
pub mod sum;
pub mod wire;

mod combine;
mod error;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use aggregate::{Aggregate, Mean};
pub use aggregator::Aggregator;
pub use config::{Clients, Federation, Hop, Late};
pub use down::Down;
pub use error::FederateError;
pub use gossip::Gossip;
pub use layout::{Layout, Part};
pub use modifier::Modifier;
pub use personal::{HeldOut, Personal};
pub use progress::{RoundScores, Scoreboard};
pub use report::Report;
pub use rule::{InMemory, Rule, SpillStore};
pub use seconds::Seconds;
pub use select::{Candidate, Select};
pub use sender::{Memory, Sender};
pub use strategy::{Strategy, Timing};
pub use sum::ExactSum;

/// What a vector of a contribution is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Channel {
    /// How weights changed: those of [`Layout::parameters`].
    Model,
    /// Running statistics as they are, in a model and in an update: what the
    /// member measured, those of [`Layout::statistics`]. A variance is no
    /// gradient: a change of one, seen from another model than the one it was
    /// measured from, may lead below zero, and of a small one next to a large
    /// one nothing is left but rounding.
    Statistics,
    /// How control variates changed (SCAFFOLD), shaped as [`Channel::Model`].
    Control,
    /// How what a model says of public examples changed, before softmax:
    /// [`Layout::logits`]. Where each side trains a part of the model: what one
    /// side's model says of a member's own examples.
    Logits,
    /// What the first part of a model makes of a member's examples:
    /// [`Layout::features`].
    Features,
    /// The classes of those examples: [`Layout::labels`].
    Labels,
}

impl Channel {
    pub(crate) const ALL: [Self; 6] =
        [Self::Model, Self::Statistics, Self::Control, Self::Logits, Self::Features, Self::Labels];

    /// Its name, on the wire and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Statistics => "statistics",
            Self::Control => "control",
            Self::Logits => "logits",
            Self::Features => "features",
            Self::Labels => "labels",
        }
    }

    /// Whether its numbers travel with all their bits, whatever stages say.
    #[must_use]
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Statistics | Self::Labels)
    }

    /// The channel of this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// Flat vectors by what they are about.
pub type Vectors = BTreeMap<Channel, Vec<f32>>;

/// A member's answer to a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contribution {
    /// What changed.
    pub vectors: Vectors,
    /// How it came about.
    pub report: Report,
}

/// A contribution that counts, without its vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counted {
    /// Whose.
    pub member: String,
    /// How it came about.
    pub report: Report,
    /// Versions of the model made between the one it starts from and the one
    /// it is counted for.
    pub staleness: u64,
}

/// The model of a hop, and what its strategy remembers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Server {
    /// Weights and statistics now.
    pub model: Vectors,
    /// By a name that the strategy chose, shaped as the weights.
    pub kept: BTreeMap<String, Vec<f32>>,
}
