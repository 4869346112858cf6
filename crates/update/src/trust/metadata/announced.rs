//! Snapshot and timestamp metadata: what belongs together, and what is newest.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Body, Fields, Head, Kind};
use crate::trust::error::Malformed;
use crate::trust::key::unhex;

/// Hashes of a file, by the names of their functions, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hashes(pub(in crate::trust) BTreeMap<String, String>);

impl Hashes {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Malformed> {
        let entry = |(name, value): (&String, &Value)| {
            let text = value.as_str().filter(|text| unhex(text).is_some_and(|bytes| !bytes.is_empty()));
            Ok((name.clone(), text.ok_or_else(|| fields.wrong("hashes", "hexadecimal"))?.to_owned()))
        };
        let hashes: BTreeMap<_, _> = fields.object("hashes")?.iter().map(entry).collect::<Result<_, _>>()?;
        if hashes.is_empty() {
            return Err(fields.wrong("hashes", "one hash or more"));
        }
        Ok(Self(hashes))
    }

    pub(super) fn value(&self) -> Value {
        self.0.iter().map(|(name, hash)| (name.clone(), hash.clone().into())).collect::<Map<_, _>>().into()
    }

    /// The hash by this function, in hexadecimal.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them, by function.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, hash)| (name.as_str(), hash.as_str()))
    }
}

/// What is announced of another role's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its version.
    pub version: u64,
    /// Its length in bytes.
    pub length: Option<u64>,
    /// Its hashes; none: its signatures are enough.
    pub hashes: Option<Hashes>,
}

impl Announced {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: fields.version("version")?,
            length: length(fields)?,
            hashes: fields.map.contains_key("hashes").then(|| Hashes::read(fields)).transpose()?,
        })
    }

    pub(super) fn value(&self) -> Value {
        let mut map = Map::new();
        map.insert("version".into(), self.version.into());
        if let Some(length) = self.length {
            map.insert("length".into(), length.into());
        }
        if let Some(hashes) = &self.hashes {
            map.insert("hashes".into(), hashes.value());
        }
        Value::Object(map)
    }
}

pub(super) fn length(fields: &Fields<'_>) -> Result<Option<u64>, Malformed> {
    let Some(value) = fields.map.get("length") else { return Ok(None) };
    value.as_u64().map(Some).ok_or_else(|| fields.wrong("length", "a number from 0 on"))
}

/// Timestamp metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timestamp {
    /// Version and end.
    pub head: Head,
    /// The newest snapshot.
    pub snapshot: Announced,
}

impl Body for Timestamp {
    const KIND: Kind = Kind::Timestamp;

    fn read(fields: &Fields<'_>, head: Head) -> Result<Self, Malformed> {
        Ok(Self { head, snapshot: Announced::read(&fields.within("meta")?.within("snapshot.json")?)? })
    }

    fn head(&self) -> Head {
        self.head
    }

    fn write(&self, into: &mut Map<String, Value>) {
        into.insert("meta".into(), json!({"snapshot.json": self.snapshot.value()}));
    }
}

/// Snapshot metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Version and end.
    pub head: Head,
    /// Targets metadata that belongs together, by file name without version.
    pub meta: BTreeMap<String, Announced>,
}

impl Body for Snapshot {
    const KIND: Kind = Kind::Snapshot;

    fn read(fields: &Fields<'_>, head: Head) -> Result<Self, Malformed> {
        let meta =
            fields.each("meta")?.into_iter().map(|(file, fields)| Ok((file.to_owned(), Announced::read(&fields)?)));
        Ok(Self { head, meta: meta.collect::<Result<_, _>>()? })
    }

    fn head(&self) -> Head {
        self.head
    }

    fn write(&self, into: &mut Map<String, Value>) {
        let meta = self.meta.iter().map(|(file, announced)| (file.clone(), announced.value()));
        into.insert("meta".into(), meta.collect::<Map<_, _>>().into());
    }
}
