//! Members that meet one task after the other: what each held dear of earlier
//! tasks, it keeps while it learns the model that all share. No example of an
//! earlier task is used.
//!
//! The job's rounds are shared out among its tasks, in order. In the first round
//! of a task a member settles what the task before came to: anchors are the
//! model that all together led to.

use tierline_engine::Stop;
use tierline_federate::strategy::Strategy;
use tierline_federate::{Contribution, Federation, aggregator};
use tierline_graph::step::{Loss, NOT_SAID, Role, Spec};
use tierline_graph::{Elements, Tensor};

use super::LocalTraining;
use crate::continual::{At, Continual, Learned as Which, Lwf, Penalty, fisher, importance};
use crate::data::{BatchOptions, Dataset, Targets, seed_of};
use crate::error::TrainError;
use crate::federated::knowledge::moved;
use crate::federated::local_trainer::{Learned, LocalTrainer, epochs_of, pull_to};
use crate::federated::parameter_layout::{recipe, vector};
use crate::federated::{LocalTask, MemberState, Share};
use crate::trainer::{Flat, Trainer};

/// What a member keeps, by name: which task it is in, the weights that it began
/// with, the classes it saw, what the model said of the task's examples before,
/// what was learned of weights' importance within the task, and what is held.
const TASK: &str = "continual.task";
const START: &str = "continual.start";
const CLASSES: &str = "continual.classes";
const SAID: &str = "continual.said";
const PATH: &str = "continual.path";
const FISHER: &str = "continual.fisher";
const EWC: [&str; 2] = ["continual.ewc.stiffness", "continual.ewc.anchor"];
const SI: [&str; 2] = ["continual.si.stiffness", "continual.si.anchor"];

/// Keeps draws of classes apart from the order of examples.
const DRAWS: u64 = 0x6472_6177;

/// A step that learns what the model said before, too.
pub(in crate::federated) struct Taught {
    trainer: Trainer,
    blank: Vec<Tensor>,
}

impl Taught {
    pub(in crate::federated) fn new(trainer: Trainer) -> Result<Self, TrainError> {
        Ok(Self { blank: trainer.state()?, trainer })
    }

    /// The loss that it learns by.
    pub(in crate::federated) fn loss(lwf: &Lwf) -> Loss {
        Loss::Distil { temperature: lwf.temperature, weight: lwf.weight }
    }
}

/// Refuses what members of a federation can't do.
///
/// # Errors
/// Naming it.
pub(in crate::federated) fn check(settings: &Continual, federation: &Federation) -> Result<(), TrainError> {
    let refuse = |what: &str| Err(TrainError::Continual(what.to_owned()));
    if settings.replay.is_some() || settings.isolation.is_some() || settings.teacher.is_some() {
        return refuse("members of a federation keep what they know by ewc, si and lwf; leave out the others");
    }
    if settings.learn != Which::All || settings.from.is_some() {
        return refuse("in a federation all weights learn, from the first task on; name those that don't as freeze");
    }
    if settings.tasks.iter().any(|task| task.learned || task.data.is_some()) {
        return refuse("members' tasks are classes of their own examples");
    }
    if matches!(federation.of_ends().strategy, Strategy::FedMd(_) | Strategy::FedGkt(_)) {
        return refuse("ends that share what they say rather than weights learn all at once");
    }
    if (settings.tasks.len() as u64) > federation.rounds_of_ends() {
        return refuse("each task takes a round at least; run more rounds, or fewer tasks");
    }
    Ok(())
}

/// The task of a round, where rounds are shared out evenly.
fn task_of(round: u64, rounds: u64, tasks: usize) -> usize {
    let (round, rounds) = (u128::from(round.min(rounds.saturating_sub(1))), u128::from(rounds.max(1)));
    usize::try_from(round * tasks.max(1) as u128 / rounds).unwrap_or(0)
}

/// Tasks one after the other.
pub(super) struct Tasks(pub(super) Continual);

