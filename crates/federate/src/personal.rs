//! What each end keeps for itself: models that share something, and are not
//! the same.
//!
//! An end's own weights never travel. Its model is made of the shared one and
//! of what it keeps, as [`Personal`] says; ends evaluate it with examples that
//! they hold out themselves, since nobody else has examples like theirs.

use serde::{Deserialize, Serialize};

use crate::config::EPOCHS_MAX;
use crate::report::{EXAMPLES_MAX, LOSS_MAX};
use crate::strategy::in_range;
use crate::{Counted, FederateError};

/// How an end's model differs from the shared one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum Personal {
    /// The shared model, trained on by each end when the rounds are done
    /// (Yu, Bagdasaryan and Shmatikov, "Salvaging federated learning by local
    /// adaptation", 2020).
    FineTune {
        /// Over its examples.
        #[serde(default = "one")]
        epochs: u64,
    },
    /// Each end trains a second model besides the shared one, and pulls it to
    /// that (Li et al., "Ditto", 2021).
    Ditto {
        /// How strongly: the penalty is half of this times the squared
        /// distance.
        #[serde(default = "lambda")]
        lambda: f64,
    },
    /// Batch normalisations stay with each end, their statistics too (Li et
    /// al., "FedBN", 2021).
    FedBn {},
    /// Some weights stay with each end, as a rule those of the last layers
    /// (Arivazhagan et al., "Federated learning with personalization layers",
    /// 2019).
    FedPer {
        /// Patterns of their names: `*` any characters, `?` one.
        keep: Vec<String>,
    },
}

fn one() -> u64 {
    1
}

fn lambda() -> f64 {
    0.1
}

impl Personal {
    /// Refuses settings that make no sense.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn check(&self) -> Result<(), FederateError> {
        let setting =
            |reason: &str| Err(FederateError::Setting { what: "federation.personal", reason: reason.to_owned() });
        match self {
            Self::FineTune { epochs: 0 } => setting("epochs is 0; there is at least one"),
            Self::FineTune { epochs } if *epochs > EPOCHS_MAX => setting("epochs is at most 2^32"),
            Self::Ditto { lambda } => in_range("ditto's lambda", *lambda, *lambda >= 0.0, "at least 0"),
            Self::FedPer { keep } if keep.is_empty() => {
                setting("keep names no weights; `tierline model show` lists those that there are")
            }
            Self::FineTune { .. } | Self::FedBn {} | Self::FedPer { .. } => Ok(()),
        }
    }
}

/// How a model does on examples that an end holds out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// Their number.
    pub examples: u64,
    /// Averaged over them.
    pub loss: f64,
    /// Share of them that were right, where targets are classes.
    pub accuracy: Option<f64>,
}

impl HeldOut {
    /// Refuses what can't be true.
    ///
    /// # Errors
    /// [`FederateError::HeldOut`].
    pub fn check(&self) -> Result<(), FederateError> {
        let share = self.accuracy.is_none_or(|a| (0.0..=1.0).contains(&a));
        let bounded = (1..=EXAMPLES_MAX).contains(&self.examples) && self.loss.abs() <= LOSS_MAX;
        if bounded && share { Ok(()) } else { Err(FederateError::HeldOut) }
    }

    /// What ends say together, each example once; `None` if none evaluated.
    ///
    /// Of a member that answered more than once its first answer counts: the
    /// others are about models made since.
    #[must_use]
    pub fn together(counted: &[Counted]) -> Option<Self> {
        let mut seen = std::collections::BTreeSet::new();
        let evaluated = counted.iter().filter_map(|c| Some((c.member.as_str(), c.report.held_out?)));
        let mut evaluated: Vec<(&str, Self)> = evaluated.filter(|(member, _)| seen.insert(*member)).collect();
        // Sums of floats must not depend on who answered first.
        evaluated.sort_by_key(|(member, _)| *member);
        let examples = evaluated.iter().fold(0u64, |sum, (_, h)| sum.saturating_add(h.examples));
        let mean = |of: &dyn Fn(&Self) -> f64| {
            evaluated.iter().map(|(_, h)| of(h) * h.examples as f64).sum::<f64>() / examples as f64
        };
        let accurate = evaluated.iter().all(|(_, h)| h.accuracy.is_some());
        (examples > 0).then(|| Self {
            examples: examples.min(EXAMPLES_MAX),
            loss: mean(&|h| h.loss).clamp(-LOSS_MAX, LOSS_MAX),
            accuracy: accurate.then(|| mean(&|h| h.accuracy.unwrap_or(0.0))),
        })
    }
}
