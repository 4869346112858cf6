//! What a rollout keeps through a crash: its journal, and what it leads to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::rollout::{Health, Spec};

/// A fact, and when it became one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since the rollout began, as its orchestrator lived them.
    pub at_ms: u64,
    /// Of those, with the maintenance window open.
    pub open_ms: u64,
    /// What became so.
    pub fact: Fact,
}

impl Record {
    /// Whether the journal needs nothing of what lies before this.
    #[must_use]
    pub fn replaces_earlier(&self) -> bool {
        matches!(self.fact, Fact::Snapshot(_))
    }
}

/// What the journal says, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// All that the records before it led to; takes their place.
    Snapshot(Box<Ledger>),
    /// The rollout began.
    Started {
        /// Its number.
        rollout: u64,
        /// What it shall do.
        spec: Box<Spec>,
    },
    /// A device belongs to a group from now on.
    Placed {
        /// Which.
        device: String,
        /// The group's place in the specification.
        group: usize,
    },
    /// A device runs neither version and is left as it is.
    Other {
        /// Which.
        device: String,
    },
    /// Devices of a group may be asked, in a wave.
    Wave {
        /// The group.
        group: usize,
        /// The wave.
        wave: usize,
        /// Devices that this wave adds.
        devices: Vec<String>,
    },
    /// A device belongs to the waves that have begun.
    Joined {
        /// Which.
        device: String,
    },
    /// A device is asked for the new version.
    Asked {
        /// Which.
        device: String,
        /// The want's number.
        number: u64,
        /// How the old version did there, as far as is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        baseline: Option<Health>,
    },
    /// The new version ran on a device, and was confirmed.
    Confirmed {
        /// Which.
        device: String,
        /// The device's start.
        session: u64,
    },
    /// A device didn't take the new version, or lost it.
    Failed {
        /// Which.
        device: String,
        /// Why.
        reason: String,
    },
    /// All devices of a wave that could be asked have confirmed or failed.
    Settled {
        /// The group.
        group: usize,
    },
    /// A wave passed its gate.
    Passed {
        /// The group.
        group: usize,
        /// What the next wave waits for. Said with it: a journal that ends
        /// between the two would lead on without it.
        stop: Option<Stop>,
    },
    /// A group is over, as it is.
    Closed {
        /// The group.
        group: usize,
        /// How.
        how: Closed,
        /// What the next group waits for.
        stop: Option<Stop>,
    },
    /// Nothing new is begun until an operator says so.
    Stopped {
        /// What for.
        stop: Stop,
        /// Why.
        reason: String,
    },
    /// It goes on.
    Resumed,
    /// Devices that were asked go back to the old version.
    Returning {
        /// Of one group; of all when left out.
        group: Option<usize>,
        /// What follows.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
    /// One device goes back to the old version.
    Back {
        /// Which.
        device: String,
    },
    /// A device runs the old version again.
    Returned {
        /// Which.
        device: String,
    },
    /// It is over.
    Finished {
        /// How.
        outcome: Outcome,
    },
    /// Time passed while something was waited for.
    Elapsed,
}

/// How a group ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// All of its waves passed.
    Through,
    /// With an error that the specification lets pass.
    WithError,
    /// An operator passed it over.
    Skipped,
    /// It went back to the old version.
    RolledBack,
}

/// What a rollout that stands waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// An operator's `resume`.
    Pause,
    /// An operator's `approve`.
    Approval,
}

/// What a rollout is at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    #[default]
    Running,
    Stopped {
        stop: Stop,
        reason: String,
    },
    Returning {
        group: Option<usize>,
        outcome: Outcome,
        reason: String,
        since_ms: u64,
    },
    Finished(Outcome),
}

/// What a device is at, as far as the rollout is concerned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// Not asked yet.
    Waiting,
    /// Asked for the new version; `open_ms` is when.
    Asked { open_ms: u64 },
    /// The new version ran and was confirmed.
    Confirmed { session: u64 },
    /// It doesn't run the new version.
    Failed { reason: String },
    /// Asked for the old version.
    Returning,
    /// It runs the old version again.
    Returned,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) group: usize,
    /// Whether a wave that has begun holds it.
    pub(super) in_wave: bool,
    pub(super) state: State,
    /// The newest want's number; 0 before the first.
    pub(super) number: u64,
    pub(super) attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) baseline: Option<Health>,
}

