//! FedNova (Wang et al., "Tackling the objective inconsistency problem in
//! heterogeneous federated optimization", 2020): members that take more steps
//! don't pull harder. Changes count per effective step, and the mean is taken
//! as far as members went on average.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Round, add, mix};
use crate::aggregate::{Weight, mean_of};
use crate::{Channel, Report, Server};

/// No settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedNova {}

impl Behaviour for FedNova {
    fn weigh(&self, report: &Report, _staleness: u64) -> Weight {
        Weight { share: report.examples as f64, factor: 1.0 / report.effective_steps, fresh: 1.0 }
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        let steps = mean_of(round.counted, |report| report.effective_steps);
        add(server, round, Channel::Model, steps);
        mix(server, round, 1.0);
    }
}
