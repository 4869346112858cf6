//! The repository held to its own rules.

mod edges;
mod generated;
mod licences;
mod pages;
mod profiles;
mod tasks;
mod workspace;
