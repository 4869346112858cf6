//! What `cargo metadata` and the file system know about the workspace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// Every package that a build for this machine uses, ours included.
pub static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let host = output("rustc", &["-vV"]);
    let host = host.lines().find_map(|l| l.strip_prefix("host: ")).expect("rustc names its host");
    let json = output(env!("CARGO"), &["metadata", "--locked", "--format-version", "1", "--filter-platform", host]);
    serde_json::from_str(&json).expect("cargo metadata writes JSON")
});

/// Our own packages.
pub fn members() -> Vec<&'static Value> {
    let ours: Vec<&Value> = list(&METADATA["workspace_members"]).collect();
    list(&METADATA["packages"]).filter(|p| ours.contains(&&p["id"])).collect()
}

/// The elements of a JSON array.
pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A JSON string.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The repository's root: of the run, since builds of other clones may share this binary.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package lies");
        Path::new(&folder).parent().expect("xtask lies in the repository").to_owned()
    });
    &ROOT
}

/// The repository's files, relative to the root; not what is built or found.
pub fn files() -> Vec<PathBuf> {
    const NOT_OURS: &[&str] = &[".git", "target", "corpus", "artifacts", "shared", "demo-output"];
    let (mut files, mut folders) = (Vec::new(), vec![root().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folders can be listed").flatten() {
            let path = entry.path();
            if NOT_OURS.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(root()).expect("it lies below the root").to_owned());
            }
        }
    }
    files.sort();
    files
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(root()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("programs write UTF-8")
}
