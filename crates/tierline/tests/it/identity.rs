//! Identities over real handshakes on loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tierline_daemon::net::door::Rooms;
use tierline_identity::{
    Ca, Grant, Identity, IdentityError, KeyRequest, NODE_VALIDITY, Peer, PeerError, Revocations, SERVER_NAME, TlsError,
    fetch_ca, tls,
};
use tierline_proto::{Digest, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::harness::doors;

const DAY: Duration = Duration::from_secs(86_400);

struct TestAuthority {
    _folder: TempDir,
    ca: Ca,
}

impl TestAuthority {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let ca = Ca::open_or_create(folder.path(), SystemTime::now()).unwrap();
        Self { _folder: folder, ca }
    }

    /// An identity signed `age` ago.
    fn identity(&self, role: Role, name: &str, age: Duration) -> Identity {
        let id = Ca::new_node_id().unwrap();
        let grant = Grant { id: &id, role, name, validity: NODE_VALIDITY };
        Identity::issue(&self.ca, &grant, SystemTime::now() - age).unwrap()
    }

    fn live(&self, role: Role, name: &str) -> tls::LiveIdentity {
        tls::LiveIdentity::new(self.identity(role, name, Duration::ZERO)).unwrap()
    }
}

/// Serves handshakes; each accepted connection gets back one line that says who called.
async fn serve(identity: &tls::LiveIdentity) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let doors = doors();
    let mut callers = doors.listen(listener, tls::server_config(identity).unwrap(), |_| false);
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                member = callers.members.recv() => member,
                stranger = callers.strangers.recv() => stranger,
            };
            let Some(connection) = connection else { return };
            let mut stream = connection.unwrap();
            let line = match &stream.caller().peer {
                Some(peer) => format!("{} {:?}", peer.name, peer.role),
                None => "anonymous".to_owned(),
            };
            stream.write_all(line.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    address
}

/// What the server said, or why there was no connection.
async fn call(address: &str, config: Arc<ClientConfig>, name: &str) -> Result<String, TlsError> {
    let stream = TcpStream::connect(address).await.unwrap();
    let explain = |error| tls::explain(&error, name);
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(config).connect(server, stream).await.map_err(explain)?;
    let mut line = String::new();
    // TLS 1.3 clients learn that they were refused from the first read.
    stream.read_to_string(&mut line).await.map_err(explain)?;
    Ok(line)
}

#[tokio::test]
async fn a_node_of_the_site_is_known_by_its_certificate() {
    let authority = TestAuthority::new();
    let address = serve(&authority.live(Role::Cloud, "heaven")).await;
    let end = tls::client_config(&authority.live(Role::End, "camera-7")).unwrap();
    for name in [SERVER_NAME, "heaven", "cloud.tierline"] {
        assert_eq!(call(&address, end.clone(), name).await.unwrap(), "camera-7 End", "as {name}");
    }
    let wrong = call(&address, end, "edge.tierline").await.unwrap_err();
    assert!(matches!(wrong, TlsError::WrongServer { .. }), "{wrong}");
}

#[tokio::test]
async fn no_certificate_is_let_in_as_anonymous() {
    let authority = TestAuthority::new();
    let address = serve(&authority.live(Role::Cloud, "heaven")).await;
    let config = tls::join_config(authority.ca.certificate()).unwrap();
    assert_eq!(call(&address, config, SERVER_NAME).await.unwrap(), "anonymous");
}

#[tokio::test]
async fn certificates_of_another_site_fail_on_both_sides() {
    let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
    let address = serve(&ours.live(Role::Cloud, "heaven")).await;
    // They don't trust our server.
    let stranger = theirs.live(Role::End, "camera-7");
    let error = call(&address, tls::client_config(&stranger).unwrap(), SERVER_NAME).await.unwrap_err();
    assert!(matches!(error, TlsError::Foreign), "{error}");
    // Even if they do, our server refuses their certificate.
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates({
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ours.ca.certificate().clone()).unwrap();
            roots
        })
        .with_client_cert_resolver(Arc::new(stranger));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let error = call(&address, Arc::new(config), SERVER_NAME).await.unwrap_err();
    assert!(matches!(error, TlsError::OursRefused { .. }), "{error}");
}

