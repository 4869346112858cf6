//! A node among others: who reaches it, whom it reaches, and what they say.
//!
//! Sessions carry leases and envelopes; which duty an envelope is for is all
//! that is known of it here. Start at [`Uplink`] for a parent, [`Children`] for
//! those below, [`serving`] for calls.

pub mod applications;
pub mod asking;
mod asking_grpc;
pub mod children;
pub mod door;
pub mod encoding;
pub mod gate;
pub mod parents;
pub mod plain;
pub mod revoked;
pub mod serving;
mod stream;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod uplink;

use std::sync::Arc;

use tierline_node::request::Event as RequestEvent;
use tokio::sync::broadcast;

pub use self::applications::Applications;
pub use self::children::Children;
pub use self::parents::Parents;
pub use self::revoked::Revoked;
pub use self::uplink::Uplink;
use crate::runtime::duty::Duties;
use crate::runtime::events::Events;
use crate::runtime::tasks::Tasks;
use crate::runtime::{Clock, Me};

/// What connections to other nodes need of the one they belong to; clones
/// share it.
#[derive(Clone)]
pub struct Net {
    /// Who it is.
    pub me: Arc<Me>,
    /// Its time.
    pub clock: Clock,
    /// What runs on it.
    pub tasks: Tasks,
    /// What happened.
    pub events: Events,
    /// Who hears what other nodes say.
    pub duties: Duties,
    /// Certificates that count no more.
    pub revoked: Revoked,
    /// Changes of parents, for requests in flight.
    pub changes: broadcast::Sender<RequestEvent>,
}
