//! TLS from identities: configurations for servers and clients, and errors in
//! plain words.
//!
//! TLS 1.3 only, on both sides. A server takes callers without a certificate, because
//! joining needs that; the policy decides what they may call. A wrong
//! certificate ends the handshake.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Identity, IdentityError, Peer, TlsError};

/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Plain HTTP's protocol name.
pub const ALPN_HTTP: &[u8] = b"http/1.1";

/// gRPC's protocol name.
pub const ALPN: &[u8] = b"h2";

/// The identity in use, which renewals replace without ending connections.
/// Clones share it.
#[derive(Clone)]
pub struct LiveIdentity(Arc<RwLock<Current>>);

struct Current {
    identity: Arc<Identity>,
    certified: Arc<CertifiedKey>,
}

impl LiveIdentity {
    /// Starts with this identity.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] if the key can't sign.
    pub fn new(identity: Identity) -> Result<Self, IdentityError> {
        Ok(Self(Arc::new(RwLock::new(Current::of(identity)?))))
    }

    /// Handshakes from now on use this identity.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] if the key can't sign; the old one stays.
    pub fn replace(&self, identity: Identity) -> Result<(), IdentityError> {
        let current = Current::of(identity)?;
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = current;
        Ok(())
    }

    /// The identity in use.
    #[must_use]
    pub fn get(&self) -> Arc<Identity> {
        self.read(|current| current.identity.clone())
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        self.read(|current| current.certified.clone())
    }

    fn read<T>(&self, take: impl FnOnce(&Current) -> T) -> T {
        // A writer only ever stores a whole value, so a poisoned lock is harmless.
        take(&self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Current {
    fn of(identity: Identity) -> Result<Self, IdentityError> {
        Ok(Self { certified: Arc::new(identity.certified_key()?), identity: Arc::new(identity) })
    }
}

impl std::fmt::Debug for LiveIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LiveIdentity({:?})", self.get())
    }
}

impl ResolvesServerCert for LiveIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for LiveIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// A certificate of another authority than the site's, and its key, from files:
/// one that applications trust already. Files that are replaced are read again.
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    read: RwLock<FromFiles>,
}

/// Files are looked at anew behind so long.
const FILES_LOOKED_AT: Duration = Duration::from_secs(10);

struct FromFiles {
    certified: Arc<CertifiedKey>,
    written: [Option<SystemTime>; 2],
    looked: Instant,
}

impl CertificateFiles {
    /// Reads both files.
    ///
    /// # Errors
    /// Files that can't be read or hold something else, a key that others may
    /// read or that belongs to another certificate.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let written = [written(certificate), written(key)];
        let certified = Arc::new(certified_by(certificate, key)?);
        let read = RwLock::new(FromFiles { certified, written, looked: Instant::now() });
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), read })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let read = self.read.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if read.looked.elapsed() < FILES_LOOKED_AT {
            return Arc::clone(&read.certified);
        }
        drop(read);
        let mut read = self.read.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        read.looked = Instant::now();
        let now = [written(&self.certificate), written(&self.key)];
        if now != read.written {
            match certified_by(&self.certificate, &self.key) {
                Ok(certified) => (read.certified, read.written) = (Arc::new(certified), now),
                // Half of it may be written yet.
                Err(error) => tracing::warn!(%error, "the certificate that applications are shown stays as it was"),
            }
        }
        Arc::clone(&read.certified)
    }
}

impl std::fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CertificateFiles({})", self.certificate.display())
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn written(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|meta| meta.modified()).ok()
}

fn certified_by(certificate: &Path, key: &Path) -> Result<CertifiedKey, IdentityError> {
    let chain = std::fs::read(certificate).map_err(IdentityError::io(certificate))?;
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |reason| IdentityError::Unusable { path, reason }
    };
    let chain = super::pem::certificates(&chain).map_err(unusable(certificate))?;
    if chain.is_empty() {
        return Err(unusable(certificate)("it holds no certificate".to_owned()));
    }
    let text = super::files::read_private(key)?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|e| unusable(key)(e.to_string()))?;
    let signing = rustls::crypto::ring::sign::any_supported_type(&private).map_err(|e| unusable(key)(e.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| unusable(key)(format!("it is not the key of {}", certificate.display())))?;
    Ok(certified)
}

/// For a node that serves others: callers with a certificate of our
/// authority, or none at all.
///
/// # Errors
/// [`IdentityError::Crypto`] if the authority's certificate is unusable.
pub fn server_config(live: &LiveIdentity) -> Result<Arc<ServerConfig>, IdentityError> {
    serving_config(live, Arc::new(live.clone()), ALPN)
}

