//! Why metadata, or a change of it, was refused.

use super::metadata::Kind;
use super::time::UnixTime;

/// A document that isn't what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Malformed {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn json(error: serde_json::Error) -> Self {
        Self(super::json::short(&error.to_string()))
    }
}

/// Why a client doesn't believe what it was given. What it trusted before
/// stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// It can't be read.
    #[error("the metadata of `{role}` can't be read: {why}")]
    Malformed {
        /// Whose it should be.
        role: String,
        /// What is wrong.
        why: Malformed,
    },
    /// Too few of the role's keys signed it.
    #[error("the metadata of `{role}` has {have} valid signatures of {need} that are needed")]
    Threshold {
        /// Whose it should be.
        role: String,
        /// Keys of the role with a valid signature.
        have: usize,
        /// Keys that must sign.
        need: usize,
    },
    /// It is older than what was seen before.
    #[error("`{role}` went back from version {trusted} to {offered}")]
    Rollback {
        /// The role that went back.
        role: String,
        /// The version that was seen before.
        trusted: u64,
        /// The one that was offered.
        offered: u64,
    },
    /// Another version than was announced.
    #[error("`{role}` is version {offered} where {expected} was announced")]
    WrongVersion {
        /// The role.
        role: String,
        /// The version that was announced, or the next one.
        expected: u64,
        /// The one that was offered.
        offered: u64,
    },
    /// It is over.
    #[error("the metadata of `{role}` expired at {expires}, and it is {now}; its repository must sign it anew")]
    Expired {
        /// The role.
        role: String,
        /// When it ended.
        expires: UnixTime,
        /// The time that the update reckons with.
        now: UnixTime,
    },
    /// Other bytes than were announced.
    #[error("`{file}` isn't what was announced: {why}")]
    Mismatch {
        /// The file.
        file: String,
        /// Its length, or a hash.
        why: String,
    },
    /// More bytes than the file may have.
    #[error("`{file}` is longer than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        file: String,
        /// Its limit.
        bytes_max: u64,
    },
    /// The repository lacks it.
    #[error("the repository has no `{file}`")]
    Missing {
        /// The file.
        file: String,
    },
    /// The snapshot doesn't announce a role that was delegated to.
    #[error("the snapshot doesn't announce `{role}`")]
    Unannounced {
        /// The role.
        role: String,
    },
    /// A role that an earlier snapshot announced is gone from a later one.
    #[error("a later snapshot no longer announces `{role}`")]
    Removed {
        /// The role.
        role: String,
    },
    /// No role that may says anything of this target.
    #[error("no role that may names `{target}`")]
    NoTarget {
        /// The target.
        target: String,
    },
    /// The search for a target asked too many roles.
    #[error("`{target}` was searched for in {roles_max} roles, the most that are asked")]
    TooManyRoles {
        /// The target.
        target: String,
        /// The limit.
        roles_max: usize,
    },
    /// A name that could lead elsewhere.
    #[error("`{name}` is no name of a target: {why}")]
    BadName {
        /// The name, shortened.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The update ended earlier, with an error.
    #[error("the update ended with an error; begin another")]
    Ended,
    /// An answer that nobody asked for, or a search before its time.
    #[error("nothing was asked for")]
    Unasked,
}

impl TrustError {
    pub(super) fn malformed(role: &str, why: Malformed) -> Self {
        Self::Malformed { role: role.to_owned(), why }
    }
}

/// Why a repository can't be changed or signed as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// Its own metadata isn't sound.
    #[error(transparent)]
    Unsound(#[from] TrustError),
    /// A key can't be read, or isn't one that can be used here.
    #[error("the key can't be used: {0}")]
    Key(&'static str),
    /// The random number generator failed.
    #[error("no random numbers")]
    Random,
    /// Too few keys for a role.
    #[error("`{role}` needs signatures of {need} of its keys; {have} of them are at hand")]
    TooFewKeys {
        /// The role.
        role: String,
        /// Keys at hand that belong to it.
        have: usize,
        /// Its threshold.
        need: usize,
    },
    /// A threshold that could never be met, or none.
    #[error("a threshold of {threshold} with {keys} keys can't be met")]
    BadThreshold {
        /// The threshold.
        threshold: usize,
        /// Keys of the role.
        keys: usize,
    },
    /// A role that doesn't exist.
    #[error("there is no role `{0}`")]
    NoRole(String),
    /// A role's name that can't be one.
    #[error("`{name}` can't name a role: {why}")]
    BadRole {
        /// The name, shortened.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A target that the role doesn't name.
    #[error("`{role}` names no target `{target}`")]
    NoTarget {
        /// The role.
        role: String,
        /// The target.
        target: String,
    },
    /// What is custom has to have a canonical form.
    #[error("what is custom can't be signed: {0}")]
    Custom(Malformed),
    /// A draft that its keys don't complete.
    #[error("no draft of `{0}`")]
    NoDraft(Kind),
    /// A policy that would sign without end.
    #[error("a policy must renew metadata before it ends and after it began")]
    BadPolicy,
    /// The metadata would be longer than clients read.
    #[error("`{file}` would have {bytes} bytes; clients read {bytes_max} at most")]
    TooLarge {
        /// The file.
        file: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: u64,
    },
}
