//! FedAvg (McMahan et al., "Communication-efficient learning of deep networks
//! from decentralized data", 2017): the mean, weighted by examples.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Round, add, mix};
use crate::{Channel, Server};

/// No settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAvg {}

impl Behaviour for FedAvg {
    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Model, 1.0);
        mix(server, round, 1.0);
    }
}
