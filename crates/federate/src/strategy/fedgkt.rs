//! FedGKT (He, Annavaram and Avestimehr, "Group knowledge transfer: federated
//! learning of large CNNs at the edge", 2020): a network is divided. Ends train
//! its first part with a small head of their own; the server trains the rest on
//! the features that ends send, and each learns what the other says of the
//! same examples.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Round, in_range};
use crate::config::EPOCHS_MAX;
use crate::{FederateError, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedGkt {
    /// The tensor of the model at which it is divided.
    pub features: String,
    /// Divides the logits that are learned.
    #[serde(default = "three")]
    pub temperature: f64,
    /// How much what the other says counts, beside an example's own class.
    #[serde(default = "one")]
    pub weight: f64,
    /// Of the server, over all features of a round.
    #[serde(default = "once")]
    pub epochs: u64,
}

fn three() -> f64 {
    3.0
}

fn one() -> f64 {
    1.0
}

fn once() -> u64 {
    1
}

impl Behaviour for FedGkt {
    fn check(&self) -> Result<(), FederateError> {
        in_range("strategy.temperature", self.temperature, self.temperature > 0.0, "above 0")?;
        in_range("strategy.weight", self.weight, self.weight >= 0.0, "at least 0")?;
        in_range(
            "strategy.epochs",
            self.epochs as f64,
            (1..=EPOCHS_MAX).contains(&self.epochs),
            "at least 1 and at most 2^32",
        )
    }

    fn transfers(&self) -> Option<&FedGkt> {
        Some(self)
    }

    /// What it learns needs an engine.
    fn apply(&self, _server: &mut Server, _round: &Round<'_>) {}
}
