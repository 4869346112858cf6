//! Training what is shared: FedAvg's members, held near the model that they
//! got (FedProx), or their gradients corrected (SCAFFOLD).

use tierline_engine::Stop;
use tierline_federate::sender::CONTROL;
use tierline_federate::strategy::Drift;
use tierline_federate::{Channel, Contribution, desk};

use super::LocalTraining;
use crate::error::TrainError;
use crate::federated::blueprint::vector;
use crate::federated::workplace::{Workplace, pull_to};
use crate::federated::{Kept, Share, Task};

/// Epochs over the member's examples.
pub(super) struct Train;

impl LocalTraining for Train {
    fn work(
        &self,
        at: &mut Workplace,
        task: Task<'_>,
        share: &Share,
        kept: &mut Kept,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        let state = at.blueprint.start(task.start, kept)?;
        let Drift { pull, control } = at.blueprint.drift();
        let mut corrections = pull_to(&at.blueprint.weights(&state), pull);
        if control {
            at.blueprint.add_shared(&mut corrections, vector(task.start, Channel::Control), 1.0);
            if let Some(own) = kept.get(CONTROL) {
                at.blueprint.add_shared(&mut corrections, own, -1.0);
            }
        }
        at.begin(&state, task.round, pull, &corrections)?;
        let Some(learned) = at.epochs(&share.seen, at.job.epochs, at.seed(task), stop)? else {
            return Ok(None);
        };

        let state = at.trainer.state()?;
        if !at.has_second() {
            at.blueprint.keep_own(&state, kept);
        }
        let mut vectors = at.blueprint.vectors(&state);
        for (channel, now) in &mut vectors {
            *now = desk::apart(*channel, now, vector(task.start, *channel));
        }
        let report = at.report(share, &learned);
        if control {
            let path = at.rate(task.round) * report.effective_steps;
            let change = vector(&vectors, Channel::Model);
            let control = controlled(change, vector(task.start, Channel::Control), path, kept);
            vectors.insert(Channel::Control, control);
        }
        Ok(Some(Contribution { vectors, report }))
    }
}

/// SCAFFOLD's second option: a member's control variate becomes its mean
/// gradient over the task, `c_i - c + (x - y) / (K eta)`; gives the change.
fn controlled(change: &[f32], control: &[f32], path: f64, kept: &mut Kept) -> Vec<f32> {
    let moved = |(d, c): (&f32, &f32)| (-f64::from(*d) / path - f64::from(*c)) as f32;
    let change: Vec<f32> = change.iter().zip(control).map(moved).collect();
    let own = kept.entry(CONTROL.to_owned()).or_default();
    own.resize(change.len(), 0.0);
    own.iter_mut().zip(&change).for_each(|(own, d)| *own += d);
    change
}
