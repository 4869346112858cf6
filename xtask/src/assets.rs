//! What tests and demonstrations need beside Rust: ONNX Runtime, real
//! models, real pictures, the ONNX project's operator tests. All of it comes
//! through pip, into a folder outside the clone.
//!
//! A stamp names the pins; while it matches and the files are there, nothing
//! is fetched. Every stage may be repeated, so a broken fetch is mended by
//! running the same command again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, Process};

/// Python packages, pinned: another version is another set of assets.
const PACKAGES: &[&str] = &[
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "grpcio==1.85.3",
    "grpcio-tools==1.81.1",
    "tritonclient[grpc,http]==2.73.0",
    "schemathesis==4.32.5",
    "prometheus-client==0.26.0",
    "opentelemetry-proto==1.45.2",
    "tuf==7.0.1",
    "securesystemslib[crypto]==1.6.0",
];

/// What drives a browser for the dashboard's test: fetched with npm, where there
/// is one. The browser itself is the system's.
const BROWSER_DRIVER: (&str, &str) = ("playwright-core", "1.65.1");

/// Packages that only carry files: fetched and unpacked, not installed.
const ARCHIVES: &[&str] = &["rapidocr-onnxruntime==1.4.4", "scikit-image==0.26.0"];

/// Takes the files out of the packages.
const UNPACK: &str = include_str!("unpack.py");

/// Attempts at a fetch: package registries have bad moments.
const ATTEMPTS: u32 = 3;

/// Wait before the second attempt; the third waits twice as long.
const RETRY_WAIT: Duration = Duration::from_secs(5);

/// The oldest Python that the pinned packages take.
const PYTHON: &str = "3.11";

/// Files whose absence means that somebody cleaned up behind the stamp.
const MUST_EXIST: &[&str] = &[
    "models/ppocr-det.onnx",
    "models/light-resnet50.onnx",
    "pictures/page.png",
    "onnx-node-tests/test_relu/model.onnx",
    "venv/bin/python",
];

/// The assets, ready to use.
pub struct Assets {
    /// `models/`, `pictures/`, `onnx-node-tests/`, `venv/`.
    pub folder: PathBuf,
    runtime: PathBuf,
}

impl Assets {
    /// A child process that finds them.
    pub fn environment(&self, process: Process) -> Process {
        process
            .env("TIERLINE_ASSETS", &self.folder)
            .env("ORT_DYLIB_PATH", &self.runtime)
            .env("TIERLINE_PYTHON", self.folder.join("venv/bin/python"))
            .env("TIERLINE_PAGE", self.folder.join("page"))
    }
}

/// Fetches what drives a browser; without it the dashboard's test skips aloud.
fn browser_driver(folder: &Path) {
    let (name, version) = BROWSER_DRIVER;
    let page = folder.join("page");
    let known = fs::read_to_string(page.join("node_modules").join(name).join("package.json"));
    if known.is_ok_and(|text| text.contains(&format!("\"version\": \"{version}\""))) {
        return;
    }
    let fetched = command::program("npm")
        .args(["install", "--no-save", "--no-audit", "--no-fund", "--silent", "--prefix"])
        .args([&page])
        .args([format!("{name}@{version}")]);
    if fs::create_dir_all(&page).is_err() || !fetched.succeeds() {
        eprintln!("{name} couldn't be fetched with npm; the dashboard's test does without a browser");
    }
}

/// Fetches what is missing.
pub fn ensure() -> Result<Assets> {
    let folder = cache()?.join("assets");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // Two commands at once must not unpack into each other.
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("cannot lock the assets folder")?;

    let stamp = folder.join("stamp");
    let wanted = [&PACKAGES.join("\n"), &ARCHIVES.join("\n"), UNPACK].join("\n");
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) || !complete(&folder) {
        fetch(&folder).with_context(|| {
            format!("the assets in {} are incomplete; run the command again to go on from here", folder.display())
        })?;
        fs::write(&stamp, wanted)?;
    }
    browser_driver(&folder);
    let runtime = runtime(&folder).context("the assets name no ONNX Runtime library")?;
    Ok(Assets { runtime, folder })
}

