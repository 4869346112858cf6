//! Client modifiers: what is done to a member's update before anybody else
//! sees it, whatever its strategy. They follow one another in the order of the
//! job's file, behind local training and before the stages that make an update
//! small.
//!
//! What an update's bytes are is known to two functions:
//! [`Sender::encode`](crate::Sender::encode) writes them, and
//! [`Aggregator::read`](crate::Aggregator::read) makes of them what is checked
//! and added. Nothing between them looks inside: a modifier whose sums are over
//! integers that nobody decodes one by one changes these two and the sum.
//!
//! # Adding a modifier
//!
//! 1. Write `mine.rs` with a struct of its settings (serde, unknown ones
//!    refused) that implements [`ClientModifier`].
//! 2. Add it to [`Modifier`] and to [`Modifier::behaviour`].
//! 3. Say in `tests/it/modifiers.rs` what it makes of small numbers.

mod clip;

use serde::{Deserialize, Serialize};

pub use clip::Clip;

use crate::{Contribution, FederateError, Strategy};

/// A modifier and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Modifier {
    /// Updates are no longer than a bound.
    Clip(Clip),
}

/// What sets a modifier apart.
pub trait ClientModifier {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    fn check(&self) -> Result<(), FederateError>;

    /// Why it does not go with a strategy of a hop whose members are ends;
    /// `None` where it does.
    fn refuses(&self, strategy: &Strategy) -> Option<&'static str>;

    /// Changes what a member sends: of each channel, the change from what its
    /// task began with (statistics as they were measured).
    ///
    /// # Errors
    /// When the update can't be changed so.
    fn modify(&self, contribution: &mut Contribution) -> Result<(), FederateError>;
}

impl Modifier {
    /// What sets it apart.
    #[must_use]
    pub fn behaviour(&self) -> &dyn ClientModifier {
        match self {
            Self::Clip(clip) => clip,
        }
    }
}
