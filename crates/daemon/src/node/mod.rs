//! The daemon: one node of a site, as the Tokio shell around the machines of
//! `tierline-node`.
//!
//! The machines decide; this shell performs: it holds the connections
//! ([`uplink`], [`services`]), the sessions ([`compute`]), the artefacts
//! ([`artefacts`]) and the plans ([`planner`]). Start at [`run`], then
//! [`flow`], the path of a request.

pub mod artefacts;
pub mod authority;
pub mod budget;
pub mod catalogue;
pub mod compute;
pub mod door;
pub mod events;
pub mod federation;
pub mod flow;
mod library;
pub mod memory;
pub mod metrics;
mod models;
pub mod planner;
pub mod records;
pub mod renewal;
mod scrape;
pub mod services;
mod start;
pub mod tasks;
pub mod transport;
pub mod uplink;
pub mod wire;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tierline_node::lease::Lost;
use tierline_node::request::Event as RequestEvent;
use tierline_node::{Peer, Time};
use tierline_proto::limits::{NODES_BELOW_MAX, PATH_TIERS_MAX};
use tierline_proto::v1::{
    Catalogue as CatalogueMessage, Code, DrainRequest, Failure, KeptMemory, LoadReport, Names, NodeInfo, NodeStatus,
    NodesReply, ReverseReply, ReverseRequest, Revocations, Subtree, UpstreamPath, UpstreamTier, child_message,
    parent_message, reverse_reply,
};
use tierline_proto::{Digest, Role};
use tierline_store::state::{NodeRow, SeenRow};
use tokio::sync::{Semaphore, broadcast, watch};

use crate::config::NodeConfig;
use tierline_identity::Identity;
use tierline_identity::tls::LiveIdentity;

use self::catalogue::Catalogue;
use self::compute::Compute;
use self::events::Events;
use self::services::control::{Children, Listed};
use self::uplink::Uplink;

pub use self::start::{Ended, Ready, Told, run};

/// Between two reports to parents, at least.
const REPORT_PAUSE: Duration = Duration::from_secs(1);

/// Nodes that come within this are remembered in one go.
const SEEN_PAUSE: Duration = Duration::from_millis(200);

/// Changes of parents that requests in flight hear of.
const PEER_CHANGES_MAX: usize = 64;

/// Calls of parents under way.
static REVERSE_CALLS: Semaphore = Semaphore::const_new(16);

/// One node, shared by everything that runs on it.
pub struct Node {
    config: NodeConfig,
    identity: LiveIdentity,
    id: String,
    role: Role,
    engine: Arc<dyn tierline_engine::Engine>,
    origin: Instant,
    /// Changes with every start.
    pub incarnation: u64,
    /// Slices run here.
    pub compute: Compute,
    /// Memory for requests under way.
    pub budget: budget::Budget,
    /// Memory for what may be wanted again.
    pub memory: memory::Memory,
    /// Models by name.
    pub catalogue: Catalogue,
    /// What happened.
    pub events: Events,
    /// Nodes below.
    pub children: Children,
    doors: Arc<door::Doors>,
    /// Numbers for Prometheus.
    pub metrics: metrics::Metrics,
    /// What runs on it.
    pub tasks: tasks::Tasks,
    artefacts: artefacts::Artefacts,
    planner: planner::Planner,
    /// Jobs under way.
    pub federations: federation::Federations,
    authority: Option<authority::Authority>,
    uplinks: Vec<Arc<Uplink>>,
    /// Rings when parents should hear anew what is here and below.
    unreported: tokio::sync::Notify,
    /// Where other nodes reach it, once it listens.
    url: std::sync::OnceLock<String>,
    changes: broadcast::Sender<RequestEvent>,
    revocations: Mutex<Revocations>,
    /// Nodes whose certificates don't say their newest names, as is told above.
    names: Mutex<Names>,
    /// Nodes that came, and are not remembered on the disk yet.
    seen: Mutex<Vec<SeenRow>>,
    /// Whether it is to begin anew once it has ended.
    begins_anew: AtomicBool,
    state: Arc<records::Records>,
    /// The newest catalogue of the preferred parent; older ones say nothing more.
    catalogue_heard: watch::Sender<Option<CatalogueMessage>>,
    /// One catalogue is taken over at a time.
    adopting: tokio::sync::Mutex<()>,
    /// What was uploaded is read and checked one after the other.
    preparing: tokio::sync::Mutex<()>,
    /// One model is loaded at a time.
    loading: tokio::sync::Mutex<()>,
    /// One model is measured at a time.
    measuring: tokio::sync::Mutex<()>,
    /// One job is set up at a time.
    adopting_jobs: tokio::sync::Mutex<()>,
    /// The path as children know it.
    told: Mutex<UpstreamPath>,
    draining: watch::Sender<bool>,
    /// Itself, for tasks it starts.
    this: std::sync::Weak<Node>,
}

