//! Data sets of this node, as jobs name them.

use std::time::SystemTime;

use tierline_federate::strategy::Distillation;
use tierline_proto::v1::{Code, Failure};
use tierline_train::Job;
use tierline_train::data::Dataset;
use tierline_train::federated::{Share, public};

use super::messages::internal;
use crate::datasets::Datasets;
use crate::duties::federation::Jobs;

/// Opens a data set that a job can't do without here.
pub(super) fn open(jobs: &Jobs, name: &str) -> Result<Dataset, Failure> {
    Datasets::of(&jobs.cx.me.config().data).open(name).map_err(|e| {
        let help = e.help().map_or(String::new(), |help| format!("; {help}"));
        Failure::new(Code::Infeasible, format!("{e}{help}"))
    })
}

/// Opens the one that a job's public examples are drawn of; refuses one that
/// has too few.
pub(super) fn open_public(jobs: &Jobs, job: &Job, distil: &Distillation) -> Result<Dataset, Failure> {
    let whole = open(jobs, &distil.public)?;
    public(&whole, distil, job).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
    Ok(whole)
}

/// What this end learns from, and evaluates models on where ends do.
pub(super) fn share(jobs: &Jobs, job: &Job) -> Result<Share, Failure> {
    let mut share =
        Share::of(&open(jobs, &job.data.train)?, job).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
    let evaluates = job.federation.as_ref().is_some_and(tierline_federate::Federation::evaluates_at_ends);
    if let (true, Some(name)) = (evaluates, &job.data.test)
        && let Some(other) = held_out(jobs, name, true)?
    {
        let numbered = job.data.numbered(&other).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
        share.held_out = Some(numbered);
    }
    Ok(share)
}

/// Agrees on the names of a job's classes, unless it states them: those of the
/// data sets that the node which coordinates it has, the one that judges first.
pub(super) fn name_classes(jobs: &Jobs, job: &mut Job) -> Result<(), Failure> {
    if !job.data.classes.is_empty() {
        return Ok(());
    }
    let known = Datasets::of(&jobs.cx.me.config().data);
    let mut sets = Vec::new();
    if let Some(name) = job.data.test.as_ref().filter(|name| known.record(name).is_ok()) {
        sets.push(open(jobs, name)?);
    }
    // Of what ends learn from this node may have an older copy, or none.
    sets.extend(known.open(&job.data.train).ok());
    let federation = job.federation.as_ref().filter(|federation| federation.learns_public_classes());
    if let Some(distil) = federation.and_then(|federation| federation.distillation()) {
        sets.push(open(jobs, &distil.public)?);
    }
    job.data.name_classes(&sets);
    Ok(())
}

/// When this node was told of the data sets that a job names, those it has.
pub(super) fn stamp(jobs: &Jobs, job: &Job) -> Vec<Option<SystemTime>> {
    let public = job.federation.as_ref().and_then(|federation| federation.distillation());
    let names = [Some(&job.data.train), job.data.test.as_ref(), public.map(|distil| &distil.public)];
    let known = Datasets::of(&jobs.cx.me.config().data);
    names.into_iter().flatten().map(|name| known.told_at(name)).collect()
}

/// What models are evaluated on: the split `test` of a data set, or all of one that
/// has no splits and is there for nothing else (`own`); `None` if the node
/// hasn't any.
pub(super) fn held_out(jobs: &Jobs, name: &str, own: bool) -> Result<Option<Dataset>, Failure> {
    let known = Datasets::of(&jobs.cx.me.config().data);
    if known.record(name).is_err() {
        return Ok(None);
    }
    let all = known.open(name).map_err(internal)?;
    match all.splits().contains(&"test") {
        true => all.named_split("test").map(Some).map_err(internal),
        false => Ok(own.then_some(all)),
    }
}
