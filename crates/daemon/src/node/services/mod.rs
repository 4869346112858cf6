//! What a node answers: one file per service, one gate in front of all.

pub mod bulk;
pub mod control;
pub mod enrollment;
pub mod federate;
pub mod gate;
pub mod infer;
mod jobs;
pub mod local;
pub mod upload;
