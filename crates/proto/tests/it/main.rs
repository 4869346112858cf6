//! One test crate: frames, headers, versions, failures.

mod failures;
mod frames;
mod fuzz;
mod versions;
