//! The parts behind the `tierline` binary: command line, words, and links in
//! userspace. Start at [`cli::run`]; what a node does is in `tierline-daemon`.

pub mod cli;
pub mod exit;
pub mod link;
pub mod logging;
pub mod notify;
pub mod output;
