//! The file below the embedded store: made, locked, checked, opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use limosa_model::Incarnation;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::FlockOperation;

use super::schema::{self, MIGRATIONS};
use crate::StoreError;
use crate::port::Result;

/// How long a connection waits for another one of the same process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many prepared statements a connection keeps.
const STATEMENT_CACHE: usize = 32;

/// The right to be the one process that works with a store; given up when dropped.
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock `PATH.lock`. It is the kernel's: it ends with the process, however that ends.
    pub(super) fn take(store: &Path) -> Result<Self> {
        let path = beside(store, ".lock");
        let failed = |source| StoreError::File { doing: "lock", path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // The holder's name is only a courtesy to the reader of the error.
                let known = file.take(64).read_to_string(&mut holder).is_ok() && !holder.is_empty();
                let holder = if known { holder.trim().to_owned() } else { "unknown".to_owned() };
                return Err(StoreError::InUse { path: store.to_owned(), holder });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        let name = format!("process {}\n", std::process::id());
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        file.write_all(name.as_bytes()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Opens the store's file for its one writer, and makes it if there is none. The lock is held.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let missing = !path.try_exists().map_err(file_error("look for", path))?;
    if missing {
        create(path)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(file_error("set the permissions of", path))?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check(&connection, path)?;
    let version = known_version(&connection, path)?;
    let opened = (|| {
        schema::migrate(&mut connection, version, MIGRATIONS)?;
        connection.pragma_update(None, "journal_mode", "WAL")
    })();
    opened.map_err(sqlite_error(path, "prepare its file"))?;
    Ok(connection)
}

/// Opens one more connection, that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "query_only", true).map_err(sqlite_error(path, "open a reader"))?;
    Ok(connection)
}

/// Opens a file as it is, with the settings of every connection.
pub(super) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let opened = (|| {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    })();
    opened.map_err(sqlite_error(path, "open its file"))
}

/// Looks through the whole file for damage.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<()> {
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(sqlite_error(path, "check its file"))?;
    if found == "ok" { Ok(()) } else { Err(corrupted(path, found)) }
}

/// The file's schema version, if it is one of ours and not from the future.
pub(super) fn known_version(connection: &Connection, path: &Path) -> Result<u32> {
    let known = MIGRATIONS.len() as u32;
    match schema::version(connection).map_err(sqlite_error(path, "read its schema version"))? {
        None => Err(corrupted(path, "this is not a Limosa store".to_owned())),
        Some(found) if found > known => Err(StoreError::NewerSchema { path: path.to_owned(), found, known }),
        Some(found) => Ok(found),
    }
}

/// Makes an empty store. It gets its name only when it is whole, so that a file that is found
/// empty or cut short is damage and never taken for a new store.
fn create(path: &Path) -> Result<()> {
    let partial = beside(path, ".new");
    create_private(&partial)?;
    let mut connection = connect(&partial, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let made = schema::migrate(&mut connection, 0, MIGRATIONS).and_then(|()| {
        let incarnation = incarnation_above(None).0 as i64;
        connection.execute("INSERT INTO meta (one, incarnation, compacted) VALUES (1, ?1, 1)", [incarnation])
    });
    made.map_err(sqlite_error(path, "create its file"))?;
    drop(connection);
    publish(&partial, path)
}

/// An incarnation above `known`, and above every one that anybody may have seen: it counts the seconds
/// since 1970, so that two restores of one backup, or a store begun anew, never share one.
pub(super) fn incarnation_above(known: Option<Incarnation>) -> Incarnation {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Incarnation(known.map_or(1, |known| known.0 + 1).max(now_s))
}

/// Makes an empty file that only its owner may read; what was left there is thrown away.
pub(super) fn create_private(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file_error("replace", path)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(file_error("create", path))
}

/// Gives a finished file its name, durably.
pub(super) fn publish(partial: &Path, path: &Path) -> Result<()> {
    File::open(partial).and_then(|file| file.sync_all()).map_err(file_error("write", partial))?;
    fs::rename(partial, path).map_err(file_error("name", path))?;
    sync_folder(path)
}

/// Makes what happened to names in the file's folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error("write the folder of", path))
}

/// `PATH` with more at its end.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn file_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { doing, path: path.to_owned(), source }
}

pub(super) fn corrupted(path: &Path, detail: String) -> StoreError {
    StoreError::Corrupted { path: path.to_owned(), detail }
}

/// Sorts an error of SQLite into ours.
pub(super) fn sqlite_error(path: &Path, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |error| shared_sqlite_error(path, doing, &Arc::new(error))
}

/// The same for an error that several callers are told of.
pub(super) fn shared_sqlite_error(
    path: &Path,
    doing: &'static str,
    error: &Arc<rusqlite::Error>,
) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => corrupted(path, error.to_string()),
        Some(ErrorCode::DiskFull) => StoreError::Full { path: path.to_owned() },
        _ => StoreError::Backend { doing, source: error.clone() },
    }
}
