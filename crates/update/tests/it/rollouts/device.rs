//! A device around its machine: a disk that outlives the process, and what the
//! versions on it are like.

use std::collections::BTreeSet;

use tierline_update::rollout::{Swap, SwapAction, SwapEvent, SwapRecord, Version, Work, journal};

pub fn version(name: &str) -> Version {
    Version::new(name).unwrap()
}

/// At which work a version shows what it is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Fetch,
    Verify,
    Stage,
    Load,
    Test,
    Switch,
    Probe,
}

/// What it then does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    Fails,
    Hangs,
    /// Takes the process with it.
    Kills,
}

/// What outlives the process.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub journal: Vec<u8>,
    /// Bytes that were fetched.
    pub fetched: BTreeSet<Version>,
    pub staged: BTreeSet<Version>,
    /// Where requests went last, as the disk has it.
    pub pointer: Option<Version>,
}

/// What became of an action.
#[derive(Debug)]
pub enum Became {
    Nothing,
    Event(SwapEvent),
    Killed,
}

/// A process on the disk.
pub struct Device {
    pub disk: Disk,
    pub swap: Swap,
    pub loaded: BTreeSet<Version>,
    /// Where requests go.
    pub serving: Option<Version>,
    /// Versions that were committed, by the records, ever.
    pub committed: BTreeSet<Version>,
    pub memory_max: Option<u64>,
    last_load: Option<(u64, Version)>,
    /// What the journal names, read as a stranger would.
    named: [Option<Version>; 2],
    /// Whether the journal is read anew behind each record.
    pub strict: bool,
}

/// Bytes of memory that every version takes here.
pub const VERSION_BYTES: u64 = 60;

impl Device {
    pub fn records(disk: &Disk) -> (Vec<SwapRecord>, usize) {
        journal::decode(&disk.journal).unwrap()
    }

    /// A process that begins on a disk.
    pub fn on(mut disk: Disk, committed: BTreeSet<Version>, memory_max: Option<u64>) -> Self {
        let (records, end) = Self::records(&disk);
        disk.journal.truncate(end);
        let swap = Swap::recover(records, memory_max);
        let loaded = BTreeSet::new();
        let mut device = Self {
            disk,
            swap,
            loaded,
            serving: None,
            committed,
            memory_max,
            last_load: None,
            named: [None, None],
            strict: true,
        };
        device.read_journal();
        device
    }

    /// Performs an action; `flaw` says what the version is like at a work.
    pub fn perform(&mut self, action: &SwapAction, flaw: impl Fn(&Version, At) -> Option<Flaw>) -> Became {
        match action {
            SwapAction::Keep(record) => {
                if record.replaces_earlier() {
                    self.disk.journal.clear();
                }
                self.disk.journal.extend(journal::encode(record).unwrap());
                if self.strict {
                    self.read_journal();
                } else {
                    self.trust_machine(record);
                }
                Became::Nothing
            }
            SwapAction::Do { op, work } => self.work(*op, work, flaw),
            SwapAction::Report(_) | SwapAction::Notify { .. } => Became::Nothing,
            SwapAction::Stop { op } => {
                let given_up = self.last_load.take_if(|(last, _)| last == op);
                let _was = given_up.map(|(_, version)| self.loaded.remove(&version));
                Became::Nothing
            }
            SwapAction::Unload { version } => {
                let _was = self.loaded.remove(version);
                assert_ne!(self.serving.as_ref(), Some(version), "what serves is not unloaded");
                Became::Nothing
            }
            SwapAction::Release { version } => {
                assert!(
                    Some(version) != self.swap.current() && Some(version) != self.swap.previous(),
                    "the way back is not released"
                );
                let _was = (self.disk.fetched.remove(version), self.disk.staged.remove(version));
                Became::Nothing
            }
        }
    }

