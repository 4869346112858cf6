//! What a device keeps through a crash: its journal, and what it leads to.

use serde::{Deserialize, Serialize};

use crate::rollout::{Ask, Failed, Version, Want};

/// What the journal of one model on one device says, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapRecord {
    /// All that the records before it led to; takes their place.
    Snapshot(Box<SwapLedger>),
    /// The device started.
    Session {
        /// For the how manieth time.
        session: u64,
    },
    /// What ran before there was a journal.
    Installed {
        /// The version.
        version: Version,
    },
    /// Something is wanted; what was wanted before isn't any more, and a trial
    /// of it counts for nothing.
    Wanted(Box<Want>),
    /// Work for it begins, or begins anew behind a restart.
    Begun {
        /// Which want.
        ask: Ask,
    },
    /// The new version is about to be loaded: code of its own runs from here on,
    /// and may end the process.
    Tried {
        /// Which want.
        ask: Ask,
    },
    /// The new version is about to be switched to, on trial.
    Trial {
        /// Which want.
        ask: Ask,
    },
    /// The wanted version has proved itself, and runs; the one before it is the
    /// way back.
    Committed {
        /// Which want.
        ask: Ask,
    },
    /// The wanted version doesn't run.
    Failed {
        /// Which want.
        ask: Ask,
        /// Why.
        reason: String,
    },
    /// The version before runs again.
    RolledBack {
        /// The want that said so; an operator at the device when left out.
        ask: Option<Ask>,
    },
    /// What ran can't be loaded any more; the version before it runs.
    FellBack,
}

impl SwapRecord {
    /// Whether the journal needs nothing of what lies before this.
    #[must_use]
    pub fn replaces_earlier(&self) -> bool {
        matches!(self, Self::Snapshot(_))
    }
}

/// How far the newest want is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fate {
    /// Nothing irrevocable was done.
    #[default]
    Open,
    /// Its version was loaded, or was about to be.
    Tried,
    /// Its version runs on trial, or was about to.
    Trial,
    /// Over, well or not.
    Over,
}

/// What a journal leads to: all that a device must not forget of a model.
///
/// `current` only ever becomes what was committed, so that neither it nor
/// `previous`, the way back, is ever a version that has not proved itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SwapLedger {
    pub(super) session: u64,
    pub(super) current: Option<Version>,
    pub(super) previous: Option<Version>,
    pub(super) want: Option<Want>,
    pub(super) fate: Fate,
    /// How often work for the want has begun.
    pub(super) begun: u32,
    pub(super) failed: Option<Failed>,
}

impl SwapLedger {
    /// What a record changes; the same in a running machine and in one that is
    /// taken up again.
    pub(super) fn apply(&mut self, record: &SwapRecord) {
        match record {
            SwapRecord::Snapshot(ledger) => *self = (**ledger).clone(),
            SwapRecord::Session { session } => self.session = *session,
            SwapRecord::Installed { version } => self.current = Some(version.clone()),
            SwapRecord::Wanted(want) => {
                (self.fate, self.begun, self.failed) = (Fate::Open, 0, None);
                self.want = Some((**want).clone());
            }
            SwapRecord::Begun { ask } => {
                if self.is_wanted(*ask) {
                    self.begun += 1;
                }
            }
            SwapRecord::Tried { ask } => self.turn(*ask, Fate::Tried),
            SwapRecord::Trial { ask } => self.turn(*ask, Fate::Trial),
            SwapRecord::Committed { ask } => {
                if let Some(version) = self.wanted(*ask) {
                    if self.current.as_ref() != Some(&version) {
                        self.previous = self.current.replace(version);
                    }
                    self.fate = Fate::Over;
                }
            }
            SwapRecord::Failed { ask, reason } => {
                if let Some(version) = self.wanted(*ask) {
                    self.failed = Some(Failed { ask: *ask, version, reason: reason.clone() });
                    self.fate = Fate::Over;
                }
            }
            SwapRecord::RolledBack { ask } => {
                self.go_back();
                ask.iter().for_each(|ask| self.turn(*ask, Fate::Over));
            }
            SwapRecord::FellBack => self.go_back(),
        }
    }

    /// What ran before runs, and what ran is no way back.
    fn go_back(&mut self) {
        if let Some(previous) = self.previous.take() {
            self.current = Some(previous);
        }
    }

    fn turn(&mut self, ask: Ask, fate: Fate) {
        if self.is_wanted(ask) {
            self.fate = fate;
        }
    }

    fn is_wanted(&self, ask: Ask) -> bool {
        self.want.as_ref().is_some_and(|want| want.ask == ask)
    }

    fn wanted(&self, ask: Ask) -> Option<Version> {
        self.want.as_ref().filter(|want| want.ask == ask).map(|want| want.version.clone())
    }
}
