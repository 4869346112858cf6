//! Members that meet one task after the other: what each held dear of earlier
//! tasks, it keeps while it learns the model that all share. No example of an
//! earlier task is used.
//!
//! The job's rounds are divided among its tasks. In a task's first round a member
//! settles what the task before came to: the anchor is the model that all led to.

use tierline_engine::Stop;
use tierline_federate::{Channel, Contribution, aggregator};
use tierline_graph::step::{Loss, NOT_SAID, Role};

use super::LocalTraining;
use crate::continual::{At, Continual, Penalty, Task, fisher, importance};
use crate::data::{BatchOptions, Dataset, seed_of};
use crate::error::TrainError;
use crate::federated::local_trainer::{LocalTrainer, epochs_of};
use crate::federated::parameter_layout::vector;
use crate::federated::{LocalTask, MemberState, Share};
use crate::trainer::{Flat, Runner};
