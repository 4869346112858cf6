//! A link in userspace: forwards TCP connections with a bandwidth, a delay,
//! jitter, loss, or not at all. For demonstrations, tests, and trying out
//! what a site does on a link it doesn't have.
//!
//! Start at [`Shaper`]; [`control`] changes a running one.

mod config;
pub mod control;
mod shaper;

pub use config::{Change, LinkConfig, LinkError, parse_bandwidth, parse_loss};
pub use shaper::{Counters, Shaper};
