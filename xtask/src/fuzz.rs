//! Fuzzing on the toolchain at hand: libFuzzer, with the coverage that stable
//! compilers can give.
//!
//! Each target starts from the corpus that is kept beside it, where there is
//! one (`fuzz/corpus/TARGET`), and from what earlier runs found, which is in
//! the cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::assets;
use crate::command::{self, Task};

/// Each target's time.
const SECONDS: u64 = 60;

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

/// `cargo xtask fuzz [--seconds N] [TARGET [FILE]]`.
///
/// # Errors
/// When targets don't build, or one fails.
pub fn run(args: &[String]) -> Result<()> {
    let (mut seconds, mut words) = (SECONDS, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let number = args.next().context("--seconds takes a number")?;
            seconds = number.parse().with_context(|| format!("`{number}` is not a number of seconds"))?;
        } else {
            words.push(arg.as_str());
        }
    }
    let fuzzer = Fuzzer::build()?;
    match words[..] {
        [] => fuzzer.all(|target| fuzzer.run(target, seconds, &fuzzer.cache.join(target))),
        [target] => fuzzer.run(fuzzer.known(target)?, seconds, &fuzzer.cache.join(target)),
        [target, file] => fuzzer.task(fuzzer.known(target)?).args([file]).run(),
        _ => bail!("at most one target and one file; targets are {}", fuzzer.targets.join(", ")),
    }
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
        // A folder of its own: other flags would build everything anew each time.
        let built = command::target_folder()?.join("fuzz");
        command::cargo(["build", "--release", "--bins", "--target", &host, "--manifest-path"])
            .args([&manifest])
            .env("CARGO_TARGET_DIR", &built)
            .env("RUSTFLAGS", FLAGS)
            .run()
            .context("fuzz targets need a C++ compiler beside Rust, such as the package g++ has")?;
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

    fn task(&self, target: &str) -> Task {
        command::program(self.binaries.join(target))
    }

    /// One target; what it finds goes to `found`.
    fn run(&self, target: &str, seconds: u64, found: &Path) -> Result<()> {
        let kept = self.kept.join(target);
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
            "-verbosity=0".to_owned(),
            "-print_final_stats=0".to_owned(),
        ];
        let kept = Some(kept.as_path()).filter(|kept| kept.is_dir());
        self.task(target).args([found].into_iter().chain(kept)).args(limits).run().with_context(|| {
            format!(
                "the fuzz target {target} failed; the input is in {}: cargo xtask fuzz {target} FILE runs it again",
                artifacts.display()
            )
        })
    }
}
