//! Examples that services keep in a node's state: which there are, within a
//! quota for each service. What they hold is in artefacts.

use rusqlite::{Row, Transaction, params};
use tierline_proto::Digest;

use super::{State, StoreError};

/// Steps of the tables.
pub const TABLES: &[&str] = &["
    CREATE TABLE examples (
        id INTEGER PRIMARY KEY AUTOINCREMENT, service TEXT NOT NULL, time_ms INTEGER NOT NULL, why TEXT NOT NULL,
        policy TEXT NOT NULL, node TEXT NOT NULL, artefact BLOB NOT NULL, bytes INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX examples_of ON examples (service);
"];

/// An example that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleRow {
    /// Its number on this node; 0 before it is kept.
    pub id: u64,
    /// The service's name.
    pub service: String,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// Why it is kept.
    pub why: String,
    /// What is kept of it.
    pub policy: String,
    /// The node that the request entered at.
    pub node: String,
    /// Where it is kept.
    pub artefact: Digest,
    /// How long that is.
    pub bytes: u64,
}

/// How much of a service's examples is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many.
    pub count: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of those of all services together.
    pub of_all: u64,
}

/// A number that is kept as SQLite has them.
fn number(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(|number| number.max(0) as u64)
}

impl State {
    /// Keeps an example; where its service has too many then, others go, drawn
    /// at random by `draw`, which gives a number below its argument; where all
    /// services together have, others of the one that has the most bytes. Gives
    /// the artefacts of those that went. One that exceeds the quota alone isn't
    /// kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_example(
        &self,
        row: &ExampleRow,
        quota: Quota,
        mut draw: impl FnMut(u64) -> u64,
    ) -> Result<Vec<Digest>, StoreError> {
        if row.bytes > quota.bytes.min(quota.of_all) || quota.count == 0 {
            return Ok(vec![row.artefact]);
        }
        self.with(|c| {
            let t = c.transaction()?;
            let mut gone = Vec::new();
            loop {
                let (count, bytes) = t.query_row(
                    "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM examples WHERE service = ?1",
                    [&row.service],
                    |found| Ok((number(found, 0)?, number(found, 1)?)),
                )?;
                let (mut from, mut among) = (row.service.clone(), count);
                if count < quota.count && bytes.saturating_add(row.bytes) <= quota.bytes {
                    let all =
                        t.query_row("SELECT COALESCE(SUM(bytes), 0) FROM examples", [], |found| number(found, 0))?;
                    if all.saturating_add(row.bytes) <= quota.of_all {
                        break;
                    }
                    (from, among) = t.query_row(
                        "SELECT service, COUNT(*) FROM examples GROUP BY service ORDER BY SUM(bytes) DESC, service LIMIT 1",
                        [],
                        |found| Ok((found.get(0)?, number(found, 1)?)),
                    )?;
                }
                let (id, artefact): (i64, Digest) = t.query_row(
                    "SELECT id, artefact FROM examples WHERE service = ?1 ORDER BY id LIMIT 1 OFFSET ?2",
                    params![from, draw(among).min(among.saturating_sub(1)) as i64],
                    |found| Ok((found.get(0)?, Digest(found.get(1)?))),
                )?;
                t.execute("DELETE FROM examples WHERE id = ?1", [id])?;
                gone.push(artefact);
            }
            t.execute(
                "INSERT INTO examples (service, time_ms, why, policy, node, artefact, bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    row.service,
                    row.time_ms as i64,
                    row.why,
                    row.policy,
                    row.node,
                    row.artefact.0,
                    row.bytes as i64
                ],
            )?;
            t.commit()?;
            Ok(gone)
        })
    }

    /// Examples in the order in which they came; of one service only, if it is named.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn examples(&self, service: &str) -> Result<Vec<ExampleRow>, StoreError> {
        self.with(|c| {
            c.prepare(
                "SELECT id, service, time_ms, why, policy, node, artefact, bytes FROM examples
                 WHERE ?1 = '' OR service = ?1 ORDER BY id",
            )?
            .query_map([service], |row| {
                Ok(ExampleRow {
                    id: number(row, 0)?,
                    service: row.get(1)?,
                    time_ms: number(row, 2)?,
                    why: row.get(3)?,
                    policy: row.get(4)?,
                    node: row.get(5)?,
                    artefact: Digest(row.get(6)?),
                    bytes: number(row, 7)?,
                })
            })?
            .collect()
        })
    }

    /// Forgets examples by their numbers.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_examples(&self, ids: &[u64]) -> Result<(), StoreError> {
        self.essential(|c| {
            let t: Transaction<'_> = c.transaction()?;
            for id in ids {
                t.execute("DELETE FROM examples WHERE id = ?1", [*id as i64])?;
            }
            t.commit()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Tables;

    #[test]
    fn services_together_keep_no_more_than_the_node_allows_and_the_largest_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let tables = [Tables { of: "services", steps: TABLES }];
        let state = State::open(&folder.path().join("state.db"), &tables).unwrap();
        let quota = Quota { count: 100, bytes: 100, of_all: 120 };
        let keep = |service: &str, n, bytes| {
            let row = ExampleRow { service: service.into(), ..row(n, bytes) };
            state.keep_example(&row, quota, |_| 0).unwrap()
        };
        for n in 1..=3 {
            assert!(keep("large", n, 30).is_empty());
        }
        assert!(keep("small", 4, 20).is_empty());
        // 110 of 120: the one with the most goes, whoever comes.
        assert_eq!(keep("small", 5, 20), [Digest([1; 32])]);
        assert_eq!(keep("third", 6, 50), [Digest([2; 32])]);
        assert_eq!(keep("third", 7, 40), [Digest([6; 32])]);
        let held = |service: &str| state.examples(service).unwrap().iter().map(|row| row.bytes).sum::<u64>();
        assert_eq!((held("large"), held("small"), held("third")), (30, 40, 40));
        // More than all may have: it is itself what goes.
        assert_eq!(state.keep_example(&row(8, 90), Quota { of_all: 80, ..quota }, |_| 0).unwrap(), [Digest([8; 32])]);
    }

    fn row(n: u8, bytes: u64) -> ExampleRow {
        let artefact = Digest([n; 32]);
        let (service, why, policy, node) = ("digits".into(), "unsure".into(), "raw".into(), "end".into());
        ExampleRow { id: 0, service, time_ms: u64::from(n), why, policy, node, artefact, bytes }
    }

    #[test]
    fn no_more_is_kept_than_the_quota_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let tables = [Tables { of: "services", steps: TABLES }];
        let state = State::open(&path, &tables).unwrap();
        let quota = Quota { count: 3, bytes: 100, of_all: 1_000 };
        let keep = |n, bytes, drawn| state.keep_example(&row(n, bytes), quota, |_| drawn).unwrap();
        let held = |state: &State| state.examples("digits").unwrap().iter().map(|row| row.time_ms).collect::<Vec<_>>();
        for n in 1..=3 {
            assert!(keep(n, 30, 0).is_empty());
        }
        // Too many: one that is drawn goes.
        assert_eq!(keep(4, 10, 1), [Digest([2; 32])]);
        assert_eq!(held(&state), [1, 3, 4]);
        // Too large together: as many go as must.
        assert_eq!(keep(5, 80, 0), [Digest([1; 32]), Digest([3; 32])]);
        assert_eq!(held(&state), [4, 5]);
        // Too large alone: it is itself what goes.
        assert_eq!(keep(6, 101, 0), [Digest([6; 32])]);
        assert!(keep(7, 1, 99).is_empty());
        let other = ExampleRow { service: "other".into(), ..row(8, 100) };
        assert!(state.keep_example(&other, quota, |_| 0).unwrap().is_empty());
        assert_eq!((state.examples("").unwrap().len(), held(&state)), (4, vec![4, 5, 7]));
        drop(state);
        let state = State::open(&path, &tables).unwrap();
        let ids: Vec<u64> = state.examples("digits").unwrap().iter().take(2).map(|row| row.id).collect();
        state.remove_examples(&ids).unwrap();
        assert_eq!(held(&state), [7]);
    }
}
