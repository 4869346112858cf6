//! A repository of signed metadata: files by name, drafts that wait for
//! signatures, and what becomes due.
//!
//! Pure: [`Repository::changes`] says what to write, in the order in which a
//! client may read meanwhile. A change of what a role says is a *draft*. Every
//! holder of a key signs drafts where the key is ([`Repository::sign`]);
//! [`Repository::publish`] takes those that have signatures enough, and makes
//! the snapshot and the timestamp with the keys that are online.

mod due;
mod publish;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ring::rand::SecureRandom;

pub use due::{Due, Ending, Life, Policy};

use crate::trust::client::Change;
use crate::trust::error::{SignError, TrustError};
use crate::trust::json::short;
use crate::trust::key::{PublicKey, SigningKey};
use crate::trust::metadata::{
    Body, Delegated, Delegation, Delegations, Head, Kind, Paths, RoleKeys, Root, Signed, Snapshot, Target, Targets,
    Timestamp,
};
use crate::trust::name::{self, TargetName};
use crate::trust::time::UnixTime;
use crate::trust::verify;

/// Bytes of a role's name.
const ROLE_BYTES_MAX: usize = 128;

/// The keys of a role that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// Public keys.
    pub keys: Vec<PublicKey>,
    /// How many of them must sign.
    pub threshold: usize,
}

impl Holders {
    /// One key that signs alone.
    #[must_use]
    pub fn one(key: &PublicKey) -> Self {
        Self { keys: vec![key.clone()], threshold: 1 }
    }

    fn role(&self, keys: &mut BTreeMap<String, PublicKey>) -> Result<RoleKeys, SignError> {
        let role = RoleKeys { keys: self.keys.iter().map(PublicKey::id).collect(), threshold: self.threshold };
        if role.threshold == 0 || role.threshold > role.keys.len() {
            return Err(SignError::BadThreshold { threshold: role.threshold, keys: role.keys.len() });
        }
        keys.extend(self.keys.iter().map(|key| (key.id(), key.clone())));
        Ok(role)
    }
}

/// Who signs for the four roles.
#[derive(Debug, Clone)]
pub struct Founders {
    /// Names all others: people, with keys that are offline.
    pub root: Holders,
    /// Names targets, or who may.
    pub targets: Holders,
    /// The repository itself.
    pub snapshot: Holders,
    /// The same.
    pub timestamp: Holders,
}

/// A draft that waits for signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Whose.
    pub role: String,
    /// Keys of the role that have signed.
    pub have: usize,
    /// Keys that must.
    pub need: usize,
}

#[derive(Debug, Clone)]
enum Draft {
    Root(Signed<Root>),
    Targets(Signed<Targets>),
}

impl Draft {
    fn file(&self) -> Vec<u8> {
        match self {
            Self::Root(signed) => signed.file(),
            Self::Targets(signed) => signed.file(),
        }
    }
}

/// A repository of signed metadata.
#[derive(Debug)]
pub struct Repository {
    policy: Policy,
    files: BTreeMap<String, Vec<u8>>,
    changes: Vec<Change>,
    root: Option<Root>,
    targets: BTreeMap<String, Signed<Targets>>,
    snapshot: Option<Signed<Snapshot>>,
    timestamp: Option<Signed<Timestamp>>,
    drafts: BTreeMap<String, Draft>,
}

impl Repository {
    /// A repository that nobody has signed yet: drafts of its root and of empty targets.
    ///
    /// # Errors
    /// [`SignError::BadThreshold`], [`SignError::BadPolicy`].
    pub fn create(founders: &Founders, policy: Policy, now: UnixTime) -> Result<Self, SignError> {
        policy.check()?;
        let mut keys = BTreeMap::new();
        let mut roles = BTreeMap::new();
        let Founders { root, targets, snapshot, timestamp } = founders;
        for (kind, holders) in
            [(Kind::Root, root), (Kind::Targets, targets), (Kind::Snapshot, snapshot), (Kind::Timestamp, timestamp)]
        {
            roles.insert(kind, holders.role(&mut keys)?);
        }
        let mut repository = Self::empty(policy);
        let root = Root { head: repository.head("root", None, now), consistent: true, keys, roles };
        repository.draft("root", Draft::Root(unsigned(root)?));
        let targets =
            Targets { head: repository.head("targets", None, now), targets: BTreeMap::new(), delegations: None };
        repository.draft("targets", Draft::Targets(unsigned(targets)?));
        Ok(repository)
    }

