//! FedMD's members: they learn what all say of public examples, then from their
//! own, and say what their model makes of the public ones now.

use tierline_engine::Stop;
use tierline_federate::strategy::FedMd;
use tierline_federate::{Channel, Contribution, Vectors};

use super::LocalTraining;
use crate::data::seed_of;
use crate::error::TrainError;
use crate::federated::local_trainer::{DIGEST, LocalTrainer};
use crate::federated::parameter_layout::vector;
use crate::federated::{LocalTask, MemberState, Share};

/// Keeps the order of public examples apart from that of others.
const PRETRAIN: u64 = 0x7072_6574;

impl LocalTraining for FedMd {
    fn work(
        &self,
        at: &mut LocalTrainer,
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        let mut state = at.parameter_layout.start(task.start, kept)?;
        let said = vector(task.start, Channel::Logits);
        let seed = at.seed(task);
        if self.pretrain > 0 && !at.parameter_layout.has_own(kept) {
            let examples = at.job.data.numbered(&at.pupil()?.examples)?;
            at.trainer.check(&examples)?;
            at.begin(&state, task.round, 0.0, &[])?;
            let Some(_) = at.epochs(&examples, self.pretrain, seed_of(&[seed, PRETRAIN]), stop)? else {
                return Ok(None);
            };
            state = at.trainer.state()?;
        }
        // Before anybody has spoken there is nothing to learn.
        if said.iter().any(|x| *x != 0.0) {
            let epochs = self.distil.epochs;
            match at.digest(state, said, task.round, epochs, seed_of(&[seed, DIGEST]), stop)? {
                Some(learned) => state = learned,
                None => return Ok(None),
            }
        }
        at.begin(&state, task.round, 0.0, &[])?;
        let Some(learned) = at.epochs(&share.seen, at.job.epochs, seed, stop)? else { return Ok(None) };
        at.parameter_layout.keep_own(&at.trainer.state()?, kept);
        let mut answers = at.trainer.answers(&at.pupil()?.examples, &at.options()?)?;
        subtract(&mut answers, said);
        let report = at.report(share, &learned);
        Ok(Some(Contribution { vectors: Vectors::from([(Channel::Logits, answers)]), report }))
    }
}

fn subtract(from: &mut [f32], what: &[f32]) {
    from.iter_mut().zip(what).for_each(|(x, y)| *x -= y);
}
