//! The certificate authority of a site; only its cloud node holds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tierline_proto::limits::CSR_BYTES_MAX;
use tierline_proto::{Digest, Role};
use tierline_store::disk::{Existing, write_atomically};

use super::{
    CA_VALIDITY, CLOCK_SKEW, IdentityError, Peer, SERVER_NAME, check_name, files, fingerprint, hex, pem, random,
};

/// Key and certificate in one file, so that neither can be there without the other.
const KEY_FILE: &str = "ca.key";
/// A copy of the certificate for people; the key file is what counts.
const CERTIFICATE_FILE: &str = "ca.pem";

const YEAR_9000_S: u64 = 221_845_392_000;

/// The authority: ECDSA P-256, ten years, self-signed.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
}

/// What the authority vouches for.
#[derive(Debug, Clone)]
pub struct Grant<'a> {
    /// The node's identity: 32 hexadecimal digits.
    pub id: &'a str,
    /// What it may do. Edges and clouds may serve, all may call.
    pub role: Role,
    /// The node's name, a DNS label.
    pub name: &'a str,
    /// Life of the certificate; ends with the authority's at the latest.
    pub validity: Duration,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Leaf, then nothing: the authority signs directly.
    pub chain: Vec<CertificateDer<'static>>,
    /// What it says.
    pub peer: Peer,
}

impl Ca {
    /// The authority kept in `folder`, made there if there is none. Two
    /// processes that start at once end up with the same one.
    ///
    /// # Errors
    /// Files that can't be read or written, are damaged, or are readable by others.
    pub fn open_or_create(folder: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let path = folder.join(KEY_FILE);
        if !path.exists() {
            let text = new_authority(now)?;
            match write_atomically(&path, text.as_bytes(), 0o600, Existing::Keep) {
                // Another process was first: its authority is the one.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                written => written.map_err(IdentityError::io(&path))?,
            }
        }
        let ca = Self::open(folder)?;
        let copy = folder.join(CERTIFICATE_FILE);
        if fs::read(&copy).ok().as_deref() != Some(ca.certificate_pem().as_bytes()) {
            write_atomically(&copy, ca.certificate_pem().as_bytes(), 0o600, Existing::Replace)
                .map_err(IdentityError::io(&copy))?;
        }
        Ok(ca)
    }

