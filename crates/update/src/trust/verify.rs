//! What is believed, and why: signatures, versions, ends, hashes. Every check
//! of the specification's client workflow (section 5) is here or in
//! [`super::client`], which knows the order.

use std::collections::BTreeMap;
use std::time::Duration;

use ring::digest::{Context, SHA256, SHA512};

use super::error::TrustError;
use super::json::short;
use super::key::{PublicKey, hex};
use super::metadata::{Announced, Body, Hashes, Head, Kind, RoleKeys, Root, Signed, Snapshot, Target, Timestamp};

use super::time::UnixTime;

/// The time that one update reckons with, fixed at its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reckoning {
    pub now: UnixTime,
    /// How long behind its end metadata still counts.
    pub slack: Duration,
}

impl Reckoning {
    pub fn fresh(&self, role: &str, head: Head) -> Result<(), TrustError> {
        if self.now < head.expires.after(self.slack) {
            return Ok(());
        }
        Err(TrustError::Expired { role: short(role), expires: head.expires, now: self.now })
    }
}

/// Reads a document and checks that enough of the role's keys signed it.
pub(super) fn signed<T: Body>(
    bytes: &[u8],
    name: &str,
    role: &RoleKeys,
    keys: &BTreeMap<String, PublicKey>,
) -> Result<T, TrustError> {
    let signed = Signed::<T>::read(bytes).map_err(|why| TrustError::malformed(name, why))?;
    threshold(&signed, name, role, keys)?;
    Ok(signed.body)
}

pub(super) fn threshold<T>(
    signed: &Signed<T>,
    name: &str,
    role: &RoleKeys,
    keys: &BTreeMap<String, PublicKey>,
) -> Result<(), TrustError> {
    let have = role.count(keys, signed);
    if have < role.threshold {
        return Err(TrustError::Threshold { role: short(name), have, need: role.threshold });
    }
    Ok(())
}

/// A root that vouches for itself, as it was handed over with the device.
pub(super) fn anchor(bytes: &[u8]) -> Result<Root, TrustError> {
    let signed = Signed::<Root>::read(bytes).map_err(|why| TrustError::malformed("root", why))?;
    threshold(&signed, "root", signed.body.role(Kind::Root), &signed.body.keys)?;
    Ok(signed.body)
}

/// The next root: signed by the keys of the last one and by its own (5.3.4, 5.3.5).
pub(super) fn next_root(bytes: &[u8], last: &Root) -> Result<Root, TrustError> {
    let signed = Signed::<Root>::read(bytes).map_err(|why| TrustError::malformed("root", why))?;
    threshold(&signed, "root", last.role(Kind::Root), &last.keys)?;
    threshold(&signed, "root", signed.body.role(Kind::Root), &signed.body.keys)?;
    let (expected, offered) = (last.head.version.saturating_add(1), signed.body.head.version);
    if offered != expected {
        return Err(TrustError::WrongVersion { role: "root".into(), expected, offered });
    }
    Ok(signed.body)
}

/// Whether a timestamp may follow another (5.4.3). The same version says nothing
/// new; it is judged by the caller.
pub(super) fn follows(new: &Timestamp, old: &Timestamp) -> Result<(), TrustError> {
    forwards("timestamp", old.head.version, new.head.version)?;
    forwards("snapshot", old.snapshot.version, new.snapshot.version)
}

/// Whether a snapshot may follow another: no role is gone or older (5.5.5).
pub(super) fn succeeds(new: &Snapshot, old: &Snapshot) -> Result<(), TrustError> {
    for (file, earlier) in &old.meta {
        let role = short(file.strip_suffix(".json").unwrap_or(file));
        let Some(later) = new.meta.get(file) else { return Err(TrustError::Removed { role }) };
        forwards(&role, earlier.version, later.version)?;
    }
    Ok(())
}

pub(super) fn forwards(role: &str, trusted: u64, offered: u64) -> Result<(), TrustError> {
    if offered < trusted {
        return Err(TrustError::Rollback { role: role.to_owned(), trusted, offered });
    }
    Ok(())
}

pub(super) fn version(role: &str, announced: &Announced, head: Head) -> Result<(), TrustError> {
    if head.version != announced.version {
        return Err(TrustError::WrongVersion { role: short(role), expected: announced.version, offered: head.version });
    }
    Ok(())
}

/// Whether these bytes are the ones that were announced.
pub(super) fn announced(file: &str, announced: &Announced, bytes: &[u8]) -> Result<(), TrustError> {
    if let Some(length) = announced.length.filter(|&length| length != bytes.len() as u64) {
        return Err(mismatch(file, format!("{} bytes in place of {length}", bytes.len())));
    }
    let Some(hashes) = &announced.hashes else { return Ok(()) };
    let mut digests = Digests::of(hashes);
    digests.update(bytes);
    digests.finish(file, hashes)
}

fn mismatch(file: &str, why: String) -> TrustError {
    TrustError::Mismatch { file: short(file), why }
}

/// The functions of these hashes that are known here.
struct Digests {
    sha256: Option<Context>,
    sha512: Option<Context>,
}

impl Digests {
    fn of(hashes: &Hashes) -> Self {
        let wanted = |name: &str, function| hashes.get(name).map(|_| Context::new(function));
        Self { sha256: wanted("sha256", &SHA256), sha512: wanted("sha512", &SHA512) }
    }

    fn update(&mut self, bytes: &[u8]) {
        for context in [&mut self.sha256, &mut self.sha512].into_iter().flatten() {
            context.update(bytes);
        }
    }

    fn finish(self, file: &str, hashes: &Hashes) -> Result<(), TrustError> {
        if self.sha256.is_none() && self.sha512.is_none() {
            return Err(mismatch(file, "no hash by SHA-256 or SHA-512".into()));
        }
        for (name, context) in [("sha256", self.sha256), ("sha512", self.sha512)] {
            let Some(context) = context else { continue };
            let (found, expected) = (hex(context.finish().as_ref()), hashes.get(name).unwrap_or_default());
            if !found.eq_ignore_ascii_case(expected) {
                return Err(mismatch(file, format!("{name} is {found} in place of {}", short(expected))));
            }
        }
        Ok(())
    }
}

/// Compares a target's bytes with what was said of it, as they come.
pub struct TargetCheck<'a> {
    target: &'a Target,
    name: &'a str,
    digests: Digests,
    bytes: u64,
}

impl<'a> TargetCheck<'a> {
    /// Begins with no bytes.
    #[must_use]
    pub fn new(name: &'a str, target: &'a Target) -> Self {
        Self { target, name, digests: Digests::of(&target.hashes), bytes: 0 }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`TrustError::TooLarge`] as soon as there are more than the target has.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.target.length {
            return Err(TrustError::TooLarge { file: short(self.name), bytes_max: self.target.length });
        }
        self.digests.update(bytes);
        Ok(())
    }

    /// Judges what came.
    ///
    /// # Errors
    /// [`TrustError::Mismatch`] when it isn't the target.
    pub fn finish(self) -> Result<(), TrustError> {
        if self.bytes != self.target.length {
            return Err(mismatch(self.name, format!("{} bytes in place of {}", self.bytes, self.target.length)));
        }
        self.digests.finish(self.name, &self.target.hashes)
    }
}
