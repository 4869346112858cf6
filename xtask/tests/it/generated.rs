//! The Rust of messages is kept in the repository: it says what it was made of.

use crate::workspace::root;

const MADE: [(&str, &str); 3] = [
    ("crates/graph/proto/onnx.proto", "crates/graph/src/onnx.rs"),
    ("crates/proto/proto/tierline.proto", "crates/proto/src/v1.rs"),
    ("crates/proto/proto/open_inference.proto", "crates/proto/src/oip/messages.rs"),
];

#[test]
fn messages_are_those_of_their_files() {
    for (proto, rust) in MADE {
        let read = |path: &str| std::fs::read(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let rust_text = String::from_utf8(read(rust)).expect("generated code is text");
        let first = rust_text.lines().next().unwrap_or_default();
        let made_of = format!("from {proto} {:016x}.", fnv(&read(proto)));
        assert!(first.ends_with(&made_of), "{proto} has changed since {rust} was written: run `cargo xtask generate`");
    }
}

/// As `codegen` names a version of a file.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
