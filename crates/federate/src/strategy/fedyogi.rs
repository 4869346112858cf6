//! FedYogi: the second moment moves towards the square of the change by steps
//! that don't depend on how far it is, so that rare large changes fade slowly.

use serde::{Deserialize, Serialize};

use super::fedopt::Adaptive;
use super::{Behaviour, Round};
use crate::{FederateError, Server};

/// Settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FedYogi(pub Adaptive);

impl Behaviour for FedYogi {
    fn check(&self) -> Result<(), FederateError> {
        self.0.check()
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        // Where both are the same it stays: the sign of zero is zero, which
        // `signum` isn't.
        let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
        self.0.apply(server, round, "fedyogi", |v, square| v - (1.0 - self.0.beta2) * square * sign(v - square));
    }
}