/// A group's way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GroupState {
    /// The wave under way; none before the first.
    pub(super) wave: Option<usize>,
    pub(super) wave_open_ms: u64,
    /// Devices that had confirmed when the wave began.
    pub(super) confirmed_before: usize,
    /// When the wave's devices had settled.
    pub(super) settled_ms: Option<u64>,
    /// Whether the wave passed its gate.
    pub(super) passed: bool,
    /// Failures that an operator has seen and excused.
    pub(super) excused: BTreeSet<String>,
    /// Further ones that the group was closed with.
    pub(super) closed_with: BTreeSet<String>,
    pub(super) closed: Option<Closed>,
}

/// What a journal leads to: all that a rollout must not forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    pub(super) rollout: u64,
    pub(super) spec: Spec,
    pub(super) stage: Stage,
    pub(super) numbers: u64,
    pub(super) groups: Vec<GroupState>,
    pub(super) members: BTreeMap<String, Member>,
    /// Devices that run neither version.
    pub(super) others: BTreeSet<String>,
}

impl Ledger {
    pub(super) fn new(rollout: u64, spec: Spec) -> Self {
        let groups = vec![GroupState::default(); spec.groups.len()];
        Self {
            rollout,
            spec,
            stage: Stage::Running,
            numbers: 0,
            groups,
            members: BTreeMap::new(),
            others: BTreeSet::new(),
        }
    }

    /// The group under way: the first that isn't closed.
    pub(super) fn current(&self) -> Option<usize> {
        self.groups.iter().position(|group| group.closed.is_none())
    }

    /// Whether every name in a fact is known: a journal may be of anything.
    pub(super) fn knows(&self, fact: &Fact) -> bool {
        let member = |device: &String| self.members.contains_key(device);
        let group = |group: &usize| *group < self.groups.len();
        match fact {
            Fact::Placed { group: g, .. } => group(g),
            Fact::Wave { group: g, devices, .. } => group(g) && devices.iter().all(member),
            Fact::Joined { device }
            | Fact::Asked { device, .. }
            | Fact::Confirmed { device, .. }
            | Fact::Failed { device, .. }
            | Fact::Back { device }
            | Fact::Returned { device } => member(device),
            Fact::Settled { group: g } | Fact::Passed { group: g, .. } | Fact::Closed { group: g, .. } => group(g),
            Fact::Returning { group: g, .. } => g.as_ref().is_none_or(group),
            Fact::Snapshot(ledger) => {
                ledger.groups.len() == ledger.spec.groups.len()
                    && ledger.members.values().all(|member| member.group < ledger.groups.len())
            }
            Fact::Started { .. }
            | Fact::Other { .. }
            | Fact::Stopped { .. }
            | Fact::Resumed
            | Fact::Finished { .. }
            | Fact::Elapsed => true,
        }
    }

