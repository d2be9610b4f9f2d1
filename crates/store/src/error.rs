//! What can go wrong with the store, and what to do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{LeaseId, Revision};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A key that no implementation takes.
    #[error("key {key:?} is refused: {reason}")]
    InvalidKey {
        /// The key, cut short where it is too long to print.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More compares or operations than one transaction may hold.
    #[error("the transaction has {count} {what}; at most {limit} are allowed: split it")]
    TooManyOps {
        /// "compares" or "operations".
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Keys and values of one transaction are too large together.
    #[error("the transaction holds {bytes} bytes of keys and values; at most {limit} are allowed: split it")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// One branch of a transaction writes the same key twice.
    #[error("the transaction writes key {key:?} twice in one branch; write it once")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The revision asked for has been compacted away.
    #[error(
        "that revision has been compacted; the oldest one kept is {oldest}: read again, then watch from there"
    )]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision asked for lies in the future.
    #[error("revision {asked} does not exist yet; the newest is {current}")]
    FutureRevision {
        /// What was asked for.
        asked: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The lease ran out, was revoked or never existed.
    #[error("lease {lease} has expired or does not exist; grant a new one")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// A lease shorter or longer than allowed.
    #[error("a lease of {ttl_s} s is refused; ask for {min_s} to {max_s} s")]
    InvalidTtl {
        /// What was asked for, in seconds.
        ttl_s: u64,
        /// The shortest, in seconds.
        min_s: u64,
        /// The longest, in seconds.
        max_s: u64,
    },
    /// Others changed the key each time between our read and our write.
    #[error("key {key:?} was changed by others {attempts} times in a row; try again later")]
    Contended {
        /// The key.
        key: String,
        /// How often it was tried.
        attempts: usize,
    },
    /// The value at a key is not what the reader expected.
    #[error("the value at key {key:?} cannot be read as {wanted}; was it written by another version?")]
    Undecodable {
        /// The key.
        key: String,
        /// The type expected.
        wanted: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// A value cannot be written as JSON.
    #[error("the value for key {key:?} cannot be written as JSON")]
    Unencodable {
        /// The key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by another process ({holder}); stop that one first", path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The file is damaged or is no store.
    #[error("the store {} is damaged ({detail}); restore it from a backup", path.display())]
    Corrupted {
        /// The store's file.
        path: PathBuf,
        /// What the check found.
        detail: String,
    },
    /// A newer version wrote the file.
    #[error(
        "the store {} has schema version {found}, this program knows up to {known}; \
         start the newer version, or restore a backup made before the upgrade", path.display()
    )]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// A backup would overwrite a file.
    #[error("{} exists already; choose another name for the backup", path.display())]
    BackupExists {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be worked on.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk is full: nothing was written, and writing works again once there is room.
    #[error("no room left for the store {}; free some space and try again", path.display())]
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// The database below failed. When this answers a write, whether the write happened is not known.
    #[error("the store failed to {doing}; look at its disk, then restart the server")]
    Backend {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store has been closed.
    #[error("the store has been closed")]
    Closed,
}
