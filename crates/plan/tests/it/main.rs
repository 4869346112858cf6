//! Tests of the planner from outside.

mod chains;
mod explains;
mod problems;
mod services;
mod sites;
mod support;
mod tables;
