//! One test crate: every machine under virtual time, with seeded faults.
//!
//! A failing schedule prints its seed; `TIERLINE_SEED=n` runs that one alone.
//! `TIERLINE_SEEDS=n` runs the first n of every test.

mod adapts;
mod admits;
mod batches;
mod chooses;
mod compositions;
mod estimates;
mod federations;
mod fetches;
mod harness;
mod leases;
mod requests;
