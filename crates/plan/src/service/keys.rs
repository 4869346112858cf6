//! What is wrong with a SERVICE.toml, and the keys that there are.

use std::ops::RangeInclusive;

use crate::keys::{self, UnknownKey, suggest};

/// Keys of each table, for suggestions.
const KEYS: [(&str, &[&str]); 5] = [
    ("", &["kind", "member", "audit", "quality", "combine", "output", "least", "agreement", "examples", "calibration"]),
    (
        "member",
        &[
            "model",
            "name",
            "inputs",
            "outputs",
            "judged",
            "scores",
            "axis",
            "criterion",
            "threshold",
            "share",
            "weight",
            "placement",
            "crops",
        ],
    ),
    ("quality", &["input", "blur_min", "dark_max", "bright_min", "white"]),
    ("examples", &["policy", "max_mb", "max_count"]),
    ("calibration", &["data", "examples", "accuracy", "point"]),
];

const CROPS: &[&str] = &[
    "of",
    "boxes",
    "format",
    "relative",
    "scores",
    "score_min",
    "boxes_max",
    "image",
    "input",
    "size",
    "scale",
    "mean",
    "std",
    "batch_max",
];

const SOURCE: &[&str] = &["of", "output"];

const POINT: &[&str] = &["thresholds", "accuracy", "answered"];

/// What is wrong with a SERVICE.toml.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Not TOML, or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A key that means nothing.
    #[error(transparent)]
    UnknownKey(#[from] UnknownKey),
    /// More than is taken.
    #[error("{count} {what}; at most {max} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Limit.
        max: usize,
    },
    /// Nothing to compose.
    #[error("a service has two [[member]] or more; this one has {0}")]
    TooFew(usize),
    /// Two members of one name.
    #[error("two members are called `{0}`; give one of them another `name`")]
    Duplicate(String),
    /// A key of another kind.
    #[error("`{key}` is of a service of kind {of}; this one is of kind {kind}")]
    OtherKind {
        /// The key.
        key: &'static str,
        /// The kind that it is for.
        of: &'static str,
        /// The service's.
        kind: &'static str,
    },
    /// A number out of range.
    #[error("{owner}: `{key}` is {value}; it must be {needed}")]
    Value {
        /// Whose.
        owner: String,
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        needed: &'static str,
    },
    /// A member of a cascade that is never sure.
    #[error("member `{0}` needs `criterion` and `threshold`: it answers by itself when it is sure")]
    NoRule(String),
    /// The last of a cascade, with a rule.
    #[error("member `{0}` is the last of the cascade and always answers; it takes no `criterion` and no `threshold`")]
    LastRule(String),
    /// A member takes what isn't there yet.
    #[error("member `{member}` takes something of `{of}`, which is no member before it{}", suggest(.suggestion))]
    NotBefore {
        /// Which.
        member: String,
        /// Of whom.
        of: String,
        /// The likeliest meant.
        suggestion: Option<String>,
    },
    /// Crops of crops.
    #[error("two members run on crops; at most one can")]
    TwoCrops,
}

/// A wrong value.
pub fn wrong(owner: &str, key: &'static str, value: impl ToString, needed: &'static str) -> ServiceError {
    ServiceError::Value { owner: owner.to_owned(), key, value: value.to_string(), needed }
}

/// Refuses a number out of range.
pub fn value(
    owner: &str,
    key: &'static str,
    number: f64,
    range: RangeInclusive<f64>,
    needed: &'static str,
) -> Result<(), ServiceError> {
    // NaN is in no range.
    if range.contains(&number) { Ok(()) } else { Err(wrong(owner, key, number, needed)) }
}

/// Refuses keys that mean nothing.
pub fn check(table: &toml::Table) -> Result<(), ServiceError> {
    keys::check(table, KEYS[0].1, "the service")?;
    for (key, keys) in &KEYS[1..] {
        match table.get(*key) {
            Some(toml::Value::Array(tables)) => {
                for (i, table) in tables.iter().enumerate() {
                    let Some(table) = table.as_table() else { continue };
                    let place = format!("[[{key}]] {}", i + 1);
                    keys::check(table, keys, &place)?;
                    nested(table, &place)?;
                }
            }
            Some(toml::Value::Table(table)) => {
                keys::check(table, keys, &format!("[{key}]"))?;
                nested(table, &format!("[{key}]"))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn nested(table: &toml::Table, place: &str) -> Result<(), ServiceError> {
    if let Some(crops) = table.get("crops").and_then(toml::Value::as_table) {
        keys::check(crops, CROPS, &format!("`crops` of {place}"))?;
    }
    for source in table.get("inputs").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values) {
        if let Some(source) = source.as_table() {
            keys::check(source, SOURCE, &format!("`inputs` of {place}"))?;
        }
    }
    for point in table.get("point").and_then(toml::Value::as_array).into_iter().flatten() {
        if let Some(point) = point.as_table() {
            keys::check(point, POINT, &format!("a point of {place}"))?;
        }
    }
    Ok(())
}
