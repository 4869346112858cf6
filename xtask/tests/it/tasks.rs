//! Nothing in the daemon starts tasks or makes channels behind its back.

use std::path::{Path, PathBuf};

/// What a task without a name, or a queue without a limit, begins with.
const BARE: [&str; 6] =
    ["tokio::spawn", "spawn_blocking(", "spawn_local(", "JoinSet", "unbounded_channel", "UnboundedSender"];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn tasks_have_names_and_channels_have_limits() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/tierline/src");
    let mut found = Vec::new();
    for folder in ["daemon", "store", "identity"] {
        for file in files(&source.join(folder)) {
            // Where they are started for everybody.
            if file.ends_with("daemon/tasks.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            // Tests end with what they test.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in (1..).zip(code.lines()) {
                if BARE.iter().any(|bare| line.contains(bare)) && !line.trim_start().starts_with("//") {
                    found.push(format!("{}:{number}: {}", file.display(), line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "use the node's `Tasks`, and channels with a limit:\n{}", found.join("\n"));
}