#[tokio::test]
async fn expired_certificates_fail_on_both_sides() {
    let authority = TestAuthority::new();
    let old = |role, name| tls::LiveIdentity::new(authority.identity(role, name, NODE_VALIDITY + DAY)).unwrap();
    let fresh_server = serve(&authority.live(Role::Cloud, "heaven")).await;
    let error = call(&fresh_server, tls::client_config(&old(Role::End, "sleeper")).unwrap(), SERVER_NAME).await;
    assert!(matches!(error, Err(TlsError::OursExpired)), "{error:?}");
    let old_server = serve(&old(Role::Cloud, "heaven")).await;
    let error =
        call(&old_server, tls::client_config(&authority.live(Role::End, "camera-7")).unwrap(), SERVER_NAME).await;
    assert!(matches!(error, Err(TlsError::Expired)), "{error:?}");
}

#[tokio::test]
async fn a_clock_a_day_behind_is_no_obstacle() {
    let authority = TestAuthority::new();
    let peer = authority.identity(Role::End, "camera-7", Duration::ZERO).peer().clone();
    let behind = SystemTime::now() - DAY + Duration::from_secs(60);
    assert_eq!(peer.check(&Revocations::default(), behind), Ok(()));
    let way_behind = behind - DAY;
    assert!(matches!(peer.check(&Revocations::default(), way_behind), Err(PeerError::Expired { .. })));
}

#[tokio::test]
async fn an_end_may_not_serve() {
    let authority = TestAuthority::new();
    let address = serve(&authority.live(Role::End, "camera-7")).await;
    let config = tls::client_config(&authority.live(Role::End, "camera-8")).unwrap();
    let error = call(&address, config, "camera-7").await.unwrap_err();
    assert!(matches!(error, TlsError::WrongServer { .. }), "{error}");
}

#[tokio::test]
async fn renewal_takes_effect_without_a_restart() {
    let authority = TestAuthority::new();
    let live = authority.live(Role::End, "camera-7");
    let config = tls::client_config(&live).unwrap();
    let address = serve(&authority.live(Role::Cloud, "heaven")).await;
    assert_eq!(call(&address, config.clone(), SERVER_NAME).await.unwrap(), "camera-7 End");
    live.replace(authority.identity(Role::End, "camera-9", Duration::ZERO)).unwrap();
    assert_eq!(call(&address, config, SERVER_NAME).await.unwrap(), "camera-9 End");
}

#[tokio::test]
async fn a_joining_device_learns_the_authority_from_the_fingerprint() {
    let authority = TestAuthority::new();
    for (role, name) in [(Role::Cloud, "heaven"), (Role::Edge, "gateway")] {
        let address = serve(&authority.live(role, name)).await;
        let ca = fetch_ca(&address, authority.ca.fingerprint()).await.unwrap();
        assert_eq!(&ca, authority.ca.certificate());
    }
}

#[tokio::test]
async fn a_server_of_another_authority_never_gets_the_secret() {
    let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
    let address = serve(&theirs.live(Role::Cloud, "heaven")).await;
    let error = fetch_ca(&address, ours.ca.fingerprint()).await.unwrap_err();
    let TlsError::WrongFingerprint { expected, presented } = &error else { panic!("{error}") };
    assert_eq!((expected, presented), (&ours.ca.fingerprint().to_string(), &theirs.ca.fingerprint().to_string()));
}

