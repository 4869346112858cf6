//! `tierline token`, `tierline nodes`: who belongs to the site.

use std::time::{Duration, Instant};

use serde::Serialize;
use tierline_proto::Role;
use tierline_proto::v1::local_client::LocalClient;
use tierline_proto::v1::{
    Empty, NodeInfo, NodeRemoveRequest, NodeRenameRequest, NodeRevokeRequest, TokenCreateRequest, TokenRevokeRequest,
};
use tonic::transport::Channel;

use super::{Global, client, infer::parse_time};
use crate::output::{self, CommandResult};

#[derive(Debug, clap::Subcommand)]
pub enum TokenVerb {
    /// Make a token that lets a device join
    Create(TokenCreate),
    /// List tokens that are still good
    Ls(Target),
    /// Take a token back
    Rm(TokenRm),
}

#[derive(Debug, clap::Args)]
pub struct Target {
    /// The cloud node: https://host:port or unix:PATH
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

impl Target {
    /// The node's address, where one is named.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }
}

#[derive(Debug, clap::Args)]
pub struct TokenCreate {
    /// What the device will be
    #[arg(long, value_enum, default_value = "end")]
    role: RoleArg,
    /// How long it can be used, as in `1 h`
    #[arg(long, default_value = "1 h", value_parser = parse_time, value_name = "TIME")]
    valid: Duration,
    /// How many devices may join with it
    #[arg(long, default_value = "1")]
    uses: u32,
    /// Fix the device's name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub struct TokenRm {
    /// The token's id, as `token ls` prints it
    id: String,
    #[command(flatten)]
    target: Target,
}

/// A role on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RoleArg {
    /// A device with the data: camera, gateway, board
    End,
    /// A node near the devices
    Edge,
    /// The top of the site
    Cloud,
    /// A person or tool that administers the site
    Operator,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::End => Self::End,
            RoleArg::Edge => Self::Edge,
            RoleArg::Cloud => Self::Cloud,
            RoleArg::Operator => Self::Operator,
        }
    }
}

fn role_name(role: i32) -> &'static str {
    Role::try_from(role).unwrap_or(Role::Unspecified).word()
}

#[derive(Serialize)]
struct Token {
    id: String,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    not_after_s: u64,
    uses_left: u32,
}

#[derive(Serialize)]
struct Tokens {
    tokens: Vec<Token>,
}

