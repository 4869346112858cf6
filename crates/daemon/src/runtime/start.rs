//! A node's start and end.

use std::cell::Cell;
use std::fs::TryLockError;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tierline_engine::Engine;
use tierline_identity::tls::LiveIdentity;
use tierline_identity::{Ca, Identity, IdentityError, check_name};
use tierline_node::policy::Rule;
use tierline_proto::Role;
use tierline_proto::v1::Event;
use tierline_store::members::NodeRow;
use tierline_store::state::Tables;
use tierline_store::{ArtefactStore, State, disk};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

use super::audit::{self, Audit};
use super::duty::{Assembly, Duties};
use super::events::Events;
use super::filter::{Filter, Wish};
use super::records::Records;
use super::tasks::{Tasks, in_place, log_panics};
use super::traces::Traces;
use super::{Clock, Context, End, Me};
use crate::config::{self, NodeConfig, SOCKET};
use crate::device::Device;
use crate::device::budget::Budget;
use crate::device::compute::{Compute, ComputeOptions};
use crate::device::memory::Memory;
use crate::duties::REGISTRY;
use crate::error::{ErrorKind, NodeError, NodeResult, OfKind};
use crate::models;
use crate::net::door::{self, Doors, Rooms};
use crate::net::plain::Plain;
use crate::net::{Applications, Children, Net, Parents, Revoked, children, serving};

/// Answers under way get so long to end once the node is told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Requests that were admitted before the end are given so long: less than what
/// asks a node to end (systemd, Kubernetes) waits before it kills.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(25);

/// Spans get so long to reach their collector behind that.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// Tasks get so long to come to an end behind that.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// Changes of parents that requests in flight hear of.
const PEER_CHANGES_MAX: usize = 64;

/// How a node came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// Its certificate says another name: it is to be started again.
    Renamed,
}

