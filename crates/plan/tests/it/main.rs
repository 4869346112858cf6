//! Tests of the planner from outside.

mod problems;
