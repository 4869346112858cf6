//! A whole site in one process: many ends, edges and a cloud under a virtual
//! clock, with links and devices as fast as wished.
//!
//! The machines are those that nodes run (`tierline_node::federation`), the
//! training is real, and only time is made up: a model trained here is the
//! model that nodes with the same data would have trained. Start at [`run`],
//! then [`Scenario`].

#![forbid(unsafe_code)]

mod attack;
mod clock;
mod link;
mod scenario;
mod site;
mod workers;

pub use attack::{Attack, Harm};
pub use link::Link;
pub use scenario::{Examples, Scenario, SimError, SimulationResult, end_name};
pub use site::run;
