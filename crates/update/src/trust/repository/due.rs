//! How long metadata counts, what becomes due, and what a cloud does about it
//! by itself.

use std::collections::BTreeSet;
use std::time::Duration;

use ring::rand::SecureRandom;

use super::{Repository, delegations};
use crate::trust::error::SignError;
use crate::trust::key::SigningKey;
use crate::trust::metadata::{Kind, RoleKeys};
use crate::trust::time::UnixTime;

/// How far in the future an end may lie beyond what the policy gives before it counts as one that a wrong clock made.
const DAY: Duration = Duration::from_secs(86_400);

/// How long metadata counts, and how long before its end it is signed anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// From signing to the end.
    pub valid: Duration,
    /// Before the end.
    pub renew: Duration,
}

impl Life {
    /// Whether metadata with this end must be signed anew: it ends before long, or later than it ever should. A
    /// clock that was ahead made the latter, and devices would not notice for as long that they get no news.
    pub(super) fn is_due(self, expires: UnixTime, now: UnixTime) -> bool {
        now >= expires.before(self.renew) || expires > now.after(self.valid + DAY)
    }
}

/// How long each role's metadata counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Signed by people with keys that are offline: said early.
    pub root: Life,
    /// The same.
    pub targets: Life,
    /// Delegated roles, whoever holds their keys.
    pub delegated: Life,
    /// Signed by the repository itself.
    pub snapshot: Life,
    /// The same: what bounds how long a device can be kept from news.
    pub timestamp: Life,
}

impl Default for Policy {
    fn default() -> Self {
        let days = |valid: u32, renew: u32| Life { valid: DAY * valid, renew: DAY * renew };
        Self {
            root: days(365, 90),
            targets: days(365, 60),
            delegated: days(90, 30),
            snapshot: days(30, 20),
            // Signed daily, so that a week's outage at the cloud stops nobody and there are six days to notice.
            timestamp: days(7, 6),
        }
    }
}

impl Policy {
    pub(super) fn check(&self) -> Result<(), SignError> {
        let lives = [self.root, self.targets, self.delegated, self.snapshot, self.timestamp];
        let sound = lives.iter().all(|life| life.renew < life.valid && life.renew > Duration::ZERO);
        if sound { Ok(()) } else { Err(SignError::BadPolicy) }
    }

    pub(super) fn of(&self, role: &str) -> Life {
        match role {
            "root" => self.root,
            "targets" => self.targets,
            "snapshot" => self.snapshot,
            "timestamp" => self.timestamp,
            _ => self.delegated,
        }
    }
}

/// Metadata that ends before long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Whose.
    pub role: String,
    /// When it ends.
    pub expires: UnixTime,
    /// Whether the keys at hand can sign it anew.
    pub can_sign: bool,
}

/// What a repository is due at some time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// Metadata to be signed anew; where the keys at hand can't, somebody must be told.
    pub ending: Vec<Ending>,
    /// When to ask again, if nothing changes before.
    pub next: Option<UnixTime>,
}

impl Due {
    /// What must be said: metadata that ends and that the keys at hand can't sign.
    pub fn warnings(&self) -> impl Iterator<Item = &Ending> {
        self.ending.iter().filter(|ending| !ending.can_sign)
    }
}

impl Repository {
    /// What must be signed anew, and whether these keys can. Nothing is signed.
    #[must_use]
    pub fn due(&self, keys: &BTreeSet<String>, now: UnixTime) -> Due {
        let mut due = Due::default();
        for (role, head) in self.heads() {
            let life = self.policy.of(&role);
            let renewal = head.expires.before(life.renew);
            if !life.is_due(head.expires, now) {
                due.next = Some(due.next.map_or(renewal, |next| next.min(renewal)));
                continue;
            }
            let can_sign = role != "root"
                && self
                    .holders(&role)
                    .is_some_and(|holders| holders.keys.intersection(keys).count() >= holders.threshold);
            due.ending.push(Ending { role, expires: head.expires, can_sign });
        }
        due
    }

    /// Signs anew what is due and these keys can sign, never the root, and
    /// publishes it together with drafts that are complete. A draft in the making is
    /// left to whoever makes it.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn tend(
        &mut self,
        keys: &[SigningKey],
        now: UnixTime,
        random: &dyn SecureRandom,
    ) -> Result<(Vec<String>, Due), SignError> {
        let ids: BTreeSet<String> = keys.iter().map(|key| key.id().to_owned()).collect();
        for ending in self.due(&ids, now).ending {
            if ending.can_sign
                && !matches!(ending.role.as_str(), "snapshot" | "timestamp")
                && !self.drafts.contains_key(&ending.role)
            {
                self.renew(&ending.role, now)?;
            }
        }
        self.sign(keys, random)?;
        // Without the keys of the snapshot or the timestamp there is nothing to publish, and that is said by what is due.
        let published = match self.publish(keys, now, random) {
            Err(SignError::TooFewKeys { .. }) => Vec::new(),
            other => other?,
        };
        Ok((published, self.due(&ids, now)))
    }

    /// Who signs for a role, as it is published.
    #[must_use]
    pub fn holders(&self, role: &str) -> Option<RoleKeys> {
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.word() == role) {
            return self.root.as_ref().map(|root| root.role(kind).clone());
        }
        let found = self
            .targets
            .values()
            .flat_map(|signed| delegations(&signed.body))
            .find(|delegation| delegation.name == role);
        found.map(|delegation| delegation.role.clone())
    }
}
