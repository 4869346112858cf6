//! Models in a node's state: their names, and this device's profiles of them.

use rusqlite::{OptionalExtension, params};
use tierline_proto::Digest;

use super::{State, StoreError};

/// Steps of the tables.
pub const TABLES: &[&str] = &[
    "
    CREATE TABLE names (name TEXT PRIMARY KEY, manifest BLOB NOT NULL) STRICT;
    CREATE TABLE profiles (model BLOB PRIMARY KEY, profile BLOB NOT NULL) STRICT;
",
    "
    CREATE TABLE services (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;
",
];

impl State {
    /// Points `name` at a manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_name(&self, name: &str, manifest: Digest) -> Result<(), StoreError> {
        self.with(|c| c.execute("INSERT OR REPLACE INTO names VALUES (?1, ?2)", params![name, manifest.0]).map(drop))
    }

    /// Forgets `name`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_name(&self, name: &str) -> Result<(), StoreError> {
        self.essential(|c| c.execute("DELETE FROM names WHERE name = ?1", [name]).map(drop))
    }

    /// Every name and its manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn names(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT name, manifest FROM names ORDER BY name")?
                .query_map([], |row| Ok((row.get(0)?, Digest(row.get(1)?))))?
                .collect()
        })
    }

    /// Points `name` at a service's document.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_service(&self, name: &str, document: Digest) -> Result<(), StoreError> {
        self.with(|c| c.execute("INSERT OR REPLACE INTO services VALUES (?1, ?2)", params![name, document.0]).map(drop))
    }

    /// Forgets the service `name`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_service(&self, name: &str) -> Result<(), StoreError> {
        self.essential(|c| c.execute("DELETE FROM services WHERE name = ?1", [name]).map(drop))
    }

    /// Every service and its document.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn services(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT name, document FROM services ORDER BY name")?
                .query_map([], |row| Ok((row.get(0)?, Digest(row.get(1)?))))?
                .collect()
        })
    }

    /// Keeps the digest of this device's profile of a model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_profile(&self, model: Digest, profile: Digest) -> Result<(), StoreError> {
        self.with(|c| {
            c.execute("INSERT OR REPLACE INTO profiles VALUES (?1, ?2)", params![model.0, profile.0]).map(drop)
        })
    }

    /// This device's profile of a model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn profile(&self, model: Digest) -> Result<Option<Digest>, StoreError> {
        self.with(|c| {
            c.query_row("SELECT profile FROM profiles WHERE model = ?1", [model.0], |row| row.get(0).map(Digest))
                .optional()
        })
    }
}
