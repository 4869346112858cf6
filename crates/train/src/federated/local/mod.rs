//! What a member does with a task, for each kind of strategy: one file each.
//!
//! Most strategies have members train what is shared, steered by their
//! `LocalObjective` ([`train`]); those with another idea of what members do have a file
//! here and a line in [`of`]. Whatever comes of it goes through the job's client
//! modifiers, and then through the stages that make it small.

pub(super) mod continual;
mod fedgkt;
mod fedmd;
mod train;

use tierline_engine::Stop;
use tierline_federate::{Contribution, Federation, Strategy};

use super::local_trainer::LocalTrainer;
use super::{LocalTask, MemberState, Share};
use crate::continual::Continual;
use crate::error::TrainError;

/// A way to do tasks.
pub(super) trait LocalTraining {
    /// Does a task; what the member keeps is changed as if the update were
    /// counted. `None` when `stop` was set before the end.
    ///
    /// # Errors
    /// When the data doesn't fit, numbers stop being finite, or the engine
    /// fails.
    fn work(
        &self,
        at: &mut LocalTrainer,
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError>;
}

/// What the members of a federation's ends do.
pub(super) fn of(federation: &Federation, continual: Option<&Continual>) -> Box<dyn LocalTraining + Send + Sync> {
    if let Some(settings) = continual {
        return Box::new(continual::Tasks(settings.clone()));
    }
    match &federation.of_ends().strategy {
        Strategy::FedMd(settings) => Box::new(settings.clone()),
        Strategy::FedGkt(settings) => Box::new(settings.clone()),
        _ => Box::new(train::Train),
    }
}
