//! One test crate: doors, frames, versions, failures.

mod docs;
mod doors;
mod failures;
mod frames;
mod fuzz;
mod versions;
