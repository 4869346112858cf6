//! Tests of the planner from outside.

mod chains;
mod explains;
mod problems;
mod sites;
mod support;
mod tables;
