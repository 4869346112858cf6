//! `tierline node`, `tierline join`: this device as part of a site.

use std::cell::RefCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tierline_daemon::config::{self, Factor, NodeConfig};
use tierline_daemon::net::transport;
use tierline_daemon::runtime::start::{self as daemon, Ended, Notice};
use tierline_daemon::words;
use tierline_identity as identity;
use tierline_identity::{Identity, JoinToken, KeyRequest, tls};
use tierline_proto::v1::JoinRequest;
use tierline_proto::v1::enrollment_client::EnrollmentClient;
use tierline_proto::{Code, Role, Sound, Versions};

use super::site::{RoleArg, Target};
use super::{Global, administer, block_on, client, running, usage};
use crate::logging::{self, Log};
use crate::notify::Supervisor;
use crate::output::{CommandError, CommandResult, ExitCode, ExitWith};

/// How long joining waits for an edge that isn't connected to its cloud, and
/// between attempts.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
const JOIN_AGAIN: Duration = Duration::from_millis(250);

/// Kinds of events that say what a node is at.
const SUPERVISORS_SEE: [&str; 4] = ["lease", "model", "job", "fault"];

#[derive(Debug, clap::Subcommand)]
enum NodeVerb {
    /// What a node that runs is at
    Status(running::Target),
    /// End a node once its requests are done
    Stop(running::Stop),
    /// What a node logs, or is to log until it starts again
    Log(administer::LogArgs),
    /// The configuration in force
    Config(Target),
    /// What runs on a node, and what broke off
    Tasks(Target),
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodeArgs {
    #[command(subcommand)]
    verb: Option<NodeVerb>,
    /// What this device is; a joined one knows by itself. `cloud` starts a new site
    #[arg(long, value_enum)]
    role: Option<RoleArg>,
    /// A new site's cloud is called so
    #[arg(long)]
    name: Option<String>,
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where other edges reach this one, if not where it listens: https://host:port
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Give numbers to Prometheus at this address, over plain HTTP
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Serve applications over HTTP at this address, or `off`; ends do at 127.0.0.1:8000
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Serve applications over gRPC at this address, or `off`; ends do at 127.0.0.1:8001
    #[arg(long, value_name = "HOST:PORT")]
    grpc: Option<String>,
    /// The tier above: https://host:port (repeat: most wanted first)
    #[arg(long = "parent", value_name = "URL")]
    parents: Vec<String>,
    /// Threads within an operator; 0 takes every core
    #[arg(long)]
    threads: Option<usize>,
    /// Run so many times slower, to stand for a weaker device
    #[arg(long, value_name = "FACTOR")]
    slowdown: Option<Factor<1>>,
    /// Don't measure models: be so many times slower than the tier above
    #[arg(long, value_name = "FACTOR")]
    scale_of_parent: Option<Factor<0>>,
    /// Bytes that models, sessions and plans may take together
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// An execution provider of ONNX Runtime, as in `cuda` (repeat: most wanted first)
    #[arg(long = "provider", value_name = "NAME")]
    providers: Vec<tierline_engine::Provider>,
    /// The form of what it logs
    #[arg(long, value_enum, default_value = "text", env = "TIERLINE_LOG_FORMAT", hide_env_values = true)]
    log_format: logging::Format,
}

pub fn node(global: &Global, args: &NodeArgs) -> CommandResult {
    match &args.verb {
        Some(NodeVerb::Status(target)) => return running::status(global, target),
        Some(NodeVerb::Stop(stop)) => return running::stop(global, stop),
        Some(NodeVerb::Log(args)) => return administer::log(global, args),
        Some(NodeVerb::Config(target)) => return administer::config(global, target),
        Some(NodeVerb::Tasks(target)) => return administer::tasks(global, target),
        None => {}
    }
    if args.role == Some(RoleArg::Operator) {
        return Err(usage("an operator runs no node; choose end, edge or cloud"));
    }
    let output = global.output();
    let supervisor = Supervisor::from_environment();
    let mut log = None;
    loop {
        // Anew for each start: a node that was given another name has it in its file.
        let file = NodeConfig::load(&global.data_folder())?;
        let given = args.over(file.clone())?;
        let mut config = given.clone();
        // It may come from the environment, which isn't the node's.
        if global.engine != "auto" {
            config.engine.clone_from(&global.engine);
        }
        let log = match &mut log {
            Some(log) => &*log,
            none => none.insert(Log::start(given.log.as_deref(), args.log_format, output)?),
        };
        let status = RefCell::new(String::new());
        let notify = |notice: Notice<'_>| match notice {
            Notice::Ready(ready) => {
                // Only now: what a node can't be started with isn't worth keeping.
                remember(&file, &given, log);
                let place = match &ready.url {
                    Some(url) => format!("listening on {url}"),
                    None => format!("calling {}", ready.parents.join(", ")),
                };
                let text = format!("{} ({}) is ready, {place}", ready.node, ready.role);
                supervisor.ready(&text);
                status.replace(text.clone());
                if output.json {
                    return output.event(ready).map_err(|failed| failed.error);
                }
                log.say(text);
                Ok(())
            }
            Notice::Note(text) => {
                log.say(text);
                Ok(())
            }
            Notice::Happened(event) => {
                if SUPERVISORS_SEE.contains(&event.kind.as_str()) {
                    supervisor.status(&event.text);
                    status.replace(event.text.clone());
                }
                Ok(())
            }
            Notice::Filter { wanted, in_force } => {
                if !wanted.is_empty() {
                    log.set(wanted).map_err(|failed| failed.error)?;
                }
                in_force.set(log.in_force());
                Ok(())
            }
            Notice::Reloading => {
                supervisor.reloading();
                Ok(())
            }
            Notice::Reloaded(config) => {
                if let Some(Err(failure)) = config.map(|config| log.refilter(config.log.as_deref())) {
                    log.say(format!("the log stays as it was: {}", failure.error));
                }
                supervisor.ready(&status.borrow());
                Ok(())
            }
            Notice::Stopping => {
                supervisor.stopping();
                Ok(())
            }
        };
        let ended = block_on(async {
            tokio::select! {
                ended = daemon::run(config, args.role.map(Into::into), notify) => Ok(ended?),
                () = supervisor.keep_alive() => Ok(Ended::Stopped),
            }
        })?;
        if ended == Ended::Stopped {
            return Ok(());
        }
    }
}

