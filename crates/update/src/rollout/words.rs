//! Names as they may be.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::RolloutError;

/// Bytes of a version's name, or of a device's, a group's, a label's.
pub const NAME_BYTES_MAX: usize = 128;

/// Bytes of a reason for people; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 512;

/// A version of a model, by the name that tells it from all others: a name in
/// the registry, or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

impl Version {
    /// Checks a version's name.
    ///
    /// # Errors
    /// [`RolloutError::Setting`] with the rule.
    pub fn new(name: &str) -> Result<Self, RolloutError> {
        check_name("a version", name)?;
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Version {
    type Error = RolloutError;

    fn try_from(name: String) -> Result<Self, RolloutError> {
        check_name("a version", &name)?;
        Ok(Self(name))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

/// Whether a text may name something.
///
/// # Errors
/// [`RolloutError::Setting`] with the rule.
pub(super) fn check_name(place: &str, name: &str) -> Result<(), RolloutError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.trim() == name;
    if fits && !name.chars().any(is_hidden) {
        return Ok(());
    }
    let start: String = name.chars().take(40).collect();
    let reason = format!(
        "`{}` is no name; one has 1 to {NAME_BYTES_MAX} bytes that can be printed, and no space at either end",
        start.escape_debug()
    );
    Err(RolloutError::Setting { place: place.to_owned(), reason })
}

/// Whether a character doesn't show as itself: a control, or one that changes
/// how others are shown.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A reason as it may be kept and shown: one line of what can be printed.
pub(super) fn plain(reason: &str) -> String {
    let mut plain: String = reason.chars().take(REASON_BYTES_MAX).map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    while plain.len() > REASON_BYTES_MAX {
        let _cut = plain.pop();
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_shown() {
        for good in ["v1", "2026-11-30.2", "sha256:00ff", "模型"] {
            assert_eq!(Version::new(good).unwrap().as_str(), good);
        }
        for bad in ["", " v1", "v\n1", "v\u{202e}1", &"x".repeat(129)] {
            assert!(Version::new(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<Version>(serde_json::json!(bad)).is_err());
        }
        assert_eq!(plain("a\nb"), "a b");
        assert_eq!(plain(&"é".repeat(600)).len(), 512);
    }
}
