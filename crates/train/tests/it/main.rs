//! Tests of local training through its public interface.

mod bad_input;
mod batches;
mod bottleneck;
mod classes;
mod continual;
mod detecting;
mod exits;
mod federated;
mod folders;
mod formats;
mod losses;
mod mutations;
mod partitions;
mod samples;
mod training;
mod views;
