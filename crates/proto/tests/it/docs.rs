//! `docs/reference/protocol.md` says what the code says.

use std::fmt::Write;
use std::path::Path;

use tierline_proto::Code;

const PAGE: &str = "../../docs/reference/protocol.md";

/// Name, value and reason of every constant in `limits.rs`.
fn limits_table() -> String {
    let mut table = String::from("| limit | value | what and why |\n| --- | --- | --- |\n");
    let mut reason = String::new();
    for line in include_str!("../../src/limits.rs").lines() {
        if let Some(text) = line.strip_prefix("/// ") {
            let _ = write!(reason, "{}{text}", if reason.is_empty() { "" } else { " " });
        } else if let Some((head, value)) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(" = ")) {
            let name = head.split(':').next().unwrap_or_default();
            let _ =
                writeln!(table, "| `{name}` | `{}` | {} |", value.trim_end_matches(';'), std::mem::take(&mut reason));
        }
    }
    table
}

#[test]
fn the_page_lists_every_limit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let (open, close) = ("<!-- limits -->\n", "<!-- /limits -->");
    let (before, rest) = page.split_once(open).unwrap();
    let (table, after) = rest.split_once(close).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{open}{}{close}{after}", limits_table())).unwrap();
    } else {
        assert_eq!(table, limits_table(), "UPDATE_DOCS=1 cargo test -p tierline-proto");
    }
}

#[test]
fn the_page_lists_every_code() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).unwrap();
    for code in (1..1_000).filter_map(|number| Code::try_from(number).ok()) {
        let name = code.as_str_name();
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(row.ends_with("| yes |"), code.retryable(), "{row}");
        let grpc = tierline_proto::Failure::new(code, "").into_status().code();
        let grpc = format!("{grpc:?}").to_uppercase();
        assert!(row.replace('_', "").contains(&format!("`{grpc}`")), "{row}: {grpc}");
    }
}
