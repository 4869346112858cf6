//! The repository held to its own rules.

mod edges;
mod licences;
mod pages;
mod tasks;
mod workspace;
