//! Names as they may be: what a node, a model or a word of the protocol is
//! called, checked where it comes in.

use std::fmt;

use crate::limits::{ALIAS_BYTES_MAX, MODEL_NAME_BYTES_MAX, NODE_NAME_BYTES_MAX};

/// A node's name: a DNS label, because certificates carry it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a node's.
    #[error("`{}` is no node's name: up to {NODE_NAME_BYTES_MAX} lower-case letters, digits and hyphens inside", .0.escape_debug())]
    Node(String),
    /// Not a model's.
    #[error(
        "`{}` is no model's name: 1 to {MODEL_NAME_BYTES_MAX} bytes that can be printed, no space at either end",
        .0.escape_debug()
    )]
    Model(String),
    /// Not an alias.
    #[error(
        "`{}` is no alias: a lower-case letter, then such letters, digits and hyphens, {ALIAS_BYTES_MAX} at most",
        .0.escape_debug()
    )]
    Alias(String),
}

/// The start of a name that is none, for messages.
fn start(text: &str) -> String {
    text.chars().take(80).collect()
}

impl NodeName {
    /// Checks a node's name.
    ///
    /// # Errors
    /// [`NameError::Node`] with the rule.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let inside = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let edges = !name.starts_with('-') && !name.ends_with('-');
        if inside && edges && (1..=NODE_NAME_BYTES_MAX).contains(&name.len()) {
            return Ok(Self(name.to_owned()));
        }
        Err(NameError::Node(start(name)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

/// Checks a model's name: it stands in tables, paths of commands and messages.
///
/// # Errors
/// [`NameError::Model`] with the rule.
pub fn check_model(name: &str) -> Result<(), NameError> {
    let fits = (1..=MODEL_NAME_BYTES_MAX).contains(&name.len());
    if fits && name.trim() == name && name.chars().all(is_printable) {
        return Ok(());
    }
    Err(NameError::Model(start(name)))
}

/// A model's name and what follows its last `@`: a version, or an alias.
#[must_use]
pub fn split_version(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once('@') {
        Some((name, which)) if !name.is_empty() => (name, Some(which)),
        _ => (text, None),
    }
}

/// Checks an alias of a model's versions: it is told from a version's number by
/// its first letter.
///
/// # Errors
/// [`NameError::Alias`] with the rule.
pub fn check_alias(alias: &str) -> Result<(), NameError> {
    let inside = alias.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let first = alias.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if inside && first && alias.len() <= ALIAS_BYTES_MAX {
        return Ok(());
    }
    Err(NameError::Alias(start(alias)))
}

/// Checks a pattern of models' names: such a name, in which `*` stands for any
/// letters, none included.
///
/// # Errors
/// [`NameError::Model`] with the rule.
pub fn check_pattern(pattern: &str) -> Result<(), NameError> {
    check_model(pattern)
}

/// Whether a pattern ([`check_pattern`]) stands for a name. Takes time in
/// proportion to the product of their lengths at most.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut of) = (0, 0);
    // The last star, and how much of the name it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while of < name.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, of));
            at += 1;
        } else if pattern.get(at) == name.get(of) {
            (at, of) = (at + 1, of + 1);
        } else if let Some((after, stands_to)) = star {
            star = Some((after, stands_to + 1));
            (at, of) = (after + 1, stands_to + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Whether a character shows as itself: no control, and none that changes how
/// others are shown (directions, joiners, line separators).
#[must_use]
pub fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_names() {
        for (pattern, name, stands) in [
            ("detector", "detector", true),
            ("detector", "detectors", false),
            ("detectors", "detector", false),
            ("detector*", "detector", true),
            ("detector*", "detector-2", true),
            ("*", "anything at all", true),
            ("*-small", "yolo-small", true),
            ("*-small", "yolo-small-2", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXcXb", false),
            ("**", "x", true),
            ("Detector", "detector", false),
            ("*é", "caf\u{e9}", true),
        ] {
            assert_eq!(matches(pattern, name), stands, "{pattern} {name}");
        }
        // Long ones take no time to speak of.
        assert!(!matches(&"*a".repeat(64), &"b".repeat(128)));
        assert!(check_pattern("").is_err() && check_pattern("a\n").is_err() && check_pattern("*").is_ok());
    }

    #[test]
    fn names_are_what_can_be_shown() {
        for good in ["a", "end-007", &"x".repeat(63)] {
            assert_eq!(NodeName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a b", "a\u{1b}[2J", "ä", &"x".repeat(64)] {
            let error = NodeName::new(bad).unwrap_err().to_string();
            assert!(error.chars().all(is_printable), "{error}");
        }
        for good in ["digits", "Zähler 2", "a/b:c", "模型"] {
            check_model(good).unwrap();
        }
        for bad in ["", " a", "a\n", "a\u{9b}31m", "a\u{202e}b", "\u{200b}", &"x".repeat(129)] {
            let error = check_model(bad).unwrap_err().to_string();
            assert!(error.chars().all(is_printable), "{error}");
        }
    }
}
