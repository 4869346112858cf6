//! A member's work for a federation: from the model it gets to what it sends
//! back.
//!
//! Files, links and rounds are elsewhere; what is here depends on nothing but
//! the job, the data, and the names of member and round, so that a task that
//! is done again gives the same update. Start at [`LocalTrainer`]; [`ParameterLayout`] is
//! for those who only put updates together.

mod knowledge;
mod local;
mod local_trainer;
mod parameter_layout;
mod transfer;

use tierline_federate::Vectors;
use tierline_graph::Model;

use crate::data::Dataset;
use crate::error::TrainError;
use crate::job::Job;

pub use knowledge::{Tutor, public};
pub use local_trainer::LocalTrainer;
pub use parameter_layout::ParameterLayout;
pub use tierline_federate::sender::MemberState;

/// A task, as the worker sees it.
#[derive(Debug, Clone, Copy)]
pub struct LocalTask<'a> {
    /// Whose it is.
    pub member: &'a str,
    /// From 0, over the whole job.
    pub round: u64,
    /// The model to start from.
    pub start: &'a Vectors,
}

/// The models of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Models {
    /// The job's own.
    pub own: Model,
    /// Those of [`Job::models`], in their order.
    pub others: Vec<Model>,
}

impl From<&Model> for Models {
    fn from(own: &Model) -> Self {
        Self { own: own.clone(), others: Vec::new() }
    }
}

/// The examples of one end.
#[derive(Debug, Clone)]
pub struct Share {
    /// What it learns from.
    pub seen: Dataset,
    /// What it evaluates models on, where ends do.
    pub held_out: Option<Dataset>,
}

impl Share {
    /// Divides an end's data set as the job says: by its splits, and where
    /// ends evaluate models and it has no split `test`, by the share that
    /// `data.hold_out` says. Classes have the numbers that the job gives them.
    ///
    /// # Errors
    /// When the share leaves nothing on one side, or there is a class that the
    /// job doesn't know.
    pub fn of(whole: &Dataset, job: &Job) -> Result<Self, TrainError> {
        let split = |name: &str| whole.splits().contains(&name).then(|| whole.named_split(name)).transpose();
        let seen = job.data.numbered(&split("train")?.unwrap_or_else(|| whole.clone()))?;
        if !job.federation.as_ref().is_some_and(tierline_federate::Federation::evaluates_at_ends) {
            return Ok(Self { seen, held_out: None });
        }
        match (split("test")?, job.data.hold_out) {
            (Some(held_out), _) => Ok(Self { seen, held_out: Some(job.data.numbered(&held_out)?) }),
            (None, Some(share)) => {
                let (held_out, seen) = seen.split(share, job.seed)?;
                Ok(Self { seen, held_out: Some(held_out) })
            }
            (None, None) => Ok(Self { seen, held_out: None }),
        }
    }
}
