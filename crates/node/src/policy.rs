//! Which role may call what, as one table.
//!
//! The shell asks [`check`] before every call, with the role from the
//! caller's certificate; what the table does not name is refused. Membership
//! in a node's own subtree and revocation are checked by the shell as well:
//! a role is necessary, never sufficient.

use tierline_proto::{Code, Failure, Role};

/// Roles a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    const NONE: Self = Self(0);
    const END: Self = Self(1);
    const EDGE: Self = Self(2);
    const CLOUD: Self = Self(4);
    const OPERATOR: Self = Self(8);
    /// Nodes that have a parent.
    const CHILDREN: Self = Self::END.and(Self::EDGE);
    /// Nodes that have children.
    const PARENTS: Self = Self::EDGE.and(Self::CLOUD);
    const NODES: Self = Self::CHILDREN.and(Self::CLOUD);

    const fn and(self, other: Self) -> Self {
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

/// One line of the table.
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

const fn rule(rpc: &'static str, callers: Roles, servers: Roles) -> Rule {
    Rule { rpc, callers, servers, anonymous: false }
}

/// The table. An edge passes enrolments on to the cloud, which holds the CA.
pub const RULES: &[Rule] = &[
    Rule { rpc: "/tierline.v1.Enrollment/Join", callers: Roles::NODES, servers: Roles::PARENTS, anonymous: true },
    rule("/tierline.v1.Enrollment/Renew", Roles::NODES.and(Roles::OPERATOR), Roles::PARENTS),
    rule("/tierline.v1.Control/Hello", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Control/Session", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Infer/Run", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Federate/Submit", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Federate/Meet", Roles::EDGE, Roles::EDGE),
    rule("/tierline.v1.Bulk/Stat", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Bulk/Fetch", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Bulk/Probe", Roles::CHILDREN, Roles::PARENTS),
    rule("/tierline.v1.Local/Status", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Nodes", Roles::OPERATOR, Roles::NODES),
    // Only the cloud has the CA's key and the lists that go with it.
    rule("/tierline.v1.Local/TokenCreate", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/TokenList", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/TokenRevoke", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/NodeRevoke", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/NodeRemove", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/NodeRename", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/ModelList", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/ModelShow", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/ModelAdd", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/ModelRemove", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/ModelRename", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Profile", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Plan", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Explain", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Infer", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Drain", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Metrics", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/Watch", Roles::OPERATOR, Roles::NODES),
    // Jobs begin at the cloud; other nodes take part.
    rule("/tierline.v1.Local/JobSubmit", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/JobList", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/JobShow", Roles::OPERATOR, Roles::NODES),
    rule("/tierline.v1.Local/JobControl", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/JobWatch", Roles::OPERATOR, Roles::CLOUD),
    rule("/tierline.v1.Local/JobModel", Roles::OPERATOR, Roles::NODES),
];

/// Whether `caller` may call `rpc` (a gRPC path) on a node of role `server`.
///
/// # Errors
/// [`Code::Unauthenticated`] without a certificate where one is needed,
/// [`Code::Forbidden`] where the role is not allowed or the node does not
/// serve it, or nobody does.
pub fn check(rpc: &str, caller: Caller, server: Role) -> Result<(), Failure> {
    let forbidden = |message: String| Err(Failure::new(Code::Forbidden, message));
    let Some(rule) = RULES.iter().find(|rule| rule.rpc == rpc) else {
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
