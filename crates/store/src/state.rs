//! A node's small state, in SQLite. Each duty has tables of its own, and makes
//! them in steps ([`Tables`]): those of [`crate::models`], [`crate::members`]
//! and [`crate::jobs`] are written and read here.
//!
//! Every write is one transaction, synced before it is acknowledged.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::reserve::{self, Reserve};
use super::{ArtefactStore, StoreError};

/// The database makes its journal and an index of it before it answers anything.
const ROOM_TO_OPEN: u64 = 256 << 10;

/// A duty's tables, as steps in SQL: never edited, only added to. The database
/// knows how many of them are done.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// The duty.
    pub of: &'static str,
    /// From the first one on.
    pub steps: &'static [&'static str],
}

/// The database's `user_version`: since this one, each duty counts its own steps.
const SCHEMA: i64 = 5;

/// What brings a database of before to the tables that duties began with.
const BEFORE_DUTIES: &[&str] = &["
    CREATE TABLE names (name TEXT PRIMARY KEY, manifest BLOB NOT NULL) STRICT;
    CREATE TABLE profiles (model BLOB PRIMARY KEY, profile BLOB NOT NULL) STRICT;
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, secret BLOB NOT NULL, role INTEGER NOT NULL, name TEXT NOT NULL,
        not_after_s INTEGER NOT NULL, uses_left INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE joins (device_key BLOB PRIMARY KEY, token TEXT NOT NULL, node TEXT NOT NULL) STRICT;
    CREATE TABLE nodes (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, role INTEGER NOT NULL) STRICT;
    CREATE TABLE revoked (node TEXT PRIMARY KEY, name TEXT NOT NULL, reason TEXT NOT NULL, since_s INTEGER NOT NULL) STRICT;
", "
    CREATE TABLE jobs (
        job BLOB PRIMARY KEY, name TEXT NOT NULL, coordinates INTEGER NOT NULL, created_ms INTEGER NOT NULL,
        ended TEXT, failure TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE TABLE job_journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, job BLOB NOT NULL, side INTEGER NOT NULL, record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX job_journal_of ON job_journal (job, side, seq);
    CREATE TABLE job_versions (
        job BLOB NOT NULL, version INTEGER NOT NULL, artefact BLOB NOT NULL, PRIMARY KEY (job, version)
    ) STRICT;
    CREATE TABLE job_rounds (
        job BLOB NOT NULL, round INTEGER NOT NULL, scores TEXT NOT NULL, PRIMARY KEY (job, round)
    ) STRICT;
", "
    CREATE TABLE job_models (
        job BLOB NOT NULL, side INTEGER NOT NULL, version INTEGER NOT NULL, artefact BLOB NOT NULL,
        PRIMARY KEY (job, side, version)
    ) STRICT;
    INSERT INTO job_models SELECT job, 0, version, artefact FROM job_versions;
    DROP TABLE job_versions;
", "
    CREATE TABLE seen (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, role INTEGER NOT NULL, parent TEXT NOT NULL, via TEXT NOT NULL,
        seen_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE renamed (node TEXT PRIMARY KEY, was TEXT NOT NULL, renewed INTEGER NOT NULL DEFAULT 0) STRICT;
    CREATE TABLE job_ends (job BLOB PRIMARY KEY, info BLOB NOT NULL) STRICT;
"];

/// Duties that began with tables which were there before.
const FIRST_DUTIES: [&str; 4] = ["catalogue", "enrolment", "federation", "site"];

/// Prepares a database for the tables of duties; one of before has those of the
/// first ones already.
fn begin(transaction: &Transaction<'_>, done: i64) -> rusqlite::Result<()> {
    transaction.execute_batch("CREATE TABLE duty_steps (duty TEXT PRIMARY KEY, done INTEGER NOT NULL) STRICT")?;
    if done > 0 {
        for step in &BEFORE_DUTIES[done as usize..] {
            transaction.execute_batch(step)?;
        }
        for duty in FIRST_DUTIES {
            note_steps(transaction, duty, 1)?;
        }
    }
    transaction.pragma_update(None, "user_version", SCHEMA)
}

fn steps_done(connection: &Connection, duty: &str) -> rusqlite::Result<i64> {
    let done = "SELECT done FROM duty_steps WHERE duty = ?1";
    Ok(connection.query_row(done, [duty], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn note_steps(transaction: &Transaction<'_>, duty: &str, done: i64) -> rusqlite::Result<()> {
    transaction.execute("INSERT OR REPLACE INTO duty_steps VALUES (?1, ?2)", params![duty, done]).map(drop)
}

/// The state of one node.
pub struct State {
    path: PathBuf,
    connection: Mutex<Connection>,
    reserve: Reserve,
}

impl State {
    /// Opens the state in `path`, made there if there is none, with these
    /// tables in it. On a full disk the room that was kept for that is used.
    ///
    /// # Errors
    /// [`StoreError`] when it can't be read, is damaged or newer.
    pub fn open(path: &Path, tables: &[Tables]) -> Result<Self, StoreError> {
        let folder = path.parent().unwrap_or(path);
        let reserve = Reserve::of(folder);
        let opened = match Self::open_with(path, tables, &reserve) {
            // What the database says of a full disk differs with what it was about to write.
            Err(error) if error.is_full() || reserve::room(folder) < ROOM_TO_OPEN => {
                reserve.release();
                ArtefactStore::clear_unfinished(&folder.join("artefacts"));
                let full = reserve::room(folder) < ROOM_TO_OPEN;
                Self::open_with(path, tables, &reserve).map_err(|error| {
                    if full || error.is_full() {
                        StoreError::NoRoomToStart { folder: folder.to_owned() }
                    } else {
                        error
                    }
                })
            }
            other => other,
        };
        reserve.hold();
        opened
    }

    fn open_with(path: &Path, tables: &[Tables], reserve: &Reserve) -> Result<Self, StoreError> {
        let fail = |source| StoreError::of_state(path, source);
        // Made here, so that its permissions are ours to say; its journal takes them over.
        super::disk::open_private(path).map_err(|source| StoreError::of_file(path, source))?;
        let mut connection = Connection::open(path).map_err(fail)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        let done: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(fail)?;
        if done > SCHEMA {
            return Err(StoreError::Newer { path: path.to_owned(), found: done, known: SCHEMA });
        }
        if done < SCHEMA {
            let transaction = connection.transaction().map_err(fail)?;
            begin(&transaction, done).map_err(fail)?;
            transaction.commit().map_err(fail)?;
        }
        for Tables { of, steps } in tables {
            let found = steps_done(&connection, of).map_err(fail)?;
            let known = steps.len() as i64;
            if found > known {
                return Err(StoreError::Newer { path: path.to_owned(), found, known });
            }
            // Nothing is written where there is nothing to do.
            if found < known {
                let transaction = connection.transaction().map_err(fail)?;
                for step in &steps[found as usize..] {
                    transaction.execute_batch(step).map_err(fail)?;
                }
                note_steps(&transaction, of, known).map_err(fail)?;
                transaction.commit().map_err(fail)?;
            }
        }
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection), reserve: reserve.clone() })
    }

    /// As [`with`](Self::with), for what can't wait until there is room: it
    /// shuts somebody out, or lets go of something.
    pub(super) fn essential<T>(&self, f: impl Fn(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        match self.with(&f) {
            Err(StoreError::Full { .. }) if self.reserve.release() => {
                let done = self.with(&f);
                self.reserve.hold();
                done
            }
            other => other,
        }
    }

    /// Takes the room again that a full disk didn't leave.
    pub fn keep_reserve(&self) {
        self.reserve.hold();
    }

    /// Runs `f` on the database, for one caller at a time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn with<T>(&self, f: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut connection).map_err(|source| StoreError::of_state(&self.path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{jobs, members, models};

    const ALL: [Tables; 4] = [
        Tables { of: "catalogue", steps: models::TABLES },
        Tables { of: "enrolment", steps: members::TABLES },
        Tables { of: "federation", steps: jobs::TABLES },
        Tables { of: "site", steps: members::SEEN_TABLES },
    ];

    /// What the database says of its tables, in words that don't depend on how
    /// they are laid out.
    fn schema(state: &State) -> Vec<String> {
        let all = |c: &mut Connection| {
            let mut rows = c.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")?;
            let rows = rows.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(row?.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
        };
        state.with(all).unwrap()
    }

    #[test]
    fn a_newer_state_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let open = |tables: &[Tables]| State::open(&path, tables);
        let later = Tables { of: "tides", steps: &["CREATE TABLE tides (at INTEGER) STRICT", "DROP TABLE tides"] };
        open(&[later]).unwrap();
        let earlier = Tables { steps: &later.steps[..1], ..later };
        assert!(matches!(open(&[earlier]), Err(StoreError::Newer { found: 2, known: 1, .. })));
        // Of a duty that isn't here any more, the tables stay.
        let state = open(&ALL).unwrap();
        state.with(|c| c.pragma_update(None, "user_version", 99)).unwrap();
        drop(state);
        assert!(matches!(open(&ALL), Err(StoreError::Newer { found: 99, .. })));
    }

    #[test]
    fn a_state_of_before_duties_becomes_what_a_new_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let new = State::open(&folder.path().join("new.db"), &ALL).unwrap();
        for done in 1..=BEFORE_DUTIES.len() {
            let path = folder.path().join(format!("{done}.db"));
            let connection = Connection::open(&path).unwrap();
            BEFORE_DUTIES[..done].iter().for_each(|step| connection.execute_batch(step).unwrap());
            connection.pragma_update(None, "user_version", done as i64).unwrap();
            connection.execute("INSERT INTO names VALUES ('kept', ?1)", [[1u8; 32]]).unwrap();
            drop(connection);
            let state = State::open(&path, &ALL).unwrap();
            assert_eq!(schema(&state), schema(&new), "from {done}");
            assert_eq!(state.names().unwrap().len(), 1);
            drop(state);
            State::open(&path, &ALL).unwrap();
        }
    }

    #[test]
    fn a_step_that_fails_leaves_nothing_of_its_duty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let broken =
            Tables { of: "tides", steps: &["CREATE TABLE tides (at INTEGER) STRICT", "CREATE TABLE tides (x)"] };
        assert!(State::open(&path, &[broken]).is_err());
        let mended = Tables { steps: &["CREATE TABLE tides (at INTEGER) STRICT"], ..broken };
        State::open(&path, &[mended]).unwrap();
    }
}
