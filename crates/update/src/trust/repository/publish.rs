//! From complete drafts to what clients read: all of a change or nothing.

use std::collections::{BTreeMap, VecDeque};

use ring::digest::{SHA256, digest};
use ring::rand::SecureRandom;

use super::{Draft, Repository, delegations, draft_file, keys_of, unsigned};
use crate::trust::client::Limits;
use crate::trust::error::SignError;
use crate::trust::key::{SigningKey, hex};
use crate::trust::metadata::{
    Announced, Body, Hashes, Head, Kind, RoleKeys, Root, Signed, Snapshot, Targets, Timestamp,
};
use crate::trust::name;
use crate::trust::time::UnixTime;

/// Versions of each file that stay, for clients that are half through an update. Roots stay for ever.
const VERSIONS_KEPT: u64 = 16;

/// The snapshot and the timestamp that are needed; none: those that are published stay.
struct Announcement {
    snapshot: Option<Signed<Snapshot>>,
    timestamp: Option<Signed<Timestamp>>,
}

impl Repository {
    /// Publishes the drafts that have signatures enough, with a snapshot and a
    /// timestamp where they are needed or due. Returns the roles that are new, the
    /// snapshot and the timestamp among them; none: nothing was to be done.
    ///
    /// # Errors
    /// [`SignError::TooFewKeys`] when the keys don't suffice for the snapshot or the timestamp, or when a draft
    /// would leave a role with metadata that nobody who may has signed. Nothing is changed then.
    pub fn publish(
        &mut self,
        keys: &[SigningKey],
        now: UnixTime,
        random: &dyn SecureRandom,
    ) -> Result<Vec<String>, SignError> {
        let mut new: Vec<(String, u64, Vec<u8>)> = Vec::new();
        let root = match self.drafts.get("root") {
            Some(draft @ Draft::Root(signed)) if self.missing("root", draft).is_complete() => {
                new.push(("root".into(), signed.body.head.version, signed.file()));
                signed.body.clone()
            }
            draft => self.root.clone().ok_or_else(|| match draft {
                Some(draft) => self.missing("root", draft).error(),
                None => SignError::NoRole("root".into()),
            })?,
        };
        let targets = self.next_targets(&root, &mut new)?;
        let Announcement { snapshot, timestamp } =
            self.next_snapshot(&root, &targets, !new.is_empty(), keys, now, random)?;
        if let Some(snapshot) = &snapshot {
            new.push(("snapshot".into(), snapshot.body.head.version, snapshot.file()));
        }
        if let Some(timestamp) = &timestamp {
            new.push(("timestamp".into(), timestamp.body.head.version, timestamp.file()));
        }
        for (role, _, bytes) in &new {
            sized(role, bytes)?;
        }

        self.root = Some(root);
        self.targets = targets;
        self.snapshot = snapshot.or(self.snapshot.take());
        self.timestamp = timestamp.or(self.timestamp.take());
        let mut published = Vec::new();
        for (role, version, bytes) in new {
            let file = if role == "timestamp" { name::file(&role) } else { name::versioned(&role, version) };
            self.put(&file, bytes);
            if !matches!(role.as_str(), "snapshot" | "timestamp") {
                self.drafts.remove(&role);
            }
            published.push(role);
        }
        for role in &published {
            self.drop_file(&draft_file(role));
        }
        self.prune();
        Ok(published)
    }

    /// Targets metadata as it will be: complete drafts, or what is published, as
    /// far down as targets were given.
    fn next_targets(
        &self,
        root: &Root,
        new: &mut Vec<(String, u64, Vec<u8>)>,
    ) -> Result<BTreeMap<String, Signed<Targets>>, SignError> {
        let mut next = BTreeMap::new();
        let mut open = VecDeque::from([("targets".to_owned(), root.role(Kind::Targets).clone(), root.keys.clone())]);
        while let Some((role, holders, keys)) = open.pop_front() {
            let complete = |signed: &Signed<Targets>| holders.count(&keys, signed) >= holders.threshold;
            let draft = match self.drafts.get(&role) {
                Some(Draft::Targets(signed)) => Some(signed),
                _ => None,
            };
            let taken = draft.filter(|signed| complete(signed));
            let Some(signed) = taken.or_else(|| self.targets.get(&role).filter(|signed| complete(signed))) else {
                let have = draft.or_else(|| self.targets.get(&role)).map_or(0, |signed| holders.count(&keys, signed));
                return Err(SignError::TooFewKeys { role, have, need: holders.threshold });
            };
            if taken.is_some() {
                new.push((role.clone(), signed.body.head.version, signed.file()));
            }
            for delegation in delegations(&signed.body) {
                open.push_back((delegation.name.clone(), delegation.role.clone(), keys_of(&signed.body)));
            }
            next.insert(role, signed.clone());
        }
        Ok(next)
    }

