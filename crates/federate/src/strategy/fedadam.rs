//! FedAdam: the second moment decays.

use serde::{Deserialize, Serialize};

use super::fedopt::Adaptive;
use super::{Behaviour, Round};
use crate::{FederateError, Server};

/// Settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FedAdam(pub Adaptive);

impl Behaviour for FedAdam {
    fn check(&self) -> Result<(), FederateError> {
        self.0.check()
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        self.0.apply(server, round, "fedadam", |v, square| self.0.beta2 * v + (1.0 - self.0.beta2) * square);
    }
}
