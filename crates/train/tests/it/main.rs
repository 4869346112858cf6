//! Tests of local training through its public interface.

mod bad_input;
mod batches;
mod detecting;
mod federated;
mod formats;
mod losses;
mod mutations;
mod partitions;
mod samples;
mod training;
mod views;