impl LocalTraining for Tasks {
    fn work(
        &self,
        at: &mut LocalTrainer,
        task: LocalTask<'_>,
        share: &Share,
        kept: &mut MemberState,
        stop: &Stop,
    ) -> Result<Option<Contribution>, TrainError> {
        let settings = &self.0;
        let rounds = at.federation.rounds_of_ends();
        let number = task_of(task.round, rounds, settings.tasks.len());
        // An end that has none of a task's examples learns nothing of it.
        let data = match settings.tasks.get(number) {
            Some(own) => own.of(&share.seen).ok(),
            None => Some(share.seen.clone()),
        };
        let state = at.parameter_layout.start(task.start, kept)?;
        let weights = at.parameter_layout.weights(&state);
        let spec = at.trainer.spec().clone();
        let shapes = Shapes::of(&spec, &state);
        if kept.get(TASK).is_none_or(|known| known.first() != Some(&(number as f32))) {
            settle(settings, &shapes, &weights, kept);
            kept.insert(TASK.to_owned(), vec![number as f32]);
            kept.insert(START.to_owned(), weights.clone());
            if let (Some(_), Some(data), false) = (&settings.lwf, &data, seen(kept).is_empty()) {
                at.trainer.set_state(&state)?;
                let mut said = at.trainer.answers(data, &at.options()?)?;
                unsaid(&mut said, data.len(), &seen(kept));
                kept.insert(SAID.to_owned(), said);
            }
        }
        let pull = at.parameter_layout.local_objective().pull;
        let (seed, options) = (at.seed(task), at.options()?);
        let learned = match &data {
            None => Learned::nothing(),
            Some(data) => {
                let held = held(settings, &shapes, kept);
                let how = How { held: &held, pull: (pull, &pull_to(&weights, pull)), pace: at.rate(task.round), seed };
                let Some(learned) = train(at, &state, data, kept, &how, stop)? else { return Ok(None) };
                learned
            }
        };
        if data.is_none() {
            at.trainer.set_state(&state)?;
        }
        let last = task.round + 1 >= rounds || task_of(task.round + 1, rounds, settings.tasks.len()) != number;
        if let (true, Some(data)) = (last, &data) {
            if let Some(ewc) = &settings.ewc {
                let (model, recipe) = (at.trainer.export()?, recipe(&at.job)?);
                let (engine, load) = at.trainer.place();
                let place = At { engine, load, model: &model, recipe: &recipe, batch: &options, stop };
                let fisher = fisher(&place, data, ewc.examples, ewc.labels, seed_of(&[seed, DRAWS]))?;
                kept.insert(FISHER.to_owned(), shapes.flat(&fisher));
            }
            let mut classes = seen(kept);
            classes.extend(data.classes().unwrap_or_default());
            classes.sort_unstable();
            classes.dedup();
            kept.insert(CLASSES.to_owned(), classes.into_iter().map(|class| class as f32).collect());
        }
        let state = at.trainer.state()?;
        if !at.has_second() {
            at.parameter_layout.keep_own(&state, kept);
        }
        let mut vectors = at.parameter_layout.vectors(&state);
        for (channel, now) in &mut vectors {
            *now = aggregator::apart(*channel, now, vector(task.start, *channel));
        }
        let mut report = at.report(share, &learned);
        report.examples = data.as_ref().map_or(1, |data| data.len() as u64);
        Ok(Some(Contribution { vectors, report }))
    }
}

/// How a round is trained.
struct How<'a> {
    held: &'a Penalty,
    pull: (f64, &'a [f32]),
    pace: f64,
    seed: u64,
}

/// Trains for the job's epochs; what was learned is then in the shared trainer.
fn train(
    at: &mut LocalTrainer,
    state: &[Tensor],
    data: &Dataset,
    kept: &mut MemberState,
    how: &How<'_>,
    stop: &Stop,
) -> Result<Option<Learned>, TrainError> {
    let options = BatchOptions { seed: how.seed, ..at.options()? };
    let epochs = at.job.epochs;
    let said = kept.get(SAID).filter(|said| !said.is_empty() && said.len() % data.len() == 0).cloned();
    let (learned, path) = match (&mut at.taught, said) {
        (Some(taught), Some(said)) => {
            let begun = moved(at.trainer.spec(), state, taught.trainer.spec(), taught.blank.clone());
            begin(&mut taught.trainer, &begun, how)?;
            let lesson = lesson(data, &said)?;
            let Some(learned) = epochs_of(&mut taught.trainer, &lesson, &options, epochs, stop)? else {
                return Ok(None);
            };
            let done = moved(taught.trainer.spec(), &taught.trainer.state()?, at.trainer.spec(), state.to_vec());
            at.trainer.set_state(&done)?;
            (learned, taught.trainer.flat(Role::Path)?)
        }
        _ => {
            begin(&mut at.trainer, state, how)?;
            let Some(learned) = epochs_of(&mut at.trainer, data, &options, epochs, stop)? else { return Ok(None) };
            (learned, at.trainer.flat(Role::Path)?)
        }
    };
    if !path.is_empty() {
        let shapes = Shapes::of(at.trainer.spec(), state);
        let sum = kept.entry(PATH.to_owned()).or_default();
        let path = shapes.flat(&path);
        sum.resize(path.len(), 0.0);
        sum.iter_mut().zip(&path).for_each(|(sum, x)| *sum += x);
    }
    Ok(Some(learned))
}

fn begin(trainer: &mut Trainer, state: &[Tensor], how: &How<'_>) -> Result<(), TrainError> {
    trainer.set_state(state)?;
    trainer.set_pace(how.pace);
    trainer.set_pull(how.pull.0);
    if !trainer.spec().corrections.is_empty() {
        trainer.set_corrections(how.pull.1)?;
    }
    if trainer.spec().stiffness.is_empty() {
        return Ok(());
    }
    trainer.set_anchors(&how.held.stiffness, &how.held.anchor)
}

