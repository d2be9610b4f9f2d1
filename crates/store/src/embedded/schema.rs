//! The tables, and how they came to be.
//!
//! `changes` is the history: one row for every key written or deleted, never changed, only compacted
//! away. `live` points at the row that holds for each key that exists. A key changes at most once at
//! a revision.

use rusqlite::{Connection, OptionalExtension};

/// Marks a file as a Limosa store: "Limo".
pub(super) const APPLICATION_ID: i32 = 0x4c69_6d6f;

/// One script for each schema version, applied in order; never edited once released.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (
        one         INTEGER PRIMARY KEY CHECK (one = 1),
        incarnation INTEGER NOT NULL,
        compacted   INTEGER NOT NULL             -- the oldest revision that can be read
    );
    CREATE TABLE leases (
        id    INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice
        ttl_s INTEGER NOT NULL
    );
    CREATE TABLE changes (
        seq             INTEGER PRIMARY KEY,
        revision        INTEGER NOT NULL,
        key             BLOB NOT NULL,
        value           BLOB,                    -- NULL: the key was deleted
        create_revision INTEGER NOT NULL,
        version         INTEGER NOT NULL,
        lease           INTEGER                  -- as it was; that lease may be gone
    );
    CREATE INDEX changes_by_revision ON changes (revision);
    CREATE UNIQUE INDEX changes_by_key ON changes (key, revision);
    CREATE TABLE live (
        key   BLOB PRIMARY KEY,
        seq   INTEGER NOT NULL REFERENCES changes (seq),
        lease INTEGER REFERENCES leases (id)
    ) WITHOUT ROWID;
    CREATE INDEX live_by_seq ON live (seq);
    CREATE INDEX live_by_lease ON live (lease) WHERE lease IS NOT NULL;
"];

/// The schema version of a file; `None` when it is some other program's.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<Option<u32>> {
    let application: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let meta =
        connection.query_row("SELECT 1 FROM sqlite_schema WHERE name = 'meta'", [], |_| Ok(())).optional()?;
    Ok((application == APPLICATION_ID && version > 0 && meta.is_some()).then_some(version))
}

/// Brings the tables from schema version `from` to the newest, each step whole or not at all.
pub(super) fn migrate(connection: &mut Connection, from: u32, migrations: &[&str]) -> rusqlite::Result<()> {
    for (version, script) in (1u32..).zip(migrations).skip(from as usize) {
        let step = connection.transaction()?;
        step.execute_batch(script)?;
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", version)?;
        step.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_takes_an_old_file_forward_and_keeps_what_is_in_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, 0, MIGRATIONS).unwrap();
        connection.execute("INSERT INTO meta VALUES (1, 7, 1)", []).unwrap();
        let newer = [MIGRATIONS, &["ALTER TABLE meta ADD COLUMN note TEXT DEFAULT 'hello'"]].concat();
        let from = version(&connection).unwrap().unwrap();
        migrate(&mut connection, from, &newer).unwrap();
        let row: (i64, String) = connection
            .query_row("SELECT incarnation, note FROM meta", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!(row, (7, "hello".to_owned()));
        assert_eq!(version(&connection).unwrap(), Some(from + 1));
    }

    #[test]
    fn a_migration_that_fails_leaves_the_version_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        let broken = [MIGRATIONS, &["CREATE TABLE extra (a); CREATE TABLE extra (a);"]].concat();
        migrate(&mut connection, 0, &broken).unwrap_err();
        assert_eq!(version(&connection).unwrap(), Some(MIGRATIONS.len() as u32));
        connection.execute("SELECT * FROM extra", []).unwrap_err();
    }
}
