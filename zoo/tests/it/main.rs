//! The zoo's networks are the published ones, and run.

mod published;
mod run;
