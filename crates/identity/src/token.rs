//! Join tokens: `tl1.<authority's fingerprint>.<id>.<secret>`.
//!
//! The fingerprint lets a device with nothing but the token tell the right
//! server from any other before it sends the secret. The server keeps only
//! the secret's BLAKE3 digest; uses, expiry and role are in its state.

use std::fmt;
use std::str::FromStr;

use tierline_proto::Digest;
use tierline_proto::limits::TOKEN_BYTES_MAX;

use super::{IdentityError, hex, random};

const VERSION: &str = "tl1";

/// A token as the joining device holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Of the authority that will sign.
    pub fingerprint: Digest,
    /// Names the token in the server's list; not secret.
    pub id: String,
    secret: String,
}

/// The token's whole text, secret included: shown once, never logged.
pub struct TokenText(pub(super) String);

impl JoinToken {
    /// A new token for the authority of that fingerprint.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate(fingerprint: Digest) -> Result<Self, IdentityError> {
        Ok(Self { fingerprint, id: hex(&random::<6>()?), secret: hex(&random::<20>()?) })
    }

    /// What the server stores instead of the secret.
    #[must_use]
    pub fn secret_digest(&self) -> [u8; 32] {
        // The secret has 160 random bits: a plain digest can't be searched.
        *blake3::hash(self.secret.as_bytes()).as_bytes()
    }

    /// The text to hand to the device.
    #[must_use]
    pub fn text(&self) -> TokenText {
        TokenText(format!("{VERSION}.{}.{}.{}", self.fingerprint, self.id, self.secret))
    }
}

impl FromStr for JoinToken {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let malformed = |reason| IdentityError::MalformedToken { reason };
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let parts: Vec<&str> = text.split('.').collect();
        let &[version, fingerprint, id, secret] = parts.as_slice() else {
            return Err(malformed("it needs four parts separated by dots"));
        };
        if version != VERSION {
            return Err(malformed("it doesn't begin with `tl1.`"));
        }
        let fingerprint = fingerprint.parse().map_err(|_| malformed("its fingerprint is not 64 hexadecimal digits"))?;
        if !is_hex(id, 12) {
            return Err(malformed("its id is not 12 hexadecimal digits"));
        }
        if !is_hex(secret, 40) {
            return Err(malformed("its secret is not 40 hexadecimal digits"));
        }
        Ok(Self { fingerprint, id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.{}, secret hidden)", self.fingerprint.short(), self.id)
    }
}

impl fmt::Display for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back() {
        let token = JoinToken::generate(Digest([7; 32])).unwrap();
        assert_eq!(token.text().to_string().parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn anything_else_is_refused_without_repeating_it() {
        let good = JoinToken::generate(Digest([7; 32])).unwrap().text().to_string();
        let long = format!("{good}{}", "0".repeat(2_000));
        for bad in ["", "tl1", "tl2.a.b.c", &good[1..], &good[..good.len() - 1], &good.replace('.', "-"), &long] {
            let error = bad.parse::<JoinToken>().unwrap_err().to_string();
            assert!(bad.len() < 10 || !error.contains(bad), "{error}");
        }
    }
}
