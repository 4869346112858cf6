//! Is the next tier there? Heartbeats and leases between a child and a parent.
//!
//! The child dials, says hello, gets a lease and keeps it with heartbeats; the
//! parent keeps a register of its children. Both sides let go by their own
//! clock, without a message: the child counts its lease from when it *sent*
//! the last heartbeat that was acknowledged, the parent from when it
//! *received* it, which is later. So whenever the child believes that it
//! holds its lease, the parent does too (clock rates being equal; the test
//! drives both under faults).
//!
//! On a thin link heartbeats wait behind tensors. The parent therefore grants
//! longer leases there ([`QUEUED_BYTES`]), and takes whatever it hears of a
//! child for a sign of life. One with thousands of children asks for fewer
//! heartbeats of each ([`HEARTBEATS_PER_S`]): whether it is there, a child that
//! has a request to send asks at once all the same.
//!
//! Start at [`Child`] and [`Parent`].

mod child;
mod parent;

use std::time::Duration;

pub use child::{Action as ChildAction, Child, Event as ChildEvent, Granted, State as ChildState};
pub use parent::{Action as ParentAction, Entry, Event as ParentEvent, Hello, Lost, Parent};

/// A lease not renewed for so long is lost.
pub const LEASE: Duration = Duration::from_millis(3_000);

/// Between heartbeats: three may be lost before the lease is.
pub const HEARTBEAT: Duration = Duration::from_millis(750);

/// Heartbeats that a parent asks for in a second, of all children together;
/// they cost it some percent of a core. Up to 1,500 children none is asked for
/// fewer, ten thousand for one in 5 seconds.
pub const HEARTBEATS_PER_S: u32 = 2_000;

/// Heartbeats in a lease.
const BEATS_IN_LEASE: u32 = 4;

/// Between heartbeats at least, whatever a parent wants.
pub const HEARTBEAT_MIN: Duration = Duration::from_millis(50);

/// Leases a parent may grant; what lies outside is taken to the nearest end.
pub const LEASE_RANGE: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(30)];

/// Bytes of tensors that may stand before a heartbeat in buffers on the way;
/// a lease lasts at least as long as these take on the child's link.
pub const QUEUED_BYTES: u64 = 512 << 10;

/// For a connection to stand, TLS included.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// For a hello to be answered.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// First pause after a lost connection, at most; doubles with every failure.
pub const BACKOFF_BASE: Duration = Duration::from_millis(200);

/// Longest pause between attempts: a link that comes back is used within it.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
