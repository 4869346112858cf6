//! Models in a node's state: their names, their versions, and this device's
//! profiles of them.

use rusqlite::{OptionalExtension, Row, Transaction, params};
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
    "
    CREATE TABLE versions (
        name TEXT NOT NULL, version INTEGER NOT NULL, manifest BLOB NOT NULL, source BLOB, added_ms INTEGER NOT NULL,
        card TEXT NOT NULL, PRIMARY KEY (name, version)
    ) STRICT;
    CREATE TABLE newest (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT;
    CREATE TABLE aliases (
        name TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (name, alias)
    ) STRICT;
    CREATE TABLE deltas (
        base BLOB NOT NULL, model BLOB NOT NULL, delta BLOB NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (base, model)
    ) STRICT;
",
];

/// What makes one model of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeltaRow {
    /// The model that it is made from.
    pub base: Digest,
    /// The model that it makes.
    pub model: Digest,
    /// The delta, an artefact.
    pub delta: Digest,
    /// Its length.
    pub bytes: u64,
}

/// A version of a model, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// The model's name.
    pub name: String,
    /// Which of its name: 1 and up.
    pub version: u64,
    /// Its manifest.
    pub manifest: Digest,
    /// The file that was given, where it is kept.
    pub source: Option<Digest>,
    /// Unix time in milliseconds.
    pub added_ms: u64,
    /// What is said of it (JSON); may be empty.
    pub card: String,
}

impl VersionRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get(0)?,
            version: number(row.get(1)?),
            manifest: Digest(row.get(2)?),
            source: row.get::<_, Option<[u8; 32]>>(3)?.map(Digest),
            added_ms: number(row.get(4)?),
            card: row.get(5)?,
        })
    }

    fn write(&self, t: &Transaction<'_>) -> rusqlite::Result<()> {
        let source = self.source.map(|digest| digest.0);
        let numbers = (self.version as i64, self.added_ms as i64);
        t.execute(
            "INSERT OR REPLACE INTO versions VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![self.name, numbers.0, self.manifest.0, source, numbers.1, self.card],
        )?;
        t.execute(
            "INSERT INTO newest VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET version = max(version, ?2)",
            params![self.name, numbers.0],
        )
        .map(drop)
    }
}

/// A name of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    /// The model's name.
    pub name: String,
    /// What the version is also called.
    pub alias: String,
    /// Which that is.
    pub version: u64,
}

/// A number that is kept as SQLite has them.
fn number(kept: i64) -> u64 {
    kept.max(0) as u64
}

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

    /// The newest version that a name ever had; 0 for a name that has none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn newest_version(&self, name: &str) -> Result<u64, StoreError> {
        self.with(|c| {
            let newest = c.query_row("SELECT version FROM newest WHERE name = ?1", [name], |row| row.get(0));
            Ok(newest.optional()?.map_or(0, number))
        })
    }

    /// Keeps a version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_version(&self, row: &VersionRow) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            row.write(&t)?;
            t.commit()
        })
    }

    /// Every version, by name, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn model_versions(&self) -> Result<Vec<VersionRow>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT name, version, manifest, source, added_ms, card FROM versions ORDER BY name, version")?
                .query_map([], VersionRow::read)?
                .collect()
        })
    }

    /// Forgets a version and its aliases; its number isn't given again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_version(&self, name: &str, version: u64) -> Result<(), StoreError> {
        self.essential(|c| {
            let t = c.transaction()?;
            let which = params![name, version as i64];
            t.execute("DELETE FROM versions WHERE name = ?1 AND version = ?2", which)?;
            t.execute("DELETE FROM aliases WHERE name = ?1 AND version = ?2", which)?;
            t.commit()
        })
    }

    /// Forgets all that was a name's: versions, aliases, numbers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_versions(&self, name: &str) -> Result<(), StoreError> {
        self.essential(|c| {
            let t = c.transaction()?;
            for table in ["versions", "aliases", "newest"] {
                t.execute(&format!("DELETE FROM {table} WHERE name = ?1"), [name])?;
            }
            t.commit()
        })
    }

    /// Puts versions and aliases of one name in the place of another's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn move_versions(&self, old: &str, rows: &[VersionRow], aliases: &[AliasRow]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            for table in ["versions", "aliases", "newest"] {
                t.execute(&format!("DELETE FROM {table} WHERE name = ?1"), [old])?;
            }
            rows.iter().try_for_each(|row| row.write(&t))?;
            for row in aliases {
                let version = row.version as i64;
                t.execute("INSERT INTO aliases VALUES (?1, ?2, ?3)", params![row.name, row.alias, version])?;
            }
            t.commit()
        })
    }

    /// Points aliases of a name at versions, or at none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_aliases(&self, name: &str, aliases: &[(String, Option<u64>)]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            for (alias, version) in aliases {
                match version {
                    Some(version) => t.execute(
                        "INSERT OR REPLACE INTO aliases VALUES (?1, ?2, ?3)",
                        params![name, alias, *version as i64],
                    )?,
                    None => t.execute("DELETE FROM aliases WHERE name = ?1 AND alias = ?2", params![name, alias])?,
                };
            }
            t.commit()
        })
    }

    /// Keeps a delta.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_delta(&self, row: DeltaRow) -> Result<(), StoreError> {
        self.with(|c| {
            let row = params![row.base.0, row.model.0, row.delta.0, row.bytes as i64];
            c.execute("INSERT OR REPLACE INTO deltas VALUES (?1, ?2, ?3, ?4)", row).map(drop)
        })
    }

    /// Forgets a delta.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_delta(&self, row: DeltaRow) -> Result<(), StoreError> {
        self.essential(|c| {
            c.execute("DELETE FROM deltas WHERE base = ?1 AND model = ?2", params![row.base.0, row.model.0]).map(drop)
        })
    }

    /// Every delta.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn deltas(&self) -> Result<Vec<DeltaRow>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT base, model, delta, bytes FROM deltas ORDER BY base, model")?
                .query_map([], |row| {
                    Ok(DeltaRow {
                        base: Digest(row.get(0)?),
                        model: Digest(row.get(1)?),
                        delta: Digest(row.get(2)?),
                        bytes: number(row.get(3)?),
                    })
                })?
                .collect()
        })
    }

    /// Every alias, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn aliases(&self) -> Result<Vec<AliasRow>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT name, alias, version FROM aliases ORDER BY name, alias")?
                .query_map([], |row| {
                    Ok(AliasRow { name: row.get(0)?, alias: row.get(1)?, version: number(row.get(2)?) })
                })?
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
