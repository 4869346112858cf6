//! Applications with identities, against real nodes: who gets in, to which
//! models, how often, and for how long.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tierline_daemon::net::transport;
use tierline_proto::oip::messages::grpc_inference_service_client::GrpcInferenceServiceClient;
use tierline_proto::oip::messages::model_infer_request::InferInputTensor;
use tierline_proto::oip::messages::{
    ModelConfigRequest, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ModelStatisticsRequest,
    RepositoryIndexRequest, ServerLiveRequest, ServerMetadataRequest,
};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::{Node, Site, binary, tierline, until};
use crate::serve::{INFER, Served, ones};

/// A connection to a door for applications.
pub struct Http(BufReader<Box<dyn Both>>);

pub trait Both: Read + Write {}
impl<T: Read + Write> Both for T {}

/// An answer: status, head in small letters, body.
pub struct Answer {
    pub status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
    }
}

impl Http {
    fn plain(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        Self(BufReader::new(Box::new(stream)))
    }

    pub fn tls(address: &str, config: &Arc<ClientConfig>) -> Self {
        Self::secured(TcpStream::connect(address).expect("it listens"), config)
    }

    fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)?;
        self.0.get_mut().flush()
    }

    fn answer(&mut self) -> std::io::Result<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().expect("a number"))];
        self.0.read_exact(&mut body)?;
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Ok(Answer { status, head, body })
    }

    /// From another address of this machine.
    fn tls_from(from: &str, address: &str, config: &Arc<ClientConfig>) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let of = |text: &str| text.parse::<std::net::SocketAddr>().expect("an address").into();
        socket.bind(&of(&format!("{from}:0"))).expect("an address of this machine");
        socket.connect(&of(address)).expect("it listens");
        Self::secured(socket.into(), config)
    }

    fn secured(stream: TcpStream, config: &Arc<ClientConfig>) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        let name = ServerName::try_from("tierline").expect("a name");
        let connection = ClientConnection::new(Arc::clone(config), name).expect("a connection");
        Self(BufReader::new(Box::new(StreamOwned::new(connection, stream))))
    }

    /// A request with these further headers.
    fn ask(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: tierline\r\nContent-Length: {length}\r\n{headers}\r\n");
        self.send((head + body).as_bytes()).expect("it reads");
        self.answer().expect("it answers")
    }

    pub fn get(&mut self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, &bearer(token), "")
    }
}

fn bearer(token: &str) -> String {
    if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") }
}

fn roots(ca: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("an authority");
    roots
}

pub fn config(ca: &Path, client: Option<&Path>, alpn: &[u8]) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots(ca));
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(folder) => {
            let chain = CertificateDer::from_pem_file(folder.join("certificate.pem")).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).expect("a key");
            builder.with_client_auth_cert(vec![chain], key).expect("they belong together")
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// A site whose edge serves applications over TLS and asks everybody who they
/// are; it knows two models.
struct Guarded {
    site: Site,
    edge: Node,
    ca: PathBuf,
    http: String,
    grpc: String,
    request: Value,
}

const SERVE: &str = "\n[serve]\nhttp = \"127.0.0.1:0\"\ngrpc = \"127.0.0.1:0\"\ntls = \"own\"\nrequire = \"all\"\n";

/// Joins a node, and lets its file say more.
fn joined(site: &Site, role: &str, name: &str, more: &str) -> PathBuf {
    let data = site.join(role, name, &site.cloud.url);
    let file = data.join("node.toml");
    let said = fs::read_to_string(&file).expect("a file");
    fs::write(&file, said + more).expect("it is written");
    data
}

impl Guarded {
    fn start() -> Self {
        let site = Site::new();
        site.add_model();
        let file = site.folder.path().join("digits.onnx");
        let added = site.cloud.ask(&["model", "add", file.to_str().expect("UTF-8"), "--name", "secret"]);
        assert_eq!(added.code, 0, "{added:?}");
        let edge = Node::start(&joined(&site, "edge", "edge-1", SERVE), &["--listen", "127.0.0.1:0"]);
        let ca = site.folder.path().join("ca.pem");
        fs::copy(site.cloud.data.join("ca/ca.pem"), &ca).expect("the authority's certificate");
        let http = edge.http.strip_prefix("https://").expect("TLS").to_owned();
        let grpc = edge.grpc.clone();
        let input = tierline_zoo::lenet(&tierline_zoo::Options::default()).inputs()[0].clone();
        let shape: Vec<u64> = input.shape.iter().flatten().map(|d| d.known().unwrap_or(1)).collect();
        let data = vec![0.5; shape.iter().product::<u64>() as usize];
        let request = json!({ "inputs": [{ "name": input.name, "shape": shape, "datatype": "FP32", "data": data }] });
        Self { site, edge, ca, http, grpc, request }
    }

