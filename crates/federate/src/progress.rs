//! What a round gave, for people and programs.

use serde::{Deserialize, Serialize};

use crate::HeldOut;

/// What a round of the cloud gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundScores {
    /// From 1.
    pub round: u64,
    /// Share of the examples held out that were right, where targets are
    /// classes and the round was evaluated; of all ends together, where they
    /// look.
    pub accuracy: Option<f64>,
    /// On the examples held out, where the round was evaluated.
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

/// Rounds as their scores become known.
///
/// The cloud evaluates a model as soon as it is made. Where ends evaluate, they do
/// so when they get it: what they say of a round's model comes with their
/// answers to the next round, and that round is told of then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scoreboard {
    /// A round of whose model nothing was said yet.
    last: Option<RoundScores>,
}

impl Scoreboard {
    /// Goes on behind a round of which nothing was said yet.
    #[must_use]
    pub fn behind(last: Option<RoundScores>) -> Self {
        Self { last }
    }

    /// A round has ended, in which ends said this of the model before it.
    /// Rounds of which all is known now.
    pub fn ended(&mut self, round: RoundScores, before: Option<HeldOut>, at_ends: bool) -> Option<RoundScores> {
        if !at_ends {
            return Some(round);
        }
        // A round that is ended again, after a crash, is not behind itself.
        let known = self.last.replace(round.clone()).filter(|known| known.round < round.round);
        known.map(|known| known.with(before))
    }

    /// Ends have evaluated the last model.
    pub fn evaluated(&mut self, last: Option<HeldOut>) -> Option<RoundScores> {
        self.last.take().map(|known| known.with(last))
    }
}

impl RoundScores {
    fn with(self, evaluated: Option<HeldOut>) -> Self {
        Self { accuracy: evaluated.and_then(|l| l.accuracy), loss: evaluated.map(|l| l.loss), ..self }
    }
}
