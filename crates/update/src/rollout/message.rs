//! What the two machines say to each other. Levels: each message says how
//! things are, whole, so that the next one mends one that was lost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::words::{NAME_BYTES_MAX, check_name, plain};
use super::{RolloutError, Terms, Version, Window};

/// The name of one want: numbers that only grow, so that an older want that
/// comes late is known for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// The rollout; later ones have greater numbers.
    pub rollout: u64,
    /// The want within it.
    pub number: u64,
}

/// Why a version is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is new: tried first, and kept when it has proved itself.
    Update,
    /// It ran before: taken up at once where the device still holds it.
    Rollback,
}

/// What a device shall run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Want {
    /// Its name; a device obeys the greatest one that it heard.
    pub ask: Ask,
    /// The version.
    pub version: Version,
    /// Why.
    pub kind: Kind,
    /// How it may be fetched and when it may be taken up.
    pub limits: Limits,
    /// What it must show there.
    pub terms: Terms,
}

/// How a version may be fetched, and when it may be taken up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes per second of the fetch, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// The edge to fetch from, which has the bytes; the parent when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
    /// When the device may switch; whenever it likes when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// What a device is at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Loads what its journal says that it runs.
    Starting,
    /// Gets the new version's bytes.
    Fetching,
    /// Compares them with what is signed.
    Verifying,
    /// Writes them where they stay.
    Staging,
    /// Waits for its maintenance window.
    Waiting,
    /// Loads it.
    Loading,
    /// Runs it on golden inputs.
    Testing,
    /// Goes over to it.
    Switching,
    /// Runs it, on trial.
    Trial,
    /// Goes back.
    Returning,
}

/// What a device says of itself, again and again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The device's start, counted on its disk.
    pub session: u64,
    /// The report within the session; later ones have greater numbers.
    pub sequence: u64,
    /// What runs, and answers requests.
    pub running: Option<Version>,
    /// Whether that has proved itself there; a version on trial hasn't.
    pub confirmed: bool,
    /// The newest want that it has taken up.
    pub ask: Option<Ask>,
    /// What it is at.
    #[serde(default)]
    pub phase: Phase,
    /// What became of that want, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// A want that failed on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Which.
    pub ask: Ask,
    /// What was to run.
    pub version: Version,
    /// Why it doesn't.
    pub reason: String,
}

impl Report {
    /// With a reason that can be kept and shown.
    #[must_use]
    pub fn checked(mut self) -> Self {
        if let Some(failed) = &mut self.failed {
            failed.reason = plain(&failed.reason);
        }
        self
    }

    /// Whether it was made after another.
    #[must_use]
    pub fn is_after(&self, session: u64, sequence: u64) -> bool {
        (self.session, self.sequence) > (session, sequence)
    }
}

/// What is known of a device, for groups to choose by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Its role, in a word: `end`, `edge`, `cloud`.
    pub role: String,
    /// Tiers above it: 0 is the cloud.
    pub tier: u32,
    /// The edge that it hangs below, if there is one.
    pub site: Option<String>,
    /// What people wrote on it.
    pub labels: BTreeMap<String, String>,
}

/// Labels of a device, at most: they are compared with every group's.
pub const LABELS_MAX: usize = 64;

impl Attributes {
    /// Whether they can be kept.
    ///
    /// # Errors
    /// [`RolloutError`] with what is too long or too many.
    pub fn check(&self) -> Result<(), RolloutError> {
        if self.labels.len() > LABELS_MAX {
            return Err(RolloutError::Untrue(format!(
                "the device has {} labels; {LABELS_MAX} are looked at, at most",
                self.labels.len()
            )));
        }
        let texts = self.labels.iter().flat_map(|(key, value)| [key, value]).chain([&self.role]);
        if texts.clone().any(|text| text.len() > NAME_BYTES_MAX) {
            return Err(RolloutError::Untrue(format!("a word of the device is longer than {NAME_BYTES_MAX} bytes")));
        }
        self.site.as_ref().map_or(Ok(()), |site| check_name("a device's site", site))
    }
}
