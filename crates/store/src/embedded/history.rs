//! Reading: what is at a key, in a range, and what happened since a revision.

use limosa_model::Incarnation;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, named_params};

use crate::StoreError;
use crate::port::{Changes, Event, KeyValue, LeaseId, Range, RangeResult, Revision};

/// The revision of a store to which nothing has happened, as in etcd.
const FIRST_REVISION: Revision = Revision(1);
/// How many changes one look into the history returns, save that a revision is never cut in two.
const PAGE_CHANGES: usize = 512;
/// The same for the bytes of their values.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A failed read: the store's answer, or SQLite's.
#[derive(Debug)]
pub(super) enum ReadError {
    Refused(StoreError),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The newest revision. Compaction never removes the rows of the newest one.
pub(super) fn head(connection: &Connection) -> rusqlite::Result<Revision> {
    let newest: Option<i64> =
        connection.prepare_cached("SELECT max(revision) FROM changes")?.query_row([], |row| row.get(0))?;
    Ok(newest.map_or(FIRST_REVISION, |newest| Revision(newest as u64)))
}

/// The oldest revision that can be read.
pub(super) fn oldest(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT compacted FROM meta")?
        .query_row([], |row| row.get::<_, i64>(0))
        .map(|oldest| Revision(oldest as u64))
}

/// The state's incarnation.
pub(super) fn incarnation(connection: &Connection) -> rusqlite::Result<Incarnation> {
    connection
        .query_row("SELECT incarnation FROM meta", [], |row| row.get::<_, i64>(0))
        .map(|incarnation| Incarnation(incarnation as u64))
}

/// What is at `key`.
pub(super) fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    connection
        .prepare_cached(
            "SELECT c.key, c.value, c.create_revision, c.revision, c.version, c.lease
             FROM live l JOIN changes c USING (seq) WHERE l.key = ?1",
        )?
        .query_row([key.as_bytes()], key_value)
        .optional()
}

/// What is in `range`, the newest revision being `head`.
pub(super) fn range(
    connection: &Connection,
    head: Revision,
    range: &Range,
) -> Result<RangeResult, ReadError> {
    if let Some(asked) = range.revision {
        if asked > head {
            return Err(ReadError::Refused(StoreError::FutureRevision { asked, current: head }));
        }
        let oldest = oldest(connection)?;
        if asked < oldest {
            return Err(ReadError::Refused(StoreError::Compacted { oldest }));
        }
    }
    let (lower, upper) = bounds(range);
    // One more than asked for tells whether there is more.
    let rows = range.limit.map_or(-1, |limit| i64::from(limit) + 1);
    let mut entries: Vec<KeyValue> = match range.revision {
        None => connection
            .prepare_cached(
                "SELECT c.key, c.value, c.create_revision, c.revision, c.version, c.lease
                 FROM live l JOIN changes c USING (seq)
                 WHERE l.key >= :lower AND l.key < :upper ORDER BY l.key LIMIT :rows",
            )?
            .query_map(named_params! {":lower": lower, ":upper": upper, ":rows": rows}, key_value)?
            .collect::<Result<_, _>>()?,
        Some(at) => connection
            .prepare_cached(
                "SELECT key, value, create_revision, revision, version, lease FROM changes c
                 WHERE key >= :lower AND key < :upper AND value IS NOT NULL AND revision =
                     (SELECT max(revision) FROM changes WHERE key = c.key AND revision <= :at)
                 ORDER BY key LIMIT :rows",
            )?
            .query_map(
                named_params! {":lower": lower, ":upper": upper, ":rows": rows, ":at": at.0 as i64},
                key_value,
            )?
            .collect::<Result<_, _>>()?,
    };
    let more = range.limit.is_some_and(|limit| entries.len() > limit as usize);
    if more {
        entries.pop();
    }
    Ok(RangeResult { entries, more, revision: head })
}

/// A part of the history.
pub(super) struct Page {
    /// What happened, by revision.
    pub(super) changes: Vec<Changes>,
    /// Everything up to this revision has been told; go on after it.
    pub(super) seen: Revision,
    /// Whether that is all there is.
    pub(super) complete: bool,
}

/// What happened to the keys under `prefix` from `from` on. Called in a read transaction.
pub(super) fn changes_since(
    connection: &Connection,
    prefix: &str,
    from: Revision,
) -> Result<Page, ReadError> {
    let oldest = oldest(connection)?;
    if from < oldest {
        return Err(ReadError::Refused(StoreError::Compacted { oldest }));
    }
    let head = head(connection)?;
    let (lower, upper) = bounds(&Range::prefix(prefix));
    let mut statement = connection.prepare_cached(
        "SELECT key, value, create_revision, revision, version, lease FROM changes
         WHERE revision >= :from AND key >= :lower AND key < :upper ORDER BY revision, seq",
    )?;
    let from = i64::try_from(from.0).unwrap_or(i64::MAX);
    let mut rows = statement.query(named_params! {":from": from, ":lower": lower, ":upper": upper})?;
    let mut changes: Vec<Changes> = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        let revision = Revision(row.get::<_, i64>(3)? as u64);
        let begins = changes.last().is_none_or(|last| last.revision != revision);
        if begins && (count >= PAGE_CHANGES || bytes >= PAGE_BYTES) {
            let seen = changes.last().map_or(revision, |last| last.revision);
            return Ok(Page { changes, seen, complete: false });
        }
        if begins {
            changes.push(Changes { revision, events: Vec::new() });
        }
        let event = event(row)?;
        count += 1;
        bytes += event.size_bytes();
        if let Some(last) = changes.last_mut() {
            last.events.push(event);
        }
    }
    Ok(Page { changes, seen: head, complete: true })
}

/// The keys from the first, included, to the second, left out. No UTF-8 text holds the byte 0xff, so
/// that everything that begins with a prefix sorts before the prefix and 0xff.
fn bounds(range: &Range) -> (Vec<u8>, Vec<u8>) {
    let mut lower = range.prefix.as_bytes().to_vec();
    let mut upper = lower.clone();
    upper.push(0xff);
    if let Some(after) = &range.after {
        let next = [after.as_bytes(), b"\0"].concat();
        lower = lower.max(next);
    }
    (lower, upper)
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    if row.get_ref(1)? == rusqlite::types::ValueRef::Null {
        return Ok(Event::Delete { key: key(row)?, mod_revision: Revision(row.get::<_, i64>(3)? as u64) });
    }
    key_value(row).map(Event::Put)
}

fn key_value(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        key: key(row)?,
        value: row.get(1)?,
        create_revision: Revision(row.get::<_, i64>(2)? as u64),
        mod_revision: Revision(row.get::<_, i64>(3)? as u64),
        version: row.get::<_, i64>(4)? as u64,
        lease: row.get::<_, Option<i64>>(5)?.map(LeaseId),
    })
}

fn key(row: &Row<'_>) -> rusqlite::Result<String> {
    String::from_utf8(row.get(0)?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error)))
}
