//! Integration tests of the update crate.

mod rollouts;
mod trust;