    /// Makes an application, known on the edge from now on.
    fn app(&self, name: &str, args: &[&str]) -> String {
        let made = self.site.cloud.ask(&[&["app", "create", name, "--json"], args].concat()).json();
        self.until_known(name, true);
        made["token"].as_str().unwrap_or_default().to_owned()
    }

    fn until_known(&self, name: &str, known: bool) {
        until("the edge knows", || {
            let list = self.edge.ask(&["app", "ls", "--json"]).json();
            let is = list["applications"].as_array()?.iter().any(|app| app["name"] == name);
            (is == known).then_some(())
        });
    }

    fn http(&self) -> Http {
        Http::tls(&self.http, &config(&self.ca, None, b"http/1.1"))
    }

    /// Until the edge has the model.
    fn until_ready(&self, token: &str, model: &str) {
        until("the edge has the model", || {
            (self.http().get(&format!("/v2/models/{model}/ready"), token).status == 200).then_some(())
        });
    }

    fn infer(&self, http: &mut Http, model: &str, token: &str) -> Answer {
        http.ask("POST", &format!("/v2/models/{model}/infer"), &bearer(token), &self.request.to_string())
    }

    fn channel(&self, client: Option<&Path>) -> Channel {
        let url = format!("https://{}", self.grpc);
        transport::endpoint(&url, Ok(config(&self.ca, client, b"h2"))).expect("an address").connect_lazy()
    }

    fn message(&self, model: &str) -> ModelInferRequest {
        let of = &self.request["inputs"][0];
        let shape: Vec<i64> = serde_json::from_value(of["shape"].clone()).expect("a shape");
        let count = shape.iter().product::<i64>() as usize;
        let bytes = std::iter::repeat_n(0.5f32.to_le_bytes(), count).flatten().collect::<Vec<u8>>();
        ModelInferRequest {
            model_name: model.into(),
            inputs: vec![InferInputTensor {
                name: of["name"].as_str().expect("a name").into(),
                datatype: "FP32".into(),
                shape,
                ..InferInputTensor::default()
            }],
            raw_input_contents: vec![bytes.into()],
            ..ModelInferRequest::default()
        }
    }
}

/// A request with a token in its metadata.
fn with<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("text"));
    }
    request
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(future)
}

#[test]
fn a_token_opens_its_models_over_http_and_nothing_else() {
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "dig*"]);
    site.until_ready(&token, "digits");
    let mut http = site.http();
    let answer = site.infer(&mut http, "digits", &token);
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert!(answer.json()["outputs"][0]["data"].is_array());

    // Everything of one model, and only of those that it may use.
    for path in ["", "/ready", "/config", "/stats", "/versions/1"] {
        assert_eq!(http.get(&format!("/v2/models/digits{path}"), &token).status, 200, "{path}");
        let mut told = Vec::new();
        for model in ["secret", "nobody"] {
            let answer = http.get(&format!("/v2/models/{model}{path}"), &token);
            assert_eq!(answer.status, 403, "{model}{path}");
            told.push(answer.json()["error"].as_str().expect("a reason").replace(model, "X"));
        }
        assert_eq!(told[0], told[1], "whether there is such a model is nobody's business");
    }
    assert_eq!(site.infer(&mut site.http(), "secret", &token).status, 403);
    assert_eq!(site.infer(&mut site.http(), "nobody", &token).status, 403);
    let index = http.ask("POST", "/v2/repository/index", &bearer(&token), "").json();
    let names = |list: &Value| list.as_array().expect("models").iter().map(|m| m["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&index), [json!("digits")]);
    assert_eq!(names(&http.get("/v2/models/stats", &token).json()["model_stats"]), [json!("digits")]);
    assert_eq!(http.get("/v2", &token).status, 200);

    // Numbers and the dashboard take another permission.
    for path in ["/metrics", "/api/v1/site", "/api/v1/models"] {
        assert_eq!(http.get(path, &token).status, 403, "{path}");
        assert_eq!(http.get(path, "").status, 401, "{path}");
    }
    let viewer = site.app("viewer", &["--dashboard"]);
    for (path, status) in [("/metrics", 200), ("/api/v1/site", 200), ("/dashboard", 200), ("/v2/models/digits", 403)] {
        assert_eq!(http.get(path, &viewer).status, status, "{path}");
    }
    assert_eq!(http.ask("POST", "/v2/repository/index", &bearer(&viewer), "").json(), json!([]));
    // Whether the node lives, anybody may ask.
    for path in ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"] {
        assert_eq!(http.get(path, "").status, 200, "{path}");
    }
}

