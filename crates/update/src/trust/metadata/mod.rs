//! The four kinds of metadata, read and checked, and how they are written.
//!
//! Fields that aren't known are passed by when reading (a signature covers
//! them all the same) and not kept when a repository writes anew.

mod announced;
mod delegation;
mod roles;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value, json};

use crate::trust::error::Malformed;
use crate::trust::json;
use crate::trust::key::{hex, unhex};
use crate::trust::time::UnixTime;

pub use announced::{Announced, Hashes, Snapshot, Timestamp};
pub use delegation::{Delegated, Delegation, Delegations, Paths};
pub use roles::{RoleKeys, Root};
pub use targets::{Target, Targets};

/// The edition of the specification that is followed.
const SPEC_VERSION: &str = "1.0.34";

/// Keys of a role, and signatures below a document: each signature of a key
/// that counts is verified, so this bounds the work.
const SIGNATURES_MAX: usize = 1_024;

/// A kind of metadata; delegated roles have that of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Which keys sign for which role: the anchor.
    Root,
    /// Which targets there are, and who else may say so.
    Targets,
    /// Which versions of targets metadata belong together.
    Snapshot,
    /// Which snapshot is the newest.
    Timestamp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// What metadata calls it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// What every kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Grows with every change, from 1 on.
    pub version: u64,
    /// When it ends.
    pub expires: UnixTime,
}

pub(in crate::trust) trait Body: Sized {
    const KIND: Kind;
    fn read(fields: &Fields<'_>, head: Head) -> Result<Self, Malformed>;
    fn head(&self) -> Head;
    fn write(&self, into: &mut Map<String, Value>);
}

/// A document with the signatures below it, not yet verified.
#[derive(Debug, Clone)]
pub(in crate::trust) struct Signed<T> {
    pub body: T,
    /// What the signatures are made over.
    pub canonical: Vec<u8>,
    /// By key id; what isn't hexadecimal is left out, since it verifies nothing.
    pub signatures: BTreeMap<String, Vec<u8>>,
}

impl<T: Body> Signed<T> {
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let document = json::read(bytes)?;
        let document = document.as_object().ok_or_else(|| Malformed::text("not an object"))?;
        let signed = document.get("signed").ok_or_else(|| Malformed::text("without `signed`"))?;
        let fields =
            Fields { map: signed.as_object().ok_or_else(|| Malformed::text("`signed` is no object"))?, of: "signed" };
        let kind = fields.text("_type")?;
        if kind != T::KIND.word() {
            return Err(Malformed::text(format!("metadata of kind `{}`", json::short(kind))));
        }
        let spec = fields.text("spec_version")?;
        let numbers: Vec<&str> = spec.split('.').collect();
        let sound = (2..=3).contains(&numbers.len())
            && numbers.iter().all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        if !sound || numbers[0] != "1" {
            return Err(Malformed::text(format!(
                "edition `{}` of the specification; 1 is understood",
                json::short(spec)
            )));
        }
        let head = Head { version: fields.version("version")?, expires: fields.time("expires")? };
        Ok(Self {
            body: T::read(&fields, head)?,
            canonical: json::canonical(signed)?,
            signatures: signatures(document)?,
        })
    }

    /// The file with these signatures.
    pub fn file(&self) -> Vec<u8> {
        let signatures: Vec<Value> =
            self.signatures.iter().map(|(id, signature)| json!({"keyid": id, "sig": hex(signature)})).collect();
        json::file(&json!({"signatures": signatures, "signed": value(&self.body)}))
    }

    /// A document that nobody has signed.
    pub fn unsigned(body: T) -> Result<Self, Malformed> {
        let canonical = json::canonical(&value(&body))?;
        Ok(Self { body, canonical, signatures: BTreeMap::new() })
    }
}

fn value<T: Body>(body: &T) -> Value {
    let head = body.head();
    let mut map = Map::new();
    map.insert("_type".into(), T::KIND.word().into());
    map.insert("spec_version".into(), SPEC_VERSION.into());
    map.insert("version".into(), head.version.into());
    map.insert("expires".into(), head.expires.to_string().into());
    body.write(&mut map);
    Value::Object(map)
}

fn signatures(document: &Map<String, Value>) -> Result<BTreeMap<String, Vec<u8>>, Malformed> {
    let list =
        document.get("signatures").and_then(Value::as_array).ok_or_else(|| Malformed::text("without `signatures`"))?;
    if list.len() > SIGNATURES_MAX {
        return Err(Malformed::text(format!("{} signatures; at most {SIGNATURES_MAX}", list.len())));
    }
    let (mut seen, mut found) = (BTreeSet::new(), BTreeMap::new());
    for signature in list {
        let fields = Fields {
            map: signature.as_object().ok_or_else(|| Malformed::text("a signature that is no object"))?,
            of: "signatures",
        };
        let (id, text) = (fields.text("keyid")?, fields.text("sig")?);
        if !seen.insert(id) {
            return Err(Malformed::text(format!("two signatures of the key `{}`", json::short(id))));
        }
        // An empty one stands for a signature that is still to come.
        if let Some(bytes) = unhex(text).filter(|bytes| !bytes.is_empty()) {
            found.insert(id.to_owned(), bytes);
        }
    }
    Ok(found)
}

/// The fields of an object, by name.
pub(in crate::trust) struct Fields<'a> {
    map: &'a Map<String, Value>,
    of: &'a str,
}

impl<'a> Fields<'a> {
    fn wrong(&self, name: &str, what: &str) -> Malformed {
        Malformed::text(format!("`{name}` of `{}` must be {what}", json::short(self.of)))
    }

    fn text(&self, name: &str) -> Result<&'a str, Malformed> {
        self.map.get(name).and_then(Value::as_str).ok_or_else(|| self.wrong(name, "text"))
    }

    fn version(&self, name: &str) -> Result<u64, Malformed> {
        self.map
            .get(name)
            .and_then(Value::as_u64)
            .filter(|&version| version > 0)
            .ok_or_else(|| self.wrong(name, "a number from 1 on"))
    }

    fn time(&self, name: &str) -> Result<UnixTime, Malformed> {
        UnixTime::read(self.text(name)?).ok_or_else(|| self.wrong(name, "a time, as in 2026-01-31T12:00:00Z"))
    }

    /// False where it is left out.
    fn flag(&self, name: &str) -> Result<bool, Malformed> {
        let absent = self.map.get(name).is_none_or(Value::is_null);
        if absent { Ok(false) } else { self.switch(name) }
    }

    fn switch(&self, name: &str) -> Result<bool, Malformed> {
        self.map.get(name).and_then(Value::as_bool).ok_or_else(|| self.wrong(name, "true or false"))
    }

    fn object(&self, name: &str) -> Result<&'a Map<String, Value>, Malformed> {
        self.map.get(name).and_then(Value::as_object).ok_or_else(|| self.wrong(name, "an object"))
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Malformed> {
        let Some(value) = self.map.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.wrong(name, "a list"))?;
        let texts: Option<Vec<String>> = list.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        texts.map(Some).ok_or_else(|| self.wrong(name, "a list of texts"))
    }

    fn within(&self, name: &'a str) -> Result<Fields<'a>, Malformed> {
        Ok(Fields { map: self.object(name)?, of: name })
    }

    fn each(&self, name: &str) -> Result<Vec<(&'a str, Fields<'a>)>, Malformed> {
        let entry = |(key, value): (&'a String, &'a Value)| {
            let map = value.as_object().ok_or_else(|| self.wrong(key, "an object"))?;
            Ok((key.as_str(), Fields { map, of: key }))
        };
        self.object(name)?.iter().map(entry).collect()
    }
}
