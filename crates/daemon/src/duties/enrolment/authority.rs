//! The signing part of a site, on its cloud node: tokens, joins, renewals,
//! revocations.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tierline_identity::{Ca, Grant, Identity, IdentityError, Issued, JoinToken, NODE_VALIDITY, Peer, check_new_name};
use tierline_proto::limits::{RENAMES_MAX, REVOCATIONS_MAX};
use tierline_proto::v1::{
    Code, Failure, JoinReply, JoinRequest, NamedNode, Names, NodeRenameRequest, NodeRevokeRequest, RenewRequest,
    Revocations, TokenCreateReply, TokenCreateRequest, TokenInfo, TokenListReply,
};
use tierline_proto::{Role, Versions};
use tierline_store::State;
use tierline_store::members::{JoinAttempt, Joined, NodeRow, TokenRow};

use crate::net::Revoked;
use crate::runtime::Context;
use crate::runtime::events::Events;
use crate::runtime::records::Records;

/// Longest life of a token: it is a secret that travels by hand.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Devices that one token lets in at most.
const TOKEN_USES_MAX: u32 = 10_000;

/// The authority and its records.
pub struct Authority {
    ca: Arc<Ca>,
    state: Records,
    events: Events,
    revoked: Revoked,
    /// Every node that was ever let in, by identity.
    members: RwLock<HashMap<String, NodeRow>>,
    /// Those that were given another name: the one before, and whether their
    /// certificates say the new one.
    renamed: RwLock<HashMap<String, (String, bool)>>,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn refused(error: &IdentityError) -> Failure {
    let code = match error {
        IdentityError::BadName { .. }
        | IdentityError::NameLikeId { .. }
        | IdentityError::BadRequest { .. }
        | IdentityError::MalformedToken { .. } => Code::InvalidInput,
        _ => Code::Internal,
    };
    Failure::new(code, error.to_string())
}

impl Authority {
    /// The authority of a node that has a CA.
    #[must_use]
    pub fn new(ca: Arc<Ca>, cx: &Context) -> Self {
        let (state, events, revoked) = (cx.state.clone(), cx.events.clone(), cx.revoked.clone());
        Self { ca, state, events, revoked, members: RwLock::default(), renamed: RwLock::default() }
    }

    /// Reads who was ever let in.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(&self) -> Result<(), Failure> {
        let members = self.state.with(State::nodes).await?;
        let members = members.into_iter().map(|row| (row.id.clone(), row)).collect();
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
        let renames = self.state.with(State::renames).await?;
        let renamed = renames.into_iter().map(|(id, was, renewed)| (id, (was, renewed))).collect();
        *self.renamed.write().unwrap_or_else(PoisonError::into_inner) = renamed;
        Ok(())
    }

    /// Whether a node of this identity, name and role was let in.
    #[must_use]
    pub fn knows(&self, id: &str, name: &str, role: Role) -> bool {
        let renamed = || {
            let renamed = self.renamed.read().unwrap_or_else(PoisonError::into_inner);
            renamed.get(id).is_some_and(|(was, _)| was == name)
        };
        self.member(id).is_some_and(|row| row.role == role && (row.name == name || renamed()))
    }