impl NodeArgs {
    /// What the file says, and what is said here over it.
    fn over(&self, file: NodeConfig) -> CommandResult<NodeConfig> {
        let mut config = file;
        if let Some(name) = &self.name {
            config.name.clone_from(name);
        }
        for (value, given) in [
            (&mut config.listen, &self.listen),
            (&mut config.advertise, &self.advertise),
            (&mut config.metrics, &self.metrics),
            (&mut config.serve.http, &self.http),
            (&mut config.serve.grpc, &self.grpc),
        ] {
            if given.is_some() {
                value.clone_from(given);
            }
        }
        if !self.parents.is_empty() {
            config.parents.clone_from(&self.parents);
        }
        if !self.providers.is_empty() {
            config.providers.clone_from(&self.providers);
        }
        config.threads = self.threads.unwrap_or(config.threads);
        config.slowdown = self.slowdown.unwrap_or(config.slowdown);
        config.scale_of_parent = self.scale_of_parent.or(config.scale_of_parent);
        config.memory_bytes = self.memory.or(config.memory_bytes);
        config.check()?;
        Ok(config)
    }
}

/// A node comes back as it was first started, whoever starts it again. One
/// that can't keep that, on a full disk say, runs all the same.
fn remember(file: &NodeConfig, given: &NodeConfig, log: &Log) {
    let kept = file.remembering(given).and_then(|(kept, new)| {
        if !new.is_empty() {
            kept.save()?;
        }
        Ok(new)
    });
    let path = file.data.join(config::FILE);
    match kept {
        Ok(new) if new.is_empty() => {}
        Ok(new) => log.say(format!("kept for later starts in {}: {}", path.display(), new.join(", "))),
        Err(failure) => log.say(format!("warning: what it was started with isn't kept: {}", failure.error)),
    }
}

#[derive(Debug, clap::Args)]
pub struct Join {
    /// A node of the site: https://host:port
    url: String,
    /// A file with the token, as `tierline token create` printed it
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The token itself, `-` to read it from stdin, or in TIERLINE_TOKEN; on a command line, every user of this device sees it
    #[arg(long, env = "TIERLINE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// This device's name; the token may fix another
    #[arg(long)]
    name: Option<String>,
    /// Give up the identity that is in the folder already
    #[arg(long)]
    replace: bool,
}

#[derive(Serialize)]
struct Joined {
    id: String,
    name: String,
    role: &'static str,
    not_after_s: u64,
    data: String,
}

/// Bytes of a token's text, and of what surrounds it in a file.
const TOKEN_FILE_BYTES_MAX: u64 = 4 << 10;

impl Join {
    /// The token's text, from where it was said to be.
    fn token(&self) -> CommandResult<String> {
        let read = |from: &mut dyn std::io::Read, place: &dyn std::fmt::Display| {
            let mut text = String::new();
            std::io::Read::take(from, TOKEN_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|e| {
                CommandError::message(ExitCode::Usage, format!("cannot read the token from {place}: {e}"))
            })?;
            Ok(text.trim().to_owned())
        };
        match (&self.token_file, self.token.as_deref()) {
            (Some(path), _) => {
                let mut file = std::fs::File::open(path).map_err(|e| {
                    CommandError::message(
                        ExitCode::Usage,
                        format!("cannot read the token from {}: {e}", path.display()),
                    )
                })?;
                read(&mut file, &path.display())
            }
            (None, Some("-")) => read(&mut std::io::stdin().lock(), &"stdin"),
            (None, Some(text)) => Ok(text.trim().to_owned()),
            (None, None) => Err(usage(
                "a token is missing; give it with --token-file FILE, on stdin with --token -, or in TIERLINE_TOKEN",
            )
            .hint("an operator makes one: `tierline token create`")),
        }
    }
}

