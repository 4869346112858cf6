//! What is sent takes links, and the time that they need for it.

use tierline_federate::Vectors;
use tierline_node::federation::Work;

use super::{Happening, Relay, Site, VERSIONS_KEPT};

impl Site {
    /// Sends bytes up; `then` happens when they are there. Says whether the
    /// node can send.
    pub(super) fn up(&mut self, at: usize, bytes: u64, then: Happening) -> bool {
        let now = self.clock.now();
        let Some(below) = self.nodes[at].below.as_mut().filter(|b| b.reachable) else { return false };
        let there = below.pipes[0].carry(now, bytes);
        let then = match below.relay {
            Some(relay) => Happening::Rising { relay, bytes, then: Box::new(then) },
            None => then,
        };
        self.clock.at(there, then);
        true
    }

    /// Sends bytes down; `then` happens when they are there, if the node can
    /// be reached.
    pub(super) fn down(&mut self, at: usize, bytes: u64, then: Happening) {
        let Some(below) = self.nodes[at].below.as_ref().filter(|b| b.reachable) else { return };
        let now = self.clock.now();
        match below.relay {
            Some(relay) => {
                let there = self.relays[relay].pipes[1].carry(now, bytes);
                self.clock.at(there, Happening::Falling { to: at, bytes, then: Box::new(then) });
            }
            None => self.fall(at, bytes, then),
        }
    }

    /// Sends bytes from an edge to another one, over the network of the cloud.
    pub(super) fn across(&mut self, from: usize, to: usize, bytes: u64, then: Happening) {
        self.up(from, bytes, Happening::Falling { to, bytes, then: Box::new(then) });
    }

    /// Bytes take the last link to a node.
    pub(super) fn fall(&mut self, to: usize, bytes: u64, then: Happening) {
        let now = self.clock.now();
        let Some(below) = &mut self.nodes[to].below else { return };
        let there = below.pipes[1].carry(now, bytes);
        self.clock.at(there, then);
    }

    /// The model of a task comes down, once for all ends behind an edge.
    pub(super) fn fetch(&mut self, at: usize, bytes: u64, work: Work) {
        let now = self.clock.now();
        let then = Happening::Fetched(at, work);
        let reachable = self.nodes[at].below.as_ref().filter(|b| b.reachable);
        let Some(below) = reachable else { return self.clock.at(now, then) };
        let Some(relay) = below.relay else { return self.fall(at, bytes, then) };
        let Relay { pipes, models } = &mut self.relays[relay];
        // Versions far back are asked for no more.
        models.retain(|version, _| version + VERSIONS_KEPT > work.version);
        let there = *models.entry(work.version).or_insert_with(|| pipes[1].carry(now, bytes));
        self.clock.at(there, Happening::Falling { to: at, bytes, then: Box::new(then) });
    }
}

pub(super) fn bytes_of(vectors: &Vectors) -> u64 {
    vectors.values().map(|v| 4 * v.len() as u64).sum()
}
