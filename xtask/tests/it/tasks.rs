//! Nothing in the daemon starts a task without a name, or a queue without a
//! limit.

use crate::workspace::{files, root};

/// What such begin with.
const BARE: [&str; 6] =
    ["tokio::spawn", "spawn_blocking(", "spawn_local(", "JoinSet", "unbounded_channel", "UnboundedSender"];

/// Where tasks are started for everybody.
const TASKS: &str = "crates/daemon/src/runtime/tasks.rs";

#[test]
fn tasks_have_names_and_queues_have_limits() {
    let parts = ["daemon", "identity", "store"].map(|part| format!("crates/{part}/src"));
    let mut found = Vec::new();
    for file in files() {
        if file.ends_with(TASKS) || !parts.iter().any(|part| file.starts_with(part)) {
            continue;
        }
        let text = std::fs::read_to_string(root().join(&file)).expect("a file of the repository is read");
        // A file ends with its tests, which may start what they like.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let bare = |line: &str| BARE.iter().any(|bare| line.contains(bare)) && !line.trim_start().starts_with("//");
        let lines = (1..).zip(code.lines()).filter(|(_, line)| bare(line));
        found.extend(lines.map(|(number, line)| format!("{}:{number}: {}", file.display(), line.trim())));
    }
    assert!(found.is_empty(), "use the node's `Tasks`, and channels with a limit:\n{}", found.join("\n"));
}