#[test]
fn one_process_serves_applications_with_identities_and_keeps_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    for name in ["mlp", "other"] {
        let file = path(&format!("{name}.onnx"));
        assert_eq!(tierline(["model", "zoo", "mlp", "--out", &file]).code, 0);
    }
    let (mlp, other, kept, ca) = (path("mlp.onnx"), path("other.onnx"), path("kept"), path("ca.pem"));
    let guarded = ["--keep", &kept, "--tls", "own", "--require", "all"];
    let served = Served::start(binary(), &[&[mlp.as_str(), &other][..], &guarded].concat());
    let made = tierline(["--data", &kept, "app", "create", "shop", "--model", "mlp", "--ca", &ca, "--json"]).json();
    let token = made["token"].as_str().expect("a token").to_owned();
    let till = path("till");
    let made = tierline(["--data", &kept, "app", "create", "till", "--model", "*", "--certificate", &till]);
    assert_eq!(made.code, 0, "{made:?}");
    let (ca, till) = (PathBuf::from(ca), PathBuf::from(till));
    let address = |served: &Served| served.http.strip_prefix("https://").expect("TLS").to_owned();
    let connect =
        |served: &Served, client: Option<&Path>| Http::tls(&address(served), &config(&ca, client, b"http/1.1"));
    let statuses = |served: &Served| {
        let mut http = connect(served, None);
        let input = connect(served, Some(&till)).get("/v2/models/mlp", "").json()["inputs"][0]["name"].clone();
        let body = ones(input.as_str().expect("a name")).to_string();
        [
            http.get("/v2/models/mlp", "").status,
            http.get("/v2/models/mlp", &token).status,
            http.ask("POST", INFER, &bearer(&token), &body).status,
            http.get("/v2/models/other", &token).status,
            connect(served, Some(&till)).get("/v2/models/other", "").status,
        ]
    };
    assert_eq!(statuses(&served), [401, 200, 200, 403, 200]);
    let grpc = format!("https://{}", served.grpc);
    let channel = transport::endpoint(&grpc, Ok(config(&ca, None, b"h2"))).expect("an address");
    let codes = run(async {
        let mut client = GrpcInferenceServiceClient::new(channel.connect().await.expect("it answers"));
        let mut codes = Vec::new();
        for token in ["", &token] {
            let asked =
                client.model_metadata(with(ModelMetadataRequest { name: "mlp".into(), version: String::new() }, token));
            codes.push(asked.await.map_or_else(|status| status.code(), |_| Code::Ok));
        }
        codes
    });
    assert_eq!(codes, [Code::Unauthenticated, Code::Ok]);
    let audit = tierline(["--data", &kept, "audit"]);
    assert!(audit.stdout.contains("shop"), "{audit:?}");
    drop(served);
    // Another command on the same folder knows them, and serves what it was told to.
    let served = Served::start(binary(), &[&[mlp.as_str()][..], &guarded].concat());
    assert_eq!(statuses(&served), [401, 200, 200, 403, 404]);
    drop(served);
    // What is another node's isn't taken.
    let data = path("cloud");
    let cloud = Node::start(Path::new(&data), &["--role", "cloud", "--listen", "127.0.0.1:0"]);
    drop(cloud);
    tierline(["serve", &mlp, "--keep", &data]).refused(3, "is the data folder of a node");
    tierline(["serve", &mlp, "--require", "all"]).refused(2, "--keep");
}