    fn work(&mut self, op: u64, work: &Work, flaw: impl Fn(&Version, At) -> Option<Flaw>) -> Became {
        let (at, version) = match work {
            Work::Fetch { version, .. } => (At::Fetch, version),
            Work::Verify { version } => (At::Verify, version),
            Work::Stage { version } => (At::Stage, version),
            Work::Load { version, .. } => (At::Load, version),
            Work::SelfTest { version, .. } => (At::Test, version),
            Work::Switch { version } => (At::Switch, version),
            Work::Probe { version, .. } => (At::Probe, version),
        };
        if let Work::Load { unload_first, .. } = work {
            for version in unload_first {
                let _was = self.loaded.remove(version);
                self.serving = self.serving.take().filter(|serving| serving != version);
            }
        }
        match flaw(version, at) {
            Some(Flaw::Kills) => return Became::Killed,
            Some(Flaw::Hangs) => return Became::Nothing,
            Some(Flaw::Fails) => {
                return Became::Event(SwapEvent::Done { op, result: Err(format!("{at:?} is made to fail")) });
            }
            None => {}
        }
        let result = match work {
            Work::Fetch { .. } => {
                let _new = self.disk.fetched.insert(version.clone());
                Ok(0)
            }
            Work::Verify { .. } => self.disk.fetched.get(version).map(|_| 0).ok_or("nothing to verify"),
            Work::Stage { .. } => {
                let _new = self.disk.staged.insert(version.clone());
                Ok(VERSION_BYTES)
            }
            Work::Load { .. } if self.disk.staged.contains(version) => {
                self.last_load = Some((op, version.clone()));
                let _new = self.loaded.insert(version.clone());
                let taken = self.loaded.len() as u64 * VERSION_BYTES;
                assert!(self.memory_max.is_none_or(|max| taken <= max), "{:?} are in memory", self.loaded);
                Ok(VERSION_BYTES)
            }
            Work::Load { .. } => Err("its bytes are gone"),
            Work::SelfTest { .. } => self.loaded.get(version).map(|_| 0).ok_or("it isn't loaded"),
            Work::Switch { .. } => {
                assert!(self.loaded.contains(version), "{version} is switched to and not loaded");
                (self.serving, self.disk.pointer) = (Some(version.clone()), Some(version.clone()));
                Ok(0)
            }
            Work::Probe { .. } => {
                assert_eq!(self.serving.as_ref(), Some(version));
                Ok(0)
            }
        };
        Became::Event(SwapEvent::Done { op, result: result.map_err(str::to_owned) })
    }

    /// What the journal says is committed, read as a stranger would.
    fn read_journal(&mut self) {
        let (records, _) = Self::records(&self.disk);
        match records.last() {
            Some(SwapRecord::Installed { version }) => drop(self.committed.insert(version.clone())),
            Some(SwapRecord::Committed { ask }) => {
                let wanted = records.iter().rev().find_map(|record| match record {
                    SwapRecord::Wanted(want) if want.ask == *ask => Some(want.version.clone()),
                    _ => None,
                });
                // A snapshot may hold the want; then the machine says which.
                let _new = self.committed.insert(wanted.or_else(|| self.swap.current().cloned()).unwrap());
            }
            _ => {}
        }
        let journalled = Swap::recover(records, None);
        self.named = [journalled.current().cloned(), journalled.previous().cloned()];
    }

    /// The same, as the machine says it.
    fn trust_machine(&mut self, record: &SwapRecord) {
        let names = matches!(
            record,
            SwapRecord::Installed { .. }
                | SwapRecord::Committed { .. }
                | SwapRecord::RolledBack { .. }
                | SwapRecord::FellBack
        );
        if names {
            self.named = [self.swap.current().cloned(), self.swap.previous().cloned()];
        }
        if matches!(record, SwapRecord::Installed { .. } | SwapRecord::Committed { .. }) {
            self.committed.extend(self.named[0].clone());
        }
    }

    /// What must be so at every moment.
    pub fn check(&self) {
        for (what, named) in ["current", "previous"].iter().zip(&self.named) {
            let Some(version) = named else { continue };
            assert!(self.committed.contains(version), "{what} is {version}, which never proved itself");
            assert!(self.disk.staged.contains(version), "{what} is {version}, whose bytes are gone");
        }
        if let (Some(serving), [Some(current), _]) = (&self.serving, &self.named)
            && serving != current
        {
            assert!(self.disk.staged.contains(current), "{serving} serves on trial, and there is no way back");
        }
    }
}
