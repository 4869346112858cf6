//! Child processes: run them, and say which one failed.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a log that an error shows.
const LOG_LINES: usize = 60;

/// A child process to be run.
pub struct Process(Command);

/// Cargo, the one that runs us.
pub fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Process {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(args)
}

/// Any program.
pub fn program(path: impl AsRef<OsStr>) -> Process {
    Process(Command::new(path))
}

impl Process {
    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs it to its end; its output is ours.
    pub fn run(mut self) -> Result<()> {
        let status = self.0.status().with_context(|| self.cannot_start())?;
        if status.success() {
            return Ok(());
        }
        bail!("`{}` failed: {status}", self.line())
    }

    /// Runs it to its end with its output in a file, whose end is in the error.
    pub fn logged(mut self, log: &Path) -> Result<()> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let other = file.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        let status = self.0.stdout(file).stderr(other).status().with_context(|| self.cannot_start())?;
        if status.success() {
            return Ok(());
        }
        let said = std::fs::read(log).unwrap_or_default();
        let lines: Vec<_> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        bail!("{last}\n`{}` failed: {status}; {} has all that it said", self.line(), log.display())
    }

    /// Runs it to its end and returns what it wrote to stdout.
    pub fn output(mut self) -> Result<String> {
        let output = self.0.stderr(Stdio::inherit()).output().with_context(|| self.cannot_start())?;
        if !output.status.success() {
            bail!("`{}` failed: {}", self.line(), output.status);
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote something that isn't text", self.line()))
    }

    /// Whether it runs and succeeds; its output is dropped.
    pub fn succeeds(mut self) -> bool {
        self.0.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    }

    fn cannot_start(&self) -> String {
        format!("cannot start `{}`; is it installed?", self.0.get_program().to_string_lossy())
    }

    fn line(&self) -> String {
        // A script given inline would fill the screen.
        let short = |a: &OsStr| a.to_string_lossy().lines().next().unwrap_or_default().to_owned();
        [self.0.get_program()].into_iter().chain(self.0.get_args()).map(short).collect::<Vec<_>>().join(" ")
    }
}

/// The repository's root: of the run where cargo tells it, since builds of
/// other clones may share this binary.
pub fn root() -> PathBuf {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&folder).parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Where cargo puts what it builds.
pub fn target_folder() -> Result<PathBuf> {
    let metadata = metadata(&root().join("Cargo.toml"))?;
    let folder = metadata["target_directory"].as_str().context("cargo metadata names no target folder")?;
    Ok(folder.into())
}

/// Names of the programs of a workspace.
pub fn binaries(manifest: &Path) -> Result<Vec<String>> {
    let metadata = metadata(manifest)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let targets = packages.iter().filter_map(|p| p["targets"].as_array()).flatten();
    let programs = targets.filter(|t| t["kind"][0] == "bin").filter_map(|t| t["name"].as_str());
    Ok(programs.map(str::to_owned).collect())
}

fn metadata(manifest: &Path) -> Result<serde_json::Value> {
    let said =
        cargo(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).args([manifest]).output()?;
    serde_json::from_str(&said).context("cargo metadata")
}

/// The machine's own target triple.
pub fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = program(rustc).args(["-vV"]).output()?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}
