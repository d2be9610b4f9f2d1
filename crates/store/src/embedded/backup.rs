//! Backups, and the way back from one.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use limosa_model::Incarnation;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::file::{self, StoreLock, beside, file_error, sqlite_error};
use super::{history, schema};
use crate::StoreError;
use crate::port::Result;

/// Writes the store as it is at this moment into one file, while it is in use.
pub(super) fn backup(store: &Path, backup: &Path) -> Result<()> {
    if fs::symlink_metadata(backup).is_ok() {
        return Err(StoreError::BackupExists { path: backup.to_owned() });
    }
    let partial = beside(backup, ".partial");
    let connection = file::open_reader(store)?;
    copy(&connection, store, &partial)?;
    file::publish(&partial, backup)
}

/// Makes a store at `path` of a backup, as a new incarnation. What is at `path` is set aside under
/// the name `PATH.before-INCARNATION`, so that nothing is lost by restoring the wrong backup.
///
/// No server may be running on `path`. If this is interrupted, do it again before starting one.
///
/// # Errors
/// [`StoreError::InUse`], and [`StoreError::Corrupted`] or [`StoreError::NewerSchema`] about the backup;
/// the store at `path` is as it was then.
pub fn restore_from(backup: &Path, path: &Path) -> Result<Incarnation> {
    let _lock = StoreLock::take(path)?;
    let source = file::connect(backup, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    file::check(&source, backup)?;
    let version = file::known_version(&source, backup)?;
    let of_backup = history::incarnation(&source).map_err(sqlite_error(backup, "read the backup"))?;
    let replaced = settle(path);
    let incarnation = file::incarnation_above(Some(replaced.map_or(of_backup, |old| old.max(of_backup))));

    let partial = beside(path, ".restored");
    copy(&source, backup, &partial)?;
    let mut restored = file::connect(&partial, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let renewed = schema::migrate(&mut restored, version, schema::MIGRATIONS)
        .and_then(|()| restored.execute("UPDATE meta SET incarnation = ?1", [incarnation.0 as i64]));
    renewed.map_err(sqlite_error(&partial, "renew the incarnation"))?;
    drop(restored);

    set_aside(path, incarnation)?;
    file::publish(&partial, path)?;
    Ok(incarnation)
}

/// Brings the write-ahead log of the store that is replaced into its file, and says which incarnation
/// it was. `None` when there is none, or it is too damaged to tell: that is why it is replaced.
fn settle(path: &Path) -> Option<Incarnation> {
    if !path.exists() {
        return None;
    }
    let connection = file::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    let incarnation = history::incarnation(&connection).ok()?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).ok()?;
    Some(incarnation)
}

/// Keeps the old store under another name. The file itself stays until the new one takes its name; its
/// log must not: SQLite would take it for the new file's.
fn set_aside(path: &Path, incarnation: Incarnation) -> Result<()> {
    let aside = beside(path, &format!(".before-{}", incarnation.0));
    for suffix in ["-wal", "-shm"] {
        let log = beside(path, suffix);
        if log.exists() {
            fs::rename(&log, beside(&aside, suffix)).map_err(file_error("set aside", &log))?;
        }
    }
    if path.exists() {
        match fs::hard_link(path, &aside) {
            // An interrupted restore came this far.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            linked => linked.map_err(file_error("set aside", path))?,
        }
    }
    file::sync_folder(path)
}

/// Copies a store in one step, which sees one state of it, into one file without a log.
fn copy(source: &Connection, source_path: &Path, path: &Path) -> Result<()> {
    file::create_private(path)?;
    let mut copy = file::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let copied = (|| {
        let step = Backup::new(source, &mut copy)?.step(-1)?;
        if step != StepResult::Done {
            return Ok(step);
        }
        copy.pragma_update(None, "journal_mode", "DELETE")?;
        Ok(step)
    })();
    let step = copied.map_err(sqlite_error(path, "copy the store"))?;
    if step != StepResult::Done {
        let busy = io::Error::from(ErrorKind::ResourceBusy);
        return Err(file_error("copy", source_path)(busy));
    }
    file::check(&copy, path)
}
