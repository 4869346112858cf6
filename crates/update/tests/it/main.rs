//! Integration tests of the update crate.

mod delta;
mod drift;
mod gate;
mod rollouts;
mod trust;
