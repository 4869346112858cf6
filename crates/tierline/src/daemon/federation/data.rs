//! Data sets of this node, as jobs name them.

use tierline_federate::strategy::Distillation;
use tierline_proto::v1::{Code, Failure};
use tierline_train::Job;
use tierline_train::data::Dataset;
use tierline_train::federated::{Share, public};

use super::messages::internal;
use crate::daemon::Node;
use crate::datasets::Datasets;

/// Opens a data set that a job can't do without here.
pub(super) fn open(node: &Node, name: &str) -> Result<Dataset, Failure> {
    Datasets::of(&node.config().data).open(name).map_err(|e| {
        let help = e.help().map_or(String::new(), |help| format!("; {help}"));
        Failure::new(Code::Infeasible, format!("{e}{help}"))
    })
}

/// Opens the one that a job's public examples are drawn of; refuses one that
/// has too few.
pub(super) fn open_public(node: &Node, job: &Job, distil: &Distillation) -> Result<Dataset, Failure> {
    let whole = open(node, &distil.public)?;
    public(&whole, distil, job).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
    Ok(whole)
}

/// What this end learns from, and looks at models with where ends do.
pub(super) fn share(node: &Node, job: &Job) -> Result<Share, Failure> {
    let mut share =
        Share::of(&open(node, &job.data.train)?, job).map_err(|e| Failure::new(Code::Infeasible, e.to_string()))?;
    let looks = job.federation.as_ref().is_some_and(tierline_federate::Federation::looks_at_ends);
    if let (true, Some(name)) = (looks, &job.data.test)
        && let Some(other) = held_out(node, name, true)?
    {
        share.held_out = Some(other);
    }
    Ok(share)
}

/// What looks at models: the split `test` of a data set, or all of one that
/// has no splits and is there for nothing else (`own`); `None` if the node
/// hasn't any.
pub(super) fn held_out(node: &Node, name: &str, own: bool) -> Result<Option<Dataset>, Failure> {
    let known = Datasets::of(&node.config().data);
    if known.record(name).is_err() {
        return Ok(None);
    }
    let all = known.open(name).map_err(internal)?;
    match all.splits().contains(&"test") {
        true => all.named_split("test").map(Some).map_err(internal),
        false => Ok(own.then_some(all)),
    }
}
