//! FedMD (Li and Wang, "FedMD: heterogenous federated learning via model
//! distillation", 2019): what travels is what models say of public examples,
//! so members may have models of any kind. Each learns what all say together,
//! then from its own examples.

use serde::{Deserialize, Serialize};

use super::{Behaviour, Distillation, Round, add, in_range};
use crate::aggregate::Weight;
use crate::config::EPOCHS_MAX;
use crate::{Channel, FederateError, Report, Server};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedMd {
    /// How members learn what all say.
    pub distil: Distillation,
    /// Epochs over the public examples and their own classes, before a
    /// member's first round.
    #[serde(default)]
    pub pretrain: u64,
}

impl Behaviour for FedMd {
    fn check(&self) -> Result<(), FederateError> {
        in_range("strategy.pretrain", self.pretrain as f64, self.pretrain <= EPOCHS_MAX, "at most 2^32")?;
        self.distil.check()
    }

    fn members_distil(&self) -> Option<&Distillation> {
        Some(&self.distil)
    }

    /// All members count the same.
    fn weigh(&self, _report: &Report, _staleness: u64) -> Weight {
        Weight { share: 1.0, factor: 1.0, fresh: 1.0 }
    }

    /// Members tell what sets their answers apart from what they were told,
    /// which isn't what all say where that was rounded on its way down, or has
    /// changed since.
    fn rebases(&self) -> bool {
        true
    }

    fn apply(&self, server: &mut Server, round: &Round<'_>) {
        add(server, round, Channel::Logits, 1.0);
    }
}