    fn empty(policy: Policy) -> Self {
        Self {
            policy,
            files: BTreeMap::new(),
            changes: Vec::new(),
            root: None,
            targets: BTreeMap::new(),
            snapshot: None,
            timestamp: None,
            drafts: BTreeMap::new(),
        }
    }

    /// A repository from its files. What has expired is taken, so that it can be signed anew.
    ///
    /// # Errors
    /// When a file that is needed is missing, or doesn't verify.
    pub fn open(files: impl IntoIterator<Item = (String, Vec<u8>)>, policy: Policy) -> Result<Self, SignError> {
        policy.check()?;
        let mut repository = Self { files: files.into_iter().collect(), ..Self::empty(policy) };
        repository.read_roots()?;
        if let Some(root) = &repository.root {
            repository.read_published(&root.clone())?;
        }
        repository.read_drafts()?;
        Ok(repository)
    }

    fn read_roots(&mut self) -> Result<(), SignError> {
        let versions = self.files.keys().filter_map(|file| file.strip_suffix(".root.json")?.parse::<u64>().ok());
        let Some(first) = versions.min() else { return Ok(()) };
        let mut root = verify::anchor(self.file(&name::versioned("root", first))?)?;
        while let Some(bytes) = self.files.get(&name::versioned("root", root.head.version.saturating_add(1))) {
            root = verify::next_root(bytes, &root)?;
        }
        self.root = Some(root);
        Ok(())
    }

    fn read_published(&mut self, root: &Root) -> Result<(), SignError> {
        let timestamp: Signed<Timestamp> =
            read(self.file("timestamp.json")?, "timestamp", root.role(Kind::Timestamp), &root.keys)?;
        let file = name::versioned("snapshot", timestamp.body.snapshot.version);
        let bytes = self.file(&file)?;
        verify::announced(&file, &timestamp.body.snapshot, bytes)?;
        let snapshot: Signed<Snapshot> = read(bytes, "snapshot", root.role(Kind::Snapshot), &root.keys)?;

        let mut found = BTreeMap::new();
        let mut open = VecDeque::from([("targets".to_owned(), root.role(Kind::Targets).clone(), root.keys.clone())]);
        while let Some((role, holders, keys)) = open.pop_front() {
            let announced = snapshot.body.meta.get(&format!("{role}.json"));
            let announced = announced.ok_or_else(|| TrustError::Unannounced { role: short(&role) })?;
            let file = name::versioned(&role, announced.version);
            let bytes = self.file(&file)?;
            verify::announced(&file, announced, bytes)?;
            let targets: Signed<Targets> = read(bytes, &role, &holders, &keys)?;
            for delegation in delegations(&targets.body) {
                open.push_back((delegation.name.clone(), delegation.role.clone(), keys_of(&targets.body)));
            }
            if found.insert(role.clone(), targets).is_some() {
                return Err(SignError::BadRole { name: short(&role), why: "it was given targets by two roles" });
            }
        }
        self.targets = found;
        self.snapshot = Some(snapshot);
        self.timestamp = Some(timestamp);
        Ok(())
    }

    fn read_drafts(&mut self) -> Result<(), SignError> {
        let mut drafts = BTreeMap::new();
        for (file, bytes) in &self.files {
            let Some(file) = file.strip_prefix("drafts/") else { continue };
            let draft = if file == "root.json" {
                ("root".to_owned(), Draft::Root(Signed::read(bytes).map_err(|why| TrustError::malformed("root", why))?))
            } else {
                // Roles that are made here have names that stand for themselves.
                let role = file.strip_suffix(".json").unwrap_or(file).to_owned();
                let signed = Signed::read(bytes).map_err(|why| TrustError::malformed(&role, why))?;
                (role, Draft::Targets(signed))
            };
            drafts.insert(draft.0, draft.1);
        }
        self.drafts = drafts;
        Ok(())
    }

    fn file(&self, file: &str) -> Result<&[u8], TrustError> {
        self.files.get(file).map(Vec::as_slice).ok_or_else(|| TrustError::Missing { file: short(file) })
    }

    /// All files by name: those to be handed out, and drafts below `drafts/`.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// What to write since the last call, in order: nothing announces what isn't there yet.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The root in force.
    #[must_use]
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// Published targets metadata by role.
    pub fn targets(&self) -> impl Iterator<Item = (&str, &Targets)> {
        self.targets.iter().map(|(role, signed)| (role.as_str(), &signed.body))
    }

