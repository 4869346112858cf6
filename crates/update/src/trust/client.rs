//! A device's view of a repository: what it asks for, in which order, and what
//! it believes.
//!
//! Follows the client workflow of The Update Framework, specification 1.0.34,
//! section 5, without input or output: [`Client::next`] names a file,
//! [`Client::feed`] takes it, and [`Client::changes`] says what must be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::error::TrustError;
use super::json::short;
use super::metadata::{Announced, Kind, Root, Signed, Snapshot, Target, Targets, Timestamp};
use super::name::{self, TargetName};
use super::time::UnixTime;
use super::verify::{self, Reckoning};

/// What a client takes at most. The defaults are those of python-tuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Roots that one update goes forward; the next update goes on from there.
    pub roots: u64,
    /// Delegated roles that are asked for one target.
    pub roles: usize,
    /// Bytes of root metadata.
    pub root_bytes: u64,
    /// Bytes of timestamp metadata.
    pub timestamp_bytes: u64,
    /// Bytes of snapshot metadata.
    pub snapshot_bytes: u64,
    /// Bytes of targets metadata, of each role.
    pub targets_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            roots: 256,
            roles: 32,
            root_bytes: 512_000,
            timestamp_bytes: 16_384,
            snapshot_bytes: 2_000_000,
            targets_bytes: 5_000_000,
        }
    }
}

/// A file of the repository that the client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Its name below the metadata's address; safe in URLs as it stands.
    pub name: String,
    /// Reading ends here: a longer one is refused.
    pub bytes_max: u64,
    /// Whether its absence is an ordinary answer.
    pub optional: bool,
}

/// What became of a [`Fetch`]. A link that fails is neither: ask again, or begin another update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The file.
    Bytes(&'a [u8]),
    /// The repository doesn't have it.
    Missing,
}

/// What must be kept, in this order, so that the client can go on after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This file has these bytes from now on.
    Store(String, Vec<u8>),
    /// This file is gone.
    Remove(String),
}

/// A target, and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: TargetName,
    /// What is said of it.
    pub target: Target,
    /// The role that says so.
    pub role: String,
    /// The file below the targets' address: with its hash, if the repository has it so.
    pub file: String,
}

/// The file with the latest time at which metadata was found fresh; no role's file is called so.
const SEEN: &str = "seen";

#[derive(Debug)]
enum Phase {
    Idle,
    Root { left: u64 },
    Timestamp,
    Snapshot,
    Targets,
    Ready,
    Search(Search),
    Ended,
}

#[derive(Debug)]
struct Search {
    target: TargetName,
    /// Roles to ask with who named them, the next one last.
    stack: Vec<(String, String)>,
    asked: BTreeSet<String>,
}

/// A device's view of one repository.
///
/// An update is: [`Client::begin`], then [`Client::next`] and [`Client::feed`]
/// until there is nothing to fetch, then [`Client::search`] for a target and the
/// same again; [`Client::found`] has the answer. [`Client::changes`] is written
/// to disk whenever convenient, in order.
#[derive(Debug)]
pub struct Client {
    anchor: Root,
    anchor_bytes: Vec<u8>,
    limits: Limits,
    reckoning: Reckoning,
    kept: BTreeMap<String, Vec<u8>>,
    changes: Vec<Change>,
    phase: Phase,
    root: Root,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    /// Roles that the present search has asked. Another search may reach a role by way of another that has other keys
    /// for it, so it verifies what is kept anew.
    targets: BTreeMap<String, Targets>,
    found: Option<Found>,
    behind: Option<Duration>,
}

