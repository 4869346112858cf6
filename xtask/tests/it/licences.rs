//! Every dependency's licence lets us ship under MIT OR Apache-2.0.

use crate::workspace::{METADATA, list, text};

/// Permissive licences, by SPDX name. Add one here after reading it.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[test]
fn dependencies_are_permissive() {
    let faults: Vec<String> = list(&METADATA["packages"])
        .filter(|package| !allowed(text(&package["license"])))
        .map(|package| format!("{} {}: `{}`", text(&package["name"]), text(&package["version"]), package["license"]))
        .collect();
    assert_eq!(faults, Vec::<String>::new(), "not in the list of allowed licences");
}

#[test]
fn expressions_are_understood() {
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT/Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
        ("(MIT OR GPL-2.0) AND ISC", true),
        ("(MIT OR GPL-2.0) AND LGPL-2.1", false),
        ("MIT OR (GPL-2.0 AND LGPL-2.1)", true),
        ("", false),
    ] {
        assert_eq!(allowed(expression), expected, "{expression}");
    }
}

/// Whether an SPDX expression can be met with allowed licences. OR binds
/// loosest, then AND, then WITH (SPDX 2.3, annex D); a slash is an old OR.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    any(&split(&expression, " OR "))
}

fn any(alternatives: &[&str]) -> bool {
    alternatives.iter().any(|alternative| split(alternative, " AND ").iter().all(|term| term_allowed(term)))
}

fn term_allowed(term: &str) -> bool {
    let words = term.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => any(&split(inner, " OR ")),
        None => ALLOWED.contains(&words.as_str()),
    }
}

/// Splits at an operator outside parentheses.
fn split<'a>(expression: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && expression[at..].starts_with(operator) => {
                parts.push(&expression[start..at]);
                start = at + operator.len();
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    parts
}
