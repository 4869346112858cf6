//! Signed metadata: which models there are, and who says so.
//!
//! After The Update Framework, specification 1.0.34, so that its tools read
//! what is written here and the other way round. A device believes a *root*
//! that came with it; the root names the keys of the other roles and of later
//! roots; *targets* name models by their hashes, or who else may; a *snapshot*
//! says which targets belong together, a *timestamp* which snapshot is the
//! newest. docs/design/trust.md has threats, holders of keys and what a stolen
//! one can do.
//!
//! Pure: no files, clocks or sockets. Start at [`Client`], then [`Repository`].

mod client;
mod error;
mod json;
mod key;
mod metadata;
mod name;
mod record;
mod repository;
mod time;
mod verify;

pub use client::{Answer, Change, Client, Fetch, Found, Limits};
pub use error::{Malformed, SignError, TrustError};
pub use key::{PublicKey, SigningKey};
pub use metadata::{
    Announced, Delegated, Delegation, Delegations, Hashes, Head, Kind, Paths, RoleKeys, Root, Snapshot, Target,
    Targets, Timestamp,
};
pub use name::TargetName;
pub use record::{Evaluation, Record};
pub use repository::{Due, Ending, Founders, Holders, Life, Policy, Repository, Waiting};
pub use time::UnixTime;
pub use verify::TargetCheck;
