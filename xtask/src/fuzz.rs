//! Fuzzing on the toolchain at hand: libFuzzer, with the coverage that stable
//! compilers can give.
//!
//! Each target starts from the corpus that is kept beside it
//! (`fuzz/corpus/TARGET`), and from what earlier runs found, which is in the
//! cache. Targets that read models start from those that the engine's tests
//! keep as well.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::assets;
use crate::command::{self, Process};

/// Each target's time.
const SECONDS: u64 = 60;

/// Each target's time as a part of all tests.
const SECONDS_IN_TESTS: u64 = 4;

/// Inputs that are kept are no longer than this.
const KEPT_BYTES_MAX: u64 = 4_096;

/// Models that the engine's tests keep, and who reads them.
const MODELS: &str = "crates/engine/tests/it/steps/models";
const READERS_OF_MODELS: [&str; 2] = ["onnx", "step"];

/// An input that takes longer is as bad as one that panics: nodes have other
/// things to do.
const INPUT_SECONDS_MAX: u64 = 10;

/// Inputs may not make more of themselves than this.
const MEMORY_MB_MAX: u64 = 2_048;

/// Coverage as libFuzzer reads it, from passes that every compiler has;
/// only the address sanitiser is missing, which finds little in safe code.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// `cargo xtask fuzz [--seconds N | --keep] [TARGET [FILE]]`.
///
/// # Errors
/// When targets don't build, or one fails.
pub fn run(args: &[String]) -> Result<()> {
    let (mut seconds, mut keep, mut words) = (SECONDS, false, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let number = args.next().context("--seconds takes a number")?;
            seconds = number.parse().with_context(|| format!("`{number}` is not a number of seconds"))?;
        } else if arg == "--keep" {
            keep = true;
        } else {
            words.push(arg.as_str());
        }
    }
    let fuzzer = Fuzzer::build()?;
    match words[..] {
        [] if keep => fuzzer.all(|target| fuzzer.keep(target)),
        [target] if keep => fuzzer.keep(fuzzer.known(target)?),
        [] => fuzzer.all(|target| fuzzer.run(target, seconds, &fuzzer.cache.join(target))),
        [target] => fuzzer.run(fuzzer.known(target)?, seconds, &fuzzer.cache.join(target)),
        [target, file] => fuzzer.process(fuzzer.known(target)?).args([file]).run(),
        _ => bail!("at most one target and one file; targets are {}", fuzzer.targets.join(", ")),
    }
}

/// Every target for some seconds, from the corpus that is kept: a part of all
/// tests. What it finds is gone afterwards, unless it fails.
///
/// # Errors
/// When targets don't build, or one fails.
pub fn briefly() -> Result<()> {
    let fuzzer = Fuzzer::build()?;
    let scratch = command::target_folder()?.join("fuzz/found");
    fuzzer.all(|target| {
        let found = scratch.join(target);
        if found.is_dir() {
            fs::remove_dir_all(&found).with_context(|| format!("cannot remove {}", found.display()))?;
        }
        fuzzer.run(target, SECONDS_IN_TESTS, &found)
    })
}

/// The built targets.
struct Fuzzer {
    targets: Vec<String>,
    binaries: PathBuf,
    kept: PathBuf,
    cache: PathBuf,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        let folder = command::root().join("fuzz");
        let manifest = folder.join("Cargo.toml");
        let host = command::host()?;
        compiler()?;
        // A folder of its own: other flags would build everything anew each time.
        let built = command::target_folder()?.join("fuzz");
        command::cargo(["build", "--release", "--bins", "--target", &host, "--manifest-path"])
            .args([&manifest])
            .env("CARGO_TARGET_DIR", &built)
            .env("RUSTFLAGS", FLAGS)
            .run()
            .context("the fuzz targets don't build")?;
        Ok(Self {
            targets: command::binaries(&manifest)?,
            binaries: built.join(host).join("release"),
            kept: folder.join("corpus"),
            cache: assets::cache()?.join("fuzz"),
        })
    }

    fn known(&self, target: &str) -> Result<&str> {
        let found = self.targets.iter().find(|t| *t == target);
        found
            .map(String::as_str)
            .with_context(|| format!("no target `{target}`; there are {}", self.targets.join(", ")))
    }

    /// Every target has its turn, whatever the others find.
    fn all(&self, run: impl Fn(&str) -> Result<()>) -> Result<()> {
        let failed: Vec<String> =
            self.targets.iter().filter_map(|target| run(target).err()).map(|e| format!("{e:#}")).collect();
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
    }

    fn process(&self, target: &str) -> Process {
        command::program(self.binaries.join(target))
    }

    /// One target; what it finds goes to `found`.
    fn run(&self, target: &str, seconds: u64, found: &Path) -> Result<()> {
        let models = READERS_OF_MODELS.contains(&target).then(|| command::root().join(MODELS));
        let kept = [self.kept.join(target)].into_iter().chain(models).filter(|kept| kept.is_dir());
        let artifacts = self.cache.join("artifacts").join(target);
        for folder in [found, &artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        eprintln!("{target}");
        let limits = [
            format!("-max_total_time={seconds}"),
            format!("-timeout={INPUT_SECONDS_MAX}"),
            format!("-rss_limit_mb={MEMORY_MB_MAX}"),
            // A slash at the end makes it a folder.
            format!("-artifact_prefix={}/", artifacts.display()),
        ];
        self.process(target).args([found]).args(kept).args(limits).logged(&artifacts.join("log")).with_context(|| {
            format!(
                "the fuzz target {target} failed; the input is in {}: cargo xtask fuzz {target} FILE runs it again",
                artifacts.display()
            )
        })
    }

    /// Adds to the corpus what reaches more code than it does, out of what
    /// earlier runs found.
    fn keep(&self, target: &str) -> Result<()> {
        let (kept, found) = (self.kept.join(target), self.cache.join(target));
        for folder in [&kept, &found] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let limits = ["-set_cover_merge=1".to_owned(), format!("-max_len={KEPT_BYTES_MAX}")];
        self.process(target).args([kept, found]).args(limits).logged(&self.cache.join(target).with_extension("log"))
    }
}

/// libFuzzer is C++.
fn compiler() -> Result<()> {
    let is_there = || command::program("c++").args(["--version"]).succeeds();
    if !is_there() {
        // Where there is no such tool, or no right to, the next line says what is missing.
        let _ = command::program("apt-get").args(["install", "--yes", "--no-install-recommends", "g++"]).run();
    }
    if is_there() { Ok(()) } else { bail!("the fuzz targets need a C++ compiler (`c++`), such as the package g++ has") }
}
