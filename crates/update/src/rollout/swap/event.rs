//! What a device's machine hears, and what it wants done.

use super::SwapRecord;
use crate::rollout::{Health, Limits, Report, Version, Want};

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum SwapEvent {
    /// The process began; the first event.
    Started {
        /// What runs on a device whose journal is empty, because it was put
        /// there before. Otherwise the journal alone says what runs, whatever
        /// lies around.
        installed: Option<Version>,
    },
    /// Something shall run here.
    Want(Box<Want>),
    /// Work of [`SwapAction::Do`] has ended.
    Done {
        /// Which.
        op: u64,
        /// How. [`Work::Stage`] and [`Work::Load`] say the bytes of memory that
        /// the version takes, 0 where that isn't known; the others 0.
        result: Result<u64, String>,
    },
    /// How a version does here, since this process began to run it.
    Health {
        /// The version.
        version: Version,
        /// How it does.
        health: Health,
    },
    /// A version crashed, hangs, or took more memory than it may.
    Broke {
        /// Which.
        version: Version,
        /// How.
        reason: String,
    },
    /// An operator at the device wants the version before, at once.
    RollBack {
        /// Why.
        reason: String,
    },
    /// The time that [`Swap::next_deadline`](super::Swap::next_deadline) named.
    Tick,
}

/// What the shell shall do, in this order. Records come first: what is behind
/// them is done when they are durable. A record that can't be kept (a full disk)
/// is a crash: the machine is made anew from what the journal holds.
#[derive(Debug, Clone, PartialEq)]
pub enum SwapAction {
    /// Write to the journal, through to the disk; in place of all of it when
    /// [`SwapRecord::replaces_earlier`] says so.
    Keep(SwapRecord),
    /// Begin some work; then [`SwapEvent::Done`].
    Do {
        /// Its number.
        op: u64,
        /// What.
        work: Work,
    },
    /// Give work up: whatever it still says isn't heard, and a load that is
    /// given up leaves nothing in memory.
    Stop {
        /// Which.
        op: u64,
    },
    /// Take a version out of memory, once requests that began on it have ended.
    Unload {
        /// Which.
        version: Version,
    },
    /// A version's bytes may leave the disk.
    Release {
        /// Which.
        version: Version,
    },
    /// Tell the orchestrator.
    Report(Report),
    /// Tell people.
    Notify {
        /// What happened and why, in a sentence.
        text: String,
    },
}

/// What takes a while.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Get a version's bytes; done at once when they are there.
    Fetch {
        /// Which.
        version: Version,
        /// How.
        limits: Limits,
    },
    /// Compare the bytes with what is signed.
    Verify {
        /// Which.
        version: Version,
    },
    /// Write the bytes where they stay, files and folders through to the disk.
    Stage {
        /// Which.
        version: Version,
    },
    /// Load it, and compare its bytes with their digest on the way.
    Load {
        /// Which.
        version: Version,
        /// What has to leave the memory first, once requests that began on it
        /// have ended; requests wait meanwhile, or go to the parent.
        unload_first: Vec<Version>,
    },
    /// Run it on its golden inputs, apart from requests.
    SelfTest {
        /// Which.
        version: Version,
        /// Milliseconds after which it has failed.
        limit_ms: u64,
    },
    /// Let requests that begin from now on go to this version, in one atomic
    /// move; those under way end where they began.
    Switch {
        /// Which.
        version: Version,
    },
    /// Run the golden inputs as requests would.
    Probe {
        /// Which.
        version: Version,
        /// Milliseconds after which it has failed.
        limit_ms: u64,
    },
}
