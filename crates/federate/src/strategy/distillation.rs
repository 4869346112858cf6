//! How models learn from what others say of public examples.

use serde::{Deserialize, Serialize};

use super::in_range;
use crate::FederateError;
use crate::config::EPOCHS_MAX;

/// Public examples, at most: what is said of them is a vector.
pub const EXAMPLES_MAX: usize = 1 << 24;

/// Examples that everybody may see, and how a model learns what others say of
/// them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// The data set, by the name under which nodes have it; the same
    /// everywhere. Its labels aren't used.
    pub public: String,
    /// Of which so many are used, drawn by the job's seed.
    #[serde(default = "examples")]
    pub examples: usize,
    /// Epochs over them, each time.
    #[serde(default = "epochs")]
    pub epochs: u64,
    /// Softens what is said; above 0.
    #[serde(default = "temperature")]
    pub temperature: f64,
}

fn examples() -> usize {
    1_000
}

fn epochs() -> u64 {
    1
}

fn temperature() -> f64 {
    1.0
}

impl Distillation {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn check(&self) -> Result<(), FederateError> {
        let counts = (1..=EXAMPLES_MAX).contains(&self.examples) && (1..=EPOCHS_MAX).contains(&self.epochs);
        if self.public.is_empty() || !counts {
            let reason =
                "public names a data set, and examples and epochs are at least 1, and at most 2^24 and 2^32".to_owned();
            return Err(FederateError::Setting { what: "strategy.distil", reason });
        }
        in_range("distil.temperature", self.temperature, self.temperature > 0.0, "above 0")
    }
}
