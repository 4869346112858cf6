//! Keys: as metadata names them, and those that sign.
//!
//! Verified: Ed25519, ECDSA on P-256 and P-384, RSA-PSS. Signed with: Ed25519
//! and ECDSA on P-256. A key's id is whatever metadata calls it; for our own it
//! is the SHA-256 of the key's canonical form, as other tools have it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey, VerificationAlgorithm};
use serde_json::{Map, Value, json};

use super::error::{Malformed, SignError};
use super::json;

/// Characters of a key in PEM: RSA keys of 8,192 bits have some 1,500.
const PEM_CHARS_MAX: usize = 16 << 10;

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scheme {
    Ed25519,
    EcdsaP256,
    EcdsaP384,
    RsaPss256,
    RsaPss384,
    RsaPss512,
}

impl Scheme {
    fn algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519 => &signature::ED25519,
            Self::EcdsaP256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::EcdsaP384 => &signature::ECDSA_P384_SHA384_ASN1,
            Self::RsaPss256 => &signature::RSA_PSS_2048_8192_SHA256,
            Self::RsaPss384 => &signature::RSA_PSS_2048_8192_SHA384,
            Self::RsaPss512 => &signature::RSA_PSS_2048_8192_SHA512,
        }
    }

    /// What metadata calls it, if it is known here.
    fn named(keytype: &str, scheme: &str) -> Option<Self> {
        Some(match (keytype, scheme) {
            ("ed25519", "ed25519") => Self::Ed25519,
            // Older tools named the type like the scheme.
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => Self::EcdsaP256,
            ("ecdsa" | "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384") => Self::EcdsaP384,
            ("rsa", "rsassa-pss-sha256") => Self::RsaPss256,
            ("rsa", "rsassa-pss-sha384") => Self::RsaPss384,
            ("rsa", "rsassa-pss-sha512") => Self::RsaPss512,
            _ => return None,
        })
    }
}

/// What verifies: two keys with the same are one key, whatever they are called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Material {
    scheme: Scheme,
    bytes: Vec<u8>,
}

/// A public key as metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    keytype: String,
    scheme: String,
    public: String,
    /// None: a kind that isn't known here, which verifies nothing.
    material: Option<Material>,
}

impl PublicKey {
    fn new(keytype: &str, scheme: &str, public: &str) -> Self {
        let material = Scheme::named(keytype, scheme).and_then(|known| {
            let bytes = match known {
                Scheme::Ed25519 => unhex(public).filter(|bytes| bytes.len() == 32),
                _ => pem(public, "PUBLIC KEY").and_then(|der| subject_key(&der, known)),
            };
            Some(Material { scheme: known, bytes: bytes? })
        });
        Self { keytype: keytype.to_owned(), scheme: scheme.to_owned(), public: public.to_owned(), material }
    }

    fn of(scheme: Scheme, bytes: &[u8]) -> Self {
        match scheme {
            Scheme::Ed25519 => Self::new("ed25519", "ed25519", &hex(bytes)),
            _ => Self::new("ecdsa", "ecdsa-sha2-nistp256", &to_pem("PUBLIC KEY", &[SPKI_P256, bytes].concat())),
        }
    }

    /// Reads a key in PEM, as `openssl pkey -pubout` writes it: Ed25519 or P-256.
    ///
    /// # Errors
    /// When it is no such key.
    pub fn from_pem(text: &str) -> Result<Self, SignError> {
        let der = pem(text, "PUBLIC KEY").ok_or(SignError::Key("no public key in PEM"))?;
        if let Some(bytes) = der.strip_prefix(SPKI_ED25519).filter(|bytes| bytes.len() == 32) {
            return Ok(Self::of(Scheme::Ed25519, bytes));
        }
        let bytes = subject_key(&der, Scheme::EcdsaP256).ok_or(SignError::Key("neither Ed25519 nor ECDSA on P-256"))?;
        Ok(Self::of(Scheme::EcdsaP256, &bytes))
    }

    /// The key in PEM; of kinds that aren't known here, what metadata had.
    #[must_use]
    pub fn to_pem(&self) -> String {
        match &self.material {
            Some(Material { scheme: Scheme::Ed25519, bytes }) => to_pem("PUBLIC KEY", &[SPKI_ED25519, bytes].concat()),
            _ => self.public.clone(),
        }
    }

