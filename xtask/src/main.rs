//! The project's own commands. `cargo xtask` lists them.

mod assets;
mod command;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask demo    fetch what is missing, build, and run the demonstration
cargo xtask test    install what the tests need and run them all
cargo xtask check   everything a change must pass: format, lints, tests, docs
cargo xtask bench   run the benchmarks and write docs/reference/benchmarks.md
cargo xtask assets  fetch models, pictures and ONNX Runtime only";

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
        Some("demo") => program("tierline-demo", rest),
        Some("bench") => program("tierline-bench", rest),
        Some("test") => test(rest),
        Some("check") => check(rest),
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

/// Runs every test with the assets in place.
fn test(rest: &[String]) -> Result<()> {
    let assets = assets::ensure()?;
    let run = |args: &[&str]| assets.environment(command::cargo(args)).args_then(rest);
    if command::succeeds("cargo", &["nextest", "--version"]) {
        run(&["nextest", "run", "--workspace", "--no-fail-fast"])?;
    } else {
        run(&["test", "--workspace", "--no-fail-fast"])?;
    }
    assets.environment(command::cargo(&["build", "--workspace", "--examples"])).run()
}

fn check(rest: &[String]) -> Result<()> {
    command::cargo(&["fmt", "--all", "--check"]).run()?;
    command::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()?;
    command::cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings").run()?;
    test(rest)
}

/// Builds the users' binary and a program of ours, and runs the program.
fn program(package: &str, rest: &[String]) -> Result<()> {
    let assets = assets::ensure()?;
    command::cargo(&["build", "--profile", "fast", "--package", "tierline", "--package", package]).run()?;
    let folder = command::target_folder()?.join("fast");
    assets
        .environment(command::program(&folder.join(package)))
        .env("TIERLINE_BINARY", folder.join("tierline"))
        .args_then(rest)
}
