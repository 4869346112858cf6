//! Updates: how a deployed model is kept current.
//!
//! Pure: no files, clocks or sockets. What is read from elsewhere becomes a
//! checked type at its door; time and randomness are arguments.

#![forbid(unsafe_code)]

pub mod card;
pub mod delta;
pub mod drift;
pub mod gate;
pub mod rollout;
pub mod trust;

mod special;
