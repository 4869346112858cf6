//! FedGKT's members: they train their part of the model, and say what it makes
//! of their examples.

use tierline_engine::Stop;
use tierline_federate::strategy::FedGkt;
use tierline_federate::{Channel, Contribution, Vectors};

use super::LocalTraining;
use crate::data::BatchOptions;
use crate::error::TrainError;
use crate::federated::local_trainer::LocalTrainer;
use crate::federated::parameter_layout::vector;
use crate::federated::{LocalTask, MemberState, Share};

impl LocalTraining for FedGkt {
    fn work(
        &self,
        at: &mut LocalTrainer,
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        let state = at.parameter_layout.start(&Vectors::new(), kept)?;
        let (data, said) = (&share.seen, vector(task.start, Channel::Logits));
        let (seed, pace, options) = (at.seed(task), at.rate(task.round), at.options()?);
        let Some(small) = &mut at.small else { return Ok(None) };
        let learned = if small.says_of(data, said) {
            let how = (&BatchOptions { seed, ..options.clone() }, at.job.epochs, pace);
            let learned = small.learn(at.parameter_layout.spec(), &state, data, said, how, stop)?;
            let Some((state, learned)) = learned else { return Ok(None) };
            at.trainer.set_state(&state)?;
            learned
        } else {
            at.begin(&state, task.round, 0.0, &[])?;
            let Some(learned) = at.epochs(data, at.job.epochs, seed, stop)? else { return Ok(None) };
            learned
        };
        at.parameter_layout.keep_own(&at.trainer.state()?, kept);
        let Some(small) = &at.small else { return Ok(None) };
        let vectors = small.vectors(&at.trainer, data, &options)?;
        Ok(Some(Contribution { vectors, report: at.report(share, &learned) }))
    }
}
