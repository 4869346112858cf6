//! Training what is shared: FedAvg's members, held near the model that they
//! got (FedProx), or their gradients corrected (SCAFFOLD).

use tierline_engine::Stop;
use tierline_federate::sender::CONTROL;
use tierline_federate::strategy::LocalObjective;
use tierline_federate::{Channel, Contribution, aggregator};

use super::LocalTraining;
use crate::error::TrainError;
use crate::federated::local_trainer::{LocalTrainer, pull_to};
use crate::federated::parameter_layout::vector;
use crate::federated::{LocalTask, MemberState, Share};

/// Epochs over the member's examples.
pub(super) struct Train;

impl LocalTraining for Train {
    fn work(
        &self,
        at: &mut LocalTrainer,
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        let state = at.parameter_layout.start(task.start, kept)?;
        let LocalObjective { pull, control } = at.parameter_layout.local_objective();
        let mut corrections = pull_to(&at.parameter_layout.weights(&state), pull);
        if control {
            at.parameter_layout.add_shared(&mut corrections, vector(task.start, Channel::Control), 1.0);
            if let Some(own) = kept.get(CONTROL) {
                at.parameter_layout.add_shared(&mut corrections, own, -1.0);
            }
        }
        at.begin(&state, task.round, pull, &corrections)?;
        let Some(learned) = at.epochs(&share.seen, at.job.epochs, at.seed(task), stop)? else {
            return Ok(None);
        };

        let state = at.trainer.state()?;
        if !at.has_second() {
            at.parameter_layout.keep_own(&state, kept);
        }
        let mut vectors = at.parameter_layout.vectors(&state);
        for (channel, now) in &mut vectors {
            *now = aggregator::apart(*channel, now, vector(task.start, *channel));
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
fn controlled(change: &[f32], control: &[f32], path: f64, kept: &mut MemberState) -> Vec<f32> {
    let moved = |(d, c): (&f32, &f32)| (-f64::from(*d) / path - f64::from(*c)) as f32;
    let change: Vec<f32> = change.iter().zip(control).map(moved).collect();
    let own = kept.entry(CONTROL.to_owned()).or_default();
    own.resize(change.len(), 0.0);
    own.iter_mut().zip(&change).for_each(|(own, d)| *own += d);
    change
}
