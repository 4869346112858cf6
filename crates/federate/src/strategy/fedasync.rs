//! FedAsync (Xie, Koyejo and Gupta, "Asynchronous federated optimization",
//! 2019): every answer moves the model towards its own, by `alpha` if it is
//! fresh and less the staler it is.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Round, Timing, add, in_range, mix};
use crate::aggregate::Weight;
use crate::{Channel, FederateError, Report, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FedAsync {
    /// How far the model moves towards a fresh answer, at most 1.
    pub alpha: f64,
    /// An answer that is `s` versions old moves it `(1 + s)` to the power of
    /// minus this as far.
    pub exponent: f64,
    /// Older ones are refused.
    pub staleness_max: u64,
}

impl Default for FedAsync {
    fn default() -> Self {
        Self { alpha: 0.6, exponent: 0.5, staleness_max: 100 }
    }
}

impl Behaviour for FedAsync {
    fn check(&self) -> Result<(), FederateError> {
        in_range("fedasync's alpha", self.alpha, self.alpha > 0.0 && self.alpha <= 1.0, "above 0 and at most 1")?;
        in_range("fedasync's exponent", self.exponent, self.exponent >= 0.0, "at least 0")
    }

    fn timing(&self) -> Timing {
        Timing::Buffer { size: 1, staleness_max: self.staleness_max }
    }

    fn weigh(&self, _report: &Report, staleness: u64) -> Weight {
        let factor = self.alpha * (1.0 + staleness as f64).powf(-self.exponent);
        Weight { share: 1.0, factor, fresh: factor }
    }

    fn rebases(&self) -> bool {
        true
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Model, 1.0);
        // Statistics follow as far as weights do.
        mix(server, round, self.freshness(round));
    }
}