/// Classes with what was said of each example, as [`Loss::Distil`] takes them.
fn lesson(data: &Dataset, said: &[f32]) -> Result<Dataset, TrainError> {
    let rows: Vec<usize> = (0..data.len()).collect();
    let width = said.len() / data.len();
    let classes = data.classes().unwrap_or_default();
    let values = classes.iter().zip(said.chunks(width.max(1)));
    let values = values.flat_map(|(class, said)| std::iter::once(*class as f32).chain(said.iter().copied()));
    let values = Tensor::new([data.len(), 1 + width], Elements::F32(values.collect()))?;
    Ok(Dataset::new(data.name(), data.features(&rows)?, Targets::Values(values))?)
}

fn seen(kept: &MemberState) -> Vec<usize> {
    kept.get(CLASSES).map(|classes| classes.iter().map(|class| *class as usize).collect()).unwrap_or_default()
}

/// Leaves out what is said of classes that were never seen.
fn unsaid(said: &mut [f32], rows: usize, seen: &[usize]) {
    let width = (said.len() / rows.max(1)).max(1);
    for row in said.chunks_mut(width) {
        let unseen = |class: &usize| seen.binary_search(class).is_err();
        (0..row.len()).filter(unseen).for_each(|class| row[class] = NOT_SAID);
    }
}

/// What the task before came to: it led to `weights`.
fn settle(settings: &Continual, shapes: &Shapes<'_>, weights: &[f32], kept: &mut MemberState) {
    let now = shapes.named(weights);
    if let (Some(ewc), Some(fisher)) = (&settings.ewc, kept.remove(FISHER)) {
        let before = shapes.penalty(kept, EWC).unwrap_or_default();
        shapes.keep(kept, EWC, &before.behind(ewc, shapes.named(&fisher), &now));
    }
    if let (Some(si), Some(path), Some(start)) = (&settings.si, kept.remove(PATH), kept.get(START)) {
        let moves: Vec<f32> = weights.iter().zip(start).map(|(end, start)| end - start).collect();
        let before = kept.get(SI[0]).cloned().unwrap_or_default();
        let omega = importance(&before, &path, &moves, si.damping);
        shapes.keep(kept, SI, &Penalty { stiffness: shapes.named(&omega), anchor: now });
    }
    kept.remove(SAID);
}

/// What is held in a round.
fn held(settings: &Continual, shapes: &Shapes<'_>, kept: &MemberState) -> Penalty {
    settings.held(shapes.penalty(kept, EWC).as_ref(), shapes.penalty(kept, SI).as_ref())
}

/// Weights of a state, one behind the other.
struct Shapes<'a>(Vec<(&'a str, usize)>);

impl<'a> Shapes<'a> {
    fn of(spec: &'a Spec, state: &[Tensor]) -> Self {
        let slots = spec.state.iter().zip(state).filter(|(slot, _)| slot.role == Role::Parameter);
        Self(slots.map(|(slot, tensor)| (slot.input.as_str(), tensor.len())).collect())
    }

    fn named(&self, flat: &[f32]) -> Flat {
        let mut rest = flat;
        let mut named = Flat::new();
        for (name, len) in &self.0 {
            let Some((own, behind)) = rest.split_at_checked(*len) else { break };
            named.insert((*name).to_owned(), own.to_vec());
            rest = behind;
        }
        named
    }

    fn flat(&self, named: &Flat) -> Vec<f32> {
        let own = |(name, len): &(&str, usize)| named.get(*name).cloned().unwrap_or_else(|| vec![0.0; *len]);
        self.0.iter().flat_map(own).collect()
    }

    fn penalty(&self, kept: &MemberState, [stiffness, anchor]: [&str; 2]) -> Option<Penalty> {
        Some(Penalty { stiffness: self.named(kept.get(stiffness)?), anchor: self.named(kept.get(anchor)?) })
    }

    fn keep(&self, kept: &mut MemberState, [stiffness, anchor]: [&str; 2], penalty: &Penalty) {
        kept.insert(stiffness.to_owned(), self.flat(&penalty.stiffness));
        kept.insert(anchor.to_owned(), self.flat(&penalty.anchor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_shared_out_among_tasks() {
        let of = |rounds: u64, tasks: usize| (0..rounds).map(|round| task_of(round, rounds, tasks)).collect::<Vec<_>>();
        assert_eq!(of(6, 3), [0, 0, 1, 1, 2, 2]);
        assert_eq!(of(5, 2), [0, 0, 0, 1, 1]);
        assert_eq!(of(3, 0), [0, 0, 0]);
        assert_eq!(task_of(99, 6, 3), 2);
        assert_eq!(task_of(0, 0, 3), 0);
    }

    #[test]
    fn nothing_is_said_of_classes_never_seen() {
        let mut said = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        unsaid(&mut said, 2, &[0, 2]);
        assert_eq!(said, [1.0, NOT_SAID, 3.0, 4.0, NOT_SAID, 6.0]);
    }
}
