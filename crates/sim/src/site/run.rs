//! The loop over a site: what happens next, what the cloud has made, who is
//! told of it.

use std::sync::Arc;

use tierline_engine::{Engine, LoadOptions, Stop};
use tierline_federate::aggregate::mean_of;
use tierline_federate::{Federation, HeldOut, RoundScores, Scoreboard};
use tierline_graph::Model;
use tierline_node::Time;
use tierline_node::federation::Event;
use tierline_train::federated::{Models, Share, Tutor, Workplace};
use tierline_train::{Job, Scores, TrainError};

use super::Site;
use crate::scenario::{Examples, Outcome, Scenario, SimError, check, harmful};
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
) -> Result<Outcome, SimError> {
    let Examples { ends: mut data, test, public } = examples;
    let Models { own: model, others } = models.into();
    check(scenario, data.len())?;
    let mut job = job.clone();
    let taught = job.federation.as_ref().is_some_and(Federation::learns_public_classes);
    job.data.name_classes(test.into_iter().chain(&data).chain(public.filter(|_| taught)));
    let (job, test) = (&job, test.map(|test| job.data.numbered(test)).transpose().map_err(TrainError::from)?);
    let test = test.as_ref();
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
    let place = |model: &Model| {
        let place = Workplace::new(engine, model.clone(), job, &options)?;
        match public {
            Some(public) => place.with_public(engine, public, &options),
            None => Ok(place),
        }
    };
    let places = || [&model].into_iter().chain(&others).map(place).collect::<Result<Vec<_>, _>>();
    let wide = LoadOptions::with_threads(threads);
    let mut judge = Workplace::new(engine, model.clone(), job, &wide)?;
    let places = (0..threads.min(data.len())).map(|_| places()).collect::<Result<Vec<_>, _>>()?;
    let layout = judge.blueprint().layout();
    for (variant, place) in job.models.iter().zip(places.iter().flat_map(|p| &p[1..])) {
        if place.blueprint().layout() != layout {
            let reason = format!("{} says of other classes than the job's own model", variant.model.display());
            return Err(SimError::Scenario { what: "models", reason });
        }
    }
    let shares = data.iter().map(|data| Share::of(data, job)).collect::<Result<Vec<_>, _>>()?;
    for share in shares.iter().flat_map(|share| [&share.seen].into_iter().chain(&share.held_out)).chain(test) {
        judge.check(share)?;
    }
    let mut site = Site::new(job, judge.blueprint(), shares, scenario, Workers::new(places));
    let federation = job.federation.clone().unwrap_or_default();
    if let Some(distil) = federation.distillation() {
        let missing = || {
            let reason = "models learn of it here, and it isn't given".to_owned();
            TrainError::Public { name: distil.public.clone(), reason }
        };
        site.tutor = Some(Tutor::new(engine, &model, job, public.ok_or_else(missing)?, &wide)?);
    } else {
        site.tutor = Tutor::transfer(engine, judge.blueprint(), job, &wide)?;
    }
    site.spoil(&harmful);
    site.begin();
    let at_ends = federation.looks_at_ends();
    let test = test.filter(|_| !at_ends);
    let mut scores: Vec<RoundScores> = Vec::new();
    let mut board = Scoreboard::default();
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
        while let Some(made) = site.made.pop_front() {
            let before = HeldOut::together(&made.counted);
            let known = if made.look {
                board.looked(before)
            } else {
                let number = made.round + 1;
                let look = federation.looks_behind(number, made.last);
                let looked: Option<Scores> = match test.filter(|_| look) {
                    Some(test) => Some(judge.evaluate(&site.nodes[0].desk().server().model, test)?),
                    None => None,
                };
                let round = RoundScores {
                    round: number,
                    accuracy: looked.and_then(|s| s.accuracy),
                    loss: looked.map(|s| s.loss),
                    train_loss: mean_of(&made.counted, |report| report.loss),
                    bytes_up: std::mem::take(&mut site.bytes_up),
                    bytes_down: std::mem::take(&mut site.bytes_down),
                    seconds: site.clock.now().since(site.round_began).as_secs_f64(),
                    clients: made.counted.len(),
                };
                site.round_began = site.clock.now();
                board.ended(round, before, at_ends)
            };
            let mut enough = false;
            if let Some(round) = known {
                tell(&round);
                enough = federation.is_reached(&round);
                scores.push(round);
            }
            let version = site.nodes[0].desk().version();
            site.coordinate(0, Event::Made { version, enough })?;
        }
    }
    let last = &site.nodes[0].desk().server().model;
    let model = match &mut site.tutor {
        Some(tutor) => tutor.conclude(last)?,
        None => judge.blueprint().export(last)?,
    };
    let seconds = site.clock.now().since(Time::ZERO).as_secs_f64();
    Ok(Outcome { rounds: scores, model, seconds, excluded: site.excluded, own: site.own })
}
