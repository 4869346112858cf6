//! One test crate: frames, headers, versions, failures.

mod docs;
mod failures;
mod frames;
mod fuzz;
mod versions;
