//! The port: what every implementation of the store does, in etcd's terms.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use limosa_model::Incarnation;
use serde::{Deserialize, Serialize};

use crate::txn::{Txn, TxnOutcome};
use crate::{KEY_LIMIT_BYTES, StoreError};

/// A future that any implementation of [`Store`] can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A result of the store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The number of a change. Every transaction that changes anything gets the next one; a key's
/// revisions order its changes, and the global order is the same for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease's name. Never given twice by one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision at which the key came to be (again, if it had been deleted).
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
    /// How often it was written since it came to be; 1 at first.
    pub version: u64,
    /// The lease whose end deletes it.
    pub lease: Option<LeaseId>,
}

/// Which keys to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Keys that begin with this; the empty prefix means all.
    pub prefix: String,
    /// Only keys that sort after this one: the last key of the page before.
    pub after: Option<String>,
    /// At most this many keys; `None` means all.
    pub limit: Option<u32>,
    /// The state as it was at this revision; `None` means the newest.
    pub revision: Option<Revision>,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: None, revision: None }
    }

    /// The same, from the key that sorts after `key`.
    pub fn after(self, key: impl Into<String>) -> Self {
        Self { after: Some(key.into()), ..self }
    }

    /// The same, at most `limit` keys.
    pub fn limit(self, limit: u32) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// The same, as it was at `revision`.
    pub fn at(self, revision: Revision) -> Self {
        Self { revision: Some(revision), ..self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_prefix(&self.prefix)?;
        self.after.as_deref().map_or(Ok(()), check_prefix)
    }
}

/// What a range read found, sorted by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResult {
    /// The keys.
    pub entries: Vec<KeyValue>,
    /// Whether the limit left keys out.
    pub more: bool,
    /// The store's newest revision when this was read: a watch from the next one misses nothing.
    pub revision: Revision,
}

/// One key's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was written.
    Put(KeyValue),
    /// The key was deleted, by somebody or by the end of its lease.
    Delete {
        /// The key.
        key: String,
        /// The revision of the deletion.
        mod_revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.key().len() + if let Self::Put(entry) = self { entry.value.len() } else { 0 }
    }
}

/// Everything under a watched prefix that changed at one revision, in the transaction's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The revision.
    pub revision: Revision,
    /// What changed; never empty.
    pub events: Vec<Event>,
}

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives without being kept alive; may be more than was asked for.
    pub ttl: Duration,
}

/// A lease and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseStatus {
    /// How long it lives when it is kept alive now.
    pub ttl: Duration,
    /// How long it lives when it is not.
    pub remaining: Duration,
    /// The keys that its end deletes, sorted.
    pub keys: Vec<String>,
}

/// A stream of changes, see [`Store::watch`].
pub trait Watch: Send {
    /// The next changes, waiting for them. Dropping the future before it is ready loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the watcher was so slow that what it has not seen is gone;
    /// [`StoreError::Closed`] when the store was closed. After an error the watch is over.
    fn next(&mut self) -> BoxFuture<'_, Result<Changes>>;
}

/// The cluster's state. All implementations pass the same conformance suite.
///
/// A write is durable once its future says so. Dropping the future does not take the write back:
/// it may still happen.
pub trait Store: Send + Sync + 'static {
    /// Reads keys, sorted. Sees every write acknowledged before.
    ///
    /// # Errors
    /// [`StoreError::Compacted`], [`StoreError::FutureRevision`].
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeResult>>;

    /// Reads one key.
    ///
    /// # Errors
    /// [`StoreError::InvalidKey`].
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<KeyValue>>>;

    /// Runs a transaction: all of one branch, or nothing.
    ///
    /// # Errors
    /// Those of a transaction beyond its limits, and [`StoreError::LeaseNotFound`]; nothing was done then.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>>;

    /// Watches all keys that begin with `prefix`, from `from` on, that revision included. Nothing is
    /// left out, nothing comes twice, and what changed at one revision comes together.
    /// `from` may lie in the future.
    ///
    /// # Errors
    /// [`StoreError::InvalidKey`]. A compacted `from` is told by [`Watch::next`].
    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>>>;

    /// Forgets what was before `oldest`: it becomes the oldest revision that can be read, and
    /// watches begin after it.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when that has happened already, [`StoreError::FutureRevision`].
    fn compact(&self, oldest: Revision) -> BoxFuture<'_, Result<()>>;

    /// Grants a lease of at least `ttl`, in whole seconds (rounded up).
    ///
    /// # Errors
    /// [`StoreError::InvalidTtl`].
    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease>>;

    /// Starts the lease's time anew and says how long it now lives.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`]: it has run out, and its keys are gone.
    fn keep_lease_alive(&self, id: LeaseId) -> BoxFuture<'_, Result<Duration>>;

    /// Ends the lease: its keys are deleted, at one revision.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`].
    fn revoke_lease(&self, id: LeaseId) -> BoxFuture<'_, Result<()>>;

    /// How a lease stands.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`].
    fn lease(&self, id: LeaseId) -> BoxFuture<'_, Result<LeaseStatus>>;

    /// Which incarnation of the state this is: higher after every restore from a backup.
    ///
    /// # Errors
    /// Only those of the database below.
    fn incarnation(&self) -> BoxFuture<'_, Result<Incarnation>>;
}

pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() {
        return Err(StoreError::InvalidKey { key: String::new(), reason: "it is empty" });
    }
    check_prefix(key)
}

pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    let reason = if prefix.len() > KEY_LIMIT_BYTES {
        "it is longer than 1024 bytes"
    } else if prefix.contains('\0') {
        "it contains a NUL character"
    } else {
        return Ok(());
    };
    Err(StoreError::InvalidKey { key: prefix.chars().take(64).collect(), reason })
}
