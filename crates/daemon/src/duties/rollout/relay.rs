//! What passes between the cloud and the nodes below: what each shall run goes
//! down, how each does goes up, both through the edges between. Of each node
//! and model the newest counts and is whole, so that nothing has to be
//! acknowledged; what a session lost, the next one says again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tierline_proto::limits::{ROLLOUT_BYTES_MAX, ROLLOUT_REPORTS_MAX, ROLLOUT_WANTS_MAX};
use tierline_proto::v1::{RolloutReport, RolloutReports, RolloutWant, RolloutWants};
use tierline_update::rollout::{Ask, Health, Report, RolloutError, Version, Want};

/// Wants and reports that a node passes on, at most: of 10,000 nodes and the
/// few models that are rolled out at once.
const KEPT_MAX: usize = 65_536;

/// A node's identity, and a model's name.
pub type Of = (String, String);

/// What a node says of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// What it runs, and what it is at.
    pub report: Report,
    /// How versions do there since its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<(Version, Health)>,
    /// Versions whose bytes it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Version>,
    /// What people wrote on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Versions of which a node tells how they do, at most: the old one and the
/// new one, and one before.
pub const VERSIONS_TOLD_MAX: usize = 4;

impl Told {
    /// Reads what came from a node.
    ///
    /// # Errors
    /// What can't be.
    pub fn read(json: &[u8]) -> Result<Self, String> {
        let told: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if told.health.len() > VERSIONS_TOLD_MAX || told.holds.len() > VERSIONS_TOLD_MAX {
            return Err(format!("more than {VERSIONS_TOLD_MAX} versions of one model"));
        }
        told.health.iter().try_for_each(|(_, health)| health.check()).map_err(|e: RolloutError| e.to_string())?;
        Ok(Self { report: told.report.checked(), ..told })
    }

    /// As it travels; without the counts where it would be too long for that.
    pub fn write(&self) -> serde_json::Result<Bytes> {
        let whole = serde_json::to_vec(self)?;
        if whole.len() <= ROLLOUT_BYTES_MAX {
            return Ok(whole.into());
        }
        serde_json::to_vec(&Self { health: Vec::new(), ..self.clone() }).map(Bytes::from)
    }
}

/// What is known on its way down.
#[derive(Default)]
pub struct Down {
    wants: BTreeMap<Of, (Ask, Bytes)>,
    watched: BTreeSet<String>,
    /// What each child was told last, by its name.
    told: HashMap<String, blake3::Hash>,
}

impl Down {
    /// Takes in what a node shall run; whether that is news.
    pub fn want(&mut self, of: Of, want: &Want, json: Bytes) -> bool {
        if self.wants.get(&of).is_some_and(|(known, _)| *known >= want.ask) {
            return false;
        }
        if self.wants.len() >= KEPT_MAX && !self.wants.contains_key(&of) {
            return false;
        }
        self.wants.insert(of, (want.ask, json));
        true
    }

    /// Which models are watched from now on; whether others than before. What
    /// nodes shall run of others is settled.
    pub fn watch(&mut self, models: BTreeSet<String>) -> bool {
        if models == self.watched {
            return false;
        }
        self.watched = models;
        let watched = &self.watched;
        self.wants.retain(|(_, model), _| watched.contains(model));
        true
    }

    /// Models that are watched.
    pub const fn watched(&self) -> &BTreeSet<String> {
        &self.watched
    }

    /// A child has to be told anew.
    pub fn forget(&mut self, child: &str) {
        self.told.remove(child);
    }

    /// What a child is to be told, of the nodes for which `is_at` says that
    /// they are there; nothing where it was told so.
    pub fn messages(&mut self, child: &str, is_at: impl Fn(&str) -> bool) -> Vec<RolloutWants> {
        let wants = self.wants.iter().filter(|((node, _), _)| is_at(node));
        let wants: Vec<RolloutWant> = wants
            .map(|((node, model), (_, json))| RolloutWant {
                node_id: node.clone(),
                model: model.clone(),
                want: json.clone(),
            })
            .collect();
        let watched: Vec<String> = self.watched.iter().cloned().collect();
        let mut hasher = blake3::Hasher::new();
        for name in &watched {
            hasher.update(name.as_bytes()).update(&[0]);
        }
        for want in &wants {
            hasher.update(want.node_id.as_bytes()).update(want.model.as_bytes()).update(&[1]).update(&want.want);
        }
        let hash = hasher.finalize();
        if self.told.get(child) == Some(&hash) {
            return Vec::new();
        }
        // One who was never told of anything needn't hear that there is nothing.
        let first = self.told.insert(child.to_owned(), hash).is_none();
        if first && wants.is_empty() && watched.is_empty() {
            return Vec::new();
        }
        let mut messages: Vec<RolloutWants> = wants
            .chunks(ROLLOUT_WANTS_MAX)
            .map(|wants| RolloutWants { wants: wants.to_vec(), watched: watched.clone() })
            .collect();
        if messages.is_empty() {
            messages.push(RolloutWants { wants: Vec::new(), watched });
        }
        messages
    }
}

