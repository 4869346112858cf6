//! `tierline completions SHELL`.

use clap::CommandFactory;

use crate::output::Outcome;

#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell to complete for
    shell: clap_complete::Shell,
}

pub fn completions(args: &Completions) -> Outcome {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "tierline", &mut std::io::stdout());
    Ok(())
}
