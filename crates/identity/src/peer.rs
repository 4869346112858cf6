//! What a certificate of ours says about its bearer.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tierline_proto::Role;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::hex;

const SCHEME: &str = "tierline://node/";

/// A node, as its certificate names it.
///
/// Only as true as the certificate: take it from a finished handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Given by the cloud at the first join; survives renewals.
    pub id: String,
    /// For people; unique in the site.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Of this certificate, big endian without leading zeros.
    pub serial: Vec<u8>,
    /// Start of the certificate.
    pub not_before: SystemTime,
    /// End of the certificate.
    pub not_after: SystemTime,
}

/// A certificate that names no node, or one that may not pass any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Not a certificate of ours.
    #[error("the certificate names no node: {0}")]
    NotANode(&'static str),
    /// Ended, or not begun, while the connection was open.
    #[error("the certificate of node `{name}` has expired; it renews by itself once it reaches the cloud")]
    Expired {
        /// The node.
        name: String,
    },
    /// On the revocation list.
    #[error("node `{name}` is revoked; it may come back only with a new token")]
    Revoked {
        /// The node.
        name: String,
    },
}

impl Peer {
    /// Reads the names in a certificate (DER).
    ///
    /// # Errors
    /// [`PeerError::NotANode`].
    pub fn from_certificate(der: &[u8]) -> Result<Self, PeerError> {
        let wrong = PeerError::NotANode;
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| wrong("it is no X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(wrong("bytes follow it"));
        }
        let names = certificate.subject_alternative_name().map_err(|_| wrong("its names can't be read"))?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
            _ => None,
        });
        // Exactly one: with two, readers could disagree about who it is.
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(wrong("it needs exactly one `tierline://node/` name"));
        };
        let (id, query) = uri.split_once('?').ok_or(wrong("its node name has no role"))?;
        let mut fields = query.split('&').filter_map(|field| field.split_once('='));
        let (Some(("role", role)), Some(("name", name)), None) = (fields.next(), fields.next(), fields.next()) else {
            return Err(wrong("its node name is not `<id>?role=..&name=..`"));
        };
        let role = Role::of_word(role).ok_or(wrong("its role is unknown"))?;
        if !is_node_id(id) || super::check_name(name).is_err() {
            return Err(wrong("its id or name is malformed"));
        }
        let validity = certificate.validity();
        Ok(Self {
            id: id.to_owned(),
            name: name.to_owned(),
            role,
            serial: strip_zeros(certificate.raw_serial()).to_vec(),
            not_before: at(validity.not_before.timestamp()),
            not_after: at(validity.not_after.timestamp()),
        })
    }

    /// Whether the certificate is still in its time and not revoked; TLS
    /// checked the time once, at the handshake, and connections live long.
    ///
    /// # Errors
    /// [`PeerError::Expired`], [`PeerError::Revoked`].
    pub fn check(&self, revocations: &Revocations, now: SystemTime) -> Result<(), PeerError> {
        if revocations.contains(self) {
            return Err(PeerError::Revoked { name: self.name.clone() });
        }
        if now < self.not_before || now > self.not_after {
            return Err(PeerError::Expired { name: self.name.clone() });
        }
        Ok(())
    }

    /// The serial number in text.
    #[must_use]
    pub fn serial_hex(&self) -> String {
        hex(&self.serial)
    }

    /// Whether two thirds of the certificate's life are over.
    #[must_use]
    pub fn renewal_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now >= self.not_before + life * 2 / 3
    }

    pub(super) fn uri(id: &str, role: Role, name: &str) -> String {
        format!("{SCHEME}{id}?role={}&name={name}", role.word())
    }
}

/// Who may not pass any more; replaced as a whole when a newer list comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Grows with every change.
    pub sequence: u64,
    nodes: HashSet<String>,
    serials: HashSet<Vec<u8>>,
}

impl Revocations {
    /// A list of node ids (all their certificates) and of single serial numbers.
    #[must_use]
    pub fn new(
        sequence: u64,
        nodes: impl IntoIterator<Item = String>,
        serials: impl IntoIterator<Item = Vec<u8>>,
    ) -> Self {
        // An empty serial would stand for no certificate.
        let serials = serials.into_iter().map(|serial| strip_zeros(&serial).to_vec());
        let serials = serials.filter(|serial| !serial.is_empty()).collect();
        Self { sequence, nodes: nodes.into_iter().filter(|id| !id.is_empty()).collect(), serials }
    }

    /// Whether this certificate, or its node altogether, is revoked.
    #[must_use]
    pub fn contains(&self, peer: &Peer) -> bool {
        self.nodes.contains(&peer.id) || self.serials.contains(&peer.serial)
    }
}

/// Node ids are 32 hexadecimal digits.
pub(super) fn is_node_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn strip_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|&&byte| byte == 0).count();
    &serial[zeros..]
}

fn at(timestamp: i64) -> SystemTime {
    // Before 1970 counts as 1970: such certificates have ended all the same.
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}