/// The folder outside the clone that holds assets and build output.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TIERLINE_CACHE") {
        return Ok(std::path::absolute(folder)?);
    }
    let home = std::env::var_os("HOME").context("HOME is not set; set TIERLINE_CACHE to a folder")?;
    Ok(Path::new(&home).join(".cache/tierline"))
}

fn complete(folder: &Path) -> bool {
    MUST_EXIST.iter().all(|f| folder.join(f).exists()) && runtime(folder).is_some()
}

fn runtime(folder: &Path) -> Option<PathBuf> {
    let path = PathBuf::from(fs::read_to_string(folder.join("onnxruntime.path")).ok()?.trim());
    path.exists().then_some(path)
}

fn fetch(folder: &Path) -> Result<()> {
    eprintln!("fetching models, pictures, operator tests and ONNX Runtime into {}", folder.display());
    let python = system_python()?;
    let venv = folder.join("venv");
    let own = venv.join("bin/python");
    if !command::program(&own).args(["-m", "pip", "--version"]).succeeds() {
        eprintln!("  a Python environment");
        create_environment(&python, &venv)?;
    }
    eprintln!("  Python packages: {}", PACKAGES.join(" "));
    pip(&own, "install", &[], PACKAGES)?;
    eprintln!("  models and pictures: {}", ARCHIVES.join(" "));
    let wheels = folder.join("wheels");
    // Wheels of other versions would make "the" wheel ambiguous.
    let _ = fs::remove_dir_all(&wheels);
    pip(&own, "download", &["--no-deps".as_ref(), "--dest".as_ref(), wheels.as_os_str()], ARCHIVES)?;
    eprintln!("  unpacking, and making the operator tests");
    command::program(&own).args(["-W", "ignore", "-c", UNPACK]).args([folder]).run()?;
    if !complete(folder) {
        bail!("the packages came, but one of {MUST_EXIST:?} is not in them");
    }
    Ok(())
}

/// A Python that is new enough.
pub fn system_python() -> Result<PathBuf> {
    let check = "import sys; assert sys.version_info >= tuple(map(int, sys.argv[1].split('.')))";
    [PYTHON, ""]
        .iter()
        .flat_map(|version| [format!("python{version}"), "python3".into(), "python".into()])
        .find(|name| command::program(name).args(["-c", check, PYTHON]).succeeds())
        .map(PathBuf::from)
        .with_context(|| format!("no Python {PYTHON} or later is on the PATH; install it, with pip, and try again"))
}

/// Makes a Python environment of its own.
pub fn create_environment(python: &Path, venv: &Path) -> Result<()> {
    let create = |more: &[&str]| command::program(python).args(["-m", "venv", "--clear"]).args(more).args([venv]);
    if create(&[]).succeeds() {
        return Ok(());
    }
    // Some distributions split venv's own pip into another package: use the system's.
    create(&["--without-pip"]).run().context("cannot create a Python environment; is the venv module installed?")?;
    retry("installing pip into the Python environment", || {
        let pip = command::program(python).args(["-m", "pip", "--python"]).args([venv]);
        pip.args(["install", "--quiet", "--disable-pip-version-check", "pip"]).run()
    })
}

/// Has pip fetch packages, as they are built.
pub fn pip(python: &Path, verb: &str, options: &[&OsStr], packages: &[&str]) -> Result<()> {
    retry(&format!("pip {verb}"), || {
        let pip = command::program(python).args(["-m", "pip", verb, "--quiet", "--disable-pip-version-check"]);
        // Never builds a package from source: that would need a C compiler and an hour.
        pip.args(["--only-binary", ":all:"]).args(options).args(packages).run()
    })
}

fn retry(what: &str, attempt: impl Fn() -> Result<()>) -> Result<()> {
    for number in 1.. {
        match attempt() {
            Ok(()) => break,
            Err(error) if number == ATTEMPTS => return Err(error.context(format!("{what} failed {ATTEMPTS} times"))),
            Err(error) => eprintln!("{what}: {error:#}; trying again"),
        }
        std::thread::sleep(RETRY_WAIT * number);
    }
    Ok(())
}