    pub(super) fn read(map: &Map<String, Value>) -> Result<Self, Malformed> {
        let text = |map: &Map<String, Value>, name: &str| {
            map.get(name)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| Malformed::text(format!("a key without `{name}`")))
        };
        let value =
            map.get("keyval").and_then(Value::as_object).ok_or_else(|| Malformed::text("a key without `keyval`"))?;
        Ok(Self::new(&text(map, "keytype")?, &text(map, "scheme")?, &text(value, "public")?))
    }

    pub(super) fn value(&self) -> Value {
        json!({"keytype": self.keytype, "scheme": self.scheme, "keyval": {"public": self.public}})
    }

    /// What metadata of ours calls it: SHA-256 of its canonical form.
    #[must_use]
    pub fn id(&self) -> String {
        let canonical = json::canonical(&self.value()).unwrap_or_default();
        hex(ring::digest::digest(&ring::digest::SHA256, &canonical).as_ref())
    }

    pub(super) fn material(&self) -> Option<&Material> {
        self.material.as_ref()
    }

    /// Whether this key made the signature.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.material.as_ref().is_some_and(|material| {
            UnparsedPublicKey::new(material.scheme.algorithm(), &material.bytes).verify(message, signature).is_ok()
        })
    }
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
}

/// A key that signs.
pub struct SigningKey {
    pair: Pair,
    public: PublicKey,
    id: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SigningKey({})", self.id)
    }
}

impl SigningKey {
    /// Makes an Ed25519 key and gives it in PEM (PKCS #8, RFC 8410), which [`Self::from_pem`] and OpenSSL read.
    ///
    /// # Errors
    /// [`SignError::Random`].
    pub fn generate(random: &dyn SecureRandom) -> Result<String, SignError> {
        let mut seed = [0; 32];
        random.fill(&mut seed).map_err(|_| SignError::Random)?;
        Ok(to_pem("PRIVATE KEY", &[PKCS8_ED25519, &seed].concat()))
    }

    /// Reads a key in PEM (PKCS #8): Ed25519, or ECDSA on P-256 with its public part.
    ///
    /// # Errors
    /// [`SignError::Key`].
    pub fn from_pem(text: &str, random: &dyn SecureRandom) -> Result<Self, SignError> {
        let der = pem(text, "PRIVATE KEY").ok_or(SignError::Key("no private key in PEM (PKCS #8)"))?;
        let (pair, public) = if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
            let public = PublicKey::of(Scheme::Ed25519, pair.public_key().as_ref());
            (Pair::Ed25519(pair), public)
        } else {
            let kind = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
            let pair = EcdsaKeyPair::from_pkcs8(kind, &der, random)
                .map_err(|_| SignError::Key("neither Ed25519 nor ECDSA on P-256"))?;
            let public = PublicKey::of(Scheme::EcdsaP256, pair.public_key().as_ref());
            (Pair::Ecdsa(pair), public)
        };
        let id = public.id();
        Ok(Self { pair, public, id })
    }

    /// Its id in metadata.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its public part.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8], random: &dyn SecureRandom) -> Result<Vec<u8>, SignError> {
        Ok(match &self.pair {
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Ecdsa(pair) => pair.sign(random, message).map_err(|_| SignError::Random)?.as_ref().to_vec(),
        })
    }
}

/// A private Ed25519 key up to its 32 bytes (RFC 8410, section 7).
const PKCS8_ED25519: &[u8] = &[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A public Ed25519 key up to its 32 bytes (RFC 8410, section 4).
const SPKI_ED25519: &[u8] = &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// A public key on P-256 up to its 65 bytes (RFC 5480, section 2).
const SPKI_P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3,
    0x42, 0,
];

const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const OID_P384: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];

