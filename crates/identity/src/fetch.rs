//! How a device with nothing but a token gets to know the authority.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tierline_proto::Digest;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{SERVER_NAME, TlsError, fingerprint, tls};

/// The authority's certificate (DER) from the server at `address`
/// (`host:port`), if its fingerprint is the one expected and the server
/// proves to hold a valid certificate by it. Nothing is sent but the
/// handshake, so that a token's secret reaches only its own site.
///
/// # Errors
/// [`TlsError`]; [`TlsError::WrongFingerprint`] where another authority answers.
pub async fn fetch_ca(address: &str, expected: Digest) -> Result<CertificateDer<'static>, TlsError> {
    let limit = tls::HANDSHAKE_TIME_MAX;
    let timeout = || TlsError::Timeout { address: address.to_owned(), seconds: limit.as_secs() };
    tokio::time::timeout(limit, handshake(address, expected)).await.map_err(|_| timeout())?
}

async fn handshake(address: &str, expected: Digest) -> Result<CertificateDer<'static>, TlsError> {
    let other = |error: rustls::Error| TlsError::Other(error.to_string());
    let verifier = Arc::new(ByFingerprint { expected, seen: Mutex::default() });
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(SERVER_NAME).map_err(|error| TlsError::Other(error.to_string()))?;
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|source| TlsError::Network { address: address.to_owned(), source })?;
    let finished = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let seen = std::mem::take(&mut *verifier.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    match (finished, seen) {
        (_, Seen::Wrong { presented }) => Err(TlsError::WrongFingerprint { expected: expected.to_string(), presented }),
        (Ok(_), Seen::Ca(ca)) => Ok(ca),
        (Err(error), _) => Err(tls::explain(&error, SERVER_NAME)),
        (Ok(_), Seen::Nothing) => Err(TlsError::Other("the server sent no certificate".to_owned())),
    }
}

/// Accepts exactly a chain that ends in the certificate of that fingerprint.
#[derive(Debug)]
struct ByFingerprint {
    expected: Digest,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
enum Seen {
    #[default]
    Nothing,
    Wrong {
        presented: String,
    },
    Ca(CertificateDer<'static>),
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let note = |seen| *self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = seen;
        let Some(ca) = rest.iter().find(|certificate| fingerprint(certificate) == self.expected) else {
            let presented = rest.last().map(|last| fingerprint(last).to_string());
            note(Seen::Wrong { presented: presented.unwrap_or_else(|| "none".to_owned()) });
            return Err(CertificateError::ApplicationVerificationFailure.into());
        };
        // Anyone may send the authority's certificate; only its nodes have a leaf by it.
        tls::verify_server(leaf, &[], ca, name, now)?;
        note(Seen::Ca(ca.clone().into_owned()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
