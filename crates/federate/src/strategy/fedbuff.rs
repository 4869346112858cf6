//! FedBuff (Nguyen et al., "Federated learning with buffered asynchronous
//! aggregation", 2022): nobody waits for the slowest; a few answers make the
//! next model, and stale ones count less.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Round, Timing, add, in_range, mix};
use crate::aggregate::Weight;
use crate::config::CLIENTS_MAX;
use crate::{Channel, FederateError, Report, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FedBuff {
    /// Answers that make a model.
    pub size: usize,
    /// The server's learning rate.
    pub rate: f64,
    /// An answer that is `s` versions old counts `(1 + s)` to the power of
    /// minus this.
    pub exponent: f64,
    /// Older ones are refused.
    pub staleness_max: u64,
}

impl Default for FedBuff {
    fn default() -> Self {
        Self { size: 10, rate: 1.0, exponent: 0.5, staleness_max: 100 }
    }
}

impl Behaviour for FedBuff {
    fn check(&self) -> Result<(), FederateError> {
        in_range(
            "fedbuff's size",
            self.size as f64,
            (1..=CLIENTS_MAX).contains(&self.size),
            "at least 1 and at most 2^20",
        )?;
        in_range("fedbuff's rate", self.rate, self.rate > 0.0, "above 0")?;
        in_range("fedbuff's exponent", self.exponent, self.exponent >= 0.0, "at least 0")
    }

    fn timing(&self) -> Timing {
        Timing::Buffer { size: self.size, staleness_max: self.staleness_max }
    }

    fn weigh(&self, _report: &Report, staleness: u64) -> Weight {
        let factor = (1.0 + staleness as f64).powf(-self.exponent);
        Weight { share: 1.0, factor, fresh: factor }
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Model, self.rate);
        // As far as weights go for them, and never beyond what was measured.
        mix(server, round, (self.rate * self.freshness(round)).min(1.0));
    }
}
