//! Profiles that Cargo understands otherwise than one would think.

use crate::workspace::root;

/// A package with settings of its own doesn't get the profile's `strip`: the binary would hold ten megabytes of names.
#[test]
fn the_binary_is_stripped() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\nstrip = true\n"));
    assert!(!manifest.contains("[profile.release.package.tierline]"));
}
