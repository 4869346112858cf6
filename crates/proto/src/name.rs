//! Names as they may be: what a node, a model or a word of the protocol is
//! called, checked where it comes in.

use std::fmt;

use crate::limits::{MODEL_NAME_BYTES_MAX, NODE_NAME_BYTES_MAX};

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