    /// The authority kept in `folder`.
    ///
    /// # Errors
    /// As [`Ca::open_or_create`], and where there is none.
    pub fn open(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(KEY_FILE);
        let text = files::read_private(&path)?;
        Self::parse(&text).map_err(|reason| IdentityError::Damaged { path, reason })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let key = pem::key(text)?;
        let key =
            KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        let certificate = pem::certificates(text)?.pop().ok_or("it holds no certificate")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| error.to_string())?;
        if parsed.public_key().subject_public_key.data.as_ref() != rcgen::PublicKeyData::der_bytes(&key) {
            return Err("key and certificate don't belong together".to_owned());
        }
        let not_after = parsed.validity().not_after.timestamp();
        let not_after = UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| error.to_string())?;
        Ok(Self { issuer, certificate, not_after })
    }

    /// Signs a request (PKCS#10, DER) after checking that the sender holds
    /// the key. Only the key is taken from the request; all names are the
    /// grant's.
    ///
    /// # Errors
    /// [`IdentityError::BadRequest`], [`IdentityError::BadName`].
    pub fn sign(&self, csr_der: &[u8], grant: &Grant<'_>, now: SystemTime) -> Result<Issued, IdentityError> {
        let refused = |reason: String| IdentityError::BadRequest { reason };
        check_name(grant.name)?;
        if !super::peer::is_node_id(grant.id) {
            return Err(refused(format!("`{}` is no node id", grant.id)));
        }
        if grant.role == Role::Unspecified {
            return Err(refused("it asks for no role".to_owned()));
        }
        if now > self.not_after {
            return Err(refused("the authority of this site has expired".to_owned()));
        }
        let request = parse_request(csr_der)?;
        let params = leaf(grant, now, self.not_after)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        let peer = Peer::from_certificate(certificate.der()).map_err(|error| refused(error.to_string()))?;
        Ok(Issued { chain: vec![certificate.der().clone()], peer })
    }

    /// Who asks for a renewal, once it is proved: a certificate by this
    /// authority, in its time, whose key signed the request.
    ///
    /// # Errors
    /// [`IdentityError::BadRequest`].
    pub fn renewing(&self, request: &tierline_proto::v1::RenewRequest, now: SystemTime) -> Result<Peer, IdentityError> {
        let refused = |reason: String| IdentityError::BadRequest { reason };
        let chain: Vec<CertificateDer<'_>> =
            request.certificate_chain.iter().map(|c| CertificateDer::from(c.as_ref())).collect();
        let leaf = chain.first().ok_or_else(|| refused("it comes without a certificate".to_owned()))?;
        let at = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        super::tls::verify_ours(&chain, &self.certificate, rustls::pki_types::UnixTime::since_unix_epoch(at))
            .map_err(|e| refused(e.to_string()))?;
        let message = files::renewal_message(&request.csr_der);
        if !super::tls::is_signed_by(leaf, &message, &request.signature) {
            return Err(refused("it isn't signed with the certificate's key".to_owned()));
        }
        Peer::from_certificate(leaf).map_err(|e| refused(e.to_string()))
    }

    /// The public half of the key in a request, digested: names a device
    /// across retries of the same join.
    ///
    /// # Errors
    /// [`IdentityError::BadRequest`].
    pub fn request_key(csr_der: &[u8]) -> Result<[u8; 32], IdentityError> {
        let request = parse_request(csr_der)?;
        Ok(*blake3::hash(rcgen::PublicKeyData::der_bytes(&request.public_key)).as_bytes())
    }

    /// A new node id: 128 random bits.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn new_node_id() -> Result<String, IdentityError> {
        Ok(hex(&random::<16>()?))
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem::certificate(&self.certificate)
    }

    /// What join tokens carry.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        fingerprint(&self.certificate)
    }

    pub(super) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// Where the key of an authority in `folder` lies.
    #[must_use]
    pub fn key_path(folder: &Path) -> PathBuf {
        folder.join(KEY_FILE)
    }
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ca({})", self.fingerprint().short())
    }
}

fn new_authority(now: SystemTime) -> Result<String, IdentityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    let tag = hex(&random::<4>()?);
    params.distinguished_name = common_name(&format!("Tierline site {tag}"));
    params.serial_number = Some(serial()?);
    set_life(&mut params, now - CLOCK_SKEW, now + CA_VALIDITY);
    // Signs nodes only: no authority below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(pem::private_key(key.serialized_der()) + &pem::certificate(certificate.der()))
}

fn leaf(grant: &Grant<'_>, now: SystemTime, ca_not_after: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(grant.name);
    params.serial_number = Some(serial()?);
    set_life(&mut params, now - CLOCK_SKEW, (now + grant.validity).min(ca_not_after));
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(Peer::uri(grant.id, grant.role, grant.name).try_into()?)];
    // Ends, operators and applications only call: their certificates must not be good for serving.
    if matches!(grant.role, Role::Edge | Role::Cloud) {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        for name in [SERVER_NAME, &super::server_name(grant.role), grant.name] {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
    }
    Ok(params)
}

fn parse_request(csr_der: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    if csr_der.len() > CSR_BYTES_MAX {
        return Err(IdentityError::BadRequest { reason: format!("it is longer than {CSR_BYTES_MAX} bytes") });
    }
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
        .map_err(|error| IdentityError::BadRequest { reason: error.to_string() })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn serial() -> Result<SerialNumber, IdentityError> {
    let mut bytes = random::<16>()?;
    // Positive and of constant length in DER.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets the certificate's life, in whole seconds.
fn set_life(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let date = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // Later dates don't fit the certificate; such clocks are wrong anyway.
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.min(YEAR_9000_S))
    };
    (params.not_before, params.not_after) = (date(from), date(to));
}
