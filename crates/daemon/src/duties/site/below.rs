//! Who is below a child, as it tells of them.

use std::collections::HashSet;

use tierline_proto::limits::{SUBTREE_NODES_MAX, SUBTREE_PART_MAX};
use tierline_proto::v1::{NodeInfo, Subtree};

/// The nodes below a child, as it tells of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Below {
    pub(super) nodes: Vec<NodeInfo>,
    /// Those that are there, but not listed.
    pub(super) left_out: u64,
    /// Parts of a report that isn't whole yet, and what they leave out.
    parts: Vec<NodeInfo>,
    parts_left_out: u64,
}

impl Below {
    /// Takes in what a child says, at most `room` nodes; those that weren't
    /// there before.
    pub(super) fn take(&mut self, said: Subtree, room: usize) -> Vec<NodeInfo> {
        let Subtree { nodes, more, news, left_out } = said;
        let known: HashSet<&str> = self.nodes.iter().map(|node| node.node_id.as_str()).collect();
        let new: Vec<NodeInfo> = nodes.iter().filter(|node| !known.contains(node.node_id.as_str())).cloned().collect();
        if news {
            for node in nodes {
                match self.nodes.iter().position(|known| known.node_id == node.node_id) {
                    Some(at) => self.nodes[at] = node,
                    None if self.nodes.len() < room => self.nodes.push(node),
                    None => self.left_out += 1,
                }
            }
            return new;
        }
        let fit = room.saturating_sub(self.parts.len()).min(nodes.len());
        self.parts_left_out = self.parts_left_out.saturating_add(left_out).saturating_add((nodes.len() - fit) as u64);
        self.parts.extend(nodes.into_iter().take(fit));
        if !more {
            self.nodes = std::mem::take(&mut self.parts);
            self.left_out = std::mem::take(&mut self.parts_left_out);
        }
        new
    }
}

/// Nodes as a node lists them.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// Those that are listed.
    pub nodes: Vec<NodeInfo>,
    /// How many more there are.
    pub left_out: u64,
}

impl Listed {
    /// What a parent is told of them: in parts that leave room for heartbeats.
    #[must_use]
    pub fn reports(mut self) -> Vec<Subtree> {
        let beyond = self.nodes.len().saturating_sub(SUBTREE_NODES_MAX);
        self.nodes.truncate(SUBTREE_NODES_MAX);
        let left_out = self.left_out + beyond as u64;
        let mut parts: Vec<Subtree> = self
            .nodes
            .chunks(SUBTREE_PART_MAX)
            .map(|part| Subtree { nodes: part.to_vec(), more: true, ..Subtree::default() })
            .collect();
        match parts.last_mut() {
            Some(last) => (last.more, last.left_out) = (false, left_out),
            None => parts.push(Subtree { left_out, ..Subtree::default() }),
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: usize) -> NodeInfo {
        NodeInfo { node_id: id.to_string(), node_name: format!("end-{id}"), ..NodeInfo::default() }
    }

    fn said(ids: std::ops::Range<usize>, more: bool, news: bool) -> Subtree {
        Subtree { nodes: ids.map(node).collect(), more, news, left_out: 0 }
    }

    fn ids(below: &Below) -> Vec<&str> {
        below.nodes.iter().map(|node| node.node_id.as_str()).collect()
    }

    #[test]
    fn reports_of_many_come_in_parts_and_the_rest_is_counted() {
        let listed = Listed { nodes: (0..SUBTREE_NODES_MAX + 7).map(node).collect(), left_out: 5 };
        let reports = listed.reports();
        assert_eq!(reports.len(), SUBTREE_NODES_MAX.div_ceil(SUBTREE_PART_MAX));
        let mut below = Below::default();
        for (i, report) in reports.iter().enumerate() {
            assert!(prost::Message::encoded_len(report) < 256 << 10);
            assert!(below.nodes.is_empty(), "nothing counts before the whole is here: {i}");
            below.take(report.clone(), SUBTREE_NODES_MAX);
        }
        assert_eq!((below.nodes.len(), below.left_out), (SUBTREE_NODES_MAX, 12));
        // Where there is less room, more is only counted.
        let mut below = Below::default();
        reports.into_iter().for_each(|report| drop(below.take(report, 100)));
        assert_eq!((below.nodes.len(), below.left_out), (100, SUBTREE_NODES_MAX as u64 - 100 + 12));
        assert_eq!(Listed::default().reports(), [Subtree::default()], "that there is nobody is said, too");
    }

    #[test]
    fn news_come_on_top_and_a_report_replaces_all() {
        let mut below = Below::default();
        assert_eq!(below.take(said(0..2, false, false), 9).len(), 2);
        assert_eq!(below.take(said(1..4, false, true), 9).len(), 2, "one was known");
        assert_eq!(ids(&below), ["0", "1", "2", "3"]);
        below.take(said(4..9, false, true), 5);
        assert_eq!((below.nodes.len(), below.left_out), (5, 4));
        below.take(said(7..8, true, false), 9);
        assert_eq!(below.nodes.len(), 5, "more is to come");
        below.take(said(8..9, false, false), 9);
        assert_eq!((ids(&below), below.left_out), (vec!["7", "8"], 0));
    }
}
