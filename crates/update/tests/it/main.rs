//! Integration tests of the update crate.

mod drift;
mod gate;
mod rollouts;
mod trust;
