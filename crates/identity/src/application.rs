//! What applications show: tokens, `tla1.<id>.<secret>`, and lists of
//! applications that the site's authority has signed.
//!
//! An application's identity has the form of a node's. A token is sent with
//! each request over TLS and is short for that reason; nodes know its secret's
//! BLAKE3 digest only.

use std::fmt;

use rcgen::SigningKey;
use rustls::pki_types::CertificateDer;

use super::token::{TokenText, is_hex};
use super::{Ca, IdentityError, hex, peer, random, tls};

const VERSION: &str = "tla1";

/// Digits of an identity and of a secret.
const ID_DIGITS: usize = 32;
const SECRET_DIGITS: usize = 40;

/// Length of a token.
pub const TOKEN_BYTES: usize = VERSION.len() + 1 + ID_DIGITS + 1 + SECRET_DIGITS;

/// A token of an application.
#[derive(Clone, PartialEq, Eq)]
pub struct AppToken {
    /// Names the application; not secret.
    pub id: String,
    secret: String,
}

impl AppToken {
    /// A new token of an application.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate(id: &str) -> Result<Self, IdentityError> {
        Ok(Self { id: id.to_owned(), secret: hex(&random::<20>()?) })
    }

    /// Reads what a caller shows; none where it is no token. Takes no longer
    /// for a long text.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if text.len() != TOKEN_BYTES {
            return None;
        }
        let mut parts = text.split('.');
        let (Some(VERSION), Some(id), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let whole = peer::is_node_id(id) && is_hex(secret, SECRET_DIGITS);
        whole.then(|| Self { id: id.to_owned(), secret: secret.to_owned() })
    }

    /// What nodes keep instead of the secret.
    #[must_use]
    pub fn secret_digest(&self) -> [u8; 32] {
        // The secret has 160 random bits: a plain digest can't be searched.
        *blake3::hash(self.secret.as_bytes()).as_bytes()
    }

    /// Whether a digest is that of this secret; takes as long when it isn't.
    #[must_use]
    pub fn has_digest(&self, digest: &[u8]) -> bool {
        let Ok(digest) = <[u8; 32]>::try_from(digest) else { return false };
        // Hashes are compared in constant time.
        blake3::hash(self.secret.as_bytes()) == blake3::Hash::from_bytes(digest)
    }

    /// The text to hand to the application.
    #[must_use]
    pub fn text(&self) -> TokenText {
        TokenText(format!("{VERSION}.{}.{}", self.id, self.secret))
    }
}

impl fmt::Debug for AppToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppToken({}, secret hidden)", self.id)
    }
}

impl Ca {
    /// Signs a list of applications as it travels.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn sign_applications(&self, list: &[u8]) -> Result<Vec<u8>, IdentityError> {
        Ok(self.key().sign(&signed_message(list))?)
    }
}

/// Whether the authority of that certificate signed a list of applications.
#[must_use]
pub fn is_signed_list(ca: &CertificateDer<'_>, list: &[u8], signature: &[u8]) -> bool {
    tls::is_signed_by(ca, &signed_message(list), signature)
}

/// What a list's signature covers: nothing else that the authority signs
/// begins so.
fn signed_message(list: &[u8]) -> Vec<u8> {
    [b"tierline applications\0".as_slice(), blake3::hash(list).as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_token_comes_back_and_keeps_its_secret() {
        let token = AppToken::generate(&"0a".repeat(16)).unwrap();
        let text = token.text().to_string();
        assert_eq!(text.len(), TOKEN_BYTES);
        assert_eq!(AppToken::read(&text), Some(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        assert!(token.has_digest(&token.secret_digest()));
        let other = AppToken::generate(&token.id).unwrap();
        assert!(!token.has_digest(&other.secret_digest()));
        assert!(!token.has_digest(&token.secret_digest()[..31]) && !token.has_digest(b""));
    }

    #[test]
    fn what_is_no_token_is_none() {
        let text = AppToken::generate(&"0a".repeat(16)).unwrap().text().to_string();
        for bad in [
            "",
            "tla1",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.to_uppercase(),
            &text.replace("tla1", "tla2"),
            &text.replacen('.', "-", 1),
            &text.replace('a', "g"),
            &text.replace("tla1.0a", "tla1..a"),
            &"x".repeat(5 << 20),
        ] {
            assert_eq!(AppToken::read(bad), None, "{}", &bad[..bad.len().min(90)]);
        }
    }

    #[test]
    fn only_the_sites_own_authority_signs_lists() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ca = Ca::open_or_create(ours.path(), SystemTime::now()).unwrap();
        let other = Ca::open_or_create(theirs.path(), SystemTime::now()).unwrap();
        let signature = ca.sign_applications(b"list").unwrap();
        assert!(is_signed_list(ca.certificate(), b"list", &signature));
        assert!(!is_signed_list(ca.certificate(), b"lost", &signature));
        assert!(!is_signed_list(other.certificate(), b"list", &signature));
        assert!(!is_signed_list(ca.certificate(), b"list", b""));
    }
}
