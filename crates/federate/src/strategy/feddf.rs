//! FedDF (Lin et al., "Ensemble distillation for robust model fusion in
//! federated learning", 2020): the mean of members' models learns what those
//! say together of public examples.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Distillation, Round, add, mix};
use crate::{Channel, FederateError, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedDf {
    /// How the mean learns what all say.
    pub distil: Distillation,
}

impl Behaviour for FedDf {
    fn check(&self) -> Result<(), FederateError> {
        self.distil.check()
    }

    fn server_distils(&self) -> Option<&Distillation> {
        Some(&self.distil)
    }

    /// Where it begins; what it learns then needs an engine.
    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Model, 1.0);
        mix(server, round, 1.0);
    }
}
