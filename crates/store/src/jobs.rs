//! Jobs in a node's state: which there are, their journals, their models.

use rusqlite::{OptionalExtension, Transaction, params};
use tierline_proto::Digest;

use super::{State, StoreError};

/// Steps of the tables.
pub const TABLES: &[&str] = &["
    CREATE TABLE jobs (
        job BLOB PRIMARY KEY, name TEXT NOT NULL, coordinates INTEGER NOT NULL, created_ms INTEGER NOT NULL,
        ended TEXT, failure TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE TABLE job_journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, job BLOB NOT NULL, side INTEGER NOT NULL, record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX job_journal_of ON job_journal (job, side, seq);
    CREATE TABLE job_rounds (
        job BLOB NOT NULL, round INTEGER NOT NULL, scores TEXT NOT NULL, PRIMARY KEY (job, round)
    ) STRICT;
    CREATE TABLE job_models (
        job BLOB NOT NULL, side INTEGER NOT NULL, version INTEGER NOT NULL, artefact BLOB NOT NULL,
        PRIMARY KEY (job, side, version)
    ) STRICT;
    CREATE TABLE job_ends (job BLOB PRIMARY KEY, info BLOB NOT NULL) STRICT;
"];

/// A job as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Digest of its manifest.
    pub job: Digest,
    /// For people.
    pub name: String,
    /// Whether it was given to this node, rather than heard of from above.
    pub coordinates: bool,
    /// Unix time in milliseconds.
    pub created_ms: u64,
    /// How it ended; `None` while it runs.
    pub ended: Option<String>,
    /// Why, if it failed.
    pub failure: String,
}

/// Which side of a job a journal or a model belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The coordinator's.
    Coordinator = 0,
    /// The participant's.
    Participant = 1,
    /// Of an edge that passes the job on; has no journal.
    Relay = 2,
    /// The coordinator's own models, where its members hold others.
    CoordinatorOwn = 3,
    /// What sets its models apart, as members follow it.
    CoordinatorDifferences = 4,
    /// Differences that passed through an edge on their way.
    RelayDifferences = 5,
    /// Differences that a participant fetched and has not followed yet.
    ParticipantDifferences = 6,
    /// What members' tasks begin with, where that isn't a model.
    Said = 8,
    /// An edge's models as other edges meet them, by the meeting.
    Offers = 7,
}

impl Side {
    /// Each of them.
    pub const ALL: [Self; 9] = [
        Self::Coordinator,
        Self::Participant,
        Self::Relay,
        Self::CoordinatorOwn,
        Self::CoordinatorDifferences,
        Self::RelayDifferences,
        Self::ParticipantDifferences,
        Self::Said,
        Self::Offers,
    ];
}