/// The key itself within a SubjectPublicKeyInfo (RFC 5280, section 4.1) of this
/// scheme's kind.
fn subject_key(der: &[u8], scheme: Scheme) -> Option<Vec<u8>> {
    const SEQUENCE: u8 = 0x30;
    const BITS: u8 = 3;
    const OID: u8 = 6;
    let (info, rest) = element(der, SEQUENCE)?;
    let (algorithm, bits) = element(info, SEQUENCE)?;
    let (bits, after) = element(bits, BITS)?;
    let (kind, parameters) = element(algorithm, OID)?;
    let fits = match scheme {
        Scheme::Ed25519 => false,
        Scheme::EcdsaP256 => kind == OID_EC && element(parameters, OID)? == (OID_P256, &[][..]),
        Scheme::EcdsaP384 => kind == OID_EC && element(parameters, OID)? == (OID_P384, &[][..]),
        Scheme::RsaPss256 | Scheme::RsaPss384 | Scheme::RsaPss512 => kind == OID_RSA,
    };
    let (unused, key) = bits.split_first()?;
    (fits && rest.is_empty() && after.is_empty() && *unused == 0).then(|| key.to_vec())
}

/// The content of the first element, which has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (found == tag && rest.len() >= length).then(|| rest.split_at(length))
}

/// The bytes of the first block with this label.
fn pem(text: &str, label: &str) -> Option<Vec<u8>> {
    if text.len() > PEM_CHARS_MAX {
        return None;
    }
    let (_, body) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = body.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        // Base64 is ASCII.
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.bytes().map(|byte| (byte as char).to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;

    /// Made with OpenSSL 3 (`genpkey`, `pkey -pubout`); ids with securesystemslib 1.6 (`SSlibKey`).
    const KEYS: &str = include_str!("../../tests/data/trust/keys.json");

    #[test]
    fn keys_of_other_tools() {
        let keys: Vec<Value> = serde_json::from_str(KEYS).unwrap();
        let random = SystemRandom::new();
        for key in &keys {
            let text = |name: &str| key[name].as_str().unwrap_or_default();
            let public = PublicKey::read(key["public"].as_object().unwrap()).unwrap();
            assert_eq!(public.id(), text("id"), "{}", text("name"));
            assert!(
                public.verifies(text("message").as_bytes(), &unhex(text("signature")).unwrap()),
                "{}",
                text("name")
            );
            assert!(!public.verifies(b"another", &unhex(text("signature")).unwrap()), "{}", text("name"));
            let Some(private) = key["private"].as_str() else { continue };
            let pair = SigningKey::from_pem(private, &random).unwrap();
            assert_eq!(pair.public(), &public, "{}", text("name"));
            assert_eq!(PublicKey::from_pem(&public.to_pem()).unwrap(), public);
            let signature = pair.sign(b"this", &random).unwrap();
            assert!(public.verifies(b"this", &signature) && !public.verifies(b"that", &signature));
        }
        assert_eq!(keys.len(), 6);
    }

    #[test]
    fn our_own_keys() {
        let random = SystemRandom::new();
        let pem = SigningKey::generate(&random).unwrap();
        let key = SigningKey::from_pem(&pem, &random).unwrap();
        let again = PublicKey::read(key.public().value().as_object().unwrap()).unwrap();
        assert_eq!((&again, again.id().as_str()), (key.public(), key.id()));
        assert!(again.verifies(b"m", &key.sign(b"m", &random).unwrap()));
    }

    #[test]
    fn what_is_no_key() {
        for (kind, scheme, public) in [
            ("ed25519", "ed25519", ""),
            ("ed25519", "ed25519", "00"),
            ("ed25519", "ed25519", "zz"),
            ("ecdsa", "ecdsa-sha2-nistp256", "-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----"),
            ("ecdsa", "ecdsa-sha2-nistp256", "-----BEGIN PUBLIC KEY-----"),
            ("rsa", "rsassa-pss-sha256", "!"),
            ("other", "other", "1"),
        ] {
            let key = PublicKey::new(kind, scheme, public);
            assert!(key.material().is_none() && !key.verifies(b"", b""), "{kind} {public}");
        }
    }

    #[test]
    fn der_that_is_cut_short() {
        let der = [SPKI_P256, &[4; 65]].concat();
        assert!(subject_key(&der, Scheme::EcdsaP256).is_some());
        assert!(subject_key(&der, Scheme::EcdsaP384).is_none() && subject_key(&der, Scheme::RsaPss256).is_none());
        for end in 0..der.len() {
            assert!(subject_key(&der[..end], Scheme::EcdsaP256).is_none());
        }
    }
}
