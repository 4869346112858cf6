//! Where each part of a model runs: exact placement, and how good it is.
//!
//! Pure: no I/O, no clock. Times come from profiles, bandwidths from whoever
//! measures them. Start at [`plan()`] for a model, at [`problem`] for bare
//! numbers; [`table`] holds every plan that is best somewhere.

#![forbid(unsafe_code)]

pub mod bounded;
mod dense;
pub mod flow;
mod local;
pub mod plan;
pub mod problem;
pub mod random;
pub mod request;
pub mod table;

pub use plan::{Plan, PlanError, plan, plan_with_direct};
pub use request::{Limits, LinkCondition, Objective, PlanRequest};
pub use table::{Grid, PlanTable};
