//! Rollouts in a node's state: at the cloud each with its journal, and on every
//! node the journals of its own changes from one version of a model to another.

use rusqlite::params;
use tierline_proto::Digest;

use super::{State, StoreError};

/// Steps of the tables.
pub const TABLES: &[&str] = &["
    CREATE TABLE rollouts (
        id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, spec TEXT NOT NULL, created_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE rollout_journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, rollout INTEGER NOT NULL, record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX rollout_journal_of ON rollout_journal (rollout, seq);
    CREATE TABLE swap_journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX swap_journal_of ON swap_journal (model, seq);
    CREATE TABLE swap_versions (
        model TEXT NOT NULL, version TEXT NOT NULL, manifest BLOB NOT NULL, PRIMARY KEY (model, version)
    ) STRICT;
"];

/// A rollout that was begun here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRow {
    /// Its number; later ones have greater ones.
    pub id: u64,
    /// The model's name.
    pub model: String,
    /// Its specification, as it was given.
    pub spec: String,
    /// Unix time in milliseconds.
    pub created_ms: u64,
}

impl State {
    /// Keeps a version's manifest while a node may need it, whatever the
    /// catalogue says.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hold_swap_version(&self, model: &str, version: &str, manifest: Digest) -> Result<(), StoreError> {
        self.with(|c| {
            let row = params![model, version, manifest.0];
            c.execute("INSERT OR REPLACE INTO swap_versions VALUES (?1, ?2, ?3)", row).map(drop)
        })
    }

    /// Lets go of a version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release_swap_version(&self, model: &str, version: &str) -> Result<(), StoreError> {
        self.essential(|c| {
            c.execute("DELETE FROM swap_versions WHERE model = ?1 AND version = ?2", [model, version]).map(drop)
        })
    }

    /// Lets go of every version of a model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn release_swap_versions(&self, model: &str) -> Result<(), StoreError> {
        self.essential(|c| c.execute("DELETE FROM swap_versions WHERE model = ?1", [model]).map(drop))
    }

    /// Versions that are held: model, version, manifest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn swap_versions(&self) -> Result<Vec<(String, String, Digest)>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT model, version, manifest FROM swap_versions ORDER BY model, version")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, Digest(row.get(2)?))))?
                .collect()
        })
    }

    /// Keeps a rollout; gives its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_rollout(&self, model: &str, spec: &str, created_ms: u64) -> Result<u64, StoreError> {
        self.with(|c| {
            c.query_row(
                "INSERT INTO rollouts (model, spec, created_ms) VALUES (?1, ?2, ?3) RETURNING id",
                params![model, spec, created_ms as i64],
                |row| row.get::<_, i64>(0).map(|id| id.max(0) as u64),
            )
        })
    }

    /// Every rollout, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rollouts(&self) -> Result<Vec<RolloutRow>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT id, model, spec, created_ms FROM rollouts ORDER BY id")?
                .query_map([], |row| {
                    Ok(RolloutRow {
                        id: row.get::<_, i64>(0)?.max(0) as u64,
                        model: row.get(1)?,
                        spec: row.get(2)?,
                        created_ms: row.get::<_, i64>(3)?.max(0) as u64,
                    })
                })?
                .collect()
        })
    }

    /// Forgets a rollout and its journal.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_rollout(&self, id: u64) -> Result<(), StoreError> {
        self.essential(|c| {
            let t = c.transaction()?;
            t.execute("DELETE FROM rollout_journal WHERE rollout = ?1", [id as i64])?;
            t.execute("DELETE FROM rollouts WHERE id = ?1", [id as i64])?;
            t.commit()
        })
    }

    /// Writes records behind a rollout's journal; all of them are on the disk
    /// when it returns, or none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rollout_records_add(&self, id: u64, records: &[String]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            for record in records {
                t.execute("INSERT INTO rollout_journal (rollout, record) VALUES (?1, ?2)", params![id as i64, record])?;
            }
            t.commit()
        })
    }

    /// Puts records in the place of a rollout's journal.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rollout_records_replace(&self, id: u64, records: &[String]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            t.execute("DELETE FROM rollout_journal WHERE rollout = ?1", [id as i64])?;
            for record in records {
                t.execute("INSERT INTO rollout_journal (rollout, record) VALUES (?1, ?2)", params![id as i64, record])?;
            }
            t.commit()
        })
    }

    /// A rollout's journal.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rollout_records(&self, id: u64) -> Result<Vec<String>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT record FROM rollout_journal WHERE rollout = ?1 ORDER BY seq")?
                .query_map([id as i64], |row| row.get(0))?
                .collect()
        })
    }

    /// Writes records behind the journal of a model's changes on this node; all
    /// of them are on the disk when it returns, or none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn swap_records_add(&self, model: &str, records: &[String]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            for record in records {
                t.execute("INSERT INTO swap_journal (model, record) VALUES (?1, ?2)", params![model, record])?;
            }
            t.commit()
        })
    }

    /// Puts records in the place of a model's journal; none: forgets it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn swap_records_replace(&self, model: &str, records: &[String]) -> Result<(), StoreError> {
        self.essential(|c| {
            let t = c.transaction()?;
            t.execute("DELETE FROM swap_journal WHERE model = ?1", [model])?;
            for record in records {
                t.execute("INSERT INTO swap_journal (model, record) VALUES (?1, ?2)", params![model, record])?;
            }
            t.commit()
        })
    }

    /// The journals of this node's changes: the model of each record, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn swap_records(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT model, record FROM swap_journal ORDER BY seq")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }
}
