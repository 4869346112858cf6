//! Models and operator tests that `cargo xtask test` fetches.

use std::path::PathBuf;

use tierline_graph::Model;

/// Where an asset lies; `None`, said aloud, when assets weren't asked for.
///
/// # Panics
/// When they were and this one is missing.
pub fn asset(path: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("TIERLINE_ASSETS") else {
        eprintln!("skipped: TIERLINE_ASSETS is unset; run cargo xtask test");
        return None;
    };
    let path = PathBuf::from(root).join(path);
    assert!(path.exists(), "{} is missing; run cargo xtask test", path.display());
    Some(path)
}

/// A real model by its file name without the extension.
pub fn model(name: &str) -> Option<Model> {
    let path = asset(&format!("models/{name}.onnx"))?;
    Some(Model::load(&path).unwrap_or_else(|e| panic!("{name}: {e}")))
}