    fn next_snapshot(
        &self,
        root: &Root,
        targets: &BTreeMap<String, Signed<Targets>>,
        changed: bool,
        keys: &[SigningKey],
        now: UnixTime,
        random: &dyn SecureRandom,
    ) -> Result<Announcement, SignError> {
        // Roles that were once announced stay so: clients refuse a snapshot that lacks one.
        let mut meta = self.snapshot.as_ref().map(|snapshot| snapshot.body.meta.clone()).unwrap_or_default();
        for (role, signed) in targets {
            let published = self
                .targets
                .get(role)
                .is_some_and(|old| old.body == signed.body && old.signatures == signed.signatures);
            if !published || !meta.contains_key(&format!("{role}.json")) {
                meta.insert(format!("{role}.json"), announce(signed.body.head.version, &signed.file()));
            }
        }
        let stale = |role: &str, head: Head| self.policy.of(role).is_due(head.expires, now);
        let holders = root.role(Kind::Snapshot);
        let old = self.snapshot.as_ref().filter(|old| {
            holders.count(&root.keys, old) >= holders.threshold
                && old.body.meta == meta
                && !stale("snapshot", old.body.head)
        });
        let snapshot = if old.is_some() {
            None
        } else {
            let head = self.head("snapshot", self.snapshot.as_ref().map(|old| old.body.head.version), now);
            Some(signed_by(Snapshot { head, meta }, holders, keys, random)?)
        };
        let holders = root.role(Kind::Timestamp);
        let old = self.timestamp.as_ref().filter(|old| {
            holders.count(&root.keys, old) >= holders.threshold
                && snapshot.is_none()
                && !stale("timestamp", old.body.head)
        });
        // A root alone needs neither, but says something new; the timestamp then shows that the repository lives.
        let timestamp = match (old, changed) {
            (Some(_), false) => None,
            _ => {
                let head = self.head("timestamp", self.timestamp.as_ref().map(|old| old.body.head.version), now);
                let announced = match (&snapshot, &self.timestamp) {
                    (Some(snapshot), _) => announce(snapshot.body.head.version, &snapshot.file()),
                    (None, Some(old)) => old.body.snapshot.clone(),
                    (None, None) => return Err(SignError::NoRole("snapshot".into())),
                };
                Some(signed_by(Timestamp { head, snapshot: announced }, holders, keys, random)?)
            }
        };
        Ok(Announcement { snapshot, timestamp })
    }

    /// Lets go of versions that nobody is half through with.
    fn prune(&mut self) {
        let heads = self.heads();
        let old: Vec<String> = self
            .files
            .keys()
            .filter(|file| {
                let Some((version, rest)) = file.split_once('.') else { return false };
                let Some(version) = version.parse::<u64>().ok().filter(|_| rest != "root.json") else { return false };
                // Roles that targets were taken back from are announced for ever, with their last version.
                let head = heads.iter().find(|(role, _)| name::file(role) == *rest);
                head.is_some_and(|(_, head)| version.saturating_add(VERSIONS_KEPT) <= head.version)
            })
            .cloned()
            .collect();
        for file in old {
            self.drop_file(&file);
        }
    }
}

fn announce(version: u64, bytes: &[u8]) -> Announced {
    let hash = hex(digest(&SHA256, bytes).as_ref());
    Announced { version, length: Some(bytes.len() as u64), hashes: Some(Hashes([("sha256".to_owned(), hash)].into())) }
}

fn signed_by<T: Body>(
    body: T,
    holders: &RoleKeys,
    keys: &[SigningKey],
    random: &dyn SecureRandom,
) -> Result<Signed<T>, SignError> {
    let mut signed = unsigned(body)?;
    for key in keys.iter().filter(|key| holders.keys.contains(key.id())) {
        signed.signatures.insert(key.id().to_owned(), key.sign(&signed.canonical, random)?);
    }
    let have = signed.signatures.len();
    if have < holders.threshold {
        return Err(SignError::TooFewKeys { role: T::KIND.word().to_owned(), have, need: holders.threshold });
    }
    Ok(signed)
}

fn sized(role: &str, bytes: &[u8]) -> Result<(), SignError> {
    let limits = Limits::default();
    let bytes_max = match role {
        "root" => limits.root_bytes,
        "snapshot" => limits.snapshot_bytes,
        "timestamp" => limits.timestamp_bytes,
        _ => limits.targets_bytes,
    };
    if bytes.len() as u64 > bytes_max {
        return Err(SignError::TooLarge { file: format!("{role}.json"), bytes: bytes.len(), bytes_max });
    }
    Ok(())
}
