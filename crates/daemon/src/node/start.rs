//! A node's start and end.

use std::fs::TryLockError;
use std::net::{SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tierline_identity::tls::{self, LiveIdentity};
use tierline_identity::{Ca, Identity, IdentityError, check_name};
use tierline_node::Peer;
use tierline_proto::Role;
use tierline_proto::limits::{
    CONNECTION_WINDOW_BYTES, MESSAGE_BYTES_MAX, RUNS_PER_CONNECTION_MAX, STREAM_WINDOW_BYTES,
};
use tierline_proto::v1::bulk_server::BulkServer;
use tierline_proto::v1::control_server::ControlServer;
use tierline_proto::v1::enrollment_server::EnrollmentServer;
use tierline_proto::v1::federate_server::FederateServer;
use tierline_proto::v1::infer_server::InferServer;
use tierline_proto::v1::local_server::LocalServer;
use tierline_store::state::NodeRow;
use tierline_store::{ArtefactStore, State, disk};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;

use super::artefacts::Artefacts;
use super::authority::Authority;
use super::catalogue::{Catalogue, Entry};
use super::compute::{Compute, ComputeOptions};
use super::door::{self, Doors, Rooms};
use super::events::Events;
use super::memory::Memory;
use super::planner::Planner;
use super::records::Records;
use super::services::bulk::BulkService;
use super::services::control::{Children, ControlService};
use super::services::enrollment::EnrollmentService;
use super::services::federate::FederateService;
use super::services::gate::{Door, GateLayer};
use super::services::infer::InferService;
use super::services::local::LocalService;
use super::tasks::{Task, Tasks, log_panics};
use super::transport::HEADER_BYTES_MAX;
use super::uplink::Uplink;
use super::{Node, PEER_CHANGES_MAX, metrics, renewal, scrape};
use crate::config::{self, LISTEN_DEFAULT, NodeConfig, SOCKET};
use crate::documents;
use crate::models::{self, Manifest};
use crate::outcome::{Exit, ExitWith, Failure, Outcome};

/// Answers under way get so long to end once the node is told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Tasks get so long to come to an end behind that.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// Messages between a node and its operator carry plans and profiles whole.
const LOCAL_MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A caller that answers no ping for so long is gone. Longer than a caller
/// waits for its node: behind a large answer on a thin link, a ping has to wait.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A token, a request for a certificate, the certificate in use.
const ENROLLMENT_BYTES_MAX: usize = 64 << 10;

/// HTTP/2 window of callers without a certificate, of a stream and in all.
const STRANGER_WINDOW_BYTES: u32 = 128 << 10;

/// Calls at once of a caller without a certificate.
const STRANGER_STREAMS_MAX: u32 = 4;

/// How a node came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Its certificate says another name: it is to be started again.
    Renamed,
}

/// What a node tells whoever started it.
pub enum Told<'t> {
    /// A sentence.
    Note(String),
    /// Everything answers from now on.
    Ready(&'t Ready<'t>),
}

/// A node that answers.
#[derive(Debug, Serialize)]
pub struct Ready<'a> {
    event: &'static str,
    /// Its name.
    pub node: &'a str,
    /// Its role, in a word.
    pub role: &'a str,
    /// Its identity.
    pub id: &'a str,
    /// Where children reach it; none for ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where Prometheus reads its numbers, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// What it calls.
    pub parents: &'a [String],
    /// Where its operators reach it.
    pub socket: PathBuf,
    /// What runs its models.
    pub engine: String,
    /// Time that its start took, milliseconds.
    pub start_ms: u64,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// When it can't start: a wrong configuration, no identity, an address in use.
