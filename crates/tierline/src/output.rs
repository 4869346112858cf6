//! What a command says and how it ends: data to stdout, messages to stderr,
//! an exit code per kind of outcome.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use tierline_daemon::words::{shown, spelled};

pub use crate::exit::{CommandError, CommandResult, ExitCode, ExitWith};
pub use tierline_daemon::words::{bytes, count, duration, table, time};

/// Version of the JSON documents on stdout; raised when a field changes meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// Where a command's words go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON document instead of text.
    pub json: bool,
    /// No messages or progress on stderr.
    pub quiet: bool,
}

#[derive(Serialize)]
struct Document<'a, T: Serialize> {
    schema_version: u32,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    /// Prints data: `value` as a JSON document under `--json`, else `text`.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn data<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> CommandResult {
        let mut line = if self.json {
            shown_json(&serde_json::to_string_pretty(&Document { schema_version: SCHEMA_VERSION, body: value })?)
        } else {
            shown(&text(value))
        };
        if !line.ends_with('\n') {
            line.push('\n');
        }
        write_stdout(&line)
    }

    /// Prints one line of a stream of JSON documents.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn event<T: Serialize>(self, value: &T) -> CommandResult {
        let mut line = shown_json(&serde_json::to_string(&Document { schema_version: SCHEMA_VERSION, body: value })?);
        line.push('\n');
        write_stdout(&line)
    }

    /// Says something to the person, unless quiet.
    pub fn say(self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{}", shown(&text.to_string()));
        }
    }

    /// A progress bar of `steps` on stderr; hidden when quiet or no terminal.
    #[must_use]
    pub fn progress(self, steps: u64, what: &str) -> indicatif::ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return indicatif::ProgressBar::hidden();
        }
        let style = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}")
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
        indicatif::ProgressBar::new(steps).with_style(style).with_message(what.to_owned())
    }
}

/// Prints one line of text to stdout.
///
/// # Errors
/// When stdout is closed for another reason than its reader's.
pub fn line(text: &str) -> CommandResult {
    write_stdout(&format!("{}\n", shown(text)))
}

/// A JSON document as a terminal may get it: the same document.
fn shown_json(json: &str) -> String {
    let spell = |c: char, out: &mut String| {
        let mut units = [0; 2];
        c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
    };
    // What JSON itself has spelled out already is none of these.
    spelled(json, |c| c == '\n', spell)
}

fn write_stdout(text: &str) -> CommandResult {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A closed pipe (`| head`) is the reader's choice, not our error.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints an error to stderr and gives its exit code.
#[must_use]
pub fn report(error: &CommandError) -> std::process::ExitCode {
    eprintln!("error: {}", shown(&error.error.to_string()));
    for cause in error.error.chain().skip(1) {
        let text = cause.to_string();
        if !error.error.to_string().contains(&text) {
            eprintln!("  because: {}", shown(&text));
        }
    }
    if let Some(hint) = &error.hint {
        eprintln!("  try: {}", shown(hint));
    }
    std::process::ExitCode::from(error.exit as u8)
}

/// Bytes of a name as a file's at most: systems take 255, and a suffix follows.
const FILE_NAME_BYTES_MAX: usize = 200;

/// A tensor's name as a file's, without suffix: no two names share one, and
/// none leads into another folder.
///
/// Letters, digits and `. _ -` stay; of the rest each byte is `%` and two
/// digits. Long names end in `~` and a digest.
#[must_use]
pub fn file_name(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => text.push(byte.into()),
            // Files that begin with a dot are hidden, and two are folders.
            b'.' if at > 0 => text.push('.'),
            other => text.push_str(&format!("%{other:02x}")),
        }
    }
    if text.is_empty() {
        return "%".to_owned();
    }
    if text.len() > FILE_NAME_BYTES_MAX {
        let digest = blake3::hash(name.as_bytes()).to_hex();
        text.truncate(FILE_NAME_BYTES_MAX / 2);
        text = format!("{text}~{digest}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tierline_proto::name::is_printable;

    #[test]
    fn no_two_tensors_share_a_file() {
        let long = "x".repeat(300);
        let names = [
            "",
            "%",
            ".",
            "..",
            "y",
            "Y",
            "y:0",
            "y_0",
            "y/0",
            "y%3a0",
            "y.0",
            "out/y:0",
            "out/y_0",
            "../y",
            "é",
            "a b",
            "a,b",
            "^y",
            "~",
            "y\n0",
            "y\0",
            &long,
            &long[1..],
            "con",
        ];
        let files: std::collections::BTreeSet<String> = names.iter().map(|n| file_name(n)).collect();
        assert_eq!(files.len(), names.len(), "{files:?}");
        for file in &files {
            assert!(!file.is_empty() && file.len() <= FILE_NAME_BYTES_MAX, "{file}");
            assert!(!file.contains(['/', '\\', ':', '\0']) && !file.starts_with('.'), "{file}");
        }
        assert_eq!(file_name("Logits"), "Logits");
        assert_eq!(file_name("out/y:0"), "out%2fy%3a0");
    }

    #[test]
    fn nothing_that_moves_the_cursor_gets_to_a_terminal() {
        let hostile = "a\u{1b}[2Jb\u{9b}31m\u{202e}c\nd\té";
        assert_eq!(shown(hostile), "a\\u{1b}[2Jb\\u{9b}31m\\u{202e}c\nd\té");
        let json = serde_json::json!({ "name": hostile, "high": "\u{e0001}" });
        let text = shown_json(&serde_json::to_string_pretty(&json).unwrap());
        assert!(text.chars().all(|c| is_printable(c) || c == '\n'), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), json, "it is the same document");
        let text = table(&["name", "n"], &[vec!["x\ny\u{1b}[m".into(), "1".into()]]);
        assert_eq!(text, "name          n\nx\\ny\\u{1b}[m  1\n");
    }
}
