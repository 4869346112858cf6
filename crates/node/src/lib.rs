//! What an end, an edge and a cloud do, one state machine per duty.
//!
//! Pure: no I/O, no clock, no runtime. A machine takes the time, a random
//! source and an event, and returns actions; the shell performs them and
//! reports back with events. Each machine also says when it wants to be woken
//! (`wake`), and the shell sends it `Wake` then; a `Wake` too early or too
//! often does nothing. What the daemon runs is what the tests drive, under
//! virtual time with seeded faults.
//!
//! Start at [`request`], the path of a request; then [`composition`] (one of several
//! models), [`lease`] (is the next
//! tier there?), [`admit`] (whose turn is it?), [`batch`] (what runs as one?), [`choose`] and [`breaker`] (who is asked?), [`estimate`], [`calibrate`] and
//! [`adapt`] (which plan now?), [`fetch`] (artefacts), [`federation`] (rounds), [`policy`]
//! (who may call what), [`applications`] (who may use which models), [`places`] and [`rate`] (how many connections, how many joins),
//! [`renewal`] (when certificates are renewed), [`trace`] (which requests are traced).
//! `docs/design/nodes.md` draws them.

#![forbid(unsafe_code)]

pub mod adapt;
pub mod admit;
pub mod applications;
pub mod batch;
pub mod breaker;
pub mod calibrate;
pub mod choose;
pub mod composition;
pub mod estimate;
pub mod federation;
pub mod fetch;
pub mod lease;
pub mod places;
pub mod policy;
pub mod rate;
pub mod renewal;
pub mod request;
pub mod silence;
pub mod time;
pub mod trace;

pub use fastrand::Rng;
pub use time::Time;

/// Segments `[first, last)` of a model between its candidate cuts.
///
/// With `n` cuts there are `n + 1` segments; segment `i` ends at cut `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Span {
    /// First segment.
    pub first: u32,
    /// One past the last segment.
    pub last: u32,
}

/// A parent this node dials, by its place in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u32);
