//! Rollouts: a device killed at every step, a fleet under seeded faults.

mod decisions;
mod device;
mod fleets;
mod swaps;
mod world;