    /// Versions and ends of all that is published, by role.
    #[must_use]
    pub fn heads(&self) -> Vec<(String, Head)> {
        let root = self.root.iter().map(|root| ("root".to_owned(), root.head));
        let targets = self.targets.iter().map(|(role, signed)| (role.clone(), signed.body.head));
        let snapshot = self.snapshot.iter().map(|signed| ("snapshot".to_owned(), signed.body.head));
        let timestamp = self.timestamp.iter().map(|signed| ("timestamp".to_owned(), signed.body.head));
        root.chain(targets).chain(snapshot).chain(timestamp).collect()
    }

    /// Drafts with the signatures that they have.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        self.drafts.iter().map(|(role, draft)| self.missing(role, draft)).collect()
    }

    /// Puts a target into what a role says, or changes it.
    ///
    /// # Errors
    /// [`SignError::NoRole`], [`SignError::Custom`].
    pub fn set_target(
        &mut self,
        role: &str,
        target: &TargetName,
        what: Target,
        now: UnixTime,
    ) -> Result<(), SignError> {
        self.edit(role, now, |targets| {
            targets.targets.insert(target.as_str().to_owned(), what);
            Ok(())
        })
    }

    /// Takes a target out of what a role says.
    ///
    /// # Errors
    /// [`SignError::NoTarget`], [`SignError::NoRole`].
    pub fn remove_target(&mut self, role: &str, target: &TargetName, now: UnixTime) -> Result<(), SignError> {
        self.edit(role, now, |targets| {
            let gone = targets.targets.remove(target.as_str());
            gone.map(drop).ok_or_else(|| SignError::NoTarget { role: role.to_owned(), target: target.to_string() })
        })
    }

    /// Gives targets to a role of its own, which begins with none; behind those that were given before.
    ///
    /// # Errors
    /// [`SignError::BadRole`] unless it has 1 to 128 of a-z, 0-9, `-`, `_` and `.`, and is new;
    /// [`SignError::BadThreshold`], [`SignError::NoRole`].
    pub fn delegate(
        &mut self,
        by: &str,
        to: &str,
        holders: &Holders,
        paths: &[String],
        terminating: bool,
        now: UnixTime,
    ) -> Result<(), SignError> {
        check_role(to)?;
        if Kind::ALL.iter().any(|kind| kind.word() == to) || self.namer(to).is_some() {
            return Err(SignError::BadRole { name: to.to_owned(), why: "it exists" });
        }
        self.edit(by, now, |targets| {
            let given = targets
                .delegations
                .get_or_insert_with(|| Delegations { keys: BTreeMap::new(), to: Delegated::Roles(Vec::new()) });
            let Delegated::Roles(roles) = &mut given.to else {
                return Err(SignError::BadRole { name: to.to_owned(), why: "targets were given to bins" });
            };
            let role = holders.role(&mut given.keys)?;
            roles.push(Delegation { name: to.to_owned(), role, terminating, paths: Paths::Patterns(paths.to_vec()) });
            Ok(())
        })?;
        // Its versions go on where an earlier role of this name ended.
        let last = self
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.body.meta.get(&format!("{to}.json")))
            .map(|announced| announced.version);
        let head = self.head(to, last, now);
        self.draft(to, Draft::Targets(unsigned(Targets { head, targets: BTreeMap::new(), delegations: None })?));
        Ok(())
    }

    /// Takes back what was given to a role.
    ///
    /// # Errors
    /// [`SignError::NoRole`] when there is no such delegation.
    pub fn undelegate(&mut self, role: &str, now: UnixTime) -> Result<(), SignError> {
        let by = self.namer(role).ok_or_else(|| SignError::NoRole(role.to_owned()))?;
        self.edit(&by, now, |targets| {
            if let Some(Delegations { keys, to: Delegated::Roles(roles) }) = &mut targets.delegations {
                roles.retain(|delegation| delegation.name != role);
                let used: BTreeSet<&String> = roles.iter().flat_map(|delegation| &delegation.role.keys).collect();
                keys.retain(|id, _| used.contains(id));
            }
            Ok(())
        })?;
        if self.drafts.remove(role).is_some() {
            self.drop_file(&draft_file(role));
        }
        Ok(())
    }

    /// Gives a role other keys: a draft of the root, or of what the role was
    /// given its targets by; and of what the role says, which must be signed anew.
    ///
    /// # Errors
    /// [`SignError::NoRole`], [`SignError::BadThreshold`].
    pub fn rotate(&mut self, role: &str, holders: &Holders, now: UnixTime) -> Result<(), SignError> {
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.word() == role) {
            let mut root = self.root_body().cloned().ok_or_else(|| SignError::NoRole("root".into()))?;
            root.head = self.head("root", self.root.as_ref().map(|root| root.head.version), now);
            root.roles.insert(kind, holders.role(&mut root.keys)?);
            let used: BTreeSet<&String> = root.roles.values().flat_map(|role| &role.keys).collect();
            root.keys.retain(|id, _| used.contains(id));
            self.draft("root", Draft::Root(unsigned(root)?));
            return if kind == Kind::Targets { self.renew("targets", now) } else { Ok(()) };
        }
        let by = self.namer(role).ok_or_else(|| SignError::NoRole(role.to_owned()))?;
        self.edit(&by, now, |targets| {
            if let Some(Delegations { keys, to: Delegated::Roles(roles) }) = &mut targets.delegations {
                let new = holders.role(keys)?;
                roles
                    .iter_mut()
                    .filter(|delegation| delegation.name == role)
                    .for_each(|delegation| delegation.role = new.clone());
                let used: BTreeSet<&String> = roles.iter().flat_map(|delegation| &delegation.role.keys).collect();
                keys.retain(|id, _| used.contains(id));
            }
            Ok(())
        })?;
        self.renew(role, now)
    }

    /// Drafts a role's metadata anew as it is, with a later end.
    ///
    /// # Errors
    /// [`SignError::NoRole`]; the snapshot and the timestamp are renewed by [`Self::publish`].
    pub fn renew(&mut self, role: &str, now: UnixTime) -> Result<(), SignError> {
        if role != "root" {
            return self.edit(role, now, |_| Ok(()));
        }
        let mut root = self.root_body().cloned().ok_or_else(|| SignError::NoRole("root".into()))?;
        root.head = self.head("root", self.root.as_ref().map(|root| root.head.version), now);
        self.draft("root", Draft::Root(unsigned(root)?));
        Ok(())
    }

    /// Gives up a draft.
    pub fn forget_draft(&mut self, role: &str) -> bool {
        let was = self.drafts.remove(role).is_some();
        self.drop_file(&draft_file(role));
        was
    }

    /// Signs the drafts with those of these keys that may; returns role and key id of each signature that is new.
    ///
    /// # Errors
    /// [`SignError::Random`].
    pub fn sign(&mut self, keys: &[SigningKey], random: &dyn SecureRandom) -> Result<Vec<(String, String)>, SignError> {
        let mut made = Vec::new();
        let roles: Vec<String> = self.drafts.keys().cloned().collect();
        for role in roles {
            let may: BTreeSet<String> =
                self.authorities(&role).into_iter().flat_map(|(holders, _)| holders.keys).collect();
            let Some(draft) = self.drafts.get_mut(&role) else { continue };
            let (canonical, signatures) = match draft {
                Draft::Root(signed) => (&signed.canonical, &mut signed.signatures),
                Draft::Targets(signed) => (&signed.canonical, &mut signed.signatures),
            };
            for key in keys.iter().filter(|key| may.contains(key.id())) {
                if !signatures.contains_key(key.id()) {
                    signatures.insert(key.id().to_owned(), key.sign(canonical, random)?);
                    made.push((role.clone(), key.id().to_owned()));
                }
            }
            let file = draft.file();
            self.put(&draft_file(&role), file);
        }
        Ok(made)
    }

    fn edit(
        &mut self,
        role: &str,
        now: UnixTime,
        change: impl FnOnce(&mut Targets) -> Result<(), SignError>,
    ) -> Result<(), SignError> {
        let published = self.targets.get(role).map(|signed| signed.body.head.version);
        let mut body = match (self.drafts.get(role), self.targets.get(role)) {
            (Some(Draft::Targets(signed)), _) | (None, Some(signed)) => signed.body.clone(),
            _ => return Err(SignError::NoRole(role.to_owned())),
        };
        // A draft of a role that is new has the version that was chosen when it was made.
        body.head = match published {
            Some(_) => self.head(role, published, now),
            None => Head { expires: now.after(self.policy.of(role).valid), ..body.head },
        };
        change(&mut body)?;
        self.draft(role, Draft::Targets(unsigned(body)?));
        Ok(())
    }

    fn head(&self, role: &str, last: Option<u64>, now: UnixTime) -> Head {
        Head { version: last.unwrap_or(0) + 1, expires: now.after(self.policy.of(role).valid) }
    }

    fn draft(&mut self, role: &str, draft: Draft) {
        self.put(&draft_file(role), draft.file());
        self.drafts.insert(role.to_owned(), draft);
    }

    fn put(&mut self, file: &str, bytes: Vec<u8>) {
        if self.files.get(file) != Some(&bytes) {
            self.files.insert(file.to_owned(), bytes.clone());
            self.changes.push(Change::Store(file.to_owned(), bytes));
        }
    }

    fn drop_file(&mut self, file: &str) {
        if self.files.remove(file).is_some() {
            self.changes.push(Change::Remove(file.to_owned()));
        }
    }

    fn root_body(&self) -> Option<&Root> {
        match self.drafts.get("root") {
            Some(Draft::Root(signed)) => Some(&signed.body),
            _ => self.root.as_ref(),
        }
    }

    /// Targets metadata as it is drafted, or published.
    fn bodies(&self) -> impl Iterator<Item = (&String, &Targets)> {
        let drafts = self.drafts.iter().filter_map(|(role, draft)| match draft {
            Draft::Targets(signed) => Some((role, &signed.body)),
            Draft::Root(_) => None,
        });
        drafts.chain(
            self.targets
                .iter()
                .filter(|(role, _)| !self.drafts.contains_key(*role))
                .map(|(role, signed)| (role, &signed.body)),
        )
    }

    /// Who gave targets to a role.
    fn namer(&self, role: &str) -> Option<String> {
        let mut bodies = self.bodies();
        bodies
            .find(|(_, body)| delegations(body).iter().any(|delegation| delegation.name == role))
            .map(|(by, _)| by.clone())
    }

    /// By whose word somebody signs for a role: as it is, and as it is drafted.
    fn authorities(&self, role: &str) -> Vec<(RoleKeys, BTreeMap<String, PublicKey>)> {
        let roots = || [self.root.as_ref(), self.root_body()].into_iter().flatten();
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.word() == role) {
            return roots().map(|root| (root.role(kind).clone(), root.keys.clone())).collect();
        }
        let bodies = self.targets.values().map(|signed| &signed.body).chain(self.bodies().map(|(_, body)| body));
        let of = |body: &Targets| {
            let found = delegations(body).iter().find(|delegation| delegation.name == role)?;
            Some((found.role.clone(), keys_of(body)))
        };
        bodies.filter_map(of).collect()
    }

    /// What a draft lacks: a root must be signed by the keys of the last one and by
    /// its own, everything else by those that will count.
    fn missing(&self, role: &str, draft: &Draft) -> Waiting {
        let authorities = self.authorities(role);
        let waiting = |(holders, keys): &(RoleKeys, BTreeMap<String, PublicKey>)| {
            let have = match draft {
                Draft::Root(signed) => holders.count(keys, signed),
                Draft::Targets(signed) => holders.count(keys, signed),
            };
            Waiting { role: role.to_owned(), have, need: holders.threshold }
        };
        let mut all = authorities.iter().map(waiting);
        let lacking = if matches!(draft, Draft::Root(_)) {
            all.max_by_key(|waiting| waiting.need.saturating_sub(waiting.have))
        } else {
            all.next_back()
        };
        lacking.unwrap_or(Waiting { role: role.to_owned(), have: 0, need: 1 })
    }
}

