//! Tests of the graph crate through its public interface.

mod assets;
mod costs;
mod infer_types;
mod node_types;
mod real_types;
mod text;
