//! Root metadata: who signs for which role.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Body, Fields, Head, Kind, SIGNATURES_MAX, Signed};
use crate::trust::error::Malformed;
use crate::trust::key::PublicKey;

/// Who signs for a role, and how many of them must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    /// Ids of its keys.
    pub keys: BTreeSet<String>,
    /// How many of them must sign, from 1 on.
    pub threshold: usize,
}

impl RoleKeys {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Malformed> {
        let list = fields.texts("keyids")?.ok_or_else(|| fields.wrong("keyids", "a list of texts"))?;
        let keys: BTreeSet<String> = list.iter().cloned().collect();
        if keys.len() != list.len() || keys.len() > SIGNATURES_MAX {
            return Err(fields.wrong("keyids", "a list of at most 1024 in which no key is twice"));
        }
        let threshold = fields.version("threshold")?;
        Ok(Self { keys, threshold: usize::try_from(threshold).unwrap_or(usize::MAX) })
    }

    pub(super) fn write(&self, into: &mut Map<String, Value>) {
        into.insert("keyids".into(), self.keys.iter().cloned().collect());
        into.insert("threshold".into(), self.threshold.into());
    }

    /// How many of the role's keys signed this; a key that stands there under
    /// several ids is one.
    pub(in crate::trust) fn count<T>(&self, keys: &BTreeMap<String, PublicKey>, signed: &Signed<T>) -> usize {
        let mut good = BTreeSet::new();
        for (id, signature) in &signed.signatures {
            let Some(key) = keys.get(id).filter(|_| self.keys.contains(id)) else { continue };
            if key.material().is_some_and(|material| !good.contains(material))
                && key.verifies(&signed.canonical, signature)
            {
                good.extend(key.material());
            }
        }
        good.len()
    }
}

pub(super) fn keys(fields: &Fields<'_>) -> Result<BTreeMap<String, PublicKey>, Malformed> {
    fields.each("keys")?.into_iter().map(|(id, key)| Ok((id.to_owned(), PublicKey::read(key.map)?))).collect()
}

pub(super) fn keys_value(keys: &BTreeMap<String, PublicKey>) -> Value {
    keys.iter().map(|(id, key)| (id.clone(), key.value())).collect::<Map<_, _>>().into()
}

/// Root metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Version and end.
    pub head: Head,
    /// Whether files carry their version, or their hash, in their names.
    pub consistent: bool,
    /// Keys by id.
    pub keys: BTreeMap<String, PublicKey>,
    /// The keys of each of the four roles.
    pub roles: BTreeMap<Kind, RoleKeys>,
}

impl Root {
    /// The keys of a role.
    #[must_use]
    pub fn role(&self, kind: Kind) -> &RoleKeys {
        &self.roles[&kind]
    }
}

impl Body for Root {
    const KIND: Kind = Kind::Root;

    fn read(fields: &Fields<'_>, head: Head) -> Result<Self, Malformed> {
        let roles = fields.within("roles")?;
        let role = |kind: Kind| Ok((kind, RoleKeys::read(&roles.within(kind.word())?)?));
        Ok(Self {
            head,
            consistent: fields.flag("consistent_snapshot")?,
            keys: keys(fields)?,
            roles: Kind::ALL.into_iter().map(role).collect::<Result<_, _>>()?,
        })
    }

    fn head(&self) -> Head {
        self.head
    }

    fn write(&self, into: &mut Map<String, Value>) {
        let role = |(kind, role): (&Kind, &RoleKeys)| {
            let mut map = Map::new();
            role.write(&mut map);
            (kind.word().to_owned(), Value::Object(map))
        };
        into.insert("consistent_snapshot".into(), self.consistent.into());
        into.insert("keys".into(), keys_value(&self.keys));
        into.insert("roles".into(), self.roles.iter().map(role).collect::<Map<_, _>>().into());
    }
}
