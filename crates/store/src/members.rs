//! Who is in and who is out, in a node's state: tokens, nodes, revocations, and
//! who was below.

use rusqlite::{OptionalExtension, params};
use tierline_proto::Role;
use tierline_proto::v1::{Revocations, Revoked};

use super::{State, StoreError};

/// Steps of the tables.
pub const TABLES: &[&str] = &["
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, secret BLOB NOT NULL, role INTEGER NOT NULL, name TEXT NOT NULL,
        not_after_s INTEGER NOT NULL, uses_left INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE joins (device_key BLOB PRIMARY KEY, token TEXT NOT NULL, node TEXT NOT NULL) STRICT;
    CREATE TABLE nodes (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, role INTEGER NOT NULL) STRICT;
    CREATE TABLE revoked (node TEXT PRIMARY KEY, name TEXT NOT NULL, reason TEXT NOT NULL, since_s INTEGER NOT NULL) STRICT;
    CREATE TABLE renamed (node TEXT PRIMARY KEY, was TEXT NOT NULL, renewed INTEGER NOT NULL DEFAULT 0) STRICT;
"];

/// Steps of the table of those that were below this node.
pub const SEEN_TABLES: &[&str] = &["
    CREATE TABLE seen (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, role INTEGER NOT NULL, parent TEXT NOT NULL, via TEXT NOT NULL,
        seen_ms INTEGER NOT NULL
    ) STRICT;
"];

/// A join token as the cloud keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Names it; not secret.
    pub id: String,
    /// BLAKE3 of its secret.
    pub secret: [u8; 32],
    /// What the device will be.
    pub role: Role,
    /// The device's name, if it is fixed; else empty.
    pub name: String,
    /// Last second of its life, Unix time.
    pub not_after_s: u64,
    /// Devices that may still join with it.
    pub uses_left: u32,
    /// Whether it was taken back.
    pub revoked: bool,
}

/// A node that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
}

/// A node that was below this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRow {
    /// Who.
    pub node: NodeRow,
    /// Identity of its parent.
    pub parent: String,
    /// Identity of the child that told of it; empty for a child.
    pub via: String,
    /// When it came last, Unix time in milliseconds.
    pub seen_ms: u64,
}

/// What became of a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// A new node, or the same device once more.
    Node(NodeRow),
    /// No such token, or its secret is wrong.
    Unknown,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
    /// It was used as often as it may.
    UsedUp,
    /// Another node has that name.
    NameTaken,
    /// The node that joined with this key and token is shut out.
    ShutOut,
}

/// A device that asks to join.
#[derive(Debug)]
pub struct JoinAttempt<'a> {
    /// The token's id.
    pub token: &'a str,
    /// BLAKE3 of the token's secret.
    pub secret: [u8; 32],
    /// Digest of the device's public key: knows a repeated join again.
    pub device_key: [u8; 32],
    /// Id for a new node.
    pub new_id: &'a str,
    /// Name the device wishes; the token's wins.
    pub name: &'a str,
    /// Now, Unix time in seconds.
    pub now_s: u64,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn role(value: i32) -> Role {
    Role::try_from(value).unwrap_or(Role::Unspecified)
}