/// What a node lets whoever started it know.
pub enum Notice<'t> {
    /// A sentence.
    Note(String),
    /// Everything answers from now on.
    Ready(&'t Ready<'t>),
    /// Something happened that its operator may want to see.
    Happened(&'t Event),
    /// Its configuration is read again.
    Reloading,
    /// What is in force of its configuration has changed, unless it couldn't be read.
    Reloaded(Option<&'t NodeConfig>),
    /// Another filter of the log is wished (empty: none other); which one is in
    /// force behind it is to be said.
    Filter {
        /// Levels, and targets with one.
        wanted: &'t str,
        /// To be filled.
        in_force: &'t Cell<String>,
    },
    /// It ends.
    Stopping,
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
    /// Where applications reach it over HTTP, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where applications reach it over gRPC, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// What it calls.
    pub parents: &'a [String],
    /// Where its operators reach it.
    pub socket: PathBuf,
    /// What runs its models.
    pub engine: String,
    /// Time that its start took, milliseconds.
    pub start_ms: u64,
}

/// A node that isn't running yet.
struct Node {
    net: Net,
    cx: Context,
    doors: Arc<Doors>,
    rules: Arc<[Rule]>,
    /// Other filters of the log.
    wishes: mpsc::Receiver<Wish>,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// When it can't start: a wrong configuration, no identity, an address in use.
pub async fn run(
    config: NodeConfig,
    role: Option<Role>,
    notify: impl Fn(Notice<'_>) -> anyhow::Result<()>,
) -> NodeResult<Ended> {
    let started = Instant::now();
    log_panics();
    let data = config.data.clone();
    // Whatever is made from here on is this user's alone, also by libraries.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if let Some(warning) = config::claim(&data)? {
        notify(Notice::Note(warning))?;
    }
    let socket = data.join(SOCKET);
    // The lock is the process's; on file systems that know no locks, one that answers owns the folder.
    let lock = disk::open_private(&data.join("node.lock")).of_kind(ErrorKind::Configuration)?;
    let taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    if taken || tokio::net::UnixStream::connect(&socket).await.is_ok() {
        return Err(NodeError::message(ErrorKind::Configuration, format!("a node already runs on {}", data.display()))
            .hint("stop it first, or choose another folder with --data DIR"));
    }
    let engine: Arc<dyn Engine> = match config.engine.as_str() {
        "auto" => Arc::new(models::OnDemand::new(&data, config.apart())),
        // What was asked for by name must be there.
        named => tierline_engine::apart(models::usable(models::discover(named, &data)?, named)?, config.apart()),
    };
    let mut node = build(config, role, engine)?;
    let (net, cx) = (&node.net, &node.cx);
    for duty in cx.duties.all() {
        duty.open().await?;
    }

    let listener = serving::listen(&cx.me).await?;
    let address = listener.as_ref().and_then(|l| l.local_addr().ok());
    let url = address.map(|a| {
        let local = if a.ip().is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { a.ip() };
        format!("https://{}", SocketAddr::new(local, a.port()))
    });
    let advertise = cx.me.config().advertise.clone();
    if let Some(advertised) = advertise.or_else(|| serving::advertised(&cx.me, address?)) {
        cx.me.is_reached_at(advertised);
    }
    let plain = Plain::listen(&cx.me).await?;
    let places = plain.places();
    let plain = plain.serve(cx)?;
    let serve = |listener| serving::serve_network(net, cx, &node.doors, &node.rules, listener);
    let network = listener.map(serve).transpose()?;
    let local = serving::serve_socket(net, cx, &node.rules, &socket)?;
    cx.traces.keep(&cx.tasks);
    cx.parents.keep();
    let children = cx.children.clone();
    let written = cx.audit.clone();
    cx.tasks.keep("audit", move || {
        let audit = written.clone();
        async move {
            loop {
                tokio::time::sleep(audit::COUNTED_FOR).await;
                audit.write_counted();
            }
        }
    });
    cx.tasks.keep("leases", move || children.clone().run());
    for duty in cx.duties.all() {
        duty.begin().await?;
    }

    // Whoever reads "ready" may ask for the end at once.
    let mut signals = Signals::new()?;
    let ready = Ready {
        event: "ready",
        node: cx.me.name(),
        role: cx.me.role().word(),
        id: cx.me.id(),
        url,
        metrics: places.metrics.map(|a| format!("http://{a}/metrics")),
        http: places.http.map(|(a, tls)| format!("{}://{a}", if tls { "https" } else { "http" })),
        grpc: places.grpc.map(|(a, _)| a.to_string()),
        parents: &cx.me.config().parents,
        socket: socket.clone(),
        engine: format!("{} {}", cx.device.engine.name(), cx.device.engine.version()),
        start_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    // What the file says once it holds what the node was started with.
    let mut file = file_of(cx.me.config())?;
    notify(Notice::Ready(&ready))?;
    let (_, mut feed) = cx.events.subscribe();
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => break cx.end.is_for_good(),
            _ = signals.terminate.recv() => break cx.end.is_for_good(),
            () = cx.end.begun() => break,
            _ = signals.reload.recv() => reload(cx, &mut file, &notify)?,
            Some(Wish { filter, told }) = node.wishes.recv() => {
                let in_force = Cell::default();
                let done = notify(Notice::Filter { wanted: &filter, in_force: &in_force });
                let _ = told.send(done.map(|()| in_force.take()).map_err(|e| e.to_string()));
            }
            Ok(event) = feed.recv() => notify(Notice::Happened(&event))?,
        }
    }
    notify(if cx.end.is_anew() { Notice::Reloading } else { Notice::Stopping })?;
    notify(Notice::Note(format!("{} says goodbye", cx.me.name())))?;
    cx.children.drain();
    cx.end.begin();
    let drained = async {
        for duty in cx.duties.all() {
            duty.drained().await;
        }
    };
    if tokio::time::timeout(DRAIN_TIME_MAX, drained).await.is_err() {
        tracing::warn!("not everything that was admitted is done; the node ends all the same");
    }
    // Servers end by themselves once their answers are out.
    let servers = async {
        if let Some(network) = network {
            let _ = network.await;
        }
        let _ = local.await;
        for server in plain {
            let _ = server.await;
        }
    };
    let _ = tokio::time::timeout(GRACE, servers).await;
    in_place(|| cx.audit.flush());
    cx.traces.flush(FLUSH_TIME_MAX).await;
    cx.tasks.end(END_TIME_MAX).await;
    // Left behind, it would only look like a node.
    let _ = std::fs::remove_file(&socket);
    drop(lock);
    // Whoever wants its end may have said so while it was ending for another reason.
    if tokio::time::timeout(Duration::ZERO, signals.any()).await.is_ok() {
        cx.end.is_for_good();
    }
    Ok(if cx.end.is_anew() { Ended::Renamed } else { Ended::Stopped })
}

/// What the file says, and what it is about to be told of a first start.
fn file_of(config: &NodeConfig) -> NodeResult<NodeConfig> {
    let file = NodeConfig::load(&config.data)?;
    // The engine may come from the environment, the name from the certificate.
    let given = NodeConfig { engine: file.engine.clone(), name: file.name.clone(), ..config.clone() };
    Ok(file.remembering(&given)?.0)
}

/// What changes of a configuration while a node runs; what else its file says
/// holds from the next start on.
const RELOADED: [&str; 3] = ["log", "memory_bytes", "requests_bytes"];

/// Reads the file again, and does what it says from now on. `file` is what it
/// said so far: a flag that went before it stays in force until it changes.
fn reload(cx: &Context, file: &mut NodeConfig, notify: &impl Fn(Notice<'_>) -> anyhow::Result<()>) -> NodeResult {
    notify(Notice::Reloading)?;
    let new = match NodeConfig::load(&file.data) {
        Ok(new) => new,
        Err(failure) => {
            notify(Notice::Note(format!("nothing is reloaded: {}", failure.error)))?;
            return Ok(notify(Notice::Reloaded(None))?);
        }
    };
    let (now, later): (Vec<String>, Vec<String>) = file
        .differences(&new)?
        .into_iter()
        .filter(|key| key != "name")
        .partition(|key| RELOADED.contains(&key.as_str()));
    if now.iter().any(|key| key == "memory_bytes") {
        cx.device.memory.set_max(new.memory_bytes());
    }
    if now.iter().any(|key| key == "requests_bytes") {
        cx.device.budget.set_max(new.requests_bytes());
    }
    let said = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
    let mut text = format!("reloaded {}: {} changed", config::FILE, said(&now));
    if !later.is_empty() {
        text += &format!("; {} from the next start on", said(&later));
    }
    *file = new;
    notify(Notice::Reloaded(Some(file)))?;
    Ok(notify(Notice::Note(text))?)
}

/// Everything that a node holds, not yet running.
fn build(mut config: NodeConfig, role: Option<Role>, engine: Arc<dyn Engine>) -> NodeResult<Node> {
    let data = config.data.clone();
    let now = SystemTime::now();
    let state = State::open(&data.join("state.db"), &tables()).of_kind(ErrorKind::Configuration)?;
    let folder = data.join("identity");
    let ca_folder = data.join("ca");
    let is_cloud = Ca::key_path(&ca_folder).exists() || (role == Some(Role::Cloud) && !folder.exists());
    let (identity, ca) = if is_cloud {
        let ca = Ca::open_or_create(&ca_folder, now).of_kind(ErrorKind::Configuration)?;
        if config.name.is_empty() {
            "cloud".clone_into(&mut config.name);
        }
        check_name(&config.name).of_kind(ErrorKind::Configuration)?;
        let identity = Identity::load_or_issue(&ca, &folder, &config.name, now).of_kind(ErrorKind::Verification)?;
        let peer = identity.peer();
        state
            .add_node(&NodeRow { id: peer.id.clone(), name: peer.name.clone(), role: peer.role })
            .of_kind(ErrorKind::Configuration)?;
        (identity, Some(Arc::new(ca)))
    } else {
        let identity = Identity::load(&folder, now).map_err(|e| {
            let missing = matches!(e, IdentityError::NotJoined { .. });
            NodeError::new(if missing { ErrorKind::Configuration } else { ErrorKind::Verification }, e).hint(
                "`tierline node --role cloud` starts a new site here; `tierline join URL --token-file FILE` joins one",
            )
        })?;
        (identity, None)
    };
    let peer = identity.peer().clone();
    if matches!(peer.role, Role::Operator | Role::Application) {
        return Err(NodeError::message(
            ErrorKind::Configuration,
            format!("this folder holds the identity of an {}, which runs no node", peer.role.word()),
        )
        .hint("join as end or edge into another folder with --data DIR"));
    }
    if let Some(asked) = role.filter(|asked| *asked != peer.role) {
        let text = format!("this node joined as {}, not as {}", peer.role.word(), asked.word());
        return Err(NodeError::message(ErrorKind::Configuration, text)
            .hint("leave --role away, or join again with a token of that role"));
    }
    if now > peer.not_after {
        return Err(NodeError::message(ErrorKind::Verification, "this node's certificate has expired")
            .hint("join again with a new token: `tierline join URL --token-file FILE`"));
    }
    if config.parents.is_empty() && peer.role != Role::Cloud {
        return Err(NodeError::message(ErrorKind::Configuration, "this node has no parent")
            .hint("name one with --parent URL, or join again"));
    }
    config.name.clone_from(&peer.name);
    let store = ArtefactStore::open(&data.join("artefacts")).of_kind(ErrorKind::Configuration)?;
    let (events, duties) = (Events::default(), Duties::default());
    let tasks = Tasks::new(events.clone());
    let memory = Memory::new(config.memory_bytes());
    let budget = Budget::new(config.requests_bytes());
    let compute = Compute::start(ComputeOptions {
        tasks: tasks.clone(),
        engine: Arc::clone(&engine),
        load: config.load_options(),
        slowdown: config.slowdown.get(),
        memory: memory.clone(),
        shares: config.shares.shares(),
        budget: budget.clone(),
        batches: config.batching.is_on(),
    })?;
    let device = Device { engine, compute, memory, budget };
    // From here on only one thread touches it.
    let state = Records::keep(state, tasks.clone())?;
    let incarnation = fastrand::u64(1..);
    let identity = LiveIdentity::new(identity).of_kind(ErrorKind::Verification)?;
    let net = Net {
        me: Arc::new(Me::new(config, identity, incarnation)),
        clock: Clock::start(),
        tasks: tasks.clone(),
        events: events.clone(),
        duties: duties.clone(),
        revoked: Revoked::default(),
        changes: broadcast::channel(PEER_CHANGES_MAX).0,
    };
    let (filter, wishes) = Filter::new();
    let rooms = Rooms::within(door::raise_descriptors());
    let children_max = net.me.config().children_max.unwrap_or(rooms.children);
    if children_max > rooms.children {
        tracing::warn!(
            "children_max is {children_max}; the limit of open files leaves room for {}: raise it (`ulimit -Hn`, \
             `LimitNOFILE=` of a unit)",
            rooms.children
        );
    }
    let cx = Context {
        me: Arc::clone(&net.me),
        clock: net.clock,
        tasks: tasks.clone(),
        events,
        traces: Traces::new(&net.me.config().traces, &net.me),
        state,
        parents: Parents::new(net.clone()),
        children: Children::new(net.clone(), incarnation >> 1, children_max.min(rooms.children)),
        revoked: net.revoked.clone(),
        applications: Applications::default(),
        device,
        audit: Audit::keep(&data, &tasks)?,
        filter,
        duties: duties.clone(),
        end: End::default(),
    };
    let mut assembly = Assembly::new(cx.clone());
    let doors = assembly.add(Doors::new(rooms, tasks));
    assembly.add(Arc::new(store));
    if let Some(ca) = ca {
        assembly.add(ca);
    }
    duties.make(REGISTRY, &mut assembly);
    let rules = children::RULES.iter().chain(REGISTRY.iter().flat_map(|duty| duty.rules)).copied().collect();
    Ok(Node { net, cx, doors, rules, wishes })
}

/// The tables of every duty.
fn tables() -> Vec<Tables> {
    REGISTRY.iter().map(|duty| Tables { of: duty.name, steps: duty.tables }).collect()
}

/// What asks a process to end, or to read its configuration again.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// One that asks for the end.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