#[test]
fn who_shows_nothing_or_something_wrong_stays_outside() {
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "*"]);
    let short = site.app("short", &["--model", "*", "--valid", "1 s"]);
    site.until_ready(&token, "digits");
    std::thread::sleep(Duration::from_millis(2_100));
    let (head, secret) = token.rsplit_once('.').expect("three parts");
    let flipped: String = secret.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
    let of = |value: &str| format!("Authorization: {value}\r\n");
    let foreign = {
        let other = Site::new();
        let made = other.cloud.ask(&["app", "create", "shop", "--model", "*", "--json"]).json();
        made["token"].as_str().expect("a token").to_owned()
    };
    let cases = [
        ("nothing", String::new()),
        ("an empty one", of("")),
        ("no token", of("Bearer")),
        ("an empty token", of("Bearer ")),
        ("half a token", of(&format!("Bearer {}", &token[..40]))),
        ("another secret", of(&format!("Bearer {head}.{flipped}"))),
        ("no secret", of(&format!("Bearer {head}."))),
        ("no hexadecimal", of(&format!("Bearer {}", token.replace('.', "!")))),
        ("a token behind it", of(&format!("Bearer {token} {token}"))),
        ("another scheme", of("Basic c2hvcDpzaG9w")),
        ("bad base64", of("Basic !!!!")),
        ("no text", of("Bearer \u{ff}\u{fe}")),
        ("two of them", of(&format!("Bearer {token}")) + &of(&format!("Bearer {token}"))),
        ("a token of kilobytes", of(&format!("Bearer {}", "a".repeat(20_000)))),
        ("one that has expired", of(&format!("Bearer {short}"))),
        ("one of another site", of(&format!("Bearer {foreign}"))),
    ];
    for (what, headers) in &cases {
        let mut http = site.http();
        let answer = http.ask("GET", "/v2/models/digits", headers, "");
        assert_eq!(answer.status, 401, "{what}: {}", answer.json());
        let challenge = answer.header("www-authenticate").unwrap_or_else(|| panic!("{what}: {}", answer.head));
        assert!(challenge.starts_with("bearer realm="), "{what}: {challenge}");
        let error = answer.json()["error"].as_str().expect("a reason").to_owned();
        assert!(!error.contains(secret) && !error.contains("tla1"), "{what}: {error}");
        // The next request on the same connection is judged by itself.
        assert_eq!(http.get("/v2/models/digits", &token).status, 200, "after {what}");
    }
    // Megabytes are not even read; what breaks out of a header is none.
    for (what, headers, statuses) in [
        ("megabytes", of(&format!("Bearer {}", "a".repeat(3 << 20))), [431, 400]),
        ("a broken header", "Authorization: Bearer a\rX: b\nY\u{0}: c\r\n".to_owned(), [400, 431]),
    ] {
        let mut http = site.http();
        let head = format!("GET /v2/models/digits HTTP/1.1\r\nHost: tierline\r\n{headers}\r\n");
        let sent = http.send(head.as_bytes());
        match http.answer() {
            Ok(answer) => assert!(statuses.contains(&answer.status), "{what}: {}", answer.head),
            // It was closed on the way.
            Err(_) => assert!(sent.is_err() || what == "megabytes", "{what}"),
        }
        assert_eq!(site.http().get("/v2/models/digits", &token).status, 200, "after {what}");
    }
    // What was refused is on record, by whom it was asked where that is known, and no secret is.
    let record = site.edge.ask(&["audit", "--json", "--last", "1000"]).json();
    let entries = record["entries"].as_array().expect("entries");
    let seen = |code: &str| entries.iter().any(|entry| entry["kind"] == "refusals" && entry["code"] == code);
    for code in ["no identity", "malformed", "unknown", "expired"] {
        assert!(seen(code), "{code} is missing: {record}");
    }
    assert!(entries.iter().any(|e| e["code"] == "expired" && e["who"] == "short"), "{record}");
    assert!(entries.iter().any(|e| e["kind"] == "requests" && e["who"] == "shop" && e["of"] == "digits"), "{record}");
    let viewer = site.app("viewer", &["--dashboard"]);
    let numbers = String::from_utf8(site.http().get("/metrics", &viewer).body).expect("text");
    for line in ["tierline_applications 3", "tierline_applications_refused_total{why=\"expired\"} 1"] {
        assert!(numbers.lines().any(|found| found == line), "`{line}` is missing: {numbers}");
    }
    for node in [&site.edge, &site.site.cloud] {
        let audit = node.data.join("audit");
        for file in fs::read_dir(&audit).into_iter().flatten() {
            let text = fs::read_to_string(file.expect("a file").path()).expect("text");
            assert!(!text.contains(secret) && !text.contains(&short[40..]), "{text}");
        }
        assert!(!node.log().contains(secret));
    }
}

