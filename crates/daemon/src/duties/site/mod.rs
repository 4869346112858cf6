//! The site as a node sees it: itself, who is below it, how busy they are.
//! Parents hear of it, operators ask for it.

mod below;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tierline_identity::Peer;
use tierline_node::policy::{Roles, Rule};
use tierline_proto::envelope::SITE;
use tierline_proto::limits::{NODES_BELOW_MAX, SUBTREE_NODES_MAX};
use tierline_proto::v1::{
    Code, Failure, LoadReport, MemoryUse, NodeInfo, NodeRemoveRequest, NodeStatus, NodesReply, ReverseReply,
    ReverseRequest, SiteReport, Subtree, reverse_reply, site_report,
};
use tierline_proto::{Breach, Role, Sound};
use tierline_store::State;
use tierline_store::members::{self, NodeRow, SeenRow};
use tokio::sync::{Notify, Semaphore};

use self::below::{Below, Listed};
use super::artefacts::Artefacts;
use super::catalogue::{Catalogue, Change};
use super::enrolment::Enrolment;
use crate::device::memory;
use crate::net::Uplink;
use crate::runtime::Context;
use crate::runtime::duty::{Assembly, Duty, Registration};
use crate::runtime::events::now_ms;

/// Between two reports to parents, at least.
const REPORT_PAUSE: Duration = Duration::from_secs(1);

/// Nodes that come within this are remembered in one go.
const SEEN_PAUSE: Duration = Duration::from_millis(200);

/// Calls of parents under way.
static REVERSE_CALLS: Semaphore = Semaphore::const_new(16);