#[tokio::test]
async fn a_copied_authority_certificate_convinces_nobody() {
    let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
    // Their server sends its own leaf, followed by our authority's certificate.
    let theirs = theirs.identity(Role::Cloud, "heaven", Duration::ZERO);
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(theirs.key_pem().as_bytes()).unwrap();
    let chain = vec![theirs.chain()[0].clone(), ours.ca.certificate().clone()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let _callers = doors().listen(listener, Arc::new(config), |_| false);
    let error = fetch_ca(&address, ours.ca.fingerprint()).await.unwrap_err();
    assert!(matches!(error, TlsError::Foreign), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    let error = fetch_ca(&address, Digest([0; 32])).await.unwrap_err();
    assert!(matches!(error, TlsError::NotTls), "{error}");
    let closed = fetch_ca("127.0.0.1:1", Digest([0; 32])).await.unwrap_err();
    assert!(matches!(closed, TlsError::Network { .. }), "{closed}");
}

#[tokio::test]
async fn silent_callers_delay_nobody() {
    let authority = TestAuthority::new();
    let address = serve(&authority.live(Role::Cloud, "heaven")).await;
    let mut silent = Vec::new();
    for _ in 1..Rooms::within(1_024).arrivals.each {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    let config = tls::client_config(&authority.live(Role::End, "camera-7")).unwrap();
    assert_eq!(call(&address, config, SERVER_NAME).await.unwrap(), "camera-7 End");
}

#[test]
fn revocation_is_by_node_and_by_certificate() {
    let authority = TestAuthority::new();
    let now = SystemTime::now();
    let peer = |name| authority.identity(Role::End, name, Duration::ZERO).peer().clone();
    let (a, b, c) = (peer("a"), peer("b"), peer("c"));
    let mut padded = vec![0];
    padded.extend(&b.serial);
    let list = Revocations::new(1, [a.id.clone(), String::new()], [padded, Vec::new()]);
    assert_eq!(a.check(&list, now), Err(PeerError::Revoked { name: "a".to_owned() }));
    assert_eq!(b.check(&list, now), Err(PeerError::Revoked { name: "b".to_owned() }));
    assert_eq!(c.check(&list, now), Ok(()));
}

#[test]
fn the_authority_is_made_once_and_kept_private() {
    let folder = TempDir::new().unwrap();
    let make = || Ca::open_or_create(folder.path(), SystemTime::now()).unwrap().fingerprint();
    let all: Vec<Digest> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|one| *one == all[0]), "four starts, one authority");
    assert_eq!(mode(&Ca::key_path(folder.path())), 0o600);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "nothing temporary stays: {files:?}");

    set_mode(&Ca::key_path(folder.path()), 0o640);
    assert!(matches!(Ca::open(folder.path()), Err(IdentityError::KeyExposed { mode: 0o640, .. })));
    std::fs::write(Ca::key_path(folder.path()), "no key").unwrap();
    set_mode(&Ca::key_path(folder.path()), 0o600);
    assert!(matches!(Ca::open(folder.path()), Err(IdentityError::Damaged { .. })));
}

#[test]
fn an_identity_survives_the_disk() {
    let (authority, folder) = (TestAuthority::new(), TempDir::new().unwrap());
    let now = SystemTime::now();
    assert!(matches!(Identity::load(folder.path(), now), Err(IdentityError::NotJoined { .. })));

    let request = KeyRequest::resume_or_generate(folder.path()).unwrap();
    let first = Ca::request_key(&request.csr_der().unwrap()).unwrap();
    drop(request);
    // The answer was lost; the device tries again with the same key.
    let request = KeyRequest::resume_or_generate(folder.path()).unwrap();
    let csr = request.csr_der().unwrap();
    assert_eq!(Ca::request_key(&csr).unwrap(), first);

    let id = Ca::new_node_id().unwrap();
    let grant = Grant { id: &id, role: Role::Edge, name: "gateway", validity: NODE_VALIDITY };
    let issued = authority.ca.sign(&csr, &grant, now).unwrap();
    let identity = request.accept(issued.chain, authority.ca.certificate().clone(), now).unwrap();
    identity.save(folder.path()).unwrap();
    let loaded = Identity::load(folder.path(), now).unwrap();
    assert_eq!(loaded.peer(), &issued.peer);
    assert_eq!(loaded.peer().id, id);
    assert_eq!(mode(&folder.path().join("node.pem")), 0o600);
    assert_ne!(
        Ca::request_key(&KeyRequest::resume_or_generate(folder.path()).unwrap().csr_der().unwrap()).unwrap(),
        first,
        "a finished join's key is not used again"
    );

    // An expired identity still loads, so that the node can say what is wrong.
    let later = now + NODE_VALIDITY + DAY;
    let loaded = Identity::load(folder.path(), later).unwrap();
    assert!(matches!(loaded.peer().check(&Revocations::default(), later), Err(PeerError::Expired { .. })));
    assert!(!loaded.peer().renewal_due(now) && loaded.peer().renewal_due(now + NODE_VALIDITY * 3 / 4));

    // Another site's authority beside it is noticed.
    std::fs::write(folder.path().join("ca.pem"), TestAuthority::new().ca.certificate_pem()).unwrap();
    assert!(matches!(Identity::load(folder.path(), now), Err(IdentityError::Damaged { .. })));
}

