//! Tests of the codec crate through its public interface.

mod laws;
mod measuring;
mod mutations;
mod numpy;
mod update;
