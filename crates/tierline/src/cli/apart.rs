//! The process in which a node runs a model that could take it down; started
//! by the node only, never by people.

use crate::output::CommandResult;

#[derive(Debug, clap::Args)]
pub struct Apart {
    /// Bytes that the model and its runs may take
    memory: u64,
}

pub fn apart(args: &Apart) -> CommandResult {
    Ok(tierline_engine::serve(args.memory)?)
}