impl Client {
    /// A client that believes this root, which came with the device or its enrolment.
    ///
    /// # Errors
    /// When the root doesn't vouch for itself.
    pub fn new(root: &[u8]) -> Result<Self, TrustError> {
        let anchor = verify::anchor(root)?;
        Ok(Self {
            root: anchor.clone(),
            anchor,
            anchor_bytes: root.to_vec(),
            limits: Limits::default(),
            reckoning: Reckoning { now: UnixTime(0), slack: Duration::ZERO },
            kept: BTreeMap::new(),
            changes: Vec::new(),
            phase: Phase::Idle,
            timestamp: None,
            snapshot: None,
            targets: BTreeMap::new(),
            found: None,
            behind: None,
        })
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same for a device whose clock may be ahead by this much: metadata counts so much longer.
    #[must_use]
    pub fn with_slack(mut self, slack: Duration) -> Self {
        self.reckoning.slack = slack;
        self
    }

    /// The same with what [`Self::changes`] gave to be kept. It is verified anew, from the anchor on.
    #[must_use]
    pub fn with_kept(mut self, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        self.kept = files.into_iter().collect();
        self
    }

    /// Begins an update at this time, which stays the update's time to its
    /// end. Where the clock is behind the latest time at which metadata was
    /// found fresh, that one counts ([`Self::clock_behind`]).
    pub fn begin(&mut self, now: UnixTime) {
        self.root = self.anchor.clone();
        (self.timestamp, self.snapshot, self.found) = (None, None, None);
        self.targets.clear();
        let mut newest = self.anchor_bytes.clone();
        while let Some(bytes) = self.kept.get(&history(self.root.head.version.saturating_add(1))) {
            let Ok(root) = verify::next_root(bytes, &self.root) else { break };
            newest.clone_from(bytes);
            self.root = root;
        }
        self.keep(&history(self.root.head.version), &newest);
        self.keep("root.json", &newest);

        let seen = self.kept.get(SEEN).and_then(|bytes| UnixTime::read(std::str::from_utf8(bytes).ok()?.trim()));
        // Written by this device when it believed metadata that wasn't over: later than any end, it is damaged.
        let latest = self.root.head.expires.after(self.reckoning.slack);
        let floor = seen.filter(|&seen| seen <= latest).unwrap_or_default();
        self.behind = (floor > now).then(|| floor.left(now));
        self.reckoning.now = now.max(floor);
        self.phase = Phase::Root { left: self.limits.roots.max(1) };
    }

    /// Begins with what was kept and asks nobody: for a device that can't reach the repository. What is kept and
    /// fresh is believed until it ends; searches may still ask for files.
    ///
    /// # Errors
    /// What has expired, or isn't there.
    pub fn resume(&mut self, now: UnixTime) -> Result<(), TrustError> {
        self.begin(now);
        let resumed = self.end_of_roots().and_then(|()| {
            let missing = |file: &str| TrustError::Missing { file: file.to_owned() };
            let timestamp = self.kept.get("timestamp.json").cloned().ok_or_else(|| missing("timestamp.json"))?;
            self.take_timestamp(&timestamp)?;
            self.next().map_or(Ok(()), |wanted| Err(missing(&wanted.name)))
        });
        if resumed.is_err() {
            self.phase = Phase::Ended;
        }
        resumed
    }

    /// The file that is wanted next; none: the update, or the search, is done.
    #[must_use]
    pub fn next(&self) -> Option<Fetch> {
        let whole = |kind: Kind| Fetch { name: name::file(kind.word()), bytes_max: self.limit(kind), optional: false };
        match &self.phase {
            Phase::Root { .. } => {
                let name = name::versioned("root", self.root.head.version.saturating_add(1));
                Some(Fetch { name, bytes_max: self.limits.root_bytes, optional: true })
            }
            Phase::Timestamp => Some(whole(Kind::Timestamp)),
            Phase::Snapshot => Some(self.announced_fetch("snapshot", &self.timestamp.as_ref()?.snapshot)),
            Phase::Targets => Some(self.announced_fetch("targets", self.pin("targets").ok()?)),
            Phase::Search(search) => {
                let (role, _) = search.stack.last()?;
                Some(self.announced_fetch(role, self.pin(role).ok()?))
            }
            Phase::Idle | Phase::Ready | Phase::Ended => None,
        }
    }

    /// Takes the file that [`Self::next`] named.
    ///
    /// # Errors
    /// Whatever makes it unbelievable, or what is needed next. The update has ended
    /// then; everything that was believed before it still is.
    pub fn feed(&mut self, answer: Answer<'_>) -> Result<(), TrustError> {
        let fed = self.fed(answer);
        if !matches!(fed, Ok(()) | Err(TrustError::Unasked)) {
            self.phase = Phase::Ended;
            self.found = None;
        }
        fed
    }

    fn fed(&mut self, answer: Answer<'_>) -> Result<(), TrustError> {
        if matches!(self.phase, Phase::Ended) {
            return Err(TrustError::Ended);
        }
        let fetch = self.next().ok_or(TrustError::Unasked)?;
        let bytes = match answer {
            Answer::Bytes(bytes) if bytes.len() as u64 > fetch.bytes_max => {
                return Err(TrustError::TooLarge { file: fetch.name, bytes_max: fetch.bytes_max });
            }
            Answer::Bytes(bytes) => Some(bytes),
            Answer::Missing if fetch.optional => None,
            Answer::Missing => return Err(TrustError::Missing { file: fetch.name }),
        };
        match (&mut self.phase, bytes) {
            (Phase::Root { left }, Some(bytes)) => {
                *left -= 1;
                let last = *left == 0;
                self.root = verify::next_root(bytes, &self.root)?;
                self.keep(&history(self.root.head.version), bytes);
                self.keep("root.json", bytes);
                if last { self.end_of_roots() } else { Ok(()) }
            }
            (Phase::Root { .. }, None) => self.end_of_roots(),
            (Phase::Timestamp, Some(bytes)) => self.take_timestamp(bytes),
            (Phase::Snapshot, Some(bytes)) => self.take_snapshot(bytes),
            (Phase::Targets, Some(bytes)) => {
                let targets = self.targets_of(bytes, "targets", "root")?;
                self.keep(&name::file("targets"), bytes);
                self.end(targets);
                Ok(())
            }
            (Phase::Search(search), Some(bytes)) => {
                let Some((role, namer)) = search.stack.last().cloned() else { return Err(TrustError::Unasked) };
                let targets = self.targets_of(bytes, &role, &namer)?;
                self.keep(&name::file(&role), bytes);
                self.targets.insert(role, targets);
                self.walk()
            }
            _ => Err(TrustError::Unasked),
        }
    }

    /// Looks for a target in a finished update; [`Self::next`] may name files then.
    ///
    /// # Errors
    /// [`TrustError::NoTarget`] where nobody who may names it, [`TrustError::Unasked`] before the update has
    /// finished, and whatever is wrong with metadata that is asked.
    pub fn search(&mut self, target: &TargetName) -> Result<(), TrustError> {
        if !matches!(self.phase, Phase::Ready | Phase::Search(_)) {
            return Err(TrustError::Unasked);
        }
        self.found = None;
        self.targets.retain(|role, _| role == "targets");
        let stack = vec![("targets".to_owned(), "root".to_owned())];
        self.phase = Phase::Search(Search { target: target.clone(), stack, asked: BTreeSet::new() });
        let walked = self.walk();
        if walked.is_err() {
            self.phase = match walked {
                // Nothing is wrong with the repository: the next search may begin.
                Err(TrustError::NoTarget { .. }) => Phase::Ready,
                _ => Phase::Ended,
            };
        }
        walked
    }

    /// The target that the last search found.
    #[must_use]
    pub fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    /// Whether the update is finished, so that targets can be searched for.
    #[must_use]
    pub fn is_current(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    /// What must be kept since the last call, in order.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// How far the clock is behind the latest time at which metadata was found fresh.
    #[must_use]
    pub fn clock_behind(&self) -> Option<Duration> {
        self.behind
    }

    /// The root that is believed.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The timestamp that is believed.
    #[must_use]
    pub fn timestamp(&self) -> Option<&Timestamp> {
        self.timestamp.as_ref()
    }

    /// The snapshot that is believed.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Targets metadata of the role of that name, and of those that the last search asked.
    pub fn targets(&self) -> impl Iterator<Item = (&str, &Targets)> {
        self.targets.iter().map(|(role, targets)| (role.as_str(), targets))
    }

    /// A file of the repository as this client has it, for devices that ask here in the repository's place.
    #[must_use]
    pub fn mirror(&self, file: &str) -> Option<&[u8]> {
        let kept = |name: &str| self.kept.get(name).map(Vec::as_slice);
        if let Some(version) = file.strip_suffix(".root.json") {
            return kept(&history(version.parse().ok()?));
        }
        if file == "timestamp.json" {
            return self.timestamp.as_ref().and_then(|_| kept(file));
        }
        let snapshot = self.snapshot.as_ref()?;
        let versioned = |role: &str, version: u64| {
            if self.root.consistent { name::versioned(role, version) } else { name::file(role) }
        };
        if file == versioned("snapshot", snapshot.head.version) {
            return kept("snapshot.json");
        }
        let roles =
            snapshot.meta.iter().filter_map(|(file, announced)| Some((file.strip_suffix(".json")?, announced.version)));
        let (role, version) = roles.into_iter().find(|&(role, version)| file == versioned(role, version))?;
        let bytes = kept(&name::file(role))?;
        // What is kept of a role that nobody searched for lately may be older.
        let kept = Signed::<Targets>::read(bytes).ok()?;
        (kept.body.head.version == version).then_some(bytes)
    }

    fn limit(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Root => self.limits.root_bytes,
            Kind::Timestamp => self.limits.timestamp_bytes,
            Kind::Snapshot => self.limits.snapshot_bytes,
            Kind::Targets => self.limits.targets_bytes,
        }
    }

    fn announced_fetch(&self, role: &str, announced: &Announced) -> Fetch {
        let limit = self.limit(if role == "snapshot" { Kind::Snapshot } else { Kind::Targets });
        let name = if self.root.consistent { name::versioned(role, announced.version) } else { name::file(role) };
        Fetch { name, bytes_max: announced.length.map_or(limit, |length| length.min(limit)), optional: false }
    }

    /// What the snapshot announces of a role.
    fn pin(&self, role: &str) -> Result<&Announced, TrustError> {
        let announced = self.snapshot.as_ref().and_then(|snapshot| snapshot.meta.get(&format!("{role}.json")));
        announced.ok_or_else(|| TrustError::Unannounced { role: short(role) })
    }

    fn keep(&mut self, file: &str, bytes: &[u8]) {
        if self.kept.get(file).is_none_or(|kept| kept != bytes) {
            self.kept.insert(file.to_owned(), bytes.to_vec());
            self.changes.push(Change::Store(file.to_owned(), bytes.to_vec()));
        }
    }

    fn drop_kept(&mut self, file: &str) {
        if self.kept.remove(file).is_some() {
            self.changes.push(Change::Remove(file.to_owned()));
        }
    }

    /// The newest root is known: it must be fresh (5.3.10), and what was kept
    /// counts as far as it vouches for it (5.3.11).
    fn end_of_roots(&mut self) -> Result<(), TrustError> {
        self.reckoning.fresh("root", self.root.head)?;
        let root = &self.root;
        let timestamp = self
            .kept
            .get("timestamp.json")
            .map(|bytes| verify::signed::<Timestamp>(bytes, "timestamp", root.role(Kind::Timestamp), &root.keys));
        let snapshot = self
            .kept
            .get("snapshot.json")
            .map(|bytes| verify::signed::<Snapshot>(bytes, "snapshot", root.role(Kind::Snapshot), &root.keys));
        // Keys were changed after they had been stolen: versions that a thief drove up no longer count. Both go, as
        // a timestamp announces a snapshot's version. They can't come back either, for one of them would have to be
        // signed anew.
        let disowned = [
            timestamp.as_ref().and_then(|kept| kept.as_ref().err()),
            snapshot.as_ref().and_then(|kept| kept.as_ref().err()),
        ];
        if disowned.into_iter().flatten().any(|error| matches!(error, TrustError::Threshold { .. })) {
            self.drop_kept("timestamp.json");
            self.drop_kept("snapshot.json");
        } else {
            self.timestamp = timestamp.and_then(Result::ok);
            self.snapshot = snapshot.and_then(Result::ok);
        }
        self.phase = Phase::Timestamp;
        Ok(())
    }

    fn take_timestamp(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let root = &self.root;
        let new: Timestamp = verify::signed(bytes, "timestamp", root.role(Kind::Timestamp), &root.keys)?;
        if let Some(old) = self.timestamp.as_ref().filter(|old| old.head.version == new.head.version) {
            // The same one again: the one that is there stays, if it is fresh.
            self.reckoning.fresh("timestamp", old.head)?;
        } else {
            if let Some(old) = &self.timestamp {
                verify::follows(&new, old)?;
            }
            // The kept timestamp may be lost where the snapshot isn't.
            if let Some(snapshot) = &self.snapshot {
                verify::forwards("snapshot", snapshot.head.version, new.snapshot.version)?;
            }
            self.reckoning.fresh("timestamp", new.head)?;
            self.keep("timestamp.json", bytes);
            self.timestamp = Some(new);
        }
        let Some(announced) = self.timestamp.as_ref().map(|timestamp| &timestamp.snapshot) else {
            return Err(TrustError::Unasked);
        };
        sized("snapshot.json", announced, self.limits.snapshot_bytes)?;
        let kept = self.snapshot.as_ref().is_some_and(|snapshot| {
            snapshot.head.version == announced.version && self.reckoning.fresh("snapshot", snapshot.head).is_ok()
        });
        if kept {
            return self.end_of_snapshot();
        }
        self.phase = Phase::Snapshot;
        Ok(())
    }

    fn take_snapshot(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let Some(timestamp) = &self.timestamp else { return Err(TrustError::Unasked) };
        verify::announced("snapshot.json", &timestamp.snapshot, bytes)?;
        let root = &self.root;
        let new: Snapshot = verify::signed(bytes, "snapshot", root.role(Kind::Snapshot), &root.keys)?;
        verify::version("snapshot", &timestamp.snapshot, new.head)?;
        if let Some(old) = &self.snapshot {
            verify::succeeds(&new, old)?;
        }
        self.reckoning.fresh("snapshot", new.head)?;
        self.keep("snapshot.json", bytes);
        self.snapshot = Some(new);
        self.end_of_snapshot()
    }

    fn end_of_snapshot(&mut self) -> Result<(), TrustError> {
        sized("targets.json", self.pin("targets")?, self.limits.targets_bytes)?;
        self.phase = Phase::Targets;
        if let Some(targets) = self.kept_targets("targets", "root") {
            self.end(targets);
        }
        Ok(())
    }

    fn end(&mut self, targets: Targets) {
        self.targets.insert("targets".into(), targets);
        // Never behind the end of a timestamp that was believed: a clock that jumps ahead for once can't make
        // later timestamps look expired, since these end later still.
        let bound = self.timestamp.as_ref().map_or(UnixTime(0), |timestamp| timestamp.head.expires);
        let seen = self.reckoning.now.min(bound).to_string();
        self.keep(SEEN, seen.as_bytes());
        self.phase = Phase::Ready;
    }

    /// The metadata of a role, as this namer lets it speak.
    fn targets_of(&self, bytes: &[u8], role: &str, namer: &str) -> Result<Targets, TrustError> {
        let announced = self.pin(role)?;
        verify::announced(&name::file(role), announced, bytes)?;
        let targets: Targets = if namer == "root" && role == "targets" {
            verify::signed(bytes, role, self.root.role(Kind::Targets), &self.root.keys)?
        } else {
            let delegations =
                self.targets.get(namer).and_then(|targets| targets.delegations.as_ref()).ok_or(TrustError::Unasked)?;
            let keys = delegations.role(role).ok_or_else(|| TrustError::Unannounced { role: short(role) })?;
            verify::signed(bytes, role, keys, &delegations.keys)?
        };
        verify::version(role, announced, targets.head)?;
        self.reckoning.fresh(role, targets.head)?;
        Ok(targets)
    }

    fn kept_targets(&self, role: &str, namer: &str) -> Option<Targets> {
        self.targets_of(self.kept.get(&name::file(role))?, role, namer).ok()
    }

    /// Asks roles in order until one names the target, or one must be fetched
    /// first: before its delegations a role itself, and these in their order
    /// (5.6.7).
    fn walk(&mut self) -> Result<(), TrustError> {
        loop {
            let Phase::Search(search) = &self.phase else { return Ok(()) };
            let target = search.target.clone();
            let Some((role, namer)) = search.stack.last().cloned() else {
                self.phase = Phase::Ready;
                return Err(TrustError::NoTarget { target: target.to_string() });
            };
            if !search.asked.contains(&role) {
                // The first one is the role of all targets itself.
                if search.asked.len() > self.limits.roles {
                    return Err(TrustError::TooManyRoles { target: target.to_string(), roles_max: self.limits.roles });
                }
                if !self.targets.contains_key(&role) {
                    sized(&name::file(&role), self.pin(&role)?, self.limits.targets_bytes)?;
                    let Some(targets) = self.kept_targets(&role, &namer) else { return Ok(()) };
                    self.targets.insert(role.clone(), targets);
                }
            }
            let Phase::Search(search) = &mut self.phase else { return Ok(()) };
            search.stack.pop();
            if !search.asked.insert(role.clone()) {
                continue;
            }
            let targets = &self.targets[&role];
            if let Some(found) = targets.targets.get(target.as_str()) {
                let hash = found.hashes.iter().next().map(|(_, hash)| hash).filter(|_| self.root.consistent);
                let file = hash.map_or_else(|| target.to_string(), |hash| target.with_hash(hash));
                self.found = Some(Found { name: target, target: found.clone(), role, file });
                self.phase = Phase::Ready;
                return Ok(());
            }
            if let Some(delegations) = &targets.delegations {
                let (roles, terminating) = delegations.asked(target.as_str());
                if terminating {
                    search.stack.clear();
                }
                search.stack.extend(roles.into_iter().rev().map(|asked| (asked, role.clone())));
            }
        }
    }
}

fn history(version: u64) -> String {
    format!("root_history/{version}.root.json")
}

fn sized(file: &str, announced: &Announced, bytes_max: u64) -> Result<(), TrustError> {
    if announced.length.is_some_and(|length| length > bytes_max) {
        return Err(TrustError::TooLarge { file: short(file), bytes_max });
    }
    Ok(())
}
