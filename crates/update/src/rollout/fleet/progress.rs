//! How far a rollout is: percent and capacity, counted on the same devices.

use serde::Serialize;

use super::Outcome;
use super::index::{Class, Index};
use super::ledger::{Closed, GroupState, Ledger, Stage, Stop};

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// The rollout's number.
    pub rollout: u64,
    /// What it is at.
    pub stage: Standing,
    /// What it waits for, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// All groups together.
    pub total: Counts,
    /// Each group, in the specification's order.
    pub groups: Vec<GroupProgress>,
    /// Devices that run neither version and are left as they are.
    pub others: usize,
}

/// What a rollout is at, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Under way.
    Running,
    /// Until somebody resumes it.
    Paused,
    /// Until somebody approves.
    Approval,
    /// Devices go back.
    Returning,
    /// Over.
    Finished(Outcome),
}

impl Standing {
    /// In a word or two, for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Approval => "waits for approval",
            Self::Returning => "rolling back",
            Self::Finished(outcome) => outcome.words(),
        }
    }
}

/// A group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupProgress {
    /// Its name.
    pub name: String,
    /// The wave under way, from 1; 0 before the first.
    pub wave: usize,
    /// Waves there are, the canary included.
    pub waves: usize,
    /// How it ended, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
    /// Its devices.
    pub counts: Counts,
}

/// Devices. All numbers and both shares are of the same ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Counts {
    /// All.
    pub devices: usize,
    /// Not asked.
    pub waiting: usize,
    /// Asked, and at work.
    pub asked: usize,
    /// Running the new version, confirmed.
    pub confirmed: usize,
    /// Asked, and not running it.
    pub failed: usize,
    /// Asked for the old version again.
    pub returning: usize,
    /// Running the old version again.
    pub returned: usize,
    /// Out of reach, whatever else they are.
    pub away: usize,
    /// In reach and serving: not at work, not failed.
    pub available: usize,
    /// Confirmed ones, in percent.
    pub percent: f64,
    /// Available ones, in percent.
    pub capacity_percent: f64,
}

impl Counts {
    fn of(index: &Index, group: usize) -> Self {
        let count = |class| index.count(group, class);
        Self {
            devices: index.members(group),
            waiting: count(Class::Pool) + count(Class::Due),
            asked: count(Class::Asked),
            confirmed: count(Class::Confirmed),
            failed: count(Class::Failed),
            returning: count(Class::Returning),
            returned: count(Class::Returned),
            away: index.away(group),
            available: index.available(group),
            ..Self::default()
        }
        .with_shares()
    }

    fn with_shares(mut self) -> Self {
        let percent = |n: usize| if self.devices == 0 { 0.0 } else { 100.0 * n as f64 / self.devices as f64 };
        (self.percent, self.capacity_percent) = (percent(self.confirmed), percent(self.available));
        self
    }

    fn add(&mut self, other: &Self) {
        for (into, from) in [
            (&mut self.devices, other.devices),
            (&mut self.waiting, other.waiting),
            (&mut self.asked, other.asked),
            (&mut self.confirmed, other.confirmed),
            (&mut self.failed, other.failed),
            (&mut self.returning, other.returning),
            (&mut self.returned, other.returned),
            (&mut self.away, other.away),
            (&mut self.available, other.available),
        ] {
            *into += from;
        }
    }
}

pub(super) fn of(ledger: &Ledger, index: &Index, waits_for: Option<String>) -> Progress {
    let mut total = Counts::default();
    let group = |(at, (spec, state)): (usize, (&crate::rollout::Group, &GroupState))| GroupProgress {
        name: spec.name.clone(),
        wave: state.wave.map_or(0, |wave| wave + 1),
        waves: spec.stages(),
        closed: state.closed,
        counts: Counts::of(index, at),
    };
    let groups: Vec<GroupProgress> = ledger.spec.groups.iter().zip(&ledger.groups).enumerate().map(group).collect();
    groups.iter().for_each(|group| total.add(&group.counts));
    let stage = match &ledger.stage {
        Stage::Running => Standing::Running,
        Stage::Stopped { stop: Stop::Pause, .. } => Standing::Paused,
        Stage::Stopped { stop: Stop::Approval, .. } => Standing::Approval,
        Stage::Returning { .. } => Standing::Returning,
        Stage::Finished(outcome) => Standing::Finished(*outcome),
    };
    let stopped = match &ledger.stage {
        Stage::Stopped { reason, .. } | Stage::Returning { reason, .. } => Some(reason.clone()),
        Stage::Running | Stage::Finished(_) => waits_for,
    };
    Progress {
        rollout: ledger.rollout,
        stage,
        waits_for: stopped,
        total: total.with_shares(),
        groups,
        others: ledger.others.len(),
    }
}
