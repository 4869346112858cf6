//! Numbers, tables and errors in words, as a terminal may get them.

use tierline_proto::name::is_printable;

/// A text as a terminal may get it: names and messages come from other nodes,
/// files and models, and what would move the cursor, change colours or turn the
/// direction of writing is spelled out. Lines stay lines.
#[must_use]
pub fn shown(text: &str) -> String {
    spelled(text, |c| matches!(c, '\n' | '\t'), |c, out| out.extend(c.escape_unicode()))
}

/// The text with what can't be printed, and isn't to be kept, spelled out.
pub fn spelled(text: &str, keep: impl Fn(char) -> bool, spell: impl Fn(char, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) || keep(c) { out.push(c) } else { spell(c, &mut out) }
    }
    out
}

/// An error with everything that caused it, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
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

/// Seconds as `12.3 ms`, `45.0 s`, `3 min 20 s`, `2 h 10 min` or `90 days`.
#[must_use]
pub fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => duration((seconds * 1e9) as u64),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..172_800 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} days", whole / 86_400),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(&["name", "bytes"], &[vec!["a".into(), "10".into()], vec!["long".into(), "5".into()]]);
        assert_eq!(text, "name  bytes\na        10\nlong      5\n");
    }

    #[test]
    fn times_read_well() {
        for (seconds, text) in [
            (0.0123, "12.3 ms"),
            (45.0, "45.0 s"),
            (200.4, "3 min 20 s"),
            (7_810.0, "2 h 10 min"),
            (7_776_000.0, "90 days"),
        ] {
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
