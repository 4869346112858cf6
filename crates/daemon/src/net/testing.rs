//! A node's connections, without a node.

use std::sync::Arc;
use std::time::SystemTime;

use tierline_identity::tls::LiveIdentity;
use tierline_identity::{Ca, Grant, Identity, NODE_VALIDITY};
use tierline_proto::Role;
use tokio::sync::broadcast;

use super::{Net, Revoked};
use crate::config::NodeConfig;
use crate::runtime::duty::Duties;
use crate::runtime::events::Events;
use crate::runtime::tasks::Tasks;
use crate::runtime::{Clock, Me};

/// Those of a cloud that has no duties.
pub(super) fn net() -> Net {
    let (folder, now) = (tempfile::tempdir().unwrap(), SystemTime::now());
    let ca = Ca::open_or_create(folder.path(), now).unwrap();
    let grant =
        Grant { id: "0123456789abcdef0123456789abcdef", role: Role::Cloud, name: "cloud", validity: NODE_VALIDITY };
    let identity = LiveIdentity::new(Identity::issue(&ca, &grant, now).unwrap()).unwrap();
    let events = Events::default();
    Net {
        me: Arc::new(Me::new(NodeConfig::default(), identity, 1)),
        clock: Clock::start(),
        tasks: Tasks::new(events.clone()),
        events,
        duties: Duties::default(),
        revoked: Revoked::default(),
        changes: broadcast::channel(1).0,
    }
}