#[test]
fn whoever_is_shut_out_loses_its_right_on_open_connections() {
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "digits"]);
    let other = site.app("other", &["--model", "digits"]);
    let brief = site.app("brief", &["--model", "digits", "--valid", "1 h"]);
    site.until_ready(&token, "digits");
    let mut http = site.http();
    assert_eq!(site.infer(&mut http, "digits", &token).status, 200);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut grpc = runtime.block_on(async { GrpcInferenceServiceClient::new(site.channel(None)) });
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = runtime.block_on(async {
        grpc.model_infer(with(site.message("digits"), &token)).await.expect("an answer");
        send.send(site.message("digits")).await.expect("an open stream");
        let mut answers =
            grpc.model_stream_infer(with(ReceiverStream::new(requests), &token)).await.expect("a stream").into_inner();
        let first = answers.next().await.expect("an answer").expect("no status");
        assert_eq!(first.error_message, "");
        answers
    });

    let removed = site.site.cloud.ask(&["app", "rm", "shop"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    site.until_known("shop", false);
    let answer = site.infer(&mut http, "digits", &token);
    assert_eq!(answer.status, 401, "{}", answer.json());
    runtime.block_on(async {
        let refused = grpc.model_infer(with(site.message("digits"), &token)).await.expect_err("no right");
        assert_eq!(refused.code(), Code::Unauthenticated);
        send.send(site.message("digits")).await.expect("an open stream");
        let refused = answers.next().await.expect("a word").expect_err("no right");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(answers.next().await.is_none(), "the stream is over");
    });
    // Who did what, the cloud knows.
    let record = site.site.cloud.ask(&["audit", "--kind", "operators", "--json"]).json();
    let calls: Vec<&Value> = record["entries"].as_array().expect("entries").iter().map(|e| &e["call"]).collect();
    assert!(calls.contains(&&json!("app create")) && calls.contains(&&json!("app rm")), "{record}");
    // Shut out it stays where the cloud isn't reached any more, also behind a restart.
    let Guarded { mut site, mut edge, ca, .. } = site;
    site.cloud.kill();
    edge.restart();
    let http = edge.http.strip_prefix("https://").expect("TLS").to_owned();
    let mut http = Http::tls(&http, &config(&ca, None, b"http/1.1"));
    assert_eq!(http.get("/v2/models/digits", &token).status, 401);
    assert_eq!(http.get("/v2/models/digits", &other).status, 200, "the others are known as before");
    assert_eq!(http.get("/v2/models/digits", &brief).status, 200);
    // A list that the site's authority didn't sign counts for nothing: the edge makes no applications.
    edge.kill();
    let forged = {
        let site = Site::new();
        let made = site.cloud.ask(&["app", "create", "forged", "--model", "*", "--json"]).json();
        let state = rusqlite::Connection::open(site.cloud.data.join("state.db")).expect("a state");
        let list: (Vec<u8>, Vec<u8>) = state
            .query_row("SELECT list, signature FROM applications", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("a list");
        let own = rusqlite::Connection::open(edge.data.join("state.db")).expect("a state");
        own.execute("UPDATE applications SET list = ?1, signature = ?2", rusqlite::params![list.0, list.1])
            .expect("it is written");
        made["token"].as_str().expect("a token").to_owned()
    };
    edge.restart();
    let address = edge.http.strip_prefix("https://").expect("TLS").to_owned();
    let mut http = Http::tls(&address, &config(&ca, None, b"http/1.1"));
    assert_eq!(http.get("/v2/models/digits", &forged).status, 401);
    assert!(edge.log().contains("signature of the site's authority"), "{}", edge.log());
}

#[test]
fn an_application_has_one_share_wherever_it_asks_from() {
    let site = Site::new();
    let data = joined(&site, "edge", "edge-1", SERVE);
    let file = data.join("node.toml");
    let said = fs::read_to_string(&file).expect("a file");
    fs::write(&file, format!("deep_per_minute = 1\n{said}")).expect("it is written");
    let edge = Node::start(&data, &["--listen", "127.0.0.1:0"]);
    let model = site.folder.path().join("model.onnx");
    crate::exits::model().save(&model).expect("it is saved");
    assert_eq!(site.cloud.ask(&["model", "add", model.to_str().expect("UTF-8"), "--name", "exits"]).code, 0);
    let token = |name: &str| {
        let made = site.cloud.ask(&["app", "create", name, "--model", "*", "--json"]).json();
        made["token"].as_str().expect("a token").to_owned()
    };
    let (one, other) = (token("one"), token("other"));
    let tls = config(&site.cloud.data.join("ca/ca.pem"), None, b"http/1.1");
    let at = edge.http.strip_prefix("https://").expect("TLS").to_owned();
    // An input that no exit is sure of.
    let request = json!({
        "parameters": { "tier": "here" },
        "inputs": [{ "name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 0, 0, 0] }],
    });
    let ask = |from: &str, token: &str| {
        let mut http = Http::tls_from(from, &at, &tls);
        http.ask("POST", "/v2/models/exits/infer", &bearer(token), &request.to_string())
    };
    until("it is known", || {
        let ready = |token| Http::tls(&at, &tls).get("/v2/models/exits/ready", token).status == 200;
        (ready(&one) && ready(&other)).then_some(())
    });
    let degraded = |from: &str, token: &str| {
        let answer = ask(from, token).json();
        answer["parameters"]["degraded"].as_bool().unwrap_or_else(|| panic!("{answer}"))
    };
    assert!(!degraded("127.0.0.1", &one));
    assert!(degraded("127.0.0.2", &one), "its budget is spent, whatever its address");
    assert!(!degraded("127.0.0.1", &other), "another one's isn't, at the same address");
}

#[test]
fn nodes_show_certificates_that_applications_trust_already() {
    let site = Site::new();
    let made = site.cloud.ask(&["app", "create", "shop", "--model", "*", "--json"]).json();
    let token = made["token"].as_str().expect("a token").to_owned();
    let folder = site.folder.path().to_owned();
    // Signed by itself, for the address; another one later.
    let write = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
        let key = folder.join("key.pem");
        fs::write(&key, made.signing_key.serialize_pem()).expect("it is written");
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
        fs::write(folder.join("certificate.pem"), made.cert.pem()).expect("it is written");
    };
    write("tierline");
    let files = format!(
        "\n[serve]\nhttp = \"127.0.0.1:0\"\ngrpc = \"off\"\ncertificate = '{0}/certificate.pem'\nkey = '{0}/key.pem'\nrequire = \"all\"\n",
        folder.display()
    );
    // Also an end's, whose own certificate isn't good for serving.
    let end = Node::start(&joined(&site, "end", "end-1", &files), &[]);
    let at = end.http.strip_prefix("https://").expect("TLS").to_owned();
    let trusted = |http: &mut Http| http.get("/v2", &token).status;
    let first = config(&folder.join("certificate.pem"), None, b"http/1.1");
    until("the end knows", || (trusted(&mut Http::tls(&at, &first)) == 200).then_some(()));
    let own = config(&site.cloud.data.join("ca/ca.pem"), None, b"http/1.1");
    assert!(Http::tls(&at, &own).send(b"GET /v2 HTTP/1.1\r\n\r\n").is_err(), "it isn't the site's");
    write("tierline");
    let second = config(&folder.join("certificate.pem"), None, b"http/1.1");
    until("the files are read again", || {
        let mut http = Http::tls(&at, &second);
        http.send(format!("GET /v2 HTTP/1.1\r\nHost: t\r\n{}\r\n", bearer(&token)).as_bytes()).ok()?;
        (http.answer().ok()?.status == 200).then_some(())
    });
    // What is no pair, or open to others, isn't taken.
    let refused = |says: &str| {
        let data = joined(&site, "end", &format!("no-{}", fastrand::u32(..)), &files);
        tierline(["--data", data.to_str().expect("UTF-8"), "node"]).refused(3, says);
    };
    fs::set_permissions(folder.join("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("a mode");
    refused("others may read it");
    let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).expect("a certificate");
    fs::set_permissions(folder.join("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    fs::write(folder.join("key.pem"), other.signing_key.serialize_pem()).expect("it is written");
    refused("it is not the key of");
    fs::write(folder.join("certificate.pem"), "nothing").expect("it is written");
    refused("it holds no certificate");
}

#[test]
fn tritonclient_shows_tokens_over_tls() {
    let Some(python) = std::env::var_os("TIERLINE_PYTHON") else {
        eprintln!("skipped: TIERLINE_PYTHON is not set; run cargo xtask test");
        return;
    };
    let found = Command::new(&python)
        .args(["-c", "import tritonclient.http, tritonclient.grpc"])
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!("skipped: the tests' Python has no tritonclient; run cargo xtask test");
        return;
    }
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "digits"]);
    site.until_ready(&token, "digits");
    let file = site.site.folder.path().join("token");
    fs::write(&file, &token).expect("it is written");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/open_inference.py");
    let output = Command::new(&python)
        .args([script, "secured", &site.http, &site.grpc])
        .args([&site.ca, &file])
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn silent_strangers_keep_no_application_out() {
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "digits"]);
    site.until_ready(&token, "digits");
    let _silent: Vec<TcpStream> = (0..900).filter_map(|_| TcpStream::connect(&site.http).ok()).collect();
    let begun = Instant::now();
    until("an application gets in", || {
        let mut http = site.http();
        http.send(format!("GET /v2 HTTP/1.1\r\nHost: t\r\n{}\r\n", bearer(&token)).as_bytes()).ok()?;
        (http.answer().ok()?.status == 200).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn the_node_is_turned_and_looked_into_while_it_runs() {
    let site = Site::new();
    let node = &site.cloud;
    let filter = |args: &[&str]| node.ask(&[&["node", "log", "--json"], args].concat()).json()["filter"].clone();
    assert_eq!(filter(&[]), "warn,tierline=info");
    node.ask(&["model", "rm", "nobody"]);
    let before = node.log().len();
    assert_eq!(filter(&["off"]), "off");
    let token = node.ask(&["app", "create", "quiet", "--model", "*", "--json"]).json();
    assert_eq!(node.log().len(), before, "nothing is logged: {}", node.log());
    assert_eq!(filter(&["warn,tierline=debug"]), "warn,tierline=debug");
    node.ask(&["app", "create", "loud", "--model", "*"]).refused(0, "");
    assert!(node.log()[before..].contains("application loud"), "{}", node.log());
    node.ask(&["node", "log", "much=too=much"]).refused(2, "says not what to log");
    assert_eq!(filter(&[]), "warn,tierline=debug", "a wrong one changes nothing");

    let config = node.ask(&["node", "config", "--json"]).json();
    assert_eq!(config["config"]["name"], "cloud");
    assert!(config["config"]["memory_bytes"].as_u64().expect("a number") > 0);
    let text = node.ask(&["node", "config"]).stdout;
    assert!(!text.contains(token["token"].as_str().expect("a token")) && !text.contains("PRIVATE"), "{text}");
    let tasks = node.ask(&["node", "tasks", "--json"]).json();
    let running =
        |name: &str| tasks["tasks"].as_array().expect("tasks").iter().any(|t| t["name"] == name && t["running"] == 1);
    assert!(running("audit") && running("applications"), "{tasks}");

    // Every deed is on record, those that failed as well.
    node.ask(&["app", "rm", "nobody"]).refused(1, "there is no application");
    node.ask(&["token", "create"]).refused(0, "");
    let record = node.ask(&["audit", "--kind", "operators", "--json"]).json();
    let told = |call: &str, of: &str, code: &str| {
        let entries = record["entries"].as_array().expect("entries");
        entries
            .iter()
            .any(|e| e["call"] == call && (of.is_empty() || e["of"] == of) && e["code"] == code && e["who"] == "socket")
    };
    for (call, of, code) in [
        ("app create", "loud", "ok"),
        ("app rm", "nobody", "not_found"),
        ("node log", "off", "ok"),
        ("node log", "much=too=much", "invalid_input"),
        ("token create", "", "ok"),
    ] {
        assert!(told(call, of, code), "{call} {of}: {record}");
    }
    node.ask(&["audit", "--kind", "secrets"]).refused(2, "operators, requests and refusals");
    // It is there behind a restart.
    let Site { mut cloud, .. } = site;
    cloud.restart();
    let again = cloud.ask(&["audit", "--kind", "operators", "--json"]).json();
    assert_eq!(again["entries"][0], record["entries"][0]);
}

#[test]
fn over_grpc_tokens_and_certificates_open_the_same_models() {
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "digits"]);
    let folder = site.site.folder.path().join("till");
    let path = folder.to_str().expect("UTF-8");
    site.app("till", &["--model", "digits", "--certificate", path]);
    site.until_ready(&token, "digits");
    run(async {
        for (client, token) in [(None, token.as_str()), (Some(folder.as_path()), "")] {
            let mut grpc = GrpcInferenceServiceClient::new(site.channel(client));
            let answer = grpc.model_infer(with(site.message("digits"), token)).await.expect("an answer");
            assert_eq!(answer.into_inner().model_name, "digits");
            let of = |name: &str| name.to_owned();
            for (model, expected) in
                [("digits", Code::Ok), ("secret", Code::PermissionDenied), ("nobody", Code::PermissionDenied)]
            {
                let code = |result: Result<(), tonic::Status>| result.map_or_else(|s| s.code(), |()| Code::Ok);
                let (name, version) = (of(model), String::new());
                let ready = ModelReadyRequest { name: name.clone(), version: version.clone() };
                let metadata = ModelMetadataRequest { name: name.clone(), version: version.clone() };
                let config = ModelConfigRequest { name: name.clone(), version: version.clone() };
                let statistics = ModelStatisticsRequest { name, version };
                let got = [
                    code(grpc.model_ready(with(ready, token)).await.map(drop)),
                    code(grpc.model_metadata(with(metadata, token)).await.map(drop)),
                    code(grpc.model_config(with(config, token)).await.map(drop)),
                    code(grpc.model_statistics(with(statistics, token)).await.map(drop)),
                    code(grpc.model_infer(with(site.message(model), token)).await.map(drop)),
                ];
                assert_eq!(got, [expected; 5], "{model}");
            }
            let index = grpc.repository_index(with(RepositoryIndexRequest::default(), token)).await.expect("an index");
            let names: Vec<String> = index.into_inner().models.into_iter().map(|m| m.name).collect();
            assert_eq!(names, ["digits"]);
            let all = grpc.model_statistics(with(ModelStatisticsRequest::default(), token)).await.expect("statistics");
            assert_eq!(all.into_inner().model_stats.len(), 1);
        }
        let mut grpc = GrpcInferenceServiceClient::new(site.channel(None));
        for token in ["", "tla1.x.y"] {
            let refused = grpc.server_metadata(with(ServerMetadataRequest {}, token)).await.expect_err("nobody");
            assert_eq!(refused.code(), Code::Unauthenticated);
            assert!(refused.metadata().get("www-authenticate").is_some(), "{refused:?}");
            assert!(grpc.server_live(with(ServerLiveRequest {}, token)).await.is_ok());
        }
    });
    // The same certificate over HTTP, until it is taken back.
    let mut http = Http::tls(&site.http, &config(&site.ca, Some(&folder), b"http/1.1"));
    assert_eq!(site.infer(&mut http, "digits", "").status, 200);
    assert_eq!(http.get("/v2/models/secret", "").status, 403);
    assert_eq!(site.site.cloud.ask(&["app", "rm", "till"]).code, 0);
    site.until_known("till", false);
    assert_eq!(http.get("/v2/models/digits", "").status, 401);
    assert_eq!(http.get("/v2/models/digits", &token).status, 200, "a token counts by itself");
    // It is no node's: other doors don't know it.
    let nodes = transport::endpoint(&site.edge.url, Ok(config(&site.ca, Some(&folder), b"h2"))).expect("an address");
    run(async {
        let channel = nodes.connect().await.expect("a connection");
        let mut local = tierline_proto::v1::local_client::LocalClient::new(channel);
        let refused = local.status(tierline_proto::v1::Empty {}).await.expect_err("no operator");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    });
}

#[test]
fn a_rate_is_kept_and_says_when_to_come_again() {
    let site = Guarded::start();
    let token = site.app("shop", &["--model", "*", "--rate", "0.5", "--burst", "3"]);
    let other = site.app("other", &["--model", "*"]);
    site.until_ready(&other, "digits");
    let mut http = site.http();
    let statuses: Vec<u16> = (0..4).map(|_| http.get("/v2/models/digits", &token).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    let refused = http.get("/v2/models/digits", &token);
    let wait: u64 = refused.header("retry-after").expect("a time").parse().expect("a number");
    assert!((1..=2).contains(&wait), "{wait}");
    run(async {
        let mut grpc = GrpcInferenceServiceClient::new(site.channel(None));
        let refused = grpc.server_metadata(with(ServerMetadataRequest {}, &token)).await.expect_err("too soon");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.metadata().get("retry-after").is_some(), "{refused:?}");
    });
    // Others go on, and behind the wait so does it.
    assert!((0..10).all(|_| http.get("/v2/models/digits", &other).status == 200));
    std::thread::sleep(Duration::from_secs(wait));
    assert_eq!(http.get("/v2/models/digits", &token).status, 200);
}

#[test]
fn beyond_this_machine_nobody_is_nobody_and_no_token_goes_in_the_clear() {
    let Some(address) = own_address() else {
        eprintln!("skipped: this machine has no address but its own");
        return;
    };
    let site = Site::new();
    let model = site.add_model();
    drop(model);
    // By default: TLS, and an identity from whoever calls from beyond.
    let serve = format!("\n[serve]\nhttp = \"{address}:0\"\n");
    let edge = Node::start(&joined(&site, "edge", "edge-1", &serve), &["--listen", "127.0.0.1:0"]);
    let at = edge.http.strip_prefix("https://").expect("TLS").to_owned();
    let tls = config(&site.cloud.data.join("ca/ca.pem"), None, b"http/1.1");
    assert_eq!(Http::tls(&at, &tls).get("/v2", "").status, 401);
    // The page comes to whoever asks, and shows nothing before a token is shown.
    let page = Http::tls(&at, &tls).get("/dashboard", "");
    assert!(page.status == 200 && page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
    assert_eq!(Http::tls(&at, &tls).get("/api/v1/site", "").status, 401);
    let made = site.cloud.ask(&["app", "create", "shop", "--model", "*", "--json"]).json();
    let token = made["token"].as_str().expect("a token").to_owned();
    until("the edge knows", || (Http::tls(&at, &tls).get("/v2", &token).status == 200).then_some(()));
    // On the machine itself anybody may, unless a proxy stands in front.
    for (more, status) in [("", 200), ("tls = \"front\"\n", 401), ("require = \"all\"\n", 401)] {
        let name = format!("edge-{}", more.len());
        let serve = format!("\n[serve]\nhttp = \"127.0.0.1:0\"\n{more}");
        let edge = Node::start(&joined(&site, "edge", &name, &serve), &["--listen", "127.0.0.1:0"]);
        let at = edge.http.strip_prefix("http://").expect("no TLS").to_owned();
        assert_eq!(Http::plain(&at).get("/v2", "").status, status, "{more}");
        until("it knows", || (Http::plain(&at).get("/v2", &token).status == 200).then_some(()));
    }
    // In the clear, only where something in front of it is private, or everybody is let in; then tokens aren't taken.
    let refused = |more: &str, says: &str| {
        let data = joined(&site, "edge", &format!("no-{}", fastrand::u32(..)), more);
        tierline(["--data", data.to_str().expect("UTF-8"), "node", "--listen", "127.0.0.1:0"]).refused(3, says);
    };
    refused(&format!("\n[serve]\nhttp = \"{address}:0\"\ntls = \"none\"\n"), "tokens could be read on the way");
    refused("\n[serve]\nopen = true\nrequire = \"all\"\n", "`open = true` lets anybody in");
    refused("\n[serve]\nkey = \"key.pem\"\n", "belong together");
    refused("\n[serve]\nrequire = \"nobody\"\n", "unknown variant");
    let serve = format!("\n[serve]\nhttp = \"{address}:0\"\nopen = true\n");
    let open = Node::start(&joined(&site, "edge", "open", &serve), &["--listen", "127.0.0.1:0"]);
    let at = open.http.strip_prefix("http://").expect("no TLS").to_owned();
    assert_eq!(Http::plain(&at).get("/v2", "").status, 200);
    let answer = Http::plain(&at).get("/v2", &token);
    assert_eq!(answer.status, 403, "{}", answer.json());
    for path in ["/api/v1/site", "/dashboard"] {
        assert_eq!(Http::plain(&at).get(path, "").status, 403, "{path}");
    }
    assert_eq!(Http::plain(&at).get("/metrics", "").status, 200);
}

/// An address of this machine that others would reach.
fn own_address() -> Option<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: the system only says which way it would go.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then(|| address.to_string())
}
