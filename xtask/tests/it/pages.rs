//! Pages point at what exists, and the repository stays small.

use std::path::Path;

use crate::workspace::{files, root};

/// Larger files are assets: they are fetched, not committed.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// A link target that is not in this repository.
const ELSEWHERE: &[&str] = &["http://", "https://", "mailto:", "#"];

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in files().iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        let Ok(text) = std::fs::read_to_string(root().join(page)) else { continue };
        let folder = page.parent().unwrap_or(Path::new(""));
        for target in targets(&text) {
            let path = target.split('#').next().unwrap_or_default();
            if !ELSEWHERE.iter().any(|e| target.starts_with(e)) && !root().join(folder).join(path).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn files_are_small() {
    let size = |file: &Path| std::fs::metadata(root().join(file)).map_or(0, |m| m.len());
    let large: Vec<_> = files().into_iter().filter(|f| size(f) > FILE_BYTES_MAX).collect();
    assert_eq!(large, Vec::<std::path::PathBuf>::new(), "fetch these in xtask instead");
}

/// Targets of `[text](target)`, outside code blocks.
fn targets(page: &str) -> Vec<&str> {
    let mut in_code = false;
    page.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            in_code ^= fence;
            !in_code && !fence
        })
        .flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next()))
        .collect()
}
