//! Which artefacts the state names: what nothing names may go.
//!
//! Whoever lets the state name artefacts in another place adds that place to
//! [`Named`]; what is missing there is taken for garbage.

use std::collections::HashSet;

use rusqlite::params;
use tierline_proto::Digest;

use super::{State, StoreError};

/// Artefacts that the state names, by what they are. Manifests name others in
/// their turn.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Manifests of models.
    pub manifests: Vec<Digest>,
    /// Files that models were made of.
    pub sources: Vec<Digest>,
    /// Models that were measured here, and the profiles.
    pub profiles: Vec<(Digest, Digest)>,
    /// Manifests of jobs, also of those that are over: they are shown.
    pub jobs: Vec<Digest>,
    /// Models of jobs, and what leads to them.
    pub of_jobs: HashSet<Digest>,
}

impl State {
    /// Every artefact that is named.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn named(&self) -> Result<Named, StoreError> {
        self.with(|c| {
            // In one transaction: what moves from one place to another is in one of them.
            let t = c.transaction()?;
            let one = |sql: &str| {
                t.prepare(sql)?.query_map([], |row| row.get(0).map(Digest))?.collect::<rusqlite::Result<Vec<_>>>()
            };
            let manifests = one("SELECT manifest FROM names UNION SELECT manifest FROM versions")?;
            let sources = one("SELECT DISTINCT source FROM versions WHERE source IS NOT NULL")?;
            let jobs = one("SELECT job FROM jobs")?;
            let of_jobs = one("SELECT DISTINCT artefact FROM job_models")?.into_iter().collect();
            let profiles = t
                .prepare("SELECT model, profile FROM profiles")?
                .query_map([], |row| Ok((Digest(row.get(0)?), Digest(row.get(1)?))))?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Named { manifests, sources, profiles, jobs, of_jobs })
        })
    }

    /// Forgets this device's profile of a model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_profile(&self, model: Digest) -> Result<(), StoreError> {
        self.essential(|c| c.execute("DELETE FROM profiles WHERE model = ?1", params![model.0]).map(drop))
    }
}