    /// What a fact changes; the same in a running machine and in one that is
    /// taken up again. Tells the devices whose state it changed.
    pub(super) fn apply(&mut self, record: &Record) -> Changed {
        let (at_ms, open_ms) = (record.at_ms, record.open_ms);
        match &record.fact {
            Fact::Snapshot(ledger) => {
                *self = (**ledger).clone();
                return Changed::All;
            }
            Fact::Started { rollout, spec } => {
                *self = Self::new(*rollout, (**spec).clone());
                return Changed::All;
            }
            Fact::Placed { device, group } => {
                let _was = self.others.remove(device);
                let member = Member {
                    group: *group,
                    in_wave: false,
                    state: State::Waiting,
                    number: 0,
                    attempts: 0,
                    baseline: None,
                };
                self.members.insert(device.clone(), member);
                return Changed::one(device);
            }
            Fact::Other { device } => {
                let _new = self.others.insert(device.clone());
                let _was = self.members.remove(device);
                return Changed::one(device);
            }
            Fact::Wave { group, wave, devices } => {
                let confirmed =
                    |member: &&Member| member.group == *group && matches!(member.state, State::Confirmed { .. });
                let confirmed_before = self.members.values().filter(confirmed).count();
                let state = &mut self.groups[*group];
                (state.wave, state.wave_open_ms) = (Some(*wave), open_ms);
                (state.confirmed_before, state.settled_ms, state.passed) = (confirmed_before, None, false);
                for device in devices {
                    self.members.get_mut(device).into_iter().for_each(|member| member.in_wave = true);
                }
                return Changed::Some(devices.clone());
            }
            Fact::Joined { device } => {
                self.members.get_mut(device).into_iter().for_each(|member| member.in_wave = true);
                return Changed::one(device);
            }
            Fact::Asked { device, number, baseline } => {
                self.numbers = self.numbers.max(*number);
                if let Some(member) = self.members.get_mut(device) {
                    (member.state, member.number) = (State::Asked { open_ms }, *number);
                    member.attempts += 1;
                    if baseline.is_some() {
                        member.baseline.clone_from(baseline);
                    }
                }
                self.forgive_no_more(device);
                return Changed::one(device);
            }
            Fact::Confirmed { device, session } => return self.set(device, State::Confirmed { session: *session }),
            Fact::Failed { device, reason } => return self.set(device, State::Failed { reason: reason.clone() }),
            Fact::Settled { group } => self.groups[*group].settled_ms = Some(at_ms),
            Fact::Passed { group, stop } => {
                self.groups[*group].passed = true;
                self.stop(*stop, "a wave is through its gate");
            }
            Fact::Closed { group, how, stop } => {
                let failed = |member: &Member| member.group == *group && matches!(member.state, State::Failed { .. });
                let failed: Vec<String> = self
                    .members
                    .iter()
                    .filter(|(_, member)| failed(member))
                    .map(|(device, _)| device.clone())
                    .collect();
                let state = &mut self.groups[*group];
                state.closed = Some(*how);
                state.closed_with.extend(failed.into_iter().filter(|device| !state.excused.contains(device)));
                self.stop(
                    *stop,
                    if *how == Closed::RolledBack { "a group was rolled back" } else { "a group is through" },
                );
            }
            Fact::Stopped { stop, reason } => self.stage = Stage::Stopped { stop: *stop, reason: reason.clone() },
            Fact::Resumed => {
                self.stage = Stage::Running;
                for (device, member) in &self.members {
                    if matches!(member.state, State::Failed { .. }) {
                        let group = &mut self.groups[member.group];
                        let _was = group.closed_with.remove(device);
                        let _new = group.excused.insert(device.clone());
                    }
                }
            }
            Fact::Returning { group, outcome, reason } => {
                self.stage =
                    Stage::Returning { group: *group, outcome: *outcome, reason: reason.clone(), since_ms: at_ms };
                let mut changed = Vec::new();
                for (device, member) in &mut self.members {
                    let concerned = group.is_none_or(|group| member.group == group);
                    // Whoever was never asked runs what it ran.
                    if concerned && member.number > 0 && member.state != State::Returned {
                        self.numbers += 1;
                        (member.state, member.number) = (State::Returning, self.numbers);
                        changed.push(device.clone());
                    }
                }
                changed.iter().for_each(|device| self.forgive_no_more(device));
                return Changed::Some(changed);
            }
            Fact::Back { device } => {
                self.numbers += 1;
                let number = self.numbers;
                self.members.get_mut(device).into_iter().for_each(|member| member.number = number);
                return self.set(device, State::Returning);
            }
            Fact::Returned { device } => return self.set(device, State::Returned),
            Fact::Finished { outcome } => self.stage = Stage::Finished(*outcome),
            Fact::Elapsed => {}
        }
        Changed::Some(Vec::new())
    }

    fn set(&mut self, device: &str, state: State) -> Changed {
        if !matches!(state, State::Failed { .. }) {
            self.forgive_no_more(device);
        }
        self.members.get_mut(device).into_iter().for_each(|member| member.state = state.clone());
        Changed::one(device)
    }

    /// A device isn't a failed one any more; the next time it counts again.
    fn forgive_no_more(&mut self, device: &str) {
        let Some(member) = self.members.get(device) else { return };
        let group = &mut self.groups[member.group];
        let _was = group.excused.remove(device) | group.closed_with.remove(device);
    }

    fn stop(&mut self, stop: Option<Stop>, reason: &str) {
        if let Some(stop) = stop {
            self.stage = Stage::Stopped { stop, reason: reason.to_owned() };
        }
    }
}

/// Devices whose state a fact changed.
pub(super) enum Changed {
    All,
    Some(Vec<String>),
}

impl Changed {
    fn one(device: &str) -> Self {
        Self::Some(vec![device.to_owned()])
    }
}
