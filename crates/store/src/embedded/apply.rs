//! Writing: what each request does to the tables, within the writer's transaction.

use rusqlite::{Connection, OptionalExtension, params};

use super::history::{self, ReadError};
use crate::StoreError;
use crate::port::{Changes, Event, KeyValue, LeaseId, Revision};
use crate::txn::{Op, OpResult, Txn, TxnOutcome};

/// Requests being applied in one SQLite transaction, which is committed once for all of them.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a Connection,
    /// The newest revision, those of this batch included.
    pub(super) head: Revision,
    /// What this batch changes, one entry for each revision.
    pub(super) changes: Vec<Changes>,
}

impl Batch<'_> {
    pub(super) fn txn(&mut self, txn: Txn) -> Result<TxnOutcome, ReadError> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded &= compare.holds(history::get(self.connection, compare.key())?.as_ref());
        }
        let mut events = Vec::new();
        let mut results = Vec::new();
        for op in if succeeded { txn.then } else { txn.otherwise } {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    events.push(self.put(key, value, lease)?);
                    OpResult::Put
                }
                Op::Delete(key) => {
                    let deleted = self.delete(&key)?;
                    let existed = deleted.is_some();
                    events.extend(deleted);
                    OpResult::Delete { existed }
                }
                Op::Get(key) => OpResult::Get(history::get(self.connection, &key)?),
                Op::Range(range) => {
                    let head = if events.is_empty() { self.head } else { self.head.next() };
                    OpResult::Range(history::range(self.connection, head, &range)?)
                }
            });
        }
        self.end_revision(events);
        Ok(TxnOutcome { succeeded, revision: self.head, results })
    }

    pub(super) fn compact(&mut self, oldest: Revision) -> Result<(), ReadError> {
        let compacted = history::oldest(self.connection)?;
        if oldest <= compacted {
            return Err(ReadError::Refused(StoreError::Compacted { oldest: compacted }));
        }
        if oldest > self.head {
            return Err(ReadError::Refused(StoreError::FutureRevision { asked: oldest, current: self.head }));
        }
        let oldest = oldest.0 as i64;
        self.connection.execute("UPDATE meta SET compacted = ?1", [oldest])?;
        // What was overwritten or deleted by then. The changes at `oldest` itself stay.
        self.connection.execute(
            "DELETE FROM changes AS old WHERE revision < ?1 AND (value IS NULL OR EXISTS
                 (SELECT 1 FROM changes WHERE key = old.key AND revision > old.revision AND revision <= ?1))",
            [oldest],
        )?;
        Ok(())
    }

    pub(super) fn grant(&mut self, ttl_s: u64) -> Result<LeaseId, ReadError> {
        self.connection.prepare_cached("INSERT INTO leases (ttl_s) VALUES (?1)")?.execute([ttl_s as i64])?;
        Ok(LeaseId(self.connection.last_insert_rowid()))
    }

    /// Ends a lease and deletes its keys at one revision. Whether there was one.
    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<bool, ReadError> {
        let mut events = Vec::new();
        for key in self.leased_keys(lease)? {
            events.extend(self.delete(&key)?);
        }
        self.end_revision(events);
        Ok(self.connection.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([lease.0])? > 0)
    }

    pub(super) fn leased_keys(&self, lease: LeaseId) -> Result<Vec<String>, ReadError> {
        let keys = self
            .connection
            .prepare_cached("SELECT CAST(key AS TEXT) FROM live WHERE lease = ?1 ORDER BY key")?
            .query_map([lease.0], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(keys)
    }

    fn put(&self, key: String, value: Vec<u8>, lease: Option<LeaseId>) -> Result<Event, ReadError> {
        if let Some(lease) = lease {
            let lives = self
                .connection
                .prepare_cached("SELECT 1 FROM leases WHERE id = ?1")?
                .query_row([lease.0], |_| Ok(()))
                .optional()?;
            lives.ok_or(ReadError::Refused(StoreError::LeaseNotFound { lease }))?;
        }
        let mod_revision = self.head.next();
        let (create_revision, version) = match history::get(self.connection, &key)? {
            Some(old) => (old.create_revision, old.version + 1),
            None => (mod_revision, 1),
        };
        let entry = KeyValue { key, value, create_revision, mod_revision, version, lease };
        let seq = self.record(&entry.key, Some(&entry))?;
        self.connection
            .prepare_cached(
                "INSERT INTO live (key, seq, lease) VALUES (?1, ?2, ?3)
                 ON CONFLICT (key) DO UPDATE SET seq = excluded.seq, lease = excluded.lease",
            )?
            .execute(params![entry.key.as_bytes(), seq, lease.map(|lease| lease.0)])?;
        Ok(Event::Put(entry))
    }

    fn delete(&self, key: &str) -> Result<Option<Event>, ReadError> {
        let deleted =
            self.connection.prepare_cached("DELETE FROM live WHERE key = ?1")?.execute([key.as_bytes()])?;
        if deleted == 0 {
            return Ok(None);
        }
        self.record(key, None)?;
        Ok(Some(Event::Delete { key: key.to_owned(), mod_revision: self.head.next() }))
    }

    /// Adds a row to the history at the revision that is being made; `None` is a deletion.
    fn record(&self, key: &str, entry: Option<&KeyValue>) -> Result<i64, ReadError> {
        self.connection
            .prepare_cached(
                "INSERT INTO changes (revision, key, value, create_revision, version, lease)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                self.head.next().0 as i64,
                key.as_bytes(),
                entry.map(|entry| &entry.value),
                entry.map_or(0, |entry| entry.create_revision.0 as i64),
                entry.map_or(0, |entry| entry.version as i64),
                entry.and_then(|entry| entry.lease).map(|lease| lease.0),
            ])?;
        Ok(self.connection.last_insert_rowid())
    }

    fn end_revision(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.head = self.head.next();
            self.changes.push(Changes { revision: self.head, events });
        }
    }
}
