//! Who is who: the built-in certificate authority, join tokens, node
//! certificates, what applications show, and TLS built from them. No gRPC, no
//! policy.
//!
//! The cloud holds the only [`Ca`]. A device makes its key itself
//! ([`KeyRequest`]), sends the request with a [`JoinToken`], and keeps what
//! comes back as an [`Identity`]. Every later call is judged by the [`Peer`]
//! in the caller's certificate. docs/design/identity.md has the why.
//!
//! Start at [`Ca`], then [`tls`].

mod application;
mod ca;
mod error;
mod fetch;
mod files;
mod peer;
mod pem;
mod request;
pub mod tls;
mod token;

pub use application::{AppToken, TOKEN_BYTES, is_signed_list};
pub use ca::{Ca, Grant, Issued};
pub use error::{IdentityError, TlsError};
pub use fetch::fetch_ca;
pub use files::Identity;
pub use peer::{Peer, PeerError, Revocations};
pub use request::KeyRequest;
pub use token::{JoinToken, TokenText};

use std::time::Duration;

use tierline_proto::NodeName;

/// Life of the certificate authority.
pub const CA_VALIDITY: Duration = Duration::from_secs(3_650 * 86_400);

/// Life of a node's certificate. Renewal starts at two thirds of it, so a
/// device may sleep for a month and still renew.
pub const NODE_VALIDITY: Duration = Duration::from_secs(90 * 86_400);

/// Certificates begin this long before they are signed: devices without a
/// battery-backed clock are often some hours behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

/// The DNS name that every node that serves others has in its certificate.
pub const SERVER_NAME: &str = "tierline";

/// A certificate's fingerprint: BLAKE3 of its DER form.
#[must_use]
pub fn fingerprint(certificate_der: &[u8]) -> tierline_proto::Digest {
    tierline_proto::Digest(*blake3::hash(certificate_der).as_bytes())
}

/// The DNS name in the certificates of nodes of this role; a client that
/// must reach the cloud itself, not an edge, verifies against it.
#[must_use]
pub fn server_name(role: tierline_proto::Role) -> String {
    format!("{}.{SERVER_NAME}", role.word())
}

/// Whether `name` may name a node: a DNS label, because certificates carry it.
///
/// # Errors
/// [`IdentityError::BadName`] with the rule.
pub fn check_name(name: &str) -> Result<(), IdentityError> {
    NodeName::new(name).map(drop).map_err(|_| IdentityError::BadName { name: name.chars().take(80).collect() })
}

/// Whether a node that is new may be called `name`: also not like a node's
/// id, which commands take in a name's place.
///
/// # Errors
/// [`IdentityError::BadName`], [`IdentityError::NameLikeId`].
pub fn check_new_name(name: &str) -> Result<(), IdentityError> {
    check_name(name)?;
    if peer::is_node_id(name) {
        return Err(IdentityError::NameLikeId { name: name.to_owned() });
    }
    Ok(())
}

/// A certificate in PEM.
#[must_use]
pub fn certificate_pem(certificate_der: &[u8]) -> String {
    pem::certificate(certificate_der)
}

fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    tls::provider().secure_random.fill(&mut bytes).map_err(|_| IdentityError::Random)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
