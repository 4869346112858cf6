//! Judges of serving that are too large, or too hard to start, for every run of
//! the tests: KServe's client and perf_analyzer. Fetched through pip into a
//! folder outside the clone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::assets;
use crate::command;

/// KServe's client, with what it needs.
const KSERVE: &[&str] = &["kserve==0.21.0", "numpy==2.4.6"];

/// Triton's load generator: a program in a wheel, for one kind of machine.
const PERF_ANALYZER: &str = "perf-analyzer==2.60.0";

/// The wheel says which C library it wants.
const PLATFORM: &str = "manylinux_2_38_x86_64";

/// Names a folder with that library, where the system's is older.
const LIBRARIES: &str = "TIERLINE_GLIBC";

/// Runs the tests that they judge in.
pub fn run() -> Result<()> {
    let tests = assets::ensure()?;
    let folder = assets::cache()?.join("judges");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let kserve = kserve(&folder)?;
    let analyzer = perf_analyzer(&folder)?;
    let cargo = command::cargo(["test", "--workspace", "--test", "it", "--", "judges::", "--nocapture"]);
    let judged = tests.environment(cargo).env("TIERLINE_KSERVE_PYTHON", kserve);
    judged.env("TIERLINE_PERF_ANALYZER", analyzer).run()
}

fn kserve(folder: &Path) -> Result<PathBuf> {
    let venv = folder.join("kserve");
    let python = venv.join("bin/python");
    if !command::program(&python).args(["-c", "import kserve"]).succeeds() {
        eprintln!("fetching KServe's client");
        assets::create_environment(&assets::system_python()?, &venv)?;
        assets::pip(&python, "install", &[], KSERVE)?;
    }
    Ok(python)
}

/// The program, or a script that starts it with another C library.
fn perf_analyzer(folder: &Path) -> Result<PathBuf> {
    let at = folder.join("perf_analyzer");
    let program = at.join("perf_analyzer/bin/perf_analyzer");
    if !program.exists() {
        eprintln!("fetching perf_analyzer");
        fs::create_dir_all(&at)?;
        let python = assets::system_python()?;
        let for_it = ["--no-deps", "--platform", PLATFORM, "--python-version", "3.12", "--dest"].map(AsRef::as_ref);
        let options: Vec<_> = for_it.into_iter().chain([at.as_os_str()]).collect();
        assets::pip(&python, "download", &options, &[PERF_ANALYZER])?;
        let wheels = fs::read_dir(&at)?.filter_map(|entry| Some(entry.ok()?.path()));
        let wheel = wheels.into_iter().find(|path| path.extension().is_some_and(|e| e == "whl"));
        let wheel = wheel.context("pip fetched no wheel")?;
        command::program(&python).args(["-m", "zipfile", "-e"]).args([&wheel, &at]).run()?;
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    }
    if command::program(&program).args(["--version"]).succeeds() {
        return Ok(program);
    }
    let Some(libraries) = std::env::var_os(LIBRARIES).map(PathBuf::from) else {
        bail!(
            "perf_analyzer wants glibc 2.38 or later; set {LIBRARIES} to a folder with its ld-linux-x86-64.so.2 and \
             libraries (libc6, libstdc++6, libgcc-s1, zlib1g, libssl3t64 and libzstd1 of Debian 13, unpacked)"
        );
    };
    let script = format!(
        "#!/bin/sh\nexec '{0}/ld-linux-x86-64.so.2' --library-path '{0}' '{1}' \"$@\"\n",
        libraries.display(),
        program.display()
    );
    let starter = folder.join("perf_analyzer.sh");
    fs::write(&starter, script)?;
    fs::set_permissions(&starter, PermissionsExt::from_mode(0o755))?;
    Ok(starter)
}
