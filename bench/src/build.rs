//! What it costs to build the binary from nothing, beside what it cost before
//! its dependencies and profile were looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// A build of the release binary.
#[derive(Debug, Clone, Serialize)]
pub struct Build {
    /// When, or of what.
    pub name: &'static str,
    /// Processor time of all compilers, seconds.
    pub cpu_s: f64,
    /// From start to end, seconds; others may have used the machine.
    pub wall_s: f64,
    /// Packages that are compiled, build scripts' included.
    pub crates: usize,
    /// Packages of the whole workspace, tests included.
    pub crates_with_tests: usize,
    /// Bytes of the stripped binary.
    pub bytes: u64,
}

/// On two cores that others used as well: thin link-time optimisation in one
/// unit, generated code made anew by every build.
const BEFORE: Build = Build {
    name: "2026-11-29, before",
    cpu_s: 1_061.0,
    wall_s: 937.0,
    crates: 335,
    crates_with_tests: 347,
    bytes: 35_522_808,
};

/// Both.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    builds: Vec<Build>,
}

/// Builds once more, in a folder of its own.
///
/// # Errors
/// When it can't be built.
pub fn run() -> Result<Report> {
    let repository = std::env::var_os("TIERLINE_REPOSITORY").map(PathBuf::from);
    let repository = repository.context("TIERLINE_REPOSITORY is not set; run `cargo xtask bench`")?;
    let folder = tempfile::tempdir()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let crates = |args: &[&str]| -> Result<usize> {
        let output = Command::new(&cargo)
            .args(["tree", "--locked", "--prefix", "none", "--no-dedupe", "--format", "{p}"])
            .args(args)
            .current_dir(&repository)
            .output()?;
        ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let names = text.lines().filter_map(|line| line.split(" (").next());
        Ok(names.filter(|name| !name.is_empty()).collect::<BTreeSet<_>>().len())
    };
    let (begun, before) = (Instant::now(), children_s()?);
    let status = Command::new(&cargo)
        .args(["build", "--locked", "--release", "--package", "tierline", "--quiet", "--target-dir"])
        .arg(folder.path())
        .current_dir(&repository)
        .status()?;
    ensure!(status.success(), "the binary doesn't build");
    let now = Build {
        name: "now",
        cpu_s: children_s()? - before,
        wall_s: begun.elapsed().as_secs_f64(),
        crates: crates(&["--package", "tierline", "--edges", "normal,build"])?,
        crates_with_tests: crates(&["--workspace", "--edges", "normal,build,dev"])?,
        bytes: std::fs::metadata(folder.path().join("release/tierline"))?.len(),
    };
    Ok(Report { builds: vec![BEFORE, now] })
}

/// Processor time of children that have ended, and of theirs: `cutime` and
/// `cstime` of `proc(5)`, in hundredths of a second.
fn children_s() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name may hold anything, a parenthesis included.
    let (_, numbers) = stat.rsplit_once(')').context("the system tells no times")?;
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    let ticks = |at: usize| numbers.get(at).and_then(|n| n.parse::<f64>().ok()).context("the system tells no times");
    Ok((ticks(13)? + ticks(14)?) / 100.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "`cargo build --release --package tierline` into an empty folder, everything downloaded. Processor time is \
             what\ncounts where others use the machine as well.\n"
        )?;
        writeln!(f, "| | processor time | wall time | crates | with tests and tools | binary | goal |")?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for (at, build) in self.builds.iter().enumerate() {
            let goal = if at == 0 { "" } else { "half the time, 25 MB" };
            writeln!(
                f,
                "| {} | {:.0} s | {:.0} s | {} | {} | {:.1} MB | {goal} |",
                build.name,
                build.cpu_s,
                build.wall_s,
                build.crates,
                build.crates_with_tests,
                build.bytes as f64 / 1e6
            )?;
        }
        Ok(())
    }
}
