//! What a node does: one folder for each duty, and one line below.

pub mod applications;
pub mod artefacts;
pub mod catalogue;
mod dashboard;
pub mod enrolment;
pub mod federation;
pub mod inference;
mod operators;
pub mod planning;
pub mod profiling;
pub mod rollout;
pub mod services;
pub mod serving;
pub mod site;
#[cfg(test)]
mod tests;

use tierline_proto::v1::{Code, Failure};

use crate::runtime::duty::Registration;

/// Every duty, each behind those that it asks for. They hear of parents and
/// children in this order: what is said of who is there comes before what they
/// say.
pub const REGISTRY: &[Registration] = &[
    enrolment::DUTY,
    applications::DUTY,
    artefacts::DUTY,
    catalogue::DUTY,
    site::DUTY,
    planning::DUTY,
    profiling::DUTY,
    inference::DUTY,
    services::DUTY,
    serving::DUTY,
    federation::DUTY,
    rollout::DUTY,
    operators::DUTY,
    dashboard::DUTY,
];

/// A document for an operator.
fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::new(Code::Internal, e.to_string()))
}
