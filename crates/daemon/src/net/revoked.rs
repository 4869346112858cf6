//! Certificates that count no more, as this node knows them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tierline_identity::Peer;
use tierline_proto::v1::{Code, Failure, Revocations};

/// The list; clones share it.
#[derive(Clone, Default)]
pub struct Revoked(Arc<Mutex<Revocations>>);

impl Revoked {
    fn lock(&self) -> MutexGuard<'_, Revocations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a list; whether it is newer than the one before.
    pub fn hear(&self, list: &Revocations) -> bool {
        let mut own = self.lock();
        let newer = list.sequence > own.sequence;
        if newer {
            own.clone_from(list);
        }
        newer
    }

    /// The list.
    #[must_use]
    pub fn list(&self) -> Revocations {
        self.lock().clone()
    }

    /// Whether the node of an identity is out.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.lock().revoked.iter().any(|revoked| revoked.node_id == id)
    }

    /// Refuses a certificate that is on the list.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] when it is revoked.
    pub fn check(&self, peer: &Peer) -> Result<(), Failure> {
        let out = |list: &Revocations| {
            let is_it = |r: &tierline_proto::v1::Revoked| {
                r.node_id == peer.id || (!r.serial.is_empty() && r.serial == peer.serial)
            };
            list.revoked.iter().any(is_it)
        };
        if out(&self.lock()) {
            let text = format!("the certificate of {} is revoked", peer.name);
            return Err(Failure::new(Code::Unauthenticated, text).with_help("join again with a new token"));
        }
        Ok(())
    }
}