impl Waiting {
    /// Whether it has signatures enough.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.have >= self.need
    }

    fn error(self) -> SignError {
        SignError::TooFewKeys { role: self.role, have: self.have, need: self.need }
    }
}

fn delegations(targets: &Targets) -> &[Delegation] {
    match targets.delegations.as_ref().map(|delegations| &delegations.to) {
        Some(Delegated::Roles(roles)) => roles,
        // Repositories made here have none; those of others are read by clients only.
        Some(Delegated::Bins { .. }) | None => &[],
    }
}

fn keys_of(targets: &Targets) -> BTreeMap<String, PublicKey> {
    targets.delegations.as_ref().map(|delegations| delegations.keys.clone()).unwrap_or_default()
}

fn draft_file(role: &str) -> String {
    format!("drafts/{role}.json")
}

fn unsigned<T: Body>(body: T) -> Result<Signed<T>, SignError> {
    Signed::unsigned(body).map_err(SignError::Custom)
}

fn read<T: Body>(
    bytes: &[u8],
    name: &str,
    role: &RoleKeys,
    keys: &BTreeMap<String, PublicKey>,
) -> Result<Signed<T>, TrustError> {
    let signed = Signed::read(bytes).map_err(|why| TrustError::malformed(name, why))?;
    verify::threshold(&signed, name, role, keys)?;
    Ok(signed)
}

fn check_role(name: &str) -> Result<(), SignError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > ROLE_BYTES_MAX || name.starts_with('.') || !name.bytes().all(fits) {
        return Err(SignError::BadRole {
            name: short(name),
            why: "it must have 1 to 128 of a-z, 0-9, `-`, `_` and `.`, without a dot in front",
        });
    }
    Ok(())
}