/// For a node that serves applications, which call with a certificate of our
/// authority, or none at all, and speak the protocol `alpn`. `shown` is what the
/// node shows: its own certificate, or one that applications trust already.
///
/// # Errors
/// [`IdentityError::Crypto`] if the authority's certificate is unusable.
pub fn serving_config(
    live: &LiveIdentity,
    shown: Arc<dyn ResolvesServerCert>,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let clients = client_verifier(live.get().ca())?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(crypto)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would carry an old verdict on the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For a node that calls another, with its certificate.
///
/// # Errors
/// [`IdentityError::Crypto`] if the authority's certificate is unusable.
pub fn client_config(live: &LiveIdentity) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = client_builder(live.get().ca())?.with_client_cert_resolver(Arc::new(live.clone()));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// For a device that joins: it has no certificate, but knows the authority
/// from [`super::fetch_ca`].
///
/// # Errors
/// [`IdentityError::Crypto`] if the authority's certificate is unusable.
pub fn join_config(ca: &CertificateDer<'_>) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = client_builder(ca)?.with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

type WantsClientCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client_builder(ca: &CertificateDer<'_>) -> Result<WantsClientCert, IdentityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(crypto)?;
    Ok(builder.with_root_certificates(roots(ca)?))
}

/// Who is at the other end of an accepted connection; none without a certificate.
///
/// # Errors
/// [`super::PeerError::NotANode`] for a certificate that names no node.
pub fn caller(stream: &TlsStream<TcpStream>) -> Result<Option<Peer>, super::PeerError> {
    let certificates = stream.get_ref().1.peer_certificates();
    certificates.and_then(<[_]>::first).map(|leaf| Peer::from_certificate(leaf)).transpose()
}

/// Says what a failed handshake, read or write means. `to` is the address or
/// name that was called.
#[must_use]
pub fn explain(error: &io::Error, to: &str) -> TlsError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(error) => explain_rustls(error, to),
        None => TlsError::Network { address: to.to_owned(), source: io::Error::new(error.kind(), error.to_string()) },
    }
}

/// As [`explain`], searching an error's sources: gRPC wraps TLS several times.
#[must_use]
pub fn explain_source(error: &(dyn std::error::Error + 'static), to: &str) -> Option<TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(explain_rustls(tls, to));
        }
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
        {
            return Some(explain(io, to));
        }
        next = error.source();
    }
    None
}

fn explain_rustls(error: &rustls::Error, to: &str) -> TlsError {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            C::UnknownIssuer | C::BadSignature => TlsError::Foreign,
            C::Expired | C::ExpiredContext { .. } => TlsError::Expired,
            C::NotValidYet | C::NotValidYetContext { .. } => TlsError::NotYetValid,
            C::NotValidForName
            | C::NotValidForNameContext { .. }
            | C::InvalidPurpose
            | C::InvalidPurposeContext { .. } => TlsError::WrongServer { expected: to.to_owned() },
            other => TlsError::Other(other.to_string()),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => TlsError::OursExpired,
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => TlsError::OursMissing,
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => TlsError::OursRefused { alert: format!("{alert:?}") },
            other => TlsError::Other(format!("the other side ended the handshake: {other:?}")),
        },
        rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => TlsError::NotTls,
        other => TlsError::Other(other.to_string()),
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn server_verifier(ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, IdentityError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build().map_err(crypto)
}

fn client_verifier(ca: &CertificateDer<'_>) -> Result<Arc<dyn ClientCertVerifier>, IdentityError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
    builder.allow_unauthenticated().build().map_err(crypto)
}

/// Whether `chain` was signed by `ca` and may be used to call at `at`.
pub(super) fn verify_ours(chain: &[CertificateDer<'_>], ca: &CertificateDer<'_>, at: UnixTime) -> Result<(), TlsError> {
    let Some((leaf, rest)) = chain.split_first() else { return Err(TlsError::OursMissing) };
    let verifier = client_verifier(ca).map_err(|error| TlsError::Other(error.to_string()))?;
    verifier.verify_client_cert(leaf, rest, at).map(|_| ()).map_err(|error| explain_rustls(&error, ""))
}

const SIGNATURE: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

pub(super) fn sign(key: &CertifiedKey, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let signer = key.key.choose_scheme(&[SIGNATURE]).ok_or_else(|| crypto("the key can't sign with ECDSA P-256"))?;
    signer.sign(message).map_err(crypto)
}

/// Whether `signature` over `message` is of the key in a certificate (DER).
pub(super) fn is_signed_by(leaf: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    let key = parsed.public_key().subject_public_key.data.as_ref();
    let known = provider().signature_verification_algorithms.mapping;
    let algorithms = known.iter().find(|(scheme, _)| *scheme == SIGNATURE).map_or(&[][..], |(_, all)| all);
    algorithms.iter().any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
}

/// Whether `chain` was signed by `ca` and may serve as `name` at `at`.
pub(super) fn verify_server(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    ca: &CertificateDer<'_>,
    name: &ServerName<'_>,
    at: UnixTime,
) -> Result<(), rustls::Error> {
    let verifier = server_verifier(ca).map_err(|error| rustls::Error::General(error.to_string()))?;
    verifier.verify_server_cert(leaf, rest, name, &[], at).map(|_| ())
}

fn roots(ca: &CertificateDer<'_>) -> Result<RootCertStore, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).map_err(crypto)?;
    Ok(roots)
}

fn crypto(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Crypto(error.to_string())
}