impl State {
    /// Keeps a new token.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_token(&self, token: &TokenRow) -> Result<(), StoreError> {
        self.with(|c| {
            c.execute(
                "INSERT INTO tokens (id, secret, role, name, not_after_s, uses_left) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    token.id,
                    token.secret,
                    i32::from(token.role),
                    token.name,
                    number(token.not_after_s),
                    token.uses_left
                ],
            )
            .map(drop)
        })
    }

    /// Every token, newest life first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.with(|c| c.prepare("SELECT * FROM tokens ORDER BY not_after_s DESC")?.query_map([], token_row)?.collect())
    }

    /// Takes a token back; says whether it was there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        self.essential(|c| Ok(c.execute("UPDATE tokens SET revoked = 1 WHERE id = ?1", [id])? > 0))
    }

    /// Uses a token for a device, in one transaction: a device that repeats a
    /// join whose answer was lost gets the same node again and uses nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn join(&self, attempt: &JoinAttempt<'_>) -> Result<Joined, StoreError> {
        self.with(|c| {
            let t = c.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let token = t.query_row("SELECT * FROM tokens WHERE id = ?1", [attempt.token], token_row).optional()?;
            let Some(token) = token.filter(|token| token.secret == attempt.secret) else { return Ok(Joined::Unknown) };
            let before: Option<String> = t
                .query_row(
                    "SELECT node FROM joins WHERE device_key = ?1 AND token = ?2",
                    params![attempt.device_key, token.id],
                    |row| row.get(0),
                )
                .optional()?;
            let revoked = |t: &rusqlite::Transaction<'_>, id: &str| {
                t.query_row("SELECT 1 FROM revoked WHERE node = ?1", [id], |_| Ok(())).optional().map(|r| r.is_some())
            };
            // Also for who has used it before: a token that is over gives no certificate.
            if token.revoked {
                return Ok(Joined::Revoked);
            }
            if attempt.now_s > token.not_after_s {
                return Ok(Joined::Expired);
            }
            if let Some(id) = before {
                if revoked(&t, &id)? {
                    return Ok(Joined::ShutOut);
                }
                if let Some(node) = t.query_row("SELECT * FROM nodes WHERE id = ?1", [&id], node_row).optional()? {
                    return Ok(Joined::Node(node));
                }
            }
            if token.uses_left == 0 {
                return Ok(Joined::UsedUp);
            }
            let wished = if token.name.is_empty() { attempt.name } else { &token.name };
            let holder = t.query_row("SELECT * FROM nodes WHERE name = ?1", [wished], node_row).optional()?;
            if let Some(holder) = holder {
                // A revoked node's name is free again.
                if !revoked(&t, &holder.id)? {
                    return Ok(Joined::NameTaken);
                }
                t.execute("DELETE FROM nodes WHERE id = ?1", [&holder.id])?;
            }
            // As long as a certificate says it, a name that was given up isn't free.
            let said = "SELECT node FROM renamed WHERE was = ?1 AND renewed = 0";
            let said: Option<String> = t.query_row(said, [wished], |row| row.get(0)).optional()?;
            if said.is_some_and(|id| !revoked(&t, &id).unwrap_or(false)) {
                return Ok(Joined::NameTaken);
            }
            let node = NodeRow { id: attempt.new_id.to_owned(), name: wished.to_owned(), role: token.role };
            t.execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?1", [&token.id])?;
            t.execute("INSERT INTO nodes VALUES (?1, ?2, ?3)", params![node.id, node.name, i32::from(node.role)])?;
            t.execute(
                "INSERT OR REPLACE INTO joins VALUES (?1, ?2, ?3)",
                params![attempt.device_key, token.id, node.id],
            )?;
            t.commit()?;
            Ok(Joined::Node(node))
        })
    }

    /// Records a node that did not join by token: the cloud itself.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add_node(&self, node: &NodeRow) -> Result<(), StoreError> {
        // Also on a full disk, where nothing new can be written.
        if self.node(&node.id)?.as_ref() == Some(node) {
            return Ok(());
        }
        self.with(|c| {
            c.execute(
                "INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3)",
                params![node.id, node.name, i32::from(node.role)],
            )
            .map(drop)
        })
    }

    /// The node of that id, else of that name: names are chosen by their
    /// bearers, ids are not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn node(&self, id_or_name: &str) -> Result<Option<NodeRow>, StoreError> {
        self.with(|c| {
            let found = c.query_row("SELECT * FROM nodes WHERE id = ?1", [id_or_name], node_row).optional()?;
            match found {
                Some(row) => Ok(Some(row)),
                None => c.query_row("SELECT * FROM nodes WHERE name = ?1", [id_or_name], node_row).optional(),
            }
        })
    }

    /// All nodes that were ever let in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.with(|c| c.prepare("SELECT * FROM nodes ORDER BY id")?.query_map([], node_row)?.collect())
    }

    /// Names of all nodes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn node_names(&self) -> Result<Vec<String>, StoreError> {
        self.with(|c| c.prepare("SELECT name FROM nodes ORDER BY name")?.query_map([], |row| row.get(0))?.collect())
    }

    /// Forgets a node that is shut out: its name, and where it was.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_node(&self, id: &str) -> Result<(), StoreError> {
        self.essential(|c| {
            let t = c.transaction()?;
            t.execute("DELETE FROM nodes WHERE id = ?1", [id])?;
            t.execute("DELETE FROM renamed WHERE node = ?1", [id])?;
            t.execute("DELETE FROM seen WHERE id = ?1", [id])?;
            t.commit()
        })
    }

    /// Gives a node another name, unless another one has it that isn't shut
    /// out; says whether it could.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rename_node(&self, node: &NodeRow, name: &str) -> Result<bool, StoreError> {
        self.with(|c| {
            let t = c.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let holder: Option<String> =
                t.query_row("SELECT id FROM nodes WHERE name = ?1", [name], |row| row.get(0)).optional()?;
            if let Some(holder) = holder.filter(|holder| *holder != node.id) {
                let out = t.query_row("SELECT 1 FROM revoked WHERE node = ?1", [&holder], |_| Ok(())).optional()?;
                if out.is_none() {
                    return Ok(false);
                }
                t.execute("DELETE FROM nodes WHERE id = ?1", [&holder])?;
            }
            t.execute("UPDATE nodes SET name = ?2 WHERE id = ?1", params![node.id, name])?;
            t.execute(
                "INSERT INTO renamed (node, was) VALUES (?1, ?2) \
                 ON CONFLICT (node) DO UPDATE SET was = excluded.was, renewed = 0",
                params![node.id, node.name],
            )?;
            t.commit()?;
            Ok(true)
        })
    }

    /// A node has a certificate of its newest name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn renewed(&self, id: &str) -> Result<(), StoreError> {
        self.with(|c| c.execute("UPDATE renamed SET renewed = 1 WHERE node = ?1", [id]).map(drop))
    }

    /// Nodes that were given another name: identity, the name before, whether
    /// their certificate says the new one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn renames(&self) -> Result<Vec<(String, String, bool)>, StoreError> {
        self.with(|c| {
            c.prepare("SELECT node, was, renewed FROM renamed ORDER BY node")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        })
    }

    /// Remembers nodes that are below this one; of more than `max`, those that
    /// came last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn see(&self, nodes: &[SeenRow], max: usize) -> Result<(), StoreError> {
        self.with(|c| {
            let t = c.transaction()?;
            for seen in nodes {
                let SeenRow { node, parent, via, seen_ms } = seen;
                t.execute(
                    "INSERT OR REPLACE INTO seen VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![node.id, node.name, i32::from(node.role), parent, via, number(*seen_ms)],
                )?;
            }
            t.execute(
                "DELETE FROM seen WHERE id NOT IN (SELECT id FROM seen ORDER BY seen_ms DESC LIMIT ?1)",
                [number(max as u64)],
            )?;
            t.commit()
        })
    }

    /// Nodes that are or were below this one, as far as is remembered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn seen(&self) -> Result<Vec<SeenRow>, StoreError> {
        self.with(|c| {
            let row = |row: &rusqlite::Row<'_>| {
                let seen: i64 = row.get("seen_ms")?;
                let (parent, via) = (row.get("parent")?, row.get("via")?);
                Ok(SeenRow { node: node_row(row)?, parent, via, seen_ms: u64::try_from(seen).unwrap_or(0) })
            };
            c.prepare("SELECT * FROM seen ORDER BY seen_ms")?.query_map([], row)?.collect()
        })
    }

    /// Shuts a node out; its certificates count no more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revoke_node(&self, node: &NodeRow, reason: &str, now_s: u64) -> Result<(), StoreError> {
        self.essential(|c| {
            c.execute(
                "INSERT OR IGNORE INTO revoked VALUES (?1, ?2, ?3, ?4)",
                params![node.id, node.name, reason, number(now_s)],
            )
            .map(drop)
        })
    }

    /// The list as it travels; its sequence is the number of entries, which
    /// only grows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn revocations(&self) -> Result<Revocations, StoreError> {
        let revoked: Vec<Revoked> = self.with(|c| {
            c.prepare("SELECT node, since_s FROM revoked ORDER BY since_s, node")?
                .query_map([], |row| {
                    let since: i64 = row.get(1)?;
                    Ok(Revoked {
                        node_id: row.get(0)?,
                        since_s: u64::try_from(since).unwrap_or(0),
                        ..Revoked::default()
                    })
                })?
                .collect()
        })?;
        Ok(Revocations { sequence: revoked.len() as u64, revoked })
    }

    /// Keeps a list that came from above, so that it holds after a restart.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_revocations(&self, list: &Revocations) -> Result<(), StoreError> {
        self.essential(|c| {
            let t = c.transaction()?;
            // A list from above is whole. What this node's own operators shut
            // out has a name; else lists would only grow.
            t.execute("DELETE FROM revoked WHERE name = ''", [])?;
            for revoked in &list.revoked {
                t.execute(
                    "INSERT OR IGNORE INTO revoked VALUES (?1, '', '', ?2)",
                    params![revoked.node_id, number(revoked.since_s)],
                )?;
            }
            t.commit()
        })
    }
}

