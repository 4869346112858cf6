//! SCAFFOLD (Karimireddy et al., "Stochastic controlled averaging for
//! federated learning", 2020): each member knows how its gradients differ from
//! everybody's, and takes that out of every step.

use serde::{Deserialize, Serialize};

use super::{Behaviour, LocalObjective, Round, add, in_range, mix};
use crate::aggregate::Weight;
use crate::{Channel, FederateError, Report, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scaffold {
    /// What the mean change of weights is multiplied by.
    pub rate: f64,
}

impl Default for Scaffold {
    fn default() -> Self {
        Self { rate: 1.0 }
    }
}

impl Behaviour for Scaffold {
    fn check(&self) -> Result<(), FederateError> {
        in_range("scaffold's rate", self.rate, self.rate > 0.0, "above 0")
    }

    fn local_objective(&self) -> LocalObjective {
        LocalObjective { pull: 0.0, control: true }
    }

    /// All members count the same: control variates are means over members.
    fn weigh(&self, _report: &Report, _staleness: u64) -> Weight {
        Weight { share: 1.0, factor: 1.0, fresh: 1.0 }
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Model, self.rate);
        mix(server, round, 1.0);
        // Those who weren't asked keep theirs.
        let asked = round.counted.len() as f64 / round.members.max(round.counted.len()).max(1) as f64;
        add(server, round, Channel::Control, asked);
    }
}
