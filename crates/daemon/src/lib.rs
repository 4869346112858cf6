//! A node of a site: its configuration, what it keeps, and the Tokio shell
//! around the machines of `tierline-node`.
//!
//! Start at [`runtime::start::run`], then [`duties`], what a node does. Nothing
//! here knows of a command line.

pub mod config;
pub mod datasets;
pub mod device;
pub mod documents;
pub mod duties;
pub mod error;
pub mod examples;
pub mod golden;
pub mod jobs;
pub mod machine;
pub mod models;
pub mod net;
pub mod profiling;
pub mod runtime;
pub mod services;
pub mod words;
