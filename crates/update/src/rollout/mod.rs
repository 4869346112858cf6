//! Rollouts: how a new version of a model reaches devices, and how each of
//! them changes over, with the way back open until the new one has proved
//! itself.
//!
//! Two machines, without I/O and without a clock. [`Fleet`] decides, in one
//! place, which device shall run which version, from a declarative [`Spec`].
//! [`Swap`] changes one device over. They speak in levels: a [`Want`] says what
//! shall run, a [`Report`] what runs; either may be lost, doubled or late, and
//! the next one mends it. What must not be forgotten is a record, and is
//! durable before anything that follows from it is done: every step gives out
//! its records first.
//!
//! Start at [`Spec`], then [`Fleet::step`] and [`Swap::step`].
//! `docs/design/rollout.md` says why so.

pub mod fleet;
pub mod gates;
pub mod health;
pub mod journal;
mod message;
pub mod spec;
pub mod swap;
mod time;
mod window;
mod words;

pub use fleet::{Action, Command, Event, Fleet, Outcome, Progress, Record};
pub use gates::{Gate, Verdict};
pub use health::{Health, Latency};
pub use message::{Ask, Attributes, Failed, Kind, Limits, Phase, Report, Want};
pub use spec::{Amount, Group, Spec};
pub use swap::{Swap, SwapAction, SwapEvent, SwapRecord, Terms, Work};
pub use time::{Now, Seconds};
pub use window::Window;
pub use words::Version;

/// Why a rollout can't be begun or taken up again.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RolloutError {
    /// The file is too long to be one.
    #[error("the rollout's file has {bytes} bytes; at most {max} are read")]
    Long {
        /// Its length.
        bytes: usize,
        /// The most that is read.
        max: usize,
    },
    /// The file isn't TOML, or has keys or values that there are not.
    #[error("the rollout's file can't be read: {0}")]
    Syntax(String),
    /// A value that can't be.
    #[error("{place}: {reason}")]
    Setting {
        /// Where in the file.
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A journal that no rollout wrote.
    #[error("the journal can't be taken up: {0}")]
    Journal(String),
    /// Another rollout of the same model isn't over.
    #[error(
        "rollout {rollout} of `{model}` isn't over; abort it first, or say `supersede = true` and `other = \"update\"`"
    )]
    Busy {
        /// Which.
        rollout: u64,
        /// Of which model.
        model: String,
    },
    /// What came from a device can't be true.
    #[error("{0}")]
    Untrue(String),
}