pub fn token(global: &Global, verb: TokenVerb) -> CommandResult {
    super::block_on(async {
        match verb {
            TokenVerb::Create(args) => {
                let mut node = client::connect(global, args.target.endpoint.as_deref()).await?;
                let role = Role::from(args.role);
                let request = TokenCreateRequest {
                    role: role.into(),
                    valid_s: args.valid.as_secs().max(1),
                    uses: args.uses,
                    name: args.name.unwrap_or_default(),
                };
                let reply = node.token_create(request).await.map_err(|s| client::refused(&s))?.into_inner();
                let token = Token {
                    id: reply.token_id,
                    role: role_name(role.into()).into(),
                    token: Some(reply.token),
                    not_after_s: reply.not_after_s,
                    uses_left: args.uses,
                };
                global.output().data(&token, |t| t.token.clone().unwrap_or_default())
            }
            TokenVerb::Ls(target) => {
                let mut node = client::connect(global, target.endpoint.as_deref()).await?;
                let reply = node.token_list(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
                let tokens = reply
                    .tokens
                    .into_iter()
                    .filter(|t| !t.revoked)
                    .map(|t| Token {
                        id: t.token_id,
                        role: role_name(t.role).into(),
                        token: None,
                        not_after_s: t.not_after_s,
                        uses_left: t.uses_left,
                    })
                    .collect();
                global.output().data(&Tokens { tokens }, |t| {
                    let rows: Vec<Vec<String>> = t
                        .tokens
                        .iter()
                        .map(|t| vec![t.id.clone(), t.role.clone(), t.uses_left.to_string(), until(t.not_after_s)])
                        .collect();
                    output::table(&["id", "role", "uses left", "valid for"], &rows)
                })
            }
            TokenVerb::Rm(args) => {
                let mut node = client::connect(global, args.target.endpoint.as_deref()).await?;
                node.token_revoke(TokenRevokeRequest { token_id: args.id.clone() })
                    .await
                    .map_err(|s| client::refused(&s))?;
                global.output().say(format!("token {} can no longer be used", args.id));
                Ok(())
            }
        }
    })
}

pub fn until(not_after_s: u64) -> String {
    let left = not_after_s.saturating_sub(tierline_daemon::runtime::events::now_ms() / 1_000);
    match left {
        0 => "expired".into(),
        s if s < 3_600 => format!("{} min", s.div_ceil(60)),
        s if s < 172_800 => format!("{} h", s / 3_600),
        s => format!("{} d", s / 86_400),
    }
}

#[derive(Debug, clap::Args)]
pub struct Nodes {
    #[command(subcommand)]
    verb: Option<NodesVerb>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum NodesVerb {
    /// Shut a node out: its certificate is refused everywhere from now on
    Revoke {
        /// The node's name or id
        node: String,
        /// Why, for the record
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Shut a node out and take it from every list
    Rm {
        /// The node's name or id
        node: String,
        /// Also one that is connected
        #[arg(long)]
        force: bool,
    },
    /// Give a node another name, which its certificate says once the node has renewed it
    Rename {
        /// The node's name or id
        node: String,
        /// Its new name
        name: String,
    },
}

#[derive(Serialize)]
struct NodeList {
    nodes: Vec<NodeLine>,
    /// Nodes that are there, but that no node above could list.
    left_out: u64,
}

#[derive(Serialize)]
struct NodeLine {
    id: String,
    name: String,
    role: String,
    parent: String,
    state: String,
    last_seen_ms: u64,
    up_bytes_per_s: f64,
    rtt_ms: f64,
    models: u32,
    /// What it keeps in memory of models, sessions and plans, and may keep.
    memory_used_bytes: u64,
    memory_max_bytes: u64,
}

pub fn nodes(global: &Global, args: &Nodes) -> CommandResult {
    super::block_on(async {
        let mut node = client::connect(global, args.target.endpoint.as_deref()).await?;
        let done = match args.verb.clone() {
            Some(NodesVerb::Revoke { node: name, reason }) => {
                let request = NodeRevokeRequest { node: name.clone(), reason };
                node.node_revoke(request).await.map(|_| format!("{name} is shut out of the site"))
            }
            Some(NodesVerb::Rm { node: name, force }) => {
                let request = NodeRemoveRequest { node: name.clone(), force };
                node.node_remove(request).await.map(|_| format!("{name} is shut out of the site and forgotten"))
            }
            Some(NodesVerb::Rename { node: was, name }) => {
                let request = NodeRenameRequest { node: was.clone(), name: name.clone() };
                match node.node_rename(request).await {
                    Ok(_) => Ok(renamed(&mut node, &was, &name).await?),
                    Err(status) => Err(status),
                }
            }
            None => return list(global, node).await,
        };
        global.output().say(done.map_err(|s| client::refused(&s))?);
        Ok(())
    })
}

/// Between two looks at whether a node has its new name.
const LOOK: Duration = Duration::from_millis(100);

/// Time in which a node that is connected renews its certificate and begins
/// anew, at most.
const RENAMING_MAX: Duration = Duration::from_secs(15);

/// Waits until a node that is connected has its new name.
async fn renamed(node: &mut LocalClient<Channel>, was: &str, name: &str) -> CommandResult<String> {
    let begun = Instant::now();
    // It goes, and comes back.
    let mut left = false;
    loop {
        let nodes = node.nodes(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner().nodes;
        let state = nodes.iter().find(|n| n.node_name == name).map_or("", |n| n.state.as_str());
        left |= state == "renaming";
        match state {
            "connected" => return Ok(format!("{was} is called {name} from now on")),
            "renaming" => {}
            "lost" if left => {}
            _ => return Ok(format!("{was} is called {name} here from now on; it takes that name when it is back")),
        }
        if begun.elapsed() > RENAMING_MAX {
            return Ok(format!("{was} is called {name} here from now on; it is about to take that name"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn list(global: &Global, mut node: LocalClient<Channel>) -> CommandResult {
    let reply = node.nodes(Empty {}).await.map_err(|s| client::refused(&s))?.into_inner();
    let names: std::collections::HashMap<String, String> =
        reply.nodes.iter().map(|n| (n.node_id.clone(), n.node_name.clone())).collect();
    let line = |n: NodeInfo| NodeLine {
        parent: names.get(&n.parent_id).cloned().unwrap_or(if n.parent_name.is_empty() {
            n.parent_id
        } else {
            n.parent_name
        }),
        role: role_name(n.role).into(),
        up_bytes_per_s: n.link.as_ref().map_or(0.0, |l| l.up_bytes_per_s),
        rtt_ms: n.link.as_ref().map_or(0.0, |l| l.rtt_ns as f64 / 1e6),
        models: n.model_count,
        memory_used_bytes: n.load.map_or(0, |l| l.memory_max_bytes.saturating_sub(l.memory_free_bytes)),
        memory_max_bytes: n.load.map_or(0, |l| l.memory_max_bytes),
        id: n.node_id,
        name: n.node_name,
        state: n.state,
        last_seen_ms: n.last_seen_ms,
    };
    let list = NodeList { left_out: reply.left_out, nodes: reply.nodes.into_iter().map(line).collect() };
    global.output().data(&list, |l| {
        let rows: Vec<Vec<String>> = l
            .nodes
            .iter()
            .map(|n| {
                let link = if n.up_bytes_per_s > 0.0 {
                    format!("{:.2} Mbit/s, {:.0} ms", n.up_bytes_per_s * 8.0 / 1e6, n.rtt_ms)
                } else {
                    "-".into()
                };
                // Older nodes don't tell.
                let memory = match n.memory_max_bytes {
                    0 => "-".into(),
                    max => format!("{} of {}", output::bytes(n.memory_used_bytes), output::bytes(max)),
                };
                let (name, role, parent, state) = (n.name.clone(), n.role.clone(), n.parent.clone(), n.state.clone());
                vec![name, role, parent, state, link, n.models.to_string(), memory]
            })
            .collect();
        let mut text = output::table(&["name", "role", "parent", "state", "link up", "models", "memory"], &rows);
        if l.left_out > 0 {
            text.push_str(&format!("and {} more, which are not listed\n", l.left_out));
        }
        text
    })
}