/// Its line in the registry.
pub const DUTY: Registration = Registration {
    name: SITE,
    tables: members::SEEN_TABLES,
    rules: &[
        Rule::new("/tierline.v1.Local/Status", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/Nodes", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/NodeRemove", Roles::OPERATOR, Roles::CLOUD),
        Rule::new("/tierline.v1.Local/Drain", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/Metrics", Roles::OPERATOR, Roles::NODES),
        Rule::new("/tierline.v1.Local/Watch", Roles::OPERATOR, Roles::NODES),
    ],
    make: |assembly| {
        let site = Site::new(assembly);
        Box::new(assembly.add(site))
    },
};

/// What a child last reported of itself, and of those below it.
#[derive(Debug, Clone, Default)]
struct Report {
    load: Option<LoadReport>,
    /// Models that it offers. Which they are, nobody above needs.
    models: u32,
    /// What it knows by name, as one number.
    catalogue: u64,
    below: Below,
}

/// The duty.
pub struct Site {
    cx: Context,
    enrolment: Arc<Enrolment>,
    artefacts: Arc<Artefacts>,
    catalogue: Arc<Catalogue>,
    /// By the child's identity.
    reports: Mutex<HashMap<String, Report>>,
    /// Nodes that came, and are not remembered on the disk yet.
    seen: Arc<Mutex<Vec<SeenRow>>>,
    /// Rings when parents should hear anew what is here and below.
    unreported: Arc<Notify>,
}

impl Site {
    fn new(assembly: &Assembly) -> Arc<Self> {
        let (catalogue, unreported) = (assembly.get::<Catalogue>(), Arc::new(Notify::new()));
        let bell = Arc::clone(&unreported);
        // What can't be run here isn't offered.
        catalogue.on_change(move |change| match change {
            Change::Profiled | Change::Unmeasured | Change::Renamed => bell.notify_one(),
            Change::Gone(_) | Change::Unprofiled(_) => {}
        });
        Arc::new(Self {
            cx: assembly.cx.clone(),
            enrolment: assembly.get(),
            artefacts: assembly.get(),
            catalogue,
            reports: Mutex::default(),
            seen: Arc::default(),
            unreported,
        })
    }

    fn reports(&self) -> MutexGuard<'_, HashMap<String, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything `tierline nodes` says of this node.
    pub async fn status(&self) -> NodeStatus {
        let (me, device) = (&self.cx.me, &self.cx.device);
        NodeStatus {
            node_id: me.id().to_owned(),
            node_name: me.name().to_owned(),
            role: me.role().into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: tierline_proto::Versions::OURS.max,
            engine: device.engine.name().to_owned(),
            engine_version: device.engine.version(),
            uptime_ms: u64::try_from(self.cx.clock.uptime().as_millis()).unwrap_or(u64::MAX),
            load: Some(device.load()),
            parents: self.cx.parents.iter().map(|uplink| uplink.status()).collect(),
            children: self.listed().nodes,
            sessions: Vec::new(),
            store_bytes: self.artefacts.bytes().await,
            certificate_not_after_s: seconds(me.identity().peer().not_after),
            draining: self.cx.end.has_begun(),
            memory: device.memory.kept().map(memory_message).into(),
        }
    }

    /// This node and everything below it.
    #[must_use]
    pub fn nodes(&self) -> NodesReply {
        let Listed { nodes, left_out } = self.listed();
        let (me, parents) = (&self.cx.me, &self.cx.parents);
        let parent = parents.first();
        let own = NodeInfo {
            node_id: me.id().to_owned(),
            node_name: me.name().to_owned(),
            role: me.role().into(),
            parent_id: parent.as_ref().map_or_else(String::new, |u| u.parent_id()),
            parent_name: parent.as_ref().map_or_else(String::new, |u| u.name()),
            state: if parents.are_cut_off() { "cut off" } else { "connected" }.to_owned(),
            last_seen_ms: now_ms(),
            link: parents.iter().next().map(|u| u.estimate()),
            load: Some(self.cx.device.load()),
            models: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model_count: u32::try_from(self.catalogue.offers().models.len()).unwrap_or(u32::MAX),
            catalogue: self.catalogue.known.mark(),
        };
        NodesReply { nodes: std::iter::once(own).chain(nodes).collect(), left_out }
    }

    /// Children, all below them, and who was there before: what this node
    /// lists.
    fn listed(&self) -> Listed {
        let mut listed = self.below();
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
        if let Some(authority) = self.enrolment.authority() {
            let known = |node: &NodeInfo| authority.member(&node.node_id);
            listed.nodes.retain(|node| known(node).is_some());
            for node in &mut listed.nodes {
                // Under its newest name, whatever its certificate says.
                let Some(row) = known(node).filter(|row| row.name != node.node_name) else { continue };
                node.node_name = row.name;
                if node.state == "connected" {
                    "renaming".clone_into(&mut node.state);
                }
            }
            let mut never: Vec<_> = authority.members();
            never.retain(|row| row.id != self.cx.me.id() && row.role != Role::Operator && !best.contains_key(&row.id));
            never.sort_by(|a, b| a.name.cmp(&b.name));
            listed.nodes.extend(never.into_iter().map(|row| NodeInfo {
                node_id: row.id,
                node_name: row.name,
                role: row.role.into(),
                state: "never".to_owned(),
                ..NodeInfo::default()
            }));
        }
        for node in listed.nodes.iter_mut().filter(|node| self.cx.revoked.has(&node.node_id)) {
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
        if !begins || seen.is_empty() {
            return;
        }
        let (came, state) = (Arc::clone(&self.seen), self.cx.state.clone());
        self.cx.tasks.spawn("memory of nodes", async move {
            tokio::time::sleep(SEEN_PAUSE).await;
            let rows = std::mem::take(&mut *came.lock().unwrap_or_else(PoisonError::into_inner));
            // On a full disk, say, they are only not remembered.
            if let Err(failure) = state.with(move |state| state.see(&rows, NODES_BELOW_MAX)).await {
                tracing::debug!(%failure, "who came is not remembered");
            }
        });
    }

    /// Shuts a node out, and forgets it.
    ///
    /// # Errors
    /// As [`Authority::node_revoke`](super::enrolment::Authority::node_revoke);
    /// [`Code::Infeasible`] for a node that is connected, unless that is wanted.
    pub async fn node_remove(&self, request: &NodeRemoveRequest) -> Result<(), Failure> {
        let authority = self.enrolment.the_authority()?;
        let listed = self.nodes().nodes;
        // Of those that share a name, one at most isn't shut out.
        let mut named = listed.iter().filter(|n| n.node_id == request.node || n.node_name == request.node);
        let here = |state: &str| matches!(state, "connected" | "doubled" | "renaming");
        let gone = named.clone().find(|n| !here(&n.state));
        let row = match gone.or_else(|| named.next()) {
            Some(found) => NodeRow { id: found.node_id.clone(), name: found.node_name.clone(), role: found.role() },
            None => authority.row(&request.node).await?,
        };
        let state = listed.iter().find(|n| n.node_id == row.id).map_or("", |n| n.state.as_str());
        if here(state) && !request.force && row.id != self.cx.me.id() {
            let text = format!("{} is connected", row.name);
            return Err(Failure::new(Code::Infeasible, text)
                .with_help("stop it first, or say --force to shut it out as it runs"));
        }
        self.enrolment.node_remove(&row).await?;
        self.cx.children.forget(&row.id);
        for report in self.reports().values_mut() {
            report.below.nodes.retain(|node| node.node_id != row.id);
        }
        Ok(())
    }

    /// Children and everything below them.
    fn below(&self) -> Listed {
        let children = self.cx.children.list();
        let reports = self.reports();
        let here: HashSet<&str> = children.iter().filter(|child| child.here).map(|child| child.id.as_str()).collect();
        let is_here = |id: &str| here.contains(id);
        let mut listed = Listed::default();
        for child in &children {
            let report = reports.get(&child.id).cloned().unwrap_or_default();
            listed.nodes.push(NodeInfo {
                node_id: child.id.clone(),
                node_name: child.name.clone(),
                role: child.role.into(),
                parent_id: self.cx.me.id().to_owned(),
                state: child.state.to_owned(),
                last_seen_ms: child.heard_ms,
                link: child.link,
                load: report.load,
                model_count: report.models,
                catalogue: report.catalogue,
                ..NodeInfo::default()
            });
            listed.left_out += report.below.left_out;
            // Of one that is here itself, nobody else has anything to say.
            let elsewhere = report.below.nodes.into_iter().filter(|node| !is_here(&node.node_id));
            listed.nodes.extend(elsewhere.map(|mut node| {
                if !child.here {
                    "lost".clone_into(&mut node.state);
                }
                node
            }));
        }
        listed
    }

    /// Through which child, by its name, each node below is reached: children
    /// that are connected themselves, and those that they have told of.
    #[must_use]
    pub fn children_by_node(&self) -> HashMap<String, String> {
        let children: Vec<_> = self.cx.children.list().into_iter().filter(|child| child.here).collect();
        let reports = self.reports();
        let mut at = HashMap::new();
        for child in &children {
            for node in reports.get(&child.id).into_iter().flat_map(|report| &report.below.nodes) {
                if matches!(node.state.as_str(), "connected" | "doubled" | "renaming") {
                    at.insert(node.node_id.clone(), child.name.clone());
                }
            }
        }
        at.extend(children.into_iter().map(|child| (child.id, child.name)));
        at
    }

    /// Whether a child may say something of a member: of itself, or of a node
    /// that it is known to have below it.
    #[must_use]
    pub fn speaks_for(&self, child: &str, member: &str) -> bool {
        member.is_empty() || member == child || self.is_below(child, member).is_some_and(|id| !self.cx.revoked.has(&id))
    }

    /// The identity of the node of this name that a child has below it, if the
    /// child is connected, and an edge that has told of it.
    fn is_below(&self, child: &str, node: &str) -> Option<String> {
        let child = self.cx.children.here(child, Role::Edge)?;
        let reports = self.reports();
        let below = &reports.get(&child)?.below;
        below.nodes.iter().find(|below| below.node_name == node).map(|below| below.node_id.clone())
    }

    fn tell(&self, parent: &Uplink, body: site_report::Body) {
        parent.tell(SITE, &SiteReport { body: Some(body) });
    }

    /// Tells a parent what this node holds and who is below it.
    fn report(&self, parent: &Uplink) {
        self.tell(parent, site_report::Body::Offers(self.catalogue.offers()));
        self.tell(parent, site_report::Body::Load(self.cx.device.load()));
        for part in self.listed().reports() {
            self.tell(parent, site_report::Body::Subtree(part));
        }
    }

    /// Reports to every parent when there is something to say, until the node
    /// ends: with many children, one report stands for all that changed since
    /// the last.
    async fn keep_reporting(self: Arc<Self>) {
        loop {
            self.unreported.notified().await;
            self.cx.parents.iter().for_each(|parent| self.report(parent));
            tokio::time::sleep(REPORT_PAUSE).await;
        }
    }

    /// Nodes have come below this one: parents hear of them at once, since what
    /// these nodes say of jobs is believed from then on.
    ///
    /// `via`: the child that told of them; empty for a child itself.
    fn tell_of_new(&self, nodes: Vec<NodeInfo>, via: &str) {
        self.keep_seen(&nodes, via);
        for part in (Listed { nodes, left_out: 0 }).reports() {
            let news = Subtree { news: true, more: false, left_out: 0, ..part };
            for parent in self.cx.parents.iter() {
                self.tell(parent, site_report::Body::Subtree(news.clone()));
            }
        }
    }

    /// Whether a node that a child tells of may exist: whoever holds the site's
    /// CA knows all that do.
    fn may_be_below(&self, node: &NodeInfo) -> bool {
        node.node_id != self.cx.me.id() && self.enrolment.may_exist(&node.node_id, &node.node_name, node.role())
    }

    /// A child tells who is below it.
    fn hear_of_below(&self, child: &Peer, mut subtree: Subtree) {
        // Ends have nobody below them.
        if child.role != Role::Edge {
            return;
        }
        subtree.nodes.retain(|below| below.node_id != child.id && self.may_be_below(below));
        let new = {
            let mut reports = self.reports();
            let all: usize = reports.values().map(|report| report.below.nodes.len()).sum();
            let report = reports.entry(child.id.clone()).or_default();
            let room = SUBTREE_NODES_MAX.min(NODES_BELOW_MAX.saturating_sub(all - report.below.nodes.len()));
            report.below.take(subtree, room)
        };
        if !new.is_empty() {
            self.tell_of_new(new, &child.id);
        }
        self.unreported.notify_one();
    }

    /// A parent calls this node.
    fn reverse(self: &Arc<Self>, parent: &Arc<Uplink>, request: ReverseRequest) {
        use tierline_proto::v1::reverse_request::Body;
        let (site, parent) = (Arc::clone(self), Arc::clone(parent));
        let answer = |call, body| site_report::Body::Reply(ReverseReply { call, body: Some(body) });
        let Ok(turn) = REVERSE_CALLS.try_acquire() else {
            let busy = Failure::new(Code::Overloaded, "too many calls of a parent are under way");
            return self.tell(&parent, answer(request.call, reverse_reply::Body::Failure(busy)));
        };
        self.cx.tasks.spawn("reverse call", async move {
            let _turn = turn;
            let body = match request.body {
                Some(Body::Status(_)) => reverse_reply::Body::Status(site.status().await),
                // Whoever runs a node ends it; a parent that was broken into must not.
                Some(Body::Drain(_)) => {
                    let text = "a parent doesn't end a node; an operator on it does";
                    reverse_reply::Body::Failure(Failure::new(Code::Forbidden, text))
                }
                _ => reverse_reply::Body::Failure(Failure::new(Code::Protocol, "this node does not know that call")),
            };
            site.tell(&parent, answer(request.call, body));
        });
    }
}

#[tonic::async_trait]
impl Duty for Arc<Site> {
    /// Who was below before this start; none of them is here yet.
    async fn open(&self) -> Result<(), Failure> {
        let seen = self.cx.state.with(State::seen).await?;
        let (children, below): (Vec<_>, Vec<_>) = seen.into_iter().partition(|row| row.via.is_empty());
        let mut reports = self.reports();
        for row in &children {
            reports.entry(row.node.id.clone()).or_default();
        }
        self.cx.children.remember(children.into_iter().map(|row| (row.node, row.seen_ms)));
        for SeenRow { node, parent, via, seen_ms } in below {
            let Some(report) = reports.get_mut(&via) else { continue };
            report.below.nodes.push(NodeInfo {
                node_id: node.id,
                node_name: node.name,
                role: node.role.into(),
                parent_id: parent,
                state: "lost".to_owned(),
                last_seen_ms: seen_ms,
                ..NodeInfo::default()
            });
        }
        Ok(())
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.cx.keep("reports", self, Site::keep_reporting);
        Ok(())
    }

    fn parent_up(&self, parent: &Arc<Uplink>) {
        self.report(parent);
    }

    async fn hear_parent(&self, parent: &Arc<Uplink>, payload: Bytes) -> Result<(), Breach> {
        self.reverse(parent, Sound::<ReverseRequest>::decode(payload)?.into_inner());
        Ok(())
    }

    fn child_up(&self, child: &Peer) {
        {
            // Of children that are forgotten, nothing is kept.
            let children = self.cx.children.known();
            let mut reports = self.reports();
            reports.entry(child.id.clone()).or_default();
            if reports.len() > children {
                reports.retain(|id, _| self.cx.children.name_of(id).is_some());
            }
        }
        let node = NodeInfo {
            node_id: child.id.clone(),
            node_name: child.name.clone(),
            role: child.role.into(),
            parent_id: self.cx.me.id().to_owned(),
            state: "connected".to_owned(),
            last_seen_ms: now_ms(),
            ..NodeInfo::default()
        };
        self.tell_of_new(vec![node], "");
        self.unreported.notify_one();
    }

    fn child_down(&self, _: &str) {
        self.unreported.notify_one();
    }

    fn hear_child(&self, child: &Peer, payload: Bytes) -> Result<(), Breach> {
        match Sound::<SiteReport>::decode(payload)?.into_inner().body {
            Some(site_report::Body::Load(load)) => {
                self.reports().entry(child.id.clone()).or_default().load = Some(load);
            }
            Some(site_report::Body::Offers(offers)) => {
                let changed = {
                    let mut reports = self.reports();
                    let report = reports.entry(child.id.clone()).or_default();
                    report.models = u32::try_from(offers.models.len()).unwrap_or(u32::MAX);
                    std::mem::replace(&mut report.catalogue, offers.catalogue) != offers.catalogue
                };
                if changed {
                    self.unreported.notify_one();
                }
            }
            Some(site_report::Body::Subtree(subtree)) => self.hear_of_below(child, subtree),
            Some(site_report::Body::Reply(_)) | None => {}
        }
        Ok(())
    }
}

fn memory_message(kept: memory::MemoryUse) -> MemoryUse {
    MemoryUse { kind: kept.kind.name().to_owned(), count: kept.count as u64, bytes: kept.bytes }
}

/// Unix time of a moment, in seconds.
fn seconds(at: std::time::SystemTime) -> u64 {
    at.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
