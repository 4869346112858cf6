//! What a command says and how it ends: data to stdout, messages to stderr,
//! an exit code per kind of outcome.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use tierline_proto::name::is_printable;

/// Version of the JSON documents on stdout; raised when a field changes meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// How a command ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A configuration file or value is wrong.
    Configuration = 3,
    /// A node can't be reached.
    Unreachable = 4,
    /// No plan satisfies the limits.
    Infeasible = 5,
    /// A digest, signature or certificate doesn't verify.
    Verification = 6,
    /// The deadline passed.
    Timeout = 124,
    /// The user interrupted.
    Interrupted = 130,
}

/// A failed command: what and why, what to try next, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What failed and why.
    pub error: anyhow::Error,
    /// The next command to try.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with this exit code.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    /// A failure described by a sentence.
    pub fn message(exit: Exit, text: impl std::fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{text}"), hint: None }
    }

    /// The same failure with what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Exit::Failure, error)
    }
}

/// A command's outcome.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Attaches an exit code to any error.
pub trait ExitWith<T> {
    /// The error as a [`Failure`] with this exit code.
    ///
    /// # Errors
    /// The error itself.
    fn exit_with(self, exit: Exit) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> ExitWith<T> for Result<T, E> {
    fn exit_with(self, exit: Exit) -> Outcome<T> {
        self.map_err(|e| Failure::new(exit, e))
    }
}

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
    pub fn data<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
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
    pub fn event<T: Serialize>(self, value: &T) -> Outcome {
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
pub fn line(text: &str) -> Outcome {
    write_stdout(&format!("{}\n", shown(text)))
}

/// A text as a terminal may get it: names and messages come from other nodes,
/// files and models, and what would move the cursor, change colours or turn the
/// direction of writing is spelled out. Lines stay lines.
#[must_use]
pub fn shown(text: &str) -> String {
    spelled(text, |c| matches!(c, '\n' | '\t'), |c, out| out.extend(c.escape_unicode()))
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

/// The text with what can't be printed, and isn't to be kept, spelled out.
fn spelled(text: &str, keep: impl Fn(char) -> bool, spell: impl Fn(char, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) || keep(c) { out.push(c) } else { spell(c, &mut out) }
    }
    out
}

fn write_stdout(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A closed pipe (`| head`) is the reader's choice, not our failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints a failure to stderr and gives its exit code.
#[must_use]
pub fn report(failure: &Failure) -> std::process::ExitCode {
    eprintln!("error: {}", shown(&failure.error.to_string()));
    for cause in failure.error.chain().skip(1) {
        let text = cause.to_string();
        if !failure.error.to_string().contains(&text) {
            eprintln!("  because: {}", shown(&text));
        }
    }
    if let Some(hint) = &failure.hint {
        eprintln!("  try: {}", shown(hint));
    }
    std::process::ExitCode::from(failure.exit as u8)
}

/// Lines up rows of cells in columns; numbers are right-aligned.
#[must_use]
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    // A cell is one line, and as wide as it is shown.
    let cell = |cell: &String| spelled(cell, |_| false, |c, out| out.extend(c.escape_default()));
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(cell).collect()).collect();
    let numeric = |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let columns = header.len();
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .chain([header[c].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let right: Vec<bool> =
        (0..columns).map(|c| !rows.is_empty() && rows.iter().filter_map(|r| r.get(c)).all(|s| numeric(s))).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (c, cell) in cells.iter().enumerate() {
            let pad = widths[c].saturating_sub(cell.chars().count());
            if right[c] {
                text.push_str(&" ".repeat(pad));
                text.push_str(cell);
            } else {
                text.push_str(cell);
                text.push_str(&" ".repeat(pad));
            }
            text.push_str("  ");
        }
        format!("{}\n", text.trim_end())
    };
    let mut out = line(header.to_vec());
    for row in &rows {
        out.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    out
}

/// `1234567` bytes as `1.2 MB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// `1234567` as `1.23 M`.
#[must_use]
pub fn count(n: u64) -> String {
    scaled(n as f64, &["", "k", "M", "G", "T"])
}

/// Nanoseconds as `12.3 ms`.
#[must_use]
pub fn duration(ns: u64) -> String {
    scaled_by(ns as f64, 1000.0, &["ns", "us", "ms", "s"])
}

/// Seconds as `12.3 ms`, `45.0 s`, `3 min 20 s` or `2 h 10 min`.
#[must_use]
pub fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => duration((seconds * 1e9) as u64),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
    }
}

fn scaled(n: f64, units: &[&str]) -> String {
    scaled_by(n, 1000.0, units)
}

fn scaled_by(mut n: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= step && unit + 1 < units.len() {
        n /= step;
        unit += 1;
    }
    let text = if unit == 0 { format!("{n:.0} {}", units[unit]) } else { format!("{n:.1} {}", units[unit]) };
    text.trim_end().to_owned()
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
    fn columns_line_up() {
        let text = table(&["name", "bytes"], &[vec!["a".into(), "10".into()], vec!["long".into(), "5".into()]]);
        assert_eq!(text, "name  bytes\na        10\nlong      5\n");
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

    #[test]
    fn times_read_well() {
        for (seconds, text) in [(0.0123, "12.3 ms"), (45.0, "45.0 s"), (200.4, "3 min 20 s"), (7_810.0, "2 h 10 min")] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn units_read_well() {
        assert_eq!(
            (bytes(999), bytes(1_234_567), duration(12_300_000)),
            ("999 B".into(), "1.2 MB".into(), "12.3 ms".into())
        );
    }
}