/// What is known on its way up.
#[derive(Default)]
pub struct Up {
    reports: BTreeMap<Of, Bytes>,
    /// Those that parents haven't heard.
    unsaid: BTreeSet<Of>,
}

impl Up {
    /// Takes in how a node does; whether that is news.
    pub fn hear(&mut self, of: Of, json: Bytes) -> bool {
        let known = self.reports.get(&of);
        if known == Some(&json) || (known.is_none() && self.reports.len() >= KEPT_MAX) {
            return false;
        }
        self.reports.insert(of.clone(), json);
        self.unsaid.insert(of);
        true
    }

    /// Only these models are of interest from now on.
    pub fn keep(&mut self, watched: &BTreeSet<String>) {
        self.reports.retain(|(_, model), _| watched.contains(model));
        self.unsaid.retain(|(_, model)| watched.contains(model));
    }

    /// A parent is there that may have heard nothing yet.
    pub fn again(&mut self) {
        self.unsaid = self.reports.keys().cloned().collect();
    }

    /// What parents are to hear now.
    pub fn messages(&mut self) -> Vec<RolloutReports> {
        let unsaid = std::mem::take(&mut self.unsaid);
        let report = |of: Of| {
            let report = self.reports.get(&of)?.clone();
            Some(RolloutReport { node_id: of.0, model: of.1, report })
        };
        let reports: Vec<RolloutReport> = unsaid.into_iter().filter_map(report).collect();
        reports.chunks(ROLLOUT_REPORTS_MAX).map(|part| RolloutReports { reports: part.to_vec() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use tierline_update::rollout::{Kind, Limits, Terms};

    use super::*;

    fn want(number: u64) -> (Want, Bytes) {
        let want = Want {
            ask: Ask { rollout: 1, number },
            version: Version::new("2").unwrap(),
            kind: Kind::Update,
            limits: Limits::default(),
            terms: Terms::default(),
        };
        let json = serde_json::to_vec(&want).unwrap().into();
        (want, json)
    }

    fn of(node: &str) -> Of {
        (node.to_owned(), "digits".to_owned())
    }

    #[test]
    fn a_child_is_told_once_and_only_of_those_who_are_there() {
        let mut down = Down::default();
        assert!(down.messages("edge", |_| true).is_empty(), "there is nothing to say");
        assert!(down.watch(BTreeSet::from(["digits".to_owned()])));
        let (older, newer) = (want(1), want(2));
        assert!(down.want(of("a"), &newer.0, newer.1.clone()));
        assert!(!down.want(of("a"), &older.0, older.1.clone()), "an older one that comes late");
        assert!(down.want(of("b"), &older.0, older.1));
        let told = down.messages("edge", |node| node == "a");
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].wants.len(), &told[0].wants[0].want), (1, &newer.1));
        assert!(down.messages("edge", |node| node == "a").is_empty(), "it was told");
        assert_eq!(down.messages("edge", |_| true)[0].wants.len(), 2, "somebody moved there");
        down.forget("edge");
        assert_eq!(down.messages("edge", |_| true)[0].wants.len(), 2, "it came anew");
        assert!(down.watch(BTreeSet::new()));
        let settled = down.messages("edge", |_| true);
        assert_eq!(settled, [RolloutWants::default()], "that nothing is watched any more is said");
    }

    #[test]
    fn reports_are_said_once_and_again_to_who_comes() {
        let mut up = Up::default();
        assert!(up.hear(of("a"), Bytes::from_static(b"1")));
        assert!(!up.hear(of("a"), Bytes::from_static(b"1")));
        assert_eq!(up.messages()[0].reports.len(), 1);
        assert!(up.messages().is_empty());
        up.again();
        assert_eq!(up.messages()[0].reports[0].report, Bytes::from_static(b"1"));
        up.keep(&BTreeSet::new());
        up.again();
        assert!(up.messages().is_empty());
    }

    #[test]
    fn what_a_node_says_is_checked() {
        let told = Told { holds: vec![Version::new("2").unwrap()], ..Told::default() };
        assert_eq!(Told::read(&told.write().unwrap()), Ok(told));
        for broken in [&b"{"[..], b"{\"report\":{\"session\":-1}}", b"[]", b"{\"report\":null}"] {
            assert!(Told::read(broken).is_err(), "{:?}", String::from_utf8_lossy(broken));
        }
        let many = Told { holds: vec![Version::new("2").unwrap(); 9], ..Told::default() };
        assert!(Told::read(&many.write().unwrap()).is_err());
    }
}
