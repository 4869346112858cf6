//! The way back: to what was committed, and from there to the version before.

use super::record::Fate;
use super::{Doing, Swap, SwapRecord, TRIES, Work};
use crate::rollout::words::plain;

impl Swap {
    /// Lets what was committed answer requests, and forgets the rest.
    pub(super) fn restore(&mut self) {
        let Some(current) = self.ledger.current.clone() else {
            self.running = None;
            self.unload_all_but_running();
            self.doing = Doing::Idle;
            self.tell();
            return self.pursue();
        };
        let loaded = self.loaded.contains(&current);
        if !loaded {
            self.doing = Doing::Restoring { tries: 0 };
            return self.load(current);
        }
        // A switch that failed may have been made all the same.
        if self.running.as_ref() == Some(&current) && self.doing != Doing::Switching {
            return self.has_returned();
        }
        self.switch_back(0);
    }

    pub(super) fn switch_back(&mut self, tries: u32) {
        self.doing = Doing::Returning { tries };
        if let Some(version) = self.ledger.current.clone() {
            self.work(Work::Switch { version }, None);
        }
    }

    pub(super) fn has_returned(&mut self) {
        self.running = self.ledger.current.clone();
        self.doing = Doing::Idle;
        self.unload_all_but_running();
        self.tell();
        self.pursue();
    }

    /// Rolls back to the version before, which was committed and is still here.
    pub(super) fn load_back(&mut self) {
        let Some(previous) = self.ledger.previous.clone() else {
            let reason = "there is no version before to go back to";
            self.back = None;
            self.say(reason.into());
            return self.pursue();
        };
        self.doing = Doing::LoadingBack;
        self.load(previous);
    }

    pub(super) fn has_loaded_back(&mut self) {
        let by_hand = self.back.take();
        let ask = self.ask().filter(|_| by_hand.is_none());
        self.keep(SwapRecord::RolledBack { ask });
        let why = by_hand.map_or(String::new(), |reason| format!(": {reason}"));
        self.say(format!("{} runs again{why}", self.current_name()));
        self.switch_back(0);
    }

    pub(super) fn roll_back(&mut self, reason: &str) {
        // On trial the way back is what was committed.
        if self.ledger.fate != Fate::Over && self.ask().is_some() && self.doing != Doing::Idle {
            let reason = format!("an operator rolled it back: {}", plain(reason));
            if let Some(ask) = self.ask() {
                self.keep(SwapRecord::Failed { ask, reason });
            }
            return self.leave();
        }
        self.back = Some(plain(reason));
        if self.doing == Doing::Idle {
            self.pursue();
        }
    }

    /// What ran before the journal ended can't be loaded.
    pub(super) fn start_failed(&mut self, tries: u32, reason: &str) {
        self.say(format!("{} can't be loaded: {reason}", self.current_name()));
        if tries + 1 < TRIES {
            self.pause(tries);
            self.doing = Doing::Starting { tries: tries + 1 };
            return;
        }
        if self.ledger.previous.is_some() {
            self.keep(SwapRecord::FellBack);
            self.say(format!("{} runs instead", self.current_name()));
            return self.load_current(0);
        }
        self.tell();
        self.pursue();
    }
}
