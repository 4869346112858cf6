//! Clipping (McMahan et al., "Learning differentially private recurrent
//! language models", 2018, flat clipping): an update that is longer than a
//! bound is made as long as it, so that no member moves the model further.

use serde::{Deserialize, Serialize};

use super::ClientModifier;
use crate::strategy::in_range;
use crate::{Channel, Contribution, FederateError, Strategy};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Longest change of weights, in the Euclidean norm over all of them.
    pub norm: f64,
}

impl ClientModifier for Clip {
    fn check(&self) -> Result<(), FederateError> {
        in_range("modifiers.norm", self.norm, self.norm > 0.0, "above 0")
    }

    fn refuses(&self, strategy: &Strategy) -> Option<&'static str> {
        let behaviour = strategy.behaviour();
        if behaviour.members_distil().is_some() || behaviour.transfers().is_some() {
            return Some("clip bounds changes of weights, and with fedmd and fedgkt none travel; leave it out");
        }
        behaviour.local_objective().control.then_some(
            "scaffold's control variates are made of the change as it was, and would no longer fit a clipped one; \
             leave clip out, or take fedavg or fedprox",
        )
    }

    fn modify(&self, contribution: &mut Contribution) -> Result<(), FederateError> {
        let Some(change) = contribution.vectors.get_mut(&Channel::Model) else { return Ok(()) };
        let norm = change.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if norm > self.norm {
            let factor = self.norm / norm;
            change.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        }
        Ok(())
    }
}
