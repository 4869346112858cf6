//! The loop over a site: what happens next, what the cloud has made, who is
//! told of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_federate::{Federation, RoundScores};
use tierline_graph::Model;
use tierline_node::Time;
use tierline_train::federated::{LocalTrainer, Models, Share, Tutor};
use tierline_train::{Job, TrainError};

use super::Site;
use super::coordinator::Cloud;
use crate::scenario::{Examples, Scenario, SimError, SimulationResult, check, harmful};
use crate::workers::Workers;

/// Trains a job's model; `tell` hears of every round.
///
/// # Errors
/// When the job can't be trained, nothing happens any more, or `stop` is set.
pub fn run(
    engine: &Arc<dyn Engine>,
    models: impl Into<Models>,
    job: &Job,
    examples: Examples<'_>,
    scenario: &Scenario,
    stop: &Stop,
    tell: &mut dyn FnMut(&RoundScores),
) -> Result<SimulationResult, SimError> {
    let Examples { ends: mut data, test, public } = examples;
    let Models { own: model, others } = models.into();
    check(scenario, data.len())?;
    let mut job = job.clone();
    let taught = job.federation.as_ref().is_some_and(Federation::learns_public_classes);
    job.data.name_classes(test.into_iter().chain(&data).chain(public.filter(|_| taught)));
    let (job, test) = (&job, test.map(|test| job.data.numbered(test)).transpose().map_err(TrainError::from)?);
    let harmful = harmful(job, scenario, data.len());
    for (share, attack) in data.iter_mut().zip(&harmful) {
        if let Some(attack) = attack {
            *share = attack.examples(share.clone()).map_err(TrainError::from)?;
        }
    }
    let threads = match scenario.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    // One thread each: many small steps side by side beat shared ones.
    let options = LoadOptions::with_threads(1);
    let trainer = |model: &Model| {
        let trainer = LocalTrainer::new(engine, model.clone(), job, &options)?;
        match public {
            Some(public) => trainer.with_public(engine, public, &options),
            None => Ok(trainer),
        }
    };
    let trainers = || [&model].into_iter().chain(&others).map(trainer).collect::<Result<Vec<_>, _>>();
    let wide = LoadOptions::with_threads(threads);
    let evaluator = LocalTrainer::new(engine, model.clone(), job, &wide)?;
    let trainers = (0..threads.min(data.len())).map(|_| trainers()).collect::<Result<Vec<_>, _>>()?;
    let layout = evaluator.parameter_layout().layout();
    for (variant, trainer) in job.models.iter().zip(trainers.iter().flat_map(|p| &p[1..])) {
        if trainer.parameter_layout().layout() != layout {
            let reason = format!("{} says of other classes than the job's own model", variant.model.display());
            return Err(SimError::Scenario { what: "models", reason });
        }
    }
    let shares = data.iter().map(|data| Share::of(data, job)).collect::<Result<Vec<_>, _>>()?;
    for share in shares.iter().flat_map(|share| [&share.seen].into_iter().chain(&share.held_out)).chain(&test) {
        evaluator.check(share)?;
    }
    let federation = job.federation.clone().unwrap_or_default();
    let tutor = if let Some(distil) = federation.distillation() {
        let missing = || {
            let reason = "models learn of it here, and it isn't given".to_owned();
            TrainError::Public { name: distil.public.clone(), reason }
        };
        Some(Tutor::new(engine, &model, job, public.ok_or_else(missing)?, &wide)?)
    } else {
        Tutor::transfer(engine, evaluator.parameter_layout(), job, &wide)?
    };
    let parameter_layout = evaluator.parameter_layout().clone();
    let test = test.filter(|_| !federation.evaluates_at_ends());
    let cloud = Cloud { tutor, evaluator, test, said: BTreeMap::new() };
    let mut site = Site::new(job, &parameter_layout, shares, scenario, Workers::new(trainers), cloud);
    site.spoil(&harmful);
    site.begin()?;
    let mut scores: Vec<RoundScores> = Vec::new();
    while !site.over {
        if stop.is_pulled() {
            return Err(SimError::Stopped(scores.len() as u64));
        }
        let event = site.clock.next().filter(|_| !site.stands_still());
        let Some(event) = event else {
            let reason = site.standstill();
            return Err(SimError::Stalled { round: scores.len() as u64 + 1, reason });
        };
        site.happen(event)?;
        for round in site.rounds.drain(..) {
            tell(&round);
            scores.push(round);
        }
    }
    let side = site.nodes[0].above.as_mut().ok_or(SimError::Worker)?;
    let last = side.aggregator().server().model.clone();
    let tutor = side.effects.cloud.as_mut().and_then(|cloud| cloud.tutor.as_mut());
    let model = match tutor {
        Some(tutor) => tutor.conclude(&last)?,
        None => parameter_layout.export(&last)?,
    };
    let seconds = site.clock.now().since(Time::ZERO).as_secs_f64();
    Ok(SimulationResult { rounds: scores, model, seconds, excluded: site.excluded, own: site.own })
}
