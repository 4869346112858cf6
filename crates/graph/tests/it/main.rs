//! Tests of the graph crate through its public interface.

mod assets;
mod node_types;
mod real_types;
