//! Targets metadata: files by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::announced::length;
use super::{Body, Delegations, Fields, Hashes, Head, Kind};
use crate::trust::error::Malformed;

/// A file that a role vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its length in bytes.
    pub length: u64,
    /// Its hashes, of which one at least is SHA-256 or SHA-512.
    pub hashes: Hashes,
    /// What else is said of it: [`super::Record`] for models.
    pub custom: Option<Value>,
}

impl Target {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            length: length(fields)?.ok_or_else(|| fields.wrong("length", "a number from 0 on"))?,
            hashes: Hashes::read(fields)?,
            custom: fields.map.get("custom").cloned(),
        })
    }

    pub(super) fn value(&self) -> Value {
        let mut map = Map::new();
        map.insert("length".into(), self.length.into());
        map.insert("hashes".into(), self.hashes.value());
        if let Some(custom) = &self.custom {
            map.insert("custom".into(), custom.clone());
        }
        Value::Object(map)
    }
}

/// Targets metadata, of the role of that name or of a delegated one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// Version and end.
    pub head: Head,
    /// Files by name.
    pub targets: BTreeMap<String, Target>,
    /// Whom it gave targets to.
    pub delegations: Option<Delegations>,
}

impl Body for Targets {
    const KIND: Kind = Kind::Targets;

    fn read(fields: &Fields<'_>, head: Head) -> Result<Self, Malformed> {
        let targets =
            fields.each("targets")?.into_iter().map(|(name, fields)| Ok((name.to_owned(), Target::read(&fields)?)));
        let delegations = fields.map.get("delegations").is_some_and(|value| !value.is_null());
        Ok(Self {
            head,
            targets: targets.collect::<Result<_, _>>()?,
            delegations: delegations.then(|| Delegations::read(&fields.within("delegations")?)).transpose()?,
        })
    }

    fn head(&self) -> Head {
        self.head
    }

    fn write(&self, into: &mut Map<String, Value>) {
        let targets = self.targets.iter().map(|(name, target)| (name.clone(), target.value()));
        into.insert("targets".into(), targets.collect::<Map<_, _>>().into());
        if let Some(delegations) = &self.delegations {
            into.insert("delegations".into(), delegations.value());
        }
    }
}
