//! Who is where, counted: steps don't go through all devices. Follows from the
//! ledger, and from who can be reached.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{Ledger, Member, State};

/// What a device is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// In no wave yet.
    Pool,
    /// In a wave, and not asked.
    Due,
    Asked,
    Confirmed,
    Failed,
    Returning,
    Returned,
}

pub(super) const CLASSES: [Class; 7] =
    [Class::Pool, Class::Due, Class::Asked, Class::Confirmed, Class::Failed, Class::Returning, Class::Returned];

/// The order in which devices are taken: mixed, so that a wave is a fair sample
/// of its group, and the same after a restart.
type Key = (u64, String);

#[derive(Debug, Default)]
struct Sets {
    /// By class, then by whether it can be reached.
    sets: [[BTreeSet<Key>; 2]; CLASSES.len()],
}

#[derive(Debug, Default)]
pub(super) struct Index {
    groups: Vec<Sets>,
    placed: BTreeMap<String, (usize, Class, bool)>,
    /// Devices asked, by when; for their deadlines.
    asked: BTreeSet<(u64, String)>,
    asked_at: BTreeMap<String, u64>,
    salt: u64,
}

impl Index {
    pub(super) fn of(ledger: &Ledger, present: impl Fn(&str) -> bool) -> Self {
        let groups = ledger.groups.iter().map(|_| Sets::default()).collect();
        let mut index = Self { groups, salt: ledger.rollout, ..Self::default() };
        for (device, member) in &ledger.members {
            index.set(device, Some(member), present(device));
        }
        index
    }

    /// A device's state or presence has changed.
    pub(super) fn set(&mut self, device: &str, member: Option<&Member>, present: bool) {
        let key = (mix(self.salt, device), device.to_owned());
        if let Some((group, class, present)) = self.placed.remove(device) {
            let _was = self.groups[group].sets[class as usize][usize::from(present)].remove(&key);
        }
        if let Some(at) = self.asked_at.remove(device) {
            let _was = self.asked.remove(&(at, device.to_owned()));
        }
        let Some(member) = member else { return };
        let class = match &member.state {
            State::Waiting if member.in_wave => Class::Due,
            State::Waiting => Class::Pool,
            State::Asked { .. } => Class::Asked,
            State::Confirmed { .. } => Class::Confirmed,
            State::Failed { .. } => Class::Failed,
            State::Returning => Class::Returning,
            State::Returned => Class::Returned,
        };
        if let State::Asked { open_ms } = member.state {
            let _new = self.asked.insert((open_ms, device.to_owned()));
            self.asked_at.insert(device.to_owned(), open_ms);
        }
        let _new = self.groups[member.group].sets[class as usize][usize::from(present)].insert(key);
        self.placed.insert(device.to_owned(), (member.group, class, present));
    }

    pub(super) fn count(&self, group: usize, class: Class) -> usize {
        self.groups[group].sets[class as usize].iter().map(BTreeSet::len).sum()
    }

    pub(super) fn present(&self, group: usize, class: Class) -> usize {
        self.groups[group].sets[class as usize][1].len()
    }

    pub(super) fn members(&self, group: usize) -> usize {
        CLASSES.iter().map(|class| self.count(group, *class)).sum()
    }

    /// Devices that can be reached and serve: not at work, and not failed.
    pub(super) fn available(&self, group: usize) -> usize {
        [Class::Pool, Class::Due, Class::Confirmed, Class::Returned]
            .iter()
            .map(|class| self.present(group, *class))
            .sum()
    }

    pub(super) fn away(&self, group: usize) -> usize {
        self.groups[group].sets.iter().map(|sets| sets[0].len()).sum()
    }

    /// The first that can be reached, in the mixed order.
    pub(super) fn first_present(&self, group: usize, class: Class) -> Option<&str> {
        self.groups[group].sets[class as usize][1].first().map(|(_, device)| device.as_str())
    }

    /// All of a class, those that can be reached first.
    pub(super) fn all(&self, group: usize, class: Class) -> impl Iterator<Item = &str> {
        let [away, present] = &self.groups[group].sets[class as usize];
        present.iter().chain(away).map(|(_, device)| device.as_str())
    }

    pub(super) fn all_present(&self, group: usize, class: Class) -> impl Iterator<Item = &str> {
        self.groups[group].sets[class as usize][1].iter().map(|(_, device)| device.as_str())
    }

    /// The device that was asked first of all, and when.
    pub(super) fn first_asked(&self) -> Option<(u64, &str)> {
        self.asked.first().map(|(at, device)| (*at, device.as_str()))
    }
}

/// Mixes a name: FNV-1a (Fowler, Noll, Vo) behind the salt, and one round of
/// splitmix64's finish, since names that differ in the last letter differ little
/// in FNV's high bits.
fn mix(salt: u64, name: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let bytes = salt.to_le_bytes();
    let hash = bytes.into_iter().chain(name.bytes()).fold(0xcbf2_9ce4_8422_2325, fnv);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
