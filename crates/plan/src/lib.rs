//! Where each part of a model runs: exact placement, and how good it is.
//!
//! Pure: no I/O, no clock. Times come from profiles, bandwidths from whoever
//! measures them. Start at [`plan()`] for a model, at [`problem`] for bare
//! numbers; `table` holds every plan that is best somewhere, [`mod@explain`]
//! says why one is, [`site`] reads what users write about their machines,
//! [`exits`] says when an early answer is sure enough.

#![forbid(unsafe_code)]

pub mod bounded;
mod dense;
pub mod evaluate;
pub mod exits;
pub mod explain;
pub mod flow;
pub mod keys;
mod local;
pub mod plan;
pub mod problem;
pub mod random;
pub mod request;
mod search;
pub mod service;
pub mod site;
pub mod table;

pub use evaluate::{Cost, Evaluation, Route, Violation};
pub use explain::{Explanation, Measured, explain};
pub use plan::{Plan, PlanError, plan, plan_with_direct};
pub use request::{Limits, LinkCondition, Objective, PlanRequest};
pub use service::Service;
pub use site::Site;
pub use table::{Grid, PlanTable};
