//! A node of a site: its configuration, what it keeps, and the Tokio shell
//! around the machines of `tierline-node`.
//!
//! Start at [`node::run`]. Nothing here knows of a command line.

pub mod config;
pub mod datasets;
pub mod documents;
pub mod jobs;
pub mod machine;
pub mod models;
pub mod node;
pub mod outcome;
pub mod profiling;
pub mod words;
