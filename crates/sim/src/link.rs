//! Links: what is sent waits for what was sent before it.

use std::time::Duration;

use tierline_node::Time;

use crate::clock::seconds;

/// How fast a link is, each way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Towards the cloud.
    pub up_bytes_per_s: f64,
    /// From the cloud.
    pub down_bytes_per_s: f64,
    /// There and back.
    pub rtt: Duration,
}

impl Link {
    /// As if there were no link.
    pub const NONE: Self = Self { up_bytes_per_s: f64::INFINITY, down_bytes_per_s: f64::INFINITY, rtt: Duration::ZERO };
}

/// One direction of a link, first come, first served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipe {
    bytes_per_s: f64,
    delay: Duration,
    busy_until: Time,
}

impl Pipe {
    /// Both directions: up, then down.
    pub(crate) fn pair(link: &Link) -> [Self; 2] {
        [link.up_bytes_per_s, link.down_bytes_per_s].map(|bytes_per_s| Self {
            bytes_per_s,
            delay: link.rtt / 2,
            busy_until: Time::ZERO,
        })
    }

    /// When bytes that are sent at `now` are through.
    pub(crate) fn carry(&mut self, now: Time, bytes: u64) -> Time {
        let begun = now.max(self.busy_until);
        self.busy_until = begun + seconds(bytes as f64 / self.bytes_per_s);
        self.busy_until + self.delay
    }
}
