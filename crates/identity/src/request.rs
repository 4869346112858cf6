//! A device's side of joining and renewing: its own key, and the request to
//! have it certified.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use tierline_store::disk::{Existing, create_private_folder, write_atomically};

use super::{Identity, IdentityError, files, pem};

/// The key waits here until its certificate comes.
const PENDING_FILE: &str = "pending.key";

/// A fresh private key that has no certificate yet. It never leaves the device.
pub struct KeyRequest {
    key: KeyPair,
}

impl KeyRequest {
    /// A new key, kept in memory only: for renewals.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)? })
    }

    /// The key of an unfinished join in `folder`, or a new one, kept there:
    /// a join whose answer was lost can be repeated with the same token,
    /// because the cloud knows the key again.
    ///
    /// # Errors
    /// Files that can't be read or written, are damaged, or are readable by others.
    pub fn resume_or_generate(folder: &Path) -> Result<Self, IdentityError> {
        create_private_folder(folder).map_err(IdentityError::io(folder))?;
        let path = folder.join(PENDING_FILE);
        if !path.exists() {
            let fresh = Self::generate()?;
            let text = pem::private_key(fresh.key.serialized_der());
            write_atomically(&path, text.as_bytes(), 0o600, Existing::Keep).map_err(IdentityError::io(&path))?;
            return Ok(fresh);
        }
        let damaged = |reason| IdentityError::Damaged { path: path.clone(), reason };
        let key = pem::key(&files::read_private(&path)?).map_err(damaged)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256);
        Ok(Self { key: key.map_err(|error| damaged(error.to_string()))? })
    }

    /// The request, PKCS#10 DER. It carries no names: the cloud decides them.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn csr_der(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.key)?.der().to_vec())
    }

    /// Makes the identity of this key and the certificates received, after
    /// checking that they belong together.
    ///
    /// # Errors
    /// [`IdentityError::BadReply`].
    pub fn accept(
        self,
        chain: Vec<CertificateDer<'static>>,
        ca: CertificateDer<'static>,
        now: SystemTime,
    ) -> Result<Identity, IdentityError> {
        Identity::new(self.key.serialize_der(), chain, ca, now)
    }

    /// Forgets the key of a finished join; none there is fine.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget(folder: &Path) -> Result<(), IdentityError> {
        let path = folder.join(PENDING_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(IdentityError::io(&path)(error)),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRequest(key hidden)")
    }
}
