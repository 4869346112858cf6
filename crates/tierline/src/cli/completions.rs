//! `tierline completions SHELL`, `tierline manual FOLDER`: what the command
//! line says of itself.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::output::{CommandResult, ExitCode, ExitWith};

#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell to complete for
    shell: clap_complete::Shell,
}

pub fn completions(args: &Completions) -> CommandResult {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "tierline", &mut std::io::stdout());
    Ok(())
}

#[derive(Debug, clap::Args)]
pub struct Manual {
    /// Where to write a page for each command, as in /usr/local/share/man/man1
    folder: PathBuf,
}

pub fn manual(args: &Manual) -> CommandResult {
    std::fs::create_dir_all(&args.folder).exit_with(ExitCode::Failure)?;
    clap_mangen::generate_to(super::Cli::command(), &args.folder).exit_with(ExitCode::Failure)
}