fn token_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<TokenRow> {
    let not_after: i64 = row.get("not_after_s")?;
    Ok(TokenRow {
        id: row.get("id")?,
        secret: row.get("secret")?,
        role: role(row.get("role")?),
        name: row.get("name")?,
        not_after_s: u64::try_from(not_after).unwrap_or(0),
        uses_left: row.get("uses_left")?,
        revoked: row.get("revoked")?,
    })
}

fn node_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<NodeRow> {
    Ok(NodeRow { id: row.get("id")?, name: row.get("name")?, role: role(row.get("role")?) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Tables;

    const TABLES_OF_MEMBERS: Tables = Tables { of: "enrolment", steps: TABLES };

    fn attempt<'a>(token: &'a str, key: u8, id: &'a str, name: &'a str) -> JoinAttempt<'a> {
        JoinAttempt { token, secret: [1; 32], device_key: [key; 32], new_id: id, name, now_s: 100 }
    }

    fn token(uses_left: u32) -> TokenRow {
        TokenRow {
            id: "t".into(),
            secret: [1; 32],
            role: Role::End,
            name: String::new(),
            not_after_s: 200,
            uses_left,
            revoked: false,
        }
    }

    fn state() -> (tempfile::TempDir, State) {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state.db"), &[TABLES_OF_MEMBERS]).unwrap();
        (folder, state)
    }

    #[test]
    fn a_token_counts_devices_not_attempts() {
        let (_folder, state) = state();
        state.add_token(&token(1)).unwrap();
        let first = state.join(&attempt("t", 1, "a", "cam")).unwrap();
        assert!(matches!(&first, Joined::Node(node) if node.id == "a"));
        assert_eq!(state.join(&attempt("t", 1, "b", "cam")).unwrap(), first, "the same device asks again");
        assert_eq!(state.join(&attempt("t", 2, "c", "other")).unwrap(), Joined::UsedUp);
    }

    #[test]
    fn wrong_late_and_taken_back_tokens_are_told_apart() {
        let (_folder, state) = state();
        state.add_token(&token(5)).unwrap();
        let wrong = JoinAttempt { secret: [9; 32], ..attempt("t", 1, "a", "cam") };
        assert_eq!(state.join(&wrong).unwrap(), Joined::Unknown);
        let late = JoinAttempt { now_s: 201, ..attempt("t", 1, "a", "cam") };
        assert_eq!(state.join(&late).unwrap(), Joined::Expired);
        state.join(&attempt("t", 1, "a", "cam")).unwrap();
        assert_eq!(state.join(&attempt("t", 2, "b", "cam")).unwrap(), Joined::NameTaken);
        let late = JoinAttempt { now_s: 201, ..attempt("t", 1, "a", "cam") };
        assert_eq!(state.join(&late).unwrap(), Joined::Expired, "also for the device that used it in time");
        assert!(state.revoke_token("t").unwrap());
        assert_eq!(state.join(&attempt("t", 3, "c", "new")).unwrap(), Joined::Revoked);
        assert_eq!(state.join(&attempt("t", 1, "a", "cam")).unwrap(), Joined::Revoked, "also for who used it");
    }

    #[test]
    fn a_revoked_node_frees_its_name_and_stays_out() {
        let (_folder, state) = state();
        state.add_token(&token(5)).unwrap();
        state.join(&attempt("t", 1, "a", "cam")).unwrap();
        let node = state.node("cam").unwrap().unwrap();
        state.revoke_node(&node, "lost", 150).unwrap();
        assert_eq!(state.revocations().unwrap().sequence, 1);
        assert_eq!(state.join(&attempt("t", 1, "b", "cam")).unwrap(), Joined::ShutOut, "the same key and token");
        assert!(matches!(state.join(&attempt("t", 2, "b", "cam")).unwrap(), Joined::Node(n) if n.id == "b"));
    }

    #[test]
    fn a_name_like_an_id_takes_nobodys_place() {
        let (_folder, state) = state();
        let (real, lure) = ("0f".repeat(16), "1e".repeat(16));
        state.add_node(&NodeRow { id: real.clone(), name: "gateway".into(), role: Role::Edge }).unwrap();
        state.add_node(&NodeRow { id: lure.clone(), name: real.clone(), role: Role::End }).unwrap();
        assert_eq!(state.node(&real).unwrap().unwrap().name, "gateway");
        assert_eq!(state.node("gateway").unwrap().unwrap().id, real);
        assert_eq!(state.node(&lure).unwrap().unwrap().name, real);
    }
}
