//! FedProx (Li et al., "Federated optimization in heterogeneous networks",
//! 2020): members minimise their loss and `mu / 2` times the squared distance
//! to the model they got, so that uneven data pulls them less far apart.

use serde::{Deserialize, Serialize};

use super::{Behaviour, LocalObjective, Round, add, in_range, mix};
use crate::{Channel, FederateError, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FedProx {
    /// How strongly members are held; 0.001 to 1 in the paper.
    pub mu: f64,
}

impl Default for FedProx {
    fn default() -> Self {
        Self { mu: 0.01 }
    }
}

impl Behaviour for FedProx {
    fn check(&self) -> Result<(), FederateError> {
        in_range("fedprox's mu", self.mu, self.mu >= 0.0, "at least 0")
    }

    fn local_objective(&self) -> LocalObjective {
        LocalObjective { pull: self.mu, control: false }
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Model, 1.0);
        mix(server, round, 1.0);
    }
}
