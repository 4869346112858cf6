//! Tests of the graph crate through its public interface.

mod assets;
mod checks;
mod costs;
mod cutting;
mod exits;
mod external;
mod infer_types;
mod inlining;
mod mutations;
mod node_types;
mod normal;
mod real_types;
mod rewrites;
mod text;
mod weights;
