//! The parts behind the `tierline` binary: command line, daemon, identity,
//! storage and links. Start at [`cli::run`]; a node's life is in `daemon`.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod datasets;
pub mod documents;
pub mod jobs;
pub mod link;
pub mod machine;
pub mod models;
pub mod output;
pub mod profiling;
