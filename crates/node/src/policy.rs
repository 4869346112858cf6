//! Which role may call what.
//!
//! Each duty states the [`Rule`]s of its calls. The shell asks [`check`] before
//! every call, with the role from the caller's certificate; what no rule names
//! is refused. Membership
//! in a node's own subtree and revocation are checked by the shell as well:
//! a role is necessary, never sufficient.

use tierline_proto::{Code, Failure, Role};

/// Roles a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// Ends.
    pub const END: Self = Self(1);
    /// Edges.
    pub const EDGE: Self = Self(2);
    /// The cloud.
    pub const CLOUD: Self = Self(4);
    /// Operators.
    pub const OPERATOR: Self = Self(8);
    /// Applications.
    pub const APPLICATION: Self = Self(16);
    /// Nodes that have a parent.
    pub const CHILDREN: Self = Self::END.and(Self::EDGE);
    /// Nodes that have children.
    pub const PARENTS: Self = Self::EDGE.and(Self::CLOUD);
    /// Every node.
    pub const NODES: Self = Self::CHILDREN.and(Self::CLOUD);

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `role` is among them.
    #[must_use]
    pub const fn contains(self, role: Role) -> bool {
        let of = match role {
            Role::Unspecified => Self::NONE,
            Role::End => Self::END,
            Role::Edge => Self::EDGE,
            Role::Cloud => Self::CLOUD,
            Role::Operator => Self::OPERATOR,
            Role::Application => Self::APPLICATION,
        };
        self.0 & of.0 != 0
    }
}

/// Who is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// TLS without a client certificate.
    Anonymous,
    /// A certificate of ours, not expired, not revoked.
    Identified(Role),
    /// The node's own Unix socket, guarded by file permissions: an operator.
    Socket,
}

/// Who may call one thing.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// gRPC path.
    pub rpc: &'static str,
    /// Roles that may call it.
    pub callers: Roles,
    /// Roles of nodes that serve it.
    pub servers: Roles,
    /// Whether it needs no certificate.
    pub anonymous: bool,
}

impl Rule {
    /// Callers of these roles, at nodes of those.
    #[must_use]
    pub const fn new(rpc: &'static str, callers: Roles, servers: Roles) -> Self {
        Self { rpc, callers, servers, anonymous: false }
    }

    /// Also without a certificate.
    #[must_use]
    pub const fn for_strangers(self) -> Self {
        Self { anonymous: true, ..self }
    }
}

/// Whether `caller` may call `rpc` (a gRPC path) on a node of role `server`, by
/// these rules.
///
/// # Errors
/// [`Code::Unauthenticated`] without a certificate where one is needed,
/// [`Code::Forbidden`] where the role is not allowed or the node does not
/// serve it, or nobody does.
pub fn check<'r>(
    rules: impl IntoIterator<Item = &'r Rule>,
    rpc: &str,
    caller: Caller,
    server: Role,
) -> Result<(), Failure> {
    let forbidden = |message: String| Err(Failure::new(Code::Forbidden, message));
    let Some(rule) = rules.into_iter().find(|rule| rule.rpc == rpc) else {
        return forbidden(format!("`{rpc}` is not a call of this protocol"));
    };
    if !rule.servers.contains(server) {
        let who: Vec<&str> = [Role::End, Role::Edge, Role::Cloud]
            .iter()
            .filter(|r| rule.servers.contains(**r))
            .map(|r| r.word())
            .collect();
        let text = format!("this node is an {}, and only {} nodes do that (`{rpc}`)", server.word(), who.join(" and "));
        let help = match rule.servers {
            Roles::CLOUD => "run it on the cloud, or give the cloud's address with --endpoint",
            _ => "ask a node of that role",
        };
        return Err(Failure::new(Code::Forbidden, text).with_help(help));
    }
    match caller {
        Caller::Anonymous if rule.anonymous => Ok(()),
        Caller::Anonymous => {
            let failure = Failure::new(Code::Unauthenticated, format!("`{rpc}` needs a certificate of this site"));
            Err(failure.with_help("join first: `tierline join URL --token-file FILE`"))
        }
        Caller::Socket if rule.callers.contains(Role::Operator) => Ok(()),
        Caller::Socket => forbidden(format!("`{rpc}` is for nodes, not for the local socket")),
        Caller::Identified(role) if rule.callers.contains(role) => Ok(()),
        Caller::Identified(role) => forbidden(format!("role {} may not call `{rpc}`", role.word())),
    }
}
