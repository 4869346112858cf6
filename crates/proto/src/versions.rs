//! Protocol versions and how two nodes agree on one: the highest both speak.

use crate::v1;

/// Oldest version this program speaks.
pub const OLDEST: u32 = 1;
/// Newest version this program speaks.
pub const NEWEST: u32 = 1;

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Oldest.
    pub min: u32,
    /// Newest.
    pub max: u32,
}

/// Why two nodes cannot talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VersionError {
    /// The peer's range is absent, starts at 0 or is reversed.
    #[error(
        "the peer offers protocol versions {min}..={max}, which is no range; it is not a Tierline node or is damaged"
    )]
    Malformed {
        /// Oldest it offers.
        min: u32,
        /// Newest it offers.
        max: u32,
    },
    /// The peer is too old.
    #[error("the peer speaks protocol up to {theirs}, this node from {ours}; upgrade the peer")]
    PeerTooOld {
        /// Newest the peer speaks.
        theirs: u32,
        /// Oldest we speak.
        ours: u32,
    },
    /// The peer is too new.
    #[error("the peer speaks protocol from {theirs}, this node up to {ours}; upgrade this node")]
    PeerTooNew {
        /// Oldest the peer speaks.
        theirs: u32,
        /// Newest we speak.
        ours: u32,
    },
}

impl Versions {
    /// What this program speaks.
    pub const OURS: Self = Self { min: OLDEST, max: NEWEST };

    /// The highest version in both ranges.
    ///
    /// # Errors
    /// When there is none, or the peer's range is malformed.
    pub fn agree(self, peer: Self) -> Result<u32, VersionError> {
        if peer.min == 0 || peer.min > peer.max {
            return Err(VersionError::Malformed { min: peer.min, max: peer.max });
        }
        if peer.max < self.min {
            return Err(VersionError::PeerTooOld { theirs: peer.max, ours: self.min });
        }
        if peer.min > self.max {
            return Err(VersionError::PeerTooNew { theirs: peer.min, ours: self.max });
        }
        Ok(self.max.min(peer.max))
    }

    /// Agrees with the range in a message; an absent range is malformed.
    ///
    /// # Errors
    /// As [`Versions::agree`].
    pub fn agree_with(self, peer: Option<&v1::VersionRange>) -> Result<u32, VersionError> {
        let peer = peer.map_or(Self { min: 0, max: 0 }, |range| Self { min: range.min, max: range.max });
        self.agree(peer)
    }
}

impl From<Versions> for v1::VersionRange {
    fn from(range: Versions) -> Self {
        Self { min: range.min, max: range.max }
    }
}
