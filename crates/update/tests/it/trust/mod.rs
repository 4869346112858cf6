//! Signed metadata: a repository and clients under a made-up clock, every
//! attack that is refused, and python-tuf on either side.

mod attacks;
mod python;
mod signing;

use std::collections::BTreeMap;
use std::time::Duration;

use ring::rand::SystemRandom;
use tierline_update::trust::{
    Answer, Change, Client, Founders, Holders, Policy, Record, Repository, SigningKey, TargetName, TrustError, UnixTime,
};

pub const DAY: Duration = Duration::from_secs(86_400);

/// A Monday.
pub const START: UnixTime = UnixTime(1_796_000_000);

/// A repository, its keys, and what it hands out.
pub struct Site {
    pub repository: Repository,
    pub keys: BTreeMap<&'static str, SigningKey>,
    pems: BTreeMap<&'static str, String>,
    pub random: SystemRandom,
}

const NAMES: [&str; 7] = ["root", "root-2", "root-3", "targets", "online", "detector", "spare"];

pub fn name(text: &str) -> TargetName {
    TargetName::new(text).unwrap()
}

impl Site {
    /// With keys `root`, `targets` and `online`, which signs snapshots and timestamps.
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let pems: BTreeMap<_, _> = NAMES.map(|name| (name, SigningKey::generate(&random).unwrap())).into();
        let keys: BTreeMap<_, _> =
            pems.iter().map(|(name, pem)| (*name, SigningKey::from_pem(pem, &random).unwrap())).collect();
        let one = |role: &str| Holders::one(keys[role].public());
        let founders =
            Founders { root: one("root"), targets: one("targets"), snapshot: one("online"), timestamp: one("online") };
        let repository = Repository::create(&founders, Policy::default(), START).unwrap();
        let mut site = Self { repository, keys, pems, random };
        site.sign(&["root", "targets"]);
        site.publish(START);
        site
    }

    pub fn sign(&mut self, keys: &[&'static str]) -> usize {
        let keys = self.some(keys);
        self.repository.sign(&keys, &self.random).unwrap().len()
    }

    /// Keys can't be copied, so they are read again.
    pub fn some(&self, keys: &[&'static str]) -> Vec<SigningKey> {
        keys.iter().map(|key| SigningKey::from_pem(&self.pems[key], &self.random).unwrap()).collect()
    }

    pub fn publish(&mut self, now: UnixTime) -> Vec<String> {
        let online = self.some(&["online"]);
        self.repository.publish(&online, now, &self.random).unwrap()
    }

    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.repository.files().clone()
    }

    /// A client that came with this site's first root.
    pub fn client(&self) -> Client {
        Client::new(&self.repository.files()["1.root.json"]).unwrap()
    }

    pub fn set(&mut self, role: &'static str, target: &str, content: &[u8], now: UnixTime) {
        let sha256: String = ring::digest::digest(&ring::digest::SHA256, content)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let record = Record { blake3: blake3::hash(content).to_hex().to_string(), ..Record::default() };
        let what = record.target(content.len() as u64, &sha256).unwrap();
        self.repository.set_target(role, &name(target), what, now).unwrap();
        self.sign(&[if role == "targets" { "targets" } else { "detector" }]);
    }
}

/// An update with what is handed out.
pub fn update(client: &mut Client, files: &BTreeMap<String, Vec<u8>>, now: UnixTime) -> Result<(), TrustError> {
    client.begin(now);
    fetch(client, files)
}

pub fn fetch(client: &mut Client, files: &BTreeMap<String, Vec<u8>>) -> Result<(), TrustError> {
    while let Some(fetch) = client.next() {
        client.feed(files.get(&fetch.name).map_or(Answer::Missing, |bytes| Answer::Bytes(bytes)))?;
    }
    Ok(())
}

pub fn search(client: &mut Client, files: &BTreeMap<String, Vec<u8>>, target: &str) -> Result<(), TrustError> {
    client.search(&name(target))?;
    fetch(client, files)
}

/// What a restart leaves of a client: the changes, applied to what was kept.
pub fn kept(kept: &mut BTreeMap<String, Vec<u8>>, client: &mut Client) {
    for change in client.changes() {
        match change {
            Change::Store(file, bytes) => drop(kept.insert(file, bytes)),
            Change::Remove(file) => drop(kept.remove(&file)),
        }
    }
}
