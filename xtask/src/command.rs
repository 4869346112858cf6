//! Child processes: run them, and say which one failed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A child process to be run.
pub struct Task(Command);

/// Cargo, the one that runs us.
pub fn cargo(args: &[&str]) -> Task {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    Task(command)
}

/// Any program.
pub fn program(path: impl AsRef<OsStr>) -> Task {
    Task(Command::new(path))
}

impl Task {
    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: &[impl AsRef<OsStr>]) -> Self {
        self.0.args(args);
        self
    }

    /// Adds arguments and runs it.
    pub fn args_then(self, args: &[String]) -> Result<()> {
        self.args(args).run()
    }

    /// Runs it to its end; its output is ours.
    pub fn run(mut self) -> Result<()> {
        let status = self.0.status().with_context(|| format!("cannot start {:?}", self.0.get_program()))?;
        if status.success() {
            return Ok(());
        }
        bail!("{:?} {:?} failed: {status}", self.0.get_program(), self.0.get_args().collect::<Vec<_>>())
    }
}

/// Whether a program runs and succeeds.
pub fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Where cargo puts what it builds.
pub fn target_folder() -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    metadata["target_directory"]
        .as_str()
        .map(|t| Path::new(t).to_owned())
        .context("cargo metadata names no target folder")
}