    /// A node that was let in, under the name it has now.
    #[must_use]
    pub fn member(&self, id: &str) -> Option<NodeRow> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Everybody who was let in.
    #[must_use]
    pub fn members(&self) -> Vec<NodeRow> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Nodes whose certificates don't say their newest names yet.
    #[must_use]
    pub fn names(&self) -> Names {
        let renamed = self.renamed.read().unwrap_or_else(PoisonError::into_inner);
        let pending = renamed.iter().filter(|(_, (_, renewed))| !renewed).filter_map(|(id, _)| self.member(id));
        let mut nodes: Vec<NamedNode> =
            pending.map(|row| NamedNode { node_id: row.id, name: row.name }).take(RENAMES_MAX).collect();
        nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        Names { nodes }
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] for a role, name, life or number that can't be.
    pub async fn token_create(&self, request: &TokenCreateRequest) -> Result<TokenCreateReply, Failure> {
        let invalid = |text: String| Err(Failure::new(Code::InvalidInput, text));
        let role = request.role();
        if !matches!(role, Role::End | Role::Edge | Role::Operator) {
            return invalid(format!(
                "a device can't join as {}: choose end, edge or operator; a site has one cloud",
                role.word()
            ));
        }
        if !request.name.is_empty() {
            check_new_name(&request.name).map_err(|e| refused(&e))?;
        }
        if request.valid_s == 0 || request.valid_s > TOKEN_LIFE_MAX.as_secs() {
            return invalid(format!("a token lives 1 s to {} days", TOKEN_LIFE_MAX.as_secs() / 86_400));
        }
        if request.uses == 0 || request.uses > TOKEN_USES_MAX {
            return invalid(format!("a token lets in 1 to {TOKEN_USES_MAX} devices"));
        }
        let token = JoinToken::generate(self.ca.fingerprint()).map_err(|e| refused(&e))?;
        let not_after_s = now_s() + request.valid_s;
        let row = TokenRow {
            id: token.id.clone(),
            secret: token.secret_digest(),
            role,
            name: request.name.clone(),
            not_after_s,
            uses_left: request.uses,
            revoked: false,
        };
        self.state.with(move |state| state.add_token(&row)).await?;
        Ok(TokenCreateReply { token: token.text().to_string(), token_id: token.id, not_after_s })
    }