#[test]
fn a_cloud_keeps_its_id_when_it_renews() {
    let (authority, folder) = (TestAuthority::new(), TempDir::new().unwrap());
    let now = SystemTime::now();
    let at = |when| Identity::load_or_issue(&authority.ca, folder.path(), "heaven", when).unwrap().peer().clone();
    let first = at(now);
    assert_eq!(at(now + DAY), first);
    let renewed = at(now + NODE_VALIDITY);
    assert_eq!((renewed.id == first.id, renewed.serial == first.serial), (true, false));
}

#[test]
fn answers_that_do_not_fit_are_refused() {
    let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
    let now = SystemTime::now();
    let other = ours.identity(Role::End, "other", Duration::ZERO);
    let accept = |chain, ca: &Ca| {
        let request = KeyRequest::generate().unwrap();
        request.accept(chain, ca.certificate().clone(), now).map(|_| ()).unwrap_err()
    };
    let for_another_key = accept(other.chain().to_vec(), &ours.ca);
    assert!(for_another_key.to_string().contains("another key"), "{for_another_key}");
    assert!(matches!(accept(Vec::new(), &ours.ca), IdentityError::BadReply { .. }));

    let request = KeyRequest::generate().unwrap();
    let id = Ca::new_node_id().unwrap();
    let grant = Grant { id: &id, role: Role::End, name: "camera", validity: NODE_VALIDITY };
    let issued = ours.ca.sign(&request.csr_der().unwrap(), &grant, now).unwrap();
    let foreign = request.accept(issued.chain, theirs.ca.certificate().clone(), now).unwrap_err();
    assert!(foreign.to_string().contains("another site"), "{foreign}");
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let authority = TestAuthority::new();
    let now = SystemTime::now();
    let csr = KeyRequest::generate().unwrap().csr_der().unwrap();
    let id = Ca::new_node_id().unwrap();
    let good = Grant { id: &id, role: Role::End, name: "camera", validity: NODE_VALIDITY };
    assert!(authority.ca.sign(&csr, &good, now).is_ok());
    // The signature proves that the sender holds the key.
    let mut forged = csr.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [&forged[..], &csr[..csr.len() - 1], b"", &[0x30; 70_000]] {
        assert!(matches!(authority.ca.sign(bad, &good, now), Err(IdentityError::BadRequest { .. })));
    }
    for name in ["", "Camera", "a.b", "-a", "a-", "a b", "a&role=cloud", &"a".repeat(64)] {
        let grant = Grant { name, ..good.clone() };
        assert!(matches!(authority.ca.sign(&csr, &grant, now), Err(IdentityError::BadName { .. })), "{name}");
    }
    for id in ["", "x", "../../../../../etc/passwd?role=cloud"] {
        assert!(matches!(
            authority.ca.sign(&csr, &Grant { id, ..good.clone() }, now),
            Err(IdentityError::BadRequest { .. })
        ));
    }
    let nobody = Grant { role: Role::Unspecified, ..good.clone() };
    assert!(matches!(authority.ca.sign(&csr, &nobody, now), Err(IdentityError::BadRequest { .. })));
    // Mutated requests never panic.
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2_000 {
        let mut mutated = csr.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..mutated.len());
            mutated[at] = random.u8(..);
        }
        let _ = authority.ca.sign(&mutated, &good, now);
        let _ = Peer::from_certificate(&mutated);
    }
}

#[test]
fn certificates_end_with_their_authority() {
    let authority = TestAuthority::new();
    let late = SystemTime::now() + tierline_identity::CA_VALIDITY - DAY;
    let csr = KeyRequest::generate().unwrap().csr_der().unwrap();
    let id = Ca::new_node_id().unwrap();
    let grant = Grant { id: &id, role: Role::End, name: "camera", validity: NODE_VALIDITY };
    let peer = authority.ca.sign(&csr, &grant, late).unwrap().peer;
    assert!(peer.not_after <= late + DAY);
    assert!(matches!(authority.ca.sign(&csr, &grant, late + 2 * DAY), Err(IdentityError::BadRequest { .. })));
}

#[test]
fn certificates_of_others_name_no_node() {
    for names in [vec![], vec!["tierline".to_owned()], vec!["tierline://node/x?role=cloud".to_owned()]] {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        assert!(matches!(Peer::from_certificate(certificate.der()), Err(PeerError::NotANode(_))));
    }
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
