//! What a round gave, for people and programs.

use serde::{Deserialize, Serialize};

/// What a round of the cloud gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundScores {
    /// From 1.
    pub round: u64,
    /// Share of the examples held out that were right, where targets are
    /// classes and the round was looked at.
    pub accuracy: Option<f64>,
    /// On the examples held out, where the round was looked at.
    pub loss: Option<f64>,
    /// On members' own examples, each before its step.
    pub train_loss: f64,
    /// Bytes of updates, on all hops together.
    pub bytes_up: u64,
    /// Bytes of models, on all hops together.
    pub bytes_down: u64,
    /// Time since the last round ended.
    pub seconds: f64,
    /// Updates that counted at the cloud.
    pub clients: usize,
}
