//! Names of targets and of files, and the patterns of delegations.

use std::fmt;

use super::error::TrustError;
use super::json::short;

/// Bytes of a target's name.
const BYTES_MAX: usize = 512;

/// Bytes of a file's name: 255 is what file systems take.
const FILE_BYTES_MAX: usize = 220;

/// The name of a target, as in `detector/2/model.onnx`: a relative path that
/// leads nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetName(String);

impl TargetName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`TrustError::BadName`] with the rule that it breaks.
    pub fn new(name: &str) -> Result<Self, TrustError> {
        let broken = if name.is_empty() || name.len() > BYTES_MAX {
            Some("it must have 1 to 512 bytes")
        } else if name.chars().any(|character| character.is_control() || character == '\\') {
            Some("it must have no control characters and no backslash")
        } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            Some("it must be relative, without empty parts, `.` and `..`")
        } else {
            None
        };
        match broken {
            None => Ok(Self(name.to_owned())),
            Some(why) => Err(TrustError::BadName { name: short(name), why }),
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file's name in a repository whose files carry their hashes: `detector/2/HASH.model.onnx`.
    #[must_use]
    pub fn with_hash(&self, hash: &str) -> String {
        match self.0.rsplit_once('/') {
            Some((folder, file)) => format!("{folder}/{hash}.{file}"),
            None => format!("{hash}.{}", self.0),
        }
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The file that holds a role's metadata, without version: what isn't
/// unreserved in URLs (RFC 3986) is percent-encoded, so that no role's name
/// leads elsewhere.
pub(super) fn file(role: &str) -> String {
    let mut file = String::new();
    for byte in role.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            file.push(byte as char);
        } else {
            file.push_str(&format!("%{byte:02X}"));
        }
    }
    file + ".json"
}

/// Whether a role's file has a name that file systems take, with some room for a version.
pub(super) fn fits(role: &str) -> bool {
    file(role).len() <= FILE_BYTES_MAX
}

/// The file of one version of a role's metadata.
pub(super) fn versioned(role: &str, version: u64) -> String {
    format!("{version}.{}", file(role))
}

/// Whether a target's name matches a delegation's pattern. Both have the same
/// number of parts between slashes; within a part, `*` is any text, `?` any
/// character, `[ab]`, `[a-c]` and `[!a]` one of these or another.
pub(super) fn matches(pattern: &str, target: &str) -> bool {
    let (patterns, parts) = (pattern.split('/'), target.split('/'));
    if patterns.clone().count() != parts.clone().count() {
        return false;
    }
    patterns.zip(parts).all(|(pattern, part)| {
        let pattern: Vec<char> = pattern.chars().collect();
        let part: Vec<char> = part.chars().collect();
        part_matches(&pattern, &part)
    })
}

/// Goes back to the last `*` only, so that the time is at most the product of
/// both lengths.
fn part_matches(pattern: &[char], part: &[char]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < part.len() {
        if pattern.get(from) == Some(&'*') {
            star = Some((from + 1, at));
            from += 1;
            continue;
        }
        if let Some(next) = one_matches(&pattern[from..], part[at]) {
            from += next;
            at += 1;
            continue;
        }
        let Some((behind, begun)) = star else { return false };
        star = Some((behind, begun + 1));
        from = behind;
        at = begun + 1;
    }
    pattern[from..].iter().all(|&character| character == '*')
}

/// How long the pattern's first element is, if it matches this character.
fn one_matches(pattern: &[char], character: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            // A bracket that closes at once stands for itself; one that never closes is no set.
            let negated = pattern.get(1) == Some(&'!');
            let begin = 1 + usize::from(negated);
            let Some(end) = (begin + 1..pattern.len()).find(|&at| pattern[at] == ']') else {
                return (character == '[').then_some(1);
            };
            let mut set = &pattern[begin..end];
            let mut found = false;
            while let Some((&first, rest)) = set.split_first() {
                if let [between, last, rest @ ..] = rest
                    && *between == '-'
                {
                    found |= (first..=*last).contains(&character);
                    set = rest;
                } else {
                    found |= first == character;
                    set = rest;
                }
            }
            (found != negated).then_some(end + 1)
        }
        &exact => (exact == character).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "detector/2/model.onnx", "a b", "ä/ß", "..a/b..", "a/...", "%2e%2e/a"] {
            assert_eq!(TargetName::new(name).unwrap().as_str(), name);
        }
        let long = "a".repeat(513);
        for name in ["", "/a", "a/", "a//b", "../a", "a/..", "a/./b", ".", "a\\b", "a\nb", "a\0", &long] {
            assert!(TargetName::new(name).is_err(), "{name:?}");
        }
        assert_eq!(TargetName::new("a/b.c").unwrap().with_hash("00"), "a/00.b.c");
        assert_eq!(TargetName::new("b.c").unwrap().with_hash("00"), "00.b.c");
    }

    #[test]
    fn files() {
        // Python: urllib.parse.quote(role, "") + ".json"
        for (role, expected) in [
            ("targets", "targets.json"),
            ("site-a_b.c~", "site-a_b.c~.json"),
            ("?", "%3F.json"),
            ("../x", "..%2Fx.json"),
            ("ä", "%C3%A4.json"),
            ("a b\\", "a%20b%5C.json"),
        ] {
            assert_eq!(file(role), expected);
        }
        assert_eq!(versioned("a/b", 7), "7.a%2Fb.json");
    }

    #[test]
    fn patterns() {
        // Python 3.11: fnmatch.fnmatchcase of the parts.
        for (pattern, target, expected) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("detector/*/*", "detector/2/model.onnx", true),
            ("detector/*/*", "detector/2", false),
            ("d?t/*.onnx", "dot/a.onnx", true),
            ("d?t/*.onnx", "dt/a.onnx", false),
            ("[ab]c", "bc", true),
            ("[!ab]c", "bc", false),
            ("[!ab]c", "cc", true),
            ("[a-c]", "b", true),
            ("[a-c]", "-", false),
            ("[a-]", "-", true),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[", "[", true),
            ("[a", "[a", true),
            ("[]", "[]", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("", "", true),
            ("**", "abc", true),
            ("ä?", "äö", true),
            ("[c-a]", "b", false),
        ] {
            assert_eq!(matches(pattern, target), expected, "{pattern} {target}");
        }
        // Exponential if every star were tried with every other.
        assert!(!matches(&("a*".repeat(200) + "b"), &"a".repeat(4_000)));
    }
}