impl State {
    /// Keeps a job; nothing changes if it is known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_job(&self, job: &JobRow) -> Result<(), StoreError> {
        self.with(|c| {
            c.execute(
                "INSERT OR IGNORE INTO jobs (job, name, coordinates, created_ms) VALUES (?1, ?2, ?3, ?4)",
                params![job.job.0, job.name, job.coordinates, i64::try_from(job.created_ms).unwrap_or(i64::MAX)],
            )
            .map(drop)
        })
    }

    /// Every job, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT job, name, coordinates, created_ms, ended, failure FROM jobs ORDER BY created_ms DESC")?
                .query_map([], |row| {
                    Ok(JobRow {
                        job: Digest(row.get(0)?),
                        name: row.get(1)?,
                        coordinates: row.get(2)?,
                        created_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
                        ended: row.get(4)?,
                        failure: row.get(5)?,
                    })
                })?
                .collect()
        })
    }

    /// Keeps what is known of a job's members at its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_end(&self, job: Digest, info: &[u8]) -> Result<(), StoreError> {
        self.with(|c| c.execute("INSERT OR REPLACE INTO job_ends VALUES (?1, ?2)", params![job.0, info]).map(drop))
    }

    /// What was kept of a job's members at its end.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn kept_end(&self, job: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|c| c.query_row("SELECT info FROM job_ends WHERE job = ?1", [job.0], |row| row.get(0)).optional())
    }

    /// Says how a job ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn end_job(&self, job: Digest, how: &str, failure: &str) -> Result<(), StoreError> {
        self.with(|c| {
            c.execute(
                "UPDATE jobs SET ended = ?2, failure = ?3 WHERE job = ?1 AND ended IS NULL",
                params![job.0, how, failure],
            )
            .map(drop)
        })
    }

    /// Appends records to a journal, all or none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn journal(&self, job: Digest, side: Side, records: &[String]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            append(&t, job, side, records)?;
            t.commit()
        })
    }

    /// Puts records in the place of a whole journal, all or none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn replace_journal(&self, job: Digest, side: Side, records: &[String]) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            t.execute("DELETE FROM job_journal WHERE job = ?1 AND side = ?2", params![job.0, side as i64])?;
            append(&t, job, side, records)?;
            t.commit()
        })
    }

    /// A journal, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn journal_of(&self, job: Digest, side: Side) -> Result<Vec<String>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT record FROM job_journal WHERE job = ?1 AND side = ?2 ORDER BY seq")?
                .query_map(params![job.0, side as i64], |row| row.get(0))?
                .collect()
        })
    }

    /// Keeps the artefact of a job's model; each side numbers its own.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_version(&self, job: Digest, side: Side, version: u64, artefact: Digest) -> Result<(), StoreError> {
        self.with(|c| {
            c.execute(
                "INSERT OR REPLACE INTO job_models VALUES (?1, ?2, ?3, ?4)",
                params![job.0, side as i64, i64::try_from(version).unwrap_or(i64::MAX), artefact.0],
            )
            .map(drop)
        })
    }

    /// The artefact of a job's model.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn version(&self, job: Digest, side: Side, version: u64) -> Result<Option<Digest>, StoreError> {
        self.with(|c| {
            c.query_row(
                "SELECT artefact FROM job_models WHERE job = ?1 AND side = ?2 AND version = ?3",
                params![job.0, side as i64, i64::try_from(version).unwrap_or(i64::MAX)],
                |row| row.get(0).map(Digest),
            )
            .optional()
        })
    }

    /// A side's models and their artefacts, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn versions(&self, job: Digest, side: Side) -> Result<Vec<(u64, Digest)>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT version, artefact FROM job_models WHERE job = ?1 AND side = ?2 ORDER BY version")?
                .query_map(params![job.0, side as i64], |row| {
                    Ok((u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0), Digest(row.get(1)?)))
                })?
                .collect()
        })
    }

    /// Forgets the models that a side doesn't need any more; their artefacts,
    /// but for those that another entry still names.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_versions(&self, job: Digest, side: Side, needed: &[u64]) -> Result<Vec<Digest>, StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            let all: Vec<(i64, [u8; 32])> = t
                .prepare("SELECT version, artefact FROM job_models WHERE job = ?1 AND side = ?2")?
                .query_map(params![job.0, side as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut gone = Vec::new();
            for (version, artefact) in all {
                if needed.iter().any(|n| i64::try_from(*n) == Ok(version)) {
                    continue;
                }
                t.execute(
                    "DELETE FROM job_models WHERE job = ?1 AND side = ?2 AND version = ?3",
                    params![job.0, side as i64, version],
                )?;
                let named: i64 =
                    t.query_row("SELECT count(*) FROM job_models WHERE artefact = ?1", [artefact], |r| r.get(0))?;
                if named == 0 {
                    gone.push(Digest(artefact));
                }
            }
            t.commit()?;
            Ok(gone)
        })
    }

    /// Keeps what a round gave (JSON).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_round(&self, job: Digest, round: u64, scores: &str) -> Result<(), StoreError> {
        self.with(|c| {
            c.execute(
                "INSERT OR REPLACE INTO job_rounds VALUES (?1, ?2, ?3)",
                params![job.0, i64::try_from(round).unwrap_or(i64::MAX), scores],
            )
            .map(drop)
        })
    }

    /// Rounds of a job of which something is known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn round_count(&self, job: Digest) -> Result<u64, StoreError> {
        self.with(|c| {
            let count: i64 =
                c.query_row("SELECT count(*) FROM job_rounds WHERE job = ?1", [job.0], |row| row.get(0))?;
            Ok(u64::try_from(count).unwrap_or(0))
        })
    }

    /// What a job's rounds gave, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rounds(&self, job: Digest) -> Result<Vec<String>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT scores FROM job_rounds WHERE job = ?1 ORDER BY round")?
                .query_map([job.0], |row| row.get(0))?
                .collect()
        })
    }
}

fn append(t: &Transaction<'_>, job: Digest, side: Side, records: &[String]) -> rusqlite::Result<()> {
    for record in records {
        t.execute(
            "INSERT INTO job_journal (job, side, record) VALUES (?1, ?2, ?3)",
            params![job.0, side as i64, record],
        )?;
    }
    Ok(())
}
