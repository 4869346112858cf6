//! The Python package, against the binary under test.

use std::path::Path;
use std::process::Command;

use tierline_zoo::Options;

/// Tensors as NumPy has them, values as ONNX Runtime computes them, refusals.
#[test]
fn the_python_package_serves_asks_and_is_refused() {
    let Some(python) = std::env::var_os("TIERLINE_PYTHON") else {
        eprintln!("skipped: TIERLINE_PYTHON is not set; run cargo xtask test");
        return;
    };
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().and_then(Path::parent).expect("a repository");
    let folder = tempfile::tempdir().expect("a folder");
    let model = tierline_zoo::mlp(&Options::default());
    let file = folder.path().join("net.onnx");
    model.save(&file).expect("it is saved");
    let input = &model.inputs()[0];
    let size = input.shape.as_ref().and_then(|axes| axes.last()?.known()).expect("a size");
    let ran = Command::new(python)
        .arg(repository.join("python/tests/test_package.py"))
        .args([file.as_os_str(), input.name.as_ref(), size.to_string().as_ref()])
        .env("PYTHONPATH", repository.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TIERLINE_BINARY", env!("CARGO_BIN_EXE_tierline"))
        .env("TIERLINE_ENGINE", "rten")
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("Ran "), "{said}");
}
