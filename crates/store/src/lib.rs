//! What a node keeps on disk: small state in SQLite, artefacts by digest.

pub mod applications;
pub mod artefacts;
pub mod disk;
mod error;
pub mod examples;
pub mod jobs;
pub mod members;
pub mod models;
pub mod needs;
pub mod reserve;
pub mod rollouts;
pub mod state;

pub use artefacts::ArtefactStore;
pub use error::StoreError;
pub use state::State;