pub async fn run(config: NodeConfig, role: Option<Role>, tell: impl Fn(Told<'_>) -> Outcome) -> Outcome<Ended> {
    let started = Instant::now();
    log_panics();
    let data = config.data.clone();
    // Whatever is made from here on is this user's alone, also by libraries.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if let Some(warning) = config::claim(&data)? {
        tell(Told::Note(warning))?;
    }
    let socket = data.join(SOCKET);
    // The lock is the process's; on file systems that know no locks, one that answers owns the folder.
    let lock = disk::open_private(&data.join("node.lock")).exit_with(Exit::Configuration)?;
    let taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    if taken || tokio::net::UnixStream::connect(&socket).await.is_ok() {
        return Err(Failure::message(Exit::Configuration, format!("a node already runs on {}", data.display()))
            .hint("stop it first, or choose another folder with --data DIR"));
    }
    let engine: Arc<dyn tierline_engine::Engine> = match config.engine.as_str() {
        "auto" => Arc::new(models::OnDemand::new(&data, config.apart())),
        // What was asked for by name must be there.
        named => tierline_engine::apart(models::usable(models::discover(named, &data)?, named)?, config.apart()),
    };
    let node = build(config, role, engine)?;
    load_models(&node).await.map_err(|f| Failure::of(&f))?;
    node.clear_up().await;

    let mut stop = node.draining.subscribe();
    let listener = listen(&node).await?;
    let address = listener.as_ref().and_then(|l| l.local_addr().ok());
    let url = address.map(|a| {
        let local = if a.ip().is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { a.ip() };
        format!("https://{}", SocketAddr::new(local, a.port()))
    });
    if let Some(advertised) = node.config().advertise.clone().or_else(|| advertised(&node, address?)) {
        let _ = node.url.set(advertised);
    }
    let scraped = listen_for_scrapes(&node).await?;
    let metrics = scraped.as_ref().and_then(|l| l.local_addr().ok()).map(|a| format!("http://{a}/metrics"));
    if let Some(listener) = scraped {
        let (scraped, listener) = (Arc::clone(&node), Arc::new(listener));
        node.tasks.duty("scrape", move || scrape::serve(Arc::clone(&scraped), Arc::clone(&listener)));
    }
    let network = listener.map(|listener| serve_network(&node, listener)).transpose()?;
    let local = serve_socket(&node, &socket)?;
    for uplink in node.uplinks() {
        let (uplink, kept) = (Arc::clone(uplink), Arc::clone(&node));
        node.tasks.duty("uplink", move || Arc::clone(&uplink).keep(Arc::clone(&kept)));
    }
    keep(&node, "leases", |node| async move { node.children.watch(&node).await });
    keep(&node, "reports", |node| async move { node.keep_reporting().await });
    keep(&node, "catalogue", |node| async move { node.keep_catalogue().await });
    keep(&node, "artefacts", |node| async move { node.artefacts.watch(&node).await });
    keep(&node, "plans", |node| async move { node.planner.watch(&node).await });
    keep(&node, "tables", |node| async move { node.planner.work(&node).await });
    keep(&node, "renewal", renewal::keep);
    keep(&node, "house", |node| async move { node.keep_house().await });
    node.replan();
    profile_missing(&node);
    node.resume_jobs().await.map_err(|f| Failure::of(&f))?;

    // Whoever reads "ready" may ask for the end at once.
    let mut signals = Signals::new()?;
    let ready = Ready {
        event: "ready",
        node: node.name(),
        role: node.role().word(),
        id: node.id(),
        url,
        metrics,
        parents: &node.config().parents,
        socket: socket.clone(),
        engine: format!("{} {}", node.engine.name(), node.engine.version()),
        start_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    tell(Told::Ready(&ready))?;
    tokio::select! {
        () = signals.any() => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    tell(Told::Note(format!("{} says goodbye", node.name())))?;
    node.children.drain(&node);
    let _ = node.draining.send(true);
    // Servers end by themselves once their answers are out.
    let servers = async {
        if let Some(network) = network {
            let _ = network.await;
        }
        let _ = local.await;
    };
    let _ = tokio::time::timeout(GRACE, servers).await;
    node.tasks.end(END_TIME_MAX).await;
    // Left behind, it would only look like a node.
    let _ = std::fs::remove_file(&socket);
    drop(lock);
    Ok(if node.begins_anew.load(Ordering::Relaxed) { Ended::Renamed } else { Ended::Stopped })
}

/// Everything that a node holds, not yet running.
fn build(mut config: NodeConfig, role: Option<Role>, engine: Arc<dyn tierline_engine::Engine>) -> Outcome<Arc<Node>> {
    let data = config.data.clone();
    let now = SystemTime::now();
    let state = State::open(&data.join("state.db")).exit_with(Exit::Configuration)?;
    let folder = data.join("identity");
    let ca_folder = data.join("ca");
    let is_cloud = Ca::key_path(&ca_folder).exists() || (role == Some(Role::Cloud) && !folder.exists());
    let (identity, ca) = if is_cloud {
        let ca = Ca::open_or_create(&ca_folder, now).exit_with(Exit::Configuration)?;
        if config.name.is_empty() {
            "cloud".clone_into(&mut config.name);
        }
        check_name(&config.name).exit_with(Exit::Configuration)?;
        let identity = Identity::load_or_issue(&ca, &folder, &config.name, now).exit_with(Exit::Verification)?;
        let peer = identity.peer();
        state
            .add_node(&NodeRow { id: peer.id.clone(), name: peer.name.clone(), role: peer.role })
            .exit_with(Exit::Configuration)?;
        (identity, Some(ca))
    } else {
        let identity = Identity::load(&folder, now).map_err(|e| {
            let missing = matches!(e, IdentityError::NotJoined { .. });
            Failure::new(if missing { Exit::Configuration } else { Exit::Verification }, e).hint(
                "`tierline node --role cloud` starts a new site here; `tierline join URL --token-file FILE` joins one",
            )
        })?;
        (identity, None)
    };
    let peer = identity.peer().clone();
    if peer.role == Role::Operator {
        return Err(Failure::message(
            Exit::Configuration,
            "this folder holds an operator's identity, which runs no node",
        )
        .hint("join as end or edge into another folder with --data DIR"));
    }
    if let Some(asked) = role.filter(|asked| *asked != peer.role) {
        let text = format!("this node joined as {}, not as {}", peer.role.word(), asked.word());
        return Err(Failure::message(Exit::Configuration, text)
            .hint("leave --role away, or join again with a token of that role"));
    }
    if now > peer.not_after {
        return Err(Failure::message(Exit::Verification, "this node's certificate has expired")
            .hint("join again with a new token: `tierline join URL --token-file FILE`"));
    }
    if config.parents.is_empty() && peer.role != Role::Cloud {
        return Err(Failure::message(Exit::Configuration, "this node has no parent")
            .hint("name one with --parent URL, or join again"));
    }
    config.name.clone_from(&peer.name);
    let store = ArtefactStore::open(&data.join("artefacts")).exit_with(Exit::Configuration)?;
    let (events, metrics) = (Events::default(), metrics::Metrics::default());
    let tasks = Tasks::new(events.clone(), metrics.clone());
    let uplinks: Vec<Arc<Uplink>> = config
        .parents
        .iter()
        .enumerate()
        .map(|(i, url)| {
            let peer = Peer(u32::try_from(i).unwrap_or(u32::MAX));
            Arc::new(Uplink::new(peer, url.clone(), tasks.clone()))
        })
        .collect();
    let memory = Memory::new(config.memory_bytes);
    let compute = Compute::start(ComputeOptions {
        tasks: tasks.clone(),
        engine: Arc::clone(&engine),
        load: config.load_options(),
        slowdown: config.slowdown.get(),
        memory: memory.clone(),
        metrics: metrics.clone(),
    })?;
    let revocations = state.revocations().exit_with(Exit::Configuration)?;
    let members = state.nodes().exit_with(Exit::Configuration)?;
    let renames = state.renames().exit_with(Exit::Configuration)?;
    let seen = state.seen().exit_with(Exit::Configuration)?;
    // From here on only one thread touches it.
    let state = Arc::new(Records::keep(state, tasks.clone())?);
    let authority = ca.map(|ca| Authority::new(ca, Arc::clone(&state), members, renames));
    let artefacts = Artefacts::new(store, Arc::clone(&state), tasks.clone());
    let incarnation = fastrand::u64(1..);
    let identity = LiveIdentity::new(identity).exit_with(Exit::Verification)?;
    let children = Children::new(incarnation >> 1);
    children.remember(tierline_node::Time::ZERO, seen);
    Ok(Arc::new_cyclic(|this| Node {
        identity,
        doors: Doors::new(Rooms::within(door::raise_descriptors()), tasks.clone()),
        id: peer.id.clone(),
        role: peer.role,
        engine,
        origin: Instant::now(),
        incarnation,
        compute,
        budget: super::budget::Budget::new(config.requests_bytes()),
        catalogue: Catalogue::new(memory.clone()),
        planner: Planner::new(memory.clone()),
        memory,
        tasks,
        events,
        children,
        metrics,
        artefacts,
        federations: super::federation::Federations::default(),
        authority,
        uplinks,
        url: std::sync::OnceLock::new(),
        unreported: tokio::sync::Notify::new(),
        changes: broadcast::channel(PEER_CHANGES_MAX).0,
        revocations: Mutex::new(revocations),
        names: Mutex::default(),
        seen: Mutex::default(),
        begins_anew: AtomicBool::new(false),
        state,
        catalogue_heard: watch::Sender::new(None),
        adopting: tokio::sync::Mutex::default(),
        preparing: tokio::sync::Mutex::default(),
        loading: tokio::sync::Mutex::default(),
        measuring: tokio::sync::Mutex::default(),
        adopting_jobs: tokio::sync::Mutex::default(),
        told: Mutex::default(),
        draining: watch::channel(false).0,
        this: this.clone(),
        config,
    }))
}

/// Models that were here before the start.
async fn load_models(node: &Arc<Node>) -> Result<(), tierline_proto::Failure> {
    for (name, digest) in node.state.with(State::names).await? {
        let manifest = async { documents::read::<Manifest>(&node.artefacts.get(digest).await?) };
        match manifest.await.and_then(|manifest| Entry::new(manifest, digest)) {
            Ok(entry) => {
                load_profile(node, &entry).await;
                node.catalogue.insert(entry);
            }
            // One damaged manifest must not keep the others from answering.
            Err(failure) => {
                let text = format!("model {name} can't be used here: {failure}");
                node.events.record("model", text, &serde_json::json!({ "name": name }));
            }
        }
    }
    Ok(())
}

async fn load_profile(node: &Arc<Node>, entry: &Entry) {
    let model = entry.model;
    let Ok(Some(digest)) = node.state.with(move |state| state.profile(model)).await else { return };
    let Ok(json) = node.artefacts.get(digest).await else { return };
    // A profile of another version is measured again.
    let Ok(profile) = documents::read(&json) else { return };
    node.catalogue.set_profile(entry.model, profile);
    node.planner.profiled(entry.model, digest);
}

fn profile_missing(node: &Arc<Node>) {
    for entry in node.catalogue.list() {
        if node.catalogue.profile(entry.model).is_none() {
            node.profile_later(entry);
        }
    }
}

/// Where others reach a node that listens on this address: on every address of
/// the machine, that is the one from which it calls its parent.
fn advertised(node: &Node, listens: SocketAddr) -> Option<String> {
    let parent = node.config().parents.first().and_then(|url| url.strip_prefix("https://"));
    let towards = |parent: &str| {
        // Sends nothing: the system only says which way it would go.
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(parent).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let ip = match listens.ip() {
        ip if ip.is_unspecified() => parent.and_then(towards)?,
        ip => ip,
    };
    Some(format!("https://{}", SocketAddr::new(ip, listens.port())))
}

/// The network's door; ends have none.
async fn listen(node: &Node) -> Outcome<Option<TcpListener>> {
    if node.role() == Role::End {
        return Ok(None);
    }
    let address = node.config().listen.clone().unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
    let listener = TcpListener::bind(&address).await.map_err(|e| {
        Failure::message(Exit::Configuration, format!("cannot listen on {address}: {e}"))
            .hint("choose another address with --listen HOST:PORT")
    })?;
    Ok(Some(listener))
}

/// The door for Prometheus, where one is configured.
async fn listen_for_scrapes(node: &Node) -> Outcome<Option<TcpListener>> {
    let Some(address) = &node.config().metrics else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Failure::message(Exit::Configuration, format!("cannot give numbers at {address}: {e}"))
            .hint("choose another address with --metrics HOST:PORT")
    })?;
    Ok(Some(listener))
}

/// A duty of the whole node.
fn keep<F>(node: &Arc<Node>, name: &'static str, begin: impl Fn(Arc<Node>) -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send,
{
    let kept = Arc::clone(node);
    node.tasks.duty(name, move || begin(Arc::clone(&kept)));
}

async fn ended(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A server that has ended is done once the node is told to end; else it
/// begins again.
fn served(node: &Node, result: &Result<(), Box<dyn std::error::Error + Send + Sync>>) -> ControlFlow<()> {
    if let Err(error) = result {
        tracing::warn!(error = %crate::words::chain(error.as_ref()), "a server has ended");
    }
    if *node.draining.borrow() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Answers other nodes and operators from afar.
fn serve_network(node: &Arc<Node>, listener: TcpListener) -> Outcome<Task<()>> {
    let tls = tls::server_config(&node.identity).exit_with(Exit::Verification)?;
    let enrollment = EnrollmentService::new(Arc::clone(node));
    let gate = || GateLayer { node: Arc::clone(node), door: Door::Network };
    let members = server()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(RUNS_PER_CONNECTION_MAX)
        .layer(gate())
        .add_service(ControlServer::new(ControlService(Arc::clone(node))).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(InferServer::new(InferService(Arc::clone(node))).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(BulkServer::new(BulkService::new(Arc::clone(node))).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(
            FederateServer::new(FederateService(Arc::clone(node))).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(EnrollmentServer::new(enrollment.clone()).max_decoding_message_size(ENROLLMENT_BYTES_MAX))
        .add_service(
            LocalServer::new(LocalService(Arc::clone(node))).max_decoding_message_size(LOCAL_MESSAGE_BYTES_MAX),
        );
    // Without a certificate there is one thing to do, and little to do it with.
    let strangers = server()
        .initial_stream_window_size(STRANGER_WINDOW_BYTES)
        .initial_connection_window_size(STRANGER_WINDOW_BYTES)
        .max_concurrent_streams(STRANGER_STREAMS_MAX)
        .layer(gate())
        .add_service(EnrollmentServer::new(enrollment).max_decoding_message_size(ENROLLMENT_BYTES_MAX));
    let (served_by, listener) = (Arc::clone(node), listener.into_std()?);
    Ok(node.tasks.until_done("network", move || {
        let (node, tls) = (Arc::clone(&served_by), Arc::clone(&tls));
        let (members, strangers) = (members.clone(), strangers.clone());
        // The door stays open while whoever answers begins again.
        let listener = listener.try_clone().and_then(TcpListener::from_std);
        async move {
            let result = async {
                let known = Arc::clone(&node);
                let callers = node.doors.listen(listener?, tls, move |peer| known.check_revoked(peer).is_err());
                let ended = || ended(node.draining.subscribe());
                let (inside, outside) = (ReceiverStream::new(callers.members), ReceiverStream::new(callers.strangers));
                tokio::try_join!(
                    members.serve_with_incoming_shutdown(inside, ended()),
                    strangers.serve_with_incoming_shutdown(outside, ended())
                )?;
                Ok(())
            };
            served(&node, &result.await)
        }
    }))
}

/// What every caller gets: it is asked now and then whether it is still there.
fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// Answers operators on this machine.
fn serve_socket(node: &Arc<Node>, path: &Path) -> Outcome<Task<()>> {
    // A dead node's socket is in the way of a new one.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(|e| {
        Failure::message(Exit::Configuration, format!("cannot open the socket {}: {e}", path.display()))
            .hint("socket paths are limited to about 100 bytes; choose a shorter --data DIR")
    })?;
    // Whoever may open it is an operator.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let router = Server::builder().layer(GateLayer { node: Arc::clone(node), door: Door::Socket }).add_service(
        LocalServer::new(LocalService(Arc::clone(node))).max_decoding_message_size(LOCAL_MESSAGE_BYTES_MAX),
    );
    let (served_by, listener) = (Arc::clone(node), listener.into_std()?);
    Ok(node.tasks.until_done("socket", move || {
        let (node, router) = (Arc::clone(&served_by), router.clone());
        let listener = listener.try_clone().and_then(UnixListener::from_std);
        async move {
            let result = async {
                let connections = UnixListenerStream::new(listener?).then(async |connection| {
                    if connection.is_err() {
                        // Out of file descriptors, usually: let some close.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    connection
                });
                let connections = std::pin::pin!(connections);
                router.serve_with_incoming_shutdown(connections, ended(node.draining.subscribe())).await?;
                Ok(())
            };
            served(&node, &result.await)
        }
    }))
}

/// What asks a process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
