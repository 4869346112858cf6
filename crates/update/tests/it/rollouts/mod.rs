//! Rollouts: a device killed at every step, a fleet under seeded faults.

mod device;
mod swaps;
