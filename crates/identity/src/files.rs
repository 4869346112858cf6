//! A node's identity, in memory and in its folder.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use tierline_proto::Digest;
use tierline_store::disk::{Existing, create_private_folder, write_atomically};

use super::{Ca, Grant, IdentityError, KeyRequest, NODE_VALIDITY, Peer, fingerprint, pem, tls};

/// Key and certificate in one file: a renewal replaces both in one step.
const NODE_FILE: &str = "node.pem";
const CA_FILE: &str = "ca.pem";

/// Private key, certificate chain, and the authority that signed it.
#[derive(Clone)]
pub struct Identity {
    key_pkcs8: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
    ca: CertificateDer<'static>,
    peer: Peer,
}

impl Identity {
    pub(super) fn new(
        key_pkcs8: Vec<u8>,
        chain: Vec<CertificateDer<'static>>,
        ca: CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let refused = |reason: String| IdentityError::BadReply { reason };
        let leaf = chain.first().ok_or_else(|| refused("it is empty".to_owned()))?;
        let peer = Peer::from_certificate(leaf).map_err(|error| refused(error.to_string()))?;
        let identity = Self { key_pkcs8, chain, ca, peer };
        let certified = identity.certified_key()?;
        certified.keys_match().map_err(|_| refused("it is for another key".to_owned()))?;
        // An expired identity loads: it must be able to say so. But it must be ours at its own time.
        let at = now.clamp(identity.peer.not_before, identity.peer.not_after);
        let at = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        tls::verify_ours(&identity.chain, &identity.ca, UnixTime::since_unix_epoch(at))
            .map_err(|error| refused(error.to_string()))?;
        Ok(identity)
    }

    /// The identity kept in `folder`. One whose certificate has expired
    /// loads too; see [`Peer::check`] and [`Peer::renewal_due`].
    ///
    /// # Errors
    /// [`IdentityError::NotJoined`] where there is none; files that can't be
    /// read, are damaged, or are readable by others.
    pub fn load(folder: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let path = folder.join(NODE_FILE);
        if !path.exists() {
            return Err(IdentityError::NotJoined { folder: folder.to_owned() });
        }
        let damaged = |path: &Path| {
            let path = path.to_owned();
            move |reason| IdentityError::Damaged { path, reason }
        };
        let text = read_private(&path)?;
        let key = pem::key(&text).map_err(damaged(&path))?;
        let chain = pem::certificates(&text).map_err(damaged(&path))?;
        let ca_path = folder.join(CA_FILE);
        let ca = fs::read(&ca_path).map_err(IdentityError::io(&ca_path))?;
        let ca = pem::certificates(&ca).map_err(damaged(&ca_path))?.into_iter().next();
        let ca = ca.ok_or_else(|| damaged(&ca_path)("it holds no certificate".to_owned()))?;
        Self::new(key.secret_pkcs8_der().to_vec(), chain, ca, now).map_err(|error| match error {
            IdentityError::BadReply { reason } => damaged(&path)(reason),
            other => other,
        })
    }