    /// Tokens that may still be used, and those taken back.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn token_list(&self) -> Result<TokenListReply, Failure> {
        let now = now_s();
        let tokens = self.state.with(State::tokens).await?;
        let good = tokens.into_iter().filter(|t| t.uses_left > 0 && t.not_after_s >= now);
        let info = |t: TokenRow| TokenInfo {
            token_id: t.id,
            role: t.role.into(),
            not_after_s: t.not_after_s,
            uses_left: t.uses_left,
            name: t.name,
            revoked: t.revoked,
        };
        Ok(TokenListReply { tokens: good.map(info).collect() })
    }

    /// Takes a token back.
    ///
    /// # Errors
    /// [`Code::NotFound`] where there is none of that id.
    pub async fn token_revoke(&self, id: &str) -> Result<(), Failure> {
        let wanted = id.to_owned();
        if self.state.with(move |state| state.revoke_token(&wanted)).await? {
            return Ok(());
        }
        Err(Failure::new(Code::NotFound, format!("there is no token `{id}`"))
            .with_help("`tierline token ls` lists them"))
    }

    /// Lets a device in.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] for a token that isn't good,
    /// [`Code::AlreadyExists`] for a name that is taken,
    /// [`Code::VersionMismatch`] for a device that speaks another protocol.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinReply, Failure> {
        let version = Versions::OURS
            .agree_with(request.versions.as_ref())
            .map_err(|e| Failure::new(Code::VersionMismatch, e.to_string()))?;
        let denied = |text: &str| {
            Err(Failure::new(Code::Unauthenticated, text)
                .with_help("make a new one on the cloud: `tierline token create`"))
        };
        let token: JoinToken = request.token.parse().map_err(|e: IdentityError| refused(&e))?;
        if token.fingerprint != self.ca.fingerprint() {
            return denied("the token is another site's");
        }
        check_new_name(&request.name).map_err(|e| refused(&e))?;
        let device_key = Ca::request_key(&request.csr_der).map_err(|e| refused(&e))?;
        let new_id = Ca::new_node_id().map_err(|e| refused(&e))?;
        let (name, now_s) = (request.name.clone(), now_s());
        let attempt = move |state: &State| {
            state.join(&JoinAttempt {
                token: &token.id,
                secret: token.secret_digest(),
                device_key,
                new_id: &new_id,
                name: &name,
                now_s,
            })
        };
        let joined = self.state.with(attempt).await?;
        let row = match joined {
            Joined::Node(row) => row,
            Joined::Unknown => return denied("no such token"),
            Joined::Revoked => return denied("the token was taken back"),
            Joined::Expired => return denied("the token has expired"),
            Joined::UsedUp => return denied("the token was used already"),
            Joined::ShutOut => return denied("the node that joined with this token is shut out"),
            Joined::NameTaken => {
                let text = format!("another node is called `{}`", request.name);
                return Err(Failure::new(Code::AlreadyExists, text)
                    .with_help("choose another with --name, or shut the old one out: `tierline nodes revoke NAME`"));
            }
        };
        self.members.write().unwrap_or_else(PoisonError::into_inner).insert(row.id.clone(), row.clone());
        let json = serde_json::json!({ "node": row.name, "role": row.role.word() });
        self.events.record("node", format!("{} got a certificate as {}", row.name, row.role.word()), &json);
        self.sign(&row, &request.csr_der, version).await
    }

    /// Signs a new key of a node that is in; whoever passes the request on,
    /// the node itself has signed it. With whether it has its newest name only
    /// now.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] for a request that isn't proved, or a node
    /// that is shut out.
    pub async fn renew(&self, request: &RenewRequest) -> Result<(JoinReply, bool), Failure> {
        let peer = self
            .ca
            .renewing(request, SystemTime::now())
            .map_err(|e| Failure::new(Code::Unauthenticated, e.to_string()).with_help("join again with a new token"))?;
        self.revoked.check(&peer)?;
        // Under the name that it was given meanwhile, if it was.
        let given = self.member(&peer.id).map_or(peer.name, |row| row.name);
        let row = NodeRow { id: peer.id, name: given, role: peer.role };
        let reply = self.sign(&row, &request.csr_der, Versions::OURS.max).await?;
        let pending = {
            let mut renamed = self.renamed.write().unwrap_or_else(PoisonError::into_inner);
            renamed.get_mut(&row.id).is_some_and(|(_, renewed)| !std::mem::replace(renewed, true))
        };
        if pending {
            self.state.with(move |state| state.renewed(&row.id)).await?;
        }
        Ok((reply, pending))
    }

    /// A new identity for the cloud itself.
    ///
    /// # Errors
    /// [`Code::Internal`] when the key can't be made or kept.
    pub fn renew_own(&self, peer: &Peer) -> Result<Identity, Failure> {
        let grant = Grant { id: &peer.id, role: peer.role, name: &peer.name, validity: NODE_VALIDITY };
        Identity::issue(&self.ca, &grant, SystemTime::now()).map_err(|e| refused(&e))
    }

    async fn sign(&self, row: &NodeRow, csr_der: &[u8], version: u32) -> Result<JoinReply, Failure> {
        let grant = Grant { id: &row.id, role: row.role, name: &row.name, validity: NODE_VALIDITY };
        let Issued { chain, peer } = self.ca.sign(csr_der, &grant, SystemTime::now()).map_err(|e| refused(&e))?;
        Ok(JoinReply {
            node_id: peer.id,
            certificate_chain: chain.iter().map(|c| Bytes::copy_from_slice(c)).collect(),
            ca_der: Bytes::copy_from_slice(self.ca.certificate()),
            not_after_s: peer.not_after.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            role: row.role.into(),
            revocations: Some(self.state.with(State::revocations).await?),
            version,
        })
    }

    /// The node of this identity or name.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub async fn row(&self, wanted: &str) -> Result<NodeRow, Failure> {
        let asked = wanted.to_owned();
        if let Some(row) = self.state.with(move |state| state.node(&asked)).await? {
            return Ok(row);
        }
        let names = self.state.with(State::node_names).await?;
        let near = names.iter().find(|n| strsim::damerau_levenshtein(n, wanted) <= 2);
        let help = near.map_or_else(|| "`tierline nodes` lists them".to_owned(), |n| format!("did you mean `{n}`?"));
        Err(Failure::new(Code::NotFound, format!("there is no node `{wanted}`")).with_help(help))
    }

    /// Gives a node another name: at once here, on itself once it has renewed
    /// its certificate, which says its name. Whether that changed anything.
    ///
    /// # Errors
    /// [`Code::NotFound`] for an unknown node, [`Code::AlreadyExists`] for a
    /// name that is taken, [`Code::Infeasible`] while jobs are under way, and
    /// for the cloud.
    pub async fn node_rename(&self, own_id: &str, request: &NodeRenameRequest) -> Result<bool, Failure> {
        check_new_name(&request.name).map_err(|e| refused(&e))?;
        let row = self.row(&request.node).await?;
        if row.name == request.name {
            return Ok(false);
        }
        if row.id == own_id {
            return Err(Failure::new(Code::Infeasible, "the cloud is called as it is started")
                .with_help("start it again with `tierline node --name NAME`"));
        }
        if self.revoked.has(&row.id) {
            return Err(Failure::new(Code::Infeasible, format!("{} is shut out", row.name)));
        }
        let jobs = self.state.with(State::jobs).await?.iter().filter(|job| job.ended.is_none()).count();
        if jobs > 0 {
            let text = format!("{jobs} jobs are under way, which know their members by name");
            return Err(Failure::new(Code::Infeasible, text).with_help("wait for them, or end them: `tierline job ls`"));
        }
        if self.names().nodes.len() >= RENAMES_MAX {
            let text = format!("{RENAMES_MAX} nodes have new names and haven't renewed their certificates yet");
            return Err(Failure::new(Code::TooLarge, text).with_help("wait until some are connected"));
        }
        let (renamed, name) = (row.clone(), request.name.clone());
        if !self.state.with(move |state| state.rename_node(&renamed, &name)).await? {
            let text = format!("another node is called `{}`", request.name);
            return Err(Failure::new(Code::AlreadyExists, text).with_help("choose another name"));
        }
        let new = NodeRow { name: request.name.clone(), ..row.clone() };
        self.members.write().unwrap_or_else(PoisonError::into_inner).insert(row.id.clone(), new);
        self.renamed.write().unwrap_or_else(PoisonError::into_inner).insert(row.id.clone(), (row.name.clone(), false));
        let json = serde_json::json!({ "node": request.name, "was": row.name });
        self.events.record("node", format!("{} is called {} from now on", row.name, request.name), &json);
        Ok(true)
    }

    /// Forgets a node that is shut out.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn forget(&self, row: &NodeRow) -> Result<(), Failure> {
        let id = row.id.clone();
        self.state.with(move |state| state.remove_node(&id)).await?;
        self.members.write().unwrap_or_else(PoisonError::into_inner).remove(&row.id);
        self.renamed.write().unwrap_or_else(PoisonError::into_inner).remove(&row.id);
        let json = serde_json::json!({ "node": row.name, "removed": true });
        self.events.record("node", format!("{} is removed", row.name), &json);
        Ok(())
    }

    /// Shuts a node out, for a cloud of this identity; the list with it.
    ///
    /// # Errors
    /// [`Code::NotFound`] for an unknown node; the cloud can't shut itself out.
    pub async fn node_revoke(&self, own_id: &str, request: &NodeRevokeRequest) -> Result<Revocations, Failure> {
        let row = self.row(&request.node).await?;
        self.revoke(own_id, &row, &request.reason).await
    }

    /// Shuts out a node that is known; the list with it.
    ///
    /// # Errors
    /// [`Code::Forbidden`] for the cloud itself, [`Code::TooLarge`] for more
    /// than a list can hold.
    pub async fn revoke(&self, own_id: &str, row: &NodeRow, reason: &str) -> Result<Revocations, Failure> {
        if row.id == own_id {
            return Err(Failure::new(Code::Forbidden, "the cloud can't shut itself out"));
        }
        let revoked = self.revoked.list().revoked.len();
        if revoked >= REVOCATIONS_MAX {
            let text = format!("{revoked} nodes are shut out, the most that a list can hold");
            return Err(
                Failure::new(Code::TooLarge, text).with_help("a site with another CA begins with an empty list")
            );
        }
        let (revoked, why) = (row.clone(), reason.to_owned());
        self.state.with(move |state| state.revoke_node(&revoked, &why, now_s())).await?;
        let json = serde_json::json!({ "node": row.name, "reason": reason });
        self.events.record("node", format!("{} is shut out", row.name), &json);
        self.state.with(State::revocations).await
    }
}
