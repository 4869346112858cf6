//! The list of applications that a node knows, as it came: the site's
//! authority signed it as a whole.

use rusqlite::{OptionalExtension, params};

use super::{State, StoreError};

/// Steps of the table.
pub const TABLES: &[&str] = &["
    CREATE TABLE applications (
        one INTEGER PRIMARY KEY CHECK (one = 1), list BLOB NOT NULL, signature BLOB NOT NULL
    ) STRICT;
"];

/// A list and its signature.
pub type Signed = (Vec<u8>, Vec<u8>);

impl State {
    /// The list and its signature, if there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn applications(&self) -> Result<Option<Signed>, StoreError> {
        self.with(|c| {
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            c.query_row("SELECT list, signature FROM applications", [], row).optional()
        })
    }

    /// Keeps a list, also on a full disk: it may shut somebody out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_applications(&self, list: &[u8], signature: &[u8]) -> Result<(), StoreError> {
        self.essential(|c| {
            c.execute("INSERT OR REPLACE INTO applications VALUES (1, ?1, ?2)", params![list, signature]).map(drop)
        })
    }
}
