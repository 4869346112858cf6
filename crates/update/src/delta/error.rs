//! Why a delta can't be made or applied.

use std::io;

use super::Digest;

/// Why a delta can't be made or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// It begins otherwise than deltas do.
    #[error("this is no delta: it begins with other bytes")]
    NotADelta,
    /// Written by another version.
    #[error("the delta has version {0}, which is unknown here; update this program or fetch the whole file")]
    Version(u16),
    /// It ends too early.
    #[error("the delta is cut short; fetch it again")]
    Truncated,
    /// It makes no sense.
    #[error("the delta is corrupt: {0}; fetch it again")]
    Corrupt(&'static str),
    /// More than a limit allows.
    #[error("{what}: {declared}; the limit is {max}")]
    TooLarge {
        /// What is too many.
        what: &'static str,
        /// How many.
        declared: u64,
        /// Allowed.
        max: u64,
    },
    /// The base has another length than the delta was made from.
    #[error("the delta was made from a file of {expected} bytes, and this one has {found}: it is another file")]
    BaseLength {
        /// What the delta says.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// The base is another file.
    #[error("the delta was made from {expected}, and this file is {found}")]
    Base {
        /// What the delta says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The result isn't what was meant.
    #[error("the result should be {expected} and is {found}; discard it and fetch the whole file")]
    Result {
        /// What the delta says.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A file changed while it was read.
    #[error("{0} changed while it was read")]
    Changed(&'static str),
    /// Reading failed.
    #[error("cannot read {what}")]
    Read {
        /// Which file.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {what}")]
    Write {
        /// Which file.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl DeltaError {
    /// Whether bytes aren't what they should be, in contrast to what the system
    /// refused: trying again with the same files is in vain.
    #[must_use]
    pub fn is_verification(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Changed(_))
    }
}
