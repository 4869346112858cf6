//! The parents of a node, in order of preference.

use std::sync::Arc;

use tierline_node::Peer;
use tierline_node::breaker::State;
use tierline_node::request::Event as RequestEvent;
use tierline_proto::v1::{Code, Failure};
use tokio::sync::broadcast;

use super::transport::Pair;
use super::{Net, Uplink};
use crate::runtime::numbers;

/// All of them; clones share them.
#[derive(Clone)]
pub struct Parents {
    all: Arc<[Arc<Uplink>]>,
    net: Net,
}

impl Parents {
    /// Those that the node's configuration names, none of them dialled yet.
    #[must_use]
    pub fn new(net: Net) -> Self {
        let urls = net.me.config().parents.iter().zip(0..);
        let all = urls.map(|(url, i)| Arc::new(Uplink::new(Peer(i), url.clone(), net.clone()))).collect();
        Self { all, net }
    }

    /// Dials them, and keeps their leases until the node ends.
    pub fn keep(&self) {
        for uplink in self.all.iter() {
            let uplink = Arc::clone(uplink);
            self.net.tasks.keep("uplink", move || Arc::clone(&uplink).keep());
        }
    }

    /// In order of preference.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Uplink>> {
        self.all.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The parent at `peer`.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, peer: Peer) -> Result<Arc<Uplink>, Failure> {
        self.all.get(peer.0 as usize).cloned().ok_or_else(|| {
            let text = format!("{} has no parent number {}", self.net.me.name(), peer.0);
            Failure::new(Code::Unreachable, text)
        })
    }

    /// The preferred one that is up, else the first.
    #[must_use]
    pub fn first(&self) -> Option<Arc<Uplink>> {
        self.all.iter().find(|uplink| uplink.is_up()).or(self.all.first()).cloned()
    }

    /// Whether there are some, and none is connected.
    #[must_use]
    pub fn are_cut_off(&self) -> bool {
        !self.all.is_empty() && self.all.iter().all(|uplink| !uplink.is_up())
    }

    /// A connection to the preferred one.
    ///
    /// # Errors
    /// When none is up.
    pub fn first_connection(&self) -> Result<Pair, Failure> {
        let first = self.first().ok_or_else(|| Failure::new(Code::Unreachable, "this node has no parent"))?;
        first.connections()
    }

    /// Those other than the planned one, for recoveries: all of them where this
    /// node was to run everything and may find that it can't.
    #[must_use]
    pub fn others(&self, planned: Option<Peer>) -> Vec<Peer> {
        self.all.iter().map(|uplink| uplink.peer).filter(|peer| Some(*peer) != planned).collect()
    }

    /// Those whose lease is lost, and why.
    #[must_use]
    pub fn down(&self) -> Vec<(Peer, String)> {
        self.all.iter().filter(|uplink| !uplink.is_up()).map(|uplink| (uplink.peer, uplink.reason())).collect()
    }

    /// How things are with them now, for who has missed a change.
    #[must_use]
    pub fn now(&self) -> Vec<RequestEvent> {
        let now = |uplink: &Arc<Uplink>| match uplink.is_up() {
            true => RequestEvent::PeerUp { peer: uplink.peer },
            false => RequestEvent::PeerDown { peer: uplink.peer, reason: uplink.reason() },
        };
        self.all.iter().map(now).collect()
    }

    /// What happens to them from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<RequestEvent> {
        self.net.changes.subscribe()
    }

    /// Their numbers, in Prometheus' text format.
    pub fn numbers(&self, out: &mut String) {
        let up = self.all.iter().filter(|uplink| uplink.is_up()).count();
        numbers::single(out, "tierline_parents_up", "gauge", "Parents whose lease is held.", up);
        let names: Vec<String> = self.all.iter().map(|uplink| uplink.name()).collect();
        let states: Vec<_> = self.all.iter().map(|uplink| uplink.breaker_state()).collect();
        let help = "Whether a parent's circuit breaker keeps requests from it: 1, or 0.";
        let open =
            names.iter().zip(&states).map(|(name, (state, _))| (name.as_str(), u64::from(*state != State::Closed)));
        numbers::labelled(out, ("tierline_breaker_open", "gauge", help), "parent", open);
        let help = "Times that a parent's circuit breaker opened.";
        let opened = names.iter().zip(&states).map(|(name, (_, opened))| (name.as_str(), *opened));
        numbers::labelled(out, ("tierline_breaker_opened_total", "counter", help), "parent", opened);
        let Some(first) = self.all.first() else { return };
        let estimate = first.estimate();
        let help = "Estimated bandwidth towards the first parent.";
        numbers::single(out, "tierline_link_up_bytes_per_second", "gauge", help, estimate.up_bytes_per_s);
        let (help, rtt) = ("Estimated round trip to the first parent.", estimate.rtt_ns as f64 / 1e9);
        numbers::single(out, "tierline_link_rtt_seconds", "gauge", help, rtt);
    }
}
