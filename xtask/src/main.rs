//! The project's own commands. `cargo xtask` lists them.

mod assets;
mod command;
mod fuzz;
mod judges;
mod summary;

use std::process::ExitCode;

use anyhow::{Result, bail};

use assets::Assets;
use summary::Summary;

const HELP: &str = "\
cargo xtask demo [..]   fetch what is missing, build, and run the demonstration (--again: though nothing changed)
cargo xtask test [..]   install what the tests need and run them all; words filter by name
cargo xtask check       everything a change must pass: format, lints, docs, tests
cargo xtask bench [..]  run the benchmarks and write docs/reference/benchmarks.md
cargo xtask dist [..]   pack what users install: an archive, a Debian package, a container image
cargo xtask judges      serving before KServe's client and perf_analyzer, which the tests do without
cargo xtask fuzz [..]   fuzz every parser for a minute, or: --seconds N, --keep, TARGET, TARGET FILE
cargo xtask generate    write the Rust of messages from the .proto files
cargo xtask assets      only fetch models, pictures, operator tests and ONNX Runtime

What is fetched, and .ci/run's build output, lives in TIERLINE_CACHE (default ~/.cache/tierline).";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("demo") => program("tierline-demo", &assets::ensure()?, rest),
        Some("bench") => program("tierline-bench", &assets::ensure()?, rest),
        Some("dist") => dist(rest),
        Some("test") => {
            let mut summary = Summary::default();
            test(&mut summary, rest);
            summary.finish()
        }
        Some("check") => check(),
        Some("judges") => judges::run(),
        Some("fuzz") => fuzz::run(rest),
        Some("generate") => generate(&[]),
        Some("assets") => {
            println!("{}", assets::ensure()?.folder.display());
            Ok(())
        }
        None | Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("no command `{other}`\n\n{HELP}"),
    }
}

/// Everything that the README's second command promises.
fn test(summary: &mut Summary, filters: &[String]) {
    let mut assets = None;
    summary.part("assets", || assets::ensure().map(|a| assets = Some(a)));
    let Some(assets) = assets else { return };
    let cargo = |args: &[&str]| assets.environment(command::cargo(args));
    let nextest = command::cargo(["nextest", "--version"]).succeeds();

    let built = summary.part("build, examples included", || cargo(&["build", "--workspace", "--all-targets"]).run());
    if !built {
        return;
    }
    summary.part("tests", || {
        let run = if nextest {
            cargo(&["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"])
        } else {
            cargo(&["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast", "--"])
        };
        run.args(filters).run()
    });
    if filters.is_empty() {
        summary.part("examples in the documentation", || cargo(&["test", "--workspace", "--doc"]).run());
        summary.part("every fuzz target for some seconds", fuzz::briefly);
    }
}

/// The one door for changes.
fn check() -> Result<()> {
    let mut summary = Summary::default();
    summary.part("format", || command::cargo(["fmt", "--all", "--check"]).run());
    summary.part("lints", || command::cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run());
    summary.part("documentation", || {
        command::cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings").run()
    });
    summary.part("generated code", || generate(&["--check"]));
    // A workspace of its own: nothing else sees whether they compile.
    summary.part("fuzz targets", || command::cargo(["check", "--manifest-path", "fuzz/Cargo.toml"]).run());
    // Dependency edges, licences and pages are tests of xtask itself.
    test(&mut summary, &[]);
    summary.finish()
}

/// The Rust of messages, by a workspace of its own.
fn generate(args: &[&str]) -> Result<()> {
    let manifest = command::root().join("codegen/Cargo.toml");
    let target = command::target_folder()?.join("codegen");
    command::cargo(["run", "--quiet", "--locked", "--manifest-path"])
        .args([manifest])
        .args(["--"])
        .args(args)
        .env("CARGO_TARGET_DIR", target)
        .run()
}

/// Builds the users' binary and a program of ours, and runs the program.
fn program(package: &str, assets: &Assets, rest: &[String]) -> Result<()> {
    let process = built(package)?;
    assets.environment(process).args(rest).run()
}

/// Packs the users' binary.
fn dist(rest: &[String]) -> Result<()> {
    let process = built("tierline-dist")?;
    // The same commit gives the same files.
    let time = std::env::var("SOURCE_DATE_EPOCH").ok().or_else(|| {
        command::program("git").args(["-C"]).args([command::root()]).args(["log", "-1", "--format=%ct"]).output().ok()
    });
    process.env("SOURCE_DATE_EPOCH", time.unwrap_or_default().trim()).args(rest).run()
}

/// A program of ours, built beside the users' binary: both in the profile that
/// users get, so that nothing is built twice.
fn built(package: &str) -> Result<command::Process> {
    command::cargo(["build", "--release", "--package", "tierline", "--package", package]).run()?;
    let folder = command::target_folder()?.join("release");
    Ok(command::program(folder.join(package))
        .env("TIERLINE_BINARY", folder.join("tierline"))
        .env("TIERLINE_REPOSITORY", command::root()))
}