    /// Keeps the identity in `folder`, replacing an older one in one step.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        create_private_folder(folder).map_err(IdentityError::io(folder))?;
        let ca_path = folder.join(CA_FILE);
        write_atomically(&ca_path, self.ca_pem().as_bytes(), 0o600, Existing::Replace)
            .map_err(IdentityError::io(&ca_path))?;
        let path = folder.join(NODE_FILE);
        let text = self.key_pem() + &self.chain_pem();
        write_atomically(&path, text.as_bytes(), 0o600, Existing::Replace).map_err(IdentityError::io(&path))?;
        KeyRequest::forget(folder)
    }

    /// The identity of the node that holds the authority: it signs itself.
    ///
    /// # Errors
    /// As [`Ca::sign`].
    pub fn issue(ca: &Ca, grant: &Grant<'_>, now: SystemTime) -> Result<Self, IdentityError> {
        let request = KeyRequest::generate()?;
        let issued = ca.sign(&request.csr_der()?, grant, now)?;
        request.accept(issued.chain, ca.certificate().clone(), now)
    }

    /// A cloud's identity: the one in `folder`, or a new one by `ca`. One that
    /// is due is renewed, keeping its id.
    ///
    /// # Errors
    /// As [`Identity::load`], [`Ca::sign`] and [`Identity::save`].
    pub fn load_or_issue(ca: &Ca, folder: &Path, name: &str, now: SystemTime) -> Result<Self, IdentityError> {
        let id = match Self::load(folder, now) {
            Ok(identity) if identity.ca != *ca.certificate() => Ca::new_node_id()?,
            Ok(identity) if identity.peer.name == name && !identity.peer.renewal_due(now) => return Ok(identity),
            Ok(identity) => {
                let grant =
                    Grant { id: &identity.peer.id, role: tierline_proto::Role::Cloud, name, validity: NODE_VALIDITY };
                let renewed = Self::issue(ca, &grant, now)?;
                return match renewed.save(folder) {
                    Ok(()) => Ok(renewed),
                    // There are weeks left to try again; until then the site must not stand still.
                    Err(error) if now < identity.peer.not_after => {
                        tracing::warn!(%error, "the renewed certificate could not be kept yet");
                        Ok(identity)
                    }
                    Err(error) => Err(error),
                };
            }
            Err(IdentityError::NotJoined { .. }) => Ca::new_node_id()?,
            Err(error) => return Err(error),
        };
        let grant = Grant { id: &id, role: tierline_proto::Role::Cloud, name, validity: NODE_VALIDITY };
        let identity = Self::issue(ca, &grant, now)?;
        identity.save(folder)?;
        Ok(identity)
    }

    /// What the certificate says.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Leaf first, without the authority; DER.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The authority, DER.
    #[must_use]
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The authority's fingerprint, as in tokens.
    #[must_use]
    pub fn ca_fingerprint(&self) -> Digest {
        fingerprint(&self.ca)
    }

    /// The authority, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        pem::certificate(&self.ca)
    }

    /// Leaf and authority, PEM. Servers send both: joining devices look for
    /// the authority there.
    #[must_use]
    pub fn full_chain_pem(&self) -> String {
        self.chain_pem() + &self.ca_pem()
    }

    /// The private key, PEM. For TLS libraries only; never log or send it.
    #[must_use]
    pub fn key_pem(&self) -> String {
        pem::private_key(&self.key_pkcs8)
    }

    /// What a renewal sends: the new key's request, signed with the key in use.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn renewal(&self, request: &KeyRequest) -> Result<tierline_proto::v1::RenewRequest, IdentityError> {
        let csr_der = request.csr_der()?;
        let signature = tls::sign(&self.certified_key()?, &renewal_message(&csr_der))?;
        Ok(tierline_proto::v1::RenewRequest {
            csr_der: csr_der.into(),
            certificate_chain: self.chain.iter().map(|c| c.to_vec().into()).collect(),
            signature: signature.into(),
        })
    }

    pub(super) fn certified_key(&self) -> Result<rustls::sign::CertifiedKey, IdentityError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_pkcs8.clone()));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&key);
        let key = key.map_err(|error| IdentityError::Crypto(error.to_string()))?;
        let mut chain = self.chain.clone();
        chain.push(self.ca.clone());
        Ok(rustls::sign::CertifiedKey::new(chain, key))
    }

    /// The certificate chain without the authority, PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem::certificate(certificate)).collect()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:?}, key hidden)", self.peer)
    }
}

/// What a renewal's signature covers.
pub(super) fn renewal_message(csr_der: &[u8]) -> Vec<u8> {
    [b"tierline renewal\0".as_slice(), blake3::hash(csr_der).as_bytes()].concat()
}

/// Reads a file that holds a private key, unless others may read it too.
pub(super) fn read_private(path: &Path) -> Result<Vec<u8>, IdentityError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).map_err(IdentityError::io(path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
        }
    }
    fs::read(path).map_err(IdentityError::io(path))
}