pub fn join(global: &Global, args: &Join) -> CommandResult {
    let text = args.token()?;
    let token: JoinToken = text.parse().exit_with(ExitCode::Usage)?;
    let data = global.data_folder();
    let folder = data.join("identity");
    let address = args
        .url
        .strip_prefix("https://")
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|rest| rest.contains(':'))
        .ok_or_else(|| usage(format!("`{}` is no address; write https://host:port", args.url)))?;
    let name = args.name.clone().unwrap_or_else(host_name);
    identity::check_new_name(&name).exit_with(ExitCode::Usage)?;
    if let Some(warning) = config::claim(&data)? {
        global.output().say(warning);
    }
    if !args.replace {
        check_free(&data, &folder)?;
    }
    block_on(async {
        // First the authority, by the token's fingerprint: the secret goes to nobody else.
        let ca = identity::fetch_ca(address, token.fingerprint).await.map_err(|e| {
            let exit = match e {
                identity::TlsError::Network { .. } | identity::TlsError::Timeout { .. } => ExitCode::Unreachable,
                _ => ExitCode::Verification,
            };
            CommandError::new(exit, e).hint("is the address right, and the token from this site?")
        })?;
        let request = KeyRequest::resume_or_generate(&folder).exit_with(ExitCode::Configuration)?;
        let endpoint = transport::endpoint(&args.url, tls::join_config(&ca)).exit_with(ExitCode::Usage)?;
        let message = JoinRequest {
            token: text,
            csr_der: request.csr_der()?.into(),
            role: Role::Unspecified.into(),
            name,
            versions: Some(Versions::OURS.into()),
        };
        let begun = Instant::now();
        let reply = loop {
            // A new connection each time: a busy node closes those of strangers.
            let again = match endpoint.connect().await {
                Err(e) => CommandError::message(
                    ExitCode::Unreachable,
                    format!("cannot reach {}: {}", args.url, words::chain(&e)),
                ),
                Ok(channel) => match EnrollmentClient::new(channel).join(message.clone()).await {
                    Ok(reply) => break Sound::read(reply.into_inner()).exit_with(ExitCode::Verification)?,
                    // An edge that has just been started asks the cloud, too.
                    Err(status) if may_pass(&status) => client::refused(&status),
                    Err(status) => return Err(client::refused(&status)),
                },
            };
            if begun.elapsed() >= JOIN_PATIENCE {
                return Err(again);
            }
            tokio::time::sleep(JOIN_AGAIN).await;
        };
        let chain = reply.certificate_chain.iter().map(|c| CertificateDer::from(c.to_vec())).collect();
        let identity: Identity = request.accept(chain, ca, SystemTime::now()).exit_with(ExitCode::Verification)?;
        identity.save(&folder).exit_with(ExitCode::Failure)?;
        let peer = identity.peer();
        if peer.role != Role::Operator {
            let mut config = NodeConfig::load(&data)?;
            config.name.clone_from(&peer.name);
            config.parents = vec![args.url.trim_end_matches('/').to_owned()];
            config.save()?;
        }
        let joined = Joined {
            id: peer.id.clone(),
            name: peer.name.clone(),
            role: peer.role.word(),
            not_after_s: reply.not_after_s,
            data: data.display().to_string(),
        };
        global.output().data(&joined, |j| {
            let folder = global.data.as_ref().map_or(String::new(), |data| format!(" --data {}", data.display()));
            let next = if j.role == "operator" {
                format!("try: tierline{folder} nodes --endpoint {}", args.url)
            } else {
                format!("try: tierline{folder} node")
            };
            format!("{} joined as {}; its identity is in {}\n{next}", j.name, j.role, j.data)
        })
    })
}

/// Refuses a folder that holds an identity which is still good: that of a node
/// which may be running, or a site's cloud.
fn check_free(data: &Path, folder: &Path) -> CommandResult {
    let Ok(identity) = Identity::load(folder, SystemTime::now()) else { return Ok(()) };
    let peer = identity.peer();
    if SystemTime::now() > peer.not_after {
        return Ok(());
    }
    let text = format!("{} is {} ({}) already", data.display(), peer.name, peer.role.word());
    let hint = match peer.role {
        Role::Cloud => "another folder with --data DIR: a cloud's identity can't be had again",
        _ => "another folder with --data DIR; or --replace to give that identity up",
    };
    Err(CommandError::message(ExitCode::Configuration, text).hint(hint))
}

/// Whether a join that failed so may go well a moment later.
fn may_pass(status: &tonic::Status) -> bool {
    // What the node itself says is told by its code, what befell the connection by gRPC's.
    let failure = tierline_proto::Failure::from_status(status);
    matches!(failure.code(), Code::Unreachable | Code::Overloaded | Code::Draining | Code::Cancelled)
}

/// The device's own name as a node's name.
pub fn host_name() -> String {
    let given = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name: String =
        given.trim().to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() { format!("node-{:06x}", fastrand::u32(..0x0100_0000)) } else { name }
}