impl Node {
    /// Its name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Where other nodes reach it; empty for those that aren't called.
    #[must_use]
    pub fn url(&self) -> &str {
        self.url.get().map_or("", String::as_str)
    }

    /// Its identity, from its certificate.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its role, from its certificate.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Key, certificate and CA.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.get()
    }

    /// The machines' time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    /// A moment as the machines count it.
    #[must_use]
    pub fn time_of(&self, at: Instant) -> Time {
        Time::ZERO + at.saturating_duration_since(self.origin)
    }

    /// The moment of a machine's time.
    #[must_use]
    pub fn instant_of(&self, time: Time) -> Instant {
        // Machines use far times for "never"; a day is as good.
        self.origin + time.since(Time::ZERO).min(self.origin.elapsed() + Duration::from_secs(86_400))
    }

    /// What it was told.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    fn shared(&self) -> Option<Arc<Node>> {
        self.this.upgrade()
    }

    // ---- parents

    /// The parent at `peer`.
    ///
    /// # Errors
    /// When there is none.
    pub fn uplink(&self, peer: Peer) -> Result<Arc<Uplink>, Failure> {
        self.uplinks
            .get(peer.0 as usize)
            .cloned()
            .ok_or_else(|| Failure::new(Code::Unreachable, format!("{} has no parent number {}", self.name(), peer.0)))
    }

    /// Parents, in order of preference.
    #[must_use]
    pub fn uplinks(&self) -> &[Arc<Uplink>] {
        &self.uplinks
    }

    /// The preferred parent that is up, else the first.
    #[must_use]
    pub fn first_parent(&self) -> Option<Peer> {
        self.uplinks.iter().find(|u| u.is_up()).or(self.uplinks.first()).map(|u| u.peer)
    }

    /// Whether it has parents, and none is connected.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        !self.uplinks.is_empty() && self.uplinks.iter().all(|uplink| !uplink.is_up())
    }

    /// A connection to the preferred parent.
    ///
    /// # Errors
    /// When none is up.
    pub fn first_connection(&self) -> Result<transport::Pair, Failure> {
        let peer = self.first_parent().ok_or_else(|| Failure::new(Code::Unreachable, "this node has no parent"))?;
        self.uplink(peer)?.connections()
    }

    /// Parents other than the planned one, for recoveries: all of them where
    /// this node was to run everything and may find that it can't.
    #[must_use]
    pub fn other_parents(&self, planned: Option<Peer>) -> Vec<Peer> {
        self.uplinks.iter().map(|u| u.peer).filter(|p| Some(*p) != planned).collect()
    }

    /// Parents whose lease is lost, and why.
    #[must_use]
    pub fn parents_down(&self) -> Vec<(Peer, String)> {
        self.uplinks.iter().filter(|u| !u.is_up()).map(|u| (u.peer, u.reason())).collect()
    }

    /// How things are with parents now, for who has missed a change.
    #[must_use]
    pub fn parents_now(&self) -> Vec<RequestEvent> {
        let now = |uplink: &Arc<Uplink>| match uplink.is_up() {
            true => RequestEvent::PeerUp { peer: uplink.peer },
            false => RequestEvent::PeerDown { peer: uplink.peer, reason: uplink.reason() },
        };
        self.uplinks.iter().map(now).collect()
    }

    /// What happens to parents from now on.
    #[must_use]
    pub fn peer_changes(&self) -> broadcast::Receiver<RequestEvent> {
        self.changes.subscribe()
    }

    /// A lease is held.
    pub fn peer_up(self: &Arc<Self>, uplink: &Arc<Uplink>) {
        let _ = self.changes.send(RequestEvent::PeerUp { peer: uplink.peer });
        self.artefacts.parent_changed(uplink.peer);
        self.events.record(
            "lease",
            format!("connected to {}", uplink.name()),
            &serde_json::json!({ "parent": uplink.name(), "up": true }),
        );
        self.report(uplink);
        self.replan();
        self.tell_children_path();
        self.federations.parent(uplink, true);
    }

    /// A lease is lost.
    pub fn peer_down(self: &Arc<Self>, peer: Peer, name: &str, failure: &Failure) {
        let reason = format!("the lease with {name} is lost: {failure}");
        let _ = self.changes.send(RequestEvent::PeerDown { peer, reason });
        self.artefacts.parent_changed(peer);
        if let Ok(uplink) = self.uplink(peer) {
            self.federations.parent(&uplink, false);
        }
        self.events.record(
            "lease",
            format!("lost {name}: {failure}"),
            &serde_json::json!({ "parent": name, "up": false }),
        );
        self.replan();
        self.tell_children_path();
    }

    /// The estimate of a link moved.
    pub fn link_moved(self: &Arc<Self>, uplink: &Arc<Uplink>, estimate: &tierline_node::estimate::Estimate) {
        if estimate.changed {
            let up = estimate.up.map_or("unknown".into(), |b| format!("{:.2} Mbit/s", b * 8.0 / 1e6));
            let text = format!(
                "link to {}: {up} up, round trip {:.0} ms",
                uplink.name(),
                estimate.rtt.map_or(0.0, |r| r.as_secs_f64() * 1e3)
            );
            let json = serde_json::json!({ "parent": uplink.name(), "up_bytes_per_s": estimate.up, "rtt_ns": estimate.rtt.map(flow::ns) });
            self.events.record("link", text, &json);
        }
        self.planner.conditions(self, estimate.changed);
        if estimate.changed {
            self.tell_children_path();
        }
    }

    /// Tells a parent what this node holds and who is below it.
    fn report(self: &Arc<Self>, uplink: &Arc<Uplink>) {
        uplink.tell(child_message::Body::Offers(self.planner.offers(self)));
        uplink.tell(child_message::Body::Load(self.load()));
        for part in self.listed().reports() {
            uplink.tell(child_message::Body::Subtree(part));
        }
    }

    /// There is something to report to every parent, soon: with many children,
    /// one report stands for all that changed since the last.
    pub fn report_up(&self) {
        self.unreported.notify_one();
    }

    /// Reports to every parent when there is something to say, until the node
    /// ends.
    async fn keep_reporting(self: Arc<Self>) {
        loop {
            self.unreported.notified().await;
            self.uplinks.iter().for_each(|uplink| self.report(uplink));
            tokio::time::sleep(REPORT_PAUSE).await;
        }
    }

    /// Children, all below them, and who was there before: what this node
    /// lists.
    fn listed(&self) -> Listed {
        let mut listed = self.children.list(self.now(), &self.id);
        // Of one that moved, the place where it is now.
        let mut best: HashMap<String, usize> = HashMap::new();
        let rank = |node: &NodeInfo| (matches!(node.state.as_str(), "connected" | "doubled"), node.last_seen_ms);
        for (at, node) in listed.nodes.iter().enumerate() {
            let first = best.entry(node.node_id.clone()).or_insert(at);
            if rank(node) > rank(&listed.nodes[*first]) {
                *first = at;
            }
        }
        let mut at = 0..;
        listed.nodes.retain(|node| at.next() == best.get(&node.node_id).copied());
        if let Some(authority) = &self.authority {
            let known = |node: &NodeInfo| authority.member(&node.node_id);
            listed.nodes.retain(|node| known(node).is_some());
            for node in &mut listed.nodes {
                // Under its newest name, whatever its certificate says.
                node.node_name = known(node).map_or_else(|| node.node_name.clone(), |row| row.name);
            }
            let mut never: Vec<_> = authority.members();
            never.retain(|row| row.id != self.id && row.role != Role::Operator && !best.contains_key(&row.id));
            never.sort_by(|a, b| a.name.cmp(&b.name));
            listed.nodes.extend(never.into_iter().map(|row| NodeInfo {
                node_id: row.id,
                node_name: row.name,
                role: row.role.into(),
                state: "never".to_owned(),
                ..NodeInfo::default()
            }));
        }
        for node in listed.nodes.iter_mut().filter(|node| self.is_revoked(&node.node_id)) {
            "revoked".clone_into(&mut node.state);
        }
        listed
    }

    /// Remembers who came, over a restart: those who come together in one go.
    fn keep_seen(&self, nodes: &[NodeInfo], via: &str) {
        let rows = nodes.iter().map(|node| SeenRow {
            node: NodeRow { id: node.node_id.clone(), name: node.node_name.clone(), role: node.role() },
            parent: node.parent_id.clone(),
            via: via.to_owned(),
            seen_ms: node.last_seen_ms,
        });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = seen.is_empty();
        seen.extend(rows);
        // More would only be forgotten again.
        let surplus = seen.len().saturating_sub(NODES_BELOW_MAX);
        seen.drain(..surplus);
        let Some(node) = self.shared().filter(|_| begins && !seen.is_empty()) else { return };
        self.tasks.spawn("memory of nodes", async move {
            tokio::time::sleep(SEEN_PAUSE).await;
            let rows = std::mem::take(&mut *node.seen.lock().unwrap_or_else(PoisonError::into_inner));
            // On a full disk, say, they are only not remembered.
            if let Err(failure) = node.state.with(move |state| state.see(&rows, NODES_BELOW_MAX)).await {
                tracing::debug!(%failure, "who came is not remembered");
            }
        });
    }

    /// Nodes have come below this one: parents hear of them at once, since what
    /// these nodes say of jobs is believed from then on.
    ///
    /// `via`: the child that told of them; empty for a child itself.
    pub fn tell_of_new(&self, nodes: Vec<NodeInfo>, via: &str) {
        self.keep_seen(&nodes, via);
        for part in (Listed { nodes, left_out: 0 }).reports() {
            let news = Subtree { news: true, more: false, left_out: 0, ..part };
            for uplink in &self.uplinks {
                uplink.tell(child_message::Body::Subtree(news.clone()));
            }
        }
    }

    /// Whether a child may say something of a member: of itself, or of a node
    /// that it is known to have below it.
    #[must_use]
    pub fn speaks_for(&self, child: &str, member: &str) -> bool {
        let below = || self.children.below(child, member).is_some_and(|id| !self.is_revoked(&id));
        member.is_empty() || member == child || below()
    }

    /// Whether a node that a child tells of may exist: whoever holds the site's
    /// CA knows all that do.
    #[must_use]
    pub fn may_be_below(&self, node: &NodeInfo) -> bool {
        let known = |authority: &authority::Authority| authority.knows(&node.node_id, &node.node_name, node.role());
        node.node_id != self.id && self.authority.as_ref().is_none_or(known)
    }

    /// A parent calls this node.
    pub fn reverse(self: &Arc<Self>, uplink: &Arc<Uplink>, request: ReverseRequest) {
        use tierline_proto::v1::reverse_request::Body;
        let (node, uplink) = (Arc::clone(self), Arc::clone(uplink));
        let Ok(turn) = REVERSE_CALLS.try_acquire() else {
            let busy = Failure::new(Code::Overloaded, "too many calls of a parent are under way");
            let body = Some(reverse_reply::Body::Failure(busy));
            return uplink.tell(child_message::Body::Reply(ReverseReply { call: request.call, body }));
        };
        self.tasks.spawn("reverse call", async move {
            let _turn = turn;
            let call = request.call;
            let body = match request.body {
                Some(Body::Status(_)) => reverse_reply::Body::Status(node.status().await),
                // Whoever runs a node ends it; a parent that was broken into must not.
                Some(Body::Drain(_)) => {
                    let text = "a parent doesn't end a node; an operator on it does";
                    reverse_reply::Body::Failure(Failure::new(Code::Forbidden, text))
                }
                _ => reverse_reply::Body::Failure(Failure::new(Code::Protocol, "this node does not know that call")),
            };
            uplink.tell(child_message::Body::Reply(ReverseReply { call, body: Some(body) }));
        });
    }

    // ---- children

    /// A child's session opened.
    pub fn child_up(self: &Arc<Self>, peer: &tierline_identity::Peer) {
        self.events.record(
            "node",
            format!("{} joined", peer.name),
            &serde_json::json!({ "node": peer.name, "up": true }),
        );
        self.tell_of_new(
            vec![NodeInfo {
                node_id: peer.id.clone(),
                node_name: peer.name.clone(),
                role: peer.role.into(),
                parent_id: self.id.clone(),
                state: "connected".to_owned(),
                last_seen_ms: events::now_ms(),
                ..NodeInfo::default()
            }],
            "",
        );
        self.report_up();
        self.federations.child_up(self, &peer.name);
    }

    /// Two processes with one identity want a child's lease.
    pub fn child_copied(&self, id: &str) {
        let name = self.children.name_of(id).unwrap_or_else(|| id.to_owned());
        let text = format!(
            "two copies of {name}'s data folder are running: the one that was started first is turned away; stop one of \
             them (if neither is yours: `tierline nodes revoke {id}`)"
        );
        self.events.record("node", text, &serde_json::json!({ "node": id, "copied": true }));
    }

    /// A child's lease ended.
    pub fn child_down(&self, id: &str, why: Lost) {
        let name = self.children.name_of(id).unwrap_or_else(|| id.to_owned());
        let why = match why {
            Lost::Expired => "nothing was heard of it in time",
            Lost::Ended => "its connection ended",
            Lost::Replaced => "it said hello again",
            Lost::Revoked => "it is shut out",
            Lost::Draining => "this node stops",
        };
        let json = serde_json::json!({ "node": id, "name": name, "up": false });
        self.events.record("node", format!("{name} is gone: {why}"), &json);
        if let Some(node) = self.shared() {
            node.report_up();
            if let Some(name) = node.children.name_of(id) {
                node.federations.child_down(&name);
            }
        }
    }

    /// The tiers from here up, as children plan with them.
    #[must_use]
    pub fn path_for_children(self: &Arc<Self>) -> UpstreamPath {
        let above = self.first_parent().and_then(|p| self.uplink(p).ok());
        // Told of also while it is away: what is planned for it is answered nearer.
        let above_path = above.as_ref().and_then(|u| u.path());
        let own = UpstreamTier {
            node_id: self.id.clone(),
            node_name: self.name().to_owned(),
            role: self.role.into(),
            models: self.planner.offers(self).models,
            link_above: above.as_ref().map(|u| u.estimate(self.now())),
            load: Some(self.load()),
            reachable: above.as_ref().is_none_or(|u| u.is_up()),
        };
        let tiers = std::iter::once(own).chain(above_path.into_iter().flat_map(|p| p.tiers));
        let tiers = tiers.take(PATH_TIERS_MAX).collect();
        UpstreamPath { sequence: events::now_ms(), tiers }
    }

    /// Sends every child the path.
    pub fn tell_children_path(self: &Arc<Self>) {
        let path = self.path_for_children();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&path);
        self.children.tell_all(&parent_message::Body::Path(path));
    }

    /// Sends every child the path if it differs by more than noise from what
    /// they were told last.
    pub fn refresh_children_path(self: &Arc<Self>) {
        let path = self.path_for_children();
        let moved = differs(&self.told.lock().unwrap_or_else(PoisonError::into_inner), &path);
        if moved {
            self.tell_children_path();
        }
    }

    /// Sends every child the catalogue.
    pub fn tell_children_catalogue(&self) {
        self.children.tell_all(&parent_message::Body::Catalogue(self.catalogue.message()));
    }

    /// A child says which sessions its likely plans need above.
    pub fn warm_hints(self: &Arc<Self>, hints: &tierline_proto::v1::WarmHints) {
        self.planner.warm_hints(self, hints);
    }

    // ---- plans

    /// Conditions or plans may have changed.
    pub fn replan(self: &Arc<Self>) {
        self.planner.replan(self);
    }

    // ---- revocation

    /// Refuses a certificate that is on the list.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`] when it is revoked.
    pub fn check_revoked(&self, peer: &tierline_identity::Peer) -> Result<(), Failure> {
        let list = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        let revoked =
            list.revoked.iter().any(|r| r.node_id == peer.id || (!r.serial.is_empty() && r.serial == peer.serial));
        if revoked {
            let text = format!("the certificate of {} is revoked", peer.name);
            return Err(Failure::new(Code::Unauthenticated, text).with_help("join again with a new token"));
        }
        Ok(())
    }

    /// Whether a node is shut out.
    #[must_use]
    pub fn is_revoked(&self, id: &str) -> bool {
        let list = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        list.revoked.iter().any(|r| r.node_id == id)
    }

    /// The list as this node has it.
    #[must_use]
    pub fn revocations(&self) -> Revocations {
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A newer list came from above.
    pub async fn hear_revocations(self: &Arc<Self>, list: &Revocations) {
        {
            let mut own = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
            if list.sequence <= own.sequence {
                return;
            }
            *own = list.clone();
        }
        let kept = list.clone();
        if let Err(error) = self.state.with(move |state| state.keep_revocations(&kept)).await {
            tracing::warn!(%error, "the revocations hold until the next start only");
        }
        for revoked in &list.revoked {
            self.children.revoke(self, &revoked.node_id);
            for uplink in &self.uplinks {
                uplink.leave_if(&revoked.node_id);
            }
        }
        self.children.tell_all(&parent_message::Body::Revocations(list.clone()));
        self.shut_out(list);
    }

    /// Closes the connections of nodes that are out, once they could hear why.
    fn shut_out(&self, list: &Revocations) {
        /// Enough for a goodbye on a thin link.
        const LAST_WORDS: Duration = Duration::from_secs(3);
        let doors = Arc::clone(&self.doors);
        let out: HashSet<String> = list.revoked.iter().map(|revoked| revoked.node_id.clone()).collect();
        self.tasks.spawn("last words", async move {
            tokio::time::sleep(LAST_WORDS).await;
            doors.shut(&out);
        });
    }

    // ---- names

    /// Nodes with newer names than their certificates say, as this node knows
    /// them.
    #[must_use]
    pub fn names(&self) -> Names {
        match &self.authority {
            Some(authority) => authority.names(),
            None => self.names.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Tells every child of nodes with newer names.
    pub fn tell_names(&self) {
        self.children.tell_all(&parent_message::Body::Names(self.names()));
    }

    /// A parent tells of nodes with newer names: one that is meant itself gets
    /// a certificate of that name, and begins anew with it.
    pub fn hear_names(self: &Arc<Self>, names: Names) {
        let own = names.nodes.iter().find(|named| named.node_id == self.id && named.name != self.name());
        let meant = own.is_some();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        self.tell_names();
        if !meant {
            return;
        }
        let node = Arc::clone(self);
        self.tasks.spawn("renaming", async move {
            if let Err(failure) = renewal::renew(&node).await {
                // Heard again with the next session, or at the next start.
                tracing::warn!(%failure, "this node could not take its new name yet");
                return;
            }
            if node.identity().peer().name != node.name() {
                node.begins_anew.store(true, Ordering::Relaxed);
                let _ = node.draining.send(true);
            }
        });
    }

    // ---- catalogue

    /// A parent says which models there are.
    pub fn hear_catalogue(self: &Arc<Self>, uplink: &Arc<Uplink>, message: CatalogueMessage) {
        // Parents of one site tell the same; the preferred one that is up counts.
        if self.first_parent() != Some(uplink.peer) {
            return;
        }
        self.catalogue_heard.send_replace(Some(message));
    }

    /// Whether a parent has told of a model of this name.
    #[must_use]
    pub fn is_announced(&self, name: &str) -> bool {
        self.catalogue_heard.borrow().as_ref().is_some_and(|heard| heard.models.iter().any(|model| model.name == name))
    }

    /// Takes over what the catalogue above says, until the node ends.
    async fn keep_catalogue(self: Arc<Self>) {
        let mut heard = self.catalogue_heard.subscribe();
        loop {
            let message = heard.borrow_and_update().clone();
            let late = match message {
                Some(message) => {
                    let _turn = self.adopting.lock().await;
                    // Catalogues are whole: a newer one says all that this one does.
                    models::adopt(&self, &message, || !heard.has_changed().unwrap_or(true)).await
                }
                None => false,
            };
            tokio::select! {
                changed = heard.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(models::AGAIN), if late => {}
            }
        }
    }

    // ---- state

    /// How busy it is.
    #[must_use]
    pub fn load(&self) -> LoadReport {
        let memory_max_bytes = self.memory.max();
        LoadReport {
            memory_free_bytes: memory_max_bytes.saturating_sub(self.memory.used()),
            memory_max_bytes,
            queued: u32::try_from(self.compute.waiting()).unwrap_or(u32::MAX),
            wait_ns: flow::ns(self.compute.congestion()),
            ..LoadReport::default()
        }
    }

    /// Everything `tierline nodes` says of this node.
    pub async fn status(self: &Arc<Self>) -> NodeStatus {
        NodeStatus {
            node_id: self.id.clone(),
            node_name: self.name().to_owned(),
            role: self.role.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: tierline_proto::Versions::OURS.max,
            engine: self.engine.name().to_owned(),
            engine_version: self.engine.version(),
            uptime_ms: u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX),
            load: Some(self.load()),
            parents: self.uplinks.iter().map(|u| u.status(self.now())).collect(),
            children: self.listed().nodes,
            sessions: Vec::new(),
            store_bytes: self.artefacts.bytes().await,
            certificate_not_after_s: seconds(self.identity().peer().not_after),
            draining: *self.draining.borrow(),
            memory: self.memory.kept().map(kept_message).into(),
        }
    }

    /// This node and everything below it.
    #[must_use]
    pub fn nodes(self: &Arc<Self>) -> NodesReply {
        let Listed { nodes, left_out } = self.listed();
        let parent = self.first_parent().and_then(|peer| self.uplink(peer).ok());
        let own = NodeInfo {
            node_id: self.id.clone(),
            node_name: self.name().to_owned(),
            role: self.role.into(),
            parent_id: parent.as_ref().map_or_else(String::new, |u| u.parent_id()),
            parent_name: parent.as_ref().map_or_else(String::new, |u| u.name()),
            state: if self.is_cut_off() { "cut off" } else { "connected" }.to_owned(),
            last_seen_ms: events::now_ms(),
            link: self.uplinks.first().map(|u| u.estimate(self.now())),
            load: Some(self.load()),
            models: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model_count: u32::try_from(self.planner.offers(self).models.len()).unwrap_or(u32::MAX),
            catalogue: self.catalogue.mark(),
        };
        NodesReply { nodes: std::iter::once(own).chain(nodes).collect(), left_out }
    }

    /// The signing part, on the cloud.
    #[must_use]
    pub fn authority(&self) -> Option<&authority::Authority> {
        self.authority.as_ref()
    }

    /// The signing part, or why it isn't here.
    ///
    /// # Errors
    /// On nodes that don't hold the CA.
    pub fn the_authority(&self) -> Result<&authority::Authority, Failure> {
        self.authority.as_ref().ok_or_else(|| {
            Failure::new(Code::Forbidden, format!("{} does not hold the site's CA", self.name()))
                .with_help("ask the cloud node")
        })
    }

    /// Ends the node once running requests are done.
    pub fn drain(self: &Arc<Self>, request: &DrainRequest) {
        self.children.drain(self);
        self.compute.drain();
        let node = Arc::clone(self);
        let grace = Duration::from_millis(request.grace_ms.into());
        self.tasks.spawn("drain", async move {
            tokio::time::sleep(grace).await;
            let _ = node.draining.send(true);
        });
    }

    /// A model's digest as a message field.
    ///
    /// # Errors
    /// When it is none.
    pub fn digest_bytes(&self, digest: &str) -> Result<bytes::Bytes, Failure> {
        digest.parse::<Digest>().map(Digest::to_bytes).map_err(|e| Failure::new(Code::Corrupt, e.to_string()))
    }
}

/// Whether links, waits or profiles on a path differ enough to matter to plans.
fn differs(old: &UpstreamPath, new: &UpstreamPath) -> bool {
    /// Waits below this change no plan.
    const WAIT_NS: f64 = 5e6;
    let apart = |a: f64, b: f64, floor: f64| (a - b).abs() > floor.max(0.15 * a.max(b));
    let link = |tier: &UpstreamTier| tier.link_above.unwrap_or_default();
    let wait = |tier: &UpstreamTier| tier.load.map_or(0.0, |l| l.wait_ns as f64);
    let tier = |(a, b): (&UpstreamTier, &UpstreamTier)| {
        let (x, y) = (link(a), link(b));
        a.node_id != b.node_id
            || a.reachable != b.reachable
            || a.models != b.models
            || apart(x.up_bytes_per_s, y.up_bytes_per_s, 0.0)
            || apart(x.down_bytes_per_s, y.down_bytes_per_s, 0.0)
            || apart(x.rtt_ns as f64, y.rtt_ns as f64, WAIT_NS)
            || apart(wait(a), wait(b), WAIT_NS)
    };
    old.tiers.len() != new.tiers.len() || old.tiers.iter().zip(&new.tiers).any(tier)
}

fn kept_message(kept: memory::Kept) -> KeptMemory {
    KeptMemory { kind: kept.kind.name().to_owned(), count: kept.count as u64, bytes: kept.bytes }
}

/// Unix time of a moment, in seconds.
fn seconds(at: std::time::SystemTime) -> u64 {
    at.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Sleeps until `at`; forever without one.
pub(crate) async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
