//! Local training: data sets, batches, the loop around the step graph.
//!
//! [`data`] reads data sets of the usual formats, makes batches of them ahead
//! of the loop, and shares them out to clients of federated experiments. A
//! [`Trainer`] holds a model's training step in an engine; [`run`](fn@run)
//! drives it over epochs, with evaluation and checkpoints;
//! [`federated::LocalTrainer`] does a member's tasks of a federation. A [`Job`]
//! says all of it in a file. Start at [`data::Source`] and [`run`](fn@run).

#![forbid(unsafe_code)]

pub mod bottleneck;
pub mod chart;
pub mod checkpoint;
pub mod continual;
pub mod data;
pub mod exits;
pub mod federated;
pub mod init;
pub mod job;

mod error;
mod run;
mod trainer;

pub use checkpoint::Checkpoint;
pub use error::TrainError;
pub use job::Job;
pub use run::{Epoch, Event, RunOptions, TrainingResult, run};
pub use trainer::{Flat, Scores, StepReport, Trainer};
