//! Whom a role gives targets to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::roles::{keys, keys_value};
use super::{Fields, Kind, RoleKeys};
use crate::trust::error::Malformed;
use crate::trust::key::{PublicKey, hex};
use crate::trust::name;

/// Which targets a role was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Paths {
    /// Those whose names match a pattern: `*`, `?` and `[..]` within one part between slashes.
    Patterns(Vec<String>),
    /// Those whose names' SHA-256 begins so, in hexadecimal.
    HashPrefixes(Vec<String>),
}

impl Paths {
    /// Whether the role may speak of this target.
    #[must_use]
    pub fn include(&self, target: &str) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.iter().any(|pattern| name::matches(pattern, target)),
            Self::HashPrefixes(prefixes) => {
                let hash = hex(ring::digest::digest(&ring::digest::SHA256, target.as_bytes()).as_ref());
                prefixes.iter().any(|prefix| hash.starts_with(prefix.as_str()))
            }
        }
    }
}

/// A role that another one gave some of its targets to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The role's name.
    pub name: String,
    /// Who signs for it.
    pub role: RoleKeys,
    /// Whether nobody further down the list is asked for these targets.
    pub terminating: bool,
    /// Which targets.
    pub paths: Paths,
}

/// Whom a role gave targets to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegations {
    /// Keys by id.
    pub keys: BTreeMap<String, PublicKey>,
    /// To roles of their own, in the order in which they are asked, or to bins.
    pub to: Delegated,
}

/// The roles that targets were given to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delegated {
    /// Roles of their own, the first one that knows a target counts.
    Roles(Vec<Delegation>),
    /// As many roles as there are numbers of this many bits, each for the
    /// targets whose names' SHA-256 begins with its number (TAP 15).
    Bins {
        /// Who signs for all of them.
        role: RoleKeys,
        /// Bits of a number, 1 to 32.
        bits: u32,
        /// What their names begin with, before a hyphen and the number.
        prefix: String,
    },
}

impl Delegations {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Malformed> {
        let keys = keys(fields)?;
        if fields.map.contains_key("succinct_roles") {
            let bins = fields.within("succinct_roles")?;
            let bits = bins.version("bit_length")?;
            let bits = u32::try_from(bits)
                .ok()
                .filter(|&bits| bits <= 32)
                .ok_or_else(|| bins.wrong("bit_length", "from 1 to 32"))?;
            let prefix = bins.text("name_prefix")?.to_owned();
            if !name::fits(&format!("{prefix}-ffffffff")) {
                return Err(bins.wrong("name_prefix", "short enough for a file's name"));
            }
            return Ok(Self { keys, to: Delegated::Bins { role: RoleKeys::read(&bins)?, bits, prefix } });
        }
        let list = fields.map.get("roles").and_then(Value::as_array).ok_or_else(|| fields.wrong("roles", "a list"))?;
        let mut names = BTreeSet::new();
        let mut roles = Vec::with_capacity(list.len());
        for value in list {
            let fields = Fields {
                map: value.as_object().ok_or_else(|| fields.wrong("roles", "a list of objects"))?,
                of: "roles",
            };
            let name = fields.text("name")?;
            if name.is_empty()
                || !name::fits(name)
                || Kind::ALL.iter().any(|kind| kind.word() == name)
                || !names.insert(name)
            {
                return Err(fields.wrong(
                    "name",
                    "a role's own, not one of the four, there once, and short enough for a file's name",
                ));
            }
            let paths = match (fields.texts("paths")?, fields.texts("path_hash_prefixes")?) {
                (Some(patterns), None) => Paths::Patterns(patterns),
                (None, Some(prefixes)) => Paths::HashPrefixes(prefixes),
                _ => return Err(fields.wrong("paths", "there, or `path_hash_prefixes`, and not both")),
            };
            let role = RoleKeys::read(&fields)?;
            roles.push(Delegation { name: name.to_owned(), role, terminating: fields.switch("terminating")?, paths });
        }
        Ok(Self { keys, to: Delegated::Roles(roles) })
    }

    pub(super) fn value(&self) -> Value {
        let mut map = Map::new();
        map.insert("keys".into(), keys_value(&self.keys));
        match &self.to {
            Delegated::Roles(roles) => {
                let role = |delegation: &Delegation| {
                    let mut map = Map::new();
                    map.insert("name".into(), delegation.name.clone().into());
                    map.insert("terminating".into(), delegation.terminating.into());
                    match &delegation.paths {
                        Paths::Patterns(patterns) => map.insert("paths".into(), patterns.clone().into()),
                        Paths::HashPrefixes(prefixes) => {
                            map.insert("path_hash_prefixes".into(), prefixes.clone().into())
                        }
                    };
                    delegation.role.write(&mut map);
                    Value::Object(map)
                };
                map.insert("roles".into(), roles.iter().map(role).collect());
            }
            Delegated::Bins { role, bits, prefix } => {
                let mut bins = Map::new();
                bins.insert("bit_length".into(), (*bits).into());
                bins.insert("name_prefix".into(), prefix.clone().into());
                role.write(&mut bins);
                map.insert("succinct_roles".into(), Value::Object(bins));
            }
        }
        Value::Object(map)
    }

    /// Who is asked for a target, in order, and whether the first of them is
    /// the last that is asked at all.
    pub(in crate::trust) fn asked(&self, target: &str) -> (Vec<String>, bool) {
        match &self.to {
            Delegated::Roles(roles) => {
                let mut names = Vec::new();
                for role in roles.iter().filter(|role| role.paths.include(target)) {
                    names.push(role.name.clone());
                    if role.terminating {
                        return (names, true);
                    }
                }
                (names, false)
            }
            Delegated::Bins { bits, prefix, .. } => {
                let hash = ring::digest::digest(&ring::digest::SHA256, target.as_bytes());
                let first = hash.as_ref().iter().take(4).fold(0u64, |number, &byte| number << 8 | u64::from(byte));
                let digits = bits.div_ceil(4) as usize;
                (vec![format!("{prefix}-{:0digits$x}", first >> (32 - bits))], true)
            }
        }
    }

    /// Who signs for a role that targets were given to.
    pub(in crate::trust) fn role(&self, name: &str) -> Option<&RoleKeys> {
        match &self.to {
            Delegated::Roles(roles) => roles.iter().find(|role| role.name == name).map(|role| &role.role),
            Delegated::Bins { role, bits, prefix } => {
                let number = name.strip_prefix(prefix.as_str())?.strip_prefix('-')?;
                let digits = bits.div_ceil(4) as usize;
                let sound =
                    number.len() == digits && number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                (sound && u64::from_str_radix(number, 16).is_ok_and(|number| number < 1 << bits)).then_some(role)
            }
        }
    }
}
